"""What somebody put on a module: hooks, patches, replaced classes, offloading, compiled code.

A codec that calls a module's children in its place does without the module's ``__call__``, and so
without all of these. `check_entered` refuses them; `is_plain` says whether there are any.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, cast

from torch import nn
from torch.nn.modules import module as _torch_module

from streamvae._errors import UsageError

#: Whose ``forward`` is known; other packages' may do anything.
_KNOWN = {"diffusers", "torch"}
#: Where hooks that replace ``forward`` come from.
_HOOKING = {"accelerate", "diffusers"}
#: Hooks of diffusers that only see to it that weights come early, or in which order.
_HARMLESS = {"LazyPrefetchGroupOffloadingHook", "LayerExecutionTrackerHook"}


class Override(NamedTuple):
    """Something that calling a module does besides the ``forward`` that diffusers wrote.

    Attributes:
        what: It is, with its article.
        offloads: Whether it brings weights, and takes them away again.
    """

    what: str
    offloads: bool = False


def is_plain(module: nn.Module) -> bool:
    """Whether calling ``module`` runs the ``forward`` of its diffusers class and nothing else."""
    own, kind = vars(module), type(module)
    return not (
        "forward" in own
        or own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or _torch_module._global_forward_hooks
        or _torch_module._global_forward_pre_hooks
        or own.get("_compiled_call_impl") is not None
        or kind.__call__ is not nn.Module.__call__
        or not is_upstream(kind.forward)
    )


def is_compiled(module: nn.Module) -> bool:
    """Whether calling ``module`` runs code that ``torch.compile`` made of it, in any way."""
    own = vars(module)
    return (
        "_orig_mod" in own["_modules"]
        or own.get("_compiled_call_impl") is not None
        or hasattr(own.get("forward"), "_torchdynamo_orig_callable")
    )


def is_upstream(function: object) -> bool:
    """Whether a method's code is diffusers' or torch's own, not patched into their class."""
    return _from(_plain(function)) in _KNOWN


def find_override(module: nn.Module) -> Override | None:
    """What would be lost if the children of ``module`` were called in its place; None if nothing.

    Compiled code is the same function. Hooks that bring but the module's own parameters are left to
    whoever reads those (`streamvae.codecs._offloaded.onloaded`). Backward hooks have nothing to do
    while decoding.
    """
    if is_plain(module):
        return None
    own = vars(module)
    for hooks, what in (
        (own["_forward_hooks"], "a forward hook"),
        (own["_forward_pre_hooks"], "a forward pre-hook"),
        (_others(_torch_module._global_forward_hooks), "a forward hook on all modules"),
        (_others(_torch_module._global_forward_pre_hooks), "a forward pre-hook on all modules"),
    ):
        if hooks:
            return Override(f"{what} ({', '.join(map(_name, hooks.values()))})")
    inner = own["_modules"].get("_orig_mod")
    if inner is not None and type(module).__module__.startswith("torch."):
        return find_override(inner)
    return next(_offloading(own), None) or _replaced(module)


def check_entered(autoencoder: nn.Module, family: str, entered: Iterable[nn.Module]) -> None:
    """Refuse modules whose children would be called in their place, where that changes anything.

    Args:
        autoencoder: That they are parts of.
        family: Its name.
        entered: Parents before their children.

    Raises:
        UsageError: Naming the first such module, what is on it, and what to do.
    """
    for module in entered:
        override = find_override(module) or _other(module)
        if override is None:
            continue
        name = next((name for name, part in autoencoder.named_modules() if part is module), "?")
        remedy = (
            'offload leaf by leaf (offload_type="leaf_level", enable_sequential_cpu_offload) or '
            "the model as a whole (enable_model_cpu_offload)"
            if override.offloads
            else "remove it before the stream begins"
        )
        raise UsageError(
            f"expected {name} of {family} to run as diffusers wrote it, since streams call the "
            f"layers inside {_name(module)} one by one, got {override.what}, which would be passed "
            f"over; {remedy}, or decode with vae.decode"
        )


def _others(hooks: Mapping[int, object]) -> dict[int, object]:
    """Hooks on all modules but those of torch, which count and watch (its FlopCounterMode's)."""
    return {key: hook for key, hook in hooks.items() if _from(_function(hook)) != "torch"}


def _offloading(own: dict[str, Any]) -> Iterator[Override]:
    """What accelerate and diffusers have put on a module."""
    hook = own.get("_hf_hook")
    for one in getattr(hook, "hooks", (hook,)):  # accelerate's SequentialHook is several in one
        name = type(one).__name__
        if one is None or (name == "AlignDevicesHook" and not one.place_submodules):
            continue
        offloads = name == "CpuOffload" or getattr(one, "offload", False)
        yield Override(f"{'offloading by ' * offloads}accelerate's {name}", offloads)
    for one in getattr(own.get("_diffusers_hook"), "hooks", {}).values():
        name = type(one).__name__
        if name == "GroupOffloadingHook":
            if one.group.modules:
                yield Override("group offloading by block (diffusers' GroupOffloadingHook)", True)  # noqa: FBT003
        elif name not in _HARMLESS:
            yield Override(f"diffusers' {name}")


def _replaced(module: nn.Module) -> Override | None:
    kind = type(module)
    if kind.__call__ is not nn.Module.__call__:
        return Override(f"a {_full(kind)} with a __call__ of its own")
    if not is_upstream(kind.forward):
        return Override(f"a {_full(kind)} with a forward of its own")
    forward = vars(module).get("forward")
    if forward is None or _is_own(_unhooked(forward), module):
        return None
    return Override(f"a forward of its own ({_name(forward)})")


def _other(module: nn.Module) -> Override | None:
    """A module of another kind, torch's own for one, which may have other children or none."""
    kind = type(vars(module)["_modules"].get("_orig_mod", module))
    return None if _from(_plain(kind.forward)) == "diffusers" else Override(f"a {_full(kind)}")


def _is_own(forward: object, module: nn.Module) -> bool:
    """Whether it is the class's method, bound to this very module if it is bound."""
    return (
        _function(forward) is type(module).forward
        and getattr(forward, "__self__", module) is module
    )


def _unhooked(forward: object) -> object:
    """What accelerate's and diffusers' hooks, and ``torch.compile``, were put around."""
    while True:
        forward = _plain(forward)
        if isinstance(forward, functools.partial) and _from(forward.func) in _HOOKING:
            forward = cast("Any", forward).__wrapped__
        else:
            return forward


def _function(method: object) -> object:
    return getattr(method, "__func__", method)


def _plain(function: object) -> object:
    """What ``torch.compile`` was given."""
    return getattr(function, "_torchdynamo_orig_callable", function)


def _from(function: object) -> str:
    """The package whose code it is."""
    # Not __module__, which functools.wraps would copy.
    names: dict[str, str] = getattr(function, "__globals__", {})
    return names.get("__name__", "").partition(".")[0]


def _full(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _name(thing: object) -> str:
    return getattr(thing, "__qualname__", None) or type(thing).__qualname__
