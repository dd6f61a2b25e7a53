"""Host memory that a device copies into."""

import logging

import pytest
import torch

from streamvae._errors import UsageError
from streamvae.backends._slots import MAX_PINNED_BYTES, VARIABLE, Slots, max_pinned_bytes


def plain(nbytes: int) -> torch.Tensor:
    """Stand for page-locked memory on a machine that may have none."""
    return torch.empty(nbytes, dtype=torch.uint8)


def test_buffers_are_used_again() -> None:
    """A buffer given back serves every later copy that fits; page-locked memory does not grow."""
    slots = Slots(plain, 2**20, "cuda:0")
    first = slots.take(3000)
    address = first.data_ptr()
    slots.give_back(first)
    assert slots.take(4096).data_ptr() == address
    assert slots.pinned_bytes == 4096


def test_buffers_in_use_are_not_shared() -> None:
    """Two copies under way never share memory."""
    slots = Slots(plain, 2**20, "cuda:0")
    first, second = slots.take(100), slots.take(100)
    assert first.data_ptr() != second.data_ptr()


def test_a_buffer_that_is_too_small_makes_room() -> None:
    """A larger chunk gets a larger buffer, and the small one no longer counts."""
    slots = Slots(plain, 2**20, "cuda:0")
    slots.give_back(slots.take(1000))
    assert slots.take(5000).nbytes >= 5000
    assert slots.pinned_bytes == 8192


def test_page_locked_memory_has_a_cap(caplog: pytest.LogCaptureFixture) -> None:
    """Past the cap copies take ordinary memory, which is said once."""
    slots = Slots(plain, 8192, "cuda:0")
    taken = [slots.take(4096) for _ in range(4)]
    assert all(buffer.nbytes >= 4096 for buffer in taken)
    assert slots.pinned_bytes == 8192
    assert len(caplog.records) == 1
    assert "cuda:0" in caplog.text


def test_page_locked_memory_may_be_refused(caplog: pytest.LogCaptureFixture) -> None:
    """A refusal costs speed only, and is said once."""

    def refuse(nbytes: int) -> torch.Tensor:
        raise RuntimeError(f"no {nbytes} bytes for you")

    with caplog.at_level(logging.WARNING, "streamvae"):
        slots = Slots(refuse, 2**20, "cuda:0")
        assert slots.take(1000).nbytes >= 1000
        assert slots.take(1000).nbytes >= 1000
    assert [record.name for record in caplog.records] == ["streamvae"]
    assert "no 1024 bytes for you" in caplog.text
    assert slots.pinned_bytes == 0


def test_the_environment_sets_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cap is a number of bytes in the environment, or the default."""
    monkeypatch.delenv(VARIABLE, raising=False)
    assert max_pinned_bytes() == MAX_PINNED_BYTES
    monkeypatch.setenv(VARIABLE, "0")
    assert max_pinned_bytes() == 0
    monkeypatch.setenv(VARIABLE, "lots")
    with pytest.raises(UsageError, match=r"expected a number of bytes.*'lots'"):
        max_pinned_bytes()
