"""Pictures in bands, held to diffusers' tiled decode, codec by codec."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from streamvae import collect
from streamvae._bands import bands_of
from streamvae._ledger import Ledger
from streamvae._rehearsal import _Walk
from streamvae.abc import Banded, Codec
from streamvae.codecs import codec_for
from tests import tiny
from tests.codecs.walk import noise, whole
from tests.families import images, pictures

SIZES = [(5, 9), (7, 13), (13, 7), (8, 2), (20, 1), (3, 12), (4, 3)]


@dataclass(frozen=True)
class Tiled:
    """A tiny image autoencoder with tiling on."""

    name: str
    make: Callable[[], nn.Module]
    latents: tuple[int, ...]

    def noise(self, height: int, width: int, **options: object) -> torch.Tensor:
        """Latents of one item."""
        return noise(1, *self.latents, height, width, **options)  # type: ignore[arg-type]


def _on(
    make: Callable[[], nn.Module], tile: Callable[[nn.Module], None]
) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        vae = make()
        tile(vae)
        return vae

    return made


def masked(vae: nn.Module, tile: int = 7, overlap: float = 0.3) -> None:
    """AutoencoderTiny's tiles."""
    vae.enable_tiling()
    vae.tile_latent_min_size = tile
    vae.tile_overlap_factor = overlap
    vae.spatial_scale_factor = codec_for(vae).scale


def by_stride(vae: nn.Module) -> None:
    """QwenImage21's tiles."""
    ratio = vae.spatial_compression_ratio
    vae.enable_tiling(6 * ratio, 5 * ratio, 4 * ratio, 3 * ratio)


FAMILIES = [
    *(Tiled(one.name, _on(one.make, one.tile), one.latents[:1]) for one in images.IMAGES),
    *(
        Tiled(
            one.name, _on(one.make, by_stride if "qwen" in one.name else masked), one.latents[:-2]
        )
        for one in pictures.PICTURES
        if "tiny" in one.name or "qwen" in one.name
    ),
    Tiled("tiny_far_overlap", _on(pictures.tiny, lambda vae: masked(vae, 6, 0.7)), (4,)),
]
every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def banded(vae: nn.Module) -> tuple[Codec, Banded]:
    """The codec of ``vae``, as both that it is."""
    codec = codec_for(vae)
    assert isinstance(codec, Banded)
    return codec, codec


@torch.no_grad()
def in_bands(vae: nn.Module, latents: torch.Tensor, mode: str = "exact") -> torch.Tensor | None:
    """All bands joined, held to the rows foretold; None if the picture comes in one piece."""
    codec, codec_of_bands = banded(vae)
    shape = tuple(latents.shape)
    bands = bands_of(codec, shape, mode)
    if not bands:
        return None
    assert bands[0].rows.start == 0
    assert all(one.rows.stop == two.rows.start for one, two in itertools.pairwise(bands))
    assert [band.last for band in bands] == [False] * (len(bands) - 1) + [True]
    parts = list(codec_of_bands.in_bands(latents, mode))
    assert [part.shape[-2] for part in parts] == [len(band.rows) for band in bands]
    joined = torch.cat(parts, -2)
    assert tuple(joined.shape[-2:]) == codec.picture(shape)
    assert bands[-1].height == joined.shape[-2]
    return joined


def expected(vae: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """What diffusers gives, the single frame taken out."""
    decoded = whole(vae, latents)
    return decoded[:, :, 0] if decoded.ndim == 5 else decoded


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_family
def test_equal_to_tiled_decode(family: Tiled, dtype: torch.dtype) -> None:
    """Bands joined equal ``vae.decode`` with tiling on, bit for bit, for any size."""
    vae = family.make().to(dtype)
    banded_sizes = 0
    for size in SIZES:
        latents = family.noise(*size, dtype=dtype)
        joined = in_bands(vae, latents)
        if joined is not None:
            banded_sizes += 1
            assert joined.dtype == expected(vae, latents).dtype
            assert torch.equal(joined, expected(vae, latents)), size
    assert banded_sizes >= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_family
def test_the_whole_way(family: Tiled, dtype: torch.dtype) -> None:
    """Through queues, threads and copies a batch equals ``vae.decode`` with slicing and tiling."""
    vae = family.make().to(dtype)
    latents = noise(2, *family.latents, 13, 7, dtype=dtype)
    given = torch.as_tensor(collect(latents, vae, output="float32"))
    vae.enable_slicing()

    assert torch.equal(given, expected(vae, latents).movedim(1, -1).float())


@pytest.mark.parametrize(("tile", "pixels"), [(8, 16), (7, 14), (6, 13), (5, 9)])
@pytest.mark.parametrize("overlap", [0.25, 0.5, 0.05])
def test_any_tiles(tile: int, pixels: int, overlap: float) -> None:
    """Sizes of tiles that do not divide, and ones that hardly overlap, are blended the same."""
    vae = tiny.kl(use_post_quant_conv=False)
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = tile, pixels
    vae.tile_overlap_factor = overlap
    latents = noise(1, 4, 17, 11)

    joined = in_bands(vae, latents)

    assert joined is not None
    assert torch.equal(joined, expected(vae, latents))


def peak(vae: nn.Module, height: int) -> tuple[int, int, int]:
    """Bytes at most while bands are decoded, at most between them, and at most by ``vae.decode``.

    Besides latents.
    """
    latents = noise(1, 4, height, 12)
    _, codec = banded(vae)
    with torch.no_grad():
        with Ledger() as ledger:
            kept = [ledger.live - band.nbytes for band in codec.in_bands(latents, "exact")]
            bands = ledger.peak
        with Ledger() as other:
            vae.decode(latents)
    return bands, max(kept), other.peak


@pytest.mark.parametrize("make", [tiny.kl, pictures.tiny], ids=["kl", "tiny"])
def test_memory_is_that_of_a_band(make: Callable[[], nn.Module]) -> None:
    """Twice the height takes no more memory, where ``vae.decode`` takes more; little is kept."""
    vae = make()
    if make is tiny.kl:
        vae.enable_tiling()
        vae.tile_latent_min_size, vae.tile_sample_min_size = 8, 16
    else:
        masked(vae, 8, 0.25)

    once, kept, whole_once = peak(vae, 40)
    twice, kept_twice, whole_twice = peak(vae, 80)

    assert (twice, kept_twice) == (once, kept)
    assert whole_twice > 1.2 * whole_once
    assert twice < whole_twice
    # The tail of a row of tiles; of AutoencoderTiny the masks, too.
    picture = 3 * 4 * codec_for(vae).scale ** 2 * 80 * 12
    assert kept < picture / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("blocks", [(1, 1, 1, 1), (3, 2, 1, 1)])
def test_halo(blocks: tuple[int, ...], dtype: torch.dtype) -> None:
    """Rows decoded with a halo are those of the whole picture within rounding, in fast mode only.

    The halo is as far as an impulse is felt.
    """
    vae = pictures.tiny(num_decoder_blocks=blocks).to(dtype)
    vae.tile_latent_min_size = 5
    latents = noise(1, 4, 3 * 5 + 31, 3, dtype=dtype)
    decoded = expected(vae, latents)

    assert in_bands(vae, latents) is None
    joined = in_bands(vae, latents, "fast")
    assert joined is not None
    torch.testing.assert_close(
        joined, decoded, rtol=0, atol=2e-6 if dtype == torch.float32 else 1e-13
    )
    middle = latents.shape[2] // 2
    shaken = latents.clone()
    shaken[:, :, middle] += 3
    felt = (expected(vae, shaken) != decoded).any(dim=3).any(dim=1)[0].nonzero()
    assert 0 <= codec_for(vae).halo - (middle - int(felt.min()) // 8) <= 1  # type: ignore[attr-defined]


def test_no_halo_known() -> None:
    """Upsampling that looks at its neighbours is not decoded with a halo."""
    vae = pictures.tiny(upsample_fn="bilinear")
    vae.tile_latent_min_size = 5

    assert in_bands(vae, noise(1, 4, 20, 3), "fast") is None


def test_decode_of_its_own_is_called() -> None:
    """An autoencoder that tiles in its own way, or a replaced method, is not taken apart."""

    class Other(AutoencoderKL):  # type: ignore[misc]
        def tiled_decode(self, z: torch.Tensor, return_dict: bool = True) -> object:
            return super().tiled_decode(z + 1, return_dict)

    vae = tiny.kl()
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = 6, 12
    latents = noise(1, 4, 13, 7)
    assert in_bands(vae, latents) is not None
    vae.tiled_decode = vae.tiled_decode
    assert in_bands(vae, latents) is None
    del vae.tiled_decode
    vae.__class__ = Other
    assert in_bands(vae, latents) is None


def test_several_items_come_whole() -> None:
    """Chunks of several items, which fast mode takes, are not cut into bands."""
    vae = FAMILIES[0].make()
    codec, _ = banded(vae)

    assert bands_of(codec, (1, 4, 13, 7), "fast")
    assert bands_of(codec, (2, 4, 13, 7), "fast") == ()


@pytest.mark.parametrize(
    "family",
    [one for one in FAMILIES if one.name in {"kl", "tiny", "qwen_image21_patches"}],
    ids=lambda family: family.name,
)
@torch.no_grad()
def test_plan(family: Tiled) -> None:
    """A plan counts bands: pixels of one at a time, and what is kept from one to the next."""
    vae = family.make()
    codec = codec_for(vae)
    shape = (2, *family.latents, 13, 7)
    plan = codec.plan(shape, output="float32")  # type: ignore[attr-defined]
    bands = bands_of(codec, (1, *shape[1:]), "exact")
    height, width = codec.picture(shape)  # type: ignore[misc]
    channels = 4 if "qwen" in family.name else 3

    assert plan.frames == (1, 1)
    assert plan.chunk_bytes == max(len(band.rows) for band in bands) * width * channels * 4
    measured = _Walk(codec, shape, "float32").whole(plan.chunks)
    assert measured is not None
    assert plan.state_bytes == measured.state > 0
    assert plan.launch_bytes == pytest.approx(measured.launch, rel=0.03)
    assert plan.chunk_bytes < height * width * channels * 4 // 2
    assert plan.host_bytes == plan.chunk_bytes * min(7, 2 * len(bands) + 1)
