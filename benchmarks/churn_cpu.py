"""Have hundreds of clients of ``streamvae serve`` drop at random moments; count what is left.

The app runs behind a real server on this machine, with the embedded autoencoder. Clients come all
the time, some at once: most watch a job (their own or somebody else's) as records of JPEG, MJPEG,
MP4, events or over a WebSocket, reading a random number of bytes or none; some are in the middle of
an upload. Each drops its connection (a reset) at a random moment. Then the jobs whose viewers have
all left must be over, and no task, file descriptor, thread, upload, place in the service or viewer
may be there that was not there before; and one more job must give every picture, bit for bit those
of the first one.

    python benchmarks/churn_cpu.py
    python benchmarks/churn_cpu.py --server hypercorn --clients 100 --uploads 10
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import gc
import io
import json
import random
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import uvicorn
from _measure import Json, facts, promised, show_promises, write
from starlette.applications import Starlette

from streamvae.live import create_app
from streamvae.models import demo_latents

#: What a client may be doing when it goes, and how often.
WATCHING = {"jpegs": 3, "mjpeg": 2, "mp4": 1, "events": 2, "websocket": 2, "no answer": 1}

#: Seconds that everything may take to be over.
PATIENCE = 120.0


@dataclass
class Churn:
    """An app behind a server, and the clients that it has had."""

    app: Starlette
    port: int
    rng: random.Random
    latents: bytes
    gone: Counter[str] = field(default_factory=Counter)
    refused: int = 0

    async def call(self, head: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, and send the head of a request."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"{head}\r\nHost: localhost\r\n".encode())
        return reader, writer

    async def job(self, **query: str) -> str | None:
        """Upload the clip; the job's id, or None where there is no room."""
        asked = "&".join(f"{name}={value}" for name, value in query.items())
        reader, writer = await self.call(f"POST /decode?{asked} HTTP/1.1")
        writer.write(f"Connection: close\r\nContent-Length: {len(self.latents)}\r\n\r\n".encode())
        writer.write(self.latents)
        answer = await reader.read()
        writer.close()
        status, _, body = answer.partition(b"\r\n\r\n")
        if b" 201 " not in status.partition(b"\r\n")[0] + b" ":
            self.refused += 1
            return None
        return str(json.loads(body[body.index(b"{") : body.rindex(b"}") + 1])["id"])

    async def upload(self) -> None:
        """Go in the middle of an upload."""
        _, writer = await self.call("POST /decode HTTP/1.1")
        writer.write(f"Content-Length: {len(self.latents)}\r\n\r\n".encode())
        writer.write(self.latents[: self.rng.randrange(len(self.latents))])
        await asyncio.sleep(self.rng.random() * 0.3)
        writer.transport.abort()
        self.gone["upload"] += 1

    async def watch(self, jobs: list[str]) -> None:
        """Watch a job, and go."""
        await asyncio.sleep(self.rng.random() * 10)
        job: str | None
        if self.rng.random() < 0.3 or not jobs:
            job = await self.job(on_idle="cancel")
            if job is None:
                return
            jobs.append(job)
        else:
            job = self.rng.choice(jobs[-8:])
        (kind,) = self.rng.choices(list(WATCHING), list(WATCHING.values()))
        reader, writer = await self.call(f"GET {_path(job, kind)} HTTP/1.1")
        if kind == "websocket":
            key = base64.b64encode(self.rng.randbytes(16)).decode()
            writer.write(b"Connection: Upgrade\r\nUpgrade: websocket\r\n")
            writer.write(f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n".encode())
        writer.write(b"\r\n")
        if kind != "no answer":
            with contextlib.suppress(asyncio.IncompleteReadError, TimeoutError, ConnectionError):
                wanted = self.rng.choice([1, 300, 5000, 100_000])
                await asyncio.wait_for(reader.readexactly(wanted), self.rng.random() * 4)
        writer.transport.abort()
        self.gone[kind] += 1

    async def pictures(self) -> bytes:
        """Every record of a job that nobody else watches."""
        job = await self.job(start="viewer")
        if job is None:
            raise RuntimeError("expected room for one more job, got a refusal")
        reader, writer = await self.call(f"GET /jobs/{job}/frames.jpegs?policy=all HTTP/1.0")
        writer.write(b"\r\n")
        _, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        await self.app.state.site.jobs[job].ended()
        return body

    def left(self) -> dict[str, int]:
        """All that clients may leave behind."""
        site = self.app.state.site
        folder = site.uploads._folder
        return {
            "tasks": len(asyncio.all_tasks()),
            "file descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
            "threads": threading.active_count(),
            "uploads": sum(1 for each in folder.iterdir() if each.is_file()),
            "jobs that run or wait": site.jobs.open,
            "streams": site.service.active + site.service.waiting,
        }


def _path(job: str, kind: str) -> str:
    if kind in {"jpegs", "mjpeg", "mp4"}:
        return f"/jobs/{job}/frames.{kind}"
    return f"/jobs/{job}/events" if kind == "events" else f"/jobs/{job}"


async def until(true: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for a state, but not for ever."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:  # noqa: ASYNC110  # many states, one wait
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def serving(app: Starlette, server: str) -> AsyncIterator[int]:
    """The app behind a server on a free port of this machine, which is given."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=2048)
    listening.settimeout(0)
    port = listening.getsockname()[1]
    if server == "uvicorn":
        config = uvicorn.Config(app, lifespan="on", log_level="critical", ws="websockets-sansio")
        own = uvicorn.Server(config)
        task = asyncio.create_task(own._serve([listening]))
        await until(lambda: own.started or task.done())
        try:
            yield port
        finally:
            own.should_exit = True
            await task
        return
    import hypercorn.asyncio
    import hypercorn.config

    stop, settings = asyncio.Event(), hypercorn.config.Config()
    settings.bind = [f"fd://{listening.detach()}"]
    settings.errorlog = settings.accesslog = None
    serve = hypercorn.asyncio.serve(app, settings, shutdown_trigger=stop.wait)  # type: ignore[arg-type]
    task = asyncio.create_task(serve)
    await until(lambda: task.done() or getattr(app.state, "site", None) is not None)
    try:
        yield port
    finally:
        stop.set()
        await task


async def settled(churn: Churn, before: dict[str, int]) -> dict[str, int]:
    """What is left once it is no more than before, or nobody waits any longer."""

    def over() -> bool:
        left = churn.left()
        return all(left[name] <= before[name] for name in before)

    await until(over)
    gc.collect()
    return churn.left()


async def run(said: argparse.Namespace, folder: Path) -> Json:
    """Everything."""
    z, _ = demo_latents()
    file = io.BytesIO()
    np.save(file, z[:, :, : said.latents].float().numpy())
    app = create_app(folder=folder, fps=16, max_waiting=600, max_streams=4, max_uploads=100)
    async with serving(app, said.server) as port:
        rng = random.Random(said.seed)  # noqa: S311  # a crowd, no secret
        churn = Churn(app, port, rng, file.getvalue())
        alone = await churn.pictures()
        await asyncio.sleep(1)
        before, began = churn.left(), time.monotonic()
        jobs: list[str] = []
        async with asyncio.TaskGroup() as group:
            for each in range(said.clients):
                upload = each < said.uploads
                group.create_task(churn.upload() if upload else churn.watch(jobs))
        seconds = time.monotonic() - began
        left = await settled(churn, before)
        over = time.monotonic() - began - seconds
        states = Counter(job.state for job in app.state.site.jobs)
        again = await churn.pictures()
    promises = {
        f"{name}, more than before": (max(0.0, left[name] - before[name]), 0.0) for name in before
    }
    differing = abs(len(again) - len(alone)) + sum(map(int.__ne__, again, alone))
    promises["bytes of the next job that differ"] = (float(differing), 0.0)
    return {
        "clients": dict(churn.gone),
        "refused": churn.refused,
        "jobs": len(jobs),
        "states of the jobs kept": dict(states),
        "seconds": seconds,
        "seconds until all was over": over,
        "bytes of pictures": len(alone),
        "before": before,
        "after": left,
        "promises": promised(promises),
    }


def main() -> None:
    """Run, print; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--server", choices=["uvicorn", "hypercorn"], default="uvicorn")
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--uploads", type=int, default=50, help="of these, in the middle of one")
    parser.add_argument("--latents", type=int, default=5, help="of the demo clip, in each job")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few clients: a rehearsal")
    parser.add_argument("--out", type=Path, help="where to write JSON")
    said = parser.parse_args()
    if said.quick:
        said.clients, said.uploads = 12, 3
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = facts(torch.device("cpu")) | {"server": said.server, "seed": said.seed}
        result |= asyncio.run(run(said, Path(folder)))
    for name in ("clients", "refused", "jobs", "states of the jobs kept", "before", "after"):
        print(f"  {name}: {result[name]}")
    print(f"  {result['seconds']:.1f} s, and {result['seconds until all was over']:.1f} s after it")
    show_promises(result["promises"], quick=said.quick)
    if said.out:
        write(result, said.out)


if __name__ == "__main__":
    main()
