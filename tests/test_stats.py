"""The books, and the sentence that says who limits."""

from dataclasses import replace

import pytest

from streamvae import StageTimes, StreamStats
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
    book.ended = 8.0
    assert book.snapshot(100.0).total == 6.0
