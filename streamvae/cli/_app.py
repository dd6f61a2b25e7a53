"""The command line as a whole: how it is entered, what it says of errors, and its exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from .. import __version__, _terminal


class _Commands(TyperGroup):
    """Says every error in one line, and ends with the exit codes promised."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: FBT001, FBT002  # typer's signature
        windows_expand_args: bool = True,  # noqa: FBT001, FBT002
        **extra: Any,  # noqa: ANN401
    ) -> NoReturn:
        """Run the command line ``args`` and end the process."""
        del standalone_mode
        try:
            code = super().main(
                args,
                prog_name,
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )
        except Exception as error:  # noqa: BLE001  # all are reported
            if _traceback_wanted:
                _terminal.show_traceback(error)
            code = _terminal.report(error)
        sys.exit(code)

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  # typer's signature
        """Run the command; say here that it was stopped, for typer would not say it."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise typer.Exit(_terminal.report(error)) from None


app = typer.Typer(
    cls=_Commands,
    name="streamvae",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_traceback_wanted = False


def _print_version(wanted: bool) -> None:  # noqa: FBT001  # typer's signature
    if wanted:
        typer.echo(f"streamvae {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    *,
    version: Annotated[  # noqa: ARG001  # its callback does it
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="On an error, also show where it came from.")
    ] = False,
) -> None:
    """Latents in, frames out, a chunk at a time."""
    global _traceback_wanted  # noqa: PLW0603  # one command runs in a process
    _traceback_wanted = traceback
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
