"""Broadcast: one decode, many viewers, none of them in the way of the sinks or of another."""

import asyncio
import gc
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from streamvae import ClosedError, Frame, RawFile, SinkTimeout, UsageError, stream_decode
from streamvae.live import Block, Broadcast, DropOldest, Latest, Packet, Policy, Subscription
from streamvae.testing import (
    FakeBackend,
    MemorySink,
    StuckSink,
    TagCodec,
    one_by_one,
    stuck_after,
    tagged_latents,
)

from ..av import Beeps, silence
from ..flow import UNIT, Scene, no_task_left, tag, until, virtual


class Pictures(TagCodec):
    """Images (N, 1, h, w), one by one, each with the tag of its latent."""

    kind = "image"
    layout = "BCHW"
    axis = 0

    def check(self, shape: tuple[int, ...]) -> None:
        """Any."""

    def picture(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return shape[2] * 8, shape[3] * 8

    def decoder(self):
        made = super().decoder()
        decode = made.decode
        made.decode = lambda latents: decode(latents[:, :, None])[:, :, 0]  # type: ignore[method-assign]
        return made


FORMS = ("frames", "jpeg", "mp4")


def watched(broadcast: Broadcast, form: str, policy: Policy | None = None) -> Subscription[Frame]:
    """A subscription of either kind; both have indices."""
    if form == "frames":
        return broadcast.frames(policy or Latest())
    return broadcast.packets(form, policy)  # type: ignore[arg-type, return-value]


async def indices(viewer: Subscription[Frame], into: list[int], *, every: float = 0.0) -> None:
    """Watch to the end, each frame for ``every`` seconds."""
    async with viewer:
        async for frame in viewer:
            into.append(frame.index)
            del frame
            await asyncio.sleep(every)


@pytest.mark.parametrize("form", FORMS)
@virtual
async def test_viewers_see_every_frame_when_they_keep_up(form: str) -> None:
    """Each viewer of each form gets every frame in order, after the sink has accepted it."""
    scene = Scene()
    seen: list[list[int]] = [[] for _ in range(3)]
    async with Broadcast(scene.stream(fps=10)) as broadcast:
        async with asyncio.TaskGroup() as group:
            for into in seen:
                group.create_task(indices(watched(broadcast, form), into))
        await broadcast.finished()
    assert seen == [list(range(len(scene.expected)))] * 3
    assert scene.sink.tags == scene.expected
    assert scene.sink.calls == ["open", "close"]
    assert broadcast.viewers == 0
    await scene.nothing_left()


@virtual
async def test_frames_are_shared_and_read_only() -> None:
    """All viewers get the same frame: its own memory, not its chunk's, that nobody can write to."""
    scene = Scene(codec=TagCodec(4))
    kept: list[list[Frame]] = [[], []]

    async def keep(viewer: Subscription[Frame], into: list[Frame]) -> None:
        async with viewer:
            async for frame in viewer:
                into.append(frame)

    async with Broadcast(scene.stream(fps=10)) as broadcast, asyncio.TaskGroup() as group:
        for into in kept:
            group.create_task(keep(broadcast.frames(), into))
    assert [tag(frame.data) for frame in kept[0]] == scene.expected
    assert [frame.time for frame in kept[0]] == [frame.index / 10 for frame in kept[0]]
    for one, other in zip(*kept, strict=True):
        assert one is other
        assert isinstance(one.data, np.ndarray)
        assert not one.data.flags.writeable
        memory = one.data if one.data.base is None else one.data.base
        assert memory.nbytes == one.data.nbytes
    # Whole chunks are gone, although every frame of theirs is kept.
    gc.collect()
    assert scene.backend.host_chunks.alive <= 1  # the first chunk is one frame


@pytest.mark.parametrize("form", FORMS)
@virtual
async def test_sinks_and_viewers_are_not_slowed_by_a_stalled_viewer(form: str) -> None:
    """A viewer who takes nothing costs no time: the stream takes as long as without anybody."""
    alone, scene = Scene(), Scene()
    await alone.stream(fps=10).finish()
    took = asyncio.get_running_loop().time()
    stream = alone.stream(fps=10, sinks=MemorySink(seconds=2 * UNIT))
    await stream.finish()
    took = stream.stats.total
    seen = list[int]()
    stream = scene.stream(fps=10)
    async with (
        Broadcast(stream) as broadcast,
        watched(broadcast, form) as stalled,
        watched(broadcast, form, DropOldest(5)),
    ):
        await indices(watched(broadcast, form), seen)
        await broadcast.finished()
        assert stream.stats.total == pytest.approx(took, rel=0.02)
        assert seen == list(range(len(scene.expected)))
        assert scene.sink.tags == scene.expected
        left = [frame.index async for frame in stalled]
        assert len(left) + stalled.dropped == len(scene.expected)
        assert left[-1:] == ([] if form == "mp4" and not left else seen[-1:])


@pytest.mark.parametrize("form", ["frames", "jpeg"])
@virtual
async def test_what_a_slow_viewer_misses_is_counted_and_seen(form: str) -> None:
    """Gaps in ``index`` and ``dropped`` say the same, and the newest frame is never missed."""
    scene = Scene()
    slow, slower = list[int](), list[int]()
    async with Broadcast(scene.stream(fps=10)) as broadcast, asyncio.TaskGroup() as group:
        three, latest = watched(broadcast, form, DropOldest(3)), watched(broadcast, form)
        group.create_task(indices(three, slow, every=8 * UNIT))
        group.create_task(indices(latest, slower, every=30 * UNIT))
    for viewer, seen in ((three, slow), (latest, slower)):
        assert seen == sorted(set(seen))
        assert viewer.dropped > 0
        assert len(seen) + viewer.dropped == len(scene.expected)
        assert seen[-1] == len(scene.expected) - 1
    assert len(slow) > len(slower)


@pytest.mark.parametrize("form", FORMS)
@virtual
async def test_a_viewer_who_blocks_gets_everything(form: str) -> None:
    """`Block` loses no frame however slow its viewer is; the decode waits for it."""
    scene = Scene(latents=tagged_latents(40))
    seen = list[int]()
    async with Broadcast(scene.stream(fps=10)) as broadcast:
        viewer = watched(broadcast, form, Block(1))
        await indices(viewer, seen, every=20 * UNIT)
        await broadcast.finished()
    assert seen == list(range(len(scene.expected)))
    assert viewer.dropped == 0
    assert broadcast.stats.total > len(seen) * 14 * UNIT
    assert broadcast.stats.bottleneck.startswith("The consumer")


@virtual
async def test_the_decode_goes_on_when_one_who_blocks_leaves() -> None:
    """Whoever held the decode and leaves holds it no longer; the others see what comes."""
    scene = Scene()
    seen = list[int]()
    async with Broadcast(scene.stream(fps=10)) as broadcast, asyncio.TaskGroup() as group:
        blocking, other = broadcast.frames(Block(1)), broadcast.frames()
        async with blocking:
            group.create_task(indices(other, seen))
            assert (await anext(blocking)).index == 0
            await asyncio.sleep(200 * UNIT)
            assert broadcast.stats.frames < len(scene.expected)
            held = len(seen)
            assert held < len(scene.expected) / 2
        await broadcast.finished()
    # All that was held comes at once; what is too much is dropped, as for anybody who is slow.
    assert seen[held:] == sorted(set(seen[held:]))
    assert seen[-1] == len(scene.expected) - 1
    assert len(seen) + other.dropped == len(scene.expected)
    assert scene.sink.tags == scene.expected


@pytest.mark.parametrize("form", FORMS)
@virtual
async def test_a_late_joiner_begins_at_the_next_frame(form: str) -> None:
    """Whoever comes late sees what comes from then on; video begins with a keyframe even so."""
    # All frames are the same: no scene ends, which would be a keyframe by itself.
    scene = Scene(latents=60 - tagged_latents(30), codec=TagCodec(2))
    early, late = list[int](), list[int]()
    async with Broadcast(scene.stream(fps=24)) as broadcast, asyncio.TaskGroup() as group:
        group.create_task(indices(watched(broadcast, form), early))
        await until(lambda: len(early) >= 30, "half of it")
        joined = early[-1]
        viewer = watched(broadcast, form)
        group.create_task(indices(viewer, late))
    assert early == list(range(59))
    # Two chunks may be on their way, and keyframes come at most every six frames.
    assert joined < late[0] <= joined + 4 + 6
    assert late == early[late[0] :]
    assert viewer.dropped == 0


@virtual
async def test_each_form_is_made_once_and_only_while_wanted() -> None:
    """Ten viewers get the same bytes; with the last one gone nothing is encoded any more."""
    scene = Scene(latents=tagged_latents(24))
    kept: list[list[Packet]] = [[] for _ in range(10)]

    async def keep(viewer: Subscription[Packet], into: list[Packet]) -> None:
        async with viewer:
            async for packet in viewer:
                into.append(packet)
                if len(into) == 10:
                    return

    async with Broadcast(scene.stream(fps=10)) as broadcast:
        assert encoders() == []
        async with asyncio.TaskGroup() as group:
            for into in kept:
                group.create_task(keep(broadcast.packets("jpeg"), into))
            await until(lambda: bool(kept[0]), "the first picture")
            assert len(encoders()) == 1
        assert broadcast.viewers == 0
        await until(lambda: encoders() == [], "nothing is encoded")
        assert broadcast.stats.frames < len(scene.expected)
        await broadcast.finished()
    assert all(one is other for into in kept for one, other in zip(kept[0], into, strict=True))
    assert scene.sink.tags == scene.expected


def encoders() -> list[str]:
    """Tasks that make something for viewers."""
    names = (task.get_name() for task in asyncio.all_tasks())
    return [name for name in names if name.startswith("streamvae viewers")]


@virtual
async def test_the_header_is_there_with_the_first_packet() -> None:
    """A viewer of MP4 has the file's beginning when it has a fragment; of JPEG there is none."""
    scene = Scene(latents=tagged_latents(30))
    async with Broadcast(scene.stream(fps=10)) as broadcast:
        async with broadcast.packets("mp4") as early, broadcast.packets("jpeg") as pictures:
            assert early.header == b""
            first = await anext(early)
            assert first.key
            assert early.header[4:8] == b"ftyp"
            await anext(pictures)
            assert pictures.header == b""
            async with broadcast.packets("mp4") as late:
                assert (await anext(late)).key
                assert late.header is early.header
        # Whoever comes when nobody was there gets an encoder of its own, and another beginning.
        async with broadcast.packets("mp4") as again:
            assert (await anext(again)).key
            assert again.header is not early.header


@virtual
async def test_leaving_in_the_middle_of_a_chunk() -> None:
    """A viewer who leaves while its frames are being made leaves no thread and no frame behind."""
    scene = Scene(codec=TagCodec(16), latents=tagged_latents(40, size=2))
    async with Broadcast(scene.stream(fps=10, latents_per_chunk=4)) as broadcast:
        for form in FORMS:
            async with watched(broadcast, form, Block(1)) as viewer:
                await anext(viewer)
                await anext(viewer)
        await until(lambda: encoders() == [], "nothing is made")
    await scene.nothing_left()


@virtual
async def test_a_stalled_viewer_costs_what_its_policy_says() -> None:
    """Of a long stream nothing piles up: what is kept is the policies' room, whatever comes."""
    scene = Scene(latents=tagged_latents(60, size=4), codec=TagCodec(4))
    broadcast = Broadcast(scene.stream(fps=10))
    async with broadcast:
        stalled = [broadcast.frames(DropOldest(3)) for _ in range(20)]
        for viewer in stalled:
            await viewer.__aenter__()
        seen = list[int]()
        held = list[int]()
        viewer = broadcast.frames()
        async with viewer:
            async for frame in viewer:
                seen.append(frame.index)
                del frame
                kept = {id(item): item for each in stalled for item in each._outlet._items}
                held.append(len(kept))
        assert len(seen) == len(scene.expected)
        assert max(held) <= 3
        assert scene.backend.host_chunks.peak <= 12
        for one in stalled:
            assert one.dropped == len(scene.expected) - 3
            await one.aclose()
        await broadcast.finished()
    kept = {}
    await scene.nothing_left()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("broken", ["codec", "source", "sink"])
@virtual
async def test_frames_first_then_the_error(form: str, broken: str) -> None:
    """What was decoded reaches every viewer; then each gets the stream's own error."""
    scene = Scene()
    options: dict[str, object] = {"fps": 10}
    if broken == "codec":
        scene.codec.fail_at = 6
        expected: type[Exception] = ValueError
    elif broken == "source":
        options["latents"] = one_by_one(scene.latents, fail_at=6)
        expected = RuntimeError
    else:
        options["sinks"] = MemorySink(fail_at=6)
        expected = OSError
    seen: list[list[int]] = [[], []]
    async with Broadcast(scene.stream(**options)) as broadcast:
        watching = [asyncio.ensure_future(indices(watched(broadcast, form), into)) for into in seen]
        with pytest.raises(expected, match="was to fail"):
            await broadcast.finished()
        for viewer in watching:
            with pytest.raises(expected, match="was to fail"):
                await viewer
        late = watched(broadcast, form)
        with pytest.raises(expected, match="was to fail"):
            await anext(late)
    assert seen == [list(range(scene.codec.frames(6)))] * 2
    with pytest.raises(expected, match="was to fail"):
        await broadcast.finished()
    await scene.nothing_left()


@virtual
async def test_leaving_ends_every_subscription() -> None:
    """Leaving the block stops the decode; viewers get what waits for them, then ClosedError."""
    scene = Scene()
    seen = list[int]()
    async with Broadcast(scene.stream(fps=10)) as broadcast:
        watching = asyncio.ensure_future(indices(broadcast.frames(), seen))
        stalled = broadcast.packets("jpeg", DropOldest(2))
        async with stalled:
            await until(lambda: len(seen) >= 5, "some frames")
            waiting = broadcast.finished()
            await broadcast.aclose()
            await broadcast.aclose()
            with pytest.raises(ClosedError, match="closed"):
                await waiting
            left = [(await anext(stalled)).index, (await anext(stalled)).index]
            assert left == sorted(left)
            with pytest.raises(ClosedError, match="closed"):
                await anext(stalled)
    with pytest.raises(ClosedError, match="closed"):
        await watching
    assert scene.sink.calls == ["open", "abort"]
    assert broadcast.viewers == 0
    await scene.nothing_left()
    await scene.next_is_right()


@virtual
async def test_cancelling_whoever_holds_the_broadcast() -> None:
    """A cancelled owner leaves nothing behind, with viewers of every form and one who blocks."""
    scene = Scene()
    seen: dict[str, list[int]] = {form: [] for form in FORMS}

    tasks = list[asyncio.Future[None]]()

    async def own() -> None:
        async with Broadcast(scene.stream(fps=10)) as broadcast:
            tasks.extend(
                asyncio.ensure_future(indices(watched(broadcast, form), into))
                for form, into in seen.items()
            )
            async with broadcast.frames(Block(1)):
                await broadcast.finished()

    owner = asyncio.ensure_future(own())
    await until(lambda: len(seen["frames"]) >= 1, "the first frame")
    await asyncio.sleep(50 * UNIT)
    owner.cancel()
    with pytest.raises(asyncio.CancelledError):
        await owner
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(ended, ClosedError)
    del ended
    tasks.clear()
    assert scene.sink.calls == ["open", "abort"]
    await scene.nothing_left()
    await scene.next_is_right()


@virtual
async def test_the_decode_stops_when_the_last_viewer_left() -> None:
    """``on_idle="cancel"``: within a chunk of the last viewer's leaving, never before the first."""
    scene = Scene(latents=tagged_latents(60))
    async with Broadcast(scene.stream(fps=10), on_idle="cancel") as broadcast:
        await until(lambda: broadcast.stats.chunks >= 3, "nobody came yet")
        async with broadcast.frames() as one:
            async with broadcast.packets("jpeg") as other:
                await anext(one)
                await anext(other)
            assert broadcast.viewers == 1
            await anext(one)
            chunks = len(scene.sink.indices)
        with pytest.raises(ClosedError, match="none left"):
            await broadcast.finished()
        assert len(scene.sink.indices) <= chunks + 1
        with pytest.raises(ClosedError, match="none left"):
            await anext(broadcast.frames())
    assert scene.sink.calls == ["open", "abort"]
    await scene.nothing_left()


@virtual
async def test_the_decode_goes_on_when_everybody_left() -> None:
    """``on_idle="finish"``, which is the default, is for the sinks."""
    scene = Scene()
    async with Broadcast(scene.stream(fps=10)) as broadcast:
        async with broadcast.frames() as viewer:
            await anext(viewer)
        await broadcast.finished()
    assert scene.sink.tags == scene.expected
    assert scene.sink.calls == ["open", "close"]


@virtual
async def test_a_viewer_who_is_dropped_has_left() -> None:
    """A subscription that nobody closes is closed with its last reference."""
    scene = Scene(latents=tagged_latents(60))
    async with Broadcast(scene.stream(fps=10), on_idle="cancel") as broadcast:
        viewer = broadcast.frames()
        async for frame in viewer:
            assert frame.index == 0
            break
        assert broadcast.viewers == 1
        del viewer, frame
        gc.collect()
        await until(lambda: broadcast.viewers == 0, "it has left")
        with pytest.raises(ClosedError, match="none left"):
            await broadcast.finished()


@virtual
async def test_an_encoder_that_fails_harms_its_viewers_only() -> None:
    """The viewers of one form get its error; the sinks and the other viewers get every frame."""
    codec = OddCodec(2)
    scene = Scene(codec=codec)
    seen = list[int]()
    async with Broadcast(scene.stream(fps=10)) as broadcast:
        watching = asyncio.ensure_future(indices(broadcast.frames(), seen))
        for form in ("jpeg", "mp4"):
            with pytest.raises(UsageError, match="expected 1 to 4 channels"):
                await indices(watched(broadcast, form), [])
        await broadcast.finished()
        await watching
    assert seen == list(range(len(scene.expected)))
    assert scene.sink.calls == ["open", "close"]
    await scene.nothing_left()


class OddCodec(TagCodec):
    """Pixels of five channels, as a transform may make them."""

    def decoder(self):
        made = super().decoder()
        decode = made.decode

        def five(latents):
            pixels = decode(latents)
            return pixels[:, :1].expand(-1, 5, -1, -1, -1)

        made.decode = five  # type: ignore[method-assign]
        return made


@pytest.mark.parametrize("form", ["jpeg", "mp4"])
@virtual
async def test_float_pixels_are_not_encoded(form: str) -> None:
    """A viewer of packets of a float stream is told what is expected; frames are for all."""
    scene = Scene()
    async with Broadcast(scene.stream(fps=10, output="float32")) as broadcast:
        async with broadcast.frames() as viewer:
            with pytest.raises(UsageError, match="expected output='uint8'"):
                await indices(watched(broadcast, form), [])
            frame = await anext(viewer)
            assert frame.data.dtype == np.float32
        await broadcast.finished()
    assert scene.sink.calls == ["open", "close"]


@virtual
async def test_sound_is_refused() -> None:
    """A stream of sound is no broadcast: everybody is told so, and it is closed."""
    stream = stream_decode(silence(8), Beeps(), backend=FakeBackend())
    async with Broadcast(stream) as broadcast:
        for waiting in (broadcast.opened(), broadcast.finished(), anext(broadcast.frames())):
            with pytest.raises(UsageError, match="got sound"):
                await waiting


@virtual
async def test_frames_that_stay_on_the_device_are_refused() -> None:
    """Nothing is downloaded for viewers behind one's back."""
    scene = Scene()
    async with Broadcast(scene.stream(output="device", sinks=())) as broadcast:
        with pytest.raises(UsageError, match="got 'device'"):
            await broadcast.opened()


@virtual
async def test_pictures_are_broadcast_too() -> None:
    """A stream of images gives each as a frame and as a JPEG, without time."""
    stream = stream_decode(
        tagged_latents(5)[0].movedim(0, 1), Pictures(), backend=FakeBackend(), output="uint8"
    )
    seen = list[int]()
    kept = list[Packet]()

    async def keep(viewer: Subscription[Packet]) -> None:
        async with viewer:
            async for packet in viewer:
                kept.append(packet)

    async with Broadcast(stream) as broadcast, asyncio.TaskGroup() as group:
        group.create_task(keep(broadcast.packets("jpeg", Block())))
        group.create_task(indices(broadcast.frames(Block()), seen))
    assert seen == [packet.index for packet in kept] == list(range(5))
    assert {packet.time for packet in kept} == {None}
    with Image.open(io.BytesIO(kept[0].data)) as picture:
        assert picture.format == "JPEG"


@virtual
async def test_clips_of_a_batch_are_watched_one_by_one() -> None:
    """Frames come of all clips or of one; packets of one, the first unless told otherwise."""
    scene = Scene(latents=tagged_latents(6, batch=2))
    batch = list[tuple[int, int]]()
    second, packets = list[int](), list[int]()

    async def both(viewer: Subscription[Frame]) -> None:
        async with viewer:
            async for frame in viewer:
                batch.append((frame.index, frame.batch_index))

    async with Broadcast(scene.stream(fps=10)) as broadcast, asyncio.TaskGroup() as group:
        group.create_task(both(broadcast.frames(Block())))
        group.create_task(indices(broadcast.frames(Block(), clip=1), second))
        group.create_task(indices(watched(broadcast, "jpeg", Block()), packets))
    frames = scene.codec.frames(6)
    assert batch == [(index, item) for index in range(frames) for item in range(2)]
    assert second == packets == list(range(frames))


@virtual
async def test_viewers_may_be_there_before_it_begins() -> None:
    """Whoever subscribes before the broadcast is entered sees the first frame."""
    scene = Scene()
    broadcast = Broadcast(scene.stream(fps=10))
    seen = list[int]()
    async with broadcast.frames() as viewer:
        assert broadcast.viewers == 1
        async with broadcast:
            info = await broadcast.opened()
            assert info == broadcast.info
            await indices(viewer, seen)
    assert seen == list(range(len(scene.expected)))


@virtual
async def test_a_broadcast_is_entered_once() -> None:
    """Neither a second entry, nor waiting without one, nor coming after its end goes unnoticed."""
    scene = Scene()
    broadcast = Broadcast(scene.stream(fps=10))
    with pytest.raises(ClosedError, match="entered"):
        await broadcast.finished()
    with pytest.raises(ClosedError, match="opened"):
        _ = broadcast.info
    async with broadcast:
        with pytest.raises(ClosedError, match="fresh"):
            await broadcast.__aenter__()
        await broadcast.finished()
        assert [frame async for frame in broadcast.frames()] == []
    with pytest.raises(ClosedError, match="fresh"):
        await broadcast.__aenter__()

    never = Broadcast(scene.stream(fps=10))
    viewer = never.frames()
    opening = asyncio.ensure_future(never.opened())
    async with viewer:
        await never.aclose()
        with pytest.raises(ClosedError, match="closed"):
            await opening
        with pytest.raises(ClosedError, match="closed"):
            await anext(viewer)
        with pytest.raises(ClosedError, match="fresh"):
            await never.__aenter__()


@virtual
async def test_what_keeps_the_stream_from_opening_is_told() -> None:
    """Whoever waits for it, and whoever watches, gets the sink's error as it is."""
    scene = Scene(sink=MemorySink(fail_open=True))
    async with Broadcast(scene.stream(fps=10)) as broadcast:
        for waiting in (broadcast.opened(), broadcast.finished(), anext(broadcast.frames())):
            with pytest.raises(OSError, match="when opened"):
                await waiting


@virtual
async def test_closing_before_the_first_step() -> None:
    """A broadcast that is left at once has begun nothing, and its viewers know."""
    scene = Scene()
    async with Broadcast(scene.stream(fps=10)) as broadcast:
        viewer = broadcast.frames()
        waiting = asyncio.ensure_future(anext(viewer))
        opening = asyncio.ensure_future(broadcast.opened())
    for future in (waiting, opening):
        with pytest.raises(ClosedError, match="closed"):
            await future
    await scene.nothing_left()


@virtual
async def test_a_source_that_is_stuck_is_left() -> None:
    """Closing does not wait for latents that never come."""
    scene = Scene()
    stream = scene.stream(stuck_after(scene.latents), fps=10)
    async with Broadcast(stream) as broadcast, broadcast.frames() as viewer:
        for _ in scene.expected:
            await anext(viewer)
    assert scene.sink.calls == ["open", "abort"]
    await scene.nothing_left()


@virtual
async def test_a_sink_that_is_stuck_is_named() -> None:
    """Closing returns in time and says which sink did not end."""
    sink = StuckSink(stuck_at=2, name="share")
    scene = Scene()
    broadcast = Broadcast(scene.stream(fps=10, sinks=sink, sink_timeout=1.0))
    async with broadcast:
        await until(sink.stuck.is_set, "the sink hangs")
        with pytest.raises(SinkTimeout, match="share"):
            await broadcast.aclose()
    sink.release()
    await no_task_left()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jpeg_quality": 0}, "jpeg_quality in 1..100, got 0"),
        ({"jpeg_quality": 101}, "got 101"),
        ({"jpeg_quality": True}, "got True"),
        ({"on_idle": "stop"}, "on_idle='finish' or 'cancel', got 'stop'"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    """A bad option is named before anything is done."""
    with pytest.raises(UsageError, match=message):
        Broadcast(stream_decode(tagged_latents(1)), **options)  # type: ignore[arg-type]


def test_what_one_asks_for_is_checked() -> None:
    """So are a bad format and a bad policy."""
    broadcast = Broadcast(stream_decode(tagged_latents(1)))
    with pytest.raises(UsageError, match="format='jpeg' or 'mp4', got 'webp'"):
        broadcast.packets("webp")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"expected Block\(n\), DropOldest\(n\) or Latest"):
        broadcast.frames("latest")  # type: ignore[arg-type]


@virtual
async def test_a_hundred_viewers_of_one_job(tmp_path: Path) -> None:
    """With 100 viewers, 20 stalled, the file is the same, in the same time; none starves."""

    def scene(name: str) -> Scene:
        made = Scene(latents=tagged_latents(24, size=2), codec=TagCodec(4))
        made.stream = lambda **options: stream_decode(  # type: ignore[method-assign]
            made.latents,
            made.codec,
            backend=made.backend,
            sinks=RawFile(tmp_path / name),
            **options,
        )
        return made

    alone = scene("alone.raw").stream(fps=16)
    await alone.finish()
    job = scene("watched.raw")
    seen: list[list[int]] = [[] for _ in range(80)]
    async with Broadcast(job.stream(fps=16)) as broadcast:
        stalled = [watched(broadcast, FORMS[number % 2]) for number in range(20)]
        for viewer in stalled:
            await viewer.__aenter__()
        async with asyncio.TaskGroup() as group:
            for number, into in enumerate(seen):
                group.create_task(indices(watched(broadcast, FORMS[number % 2]), into))
        await broadcast.finished()
        assert broadcast.viewers == 20
        total = broadcast.stats.total
        for viewer in stalled:
            assert len([item async for item in viewer]) == 1
            assert viewer.dropped == len(job.expected) - 1
    assert (tmp_path / "watched.raw").read_bytes() == (tmp_path / "alone.raw").read_bytes()
    assert total == pytest.approx(alone.stats.total, rel=0.1)
    assert seen == [list(range(len(job.expected)))] * 80


def test_importing_it_imports_no_framework() -> None:
    """The package and its broadcast need neither starlette nor PyAV nor diffusers."""
    import subprocess

    code = (
        "import sys, streamvae.live; from streamvae.live import Broadcast, Packet;"
        "print([name for name in ('starlette', 'uvicorn', 'av', 'diffusers') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
