"""What differs between the releases of diffusers that are tested: what one lacks is skipped."""

from __future__ import annotations

import importlib
import inspect

import diffusers
import pytest
import torch
from packaging.version import Version
from torch import nn


def released(name: str, *options: str, module: str = "diffusers") -> type:
    """Give a class of diffusers; skip the test where the installed release has none yet.

    Args:
        name: Of the class.
        options: Arguments that it has to take.
        module: Where it is.
    """
    release = f"diffusers {diffusers.__version__}"
    try:
        found: type | None = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip(f"{release} has no {name}")
    missing = set(options) - set(inspect.signature(found.__init__).parameters)
    if missing:
        pytest.skip(f"{release} knows no {', '.join(sorted(missing))} of {name}")
    return found


def since(release: str, why: str) -> None:
    """Skip the test with a diffusers older than ``release``."""
    if Version(diffusers.__version__) < Version(release):
        pytest.skip(f"diffusers {diffusers.__version__} is older than {release}: {why}")


def offload_in_groups(vae: nn.Module) -> None:
    """Have diffusers offload ``vae`` layer by layer; skip the test where it cannot, on a CPU."""
    if torch.accelerator.current_accelerator() is None:
        since("0.41", "it needs an accelerator to offload in groups")
    vae.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
