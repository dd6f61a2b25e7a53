"""Loading an autoencoder from a directory or a hub id, whatever its class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamvae._errors import UnknownSourceError

if TYPE_CHECKING:
    import torch

#: Where classes are that diffusers itself does not list.
_ELSEWHERE = dict.fromkeys(
    ("LTX2Vocoder", "LTX2VocoderWithBWE"), "diffusers.pipelines.ltx2.vocoder"
)


@dataclass(frozen=True, slots=True)
class _Found:
    """Where an autoencoder is.

    Attributes:
        name: Its class, as its config says.
        subfolder: The folder that it is in, if it is a pipeline's.
        cached: Whether it was only looked for in the hub's cache, as there is no connection.
    """

    name: str | None
    subfolder: str | None
    cached: bool


def load_autoencoder(
    source: str | os.PathLike[str], dtype: torch.dtype | None = None, part: str | None = None
) -> torch.nn.Module:
    """Load an autoencoder in diffusers' format, ready to decode.

    Args:
        source: A directory or hub id of an autoencoder, or of a pipeline that has one in ``vae``.
        part: Another part of that pipeline (``"audio_vae"``, ``"vocoder"``), in its place.
        dtype: Of the weights; None for float32, as diffusers has it, whatever they were saved in.

    Raises:
        UnknownSourceError: Nothing there says which class of diffusers it is.
    """
    import diffusers

    if part is not None and Path(source).is_dir():
        # diffusers would look into the folder itself first, whatever part of it is named.
        if not (Path(source) / part).is_dir():
            raise UnknownSourceError(f"expected a pipeline with {part!r} in {source}, got none")
        source, part = Path(source) / part, ""
    found = _find(os.fspath(source), (None, "vae") if part is None else (part or None,))
    name = str(found.name)
    where = import_module(_ELSEWHERE[name]) if name in _ELSEWHERE else diffusers
    loader = getattr(where, name, None)
    if loader is None or not hasattr(loader, "from_pretrained"):
        raise UnknownSourceError(
            f"expected an autoencoder of diffusers at {os.fspath(source)!r}, "
            f"got a config of class {found.name!r}"
        )
    vae: torch.nn.Module = loader.from_pretrained(
        os.fspath(source),
        subfolder=found.subfolder,
        torch_dtype=dtype,
        local_files_only=found.cached,
        # Said, since diffusers warns of its own default where accelerate is not installed.
        low_cpu_mem_usage=find_spec("accelerate") is not None,
    )
    return vae.eval().requires_grad_(requires_grad=False)


def _find(source: str, places: tuple[str | None, ...]) -> _Found:
    """Read the config of the autoencoder at ``source``.

    Raises:
        UnknownSourceError: There is none, or the hub is out of reach and it is not in its cache.
    """
    from diffusers import ConfigMixin
    from huggingface_hub.errors import LocalEntryNotFoundError

    class Config(ConfigMixin):  # type: ignore[misc]
        config_name = "config.json"

    said, unreachable = "", False
    for subfolder in places:
        try:
            # A hub that is out of reach is asked once: it takes half a minute of retries.
            config: dict[str, Any] = Config.load_config(
                source, subfolder=subfolder, local_files_only=unreachable
            )
        except (OSError, ValueError) as error:
            if unreachable:
                continue  # what was said the first time tells more
            # diffusers says of a hub out of reach that it has no such file.
            unreachable = isinstance(error.__context__, LocalEntryNotFoundError)
            said = str(error.__context__ if unreachable else error).partition("\n")[0]
            continue
        return _Found(config.get("_class_name"), subfolder, unreachable)
    raise UnknownSourceError(
        f"expected an autoencoder of diffusers at {source!r}"
        f"{f' or in its {places[-1]!r}' if places[-1] else ''}: {said}"
    )
