"""What ``-o`` names: sinks of each file of latents, with the options that they take."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

from .._errors import UsageError
from ..abc import Sink
from ..sinks import Stills, Y4MPipe, sink_for

#: Standard output.
PIPE = "-"

#: Where the name of the file of latents goes, without its suffix.
STEM = "{stem}"


class Outputs:
    """The outputs of one or several files of latents.

    Args:
        names: Paths or templates, in which `STEM` stands for the latents' name, or `PIPE`.
        options: Of sinks, by name; None where they were not given.
        fps: Whether frames a second were told.
        overwrite: Whether files that are there may be replaced.

    Raises:
        UsageError: A suffix is unknown, no output takes one of the options, or one that needs
            frames a second was not told how many.
    """

    def __init__(
        self, names: Sequence[str], options: Mapping[str, object], *, fps: bool, overwrite: bool
    ) -> None:
        self.names = tuple(names)
        self._overwrite = overwrite
        self._options = {name: value for name, value in options.items() if value is not None}
        taken = {name: set(_parameters(name)) for name in self.names}
        for option in self._options:
            if not any(option in parameters for parameters in taken.values()):
                raise UsageError(
                    f"expected an output that takes --{option}, got {', '.join(self.names)}"
                )
        for name, parameters in taken.items():
            if "fps" in parameters and not fps:
                raise UsageError(f"expected --fps with {name}, got none")

    @property
    def piped(self) -> bool:
        """Whether standard output is one of them, so that nothing else may be said there."""
        return PIPE in self.names

    def expect_apart(self, latents: Sequence[Path]) -> None:
        """See that no two files of latents are to be decoded into one file.

        Raises:
            UsageError: They are.
        """
        if len(latents) > 1:
            for name in self.names:
                if STEM not in name:
                    raise UsageError(
                        f"expected {STEM} in --out for several files of latents "
                        f"(out/{STEM}.mp4), got {name}"
                    )
        seen: dict[str, Path] = {}
        for path in latents:
            other = seen.setdefault(path.stem, path)
            if other is not path:
                raise UsageError(
                    f"expected files of latents with different names, got {other} and {path}"
                )

    def of(self, latents: Path) -> list[str]:
        """What they are called for one file of latents."""
        return [name.replace(STEM, latents.stem) for name in self.names]

    def sinks(self, names: Sequence[str], *, resume: bool = False) -> list[Sink]:
        """Sinks for ``names``, made anew for each stream.

        Args:
            names: As `of` gives them.
            resume: Whether what was broken off is gone on with.

        Raises:
            UsageError: One is there and may not be replaced, or an option is out of range.
        """
        for name in names:
            if is_there(name, complete=resume) and not self._overwrite:
                raise UsageError(f"{name} exists already; pass --overwrite to replace it")
        return [self._sink(name) for name in names]

    def _sink(self, name: str) -> Sink:
        options = {**self._options, "overwrite": self._overwrite}
        parameters = _parameters(name)
        given = {option: value for option, value in options.items() if option in parameters}
        if name == PIPE:
            return sink_for(name)
        make = cast("Callable[..., Sink]", type(sink_for(name)))
        return make(name, **given)


def is_there(name: str, *, complete: bool) -> bool:
    """Whether a file of this name is there, or pictures of this template.

    Args:
        name: Of an output.
        complete: Pictures of a stream that was broken off do not count.
    """
    if name == PIPE:
        return False
    sink = sink_for(name)
    if isinstance(sink, Stills):
        return sink.found and not (complete and sink.broken_off)
    return os.path.lexists(name)


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    """What can be told to the sink of this name.

    Raises:
        UsageError: Its suffix is unknown.
    """
    return inspect.signature(Y4MPipe if name == PIPE else type(sink_for(name))).parameters
