"""fastvae as the step: taken where it can be, said why not where it cannot, the same frames."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import diffusers
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import nn
from torch.nn.utils import parametrizations

from streamvae import UsageError, collect, stream_decode
from streamvae.abc import Codec
from streamvae.codecs import codec_for
from streamvae.fast import FusedWan, fastest
from tests import tiny
from tests.codecs.walk import noise, walk, whole

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
INSTALLED = importlib.util.find_spec("fastvae") is not None


@pytest.fixture(params=["stand-in", "real"])
def fastvae(request: pytest.FixtureRequest) -> Iterator[None]:
    """An importable fastvae: a stand-in of the same interface, or the package itself."""
    if request.param == "real":
        if not INSTALLED:
            pytest.skip("fastvae is not installed")
        yield
        return
    path = str(Path(__file__).parent / "installed")
    real = {name: sys.modules.pop(name) for name in list(sys.modules) if _of_fastvae(name)}
    sys.path.insert(0, path)
    yield
    sys.path.remove(path)
    for name in [name for name in sys.modules if _of_fastvae(name)]:
        del sys.modules[name]
    sys.modules.update(real)


def _of_fastvae(name: str) -> bool:
    return name.partition(".")[0] == "fastvae"


def fused(vae: nn.Module) -> Codec:
    """The codec for a CUDA device, where there may be none: what it launches runs anywhere."""
    stepped = fastest(codec_for(vae), CUDA)
    assert isinstance(stepped.codec, FusedWan)
    assert stepped.step().startswith("fastvae")
    (note,) = stepped.notes
    assert "AutoencoderKLWan by fastvae" in note
    assert "no fused kernels: weights are float32, not bfloat16" in note
    return stepped.codec


@pytest.mark.usefixtures("fastvae")
@pytest.mark.parametrize("make", [tiny.wan21, tiny.wan22])
def test_equals_decode(make: Callable[[], nn.Module]) -> None:
    """Frames are those of vae.decode within rounding, any chunk and length, one latent, batch 2."""
    vae = make()
    channels = codec_for(vae).channels
    for length, count in ((1, 1), (5, 1), (5, 2), (2, 3)):
        latents = noise(2, channels, length, 3, 2)
        codec = fused(vae)
        codec.check(tuple(latents.shape))
        expected, given = whole(vae, latents), walk(codec, latents, count, "fast")
        assert (given.shape, given.dtype) == (expected.shape, expected.dtype)
        assert float((given - expected).abs().max()) <= 5e-6


@pytest.mark.usefixtures("fastvae")
def test_tiles_and_slices() -> None:
    """Tiling and slicing of the autoencoder are done as it does them."""
    vae = tiny.wan21()
    vae.enable_tiling(32, 32, 24, 24)
    vae.enable_slicing()
    latents = noise(2, 4, 3, 5, 7)
    given = walk(fused(vae), latents, 1, "fast")
    assert float((given - whole(vae, latents)).abs().max()) <= 5e-6


@pytest.mark.usefixtures("fastvae")
def test_the_whole_way() -> None:
    """Through queues, threads and copies too; a plan is made without launching a kernel."""
    vae = tiny.wan21()
    latents = noise(1, 4, 4, 3, 2)
    given = collect(latents, fused(vae), output="float32", mode="fast")
    expected = whole(vae, latents).movedim(1, -1)
    assert float((torch.as_tensor(given) - expected).abs().max()) <= 5e-6
    assert fused(vae).plan((1, 4, 4, 3, 2), None, "fast").frames == (1, 4, 4, 4)  # type: ignore[attr-defined]


@pytest.mark.usefixtures("fastvae")
def test_streams_share_nothing() -> None:
    """Two streams over one autoencoder in turns, and one after a change of weights, are right."""
    vae = tiny.wan21()
    clips = [noise(1, 4, 3, 3, 2, seed=seed) for seed in (1, 2)]
    alone = [walk(fused(vae), clip, 1, "fast") for clip in clips]
    decoders = [fused(vae).decoder() for _ in clips]
    with torch.no_grad():
        for turn in range(3):
            for k, decoder in enumerate(decoders):
                part = decoder.decode(clips[k][:, :, turn : turn + 1])
                at = 0 if turn == 0 else 4 * turn - 3
                assert part is not None
                assert torch.equal(part, alone[k][:, :, at : 4 * turn + 1])
        for decoder in decoders:
            decoder.close()
        vae.decoder.conv_out.weight.mul_(0.5)
    assert not torch.equal(walk(fused(vae), clips[0], 1, "fast"), alone[0])


def _layers(vae: nn.Module) -> nn.Module:
    return vae.decoder.mid_block.resnets[0]


def _adapted(vae: nn.Module) -> None:
    class Adapted(type(_layers(vae).conv1)):  # type: ignore[misc]
        pass

    _layers(vae).conv1.__class__ = Adapted


def _patched(vae: nn.Module) -> None:
    forward = _layers(vae).forward

    def doubled(*args: object, **options: object) -> object:
        return 2 * forward(*args, **options)

    _layers(vae).forward = doubled


@pytest.mark.usefixtures("fastvae")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda vae: vae.double(), "it does not compute in float64"),
        (_adapted, "Adapted in the decoder would be passed over"),
        (lambda vae: parametrizations.weight_norm(_layers(vae).conv1), "the parametrised weights"),
        (
            lambda vae: _layers(vae).register_forward_hook(print),
            "hook (print) on a WanResidualBlock",
        ),
        (_patched, "a forward of its own (_patched.<locals>.doubled) on a WanResidualBlock"),
        (lambda vae: add_hook_to_module(vae, AlignDevicesHook("cpu")), "a hook moves the weights"),
    ],
)
def test_says_why_not(change: Callable[[nn.Module], object], why: str) -> None:
    """What fastvae would decode wrongly is left to the autoencoder, and it is said why."""
    vae = tiny.wan21()
    change(vae)
    stepped = fastest(codec_for(vae), CUDA)
    assert not isinstance(stepped.codec, FusedWan)
    assert stepped.step().startswith("eager (")
    assert why in stepped.step()
    (note,) = stepped.notes
    assert "AutoencoderKLWan by its own decoder: " in note
    assert why in note


@pytest.mark.usefixtures("fastvae")
async def test_info_says_the_step() -> None:
    """The info names the step that fast mode took and why; exact mode never looks for another."""
    latents = noise(1, 4, 2, 3, 2)
    on_cpu = "no fused kernels, no channels last, no fastvae: this is cpu, not CUDA"
    for mode, dtype, step in (
        ("fast", torch.float64, f"eager ({on_cpu})"),
        ("fast", torch.float32, f"eager ({on_cpu})"),
        ("exact", torch.float32, "eager"),
    ):
        stream = stream_decode(latents.to(dtype), tiny.wan21().to(dtype), mode=mode)
        await stream.collect()
        assert stream.info.step == step
        assert stream.info.notes == ()


@pytest.mark.skipif(INSTALLED, reason="fastvae is installed")
def test_not_installed() -> None:
    """Without the package Wan's own decoder runs; other families do not ask for it."""
    step = fastest(codec_for(tiny.wan21()), CUDA).step()
    assert "no fastvae: it is not installed" in step
    assert "fastvae" not in fastest(codec_for(tiny.qwen_image()), CUDA).step()
    assert "fastvae" not in fastest(codec_for(tiny.kl()), CUDA).step()
    assert fastest(codec_for(tiny.oobleck()), CUDA).step() == "eager"


@pytest.mark.usefixtures("fastvae")
def test_a_fastvae_that_cannot() -> None:
    """An autoencoder that this fastvae does not rebuild is one clear error, and a way out."""

    class Own(diffusers.AutoencoderKLWan):
        pass

    vae = tiny.wan21()
    vae.__class__ = Own
    codec = FusedWan(vae, diffusers.AutoencoderKLWan)
    vae.decoder = nn.Identity()
    with pytest.raises(UsageError, match="mode='exact' does without it"):
        codec.core  # noqa: B018
