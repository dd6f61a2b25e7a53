"""A module's own parameters, read without calling the module, wherever hooks have moved them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def onloaded(module: object) -> Iterator[None]:
    """Have the parameters and buffers of a module whose ``forward`` is not called.

    Its hook of accelerate brings them, or diffusers' group offloading by leaves: there parameters
    that belong to no leaf are a group of the module that has them.
    """
    hooks = [getattr(module, "_hf_hook", None)]
    registry = getattr(module, "_diffusers_hook", None)
    hooks += [
        hook
        for hook in getattr(registry, "hooks", {}).values()
        if type(hook).__name__ == "GroupOffloadingHook"
    ]
    with ExitStack() as after:
        for hook in filter(None, hooks):
            _bring(hook, module, after)
        yield


def _bring(hook: Any, module: object, after: ExitStack) -> None:  # noqa: ANN401  # as hooks are
    hook.pre_forward(module)
    after.callback(hook.post_forward, module, None)
