"""AutoencoderKL channels last, over torch's own operations on a CPU: the pictures of vae.decode."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn

from streamvae import collect
from streamvae.codecs import codec_for
from streamvae.fast._portable import PortablePictures, portable_pictures
from tests import tiny
from tests.codecs.walk import noise, whole

CPU = torch.device("cpu")
TOLERANCE = 2e-5


def three(seed: int = 0, **config: object) -> nn.Module:
    """A decoder that upsamples twice."""
    options: dict[str, object] = {
        "block_out_channels": (16, 32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 2,
    }
    return tiny.kl(seed, **(options | config))


def over(vae: nn.Module) -> PortablePictures:
    """The codec, on a CPU."""
    codec = portable_pictures(codec_for(vae), CPU, anywhere=True)
    assert isinstance(codec, PortablePictures), codec
    return codec


def decode(codec: PortablePictures, latents: torch.Tensor) -> torch.Tensor:
    """One chunk of a stream."""
    decoder = codec.decoder()
    with torch.no_grad():
        pixels = decoder.decode(latents)
    decoder.close()
    assert pixels is not None
    return pixels


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 4)])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"mid_block_add_attention": False},
        {"use_post_quant_conv": False},
        {"out_channels": 6, "norm_num_groups": 8},
        {"block_out_channels": (16,), "down_block_types": ("DownEncoderBlock2D",)}
        | {"up_block_types": ("UpDecoderBlock2D",)},
    ],
)
def test_equals_decode(batch: int, size: tuple[int, int], config: dict[str, object]) -> None:
    """Any size, batch and form."""
    vae = three(**config)
    latents = noise(batch, 4, *size)
    given, expected = decode(over(vae), latents), whole(vae, latents)
    assert (given.shape, given.dtype) == (expected.shape, expected.dtype)
    assert float((given - expected).abs().max()) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_halves(dtype: torch.dtype, seed: int) -> None:
    """Rounded once between convolutions, pictures are as near to float32 as those of vae.decode."""
    vae = three(seed)
    latents = noise(2, 4, 12, 9, seed=seed).to(dtype)
    right = whole(vae, latents.float())
    vae.to(dtype)
    mine, own = decode(over(vae), latents), whole(vae, latents)
    assert mine.dtype == dtype
    errors = [float((one.float() - right).norm()) for one in (mine, own)]
    assert errors[0] <= 1.02 * errors[1]


def test_large_means() -> None:
    """Norms of pictures whose mean is far from zero do not lose their variance."""
    vae = three()
    with torch.no_grad():
        vae.decoder.conv_in.bias.add_(300)
    latents = noise(1, 4, 6, 5)
    right = whole(vae.double(), latents.double())
    vae.float()
    errors = [
        float((one - right).abs().max())
        for one in (decode(over(vae), latents), whole(vae, latents))
    ]
    assert errors[0] <= 2 * errors[1]


def test_slices_and_tiles() -> None:
    """Slicing and tiling of the autoencoder are done as it does them, in bands too."""
    vae = three()
    latents = noise(3, 4, 20, 12)
    vae.enable_slicing()
    assert float((decode(over(vae), latents) - whole(vae, latents)).abs().max()) <= TOLERANCE
    vae.enable_tiling()
    vae.tile_latent_min_size, vae.tile_sample_min_size = 8, 32
    one = latents[:1]
    expected, codec = whole(vae, one), over(vae)
    with torch.no_grad():
        bands = torch.cat(list(codec.in_bands(one, "fast")), 2)
    for given in (decode(codec, one), bands):
        assert float((given - expected).abs().max()) <= TOLERANCE


def test_the_whole_way() -> None:
    """Through queues, threads and copies too; a plan is made without launching anything."""
    vae = three()
    latents = noise(4, 4, 5, 6)
    given = collect(latents, over(vae), output="float32", mode="fast")
    expected = whole(vae, latents).movedim(1, -1)
    assert float((torch.as_tensor(given) - expected).abs().max()) <= TOLERANCE
    assert over(vae).plan((4, 4, 5, 6), None, "fast").frames == (1, 1, 1, 1)


def test_changed_weights() -> None:
    """Weights that are written to, or replaced, are read again by the next stream."""
    vae, latents = three(), noise(1, 4, 5, 6)
    codec = over(vae)
    before = decode(codec, latents)
    with torch.no_grad():
        vae.decoder.up_blocks[0].resnets[0].conv1.weight.mul_(1.5)
    assert float((decode(codec, latents) - whole(vae, latents)).abs().max()) <= TOLERANCE
    vae.load_state_dict(three(1).state_dict(), assign=True)
    after = decode(codec, latents)
    assert float((after - whole(vae, latents)).abs().max()) <= TOLERANCE
    assert not torch.equal(before, after)


def test_autocast() -> None:
    """Under autocast too, the dtype of the weights is what is computed in."""
    vae, latents = three(use_post_quant_conv=False), noise(1, 4, 5, 6)
    expected = decode(over(vae), latents)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(decode(over(vae), latents), expected)


class _Brighter(type(tiny.kl())):  # type: ignore[misc]
    def decode(self, z: torch.Tensor, **options: object) -> object:
        return super().decode(z * 2, **options)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda vae: vae.decoder.mid_block.register_forward_hook(print), "hook"),
        (lambda vae: add_hook_to_module(vae, AlignDevicesHook("cpu")), "a hook moves the weights"),
        (lambda vae: vae.decoder.conv_in.double(), "not of one dtype"),
        (lambda vae: setattr(vae.decoder, "conv_act", nn.GELU()), "does not know a GELU"),
        (lambda vae: vae.fuse_qkv_projections(), "does not know"),
        (lambda vae: setattr(vae, "__class__", _Brighter), "a decode of its own"),
    ],
)
def test_says_why_not(change: Callable[[nn.Module], object], why: str) -> None:
    """What would be decoded wrongly is left to the autoencoder, and it is said why."""
    vae = three()
    change(vae)
    reason = portable_pictures(codec_for(vae), CPU, anywhere=True)
    assert isinstance(reason, str)
    assert why in reason


def test_not_for_these() -> None:
    """Other families are left alone without a word, and so are CPUs, where it does not pay."""
    assert portable_pictures(codec_for(tiny.wan21()), CPU, anywhere=True) == ""
    assert portable_pictures(codec_for(three()), CPU) == ""
