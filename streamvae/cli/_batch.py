"""Files of latents, decoded one after another by one codec that stays warm."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import typer

from .. import _info, _terminal
from .._merged import AVStats
from .._options import StreamOptions
from .._stats import StreamStats
from ..abc import Codec
from ._options import look_into
from ._outputs import PIPE, Outputs, is_there
from ._sound import Sound
from ._times import Times


class Batch:
    """What is to be decoded into what.

    Args:
        latents: Files, one or several.
        outputs: What comes of each.
        resume: Whether to go on with what was broken off.
        skip_existing: Whether outputs that are there are left alone.
        quiet: Say nothing but what went wrong.
        times: What is to be told of each stream's time.
    """

    def __init__(
        self,
        latents: Sequence[Path],
        outputs: Outputs,
        *,
        resume: bool,
        skip_existing: bool,
        quiet: bool,
        times: Times = Times(),  # noqa: B008  # frozen
    ) -> None:
        self._latents, self._outputs = latents, outputs
        self._resume, self._skip_existing, self._quiet = resume, skip_existing, quiet
        self._times = times
        self._skipped = 0
        self._failed: list[tuple[Path, Exception]] = []

    def run(
        self, codec: Codec, sound: Sound | None = None, **options: Unpack[StreamOptions]
    ) -> None:
        """Decode them all. Of several, one that fails does not keep the others from it.

        Args:
            codec: What decodes them.
            sound: Of the only one.
            **options: Of `streamvae.stream_decode`.

        Raises:
            Exception: The only one failed, as it was raised.
            typer.Exit: Some of several failed; they were said.
            KeyboardInterrupt: It was stopped; what failed before was said.
        """
        try:
            for number, path in enumerate(self._latents, 1):
                try:
                    self._decode(number, path, codec, sound, options)
                except Exception as error:
                    if len(self._latents) == 1:
                        raise
                    self._failed.append((path, error))
        finally:
            self._sum_up()
        if self._failed:
            raise typer.Exit(_terminal.FAILED)

    def _decode(
        self, number: int, path: Path, codec: Codec, sound: Sound | None, options: StreamOptions
    ) -> None:
        names = self._outputs.of(path)
        if self._skip_existing:
            names = [name for name in names if not is_there(name, complete=True)]
        if not names:
            self._skipped += 1
            return
        sinks = self._outputs.sinks(names, resume=self._resume or self._skip_existing)
        if len(self._latents) > 1:
            look_into(path)
        label = path.name if len(self._latents) == 1 else self._counted(number, path)
        both: StreamStats | AVStats
        if sound is None:
            info, stats = _terminal.run_stream(path, codec, sinks, label, **options)
            both = stats
        else:
            info, both = sound.run(path, codec, sinks, label, options)
            stats = both.video
        if not self._quiet:
            first, *others = _info.summary(
                info, stats, ["stdout" if n == PIPE else n for n in names]
            )
            for line in (first, *others) if len(self._latents) == 1 else (first,):
                typer.echo(line, err=self._outputs.piped)
        self._times.tell(both, path.stem, err=self._outputs.piped, quiet=self._quiet)

    def _counted(self, number: int, path: Path) -> str:
        return f"[{number}/{len(self._latents)}] {path.name}"

    def _sum_up(self) -> None:
        """Say what was skipped, and what failed of several, each in a line."""
        if self._skipped and not self._quiet:
            typer.echo(f"{self._skipped} skipped, there already", err=self._outputs.piped)
        if self._failed:
            typer.echo(f"error: {len(self._failed)} of {len(self._latents)} failed:", err=True)
            for path, error in self._failed:
                typer.echo(f"  {path}: {_terminal.described(error)}", err=True)
