"""``streamvae serve``."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import av
import httpx
import pytest

from .command import Invoke, command, environment, one_error

GRACE = 15
TOKEN = "a-secret-of-the-tests"  # noqa: S105


@contextlib.contextmanager
def serving(*args: object, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as a process of its own, once it serves, and where."""
    process = subprocess.Popen(
        command("serve", "--port", 0, "--grace", GRACE, *args),
        env={**environment(), "OMP_NUM_THREADS": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("serving on http://127.0.0.1:"), said
        yield process, said.split()[-1]
    finally:
        process.kill()
        process.communicate()


def frames_in(path: Path) -> int:
    """How many frames a player finds."""
    with av.open(str(path), format="mp4") as file:
        return sum(1 for _ in file.decode(video=0))


async def test_sigterm_ends_ten_open_streams_in_time() -> None:
    """With ten streams open the process is over within its grace, and what is written plays.

    The token comes from the environment, is asked for, and is printed nowhere.
    """
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    folder = ("--folder", "kept", "--max-streams", 10)
    with serving(*folder, STREAMVAE_TOKEN=TOKEN) as (process, said):
        assert said.endswith("/?token=...")
        url = said.removesuffix("?token=...")
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            assert (await client.get("jobs")).status_code == 401
            assert (await client.get("healthz")).json() == {"status": "ok"}
            client.headers.update(bearer)
            asked = [await client.post("decode", json={"demo": True}) for _ in range(10)]
            shown = asyncio.Event()

            async def watch(job: str) -> None:
                async with client.stream("GET", f"jobs/{job}/frames.jpegs") as response:
                    async for _ in response.aiter_raw():
                        shown.set()
                assert response.status_code == 503  # it had not begun

            watching = [asyncio.create_task(watch(job.json()["id"])) for job in asked]
            await shown.wait()
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            code = await asyncio.to_thread(process.wait, 30)
            assert time.monotonic() - began < GRACE
            for ended in await asyncio.gather(*watching, return_exceptions=True):
                # Nobody takes it for complete.
                assert ended is None or isinstance(ended, httpx.RemoteProtocolError)
        out, err = await asyncio.to_thread(process.communicate)
        assert (code, out, err) == (0, "", "")
    partial = list(Path("kept").glob("*/video.mp4.partial"))
    assert partial
    assert max(map(frames_in, partial)) > 0
    assert [path for path in Path("kept").iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])  # noqa: S104
def test_the_world_needs_a_token(invoke: Invoke, host: str) -> None:
    """Another address than loopback is not served without a token, before weights are loaded."""
    assert "STREAMVAE_TOKEN" in one_error(invoke("serve", "--host", host), 2)


def test_a_port_that_is_taken(invoke: Invoke) -> None:
    """A port that somebody else listens on is one line and exit code 2."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        said = one_error(invoke("serve", "--port", other.getsockname()[1]), 2)
    assert "in use" in said


def test_options_that_are_none(invoke: Invoke) -> None:
    """Options are checked before anything is served."""
    assert "16 characters" in one_error(invoke("serve", "--token", "short"), 2)
    assert "fps" in one_error(invoke("serve", "--fps", "0"), 2)
    assert "--max-streams" in one_error(invoke("serve", "--max-streams", "0"), 2)
