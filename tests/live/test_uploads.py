"""Uploads: what is refused is refused before it is stored, and nothing is left of what fails."""

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from starlette.requests import ClientDisconnect

from streamvae.live import create_app
from streamvae.live._headers import LatentsHeader
from streamvae.live._problems import Problem
from streamvae.live._uploads import Body, Uploads
from streamvae.testing import TagCodec, tagged_latents

from .serving import Served, npy, npy_of, served, until


def left(folder: Path) -> list[str]:
    """Files that are there."""
    return [path.name for path in folder.rglob("*") if path.is_file()]


async def expect_nothing(server: Served, folder: Path) -> None:
    """No job, no upload, no file, no slot, no task is left but the server's own."""
    await server.site.jobs.settled()
    assert not list(server.site.jobs)
    assert server.site.uploads.active == 0
    assert server.site.jobs.open == 0
    assert server.site.service.active == server.site.service.waiting == 0
    assert left(folder) == []


def header(**entry: object) -> bytes:
    """A .safetensors file's header, without its data."""
    one = {"dtype": "F32", "shape": [1, 1, 1, 2, 2], "data_offsets": [0, 16], **entry}
    text = json.dumps({"latents": one}).encode()
    return struct.pack("<Q", len(text)) + text


HOSTILE = {
    "empty": (b"", 400, "nothing"),
    "text": (b"hello, this is no file of latents at all", 415, "something else"),
    "zip": (b"PK\x03\x04" + bytes(100), 415, "zip"),
    "pickle": (b"\x80\x04\x95\x0a" + bytes(100), 415, "pickle"),
    "object array": (npy_of(np.zeros((1, 1, 1, 2, 2), "<i8")), 422, "<i8"),
    "header bomb": (struct.pack("<Q", 1 << 60) + b"{" + bytes(100), 413, "header"),
    "npy header bomb": (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(100), 413, "header"),
    "huge shape": (header(shape=[1, 1, 1 << 20, 1 << 10, 2]), 400, "bytes"),
    "truncated": (npy()[:-1], 400, "got"),
    "truncated tensors": (save({"z": tagged_latents(2)})[:-1], 400, "got"),
    "too long": (npy() + b"x", 400, "got"),
    "integers": (save({"z": torch.zeros(1, 1, 1, 2, 2, dtype=torch.int32)}), 422, "I32"),
    "rank": (npy_of(np.zeros((1, 1, 2, 2), np.float32)), 422, "BCTHW"),
    "channels": (npy_of(np.zeros((1, 4, 1, 2, 2), np.float32)), 422, "(B, 1, T, h, w)"),
    "batch": (npy_of(np.zeros((2, 1, 1, 2, 2), np.float32)), 422, "batch of 2"),
    "no latents": (npy_of(np.zeros((1, 1, 0, 2, 2), np.float32)), 422, "shape"),
    "no picture": (npy_of(np.zeros((1, 1, 1, 1000, 1000), np.float16)), 422, "7680x4320"),
    "several": (save({"a": torch.zeros(1), "b": torch.zeros(1)}), 422, "a, b"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_uploads_leave_nothing(name: str, tmp_path: Path) -> None:
    """What cannot be decoded here is answered 4xx with one clear message, and leaves nothing."""
    body, status, said = HOSTILE[name]

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 7000):
            yield body[start : start + 7000]

    async with served(folder=tmp_path) as server:
        for content in (body, pieces()):
            response = await server.client.post("/decode", content=content)
            assert response.status_code == status, response.text
            assert response.headers["content-type"] == "application/problem+json"
            assert said in response.json()["detail"]
            assert str(tmp_path) not in response.text
        await expect_nothing(server, tmp_path)


async def test_one_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    """By its declared length, by its header's, or by what comes: 413, and nothing was stored."""
    app = create_app(TagCodec(), folder=tmp_path, max_upload=10_000)
    small, large = npy(5), npy(5, size=64)
    async with served(app) as server:
        assert (await server.client.post("/decode", content=large)).status_code == 413

        async def hidden() -> AsyncIterator[bytes]:
            yield large[:200]
            yield large[200:]

        refused = await server.client.post("/decode", content=hidden())
        assert refused.status_code == 413
        assert "10000 bytes" in refused.json()["detail"]
        await expect_nothing(server, tmp_path)
        await server.over(await server.job(small))


async def test_length_and_header_must_agree(tmp_path: Path) -> None:
    """A declared length other than the header's is refused before the body is read."""
    async with served(folder=tmp_path) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            b"POST /decode HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n" + npy()
        )
        await writer.drain()
        assert b" 400 " in await asyncio.wait_for(reader.readline(), 5)
        writer.close()
        await expect_nothing(server, tmp_path)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{}", 422),
        (b'{"demo": false}', 422),
        (b'{"demo": 1}', 422),
        (b"[]", 400),
        (b"{", 400),
        (b"\xff", 400),
        (b"[" * 20_000, 400),
        (b'{"demo": true, "fps": "x"}', 422),
        (b'{"demo": true, "fps": 1e999}', 422),
        (b'{"demo": true, "name": 4}', 422),
        (b'{"demo": true, "name": "../x"}', 422),
        (b'{"demo": true, "on_idle": []}', 422),
        (b'{"demo": true, "start": {}}', 422),
        (b'{"demo": true, "x": "' + b"y" * 70_000 + b'"}', 413),
        (b'{"demo": true}', 422),  # the demo is of another autoencoder
    ],
)
async def test_json_that_orders_nothing(body: bytes, status: int) -> None:
    """JSON that is damaged, too long or asks for what there is not is answered 4xx."""
    async with served() as server:
        response = await server.client.post(
            "/decode", content=body, headers={"Content-Type": "application/json"}
        )
        assert response.status_code == status, response.text
        assert not list(server.site.jobs)


async def test_clients_that_drop_leave_nothing(tmp_path: Path) -> None:
    """Fifty clients that break off in the middle of an upload leave no file, slot, job or task."""
    body = npy(16, size=64)
    async with served(folder=tmp_path) as server:
        before = asyncio.all_tasks()
        writers = []
        for number in range(50):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            head = (
                f"POST /decode HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body[: 1 + number * len(body) // 51])
            await writer.drain()
            writers.append(writer)
        await until(lambda: server.site.uploads.active == 50)
        for writer in writers:
            writer.transport.abort()
        await until(lambda: server.site.uploads.active == 0)
        await expect_nothing(server, tmp_path)
        await until(lambda: not asyncio.all_tasks() - before)
        told = await server.over(await server.job(body))
        assert (told["state"], told["frames"]) == ("done", 16)


async def test_uploads_are_gone_when_they_are_decoded(tmp_path: Path) -> None:
    """What was stored is removed with the end of its job, and all of it with the app's."""
    async with served(folder=tmp_path) as server:
        job = await server.job()
        await server.over(job)
        await server.site.jobs.settled()
        assert left(tmp_path) == ["video.mp4"]
        await server.job(start="viewer")
    assert left(tmp_path) == ["video.mp4"]
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == "."] == []


class Given:
    """A client's messages, and then silence, or its going."""

    def __init__(self, *pieces: bytes, gone: bool = False) -> None:
        self._messages = [
            {"type": "http.request", "body": piece, "more_body": True} for piece in pieces
        ]
        self._gone = gone

    async def __call__(self) -> dict[str, object]:
        if self._messages:
            return self._messages.pop(0)
        if self._gone:
            return {"type": "http.disconnect"}
        return await asyncio.get_running_loop().create_future()


async def test_silence_ends_an_upload(tmp_path: Path) -> None:
    """A client that stops sending is answered 408 when its time is over, and leaves nothing."""
    uploads = Uploads(tmp_path, max_bytes=1 << 20)
    with pytest.raises(Problem, match="within 0.01 s") as caught:
        await uploads.receive(Body(Given(npy()[:150]), 0.01), None, lambda _: None)
    assert caught.value.status == 408
    assert left(tmp_path) == []
    uploads.close()


async def test_a_wait_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    """However an upload ends, at whatever step, its file is removed, and by a thread that ends."""
    uploads = Uploads(tmp_path, max_bytes=1 << 20)
    for turns in range(0, 60, 3):
        receiving = uploads.receive(Body(Given(npy()[:150]), 9), None, lambda _: None)
        task = asyncio.create_task(receiving)
        for _ in range(turns):
            await asyncio.sleep(0.0002)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await uploads.settled()
        assert left(tmp_path) == []
        assert uploads.active == 0
    with pytest.raises(ClientDisconnect):
        await uploads.receive(Body(Given(npy()[:150], gone=True)), None, lambda _: None)
    assert left(tmp_path) == []
    uploads.close()


async def test_a_full_disk_is_the_server_s_fault(tmp_path: Path) -> None:
    """A file that the disk has no room for is answered 507, and others can be stored after it."""
    uploads = Uploads(tmp_path, max_bytes=1 << 62)
    entry = {"dtype": "F32", "shape": [1, 1, 1 << 24, 1 << 24, 1], "data_offsets": [0, 1 << 50]}
    head = json.dumps({"z": entry}).encode()
    file = struct.pack("<Q", len(head)) + head
    with pytest.raises(Problem) as caught:
        await uploads.receive(Body(Given(file)), None, lambda _: None)
    assert caught.value.status == 507
    assert left(tmp_path) == []
    uploads.close()


async def test_no_more_at_once_than_was_said(tmp_path: Path) -> None:
    """The upload that is one too many is answered 503 with a time, and the others go on."""
    uploads = Uploads(tmp_path, max_bytes=1 << 20, max_uploads=1)
    first = asyncio.create_task(uploads.receive(Body(Given(b"\x93")), None, lambda _: None))
    await until(lambda: uploads.active == 1)
    with pytest.raises(Problem) as caught:
        await uploads.receive(Body(Given(npy())), None, lambda _: None)
    assert caught.value.status == 503
    assert "Retry-After" in caught.value.headers
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    uploads.close()


async def test_a_refusal_comes_before_the_file(tmp_path: Path) -> None:
    """Who looks at the header and refuses it is asked before anything is on the disk."""
    uploads = Uploads(tmp_path, max_bytes=1 << 20)
    seen: list[LatentsHeader] = []

    def check(header: LatentsHeader) -> None:
        seen.append(header)
        assert left(tmp_path) == []
        raise Problem(422, "no")

    with pytest.raises(Problem):
        await uploads.receive(Body(Given(npy())), None, check)
    assert [each.shape for each in seen] == [(1, 1, 5, 2, 2)]
    uploads.close()
