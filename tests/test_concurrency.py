"""Many at once, on shared weights: streams, loops, threads, processes, hooks and strangers."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import torch
import uvloop
from accelerate import cpu_offload_with_hook
from accelerate.hooks import ModelHook, add_hook_to_module

from streamvae import NonFiniteError, asave, collect, iter_decode, save, stream_decode
from streamvae.codecs import codec_for
from streamvae.testing import one_by_one
from tests import tiny
from tests.codecs.walk import noise, whole

FAMILIES = {"wan21": (1, 4, 5, 3, 2), "wan22": (1, 6, 3, 2, 2), "qwen_image": (1, 4, 5, 3, 2)}


@pytest.fixture(scope="module")
def vae() -> torch.nn.Module:
    """One Wan 2.1 for all; tests that change one make their own."""
    return tiny.wan21()


def clip(seed: int, length: int = 5, *, channels: int = 4) -> torch.Tensor:
    """Latents of a clip of its own."""
    return noise(1, channels, length, 3, 2, seed=seed)


def expected(vae: torch.nn.Module, latents: torch.Tensor) -> np.ndarray:
    """What ``vae.decode`` gives, float32, channels last."""
    return whole(vae, latents).float().movedim(1, -1).numpy()


def lasting(before: set[threading.Thread]) -> set[threading.Thread]:
    """Threads that came since ``before``, when those that were told to end have ended."""
    came = set(threading.enumerate()) - before
    for thread in came:
        if "launch" not in thread.name and "copy" not in thread.name:
            thread.join(10)
    return {thread for thread in came if thread.is_alive()}


async def quiet() -> None:
    """Have threads and loop let go of the last thing they did."""
    await stream_decode(noise(1, 8, 1), tiny.oobleck()).collect()  # the device's threads go on
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("family", FAMILIES)
async def test_two_streams_take_turns(family):
    """Two streams drawn from in turns on one autoencoder equal two alone."""
    vae = getattr(tiny, family)()
    clips = [noise(*FAMILIES[family], seed=seed) for seed in (1, 2)]
    streams = [stream_decode(one_by_one(one), vae, output="float32") for one in clips]
    given = [stream.chunks() for stream in streams]
    got: list[list[np.ndarray]] = [[], []]

    for _ in range(clips[0].shape[2]):
        for k in (0, 1):
            got[k].append((await anext(given[k])).data)

    for k in (0, 1):
        assert [chunk async for chunk in given[k]] == []
        assert np.array_equal(np.concatenate(got[k], 1), expected(vae, clips[k]))


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_stranger_decodes_between_chunks(family):
    """``vae.decode`` by somebody else between chunks, and during them, disturbs neither side."""
    vae = getattr(tiny, family)()
    mine, theirs = (noise(*FAMILIES[family], seed=seed) for seed in (1, 2))
    undisturbed, their_frames = expected(vae, mine), expected(vae, theirs)
    between: list[np.ndarray] = []

    async def generating() -> AsyncIterator[torch.Tensor]:
        async for latent in one_by_one(mine):
            between.append(expected(vae, theirs))
            yield latent

    frames = await stream_decode(generating(), vae, output="float32").collect()

    assert np.array_equal(frames, undisturbed)
    assert len(between) == mine.shape[2]
    assert all(np.array_equal(one, their_frames) for one in between)


async def test_eight_streams_at_once(vae):
    """Eight streams side by side on one loop each give their own frames."""
    clips = [clip(seed, length) for seed, length in enumerate((1, 2, 3, 5, 8, 3, 2, 1))]

    given = await asyncio.gather(
        *(stream_decode(one, vae, output="float32").collect() for one in clips)
    )

    for frames, one in zip(given, clips, strict=True):
        assert np.array_equal(frames, expected(vae, one))


def test_three_loops_in_three_threads(vae):
    """One codec serves three event loops in three threads at the same time."""
    codec = codec_for(vae)
    clips = [clip(seed) for seed in range(3)]
    got: dict[int, np.ndarray] = {}
    together = threading.Barrier(3)

    def decode(which: int) -> None:
        async def main() -> None:
            together.wait(30)
            got[which] = await stream_decode(clips[which], codec, output="float32").collect()

        asyncio.run(main())

    threads = [threading.Thread(target=decode, args=(which,)) for which in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    for which, one in enumerate(clips):
        assert np.array_equal(got[which], expected(vae, one))


def test_uvloop(vae):
    """A stream runs on uvloop as on asyncio's own loop."""

    async def main() -> np.ndarray:
        return await stream_decode(clip(1), vae, output="float32").collect()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert np.array_equal(runner.run(main()), expected(vae, clip(1)))


FORK = """
import asyncio, os
import numpy as np, torch
from streamvae import collect, stream_decode
from tests import tiny
from tests.codecs.walk import noise, whole

torch.set_num_threads(2)  # so that there is a pool of threads, which the child does not have
vae, latents = tiny.wan21(), noise(1, 4, 2, 2, 2)
right = whole(vae, latents).movedim(1, -1).numpy()

def decode():
    return np.array_equal(collect(latents, vae, output="float32"), right)

def fork():
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if decode() else 3)
        finally:
            os._exit(4)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)

async def fork_within_a_stream():
    async with stream_decode(latents, vae) as stream:
        async for _ in stream:
            return fork()

assert decode()
assert fork() == 0, "between streams"
assert asyncio.run(fork_within_a_stream()) == 0, "within a stream"
assert decode()
print("all right")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child():
    """A child forked after its parent has decoded decodes right, and so does the parent then."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "all right\n"), run.stderr


async def test_save_inside_a_running_loop(vae, tmp_path):
    """``save`` works where a loop is running already, as in a notebook's cell."""
    save(clip(1), vae, tmp_path / "cell.npy", output="float32")
    await asave(clip(1), vae, tmp_path / "awaited.npy", output="float32")

    assert np.array_equal(np.load(tmp_path / "cell.npy"), expected(vae, clip(1))[0])
    assert np.array_equal(np.load(tmp_path / "awaited.npy"), expected(vae, clip(1))[0])


def test_iter_decode_left_early(vae):
    """Leaving ``iter_decode`` stops its stream, ends its threads, and the next one is right."""
    collect(clip(1, 1), vae)
    before = set(threading.enumerate())

    for frame in iter_decode(clip(1, 40), vae):
        assert frame.index == 0
        break

    assert {thread for thread in threading.enumerate() if not thread.daemon} <= before
    assert not lasting(before)
    frames = [frame.data for frame in iter_decode(clip(2), vae, output="float32")]
    assert np.array_equal(np.stack(frames), expected(vae, clip(2))[0])


class Onload(ModelHook):
    """Brings the weights before a forward, as an offload hook does; away, they are NaN."""

    execution_device = "cpu"

    def __init__(self, module: torch.nn.Module) -> None:
        self.weights = {name: value.clone() for name, value in module.state_dict().items()}

    def offload(self, module: torch.nn.Module) -> None:
        """Take the weights away."""
        for parameter in module.parameters():
            parameter.data.fill_(torch.nan)

    def pre_forward(self, module: torch.nn.Module, *args: object, **kwargs: object) -> object:
        module.load_state_dict(self.weights)
        return args, kwargs


@pytest.mark.parametrize("family", FAMILIES)
async def test_offloaded_between_chunks(family):
    """Weights that another model's hook sends away between chunks are brought back for each."""
    vae = getattr(tiny, family)()
    latents = noise(*FAMILIES[family])
    right = expected(vae, latents)
    hook = Onload(vae)
    add_hook_to_module(vae, hook)
    hook.offload(vae)
    seen = asyncio.Event()

    async def generating() -> AsyncIterator[torch.Tensor]:
        async for latent in one_by_one(latents):
            yield latent
            await seen.wait()  # nothing is being decoded now
            seen.clear()
            hook.offload(vae)

    parts: list[np.ndarray] = []
    async with stream_decode(generating(), vae, output="float32") as stream:
        async for chunk in stream.chunks():
            parts.append(chunk.data)
            seen.set()

    assert np.array_equal(np.concatenate(parts, 1), right)


async def test_model_cpu_offload():
    """A VAE under ``enable_model_cpu_offload``'s hook runs on the device that the hook names."""
    plain = tiny.wan21()
    vae, hook = cpu_offload_with_hook(tiny.wan21(), torch.device("cpu"))

    async with stream_decode(clip(1), vae, output="float32") as stream:
        assert stream.info.device == "cpu"
        frames = await stream.collect()
    hook.offload()

    assert np.array_equal(frames, expected(plain, clip(1)))


@pytest.mark.parametrize("what", ["module", "decoder", "decode"])
def test_compiled(what):
    """A VAE under ``torch.compile``, or one whose decoder is compiled, streams its own frames."""
    vae = tiny.wan21()
    right = expected(vae, clip(1, 2))
    given = vae
    if what == "module":
        given = torch.compile(vae, backend="eager")
    elif what == "decoder":
        vae.decoder = torch.compile(vae.decoder, backend="eager")
    else:
        vae.decode = torch.compile(vae.decode, backend="eager")

    assert np.array_equal(collect(clip(1, 2), given, output="float32"), right)


async def test_weights_cast_between_streams():
    """A VAE that is cast between two streams, or whose weights change, is streamed as it is."""
    vae = tiny.wan21()
    codec = codec_for(vae)
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        vae.to(dtype)
        right = expected(vae, clip(1, 2).to(dtype))
        for source in (vae, codec):
            frames = await stream_decode(clip(1, 2), source, output="float32").collect()
            assert np.array_equal(frames, right)
    vae.decoder.conv_in.weight.mul_(2)
    frames = await stream_decode(clip(1, 2), codec, output="float32").collect()
    assert np.array_equal(frames, expected(vae, clip(1, 2)))


async def test_threads_stay_flat(vae):
    """Fifty streams, finished or left, from tensors or iterables, leave the threads of one."""
    before = set(threading.enumerate())
    await stream_decode(clip(1, 1), vae).collect()
    lasting(before)
    warm = set(threading.enumerate())

    for turn in range(50):
        latents = clip(turn, 1 + turn % 3)
        given = latents if turn % 2 else iter(latents.split(1, 2))
        async with stream_decode(given, vae) as stream:
            async for _ in stream:
                if turn % 5 == 0:
                    break

    assert not lasting(warm)


async def test_nothing_outlives_a_stream():
    """However a stream ends, neither it nor the autoencoder is kept alive by the package."""
    vae = tiny.wan21()
    module = weakref.ref(vae)
    bad = clip(1, 3)
    bad[:, :, 2] = torch.nan
    streams = [stream_decode(latents, vae) for latents in (clip(1), clip(2), clip(3), bad)]
    kept = [weakref.ref(stream) for stream in streams]
    finished, left, untouched, failing = streams

    await finished.collect()
    async for _ in left:
        break
    with pytest.raises(NonFiniteError):
        await failing.finish()
    del vae, streams, finished, left, untouched, failing, _
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)
    await quiet()
    gc.collect()

    assert [stream() for stream in kept] == [None] * 4
    assert module() is None
