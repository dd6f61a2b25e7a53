"""The file beside a partial output that says what it is the beginning of."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from streamvae._errors import UsageError
from streamvae._identity import Identity

_log = logging.getLogger("streamvae")

#: Of the manifest's own form.
_VERSION = 1


class Manifest:
    """``<name>.partial.manifest.json``; there from before the first frame until all are kept.

    Args:
        path: Where it lies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity: Identity | None = None
        self._there = False

    def tell(self, identity: Identity) -> None:
        """Learn what the stream is, or more of it than before; written if it is there already."""
        self._identity = identity
        if self._there:
            self._write()

    def begin(self) -> None:
        """Be there from now on, in place of an earlier run's; for nobody's stream, not at all."""
        if self._identity is None:
            self.path.unlink(missing_ok=True)
        else:
            self._there = True
            self._write()

    def remove(self) -> None:
        """Be there no more."""
        self._there = False
        if self._identity is not None:
            self.path.unlink(missing_ok=True)
            _fresh(self.path).unlink(missing_ok=True)  # a kill's

    def fits(self, what: Path) -> bool:
        """Compare an earlier run's with this stream; afterwards it is this stream's.

        Args:
            what: What it is about, for errors.

        Returns:
            Whether weights and latents are proven to be the same. False where latents come one by
            one, and where the earlier run ended before its hashes were known.

        Raises:
            UsageError: It is of another stream, or there is none.
        """
        earlier = self._read()
        if earlier is None or self._identity is None:
            raise UsageError(
                f"expected {self.path.name} beside {what}, which says what it is the beginning "
                "of, got none that can be read; decode without resume to begin anew"
            )
        different = self._identity.differences(earlier)
        if different:
            raise UsageError(
                f"expected to go on with what {what} was begun with, got {', '.join(different)}; "
                "nothing was touched; decode without resume to begin anew"
            )
        self._there = True
        return self._identity.proves(earlier)

    def _read(self) -> Identity | None:
        try:
            held = json.loads(self.path.read_text(encoding="utf-8"))
            if held["version"] != _VERSION:
                return None
            hashes = held["hashes"]
            return Identity(
                _strings(held["facts"]), None if hashes is None else _strings(hashes), {}
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def _write(self) -> None:
        """Replace it at once. Where that fails the stream goes on; it cannot be resumed then."""
        identity = self._identity
        assert identity is not None  # noqa: S101  # the callers have seen it
        text = json.dumps(
            {
                "version": _VERSION,
                "facts": dict(identity.facts),
                "hashes": None if identity.hashes is None else dict(identity.hashes),
                "about": dict(identity.about),
            },
            indent=1,
        )
        fresh = _fresh(self.path)
        try:
            self.path.parent.mkdir(exist_ok=True)
            fresh.write_text(text + "\n", encoding="utf-8")
            fresh.replace(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
                self.path.unlink(missing_ok=True)  # an earlier run's would be wrong
            _log.warning("%s could not be written, so nothing resumes it: %s", self.path, error)


def _fresh(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _strings(held: Mapping[str, object]) -> dict[str, str]:
    return {str(name): str(value) for name, value in held.items()}
