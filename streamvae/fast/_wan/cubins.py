"""Cubins: those shipped, those compiled before on this machine, or one compiled now."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import TypedDict

from .compiler import ARCHITECTURE, KERNELS, compile_cubin, compiler_version, source_of
from .options import Options

_log = logging.getLogger(__name__)

#: Where shipped cubins lie, and what says which source each is of.
SHIPPED = KERNELS / ARCHITECTURE
MANIFEST = SHIPPED / "manifest.json"


class Entry(TypedDict):
    """A shipped cubin.

    Attributes:
        source: Key of its source (`compiler.Source.key`).
        sha256: Hash of the cubin itself.
    """

    source: str
    sha256: str


class Manifest(TypedDict):
    """What was shipped.

    Attributes:
        nvrtc: Version of the compiler.
        cubins: By the name of their options.
    """

    nvrtc: str
    cubins: dict[str, Entry]


def cubin_of(options: Options) -> bytes:
    """Find the cubin of a kernel's specialisation: shipped, cached, or compiled now.

    Raises:
        CompileError: It was not shipped, and cannot be compiled.
    """
    source = source_of(options)
    entry = _manifest()["cubins"].get(options.name)
    if entry is not None and entry["source"] == source.key:
        cubin = (SHIPPED / f"{options.name}.cubin").read_bytes()
        if hashlib.sha256(cubin).hexdigest() == entry["sha256"]:
            return cubin
        _log.warning("%s.cubin is not what was shipped; it is compiled again", options.name)
    cached = cache_folder() / f"{options.name}-{source.key[:32]}-{compiler_version()}.cubin"
    try:
        return cached.read_bytes()
    except OSError:
        cubin = compile_cubin(source)
    _keep(cached, cubin)
    return cubin


def cache_folder() -> Path:
    """Give the folder of compiled cubins: in ``$XDG_CACHE_HOME``, ``~/.cache`` by default."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "streamvae" / "kernels"


@functools.cache
def _manifest() -> Manifest:
    try:
        manifest: Manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Manifest(nvrtc="", cubins={})
    return manifest


def _keep(path: Path, cubin: bytes) -> None:
    """Write a file that other processes may be reading or writing too; failing is no matter."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(cubin)
        Path(file.name).replace(path)
    except OSError as error:
        _log.info("could not keep %s: %s", path, error)
