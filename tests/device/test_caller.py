"""The caller's CUDA world: the stream, the device and the autocast that it called from."""

import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from streamvae import collect, iter_decode, stream_decode, stream_pipeline
from streamvae._chunks import HostChunk
from streamvae._pixels import Output, render
from streamvae.sinks import ThreadSink
from tests.latents.image_pipelines import unets
from tests.latents.pipelines.case import bare

from . import card
from .test_races import written_late

pytestmark = pytest.mark.cuda

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6


def by_ones(late: torch.Tensor) -> Iterator[torch.Tensor]:
    """Latents one by one, each made on the stream that is current where this runs."""
    for step in range(late.shape[2]):
        yield late[:, :, step : step + 1] * 1


async def by_ones_async(late: torch.Tensor) -> AsyncIterator[torch.Tensor]:
    """As `by_ones`, from an async generator."""
    for piece in by_ones(late):
        yield piece


@pytest.mark.parametrize("output", ["uint8", "float32"])
@pytest.mark.parametrize("giving", [by_ones, by_ones_async])
async def test_a_generator_on_a_stream_of_its_caller_s(
    vae: AutoencoderKLWan,
    giving: Callable[[torch.Tensor], Iterator[torch.Tensor]],
    output: Output,
) -> None:
    """What a generator reads was written on its caller's stream before, and it waits for that."""
    z = card.latents(vae, STEPS)
    expected = card.whole(vae, z, output)
    side = torch.cuda.Stream(card.DEVICE)
    for _ in range(3):
        with torch.cuda.stream(side):
            late = written_late(z)
            stream = stream_decode(giving(late), vae, output=output, nonfinite="warn")
            frames = await stream.collect()
        assert card.equal(frames, expected)
        torch.cuda.synchronize()


@pytest.mark.parametrize("giving", [by_ones, by_ones_async])
def test_a_generator_on_a_stream_without_a_loop(
    vae: AutoencoderKLWan, giving: Callable[[torch.Tensor], Iterator[torch.Tensor]]
) -> None:
    """Where the loop is in a thread of ours, async generators are on the caller's stream too."""
    z = card.latents(vae, STEPS)
    expected = card.whole(vae, z)
    side = torch.cuda.Stream(card.DEVICE)
    with torch.cuda.stream(side):
        frames = collect(giving(written_late(z)), vae, nonfinite="warn")
        one_by_one = iter_decode(giving(written_late(z)), vae, nonfinite="warn")
    assert card.equal(frames, expected)
    assert card.equal(np.stack([frame.data for frame in one_by_one]), expected[0])


async def test_a_generator_of_tensors_that_it_makes(vae: AutoencoderKLWan) -> None:
    """Several chunks, each computed late on the side stream by the generator itself."""
    z = card.latents(vae, 9)
    expected = card.whole(vae, z)
    side, seen = torch.cuda.Stream(card.DEVICE), set[int]()

    def denoising() -> Iterator[torch.Tensor]:
        for first in range(0, 9, 3):
            seen.add(torch.cuda.current_stream().stream_id)
            yield written_late(z[:, :, first : first + 3])

    with torch.cuda.stream(side):
        stream = stream_decode(denoising(), vae)
    assert card.equal(await stream.collect(), expected)  # outside: it is where it was made
    assert seen == {side.stream_id}


async def test_frames_collected_on_the_device_are_the_caller_s_stream_s(
    vae: AutoencoderKLWan,
) -> None:
    """``collect`` with output='device' gives what may be read on the current stream at once."""
    z = card.latents(vae, STEPS)
    expected = card.whole(vae, z, "float32")
    side = torch.cuda.Stream(card.DEVICE)
    with torch.cuda.stream(side):
        torch.cuda._sleep(card.CYCLES)
        frames = await stream_decode(z, vae, output="device").collect()
        assert isinstance(frames, torch.Tensor)
        kept = frames.clone()
    torch.cuda.synchronize()
    assert card.equal(kept.float().cpu().numpy(), expected)


async def test_a_sink_is_on_its_caller_s_stream(vae: AutoencoderKLWan) -> None:
    """Blocking sinks find the stream and the autocast of whoever made the stream of frames."""
    seen = set[tuple[int, bool]]()

    class Noting(ThreadSink):
        def put(self, chunk: HostChunk) -> None:
            stream = torch.cuda.current_stream().stream_id
            seen.add((stream, torch.is_autocast_enabled("cuda")))

    side = torch.cuda.Stream(card.DEVICE)
    with torch.cuda.stream(side), torch.autocast("cuda", torch.float16):
        stream = stream_decode(card.latents(vae, 3), vae, sinks=Noting("noting"))
    await stream.finish()
    assert seen == {(side.stream_id, True)}


#: Autocasts, and whether the weights record gradients: torch then keeps those it has cast.
AUTOCASTS = [
    lambda: torch.autocast("cuda", torch.bfloat16),
    lambda: torch.autocast("cuda", torch.float16),
    lambda: torch.autocast("cuda", torch.bfloat16, cache_enabled=False),
]


@pytest.mark.parametrize("output", ["uint8", "float32", "device"])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("autocast", AUTOCASTS)
async def test_autocast_is_carried(
    autocast: Callable[[], AbstractContextManager[None]], grad: bool, output: Output
) -> None:
    """Under autocast a stream's frames are those of ``vae.decode`` in the same place."""
    vae = card.wan(torch.float32).requires_grad_(grad)
    z = card.latents(vae, STEPS)
    with autocast(), torch.no_grad():
        decoded = vae.decode(z).sample
        stream = stream_decode(z, vae, output=output)
        frames = await stream.collect()
    expected = render(decoded, "video", "float32" if output == "device" else output).cpu().numpy()
    given = frames.float().cpu().numpy() if isinstance(frames, torch.Tensor) else frames
    assert card.equal(given, expected)
    assert not card.equal(given, card.whole(vae, z, "float32" if output == "device" else output))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
async def test_latents_of_another_dtype_under_autocast(dtype: torch.dtype) -> None:
    """Latents go into the autoencoder as they would into ``vae.decode``, not cast first."""
    vae = card.wan(torch.float32)
    z = card.latents(vae, STEPS).to(dtype)
    with torch.autocast("cuda", torch.bfloat16):
        expected = card.whole(vae, z)
        frames = await stream_decode(z, vae).collect()
        from_host = await stream_decode(z.cpu(), vae).collect()
    assert card.equal(frames, expected)
    assert card.equal(from_host, expected)


async def test_streams_under_one_autocast_after_another() -> None:
    """One autoencoder under two autocasts and none, in turn: nothing of one is in the other."""
    vae = card.wan(torch.float32)
    z = card.latents(vae, STEPS)
    for _ in range(2):
        for autocast in (*AUTOCASTS[:2], nullcontext):
            with autocast():
                assert card.equal(await stream_decode(z, vae).collect(), card.whole(vae, z))


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")  # torch's norms, under autocast
async def test_a_pipeline_on_a_stream_under_autocast() -> None:
    """A pipeline runs on its caller's stream and under its autocast; so does its decoding."""
    components = unets.stable()
    pipe = bare("StableDiffusionPipeline", **components).to(card.DEVICE)
    call = {
        name: one.to(card.DEVICE) if isinstance(one, torch.Tensor) else one
        for name, one in unets.call().items()
    }
    side, seen = torch.cuda.Stream(card.DEVICE), set[tuple[int, bool]]()

    def note(pipe: object, step: int, timestep: object, given: dict[str, object]) -> object:
        stream = torch.cuda.current_stream().stream_id
        seen.add((stream, torch.is_autocast_enabled("cuda")))
        return given

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    torch.cuda.synchronize()
    with torch.cuda.stream(side), torch.autocast("cuda", torch.bfloat16):
        expected = pipe(**call, generator=seeded(), output_type="pil").images
        stream = stream_pipeline(pipe, **call, generator=seeded(), callback_on_step_end=note)
        frames = await stream.collect()
    assert card.equal(frames, np.stack([np.asarray(image) for image in expected]))
    assert seen == {(side.stream_id, True)}


SECOND = """
import asyncio, tempfile, torch
from streamvae import stream_decode
from tests.device import card
card.DEVICE = torch.device("cuda", 1)
torch.cuda.set_device(1)
vae = card.wan(); z = card.latents(vae, 5)
seen = set()
def giving():
    for step in range(5):
        seen.add((torch.cuda.current_device(), torch.empty(0, device="cuda").device.index))
        yield z[:, :, step : step + 1]
def transform(pixels):
    seen.add((torch.cuda.current_device(), torch.empty(0, device="cuda").device.index))
    return pixels
for given in (giving(), z, z.cpu()):
    frames = asyncio.run(stream_decode(given, vae, transform=transform).collect())
    assert card.equal(frames, card.whole(vae, z))
frames = asyncio.run(stream_decode(z, vae, output="device").collect())
assert frames.device.index == 1
with tempfile.TemporaryDirectory() as folder:
    vae.save_pretrained(folder)
    frames = asyncio.run(stream_decode(z, folder, device="cuda", output="device").collect())
assert frames.device.index == 1
del frames
print("SEEN", seen, "CONTEXT", torch._C._cuda_hasPrimaryContext(0))
"""


def test_a_second_device() -> None:
    """After ``set_device(1)`` "cuda" is device 1 on our threads; device 0 is left alone."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one device is here")
    done = subprocess.run(
        [sys.executable, "-c", SECOND],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "SEEN {(1, 1)} CONTEXT False"
