"""Locks that a forked child finds free, and what else it has to begin anew.

A child has one thread, the one that forked. A lock that another thread of the parent held would be
held in the child for ever, so every lock of this package is made here.

Note [Locks and finalizers]
---------------------------
A collection runs wherever memory is allocated, also while the thread holds a lock. A finalizer
(``__del__``, a callback of ``weakref``, a ``finally`` of a coroutine that nobody resumes) that
waited for a lock could wait for the thread it runs on, or for one that waits for what that one
holds. So finalizers never wait for a lock: they leave a note in a ``deque``, whose ``append`` is
one step, and whoever holds the lock next acts on it. For the same reason nobody calls other
people's code (an event's ``query``) under a lock.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar, cast

T = TypeVar("T")

#: What has to begin anew in a child, and how.
_renewals: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def renew_after_fork(thing: T, renew: Callable[[T], None]) -> None:
    """Have ``renew(thing)`` run in every forked child, as long as ``thing`` is alive.

    Args:
        thing: Kept weakly.
        renew: It runs before the child goes on, on its only thread; it must not refer to ``thing``.
    """
    _renewals[thing] = renew


def fork_safe_lock() -> threading.RLock:
    """Make a reentrant lock that is free in a forked child, unless the forking thread held it.

    What it protects may be half-way through a change that another thread of the parent was at:
    where that matters, see `renew_after_fork`.
    """
    lock = threading.RLock()
    renew_after_fork(lock, _free)
    return lock


def _free(lock: threading.RLock) -> None:
    own = cast("Any", lock)  # what the locks of threading and logging are renewed by
    if not own._is_owned():
        own._at_fork_reinit()


def _in_child() -> None:
    for thing, renew in list(_renewals.items()):
        renew(thing)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
