"""The Wan codec over this step: private histories for each stream, weights shared by all."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from streamvae._errors import UsageError
from streamvae.abc import Codec
from streamvae.codecs import CachedCausal, Walk

from .compiler import CompileError
from .cuda_kernels import CudaKernels
from .driver import DriverError
from .interface import Kernels
from .network import Network, UnsupportedError, build
from .recording import RecordingKernels, options_of
from .reference import ReferenceKernels
from .selftest import SelfTestError, check_all
from .step import ChunkDecoder, Histories, most_latents
from .weights import CHUNK

_log = logging.getLogger(__name__)

#: What `StepCodec` is called in ``info.step``.
STEP = "fused kernels"
#: Of the cards that it runs on.
CAPABILITY = (9, 0)
#: What may keep a card from this step.
_FAILURES = (CompileError, DriverError, SelfTestError, UnsupportedError)
#: Latents decoded at a time, of a longer chunk.
_LATENTS = 1

#: Whose modules are what their weights say; others (LoRA's, quantised ones) hide some of it.
_KNOWN = {"diffusers", "torch"}

#: Tells one state of a module's weights from another.
Fingerprint = Callable[[nn.Module], Hashable]


def weights_version(module: nn.Module) -> Hashable:
    """Tell weights by where they lie and how often they were written to."""
    return tuple(
        (weight.data_ptr(), _writes(weight), weight.dtype, tuple(weight.shape))
        for weight in module.parameters()
    )


def _writes(weight: torch.Tensor) -> int:
    """Writes so far; those to weights made in inference mode are not counted."""
    return 0 if weight.is_inference() else weight._version


@dataclass(frozen=True, slots=True)
class _Built:
    fingerprint: Hashable
    kernels: Kernels
    network: Network


class _Networks:
    """Rebuilt decoders, each once for its module and device, as long as the module lives."""

    def __init__(self) -> None:
        self._built: weakref.WeakKeyDictionary[nn.Module, dict[object, _Built]] = (
            weakref.WeakKeyDictionary()
        )
        self._kernels: dict[torch.device, CudaKernels | Exception] = {}
        self._checked: set[tuple[torch.device, Hashable]] = set()
        self._lock = threading.Lock()

    def get(
        self,
        module: nn.Module,
        device: torch.device,
        kernels: Kernels | None,
        fingerprint: Fingerprint,
    ) -> _Built:
        """Give the rebuilt decoder of ``module``, again if its weights are others now.

        Raises:
            CompileError: Kernels are not to be had.
            DriverError: The card or its driver do not take them.
            SelfTestError: They are wrong on this card.
            UnsupportedError: It cannot be rebuilt.
        """
        decoder = cast("nn.Module", module.decoder)
        with self._lock:
            kept = self._built.setdefault(module, {})
            key = (device, id(kernels))
            now = fingerprint(decoder)
            built = kept.get(key)
            if built is None or built.fingerprint != now:
                using = kernels if kernels is not None else self._cuda(device, decoder)
                kept.pop(key, None)  # two sets of images need not fit
                built = kept[key] = _Built(now, using, build(decoder, using))
                if device.type == "cuda":  # other streams may use the images
                    torch.cuda.current_stream(device).synchronize()
            return built

    def _cuda(self, device: torch.device, decoder: nn.Module) -> CudaKernels:
        """Kernels on a card, loaded and checked; a failure is remembered."""
        found = self._kernels.get(device)
        if isinstance(found, Exception):
            raise found.with_traceback(None)
        try:
            kernels = found or CudaKernels(device)
            every = options_of(decoder, _LATENTS)
            missing = [options for options in every if (device, options) not in self._checked]
            kernels.load(missing)
            check_all(kernels, missing)
        except UnsupportedError:
            raise
        except _FAILURES as error:
            self._kernels[device] = error
            _log.warning("the fused kernels cannot be used: %s", error)
            raise
        self._kernels[device] = kernels
        self._checked.update((device, options) for options in missing)
        return kernels


_networks = _Networks()


class StepCodec(CachedCausal):
    """AutoencoderKLWan (2.1) decoded by kernels of our own: (B, C, T, h, w) to frames.

    What is foretold of memory is that of diffusers' decoder. Where the kernels fail, that decoder
    runs, and `step_name` says why.

    Args:
        module: The autoencoder.
        base: Its class.
        kernels: In place of those for its device.
        fingerprint: Tells when weights have changed.
    """

    exactness = (
        "within rounding of vae.decode: sums are in float32 and rounded once (about 5e-6 in "
        "float32; in bfloat16 nearer to float32 than vae.decode is)"
    )

    def __init__(
        self,
        module: nn.Module,
        base: type,
        *,
        kernels: Kernels | None = None,
        fingerprint: Fingerprint = weights_version,
    ) -> None:
        super().__init__(module, base)
        self._made_of = ((base,), {})
        self._kernels = kernels
        self._fingerprint = fingerprint
        self._failure = ""

    @property
    def step_name(self) -> str:
        """Its name, or why diffusers' decoder runs in its place."""
        return f"eager ({self._failure})" if self._failure else STEP

    def walk(self) -> Walk:
        """See `WalkingCodec.walk`."""
        return _StepWalk(self)

    def start(self, device: torch.device) -> _Built | None:
        """Give the rebuilt decoder; None if there is none, and diffusers' has to do."""
        try:
            return _networks.get(self.module, device, self._kernels, self._fingerprint)
        except _FAILURES as error:
            self._failure = str(error)
            return None

    def fallback(self) -> Walk:
        """A walk of diffusers' decoder."""
        return super().walk()

    def _maker(self) -> Callable[[nn.Module], Codec]:
        # Kernels cannot be rehearsed on tensors without memory; diffusers' decoder can.
        base = self._made_of[0]
        return lambda module: cast("Codec", CachedCausal(module, *base))


class _StepWalk:
    """One walk's histories, made with its first chunk."""

    def __init__(self, codec: StepCodec) -> None:
        self._codec = codec
        self._built: _Built | None = None
        self._histories: Histories | None = None
        self._fallback: Walk | None = None

    def push(self, latents: torch.Tensor) -> torch.Tensor | None:
        first = self._histories is None
        if self._fallback is None and self._built is None:
            if latents.shape[2] != 1:
                raise UsageError(f"expected a first chunk of 1 latent, got {latents.shape[2]}")
            self._built = self._codec.start(latents.device)
            if self._built is None:
                self._fallback = self._codec.fallback()
        if self._fallback is not None:
            return self._fallback.push(latents)
        assert self._built is not None  # noqa: S101  # just made
        network = self._built.network
        if self._histories is None:
            size = (latents.shape[3], latents.shape[4])
            chunk = min(_LATENTS, most_latents(network))
            self._histories = Histories(network, latents.shape[0], size, chunk, latents.device)
        return self._decode(latents, self._histories, first=first)

    def _decode(self, latents: torch.Tensor, histories: Histories, *, first: bool) -> torch.Tensor:
        assert self._built is not None  # noqa: S101  # the caller has seen it
        network, kernels = self._built.network, self._built.kernels
        batch, _, count, height, width = latents.shape
        scale, rate = network.scale, 1 if first else network.rate
        pixels = latents.new_empty(batch, count * rate, height * scale, width * scale, 3)
        for clip, inputs in enumerate(histories.inputs):
            decoder = ChunkDecoder(network, inputs, kernels.fused_channels, first=first)
            for start in range(0, count, _LATENTS):
                stop = min(start + _LATENTS, count)
                hidden = latents[clip, :, start:stop]
                # Not clamped: tiles are, after they have been blended.
                decoder.decode(hidden, pixels[clip, start * rate : stop * rate], float("inf"))
        return pixels.permute(0, 4, 1, 2, 3)

    def drain(self) -> None:
        return None

    def clear(self) -> None:
        self._histories = None
        self._built = None
        if self._fallback is not None:
            self._fallback.clear()


def step_codec(
    codec: Codec,
    device: torch.device,
    *,
    reference: bool = False,
    fingerprint: Fingerprint = weights_version,
) -> StepCodec | str:
    """The codec over this step in place of ``codec``, or why there is none.

    Args:
        codec: Any; only AutoencoderKLWan's own is replaced.
        device: Where it will decode.
        reference: Launch the kernels' reference in torch, on any device in any dtype: for tests.
        fingerprint: Tells when weights have changed.

    Returns:
        The codec, or the reason; empty if this is not for it.
    """
    if isinstance(codec, StepCodec):
        return codec
    if type(codec) is not CachedCausal or codec.family != "AutoencoderKLWan":
        return ""
    reason = _obstacle(codec) or ("" if reference else _missing(codec, device))
    if reason:
        return reason
    kernels = ReferenceKernels() if reference else None
    base = codec._made_of[0]
    return StepCodec(codec.module, *base, kernels=kernels, fingerprint=fingerprint)


def _obstacle(codec: CachedCausal) -> str:
    """What of an autoencoder would be lost, when only its decoder's weights are read."""
    hooks = {"_hf_hook", "_diffusers_hook"}
    if any(hooks & vars(part).keys() for part in codec.module.modules()):
        return f"{STEP} would keep weights where a hook moves them away"
    passed_over = next(filter(None, map(_passed_over, codec.vae.decoder.modules())), "")
    if passed_over:
        return f"{STEP} would pass over {passed_over}"
    dtypes = {weight.dtype for weight in codec.vae.decoder.parameters()}
    if len(dtypes) > 1 or not codec.dtype.is_floating_point:
        return f"{STEP} need weights of one dtype, not {', '.join(sorted(map(str, dtypes)))}"
    try:
        build(codec.vae.decoder, RecordingKernels())
    except UnsupportedError as error:
        return f"{STEP} do not know {error}"
    return ""


def _passed_over(part: nn.Module) -> str:
    kind = type(part)
    if kind.__module__.partition(".")[0] not in _KNOWN or hasattr(part, "_orig_mod"):
        return f"{kind.__name__} in the decoder"
    if parametrize.is_parametrized(part):
        return f"the parametrised weights of a {kind.__name__}"
    if part._forward_hooks or part._forward_pre_hooks:
        return f"the hooks of a {kind.__name__}"
    return ""


def _missing(codec: CachedCausal, device: torch.device) -> str:
    """What keeps the kernels from running on a device, or with these weights."""
    if device.type != "cuda":
        return f"{STEP} need CUDA, this is {device.type}"
    if codec.dtype != torch.bfloat16:
        name = str(codec.dtype).removeprefix("torch.")
        return f"{STEP} compute in bfloat16, the weights are {name}"
    decoder = codec.vae.decoder
    widths = {part.out_channels for part in decoder.modules() if isinstance(part, nn.Conv3d)}
    odd = sorted(width for width in widths - {3} if width % CHUNK)
    if odd:
        return f"{STEP} take channels by {CHUNK}, this decoder has {odd[0]}"
    if find_spec("cuda") is None or find_spec("cuda.bindings") is None:
        return f"{STEP} are launched by cuda-bindings, which are not installed"
    capability = torch.cuda.get_device_capability(device)
    if capability != CAPABILITY:
        return f"{STEP} are for compute capability 9.0, this is {capability[0]}.{capability[1]}"
    return ""
