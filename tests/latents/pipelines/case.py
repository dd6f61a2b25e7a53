"""What a test must know of a pipeline to compare its frames with those of its streamed latents."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline

from tests.releases import released
from tests.tiny import _seeded

Call = Mapping[str, object]


@dataclass(frozen=True)
class Case:
    """A tiny real pipeline and how it is called.

    Attributes:
        pipeline: The name of its class.
        make: Builds its components by name.
        call: Makes the keyword arguments of its call.
        told: Those that streaming needs to know, besides the generator.
        label: Tells cases of one pipeline apart.
        tolerance: Greatest difference to the pipeline's own pixels in [0, 1].
        taken_off: Components that are set to None before its latents are streamed.
    """

    pipeline: str
    make: Callable[[], Mapping[str, object]]
    call: Callable[[], Call]
    told: tuple[str, ...] = ()
    label: str = ""
    tolerance: float = 0.0
    taken_off: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.pipeline + (f"-{self.label}" if self.label else "")

    def build(self) -> DiffusionPipeline:
        """The pipeline; components that are not made are absent."""
        return bare(self.pipeline, **self.make())


def bare(name: str, **components: object) -> DiffusionPipeline:
    """A pipeline with these components and no others."""
    cls = released(name)
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    required = [each.name for each in parameters if each.default is inspect.Parameter.empty]
    pipe: DiffusionPipeline = cls(**{**dict.fromkeys(required), **components})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def model(name: str | type, **config: object) -> torch.nn.Module:
    """A tiny seeded model of diffusers, by its class or that one's name."""
    cls = released(name) if isinstance(name, str) else name
    return _seeded(lambda: cls(**config), 3)


def embeddings(*shape: int, seed: int = 7) -> torch.Tensor:
    """Stand-ins for what a text encoder gives."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
