"""A file under a temporary name beside its own, moved there when it is complete."""

from __future__ import annotations

import io
import os
from pathlib import Path

from streamvae._errors import UsageError

from ._durable import Sync, checked, sync_data, sync_directory
from ._lock import POSIX, open_locked, unlock
from ._manifest import Manifest


def partial_of(target: Path) -> Path:
    """The name a file has until it is complete."""
    return target.with_name(target.name + ".partial")


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Raise `UsageError` if ``target`` is there and may not be replaced."""
    if target.is_dir() and not target.is_symlink():
        raise UsageError(f"expected a file's name, {target} is a directory")
    if not overwrite and os.path.lexists(target):
        raise _exists(target)


def move(source: Path, target: Path, *, overwrite: bool) -> None:
    """Give a file its name, at once and whole.

    Raises:
        UsageError: ``target`` has appeared meanwhile and may not be replaced.
    """
    if overwrite:
        source.replace(target)
        return
    # A rename replaces what is there; only a link, or a file made exclusively, never does.
    try:
        os.link(source, target)
    except FileExistsError:
        raise _exists(target) from None
    except (OSError, NotImplementedError):  # a file system without links
        _reserve(target)
        try:
            source.replace(target)
        except BaseException:
            target.unlink()
            raise
    else:
        source.unlink()


def _reserve(target: Path) -> None:
    try:
        target.touch(exist_ok=False)
    except FileExistsError:
        raise _exists(target) from None


def _exists(target: Path) -> UsageError:
    return UsageError(f"{target} exists already; pass overwrite=True to the sink to replace it")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class Partial:
    """The temporary file of one target: locked while in use, untouched until `begin`.

    Args:
        target: The name it gets from `publish`; absolute.
        overwrite: Whether a file of that name may be replaced.
        sync: When it is synced to the disk.

    Raises:
        UsageError: ``sync`` is none of those there are.
    """

    def __init__(self, target: Path, *, overwrite: bool, sync: Sync = "none") -> None:
        self.target = target
        self.overwrite = overwrite
        self.sync = checked(sync)
        self.path = partial_of(target)
        #: What says of which stream the file is the beginning.
        self.manifest: Manifest | None = None
        #: Whether what an earlier run left stays, under another name, until there is more.
        self.aside = False
        self._file: io.FileIO | None = None
        self._ours = False

    @property
    def before(self) -> Path:
        """The name of what an earlier run left, once it is put aside."""
        return self.path.with_name(self.path.name + ".before")

    @property
    def found(self) -> bool:
        """Whether an earlier run left anything."""
        return os.fstat(self._open_file.fileno()).st_size > 0 or self.before.exists()

    @property
    def ours(self) -> bool:
        """Whether this object made or emptied the file, so may remove it."""
        return self._ours

    def acquire(self) -> None:
        """Take the temporary name, without touching what an earlier run left under it.

        Raises:
            UsageError: The target exists, its directory does not or is not writable, or another
                sink, here or in another process, is writing to it.
        """
        refuse_existing(self.target, overwrite=self.overwrite)
        self._open()
        try:  # a writer that has just finished shows only now
            refuse_existing(self.target, overwrite=self.overwrite)
        except UsageError:
            self.release(keep=False)
            raise

    def begin(self) -> io.FileIO:
        """Empty the file for its first chunk; positioned at 0."""
        if self.manifest is not None:
            self.manifest.begin()  # first: never is a file with another one's
        if self.aside:
            self._put_aside()
        else:
            self.before.unlink(missing_ok=True)
        file = self._open_file
        self._ours = True
        if os.fstat(file.fileno()).st_size:  # ext4 writes a truncated file out when it is closed
            file.truncate(0)
        if self.sync == "commit":
            sync_directory(self.path.parent)  # a name that is lost loses every commit
        return file

    def read(self, count: int) -> bytes:
        """The first ``count`` bytes of what an earlier run left, without going on with it."""
        file = self._open_file
        file.seek(0)
        return file.read(count)

    def resume(self) -> io.FileIO:
        """Go on with what an earlier run left; positioned at 0."""
        self._ours = True
        self._open_file.seek(0)
        return self._open_file

    def settle(self) -> None:
        """Have what was written survive a loss of power, if every commit is to be synced."""
        if self.sync == "commit":
            sync_data(self._open_file.fileno())

    def publish(self) -> None:
        """Give the file its target's name and let go of it; on an error it is still held.

        Raises:
            UsageError: The target has appeared meanwhile and may not be replaced.
        """
        if self.sync != "none":
            sync_data(self._open_file.fileno())
        if not POSIX:
            self._open_file.close()
        move(self.path, self.target, overwrite=self.overwrite)
        self._let_go()
        self.before.unlink(missing_ok=True)
        if self.manifest is not None:
            self.manifest.remove()
        if self.sync != "none":
            sync_directory(self.target.parent)

    def release(self, *, keep: bool) -> None:
        """Let go of the file under its temporary name; idempotent.

        Args:
            keep: Leave it there. Else it is removed, unless it is an earlier run's, untouched.
        """
        if self._file is None:
            return
        try:
            if keep and self.sync != "none":
                sync_data(self._file.fileno())
            if not keep and self._ours:
                if not POSIX:
                    self._file.close()
                self.path.unlink(missing_ok=True)
                if self.manifest is not None and not self.before.exists():
                    self.manifest.remove()
            self._keep_the_longer()
        finally:
            self._let_go()

    def _put_aside(self) -> None:
        """Move what an earlier run left away, unless there is more of a still earlier one."""
        if _size(self.before) < _size(self.path):
            self._let_go()
            self.path.replace(self.before)
            self._open()

    def _keep_the_longer(self) -> None:
        """Of what was put aside and what there is now, which begins alike."""
        if self.aside and self._ours and self.before.exists():
            if _size(self.path) < _size(self.before):
                self.before.replace(self.path)
            else:
                self.before.unlink()

    @property
    def _open_file(self) -> io.FileIO:
        if self._file is None:
            raise RuntimeError(f"{self.path} is not held")
        return self._file

    def _open(self) -> None:
        handle = open_locked(self.path, self.target, self._make)
        self._file = io.FileIO(handle, "r+")

    def _make(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        try:
            handle, self._ours = os.open(self.path, flags | os.O_EXCL, 0o666), True
        except FileExistsError:
            handle, self._ours = os.open(self.path, flags, 0o666), False
        return handle

    def _let_go(self) -> None:
        file, self._file = self._file, None
        if file is None or file.closed:
            return
        unlock(file.fileno())
        file.close()
