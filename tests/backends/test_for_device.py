"""Which backend a device gets."""

import gc
import os
import threading
import warnings

import pytest
import torch

from streamvae._errors import DeviceError
from streamvae.abc import Rendered
from streamvae.backends import for_device, mark, mark_weights


def test_one_for_a_device_and_process() -> None:
    """Every way to name a device gives the one backend it has, in every thread."""
    expected = for_device("cpu")
    got = [for_device(torch.device("cpu")), for_device("cpu:0")]
    threads = [threading.Thread(target=lambda: got.append(for_device("cpu"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(backend is expected for backend in got)
    assert expected.device == torch.device("cpu")


@pytest.mark.parametrize("device", ["bogus", "cuda:99", "meta"])
def test_a_device_that_is_not_there(device: str) -> None:
    """A device nobody has is refused in words that name it."""
    with pytest.raises(DeviceError, match=f"expected a .*device.*'{device}'"):
        for_device(device)


def test_host_tensors_need_no_event() -> None:
    """Only CUDA tensors are still being written when they are given."""
    assert mark(torch.zeros(2)) is None


@pytest.mark.parametrize(
    "source",
    [
        torch.nn.Linear(2, 2),
        torch.nn.Identity(),
        (torch.nn.Linear(2, 2), torch.nn.Identity(), None),
        "a/path",
        None,
    ],
)
def test_weights_on_the_host_need_no_event(source: object) -> None:
    """Only weights on a CUDA device may still be on their way when a stream is made."""
    assert mark_weights(source) == ()


def _decodes() -> bool:
    backend = for_device("cpu")
    made = Rendered(torch.full((1, 1, 2, 2, 3), 9, dtype=torch.uint8), torch.ones(2).bool())
    handle, ready = backend.launch(lambda: made, backend.turn()).result(timeout=30)
    copy = backend.download(handle, ready, backend.slot()).result(timeout=30)
    return copy is not None and bool((backend.collect(copy).result(30).pixels == 9).all())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_has_threads_of_its_own() -> None:
    """A child decodes though its parent's threads, which it has not got, were in use."""
    assert _decodes()
    parents = for_device("cpu")
    with warnings.catch_warnings():
        # Python 3.12 warns of every fork in a process with threads; that is the test.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        gc.disable()
        try:
            fine = _decodes() and for_device("cpu") is not parents
        except BaseException:  # noqa: BLE001  # a child must not go on as a second test run
            fine = False
        os._exit(0 if fine else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert _decodes()
