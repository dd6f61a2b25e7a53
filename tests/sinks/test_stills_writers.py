"""Who may write numbered pictures, from which threads, and what those leave who did not end."""

import gc
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from streamvae._errors import UsageError
from streamvae._identity import Identity
from streamvae.sinks import Continued, Stills
from tests.sinks.streams import cut, describe, keep, left_in

TEMPLATES = ["%d.png", "new/%d.webp", "clip%d/%d.jpg", "one.png"]


async def refuse(sink: Stills, frames: np.ndarray) -> None:
    """See that another writer is refused, and does nothing after that either."""
    with pytest.raises(UsageError, match=r"another sink is writing to .*; expected one at a time"):
        await sink.open(describe(frames))
    await sink.abort()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("template", TEMPLATES)
async def test_two_writers(
    tmp_path: Path, frames: np.ndarray, template: str, overwrite: bool
) -> None:
    """The second is refused, at any moment of the first, which is resumable all the while."""
    first = Stills(tmp_path / template, overwrite=overwrite)
    await first.identify(Identity({"mode": "exact"}, None))
    await first.open(describe(frames[:1]))
    await refuse(Stills(tmp_path / template, overwrite=overwrite), frames[:1])
    (chunk,) = cut(frames[:1])
    await first.write(chunk)
    await refuse(Stills(tmp_path / template, overwrite=True), frames[:1])
    assert first.manifest.path.exists()
    with pytest.raises(UsageError, match="another sink is writing"):
        await Continued(Stills(tmp_path / template)).open(describe(frames[:1]))
    await first.close()
    assert [path.suffix for path in tmp_path.rglob("*.*")] == [Path(template).suffix]
    await keep(Stills(tmp_path / template, overwrite=True), frames[:1])


@pytest.mark.parametrize("ending", ["close", "abort"])
@pytest.mark.parametrize("template", TEMPLATES)
async def test_the_next_one_may(
    tmp_path: Path, frames: np.ndarray, template: str, ending: str
) -> None:
    """However a writer without pictures ended, nothing of it is left."""
    sink = Stills(tmp_path / template)
    await sink.open(describe(frames[:1]))
    await getattr(sink, ending)()
    assert left_in(tmp_path) == set()
    await keep(Stills(tmp_path / template), frames[:1])


async def test_what_is_refused_leaves_nothing(tmp_path: Path, frames: np.ndarray) -> None:
    """One that is not told to overwrite lets go of the names that are taken."""
    await keep(Stills(tmp_path / "%d.png"), frames[:2])
    with pytest.raises(UsageError, match="exists already"):
        await Stills(tmp_path / "%d.png").open(describe(frames))
    assert left_in(tmp_path) == {"0.png", "1.png"}
    await keep(Stills(tmp_path / "%d.png", overwrite=True), frames[:2])


async def test_other_names_in_one_directory(tmp_path: Path, frames: np.ndarray) -> None:
    """Two streams may go into one directory by two templates."""
    one, two = Stills(tmp_path / "f" / "a%d.png"), Stills(tmp_path / "f" / "b%d.png")
    for sink in (one, two):
        await sink.open(describe(frames))
    await one.abort()
    await two.write(next(cut(frames)))
    await two.close()
    assert left_in(tmp_path / "f") == {"b0.png"}


async def test_a_killed_writer(tmp_path: Path, frames: np.ndarray) -> None:
    """A lock's file that a kill left is nobody's."""
    (tmp_path / "%d.png.partial.lock").touch()
    await keep(Stills(tmp_path / "%d.png"), frames[:1])
    assert left_in(tmp_path) == {"0.png"}


async def test_a_writer_that_nobody_ended(tmp_path: Path, frames: np.ndarray) -> None:
    """A sink that was collected, its loop gone, stands in nobody's way."""
    sink = Stills(tmp_path / "%d.png")
    await sink.open(describe(frames))
    del sink
    gc.collect()
    await keep(Stills(tmp_path / "%d.png"), frames[:1])


def test_a_writer_that_outlives_the_main_thread(tmp_path: Path) -> None:
    """Pictures are encoded as well when the main thread has ended and others go on."""
    script = textwrap.dedent(
        f"""
        import asyncio, threading
        import numpy as np
        from streamvae.sinks import Stills
        from tests.sinks.streams import keep

        def write():
            threading.main_thread().join()
            frames = np.zeros((3, 8, 8, 3), np.uint8)
            asyncio.run(keep(Stills({str(tmp_path / "%d.png")!r}, workers=2), frames))

        threading.Thread(target=write).start()
        """
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, check=False, timeout=60)
    assert done.returncode == 0
    assert left_in(tmp_path) == {"0.png", "1.png", "2.png"}
