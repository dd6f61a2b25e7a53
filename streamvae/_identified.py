"""What a stream is, found out for its sinks: facts at once, hashes on a thread of their own."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from ._chunks import StreamInfo
from ._events import Event, wait
from ._identity import (
    UNKNOWN,
    Identity,
    Unwanted,
    described,
    hash_array,
    hash_file,
    hash_modules,
    hash_tensor,
)
from ._options import Options
from ._threads import Worker, outcome
from .abc import Codec, Resumable
from .backends import mark
from .latents import is_pipeline
from .sinks import Continued

logger = logging.getLogger("streamvae")


class Identification:
    """Tells the sinks that can go on later what they keep.

    Args:
        latents: As `streamvae.stream_decode` got them; those that come one by one are not hashed.
        source: What decodes, as it was given.
        options: The stream's.
        weights: Happen when the weights are written.
    """

    def __init__(
        self, latents: object, source: object, options: Options, weights: tuple[Event, ...]
    ) -> None:
        self._sinks = [one for one in options.sinks if isinstance(one, (Continued, Resumable))]
        self._hash = _hash_of(latents) if self._sinks else None
        self._source = type(source).__name__ if is_pipeline(source) else "its autoencoder"
        self._options = options
        self._arrived = weights
        if self._sinks and isinstance(latents, torch.Tensor):
            written = (mark if options.backend is None else options.backend.mark)(latents)
            self._arrived = weights if written is None else (*weights, written)
        self._worker = Worker("streamvae hash")
        self._task: asyncio.Task[None] | None = None
        self._wanted = True

    async def begin(self, codec: Codec, info: StreamInfo) -> None:
        """Tell what is known at once; the rest follows, but for sinks that go on: these need it.

        Args:
            codec: What decodes.
            info: What is known before the sinks are opened.
        """
        if not self._sinks:
            return
        identity = await outcome(self._worker.submit(self._facts, codec, info))
        await self._tell(identity)
        complete = self._complete(identity, codec, info.device)
        if any(isinstance(one, Continued) for one in self._sinks):
            await complete
        else:
            self._task = asyncio.create_task(complete, name="streamvae hash")

    async def aclose(self) -> None:
        """Stop hashing. Returns when no sink is told anything any more."""
        self._wanted = False
        self._worker.close()
        task, self._task, self._hash = self._task, None, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _complete(self, identity: Identity, codec: Codec, device: str) -> None:
        for event in self._arrived:
            await wait(event, device, stage="hash", chunk=0, timeout=self._options.timeout)
        hashes = await outcome(self._worker.submit(self._hashes, codec))
        if hashes is not None:
            await self._tell(replace(identity, hashes=hashes))

    async def _tell(self, identity: Identity) -> None:
        for sink in self._sinks:
            await sink.identify(identity)

    def _hashes(self, codec: Codec) -> Mapping[str, str] | None:
        def wanted() -> bool:
            return self._wanted

        found = {"weights": _or_unknown(partial(hash_modules, _modules(codec), wanted))}
        latents, self._hash = self._hash, None  # and with it let go of the latents
        if latents is not None:
            found["latents"] = _or_unknown(partial(latents, wanted))
        return found if self._wanted else None

    def _facts(self, codec: Codec, info: StreamInfo) -> Identity:
        options = self._options
        shape = info.latents_shape
        settings = [_settings(module) for module in _modules(codec)]
        facts: Mapping[str, object] = {
            "family": codec.family,
            "configuration": hashlib.sha256(described(settings).encode()).hexdigest()[:16],
            "decoded with": self._source,
            "dtype": codec.dtype,
            "device": torch.device(info.device).type,
            "latents": "one by one" if shape is None else " x ".join(map(str, shape)),
            "size": f"{info.width} x {info.height}",
            "batch": info.batch,
            "mode": info.mode,
            "step": info.step,
            "latents_per_chunk": info.latents_per_chunk,
            "output": info.output,
            "normalized": options.normalized,
            "transform": options.transform,
            "fps": info.fps,
            "call": options.call,
        }
        about = {
            "streamvae": str(getattr(sys.modules[__package__], "__version__", "")),
            **{name: _version(name) for name in ("torch", "diffusers")},
            "device": _device_name(info.device),
        }
        return Identity({name: described(value) for name, value in facts.items()}, None, about)


def _hash_of(latents: object) -> Callable[[Callable[[], bool]], str] | None:
    """What hashes latents that are all there."""
    if isinstance(latents, torch.Tensor):
        return partial(hash_tensor, latents)
    if isinstance(latents, np.ndarray):
        return partial(hash_array, latents)
    if isinstance(latents, (str, os.PathLike)):
        return partial(hash_file, Path(latents))
    return None


def _or_unknown(call: Callable[[], str]) -> str:
    try:
        return call()
    except Unwanted:
        return UNKNOWN
    except Exception as error:  # noqa: BLE001  # nothing that can be hashed is needed to decode
        logger.debug("not hashed: %s", error)
        return UNKNOWN


def _modules(codec: Codec) -> list[torch.nn.Module]:
    module = getattr(codec, "module", None)
    if isinstance(module, torch.nn.Module):
        return [module]
    held = getattr(codec, "__dict__", {}).values()
    return [one for one in held if isinstance(one, torch.nn.Module)]


def _settings(module: torch.nn.Module) -> dict[str, object]:
    """The configuration, and what was set since (tiling, slicing)."""
    config = getattr(module, "config", {})
    told = dict(config) if isinstance(config, Mapping) else {}
    told |= {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, (bool, int, float, str)) and name != "training"
    }
    return {name: told[name] for name in sorted(told) if not name.startswith("_")}


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return device


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
