from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import accelerate
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module
from diffusers.hooks import HookRegistry, apply_group_offloading, group_offloading
from diffusers.hooks import ModelHook as DiffusersHook
from torch import nn
from torch.nn.modules import module as nn_module
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from streamvae import collect
from streamvae._errors import UsageError
from streamvae.codecs import codec_for
from streamvae.codecs._walk import WalkingCodec
from tests.codecs.walk import finish, noise, pieces, walk
from tests.families import causal, lookahead, sound, vidtok, windows
from tests.families.partition import cogvideox, kvae_video, magvit
from tests.tiny import qwen_image, wan21

Change = Callable[[nn.Module], object]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A family whose walk calls layers, latents for it, and a block (of `blocks`) to put things on.

    Attributes:
        make: The autoencoder.
        shape: Of latents.
        block: Name of a module whose children are called in its place.
        call: Whether ``decode`` wants a timestep.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    block: str
    call: bool = False

    def codec(self, vae: nn.Module) -> WalkingCodec:
        """Its codec."""
        return codec_for(vae, lookahead.conditioned(vae) if self.call else {})

    @torch.no_grad()
    def streamed(self, vae: nn.Module) -> torch.Tensor:
        """What a stream gives."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            return walk(self.codec(vae), noise(*self.shape))

    @torch.no_grad()
    def whole(self, vae: nn.Module) -> torch.Tensor:
        """What ``vae.decode`` gives."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            return self.codec(vae).whole(noise(*self.shape))


CASES = {
    "mochi": Case(causal.mochi, (1, 4, 3, 2, 2), "decoder.up_blocks.0"),
    "hunyuan15": Case(causal.hunyuan15, (1, 4, 3, 2, 2), "decoder.up_blocks.0.upsamplers.0"),
    "cosmos": Case(causal.cosmos, (1, 4, 3, 2, 2), "decoder.unpatch_embed"),
    "ltx": Case(lookahead.ltx, (1, 8, 3, 2, 2), "decoder.up_blocks.1"),
    "ltx-0.9.1": Case(lookahead.ltx_091, (1, 8, 3, 2, 2), "decoder.mid_block.resnets.0", call=True),
    "ltx2": Case(lookahead.ltx2, (1, 8, 3, 2, 2), "decoder"),
    "vidtok": Case(vidtok.vidtok, (1, 4, 3, 2, 2), "decoder.mid.attn_1"),
    "vidtok_two_ways": Case(
        functools.partial(vidtok.vidtok, is_causal=False), (1, 4, 4, 2, 2), "decoder.mid.block_1"
    ),
    "ltx2_audio": Case(sound.ltx2_audio, (1, 4, 5, 4), "decoder.up.0.block.0"),
}
each = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def close(given: torch.Tensor, expected: torch.Tensor, atol: float = 3e-5) -> None:
    """Equal but for rounding."""
    torch.testing.assert_close(given, expected, rtol=0, atol=atol)


def doubled(*given: object) -> object:
    """A forward hook, of whatever signature: twice what the module gave."""
    return 2 * given[-1]


@each
@torch.no_grad()
def test_entered(case: Case) -> None:
    """Modules whose hooks are passed over are all those that vae.decode calls and a walk does not.

    So nothing is passed over unseen, and nothing is refused that a walk calls.
    """
    vae = case.make()
    codec, latents = case.codec(vae), noise(*case.shape)
    called: set[nn.Module] = set()
    for part in vae.decoder.modules():
        part.register_forward_hook(lambda part, *_: called.add(part))
    codec.whole(latents)
    by_decode = set(called)
    called.clear()

    steps = codec.walk()  # no stream: that would refuse the hooks
    for piece in pieces(codec, latents):
        steps.push(codec.prologue(piece))
    for _ in range(codec.drains(case.shape[2])):
        steps.drain()

    entered = list(codec.entered())
    assert len(entered) == len(set(entered))
    assert set(entered) == by_decode - called
    assert called <= by_decode


@each
def test_every_module(case: Case) -> None:
    """A hook on any module that is passed over is refused by the module's name; off again, not."""
    vae = case.make()
    codec = case.codec(vae)
    names = {part: name for name, part in vae.named_modules()}
    for part in codec.entered():
        hook = part.register_forward_hook(doubled)
        with pytest.raises(UsageError, match=rf"expected {names[part]} of .* a forward hook \(do"):
            codec.check(case.shape)
        hook.remove()
        codec.check(case.shape)


@each
@torch.no_grad()
def test_modules_that_are_called(case: Case) -> None:
    """Hooks on layers, and on blocks that are called, change frames as in vae.decode."""
    vae = case.make()
    entered = set(case.codec(vae).entered())
    before = case.whole(vae)
    for part in set(vae.decoder.modules()) - entered:
        part.register_forward_hook(lambda *given: 1.01 * given[-1])

    expected = case.whole(vae)

    assert (expected - before).abs().max() > 1e-3
    close(case.streamed(vae), expected, 1e-4)


def hook_with_kwargs(block: nn.Module) -> None:
    """A hook that is given keyword arguments."""
    block.register_forward_hook(doubled, with_kwargs=True)


def hook_always_called(block: nn.Module) -> None:
    """A hook that is called after failures, too."""
    block.register_forward_hook(doubled, always_call=True)


def pre_hook(block: nn.Module) -> None:
    """A hook before the forward."""
    block.register_forward_pre_hook(doubled)


def pre_hook_with_kwargs(block: nn.Module) -> None:
    """A hook before the forward that is given keyword arguments."""
    block.register_forward_pre_hook(lambda *_: None, with_kwargs=True)


def patched(block: nn.Module) -> None:
    """A forward in the place of the class's, which says that it is that."""
    forward = block.forward

    @functools.wraps(forward)
    def twice(*args: object, **options: object) -> object:
        return 2 * forward(*args, **options)

    block.forward = twice


def method_of_another(block: nn.Module) -> None:
    """The class's forward, of another module."""
    other = torch.nn.Identity()
    other.__class__ = type(block)
    block.forward = other.forward


def subclass(block: nn.Module) -> None:
    """A subclass with another forward."""

    class Doubled(type(block)):
        def forward(self, *args: object, **options: object) -> object:
            return 2 * super().forward(*args, **options)

    block.__class__ = Doubled


def subclass_with_call(block: nn.Module) -> None:
    """A subclass with another call."""

    class Doubled(type(block)):
        def __call__(self, *args: object, **options: object) -> object:
            return 2 * super().__call__(*args, **options)

    block.__class__ = Doubled


def accelerate_hook(block: nn.Module) -> None:
    """A hook of accelerate's."""
    add_hook_to_module(block, ModelHook())


def accelerate_hooks(block: nn.Module) -> None:
    """Several of them, the first of which does nothing."""
    add_hook_to_module(block, AlignDevicesHook(io_same_device=True))
    add_hook_to_module(block, ModelHook(), append=True)


def offloaded(block: nn.Module) -> None:
    """Weights that come with the block's forward, of all in it."""
    add_hook_to_module(block, AlignDevicesHook(CPU, offload=True, place_submodules=True))


def offloaded_whole(block: nn.Module) -> None:
    """Weights that come with the block's forward, and stay."""
    accelerate.cpu_offload_with_hook(block, CPU)


def diffusers_hook(block: nn.Module) -> None:
    """A hook of diffusers'."""
    HookRegistry.check_if_exists_or_initialize(block).register_hook(DiffusersHook(), "mine")


def compiled_and_hooked(block: nn.Module) -> None:
    """A hook on a compiled block."""
    block.compile(backend="eager")
    block.register_forward_hook(doubled)


KINDS: dict[Change, str] = {
    hook_with_kwargs: r"got a forward hook \(doubled\)",
    hook_always_called: r"got a forward hook \(doubled\)",
    pre_hook: r"got a forward pre-hook \(doubled\)",
    pre_hook_with_kwargs: "got a forward pre-hook",
    patched: r"got a forward of its own \(\w+\.forward\)",
    method_of_another: r"got a forward of its own \(\w+\.forward\)",
    subclass: r"got a .*Doubled with a forward of its own",
    subclass_with_call: r"got a .*Doubled with a __call__ of its own",
    accelerate_hook: "got accelerate's ModelHook",
    accelerate_hooks: "got accelerate's ModelHook",
    offloaded: "got offloading by accelerate's AlignDevicesHook.* offload leaf by leaf",
    offloaded_whole: "got offloading by accelerate's CpuOffload.* offload leaf by leaf",
    diffusers_hook: "got diffusers' ModelHook",
    compiled_and_hooked: r"got a forward hook \(doubled\)",
}


@each
@pytest.mark.parametrize("change", KINDS)
def test_kinds(case: Case, change: Change) -> None:
    """Whatever a block does besides diffusers' forward is refused when the next stream begins."""
    vae = case.make()
    codec = case.codec(vae)
    block = vae.get_submodule(case.block)
    codec.check(case.shape)
    change(block)
    decoder = codec.decoder()

    with pytest.raises(UsageError, match=rf"expected {case.block} of .*{KINDS[change]}"):
        codec.check(case.shape)
    with pytest.raises(UsageError, match="would be passed over.* or decode with vae.decode"):
        decoder.decode(next(pieces(codec, noise(*case.shape))))


@each
def test_patched_class(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward that was put into diffusers' own class is found, too."""
    vae = case.make()
    kind = type(vae.get_submodule(case.block))
    forward = kind.forward

    @functools.wraps(forward)
    def twice(*args: object, **options: object) -> object:
        return 2 * forward(*args, **options)

    monkeypatch.setattr(kind, "forward", twice)

    with pytest.raises(UsageError, match=rf"{kind.__name__} with a forward of its own"):
        case.codec(vae).check(case.shape)


@each
def test_replaced_by_another(case: Case) -> None:
    """A module of another kind in a block's place is named, before its children are looked for."""
    vae = case.make()
    codec = case.codec(vae)
    parent, _, name = case.block.rpartition(".")
    setattr(vae.get_submodule(parent), name, nn.Sequential(vae.get_submodule(case.block)))

    with pytest.raises(UsageError, match=rf"expected {case.block} of .* got a .*Sequential"):
        codec.check(case.shape)


def hooked_and_not(block: nn.Module) -> None:
    """A hook that was removed."""
    block.register_forward_hook(doubled).remove()


def accelerated_and_not(block: nn.Module) -> None:
    """A hook of accelerate's that was removed; it leaves a forward behind."""
    add_hook_to_module(block, ModelHook())
    accelerate.hooks.remove_hook_from_module(block)


def in_registry_and_not(block: nn.Module) -> None:
    """A hook of diffusers' that was removed; it leaves a registry behind."""
    diffusers_hook(block)
    block._diffusers_hook.remove_hook("mine")


def backward_hooks(block: nn.Module) -> None:
    """Hooks for gradients."""
    block.register_full_backward_hook(lambda *_: None)
    block.register_full_backward_pre_hook(lambda *_: None)


def same_device(block: nn.Module) -> None:
    """A hook that moves outputs to where inputs were."""
    add_hook_to_module(block, AlignDevicesHook(io_same_device=True))


def subclass_alone(block: nn.Module) -> None:
    """A subclass that overrides nothing."""
    block.__class__ = type("Named", (type(block),), {})


def compiled(block: nn.Module) -> None:
    """Compiled in place."""
    block.compile(backend="eager")


def compiled_forward(block: nn.Module) -> None:
    """A compiled forward."""
    block.forward = torch.compile(block.forward, backend="eager")


@each
@pytest.mark.parametrize(
    "change",
    [
        hooked_and_not,
        accelerated_and_not,
        in_registry_and_not,
        backward_hooks,
        same_device,
        subclass_alone,
        compiled,
        compiled_forward,
    ],
)
def test_accepted(case: Case, change: Change) -> None:
    """What was removed again, does nothing while decoding or is the same function is accepted."""
    vae = case.make()
    expected = case.whole(vae)
    change(vae.get_submodule(case.block))

    close(case.streamed(vae), expected)
    said = any("compiled is not used" in note for note in case.codec(vae).notes(case.shape))
    assert said == (change in {compiled, compiled_forward})


@contextmanager
def on_all_modules(hook: Callable[..., object], *, before: bool) -> Iterator[None]:
    """Have a hook on all modules."""
    register = (
        nn_module.register_module_forward_pre_hook
        if before
        else nn_module.register_module_forward_hook
    )
    handle = register(hook)
    try:
        yield
    finally:
        handle.remove()


@each
@pytest.mark.parametrize("before", [False, True])
def test_hooks_on_all_modules(case: Case, before: bool) -> None:
    """A hook on all modules is passed over on some, so it is refused; torch's own only watch."""
    vae = case.make()
    codec = case.codec(vae)
    with on_all_modules(lambda *_: None, before=before), pytest.raises(UsageError, match="on all "):
        codec.check(case.shape)
    with FlopCounterMode(display=False) as counter:
        codec.check(case.shape)
        case.streamed(vae)
    assert counter.get_total_flops()


class Halved(nn.Module):
    """A parametrisation."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


@each
def test_parametrisations(case: Case) -> None:
    """Parametrised weights count, of layers and of parameters that blocks have for themselves."""
    vae = case.make()
    before = case.whole(vae)
    for part in list(vae.decoder.modules()):
        for name, weight in list(part.named_parameters(recurse=False)):
            if weight.ndim > 1 or part in set(case.codec(vae).entered()):
                parametrize.register_parametrization(part, name, Halved())

    expected = case.whole(vae)

    assert (expected - before).abs().max() > 1e-2
    close(case.streamed(vae), expected)


class Adapter(nn.Module):
    """A layer in the place of another, as LoRA has it; it has no attribute but ``base``."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return 1.25 * self.base(hidden)


@each
def test_replaced_layers(case: Case) -> None:
    """Layers that were replaced, as LoRA's are, are called as vae.decode calls them."""
    vae = case.make()
    before = case.whole(vae)
    for part in list(vae.decoder.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.Conv3d | nn.Conv2d | nn.Conv1d | nn.Linear):
                setattr(part, name, Adapter(child))

    expected = case.whole(vae)

    assert (expected - before).abs().max() > 1e-2
    close(case.streamed(vae), expected, 1e-4)


@each
def test_weight_norm(case: Case) -> None:
    """The old weight_norm of a layer, which is a hook on it, computes its weight."""
    vae = case.make()
    for part in vae.decoder.modules():
        if isinstance(part, nn.Conv3d | nn.Conv2d | nn.Conv1d):
            with pytest.warns(FutureWarning):
                nn.utils.weight_norm(part)
            part.weight_g.data.mul_(0.5)

    close(case.streamed(vae), case.whole(vae))


Group = group_offloading.ModuleGroup


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are away are NaN: on a CPU diffusers' two places are one."""
    kept: dict[int, torch.Tensor] = {}

    def weights(group: Group) -> list[torch.Tensor]:
        own = [*group.parameters, *group.buffers]
        return own + [one for part in group.modules for one in part.parameters()]

    def away(group: Group) -> None:
        for one in weights(group):
            if one.is_floating_point():
                kept.setdefault(id(one), one.data.clone())
                one.data = torch.full_like(one.data, torch.nan)

    def back(group: Group) -> None:
        for one in weights(group):
            if id(one) in kept:
                one.data = kept[id(one)].clone()

    monkeypatch.setattr(Group, "offload_", away)
    monkeypatch.setattr(Group, "onload_", back)


def by_block(vae: nn.Module) -> None:
    """Offload the decoder as diffusers' documentation has it."""
    apply_group_offloading(
        vae.decoder,
        onload_device=CPU,
        offload_device=CPU,
        offload_type="block_level",
        num_blocks_per_group=1,
    )


def by_leaf(vae: nn.Module) -> None:
    """Offload the decoder layer by layer."""
    apply_group_offloading(
        vae.decoder, onload_device=CPU, offload_device=CPU, offload_type="leaf_level"
    )


@each
@pytest.mark.usefixtures("played")
def test_group_offloading_by_block(case: Case) -> None:
    """It is refused with what to do instead."""
    vae = case.make()
    codec = case.codec(vae)
    by_block(vae)

    with pytest.raises(UsageError, match="got group offloading by block .*leaf_level"):
        codec.check(case.shape)


@each
@pytest.mark.usefixtures("played")
def test_group_offloading_by_leaf(case: Case) -> None:
    """What is advised instead works, also for parameters and buffers that belong to no layer."""
    vae = case.make()
    expected = case.whole(vae)
    by_leaf(vae)
    close(case.whole(vae), expected)

    close(case.streamed(vae), expected)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (magvit, (1, 4, 3, 2, 2)),
        (cogvideox, (1, 4, 4, 2, 2)),
        (windows.hunyuan_video, (1, 4, 6, 2, 2)),
    ],
)
@pytest.mark.usefixtures("played")
def test_decoders_that_are_called(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """Where the decoder is called as it is, its hooks and blocks that come and go are right."""
    vae = make()
    by_block(vae)
    vae.decoder.register_forward_hook(
        lambda _, __, given: (2 * given[0], *given[1:]) if isinstance(given, tuple) else 2 * given
    )
    codec, latents = codec_for(vae), noise(*shape)
    with torch.no_grad():
        expected = codec.whole(latents)

    assert expected.isfinite().all()
    close(walk(codec, latents), expected)


@pytest.mark.parametrize("name", ["decode", "_decode"])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (wan21, (1, 4, 3, 2, 2)),
        (qwen_image, (1, 4, 3, 2, 2)),
        (kvae_video, (1, 4, 5, 2, 2)),
        (magvit, (1, 4, 3, 2, 2)),
        (causal.mochi, (1, 4, 3, 2, 2)),
        (lookahead.ltx, (1, 8, 3, 2, 2)),
        (vidtok.vidtok, (1, 4, 3, 2, 2)),
        (windows.hunyuan_video, (1, 4, 6, 2, 2)),
        (windows.allegro, (1, 4, 6, 8, 8)),
        (windows.minimax_h3, (1, 24, 7, 2, 2)),
        (sound.kvae, (1, 4, 8)),
        (sound.ltx2_audio, (1, 4, 5, 4)),
    ],
)
def test_decode_patched_later(
    make: Callable[[], nn.Module], shape: tuple[int, ...], name: str
) -> None:
    """A decode that was replaced after the codec was made is found when a stream begins."""
    vae = make()
    codec = codec_for(vae)
    shape = (shape[0], codec.channels, *shape[2:])
    codec.check(shape)
    if not hasattr(vae, name):
        pytest.skip(f"{codec.family} has no {name}")
    plain = getattr(vae, name)
    setattr(vae, name, functools.partial(plain))

    with pytest.raises(UsageError, match=rf"got a {name} of its own"):
        codec.check(shape)
    setattr(vae, name, torch.compile(plain, backend="eager"))
    codec.check(shape)


def test_tiled_decode_patched() -> None:
    """The decode of tiles counts while tiling is on, and only where the codec does not call it."""
    vae = lookahead.ltx()
    vae.tiled_decode = lambda *_: None
    codec_for(vae).check((1, 8, 3, 2, 2))
    vae.enable_tiling()
    with pytest.raises(UsageError, match="got a tiled_decode of its own"):
        codec_for(vae).check((1, 8, 3, 2, 2))
    vae.use_framewise_decoding = True
    codec_for(vae).check((1, 8, 3, 2, 2))
    vae._temporal_tiled_decode = lambda *_: None
    with pytest.raises(UsageError, match="got a _temporal_tiled_decode of its own"):
        codec_for(vae).check((1, 8, 3, 2, 2))


@pytest.mark.parametrize("make", [lookahead.ltx, lookahead.ltx2])
def test_windows_call_the_decoder(make: Callable[[], nn.Module]) -> None:
    """With use_framewise_decoding the decoder is called as it is, hooks and all."""
    vae = make()
    vae.use_framewise_decoding = True
    vae.decoder.register_forward_hook(doubled)
    vae.decoder.up_blocks[0].register_forward_hook(doubled)
    latents = noise(1, 8, 4, 2, 2)
    codec = codec_for(vae)
    with torch.no_grad():
        expected = codec.whole(latents)

    close(walk(codec, latents), expected)


def test_before_any_sink(tmp_path) -> None:
    """The error comes before a file is made of the stream."""
    vae = lookahead.ltx()
    vae.decoder.register_forward_hook(doubled)
    with pytest.raises(UsageError, match="expected decoder of AutoencoderKLLTXVideo"):
        collect(noise(1, 8, 3, 2, 2), vae, sinks=tmp_path / "a.npy")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="a forward hook"):
        codec_for(vae).plan((1, 8, 3, 2, 2))


def test_added_between_chunks() -> None:
    """A stream that has begun goes on with what it began with; the next is refused."""
    case = CASES["hunyuan15"]
    vae = case.make()
    codec, latents = case.codec(vae), noise(*case.shape)
    first, *others = pieces(codec, latents)
    decoder = codec.decoder()
    with torch.no_grad():
        parts = [decoder.decode(first)]
        hook = vae.decoder.register_forward_hook(lambda *_: None)
        parts += [decoder.decode(piece) for piece in others]
        parts += finish(codec, decoder, case.shape[2])

        with pytest.raises(UsageError, match="a forward hook"):
            codec.decoder().decode(first)
    hook.remove()
    close(torch.cat(parts, 2), case.whole(vae))
