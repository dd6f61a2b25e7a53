"""streamvae: latents in, frames out, a chunk at a time, the GPU never waiting for the host.

The law of the face: ``stream_decode(z, vae)`` gives what ``vae.decode(z)`` gives, in frames, as
they get ready, in constant memory.
"""

# streaming
from ._av import stream_decode_av

# what it gives
from ._chunks import Band, DeviceFrames, Frame, HostChunk, StreamInfo

# errors
from ._errors import (
    ClosedError,
    ConcurrentUseError,
    ControlFlowError,
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
from ._merged import AVInfo, AVStats, AVStream
from ._pipe import stream_pipeline
from ._plan import Plan
from ._spans import ChunkSpan, Percentiles
from ._stats import SinkFailure, StageTimes, StreamStats
from ._stream import FrameStream, stream_decode

# without a loop
from ._sync import asave, collect, collect_av, iter_decode, iter_decode_av, save, save_av

# speed
from ._warmup import warmup
from .fast import release

# proof
from .report import Verification, verify

# sinks
from .sinks import (
    AudioFile,
    FlacFile,
    NpyFile,
    RawFile,
    Stills,
    VideoFile,
    WavFile,
    Y4MFile,
    ZarrArray,
)

__version__ = "0.1.0.dev0"

__all__ = [  # noqa: RUF022  # grouped as the imports are
    # streaming
    "stream_decode",
    "stream_decode_av",
    "stream_pipeline",
    "AVStream",
    "FrameStream",
    # without a loop
    "asave",
    "collect",
    "collect_av",
    "iter_decode",
    "iter_decode_av",
    "save",
    "save_av",
    # speed
    "release",
    "warmup",
    # proof
    "Verification",
    "verify",
    # what it gives
    "AVInfo",
    "AVStats",
    "Band",
    "ChunkSpan",
    "DeviceFrames",
    "Frame",
    "HostChunk",
    "Percentiles",
    "Plan",
    "SinkFailure",
    "StageTimes",
    "StreamInfo",
    "StreamStats",
    # sinks
    "AudioFile",
    "FlacFile",
    "NpyFile",
    "RawFile",
    "Stills",
    "VideoFile",
    "WavFile",
    "Y4MFile",
    "ZarrArray",
    # errors
    "ClosedError",
    "ConcurrentUseError",
    "ControlFlowError",
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
