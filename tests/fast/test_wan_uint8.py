"""Levels straight from the head of the fused step: those of its frames, rendered."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from streamvae import NonFiniteError, collect
from streamvae._pixels import quantise, yuv420p
from streamvae._recipe import Recipe
from tests import tiny
from tests.codecs.walk import noise
from tests.fast.wan import over


@pytest.mark.parametrize("make", [tiny.wan21, tiny.wan22, tiny.qwen_image])
@pytest.mark.parametrize("batch", [1, 2])
def test_uint8(make: Callable[[], nn.Module], batch: int) -> None:
    """Levels straight from the head are those of the frames that it gives otherwise."""
    vae = make()
    vae.decoder.conv_out.weight.data.mul_(4)  # some are to be clamped
    for dtype in (torch.float32, torch.bfloat16):
        vae.to(dtype)
        latents = noise(batch, vae.config.z_dim, 3, 3, 2).to(dtype)
        levels, frames = (
            torch.as_tensor(collect(latents, over(vae), output=output, mode="fast"))
            for output in ("uint8", "float32")
        )
        assert torch.equal(levels, quantise(frames.to(dtype)))
        assert bool((levels == 255).any())


def test_uint8_of_tiles_and_transforms() -> None:
    """Where tiles are blended, or somebody looks at the pixels, these are rendered."""
    vae = tiny.wan21()
    latents = noise(1, 4, 3, 5, 7)

    def halve(pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.is_floating_point()
        return pixels / 2

    frames = torch.as_tensor(collect(latents, over(vae), output="float32", mode="fast"))
    levels = collect(latents, over(vae), mode="fast", transform=halve)
    assert torch.equal(torch.as_tensor(levels), quantise(frames / 2))
    vae.enable_tiling(32, 32, 24, 24)
    frames = torch.as_tensor(collect(latents, over(vae), output="float32", mode="fast"))
    levels = collect(latents, over(vae), mode="fast")
    assert torch.equal(torch.as_tensor(levels), quantise(frames))


@pytest.mark.parametrize("sliced", [False, True])
def test_uint8_of_no_numbers(*, sliced: bool) -> None:
    """NaN, which no level shows, ends the stream as it does in other steps; in any clip."""
    vae = tiny.wan21()
    vae.use_slicing = sliced
    vae.decoder.conv_out.bias.data[1] = float("nan")
    with pytest.raises(NonFiniteError):
        collect(noise(2, 4, 2, 3, 2), over(vae), mode="fast")


def test_planes() -> None:
    """Planes of 4:2:0 are those of the levels."""
    vae = tiny.wan21()
    latents = noise(1, 4, 1, 3, 2)
    codec = over(vae)
    recipe = Recipe(codec, codec.uint8_decoder(), "uint8", mode="fast", planes=True)
    with torch.no_grad():
        rendered = recipe.decode((latents,))
    assert rendered is not None
    levels = torch.as_tensor(collect(latents, over(vae), mode="fast"))
    assert torch.equal(rendered.pixels.squeeze(-1), yuv420p(levels))
    assert rendered.picture == (24, 16)
