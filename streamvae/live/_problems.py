"""What is answered when something cannot be done: problem details, RFC 9457, one clear message."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, Response

#: What problems are sent as.
MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """Raised to answer a request with a problem.

    Args:
        status: The HTTP status, 400 to 599.
        detail: What was expected and what came, for people; goes to the client, so it names no
            path of this machine.
        headers: Sent besides.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})

    @classmethod
    def later(cls, detail: str, seconds: float) -> Problem:
        """503: the same may be done in ``seconds``."""
        return cls(503, detail, {"Retry-After": str(max(1, math.ceil(seconds)))})


def problem_response(problem: Problem) -> Response:
    """What a client gets for ``problem``."""
    status = HTTPStatus(problem.status)
    body = {"type": "about:blank", "title": status.phrase, "status": status.value}
    return JSONResponse(
        {**body, "detail": problem.detail},
        status.value,
        {**problem.headers, "Cache-Control": "no-store"},
        MEDIA_TYPE,
    )


async def answer_problem(request: HTTPConnection, error: Exception) -> Response:
    """Answer a `Problem`; a handler of exceptions for Starlette."""
    del request
    assert isinstance(error, Problem)  # noqa: S101  # registered for nothing else
    return problem_response(error)


async def answer_http_error(request: HTTPConnection, error: Exception) -> Response:
    """Answer what Starlette itself refuses (no such route, no such method) as a problem."""
    assert isinstance(error, HTTPException)  # noqa: S101  # registered for nothing else
    path = request.url.path
    detail = {
        404: f"nothing is at {path}",
        405: f"{path} knows no {request.scope.get('method', 'such method')}",
    }.get(error.status_code, error.detail)
    return problem_response(Problem(error.status_code, detail, error.headers))


async def answer_error(request: HTTPConnection, error: Exception) -> Response:
    """Answer what nobody expected: that it went wrong, and nothing of where or why."""
    del request, error
    return problem_response(Problem(500, "the server failed; its log says why"))
