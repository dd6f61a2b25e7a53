"""Standard output and nothing: bare numbers into a pipe, and a sink that only counts."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest

from streamvae._errors import UsageError
from streamvae.sinks import Null, RawPipe
from tests.sinks.streams import cut, describe, keep, smooth

#: Decodes into standard output, as a program in a pipe does.
WRITER = """
from streamvae import save
from streamvae.testing import TagCodec, tagged_latents
save(tagged_latents(3, size=2), TagCodec(), "-", fps=16.0)
"""


class _Dribble(io.BytesIO):
    """A pipe that takes less than it is given."""

    def write(self, data: object) -> int:
        return super().write(memoryview(data)[:1000])  # type: ignore[arg-type]


async def test_bare_numbers() -> None:
    """Every byte in order, also where the pipe takes them in pieces; the file stays open."""
    file, pictures = _Dribble(), smooth(9, 24, 32)
    await keep(RawPipe(file), pictures)
    assert file.getvalue() == pictures.tobytes()
    file, sound = _Dribble(), np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    await keep(RawPipe(file), sound, "sound")
    assert file.getvalue() == sound.tobytes()
    file = _Dribble()
    await keep(RawPipe(file), pictures, "image", batch=None)
    assert file.getvalue() == pictures.tobytes()


@pytest.mark.parametrize(
    ("known", "words"),
    [({"batch": 2}, "expected batch 1, got 2"), ({"output": "device"}, "needs frames on the host")],
)
async def test_what_goes_into_no_pipe(known: dict[str, object], words: str) -> None:
    """Several clips, and frames left on the device, are refused."""
    with pytest.raises(UsageError, match=words):
        await RawPipe(io.BytesIO()).open(describe(smooth(1, 8, 8), **known))  # type: ignore[arg-type]


async def test_null() -> None:
    """It takes everything, and nothing of it can be found."""
    sink = Null()
    await keep(sink, smooth(9, 24, 32))
    assert (sink.passed, sink.committed) == (9, 0)
    sink = Null()
    await sink.open(describe(smooth(1, 8, 8), batch=2))
    await sink.write(next(cut(smooth(1, 8, 8))))
    await sink.abort()
    assert sink.passed == 1


def test_standard_output_is_y4m() -> None:
    """The path "-" is standard output: three frames in y4m, and nothing else."""
    done = subprocess.run([sys.executable, "-c", WRITER], check=True, capture_output=True)
    head, *frames = done.stdout.split(b"FRAME\n")
    assert head == b"YUV4MPEG2 W16 H16 F16:1 Ip A1:1 C420mpeg2 XCOLORRANGE=LIMITED\n"
    assert [len(frame) for frame in frames] == [16 * 16 * 3 // 2] * 3


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_standard_output_that_is_a_terminal() -> None:
    """A terminal is no place for video."""
    ours, theirs = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", WRITER], check=False, stdout=theirs, stderr=subprocess.PIPE
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 1
    assert b"expected standard output to be a pipe or a file for '-', got a terminal" in done.stderr
