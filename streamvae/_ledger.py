"""A ledger of memory: the bytes of all tensors that are alive, whether they are there or not."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors made under it that are alive, now and at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._made: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func is torch.ops.aten.equal.default and args[0].dtype == torch.uint8:
            # Whether a generator stands where it stood: if it did, it would be moved on, and this
            # is only a rehearsal.
            return False
        made = func(*args, **(kwargs or {}))
        given: set[int] | None = None
        for tensor in tree_leaves(made):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in self._made:
                continue
            if given is None:  # views of what was there before are not made here
                given = {
                    one.untyped_storage()._cdata
                    for one in tree_leaves((args, kwargs))
                    if isinstance(one, torch.Tensor)
                }
            if storage._cdata not in given:
                self._enter(storage)
        return made

    def _enter(self, storage: torch.UntypedStorage) -> None:
        key, nbytes = storage._cdata, storage.nbytes()

        def freed(_: object) -> None:
            del self._made[key]
            self.live -= nbytes

        self._made[key] = weakref.ref(storage, freed)
        self.live += nbytes
        self.peak = max(self.peak, self.live)
