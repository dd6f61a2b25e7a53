"""A service's metrics for Prometheus, put together when somebody asks.

Nothing is counted twice, once by the streams and once for Prometheus: a collector reads what the
books have, so that metrics cost a running stream nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from .._errors import MissingDependencyError
from ._admission import Admission
from ._books import BUCKETS, Books

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

try:
    import prometheus_client
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        SummaryMetricFamily,
    )
except ImportError:
    _missing = True
else:
    _missing = False

#: Reasons that are told from the beginning, so that their rates can be.
_REASONS = ("left", "cancelled", "timeout", "drain", "waiting")
_REFUSALS = ("full", "draining")


class Metrics:
    """What Prometheus is told of one service, in a registry of its own.

    Names: ``streamvae_frames_total``, ``streamvae_stage_seconds{stage}`` (a summary: seconds busy,
    chunks), ``streamvae_queue_depth{queue}`` (chunks in the queue behind a stage),
    ``streamvae_first_frame_seconds`` (a histogram, waiting included),
    ``streamvae_streams_active``, ``streamvae_streams_waiting``,
    ``streamvae_streams_total{outcome}``, ``streamvae_cancelled_total{reason}``,
    ``streamvae_refused_total{reason}``, ``streamvae_memory_bytes{kind}`` (``"reserved"``, and
    ``"budget"`` where there is one).

    Args:
        books: What streams did.
        admission: Who has a place, who waits.
    """

    def __init__(self, books: Books, admission: Admission) -> None:
        self._books = books
        self._admission = admission

    @functools.cached_property
    def registry(self) -> CollectorRegistry:
        """It, made when it is first asked for.

        Raises:
            MissingDependencyError: prometheus_client is not installed.
        """
        if _missing:
            raise MissingDependencyError("prometheus_client", "telling metrics", "live")
        registry = prometheus_client.CollectorRegistry(auto_describe=False)
        registry.register(self)
        return registry

    def text(self) -> bytes:
        """Everything in Prometheus's text format."""
        registry = self.registry
        return prometheus_client.generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """Give what there is now; called by the registry."""
        books = self._books
        yield CounterMetricFamily(
            "streamvae_frames", "Frames that passed the last stage.", value=books.frames
        )
        yield self._stages()
        depths = GaugeMetricFamily(
            "streamvae_queue_depth", "Chunks in the queue behind a stage.", labels=("queue",)
        )
        for name, depth in books.depths().items():
            depths.add_metric((name,), depth)
        yield depths
        yield self._first_frames()
        yield from self._streams()
        yield from self._memory()

    def _stages(self) -> Metric:
        family = SummaryMetricFamily(
            "streamvae_stage_seconds",
            "Seconds that a stage was busy, and chunks that it passed on.",
            labels=("stage",),
        )
        for name, (chunks, busy) in self._books.stages().items():
            family.add_metric((name,), count_value=chunks, sum_value=busy)
        return family

    def _first_frames(self) -> Metric:
        self._books.greet()
        bounds = (*map(str, BUCKETS), "+Inf")
        counts = accumulate(self._books.first_frames)
        return HistogramMetricFamily(
            "streamvae_first_frame_seconds",
            "Seconds from the request to its first frame, waiting included.",
            buckets=[(bound, float(count)) for bound, count in zip(bounds, counts, strict=True)],
            sum_value=self._books.first_seconds,
        )

    def _streams(self) -> Iterator[Metric]:
        books, admission = self._books, self._admission
        yield GaugeMetricFamily(
            "streamvae_streams_active", "Streams that have a place.", value=admission.active
        )
        yield GaugeMetricFamily(
            "streamvae_streams_waiting", "Requests that wait for one.", value=admission.waiting
        )
        yield _counted("streamvae_streams", "Streams that have ended.", "outcome", books.ended)
        yield _counted(
            "streamvae_cancelled",
            "Requests that ended before their end.",
            "reason",
            dict.fromkeys(_REASONS, 0) | dict(books.cancelled),
        )
        yield _counted(
            "streamvae_refused",
            "Requests that were sent away.",
            "reason",
            dict.fromkeys(_REFUSALS, 0) | dict(books.refused),
        )

    def _memory(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            "streamvae_memory_bytes", "Device memory of streams, by their plans.", labels=("kind",)
        )
        family.add_metric(("reserved",), self._admission.reserved)
        if self._admission.memory is not None:
            family.add_metric(("budget",), self._admission.memory)
        return (family,)


def _counted(name: str, said: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, said, labels=(label,))
    for key, count in counts.items():
        family.add_metric((key,), count)
    return family
