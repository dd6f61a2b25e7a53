"""The command ``streamvae``: demo, decode, serve, verify, bench, info, each in its own module.

Exit codes: 0; 1 when a stream failed or frames were not equal; 2 when what was asked for cannot be
done; 3 when verified frames are equal but for rounding; 130 after ctrl-C. Errors are one line on
standard error. Nothing but results is printed where standard error is no terminal.
"""

from __future__ import annotations

from ._app import app
from ._bench import bench
from ._decode import decode
from ._demo import demo
from ._info import info
from ._serve import serve
from ._verify import verify

__all__ = ["app", "main"]

for _command in (demo, decode, serve, verify, bench, info):  # in the order of the help
    app.command()(_command)


def main() -> None:
    """Run the command line of this process."""
    app(prog_name="streamvae")
