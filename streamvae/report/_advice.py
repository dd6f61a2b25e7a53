"""Where the time of a stream went, and what would help, as text."""

from __future__ import annotations

from collections.abc import Iterator

from streamvae._spans import Percentiles
from streamvae._stats import StageTimes, StreamStats

from ._gaps import CAUSES, Cause, gaps

#: Idle time of the device that nobody needs to care for, as a share.
NEGLIGIBLE = 0.01
WARM = (
    "weights that are loaded already (give the module, not its path) and streamvae.warmup() "
    "before the first stream"
)
NOTHING = (
    "nothing on the way out: the device is the limit; a faster step (mode='fast'), fewer pixels "
    "or another device would"
)
#: A stage that is busy for this share of the time sets the pace.
FULL = 0.9


def advice(stats: StreamStats) -> str:
    """Say where a stream's time went, stage by stage, who is the limit, and what would help.

    Args:
        stats: Of a stream that has ended, or as it is now.

    Returns:
        Lines of text; the last ones begin with ``limit:`` and ``help:``.
    """
    return "\n".join(_lines(stats))


def _lines(stats: StreamStats) -> Iterator[str]:
    if stats.chunks:
        first = "" if stats.first_chunk is None else f", the first after {_time(stats.first_chunk)}"
        yield f"{stats.frames} frames in {stats.chunks} chunks in {_time(stats.total)}{first}"
        yield (
            f"of these {_time(stats.opening)} before the stages ran (weights, sinks, latents), "
            f"{_time(stats.closing)} after (sinks)"
        )
        yield from _percentiles("between frames", stats.between_frames)
        yield from _percentiles("between chunks", stats.between_chunks)
        yield from _percentiles("launch thread, a chunk", stats.launch)
        yield from _percentiles("its processor time", stats.launch_cpu)
        yield from _device(stats)
        yield f"{'stage':<10}{'busy':>10}{'no input':>10}{'held up':>10}{'device':>10}{'queued':>8}"
        yield from map(_stage, stats.stages)
    yield f"limit: {stats.bottleneck}"
    yield from (f"help: {line}" for line in helps(stats))


def helps(stats: StreamStats) -> tuple[str, ...]:
    """What would make a stream faster, what counts most first.

    Args:
        stats: Of a stream that has ended, or as it is now.
    """
    running = stats.running
    if not stats.chunks or not stats.stages or running <= 0:
        return ("nothing to say yet",)
    if stats.opening > running + stats.closing:
        return (WARM,)
    return tuple(_of_the_flow(stats, running)) or (NOTHING,)


def _of_the_flow(stats: StreamStats, running: float) -> Iterator[str]:
    idle = _idle(stats)
    by_name = {stage.name: stage for stage in stats.stages}
    last, persist = stats.stages[-1], by_name.get("persist")
    if last.waiting_output > 0.5 * running:
        yield "a consumer that takes frames faster; what must be kept belongs in a sink"
    elif persist is not None and persist.busy > FULL * running:
        yield (
            "a faster sink: an encoder's faster preset, another codec, a faster disk; "
            "parallel writers (Stills(workers=...)), or raw frames now and an encoder later"
        )
    elif by_name.get("download", last).busy > FULL * running and not _full(stats):
        yield "fewer bytes: output='uint8', or a video file, which takes 4:2:0 from the device"
    elif idle["output"] > NEGLIGIBLE * running:
        yield (
            "a longer queue (queue_size=...): what comes after the device keeps up on the whole, "
            "and holds it up now and then"
        )
    if stats.launch_bound or idle["launch"] > NEGLIGIBLE * running:
        yield (
            "chunks that are launched as a graph (stream.info.step says why they are not), or "
            "larger ones (mode='fast' with latents_per_chunk=...)"
        )
    if idle["latents"] > NEGLIGIBLE * running:
        yield "latents that come sooner: the device waits for them"
    if stats.closing > 0.1 * running:
        yield "a sink that keeps less for its end: an encoder's shorter look-ahead"
    if idle["turn"] > NEGLIGIBLE * running:
        yield "nothing in this stream: it shares the device with others"


def _full(stats: StreamStats) -> bool:
    return stats.device_busy is not None and stats.device_busy > FULL


def _idle(stats: StreamStats) -> dict[Cause, float]:
    """Seconds that the device idled, by cause."""
    idle: dict[Cause, float] = dict.fromkeys(CAUSES, 0.0)
    for gap in gaps(stats):
        for cause, seconds in gap.waits.items():
            idle[cause] += seconds
    return idle


def _device(stats: StreamStats) -> Iterator[str]:
    if stats.device_busy is None:
        return
    text = f"device busy {stats.device_busy:.2%} of the time after the first chunk"
    idle = {cause: seconds for cause, seconds in _idle(stats).items() if seconds >= 0.0005}
    said = ", ".join(
        f"{_time(seconds)} {CAUSES[cause]}"
        for cause, seconds in sorted(idle.items(), key=lambda one: -one[1])
    )
    yield text + (f"; idle {said}" if said else "")


def _percentiles(name: str, value: Percentiles | None) -> Iterator[str]:
    if value is not None:
        yield (
            f"{name}: p50 {_time(value.p50)}, p99 {_time(value.p99)}, longest {_time(value.worst)}"
        )


def _stage(stage: StageTimes) -> str:
    times = (stage.busy, stage.waiting_input, stage.waiting_output, stage.device)
    return (
        f"{stage.name:<10}" + "".join(f"{_time(time):>10}" for time in times)
    ) + f"{stage.queued_mean:>8.1f}"


def _time(seconds: float) -> str:
    """For people: seconds, milliseconds or microseconds."""
    if abs(seconds) >= 1:
        return f"{seconds:.2f} s"
    if abs(seconds) >= 0.001 or not seconds:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e6:.0f} us"
