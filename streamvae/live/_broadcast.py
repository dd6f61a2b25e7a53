"""One decode, many viewers: each with its policy, none of them in the way of the sinks."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, Self, TypeVar

import anyio

from streamvae._chunks import Frame, HostChunk, StreamInfo
from streamvae._errors import ClosedError, MissingDependencyError, SinkTimeout, UsageError
from streamvae._stats import StreamStats
from streamvae._stream import FrameStream, left

from ._forms import Copies, Jpegs
from ._hub import Hub, Key
from ._packets import Packet, PacketFormat
from ._policies import DropOldest, Latest, Policy
from ._subscription import Subscription
from ._tracks import Form

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")

LATEST = Latest()


class Broadcast:
    """Runs a stream and gives its frames to any number of viewers who come and go.

    The stream's sinks accept every chunk before a viewer sees it, and no viewer ever slows them,
    the decode or another viewer, but for one who asks for it (`Block`). A form that viewers want
    (frames, JPEG, MP4) is made once for all of them, and only while somebody wants it. Memory is
    bounded: three chunks for each form, and what each viewer's policy keeps.

    ```python
    async with Broadcast(stream_decode(latents, vae, sinks="out.mp4", fps=16)) as broadcast:
        async with broadcast.packets("jpeg") as pictures:
            async for picture in pictures:
                await websocket.send_bytes(picture.data)
    ```

    Args:
        stream: A fresh stream of video or images; entered, run and closed here.
        jpeg_quality: 1 (small) to 100.
        on_idle: What the decode does when the last viewer has left: ``"finish"`` for its sinks'
            sake, or ``"cancel"``, which stops it within one chunk. Before the first viewer came
            it runs in either case.

    Raises:
        UsageError: An option is out of range.
    """

    def __init__(
        self,
        stream: FrameStream,
        *,
        jpeg_quality: int = 85,
        on_idle: Literal["finish", "cancel"] = "finish",
    ) -> None:
        if isinstance(jpeg_quality, bool) or jpeg_quality not in range(1, 101):
            raise UsageError(f"expected jpeg_quality in 1..100, got {jpeg_quality!r}")
        if on_idle not in {"finish", "cancel"}:
            raise UsageError(f"expected on_idle='finish' or 'cancel', got {on_idle!r}")
        self._stream = stream
        self._quality, self._on_idle = jpeg_quality, on_idle
        self._hub = Hub(self._left)
        self._task: asyncio.Task[None] | None = None
        self._opened = asyncio.Event()
        self._idle = self._ended = False
        self._stuck: SinkTimeout | None = None

    @property
    def info(self) -> StreamInfo:
        """What is known of the stream.

        Raises:
            ClosedError: It is not opened yet; `opened` waits for it.
        """
        return self._stream.info

    @property
    def stats(self) -> StreamStats:
        """What each stage of the stream did so far."""
        return self._stream.stats

    @property
    def viewers(self) -> int:
        """How many are watching."""
        return len(self._hub)

    async def __aenter__(self) -> Self:
        if self._task is not None or self._hub.over:
            raise ClosedError("expected a fresh broadcast, got one that was entered before")
        loop = asyncio.get_running_loop()
        self._task = loop.create_task(self._run(), name="streamvae broadcast")
        self._task.add_done_callback(self._done)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await left(self.aclose(), error)

    async def opened(self) -> StreamInfo:
        """Wait until the stream is open (weights loaded, sinks open), and say what it is.

        May be called before it is entered: who subscribes first misses nothing.

        Raises:
            Exception: What kept it from opening.
            ClosedError: It was stopped before.
        """
        await self._opened.wait()
        if self._task is None or self._task.done():
            self._hub.ending.raise_()
        return self._stream.info

    async def finished(self) -> None:
        """Wait until the sinks are complete and all viewers' queues have the last frame.

        Raises:
            Exception: The stream's error.
            ClosedError: It was stopped, or never entered.
        """
        task = self._started()
        await asyncio.wait([task])
        self._done(task)  # its own call of it may be about to come
        self._hub.ending.raise_()

    async def aclose(self) -> None:
        """Stop the stream if it still runs, end all subscriptions, give everything back.

        What waits for a viewer can still be taken; then, unless the stream was complete, comes
        `ClosedError`. Idempotent.

        Raises:
            SinkTimeout: A sink did not end in time.
        """
        if self._task is None:
            self._hub.end(_closed())
            self._opened.set()
            await self._stream.aclose()
            return
        self._task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait([self._task])
        if self._stuck is not None:
            stuck, self._stuck = self._stuck, None
            raise stuck

    def frames(self, policy: Policy = LATEST, *, clip: int | None = None) -> Subscription[Frame]:
        """Watch frames as they are decoded: read-only, each in memory of its own, shared.

        Args:
            policy: What happens when this viewer is slower than the decode.
            clip: Which item of a batch of clips; None for all of them, side by side.
        """
        rate = functools.partial(_rate, self._stream)
        return self._subscribe(("frames", clip), lambda: Copies(rate, clip), policy)

    def packets(
        self,
        format: PacketFormat,  # noqa: A002  # what it is
        policy: Policy | None = None,
        *,
        clip: int = 0,
    ) -> Subscription[Packet]:
        """Watch frames as they go over a wire, encoded once for all viewers of the format.

        Needs uint8 frames of 1 to 4 channels (grey, RGB, either with transparency, which is shown
        on black); a viewer of others gets `UsageError`, and the stream goes on.

        Args:
            format: ``"jpeg"``: a file for each frame. ``"mp4"``: a fragment of H.264 for each
                frame, behind ``Subscription.header``, for Media Source Extensions; the stream
                needs ``fps``. It begins with a keyframe, and after a gap goes on with one.
            policy: What happens when this viewer is slower than the decode. By default `Latest`
                for JPEG; for MP4 `DropOldest` with room for 48, since to drop one frame is to drop
                all until the next keyframe.
            clip: Which item of a batch of clips.

        Raises:
            UsageError: The format is unknown.
            MissingDependencyError: MP4 needs PyAV.
        """
        if format == "jpeg":
            rate = functools.partial(_rate, self._stream)
            quality = self._quality
            return self._subscribe(
                ("jpeg", clip), lambda: Jpegs(rate, clip, quality), policy or Latest()
            )
        if format != "mp4":
            raise UsageError(f"expected format='jpeg' or 'mp4', got {format!r}")
        if find_spec("av") is None:
            raise MissingDependencyError("av", "encoding video", "video")
        from ._mp4 import Mp4

        stream = self._stream
        return self._subscribe(
            ("mp4", clip), lambda: Mp4(lambda: stream.info, clip), policy or DropOldest(48)
        )

    def _subscribe(self, key: Key, form: Callable[[], Form[T]], policy: Policy) -> Subscription[T]:
        if not isinstance(policy, Policy):
            raise UsageError(f"expected Block(n), DropOldest(n) or Latest(), got {policy!r}")

        join = functools.partial(self._hub.join, key, form)
        return Subscription(policy, join, self._hub.leave)

    def _left(self) -> None:
        """The last viewer has."""
        if self._on_idle == "cancel" and self._task is not None:
            self._idle = True
            self._task.cancel()

    async def _run(self) -> None:
        await self._hub.run(self._read)
        self._hub.ending.raise_()

    async def _read(self) -> Exception | None:
        """Run the stream; give what ended it, which viewers get after its frames."""
        try:
            async with self._stream as stream:
                try:
                    _expect_pictures(stream.info)
                    self._opened.set()
                    async for chunk in stream.chunks(bands=False):
                        assert isinstance(chunk, HostChunk)  # noqa: S101  # `_expect_pictures`
                        await self._hub.put(chunk)
                        del chunk
                finally:
                    await self._close()
        except Exception as error:  # noqa: BLE001  # whatever a stream raises
            return error
        return None

    async def _close(self) -> None:
        """Close the stream; a sink that is stuck is for whoever closes the broadcast to know."""
        try:
            await self._stream.aclose()
        except SinkTimeout as timeout:
            self._stuck = timeout

    def _done(self, task: asyncio.Task[None]) -> None:
        """Wake whoever waits, also when the task was cancelled before its first step."""
        if self._ended:
            return
        self._ended = True
        self._opened.set()
        if not task.cancelled():
            self._hub.end(task.exception())
        elif self._idle:
            self._hub.end(ClosedError("expected a viewer, got none left (on_idle='cancel')"))
        else:
            self._hub.end(_closed())

    def _started(self) -> asyncio.Task[None]:
        if self._task is None:
            raise ClosedError("expected a broadcast that was entered by 'async with'")
        return self._task


def _expect_pictures(info: StreamInfo) -> None:
    if info.kind == "sound":
        raise UsageError(
            "expected a stream of video or images to broadcast, got sound (iterate over its blocks)"
        )
    if info.output == "device":
        raise UsageError("expected output='uint8' or 'float32' to broadcast, got 'device'")


def _closed() -> ClosedError:
    return ClosedError("expected a broadcast that runs, got one that was closed")


def _rate(stream: FrameStream) -> float | None:
    return stream.info.rate
