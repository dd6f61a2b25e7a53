"""The nouns: how chunks fall apart into frames."""

import numpy as np
import pytest
import torch

from streamvae import DeviceFrames, Frame, HostChunk, StreamInfo, UsageError


def test_video_frames() -> None:
    """In time order, the batch innermost, as views."""
    data = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 2, 2, 1)
    chunk = HostChunk(4, 10, "video", data)
    frames = list(chunk.frames(5.0))
    assert [(frame.index, frame.batch_index) for frame in frames] == [
        (10, 0), (10, 1), (11, 0), (11, 1), (12, 0), (12, 1),
    ]  # fmt: skip
    assert [frame.time for frame in frames[::2]] == [2.0, 2.2, 2.4]
    assert all(np.shares_memory(frame.data, data) for frame in frames)
    assert np.array_equal(frames[3].data, data[1, 1])
    assert (len(chunk), chunk.format) == (3, "gray")
    assert next(chunk.frames(None)).time is None


def test_images() -> None:
    """Images count through, without a time."""
    chunk = HostChunk(1, 4, "image", np.zeros((2, 1, 3, 3, 3), np.float32))
    assert [(f.index, f.batch_index, f.time) for f in chunk.frames(None)] == [
        (4, 4, None), (5, 5, None),
    ]  # fmt: skip
    assert (len(chunk), chunk.format) == (2, "rgbf32")


@pytest.mark.parametrize(
    ("channels", "names"),
    [
        (1, ("gray", "grayf32")),
        (2, ("ya8", "yaf32")),
        (3, ("rgb24", "rgbf32")),
        (4, ("rgba", "rgbaf32")),
    ],
)
def test_formats(channels: int, names: tuple[str, str]) -> None:
    """Pixels are called what ffmpeg calls them, by their channels and dtype."""
    shape = (1, 1, 2, 2, channels)
    chunks = (HostChunk(0, 0, "image", np.zeros(shape, kind)) for kind in (np.uint8, np.float32))
    assert tuple(chunk.format for chunk in chunks) == names


def test_no_format() -> None:
    """What no format has a name for is refused by its number of channels."""
    chunk = HostChunk(0, 0, "video", np.zeros((1, 1, 2, 2, 7), np.uint8))
    with pytest.raises(UsageError, match="1 to 4 channels for a format, got 7"):
        _ = chunk.format


def test_sound() -> None:
    """One block for each item of the batch, its time in seconds."""
    chunk = HostChunk(1, 44100, "sound", np.zeros((2, 100, 2), np.float32))
    blocks = list(chunk.frames(44100))
    assert [(b.index, b.batch_index, b.time) for b in blocks] == [(44100, 0, 1.0), (44100, 1, 1.0)]
    assert blocks[0].data.shape == (100, 2)
    assert (len(chunk), chunk.format) == (100, "pcmf32")
    assert next(chunk.frames(None)).time is None


def test_frames_on_the_device() -> None:
    """Chunks left on the device fall apart in the same way."""
    chunk = DeviceFrames(0, 3, "video", torch.zeros(1, 2, 4, 4, 3))
    assert len(chunk) == 2
    frames = list(chunk.frames(1.0))
    assert [frame.index for frame in frames] == [3, 4]
    assert isinstance(frames[0].data, torch.Tensor)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_to_pil(channels: int, mode: str) -> None:
    """uint8 pictures become PIL images, grey ones too."""
    data = np.full((4, 6, channels), 9, np.uint8)
    image = Frame(0, None, 0, data).to_pil()
    assert (image.mode, image.size) == (mode, (6, 4))


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (np.zeros((2, 2, 3), np.float32), "ndarray of float32"),
        (torch.zeros(2, 2, 3), "Tensor of torch.float32"),
    ],
)
def test_no_pil_of_other_things(data, got) -> None:  # type: ignore[no-untyped-def]
    """Floats, sound and device memory are refused by name."""
    with pytest.raises(TypeError, match=f"expected uint8 pixels for a PIL image, got {got}"):
        Frame(0, None, 0, data).to_pil()


@pytest.mark.parametrize(("kind", "rate"), [("video", 24.0), ("sound", 44100), ("image", None)])
def test_rate(kind, rate) -> None:  # type: ignore[no-untyped-def]
    """Frames a second for video, samples for sound, none for images."""
    info = StreamInfo("X", kind, "uint8", "exact", "eager", "cpu", fps=24.0, sample_rate=44100)
    assert info.rate == rate
