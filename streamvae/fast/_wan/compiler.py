"""From a kernel's source to a cubin: by NVRTC, which torch's wheels bring."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from .options import ConvOptions, Options
from .wgmma import wgmma_header

#: Where the sources lie.
KERNELS = Path(__file__).parent / "kernels"
#: What they are compiled for: Hopper's own instructions.
ARCHITECTURE = "sm_90a"


class CompileError(RuntimeError):
    """A kernel could not be compiled: there is no NVRTC, or what it said."""


class Source(NamedTuple):
    """What NVRTC is given.

    Attributes:
        name: Of the file.
        text: The program.
        headers: By the names under which it includes them.
        arguments: Of the compiler.
    """

    name: str
    text: str
    headers: dict[str, str]
    arguments: tuple[str, ...]

    @property
    def key(self) -> str:
        """A hash of all of it: a cubin with this key is that of this source."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()


def source_of(options: Options) -> Source:
    """Give the source of a kernel's specialisation."""
    name = f"{options.function}.cu"
    headers = {}
    if isinstance(options, ConvOptions):
        headers["wgmma.cuh"] = wgmma_header(options.block_channels)
    defines = [f"-D{key}={value}" for key, value in options.defines().items()]
    arguments = (f"--gpu-architecture={ARCHITECTURE}", "--std=c++17", *defines)
    return Source(name, (KERNELS / name).read_text(encoding="utf-8"), headers, arguments)


def compile_cubin(source: Source) -> bytes:
    """Compile to a cubin. About a second each.

    Raises:
        CompileError: No NVRTC, one without this architecture, or an error in the source.
    """
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise CompileError(f"expected cuda-bindings to compile with, got: {error}") from error
    names = [name.encode() for name in source.headers]
    texts = [text.encode() for text in source.headers.values()]
    try:
        status, program = nvrtc.nvrtcCreateProgram(
            source.text.encode(), source.name.encode(), len(names), texts, names
        )
    except RuntimeError as error:  # no library to be found
        raise CompileError(f"expected NVRTC to compile with, got: {error}") from error
    _check(status)
    try:
        arguments = [argument.encode() for argument in source.arguments]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(arguments), arguments)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise CompileError(f"expected {source.name} to compile, got: {_log(nvrtc, program)}")
        status, size = nvrtc.nvrtcGetCUBINSize(program)
        _check(status)
        cubin = bytearray(size)
        _check(*nvrtc.nvrtcGetCUBIN(program, cubin))
        return bytes(cubin)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def compiler_version() -> str:
    """Give NVRTC's version.

    Raises:
        CompileError: There is none.
    """
    try:
        from cuda.bindings import nvrtc

        _, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError) as error:
        raise CompileError(f"expected NVRTC, got: {error}") from error
    return f"{major}.{minor}"


def _check(status: object) -> None:
    if int(status) != 0:  # type: ignore[call-overload]
        raise CompileError(f"expected NVRTC to succeed, got {status}")


def _log(nvrtc: object, program: object) -> str:
    _, size = nvrtc.nvrtcGetProgramLogSize(program)  # type: ignore[attr-defined]
    log = bytearray(size)
    nvrtc.nvrtcGetProgramLog(program, log)  # type: ignore[attr-defined]
    return log.decode(errors="replace").strip("\0 \n")
