"""A directory under a temporary name beside its own, moved there when it is complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import weakref
from pathlib import Path

from streamvae._errors import UsageError

from ._durable import Sync, checked, sync_data, sync_directory
from ._lock import POSIX, close_locked, close_when_collected, explained, open_locked
from ._partial import partial_of


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
        self._abandoned: weakref.finalize[[int], PartialDirectory]  # while it is locked
        self._ours = False

    def acquire(self) -> None:
        """Take the temporary name, without touching what an earlier run left under it.

        Raises:
            UsageError: The target exists, its parent does not or is not writable, or another
                sink, here or in another process, is writing to it.
        """
        self._refuse_target()
        if POSIX:
            self._lock = open_locked(self.path, self.target, self._make)
            self._abandoned = close_when_collected(self, self._lock)
        else:  # a directory cannot be opened there
            with explained(self.path, self.target):
                self._make_directory()
        self._held = True
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

    def _make(self) -> int:
        while True:
            self._make_directory()
            with contextlib.suppress(FileNotFoundError):  # another writer's that is over
                return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)

    def _make_directory(self) -> None:
        try:
            self.path.mkdir()
            self._ours = True
        except FileExistsError:
            self._ours = False

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
        if handle is not None:
            self._abandoned.detach()
            close_locked(handle)
