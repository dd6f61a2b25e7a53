"""Pictures of several sizes in one stream."""

from collections.abc import AsyncIterator

import numpy as np
import pytest
import torch
from PIL import Image

from streamvae import collect, save, stream_decode
from streamvae._errors import LatentsError, UsageError
from streamvae.sinks import Stills
from tests import tiny
from tests.codecs.walk import noise

SIZES = ((2, 4, 5, 7), (1, 4, 5, 7), (1, 4, 3, 4), (3, 4, 6, 2))


@pytest.fixture
def latents() -> list[torch.Tensor]:
    """Seven pictures of three sizes, in four pieces."""
    return [noise(*shape, seed=index) for index, shape in enumerate(SIZES)]


def _expected(vae: torch.nn.Module, latents: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [vae.decode(item[None]).sample[0] for piece in latents for item in piece]


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("per_chunk", [None, 2])
async def test_one_by_one(latents: list[torch.Tensor], tiled: bool, per_chunk: int | None) -> None:
    """Each picture has its own size and equals vae.decode of it alone; no chunk has two sizes."""
    vae = tiny.kl()
    if tiled:
        vae.enable_tiling()
        vae.tile_latent_min_size, vae.tile_sample_min_size = 4, 8
    mode = "exact" if per_chunk is None else "fast"

    async def coming() -> AsyncIterator[torch.Tensor]:
        for piece in latents:
            yield piece

    stream = stream_decode(coming(), vae, output="float32", latents_per_chunk=per_chunk, mode=mode)
    frames = [frame async for frame in stream]
    assert [frame.index for frame in frames] == list(range(7))
    for frame, wanted in zip(frames, _expected(vae, latents), strict=True):
        allowed = 0 if per_chunk is None else 1e-5
        torch.testing.assert_close(
            torch.as_tensor(np.array(frame.data)).movedim(-1, 0), wanted, atol=allowed, rtol=0
        )


def test_stills_keep_them(latents: list[torch.Tensor], tmp_path) -> None:
    """Numbered files take pictures of any size."""
    vae = tiny.kl()
    save(latents, vae, Stills(tmp_path / "%d.png"))
    sizes = []
    for index in range(7):
        with Image.open(tmp_path / f"{index}.png") as image:
            sizes.append(image.size[::-1])
    assert sizes == [tuple(one.shape[1:]) for one in _expected(vae, latents)]


def test_one_array_takes_one_size(latents: list[torch.Tensor]) -> None:
    """To gather them in one array is refused by name, not by numpy."""
    with pytest.raises(UsageError, match="expected pictures of one size for one array"):
        collect(latents, tiny.kl())


def test_one_file_takes_one_size(latents: list[torch.Tensor], tmp_path) -> None:
    """An array's file keeps those before another size came, and says what it expected."""
    with pytest.raises(UsageError, match="expected more of"):
        save(latents, tiny.kl(), tmp_path / "a.npy")
    assert len(np.load(tmp_path / "a.npy.partial")) == 3


def test_what_is_no_picture(latents: list[torch.Tensor]) -> None:
    """A later piece of other channels or of another dtype is refused."""
    with pytest.raises(LatentsError, match="C = 4"):
        collect([latents[0], noise(1, 3, 5, 7)], tiny.kl())
    with pytest.raises(LatentsError, match="expected piece 1 of the latents to go on"):
        collect([latents[0], latents[1].double()], tiny.kl())
