"""Fakes that ship with streamvae, for its tests and for yours.

With them a program that streams can be tested on any machine, in virtual time, and its hazards
show: memory that is read early, reused early or let go early holds `POISON`.
"""

from ._backend import Census, FakeBackend
from ._codec import TagCodec, TagDecoder
from ._device import POISON, FakeDevice, FakeEvent, ManualEvent, poison
from ._graphs import FakeGraph, FakeGraphs
from ._loop import VirtualLoop, run_virtual
from ._sinks import MemorySink, StuckSink
from ._sources import one_by_one, stuck_after, tagged_latents

__all__ = [
    "POISON",
    "Census",
    "FakeBackend",
    "FakeDevice",
    "FakeEvent",
    "FakeGraph",
    "FakeGraphs",
    "ManualEvent",
    "MemorySink",
    "StuckSink",
    "TagCodec",
    "TagDecoder",
    "VirtualLoop",
    "one_by_one",
    "poison",
    "run_virtual",
    "stuck_after",
    "tagged_latents",
]
