"""Everything at once on a card, for a minute: streams, cancels, warm-ups, a model that draws."""

import time

import pytest
import torch
from torch import nn

from streamvae import release
from tests import stress

from . import card

pytestmark = [pytest.mark.cuda, pytest.mark.timeout(300)]

#: Seconds.
LONG = 60


class Model:
    """What a denoiser does: draws, multiplies, and waits for the whole device."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream(card.DEVICE)
        self._weights = torch.randn(256, 256, device=card.DEVICE)
        torch.cuda.synchronize()

    def __call__(self) -> None:
        with torch.cuda.stream(self._stream):
            torch.randn(256, 256, device=card.DEVICE) @ self._weights
        torch.cuda.synchronize()


def there_and_back(vae: nn.Module) -> None:
    """Weights go to the host, and come back."""
    vae.to("cpu")
    torch.cuda.synchronize()
    vae.to(card.DEVICE)
    torch.cuda.synchronize()


async def test_everything_at_once() -> None:
    """Every frame is right, nobody meets an error, graphs are used, and memory stays flat."""
    release()
    made = tuple(make().to(card.DEVICE, torch.bfloat16) for make in stress.FAMILIES)
    clips = stress.Clips(made)
    for which in range(len(made)):
        for size in stress.SIZES:
            for steps in stress.STEPS:
                clips.get(which, size, steps)
    torch.cuda.synchronize()
    with stress.Denoiser(Model()) as denoiser:
        run = stress.Stress(
            0, clips, None, denoiser, disturb=torch.cuda.empty_cache, move=there_and_back
        )
        reserved = []
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            until = time.monotonic() + LONG / 6
            await run.run(lambda _, until=until: time.monotonic() < until)
            release()
            torch.cuda.empty_cache()
            reserved.append(torch.cuda.memory_reserved())
    run.check()
    assert run.steps["graph"] > 20, run.steps
    assert run.steps["warmup"] > 20, run.steps
    assert denoiser.uses > 100
    # Weights may come back to other places; blocks that are whole are given back.
    assert reserved[-1] <= reserved[1] + (8 << 20), reserved
