"""``.flac``: sound without loss at half the room, by PyAV."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from streamvae._chunks import Array, HostChunk
from streamvae._errors import MissingDependencyError, UsageError

from ._durable import Sync
from ._sound_file import SoundFile

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import OutputContainer

    from ._output import Output

_LAYOUTS = {1: "mono", 2: "stereo"}


class FlacFile(SoundFile):
    """Sound in FLAC: mono or stereo, 24 or 16 bits; what is beyond [-1, 1] is cut off.

    `committed` counts the samples in whole FLAC frames, so it lags behind what was accepted by up
    to one of them (4608 samples at most). Under ``.partial`` they play, also after a kill.

    Args:
        path: Where to.
        bits: Of a sample, 24 or 16; float32 is rounded to the nearest.
        sample_rate: Samples a second; by default the stream's.
        overwrite: Whether a file of that name may be replaced.
        sync: As for `FileSink`.

    Raises:
        MissingDependencyError: PyAV is not installed.
        UsageError: An option is none of those there are.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        bits: Literal[16, 24] = 24,
        sample_rate: int | None = None,
        overwrite: bool = False,
        sync: Sync = "none",
    ) -> None:
        super().__init__(path, sample_rate=sample_rate, overwrite=overwrite, sync=sync)
        if find_spec("av") is None:
            raise MissingDependencyError("av", "writing FLAC", "video")
        if bits not in {16, 24}:
            raise UsageError(f"expected 16 or 24 bits, got {bits}")
        self._bits = bits
        self._safe = 0
        self._container: OutputContainer | None = None
        self._stream: AudioStream
        self._output: Output

    @property
    def committed(self) -> int:
        """Samples in whole FLAC frames; all of them once the file is closed."""
        return self._safe

    def put(self, chunk: HostChunk) -> None:
        """Encode a chunk."""
        from av import AudioFrame

        rows = self.rows(chunk)
        if self._container is None:
            self._container = self._begin(rows.shape[1])
        frame = AudioFrame.from_ndarray(
            self._integers(rows).reshape(1, -1),
            format="s32" if self._bits == 24 else "s16",
            layout=_LAYOUTS[rows.shape[1]],
        )
        frame.sample_rate, frame.pts = self._rate, self._accepted
        self._mux(frame)

    def finish(self) -> None:
        """Complete the file and give it its name.

        Raises:
            UsageError: There was no sound, so nobody knows of how many channels.
        """
        if self._container is None:
            raise UsageError(f"sink {self.name}: expected at least one sample, got none")
        self._end()
        self._safe = self._accepted
        self._partial.publish()

    def stop(self) -> None:
        """Complete what there is; where that fails, keep whole frames."""
        try:
            if self._container is not None and not self._output.closed:
                self._end()
                self._safe = self._accepted
        finally:
            if self._container is not None:
                self._output.cut()  # what is behind the last whole frame
                self._container.close()  # sees that the output is closed
            self._partial.release(keep=self._safe > 0)

    def _begin(self, channels: int) -> OutputContainer:
        import av

        from ._output import Output

        if channels not in _LAYOUTS:
            raise UsageError(f"sink {self.name}: expected 1 or 2 channels, got {channels}")
        self._output = Output(self._partial.begin(), self._partial.settle)
        container = av.open(self._output, "w", format="flac", options={"flush_packets": "1"})
        self._stream = container.add_stream("flac", rate=self._rate)
        self._stream.codec_context.format = "s32" if self._bits == 24 else "s16"
        self._stream.codec_context.layout = _LAYOUTS[channels]
        return container

    def _mux(self, frame: object) -> None:
        assert self._container is not None  # noqa: S101  # the caller has begun
        for packet in self._stream.encode(frame):  # type: ignore[arg-type]
            self._container.mux(packet)
            if packet.pts is not None and packet.duration:
                self._output.mark()
                self._safe = packet.pts + packet.duration

    def _end(self) -> None:
        container = self._container
        if container is not None:
            self._mux(None)
            container.close()
            self._container = None

    def _integers(self, rows: Array) -> npt.NDArray[np.int32] | npt.NDArray[np.int16]:
        most = 2 ** (self._bits - 1) - 1
        scaled = np.rint(np.clip(rows.astype(np.float64), -1, 1) * most)
        if self._bits == 16:
            lower: npt.NDArray[np.int16] = scaled.astype(np.int16)
            return lower
        # FFmpeg keeps 24 bits at the upper end of 32.
        upper: npt.NDArray[np.int32] = scaled.astype(np.int32) << 8
        return upper
