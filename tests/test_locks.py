"""Forked children: what another thread of the parent held, or was in the middle of."""

from __future__ import annotations

import ast
import gc
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import streamvae
from streamvae import _identity, _rehearsal, _threads, backends, collect
from streamvae._identity import hash_modules
from streamvae._locks import fork_safe_lock, renew_after_fork
from streamvae._threads import Worker, calls_running, counted, parked
from streamvae._turns import Turnstile
from streamvae.abc import Rendered
from streamvae.backends import _graphs, for_device
from streamvae.codecs import _swapped, codec_for
from streamvae.fast import _slots
from streamvae.latents import _generate
from streamvae.testing import FakeBackend, TagCodec, tagged_latents
from tests.codecs.walk import noise, walk, whole
from tests.families.partition import magvit

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def in_child(check: Callable[[], bool]) -> bool:
    """What ``check`` gives in a forked child; False if it raises, or hangs."""
    with warnings.catch_warnings():
        # Python 3.12 warns of every fork in a process with threads; that is the test.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        gc.disable()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)
        try:
            fine = check()
        except BaseException:  # noqa: BLE001  # a child must not go on as a second test run
            fine = False
        os._exit(0 if fine else 1)
    return os.waitpid(child, 0)[1] == 0


@contextmanager
def held(lock: Any) -> Iterator[None]:
    """Have another thread hold ``lock`` meanwhile."""
    holding, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            holding.set()
            go_on.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert holding.wait(30)
        yield
    finally:
        go_on.set()
        thread.join(30)


def plans() -> bool:
    """A rehearsal."""
    return codec_for(magvit()).plan((1, 4, 3, 2, 2)).state_bytes is not None


def decodes() -> bool:
    """A stream on the host."""
    latents, codec = tagged_latents(3), TagCodec()
    return [int(one.flat[0]) for one in collect(latents, codec)[0]] == codec.expected(latents)


def enters(pipe: object) -> bool:
    """A call of a pipeline."""
    with _generate._alone(pipe, lambda: False):
        return True


def free(lock: Any) -> bool:
    """Whether it can be had."""
    with lock:
        return True


LOCKS: dict[str, tuple[Callable[[], Any], Callable[[], bool]]] = {
    "rehearsal": (lambda: _rehearsal._one_at_a_time, plans),
    "hashes": (
        lambda: _identity._known.lock,
        lambda: bool(hash_modules([torch.nn.Linear(2, 2)], lambda: True)),
    ),
    "threads": (lambda: _threads._lock, decodes),
    "backends": (lambda: backends._lock, decodes),
    "pipelines": (lambda: _generate._lock, lambda: enters(torch.nn.Identity())),
    "swaps": (
        lambda: _swapped._LOCKS_LOCK,
        lambda: bool(walk(codec_for(magvit()), noise(1, 4, 2, 2, 2)).numel()),
    ),
    "slots": (lambda: _slots._LOCK, lambda: _slots.release_slots() == 0),
    "capture": (lambda: _graphs._CAPTURING, lambda: free(_graphs._CAPTURING)),
}


@pytest.mark.parametrize("name", LOCKS)
def test_a_child_finds_every_lock_free(name: str) -> None:
    """A child does what needs a lock that another thread of its parent held, and so does that."""
    lock, use = LOCKS[name]
    with held(lock()):
        assert in_child(use)
    assert use()


def test_locks_of_objects_too() -> None:
    """A plan, a turnstile, slots, a device made before the fork can be used in the child."""
    plan = codec_for(magvit()).plan((1, 4, 3, 2, 2))
    turnstile, backend = Turnstile(1), FakeBackend()
    module = magvit()
    walk(codec_for(module), noise(1, 4, 1, 2, 2))
    cases: list[tuple[Any, Callable[[], object]]] = [
        (plan._lock, lambda: plan.state_bytes),
        (turnstile._lock, lambda: turnstile.take().query()),
        (backend.fake.lock, lambda: backend.turn().query()),
        (_swapped._SWAPS[module]._lock, lambda: walk(codec_for(module), noise(1, 4, 1, 2, 2))),
    ]
    for lock, use in cases:
        with held(lock):
            assert in_child(lambda use=use: use() is not None)  # type: ignore[misc]


def test_no_lock_is_made_elsewhere() -> None:
    """Every lock of the package is one that a child finds free."""
    for path in Path(streamvae.__file__).parent.rglob("*.py"):
        calls = [
            node.func
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        ]
        made = {getattr(call, "attr", getattr(call, "id", "")) for call in calls}
        if path.name != "_locks.py":
            assert not made & {"Lock", "RLock", "Condition", "register_at_fork"}, path


def test_what_the_forking_thread_holds_stays_held() -> None:
    """A fork within a lock leaves it held by the thread that goes on, to be released there."""
    lock = fork_safe_lock()

    def check() -> bool:
        got: list[bool] = []
        thread = threading.Thread(target=lambda: got.append(lock.acquire(blocking=False)))
        thread.start()
        thread.join(10)
        lock.release()
        return got == [False] and lock.acquire(blocking=False)

    with lock:
        assert in_child(check)
    assert lock.acquire(blocking=False)
    lock.release()


def test_a_child_of_a_child() -> None:
    """Locks are renewed in every generation."""
    lock = fork_safe_lock()

    def check() -> bool:
        with held(lock):
            return in_child(lambda: lock.acquire(blocking=False))

    with held(lock):
        assert in_child(check)


def test_what_is_gone_is_not_renewed() -> None:
    """Things are renewed as long as they are alive, in the child alone."""

    class Thing:
        renewed = 0

        def renew(self) -> None:
            Thing.renewed += 1

    things = [Thing() for _ in range(3)]
    for thing in things:
        renew_after_fork(thing, Thing.renew)
    del things[1:], thing
    gc.collect()
    assert in_child(lambda: Thing.renewed == 1)
    assert Thing.renewed == 0


@torch.no_grad()
def test_state_that_another_thread_has_swapped_in() -> None:
    """A child forked in the middle of a segment finds the module as if there had been none."""
    vae, latents = magvit(), noise(1, 4, 3, 2, 2)
    expected = whole(vae, latents)
    places = [part for part in vae.modules() if hasattr(part, "prev_features")]
    inside, go_on = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        inside.set()
        go_on.wait(60)

    hook = vae.decoder.conv_out.register_forward_pre_hook(wait)
    given: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: given.append(walk(codec_for(vae), latents)))
    thread.start()
    assert inside.wait(30)
    assert any(torch.is_tensor(part.prev_features) for part in places)

    def check() -> bool:
        torch.set_num_threads(1)
        hook.remove()
        clean = not any(torch.is_tensor(part.prev_features) for part in places)
        return clean and torch.equal(walk(codec_for(vae), latents), expected)

    assert in_child(check)
    go_on.set()
    thread.join(60)
    assert torch.equal(given[0], expected)


def test_a_worker_begins_anew_in_a_child() -> None:
    """A worker whose thread runs in the parent has one of its own in the child; calls stay."""
    worker, go_on = Worker("tester"), threading.Event()
    running = worker.submit(go_on.wait, 60)
    queued = worker.submit(int, "4")
    other = counted(int)  # for another thread, which the child has not got either

    def check() -> bool:
        nothing = calls_running() == 0
        return nothing and worker.submit(int, "3").result(10) == 3 and not queued.done()

    assert in_child(check)
    go_on.set()
    assert running.result(10)
    assert queued.result(10) == 4
    assert other("5") == 5
    worker.close()


@pytest.mark.parametrize("parks", [False, True])
def test_a_fork_within_a_call(parks: bool) -> None:
    """A child forked by a worker's call counts that call until it ends, and no other."""
    worker, other = Worker("tester"), Worker("other")
    go_on = threading.Event()
    other.submit(go_on.wait, 60)

    def check() -> bool:
        if calls_running() != (0 if parks else 1):
            return False
        return other.submit(int, "3").result(10) == 3

    def call() -> bool:
        if not parks:
            return in_child(check)
        with parked():
            return in_child(check)

    assert worker.submit(call).result(60)
    assert counted(lambda: in_child(lambda: calls_running() == 1))()
    go_on.set()
    other.submit(int).result(10)
    worker.close()
    other.close()


def test_a_pipeline_that_another_thread_is_in() -> None:
    """A child may call a pipeline that a thread of its parent was in the middle of."""
    pipe = torch.nn.Identity()
    with held(_generate._alone(pipe, lambda: False)):
        assert in_child(lambda: enters(pipe))


def test_a_host_s_backend_in_the_middle_of_a_launch() -> None:
    """A child decodes while a launch of its parent is under way, on the same device."""
    backend, go_on = for_device("cpu"), threading.Event()

    def work() -> Rendered | None:
        go_on.wait(60)
        return None

    launched = backend.launch(work, backend.turn())
    assert in_child(decodes)
    go_on.set()
    launched.result(30)
    assert decodes()
