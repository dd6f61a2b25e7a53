"""Packets: what a viewer of JPEG or MP4 gets, and what a player makes of it."""

import asyncio
import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from streamvae import StreamInfo, UsageError
from streamvae._threads import outcome
from streamvae.live import Packet
from streamvae.live._forms import Jpegs
from streamvae.live._fragments import fragment, sample
from streamvae.live._mp4 import Mp4
from streamvae.live._tracks import Form

from ..sinks.streams import cut, describe

Pictures = npt.NDArray[np.uint8]

#: What a player may differ by, per channel: H.264 in 4:2:0, and JPEG.
CLOSE = 3


def bars(frames: int, height: int = 32, width: int = 48, channels: int = 3) -> Pictures:
    """Flat colours in a movement: every frame is another."""
    colours = [(200, 30, 40), (30, 160, 60), (40, 60, 190), (224, 172, 138)]
    rows = np.empty((frames, height, width, 3), np.uint8)
    for index in range(frames):
        rows[index] = colours[index // 4 % 4]
        rows[index, : height // 2] = (index * 8 % 256,) * 3
    if channels == 1:
        return np.ascontiguousarray(rows[..., :1])
    if channels == 4:
        return np.concatenate([rows, np.full_like(rows[..., :1], 255)], 3)
    return rows


async def made(
    form: Form[Packet], rows: Pictures, *, keys: Sequence[int] = (), only: Sequence[int] = ()
) -> list[Packet]:
    """What ``form`` makes of ``rows``, a key asked for at ``keys``, of some frames ``only``."""
    packets: list[Packet] = []
    try:
        for chunk in cut(rows):
            for frame in form.frames(chunk):
                if not only or frame.index in only:
                    packets.append(await outcome(form.make(frame, key=frame.index in keys)))
    finally:
        form.close()
    return packets


def jpegs(rows: Pictures, quality: int = 85) -> Jpegs:
    """The form of JPEG, for frames 16 a second."""
    return Jpegs(lambda: 16.0, 0, quality)


def mp4s(rows: Pictures, **known: object) -> Mp4:
    """The form of MP4 of a stream that says of itself what ``rows`` are."""
    info: StreamInfo = describe(rows, **known)  # type: ignore[arg-type]
    return Mp4(lambda: info, 0)


def played(header: bytes, packets: Sequence[Packet]) -> tuple[list[Fraction], Pictures]:
    """What a player shows: times in frames (of 16 a second) and pictures."""
    data = io.BytesIO(header + b"".join(packet.data for packet in packets))
    times, pictures = [], []
    with av.open(data) as file:
        stream = file.streams.video[0]
        assert stream.codec_context.colorspace == 1
        for frame in file.decode(stream):
            assert frame.pts is not None
            times.append(frame.pts * frame.time_base * 16)
            shown = frame.reformat(
                format="rgb24",
                src_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.MPEG,
                dst_color_range=ColorRange.JPEG,
            )
            pictures.append(shown.to_ndarray())
    return times, np.stack(pictures)


async def test_a_jpeg_is_a_file_of_the_picture() -> None:
    """Each packet is a whole JPEG of its frame, with its index and its time."""
    rows = bars(9)
    packets = await made(jpegs(rows), rows)
    assert [packet.index for packet in packets] == list(range(9))
    assert [packet.time for packet in packets] == [index / 16 for index in range(9)]
    assert all(packet.key for packet in packets)
    for packet, row in zip(packets, rows, strict=True):
        with Image.open(io.BytesIO(packet.data)) as picture:
            assert picture.format == "JPEG"
            shown = np.asarray(picture).astype(int)
        assert np.abs(shown - row)[8::16, 8::16].max() <= CLOSE


async def test_quality_is_size() -> None:
    """``jpeg_quality`` reaches the encoder."""
    noise = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    small, large = [(await made(jpegs(noise, quality), noise))[0] for quality in (10, 95)]
    assert len(small.data) < len(large.data) / 2


@pytest.mark.parametrize("form", [jpegs, mp4s])
@pytest.mark.parametrize("channels", [1, 4])
async def test_grey_and_transparency(form, channels: int) -> None:
    """Grey is shown as grey; what is transparent is shown on black."""
    rows = bars(4, channels=channels)
    expected = np.repeat(rows, 3, 3) if channels == 1 else rows[..., :3].copy()
    if channels == 4:
        rows[:, :, 24:, 3] = 0
        expected[:, :, 24:] = 0
    making = form(rows)
    packets = await made(making, rows)
    if form is mp4s:
        _, shown = played(making.header, packets)
    else:
        opened = [Image.open(io.BytesIO(packet.data)).convert("RGB") for packet in packets]
        shown = np.stack([np.asarray(picture) for picture in opened])
    assert np.abs(shown.astype(int) - expected)[:, 8::16, 8::32].max() <= CLOSE + 1


async def test_mp4_is_what_a_player_shows() -> None:
    """Header and fragments are an MP4: each frame one fragment, at its time, in its colours."""
    rows = bars(40)
    form = mp4s(rows)
    packets = await made(form, rows)
    times, shown = played(form.header, packets)
    assert times == list(range(40))
    assert np.abs(shown.astype(int) - rows)[:, 4::8, 4::8].max() <= 6
    assert [packet.index for packet in packets] == list(range(40))
    assert packets[0].key
    assert all(packet.data[4:8] == b"moof" for packet in packets)
    assert form.header[4:8] == b"ftyp"
    assert b"avc1" in form.header


@pytest.mark.parametrize("fps", [16, 24000 / 1001, 29.97, 12.5, 1])
async def test_frames_last_as_long_as_they_must(fps: float) -> None:
    """A frame is a whole number of ticks at any rate, so that nothing drifts."""
    rows = bars(12)
    form = mp4s(rows, fps=fps)
    packets = await made(form, rows)
    with av.open(io.BytesIO(form.header + b"".join(packet.data for packet in packets))) as file:
        stream = file.streams.video[0]
        seconds = [packet.pts * packet.time_base for packet in file.demux(stream) if packet.size]
    exact = Fraction(24000, 1001) if 23 < fps < 24 else Fraction(fps).limit_denominator(1001)
    exact = Fraction(30000, 1001) if fps == 29.97 else exact
    assert seconds == [index / exact for index in range(12)]


async def test_one_can_begin_at_any_key() -> None:
    """A key is what a player begins with, whatever came before; a key comes each second."""
    rows = bars(48)
    form = mp4s(rows)
    packets = await made(form, rows)
    keys = [packet.index for packet in packets if packet.key]
    assert max(np.diff([*keys, 48])) <= 16
    for key in keys:
        times, shown = played(form.header, packets[key:])
        assert times == list(range(key, 48))
        assert np.abs(shown.astype(int) - rows[key:])[:, 4::8, 4::8].max() <= 6


async def test_who_waits_gets_a_key_soon_but_not_always() -> None:
    """A key that is asked for comes at once, at most four times a second."""
    flat = np.full((48, 32, 32, 3), 90, np.uint8)  # no scene ends here, so no key comes for it
    packets = await made(mp4s(flat), flat, keys=range(2, 48))
    assert [packet.index for packet in packets if packet.key] == list(range(0, 48, 4))
    packets = await made(mp4s(flat), flat, keys=[7])
    assert [packet.index for packet in packets if packet.key] == [0, 7, 23, 39]


async def test_a_frame_that_was_dropped_is_a_gap_in_time() -> None:
    """What comes after it is shown when it would have been."""
    rows = bars(24)
    form = mp4s(rows)
    only = [0, 1, 2, 9, 10, 20, 21]
    packets = await made(form, rows, only=only)
    times, _ = played(form.header, packets)
    assert times == only == [packet.index for packet in packets]


@pytest.mark.parametrize(("height", "width"), [(33, 48), (32, 47), (17, 15), (8, 8), (2, 2)])
async def test_sizes_that_are_odd_or_small(height: int, width: int) -> None:
    """4:2:0 needs even sizes: the last row or column is repeated, nothing is stretched."""
    rows = bars(3, height, width)
    form = mp4s(rows)
    packets = await made(form, rows)
    _, shown = played(form.header, packets)
    assert shown.shape[1:3] == (height + height % 2, width + width % 2)
    assert np.abs(shown[:, -1, -1].astype(int) - rows[:, -1, -1]).max() <= 6


async def test_pictures_of_another_size_are_refused() -> None:
    """A run of fragments has one size; the viewer is told which."""
    rows = bars(1)
    form = mp4s(rows)
    (chunk,) = cut(rows)
    (other,) = cut(bars(1, 16, 16))
    try:
        for frame in form.frames(chunk):
            await outcome(form.make(frame, key=False))
        for frame in form.frames(other):
            with pytest.raises(UsageError, match=r"one size for MP4, \(32, 48\), got \(16, 16\)"):
                await outcome(form.make(frame, key=False))
    finally:
        form.close()


async def test_mp4_needs_a_rate() -> None:
    """Without frames a second there is no video, and the message says what is expected."""
    rows = bars(1)
    with pytest.raises(UsageError, match="expected frames a second"):
        await made(mp4s(rows, fps=None), rows)


async def test_encoders_leave_nothing() -> None:
    """A form that is closed in the middle of its work lets its threads go."""
    rows = bars(1, 240, 320)
    for form in (jpegs(rows), mp4s(rows)):
        (chunk,) = cut(rows)
        (frame,) = form.frames(chunk)
        futures = [form.make(frame, key=False) for _ in range(3 if form.ahead else 1)]
        form.close()
        await asyncio.gather(*map(outcome, futures))


def test_units_are_told_by_length() -> None:
    """Start codes of three and four bytes become lengths; zeros before a code are no part."""
    stream = b"\0\0\0\1\x67abc\0\0\1\x68d\0\0\0\0\1\x65\0\0\3\0x"
    assert sample(stream) == (b"\0\0\0\4\x67abc" + b"\0\0\0\2\x68d" + b"\0\0\0\6\x65\0\0\3\0x")


def test_a_fragment_says_where_its_sample_is() -> None:
    """The offset in it counts from its first byte to the sample's, and sizes are whole."""
    data = fragment(7, 2**33, 625, b"sample", key=True)
    size = int.from_bytes(data[:4], "big")
    assert data[size : size + 8] == b"\0\0\0\x0emdat"
    assert data[size + 8 :] == b"sample"
    at = data.index(b"trun") + 4 + 4 + 4
    assert int.from_bytes(data[at : at + 4], "big") == size + 8
    assert (2**33).to_bytes(8, "big") in data
