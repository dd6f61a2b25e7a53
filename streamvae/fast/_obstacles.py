"""What keeps steps that read nothing but a decoder's weights from taking its place, for people."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils import parametrize

from streamvae.codecs import find_override

#: Whose modules are what their weights say; others (LoRA's, quantised ones) hide some of it.
_KNOWN = {"diffusers", "torch"}


def find_obstacle(autoencoder: nn.Module, entered: Iterable[nn.Module]) -> str:
    """What would be lost if weights were read once and nothing were called; empty if nothing.

    Args:
        autoencoder: Whose weights a hook may move.
        entered: Parts of it whose weights are read.
    """
    if any(map(_is_moved, autoencoder.modules())):
        return "a hook moves the weights"
    parts = [part for one in entered for part in one.modules()]
    passed_over = next(filter(None, map(_passed_over, parts)), "")
    return passed_over and f"{passed_over} would be passed over"


def join_reasons(reasons: Iterable[tuple[str, str]]) -> str:
    """Join why there are no such steps, for people.

    Args:
        reasons: Names of steps, and why there is none; those without a reason are left out.
    """
    names: dict[str, list[str]] = {}
    for name, reason in reasons:
        if reason:
            names.setdefault(reason, []).append(f"no {name}")
    return "; ".join(f"{', '.join(each)}: {reason}" for reason, each in names.items())


def dtype_name(dtype: torch.dtype) -> str:
    """Give ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def _passed_over(part: nn.Module) -> str:
    """What of a module is lost when only its weights are read; empty if nothing is."""
    kind = type(part)
    if parametrize.is_parametrized(part):
        return f"the parametrised weights of a {kind.__name__}"
    if kind.__module__.partition(".")[0] not in _KNOWN or "_orig_mod" in part._modules:
        return f"{kind.__name__} in the decoder"
    override = find_override(part)
    return "" if override is None else f"{override.what} on a {kind.__name__}"


def _is_moved(part: nn.Module) -> bool:
    """Whether hooks of accelerate or diffusers are on a module; those that were removed are not."""
    own = vars(part)
    return "_hf_hook" in own or bool(getattr(own.get("_diffusers_hook"), "hooks", None))
