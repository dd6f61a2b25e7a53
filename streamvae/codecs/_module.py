"""An autoencoder's module as every codec sees it: where it runs, its hooks, its config."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, cast

import torch
from torch import nn

from streamvae._errors import DeviceError, LatentsError, UsageError
from streamvae._pixels import Output
from streamvae._plan import Plan
from streamvae._rehearsal import planned
from streamvae.abc import Codec

from ._overrides import check_entered, is_upstream
from ._understudy import faked

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode


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
        base: The diffusers class that its family is named after; the module's own if not given.
    """

    #: Keyword arguments of ``decode`` that this family's codec takes, by the same names.
    arguments: ClassVar[tuple[str, ...]] = ()

    _made_of: tuple[tuple[type, ...], Mapping[str, object]]

    def __new__(cls, module: nn.Module, *base: type, **given: object) -> Self:  # noqa: ARG004
        """Keep what it is made of: `plan` makes another one."""
        codec = super().__new__(cls)
        codec._made_of = (base, given)
        return codec

    def __init__(self, module: nn.Module, base: type | None = None) -> None:
        self.module = module
        self.vae = cast("Autoencoder", module)
        self.base = base or type(module)
        self.family = self.base.__name__
        self._constants: dict[tuple[str, torch.device, torch.dtype], torch.Tensor] = {}

    @property
    def needs_length(self) -> bool:
        """False: chunks are cut as latents come."""
        return False

    def entered(self) -> Iterable[nn.Module]:
        """Modules of the autoencoder whose children are called in their place, parents first."""
        return ()

    def methods(self) -> Iterable[str]:
        """Methods of the autoencoder that are not called where its ``decode`` would call them."""
        tiled = ("tiled_decode", "_tiled_decode") if getattr(self.vae, "use_tiling", False) else ()
        return ("decode", "_decode", *tiled)

    def check_overrides(self) -> None:
        """Refuse an autoencoder on which something would be passed over; when a stream begins.

        Raises:
            UsageError: One of its `methods` is not its class's, or one of the modules that are
                `entered` is hooked, patched, replaced or offloaded.
        """
        check_decode_is_own(self.module, self.base, self.methods())
        check_entered(self.module, self.family, self.entered())

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
        device = self._own_device()
        if device.type == "meta":
            raise DeviceError(
                f"expected {self.family} to have its weights, got weights on the meta device and "
                "no offload hook that would bring them; load them first"
            )
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype the weights compute in (under layerwise casting they are stored in another)."""
        return self._own_dtype()

    def _own_device(self) -> torch.device:
        """What ``vae.device`` says, sooner where there is nothing to look for."""
        if not self._has_diffusers_hooks():
            for parameter in self.module.parameters():
                return parameter.device
        return self.vae.device

    def _own_dtype(self) -> torch.dtype:
        """What ``vae.dtype`` says, sooner where there is nothing to look for."""
        if not (self._has_diffusers_hooks() or getattr(self.vae, "_keep_in_fp32_modules", None)):
            for parameter in self.module.parameters():
                if parameter.is_floating_point():
                    return parameter.dtype
        return self.vae.dtype

    def _has_diffusers_hooks(self) -> bool:
        """Whether group offloading or layerwise casting is on, whose places diffusers knows."""
        return any("_diffusers_hook" in vars(part) for part in self.module.modules())

    def plan(
        self,
        shape: tuple[int, ...],
        latents_per_chunk: int | None = None,
        mode: str = "exact",
        output: Output = "uint8",
        queue_size: int = 2,
    ) -> Plan:
        """Foretell the stream of latents of ``shape``: its chunks, frames and memory.

        Raises:
            LatentsError: These latents cannot be decoded.
            UsageError: ``mode`` is ``"exact"`` and this cut would change bits.
        """
        codec = cast("Codec", self)
        codec.check(shape)
        return planned(
            codec,
            shape,
            latents_per_chunk,
            mode,
            output=output,
            queue_size=queue_size,
            device=str(self.device),
            again=lambda: codec,
        )

    def renewal(self) -> Callable[[], Codec | None]:
        """What makes this codec again as long as its module is there, without keeping that."""
        make, module = self._maker(), weakref.ref(self.module)

        def again() -> Codec | None:
            held = module()
            return None if held is None else make(held)

        return again

    def understudy(self, fakes: FakeTensorMode) -> Codec | None:
        """See `streamvae._rehearsal.Rehearsing`."""
        copied = faked(self.module, self.device, fakes)
        if copied is None:
            return None
        with fakes:
            return self._maker()(copied)

    def _maker(self) -> Callable[[nn.Module], Codec]:
        kind = cast("Callable[..., Codec]", type(self))
        base, given = self._made_of
        return lambda module: kind(module, *base, **given)

    def whole(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode all latents at once, by ``vae.decode`` itself: what a stream is held against.

        Vocoders, which have none, are called. Families that are decoded otherwise, by their
        pipelines or item by item, do that.

        Returns:
            Pixels or samples in the form that `streamvae.abc.Decoder.decode` gives them.
        """
        decode = getattr(self.module, "decode", self.module)
        decoded = decode(latents, **self._made_of[1])
        frames: torch.Tensor = decoded if isinstance(decoded, torch.Tensor) else decoded[0]
        return frames

    def missing(self, items: int) -> Mapping[str, object]:  # noqa: ARG002  # most need nothing
        """Arguments of ``decode`` that cannot be left out and were not given, fit to try it."""
        return {}

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

    def statistic(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """As `constant`, but of a buffer (C,) of the module, in its own precision till then."""
        place = (name, like.device, like.dtype)
        if place not in self._constants:
            buffer: torch.Tensor = getattr(self.module, name)
            self._constants[place] = buffer.to(like.device, like.dtype)
        return self._constants[place].view(1, -1, *[1] * (like.ndim - 2))


def _hooks(module: nn.Module) -> Iterator[object]:
    for part in module.modules():
        # Not getattr: a module says no to it by raising, which takes ten times as long, and a
        # stream asks some two hundred modules before its first chunk.
        hook = vars(part).get("_hf_hook")
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


def no_formula(family: str) -> UsageError:
    """What to raise where neither the config nor any pipeline says how latents are normalized."""
    return UsageError(
        f"expected latents in the space of {family}, got normalized ones: neither its config nor a "
        "pipeline of diffusers says how to denormalize them; do it yourself and pass "
        "normalized=False"
    )


def check_decode_is_own(
    module: nn.Module, base: type, names: Iterable[str] = ("decode", "_decode")
) -> None:
    """Refuse an autoencoder whose ``decode`` is not its family's; for codecs that do not call it.

    A compiled one (``vae.decode = torch.compile(vae.decode)``) is the same function.

    Args:
        module: The autoencoder.
        base: The diffusers class that its family is named after.
        names: Of ``decode`` and the methods it calls; those that ``base`` lacks do not matter.

    Raises:
        UsageError: Naming the method.
    """
    for name in names:
        if not hasattr(base, name):
            continue
        method = getattr(module, name)
        method = getattr(method, "_torchdynamo_orig_callable", method)
        function = getattr(method, "__func__", method)
        patched = base.__module__.startswith("diffusers.") and not is_upstream(
            function
        )  # in the class itself
        if patched or function is not getattr(base, name):
            raise UsageError(
                f"expected {type(module).__name__} to decode as {base.__name__} does, got a "
                f"{name} of its own, which would be passed over when its decoder is streamed; "
                "write a Codec for it"
            )
