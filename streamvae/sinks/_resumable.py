"""Sinks that go on with what an earlier run left."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from streamvae._chunks import HostChunk, StreamInfo
from streamvae._errors import LatentsError
from streamvae._identity import Identity
from streamvae._threads import outcome

from ._manifest import Manifest
from ._thread import ThreadSink

_log = logging.getLogger("streamvae")


class ResumableSink(ThreadSink):
    """Base of sinks that an interrupted stream's frames can be found in again.

    A manifest lies beside what they keep until it is complete: see `streamvae.abc.Resumable`.
    Derived classes set ``_accepted`` in `restore`, and override `same` and `let_go`.

    Args:
        name: What the sink calls itself in errors.
        manifest: Where that lies.
    """

    def __init__(self, name: str, manifest: Path) -> None:
        super().__init__(name)
        self.manifest = Manifest(manifest)
        self._resuming = False
        self._proven = True  # that latents and weights are those of what is there
        self._found = self._compared = 0  # frames that are there; of these, compared so far

    def restore(self) -> None:
        """After `start`, before anything else: find what is there, set ``_accepted``."""

    def same(self, chunk: HostChunk) -> bool:
        """Whether the frames of ``chunk``, all of which are there, are there as they are in it."""
        del chunk
        return True

    def let_go(self, chunk: HostChunk) -> None:
        """Give up the frames from the first of ``chunk`` on, so that it can be put.

        What ``chunk`` holds may be nothing.
        """

    async def identify(self, identity: Identity) -> None:
        """Learn what the stream is; again when its hashes are there."""
        if self._started:
            await outcome(self._submit(self.manifest.tell, identity))
        else:
            self.manifest.tell(identity)

    async def resume(self, info: StreamInfo) -> int:
        """`open`, and find what an earlier run left.

        Returns:
            Frames (items, samples) that are there; the first chunk to be written follows on them.

        Raises:
            UsageError: They are of another stream, or nobody knows of which; as they were.
        """
        self._resuming = True
        await self.open(info)
        return self._accepted

    async def recheck(self, chunk: HostChunk) -> bool:
        """Compare a chunk with what is there of it.

        Returns:
            Whether it is the same. If not (a torn page, another card), it and what comes after is
            given up, and is to be written.

        Raises:
            LatentsError: It is not, and nobody knows that the latents are those of before.
        """
        self._enter("open")
        return await outcome(self._submit(self._recheck, chunk))

    def _open(self, info: StreamInfo) -> None:
        super()._open(info)
        if not self._resuming:
            return
        self._state = "failed"  # unless it succeeds
        try:
            self.restore()
            self._found = self._accepted
        except BaseException:
            self.stop()
            self._state = "aborted"
            raise
        self._state = "open"

    def _close(self) -> None:
        if self._state == "open" and self._compared < self._found:
            self._cut_off()
        super()._close()

    def _cut_off(self) -> None:
        """Give up what is there beyond the stream's end."""
        _log.warning(
            "sink %s: there are %d frames, the stream has %d: those behind its end are cut off",
            self.name,
            self._found,
            self._compared,
        )
        self._state = "failed"  # unless it succeeds
        self.let_go(HostChunk(0, self._compared, "video", np.empty(0, np.uint8)))
        self._accepted = self._compared
        self._state = "open"

    def _recheck(self, chunk: HostChunk) -> bool:
        self._expect("open")
        self._state = "failed"  # unless it succeeds
        if self.same(chunk):
            self._compared = chunk.start + len(chunk)
            self._state = "open"
            return True
        if not self._proven:
            raise LatentsError(
                f"expected the latents that {self.name} was begun with, got others: frame "
                f"{chunk.start} or one after it is not the one that is there; nothing was touched"
            )
        _log.warning(
            "sink %s: what is there from frame %d on is not what is decoded now, and is replaced",
            self.name,
            chunk.start,
        )
        self.let_go(chunk)
        self._accepted = self._found = self._compared = chunk.start
        self._state = "open"
        return False
