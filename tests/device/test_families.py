"""Every family of video autoencoders on a CUDA device gives what diffusers gives there."""

import pytest
import torch

from streamvae import stream_decode
from tests.families.family import Family
from tests.test_families import each_family

from . import card

pytestmark = pytest.mark.cuda


async def _difference(family: Family, dtype: torch.dtype, *, tiled: bool) -> float:
    """The greatest difference between a stream's values and diffusers'."""
    vae = family.make().to(card.DEVICE, dtype)
    if tiled:
        assert family.tile is not None
        family.tile(vae)
    length = max(family.lengths)
    latents = family.noise(length, dtype=dtype, size=family.tiled if tiled else None)
    latents = latents.to(card.DEVICE)
    call = {
        name: value.to(card.DEVICE) if isinstance(value, torch.Tensor) else value
        for name, value in family.call(length).items()
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with torch.no_grad():
            expected = family.reference(vae, latents, call)
        torch.manual_seed(0)
        stream = stream_decode(latents, vae, output="float32", call=call)
        frames = torch.as_tensor(await stream.collect())
    wanted = expected.float().movedim(1, -1).cpu()
    assert frames.shape == wanted.shape
    return float((frames - wanted).abs().max())


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in float32: cuDNN takes TF32, of ten bits, unless told otherwise."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@each_family
async def test_equals_diffusers(family: Family) -> None:
    """In float32: equal where equality is promised, else within rounding."""
    # cuDNN may take another algorithm for other shapes: what rounds on a CPU rounds more here.
    allowed = 0.0 if family.tolerance == 0 else 1e-3
    assert await _difference(family, torch.float32, tiled=False) <= allowed


@each_family
async def test_half_precision(family: Family) -> None:
    """In bfloat16, as close as on a CPU, or to some units of its last place."""
    if family.half is None:
        pytest.skip("bfloat16 is not for this family")
    allowed = 0.0 if family.tolerance == 0 else max(family.half, 6e-2)
    assert await _difference(family, torch.bfloat16, tiled=False) <= allowed


@each_family
async def test_spatial_tiles(family: Family) -> None:
    """With tiling on, equal to diffusers' tiles where that is promised."""
    if family.tile is None:
        pytest.skip("diffusers does not tile this family")
    allowed = 0.0 if family.tiled_tolerance == 0 else 1e-3
    assert await _difference(family, torch.float32, tiled=True) <= allowed
