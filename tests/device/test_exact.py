"""Frames from a CUDA device equal ``vae.decode``'s, bit for bit."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import nn

from streamvae import DeviceFrames, NonFiniteError, stream_decode
from streamvae._pixels import Output
from streamvae.backends._cuda import CudaDriver
from streamvae.backends._streamed import StreamedBackend
from tests import tiny

from . import card

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("output", ["uint8", "float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [tiny.wan21, tiny.wan22, tiny.qwen_image])
async def test_video_equals_decode(
    make: Callable[[], nn.Module], dtype: torch.dtype, output: Output
) -> None:
    """Cached causal families, in every dtype people use, before and after quantisation."""
    vae = make().to(card.DEVICE, dtype)
    z = card.latents(vae, 5)
    assert card.equal(
        await stream_decode(z, vae, output=output).collect(), card.whole(vae, z, output)
    )


@pytest.mark.parametrize("steps", [1, 2, 9])
@pytest.mark.parametrize("output", ["uint8", "float32"])
async def test_wan_as_shipped(real: AutoencoderKLWan, steps: int, output: Output) -> None:
    """The real configuration in bfloat16, with a frame size that is no power of two."""
    z = card.latents(real, steps, 30, 52)
    frames = await stream_decode(z, real, output=output).collect()
    assert card.equal(frames, card.whole(real, z, output))


async def test_frames_one_by_one(vae: AutoencoderKLWan) -> None:
    """Frames kept to the end are what they were: their memory is their own."""
    z = card.latents(vae, 9)
    kept = [frame async for frame in stream_decode(z, vae)]
    expected = card.whole(vae, z)[0]
    assert [frame.index for frame in kept] == list(range(len(expected)))
    assert card.equal(np.stack([frame.data for frame in kept]), expected)


async def test_latents_on_the_host(vae: AutoencoderKLWan) -> None:
    """Where the latents lie makes no difference."""
    z = card.latents(vae, 5)
    assert card.equal(await stream_decode(z.cpu(), vae).collect(), card.whole(vae, z))


async def test_frames_left_on_the_device(vae: AutoencoderKLWan) -> None:
    """With output='device' the decoder's values stay there, in the weights' dtype."""
    z = card.latents(vae, 5)
    chunks = [chunk async for chunk in stream_decode(z, vae, output="device").chunks()]
    for chunk in chunks:
        assert isinstance(chunk, DeviceFrames)
        assert (chunk.data.device, chunk.data.dtype) == (card.DEVICE, torch.bfloat16)
    frames = torch.cat([chunk.data for chunk in chunks], 1)
    assert card.equal(frames.float().cpu().numpy(), card.whole(vae, z, "float32"))


async def test_frames_on_the_device_may_be_dropped_early(vae: AutoencoderKLWan) -> None:
    """A consumer may let go of a chunk that its own stream has yet to read."""
    z = card.latents(vae, 9)
    copies: list[torch.Tensor] = []
    async for chunk in stream_decode(z, vae, output="device").chunks():
        torch.cuda._sleep(card.CYCLES)
        copies.append(chunk.data.clone())
        del chunk
    frames = torch.cat(copies, 1)
    assert card.equal(frames.float().cpu().numpy(), card.whole(vae, z, "float32"))


def _streams() -> list[torch.cuda.Stream]:
    """Streams as people get them: of more than one priority."""
    return [
        torch.cuda.Stream(card.DEVICE),
        torch.cuda.Stream(card.DEVICE, priority=-1),
        torch.cuda.Stream(card.DEVICE, priority=-2),
    ]


@pytest.mark.parametrize("of_frames", [False, True])
@pytest.mark.parametrize("which", [0, 1, 2])
async def test_frames_on_the_device_dropped_on_any_stream(which: int, of_frames: bool) -> None:
    """A consumer may read on a stream of its own, drop the chunk, and owes nothing."""
    vae = tiny.wan21().to(card.DEVICE, torch.float32)
    z = card.latents(vae, 12, 24, 24)
    expected = card.whole(vae, z, "float32")
    await stream_decode(z, vae).collect()
    side, copies = _streams()[which], list[torch.Tensor]()
    async for chunk in stream_decode(z, vae, output="device").chunks():
        with torch.cuda.stream(side):
            torch.cuda._sleep(3 * card.CYCLES)
            if of_frames:
                copies += [frame.data[None, None].clone() for frame in chunk.frames(None)]
            else:
                copies.append(chunk.data.clone())  # type: ignore[union-attr, arg-type]
        del chunk
    torch.cuda.synchronize()
    assert card.equal(torch.cat(copies, 1).cpu().numpy(), expected)


class KeepsToItself(CudaDriver):
    """Gives frames out without a word to the allocator."""

    def give_out(self, tensor: torch.Tensor) -> None:
        """Say nothing."""


async def test_control_frames_dropped_on_another_stream_are_overwritten() -> None:
    """Guards the test above: without it, the next chunk is written over what is being read."""
    vae = tiny.wan21().to(card.DEVICE, torch.float32)
    z = card.latents(vae, 12, 24, 24)
    expected = card.whole(vae, z, "float32")
    side, copies = torch.cuda.Stream(card.DEVICE), list[torch.Tensor]()
    backend = StreamedBackend(KeepsToItself(card.DEVICE))
    async for chunk in stream_decode(z, vae, output="device", backend=backend).chunks():
        with torch.cuda.stream(side):
            torch.cuda._sleep(3 * card.CYCLES)
            copies.append(chunk.data.clone())  # type: ignore[union-attr, arg-type]
        del chunk
    torch.cuda.synchronize()
    assert not card.equal(torch.cat(copies, 1).cpu().numpy(), expected)


def test_every_stream_of_torch_s_is_known() -> None:
    """Whatever stream torch hands out from now on is one that frames are safe on."""
    driver = CudaDriver(card.DEVICE)
    known = {stream.stream_id for stream in driver._readers}
    own = {driver._compute.stream_id, driver._copy.stream_id, driver._upload.stream_id}
    for priority in (0, -1, -2, -3):
        for _ in range(70):
            stream = torch.cuda.Stream(card.DEVICE, priority=priority)
            assert stream.stream_id in known | own


async def test_an_overflow_is_named() -> None:
    """A float16 decoder that overflows raises at that chunk and blames the decoder."""
    vae = card.wan(torch.float16)
    vae.decoder.conv_in.weight.mul_(1e3)
    z = card.latents(vae, 3)
    z[:, :, 1:] *= 1e3  # finite, and a thousand times that is not
    frames: list[int] = []
    with pytest.raises(NonFiniteError) as caught:
        async for frame in stream_decode(z, vae):
            frames.append(frame.index)  # those before the error count
    assert (caught.value.where, caught.value.chunk) == ("pixels", 1)
    assert frames == [0]


async def test_bad_latents_are_named(vae: AutoencoderKLWan) -> None:
    """NaN in a later chunk raises there, and blames the latents."""
    z = card.latents(vae, 4)
    z[:, :, 2] = torch.nan
    with pytest.raises(NonFiniteError) as caught:
        await stream_decode(z, vae).collect()
    assert (caught.value.where, caught.value.chunk) == ("latents", 2)


async def test_an_offloaded_autoencoder() -> None:
    """Under accelerate's offload hook, frames equal those of the same weights on the device."""
    accelerate = pytest.importorskip("accelerate")
    z = card.latents(vae := card.wan(), 5)
    offloaded, hook = accelerate.cpu_offload_with_hook(
        tiny.wan21().to(torch.bfloat16), execution_device=card.DEVICE
    )
    for _ in range(2):
        assert card.equal(await stream_decode(z, offloaded).collect(), card.whole(vae, z))
        hook.offload()


async def test_latents_on_a_device_the_weights_are_not_on() -> None:
    """A decoder on the host reads latents of a CUDA device after they were written."""
    vae = tiny.wan21()
    host = torch.randn(1, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    late = torch.zeros_like(host, device=card.DEVICE)
    given = host.to(card.DEVICE)
    torch.cuda._sleep(card.CYCLES)
    late.copy_(given)
    assert card.equal(await stream_decode(late, vae).collect(), card.whole(vae, host))
