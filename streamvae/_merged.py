"""Video with sound: two streams merged into one, in time order, on one clock."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Generic, NamedTuple, Self, TypeVar

from ._chunks import Array, Frame, StreamInfo
from ._collect import Collector
from ._errors import ClosedError, LatentsError, SinkTimeout, UsageError
from ._stats import StreamStats
from ._stream import FrameStream, Steps, left
from ._supervisor import Chunk

if TYPE_CHECKING:
    from types import TracebackType

    import torch

T = TypeVar("T")

_WHERE = "While the {} of a video with sound was streamed."


class AVInfo(NamedTuple):
    """What is known of both streams.

    Attributes:
        video: Of the video.
        audio: Of the sound.
    """

    video: StreamInfo
    audio: StreamInfo


class AVStats(NamedTuple):
    """What the stages of both streams did.

    Attributes:
        video: Of the video.
        audio: Of the sound.
    """

    video: StreamStats
    audio: StreamStats


class AVStream:
    """Pictures and blocks of sound in time order. Iterate it once, as a `FrameStream`.

    ``async for`` gives `Frame` objects, `chunks` gives whole chunks, `finish` runs to the end for
    the sinks' sake, `collect` gives two arrays. Where both are of one time, sound comes first. No
    more of either is taken than the order asks for: what is ahead of its time waits in the queues.

    An error in one ends both, after all frames of before it. Inside ``async with``, both are given
    back before the block is left.
    """

    def __init__(self, video: FrameStream, audio: FrameStream) -> None:
        self._video = video
        self._audio = audio
        self._caller = video._caller
        self._closed = False

    @property
    def info(self) -> AVInfo:
        """What is known of both; there once it is entered or the first frame has come.

        Raises:
            ClosedError: The stream has not been opened.
        """
        return AVInfo(self._video.info, self._audio.info)

    @property
    def stats(self) -> AVStats:
        """What each stage of both did so far."""
        return AVStats(self._video.stats, self._audio.stats)

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException as error:
            await left(self.aclose(), error)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await left(self.aclose(), error)

    def __aiter__(self) -> AsyncIterator[Frame]:
        return _Merged(
            self,
            lambda chunk, rate: chunk.frames(rate),
            lambda frame: frame.index,
        )

    def chunks(self) -> AsyncIterator[Chunk]:
        """Iterate over whole chunks by the time of their beginning; ``chunk.kind`` tells which."""
        return _Merged(self, lambda chunk, _: iter((chunk,)), lambda chunk: chunk.start)

    async def finish(self) -> AVStats:
        """Run a fresh stream to its end, for the sinks' sake, and return its stats."""
        self._unwatch()
        try:
            async for chunk in self.chunks():
                del chunk
        except BaseException as error:
            await left(self.aclose(), error)  # a file of both is complete when both have ended
            raise
        return self.stats

    async def collect(self) -> tuple[Array | torch.Tensor, Array | torch.Tensor]:
        """All frames and all sound, each in one array.

        Returns:
            Video (B, T, H, W, C), sound (B, S, C).
        """
        video, audio = Collector(), Collector()
        try:
            async for chunk in self.chunks():
                sound = chunk.kind == "sound"
                info = self._audio.info if sound else self._video.info
                await (audio if sound else video).add(chunk, info.frames)
                del chunk
            return await video.result(), await audio.result()
        finally:
            video.close()
            audio.close()

    async def aclose(self) -> None:
        """Stop both, and return when everything is given back. Idempotent.

        Raises:
            SinkTimeout: A sink did not end within ``sink_timeout``; its thread ends by itself.
        """
        self._check_loop()
        self._halt()
        stuck: list[SinkTimeout] = []
        try:
            await _close(self._video, stuck)
        finally:
            await _close(self._audio, stuck)
        for other in stuck[1:]:
            stuck[0].add_note(str(other))
        if stuck:
            raise stuck[0]

    def _unwatch(self) -> None:
        """Let only the sinks get what there is, as in `FrameStream`."""
        self._video._unwatch()
        self._audio._unwatch()

    def _check_loop(self) -> None:
        """Refuse another loop before anything is stopped."""
        self._video._check_loop()
        self._audio._check_loop()

    def _halt(self) -> None:
        self._closed = True
        self._video._halt()
        self._audio._halt()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("expected an open stream, got one that has ended or was closed")

    async def _open(self) -> None:
        """Start both side by side; return when both have their info."""
        self._check_open()
        self._video._start()
        self._audio._start()
        for stream, what in ((self._video, "video"), (self._audio, "sound")):
            try:
                await stream._open()
            except Exception as error:
                error.add_note(_WHERE.format(what))
                raise
        self._check_kinds()
        self._check_batch()

    def _check_kinds(self) -> None:
        video, audio = self.info
        if video.kind != "video" or audio.kind != "sound" or audio.sample_rate is None:
            rate = "" if audio.sample_rate else " of no known rate"
            raise UsageError(
                "expected what makes video, and what makes sound of a known sample rate, got "
                f"{video.family} for {video.kind} and {audio.family} for {audio.kind}{rate}"
            )

    def _check_batch(self) -> None:
        """Refuse other clips than those of the video; of latents one by one when some have come."""
        video, audio = self.info
        if None not in {video.batch, audio.batch} and video.batch != audio.batch:
            raise LatentsError(
                f"expected sound for each of the {video.batch} clip(s) of the video, got latents "
                f"of {audio.batch} for sound"
            )


async def _close(stream: FrameStream, stuck: list[SinkTimeout]) -> None:
    try:
        await stream.aclose()
    except SinkTimeout as timeout:
        stuck.append(timeout)


class _Side(Generic[T]):
    """One of the two, on its way into the merged stream."""

    def __init__(
        self,
        stream: FrameStream,
        split: Callable[[Chunk, float | None], Iterator[T]],
        start: Callable[[T], int],
    ) -> None:
        self._stream = stream
        self._split = split
        self._start = start
        self._chunks = stream.chunks()
        self._position = 0  # of the next chunk
        self.items: deque[T] = deque()
        self.over = False

    def time(self) -> Fraction:
        """When what comes next comes, in seconds, also while it has yet to be decoded."""
        rate = self._stream.info.rate
        place = self._start(self.items[0]) if self.items else self._position
        return Fraction(place) / Fraction(rate or 1)

    async def fetch(self) -> None:
        """Wait for the next chunk, or for the end."""
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self.over = True
            return
        except Exception as error:
            error.add_note(_WHERE.format(self._stream.info.kind))
            raise
        self._position = chunk.start + len(chunk)
        self.items.extend(self._split(chunk, self._stream.info.rate))


class _Merged(Generic[T]):
    """One pass over both, always going on with the earlier; dropping it early stops both."""

    def __init__(
        self,
        stream: AVStream,
        split: Callable[[Chunk, float | None], Iterator[T]],
        start: Callable[[T], int],
    ) -> None:
        self._stream = stream
        self._opened = False
        self._steps = Steps()
        # Sound first: of two that are equally early the first is taken.
        self._sides = [_Side(one, split, start) for one in (stream._audio, stream._video)]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        with self._steps:
            self._stream._check_loop()
            while True:
                item = await self._step()
                if item is not None:
                    return item

    async def _step(self) -> T | None:
        """Give what comes next if it is there, or have more of it come."""
        going = [side for side in self._sides if not side.over]
        if not going:
            raise StopAsyncIteration
        self._stream._check_open()
        try:
            if not self._opened:
                await self._stream._open()
                self._opened = True
            earliest = min(going, key=_Side.time)
            if earliest.items:
                return earliest.items.popleft()
            await earliest.fetch()
            self._stream._check_batch()
        except BaseException:
            for side in self._sides:
                side.items.clear()
            self._stream._halt()
            raise
        return None
