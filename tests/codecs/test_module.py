from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import ModelHook, add_hook_to_module

from streamvae._errors import DeviceError
from streamvae.codecs import codec_for
from tests import tiny
from tests.codecs.walk import finish, noise, pieces, walk, whole
from tests.releases import offload_in_groups

Make = Callable[[], torch.nn.Module]
SHAPES = {
    tiny.wan21: (1, 4, 3, 2, 2),
    tiny.wan22: (1, 6, 3, 2, 2),
    tiny.qwen_image: (1, 4, 3, 2, 2),
    tiny.kl: (3, 4, 3, 3),
    tiny.oobleck: (1, 8, 30),
}
FAMILIES = pytest.mark.parametrize("make", SHAPES)


class Onload(ModelHook):
    """Keeps the true weights, as an offload hook does, and brings them before a forward."""

    def __init__(self, execution_device: object) -> None:
        self.execution_device = execution_device
        self.calls = 0
        self.weights: dict[str, torch.Tensor] = {}

    def offload(self, module: torch.nn.Module) -> None:
        """Take the weights away: what is left would give wrong frames."""
        self.weights = {key: value.clone() for key, value in module.state_dict().items()}
        for parameter in module.parameters():
            parameter.data.fill_(torch.nan)

    def pre_forward(self, module: torch.nn.Module, *args: object, **kwargs: object) -> object:
        self.calls += 1
        module.load_state_dict(self.weights)
        return args, kwargs


@FAMILIES
@torch.no_grad()
def test_hook_fires_before_every_chunk(make: Make) -> None:
    """Weights that somebody sends away between chunks are brought back for each chunk."""
    vae = make()
    latents = noise(*SHAPES[make])
    hook = Onload("cpu")
    codec = codec_for(vae)
    expected = walk(codec, latents)
    add_hook_to_module(vae, hook)
    decoder, parts = codec.decoder(), []

    for piece in pieces(codec, latents):
        hook.offload(vae)
        parts.append(decoder.decode(piece))
    assert hook.calls >= len(parts) - parts.count(None)
    hook.offload(vae)
    parts += finish(codec, decoder, latents.shape[codec.axis])

    given = torch.cat([part for part in parts if part is not None], 0 if codec.axis == 0 else 2)
    assert torch.equal(given, expected)


@FAMILIES
@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_model_offload(make: Make, device: str | torch.device) -> None:
    """A VAE under enable_model_cpu_offload's hook runs on the hook's device, as vae.decode does."""
    vae, _ = cpu_offload_with_hook(make(), device)
    latents = noise(*SHAPES[make])
    codec = codec_for(vae)

    assert codec.device == torch.device("cpu")
    torch.testing.assert_close(walk(codec, latents), whole(vae, latents), rtol=0, atol=2e-6)


@pytest.mark.parametrize("make", [make for make in SHAPES if make is not tiny.oobleck])
def test_sequential_offload(make: Make) -> None:
    """A VAE whose layers keep their weights elsewhere (on meta) runs, bit for bit as before."""
    latents = noise(*SHAPES[make])
    expected = walk(codec_for(make()), latents)
    vae = make()
    dtype = vae.dtype
    cpu_offload(vae, torch.device("cpu"))
    assert next(vae.decoder.parameters()).is_meta
    codec = codec_for(vae)

    assert codec.device == torch.device("cpu")
    assert codec.dtype == dtype
    assert torch.equal(walk(codec, latents), expected)


def test_sequential_offload_of_sound() -> None:
    """Offloading layer by layer breaks weight normalisation, in diffusers too, and is refused."""
    vae = tiny.oobleck(strides=(4,))
    cpu_offload(vae, torch.device("cpu"))

    with pytest.raises(DeviceError, match="layer by layer"):
        codec_for(vae).check((1, 8, 4))


def test_execution_device() -> None:
    """The hooks' device counts, also inside a chain of hooks; without one, the weights' does."""
    vae = tiny.kl()
    codec = codec_for(vae)
    add_hook_to_module(vae, Onload(None))
    assert codec.device == torch.device("cpu")

    add_hook_to_module(vae, Onload("cuda:1"), append=True)
    assert codec.device == torch.device("cuda:1")

    other = tiny.kl()
    add_hook_to_module(other.decoder, Onload(torch.device("cuda", 2)))
    assert codec_for(other).device == torch.device("cuda:2")


def test_meta_without_a_hook() -> None:
    """Weights on meta that no hook brings are refused by name."""
    codec = codec_for(tiny.wan21().to("meta"))

    with pytest.raises(DeviceError, match="weights on the meta device and no offload hook"):
        _ = codec.device


@pytest.mark.parametrize("make", [tiny.wan21, tiny.qwen_image, tiny.kl])
def test_group_offload(make: Make) -> None:
    """A VAE under diffusers' group offloading streams as before."""
    latents = noise(*SHAPES[make])
    expected = walk(codec_for(make()), latents)
    vae = make()
    offload_in_groups(vae)
    codec = codec_for(vae)

    assert codec.device == torch.device("cpu")
    assert torch.equal(walk(codec, latents), expected)


def test_layerwise_casting() -> None:
    """Under layerwise casting the dtype is the one the weights compute in."""
    vae = tiny.wan21()
    vae.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    latents = noise(*SHAPES[tiny.wan21])
    codec = codec_for(vae)

    assert codec.dtype == torch.float32
    assert torch.equal(walk(codec, latents), whole(vae, latents))
