"""The command ``streamvae``: demo, decode, verify and info.

Exit codes: 0; 1 when a stream failed or frames were not equal; 2 when what was asked for cannot be
done; 3 when verified frames are equal but for rounding; 130 after ctrl-C. Errors are one line on
standard error. Nothing but results is printed where standard error is no terminal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from typer.core import TyperGroup

from . import __version__, _info, _terminal
from ._demo import is_exact, lines, run_demo
from ._errors import UsageError
from .backends import for_device
from .latents import open_latents
from .models import DEFAULT_VAE
from .models._load import load_autoencoder
from .sinks import FileSink, sink_for


class Mode(StrEnum):
    """As `streamvae.stream_decode` has it."""

    exact = "exact"
    fast = "fast"


class NonFinite(StrEnum):
    """As `streamvae.stream_decode` has it."""

    stop = "raise"
    warn = "warn"


class Dtype(StrEnum):
    """What weights may be cast to."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


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

VaeOption = Annotated[
    str | None,
    typer.Option(
        "--vae",
        metavar="DIR_OR_ID",
        help="The autoencoder: a folder or hub id in diffusers' format, its own or of a pipeline "
        "that has it in 'vae'. Without it, the embedded one.",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(help="Where to decode. By default CUDA if there is any, else the CPU."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")]


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


@app.command()
def demo(
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the files go.")] = Path(),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that no demo has written, too.")
    ] = False,
    device: DeviceOption = None,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Only so much of the clip.", show_default="all")
    ] = None,
) -> None:
    """Stream a clip with the embedded VAE into demo.mp4 and demo.png; compare with vae.decode.

    An earlier demo's files are replaced.
    """
    done = run_demo(out, overwrite=overwrite, device=_device(device), limit=seconds)
    for line in lines(done):
        typer.echo(line)
    if not is_exact(done.whole, done.stats.frames):
        raise typer.Exit(_terminal.FAILED)


@app.command()
def decode(
    latents: Annotated[
        Path,
        typer.Argument(metavar="LATENTS", help=".safetensors, .pt or .npy", show_default=False),
    ],
    *,
    out: Annotated[
        list[Path],
        typer.Option(
            "--out", "-o", help=".mp4, .npy or .raw; may come several times.", show_default=False
        ),
    ],
    vae: VaeOption = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second; an .mp4 needs it.")] = None,
    normalized: Annotated[
        bool, typer.Option("--normalized", help="Latents are in the diffusion model's space.")
    ] = False,
    mode: Annotated[Mode, typer.Option(help="exact: equal to vae.decode.")] = Mode.exact,
    latents_per_chunk: Annotated[
        int | None, typer.Option(min=1, help="Latents decoded at once.")
    ] = None,
    float32: Annotated[
        bool, typer.Option("--float32", help="Keep the decoder's values (.npy, .raw).")
    ] = False,
    nonfinite: Annotated[
        NonFinite, typer.Option(help="What to do about NaN and infinity.")
    ] = NonFinite.stop,
    device: DeviceOption = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Dtype of the weights.", show_default="float32")
    ] = None,
    overwrite: OverwriteOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No summary.")] = False,
) -> None:
    """Decode LATENTS into one or several files.

    A file grows under its name and '.partial', and keeps that when it is broken off.
    """
    if fps is None and any(path.suffix.lower() == ".mp4" for path in out):
        raise UsageError("expected --fps with an .mp4, got none")
    sinks = [_sink(path, overwrite=overwrite) for path in out]
    info, stats = _terminal.run_stream(
        latents,
        _autoencoder(vae, _device(device), dtype),
        sinks,
        latents.name,
        fps=fps,
        normalized=normalized,
        mode=mode.value,
        latents_per_chunk=latents_per_chunk,
        output="float32" if float32 else "uint8",
        nonfinite=nonfinite.value,
    )
    if not quiet:
        for line in _info.summary(info, stats, [str(path) for path in out]):
            typer.echo(line)


@app.command()
def verify(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="The autoencoder: a folder or hub id in diffusers' format, its own or of a "
            "pipeline that has it in 'vae'. 'embedded', or nothing: the embedded one.",
        ),
    ] = None,
    latents: Annotated[
        Path | None,
        typer.Argument(
            metavar="LATENTS", help=".safetensors, .pt or .npy. By default a little noise."
        ),
    ] = None,
    *,
    normalized: Annotated[
        bool, typer.Option("--normalized", help="Latents are in the diffusion model's space.")
    ] = False,
    mode: Annotated[Mode, typer.Option(help="How the stream decodes.")] = Mode.exact,
    latents_per_chunk: Annotated[
        int | None, typer.Option(min=1, help="Latents decoded at once.")
    ] = None,
    tiling: Annotated[
        bool, typer.Option("--tiling", help="Call the autoencoder's enable_tiling() first.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of all noise.")] = 0,
    device: DeviceOption = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Dtype of the weights.", show_default="float32")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the exit code.")] = False,
) -> None:
    """Decode LATENTS as a stream and by the autoencoder's own decode, and compare.

    Exit code 0: every value is equal. 3: equal but for rounding. 1: different.
    """
    if latents is not None:
        open_latents(latents, lambda _: None)  # is it there? before anything is loaded
    vae = _autoencoder(None if source == "embedded" else source, _device(device), dtype)
    if tiling:
        _enable_tiling(vae)
    found = _terminal.run_verify(
        vae,
        latents,
        normalized=normalized,
        mode=mode.value,
        latents_per_chunk=latents_per_chunk,
        seed=seed,
    )
    if not quiet:
        typer.echo(str(found))
    raise typer.Exit(_terminal.VERDICTS[found.verdict])


@app.command()
def info(
    latents: Annotated[
        Path | None, typer.Argument(metavar="[LATENTS]", help="What decoding it would give.")
    ] = None,
    *,
    vae: VaeOption = None,
) -> None:
    """Show versions, devices, families and sinks; of LATENTS, what decoding would give."""
    for line in _info.versions(__version__):
        typer.echo(line)
    if latents is None and vae is None:
        return
    shape = None if latents is None else _info.latents(latents)
    for line in _info.plan(shape, _autoencoder(vae, "cpu", None), embedded=vae is None):
        typer.echo(line)


def main() -> None:
    """Run the command line of this process."""
    app(prog_name="streamvae")


def _device(wanted: str | None) -> str:
    """The device asked for, or the default one, seen to work."""
    name = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.device(name)
    except RuntimeError:
        raise UsageError(f"expected --device as in cpu, cuda or cuda:1, got {name!r}") from None
    return str(for_device(name).device)


def _autoencoder(source: str | None, device: str, dtype: Dtype | None) -> torch.nn.Module:
    wanted = None if dtype is None else getattr(torch, dtype.value)
    return load_autoencoder(DEFAULT_VAE if source is None else source, wanted).to(device)


def _enable_tiling(vae: torch.nn.Module) -> None:
    enable = getattr(vae, "enable_tiling", None)
    if enable is None:
        raise UsageError(f"expected no --tiling, as {type(vae).__name__} knows none, got it")
    try:
        enable()
    except NotImplementedError:  # of diffusers' AutoencoderMixin
        raise UsageError(f"expected no --tiling with {type(vae).__name__}, got it") from None


def _sink(path: Path, *, overwrite: bool) -> FileSink:
    """The file sink for ``path``; refused before anything is loaded if the file is there."""
    sink = sink_for(path)
    if not isinstance(sink, FileSink):
        raise UsageError(f"expected a file to write to, got {path}")
    if os.path.lexists(path) and not overwrite:
        raise UsageError(f"{path} exists already; pass --overwrite to replace it")
    return type(sink)(path, overwrite=overwrite)
