"""When what was written is on the disk itself, and survives a loss of power."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Literal, get_args

from streamvae._errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    _FULL: int | None = None
else:
    # macOS: without it the drive keeps what it was given in a memory of its own.
    _FULL = getattr(fcntl, "F_FULLFSYNC", None)

#: When a file is synced: never, as it is closed (before it has its name), or with every commit too.
Sync = Literal["none", "close", "commit"]

#: The data, and of the inode what is needed to read them.
_fdatasync = getattr(os, "fdatasync", os.fsync)


def checked(sync: Sync) -> Sync:
    """Give ``sync`` back if it is one.

    Raises:
        UsageError: It is none.
    """
    if sync not in get_args(Sync):
        choices = ", ".join(map(repr, get_args(Sync)))
        raise UsageError(f"expected sync to be one of {choices}, got {sync!r}")
    return sync


def sync_data(file: int) -> None:
    """Return when all that was written to the open file is on the disk.

    Raises:
        OSError: It could not be written, and nobody knows how much was.
    """
    if _FULL is not None:
        with contextlib.suppress(OSError):  # a file system that has no such call
            fcntl.fcntl(file, _FULL)
            return
    _fdatasync(file)


def sync_directory(path: Path) -> None:
    """Return when the names in a directory are on the disk (at once where nobody can ask for it).

    Raises:
        OSError: They could not be written.
    """
    if os.name != "posix":
        return
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
