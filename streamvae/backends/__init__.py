"""What a device can do: one backend for each device and process, shared by every stream there."""

from __future__ import annotations

import logging
import os

import torch

from streamvae._errors import DeviceError
from streamvae._events import Event
from streamvae._locks import fork_safe_lock
from streamvae.abc import Backend

from ._cuda import cuda_backend, free_bytes, mark
from ._host import HostBackend

__all__ = ["for_device", "free_bytes", "mark", "mark_weights"]

logger = logging.getLogger("streamvae")

_lock = fork_safe_lock()
#: Keyed by process too: a forked child has its parent's objects, and none of its threads.
_backends: dict[tuple[int, torch.device], Backend] = {}


def for_device(device: torch.device | str) -> Backend:
    """Give the backend of ``device``: the same one for the life of the process, in any thread.

    Args:
        device: ``"cpu"``, ``"cuda"`` (the calling thread's current one), ``"cuda:1"``, or another
            accelerator that torch knows; that one's copies are synchronous.

    Raises:
        DeviceError: There is no such device here, or this process cannot use it.
        UsageError: ``STREAMVAE_PINNED_BYTES`` is set to something that is no number.
    """
    where = _canonical(device)
    with _lock:
        key = (os.getpid(), where)
        if key not in _backends:
            _backends[key] = _create(where)
        return _backends[key]


def mark_weights(source: object) -> tuple[Event, ...]:
    """Record where the calling thread's stream stands that may still be writing the weights.

    A move, a cast, a fused adapter or an initialisation on the device is no more finished than
    latents are when the call that asked for it returns. The first launch waits for this.

    Args:
        source: An autoencoder, a pipeline that has one in ``vae``, or several modules in a tuple;
            anything else has no weights yet, and whoever loads them is done when it returns.

    Returns:
        One event a module, or nothing for weights that are not on a CUDA device.
    """
    held = source if isinstance(source, tuple) else (getattr(source, "vae", source),)
    modules = (module for module in held if isinstance(module, torch.nn.Module))
    events = (next(map(mark, module.parameters()), None) for module in modules)
    return tuple(event for event in events if event is not None)


def _canonical(device: torch.device | str) -> torch.device:
    """Give ``device`` its index where it has one; torch itself says whether it is there."""
    try:
        where = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, ImportError) as error:
        said = str(error).partition("\n")[0]
        raise DeviceError(f"expected a usable device, got {str(device)!r}: {said}") from error
    if where.type == "meta":
        raise DeviceError("expected a device that holds numbers, got 'meta'")
    return where


def _create(where: torch.device) -> Backend:
    if where.type == "cpu":
        return HostBackend(where)
    backend = cuda_backend(where)
    if backend is None:
        logger.warning("Copies from %s are synchronous: only CUDA's can be overlapped.", where)
        return HostBackend(where)
    return backend
