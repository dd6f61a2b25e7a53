"""Which pointwise operations a device gets: Triton's where they work, else torch's."""

from __future__ import annotations

import logging
from importlib.util import find_spec

import torch

from streamvae._locks import fork_safe_lock

from .interface import PointwiseOps
from .kernels import PortableKernels
from .selftest import SelfTestError, Variant, check
from .torch_ops import TorchOps

_log = logging.getLogger(__name__)


class _Chosen:
    """The operations of each device, checked for each dtype and width before they are used."""

    def __init__(self) -> None:
        self.torch = PortableKernels(TorchOps())
        self._triton: PortableKernels | None = None
        self._failed: dict[torch.device, str] = {}
        self._checked: set[tuple[torch.device, torch.dtype, int, Variant]] = set()
        self._lock = fork_safe_lock()

    def get(
        self,
        device: torch.device,
        dtype: torch.dtype,
        widths: set[int],
        variants: tuple[Variant, ...],
    ) -> tuple[PortableKernels, str]:
        """See `kernels_for`."""
        if device.type != "cuda":
            return self.torch, ""
        with self._lock:
            if device not in self._failed:
                self._try(device, dtype, widths, variants)
            why = self._failed.get(device, "")
            return (self.torch if why or self._triton is None else self._triton), why

    def _try(
        self,
        device: torch.device,
        dtype: torch.dtype,
        widths: set[int],
        variants: tuple[Variant, ...],
    ) -> None:
        if find_spec("triton") is None:
            self._failed[device] = "triton is not installed"
            return
        try:
            kernels = self._triton or PortableKernels(_triton_ops())
            for width in sorted(widths):
                keys = {variant: (device, dtype, width, variant) for variant in variants}
                missing = [one for one, key in keys.items() if key not in self._checked]
                check(kernels.ops, device, dtype, width, missing)
                self._checked.update(keys.values())
        except Exception as error:  # noqa: BLE001  # compilers, drivers, kernels: many ways to fail
            reason = str(error) if isinstance(error, SelfTestError) else type(error).__name__
            self._failed[device] = f"Triton's kernels cannot be used: {reason}"
            _log.warning("Triton's kernels cannot be used on %s", device, exc_info=error)
            return
        self._triton = kernels


def _triton_ops() -> PointwiseOps:
    from .triton_ops import TritonOps

    return TritonOps()


_chosen = _Chosen()


def kernels_for(
    device: torch.device, dtype: torch.dtype, widths: set[int], variants: tuple[Variant, ...]
) -> tuple[PortableKernels, str]:
    """Give the kernels of a device, the same ones to all who ask.

    Args:
        device: Theirs.
        dtype: Of weights.
        widths: Numbers of channels.
        variants: Of the operations, that will be used.

    Returns:
        They, and why they are not Triton's; empty if they are, or if this is no card.
    """
    return _chosen.get(device, dtype, widths, variants)
