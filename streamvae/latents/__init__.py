"""Reading latents: tensors, arrays, files, iterables and pipelines, cut to a codec's chunk plan."""

from ._call import decoding_call, takes
from ._cut import check_known, cut, whole
from ._gather import gathered, viewed
from ._generate import PipelineSource
from ._open import LatentsLike, open_latents
from ._pipelines import is_pipeline, of_pipeline
from ._sound_pipelines import SoundOf, sound_of, timed
from ._source import Item, LatentSource, Mark, Piece, TensorSource

__all__ = [
    "Item",
    "LatentSource",
    "LatentsLike",
    "Mark",
    "Piece",
    "PipelineSource",
    "SoundOf",
    "TensorSource",
    "check_known",
    "cut",
    "decoding_call",
    "gathered",
    "is_pipeline",
    "of_pipeline",
    "open_latents",
    "sound_of",
    "takes",
    "timed",
    "viewed",
    "whole",
]
