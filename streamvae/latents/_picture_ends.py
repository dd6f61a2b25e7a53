"""What image pipelines do to decoded pictures before anybody sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch

from .._errors import UsageError
from ._call import takes
from ._picture_sizes import Size, asked
from ._row import View, argument

#: What takes a decoder's pictures, (B, C, H, W) in [-1, 1], to what the pipeline gives.
Finish = Callable[[torch.Tensor], torch.Tensor]

#: Makes it for one stream; None where this pipeline does nothing.
End = Callable[[object], Finish | None]


def censored(pipe: object) -> Finish | None:
    """By `pipe.run_safety_checker`, if there is one: what it objects to comes out black.

    It looks at pictures on the host, so the launch thread waits for each.
    """
    checked = cast("Any", pipe)
    if checked.safety_checker is None:
        return None

    def finish(pictures: torch.Tensor) -> torch.Tensor:
        kept, flagged = checked.run_safety_checker(
            pictures, pictures.device, _prompt_dtype(checked)
        )
        for number, objectionable in enumerate(flagged or ()):
            if objectionable:
                kept[number] = -1.0  # to the pipeline black is 0, which it leaves as it is
        return cast("torch.Tensor", kept)

    return finish


def watermarked(pipe: object) -> Finish | None:
    """By `pipe.watermark`, if there is one. It works on the host, so the launch thread waits."""
    marker = cast("Any", pipe).watermark
    if marker is None:
        return None
    return lambda pictures: cast(
        "torch.Tensor", marker.apply_watermark(pictures).to(pictures.device)
    )


def resized(pipe: object, call: Mapping[str, object]) -> tuple[Finish, Size] | None:
    """By the image processor, to the size that was asked for; that, and the size.

    Pipelines with resolution binning decode pictures of a size of their own. None where the call
    said not to.
    """
    if not argument(pipe, call, "use_resolution_binning"):
        return None
    height, width = asked(pipe, call)
    processor = cast("Any", pipe).image_processor
    resize: Callable[..., torch.Tensor] = processor.resize_and_crop_tensor
    return lambda pictures: resize(pictures, width, height), (height, width)


def binned(pipe: object, call: Mapping[str, object], size: Size) -> View | None:
    """What refuses latents of another size than the pipeline's own, if the call said none.

    They are then those of a call that did, and would be resized to what nobody asked for.
    """
    if call.get("height") is not None and call.get("width") is not None:
        return None
    scale: int = cast("Any", pipe).vae_scale_factor

    def view(latents: torch.Tensor) -> torch.Tensor:
        made = tuple(scale * side for side in latents.shape[-2:])
        if made != size:
            raise UsageError(
                f"expected the height and width that {type(pipe).__name__} was called with, to "
                f"which it resizes its pictures of {made[0]} x {made[1]}: pass "
                "call={'height': ..., 'width': ...}"
            )
        return latents

    return view


def refuse_overlay(pipe: object, call: Mapping[str, object]) -> None:
    """Refuse a call whose pictures are pasted over the original image.

    Raises:
        UsageError: It has ``padding_mask_crop``.
    """
    if takes(pipe, "padding_mask_crop") and argument(pipe, call, "padding_mask_crop") is not None:
        raise UsageError(
            f"expected a call of {type(pipe).__name__} without padding_mask_crop, got one that "
            "pastes pictures over the original; stream pipe.vae, and paste them yourself"
        )


def _prompt_dtype(pipe: Any) -> torch.dtype:  # noqa: ANN401  # any pipeline with a checker
    """What the pipeline casts the checker's input to: the dtype of the embeddings of its prompt."""
    encoder = getattr(pipe, "text_encoder", None)
    if encoder is None or getattr(pipe, "unet", None) is None:
        encoder = getattr(pipe, "unet", None) or pipe.transformer
    return cast("torch.dtype", encoder.dtype)
