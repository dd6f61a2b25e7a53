"""Rebuilt decoders, shared by all streams over one autoencoder, and kernels, by all of a device."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Hashable
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from streamvae._locks import fork_safe_lock

from .compiler import CompileError
from .cuda_kernels import CudaKernels
from .driver import DriverError
from .freshness import Look, Weights
from .interface import Kernels
from .network import Network, UnsupportedError, build
from .recording import options_of
from .selftest import SelfTestError, check_all

_log = logging.getLogger(__name__)

#: What may keep a decoder from being rebuilt, or a card from these kernels.
FAILURES = (CompileError, DriverError, SelfTestError, UnsupportedError)
#: Latents decoded at a time, of a longer chunk: more take more memory, and as long each.
LATENTS = 1


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A decoder rebuilt, the kernels that launch it, the weights it is of, and images' bytes."""

    weights: Weights
    kernels: Kernels
    network: Network
    nbytes: int = 0


class _Networks:
    """Rebuilt decoders, each once for its module and device, as long as the module lives."""

    def __init__(self) -> None:
        self._built: weakref.WeakKeyDictionary[nn.Module, dict[object, Rebuilt]] = (
            weakref.WeakKeyDictionary()
        )
        self._kernels: dict[torch.device, CudaKernels | Exception] = {}
        self._checked: set[tuple[torch.device, Hashable]] = set()
        self._lock = fork_safe_lock()

    def latest(
        self, module: nn.Module, device: torch.device, kernels: Kernels | None
    ) -> Rebuilt | None:
        """Give what was rebuilt last, of weights that may have changed since."""
        with self._lock:
            return self._built.get(module, {}).get((device, id(kernels)))

    def get(
        self, module: nn.Module, device: torch.device, kernels: Kernels | None, look: Look
    ) -> Rebuilt:
        """Give the rebuilt decoder of ``module``, again if its weights are others now.

        Raises:
            CompileError: Kernels are not to be had.
            DriverError: The card or its driver do not take them.
            SelfTestError: They are wrong on this card.
            UnsupportedError: It cannot be rebuilt.
        """
        decoder = cast("nn.Module", module.decoder)
        with self._lock:
            kept = self._built.setdefault(module, {})
            key = (device, id(kernels))
            built = kept.get(key)
            if built is None or not look.sees(built.weights, decoder):
                using = kernels if kernels is not None else self._cuda(device, decoder)
                kept.pop(key, None)  # two sets of images need not fit
                now = Weights.of(decoder)
                before = getattr(using, "packed_bytes", 0)
                network = build(decoder, using)
                nbytes = getattr(using, "packed_bytes", 0) - before
                built = kept[key] = Rebuilt(now, using, network, nbytes)
                if device.type == "cuda":  # other streams may use the images
                    torch.cuda.current_stream(device).synchronize()
            return built

    def release(self) -> int:
        """Let go of all weights that were packed, and give their bytes; streams keep theirs."""
        with self._lock:
            dropped = [built for kept in self._built.values() for built in kept.values()]
            self._built.clear()
        return sum(built.nbytes for built in dropped)

    def load(self, device: torch.device, decoder: nn.Module) -> str:
        """Load and check the kernels that ``decoder`` needs; give why they cannot be used."""
        try:
            with self._lock:
                self._cuda(device, decoder)
        except FAILURES as error:
            return str(error)
        return ""

    def _cuda(self, device: torch.device, decoder: nn.Module) -> CudaKernels:
        """Kernels on a card, loaded and checked; a failure is remembered."""
        found = self._kernels.get(device)
        if isinstance(found, Exception):
            raise found.with_traceback(None)
        try:
            kernels = found or CudaKernels(device)
            every = dict.fromkeys(
                options
                for pixels in (torch.bfloat16, torch.uint8)
                for options in options_of(decoder, LATENTS, pixels)
            )
            missing = [options for options in every if (device, options) not in self._checked]
            kernels.load(missing)
            check_all(kernels, missing)
        except UnsupportedError:
            raise
        except FAILURES as error:
            self._kernels[device] = error
            _log.warning("the fused kernels cannot be used: %s", error)
            raise
        self._kernels[device] = kernels
        self._checked.update((device, options) for options in missing)
        return kernels


#: Of this process.
networks = _Networks()
