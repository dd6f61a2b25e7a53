"""What a video file may hold: containers by suffix, codecs, and what their options mean."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from streamvae._errors import UsageError

#: What pictures are encoded by.
CodecName = Literal["h264", "hevc", "vp9", "av1", "ffv1"]

#: libx264's and libx265's, the fastest first.
SPEEDS = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
    "placebo",
)


@dataclass(frozen=True, slots=True)
class VideoCodec:
    """One way to encode pictures.

    Attributes:
        name: What users call it.
        encoder: FFmpeg's name of the encoder.
        presets: What trades time for size: names, or a range of numbers; empty for none.
        preset: The default one.
        crf: The largest constant rate factor; 0 where there is no such thing.
        quality: The default one.
        options: What is told to the encoder, by preset.
        exact: Whether pixels come back as they were, so RGB is kept as RGB.
        tag: What MP4 and MOV call it, where FFmpeg's own choice is not what players want.
    """

    name: CodecName
    encoder: str
    presets: tuple[str, ...] | range = ()
    preset: str | int | None = None
    crf: int = 0
    quality: float | None = None
    options: Callable[[str], Mapping[str, str]] = field(default=lambda preset: {"preset": preset})
    exact: bool = False
    tag: str | None = None

    def told(self, crf: float | None, preset: str | int | None) -> dict[str, str]:
        """What the encoder is told.

        Raises:
            UsageError: An option is out of range, or this codec has none of the kind.
        """
        crf, preset = self._crf(crf), self._preset(preset)
        told = {} if preset is None else dict(self.options(str(preset)))
        return told if crf is None else {**told, "crf": f"{crf:g}"}

    def _crf(self, crf: object) -> float | None:
        if crf is None:
            return self.quality
        if self.quality is None:
            raise UsageError(f"expected no crf for {self.name}, which is lossless, got {crf!r}")
        if isinstance(crf, bool) or not isinstance(crf, int | float) or not 0 <= crf <= self.crf:
            raise UsageError(f"expected crf in 0..{self.crf} for {self.name}, got {crf!r}")
        return crf

    def _preset(self, preset: str | int | None) -> str | int | None:
        if preset is None:
            return self.preset
        if preset in self.presets and not isinstance(preset, bool):
            return preset
        if isinstance(self.presets, range):
            allowed = f"a whole number in 0..{self.presets[-1]} (the larger the faster)"
        else:
            allowed = " or ".join(filter(None, [", ".join(self.presets[:-1]), *self.presets[-1:]]))
        raise UsageError(
            f"expected preset={allowed or 'None'} for {self.name}, got preset={preset!r}"
        )


def _x265(preset: str) -> dict[str, str]:
    # Open groups would begin with frames that need the group before; its log goes to stderr.
    return {"preset": preset, "x265-params": "open-gop=0:log-level=none"}


def _vpx(preset: str) -> dict[str, str]:
    realtime = int(preset) > 5  # "good" knows no more than 5
    return {
        "b": "0",  # the quality alone decides on the size
        "deadline": "realtime" if realtime else "good",
        "cpu-used": preset,
        "row-mt": "1",
        "tile-columns": "2",
        **({"lag-in-frames": "0"} if realtime else {}),
    }


#: The defaults encode faster than most decoders decode, and keep the demo's clip at 38 dB and more.
CODECS: Mapping[CodecName, VideoCodec] = {
    codec.name: codec
    for codec in (
        VideoCodec("h264", "libx264", SPEEDS, "veryfast", 51, 18),
        # QuickTime and Safari play hvc1 only.
        VideoCodec("hevc", "libx265", SPEEDS, "superfast", 51, 18, _x265, tag="hvc1"),
        VideoCodec("vp9", "libvpx-vp9", range(10), 8, 63, 24, _vpx),
        VideoCodec("av1", "libsvtav1", range(14), 10, 63, 22),
        VideoCodec("ffv1", "ffv1", exact=True),
    )
}


@dataclass(frozen=True, slots=True)
class Container:
    """One kind of file.

    Attributes:
        format: FFmpeg's name of the muxer.
        codecs: What it may hold, the default first.
        options: What the muxer is told.
        sound: FFmpeg's name of the encoder of the sound, beside pictures or alone.
        behind: Of sound alone, seconds that were encoded and may not be in the file yet.
    """

    format: str
    codecs: tuple[CodecName, ...]
    options: Mapping[str, str]
    sound: str
    behind: int = 0


# A run of fragments while it grows, and an ordinary indexed file once it is closed. Its beginning
# is written late, when it is known by how much decoding is ahead of showing, and the sound's
# encoder late: else the first frame is shown two frames late, and the sound out of time with it.
_FRAGMENTS = {"movflags": "hybrid_fragmented+delay_moov"}

# Each frame a cluster of its own (20 bytes), at once in the file: a short group of pictures would
# share one with the next, and wait in FFmpeg's buffer, where a kill finds it.
_FLUSHED = {"flush_packets": "1", "cluster_size_limit": "1"}

#: By suffix.
CONTAINERS: Mapping[str, Container] = {
    ".mp4": Container("mp4", ("h264", "hevc", "av1", "vp9"), _FRAGMENTS, "aac"),
    ".mkv": Container("matroska", ("h264", "hevc", "av1", "vp9", "ffv1"), _FLUSHED, "aac"),
    ".mov": Container("mov", ("h264", "hevc"), _FRAGMENTS, "aac"),
    ".webm": Container("webm", ("vp9", "av1"), _FLUSHED, "libopus"),
}

#: Of sound alone, by suffix: a fragment, or a page, for each second.
SOUNDS: Mapping[str, Container] = {
    ".m4a": Container("ipod", (), {**_FRAGMENTS, "frag_duration": "1000000"}, "aac", 2),
    ".opus": Container("opus", (), {"page_duration": "1000000"}, "libopus", 3),
}


def chosen(suffix: str, codec: CodecName | None) -> tuple[Container, VideoCodec]:
    """What a file of ``suffix`` is, and what its pictures are encoded by.

    Raises:
        UsageError: The suffix is none of a video file's, or such a file cannot hold ``codec``.
    """
    container = CONTAINERS.get(suffix)
    if container is None:
        raise UsageError(f"expected a path ending in {', '.join(CONTAINERS)}, got {suffix!r}")
    if codec is None:
        return container, CODECS[container.codecs[0]]
    if codec not in container.codecs:
        elsewhere = [other for other, one in CONTAINERS.items() if codec in one.codecs]
        hint = f" ({codec} goes into {', '.join(elsewhere)})" if elsewhere else ""
        raise UsageError(
            f"expected codec to be one of {', '.join(map(repr, container.codecs))} "
            f"for {suffix}, got {codec!r}{hint}"
        )
    return container, CODECS[codec]


def expect_encoder(encoder: str, available: Collection[str], version: str) -> None:
    """Refuse an encoder that this PyAV was built without.

    Args:
        encoder: FFmpeg's name of it.
        available: Those that there are (``av.codecs_available``).
        version: PyAV's.

    Raises:
        UsageError: It is not there; what can be done is.
    """
    if encoder in available:
        return
    here = [f"codec={one.name!r}" for one in CODECS.values() if one.encoder in available]
    raise UsageError(
        f"expected a PyAV built with {encoder}, got PyAV {version} without it; PyPI's wheels have "
        f"it (pip install --force-reinstall --only-binary av av)"
        + (f", or use {' or '.join(here)}" if here else "")
    )
