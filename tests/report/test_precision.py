"""Errors of fast mode against a decode in a wider dtype, for anybody's weights."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKLWan

from streamvae import DeviceError, verify
from streamvae._terminal import VERDICTS
from streamvae.codecs import CachedCausal, Walk, codec_for
from streamvae.fast._wan import step_codec
from streamvae.report import Precision
from streamvae.report._precision import DeviationSum, compare
from streamvae.report._wider import full_precision
from streamvae.testing import TagCodec
from tests import tiny
from tests.codecs.walk import noise
from tests.families.sound import FAMILIES as SOUNDS

CPU = torch.device("cpu")
LATENTS = noise(1, 4, 5, 2, 3)


class Altered(CachedCausal):
    """Alters every chunk of frames in half precision: a step that rounds otherwise."""

    def __init__(self, alter: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
        super().__init__(tiny.wan21().bfloat16(), AutoencoderKLWan)
        self._made_of = ((alter,), {})
        self.alter = alter

    def walk(self) -> Walk:
        return _Altered(super().walk(), self.alter)

    def _maker(self):
        def make(module) -> CachedCausal:
            made = Altered(self.alter)
            made.__dict__.update(CachedCausal(module, AutoencoderKLWan).__dict__)
            return made

        return make

    def renewal(self):
        return lambda: self


class _Altered:
    def __init__(self, walk: Walk, alter) -> None:
        self._walk = walk
        self._alter = alter
        self._chunks = 0

    def push(self, latents: torch.Tensor) -> torch.Tensor | None:
        frames = self._walk.push(latents)
        self._chunks += 1
        if frames is None or frames.dtype != torch.bfloat16:
            return frames
        return self._alter(frames, self._chunks)

    def drain(self) -> torch.Tensor | None:
        return self._walk.drain()

    def clear(self) -> None:
        self._walk.clear()


def measured(codec: object) -> tuple[str, Precision]:
    """The verdict and the errors of a codec in fast mode."""
    found = verify(codec, LATENTS, mode="fast")
    assert found.precision is not None
    return found.verdict, found.precision


def test_equal_frames_have_the_same_error() -> None:
    """Where fast mode is the exact one, its error is that of decode itself, in every chunk."""
    codec = Altered(lambda frames, _: frames)
    verdict, precision = measured(codec)
    assert (verdict, precision.ratio, precision.drift) == ("equal", 1.0, (1.0,) * 5)
    assert precision.streamed == precision.whole
    assert precision.reference == "float32 on cpu"
    assert codec.dtype == torch.bfloat16  # nothing of the user's was cast


def test_the_error_is_that_of_a_decode_in_float32() -> None:
    """What is said of decode itself is what a decode by a float32 copy gives by hand."""
    vae = tiny.wan21().bfloat16()
    whole = measured(vae)[1].whole
    own = vae.decode(LATENTS.bfloat16()).sample.float()
    right = tiny.wan21()
    right.load_state_dict(vae.state_dict())
    true = right.decode(LATENTS.bfloat16().float()).sample
    assert whole.error == pytest.approx(float((own - true).norm() / true.norm()), rel=1e-3)
    assert whole.levels is not None
    assert abs(whole.levels - float((own - true).abs().max()) * 127.5) < 2
    assert whole.psnr is not None
    assert 30 < whole.psnr < 70


def test_float32_is_held_against_float64() -> None:
    """Weights in float32 are measured too."""
    _, precision = measured(tiny.wan21())
    assert precision.reference == "float64 on cpu"
    assert 1e-8 < precision.whole.error < 1e-5


def test_a_better_step_is_accepted() -> None:
    """The fused step's order of operations is nearer to float32 than diffusers', and accepted."""
    codec = step_codec(codec_for(tiny.wan21().bfloat16()), CPU, reference=True)
    verdict, precision = measured(codec)
    assert (verdict, VERDICTS["accepted"]) == ("accepted", 0)
    assert 0 < precision.ratio < 1.02
    assert len(precision.drift) == 5


def test_a_worse_step_is_not_accepted() -> None:
    """A step that rounds more is within rounding, where float64 finds no other fault in it."""
    codec = Altered(lambda frames, _: (frames * 32).round() / 32)
    verdict, precision = measured(codec)
    assert verdict == "within rounding"
    assert precision.ratio > 1.02
    assert not precision.accepted
    assert "not accepted: at most 1.02" in "\n".join(precision.lines())


def test_a_wrong_step_is_different() -> None:
    """A step that is far off is different."""
    verdict, precision = measured(Altered(lambda frames, _: frames.flip(-1)))
    assert verdict == "different"
    assert precision.ratio > 10


def test_one_wrong_pixel_is_seen() -> None:
    """A single pixel far off is not accepted, however little the whole error says of it."""

    def alter(frames: torch.Tensor, chunk: int) -> torch.Tensor:
        frames = frames.clone()
        if chunk == 2:
            frames[0, 0, 0, 0, 0] = -frames[0, 0, 0, 0, 0].sign()
        return frames

    verdict, precision = measured(Altered(alter))
    assert verdict == "different"
    assert precision.has_outliers
    assert any("levels off" in line for line in precision.lines())


def test_drift_is_seen() -> None:
    """An error that grows from chunk to chunk shows in the ratios over chunks."""
    _, precision = measured(Altered(lambda frames, chunk: frames * (1 + 0.02 * chunk)))
    assert list(precision.drift) == sorted(precision.drift)
    assert precision.drift[-1] > 1.5 * precision.drift[0]


def test_in_the_diffusion_model_s_space() -> None:
    """The reference gets the latents as the decoder gets them, denormalised in its dtype."""
    vae = tiny.wan21().bfloat16()
    given = verify(vae, LATENTS, normalized=True, mode="fast").precision
    denormalised = codec_for(vae).denormalize(LATENTS.bfloat16())
    assert given == verify(vae, denormalised, mode="fast").precision


def test_pictures_and_sound() -> None:
    """Pictures are measured item by item; of sound there are no levels."""
    found = verify(tiny.kl().bfloat16(), noise(3, 4, 3, 4), mode="fast").precision
    assert found is not None
    assert len(found.drift) == 3
    assert found.whole.levels is not None
    sound = SOUNDS[0]
    heard = verify(sound.make(), sound.noise(max(sound.lengths)), mode="fast").precision
    assert heard is not None
    assert (heard.whole.levels, heard.whole.psnr) == (None, None)
    assert "levels" not in "\n".join(heard.lines())


def test_exact_mode_measures_none() -> None:
    """Only fast mode is held against a wider dtype."""
    assert verify(tiny.wan21(), LATENTS).precision is None


def test_without_a_reference_a_note_says_why() -> None:
    """Where there is no wider dtype, or no autoencoder, the verdict is as in exact mode."""
    found = verify(tiny.wan21().double(), LATENTS.double(), mode="fast")
    assert found.precision is None
    assert any("no wider dtype than float64" in note for note in found.notes)
    latents = torch.arange(5.0).view(1, 1, 5, 1, 1)
    tags = verify(TagCodec(), latents, mode="fast", reference=lambda z: torch.zeros(1, 3, 5, 8, 8))
    assert tags.precision is None
    assert any(note.startswith("no errors were measured") for note in tags.notes)


def test_a_device_that_is_not_there() -> None:
    """Where the reference cannot decode is said before anything is loaded."""
    with pytest.raises(DeviceError):
        verify("no vae", mode="fast", reference_device="cuda:77")


def test_autocast_does_not_reach_the_reference() -> None:
    """The caller's autocast, which casts float32 layers, leaves the reference in float32."""
    vae = tiny.wan21().bfloat16()
    before = measured(vae)[1].whole.error
    with torch.autocast("cpu", torch.bfloat16):
        assert measured(vae)[1].whole.error == pytest.approx(before, rel=0.2)


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_no_tf32_meanwhile(before: str) -> None:
    """float32 is computed as such inside, and what was set is put back, also after an error."""
    usual = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before)
    tf32 = torch.backends.cudnn.allow_tf32
    try:
        with pytest.raises(ZeroDivisionError), full_precision(CPU):
            assert torch.get_float32_matmul_precision() == "highest"
            assert torch.backends.cudnn.allow_tf32 is False
            1 / 0  # noqa: B018
        assert torch.get_float32_matmul_precision() == before
        assert torch.backends.cudnn.allow_tf32 is tf32
    finally:
        torch.set_float32_matmul_precision(usual)


def test_no_tf32_that_was_asked_for_by_the_newer_switches() -> None:
    """Where torch's newer switches are in use, which the older ones cannot tell of, as well."""
    newer = pytest.importorskip("torch.backends.cudnn").conv
    parts = (newer, torch.backends.cuda.matmul, torch.backends.mkldnn.conv)
    usual = torch.backends.fp32_precision
    before = [part.fp32_precision for part in parts]
    torch.backends.fp32_precision = "tf32"
    asked = [part.fp32_precision for part in parts]
    assert asked[0] == "tf32"
    try:
        with full_precision(CPU):
            assert [part.fp32_precision for part in parts] == ["ieee"] * 3
            assert torch.nn.Conv3d(2, 2, 3)(torch.ones(1, 2, 3, 3, 3)).isfinite().all()
        assert [part.fp32_precision for part in parts] == asked
    finally:
        torch.backends.fp32_precision = usual
    assert [part.fp32_precision for part in parts] == before


def test_sums_of_errors() -> None:
    """Errors of chunks add up as those of the whole clip; both at nothing are equal."""
    right = torch.full((1, 2, 2, 2, 3), 0.5)
    mine, its = DeviationSum("video"), DeviationSum("video")
    for offset in (0.1, 0.0):
        mine.add(right + offset, right)
        its.add(right + offset / 2, right)
        mine.add_bytes(
            torch.full((1, 2, 2, 2, 3), 190 if offset else 191).byte(), right.byte() + 191
        )
        its.add_bytes(right.byte() + 191, right.byte() + 191)
    found = compare("nothing", mine, its)
    assert found.streamed.error == pytest.approx(0.1 / 0.5 / math.sqrt(2), rel=1e-5)
    assert found.streamed.levels == 1
    assert found.streamed.psnr == pytest.approx(10 * math.log10(255**2 / 0.5))
    assert (found.whole.levels, found.whole.psnr) == (0, math.inf)
    assert found.ratio == pytest.approx(2, rel=1e-5)
    assert found.drift == (pytest.approx(2, rel=1e-5), 1.0)
    assert compare("nothing", mine, DeviationSum("video", [0.0, 0.0])).ratio == math.inf
