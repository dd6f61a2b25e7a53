"""Live: one decode, many viewers, while it runs; pieces for any ASGI app, and an app that works.

Importing this imports no web framework; each name's module is loaded when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .._errors import MissingDependencyError

if TYPE_CHECKING:
    from ._admission import Busy
    from ._app import create_app
    from ._asgi import StreamResponse
    from ._broadcast import Broadcast
    from ._events import Events, EventStream
    from ._packets import Packet
    from ._pictures import Picture
    from ._policies import Block, DropOldest, Latest, Policy
    from ._preview import Preview, preview
    from ._request import Request, RequestTimeout
    from ._responses import MJPEG, JPEGStream, MP4Stream
    from ._service import Service
    from ._shutdown import Shutdown, graceful
    from ._sockets import WebSocketFrames
    from ._subscription import Subscription

__all__ = [
    "MJPEG",
    "Block",
    "Broadcast",
    "Busy",
    "DropOldest",
    "EventStream",
    "Events",
    "JPEGStream",
    "Latest",
    "MP4Stream",
    "Packet",
    "Picture",
    "Policy",
    "Preview",
    "Request",
    "RequestTimeout",
    "Service",
    "Shutdown",
    "StreamResponse",
    "Subscription",
    "WebSocketFrames",
    "create_app",
    "graceful",
    "preview",
]

#: In which module a public name stands.
_HOMES = {
    "Block": "_policies",
    "Broadcast": "_broadcast",
    "Busy": "_admission",
    "DropOldest": "_policies",
    "EventStream": "_events",
    "Events": "_events",
    "JPEGStream": "_responses",
    "Latest": "_policies",
    "MJPEG": "_responses",
    "MP4Stream": "_responses",
    "Packet": "_packets",
    "Picture": "_pictures",
    "Policy": "_policies",
    "Preview": "_preview",
    "Request": "_request",
    "RequestTimeout": "_request",
    "Service": "_service",
    "Shutdown": "_shutdown",
    "StreamResponse": "_asgi",
    "Subscription": "_subscription",
    "WebSocketFrames": "_sockets",
    "create_app": "_app",
    "graceful": "_shutdown",
    "preview": "_preview",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name != "starlette":  # which only the app needs
            raise
        raise MissingDependencyError("starlette", f"streamvae.live.{name}", "live") from error


def __dir__() -> list[str]:
    return __all__
