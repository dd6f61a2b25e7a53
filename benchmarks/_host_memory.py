"""Resident memory of the host while clips of different lengths stream, in a process of its own."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
from pathlib import Path

import torch
from _measure import Json

from streamvae import RawFile, stream_decode

#: Bytes by which a longer clip may stand above a shorter one: what an allocator keeps to itself.
NOISE = 32 * 2**20


def resident() -> int:
    """Bytes of this process in memory now; 0 where the system does not tell."""
    return _status("VmRSS:")


def highest() -> int:
    """Bytes of this process in memory at most until now; 0 where the system does not tell.

    Not getrusage's: a process that was just started reports its parent's peak there.
    """
    return _status("VmHWM:")


def told_by(program: str, *args: str) -> Json:
    """Run ``program``, which prints a JSON object last, in a process of its own."""
    command = [sys.executable, program, *args]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    told: Json = json.loads(done.stdout.splitlines()[-1])
    return told


def lengths(vae: torch.nn.Module, clips: dict[str, torch.Tensor], scratch: Path) -> Json:
    """Resident bytes at most while each of ``clips`` streams into a raw file, looked at by chunk.

    Some latents are streamed before, so that no clip pays for what is done once only.
    """
    first, *_ = clips.values()
    asyncio.run(_streamed(vae, first[:, :, :6], scratch))
    gc.collect()
    peaks: Json = {"before": resident()}
    for name, z in clips.items():
        peaks[name] = asyncio.run(_streamed(vae, z, scratch))
        gc.collect()
    return peaks


async def _streamed(vae: torch.nn.Module, z: torch.Tensor, scratch: Path) -> int:
    peak = resident()
    sink = RawFile(scratch / "out.raw", overwrite=True)
    async with stream_decode(z, vae, sinks=sink) as stream:
        async for chunk in stream.chunks():
            peak = max(peak, resident())
            del chunk
    return peak


def _status(key: str) -> int:
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    _, found, after = status.partition(key)
    return int(after.split()[0]) * 1024 if found else 0
