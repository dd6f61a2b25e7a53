"""Who may ask, and from where: a token, or this machine alone; and never another site's page.

Without a token the app answers this machine only: the peer and the ``Host`` it asks for must both
be loopback, the second because a page of another site may have its own name resolve to 127.0.0.1
(DNS rebinding). With a token every request needs it, as ``Authorization: Bearer``, as the cookie
that opening ``/?token=...`` gives, or, where a browser can send neither (``EventSource``,
``WebSocket`` and ``<img>`` of other clients), as ``?token=`` of a GET or a WebSocket.

Requests that change something, and WebSockets, must come from a page of this very host if they
come from a page at all, whatever they bring: cookies are sent by other sites' forms as well.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .._errors import UsageError
from ._problems import Problem, problem_response

#: What every response says to browsers. The page has no script or style but its files.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
        "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}

#: What anybody may ask, from anywhere: an orchestrator's probe has no token.
OPEN = frozenset({"/healthz"})

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_SHORTEST = 16


def checked_token(token: str | None) -> str | None:
    """The token, if it can be one; None for none.

    Raises:
        UsageError: It is too short to be a secret, or no header can carry it.
    """
    if token is None:
        return None
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise UsageError("expected a token of printable ASCII without spaces, got something else")
    if len(token) < _SHORTEST:
        raise UsageError(
            f"expected a token of {_SHORTEST} characters or more, got {len(token)}; "
            "python -c 'import secrets; print(secrets.token_urlsafe())' makes one"
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether a host's name or address means this machine and nothing else."""
    name = host.strip("[]").lower().rstrip(".")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware that lets through who may ask.

    Args:
        app: What it guards.
        token: What every request needs; None: only this machine is answered.
        hosts: Names besides loopback that a request without token may ask for (an app that is
            reached through a proxy on this machine).
    """

    def __init__(self, app: ASGIApp, token: str | None = None, hosts: Iterable[str] = ()) -> None:
        self._app = app
        self._token = None if token is None else token.encode()
        self._hosts = frozenset(host.lower() for host in hosts)
        key = b"" if self._token is None else self._token
        # The cookie is not the token: who reads it off a disk cannot make another.
        self._session = hmac.new(key, b"streamvae session", hashlib.sha256).hexdigest()
        # Cookies do not know ports: servers of one host must not take each other's.
        self._cookie = "streamvae_" + hashlib.sha256(self._session.encode()).hexdigest()[:8]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the app answer."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
            return
        careful = _with_headers(send)
        connection = HTTPConnection(scope)
        try:
            response = self._login(connection)
            if response is None:
                self._check(connection)
        except Problem as problem:
            response = problem_response(problem)
        await (response or self._app)(scope, receive, careful)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(HTTPConnection(scope))
        except Problem as problem:
            await refuse(problem, scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _login(self, connection: HTTPConnection) -> Response | None:
        """Turn ``/?token=...``, as a browser opens it, into a cookie, out of the address bar."""
        scope = connection.scope
        if self._token is None or scope["method"] != "GET" or connection.url.path != _root(scope):
            return None
        given = connection.query_params.get("token")
        if given is None:
            return None
        if not self._is_token(given):
            raise _unauthorized("expected the token of this server in ?token=, got another one")
        rest = [each for each in connection.query_params.multi_items() if each[0] != "token"]
        query = "?" + urlencode(rest) if rest else ""
        response = RedirectResponse(connection.url.path + query, 303)
        response.set_cookie(
            self._cookie,
            self._session,
            httponly=True,
            samesite="strict",
            secure=scope["scheme"] == "https",
            path=connection.url.path,
        )
        return response

    def _check(self, connection: HTTPConnection) -> None:
        """Let pass, or raise.

        Raises:
            Problem: 401: without the token. 403: from somewhere else.
        """
        scope, headers = connection.scope, connection.headers
        path = connection.url.path.removeprefix(_root(scope).rstrip("/"))
        if scope["type"] == "http" and path in OPEN and scope["method"] in _SAFE:
            return
        if self._token is None:
            self._expect_this_machine(scope, headers)
        elif self._bears(headers):
            return  # no page of another site can send this header
        elif not self._has_cookie(connection) and not self._has_query(connection):
            raise _unauthorized(
                "expected the token of this server: Authorization: Bearer, the cookie that "
                "/?token=... gives, or ?token= of a GET or a WebSocket; got none, or another one"
            )
        if scope["type"] == "websocket" or scope["method"] not in _SAFE:
            _expect_own_page(headers)

    def _expect_this_machine(self, scope: Scope, headers: Headers) -> None:
        client = scope.get("client")  # None behind a Unix socket
        if client is not None and not is_loopback(client[0]):
            raise Problem(403, "expected a request from this machine, or a server with a token")
        name = _host_name(headers.get("host", ""))
        if not is_loopback(name) and name not in self._hosts:
            raise Problem(403, f"expected a request for localhost, got one for {name[:100]!r}")

    def _bears(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and self._is_token(given.strip())

    def _has_cookie(self, connection: HTTPConnection) -> bool:
        given = connection.cookies.get(self._cookie, "")
        return hmac.compare_digest(given.encode(), self._session.encode())

    def _has_query(self, connection: HTTPConnection) -> bool:
        if connection.scope.get("method", "GET") != "GET":
            return False
        given = QueryParams(connection.scope["query_string"]).get("token")
        return given is not None and self._is_token(given)

    def _is_token(self, given: str) -> bool:
        assert self._token is not None  # noqa: S101  # asked for only where there is one
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token)


def _root(scope: Scope) -> str:
    root: str = scope.get("root_path", "")
    return root.rstrip("/") + "/"


def _host_name(host: str) -> str:
    """The name in a ``Host`` header, without the port; empty for what is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _expect_own_page(headers: Headers) -> None:
    """Refuse what a page of another site sends. Programs send none of these headers."""
    if headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        raise Problem(403, "expected a request of this server's own page, got another site's")
    origin = headers.get("origin")
    if origin is None:
        return
    if origin.partition("://")[2].lower() != headers.get("host", "").lower():
        raise Problem(403, f"expected a page of this host, got one of {origin[:100]!r}")


def _unauthorized(detail: str) -> Problem:
    return Problem(401, detail, {"WWW-Authenticate": 'Bearer realm="streamvae"'})


def _with_headers(send: Send) -> Send:
    async def careful(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return careful


async def refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a WebSocket's handshake, with the reason where the server can send one."""
    message = await receive()
    if message["type"] != "websocket.connect":
        return
    if "websocket.http.response" in scope.get("extensions", {}):
        await problem_response(problem)(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 1008, "reason": problem.detail[:120]})
