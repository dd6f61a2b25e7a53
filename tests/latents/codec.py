"""A codec's rules without weights: what latents are cut and checked by."""

from streamvae._errors import LatentsError
from streamvae._pixels import Kind


class Rules:
    """Video latents (B, 4, T, h, w) of any size, images (b, 4, h, w), or sound (B, 4, T).

    Only the part of the `Codec` protocol that reading latents knows.
    """

    family = "Rules"
    channels = 4

    def __init__(self, layout: str = "BCTHW", axis: int = 2) -> None:
        self.layout = layout
        self.axis = axis
        self.kind: Kind = {"BCTHW": "video", "BCHW": "image", "BCT": "sound"}[layout]
        self.checked: list[tuple[int, ...]] = []

    def check(self, shape: tuple[int, ...]) -> None:
        self.checked.append(shape)
        if len(shape) != len(self.layout) or shape[1] != self.channels:
            raise LatentsError(f"expected latents {self.layout} of 4 channels, got shape {shape}")
