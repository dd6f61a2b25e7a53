"""What every test is held to, whatever it tests: it leaves no task and no thread behind."""

import asyncio
import inspect
import os
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
import torch

# Tiny models are quickest on one thread: two would mostly wait for each other.
torch.set_num_threads(1)

#: Turns of the loop in which cancelled tasks may still run to their end.
LAST_TURNS = 20


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a CUDA device where there is none, unless its absence is a failure."""
    if item.get_closest_marker("cuda") is None or torch.cuda.is_available():
        return
    if os.environ.get("STREAMVAE_REQUIRE_CUDA") == "1":
        pytest.fail("STREAMVAE_REQUIRE_CUDA=1, and torch finds no CUDA device")
    pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _no_thread_left() -> Iterator[None]:
    """Fail a test that leaves a thread which would keep the interpreter from exiting."""
    before = set(threading.enumerate())
    yield
    left = {thread for thread in threading.enumerate() if not thread.daemon} - before
    for thread in left:
        thread.join(5)
    left = {thread for thread in left if thread.is_alive()}
    assert not left, f"threads left behind: {left}"


@pytest.fixture(autouse=True)
def _no_task_left(_no_thread_left: None, request: pytest.FixtureRequest) -> None:
    """Have the loop of an async test watched; a sync test makes (and ends) loops of its own."""
    # The dependency makes the thread check the last thing of all, after the loop was closed.
    if inspect.iscoroutinefunction(inspect.unwrap(request.function)):
        request.getfixturevalue("_watched_loop")


@pytest.fixture
async def _watched_loop() -> AsyncIterator[None]:
    """Fail a test that leaves a task pending on its loop."""
    yield
    for _ in range(LAST_TURNS):
        if not _others():
            break
        await asyncio.sleep(0)
    assert not _others(), f"tasks left behind: {_others()}"


def _others() -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - {asyncio.current_task()}
