"""A directory under a temporary name beside its own, moved there when it is complete."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

from streamvae._errors import UsageError

from ._durable import Sync, checked, sync_data, sync_directory
from ._partial import partial_of

try:
    import fcntl
except ImportError:  # Windows: two writers on one target are not noticed
    _POSIX = False
else:
    _POSIX = True

#: What a user can mend by naming another place.
_BAD_PLACE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS}


class PartialDirectory:
    """The temporary directory of one target: locked while in use, untouched until `begin`.

    What is replaced or emptied must be of the same kind: a directory with the file ``marker``, or
    one with nothing in it. Anything else may be a user's, and is refused.

    Args:
        target: The name it gets from `publish`; absolute.
        marker: The file that every complete or partial directory of this kind holds.
        overwrite: Whether a directory of that name may be replaced.
        sync: When it is synced to the disk.

    Raises:
        UsageError: ``sync`` is none of those there are.
    """

    def __init__(self, target: Path, *, marker: str, overwrite: bool, sync: Sync = "none") -> None:
        self.target = target
        self.marker = marker
        self.overwrite = overwrite
        self.sync = checked(sync)
        self.path = partial_of(target)
        self._held = False
        self._lock: int | None = None
        self._ours = False

    def acquire(self) -> None:
        """Take the temporary name, without touching what an earlier run left under it.

        Raises:
            UsageError: The target exists, its parent does not or is not writable, or another
                sink, here or in another process, is writing to it.
        """
        self._refuse_target()
        try:
            self._open()
        except OSError as error:
            if error.errno not in _BAD_PLACE:
                raise
            raise UsageError(
                f"expected a writable directory {self.target.parent} for {self.path.name}, "
                f"got: {error.strerror}"
            ) from error
        try:  # a writer that has just finished shows only now
            self._refuse_target()
            self._refuse_others(self.path)
        except UsageError:
            self.release(keep=False)
            raise

    def begin(self) -> Path:
        """Empty the directory for its first chunk."""
        self._ours = True
        # The marker last: one that a kill leaves half emptied is still known for what it is.
        for inside in sorted(self.path.iterdir(), key=lambda one: one.name == self.marker):
            if inside.is_dir() and not inside.is_symlink():
                shutil.rmtree(inside)
            else:
                inside.unlink()
        if self.sync == "commit":
            sync_directory(self.path.parent)
        return self.path

    def publish(self) -> None:
        """Give the directory its target's name and let go of it; on an error it is still held.

        A directory that is replaced goes aside first, and is removed last: for a moment between
        neither has the name.

        Raises:
            UsageError: The target has appeared meanwhile and may not be replaced.
        """
        self._refuse_target()
        if self.sync != "none":
            self._sync_all()
        if os.path.lexists(self.target):
            self._replace()
        else:
            self.path.rename(self.target)
        if self.sync != "none":
            sync_directory(self.target.parent)
        self._let_go()

    def release(self, *, keep: bool) -> None:
        """Let go of the directory under its temporary name; idempotent.

        Args:
            keep: Leave it there. Else it is removed, unless it is an earlier run's, untouched.
        """
        if not self._held:
            return
        try:
            if not keep and self._ours:
                shutil.rmtree(self.path)
            elif keep and self.sync != "none":
                self._sync_all()
                sync_directory(self.path.parent)
        finally:
            self._let_go()

    def _replace(self) -> None:
        aside = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.", dir=self.target.parent))
        old = aside / self.target.name
        try:
            self.target.rename(old)
            try:
                self.path.rename(self.target)
            except BaseException:
                old.rename(self.target)
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _refuse_target(self) -> None:
        if not os.path.lexists(self.target):
            return
        if not self.overwrite:
            raise UsageError(
                f"{self.target} exists already; pass overwrite=True to the sink to replace it"
            )
        self._refuse_others(self.target)

    def _refuse_others(self, path: Path) -> None:
        if not path.is_dir():
            raise UsageError(f"expected a directory's name, {path} is a file")
        if not (path / self.marker).is_file() and next(path.iterdir(), None) is not None:
            raise UsageError(
                f"expected {path} to be replaced to be empty or to hold {self.marker}, got "
                "a directory of something else"
            )

    def _open(self) -> None:
        while True:
            try:
                self.path.mkdir()
                self._ours = True
            except FileExistsError:
                self._ours = False
            if not _POSIX:
                self._held = True
                return
            handle = None
            with contextlib.suppress(FileNotFoundError):
                handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
                self._take_lock(handle)
                # Between open and lock another writer may have moved or removed this very one.
                if os.path.samestat(os.fstat(handle), self.path.stat()):
                    self._held, self._lock = True, handle
                    return
            if handle is not None:
                os.close(handle)

    def _take_lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UsageError(
                f"another sink is writing to {self.target} now; expected one at a time"
            ) from None
        except OSError:
            return  # a file system without locks

    def _sync_all(self) -> None:
        """Sync what is in it. What was synced before costs next to nothing."""
        for inside in self.path.iterdir():
            file = os.open(inside, os.O_RDONLY)
            try:
                sync_data(file)
            finally:
                os.close(file)
        sync_directory(self.path)

    def _let_go(self) -> None:
        self._held = False
        handle, self._lock = self._lock, None
        if handle is None:
            return
        with contextlib.suppress(OSError):  # by hand: a forked child may hold the same open file
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)
