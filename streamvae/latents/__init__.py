"""Reading latents: tensors, arrays, files, iterables and pipelines, cut to a codec's chunk plan."""

from ._cut import check_known, cut, whole
from ._open import LatentsLike, open_latents
from ._pipelines import autoencoder_of, is_pipeline
from ._source import Item, LatentSource, Mark, Piece, TensorSource

__all__ = [
    "Item",
    "LatentSource",
    "LatentsLike",
    "Mark",
    "Piece",
    "TensorSource",
    "autoencoder_of",
    "check_known",
    "cut",
    "is_pipeline",
    "open_latents",
    "whole",
]
