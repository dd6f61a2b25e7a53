"""What the fused step promises, each a measurement: the parts of ``fast_h200.py``."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, cast

import torch
from _measure import Json, summary
from torch import nn

from streamvae._recipe import Recipe
from streamvae.abc import Decoder
from streamvae.codecs import WalkingCodec, codec_for
from streamvae.fast import FusedWan
from streamvae.fast._fastvae import fused
from streamvae.fast._wan import StepCodec, step_codec
from streamvae.fast._wan.cuda_kernels import CudaKernels
from streamvae.fast._wan.freshness import Weights
from streamvae.fast._wan.interface import Convolution, Head, Kernels, Norm
from streamvae.fast._wan.network import build
from streamvae.fast._wan.options import Kind
from streamvae.fast._wan.recording import options_of
from streamvae.fast._wan.selftest import SelfTestError, check
from streamvae.fast._wan.step import ChunkDecoder, Histories

#: How a chunk is decoded.
Way = Callable[[], WalkingCodec]


def ways(vae: nn.Module, device: torch.device) -> dict[str, Way]:
    """Decoders of the same weights: diffusers', ours, and fastvae's where it is installed.

    Raises:
        TypeError: Ours is not to be had, and why.
    """

    def ours() -> WalkingCodec:
        codec = step_codec(codec_for(vae), device, reference=device.type != "cuda")
        if not isinstance(codec, StepCodec):
            raise TypeError(f"expected the fused step, got: {codec}")
        return codec

    def fastvae() -> WalkingCodec:
        codec = fused(codec_for(vae), device)
        if not isinstance(codec, FusedWan):
            raise TypeError(f"expected fastvae, got: {codec}")
        return codec

    made: dict[str, Way] = {
        "eager": lambda: cast("WalkingCodec", codec_for(vae)),
        "ours": ours,
    }
    known = codec_for(vae).family == "AutoencoderKLWan"
    if known and find_spec("fastvae") is not None and device.type == "cuda":
        made["fastvae"] = fastvae
    return made


def noise(vae: nn.Module, size: tuple[int, int], latents: int, seed: int = 0) -> torch.Tensor:
    """Latents of pictures of ``size``, on the device of ``vae``, in its dtype."""
    generator = torch.Generator().manual_seed(seed)
    config = cast("Any", vae).config
    scale = 8 * (getattr(config, "patch_size", None) or 1)
    shape = (1, config.z_dim, latents, size[0] // scale, size[1] // scale)
    weight = next(vae.parameters())
    return torch.randn(shape, generator=generator).to(weight.device, weight.dtype)


def chunks(codec: WalkingCodec, z: torch.Tensor) -> tuple[Decoder, list[torch.Tensor]]:
    """A stream that has begun, and its chunks of one latent."""
    decoder = codec.decoder()
    if codec.wants_all:
        decoder.begin(z)
    return decoder, [z[:, :, i : i + 1] for i in range(z.shape[2])]


def kernels(vae: nn.Module, device: torch.device, size: tuple[int, int], times: int) -> Json:
    """Each specialisation: every element right, ``times`` runs equal bit for bit, its registers."""
    cuda = CudaKernels(device)
    few = cuda.with_max_blocks(5)
    decoder = cast("nn.Module", cast("Any", vae).decoder)
    every = dict.fromkeys(
        options
        for latents in (1, 2)
        for pixels in (torch.bfloat16, torch.uint8)
        for options in options_of(decoder, latents, pixels)
    )
    result: Json = {}
    for options in every:
        one: Json = {"right": True, "equal": True}
        try:
            function = cuda.function(options)
            one |= {"registers": function.registers, "spilled": function.spilled}
            runs = [check(each, device, options, size) for each in (few, *[cuda] * (times - 1))]
            one["equal"] = all(runs[0].equal(run) for run in runs[1:])
        except (SelfTestError, RuntimeError) as error:
            one |= {"right": False, "error": str(error)}
        result[options.name] = one
        if not (one["right"] and one["equal"]):
            print(f"  {options.name}: {one}")
    return result


def first_use(vae: nn.Module, device: torch.device, size: tuple[int, int]) -> Json:
    """Seconds of a process's first chunk by the fused step, and of the next stream's."""
    took = []
    for _ in range(2):
        codec = ways(vae, device)["ours"]()
        decoder, pieces = chunks(codec, noise(vae, size, 1))
        _settle(device)
        began = time.perf_counter()
        decoder.decode(pieces[0])
        _settle(device)
        took.append(time.perf_counter() - began)
        decoder.close()
    return {"step": cast("StepCodec", codec).step_name, "first, s": took[0], "next, s": took[1]}


@torch.no_grad()
def errors(vae: nn.Module, device: torch.device, size: tuple[int, int], latents: int) -> Json:
    """Relative errors against float32, chunk by chunk, ours and diffusers' own; their ratio."""
    z = noise(vae, size, latents)
    frames: dict[str, list[torch.Tensor]] = {}
    made = {name: way for name, way in ways(vae, device).items() if name != "fastvae"}
    dtype = z.dtype
    for name, way in (*made.items(), ("again", made["ours"])):
        frames[name] = _decoded(way(), z)
    equal = all(torch.equal(a, b) for a, b in zip(frames["ours"], frames["again"], strict=True))
    del frames["again"]
    vae.float()
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            right = _decoded(cast("WalkingCodec", codec_for(vae)), z.float())
    finally:
        vae.to(dtype)
    found = {
        name: [_relative(one, true) for one, true in zip(each, right, strict=True)]
        for name, each in frames.items()
    }
    ratios = (
        [a / b for a, b in zip(found["ours"], found["eager"], strict=True)]
        if device.type == "cuda"
        else []
    )
    finite = all(bool(one.isfinite().all()) for one in frames["ours"])
    return {"two runs equal": equal, "finite": finite, "relative": found, "ratios": ratios}


def _decoded(codec: WalkingCodec, z: torch.Tensor) -> list[torch.Tensor]:
    decoder, pieces = chunks(codec, z)
    found = [cast("torch.Tensor", decoder.decode(piece)).cpu() for piece in pieces]
    decoder.close()
    return found


def _relative(one: torch.Tensor, true: torch.Tensor) -> float:
    return float((one.float() - true.float()).norm() / true.float().norm())


@torch.no_grad()
def times(vae: nn.Module, device: torch.device, size: tuple[int, int], rounds: int) -> Json:
    """Milliseconds of first and steady chunks, on the device and of the launching thread.

    Ways take turns; each decodes a clip from its beginning, of which two chunks are not counted.
    """
    steady, skipped = 6, 2
    z = noise(vae, size, 1 + skipped + steady)
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds + 1):
        for name, way in ways(vae, device).items():
            one = _timed(way(), z, device, skipped)
            if number:  # the first is to warm up
                for key, values in one.items():
                    found.setdefault(name, {}).setdefault(key, []).extend(values)
    return {
        name: {key: summary(values) for key, values in each.items()} for name, each in found.items()
    }


def _timed(
    codec: WalkingCodec, z: torch.Tensor, device: torch.device, skipped: int
) -> dict[str, list[float]]:
    decoder, pieces = chunks(codec, z)
    cuda = device.type == "cuda"
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(pieces) + 1)] if cuda else []
    marks = []
    _settle(device)
    for number, piece in enumerate(pieces):
        if cuda:
            events[number].record()
        began = time.perf_counter()
        decoder.decode(piece)
        marks.append(1000 * (time.perf_counter() - began))
        if number == skipped:
            _settle(device)
    if cuda:
        events[-1].record()
    _settle(device)
    spans = [a.elapsed_time(b) for a, b in itertools.pairwise(events)] or marks
    decoder.close()
    # The chunk that is settled after is not counted: the next one's event waits for the host.
    return {
        "first chunk, ms": spans[:1],
        "steady chunk, ms": spans[skipped + 1 :],
        "launching a steady chunk, ms": marks[skipped + 1 :],
    }


@torch.no_grad()
def memory(vae: nn.Module, device: torch.device, size: tuple[int, int], latents: int) -> Json:
    """Bytes at most while a clip is decoded, weights included: torch's, and the driver's count."""
    result: Json = {}
    for name, way in ways(vae, device).items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        decoder, pieces = chunks(way(), noise(vae, size, latents))
        for piece in pieces:
            decoder.decode(piece)
        _settle(device)
        free, total = torch.cuda.mem_get_info(device)
        result[name] = {
            "allocated": torch.cuda.max_memory_allocated(device),
            "reserved": torch.cuda.max_memory_reserved(device),
            "the driver's count": total - free,
        }
        decoder.close()
    return result


class TimedKernels:
    """Kernels with an event before and after each launch; see `interface.Kernels`.

    Attributes:
        spans: What was launched, and its two events.
    """

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self.fused_channels = kernels.fused_channels
        self.spans: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def convolution(self, kind: Kind, weight: torch.Tensor, bias: torch.Tensor) -> Convolution:
        """A convolution, timed."""
        out, inputs = weight.shape[:2]
        label = f"{kind.name.lower()} {inputs}->{out}"
        return self._around(label, self.kernels.convolution(kind, weight, bias))

    def head(self, weight: torch.Tensor, bias: torch.Tensor) -> Head:
        """The head, timed."""
        return self._around("head", self.kernels.head(weight, bias))

    def norm(self, gamma: torch.Tensor) -> Norm:
        """A norm, timed."""
        return self._around(f"norm {gamma.numel()}", self.kernels.norm(gamma))

    def _around(self, label: str, launch: Callable[..., None]) -> Callable[..., None]:
        def timed(*arguments: object, **options: object) -> None:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
            launch(*arguments, **options)
            events[1].record()
            given = cast("Any", arguments[0])
            shape = tuple(getattr(given, "memory", given).shape)[1:3]
            flags = " ".join(
                key for key in ("to", "activation", "residual") if options.get(key) is not None
            )
            name = f"{label} at {shape[0]}x{shape[1]} {flags}".strip()
            self.spans.append((name, events[0], events[1]))

        return timed


@torch.no_grad()
def layers(vae: nn.Module, device: torch.device, size: tuple[int, int]) -> Json:
    """Milliseconds of each kind of launch in a steady chunk, in place, medians of five chunks."""
    timed = TimedKernels(CudaKernels(device))
    network = build(cast("Any", vae).decoder, timed)
    latents = noise(vae, size, 9)
    hidden = cast("Any", vae).post_quant_conv(latents)[0]
    histories = Histories(network, 1, tuple(latents.shape[3:]), 1, device)  # type: ignore[arg-type]
    found: dict[str, list[list[float]]] = {}
    for number in range(hidden.shape[1]):
        first = number == 0
        decoder = ChunkDecoder(network, histories.inputs[0], timed.fused_channels, first=first)
        frames = 1 if first else network.rate
        pixels = hidden.new_empty(frames, *size, 3)
        timed.spans.clear()
        decoder.decode(hidden[:, number : number + 1], pixels)
        torch.cuda.synchronize(device)
        if number < 4:
            continue
        one: dict[str, list[float]] = {}
        for name, begin, end in timed.spans:
            one.setdefault(name, []).append(begin.elapsed_time(end))
        for name, spans in one.items():
            found.setdefault(name, []).append(spans)
    return {
        name: {"launches": len(each[0]), "ms": statistics.median(sum(one) for one in each)}
        for name, each in found.items()
    }


def build_seconds(vae: nn.Module, device: torch.device) -> Json:
    """Seconds of packing all weights, and of telling whether they have changed."""
    kernels = CudaKernels(device)
    _settle(device)
    began = time.perf_counter()
    build(cast("Any", vae).decoder, kernels)
    _settle(device)
    packed = time.perf_counter() - began
    began = time.perf_counter()
    Weights.of(cast("Any", vae).decoder)
    return {"packing, s": packed, "fingerprint, s": time.perf_counter() - began}


@torch.no_grad()
def levels(vae: nn.Module, device: torch.device, size: tuple[int, int], rounds: int) -> Json:
    """Milliseconds of a steady chunk into uint8 frames on the device: rendered, and by the head."""
    z = noise(vae, size, 9)
    found: dict[str, list[float]] = {"rendered": [], "by the head": []}
    for number in range(rounds + 1):
        for name, spans in found.items():
            codec = cast("Any", ways(vae, device)["ours"]())
            head = codec.uint8_decoder() if name == "by the head" else codec.decoder()
            recipe = Recipe(codec, head, "uint8", mode="fast")
            decode = recipe.decode
            given = _spans([partial(decode, (piece,)) for piece in z.split(1, 2)])
            recipe.close()
            if number:
                spans.extend(given[3:])
    return {name: summary(values) for name, values in found.items()}


def _spans(steps: list[Callable[[], object]]) -> list[float]:
    """Milliseconds on the device of each step, launched one after the other."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(steps) + 1)]
    for event, step in zip(events, steps, strict=False):
        event.record()
        step()
    events[-1].record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in itertools.pairwise(events)]


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
