"""An autoencoder's module as every codec sees it: where it runs, its hooks, its config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import nn

from streamvae._errors import DeviceError, LatentsError, UsageError


class Autoencoder(Protocol):
    """What codecs use of a diffusers autoencoder."""

    config: Mapping[str, Any]
    decoder: nn.Module
    post_quant_conv: nn.Module
    use_slicing: bool
    use_tiling: bool
    device: torch.device
    dtype: torch.dtype

    def decode(self, z: torch.Tensor, *, return_dict: bool) -> tuple[torch.Tensor, ...]:
        """Decode all latents at once."""
        ...


def unwrap(source: object) -> object:
    """Take a module out of its ``torch.compile`` wrappers.

    Compiling a module compiles its ``forward``; ``decode`` stays the original's.
    """
    while isinstance(source, nn.Module):
        inner = getattr(source, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            break
        source = inner
    return source


class ModuleCodec:
    """The part of a codec that does not depend on how time is walked.

    Args:
        module: The unwrapped autoencoder.
        base: The diffusers class that its family is named after.
    """

    #: Keyword arguments of ``decode`` that this family's codec takes, by the same names.
    arguments: ClassVar[tuple[str, ...]] = ()

    def __init__(self, module: nn.Module, base: type) -> None:
        self.module = module
        self.vae = cast("Autoencoder", module)
        self.family = base.__name__
        self._constants: dict[tuple[str, torch.device, torch.dtype], torch.Tensor] = {}

    @property
    def needs_length(self) -> bool:
        """False: chunks are cut as latents come."""
        return False

    def notes(self, shape: tuple[int, ...]) -> tuple[str, ...]:  # noqa: ARG002
        """Nothing to say."""
        return ()

    @property
    def device(self) -> torch.device:
        """Where decoding runs: the hooks' execution device, else the weights' device.

        Raises:
            DeviceError: The weights are nowhere (on ``meta``) and no hook brings them.
        """
        for hook in _hooks(self.module):
            device = getattr(hook, "execution_device", None)
            if device is not None:
                return torch.device(device)
        # Group offloading has hooks of diffusers' own, which this property knows.
        device = self.vae.device
        if device.type == "meta":
            raise DeviceError(
                f"expected {self.family} to have its weights, got weights on the meta device and "
                "no offload hook that would bring them; load them first"
            )
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype the weights compute in (under layerwise casting they are stored in another)."""
        return self.vae.dtype

    def onload(self) -> None:
        """Call the offload hook, as ``vae.decode`` does; on the launch thread, for every chunk.

        Somebody else's model may have sent the weights away since the last chunk.
        """
        pre_forward = getattr(getattr(self.module, "_hf_hook", None), "pre_forward", None)
        if pre_forward is not None:
            pre_forward(self.module)

    def constant(self, key: str, like: torch.Tensor) -> torch.Tensor:
        """Give a list of the config as (1, C, 1, ...) of the device, dtype and rank of ``like``.

        Made once: a copy to the device would stop the launch thread at every chunk. Like
        diffusers' pipelines it is rounded to float32 first.
        """
        place = (key, like.device, like.dtype)
        if place not in self._constants:
            values = torch.tensor(self.vae.config[key], dtype=torch.float32)
            self._constants[place] = values.to(like.device, like.dtype)
        return self._constants[place].view(1, -1, *[1] * (like.ndim - 2))


def _hooks(module: nn.Module) -> Iterator[object]:
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        # accelerate's SequentialHook is several in one.
        yield from getattr(hook, "hooks", (hook,))


def clips(latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Split a batch into views of one item each, as ``use_slicing`` does."""
    return latents.tensor_split(latents.shape[0])


def check_shape(shape: tuple[int, ...], layout: str, channels: int) -> None:
    """Refuse latents of another layout.

    Raises:
        LatentsError: Naming layout and channels, and what came.
    """
    fits = len(shape) == len(layout) and shape[1] == channels and min(shape) >= 1
    if not fits:
        raise LatentsError(
            f"expected latents ({', '.join(layout)}) with C = {channels} and no empty dimension, "
            f"got shape {tuple(shape)}"
        )


def check_count(latents_per_chunk: int | None) -> None:
    """Refuse a chunk size below one.

    Raises:
        UsageError: Naming it.
    """
    if latents_per_chunk is not None and latents_per_chunk < 1:
        raise UsageError(f"expected latents_per_chunk of at least 1, got {latents_per_chunk}")


def check_decode_is_own(module: nn.Module, base: type) -> None:
    """Refuse an autoencoder whose ``decode`` is not its family's; for codecs that do not call it.

    A compiled one (``vae.decode = torch.compile(vae.decode)``) is the same function.

    Raises:
        UsageError: Naming the method.
    """
    for name in ("decode", "_decode"):
        method = getattr(module, name)
        method = getattr(method, "_torchdynamo_orig_callable", method)
        if getattr(method, "__func__", method) is not getattr(base, name):
            raise UsageError(
                f"expected {type(module).__name__} to decode as {base.__name__} does, got a "
                f"{name} of its own, which would be passed over when its decoder is streamed; "
                "write a Codec for it"
            )
