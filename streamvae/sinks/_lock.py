"""One writer at a time for a name: a lock that the system gives back however a process ends."""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from streamvae._errors import UsageError

try:
    import fcntl
except ImportError:  # Windows: two writers on one target are not noticed, no open file moves
    POSIX = False
else:
    POSIX = True

T = TypeVar("T")

#: What a user can mend by naming another place.
_BAD_PLACE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR}


def open_locked(path: Path, target: Path, opening: Callable[[], int]) -> int:
    """Open and lock what lies under ``path``.

    Args:
        path: The name.
        target: What it is about, for errors.
        opening: Opens ``path``, makes it if need be; called until what it has opened is still what
            lies there once it is locked.

    Returns:
        A file descriptor, for `close_locked`.

    Raises:
        UsageError: Another sink, here or in another process, has it; or ``path`` cannot be there.
    """
    with explained(path, target):
        while True:
            handle = opening()
            try:
                _lock(handle, target)
            except UsageError:
                os.close(handle)
                raise
            # Between open and lock another writer may have moved or removed this very one.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    return handle
            close_locked(handle)


def close_locked(handle: int) -> None:
    """Let go of the lock and close."""
    unlock(handle)
    os.close(handle)


def unlock(handle: int) -> None:
    """Let go of the lock by hand: a forked child may hold the same open file."""
    if POSIX:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)


def close_when_collected(owner: T, handle: int) -> weakref.finalize[[int], T]:
    """Have ``handle`` closed with an owner that nobody ended, so that others are not refused.

    Only closed: in a forked child the lock is the parent's, which unlocking would take from it.
    """
    abandoned = weakref.finalize(owner, os.close, handle)
    abandoned.atexit = False
    return abandoned


class LockFile:
    """An empty file that is there, and locked, while somebody writes to what it stands for.

    Args:
        path: Where; its directory is made if it is not there, and removed again with the file if
            nothing else came into it. That one's parent must be there.
        target: What it stands for, for errors.
    """

    def __init__(self, path: Path, target: Path) -> None:
        self._path, self._target = path, target
        self._handle: int | None = None
        self._abandoned: weakref.finalize[[int], LockFile]  # from `acquire` on
        self._made = False

    def acquire(self) -> None:
        """Take it.

        Raises:
            UsageError: Another sink, here or in another process, has it; or it cannot be there.
        """
        self._handle = open_locked(self._path, self._target, self._open)
        self._abandoned = close_when_collected(self, self._handle)

    def release(self) -> None:
        """Remove it and let go of it; idempotent."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        self._abandoned.detach()
        if not POSIX:
            os.close(handle)
        with contextlib.suppress(OSError):  # a directory that is gone, or read-only by now
            self._path.unlink(missing_ok=True)
        if self._made:
            with contextlib.suppress(OSError):  # it holds something, as it should
                self._path.parent.rmdir()
        if POSIX:
            close_locked(handle)

    def _open(self) -> int:
        while True:
            with contextlib.suppress(FileExistsError):
                self._path.parent.mkdir()
                self._made = True
            # Another writer may just have removed the directory that it made.
            with contextlib.suppress(FileNotFoundError):
                return os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)


def _lock(handle: int, target: Path) -> None:
    if not POSIX:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"another sink is writing to {target} now; expected one at a time"
        ) from None
    except OSError:
        return  # a file system without locks


@contextlib.contextmanager
def explained(path: Path, target: Path) -> Iterator[None]:
    """Turn an error of the system about a bad place into one that says which place.

    Raises:
        UsageError: Saying why ``path``, beside ``target``, cannot be there.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _BAD_PLACE:
            raise
        raise UsageError(
            f"expected a writable directory {target.parent} for {path.name}, got: {error.strerror}"
        ) from error
