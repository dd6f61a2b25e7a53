"""Loading an autoencoder from a directory or a hub id, whatever its class."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from streamvae._errors import UnknownSourceError

if TYPE_CHECKING:
    import torch


def load_autoencoder(
    source: str | os.PathLike[str], dtype: torch.dtype | None = None
) -> torch.nn.Module:
    """Load an autoencoder in diffusers' format, ready to decode.

    Args:
        source: A directory or hub id of an autoencoder, or of a pipeline that has one in ``vae``.
        dtype: Of the weights; None for float32, as diffusers has it, whatever they were saved in.

    Raises:
        UnknownSourceError: Nothing there says which class of diffusers it is.
    """
    import diffusers

    config, subfolder = _config(os.fspath(source))
    name = config.get("_class_name")
    loader = getattr(diffusers, str(name), None)
    if loader is None or not hasattr(loader, "from_pretrained"):
        raise UnknownSourceError(
            f"expected an autoencoder of diffusers at {os.fspath(source)!r}, "
            f"got a config of class {name!r}"
        )
    vae: torch.nn.Module = loader.from_pretrained(
        os.fspath(source), subfolder=subfolder, torch_dtype=dtype
    )
    return vae.eval().requires_grad_(requires_grad=False)


def _config(source: str) -> tuple[dict[str, Any], str | None]:
    """The config of the autoencoder at ``source``, and the folder it is in."""
    from diffusers import ConfigMixin

    class Config(ConfigMixin):  # type: ignore[misc]
        config_name = "config.json"

    errors: list[str] = []
    for subfolder in (None, "vae"):
        try:
            config = Config.load_config(source, subfolder=subfolder)
        except (OSError, ValueError) as error:
            errors.append(str(error).partition("\n")[0])
            continue
        return dict(config), subfolder
    raise UnknownSourceError(
        f"expected an autoencoder of diffusers at {source!r} or in its 'vae': {errors[-1]}"
    )
