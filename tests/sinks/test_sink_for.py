"""What a user may name as a sink."""

import os
from pathlib import Path

import numpy as np
import pytest

from streamvae import sinks
from streamvae._chunks import HostChunk
from streamvae._errors import ClosedError, UsageError
from tests.sinks.streams import keep


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("a.raw", sinks.RawFile),
        (Path("a.b.NPY"), sinks.NpyFile),
        ("dir/a.mp4", sinks.VideoFile),
        ("a.MKV", sinks.VideoFile),
        ("a.mov", sinks.VideoFile),
        ("a.webm", sinks.VideoFile),
        ("a.m4a", sinks.AudioFile),
        ("a.opus", sinks.AudioFile),
        ("dir/a.y4m", sinks.Y4MFile),
        ("a.wav", sinks.WavFile),
        ("a.flac", sinks.FlacFile),
        ("dir/%05d.png", sinks.Stills),
        ("%d.JPEG", sinks.Stills),
        ("one.webp", sinks.Stills),
    ],
)
def test_suffix_decides(path: str | os.PathLike[str], kind: type) -> None:
    """A path becomes the sink of its suffix, whatever the case, and is called by it."""
    sink = sinks.sink_for(path)
    assert type(sink) is kind
    assert sink.name == str(path)


def test_a_sink_is_itself(tmp_path: Path) -> None:
    """What is a sink already is passed through."""
    sink = sinks.NpyFile(tmp_path / "a.npy")
    assert sinks.sink_for(sink) is sink


@pytest.mark.parametrize("path", ["a.avi", "a", "mp4"])
def test_unknown_suffix_lists_the_known(path: str) -> None:
    """An unknown suffix is refused with the list of those there are."""
    with pytest.raises(UsageError, match=r"\.mp4, .*\.npy, \.raw, .*got '" + path):
        sinks.sink_for(path)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (5, "got 5"),
        (None, "got None"),
        (print, "a callable that is not async"),
        (sinks.NpyFile, "got the class NpyFile"),
    ],
)
def test_what_is_no_sink_is_refused(target: object, words: str) -> None:
    """Neither path nor sink nor async callable: one clear error."""
    with pytest.raises(UsageError, match=words):
        sinks.sink_for(target)  # type: ignore[arg-type]


async def test_async_callable(frames: np.ndarray) -> None:
    """An async callable is awaited with every chunk, counted, and refuses a second stream."""
    seen: list[HostChunk] = []

    async def collect(chunk: HostChunk) -> None:
        seen.append(chunk)

    sink = sinks.sink_for(collect)
    await keep(sink, frames)
    await sink.close()
    await sink.abort()
    assert [len(chunk) for chunk in seen] == [1, 4, 4, 4]
    assert sink.committed == len(frames)
    assert sink.name.endswith("collect")
    with pytest.raises(ClosedError):
        await keep(sink, frames)


async def test_async_callable_object_that_raises(frames: np.ndarray) -> None:
    """An object with an async call is a sink too; what it raises comes out as it is."""

    class Picky:
        async def __call__(self, chunk: HostChunk) -> None:
            if chunk.index == 1:
                raise LookupError("no more")

    sink = sinks.sink_for(Picky())
    with pytest.raises(LookupError, match="no more"):
        await keep(sink, frames)
    await sink.abort()
    assert sink.committed == 1
    with pytest.raises(ClosedError, match="Picky"):
        await sink.close()
