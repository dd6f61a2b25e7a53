"""The table of diffusers' video pipelines: what becomes of their latents, or why none of it here.

Read in diffusers 0.42.1, each from the end of its denoising loop on.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import _by_channel, _by_factor, _by_frame, _cosmos, _ltx
from ._row import Row

#: What to do with the latents of each pipeline, by its class's name.
ROWS: Mapping[str, Row] = {
    **dict.fromkeys(
        (
            "AnyFlowFARPipeline",
            "AnyFlowPipeline",
            "LucyEditPipeline",
            "SkyReelsV2DiffusionForcingPipeline",
            "SkyReelsV2ImageToVideoPipeline",
            "SkyReelsV2Pipeline",
            "WanImageToVideoPipeline",
            "WanPipeline",
            "WanVideoToVideoPipeline",
        ),
        _by_channel.normalised,
    ),
    "ChronoEditPipeline": _by_channel.without_reasoning,
    "MotifVideoImage2VideoPipeline": _by_channel.multiplied,
    "MotifVideoPipeline": _by_channel.multiplied,
    "SanaImageToVideoPipeline": _by_channel.in_buckets,
    "SanaVideoPipeline": _by_channel.in_buckets,
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": _by_channel.before_last_image,
    "WanVACEPipeline": _by_channel.after_references,
    "Cosmos2TextToImagePipeline": _cosmos.picture,
    "Cosmos2VideoToWorldPipeline": _cosmos.multiplied,
    "Cosmos2_5_PredictBasePipeline": _cosmos.predicted,
    "Cosmos3OmniPipeline": _cosmos.omni,
    "CosmosTextToWorldPipeline": _cosmos.by_index,
    "CosmosVideoToWorldPipeline": _cosmos.by_index,
    **dict.fromkeys(
        (
            "HunyuanSkyreelsImageToVideoPipeline",
            "HunyuanVideo15ImageToVideoPipeline",
            "HunyuanVideo15Pipeline",
            "HunyuanVideoPipeline",
            "Kandinsky6TI2VAPipeline",
        ),
        _by_factor.scaled,
    ),
    "AllegroPipeline": _by_factor.in_windows,
    "CogVideoXFunControlPipeline": _by_factor.frames_first,
    "CogVideoXImageToVideoPipeline": _by_factor.frames_first_padded,
    "CogVideoXPipeline": _by_factor.frames_first_padded,
    "CogVideoXVideoToVideoPipeline": _by_factor.frames_first,
    "ConsisIDPipeline": _by_factor.frames_first,
    "EasyAnimateControlPipeline": _by_factor.by_reciprocal,
    "EasyAnimateInpaintPipeline": _by_factor.by_reciprocal,
    "EasyAnimatePipeline": _by_factor.by_reciprocal,
    "HunyuanVideoImageToVideoPipeline": _by_factor.scaled_whole,
    "Kandinsky5I2VPipeline": _by_factor.scaled_channels_last,
    "Kandinsky5T2VPipeline": _by_factor.scaled_channels_last,
    "MochiPipeline": _by_factor.by_channel_and_factor,
    "LTX2ConditionPipeline": _ltx.denormalised,
    "LTX2DFRPipeline": _ltx.denormalised_padded,
    "LTX2DFRTemporalRefinePipeline": _ltx.denormalised,
    "LTX2ImageToVideoPipeline": _ltx.denormalised,
    "LTX2InContextPipeline": _ltx.denormalised,
    "LTX2LatentUpsamplePipeline": _ltx.upsampled,
    "LTX2Pipeline": _ltx.denormalised,
    "LTXConditionPipeline": _ltx.unpacked,
    "LTXImageToVideoPipeline": _ltx.packed,
    "LTXLatentUpsamplePipeline": _ltx.upsampled_normalised,
    "LTXPipeline": _ltx.packed,
    "SanaWMPipeline": _ltx.scaled_first,
    **dict.fromkeys(
        (
            "AnimateDiffControlNetPipeline",
            "AnimateDiffPAGPipeline",
            "AnimateDiffPipeline",
            "AnimateDiffVideoToVideoControlNetPipeline",
            "AnimateDiffVideoToVideoPipeline",
            "I2VGenXLPipeline",
            "LattePipeline",
        ),
        _by_frame.frames_second,
    ),
    **dict.fromkeys(
        (
            "AnimateDiffSparseControlNetPipeline",
            "PIAPipeline",
            "TextToVideoSDPipeline",
            "VideoToVideoSDPipeline",
        ),
        _by_frame.frames_second_at_once,
    ),
    "AnimateDiffSDXLPipeline": _by_frame.frames_second_upcast,
    "StableVideoDiffusionPipeline": _by_frame.frames_first,
}

#: Why the latents of a pipeline cannot be streamed as it would decode them, and what to do.
REFUSED: Mapping[str, str] = {
    "Cosmos2_5_TransferPipeline": (
        "it decodes section by section, drops the frames that each shares with the one before, and "
        "has its guardrail look at the finished video; let it decode, with output_type='pt'"
    ),
    **dict.fromkeys(
        ("HeliosPipeline", "HeliosPyramidPipeline"),
        "it decodes every num_latent_frames_per_chunk latents as a video of its own; stream them "
        "one after the other, each with pipe.vae and normalized=True",
    ),
    "HunyuanVideoFramepackPipeline": (
        "it decodes sections that overlap and fades them into each other, and its latents are a "
        "list of them; let it decode, with output_type='pt'"
    ),
    "Kandinsky6SRPipeline": (
        "it decodes crops of the picture and blends them, and gives no latents; let it decode, "
        "with output_type='pt'"
    ),
    "LTX2HDRPipeline": (
        "its frames are high dynamic range, not pixels in [-1, 1]; stream its latents with "
        "pipe.vae and output='float32', and give the frames to pipe.hdr_video_processor"
    ),
    "LTX2VideoDiffusionDecodePipeline": (
        "it takes latents and gives none; stream those with pipe.diffusion_decoder"
    ),
    "LTXI2VLongMultiPromptPipeline": (
        "it decodes crops of the picture and blends them its own way; stream its latents with "
        "pipe.vae and normalized=True, in one piece or in tiles (pipe.vae.enable_tiling())"
    ),
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": (
        "its output begins with the frames of the video that it was given; stream its latents with "
        "pipe.vae and normalized=True, and put the frames behind that video's"
    ),
    **dict.fromkeys(
        ("TextToVideoZeroPipeline", "TextToVideoZeroSDXLPipeline"),
        "it decodes pictures, which its checker or watermark may change; stream its latents with "
        "pipe.vae and normalized=True, a picture for each frame",
    ),
    "WanAnimatePipeline": (
        "it decodes segment by segment as it goes, and its latents are those of the last segment; "
        "let it decode, with output_type='pt'"
    ),
}
