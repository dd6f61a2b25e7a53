"""Walking a codec by hand, the way the decode stage does on the launch thread."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from streamvae.abc import Codec, Decoder


def pieces(
    codec: Codec, latents: torch.Tensor, count: int | None = None, mode: str = "exact"
) -> Iterator[torch.Tensor]:
    """Cut latents by the codec's plan; each piece is memory of its own."""
    start, end = 0, latents.shape[codec.axis]
    for size in codec.cut(end, count, mode).sizes():
        stop = min(start + size, end)
        yield latents.narrow(codec.axis, start, stop - start).clone()
        if stop == end:
            return
        start = stop


def begun(codec: Codec, latents: torch.Tensor) -> Decoder:
    """A new stream that has seen what it is to see beforehand."""
    decoder = codec.decoder()
    if codec.wants_all:
        decoder.begin(latents)
    return decoder


def finish(codec: Codec, decoder: Decoder, latents: int) -> list[torch.Tensor]:
    """Drain and close."""
    drained = [decoder.drain() for _ in range(codec.drains(latents))]
    decoder.close()
    return [part for part in drained if part is not None]


@torch.no_grad()
def walk(
    codec: Codec, latents: torch.Tensor, count: int | None = None, mode: str = "exact"
) -> torch.Tensor:
    """Decode chunk by chunk and join what came."""
    decoder = begun(codec, latents)
    parts = [decoder.decode(piece) for piece in pieces(codec, latents, count, mode)]
    given = [part for part in parts if part is not None]
    given += finish(codec, decoder, latents.shape[codec.axis])
    return torch.cat(given, 0 if codec.kind == "image" else 2)


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Seeded latents."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@torch.no_grad()
def whole(vae: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """What ``vae.decode`` gives."""
    return vae.decode(latents, return_dict=False)[0]
