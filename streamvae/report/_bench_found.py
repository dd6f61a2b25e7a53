"""What ``streamvae bench`` measures, and what it has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, get_args

import torch

from ._bench_chunks import ChunkTime
from ._bench_energy import Energy
from ._bench_loops import Into
from ._bench_memory import Peak
from ._bench_samples import Samples

Part = Literal["paths", "chunks", "energy", "memory", "sizes"]
PARTS: tuple[Part, ...] = get_args(Part)

#: Height and width.
Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured.

    Attributes:
        source: None for the embedded VAE, `RANDOM_WAN`, or a folder or hub id.
        device: Where to decode.
        dtype: Of the weights; None for the source's usual one.
        parts: Which of the five.
        rounds: Samples of every time.
        size: Of the pictures of ``paths``, ``chunks`` and ``energy``.
        latents: Of the clip of ``paths`` and ``energy``.
        chunk_latents: Of the clip of ``chunks``: more than two.
        energy_seconds: How long at least each way decodes in ``energy``.
        length_size: Of the pictures of ``memory``.
        lengths: Latents of the clips of ``memory``, ascending.
        sizes: Of the pictures of ``sizes``, ascending.
        size_latents: Of each clip of ``sizes``.
    """

    source: str | None
    device: torch.device
    dtype: torch.dtype | None = None
    parts: tuple[Part, ...] = PARTS
    rounds: int = 5
    size: Size = (128, 224)
    latents: int = 3
    chunk_latents: int = 6
    energy_seconds: float = 5.0
    length_size: Size = (64, 112)
    lengths: tuple[int, ...] = (9, 41, 169)
    sizes: tuple[Size, ...] = ((64, 112), (128, 224), (192, 336))
    size_latents: int = 2

    @classmethod
    def usual(cls, source: str | None, device: torch.device, *, quick: bool = False) -> Settings:
        """What takes about a minute on two cores, some three on an H200 with `RANDOM_WAN`.

        Args:
            source: See there.
            device: See there.
            quick: As little as shows that everything runs; figures that mean nothing.
        """
        small = cls(source, device)
        if quick:
            tiny: Size = (32, 48)
            return replace(
                small,
                rounds=1,
                size=tiny,
                latents=3,
                chunk_latents=3,
                energy_seconds=0.1,
                length_size=tiny,
                lengths=(3, 6),
                sizes=(tiny, (64, 96)),
            )
        if device.type == "cpu":
            return small
        return replace(
            small,
            size=(480, 832),
            latents=11,
            length_size=(256, 448),
            lengths=(9, 21, 41, 81, 169),
            sizes=((256, 448), (480, 832), (720, 1280), (1080, 1920)),
            size_latents=3,
        )


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one way takes for one clip.

    Attributes:
        way: The way.
        into: Where frames go.
        size: Height and width of the pictures.
        latents: Of the clip.
        frames: Of the clip.
        seconds: Of the whole clip; None where the device had not enough memory.
    """

    way: str
    into: Into
    size: Size
    latents: int
    frames: int
    seconds: Samples | None


@dataclass
class Benchmark:
    """What was measured, part by part.

    Attributes:
        facts: Versions, machine, command, date, clocks, and what was decoded.
        notes: What is to be known of the rows, or of those that are not there.
        paths: Every way into nothing, a raw file and MP4; empty while not measured.
        chunks: First and steady chunks on the device alone, by every step.
        energy: What a card takes, by every way into nothing; empty where nothing counts that.
        memory: Over length.
        sizes: Some ways into a raw file, over sizes.
    """

    facts: dict[str, object]
    notes: list[str] = field(default_factory=list)
    paths: tuple[Timing, ...] = ()
    chunks: tuple[ChunkTime, ...] = ()
    energy: tuple[Energy, ...] = ()
    memory: tuple[Peak, ...] = ()
    sizes: tuple[Timing, ...] = ()

    def as_json(self) -> dict[str, object]:
        """All of it, as it is written down."""
        return {
            **self.facts,
            "notes": self.notes,
            "paths": [_json(row) for row in self.paths],
            "chunks": [row.as_json() for row in self.chunks],
            "energy": [row.as_json() for row in self.energy],
            "memory": [asdict(row) for row in self.memory],
            "sizes": [_json(row) for row in self.sizes],
        }


def named(size: Size) -> str:
    """A size for people: height, then width."""
    return f"{size[0]}x{size[1]}"


def _json(row: Timing) -> Mapping[str, object]:
    seconds = None if row.seconds is None else row.seconds.as_json()
    return {**asdict(row), "size": named(row.size), "seconds": seconds}
