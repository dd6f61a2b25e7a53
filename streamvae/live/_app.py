"""The app behind ``streamvae serve``: uploads in, frames out while they are decoded.

========================================  ======================================================
``POST /decode``                          a file of latents, or ``{"demo": true}``; 201, the job
``GET /jobs``                             ``{"jobs": [...]}``, the newest first
``GET /jobs/{id}``                        the job: state, frames, info, stats, bottleneck, links
``DELETE /jobs/{id}``                     stop it and forget it; ``?keep=true``: only stop it
``GET /jobs/{id}/frames.jpegs``           records of JPEG, a chunked body
``GET /jobs/{id}/frames.mjpeg``           multipart, for ``<img>``
``GET /jobs/{id}/frames.mp4``             fragmented MP4, for Media Source Extensions
``GET /jobs/{id}/video.mp4``              the finished file, with ranges
``GET /jobs/{id}/events``                 server-sent events: ``job`` as it changes, then ``end``
``WS /jobs/{id}``                         JPEG frames with credits
``WS /live``                              latents one by one in, frames out
``GET /metrics``, ``/healthz``            for Prometheus, for probes
``GET /openapi.json``, ``/``, /static     the document, the page
========================================  ======================================================

``POST /decode`` takes ``?name=`` (what people call the job), ``?fps=`` (else what the file's
metadata say, else 16), ``?on_idle=cancel`` (stop when the last viewer has left, as the page wants
it; a job that nobody has watched goes on) and ``?start=viewer`` (begin with the first viewer, who
then misses no frame, or after 10 s without one). Viewers of a job that waits wait with it.
``?policy=`` of frames is ``latest`` or ``drop_oldest`` (a slow viewer misses frames; by default, as
suits the format) or ``block`` (it misses none, and slows the decode down); ``?n=`` is how many
frames wait for it in the latter two.

Every failure is one problem, RFC 9457: ``{"type", "title", "status", "detail"}``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, Iterable
from pathlib import Path

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ExceptionHandler

from .._errors import UsageError
from . import _endpoints as endpoints
from ._openapi import document
from ._problems import Problem, answer_error, answer_http_error, answer_problem
from ._query import FPS
from ._security import Guard, checked_token
from ._service import Service
from ._site import Settings, opened

#: The page's files.
PAGE = Path(__file__).parent / "page"


def create_app(
    source: object = None,
    *,
    token: str | None = None,
    hosts: Iterable[str] = (),
    folder: str | os.PathLike[str] | None = None,
    max_upload: int = 1 << 30,
    max_uploads: int = 64,
    max_streams: int = 4,
    max_waiting: int = 32,
    max_kept: int = 32,
    normalized: bool = False,
    fps: float = 16.0,
    device: str | int | torch.device | None = None,
) -> Starlette:
    """Make the app that ``streamvae serve`` runs: an ASGI app for any server.

    The weights are loaded when its lifespan begins; when that ends, every job is stopped. Without
    ``token`` it answers only this machine.

    Args:
        source: What decodes, as in `streamvae.stream_decode`: an autoencoder of pictures, or a
            fresh `Service`, which the app then enters and leaves (its limits and device hold).
        token: What every request needs, 16 characters or more: ``Authorization: Bearer``, the
            cookie that opening ``/?token=...`` gives, or ``?token=`` of a GET or a WebSocket. None:
            only this machine is answered, under a loopback name.
        hosts: Other names that this machine may be asked for without a token (behind a proxy).
        folder: Where videos are kept, each in a folder of its job; they stay when the app ends, as
            far as they have come. None: in a folder that is removed then.
        max_upload: Bytes of an upload at most.
        max_uploads: Uploads at once; one more is answered 503.
        max_streams: Jobs that are decoded at once.
        max_waiting: Jobs that may wait; one more is answered 503.
        max_kept: Jobs that are kept when they have ended, with their videos; the oldest go first.
        normalized: As in `streamvae.stream_decode`, of uploads.
        fps: Frames a second where neither the request nor the file says.
        device: As in `streamvae.stream_decode`.

    Raises:
        UsageError: The token is too short, or a limit is none.
    """
    limits = {
        "max_upload": max_upload,
        "max_uploads": max_uploads,
        "max_kept": max_kept,
    }
    for name, value in limits.items():
        if value < 1:
            raise UsageError(f"expected {name} of 1 or more, got {value}")
    if not FPS[0] <= fps <= FPS[1]:
        raise UsageError(f"expected fps in 1..240, got {fps}")
    if isinstance(source, Service):
        service = source
    else:
        service = Service(source, max_streams=max_streams, max_waiting=max_waiting, device=device)
    settings = Settings(
        folder=None if folder is None else Path(folder).absolute(),
        max_upload=max_upload,
        max_uploads=max_uploads,
        max_kept=max_kept,
        normalized=normalized,
        fps=fps,
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None, None]:
        async with opened(service, settings) as site:
            app.state.site = site
            try:
                yield
            finally:
                app.state.site = None

    guard = Middleware(Guard, token=checked_token(token), hosts=tuple(hosts))
    described = document(settings, token=token is not None)
    return Starlette(
        routes=_routes(described),
        middleware=[guard],
        exception_handlers=_handlers(),
        lifespan=lifespan,
    )


def _routes(described: dict[str, object]) -> list[BaseRoute]:
    async def openapi(request: Request) -> Response:
        del request
        return JSONResponse(described)

    async def page(request: Request) -> Response:
        del request
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    job = "/jobs/{job_id}"
    routes = [
        Route("/decode", endpoints.decode, methods=["POST"]),
        Route("/jobs", endpoints.jobs),
        Route(job, endpoints.job, methods=["GET"]),
        Route(job, endpoints.delete, methods=["DELETE"]),
        Route(f"{job}/frames.jpegs", endpoints.jpegs),
        Route(f"{job}/frames.mjpeg", endpoints.mjpeg),
        Route(f"{job}/frames.mp4", endpoints.mp4),
        Route(f"{job}/video.mp4", endpoints.video),
        Route(f"{job}/events", endpoints.events),
        WebSocketRoute(job, endpoints.Socket(endpoints.watch)),
        WebSocketRoute("/live", endpoints.Socket(endpoints.live)),
        Route("/metrics", endpoints.metrics),
        Route("/healthz", endpoints.healthz),
        Route("/openapi.json", openapi),
        Route("/", page),
    ]
    return [*routes, Mount("/static", StaticFiles(directory=PAGE))]


def _handlers() -> dict[type[Exception] | int, ExceptionHandler]:
    async def gone(request: Request, error: Exception) -> Response:
        del request, error
        return Response(status_code=400)  # nobody reads it

    return {
        Problem: answer_problem,
        HTTPException: answer_http_error,
        ClientDisconnect: gone,
        Exception: answer_error,
    }
