"""What the app's routes do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import quote

from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from ..models import DEMO_LATENTS
from ._events import EventStream
from ._job import Job, Order
from ._job_events import job_events
from ._live_socket import LiveSocket
from ._problems import Problem
from ._query import Query
from ._responses import MJPEG, JPEGStream, MP4Stream
from ._security import refuse
from ._shutdown import App, Shutdown
from ._site import Site
from ._sockets import WebSocketFrames
from ._stay import shutdown_of
from ._uploads import Body


def site_of(connection: HTTPConnection) -> Site:
    """What the app's requests share.

    Raises:
        Problem: 503: the app's lifespan does not run (a mounted app's has to be entered).
    """
    site = getattr(connection.app.state, "site", None)
    if not isinstance(site, Site):
        raise Problem.later("the app is not open: its lifespan has to run", 10)
    return site


def shutdown_for(connection: HTTPConnection) -> Shutdown | None:
    """The server's, as `graceful` has left it."""
    return shutdown_of(connection.scope)


def job_of(connection: HTTPConnection) -> Job:
    """The job that a request names.

    Raises:
        Problem: 404: there is none.
    """
    return site_of(connection).jobs[connection.path_params["job_id"]]


async def decode(request: Request) -> Response:
    """Make a job of an upload, or of the demo."""
    site, body = site_of(request), Body(request.receive)
    site.jobs.obey(shutdown_for(request))
    try:
        site.jobs.expect_room()
        order = await _ordered(request, site, body)
    except Problem:
        await body.linger()
        raise
    job = site.jobs.add(order)
    place = f"{request.scope.get('root_path', '')}/jobs/{job.id}"
    return JSONResponse(job.told(), 201, {"Location": place, "Cache-Control": "no-store"})


async def _ordered(request: Request, site: Site, body: Body) -> Order:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return _demo(site, Query(await body.json()))
    query = Query(request.query_params)
    order = _order(site, query, query.name("latents"))
    stored = await site.uploads.receive(body, _length(request.headers), site.check)
    return Order(
        order.name,
        stored.path,
        query.fps(stored.header.fps or site.settings.fps),
        normalized=site.settings.normalized,
        on_idle=order.on_idle,
        start=order.start,
        stored=stored,
    )


def _order(site: Site, query: Query, name: str) -> Order:
    """All of an order but the latents: refused before these are read."""
    fps = query.fps(site.settings.fps)
    return Order(name, (), fps, on_idle=query.on_idle(), start=query.start())


def _demo(site: Site, query: Query) -> Order:
    query.expect_demo()
    site.check(site.demo)
    return Order(
        query.name("demo"),
        DEMO_LATENTS,
        query.fps(site.demo.fps or site.settings.fps),
        on_idle=query.on_idle(),
        start=query.start(),
    )


def _length(headers: Mapping[str, str]) -> int | None:
    given = headers.get("content-length")
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal() and len(given) < 19):
        raise Problem(400, f"expected Content-Length in bytes, got {given[:40]!r}")
    return int(given)


async def jobs(request: Request) -> Response:
    """All jobs, the newest first, without their timelines."""
    told = [job.told(spans=0) for job in site_of(request).jobs]
    return JSONResponse({"jobs": told}, headers={"Cache-Control": "no-store"})


async def job(request: Request) -> Response:
    """One job."""
    return JSONResponse(job_of(request).told(), headers={"Cache-Control": "no-store"})


async def delete(request: Request) -> Response:
    """Stop a job, and forget it unless it is to be kept."""
    found, keep = job_of(request), Query(request.query_params).keep()
    if keep:
        await site_of(request).jobs.stop(found)
        return await job(request)
    await site_of(request).jobs.remove(found)
    return Response(status_code=204)


async def events(request: Request) -> EventStream:
    """A job's progress."""
    found = job_of(request)
    return EventStream(lambda: job_events(found))


async def jpegs(request: Request) -> JPEGStream:
    """Its frames as records of JPEG."""
    return JPEGStream(job_of(request).broadcast, policy=Query(request.query_params).policy())


async def mjpeg(request: Request) -> MJPEG:
    """Its frames for ``<img>``."""
    return MJPEG(job_of(request).broadcast, policy=Query(request.query_params).policy())


async def mp4(request: Request) -> MP4Stream:
    """Its frames for Media Source Extensions."""
    return MP4Stream(job_of(request).broadcast, policy=Query(request.query_params).policy())


async def video(request: Request) -> Response:
    """Its video, once it is over."""
    found = job_of(request)
    path = found.video
    if path is None:
        state = "it has none" if found.over else f"it is {found.state}"
        raise Problem(409, f"expected a job that is over and has a video, but {state}")
    name = quote(found.order.name.rpartition(".")[0] or found.order.name, safe="") + ".mp4"
    disposition = f"attachment; filename=\"video.mp4\"; filename*=utf-8''{name}"
    headers = {"Content-Disposition": disposition, "Cache-Control": "private, max-age=3600"}
    return FileResponse(path, media_type="video/mp4", headers=headers)


async def healthz(request: Request) -> Response:
    """Whether the app takes jobs, for probes, which need no token: nothing else is told."""
    shutdown, site = shutdown_for(request), site_of(request)
    stopping = shutdown is not None and shutdown.stopping
    status = "draining" if stopping else site.service.health()["status"]
    headers = {"Cache-Control": "no-store"}
    return JSONResponse({"status": status}, 200 if status == "ok" else 503, headers)


async def metrics(request: Request) -> Response:
    """The service's figures, for Prometheus."""
    from prometheus_client import CONTENT_TYPE_LATEST

    text = site_of(request).service.metrics_text()
    headers = {"Content-Type": CONTENT_TYPE_LATEST, "Cache-Control": "no-store"}
    return Response(text, headers=headers)


class Socket:
    """A WebSocket's endpoint, as an ASGI app: Starlette's own class gives errors other names.

    Args:
        app: Makes the app that serves a client, or refuses it with a `Problem`.
    """

    def __init__(self, app: Callable[[WebSocket], App]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one client."""
        try:
            app = self._app(WebSocket(scope, receive, send))
        except Problem as problem:
            await refuse(problem, scope, receive, send)
        else:
            await app(scope, receive, send)


def watch(websocket: WebSocket) -> App:
    """A job's frames over a WebSocket."""
    return WebSocketFrames(job_of(websocket).broadcast)


def live(websocket: WebSocket) -> App:
    """Latents in, frames out."""
    site = site_of(websocket)
    site.jobs.obey(shutdown_for(websocket))
    site.jobs.expect_room()
    return LiveSocket(site, Query(websocket.query_params))
