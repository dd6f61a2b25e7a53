"""Everything streamvae raises on its own account.

Errors raised by somebody else's code (a codec, a sink, a source, torch) reach the consumer as
themselves, with a note that names the stage and the chunk.
"""

from __future__ import annotations


class StreamVAEError(Exception):
    """Base of every error that streamvae raises itself."""


class UsageError(StreamVAEError, ValueError):
    """Raised when options contradict each other or cannot be honoured."""


class UnknownSourceError(StreamVAEError, TypeError):
    """Raised when nobody here knows how to decode with the given source."""


class ShapeError(StreamVAEError, ValueError):
    """Raised when pixels do not have the shape they must have."""


class LatentsError(StreamVAEError, ValueError):
    """Raised when latents are not what the codec expects (rank, channels, dtype, size)."""


class NonFiniteError(LatentsError):
    """Raised when latents or decoded pixels hold NaN or infinity.

    Attributes:
        where: ``"latents"`` if the input was bad already, ``"pixels"`` if the decoder or the
            transform made it so.
        chunk: Index of the first bad chunk; every chunk before it was delivered.
    """

    def __init__(self, where: str, chunk: int) -> None:
        super().__init__(where, chunk)
        self.where = where
        self.chunk = chunk

    def __str__(self) -> str:
        cause = (
            "the latents already hold it"
            if self.where == "latents"
            else "the latents are finite: the decoder overflowed (in float16? try bfloat16), or "
            "transform made it"
        )
        return (
            f"expected finite values, got NaN or infinity in chunk {self.chunk}: {cause}. "
            "Pass nonfinite='warn' to go on."
        )


class StageTimeout(StreamVAEError, TimeoutError):
    """Raised when the device did not finish in time.

    Attributes:
        stage: The stage that waited.
        chunk: Index of the chunk it waited for.
        seconds: How long it waited.
    """

    def __init__(self, stage: str, chunk: int, seconds: float) -> None:
        super().__init__(stage, chunk, seconds)
        self.stage = stage
        self.chunk = chunk
        self.seconds = seconds

    def __str__(self) -> str:
        return (
            f"stage {self.stage!r} waited {self.seconds:g} s for chunk {self.chunk} on the device"
        )


class SinkTimeout(StreamVAEError, TimeoutError):
    """Raised when a sink did not end, or do another thing, in time; its thread ends with its call.

    Attributes:
        sink: What the sink calls itself.
        seconds: How long it was waited for.
        what: What it was to do: ``"end"``, ``"open"``, ``"take chunk 3"``, ``"complete"``.
    """

    def __init__(self, sink: str, seconds: float, what: str = "end") -> None:
        super().__init__(sink, seconds, what)
        self.sink = sink
        self.seconds = seconds
        self.what = what

    def __str__(self) -> str:
        return f"sink {self.sink} did not {self.what} within {self.seconds:g} s"


class FrameCountError(StreamVAEError, RuntimeError):
    """Raised at the end of a stream that gave another number of frames than its family must."""


class ClosedError(StreamVAEError, RuntimeError):
    """Raised when a stream is used again: a second iteration, or a step after its end."""


class DeviceError(StreamVAEError, RuntimeError):
    """Raised when weights, latents and the requested device do not fit together."""


class MissingDependencyError(StreamVAEError, ImportError):
    """Raised when an optional package is needed and absent; the message has the install line."""

    def __init__(self, package: str, purpose: str, extra: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}; install it with: "
            f"pip install 'streamvae[{extra}]'"
        )
        self.package = package
