"""The sound of a video: its latents, what decodes them, and where it goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import _terminal
from .._chunks import StreamInfo
from .._errors import UsageError
from .._merged import AVStats
from .._options import StreamOptions
from ..abc import Codec, Sink
from ..sinks import AudioFile, FlacFile, VideoFile, WavFile
from ._options import Dtype, look_into, sound_decoder


class Sound:
    """What ``--audio`` names.

    Args:
        latents: Of the sound.
        videos: Files of the video's latents.
        source: The pipeline that has its decoders.

    Raises:
        UsageError: There are several videos, or nobody says which pipeline.
        LatentsError: There are no latents in the file.
    """

    def __init__(self, latents: Path, videos: Sequence[Path], source: str | None) -> None:
        if len(videos) > 1:
            raise UsageError(f"expected one video for --audio, got {len(videos)}")
        if source is None:
            raise UsageError(
                "expected --audio-vae, or --vae with a pipeline that has sound, for --audio; "
                "got neither"
            )
        look_into(latents)
        self._latents, self._source = latents, source
        self._decoder: object = None

    def load(self, device: str, dtype: Dtype | None) -> None:
        """Load what decodes it.

        Raises:
            UnknownSourceError: The pipeline has no such part.
        """
        self._decoder = sound_decoder(self._source, device, dtype)

    def run(
        self,
        video: Path,
        codec: Codec,
        sinks: Sequence[Sink],
        label: str,
        options: StreamOptions,
    ) -> tuple[StreamInfo, AVStats]:
        """Decode both: videos get both, files of sound the sound, others the pictures.

        Args:
            video: Latents of the video.
            codec: What decodes it.
            sinks: Where to.
            label: Stands before the bar.
            options: Of both streams.

        Returns:
            What is known of the video, and what both streams were like.
        """
        both = [sink for sink in sinks if isinstance(sink, VideoFile)]
        audio = [sink for sink in sinks if isinstance(sink, (AudioFile, FlacFile, WavFile))]
        others = [sink for sink in sinks if sink not in both and sink not in audio]
        if not both and not audio:
            names = ", ".join(sink.name for sink in sinks)
            raise UsageError(f"expected an output that keeps sound for --audio, got {names}")
        info, stats = _terminal.run_stream_av(
            (video, self._latents), (codec, self._decoder), (both, others, audio), label, **options
        )
        return info.video, stats
