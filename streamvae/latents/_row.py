"""What rows of the table of pipelines are made of, and what they share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import torch

from .._errors import LatentsError, UsageError
from .._recipe import Preparation
from ._call import parameters

#: What decodes a pipeline's latents, the arguments for that one's codec, what is done around it.
Decoding = tuple[object, Mapping[str, object], Preparation]

#: From a pipeline and the keyword arguments that its call was given to how its latents are decoded.
#: Called for every stream, so what is made in a row belongs to one stream.
Row = Callable[[object, Mapping[str, object]], Decoding]

#: Takes latents as they are given to the codec's layout, without touching what they hold.
View = Callable[[torch.Tensor], torch.Tensor]

#: Gives the same tensor for the same place, made once.
Constant = Callable[[torch.device, torch.dtype], torch.Tensor]


class Part(Protocol):
    """What rows use of a pipeline's components; no component has all of it."""

    config: Mapping[str, Any]
    dtype: torch.dtype
    latents_mean: torch.Tensor
    latents_std: torch.Tensor


def part(pipe: object, name: str = "vae") -> Part:
    """Give the component ``name`` of ``pipe``.

    Raises:
        UsageError: The pipeline was loaded without it.
    """
    held: Part | None = getattr(pipe, name, None)
    if held is None:
        what = "its autoencoder" if name == "vae" else f"its {name}"
        raise UsageError(f"expected a {type(pipe).__name__} with {what}, got one with {name}=None")
    return held


def check_call(pipe: object, call: Mapping[str, object]) -> None:
    """Refuse arguments that the pipeline's call does not take.

    Those that it takes but that decoding does not depend on do no harm.

    Raises:
        UsageError: Naming them.
    """
    unknown = sorted(set(call) - set(parameters(type(pipe))))
    if unknown:
        raise UsageError(
            f"expected keyword arguments that the call of {type(pipe).__name__} takes, "
            f"got {', '.join(unknown)}"
        )


def argument(pipe: object, call: Mapping[str, object], name: str) -> object:
    """Give the argument ``name`` that the pipeline's call got; its default if it got none."""
    return call.get(name, parameters(type(pipe))[name].default)


def needed(pipe: object, call: Mapping[str, object], *names: str) -> tuple[int, ...]:
    """Give sizes that decoding depends on and that latents do not tell.

    Raises:
        UsageError: One of them is not in ``call``, or is no number of pixels or frames.
    """
    missing = [name for name in names if call.get(name) is None]
    if missing:
        given = ", ".join(f"'{name}': ..." for name in names)
        raise UsageError(
            f"expected {' and '.join(names)} as the call of {type(pipe).__name__} got them, since "
            f"its latents do not tell: call={{{given}}}; got no {' and no '.join(missing)}"
        )
    for name in names:
        value = call[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"expected {name} of at least 1 in call, got {value!r}")
    return tuple(cast("int", call[name]) for name in names)


def constant(values: Sequence[float] | torch.Tensor, shape: Sequence[int]) -> Constant:
    """Make ``values``, in float32 or as the tensor they are, viewed as ``shape``, a constant.

    A copy to the device would stop the launch thread at every chunk.
    """

    @functools.cache
    def place(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        return torch.as_tensor(values).view(*shape).to(device, dtype)

    return place


def once(view: View, pipe: object) -> View:
    """``view`` for latents that must come whole, since what it drops is at one of their ends.

    Raises:
        LatentsError: From the second piece on, should they come one by one.
    """
    seen: list[int] = []

    def whole(latents: torch.Tensor) -> torch.Tensor:
        if not latents.is_meta:  # there it is only asked for the shape
            if seen:
                raise LatentsError(
                    f"expected the latents of a {type(pipe).__name__} all at once, as it gives "
                    "them, got another piece of them"
                )
            seen.append(1)
        return view(latents)

    return whole
