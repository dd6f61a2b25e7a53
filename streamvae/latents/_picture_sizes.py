"""The height and width, in pixels, of the pictures that an image pipeline was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from .._errors import UsageError
from ._row import argument, needed

#: Height and width.
Size = tuple[int, int]

#: Finds it from a pipeline and the keyword arguments that its call was given.
Sizing = Callable[[object, Mapping[str, object]], Size]

_SIDES = ("height", "width")


def asked(pipe: object, call: Mapping[str, object]) -> Size:
    """As the call said, or what the pipeline makes when it is not said.

    Raises:
        UsageError: One of them is no number of pixels.
    """
    sides = [argument(pipe, call, name) or _default(pipe) for name in _SIDES]
    for name, value in zip(_SIDES, sides, strict=True):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"expected {name} of at least 1 in call, got {value!r}")
    return cast("int", sides[0]), cast("int", sides[1])


def given(pipe: object, call: Mapping[str, object]) -> Size:
    """As the call said. Where it did not, the pipeline took them from its image.

    Raises:
        UsageError: They are not in ``call``.
    """
    height, width = needed(pipe, call, *_SIDES)
    return height, width


def asked_unless_image(pipe: object, call: Mapping[str, object]) -> Size:
    """`Flux2Pipeline`: as `asked`; with an image, what is not said is that image's."""
    return given(pipe, call) if call.get("image") is not None else asked(pipe, call)


def of_area(pipe: object, call: Mapping[str, object]) -> Size:
    """`FluxKontextPipeline`: the aspect ratio that was asked for, at ``max_area`` pixels."""
    height, width = asked(pipe, call)
    area = cast("int", argument(pipe, call, "max_area"))
    ratio = width / height
    return round((area / ratio) ** 0.5), round((area * ratio) ** 0.5)


def rounded_up(pipe: object, call: Mapping[str, object]) -> Size:
    """`Krea2Pipeline`: as `asked`, up to whole tokens."""
    token = cast("Any", pipe).vae_scale_factor * cast("Any", pipe).patch_size
    height, width = asked(pipe, call)
    return -(-height // token) * token, -(-width // token) * token


def _default(pipe: object) -> int:
    """Pixels along a side that the pipeline makes when it is not asked for a size."""
    silent = cast("Any", pipe)
    own = getattr(silent, "get_default_resolution", None)
    if own is not None:
        return int(own())
    latents = getattr(silent, "default_sample_size", None) or silent.transformer.config.sample_size
    return int(latents) * int(silent.vae_scale_factor)
