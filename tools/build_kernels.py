"""Compiles the kernels that are shipped, and writes which source each cubin is of.

    python tools/build_kernels.py           # needs cuda-bindings and NVRTC, no GPU
    python tools/build_kernels.py --check   # only whether cubins and sources belong together

Shipped are the specialisations for Wan 2.1, QwenImage and Wan 2.2-5B as released, one and two
latents at a time; others are compiled when they are first used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys

import torch
from diffusers import AutoencoderKLWan

from streamvae.fast._wan.compiler import compile_cubin, compiler_version, source_of
from streamvae.fast._wan.cubins import MANIFEST, SHIPPED, Entry, Manifest
from streamvae.fast._wan.options import Options
from streamvae.fast._wan.recording import options_of
from streamvae.fast._wan.released import WAN21, WAN22


def shipped_options() -> dict[str, Options]:
    """Every specialisation to be shipped, by name."""
    with torch.device("meta"):
        decoders = [AutoencoderKLWan(**config).decoder.bfloat16() for config in (WAN21, WAN22)]
    every = {
        options.name: options
        for decoder in decoders
        for latents in (1, 2)
        for pixels in (torch.bfloat16, torch.uint8)
        for options in options_of(decoder, latents, pixels)
    }
    return dict(sorted(every.items()))


def stale() -> list[str]:
    """What does not belong together: a line each."""
    manifest: Manifest = json.loads(MANIFEST.read_text(encoding="utf-8"))
    wanted = shipped_options()
    lines = [f"{name}: not shipped" for name in wanted.keys() - manifest["cubins"].keys()]
    files = {path.stem for path in SHIPPED.glob("*.cubin")}
    lines += [f"{name}: in no list" for name in files - manifest["cubins"].keys()]
    for name, entry in manifest["cubins"].items():
        if name not in wanted:
            lines.append(f"{name}: not wanted")
        elif entry["source"] != source_of(wanted[name]).key:
            lines.append(f"{name}: of another source")
        elif entry["sha256"] != _hash((SHIPPED / f"{name}.cubin").read_bytes()):
            lines.append(f"{name}: another file")
    return sorted(lines)


def build() -> None:
    """Compile everything anew."""
    SHIPPED.mkdir(exist_ok=True)
    for old in SHIPPED.glob("*.cubin"):
        old.unlink()
    manifest = Manifest(nvrtc=compiler_version(), cubins={})
    size = 0
    for name, options in shipped_options().items():
        source = source_of(options)
        cubin = compile_cubin(source)
        (SHIPPED / f"{name}.cubin").write_bytes(cubin)
        manifest["cubins"][name] = Entry(source=source.key, sha256=_hash(cubin))
        size += len(cubin)
        print(f"{len(cubin):7d} {name}")
    MANIFEST.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    print(f"{size:7d} bytes in {len(manifest['cubins'])} cubins, NVRTC {manifest['nvrtc']}")


def _hash(cubin: bytes) -> str:
    return hashlib.sha256(cubin).hexdigest()


def main() -> None:
    """Build, or check."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compile nothing")
    if not parser.parse_args().check:
        build()
    lines = stale()
    print("\n".join(lines))
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
