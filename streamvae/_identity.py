"""What a stream's frames follow from, told apart by hashes: weights, latents, options.

Hashes are SHA-256 of names, dtypes, shapes and bytes. They block: for a thread, not for the loop.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from ._locks import fork_safe_lock

#: The hash of what cannot be hashed: it proves nothing.
UNKNOWN = "unknown"

#: Bytes brought to the host at once.
_AT_ONCE = 2**26

#: What is asked between two of them: whether anybody still wants the hash.
Wanted = Callable[[], bool]


class Unwanted(Exception):
    """Raised out of a hash that nobody wants any more."""


class _Hash(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Identity:
    """What must be the same for two streams to give the same frames.

    Attributes:
        facts: What is known at once (family, options, shapes), by what people call it.
        hashes: ``"weights"`` and, where all are known beforehand, ``"latents"``; None as long as
            they are not there.
        about: For people: versions, device. Not compared.
    """

    facts: Mapping[str, str]
    hashes: Mapping[str, str] | None = None
    about: Mapping[str, str] = field(default_factory=dict)

    def differences(self, earlier: Identity) -> list[str]:
        """What of ``earlier`` is not the same, for people."""
        names = dict.fromkeys((*earlier.facts, *self.facts))
        told = [
            f"{name} {self.facts.get(name, 'unknown')} and not {earlier.facts.get(name, 'unknown')}"
            for name in names
            if self.facts.get(name) != earlier.facts.get(name)
        ]
        ours, theirs = self.hashes or {}, earlier.hashes or {}
        other = [f"other {name}" for name in ours if theirs.get(name, ours[name]) != ours[name]]
        return [*other, *told]

    def proves(self, earlier: Identity) -> bool:
        """Whether latents and weights are known to be those of ``earlier``."""
        ours, theirs = self.hashes or {}, earlier.hashes or {}
        found = [(ours.get(name), theirs.get(name)) for name in ("weights", "latents")]
        return all(one == other and one not in {None, UNKNOWN} for one, other in found)


def hash_tensor(tensor: torch.Tensor, wanted: Wanted) -> str:
    """Hash one tensor; on a device it is brought over piece by piece, in the current stream.

    Raises:
        Unwanted: Nobody wants it any more.
    """
    digest = hashlib.sha256()
    _add(digest, "", tensor, wanted)
    return digest.hexdigest()


def hash_array(array: npt.NDArray[Any], wanted: Wanted) -> str:
    """Hash an array's numbers, also of one that is mapped from a file.

    Raises:
        Unwanted: Nobody wants it any more.
    """
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for start in range(0, len(flat), _AT_ONCE):
        _go_on(wanted)
        digest.update(flat[start : start + _AT_ONCE].data)
    return digest.hexdigest()


def hash_file(path: Path, wanted: Wanted) -> str:
    """Hash a file's bytes.

    Raises:
        Unwanted: Nobody wants it any more.
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while data := file.read(_AT_ONCE):
            _go_on(wanted)
            digest.update(data)
    return digest.hexdigest()


class _Known:
    """Hashes of modules, good for as long as their tensors are the same and unchanged."""

    def __init__(self) -> None:
        self.lock = fork_safe_lock()
        self.of: weakref.WeakKeyDictionary[torch.nn.Module, tuple[list[_Seen], str]]
        self.of = weakref.WeakKeyDictionary()


#: A tensor, where its numbers lie, and how often they were changed in place.
_Seen = tuple["weakref.ref[torch.Tensor]", int, int]
_known = _Known()


def hash_modules(modules: Iterable[torch.nn.Module], wanted: Wanted) -> str:
    """Hash the parameters and buffers of ``modules``; once for each in a process.

    Raises:
        Unwanted: Nobody wants it any more.
        ValueError: Weights are not there (on ``meta``), so cannot be told apart.
    """
    digest = hashlib.sha256()
    for module in modules:
        seen = [_seen(tensor) for _, tensor in _tensors(module)]
        with _known.lock:
            before = _known.of.get(module)
        if before is None or before[0] != seen:
            own = hashlib.sha256()
            for name, tensor in _tensors(module):
                _add(own, name, tensor, wanted)
            before = (seen, own.hexdigest())
            with _known.lock:
                _known.of[module] = before
        digest.update(before[1].encode())
    return digest.hexdigest()


def described(value: object) -> str:
    """A value, so that equal ones are described alike: numbers as they are, tensors by hash."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {described(each)}' for key, each in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(described, value))}]"
    if isinstance(value, torch.Generator):
        return f"generator {hash_tensor(value.get_state(), _always)[:16]}"
    if isinstance(value, torch.Tensor):
        return f"tensor {hash_tensor(value.detach(), _always)[:16]}"
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return str(value)
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    return f"{getattr(value, '__module__', '')}.{name}"


def _always() -> bool:
    return True


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _seen(tensor: torch.Tensor) -> _Seen:
    version = 0 if tensor.is_inference() else tensor._version
    return weakref.ref(tensor), tensor.data_ptr(), version


def _add(digest: _Hash, name: str, tensor: torch.Tensor, wanted: Wanted) -> None:
    if tensor.is_meta:
        raise ValueError(f"{name or 'a tensor'} is on the meta device")
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    for start in range(0, flat.numel(), _AT_ONCE):
        _go_on(wanted)
        digest.update(flat[start : start + _AT_ONCE].cpu().numpy().data)


def _go_on(wanted: Wanted) -> None:
    if not wanted():
        raise Unwanted
