"""The Wan decoder of fastvae, a package of fused kernels, as the step of `CachedCausal`.

https://github.com/Occipital-Labs/fastvae (MIT), written for 0.1.0. It rebuilds the decoder from
the autoencoder's modules with weights of its own, channels last, and keeps what it remembers of
earlier frames in a cache that is handed in. On one H200 a chunk of 720p takes it half the time of
diffusers' decoder, at the same error against float32 (0.01603 to 0.01602, bfloat16). Without CUDA
there are no kernels, and on a CPU it is slower than diffusers (5.0 s to 3.9 s for 13 frames 32x48).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Protocol, cast

import torch
from torch import nn

from streamvae._errors import UsageError
from streamvae.abc import Codec
from streamvae.codecs import CachedCausal, Walk

from ._obstacles import dtype_name, find_obstacle

#: What its kernels compute in.
_DTYPES = {torch.bfloat16, torch.float16, torch.float32}


class Core(Protocol):
    """What is used of ``fastvae.FastVAEDecoder.core``."""

    def apply_post_quant(self, z: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, T, h, w) as `decode_chunk` takes them."""
        ...

    def new_cache(self) -> object:
        """An empty memory for one clip."""
        ...

    def decode_chunk(self, x: torch.Tensor, cache: object, first_chunk: bool) -> torch.Tensor:  # noqa: FBT001
        """Frames (B, C, T, H, W), in patches and not clamped; the first chunk is one latent."""
        ...


class FusedWan(CachedCausal):
    """AutoencoderKLWan (2.1 and 2.2-5B) decoded by fastvae: (B, C, T, h, w) to frames.

    The decoder is rebuilt with the first chunk, from the weights of that moment: a second copy of
    them that lives as long as this object, made for one stream. What is foretold of memory is that
    of diffusers' decoder.
    """

    exactness = (
        "within rounding of vae.decode: fastvae sums its norms in another order (about 5e-6 in "
        "float32; in bfloat16 as far from float32 as vae.decode is)"
    )

    def __init__(self, module: nn.Module, base: type) -> None:
        super().__init__(module, base)
        self._core: Core | None = None

    @property
    def step_name(self) -> str:
        """The package and its version."""
        try:
            return f"fastvae {version('fastvae')}"
        except PackageNotFoundError:  # on the path, not installed
            return "fastvae"

    def prologue(self, latents: torch.Tensor) -> torch.Tensor:
        """See `WalkingCodec.prologue`."""
        return self.core.apply_post_quant(latents)

    def walk(self) -> Walk:
        """See `WalkingCodec.walk`."""
        return _Fused(self)

    @property
    def core(self) -> Core:
        """The rebuilt decoder; made when first asked for, on the launch thread.

        Raises:
            UsageError: fastvae cannot rebuild it, or is of a version with another interface.
        """
        if self._core is None:
            self._core = _rebuilt(self.module)
        return self._core

    def _maker(self) -> Callable[[nn.Module], Codec]:
        # Kernels cannot be rehearsed on tensors without memory; diffusers' decoder can.
        base = self._made_of[0]
        return lambda module: cast("Codec", CachedCausal(module, *base))


class _Fused:
    """One walk's memory, in fastvae's own form."""

    def __init__(self, codec: FusedWan) -> None:
        self._codec = codec
        self._cache: list[object] = []

    def push(self, latents: torch.Tensor) -> torch.Tensor:
        first = not self._cache
        if first:
            if latents.shape[2] != 1:
                raise UsageError(f"expected a first chunk of 1 latent, got {latents.shape[2]}")
            self._cache.append(self._codec.core.new_cache())
        return self._codec.core.decode_chunk(latents, self._cache[0], first_chunk=first)

    def drain(self) -> None:
        return None

    def clear(self) -> None:
        self._cache.clear()


def fused(codec: Codec, device: torch.device) -> FusedWan | str:
    """The fused codec in place of ``codec``, or why there is none (empty: it is not for this one).

    Args:
        codec: Any; only AutoencoderKLWan's own is replaced.
        device: Where it will decode.
    """
    if isinstance(codec, FusedWan):
        return codec
    if type(codec) is not CachedCausal or codec.family != "AutoencoderKLWan":
        return ""
    return _obstacle(codec, device) or FusedWan(codec.module, *codec._made_of[0])


def _obstacle(codec: CachedCausal, device: torch.device) -> str:
    if device.type != "cuda":
        return f"this is {device.type}, not CUDA"
    if find_spec("fastvae") is None:
        return "it is not installed"
    if codec.dtype not in _DTYPES:
        return f"it does not compute in {dtype_name(codec.dtype)}"
    return find_obstacle(codec.module, (codec.vae.post_quant_conv, codec.vae.decoder))


def _rebuilt(module: nn.Module) -> Core:
    """Have fastvae rebuild the decoder.

    Raises:
        UsageError: See `FusedWan.core`.
    """
    package = importlib.import_module("fastvae")
    try:
        core = package.FastVAEDecoder.from_vae(module).core
        core.apply_post_quant, core.new_cache, core.decode_chunk  # noqa: B018  # are they there?
    except (AttributeError, NotImplementedError, TypeError) as error:
        raise UsageError(
            f"expected a fastvae that rebuilds {type(module).__name__} as 0.1.0 does, got: "
            f"{error}; mode='exact' does without it"
        ) from error
    return cast("Core", core)
