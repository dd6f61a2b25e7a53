"""A decoder of one's own: not diffusers', frames before channels, memory carried between frames."""

import asyncio

import torch
from torch import nn
from torch.nn import functional

from streamvae import stream_decode
from streamvae.abc import ChunkPlan
from streamvae.codecs import WalkingCodec


class Remember(nn.Module):
    """Sees each frame beside the one before it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, channels, 3, padding=1)

    def forward(self, frames: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        """Both (N, T, C, H, W); ``before`` is what came one frame earlier."""
        both = torch.cat([frames, before], 2)
        return frames + self.mix(both.flatten(0, 1)).relu().view_as(frames)


class Grow(nn.Module):
    """Makes two frames of each, twice as high and wide."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.split = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """(N, T, C, H, W) to (N, 2T, C, 2H, 2W)."""
        batch, length, channels, height, width = frames.shape
        twice = self.split(frames.flatten(0, 1)).reshape(-1, channels, height, width)
        larger = functional.interpolate(twice, scale_factor=2)
        return larger.view(batch, 2 * length, channels, 2 * height, 2 * width)


class TinyDecoder(nn.Module):
    """Stands in for a decoder like TAEHV: latents (N, T, 8, h, w) to pictures in [0, 1]."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.into = nn.Conv2d(8, channels, 1)
        self.remember = nn.ModuleList(Remember(channels) for _ in range(3))
        self.grow = nn.ModuleList(Grow(channels) for _ in range(2))
        self.out = nn.Conv2d(channels, 3, 1)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """All at once: (N, T, 8, h, w) to (N, 4(T-1)+1, 3, 4h, 4w). Three frames are too early."""
        return self.step(latents, {})[:, 3:]

    def step(self, latents: torch.Tensor, memory: dict[int, torch.Tensor]) -> torch.Tensor:
        """The next latents' frames, four of each; ``memory`` has each layer's last frame."""
        frames = self.into(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])
        for place, remember in enumerate(self.remember):
            last = memory.get(place, torch.zeros_like(frames[:, :1]))
            before = torch.cat([last, frames[:, :-1]], 1)
            # A copy: a view would keep all of these frames alive until the next chunk.
            memory[place] = frames[:, -1:].clone()
            frames = remember(frames, before)
            if place < len(self.grow):
                frames = self.grow[place](frames)
        pictures = self.out(frames.flatten(0, 1)).sigmoid()
        return pictures.unflatten(0, frames.shape[:2])


class TinyWalk:
    """One stream on its way: all that it remembers is here, and nothing on the decoder."""

    def __init__(self, decoder: TinyDecoder) -> None:
        self.decoder = decoder
        self.memory: dict[int, torch.Tensor] = {}

    def push(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode the next latents, (B, C, t, h, w), to frames (B, 3, T, H, W)."""
        first = not self.memory
        frames = self.decoder.step(latents.movedim(2, 1), self.memory)
        return frames[:, 3:].movedim(1, 2) if first else frames.movedim(1, 2)

    def drain(self) -> None:
        """Nothing is held back."""

    def clear(self) -> None:
        """Forget everything."""
        self.memory.clear()


class TinyCodec(WalkingCodec):
    """What streamvae has to know of the family."""

    exactness = "equal to TinyDecoder.decode within rounding (about 1e-7 in float32)"
    channels = 8

    def walk(self) -> TinyWalk:
        """A new stream from the first latent on."""
        return TinyWalk(self.module)

    def cut(self, latents: int | None, latents_per_chunk: int | None, mode: str) -> ChunkPlan:  # noqa: ARG002
        """One latent at a time unless told otherwise: any cut gives the same frames."""
        return ChunkPlan(latents_per_chunk or 1, latents_per_chunk or 1)

    def frames(self, latents: int) -> int:
        """How many frames so many latents give, checked at the end of every stream."""
        return 4 * (latents - 1) + 1

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width, checked as well."""
        return 4 * shape[3], 4 * shape[4]

    def epilogue(self, frames: torch.Tensor, *, tiled: bool) -> torch.Tensor:  # noqa: ARG002
        """From [0, 1] to the range that all decoders here have, [-1, 1]."""
        return 2 * frames - 1

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """For ``normalized=True``; this decoder takes the diffusion model's latents as they are."""
        return latents


async def main() -> None:
    """Stream it, one latent at a time and five, and compare with decoding all at once."""
    torch.manual_seed(0)
    decoder = TinyDecoder().eval().requires_grad_(requires_grad=False)
    codec = TinyCodec(decoder)
    latents = torch.randn(1, 12, 8, 30, 52)  # frames first, as the decoder wants them
    given = latents.movedim(1, 2)  # channels first, as streams want them
    whole = 2 * decoder.decode(latents).movedim(2, -1) - 1

    plan = codec.plan(tuple(given.shape))
    print(plan)
    assert plan.state_bytes == 4 * 16 * 30 * 52 * (1 + 4 + 16)  # three layers' last frames

    for count in (1, 5):
        stream = stream_decode(given, codec, output="float32", latents_per_chunk=count)
        streamed = torch.as_tensor(await stream.collect())
        assert streamed.shape == whole.shape == (1, 45, 120, 208, 3)
        difference = float((streamed - whole).abs().max())
        print(f"{count} at a time: at most {difference:.1e} away from all at once")
        assert difference <= 1e-6


asyncio.run(main())
