"""Reading latents: tensors, arrays, files, iterables and pipelines, cut to a codec's chunk plan."""

from ._cut import check_known, cut, whole
from ._gather import gathered, viewed
from ._open import LatentsLike, open_latents
from ._pipelines import is_pipeline, of_pipeline
from ._source import Item, LatentSource, Mark, Piece, TensorSource

__all__ = [
    "Item",
    "LatentSource",
    "LatentsLike",
    "Mark",
    "Piece",
    "TensorSource",
    "check_known",
    "cut",
    "gathered",
    "is_pipeline",
    "of_pipeline",
    "open_latents",
    "viewed",
    "whole",
]
