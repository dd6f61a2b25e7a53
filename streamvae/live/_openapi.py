"""The OpenAPI document of the app, 3.1: written by hand, held to the routes by a test."""

from __future__ import annotations

import sys
from typing import TypeAlias

from ._problems import MEDIA_TYPE
from ._query import FPS, MAX_FRAMES, MAX_NAME
from ._site import Settings

Json: TypeAlias = dict[str, object]

_ID = "^[A-Za-z0-9_-]{22}$"


def document(settings: Settings, *, token: bool) -> Json:
    """All that clients need to know.

    Args:
        settings: The app's limits.
        token: Whether requests need one.
    """
    told: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "streamvae",
            # Not imported: the package itself is above this room.
            "version": str(getattr(sys.modules["streamvae"], "__version__", "")),
            "description": "Latents in, frames out, while they are decoded. WebSockets, which "
            "OpenAPI knows not: /jobs/{job_id} (JPEG with credits) and /live (latents one by one "
            "in, frames out); see docs/serve.md.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _paths(settings),
        "components": {
            "schemas": {
                "Job": _JOB,
                "Problem": _PROBLEM,
                "Order": _order(settings),
            },
        },
    }
    if token:
        components = told["components"]
        assert isinstance(components, dict)  # noqa: S101  # for mypy
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        told["security"] = [{"bearer": []}]
    return told


def _paths(settings: Settings) -> Json:
    job, frames = _ref("Job"), [_job_id(), _POLICY, _ROOM]
    jobs = {"type": "object", "required": ["jobs"], "properties": {"jobs": _list(job)}}
    one = "/jobs/{job_id}"
    return {
        "/decode": {"post": _decode(settings)},
        "/jobs": {"get": _get("All jobs, the newest first", [], {"application/json": jobs})},
        one: {
            "get": _get("One job", [_job_id()], {"application/json": job}, 404),
            "delete": _delete(),
        },
        f"{one}/frames.jpegs": {
            "get": _get(
                "Frames as records of JPEG: uint32 length of what follows, uint32 frame index, "
                "float64 seconds (NaN: unknown), a JPEG file; big-endian",
                frames,
                {"application/octet-stream": {}},
                *_WATCHED,
            )
        },
        f"{one}/frames.mjpeg": {
            "get": _get(
                "Frames for <img>",
                frames,
                {"multipart/x-mixed-replace": {}},
                *_WATCHED,
            )
        },
        f"{one}/frames.mp4": {
            "get": _get(
                "Fragmented MP4 for Media Source Extensions", frames, {"video/mp4": {}}, *_WATCHED
            )
        },
        f"{one}/video.mp4": {
            "get": _get("The video of a job that is over", [_job_id()], {"video/mp4": {}}, 404, 409)
        },
        f"{one}/events": {
            "get": _get(
                "Server-sent events: job as it changes, then end",
                [_job_id()],
                {"text/event-stream": {}},
                404,
                503,
            )
        },
        "/metrics": {"get": _get("For Prometheus", [], {"text/plain": {"type": "string"}})},
        "/healthz": {"get": _healthz()},
        "/openapi.json": {
            "get": _get("This document", [], {"application/json": {"type": "object"}})
        },
        "/": {"get": _get("The page", [], {"text/html": {"type": "string"}})},
    }


def _decode(settings: Settings) -> Json:
    query = [
        _query("name", {"type": "string", "maxLength": MAX_NAME}, "What people call the job"),
        _query("fps", _FPS, f"Else the file's metadata say, else {settings.fps:g}"),
        _query("on_idle", _enum("finish", "cancel"), "When the last viewer has left"),
        _query("start", _enum("now", "viewer"), "With the first viewer, or at once"),
    ]
    body = {
        "required": True,
        "content": {
            "application/octet-stream": {
                "schema": {"description": f".safetensors or .npy, {settings.max_upload} bytes"}
            },
            "application/json": {"schema": _ref("Order")},
        },
    }
    location = {"Location": {"schema": {"type": "string"}, "description": "The job"}}
    made = {"description": "The job", "headers": location, "content": _json(_ref("Job"))}
    refused = _problems(400, 401, 403, 408, 413, 415, 422, 503, 507)
    return {
        "summary": "Decode a file of latents, or the demo",
        "parameters": query,
        "requestBody": body,
        "responses": {"201": made, **refused},
    }


def _delete() -> Json:
    keep = _query("keep", _enum("false", "true"), "Only stop it")
    kept = {"description": "The job, stopped", "content": _json(_ref("Job"))}
    return {
        "summary": "Stop a job and forget it",
        "parameters": [_job_id(), keep],
        "responses": {
            "200": kept,
            "204": {"description": "Gone"},
            **_problems(401, 403, 404, 422, 503),
        },
    }


def _healthz() -> Json:
    status: Json = {
        "type": "object",
        "required": ["status"],
        "properties": {"status": {"type": "string"}},
    }
    told = {"description": "Takes jobs", "content": _json(status)}
    not_now = {"description": "Takes none", "content": _json(status)}
    return {"summary": "For probes", "security": [], "responses": {"200": told, "503": not_now}}


def _get(summary: str, parameters: list[Json], content: Json, *statuses: int) -> Json:
    media = {name: {"schema": schema} for name, schema in content.items()}
    return {
        "summary": summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": summary, "content": media},
            **_problems(*sorted({401, 403, 503, *statuses})),
        },
    }


def _problems(*statuses: int) -> Json:
    content = {MEDIA_TYPE: {"schema": _ref("Problem")}}
    return {str(status): {"description": _WHY[status], "content": content} for status in statuses}


def _order(settings: Settings) -> Json:
    del settings
    return {
        "type": "object",
        "required": ["demo"],
        "properties": {
            "demo": {"const": True},
            "name": {"type": "string", "maxLength": MAX_NAME},
            "fps": _FPS,
            "on_idle": _enum("finish", "cancel"),
            "start": _enum("now", "viewer"),
        },
    }


def _job_id() -> Json:
    schema = {"type": "string", "pattern": _ID}
    return {"name": "job_id", "in": "path", "required": True, "schema": schema}


def _query(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _list(schema: Json) -> Json:
    return {"type": "array", "items": schema}


def _enum(*values: str) -> Json:
    return {"type": "string", "enum": [*values], "default": values[0]}


def _or_null(kind: str) -> Json:
    return {"type": [kind, "null"]}


_WATCHED = (404, 410, 422)
_FPS: Json = {"type": "number", "minimum": FPS[0], "maximum": FPS[1]}
_POLICY = _query(
    "policy",
    _enum("default", "latest", "drop_oldest", "block"),
    "What happens when the viewer is slower than the decode: block slows the decode down",
)
_ROOM = _query(
    "n",
    {"type": "integer", "minimum": 1, "maximum": MAX_FRAMES, "default": 8},
    "Frames that wait for the viewer, of drop_oldest and block",
)
_WHY = {
    400: "The file or the JSON is damaged",
    401: "The token is missing or another one",
    403: "Asked from another machine, or by another site's page",
    404: "There is no such job",
    408: "The upload stood still for too long",
    409: "The job is not over, or has no video",
    410: "The job is over",
    413: "The file is too large",
    415: "The file is neither .safetensors nor .npy",
    422: "The latents do not fit the autoencoder, or an option is none",
    503: "Too many uploads or jobs, or the server is about to stop: Retry-After",
    507: "The disk is full",
}
_PROBLEM: Json = {
    "type": "object",
    "description": "Problem details, RFC 9457",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
    },
}
_JOB: Json = {
    "type": "object",
    "required": ["id", "name", "state", "created", "frames", "fps", "stats", "links"],
    "properties": {
        "id": {"type": "string", "pattern": _ID},
        "name": {"type": "string"},
        "state": _enum("queued", "running", "done", "failed", "cancelled"),
        "created": {"type": "string", "format": "date-time"},
        "position": {**_or_null("integer"), "description": "Place in the queue, from 1"},
        "frames": {"type": "integer", "minimum": 0, "description": "Decoded so far"},
        "total": {**_or_null("integer"), "description": "Frames in all"},
        "fps": {"type": "number"},
        "info": {**_or_null("object"), "description": "See streamvae.StreamInfo"},
        "stats": {"type": "object", "description": "See streamvae.StreamStats"},
        "bottleneck": {"type": "string"},
        "error": _or_null("string"),
        "links": {
            "type": "object",
            "description": "Relative to the app's root",
            "additionalProperties": _or_null("string"),
        },
    },
}
