"""The books, and the sentence that says who limits."""

from dataclasses import replace

import pytest

from streamvae import ChunkSpan, StageTimes, StreamStats
from streamvae._stats import Book


def stats(total: float = 10.0, **stages: tuple[float, float, float]) -> StreamStats:
    """Stats of stages with busy, waiting for input, waiting for output."""
    books = tuple(StageTimes(name, 5, *times) for name, times in stages.items())
    return StreamStats(books, frames=5, chunks=5, first_chunk=1.0, total=total)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (StreamStats(), "Nothing has passed yet."),
        (stats(decode=(9, 0, 1), download=(5, 4, 1), persist=(3, 1, 6)), "The consumer is the"),
        (stats(decode=(2, 8, 0), download=(2, 8, 0), persist=(1, 9, 0)), "The source of the"),
        (
            stats(decode=(9, 1, 0), download=(5, 5, 0), persist=(3, 7, 0)),
            "Stage 'decode' is busy 9",
        ),
        (stats(decode=(5, 0, 5), download=(8, 1, 1), persist=(3, 7, 0)), "or its copies are"),
        (stats(decode=(5, 0, 5), download=(4, 1, 5), persist=(8, 2, 0)), "a sink is the limit"),
        (stats(decode=(5, 0, 5), settle=(8, 1, 1)), "Stage 'settle' is busy 80% of the time: it"),
        (stats(0.0, decode=(0, 0, 0)), "Stage 'decode' is busy 0%"),
        (replace(stats(decode=(3, 0, 0)), opening=6.0), "Opening (weights, sinks, the first"),
        (replace(stats(decode=(6, 0, 0)), opening=4.0), "Stage 'decode' is busy 100%"),
    ],
)
def test_bottleneck(case: StreamStats, said: str) -> None:
    """Who limits the stream, in a sentence."""
    assert said in case.bottleneck


def steady(
    seconds: float, call: tuple[float, float], device: tuple[float, float], count: int = 5
) -> StreamStats:
    """Chunks one after the other: a call and the device's work, each so far into its chunk."""
    spans = [
        ChunkSpan(
            "decode",
            index,
            *(index * seconds,) * 3,
            call_begin=index * seconds + call[0],
            call_end=index * seconds + call[1],
            call_cpu=call[1] - call[0],
            device_begin=index * seconds + device[0],
            device_end=index * seconds + device[1],
        )
        for index in range(count)
    ]
    given = [
        ChunkSpan("persist", index, *((index + 1) * seconds,) * 3, frames=4)
        for index in range(count)
    ]
    busy = (StageTimes("decode", count, 9.5, 0.0, 0.0), StageTimes("persist", count, 0.1, 9.9, 0.0))
    return StreamStats(busy, 4 * count, count, 1.0, 10.0, timeline=(*spans, *given))


def test_launches() -> None:
    """How long the launch thread took, the first chunk not counted, and how long between frames."""
    case = steady(2.0, (0.0, 0.5), (0.25, 2.25))
    assert case.launch == (0.5, 0.5, 0.5)
    assert case.launch_cpu == (0.5, 0.5, 0.5)
    assert case.between_chunks == (2.0, 2.0, 2.0)
    assert case.between_frames == (0.5, 0.5, 0.5)
    assert not case.launch_bound
    assert "the device is the limit" in case.bottleneck
    assert StreamStats().launch is None
    assert StreamStats().between_chunks is None


def test_bands_are_no_frames() -> None:
    """Bands of a picture that is not complete give no interval of their own."""
    case = steady(2.0, (0.0, 0.5), (0.25, 2.25), 4)
    bands = tuple(
        replace(span, frames=int(span.chunk % 2)) for span in case.timeline if span.frames
    )
    case = replace(case, timeline=bands)
    assert case.between_chunks == (4.0, 4.0, 4.0)


def test_launching_can_be_the_limit() -> None:
    """A device that has done a chunk as soon as it is launched waits for the launches."""
    case = steady(2.0, (0.0, 1.99), (0.01, 2.0))
    assert case.launch_bound
    assert case.bottleneck.startswith("Launching is the limit")


def test_completing_takes_its_time() -> None:
    """Sinks that complete what they have after the last chunk are no stage's doing."""
    case = replace(stats(decode=(3, 0, 0)), closing=6.0)
    assert case.running == 4.0
    assert case.bottleneck == "Completing the sinks took longer than all chunks."


def test_book() -> None:
    """A snapshot is a copy, measured from the start, and stands still after the end."""
    book = Book(stages=[StageTimes("decode")])
    assert book.snapshot(5.0).total == 0
    book.began = 2.0
    assert book.snapshot(3.0).opening == 1.0
    book.opened = 4.0
    book.passed(4, 5.0)
    book.passed(4, 6.0)
    snapshot = book.snapshot(7.0)
    assert (snapshot.frames, snapshot.chunks) == (8, 2)
    assert (snapshot.first_chunk, snapshot.total, snapshot.opening) == (3.0, 5.0, 2.0)
    book.stages[0].busy = 99.0
    assert snapshot.stages[0].busy == 0
    book.flowed = 7.5
    book.ended = 8.0
    assert book.snapshot(100.0).closing == 0.5
    assert book.snapshot(100.0).total == 6.0
