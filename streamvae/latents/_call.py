"""What the call of a diffusers pipeline takes, and what of it is known without running it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, cast

from .._errors import UsageError

#: Said by whoever runs a pipeline for its latents.
_OURS = ("output_type", "return_dict")


def takes(pipe: object, name: str) -> bool:
    """Whether the call of ``pipe`` has an argument ``name``."""
    return name in parameters(type(pipe))


def decoding_call(pipe: object, call: Mapping[str, object]) -> Mapping[str, object]:
    """All that ``pipe(**call)`` knows when it comes to decoding: ``call``, and its defaults.

    Raises:
        UsageError: ``call`` has arguments that the pipeline's call does not take, or those that
            say what it is to give.
    """
    said = [name for name in _OURS if name in call]
    if said:
        raise UsageError(
            f"expected no {' and no '.join(said)}: the pipeline is to give latents, and what "
            "becomes of them is said by the stream's output"
        )
    unknown = sorted(name for name in call if not takes(pipe, name))
    if unknown:
        raise UsageError(
            f"expected keyword arguments that the call of {type(pipe).__name__} takes, or options "
            f"of a stream, got {', '.join(unknown)}"
        )
    defaults = {
        name: one.default
        for name, one in parameters(type(pipe)).items()
        if name not in _OURS and one.default is not inspect.Parameter.empty
    }
    return {**defaults, **call}


def parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    """What the call of a pipeline's class takes, by name."""
    found = dict(inspect.signature(cast("Any", cls).__call__).parameters)
    found.pop("self", None)
    return found
