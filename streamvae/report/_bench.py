"""``streamvae bench``: ways of decoding a clip, side by side in one run."""

from __future__ import annotations

import asyncio
import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from .._errors import UsageError
from .._options import Mode
from .._pixels import render
from .._warmup import warmup
from ..codecs import codec_for
from ..fast import release
from ._bench_chunks import chunk_times, step_names
from ._bench_clip import Clip, autoencoder, latents, pictures
from ._bench_energy import consumed, counter_of, idle_watts
from ._bench_found import Benchmark, Settings, Size, Timing, named
from ._bench_loops import (
    ALONE,
    EAGER,
    EXACT,
    FAST,
    FASTVAE,
    LOOP,
    PEOPLE,
    Into,
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
from ._bench_machine import card_names, clocks, facts, filesystem
from ._bench_memory import peaks
from ._bench_samples import alternate
from ._steps import kind_of

#: Called with what is being measured, how many runs of it are done, and how many it has.
Report = Callable[[str, int, int], None]


def bench(
    settings: Settings,
    *,
    scratch: Path | None = None,
    progress: Report = lambda _what, _done, _total: None,
    part_done: Callable[[Benchmark], None] = lambda _: None,
) -> Benchmark:
    """Measure.

    Args:
        settings: What.
        scratch: Where files are written meanwhile, and deleted; by default where the system says.
        progress: Told after every run.
        part_done: Given what there is after each part.

    Raises:
        UsageError: The source is not one of video.
        UnknownSourceError: There is no such source.
    """
    if settings.rounds < 1 or min(settings.latents, settings.size_latents, *settings.lengths) < 1:
        raise UsageError("expected at least one round of at least one latent, got less")
    vae = autoencoder(settings.source, settings.device, settings.dtype)
    codec = codec_for(vae)
    found = Benchmark(facts(settings.device))
    found.facts |= {
        "what": "streamvae bench",
        "source": settings.source or "embedded",
        "family": codec.family,
        "dtype": str(codec.dtype).removeprefix("torch."),
        "rounds": settings.rounds,
        "clocks before": clocks(settings.device),
    }
    with tempfile.TemporaryDirectory(dir=scratch) as folder, asyncio.Runner() as runner:
        found.facts["filesystem"] = filesystem(Path(folder))
        run = _Run(settings, vae, Path(folder), runner, found, progress)
        for part in settings.parts:
            getattr(run, part)()
            found.facts[f"clocks after {part}"] = clocks(settings.device)
            part_done(found)
    return found


@dataclass(frozen=True, slots=True)
class _Run:
    """One run.

    Attributes:
        _steps: By mode, how its first stream decoded chunks.
    """

    settings: Settings
    vae: torch.nn.Module
    scratch: Path
    runner: asyncio.Runner
    found: Benchmark
    progress: Report
    _steps: dict[str, str] = field(default_factory=dict)

    def paths(self) -> None:
        """Every way, into everything."""
        into = [target for target in get_args(Into) if target != "mp4" or find_spec("av")]
        if "mp4" not in into:
            self.found.notes.append(
                "no MP4: PyAV is not installed (pip install 'streamvae[video]')"
            )
        clip = self._clip(self.settings.size, self.settings.latents, real="mp4" in into)
        ways = self._ways(clip, every=True)
        rows = [(ALONE, into[0]), *((way, target) for target in into for way in ways)]
        ways[ALONE] = lambda _: on_launch_thread(clip, functools.partial(device_alone, graphs=True))
        self.found.paths = self._timed("paths", clip, ways, rows)
        self.found.facts["frames equal vae.decode's, byte for byte"] = _equal(clip)

    def chunks(self) -> None:
        """First and steady chunks, by every step, on the device alone."""
        clip = self._clip(self.settings.size, self.settings.chunk_latents, real=False)
        rounds, done = self.settings.rounds, 0
        total = (rounds + 1) * len(step_names(clip))

        def tick() -> None:
            nonlocal done
            done += 1
            self.progress("chunks", done, total)

        self.found.chunks = clip.backend.run(lambda: chunk_times(clip, rounds, tick)).result()

    def energy(self) -> None:
        """Joules a frame, by every way into nothing, one after another."""
        said = self.settings
        on_card = said.device.type == "cuda"
        counter = counter_of(card_names(said.device)) if on_card else "the device is no NVIDIA card"
        if isinstance(counter, str):
            self._note(f"no joules a frame: {counter}")
            return
        clip = self._clip(said.size, said.latents, real=False)
        self.found.facts["energy's pictures"] = named(said.size)
        ways = self._ways(clip, every=True)
        self.progress("energy", 0, 1 + len(ways))
        # Ways that have run already keep nothing on the device busy.
        idle = idle_watts(counter, min(2.0, said.energy_seconds))
        frames = clip.codec.frames(clip.steps) or 0
        for done, (way, call) in enumerate(ways.items(), 1):
            if self._fits(way, call, lambda: None):
                run = functools.partial(call, "nothing")
                row = consumed(
                    way, run, counter, frames=frames, idle=idle, seconds=said.energy_seconds
                )
                self.found.energy += (row,)
            self.progress("energy", 1 + done, 1 + len(ways))

    def memory(self) -> None:
        """Over length."""
        said = self.settings
        self.progress("memory", 0, 1)
        if not self._steps:
            self._find_steps(self._clip(said.length_size, said.lengths[0], real=False))
        ways = (PEOPLE, EXACT, FAST) if self._has_fast else (PEOPLE, EXACT)
        release()
        if said.device.type == "cuda":
            torch.cuda.empty_cache()
        self.found.memory = peaks(
            said.source, said.device, said.dtype, said.length_size, said.lengths, ways=ways
        )
        self.found.facts["memory's pictures"] = named(said.length_size)
        self.progress("memory", 1, 1)

    def sizes(self) -> None:
        """Over the size of the pictures, into a raw file."""
        rows: list[Timing] = []
        for size in self.settings.sizes:
            clip = self._clip(size, self.settings.size_latents, real=False)
            ways = self._ways(clip, every=False)
            rows += self._timed(named(size), clip, ways, [(way, "raw") for way in ways])
            self.found.sizes = tuple(rows)

    def _clip(self, size: Size, steps: int, *, real: bool) -> Clip:
        codec = codec_for(self.vae)
        z = latents(codec, size, steps)
        clip = Clip(self.vae, z, self.scratch, self.runner)
        release()  # graphs of another size
        self.runner.run(warmup(self.vae, tuple(z.shape)))
        height, width = codec.picture(tuple(z.shape)) or size
        if real:
            clip.real = pictures(codec.frames(steps) or 0, height, width, device=codec.device)
            _ = clip.planes  # made now, not while something is timed
        return clip

    def _ways(self, clip: Clip, *, every: bool) -> dict[str, Callable[[Into], float]]:
        """Those that are different from one another here; every one, or the main ones."""
        ways: dict[str, Callable[[Into], float]] = {
            PEOPLE: lambda into: on_launch_thread(clip, lambda this: people(this, into)),
            LOOP: lambda into: on_launch_thread(clip, lambda this: synchronous(this, into)),
        }
        decode = fastvae_of(clip, self.settings.device) if every else None
        if decode is None and every:
            self._note("no fastvae: not installed, or not made for this autoencoder and device")
        if decode is not None:
            ways[FASTVAE] = lambda into: on_launch_thread(
                clip, lambda this: fastvae(this, into, decode)
            )
        ways[EXACT] = lambda into: self._streamed(clip, into, "exact")
        if not self._steps:
            self._find_steps(clip)
        if every and kind_of(self._steps["exact"]) == "graph":
            ways[EAGER] = lambda into: _eagerly(clip, into)
        if self._has_fast:
            ways[FAST] = lambda into: self._streamed(clip, into, "fast")
        else:
            self._note(f"no fast mode apart from the exact one here: {self._steps['fast']}")
        return ways

    @property
    def _has_fast(self) -> bool:
        """Whether fast mode decodes by another step than exact mode, once steps are known."""
        return kind_of(self._steps["fast"]) != kind_of(self._steps["exact"])

    def _find_steps(self, clip: Clip) -> None:
        for mode in get_args(Mode):
            self._streamed(clip, "nothing", mode)
        self.found.facts["steps"] = dict(self._steps)

    def _streamed(self, clip: Clip, into: Into, mode: Mode) -> float:
        """One stream; how it decoded its chunks is what it says at its end."""

        async def run() -> None:
            step = (await stream(clip, into, mode)).step
            if kind_of(step) != kind_of(self._steps.setdefault(mode, step)):
                self._note(f"{mode} mode was {step} with latents {tuple(clip.z.shape)}")

        return streamed(clip, run)

    def _note(self, said: str) -> None:
        if said not in self.found.notes:
            self.found.notes.append(said)

    def _timed(
        self,
        label: str,
        clip: Clip,
        ways: Mapping[str, Callable[[Into], float]],
        rows: list[tuple[str, Into]],
    ) -> tuple[Timing, ...]:
        """Each way once, unmeasured; then those that had memory enough, in turns."""
        total = len(ways) + self.settings.rounds * len(rows)
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            self.progress(label, done, total)

        fits = {way for way, call in ways.items() if self._fits(way, call, tick)}
        variants = {
            f"{way} {into}": functools.partial(ways[way], into) for way, into in rows if way in fits
        }
        samples = alternate(variants, self.settings.rounds, warm=False, done=tick)
        frames = clip.codec.frames(clip.steps) or 0
        size = clip.codec.picture(tuple(clip.z.shape)) or self.settings.size
        return tuple(
            Timing(way, into, size, clip.steps, frames, samples.get(f"{way} {into}"))
            for way, into in rows
        )

    def _fits(self, way: str, call: Callable[[Into], float], tick: Callable[[], None]) -> bool:
        try:
            call("nothing")
        except torch.OutOfMemoryError:
            self._note(f"{way}: not enough memory on the device")
            torch.cuda.empty_cache()
            return False
        finally:
            tick()
        return True


def _eagerly(clip: Clip, into: Into) -> float:
    with eager():
        return streamed(clip, lambda: stream(clip, into))


def _equal(clip: Clip) -> bool:
    """Whether a raw file holds, byte for byte, what decoding at once and the PIL rule give."""
    streamed(clip, lambda: stream(clip, "raw"))
    with torch.no_grad():
        whole = render(clip.whole(clip.z), "video", "uint8").cpu().numpy()
    written = np.fromfile(clip.scratch / "out.raw", np.uint8)
    return bool(np.array_equal(written, whole.reshape(-1)))
