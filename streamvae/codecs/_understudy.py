"""A copy of an autoencoder that has its shape and none of its numbers."""

from __future__ import annotations

import copy
import types
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils.weight_norm import WeightNorm

if TYPE_CHECKING:
    from torch._subclasses.fake_tensor import FakeTensorMode


def faked(module: nn.Module, device: torch.device, fakes: FakeTensorMode) -> nn.Module | None:
    """A copy of an autoencoder with fake tensors on ``device``, wherever its weights are now.

    None if it is not to be copied: group offloading, layerwise casting and functions put in the
    place of methods have closures over the module itself.
    """
    if any("_diffusers_hook" in vars(part) for part in module.modules()):
        return None
    copied = _copied(module, fakes)
    for part in copied.modules():
        _unhook(part)
        if _has_closures(part):
            return None
        _move(part, device, fakes)
        with fakes:
            _settle(part)
    return copied


def _copied(module: nn.Module, fakes: FakeTensorMode) -> nn.Module:
    """``module`` with fake tensors, without accelerate's hooks and as it was before compiling.

    Where hooks bring weights from, and take them to, is not the decoder's memory.
    """
    from torch._subclasses.fake_tensor import FakeCopyMode

    parts = list(module.modules())
    memo: dict[int, Any] = {}  # what copies stand for what, by id
    for own in (vars(part) for part in parts if "_hf_hook" in vars(part)):
        memo[id(own["_hf_hook"])] = memo[id(own.get("forward"))] = None
    for value in (value for part in parts for value in vars(part).values()):
        if isinstance(value, torch.Tensor) and not value.is_leaf:
            # What the old weight_norm computes, for one; torch would warn.
            memo[id(value)] = fakes.from_tensor(value.detach(), static_shapes=True)
    with FakeCopyMode(fakes):
        for part in reversed(parts):
            plain = getattr(part, "_orig_mod", None)  # a compiled module is copied as it was
            if isinstance(plain, nn.Module):
                memo[id(part)] = copy.deepcopy(plain, memo)
        return copy.deepcopy(module, memo)


def _unhook(part: nn.Module) -> None:
    """Have a copied module's methods as they were before they were hooked or compiled."""
    own = vars(part)
    for name in list(own):
        plain = getattr(own[name], "_torchdynamo_orig_callable", None)
        if plain and getattr(plain, "__func__", plain) is getattr(type(part), name, None):
            del own[name]  # its class has it
    if "_hf_hook" in own:
        del own["_hf_hook"]
        own.pop("forward", None)
        old = own.pop("_old_forward", None)
        if old is not None:
            own["forward"] = old


def _move(part: nn.Module, device: torch.device, fakes: FakeTensorMode) -> None:
    """Have a copied module's own tensors on ``device``. There is nothing in them to be moved."""
    with fakes:
        for name, weight in part._parameters.items():
            if weight is not None and weight.device != device:
                empty = torch.empty_like(weight, device=device)
                part._parameters[name] = nn.Parameter(empty, requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.device != device:
                part._buffers[name] = torch.empty_like(buffer, device=device)


def _settle(part: nn.Module) -> None:
    """Have the weights that the old ``weight_norm`` computes at every call be there for good.

    Each takes the place of the one before it, so it is no state; while it is computed both are
    there, here too.
    """
    hooks = part._forward_pre_hooks
    for key, hook in hooks.items():
        if isinstance(hook, WeightNorm):
            setattr(part, hook.name, hook.compute_weight(part))
            hooks[key] = _Computed(hook)


class _Computed:
    """A hook that computes a weight as another does, and lets go of it."""

    def __init__(self, hook: WeightNorm) -> None:
        self._hook = hook

    def __call__(self, module: nn.Module, inputs: object) -> None:  # noqa: ARG002  # as hooks are
        self._hook.compute_weight(module)


def _has_closures(part: nn.Module) -> bool:
    """Whether methods were replaced by functions, which may know the original."""
    return any(
        isinstance(value, types.FunctionType) and hasattr(type(part), name)
        for name, value in vars(part).items()
    )
