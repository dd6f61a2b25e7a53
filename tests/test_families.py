"""Every family of video autoencoders held to the law: a stream gives what diffusers gives."""

from __future__ import annotations

import functools
import gc
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

import tests.families
from streamvae import UsageError, collect, stream_decode
from streamvae.abc import Codec
from streamvae.codecs import codec_for, known_families
from tests.codecs.walk import begun, finish, noise, pieces
from tests.families.family import Family


def _families() -> Iterator[Family]:
    for module in pkgutil.iter_modules(tests.families.__path__):
        found = importlib.import_module(f"tests.families.{module.name}")
        for family in getattr(found, "FAMILIES", ()):
            if isinstance(family, Family):  # there are pictures, too
                yield family


FAMILIES = {family.name: family for family in _families()}
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def _cases(of: str) -> pytest.MarkDecorator:
    """One case for each family and each of its ``of``."""
    cases = [(family, one) for family in FAMILIES.values() for one in getattr(family, of)]
    ids = [f"{family.name}-{one}" for family, one in cases]
    return pytest.mark.parametrize(("family", of), cases, ids=ids)


@functools.cache
def model(name: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The family's autoencoder, made once; tests that change one make their own."""
    return FAMILIES[name].make().to(dtype)


@dataclass(frozen=True)
class Streamed:
    """What a stream gave, and what diffusers gives."""

    frames: torch.Tensor
    expected: torch.Tensor

    @property
    def difference(self) -> float:
        """The greatest, in units of the decoder's output."""
        assert self.frames.shape == self.expected.shape
        return float((self.frames.double() - self.expected.double()).abs().max())


@torch.no_grad()
def streamed(
    family: Family,
    vae: torch.nn.Module,
    latents: torch.Tensor,
    count: int | None = None,
    mode: str = "exact",
) -> Streamed:
    """Walk a codec over latents as the launch thread does; what noise there is starts from 0."""
    axis = 2 if latents.ndim == 5 else 0
    call = family.call(latents.shape[axis])
    codec = codec_for(vae, call)
    codec.check(tuple(latents.shape))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = begun(codec, latents)
        parts = [decoder.decode(piece) for piece in pieces(codec, latents, count, mode)]
        given = [part for part in parts if part is not None]
        given += finish(codec, decoder, latents.shape[axis])
        torch.manual_seed(0)
        expected = family.reference(vae, latents, family.call(latents.shape[axis]))
    frames = torch.cat(given, 2)
    assert frames.dtype == expected.dtype
    assert codec.frames(latents.shape[axis]) == expected.shape[2]
    assert codec.picture(tuple(latents.shape)) == tuple(expected.shape[3:])
    return Streamed(frames, expected)


def test_every_video_family_is_here() -> None:
    """Every class that can be streamed as video is held to the law by these tests."""
    video = {
        name
        for name in known_families()
        if name not in _OTHER and getattr(importlib.import_module("diffusers"), name, None)
    }
    assert video <= {type(model(name)).__name__ for name in FAMILIES}


#: Pictures and sound.
_OTHER = {
    "AsymmetricAutoencoderKL",
    "AutoencoderDC",
    "AutoencoderKL",
    "AutoencoderKLFlux2",
    "AutoencoderKLHunyuanImage",
    "AutoencoderKLHunyuanImageRefiner",
    "AutoencoderKLKVAE",
    "AutoencoderKLQwenImage21",
    "AutoencoderOobleck",
    "AutoencoderRAE",
    "AutoencoderTiny",
    "ConsistencyDecoderVAE",
    "AutoencoderKLKVAEAudio",
    "AutoencoderKLLTX2Audio",
    "AutoencoderKLMiniMaxH3Audio",
    "AutoencoderSAME",
    "Cosmos3AVAEAudioTokenizer",
    "LTX2Vocoder",
    "LTX2VocoderWithBWE",
    "LongCatAudioDiTVae",
    "MMAudioVAE",
    "MMAudioVocoder",
    "MiniMaxMusic3Vocoder",
    "VQModel",
}


@_cases("lengths")
def test_equals_diffusers(family: Family, lengths: int) -> None:
    """Frames equal diffusers' own, bit for bit or within the rounding that is promised."""
    vae = model(family.name)
    for batch in (1, 2) if family.batched else (1,):
        given = streamed(family, vae, family.noise(lengths, batch=batch))
        assert given.difference <= family.tolerance


@_cases("lengths")
def test_rounding_not_error(family: Family, lengths: int) -> None:
    """In float64 nothing is left but rounding, however the latents are cut."""
    vae = model(family.name, torch.float64)
    latents = family.noise(lengths, dtype=torch.float64)
    for count in family.chunks:
        assert streamed(family, vae, latents, count).difference <= family.wide
    for count in family.fast_chunks:
        assert streamed(family, vae, latents, count, "fast").difference <= family.wide


@_cases("chunks")
def test_chunks(family: Family, chunks: int | None) -> None:
    """Any chunk size that exact mode takes gives the same frames."""
    latents = family.noise(max(family.lengths))
    given = streamed(family, model(family.name), latents, chunks)
    assert given.difference <= family.tolerance


@_cases("fast_chunks")
def test_fast_chunks(family: Family, fast_chunks: int) -> None:
    """Chunk sizes that change bits are refused in exact mode and round in fast mode."""
    vae = model(family.name)
    latents = family.noise(max(family.lengths))

    with pytest.raises(UsageError, match="fast"):
        streamed(family, vae, latents, fast_chunks)
    given = streamed(family, vae, latents, fast_chunks, "fast")
    assert given.difference <= max(family.tolerance, 2e-5)


@pytest.mark.parametrize(
    "family", [one for one in FAMILIES.values() if one.half is not None], ids=lambda one: one.name
)
def test_half_precision(family: Family) -> None:
    """In bfloat16, frames are as close to diffusers' as they are said to be."""
    vae = model(family.name, torch.bfloat16)
    latents = family.noise(max(family.lengths), dtype=torch.bfloat16)
    assert family.half is not None
    assert streamed(family, vae, latents).difference <= family.half


@pytest.mark.parametrize(
    "family", [one for one in FAMILIES.values() if one.tile], ids=lambda one: one.name
)
def test_spatial_tiles(family: Family) -> None:
    """With tiling on, frames are those of diffusers' tiles, a chunk of each at a time."""
    vae = family.make()
    assert family.tile is not None
    untiled = streamed(family, vae, family.noise(max(family.lengths), size=family.tiled))
    family.tile(vae)

    given = streamed(family, vae, family.noise(max(family.lengths), size=family.tiled))
    assert given.difference <= family.tiled_tolerance
    same = given.expected.shape == untiled.expected.shape
    assert not same or not torch.equal(given.expected, untiled.expected), "no tiles were laid"


class Part:
    """A stream that is walked a chunk at a time."""

    def __init__(self, codec: Codec, latents: torch.Tensor) -> None:
        self.codec = codec
        self.latents = latents.shape[codec.axis]
        self.chunks = pieces(codec, latents)
        self.decoder = begun(codec, latents)
        self.frames: list[torch.Tensor] = []

    @torch.no_grad()
    def step(self) -> bool:
        """Decode a chunk; at the end drain and close."""
        chunk = next(self.chunks, None)
        if chunk is None:
            self.frames += finish(self.codec, self.decoder, self.latents)
            return False
        decoded = self.decoder.decode(chunk)
        if decoded is not None:
            self.frames.append(decoded)
        return True


@each_family
def test_streams_share_nothing(family: Family) -> None:
    """Two streams in turns, ``vae.decode`` between chunks, one given up, one afterwards: right."""
    vae = model(family.name)
    length = max(family.lengths)
    codec = codec_for(vae, family.call(length))
    latents = [family.noise(length, seed=seed) for seed in (1, 2, 3)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        alone = []
        for one in latents[:2]:
            torch.manual_seed(0)
            part = Part(codec, one)
            while part.step():
                pass
            alone.append(torch.cat(part.frames, 2))

        given_up = Part(codec, latents[2])
        given_up.step()
        given_up.step()
        parts = []
        for one in latents[:2]:
            torch.manual_seed(0)
            parts.append(Part(codec, one))
            parts[-1].step()
        going = list(parts)
        while going:
            going = [part for part in going if part.step()]
            state = torch.random.get_rng_state()
            family.reference(vae, latents[2], family.call(length))
            torch.random.set_rng_state(state)
            given_up.decoder.close()
        torch.manual_seed(0)
        parts.append(Part(codec, latents[0]))
        while parts[-1].step():
            pass
    for part, expected in zip(parts, [*alone, alone[0]], strict=True):
        assert torch.equal(torch.cat(part.frames, 2), expected)


@each_family
def test_weights_cast_between_streams(family: Family) -> None:
    """A codec follows its weights when they are cast, and cast back."""
    vae = family.make()
    length = min(family.lengths)
    latents = family.noise(length)
    call = family.call(length)
    codec = codec_for(vae, call)
    for dtype, limit in ((torch.float64, family.wide), (torch.float32, family.tolerance)):
        vae.to(dtype)
        assert codec.dtype == dtype
        given = streamed(family, vae, latents.to(dtype))
        part = Part(codec, latents.to(dtype))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            while part.step():
                pass
        assert given.difference <= limit
        if not call:  # a generator of the call's has moved on
            assert torch.equal(torch.cat(part.frames, 2), given.frames)


def live() -> int:
    """Bytes of all tensors alive."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) is torch.Tensor:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.fixture
def _few_objects() -> Iterator[None]:
    """What was there before the test is not looked through, which takes most of a second."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@each_family
@torch.no_grad()
@pytest.mark.usefixtures("_few_objects")
def test_constant_memory(family: Family) -> None:
    """What a stream keeps between chunks does not grow with its length, but where that is said."""
    if family.growing:
        pytest.skip("keeps keys and values of every frame, by design")
    vae = model(family.name)
    length = 4 * max(family.lengths)
    latents = family.noise(length)
    codec = codec_for(vae, family.call(length))
    decoder = codec.decoder()
    before = live()
    kept = []
    chunks = list(pieces(codec, latents))
    asked = {round(part * (len(chunks) - 1) / 7) for part in range(8)}  # to ask takes its time
    for index in range(len(chunks)):
        decoder.decode(chunks.pop(0))
        if index in asked:
            kept.append(live() - before - sum(chunk.nbytes for chunk in chunks))
    decoder.close()

    assert max(kept[len(kept) // 2 :]) <= max(kept[: len(kept) // 2])
    assert live() - before <= 0


@each_family
def test_the_whole_way(family: Family) -> None:
    """Through queues, threads and copies the frames are the same, and as many as foretold."""
    vae = model(family.name)
    length = max(family.lengths)
    latents = family.noise(length)
    call = family.call(length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = family.reference(vae, latents, call).movedim(1, -1).float()
        torch.manual_seed(0)
        given = collect(latents, vae, output="float32", call=family.call(length))
    assert float((torch.as_tensor(given) - expected).abs().max()) <= family.tolerance


@each_family
async def test_latents_one_by_one(family: Family) -> None:
    """Latents that come one by one give the same frames; where they must be counted, it is said."""
    vae = model(family.name)
    length = max(family.lengths)
    latents = family.noise(length)
    axis = 2 if latents.ndim == 5 else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = family.reference(vae, latents, family.call(length)).movedim(1, -1).float()
        torch.manual_seed(0)
        one_by_one = [one.clone() for one in latents.split(1, axis)]
        stream = stream_decode(one_by_one, vae, output="float32", call=family.call(length))
        frames = torch.as_tensor(await stream.collect())
    if codec_for(vae, family.call(length)).needs_length:
        assert any("one by one" in note for note in stream.info.notes)
    assert float((frames - expected).abs().max()) <= max(family.tolerance, 5e-6)


@each_family
def test_bad_latents(family: Family) -> None:
    """Latents of another rank or number of channels are refused, naming what came."""
    codec = codec_for(model(family.name), family.call(3))
    channels, height, width = family.latents
    good = tuple(family.noise(3).shape)
    for shape in (good[:-1], (*good, 1), (*good[:-1], 0)):
        with pytest.raises(ValueError, match=rf"got shape \({shape[0]}, "):
            codec.check(shape)
    other = tuple(channels + 1 if size == channels else size for size in good[:2])
    with pytest.raises(ValueError, match="expected latents"):
        codec.check((*other, *good[2:]))
    assert noise(*good).shape[-2:] == (height, width)
