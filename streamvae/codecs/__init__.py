"""An autoencoder's weights with the rules of its family: one file for each way to walk time.

`codec_for` looks an autoencoder's class up in a table of diffusers classes. What a family needs
beyond `torch.nn.Module` is read from the instance, so diffusers itself is not imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import nn

from streamvae._errors import UnknownSourceError, UsageError
from streamvae.abc import Codec

from ._added import AddedWindows
from ._by_frames import ByFrames
from ._by_item import ByItem, ByItemDeep, ByItemFlux2, ByItemHunyuan, ByItemKVAE
from ._by_item_drawn import ByItemDrawn
from ._by_item_tiny import ByItemTiny
from ._cached import CachedCausal
from ._causal_joint import CausalHunyuan15, CausalMochi
from ._causal_split import CausalCosmos
from ._chained import Chained, chained
from ._denoised import Denoised
from ._framewise import FramewiseVideo
from ._framewise_ltx import LookAheadCausalOrFramewise, LookAheadOrFramewise
from ._halo import Halo, Oobleck
from ._handed import CogVideoX, Kandinsky6SR, KVAEVideo
from ._in_time import PicturesInTime
from ._interpolated import Interpolated
from ._kept import MMAudio
from ._mel import LTX2Audio
from ._module import ModuleCodec, unwrap
from ._overrides import Override, find_override, is_compiled
from ._padded import PaddedWindows
from ._partition import Partition
from ._single_frame import SingleFrame, SingleFrameCached
from ._sounds import SAME, Cosmos3, KVAEAudio, LongCat, MiniMaxH3Audio
from ._swapped import Magvit
from ._untiled import FromTokens, Quantized, Untiled
from ._vocoders import LTX2Mel, LTX2MelWide, MMAudioMel, Music3
from ._walk import State, Steady, Walk, WalkDecoder, WalkingCodec

__all__ = [
    "ByItem",
    "CachedCausal",
    "Chained",
    "Halo",
    "ModuleCodec",
    "Override",
    "State",
    "Steady",
    "Walk",
    "WalkDecoder",
    "WalkingCodec",
    "codec_for",
    "find_override",
    "is_compiled",
    "known_families",
    "steady_families",
]

#: Families whose walks are `Steady`. The state of other causal ones grows with the clip.
steady_families = (CachedCausal, CausalMochi, Partition)

_FAMILIES: dict[str, type[ModuleCodec]] = {
    "AsymmetricAutoencoderKL": Untiled,
    "AutoencoderDC": ByItemDeep,
    "AutoencoderKL": ByItem,
    "AutoencoderKLAllegro": AddedWindows,
    "AutoencoderKLCogVideoX": CogVideoX,
    "AutoencoderKLCosmos": CausalCosmos,
    "AutoencoderKLFlux2": ByItemFlux2,
    "AutoencoderKLHunyuanImage": ByItemHunyuan,
    "AutoencoderKLHunyuanImageRefiner": SingleFrame,
    "AutoencoderKLHunyuanVideo": FramewiseVideo,
    "AutoencoderKLHunyuanVideo15": CausalHunyuan15,
    "AutoencoderKLKVAE": ByItemKVAE,
    "AutoencoderKLKVAEAudio": KVAEAudio,
    "AutoencoderKLKVAEVideo": KVAEVideo,
    "AutoencoderKLLTX2Audio": LTX2Audio,
    "AutoencoderKLLTX2Video": LookAheadCausalOrFramewise,
    "AutoencoderKLLTXVideo": LookAheadOrFramewise,
    "AutoencoderKLMagvit": Magvit,
    "AutoencoderKLMiniMaxH3": PaddedWindows,
    "AutoencoderKLMiniMaxH3Audio": MiniMaxH3Audio,
    "AutoencoderKLMochi": CausalMochi,
    "AutoencoderKLQwenImage": CachedCausal,
    "AutoencoderKLQwenImage21": SingleFrameCached,
    "AutoencoderKLTemporalDecoder": ByFrames,
    "AutoencoderKLWan": CachedCausal,
    "AutoencoderOobleck": Oobleck,
    "AutoencoderRAE": FromTokens,
    "AutoencoderSAME": SAME,
    "AutoencoderTiny": ByItemTiny,
    "AutoencoderVidTok": Interpolated,
    "ConsistencyDecoderVAE": ByItemDrawn,
    "Cosmos3AVAEAudioTokenizer": Cosmos3,
    "Kandinsky6SRVAE": Kandinsky6SR,
    "LTX2VideoDiffusionDecoderModel": Denoised,
    "LTX2Vocoder": LTX2Mel,
    "LTX2VocoderWithBWE": LTX2MelWide,
    "LongCatAudioDiTVae": LongCat,
    "MMAudioVAE": MMAudio,
    "MMAudioVocoder": MMAudioMel,
    "MiniMaxMusic3Vocoder": Music3,
    "VQModel": Quantized,
}


def known_families() -> tuple[str, ...]:
    """Class names of diffusers' autoencoders that can be streamed, sorted."""
    return tuple(sorted(_FAMILIES))


def codec_for(vae: object, arguments: Mapping[str, object] | None = None) -> Codec:
    """Find the codec of an autoencoder.

    Args:
        vae: An instance of one of diffusers' autoencoder classes or of a subclass, also compiled
            (``torch.compile``), offloaded or hooked; or a `Codec`, which is passed through; or a
            pair of an autoencoder of mel spectrograms and its vocoder, for the sound of both.
        arguments: Keyword arguments of its ``decode`` that streams are to be decoded with.

    Returns:
        A codec over this very module; nothing is copied, moved or changed.

    Raises:
        UnknownSourceError: Nobody here knows how to decode with ``vae``.
        UsageError: The autoencoder replaces the ``decode`` that its family's codec stands for, or
            its ``decode`` takes no such arguments; or a pair does not fit together.
    """
    if isinstance(vae, tuple) and len(vae) == 2:
        first, second = map(codec_for, vae)
        _check_arguments(Chained, f"{first.family} with {second.family}", arguments or {})
        return cast("Codec", chained(first, second, arguments or {}))
    module = unwrap(vae)
    if isinstance(module, nn.Module):
        for base in type(module).__mro__:
            # Other projects have classes of the same name (ldm's AutoencoderKL, for one).
            if base.__name__ in _FAMILIES and base.__module__.partition(".")[0] == "diffusers":
                return _made(_FAMILIES[base.__name__], module, base, arguments or {})
    if isinstance(vae, Codec) and not isinstance(vae, type):
        return vae
    raise UnknownSourceError(
        f"expected a codec or an autoencoder of a known family ({', '.join(known_families())}), "
        f"got {_describe(module)}"
    )


def _made(
    codec: type[ModuleCodec], module: nn.Module, base: type, arguments: Mapping[str, object]
) -> Codec:
    if codec is ByItem and "decode_chunk_size" in arguments:
        codec = PicturesInTime  # its pictures are the frames of a clip
    _check_arguments(codec, base.__name__, arguments)
    return cast("Codec", codec(module, base, **arguments))


def _check_arguments(codec: type[ModuleCodec], name: str, arguments: Mapping[str, object]) -> None:
    unknown = sorted(set(arguments) - set(codec.arguments))
    if unknown:
        known = ", ".join(codec.arguments) or "none"
        raise UsageError(
            f"expected arguments that the decoding of {name} depends on ({known}), "
            f"got {', '.join(unknown)}"
        )


def _describe(source: object) -> str:
    if isinstance(source, type):
        return f"the class {source.__name__} itself, not an instance of it"
    return f"an instance of {type(source).__module__}.{type(source).__qualname__}"
