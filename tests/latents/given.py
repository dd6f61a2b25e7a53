"""What tests of latents share: latents, marks that remember, and cutting to the end."""

import threading
from collections.abc import Iterable

import torch

from streamvae._chunks import LatentChunk
from streamvae._events import Event, Happened
from streamvae.abc import ChunkPlan
from streamvae.latents import LatentsLike, cut, open_latents
from tests.latents.codec import Rules

STEADY = ChunkPlan(first=1, rest=2)


def latents(steps: int = 6, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Seeded video latents (2, 4, steps, 3, 5)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, steps, 3, 5, generator=generator).to(dtype)


def no_mark(tensor: torch.Tensor) -> Event | None:
    """What the CPU backend's mark does."""
    return None


class Marks:
    """Marks each tensor with an event, and remembers the thread it was called on."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.threads: list[threading.Thread] = []

    def __call__(self, tensor: torch.Tensor) -> Event | None:
        self.events.append(Happened())
        self.threads.append(threading.current_thread())
        return self.events[-1]


async def chunks_of(
    given: LatentsLike, plan: ChunkPlan = STEADY, rules: Rules | None = None
) -> list[LatentChunk]:
    """Open, cut to the end and close."""
    source = open_latents(given, no_mark)
    try:
        return [chunk async for chunk in cut(source, plan, rules or Rules())]
    finally:
        await source.aclose()


def joined(chunks: Iterable[LatentChunk], axis: int = 2) -> torch.Tensor:
    """All latents of all chunks."""
    return torch.cat([piece for chunk in chunks for piece in chunk.pieces], axis)


def sizes(chunks: Iterable[LatentChunk], axis: int = 2) -> list[int]:
    """How many latents each chunk holds."""
    return [sum(piece.shape[axis] for piece in chunk.pieces) for chunk in chunks]


def reader_threads() -> set[threading.Thread]:
    """The threads that read latents now."""
    return {thread for thread in threading.enumerate() if thread.name == "streamvae-latents"}
