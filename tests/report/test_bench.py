"""Ways of decoding side by side: each does what it says, and what is found is told."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from streamvae import UnknownSourceError, UsageError
from streamvae.codecs import codec_for
from streamvae.report._bench import bench
from streamvae.report._bench_chunks import ChunkTime, chunk_times
from streamvae.report._bench_clip import Clip, autoencoder, latents, pictures
from streamvae.report._bench_energy import Energy
from streamvae.report._bench_found import Benchmark, Settings, Timing
from streamvae.report._bench_loops import (
    ALONE,
    EAGER,
    EXACT,
    FAST,
    FASTVAE,
    GRAPHS,
    LOOP,
    OWN,
    PEOPLE,
    device_alone,
    eager,
    fastvae,
    fastvae_of,
    on_launch_thread,
    people,
    stream,
    streamed,
    synchronous,
)
from streamvae.report._bench_machine import clocks, facts, filesystem
from streamvae.report._bench_memory import Peak, measured, peaks
from streamvae.report._bench_plots import draw
from streamvae.report._bench_samples import Samples, alternate
from streamvae.report._bench_table import show
from tests import tiny

CPU = torch.device("cpu")
#: Nothing less has two sizes and a steady chunk.
SMALL = Settings(
    None, CPU, rounds=2, size=(32, 48), latents=3, sizes=((16, 16), (32, 32)), size_latents=2
)


@pytest.fixture
def clip(tmp_path: Path) -> Iterator[Clip]:
    """Three latents of a tiny autoencoder."""
    vae = tiny.wan21()
    with asyncio.Runner() as runner:
        yield Clip(vae, latents(codec_for(vae), (32, 48), 3), tmp_path, runner)


def raw(clip: Clip) -> np.ndarray:
    """What a way has written."""
    return np.fromfile(clip.scratch / "out.raw", np.uint8).reshape(9, 32, 48, 3)


def test_variants_take_turns() -> None:
    """Each round begins with another variant, and one run of each comes first, unmeasured."""
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = alternate({name: lambda name=name: run(name) for name in "abc"}, 3)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"
    assert found["a"].values == (4.0, 9.0, 11.0)
    assert found["a"].as_json() == {"median": 9, "min": 4, "max": 11, "samples": [4, 9, 11]}


def test_streams_and_the_loop_write_the_same(clip: Clip) -> None:
    """The synchronous loop's bytes are the stream's; what people do is a level off at most."""
    assert streamed(clip, lambda: stream(clip, "raw")) > 0
    ours = raw(clip)
    on_launch_thread(clip, lambda this: synchronous(this, "raw"))
    assert (raw(clip) == ours).all()
    on_launch_thread(clip, lambda this: people(this, "raw"))
    # diffusers' export cuts off where the PIL rule rounds.
    assert (raw(clip).astype(int) - ours).min() >= -1
    assert (raw(clip).astype(int) - ours).max() <= 0


@pytest.mark.parametrize("real", [False, True])
def test_every_way_into_mp4(clip: Clip, real: bool) -> None:
    """All ways encode as many frames, decoded ones or given ones."""
    av = pytest.importorskip("av")
    clip.real = pictures(9, 32, 48, latents=2) if real else None
    ways = (
        lambda: streamed(clip, lambda: stream(clip, "mp4")),
        lambda: on_launch_thread(clip, lambda this: synchronous(this, "mp4")),
        lambda: on_launch_thread(clip, lambda this: people(this, "mp4")),
    )
    films = []
    for way in ways:
        way()
        with av.open(str(clip.scratch / "out.mp4")) as film:
            films.append(np.stack([one.to_ndarray(format="gray") for one in film.decode(video=0)]))
    assert [len(film) for film in films] == [9, 9, 9]
    if real:  # the same pictures, by the same encoder
        assert np.abs(films[0].astype(int) - films[1]).mean() < 2


def test_nothing_is_left_on_disk(clip: Clip) -> None:
    """Ways into nothing write nothing, and the next run empties the folder."""
    streamed(clip, lambda: stream(clip, "raw"))
    for way in (lambda this: synchronous(this, "nothing"), lambda this: people(this, "nothing")):
        on_launch_thread(clip, way)
        assert list(clip.scratch.iterdir()) == []
    assert on_launch_thread(clip, lambda this: device_alone(this, 1)) > 0


def test_fastvae_by_its_own_decode(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is installed and made for the autoencoder, its whole decode is a way of its own."""
    assert fastvae_of(clip, CPU) is None
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "fast" / "installed"))
    monkeypatch.delitem(sys.modules, "fastvae", raising=False)
    decode = fastvae_of(clip, torch.device("cuda"))
    monkeypatch.delitem(sys.modules, "fastvae", raising=False)
    assert decode is not None
    on_launch_thread(clip, lambda this: people(this, "raw"))
    ours = raw(clip)
    on_launch_thread(clip, lambda this: fastvae(this, "raw", decode))
    assert np.abs(raw(clip).astype(int) - ours).max() <= 1


def test_eager_for_a_while() -> None:
    """The switch for graphs is set inside, and as it was outside."""
    before = os.environ.get(GRAPHS)
    with eager():
        assert os.environ[GRAPHS] == "0"
        with eager():
            pass
        assert os.environ[GRAPHS] == "0"
    assert os.environ.get(GRAPHS) == before


def test_a_run_has_every_way_that_is_there() -> None:
    """On a CPU: people's, the loop and exact streams, into all; notes say why no others."""
    told: list[tuple[str, int, int]] = []
    written: list[str] = []
    found = bench(
        replace(SMALL, parts=("paths", "sizes")),
        progress=lambda *said: told.append(said),
        part_done=lambda found: written.append(json.dumps(found.as_json())),
    )
    into = ("nothing", "raw", "mp4")
    rows = [(ALONE, "nothing"), *((w, i) for i in into for w in (PEOPLE, LOOP, EXACT))]
    assert [(row.way, row.into) for row in found.paths] == rows
    assert all(row.seconds and len(row.seconds.values) == 2 for row in found.paths)
    assert [(row.size, row.way) for row in found.sizes] == [
        (size, way) for size in SMALL.sizes for way in (PEOPLE, LOOP, EXACT)
    ]
    assert found.facts["frames equal vae.decode's, byte for byte"] is True
    assert any(note.startswith("no fastvae") for note in found.notes)
    assert any(note.startswith("no fast mode") for note in found.notes)
    assert told[-1][1] == told[-1][2]
    last = json.loads(written[-1])
    assert {"command", "date", "versions", "cpu", "gpu", "clocks before", "rounds"} <= set(last)
    assert last["paths"][1]["size"] == "32x48"
    assert len(last["paths"][1]["seconds"]["samples"]) == 2


def test_first_and_steady_chunks(clip: Clip) -> None:
    """Each step that is another has its chunks timed, of which those after two are steady."""
    clip.z = latents(clip.codec, (32, 48), 5)
    done: list[None] = []
    (own,) = clip.backend.run(lambda: chunk_times(clip, 2, lambda: done.append(None))).result()
    assert (own.way, own.step) == (OWN, "eager")
    assert own.first is not None
    assert own.steady is not None
    assert (len(own.first.values), len(own.steady.values)) == (2, 6)
    assert min(own.first.values + own.steady.values) > 0
    assert len(done) == 3
    clip.z = clip.z[:, :, :2]
    (short,) = clip.backend.run(lambda: chunk_times(clip, 1, lambda: None)).result()
    assert (short.first is None, short.steady) == (False, None)


def test_a_run_of_chunks_and_energy() -> None:
    """Both are parts of a run; where there is no counter, a note says why there are no joules."""
    told: list[tuple[str, int, int]] = []
    found = bench(
        replace(SMALL, parts=("chunks", "energy"), chunk_latents=3),
        progress=lambda *said: told.append(said),
    )
    assert [row.way for row in found.chunks] == [OWN]
    assert told[-1] == ("chunks", 3, 3)
    assert found.energy == ()
    assert "no joules a frame: the device is no NVIDIA card" in found.notes
    said = found.as_json()
    assert json.loads(json.dumps(said["chunks"]))[0]["steady"]["samples"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")
def test_memory_is_measured_in_a_process_of_its_own() -> None:
    """Each way and length has a row, and a longer clip in one piece takes more."""
    found = peaks(None, CPU, None, (64, 64), (3, 61))
    assert [(row.way, row.latents) for row in found] == [
        (way, steps) for way in (PEOPLE, EXACT) for steps in (3, 61)
    ]
    assert [row.frames for row in found[:2]] == [9, 241]
    # As many frames more as floats, at least.
    assert (found[1].nbytes or 0) - (found[0].nbytes or 0) > 232 * 64 * 64 * 3 * 4


def test_no_memory_is_no_end() -> None:
    """Where memory is not enough there is no figure, and the other way is tried all the same."""
    vae = tiny.wan21()
    asked: list[int] = []

    def refuse_long_ones(conv: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        asked.append(given[0].shape[2])
        if given[0].shape[2] > 2:
            raise torch.OutOfMemoryError("as much as there is not")

    vae.post_quant_conv.register_forward_pre_hook(refuse_long_ones)
    rows = list(measured(vae, (16, 16), (2, 3, 4), (PEOPLE, EXACT)))
    assert [(row.way, row.latents) for row in rows] == [
        (way, steps) for way in (PEOPLE, EXACT) for steps in (2, 3, 4)
    ]
    # What two took is known where the system lets a process forget its old maximum.
    assert all(row.nbytes is None for row in rows if row.latents > 2)
    assert asked.count(3) == 2
    assert 4 not in asked  # what would take even more is not tried


def test_facts_of_a_run(tmp_path: Path) -> None:
    """Versions, machine, command and date are there; a CPU has no clocks to tell."""
    said = facts(CPU)
    assert isinstance(said["versions"], dict)
    assert said["versions"]["torch"] == torch.__version__
    assert {"command", "date", "python", "cpu", "cores", "threads", "system"} <= set(said)
    assert said["gpu"] is None
    assert clocks(CPU) is None
    assert filesystem(tmp_path)


def test_latents_for_a_size() -> None:
    """Pictures are at least as large as asked for, in whole latents."""
    codec = codec_for(tiny.wan22())
    z = latents(codec, (40, 32), 2)
    assert tuple(z.shape) == (1, 6, 2, 3, 2)
    assert codec.picture(tuple(z.shape)) == (48, 32)


def test_pictures_go_to_and_fro() -> None:
    """More frames than there are go on backwards; small ones are a corner, large ones resized."""
    small = pictures(12, 16, 16, latents=2)  # five frames
    assert small.shape == (12, 16, 16, 3)
    assert (small[5] == small[3]).all()
    assert (small[8:12] == small[:4]).all()
    assert pictures(1, 272, 16, latents=1).shape == (1, 272, 16, 3)


def test_only_video_by_latents_alone(tmp_path: Path) -> None:
    """Pictures and nothing at all are refused with what was expected."""
    tiny.kl().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="autoencoder of video"):
        autoencoder(str(tmp_path), CPU)
    with pytest.raises(UnknownSourceError):
        autoencoder(str(tmp_path / "none"), CPU)
    with pytest.raises(UsageError, match="at least one round"):
        bench(replace(SMALL, rounds=0))


def some() -> Benchmark:
    """What a run on a card may find."""
    took, size = Samples((0.5, 0.4, 0.7)), (480, 832)
    ways = (ALONE, PEOPLE, LOOP, FASTVAE, EXACT, EAGER, FAST)
    said = facts(CPU) | {
        "source": "random-wan",
        "family": "AutoencoderKLWan",
        "dtype": "bfloat16",
        "gpu": "a card",
        "memory's pictures": "256x448",
        "energy's pictures": "480x832",
        "steps": {"exact": "graph", "fast": "fused kernels"},
        "frames equal vae.decode's, byte for byte": True,
    }
    return Benchmark(
        said,
        ["[a note] that rich must not read"],
        paths=(
            *(Timing(way, "nothing", size, 3, 9, took) for way in ways),
            Timing(PEOPLE, "mp4", size, 3, 9, None),
        ),
        chunks=(
            ChunkTime(OWN, "eager", Samples((0.03,)), Samples((0.0914, 0.0923))),
            ChunkTime(FAST, "fused kernels", Samples((0.004,)), Samples((0.02,))),
            ChunkTime(FASTVAE, "fastvae 0.1.0", None, None),
        ),
        energy=(
            Energy(PEOPLE, 3, 123, 5.0, 3450.0, 120.0),
            Energy(FAST, 12, 492, 5.0, 3400.0, 120.0),
        ),
        memory=(
            *(Peak(PEOPLE, n, 4 * n - 3, n * 2**24, n * 2**23) for n in (9, 169)),
            *(Peak(EXACT, n, 4 * n - 3, None if n == 169 else 2**26, None) for n in (9, 169)),
        ),
        sizes=tuple(Timing(PEOPLE, "raw", one, 3, 9, took) for one in ((256, 448), size)),
    )


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Every row is printed with its figures, also those without."""
    show(some())
    printed = capsys.readouterr().out
    for said in (
        ALONE,
        EAGER,
        FAST,
        "0.500 s",
        "18.0",
        "no memory",
        "144 MiB",
        "480x832",
        "[a note]",
        "streamvae, fast: fused kernels",
        "91.85",
        "0.200",
        "idle: 120 W",
        "6.91",
        "690",
    ):
        assert said in printed
    assert "\x1b" not in printed


def test_the_plots(tmp_path: Path) -> None:
    """A picture for each part that was measured, with everything in it that has a figure."""
    pytest.importorskip("matplotlib")
    from PIL import Image

    paths = draw(some(), tmp_path / "new")
    assert [path.name for path in paths] == [
        f"{part}.png" for part in ("paths", "chunks", "energy", "memory", "sizes")
    ]
    for path in paths:
        with Image.open(path) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    some_only = replace(some(), chunks=(), energy=(), memory=(), sizes=())
    assert [path.name for path in draw(some_only, tmp_path)] == ["paths.png"]
