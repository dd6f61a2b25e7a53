"""Latents in files."""

import pickle
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save_file

from streamvae._errors import LatentsError
from streamvae.latents import open_latents
from tests.latents.given import chunks_of, joined, latents, no_mark, reader_threads, sizes


def _write(path: Path, given: torch.Tensor) -> Path:
    if path.suffix == ".safetensors":
        save_file({"anything": given}, path)
    elif path.suffix == ".npy":
        np.save(path, given.numpy())
    else:
        torch.save(given, path)
    return path


SUFFIXES = [".safetensors", ".pt", ".pth", ".npy"]


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".PT"])
async def test_a_file_gives_what_was_saved(tmp_path: Path, suffix: str) -> None:
    """A file's latents come bit for bit, cut to the plan, whether its path is text or not."""
    path = _write(tmp_path / f"clip{suffix}", latents())
    for given in (path, str(path)):
        chunks = await chunks_of(given)
        assert sizes(chunks) == [1, 2, 2, 1]
        assert torch.equal(joined(chunks), latents())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
async def test_bfloat16_comes_through(tmp_path: Path, suffix: str) -> None:
    """Files that can hold bfloat16 give bfloat16."""
    given = latents(dtype=torch.bfloat16)
    chunks = await chunks_of(_write(tmp_path / f"clip{suffix}", given))
    assert joined(chunks).dtype == torch.bfloat16
    assert torch.equal(joined(chunks), given)


@pytest.mark.parametrize("suffix", SUFFIXES)
async def test_a_header_tells_shape_and_dtype(tmp_path: Path, suffix: str) -> None:
    """Nothing is known of a file before it is opened; then everything, without reading it."""
    source = open_latents(_write(tmp_path / f"clip{suffix}", latents()), no_mark)
    assert (source.shape, source.dtype) == (None, None)
    await source.open()
    await source.open()
    assert (source.shape, source.dtype) == ((2, 4, 6, 3, 5), torch.float32)
    await source.aclose()


@pytest.mark.parametrize("suffix", SUFFIXES)
async def test_closing_closes_the_file_and_ends_the_thread(tmp_path: Path, suffix: str) -> None:
    """After aclose, at any moment, the file is not held and its thread ends."""
    path = _write(tmp_path / f"clip{suffix}", latents())
    for steps in range(3):
        source = open_latents(path, no_mark)
        for _ in range(steps):
            await source.piece(2, 1)
        readers = reader_threads()
        await source.aclose()
        await source.aclose()
        assert str(path) not in {held.path for held in psutil.Process().memory_maps()}
        assert str(path) not in {held.path for held in psutil.Process().open_files()}
        for reader in readers:
            reader.join(5)
            assert not reader.is_alive()
        await source.open()
        assert await source.piece(2, 1) is None


async def test_an_array_is_not_read_after_closing(tmp_path: Path) -> None:
    """A source that was closed before it was opened stays closed."""
    source = open_latents(_write(tmp_path / "clip.npy", latents()), no_mark)
    await source.aclose()
    await source.open()
    assert source.shape is None
    assert not reader_threads()


@pytest.mark.parametrize("suffix", SUFFIXES)
async def test_nothing_saved_is_an_error(tmp_path: Path, suffix: str) -> None:
    """A file of no latents raises like an empty tensor."""
    path = _write(tmp_path / f"clip{suffix}", latents(0))
    with pytest.raises(LatentsError, match="expected at least one latent"):
        await chunks_of(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
async def test_of_several_tensors_latents_are_meant(tmp_path: Path, suffix: str) -> None:
    """A file of several tensors gives the one named latents, else it raises, listing them."""
    save = save_file if suffix == ".safetensors" else torch.save
    good, bad = tmp_path / f"good{suffix}", tmp_path / f"bad{suffix}"
    save({"latents": latents(), "noise": latents(seed=1)}, good)
    save({"b": latents(), "a": latents(seed=1)}, bad)
    assert torch.equal(joined(await chunks_of(good)), latents())
    with pytest.raises(LatentsError, match=r"one named 'latents', got \['a', 'b'\]"):
        await chunks_of(bad)


async def test_a_dict_s_other_values_do_not_matter(tmp_path: Path) -> None:
    """Of a saved dict its only tensor is meant, whatever else it notes."""
    torch.save({"z": latents(), "seed": 3, "prompt": "a cat"}, tmp_path / "clip.pt")
    assert torch.equal(joined(await chunks_of(tmp_path / "clip.pt")), latents())


@pytest.mark.parametrize(
    ("held", "got"),
    [([1, 2], "list"), ({"latents": [1, 2]}, "list"), ({"seed": 3}, r"got \[\]"), (None, "None")],
)
async def test_a_pt_file_of_something_else_is_refused(
    tmp_path: Path, held: object, got: str
) -> None:
    """A ``.pt`` file without a tensor raises, saying what it holds."""
    torch.save(held, tmp_path / "clip.pt")
    with pytest.raises(LatentsError, match=got):
        await chunks_of(tmp_path / "clip.pt")


class _Trap:
    def __reduce__(self):
        return (pytest.fail, ("loading latents ran code",))


@pytest.mark.parametrize("zipped", [True, False])
async def test_a_pt_file_runs_no_code(tmp_path: Path, zipped: bool) -> None:
    """A pickled object that is no tensor is refused, not made."""
    torch.save(_Trap(), tmp_path / "clip.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(LatentsError, match="expected only tensors in .*clip.pt"):
        await chunks_of(tmp_path / "clip.pt")


async def test_an_old_pt_file_is_read_too(tmp_path: Path) -> None:
    """The format of ``torch.save`` before zip files cannot be mapped, but read."""
    torch.save(latents(), tmp_path / "clip.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(joined(await chunks_of(tmp_path / "clip.pt")), latents())


async def test_a_saved_gradient_is_dropped(tmp_path: Path) -> None:
    """A saved parameter is latents like any other."""
    torch.save(torch.nn.Parameter(latents()), tmp_path / "clip.pt")
    chunks = await chunks_of(tmp_path / "clip.pt")
    assert not joined(chunks).requires_grad


async def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    """A ``.npy`` file of objects raises and is not unpickled."""
    np.save(tmp_path / "clip.npy", np.array([_Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(LatentsError, match="clip.npy"):
        await chunks_of(tmp_path / "clip.npy")


async def test_an_archive_is_refused(tmp_path: Path) -> None:
    """An ``.npz`` archive under the name of an array raises."""
    with (tmp_path / "clip.npy").open("wb") as file:
        np.savez(file, latents=latents().numpy())
    with pytest.raises(LatentsError, match="got an .npz archive"):
        await chunks_of(tmp_path / "clip.npy")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"not latents", pickle.dumps(3, protocol=2)])
async def test_a_damaged_file_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    """A file that is not what its name says raises, naming it."""
    path = tmp_path / f"clip{suffix}"
    path.write_bytes(content)
    with pytest.raises(LatentsError, match=f"clip{suffix}"):
        await chunks_of(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
async def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    """A file whose end is missing raises instead of giving other numbers."""
    path = _write(tmp_path / f"clip{suffix}", latents())
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(LatentsError, match=f"clip{suffix}"):
        await chunks_of(path)


async def test_a_single_number_is_refused(tmp_path: Path) -> None:
    """A number without dimensions is no latents."""
    save_file({"latents": torch.tensor(1.0)}, tmp_path / "clip.safetensors")
    with pytest.raises(LatentsError, match="got a single number"):
        await chunks_of(tmp_path / "clip.safetensors")


@pytest.mark.parametrize("name", ["clip.mp4", "clip", "Wan-AI/Wan2.1-T2V"])
def test_an_unknown_suffix_lists_the_known(name: str) -> None:
    """A path that names no known kind of file raises at once."""
    with pytest.raises(LatentsError, match=r"\.safetensors, \.pt, \.pth, \.npy"):
        open_latents(name, no_mark)


def test_a_missing_file_is_said_at_once(tmp_path: Path) -> None:
    """A file that is not there, or a folder, raises when it is given and not later."""
    (tmp_path / "folder.pt").mkdir()
    for name in ("clip.pt", "folder.pt"):
        with pytest.raises(LatentsError, match=f"found none at .*{name}"):
            open_latents(tmp_path / name, no_mark)


async def test_a_file_that_goes_away_raises_as_itself(tmp_path: Path) -> None:
    """What the system reports when the file is opened reaches the user as it is."""
    path = _write(tmp_path / "clip.npy", latents())
    source = open_latents(path, no_mark)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        await source.open()
    await source.aclose()


async def test_a_closed_array_source_is_closed() -> None:
    """An array read on a thread is let go of, too."""
    array = latents().numpy()
    array.flags.writeable = False
    source = open_latents(array, no_mark)
    await source.piece(2, 1)
    await source.aclose()
    assert await source.piece(2, 1) is None
