"""The app: jobs made, watched, told of, stopped and forgotten."""

import asyncio
import io
import json
import re
import struct
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save
from websockets import ConnectionClosedError
from websockets.asyncio.client import connect

from streamvae import UsageError
from streamvae.live import create_app
from streamvae.live._job import Order
from streamvae.testing import TagCodec, tagged_latents

from .serving import npy, npy_of, served, until


async def test_an_upload_becomes_a_job_and_a_video(tmp_path: Path) -> None:
    """A file of latents is decoded: its job tells how far it is, and its video is there at last."""
    async with served(folder=tmp_path) as server:
        response = await server.client.post(
            "/decode", content=npy(9), params={"name": "a clip.npy", "fps": "8"}
        )
        assert response.status_code == 201
        job = response.json()
        assert response.headers["location"] == f"/jobs/{job['id']}"
        assert (job["name"], job["fps"], job["state"]) == ("a clip.npy", 8, "queued")
        told = await server.over(job["id"])
        assert (told["state"], told["frames"], told["error"]) == ("done", 9, None)
        assert told["info"]["frames"] == 9
        assert told["info"]["latents_shape"] == [1, 1, 9, 2, 2]
        assert [stage["name"] for stage in told["stats"]["stages"]]
        video = await server.client.get(told["links"]["video"])
        assert video.headers["content-type"] == "video/mp4"
        assert "a%20clip.mp4" in video.headers["content-disposition"]
        assert b"ftyp" in video.content[:12]


def records(body: bytes) -> list[tuple[int, Image.Image]]:
    """Frame indices and pictures of a body of records."""
    found = []
    while body:
        length, index, _ = struct.unpack_from(">IId", body)
        found.append((index, Image.open(io.BytesIO(body[16 : 4 + length]))))
        body = body[4 + length :]
    return found


async def test_who_watches_from_the_beginning_misses_nothing() -> None:
    """A job that begins with its first viewer gives it every frame, right and in order."""
    async with served() as server:
        job = await server.job(npy(12), start="viewer")
        assert (await server.client.get(f"/jobs/{job}")).json()["state"] == "queued"
        watched = await server.client.get(f"/jobs/{job}/frames.jpegs", params={"policy": "block"})
        assert watched.headers["content-type"] == "application/octet-stream"
        shown = records(watched.content)
        assert [index for index, _ in shown] == list(range(12))
        for index, picture in shown:
            assert abs(picture.convert("L").getpixel((0, 0)) - 2 * index) <= 2


async def test_every_form_of_the_frames() -> None:
    """One job is watched as MJPEG, as fragments of MP4 and by its events, all at the same time."""
    async with served() as server:
        job = await server.job(npy(8), start="viewer")
        mjpeg, mp4, events = await asyncio.gather(
            server.client.get(f"/jobs/{job}/frames.mjpeg?policy=block"),
            server.client.get(f"/jobs/{job}/frames.mp4?policy=block"),
            server.client.get(f"/jobs/{job}/events"),
        )
        assert mjpeg.content.count(b"Content-Type: image/jpeg") == 8
        assert mp4.content[4:8] == b"ftyp"
        assert mp4.content.count(b"moof") == 8
        assert "event: end" in events.text
        last = json.loads(events.text.rpartition("data: ")[2])
        assert (last["state"], last["frames"]) == ("done", 8)


async def test_a_socket_shows_frames_and_is_acknowledged() -> None:
    """Over a WebSocket come what the stream is, frames for credits, and the end."""
    async with served() as server:
        job = await server.job(npy(6), start="viewer")
        said, frames = [], []
        async with connect(f"ws://127.0.0.1:{server.port}/jobs/{job}?credit=8") as socket:
            async for message in socket:
                if isinstance(message, str):
                    said.append(json.loads(message)["event"])
                else:
                    frames.append(struct.unpack_from(">I", message)[0])
                    await socket.send(json.dumps({"ack": frames[-1]}))
        assert (said[0], said[-1]) == ("info", "end")
        assert frames == sorted(frames)
        assert frames[-1] == 5
        assert socket.close_code == 1000


async def test_latents_one_by_one_give_frames_one_by_one() -> None:
    """A model sends a latent, sees its frame, and sends the next one; others may watch its job."""
    latents = tagged_latents(5, size=2)
    async with served() as server:
        async with connect(f"ws://127.0.0.1:{server.port}/live?name=a+model") as socket:
            files = [npy_of(latents[:, :, step : step + 1].numpy()) for step in range(5)]
            seen, job = [], None
            await socket.send(files[0])
            async for message in socket:
                if isinstance(message, str):
                    event = json.loads(message)
                    job = event["id"] if event["event"] == "job" else job
                    continue
                seen.append(struct.unpack_from(">I", message)[0])
                await socket.send(json.dumps({"ack": seen[-1]}))
                await socket.send(files[len(seen)] if len(seen) < 5 else '{"end": true}')
        assert seen == [0, 1, 2, 3, 4]
        told = await server.over(job)
        assert (told["name"], told["state"], told["frames"]) == ("a model", "done", 5)


@pytest.mark.parametrize("form", ["raw", "safetensors"])
async def test_latents_come_in_any_form(form: str) -> None:
    """Latents of a live socket may be files or, once told what they are, bare numbers."""
    latents = tagged_latents(3, size=2)
    async with served() as server:
        async with connect(f"ws://127.0.0.1:{server.port}/live") as socket:
            if form == "raw":
                await socket.send('{"dtype": "float32", "shape": [1, 1, 1, 2, 2]}')
            for step in range(3):
                one = latents[:, :, step : step + 1].contiguous()
                await socket.send(one.numpy().tobytes() if form == "raw" else save({"z": one}))
            await socket.send('{"end": true}')
            async for message in socket:
                last = message
        assert json.loads(last)["event"] == "end"
        assert [job.state for job in server.site.jobs] == ["done"]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"\x80\x04\x95" + bytes(20), "pickle"),
        (b"PK\x03\x04" + bytes(20), "zip"),
        ("[1, 2]", "ack"),
        ('{"end": true}', "before the end"),
        ('{"dtype": "int8", "shape": [1]}', "float16"),
        ('{"dtype": "float16", "shape": [1, 3, 1, 2, 2]}', "shape"),
        (npy_of(np.zeros((1, 3, 1, 2, 2), np.float32)), "shape"),
        (npy_of(np.zeros((2, 1, 1, 2, 2), np.float32)), "batch of 2"),
        (npy_of(np.zeros((1, 1, 1, 2, 2), np.float32))[:-1], "bytes"),
    ],
)
async def test_a_live_socket_refuses_what_it_cannot_decode(message: str | bytes, said: str) -> None:
    """What is no latents of this autoencoder closes the socket, says why, and leaves no job."""
    async with served() as server:
        async with connect(f"ws://127.0.0.1:{server.port}/live") as socket:
            await socket.send(message)
            with pytest.raises(ConnectionClosedError):
                async for _ in socket:
                    pass
        assert socket.close_code == 1008
        assert said in socket.close_reason
        assert not list(server.site.jobs)


async def test_who_leaves_a_live_socket_stops_its_decode() -> None:
    """A model's connection that breaks cancels the job, and nothing of it is left running."""
    async with served() as server:
        async with connect(f"ws://127.0.0.1:{server.port}/live") as socket:
            await socket.send(npy(1))
            while not isinstance(await socket.recv(), bytes):
                pass
        (job,) = server.site.jobs
        await job.ended()
        assert job.state == "cancelled"
        assert server.site.service.active == 0


async def test_the_last_viewer_leaving_stops_the_job() -> None:
    """With on_idle=cancel a job ends as soon as nobody watches; without, it goes on to its file."""
    codec = TagCodec()
    async with served(codec=codec) as server:
        for on_idle, state in (("cancel", "cancelled"), ("finish", "done")):
            job = await server.job(npy(400), start="viewer", on_idle=on_idle)
            path = f"/jobs/{job}/frames.jpegs?policy=block&n=1"
            async with server.client.stream("GET", path) as response:
                await anext(response.aiter_raw())
            await server.site.jobs[job].ended()
            assert server.site.jobs[job].state == state
        assert codec.open_decoders == 0


async def test_who_leaves_before_it_began_stops_the_job() -> None:
    """With on_idle=cancel a job that still waits is given up when the last who waits has left."""
    async with served(create_app(TagCodec(), max_streams=1)) as server:
        first = await server.job(npy(2000), start="viewer")
        path = f"/jobs/{first}/frames.jpegs?policy=block&n=1"
        async with server.client.stream("GET", path) as response:
            await anext(response.aiter_raw())
            waiting = await server.job(on_idle="cancel")
            watching = asyncio.create_task(server.client.get(f"/jobs/{waiting}/frames.jpegs"))
            job = server.site.jobs[waiting]
            await until(lambda: job._waiting == 1)
            assert (await server.client.get(f"/jobs/{waiting}")).json()["position"] == 1
            watching.cancel()
            await job.ended()
            assert job.state == "cancelled"


async def test_a_job_is_stopped_and_kept_or_forgotten(tmp_path: Path) -> None:
    """DELETE stops a job; with keep its record and its partial video stay, else nothing does."""
    async with served(folder=tmp_path) as server:
        job = await server.job(npy(2000), start="viewer")
        path = f"/jobs/{job}/frames.jpegs?policy=block&n=1"
        async with server.client.stream("GET", path) as response:
            await anext(response.aiter_raw())
            kept = await server.client.delete(f"/jobs/{job}?keep=true")
            assert (kept.status_code, kept.json()["state"]) == (200, "cancelled")
        gone = await server.client.get(f"/jobs/{job}/frames.jpegs")
        assert (gone.status_code, gone.json()["status"]) == (410, 410)
        assert (await server.client.delete(f"/jobs/{job}")).status_code == 204
        assert (await server.client.get(f"/jobs/{job}")).status_code == 404
        assert [each for each in tmp_path.rglob("*") if each.is_file()] == []


async def test_a_job_that_nobody_began_is_stopped() -> None:
    """A job that still waits for its first viewer, or for its first step, is stopped as well."""
    async with served() as server:
        job = await server.job(npy(4), start="viewer")
        assert (await server.client.delete(f"/jobs/{job}?keep=true")).json()["state"] == "cancelled"
        assert server.site.jobs.open == 0
        order = Order("unborn", tagged_latents(3), 16.0)
        job = server.site.jobs.add(order)
        await server.site.jobs.stop(job)
        assert job.state == "cancelled"


async def test_the_oldest_jobs_give_way(tmp_path: Path) -> None:
    """No more ended jobs are kept than was said, nor their videos."""
    app = create_app(TagCodec(), folder=tmp_path, max_kept=2)
    async with served(app) as server:
        ids = []
        for _ in range(4):
            ids.append(await server.job())
            await server.over(ids[-1])
        listed = (await server.client.get("/jobs")).json()["jobs"]
        assert [job["id"] for job in listed] == [ids[3], ids[2]]
        await server.site.jobs.settled()
        assert {path.name for path in tmp_path.iterdir() if path.name[0] != "."} == set(ids[2:])


async def test_too_many_jobs_are_refused_with_a_time() -> None:
    """When as many jobs wait or run as may, the next is answered 503 with Retry-After."""
    async with served(create_app(TagCodec(), max_streams=1, max_waiting=1)) as server:
        for _ in range(2):
            await server.job(start="viewer")
        refused = await server.client.post("/decode", content=npy())
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "2 jobs" in refused.json()["detail"]
        assert server.site.uploads.active == 0


async def test_a_job_that_fails_says_why_and_no_path(tmp_path: Path) -> None:
    """An error of the decode is the job's, in one line, and names no place on this disk."""
    async with served(folder=tmp_path, codec=TagCodec(fail_at=2)) as server:
        told = await server.over(await server.job())
        assert (told["state"], told["frames"]) == ("failed", 2)
        assert told["error"] == "ValueError; the server's log says more"
        assert str(tmp_path) not in json.dumps(told)
        again = await server.client.get(f"/jobs/{told['id']}/frames.mjpeg")
        assert (again.status_code, again.json()["detail"]) == (410, told["error"])


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/jobs/none", 404),
        ("/jobs/none/video.mp4", 404),
        ("/nothing", 404),
        ("/static/nothing.js", 404),
        ("/static/../_app.py", 404),
        ("/static/%2e%2e/_app.py", 404),
    ],
)
async def test_what_is_not_there_is_a_problem(path: str, status: int) -> None:
    """Every refusal is problem details with one message, for the framework's own refusals too."""
    async with served() as server:
        response = await server.client.get(path)
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"
        assert set(response.json()) == {"type", "title", "status", "detail"}
        other = await server.client.put("/jobs")
        assert (other.status_code, other.json()["status"]) == (405, 405)


@pytest.mark.parametrize(
    "query",
    [
        {"fps": "0"},
        {"fps": "nan"},
        {"fps": "many"},
        {"on_idle": "explode"},
        {"start": "never"},
        {"name": "../../etc/passwd"},
        {"name": "a\\b"},
        {"name": ".."},
        {"name": "a\nb"},
        {"name": "x" * 300},
    ],
)
async def test_options_that_are_none_are_refused(query: dict[str, str]) -> None:
    """An option out of range, or a name that is a path, is answered 422 before the body is kept."""
    async with served() as server:
        response = await server.client.post("/decode", params=query, content=npy())
        assert response.status_code == 422
        assert "expected" in response.json()["detail"]
        assert not list(server.site.jobs)


async def test_an_app_whose_lifespan_does_not_run_says_so() -> None:
    """Mounted without its lifespan the app answers 503 with the reason, and does not break."""
    transport = httpx.ASGITransport(create_app(TagCodec()))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        response = await client.get("/jobs")
        assert response.status_code == 503
        assert "lifespan" in response.json()["detail"]


@pytest.mark.parametrize("options", [{"token": "short"}, {"max_upload": 0}, {"fps": 0.0}])
def test_limits_that_are_none_are_refused(options: dict[str, object]) -> None:
    """Bad limits raise when the app is made."""
    with pytest.raises(UsageError, match="expected"):
        create_app(TagCodec(), **options)


async def test_the_page_and_all_that_it_names_are_served() -> None:
    """The page is there offline: each of its files is served as what it is, and none is inline."""
    async with served() as server:
        page = await server.client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        files = set(re.findall(r'(?:src|href)="(static/[^"]+)"', page.text))
        assert files
        for file in files:
            response = await server.client.get(f"/{file}")
            assert response.status_code == 200, file
            if file.endswith(".js"):
                assert response.headers["content-type"].startswith("text/javascript")
        assert not re.findall(r"<script(?![^>]*src=)|<style|\son\w+=", page.text)
        assert "script-src" not in page.headers["content-security-policy"]


async def test_what_is_asked_is_counted() -> None:
    """Metrics are in Prometheus's text format, and count what the jobs decoded."""
    async with served() as server:
        await server.over(await server.job(npy(7)))
        metrics = await server.client.get("/metrics")
        assert metrics.headers["content-type"].startswith("text/plain")
        assert "streamvae_frames_total 7.0" in metrics.text
