"""streamvae: latents in, frames out, a chunk at a time, the GPU never waiting for the host.

The law of the face: ``stream_decode(z, vae)`` gives what ``vae.decode(z)`` gives, in frames, as
they get ready, in constant memory.
"""

# streaming
# what it gives
from ._chunks import DeviceFrames, Frame, HostChunk, StreamInfo

# errors
from ._errors import (
    ClosedError,
    DeviceError,
    FrameCountError,
    LatentsError,
    MissingDependencyError,
    NonFiniteError,
    ShapeError,
    SinkTimeout,
    StageTimeout,
    StreamVAEError,
    UnknownSourceError,
    UsageError,
)
from ._pipe import stream_pipeline
from ._plan import Plan
from ._stats import StageTimes, StreamStats
from ._stream import FrameStream, stream_decode

# without a loop
from ._sync import asave, collect, iter_decode, save

# proof
from .report import Verification, verify

# sinks
from .sinks import NpyFile, RawFile, VideoFile

__version__ = "0.1.0.dev0"

__all__ = [  # noqa: RUF022  # grouped as the imports are
    # streaming
    "stream_decode",
    "stream_pipeline",
    "FrameStream",
    # without a loop
    "asave",
    "collect",
    "iter_decode",
    "save",
    # proof
    "Verification",
    "verify",
    # what it gives
    "DeviceFrames",
    "Frame",
    "HostChunk",
    "Plan",
    "StageTimes",
    "StreamInfo",
    "StreamStats",
    # sinks
    "NpyFile",
    "RawFile",
    "VideoFile",
    # errors
    "ClosedError",
    "DeviceError",
    "FrameCountError",
    "LatentsError",
    "MissingDependencyError",
    "NonFiniteError",
    "ShapeError",
    "SinkTimeout",
    "StageTimeout",
    "StreamVAEError",
    "UnknownSourceError",
    "UsageError",
    # the package
    "__version__",
]
