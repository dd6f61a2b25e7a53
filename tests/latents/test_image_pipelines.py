"""Image pipelines of diffusers: streaming their latents gives the pictures they would give."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import replace

import accelerate
import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import CLIPConfig

import streamvae
from streamvae._errors import LatentsError, UsageError
from streamvae.latents import of_pipeline
from streamvae.latents._image_pipelines import ROWS
from tests.codecs.walk import noise
from tests.latents.image_pipelines import CASES, tokens, transformers, unets
from tests.latents.pipelines.case import Case, bare
from tests.releases import released
from tests.tiny import _seeded

try:
    from transformers import CLIPImageProcessorPil
except ImportError:  # before 5 it has the plain name
    from transformers import CLIPImageProcessor as CLIPImageProcessorPil

#: diffusers itself warns of what it deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:diffusers", "ignore::FutureWarning:diffusers"
)

#: Cases of one picture: Chroma does not repeat its mask for several, and large pictures take long.
SINGLE = ("ChromaPipeline", "PixArtSigmaPipeline-resized")


def _run(case: Case, pipe, batch: int, output_type: str):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return pipe(
            **case.call(),
            num_images_per_prompt=batch,
            generator=torch.Generator().manual_seed(0),
            output_type=output_type,
            return_dict=False,
        )[0]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("case", [case for case in CASES if str(case) not in SINGLE], ids=str)
def test_streamed_latents_give_the_pictures_of_the_pipeline(case: Case, batch: int) -> None:
    """With the same seed the streamed bytes are those of the ordinary PIL pictures.

    Pictures of a batch are streamed one by one, as ``vae.enable_slicing()`` decodes them.
    """
    _compare(case, batch)


@pytest.mark.parametrize("case", [case for case in CASES if str(case) in SINGLE], ids=str)
def test_a_streamed_latent_gives_the_picture_of_the_pipeline(case: Case) -> None:
    """With the same seed the streamed bytes are those of the ordinary PIL picture."""
    _compare(case, 1)


#: Of each formula one: in bfloat16 another order of operations would give other bytes.
FORMULAS = (
    "BriaPipeline",
    "ErnieImagePipeline",
    "Flux2Pipeline",
    "FluxPipeline",
    "QwenImagePipeline",
    "SanaPipeline",
    "StableDiffusionXLPipeline-statistics",
    "ZImagePipeline",
)


@pytest.mark.parametrize("case", [case for case in CASES if str(case) in FORMULAS], ids=str)
def test_streamed_latents_give_the_pictures_in_bfloat16(case: Case) -> None:
    """In bfloat16 as well the streamed bytes are those of the ordinary PIL picture."""
    _compare(replace(case, call=lambda: _narrow(case.call())), 1, torch.bfloat16)


def _narrow(call: Mapping[str, object]) -> dict[str, object]:
    def narrow(value: object) -> object:
        if isinstance(value, list):
            return [narrow(each) for each in value]
        floating = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(torch.bfloat16) if floating else value

    return {name: narrow(value) for name, value in call.items()}


def _compare(case: Case, batch: int, dtype: torch.dtype = torch.float32) -> None:
    pipe = case.build()
    if dtype != torch.float32:
        pipe.to(dtype)
    pipe.vae.enable_slicing()
    weights = pipe.vae.dtype
    expected = np.stack([np.asarray(picture) for picture in _run(case, pipe, batch, "pil")])
    latents = _run(case, pipe, batch, "latent")
    for name in case.taken_off:
        setattr(pipe, name, None)
    told = {name: case.call()[name] for name in case.told}

    streamed = streamvae.collect(latents, pipe, call=told)

    assert len(expected) == batch
    assert np.ptp(expected) > 12
    # Where the autoencoder is one of videos, each picture comes as one of one frame.
    assert streamed.shape in {expected.shape, expected[:, None].shape}
    assert np.array_equal(streamed.reshape(expected.shape), expected)
    assert pipe.vae.dtype == weights


#: What the source of a pipeline's call says, for each way of a few rows.
_SAID = {
    "StableDiffusionPipeline": "latents / self.vae.config.scaling_factor",
    "CogView4Pipeline": "/ self.vae.config.scaling_factor",
    "AuraFlowPipeline": "/ self.vae.config.scaling_factor",
    "StableDiffusionXLPipeline": "latents * latents_std / self.vae.config.scaling_factor + latents",
    "StableDiffusion3Pipeline": "/ self.vae.config.scaling_factor) + self.vae.config.shift_factor",
    "SanaPipeline": "resize_and_crop_tensor(image, orig_width, orig_height)",
    "FluxPipeline": "/ self.vae.config.scaling_factor) + self.vae.config.shift_factor",
    "QwenImagePipeline": "latents = latents / latents_std + latents_mean",
    "Flux2KleinPipeline": "latents = latents * latents_bn_std + latents_bn_mean",
}


@pytest.mark.parametrize("name", sorted(ROWS))
def test_listed_pipelines_say_what_the_table_says(name: str) -> None:
    """Every listed pipeline is diffusers', gives latents, and has the formula of its row."""
    pipeline = released(name)
    if "dummy" in pipeline.__module__:
        pytest.skip(f"{name} needs a package that is not installed")
    source = inspect.getsource(pipeline.__call__)
    assert '"latent"' in source
    assert "self.vae.decode(" in source
    for other, fragment in _SAID.items():
        if ROWS[name] is ROWS[other]:
            # The step before is named otherwise in latent consistency.
            assert fragment.removeprefix("latents") in source


def _checker(threshold: float) -> StableDiffusionSafetyChecker:
    """A safety checker that objects to what is nearer to its concepts than ``threshold``."""
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    vision = {"image_size": 16, "patch_size": 8, "num_attention_heads": 2} | text
    config = CLIPConfig(
        text_config=text | {"num_attention_heads": 2}, vision_config=vision, projection_dim=8
    )
    checker = _seeded(lambda: StableDiffusionSafetyChecker(config), 0)
    checker.concept_embeds_weights.fill_(threshold)
    checker.special_care_embeds_weights.fill_(2.0)
    return checker


@pytest.mark.parametrize(("threshold", "black"), [(2.0, False), (-2.0, True)])
def test_the_safety_checker_is_heeded(threshold: float, black: bool) -> None:
    """Where a pipeline has a safety checker, what it objects to is streamed black as well."""
    pipe = bare(
        "StableDiffusionPipeline",
        **unets.stable(),
        safety_checker=_checker(threshold),
        feature_extractor=CLIPImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
    )
    case = Case("StableDiffusionPipeline", unets.stable, unets.call)
    expected = np.stack([np.asarray(picture) for picture in _run(case, pipe, 1, "pil")])
    assert bool(expected.max() == 0) is black

    streamed = streamvae.collect(_run(case, pipe, 1, "latent"), pipe)

    assert np.array_equal(streamed, expected)


class _Stripe:
    """A watermark: what `diffusers` puts one on by is a package of its own."""

    def apply_watermark(self, images: torch.Tensor) -> torch.Tensor:
        """Paint the uppermost row."""
        images = images.cpu().float()
        images[:, :, 0] = 0.5
        return images


def test_the_watermark_is_put_on() -> None:
    """Where an SDXL pipeline marks its pictures, the streamed ones are marked as well."""
    pipe = bare("StableDiffusionXLPipeline", **unets.large())
    pipe.watermark = _Stripe()
    case = Case("StableDiffusionXLPipeline", unets.large, unets.large_call)
    expected = np.stack([np.asarray(picture) for picture in _run(case, pipe, 1, "pil")])

    streamed = streamvae.collect(_run(case, pipe, 1, "latent"), pipe)

    assert np.array_equal(streamed, expected)
    assert (streamed[:, 0] == streamed[:, 0, :1]).all()


def _half() -> tuple[diffusers.DiffusionPipeline, torch.Tensor, np.ndarray]:
    """An SDXL pipeline in float16, latents, and what they give in float32."""
    pipe = bare("StableDiffusionXLPipeline", **unets.large(force_upcast=True))
    pipe.vae.half()
    latents = noise(1, 4, 4, 4, dtype=torch.float16)
    wide = copy.deepcopy(pipe.vae).float()
    with torch.no_grad():
        decoded = wide.decode(latents.float() / wide.config.scaling_factor, return_dict=False)[0]
    return pipe, latents, pipe.image_processor.postprocess(decoded, "np")


def test_upcasting_leaves_the_autoencoder_alone() -> None:
    """Decoding in float32, as force_upcast asks for, neither changes nor copies back the user's."""
    pipe, latents, expected = _half()
    before = {name: value.clone() for name, value in pipe.vae.state_dict().items()}

    streamed = streamvae.collect(latents, pipe, output="float32")

    assert np.array_equal((streamed * 0.5 + 0.5).clip(0, 1), expected)
    assert pipe.vae.encoder is not None
    for name, value in pipe.vae.state_dict().items():
        assert value.dtype == torch.float16
        assert torch.equal(value, before[name])


def test_upcasting_an_offloaded_autoencoder() -> None:
    """A hooked autoencoder is upcast where its hook decodes; one without weights is refused."""
    pipe, latents, expected = _half()
    accelerate.hooks.add_hook_to_module(
        pipe.vae, accelerate.hooks.AlignDevicesHook(execution_device="cpu")
    )
    streamed = streamvae.collect(latents, pipe, output="float32")
    assert np.array_equal((streamed * 0.5 + 0.5).clip(0, 1), expected)
    assert hasattr(pipe.vae, "_hf_hook")

    accelerate.hooks.remove_hook_from_module(pipe.vae, recurse=True)
    pipe.vae.enable_layerwise_casting(torch.float16, torch.float16)
    with pytest.raises(UsageError, match="cast layer by layer"):
        of_pipeline(pipe, {})

    pipe = _half()[0]
    accelerate.cpu_offload(pipe.vae, execution_device=torch.device("cpu"))
    with pytest.raises(UsageError, match=r"force_upcast.*float32 or bfloat16"):
        of_pipeline(pipe, {})


def test_pictures_pasted_over_the_original_are_refused() -> None:
    """What becomes of pictures under padding_mask_crop needs the original, so it is refused."""
    pipe = bare("StableDiffusionInpaintPipeline", **unets.stable(9))
    with pytest.raises(UsageError, match="without padding_mask_crop"):
        of_pipeline(pipe, {"padding_mask_crop": 8})


@pytest.mark.parametrize("dense", [True, False])
def test_tokens_may_lie_in_memory_either_way(dense: bool) -> None:
    """Tokens are unpacked alike whether they lie one by one or channel by channel."""
    pipe = bare("FluxPipeline", **tokens.flux())
    packed = noise(3, 4 * 6, 16)
    given = packed if dense else packed.mT.contiguous().mT
    call = {"height": 16, "width": 24}
    unpacked = pipe._unpack_latents(packed, 16, 24, pipe.vae_scale_factor)
    factor, shift = pipe.vae.config.scaling_factor, pipe.vae.config.shift_factor
    _, _, preparation = of_pipeline(pipe, call)

    viewed = preparation.view(given)

    assert viewed.shape == preparation.view(given.to("meta")).shape == unpacked.shape
    assert viewed.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()
    prepared = preparation.prepare(viewed[1:], 1, torch.float32)
    assert torch.equal(prepared, (unpacked / factor + shift)[1:])


def test_tokens_of_another_size_are_refused() -> None:
    """Tokens that do not fill the picture asked for (or the default one) say what to pass."""
    pipe = bare("FluxPipeline", **tokens.flux())
    for call in ({}, {"height": 16, "width": 16}):
        with pytest.raises(LatentsError, match=r"tokens.*height and width, pass them"):
            streamvae.collect(noise(1, 4 * 6, 16), pipe, call=call)
    with pytest.raises(LatentsError, match=r"\(B, S, C\).*got shape \(1, 4, 8, 12\)"):
        streamvae.collect(noise(1, 4, 8, 12), pipe, call={"height": 16, "width": 24})
    with pytest.raises(LatentsError, match="neither|contiguous|as the pipeline gives"):
        streamvae.collect(noise(1, 4 * 6, 32)[..., ::2], pipe, call={"height": 16, "width": 24})


def test_sizes_that_only_an_image_tells_are_asked_for() -> None:
    """A pipeline that takes its size from an image needs to be told what size that was."""
    edit = bare("QwenImageEditPipeline", **tokens.qwen())
    with pytest.raises(UsageError, match="expected height and width as the call"):
        of_pipeline(edit, {})
    flux2 = bare("Flux2Pipeline", **tokens.flux2())
    with pytest.raises(UsageError, match="expected height and width as the call"):
        of_pipeline(flux2, {"image": unets.picture()})


def test_pictures_over_a_video_autoencoder_come_at_once() -> None:
    """Latents of pictures one by one would be taken for a video, so they are refused."""
    pipe = bare("QwenImagePipeline", **tokens.qwen())
    call = {"height": 64, "width": 96}
    with pytest.raises(LatentsError, match="all pictures at once"):
        streamvae.collect([noise(1, 4 * 6, 16), noise(1, 4 * 6, 16)], pipe, call=call)


def test_a_size_to_resize_to_is_asked_for() -> None:
    """Pictures of a pipeline's own size are not resized to one that was not asked for."""
    pipe = bare("PixArtSigmaPipeline", **transformers.pixart(32))
    latents = noise(1, 4, 8, 8)
    with pytest.raises(UsageError, match="pictures of 16 x 16"):
        streamvae.collect(latents, pipe)
    assert streamvae.collect(latents, pipe, call={"height": 9, "width": 13}).shape == (1, 9, 13, 3)


def test_pictures_with_channels_last_are_turned() -> None:
    """Kandinsky5's latents, (B, 1, h, w, C), are decoded as its pipeline turns and scales them."""
    pipe = bare("Kandinsky5T2IPipeline", vae=unets.stable_vae(), transformer=unets.unet())
    latents = noise(2, 1, 3, 5, 4)
    turned = latents.reshape(2, 1, 1, 3, 5, 4).permute(0, 1, 5, 2, 3, 4).reshape(2, 4, 3, 5)
    expected = torch.cat([
        pipe.vae.decode(each / 0.18215, return_dict=False)[0] for each in turned.split(1)
    ])

    streamed = streamvae.collect(latents, pipe, output="float32")

    assert np.array_equal(streamed, expected.permute(0, 2, 3, 1).numpy())
    with pytest.raises(LatentsError, match="as the pipeline gives them"):
        streamvae.collect(noise(1, 4, 3, 5), pipe)
