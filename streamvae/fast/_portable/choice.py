"""Which pointwise operations a device gets: Triton's where they work, else torch's."""

from __future__ import annotations

import logging
import threading
from importlib.util import find_spec

import torch

from .interface import PointwiseOps
from .selftest import SelfTestError, check
from .torch_ops import TorchOps

_log = logging.getLogger(__name__)


class _Chosen:
    """The operations of each device, checked for each dtype and width before they are used."""

    def __init__(self) -> None:
        self._torch = TorchOps()
        self._triton: PointwiseOps | None = None
        self._failed: dict[torch.device, str] = {}
        self._checked: set[tuple[torch.device, torch.dtype, int]] = set()
        self._lock = threading.Lock()

    def get(
        self, device: torch.device, dtype: torch.dtype, widths: set[int]
    ) -> tuple[PointwiseOps, str]:
        """Give operations for weights of ``dtype`` and these numbers of channels.

        Returns:
            They, and why they are not Triton's; empty if they are, or if this is no card.
        """
        if device.type != "cuda":
            return self._torch, ""
        with self._lock:
            if device not in self._failed:
                self._try(device, dtype, widths)
            why = self._failed.get(device, "")
            return (self._torch if why or self._triton is None else self._triton), why

    def _try(self, device: torch.device, dtype: torch.dtype, widths: set[int]) -> None:
        if find_spec("triton") is None:
            self._failed[device] = "triton is not installed"
            return
        wanted = {(device, dtype, width) for width in widths} - self._checked
        try:
            ops = self._triton or _triton_ops()
            for _, _, width in sorted(wanted, key=lambda one: one[2]):
                check(ops, device, dtype, width)
        except Exception as error:  # noqa: BLE001  # compilers, drivers and kernels fail in all ways
            reason = str(error) if isinstance(error, SelfTestError) else type(error).__name__
            self._failed[device] = f"Triton's kernels cannot be used: {reason}"
            _log.warning("Triton's kernels cannot be used on %s", device, exc_info=error)
            return
        self._triton = ops
        self._checked |= wanted


def _triton_ops() -> PointwiseOps:
    from .triton_ops import TritonOps

    return TritonOps()


#: Of this process.
chosen = _Chosen()
