"""Latents that are there already: tensors and numpy arrays."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from streamvae._errors import LatentsError
from streamvae.latents import open_latents
from tests.latents.given import Marks, chunks_of, joined, latents, no_mark, reader_threads


def test_a_tensor_is_marked_where_it_is_given() -> None:
    """A tensor's event is recorded at once, on the thread that gives it."""
    marks = Marks()
    source = open_latents(latents(), marks)
    assert marks.threads == [threading.current_thread()]
    assert source.shape == (2, 4, 6, 3, 5)
    assert source.dtype == torch.float32


async def test_gradients_stay_with_the_giver() -> None:
    """Latents that require a gradient are detached."""
    chunks = await chunks_of(latents().requires_grad_())
    assert not joined(chunks).requires_grad


async def test_a_source_lets_go_of_its_tensor() -> None:
    """After its last chunk, and after aclose, a source gives no more."""
    for source in (open_latents(latents(), no_mark), open_latents(latents(), no_mark)):
        piece = await source.piece(2, 1)
        assert piece is not None
        assert await source.piece(2, 1) is None
        await source.aclose()
    closed = open_latents(latents(), no_mark)
    await closed.aclose()
    await closed.aclose()
    assert await closed.piece(2, 1) is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
async def test_an_array_is_not_copied(dtype: type) -> None:
    """A plain array is looked at where it is, and known at once."""
    array = latents().numpy().astype(dtype)
    source = open_latents(array, no_mark)
    assert source.shape == array.shape
    assert source.dtype == torch.from_numpy(array).dtype
    piece = await source.piece(2, 1)
    assert piece is not None
    assert piece.tensor.data_ptr() == array.ctypes.data
    assert not reader_threads()


def _read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "awkward",
    [
        _read_only,
        lambda array: np.flip(np.flip(array, 4).copy(), 4),
        lambda array: array.astype(">f4"),
        lambda array: np.moveaxis(_read_only(np.moveaxis(array, 1, -1)), -1, 1),
    ],
    ids=["read-only", "backwards", "big-endian", "read-only-strided"],
)
async def test_an_array_torch_cannot_view_is_read_on_a_thread(awkward) -> None:
    """Arrays that torch cannot look at (or warns of) are copied by chunk, and the thread ends."""
    array = awkward(latents().numpy())
    source = open_latents(array, no_mark)
    assert (source.shape, source.dtype) == ((2, 4, 6, 3, 5), torch.float32)
    readers = set()
    pieces = []
    while (piece := await source.piece(2, 2)) is not None:
        pieces.append(piece.tensor)
        readers |= reader_threads()
    await source.aclose()
    assert [piece.shape[2] for piece in pieces] == [2, 2, 2]
    assert torch.equal(torch.cat(pieces, 2), latents())
    assert len(readers) == 1
    for reader in readers:
        reader.join(5)
        assert not reader.is_alive()


async def test_a_memory_map_is_read_on_a_thread(tmp_path: Path) -> None:
    """Touching a map reads the disk, so it is not done on the loop."""
    np.save(tmp_path / "latents.npy", latents().numpy())
    mapped = np.load(tmp_path / "latents.npy", mmap_mode="r+")
    assert torch.equal(joined(await chunks_of(mapped)), latents())


@pytest.mark.parametrize("dtype", ["O", "U3", "M8[s]", "g"])
def test_an_array_of_something_else_is_refused(dtype: str) -> None:
    """An array of objects, text, dates or of floats wider than torch's raises at once."""
    with pytest.raises(LatentsError, match="expected latents of floating point, got an array of"):
        open_latents(np.zeros((2, 4, 6, 3, 5), dtype), no_mark)


@pytest.mark.parametrize("given", [3, None, b"latents", {"latents": latents()}, object()])
def test_something_else_is_refused(given: object) -> None:
    """What holds no latents raises at once, listing what can be given."""
    with pytest.raises(LatentsError, match=rf"\.safetensors.*got {type(given).__name__}$"):
        open_latents(given, no_mark)
