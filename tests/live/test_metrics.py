"""What Prometheus is told of a service: the ecosystem page's names, and the truth."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from streamvae.live import Busy, Service
from streamvae.live._books import BUCKETS
from streamvae.testing import tagged_latents
from tests.flow import UNIT, Scene, until, virtual

Samples = dict[tuple[str, tuple[str, ...]], float]


def read(service: Service) -> Samples:
    """Each sample's value, by its name and its labels' values."""
    families = text_string_to_metric_families(service.metrics_text().decode())
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


@virtual
async def test_names_and_values() -> None:
    """Every metric is there from the beginning, and says what has happened."""
    scene = Scene()
    async with Service(
        scene.codec, backend=scene.backend, max_streams=1, max_waiting=0, memory=1000
    ) as service:
        fresh = read(service)
        assert fresh["streamvae_frames_total", ()] == 0
        assert fresh["streamvae_streams_active", ()] == 0
        assert fresh["streamvae_memory_bytes", ("budget",)] == 1000
        for reason in ("left", "cancelled", "timeout", "drain", "waiting"):
            assert fresh["streamvae_cancelled_total", (reason,)] == 0

        async with service.stream(scene.latents) as stream:
            frames = aiter(stream)
            await anext(frames)
            running = read(service)
            assert running["streamvae_streams_active", ()] == 1
            assert running["streamvae_frames_total", ()] >= 1
            assert running["streamvae_first_frame_seconds_count", ()] == 1
            assert running["streamvae_memory_bytes", ("reserved",)] == 1000
            queues = ("decode", "download", "persist")
            depths = [running["streamvae_queue_depth", (queue,)] for queue in queues]
            assert all(0 <= depth <= 2 for depth in depths)
            with pytest.raises(Busy):
                await service.stream(scene.latents).__aenter__()
            async for _ in frames:
                pass

        async with service.stream(scene.latents) as stream:
            await anext(aiter(stream))
        stats, ended = stream.stats, read(service)

    total = len(scene.expected) + stats.frames
    assert ended["streamvae_frames_total", ()] == total
    assert ended["streamvae_streams_active", ()] == 0
    assert ended["streamvae_streams_total", ("finished",)] == 1
    assert ended["streamvae_streams_total", ("cancelled",)] == 1
    assert ended["streamvae_cancelled_total", ("left",)] == 1
    assert ended["streamvae_refused_total", ("full",)] == 1
    assert ended["streamvae_stage_seconds_count", ("decode",)] >= 12
    assert ended["streamvae_stage_seconds_sum", ("decode",)] > 12 * 9 * UNIT
    assert ended["streamvae_first_frame_seconds_count", ()] == 2
    first = ended["streamvae_first_frame_seconds_sum", ()] / 2
    assert first == pytest.approx(13 * UNIT, rel=0.5)
    bounds = [str(bound) for bound in BUCKETS if bound >= 2 * first]
    assert all(ended["streamvae_first_frame_seconds_bucket", (bound,)] == 2 for bound in bounds)
    assert ended["streamvae_first_frame_seconds_bucket", ("+Inf",)] == 2


@virtual
async def test_waiting_counts_until_the_first_frame() -> None:
    """The first frame's seconds are those that the client waits, in the queue too."""
    scene = Scene()
    async with Service(scene.codec, backend=scene.backend, max_streams=1) as service:

        async def one() -> None:
            async with service.stream(scene.latents) as stream:
                await stream.finish()

        running = [asyncio.create_task(one()) for _ in range(2)]
        await until(lambda: service.waiting == 1, "the queue")
        assert read(service)["streamvae_streams_waiting", ()] == 1
        await asyncio.gather(*running)
        seconds = read(service)["streamvae_first_frame_seconds_sum", ()]

    assert seconds > 12 * 10 * UNIT


@virtual
async def test_each_service_has_its_own() -> None:
    """Two services of one process do not count each other's frames."""
    scene = Scene()
    async with (
        Service(scene.codec, backend=scene.backend) as one,
        Service(scene.codec, backend=scene.backend) as other,
    ):
        async with one.stream(tagged_latents(1)) as stream:
            await stream.finish()
        assert read(one)["streamvae_frames_total", ()] == 1
        assert read(other)["streamvae_frames_total", ()] == 0
        assert one.registry is one.registry is not other.registry


def test_without_prometheus() -> None:
    """A service works without the package; metrics say how to get it."""
    program = """
import asyncio, sys
sys.modules["prometheus_client"] = None
from streamvae.live import Service
from streamvae.testing import FakeBackend, TagCodec, tagged_latents
async def main():
    async with Service(TagCodec(), backend=FakeBackend()) as service:
        async with service.stream(tagged_latents(2)) as stream:
            await stream.finish()
        try:
            service.metrics_text()
        except ImportError as error:
            print(error)
asyncio.run(main())
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert "pip install 'streamvae[live]'" in ran.stdout
