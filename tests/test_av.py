"""Video with sound: one stream in time order, on one clock, which ends cleanly however it ends."""

from __future__ import annotations

import asyncio
import gc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from streamvae import (
    AVStream,
    ClosedError,
    Frame,
    HostChunk,
    LatentsError,
    SinkTimeout,
    UsageError,
    collect_av,
    iter_decode_av,
    stream_decode_av,
)
from streamvae.testing import MemorySink, StuckSink, TagCodec, one_by_one, tagged_latents

from .av import AVScene, Beeps, silence
from .flow import others, until, virtual

SIXTY = 60


async def watch(stream: AVStream, seen: list[Frame], *, stop_after: int | None = None) -> None:
    """Read into ``seen``; leave by ``break`` if told to."""
    async for frame in stream:
        seen.append(frame)
        if len(seen) == stop_after:
            break


@pytest.mark.parametrize(
    ("fps", "rate"), [(24.0, 24000), (30000 / 1001, 44100), (25, 48000)], ids=str
)
@virtual
async def test_sixty_seconds_on_one_clock(fps: float, rate: int) -> None:
    """Over a minute every timestamp is that of its number, and no block is late for its frame."""
    latents = 1 + -(-round(SIXTY * fps) // 8), SIXTY * 25
    scene = AVScene(latents, fps, video=TagCodec(8), audio=Beeps(rate // 25, rate))
    seen: list[Frame] = []

    async with scene.stream(backend=None) as stream:
        await watch(stream, seen)

    pictures = [frame for frame in seen if not frame.is_sound]
    assert [frame.index for frame in pictures] == list(range(scene.frames))
    heard, until_now = 0, Fraction(0)
    for frame in seen:
        exact = Fraction(frame.index) / Fraction(rate if frame.is_sound else fps)
        assert exact >= until_now
        until_now = exact
        assert frame.time == pytest.approx(float(exact), rel=1e-15)
        assert abs(Fraction(frame.time) - exact) < Fraction(1, 2) / Fraction(fps)
        if frame.is_sound:
            assert frame.index == heard
            heard += len(frame.data)
        elif exact < SIXTY:
            assert Fraction(heard, rate) > exact
    assert heard == scene.samples == SIXTY * rate
    assert seen[-1].time > SIXTY - 1


@pytest.mark.parametrize(
    ("latents", "last"),
    [((4, 50), "sound"), ((40, 8), "video"), ((1, 1), "sound"), ((2, 1), "video")],
    ids=["video-first", "sound-first", "one-each", "one-block"],
)
@virtual
async def test_whichever_ends_first_ends(latents: tuple[int, int], last: str) -> None:
    """The longer one goes on alone to its own end; both are complete, and nothing is left."""
    scene, seen = AVScene(latents), list[Frame]()

    async with scene.stream() as stream:
        await watch(stream, seen)
        assert seen[-1].is_sound == (last == "sound") or latents == (1, 1)

    scene.check(seen)
    assert sum(not frame.is_sound for frame in seen) == scene.frames
    assert sum(len(frame.data) for frame in seen if frame.is_sound) == scene.samples
    await scene.nothing_left()


@virtual
async def test_sound_comes_first_of_two_of_one_time() -> None:
    """When a picture is there, the sound of its moment has begun."""
    scene, seen = AVScene((3, 25), audio=Beeps(1000, 24000)), list[Frame]()

    async with scene.stream(audio_latents_per_chunk=1) as stream:
        await watch(stream, seen)

    assert [frame.is_sound for frame in seen[:8]] == [True, False] * 4


@pytest.mark.parametrize("inside", [True, False], ids=["async with", "bare"])
@virtual
async def test_break(inside: bool) -> None:
    """A break ends both."""
    scene, seen = AVScene(), list[Frame]()
    if inside:
        async with scene.stream() as stream:
            await watch(stream, seen, stop_after=7)
        assert not others()
    else:
        await watch(scene.stream(), seen, stop_after=7)
    assert len(seen) == 7
    scene.check(seen)
    await scene.nothing_left()


@virtual
async def test_break_with_the_stream_kept() -> None:
    """Dropping the iterator is enough, though the stream itself is still known."""
    scene, seen = AVScene(), list[Frame]()
    stream = scene.stream()
    await watch(stream, seen, stop_after=7)
    await scene.nothing_left()
    assert stream.stats.video.frames + stream.stats.audio.frames > 0


@pytest.mark.parametrize("seconds", [0, 0.001, 0.1, 0.2, 0.35])
@pytest.mark.parametrize("inside", [True, False], ids=["async with", "bare"])
@virtual
async def test_a_task_is_cancelled_at_any_moment(seconds: float, inside: bool) -> None:
    """Cancelling whoever reads ends both, also before the first step."""
    scene, seen = AVScene(), list[Frame]()

    async def read() -> None:
        stream = scene.stream()
        if inside:
            async with stream:
                await watch(stream, seen)
        else:
            await watch(stream, seen)

    task = asyncio.create_task(read())
    if seconds:
        await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.wait([task])

    assert task.cancelled()
    scene.check(seen)
    await scene.nothing_left()


@virtual
async def test_the_consumer_raises() -> None:
    """The consumer's own error comes out as it is."""
    scene = AVScene()
    with pytest.raises(ZeroDivisionError):
        async with scene.stream() as stream:
            async for frame in stream:
                raise ZeroDivisionError(frame.index)
    await scene.nothing_left()


@virtual
async def test_closing() -> None:
    """Closing twice is closing once; a closed stream gives nothing more."""
    scene = AVScene()
    stream = scene.stream()
    frames = aiter(stream)
    await anext(frames)
    await stream.aclose()
    await stream.aclose()
    with pytest.raises(ClosedError, match="expected an open stream"):
        await anext(frames)
    with pytest.raises(ClosedError, match="expected an open stream"):
        async with stream:
            pass
    await scene.nothing_left()


@virtual
async def test_closed_while_somebody_waits() -> None:
    """Whoever waits for a frame is told."""
    scene = AVScene()
    scene.backend.fake.manual = True
    stream = scene.stream(backend=scene.backend)
    waiting = asyncio.create_task(anext(aiter(stream)))
    await until(lambda: scene.backend.unfinished > 0, "a launch")
    closing = asyncio.create_task(stream.aclose())
    await until(waiting.done, "an answer")
    with pytest.raises(ClosedError):
        await waiting
    for event in scene.backend.launches:
        event.set()
    await closing


@virtual
async def test_never_started_is_nothing() -> None:
    """A stream that nobody entered has nothing to give back, and knows nothing yet."""
    scene = AVScene()
    stream = scene.stream()
    with pytest.raises(ClosedError, match="info is there inside"):
        _ = stream.info
    await stream.aclose()
    assert stream.stats.video.chunks == stream.stats.audio.chunks == 0
    await scene.nothing_left()


@virtual
async def test_it_is_iterated_once() -> None:
    """A second iteration is refused."""
    scene = AVScene((2, 4))
    async with scene.stream() as stream:
        await stream.finish()
        with pytest.raises(ClosedError, match="iterated before"):
            aiter(stream)


@pytest.mark.parametrize(("side", "kind"), [("video", "video"), ("audio", "sound")])
@pytest.mark.parametrize("inside", [True, False], ids=["async with", "bare"])
@virtual
async def test_an_error_in_one_ends_both(side: str, kind: str, inside: bool) -> None:
    """What comes before the error is given, of both; then the error, which says where it was."""
    scene, seen = AVScene((12, 80)), list[Frame]()
    getattr(scene, side).fail_at = 8

    async def read() -> None:
        stream = scene.stream()
        if inside:
            async with stream:
                await watch(stream, seen)
        else:
            await watch(stream, seen)

    with pytest.raises(ValueError, match="latent 8 was to fail") as caught:
        await read()

    assert any(f"While the {kind} of a video with sound" in n for n in caught.value.__notes__)
    scene.check(seen)
    pictures = [frame for frame in seen if not frame.is_sound]
    blocks = [frame for frame in seen if frame.is_sound]
    if side == "video":  # frames of 8 latents, and every block that begins before the next
        assert len(pictures) == 1 + 7 * 8
        assert blocks[-1].time <= 57 / 24 < blocks[-1].time + 4 / 25
    else:  # 8 latents of sound, and every picture of before 8 / 25 s
        assert sum(len(block.data) for block in blocks) == 8 * 960
        assert pictures[-1].time < 8 / 25 <= pictures[-1].time + 1 / 24
    del caught
    gc.collect()
    await scene.nothing_left()


@virtual
async def test_after_an_error_it_is_closed() -> None:
    """The error comes once; after it the stream is closed."""
    scene = AVScene()
    scene.video.fail_at = 0
    frames = aiter(scene.stream())
    with pytest.raises(ValueError, match="latent 0"):
        while True:
            await anext(frames)
    with pytest.raises(ClosedError):
        await anext(frames)
    await scene.nothing_left()


@virtual
async def test_sinks_of_both() -> None:
    """Each keeps what it is for, complete; a frame that is seen was accepted before."""
    heard: list[HostChunk] = []
    sink = MemorySink()

    async def hear(chunk: HostChunk) -> None:
        heard.append(chunk)

    scene, seen = AVScene((4, 20)), 0
    async with scene.stream(video_sinks=sink, audio_sinks=hear) as stream:
        async for frame in stream:
            if frame.is_sound:
                assert frame.index + len(frame.data) <= sum(map(len, heard))
            else:
                seen += 1
                assert seen <= sink.committed
    assert sink.calls == ["open", "close"]
    assert sink.tags == scene.video.expected(tagged_latents(4))
    assert sum(map(len, heard)) == scene.samples
    await scene.nothing_left()


@virtual
async def test_a_stuck_sink_of_one() -> None:
    """Leaving early has the sinks of both keep what they have; the one that does not is named."""
    sinks = MemorySink(name="pictures"), StuckSink(name="sound")
    scene = AVScene()
    with pytest.raises(SinkTimeout, match="sink sound did not end within 5 s"):
        async with scene.stream(video_sinks=sinks[0], audio_sinks=sinks[1], sink_timeout=5):
            await until(sinks[1].stuck.is_set, "it hangs")
    assert sinks[0].calls == ["open", "abort"]
    sinks[1].release()
    await scene.nothing_left()


@virtual
async def test_two_stuck_sinks() -> None:
    """Both are waited for side by side, and both are named."""
    sinks = StuckSink(name="pictures"), StuckSink(name="sound")
    scene = AVScene()
    stream = scene.stream(video_sinks=sinks[0], audio_sinks=sinks[1], sink_timeout=5)
    await stream.__aenter__()
    await until(lambda: all(sink.stuck.is_set() for sink in sinks), "both hang")
    began = asyncio.get_running_loop().time()
    with pytest.raises(SinkTimeout, match="pictures") as caught:
        await stream.aclose()
    assert asyncio.get_running_loop().time() - began == pytest.approx(5)
    assert caught.value.__notes__ == ["sink sound did not end within 5 s"]
    await stream.aclose()
    for sink in sinks:
        sink.release()
    await scene.nothing_left()


@virtual
async def test_what_is_ahead_of_its_time_waits() -> None:
    """However long they are, no more chunks are in memory than two streams' queues hold."""
    scene = AVScene((100, 400))
    async with scene.stream() as stream:
        async for frame in stream:
            await asyncio.sleep(0.001)
            del frame
    assert scene.backend.host_chunks.total > 190
    assert scene.backend.host_chunks.peak <= 2 * 7 + 2


@virtual
async def test_chunks_and_the_rest() -> None:
    """Whole chunks come by their beginnings; `collect` gives two arrays, `finish` the stats."""
    scene = AVScene((4, 20))
    async with scene.stream() as stream:
        chunks = [chunk async for chunk in stream.chunks()]
        assert (stream.info.video.fps, stream.info.audio.sample_rate) == (24.0, 24000)
        rates = {"video": 24.0, "sound": 24000}
    times = [chunk.start / rates[chunk.kind] for chunk in chunks]
    assert times == sorted(times)
    assert {chunk.kind for chunk in chunks} == {"video", "sound"}

    video, sound = await scene.stream().collect()
    assert (video.shape, sound.shape) == ((1, 25, 8, 8, 3), (1, 20 * 960, 2))
    assert np.array_equal(sound[0, ::960, 1], np.arange(20))

    stats = await scene.stream().finish()
    assert (stats.video.frames, stats.audio.frames) == (25, 20 * 960)
    await scene.nothing_left()


@virtual
async def test_clips_side_by_side() -> None:
    """Of several clips every frame and block comes once, by time, each with its clip's number."""
    scene = AVScene()
    stream = stream_decode_av(
        tagged_latents(3, batch=2), silence(8, batch=2), (scene.video, scene.audio), fps=24.0
    )
    seen = [frame async for frame in stream]
    for clip in range(2):
        of_clip = [frame for frame in seen if frame.batch_index == clip]
        assert len(of_clip) == 17 + 2
        scene.check(of_clip)


def _one_by_one(batch: int):
    async def latents():
        for _ in range(4):
            yield silence(4, batch=batch)

    return latents()


@virtual
async def test_latents_one_by_one() -> None:
    """A model that is still generating both is followed, and sound for other clips is refused."""
    scene, seen = AVScene(), list[Frame]()
    video = one_by_one(tagged_latents(5), seconds=0.1)
    source = scene.video, scene.audio
    async with stream_decode_av(video, _one_by_one(1), source, fps=24.0) as stream:
        await watch(stream, seen)
    scene.check(seen)
    assert len([frame for frame in seen if not frame.is_sound]) == 33

    video = one_by_one(tagged_latents(5))
    with pytest.raises(LatentsError, match="each of the 1 clip.*got latents of 2"):
        async for frame in stream_decode_av(video, _one_by_one(2), source, fps=24.0):
            del frame
    await scene.nothing_left()


@virtual
async def test_what_does_not_go_together() -> None:
    """Other clips, other kinds and sound without a rate raise before anything is given."""
    scene = AVScene()
    pair = scene.video, scene.audio
    with pytest.raises(LatentsError, match="each of the 1 clip.*got latents of 2"):
        async with stream_decode_av(tagged_latents(2), silence(2, batch=2), pair, fps=24.0):
            pass
    with pytest.raises(UsageError, match="expected what makes video, and what makes sound.*Tag"):
        async with stream_decode_av(tagged_latents(2), tagged_latents(2), pair[:1] * 2, fps=24.0):
            pass
    for audio in (Beeps(rate=None), scene.video):
        with pytest.raises(UsageError, match="expected what makes video, and what makes sound"):
            given = silence(2) if isinstance(audio, Beeps) else tagged_latents(2)
            async with stream_decode_av(tagged_latents(2), given, (pair[0], audio), fps=24.0):
                pass
    with pytest.raises(LatentsError, match="expected latents of shape") as caught:
        async with stream_decode_av(silence(2), silence(2), pair, fps=24.0):
            pass
    assert any("While the video of" in note for note in caught.value.__notes__)
    del caught
    await scene.nothing_left()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fps": None}, "expected fps, since a pair"),
        ({"fps": float("inf")}, "positive and finite, got inf"),
        ({"fps": 0}, "fps to be positive, got 0"),
        ({"queue_size": 0}, "queue_size"),
        ({"video_sinks": "a.npy", "audio_sinks": Path("a.npy")}, r"a\.npy more than once"),
    ],
)
def test_bad_options_raise_at_once(options: dict[str, object], said: str) -> None:
    """What contradicts itself raises when the stream is made."""
    with pytest.raises(UsageError, match=said):
        AVScene().stream(**options)


@virtual
async def test_on_the_device() -> None:
    """With ``output="device"`` both stay there, as tensors."""
    scene = AVScene((2, 4))
    async for frame in scene.stream(output="device"):
        assert isinstance(frame.data, torch.Tensor)
        assert frame.is_sound == (frame.data.ndim == 2)


def test_without_a_loop() -> None:
    """The same for people without a loop: frames in time order, arrays, and early leaving."""
    scene = AVScene((4, 20))
    latents, source = (tagged_latents(4), silence(20)), (scene.video, scene.audio)
    seen = list(iter_decode_av(*latents, source, fps=24.0))
    scene.check(seen)
    assert sum(not frame.is_sound for frame in seen) == 25

    frames = iter_decode_av(*latents, source, fps=24.0)
    assert next(frames).is_sound
    frames.close()

    video, sound = collect_av(*latents, source, fps=24.0, output="float32")
    assert (video.shape, sound.shape) == ((1, 25, 8, 8, 3), (1, 20 * 960, 2))
    assert scene.video.open_decoders == scene.audio.open_decoders == 0
