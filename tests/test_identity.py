"""What a stream's frames follow from, told apart."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from streamvae._identity import (
    UNKNOWN,
    Identity,
    Unwanted,
    described,
    hash_array,
    hash_file,
    hash_modules,
    hash_tensor,
)


def yes() -> bool:
    """Somebody wants it."""
    return True


def test_tensors_are_told_apart_by_all_they_are() -> None:
    """Values, dtype and shape count; strides and grad do not."""
    tensor = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    same = hash_tensor(tensor, yes)
    assert hash_tensor(tensor.t().contiguous().t(), yes) == same
    assert hash_tensor(torch.nn.Parameter(tensor), yes) == same
    others = (tensor + 1, tensor.bfloat16(), tensor.reshape(4, 3), tensor[:0])
    assert len({same, *(hash_tensor(other, yes) for other in others)}) == 5


def test_arrays_and_files(tmp_path: Path) -> None:
    """Arrays are hashed by their numbers, mapped or not; files by their bytes."""
    array = np.arange(12, dtype=np.float16).reshape(3, 4)
    np.save(tmp_path / "a.npy", array)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert hash_array(mapped, yes) == hash_array(array, yes) != hash_array(array[::-1], yes)
    np.save(tmp_path / "b.npy", array + 1)
    files = [hash_file(tmp_path / name, yes) for name in ("a.npy", "a.npy", "b.npy")]
    assert files[0] == files[1] != files[2]


def test_weights_are_hashed_once() -> None:
    """A module is hashed again only when its tensors have changed, and is not kept alive."""
    module = torch.nn.Conv2d(2, 3, 1)
    first = hash_modules([module], yes)
    asked = list[bool]()

    def ask() -> bool:
        asked.append(True)
        return True

    assert hash_modules([module], ask) == first
    assert not asked
    with torch.no_grad():
        module.weight.add_(1)
    second = hash_modules([module], ask)
    assert second != first
    assert asked
    module.weight.data = torch.zeros(3, 2, 1, 1)
    assert hash_modules([module], yes) not in {first, second}
    held = weakref.ref(module)
    del module
    gc.collect()
    assert held() is None


def test_weights_that_are_not_there() -> None:
    """Weights on meta cannot be told apart, and nobody pretends so."""
    with pytest.raises(ValueError, match="weight is on the meta device"):
        hash_modules([torch.nn.Conv2d(2, 3, 1, device="meta")], yes)


def test_nobody_waits_for_a_hash(tmp_path: Path) -> None:
    """Hashing ends as soon as nobody wants it."""
    (tmp_path / "a").write_bytes(b"latents")
    for call in (
        lambda: hash_tensor(torch.ones(3), bool),
        lambda: hash_array(np.ones(3), bool),
        lambda: hash_file(tmp_path / "a", bool),
    ):
        with pytest.raises(Unwanted):
            call()


def test_descriptions() -> None:
    """Values are described by what they are; functions by name, tensors and generators by hash."""
    assert described({"a": [1, 2.5, None, "x"], "b": torch.float16}) == (
        "{a: [1, 2.5, None, x], b: torch.float16}"
    )
    assert described(yes).endswith("test_identity.yes")
    assert described(Path()).startswith("pathlib.")
    one, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    assert described(one) == described(torch.Generator().manual_seed(1)) != described(other)
    assert described(torch.ones(2)) == described(torch.ones(2)) != described(torch.zeros(2))


def test_differences_and_proof() -> None:
    """What both know and is not the same is a difference; what both know and is, proves."""
    known = Identity({"mode": "exact"}, {"weights": "w", "latents": "z"})
    assert known.differences(known) == []
    assert known.proves(known)
    assert known.differences(Identity({}, {"weights": "v"})) == [
        "other weights",
        "mode exact and not unknown",
    ]
    for hashes in (None, {}, {"weights": "w"}, {"weights": UNKNOWN, "latents": "z"}):
        partly = Identity({"mode": "exact"}, hashes)
        assert not known.proves(partly)
        assert not partly.proves(partly)
    assert known.differences(Identity(known.facts, {"weights": "w"})) == []
