"""stream_pipeline: a diffusers pipeline's call, its decoding streamed."""

from __future__ import annotations

from collections.abc import Iterable

from ._caller import ThreadState
from ._errors import UnknownSourceError
from ._options import Mode, Options, Progress, SinkLike, sinks_of
from ._pixels import Output
from ._stream import FrameStream
from ._supervisor import Supervisor
from ._tee import OnSinkError
from ._transforms import Transform
from .abc import Backend
from .backends import mark, mark_weights
from .latents import PipelineSource, decoding_call, is_pipeline, takes
from .stages import NonFinite


def stream_pipeline(
    pipe: object,
    *,
    sinks: SinkLike | Iterable[SinkLike] = (),
    fps: float | None = None,
    mode: Mode = "exact",
    latents_per_chunk: int | None = None,
    output: Output = "uint8",
    transform: Transform | None = None,
    queue_size: int = 2,
    progress: Progress = False,
    timeout: float | None = None,
    sink_timeout: float = 10.0,
    write_timeout: float | None = None,
    on_sink_error: OnSinkError = "stop",
    nonfinite: NonFinite = "raise",
    backend: Backend | None = None,
    **call: object,
) -> FrameStream:
    """Run a diffusers pipeline and stream the decoding of its latents.

    The frames are those of ``pipe(**call)``. Nothing starts before ``async with`` is entered or the
    first frame is asked for. The pipeline then runs on a thread of its own, in the world of this
    call as `stream_decode` carries it, and ``info`` is there when the latents are. A stream that is
    left meanwhile halts it: it ends with the step that it is in, and only then is
    `FrameStream.aclose` done, since until then ``pipe`` is in use. Some pipelines of diffusers have
    no way to be halted and run to their end. Streams of one pipeline take turns.

    Args:
        pipe: A diffusers pipeline of those that `stream_decode` knows, with its autoencoder.
        sinks: As in `stream_decode`.
        fps: As in `stream_decode`; also given to a pipeline whose call takes ``fps``.
        mode: As in `stream_decode`.
        latents_per_chunk: As in `stream_decode`.
        output: As in `stream_decode`.
        transform: As in `stream_decode`.
        queue_size: As in `stream_decode`.
        progress: As in `stream_decode`, for frames; the pipeline has a bar of its own for steps.
        timeout: As in `stream_decode`.
        sink_timeout: As in `stream_decode`.
        write_timeout: As in `stream_decode`.
        on_sink_error: As in `stream_decode`.
        nonfinite: As in `stream_decode`.
        backend: As in `stream_decode`.
        **call: Keyword arguments of the pipeline's call, without ``output_type`` and
            ``return_dict``. A callback of yours is called as always.

    Raises:
        UsageError: Options contradict each other, or the pipeline's call takes no such arguments.
        UnknownSourceError: ``pipe`` is no diffusers pipeline.
        Exception: While streaming: what the pipeline raised, as it raised it.
    """
    if not is_pipeline(pipe):
        raise UnknownSourceError(f"expected a diffusers pipeline, got {type(pipe).__name__}")
    if fps is not None and takes(pipe, "fps"):
        call["fps"] = fps
    options = Options(
        sinks=sinks_of(sinks),
        fps=fps,
        normalized=False,
        mode=mode,
        latents_per_chunk=latents_per_chunk,
        output=output,
        transform=transform,
        device=None,
        queue_size=queue_size,
        progress=progress,
        timeout=timeout,
        sink_timeout=sink_timeout,
        write_timeout=write_timeout,
        on_sink_error=on_sink_error,
        nonfinite=nonfinite,
        call=decoding_call(pipe, call),
        backend=backend,
    )
    caller = ThreadState.capture()
    latents = PipelineSource(pipe, call, mark if backend is None else backend.mark)
    weights = mark_weights(pipe)
    return FrameStream(lambda: Supervisor(latents, pipe, options, weights, caller=caller), caller)
