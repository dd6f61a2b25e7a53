"""The codec of AutoencoderKL over these operations; weights shared by all streams."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import nn

from streamvae._errors import UsageError
from streamvae._locks import fork_safe_lock
from streamvae.abc import Codec, Decoder
from streamvae.codecs import ByItem
from streamvae.codecs._module import check_decode_is_own
from streamvae.fast._wan.freshness import Look, Weights
from streamvae.fast._wan.network import UnsupportedError

from .._obstacles import dtype_name, find_obstacle
from .choice import kernels_for
from .interface import PointwiseOps
from .obstacles import STEP, missing_support
from .picture_network import PictureNetwork, build
from .picture_step import PictureDecoder
from .selftest import GROUP_NORM


class PortablePictures(ByItem):
    """AutoencoderKL decoded channels last: (B, C, h, w) to (B, 3, H, W).

    Tiles that are blended to bands are decoded so too; those of ``vae.decode`` are its own affair.
    What is foretold of memory is that of diffusers' decoder.

    Args:
        module: The autoencoder.
        base: Its class.
        ops: What is done between convolutions.
        why: What makes them slower than they might be; empty if nothing does.
    """

    exactness = (
        "within rounding of vae.decode: sums are in float32 and rounded once (about 5e-6 in "
        "float32; in bfloat16 as near to float32 as vae.decode is)"
    )

    def __init__(self, module: nn.Module, base: type, *, ops: PointwiseOps, why: str = "") -> None:
        super().__init__(module, base)
        self._ops = ops
        self._why = why
        self._network: PictureNetwork | None = None

    @property
    def step_name(self) -> str:
        """Its name, and what is slower than it might be."""
        return f"{STEP} ({self._why})" if self._why else STEP

    @property
    def notes_of_step(self) -> tuple[str, ...]:
        """What the user should know who has asked for it."""
        return (f"{self.family} is decoded {self.step_name}",) if self._why else ()

    def decoder(self) -> Decoder:
        """A stream over a batch, of the weights as they are when its first item is decoded."""
        self._network = None
        return super().decoder()

    def pictures(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ByItem.pictures`."""
        if self.grid(tuple(latents.shape)) is not None:
            return super().pictures(latents)
        if self.vae.use_slicing and latents.shape[0] > 1:
            return torch.cat([self.tile(item) for item in torch.split(latents, 1)])
        return self.tile(latents)

    def tile(self, latents: torch.Tensor) -> torch.Tensor:
        """See `ByItem.tile`."""
        if self.vae.post_quant_conv is not None:
            latents = self.vae.post_quant_conv(latents)
        if self._network is None:
            self._network = _networks.get(self.module, latents.device)
        with torch.autocast(latents.device.type, enabled=False):  # weights have one dtype
            return PictureDecoder(self._network, self._ops).decode(latents)

    def _maker(self) -> Callable[[nn.Module], Codec]:
        # Triton cannot be rehearsed on tensors without memory; diffusers' decoder can.
        base = self._made_of[0]
        return lambda module: cast("Codec", ByItem(module, *base))


class _Built(NamedTuple):
    """A network, and the weights it was built of."""

    weights: Weights
    network: PictureNetwork


class _Networks:
    """Rebuilt decoders, each once for its module and device, as long as the module lives."""

    def __init__(self) -> None:
        self._built: weakref.WeakKeyDictionary[nn.Module, dict[torch.device, _Built]] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = fork_safe_lock()

    def get(self, module: nn.Module, device: torch.device) -> PictureNetwork:
        """Give the rebuilt decoder of ``module``, again if its weights are others now."""
        decoder = cast("nn.Module", module.decoder)
        with self._lock:
            kept = self._built.setdefault(module, {})
            built = kept.get(device)
            if built is None or not Look(device).sees(built.weights, decoder):
                kept.pop(device, None)  # two sets need not fit
                built = kept[device] = _Built(Weights.of(decoder), build(decoder))
                if device.type == "cuda":  # other streams may use it
                    torch.cuda.current_stream(device).synchronize()
            return built.network

    def release(self) -> int:
        """Let go of all weights that were laid out, and give their bytes; streams keep theirs."""
        with self._lock:
            dropped = [built for kept in self._built.values() for built in kept.values()]
            self._built.clear()
        return sum(built.network.nbytes for built in dropped)


def release_pictures() -> int:
    """Give back the weights that were laid out for streams to come; their bytes."""
    return _networks.release()


_networks = _Networks()


def portable_pictures(
    codec: Codec, device: torch.device, *, anywhere: bool = False
) -> PortablePictures | str:
    """The codec over these operations in place of ``codec``, or why there is none.

    Args:
        codec: Any; only AutoencoderKL's own is replaced.
        device: Where it will decode.
        anywhere: Whether devices for which it does not pay are taken too.

    Returns:
        The codec, or the reason; empty if this is not for it.
    """
    if isinstance(codec, PortablePictures):
        return codec
    if type(codec) is not ByItem or codec.family != "AutoencoderKL":
        return ""
    if device.type == "cpu" and not anywhere:
        return ""  # what it takes there is as long
    missing = "" if anywhere else missing_support(codec.dtype, device)
    reason = missing or _obstacle(codec)
    if reason:
        return reason
    parts = codec.vae.decoder.modules()
    widths = {part.num_channels for part in parts if isinstance(part, nn.GroupNorm)}
    kernels, why = kernels_for(device, codec.dtype, widths, GROUP_NORM)
    return PortablePictures(codec.module, *codec._made_of[0], ops=kernels.ops, why=why)


def _obstacle(codec: ByItem) -> str:
    decoder = codec.vae.decoder
    lost = find_obstacle(codec.module, (decoder,))
    if lost:
        return lost
    dtypes = {weight.dtype for weight in decoder.parameters()}
    if len(dtypes) > 1:
        return f"weights are {' and '.join(sorted(map(dtype_name, dtypes)))}, not of one dtype"
    try:
        check_decode_is_own(codec.module, codec.base)
        build(decoder, dry=True)
    except UsageError:
        return f"{type(codec.module).__name__} has a decode of its own"
    except UnsupportedError as error:
        return f"it does not know {error}"
    return ""
