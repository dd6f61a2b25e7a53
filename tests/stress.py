"""A device under everything at once: streams, cancels, warm-ups, moving weights, and a denoiser.

Whatever happens, the frames are those of ``vae.decode``. Runs over the fake device
(``tests/test_stress.py``, and ``python -m tests.stress`` for many seeds) and over a card
(``tests/device/test_stress.py``).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from torch import nn

from streamvae import UsageError, release, stream_decode, warmup
from streamvae._chunks import Array
from streamvae._pixels import render
from streamvae.abc import Backend
from streamvae.codecs import codec_for
from streamvae.testing import FakeBackend, FakeGraphs
from tests import tiny
from tests.families import partition

#: Families whose frames are those of ``vae.decode`` bit for bit on any device.
FAMILIES = (tiny.wan21, tiny.qwen_image, partition.cogvideox, tiny.wan22)
#: Heights and widths of latents, and how many there are of them.
SIZES, STEPS = ((2, 2), (3, 2)), (1, 3, 4, 7)
#: Streams at once.
STREAMS = 8


class Denoiser:
    """A model on a thread of its own that uses the device all the time, unless it is paused.

    Args:
        use: Uses the device.
    """

    def __init__(self, use: Callable[[], None]) -> None:
        self._use = use
        self._going = threading.Event()
        self._turn = threading.Lock()
        self._over = False
        self.uses = 0
        self.errors: list[Exception] = []
        self._thread = threading.Thread(target=self._run, name="denoiser")

    def __enter__(self) -> Self:
        self._going.set()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._going.set()
        self._thread.join()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is used inside."""
        self._going.clear()
        with self._turn:
            yield
        self._going.set()

    def _run(self) -> None:
        while not self._over:
            self._going.wait()
            with self._turn:
                try:
                    self._use()
                    self.uses += 1
                except Exception as error:  # noqa: BLE001  # whatever it is, it is to be seen
                    self.errors.append(error)
            time.sleep(0)  # let go of the interpreter: a pause must get its turn


@dataclass
class Clips:
    """Latents and what ``vae.decode`` makes of them, each made once."""

    modules: tuple[nn.Module, ...]
    known: dict[tuple[int, tuple[int, int], int], tuple[torch.Tensor, Array]] = field(
        default_factory=dict
    )

    def get(self, which: int, size: tuple[int, int], steps: int) -> tuple[torch.Tensor, Array]:
        """Latents (1, C, steps, h, w) for a module, and its frames."""
        key = (which, size, steps)
        if key not in self.known:
            vae = self.modules[which]
            generator = torch.Generator().manual_seed(hash(key) & 0xFFFF)
            shape = (1, codec_for(vae).channels, steps, *size)
            weight = next(vae.parameters())
            z = torch.randn(shape, generator=generator).to(weight.device, weight.dtype)
            with torch.no_grad():
                pixels = render(vae.decode(z, return_dict=False)[0], "video", "uint8")
            self.known[key] = z, pixels.cpu().numpy()
        return self.known[key]


class Stress:
    """One run.

    Args:
        seed: Of all that is chosen.
        clips: What is decoded.
        backend: The device's; None for the real one.
        denoiser: Who else uses it.
        disturb: Called now and then while streams run.
        move: Moves weights away and back.
    """

    def __init__(
        self,
        seed: int,
        clips: Clips,
        backend: Backend | None,
        denoiser: Denoiser,
        disturb: Callable[[], object] = lambda: None,
        move: Callable[[nn.Module], object] = lambda vae: vae.double().float(),
    ) -> None:
        self.dice = random.Random(seed)
        self.clips, self.backend, self.denoiser = clips, backend, denoiser
        self.disturb, self.move = disturb, move
        self.steps: Counter[str] = Counter()
        self.unequal: list[object] = []
        self.running: set[asyncio.Task[None]] = set()

    async def run(self, goes_on: Callable[[int], bool]) -> None:
        """Begin streams, and disturb them, as long as ``goes_on(turn)``."""
        turn = 0
        while goes_on(turn):
            turn += 1
            if self.dice.random() < 0.12:
                await self.record()
            if self.dice.random() < 0.08:
                await self.move_weights()
            if self.dice.random() < 0.1:
                self.disturb()
            while len(self.running) >= STREAMS:
                await asyncio.wait(self.running, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.sleep(0)  # their callbacks
            task = asyncio.create_task(self.stream())
            self.running.add(task)
            task.add_done_callback(self.running.discard)
            if self.dice.random() < 0.3:
                self.dice.choice(sorted(self.running, key=id)).cancel()
            await asyncio.sleep(0)
        await self.settled()

    async def settled(self) -> None:
        """All streams are over."""
        over = tuple(self.running)
        await asyncio.gather(*over, return_exceptions=True)
        self.running.difference_update(over)  # their callbacks may not have run yet

    def choose(self) -> tuple[int, tuple[int, int]]:
        """A module and a size."""
        return self.dice.randrange(len(self.clips.modules)), self.dice.choice(SIZES)

    async def stream(self) -> None:
        """One stream, by one of the ways in which latents come."""
        which, size = self.choose()
        steps, way = self.dice.choice(STEPS), self.dice.randrange(3)
        z, expected = self.clips.get(which, size, steps)
        given: object = (z, z.cpu(), (z[:, :, n : n + 1] * 1 for n in range(steps)))[way]
        opened = stream_decode(given, self.clips.modules[which], backend=self.backend)
        async with opened:
            frames = await opened.collect()
            self.steps[opened.info.step.partition(" (")[0]] += 1
        if not np.array_equal(frames, expected):
            self.unequal.append((which, size, steps, way, opened.info.step))

    async def record(self) -> None:
        """Everything pauses, and graphs are recorded; while streams run that is refused."""
        which, size = self.choose()
        vae = self.clips.modules[which]
        shape = (1, codec_for(vae).channels, 16, *size)
        if any(not task.done() for task in self.running):
            with contextlib.suppress(UsageError), self.denoiser.paused():
                await warmup(vae, shape, backend=self.backend)  # they may have ended by then
        await self.settled()
        if self.dice.random() < 0.2:
            release()
        with self.denoiser.paused():
            info = await warmup(vae, shape, streams=self.dice.randint(1, 3), backend=self.backend)
        assert info.step == "graph", info.step
        self.steps["warmup"] += 1

    async def move_weights(self) -> None:
        """Weights go and come back, to other places perhaps."""
        await self.settled()
        self.move(self.clips.modules[self.dice.randrange(len(self.clips.modules))])

    def check(self) -> None:
        """Nothing went wrong, and graphs were really used."""
        assert not self.unequal, self.unequal
        assert not self.denoiser.errors, self.denoiser.errors


async def fake(seed: int, clips: Clips, turns: int = 20) -> Stress:
    """One run over a fake device."""
    graphs = FakeGraphs()
    with Denoiser(graphs.use) as denoiser:
        stress = Stress(seed, clips, FakeBackend(graphs=graphs, upload=0.0), denoiser)
        await stress.run(lambda turn: turn < turns)
    stress.check()
    return stress


def main() -> None:
    """Run many seeds over the fake device, and count what happened."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    said = parser.parse_args()
    torch.set_num_threads(1)
    clips = Clips(tuple(make() for make in FAMILIES))
    steps: Counter[str] = Counter()
    for seed in range(said.first, said.first + said.seeds):
        try:
            steps += asyncio.run(fake(seed, clips)).steps
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        release()
    sys.stdout.write(f"{said.seeds} seeds: {dict(steps)}\n")


if __name__ == "__main__":
    main()
