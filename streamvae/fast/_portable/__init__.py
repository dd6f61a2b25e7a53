"""Decoders channels last: convolutions by cuDNN or oneDNN, all between two of them in one pass.

For any card, and CPUs. Kernels are Triton's where it is installed, else torch's own operations. It
may know codecs and `streamvae.fast._wan`; only `streamvae.fast` comes in.
"""

from __future__ import annotations

import torch

from streamvae.abc import Codec

from .obstacles import STEP
from .pictures import PortablePictures, portable_pictures, release_pictures
from .wan import PortableWan, portable_wan

__all__ = [
    "STEP",
    "PortablePictures",
    "PortableWan",
    "portable",
    "portable_pictures",
    "portable_wan",
    "release_pictures",
]


def portable(codec: Codec, device: torch.device) -> PortableWan | PortablePictures | str:
    """The codec channels last in place of ``codec``, or why there is none; empty: not for it."""
    video = portable_wan(codec, device)
    return video or portable_pictures(codec, device)
