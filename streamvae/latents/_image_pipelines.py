"""The table of diffusers' image pipelines: what becomes of their latents.

Read in diffusers 0.42.1, each from the end of its denoising loop on. Not here, though some use the
same autoencoders: pipelines that ignore ``output_type="latent"`` (DiT, latent diffusion, BLIP
diffusion), that decode several pictures of one item (VisualCloze, QwenImageLayered, JoyImage) and
those whose size only they know (LongCatImageEdit, QwenImageEditInpaint).
"""

from __future__ import annotations

from collections.abc import Mapping

from . import _image_rows as rows
from . import _image_space as space
from . import _picture_ends as ends
from . import _picture_sizes as sizes
from ._row import Row

#: What to do with the latents of each pipeline, by its class's name.
ROWS: Mapping[str, Row] = {
    **dict.fromkeys(
        (
            "HunyuanDiTControlNetPipeline",
            "HunyuanDiTPAGPipeline",
            "HunyuanDiTPipeline",
            "LatentConsistencyModelImg2ImgPipeline",
            "LatentConsistencyModelPipeline",
            "StableDiffusionControlNetImg2ImgPipeline",
            "StableDiffusionControlNetInpaintPipeline",
            "StableDiffusionControlNetPAGInpaintPipeline",
            "StableDiffusionControlNetPAGPipeline",
            "StableDiffusionControlNetPipeline",
            "StableDiffusionImageVariationPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline",
            "StableDiffusionInstructPix2PixPipeline",
            "StableDiffusionPAGImg2ImgPipeline",
            "StableDiffusionPAGInpaintPipeline",
            "StableDiffusionPAGPipeline",
            "StableDiffusionPipeline",
        ),
        rows.pictures(space.scaled, ends.censored),
    ),
    **dict.fromkeys(
        (
            "CogView3PlusPipeline",
            "CogView4ControlPipeline",
            "CogView4Pipeline",
            "HunyuanImagePipeline",
            "LuminaPipeline",
            "OmniGenPipeline",
            "StableDiffusion3InpaintPipeline",
            "StableDiffusionDepth2ImgPipeline",
            "StableDiffusionLatentUpscalePipeline",
            "StableUnCLIPImg2ImgPipeline",
            "StableUnCLIPPipeline",
        ),
        rows.pictures(space.scaled),
    ),
    **dict.fromkeys(
        (
            "PixArtAlphaPipeline",
            "PixArtSigmaPAGPipeline",
            "PixArtSigmaPipeline",
            "SanaControlNetPipeline",
            "SanaPAGPipeline",
            "SanaPipeline",
            "SanaSprintImg2ImgPipeline",
            "SanaSprintPipeline",
        ),
        rows.binned(space.scaled),
    ),
    "PRXPipeline": rows.binned(space.shifted_if_any),
    **dict.fromkeys(
        (
            "AuraFlowPipeline",
            "KolorsImg2ImgPipeline",
            "KolorsPAGPipeline",
            "KolorsPipeline",
            "StableDiffusionXLAdapterPipeline",
        ),
        rows.pictures(space.scaled, in_float32=True),
    ),
    **dict.fromkeys(
        (
            "StableDiffusionXLControlNetInpaintPipeline",
            "StableDiffusionXLControlNetUnionInpaintPipeline",
        ),
        rows.pictures(space.scaled, ends.watermarked, in_float32=True),
    ),
    **dict.fromkeys(
        (
            "StableDiffusionXLControlNetImg2ImgPipeline",
            "StableDiffusionXLControlNetPAGImg2ImgPipeline",
            "StableDiffusionXLControlNetPAGPipeline",
            "StableDiffusionXLControlNetPipeline",
            "StableDiffusionXLControlNetUnionImg2ImgPipeline",
            "StableDiffusionXLControlNetUnionPipeline",
            "StableDiffusionXLImg2ImgPipeline",
            "StableDiffusionXLInpaintPipeline",
            "StableDiffusionXLInstructPix2PixPipeline",
            "StableDiffusionXLPAGImg2ImgPipeline",
            "StableDiffusionXLPAGInpaintPipeline",
            "StableDiffusionXLPAGPipeline",
            "StableDiffusionXLPipeline",
        ),
        rows.pictures(space.standardised, ends.watermarked, in_float32=True),
    ),
    **dict.fromkeys(
        (
            "HiDreamImagePipeline",
            "Lumina2Pipeline",
            "StableDiffusion3ControlNetPipeline",
            "StableDiffusion3Img2ImgPipeline",
            "StableDiffusion3PAGImg2ImgPipeline",
            "StableDiffusion3PAGPipeline",
            "StableDiffusion3Pipeline",
            "ZImageControlNetInpaintPipeline",
            "ZImageControlNetPipeline",
            "ZImageImg2ImgPipeline",
            "ZImageInpaintPipeline",
            "ZImageOmniPipeline",
            "ZImagePipeline",
        ),
        rows.pictures(space.shifted),
    ),
    **dict.fromkeys(
        ("DreamLiteMobilePipeline", "DreamLitePipeline"),
        rows.pictures(space.shifted_if_any),
    ),
    "StableDiffusion3ControlNetInpaintingPipeline": rows.pictures(space.shifted_then_cast),
    "GlmImagePipeline": rows.pictures(space.multiplied),
    "BriaFibo2Pipeline": rows.pictures(space.batch_norm_divided),
    "ErnieImagePipeline": rows.patched,
    **dict.fromkeys(
        ("Flux2KleinInpaintPipeline", "Flux2KleinKVPipeline", "Flux2KleinPipeline"),
        rows.pictures(space.as_it_is),
    ),
    **dict.fromkeys(("Kandinsky5I2IPipeline", "Kandinsky5T2IPipeline"), rows.channels_last),
    **dict.fromkeys(
        (
            "ChromaImg2ImgPipeline",
            "ChromaInpaintPipeline",
            "ChromaPipeline",
            "FluxControlImg2ImgPipeline",
            "FluxControlInpaintPipeline",
            "FluxControlNetImg2ImgPipeline",
            "FluxControlNetInpaintPipeline",
            "FluxControlNetPipeline",
            "FluxControlPipeline",
            "FluxFillPipeline",
            "FluxImg2ImgPipeline",
            "FluxInpaintPipeline",
            "FluxPipeline",
            "OvisImagePipeline",
        ),
        rows.tokens(space.shifted),
    ),
    "FluxKontextPipeline": rows.tokens(space.shifted, sizes.of_area),
    "Flux2Pipeline": rows.tokens(space.batch_norm, sizes.asked_unless_image),
    "LongCatImagePipeline": rows.tokens(space.shifted_then_cast),
    "BriaPipeline": rows.tokens(space.shifted_in_float32, whole=True),
    **dict.fromkeys(
        (
            "NucleusMoEImagePipeline",
            "QwenImageControlNetInpaintPipeline",
            "QwenImageControlNetPipeline",
            "QwenImageImg2ImgPipeline",
            "QwenImageInpaintPipeline",
            "QwenImagePipeline",
        ),
        rows.tokens(rows.of_one_frame, video=True),
    ),
    **dict.fromkeys(
        ("QwenImageEditPipeline", "QwenImageEditPlusPipeline"),
        rows.tokens(rows.of_one_frame, sizes.given, video=True),
    ),
    "Krea2Pipeline": rows.tokens(rows.of_one_frame, sizes.rounded_up, video=True),
}
