"""Options are checked before any work is done."""

from pathlib import Path

import pytest
import torch

from streamvae import NpyFile, UsageError, stream_decode
from streamvae._options import device_of, sinks_of
from streamvae.testing import MemorySink, TagCodec, tagged_latents


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"mode": "quick"}, "expected mode to be one of 'exact', 'fast', got 'quick'"),
        ({"output": "png"}, "expected output to be one of 'uint8', 'float32', 'device'"),
        ({"nonfinite": "ignore"}, "expected nonfinite to be one of"),
        ({"fps": 0}, "expected fps to be positive, got 0"),
        ({"timeout": -1.0}, "expected timeout to be positive"),
        ({"sink_timeout": 0}, "expected sink_timeout to be positive"),
        ({"queue_size": 0}, "expected queue_size to be a whole number from 1, got 0"),
        ({"queue_size": 1.5}, "expected queue_size to be a whole number"),
        ({"latents_per_chunk": -2}, "expected latents_per_chunk to be a whole number"),
        ({"transform": 3}, "expected transform to be callable, got 3"),
        ({"progress": "yes"}, "expected progress to be a bool, a bar with update"),
        ({"device": "gpu"}, "expected a torch device, got 'gpu'"),
        ({"sinks": MemorySink(), "output": "device"}, "expected no sinks with output='device'"),
        ({"sinks": ["a.npy", "a.npy"]}, "expected every sink once, got a.npy more than once"),
        ({"sinks": "a.gif"}, "expected a path ending in"),
    ],
)
def test_refused(option: dict[str, object], said: str) -> None:
    """Each wrong option is named, with what was expected and what came."""
    with pytest.raises(UsageError, match=said):
        stream_decode(tagged_latents(2), TagCodec(), **option)  # type: ignore[arg-type]


def test_sinks() -> None:
    """One or several, paths and sinks; a path of text is one path."""
    memory = MemorySink()
    assert sinks_of(memory) == (memory,)
    assert sinks_of(()) == ()
    (sink,) = sinks_of("a.npy")
    assert isinstance(sink, NpyFile)
    first, second = sinks_of([Path("b.npy"), memory])
    assert (first.name, second) == ("b.npy", memory)


def test_devices() -> None:
    """None is nobody's device."""
    assert device_of(None) is None
    assert device_of("cpu") == torch.device("cpu")
    assert device_of(torch.device("cuda:1")) == torch.device("cuda", 1)
