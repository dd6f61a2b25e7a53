"""A service and a preview on a card: turns, exactness, memory, and whose turn comes first."""

import asyncio
import time

import pytest
import torch
from diffusers import AutoencoderKLWan

from streamvae import LatentsError, stream_decode
from streamvae.codecs import codec_for
from streamvae.live import Service, preview
from streamvae.live._admission import Need
from tests.latents.image_pipelines import unets
from tests.latents.pipelines.case import bare

from . import card

pytestmark = pytest.mark.cuda

STREAMS = 8


async def _collected(service: Service, z: torch.Tensor) -> object:
    async with service.stream(z) as stream:
        return await stream.collect()


async def test_eight_streams_are_each_as_if_alone(vae: AutoencoderKLWan) -> None:
    """Eight requests at once give the bits that ``vae.decode`` gives each; then again."""
    given = [card.latents(vae, 3 + seed, seed=seed) for seed in range(STREAMS)]
    expected = [card.whole(vae, z) for z in given]
    async with Service(vae, max_streams=STREAMS, warmup=tuple(given[-1].shape)) as service:
        for _ in range(2):
            together = await asyncio.gather(*(_collected(service, z) for z in given))
            assert all(card.equal(*pair) for pair in zip(together, expected, strict=True))


async def test_first_frames_come_in_turn(real: AutoencoderKLWan) -> None:
    """The k-th of eight streams has its first frame within 2k times the time that one needs."""
    clips = [card.latents(real, 6, 60, 104, seed=seed) for seed in range(STREAMS)]

    async def first(z: torch.Tensor) -> float:
        began = time.perf_counter()
        seconds = 0.0
        async with service.stream(z) as stream:
            async for chunk in stream.chunks():
                seconds = seconds or time.perf_counter() - began
                del chunk
        return seconds

    async with Service(real, max_streams=STREAMS, warmup=tuple(clips[0].shape)) as service:
        await asyncio.gather(*map(first, clips))
        alone = await first(clips[0])
        arrived = sorted(await asyncio.gather(*map(first, clips)))

    assert all(seconds <= 2 * k * alone for k, seconds in enumerate(arrived, 1)), (alone, arrived)


async def test_admission_by_memory(real: AutoencoderKLWan) -> None:
    """Four streams whose plans fill the memory run together; one that cannot fit is refused."""
    clips = [card.latents(real, 5, 30, 52, seed=seed) for seed in range(4)]
    need = Need.of(codec_for(real).plan(tuple(clips[0].shape)))
    assert need is not None
    budget = 4 * need.kept + need.working
    async with Service(real, max_streams=STREAMS, memory=budget) as service:
        await asyncio.gather(*(_collected(service, z) for z in clips))
        with pytest.raises(LatentsError, match="expected latents that decode in"):
            await _collected(service, card.latents(real, 5, 90, 160))
        assert service.health()["memory_reserved"] == 0


async def test_the_budget_is_what_is_free(vae: AutoencoderKLWan) -> None:
    """Without a limit of the user's, streams share most of what is free on the card."""
    async with Service(vae) as service:
        memory = service.health()["memory"]
        assert memory is not None
        free, total = torch.cuda.mem_get_info(card.DEVICE)
        assert 0 < memory <= total
        assert memory >= 0.8 * free
        assert service.health()["device"] == str(card.DEVICE)


async def test_a_preview_beside_a_job(vae: AutoencoderKLWan) -> None:
    """What a pipeline makes on the card is shown, and is the same as without somebody watching."""
    components = unets.stable()
    pipe = bare("StableDiffusionPipeline", **components).to(card.DEVICE)
    small = unets.stable_vae().to(card.DEVICE)
    call = {
        name: one.to(card.DEVICE) if isinstance(one, torch.Tensor) else one
        for name, one in unets.call().items()
    }
    shown = []

    def run(arguments: dict[str, object]) -> torch.Tensor:
        seeded = torch.Generator().manual_seed(3)
        made: torch.Tensor = pipe(**arguments, generator=seeded, output_type="latent").images
        return made

    alone = await asyncio.to_thread(run, dict(call))
    async with preview(pipe, small, share=1) as forming:

        async def watch() -> None:
            async for picture in forming:
                shown.append(picture)

        watching = asyncio.create_task(watch())
        watched = await asyncio.to_thread(run, forming.call(**call))
        forming.end()
        await watching

    assert torch.equal(alone, watched)
    expected = await stream_decode(alone, _standing_in(pipe, small)).collect()
    assert card.equal(shown[-1].data, expected)


def _standing_in(pipe: object, small: torch.nn.Module) -> object:
    pipe.vae = small  # type: ignore[attr-defined]
    return pipe
