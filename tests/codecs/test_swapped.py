from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from streamvae._errors import UsageError
from streamvae.abc import ChunkPlan
from streamvae.codecs import codec_for
from tests.codecs.walk import noise, pieces, walk, whole
from tests.families.partition import magvit


def features(vae: nn.Module) -> list[object]:
    """What the module's own state is now."""
    return [part.prev_features for part in vae.modules() if hasattr(part, "prev_features")]


@torch.no_grad()
def test_leaves_the_module_alone() -> None:
    """Between steps, and after one that fails, the module's own state is what it was."""
    vae = magvit()
    decoder = codec_for(vae).decoder()
    for piece in pieces(codec_for(vae), noise(1, 4, 2, 2, 2)):
        decoder.decode(piece)
        assert not any(isinstance(one, torch.Tensor) for one in features(vae))

    hook = vae.decoder.conv_out.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decoder.decode(noise(1, 4, 1, 2, 2))
    hook.remove()
    assert not any(isinstance(one, torch.Tensor) for one in features(vae))


@torch.no_grad()
def test_after_an_aborted_decode() -> None:
    """State that an aborted vae.decode left on the module does not reach a stream."""
    vae = magvit()
    latents = noise(1, 4, 3, 2, 2)
    expected = whole(vae, latents)
    vae.decoder(noise(1, 4, 1, 2, 2))
    stale = features(vae)

    assert torch.equal(walk(codec_for(vae), latents), expected)
    assert all(one is other for one, other in zip(stale, features(vae), strict=True))


def test_threads() -> None:
    """Streams that step on several threads at once wait for each other, and are right."""
    vae = magvit()
    clips = [noise(1, 4, 4, 2, 2, seed=seed) for seed in (1, 2)]
    expected = [whole(vae, clip) for clip in clips]
    given: dict[int, torch.Tensor] = {}

    def stream(number: int) -> None:
        given[number] = walk(codec_for(vae), clips[number])

    threads = [threading.Thread(target=stream, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in (0, 1):
        assert torch.equal(given[number], expected[number])


@pytest.mark.parametrize(
    "options",
    [(32, 16, None, 24, 8), (16, 32, None, 8, 24), (32, 32, None, 24, 24), (24, 16, None, 16, 16)],
)
def test_tiles(options: tuple[int | None, ...]) -> None:
    """Tiles are laid just when diffusers lays them, which mistakes width for height."""
    vae = magvit()
    vae.enable_tiling(*options)
    codec = codec_for(vae)
    for height, width in ((4, 2), (2, 4), (3, 3), (5, 4), (2, 2)):
        latents = noise(1, 4, 2, height, width)
        expected = whole(vae, latents)
        assert torch.equal(walk(codec, latents), expected)
        assert codec.picture(tuple(latents.shape)) == tuple(expected.shape[3:])


def test_slicing_is_said_to_be_broken() -> None:
    """Where vae.decode fails with slicing on, the stream works and says so; else it is silent."""
    vae = magvit()
    codec = codec_for(vae)
    latents = noise(2, 4, 2, 3, 3)
    assert codec.notes(tuple(latents.shape)) == ()
    vae.enable_slicing()
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        whole(vae, latents)
    assert "slicing" in codec.notes(tuple(latents.shape))[0]
    assert codec.notes((1, 4, 2, 3, 3)) == ()

    vae._clear_conv_cache()
    vae.enable_tiling(16, 16, None, 8, 8)
    assert codec.notes(tuple(latents.shape)) == ()
    expected = whole(vae, latents)
    assert torch.equal(walk(codec, latents), expected)


def test_chunks_beside_segments() -> None:
    """With larger segments, chunks beside them round where norms see one frame, else are wrong."""
    vae, joint = magvit(), magvit(spatial_group_norm=False)
    vae.num_latent_frames_batch_size = joint.num_latent_frames_batch_size = 2

    with pytest.raises(UsageError, match="multiple of 2 in exact mode.*pass mode='fast'"):
        codec_for(vae).cut(None, 3, "exact")
    assert codec_for(vae).cut(None, 3, "fast") == ChunkPlan(2, 3)
    with pytest.raises(UsageError, match="multiple of 2, .*normalizes"):
        codec_for(joint).cut(None, 3, "fast")
    latents = noise(1, 4, 6, 2, 2)
    streamed = walk(codec_for(vae), latents, 3, "fast")
    torch.testing.assert_close(streamed, whole(vae, latents), rtol=0, atol=1e-5)


FORK = """
import os, signal, threading
import torch
from streamvae.codecs import codec_for
from tests.codecs.walk import noise, walk, whole
from tests.families.partition import magvit

torch.set_num_threads(1)
vae, latents = magvit(), noise(1, 4, 3, 2, 2)
right, parent = whole(vae, latents), os.getpid()
within, forked = threading.Event(), threading.Event()

def wait(*_):
    if os.getpid() == parent:
        within.set()
        forked.wait()

vae.decoder.conv_in.register_forward_pre_hook(wait)
given = []
thread = threading.Thread(target=lambda: given.append(walk(codec_for(vae), latents)))
thread.start()
within.wait()  # the lock is held
child = os.fork()
if child == 0:
    signal.alarm(60)  # were it for ever, it ends here
    try:
        os._exit(0 if torch.equal(walk(codec_for(vae), latents), right) else 3)
    finally:
        os._exit(4)
_, status = os.waitpid(child, 0)
forked.set()
thread.join()
assert os.waitstatus_to_exitcode(status) == 0, status
assert torch.equal(given[0], right)
print("all right")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_within_a_step() -> None:
    """A child forked while another thread takes a step decodes, and waits for nobody."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK],
        cwd=Path(__file__).parent.parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "all right\n"), run.stderr
