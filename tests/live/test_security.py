"""Who is answered: this machine alone, or who has the token; never another site's page."""

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from streamvae import UsageError
from streamvae.live import create_app
from streamvae.live._security import Guard, checked_token, is_loopback
from streamvae.testing import TagCodec

from .serving import npy, served

TOKEN = "correct-horse-battery"  # noqa: S105  # no secret


async def answer(request: Request) -> JSONResponse:
    """The guarded app."""
    return JSONResponse({"path": request.url.path})


INNER = Starlette(
    routes=[Route(path, answer, methods=["GET", "POST"]) for path in ("/", "/jobs", "/healthz")]
)


def client(
    token: str | None = None,
    *,
    peer: str = "127.0.0.1",
    base: str = "http://127.0.0.1:8000",
    hosts: tuple[str, ...] = (),
) -> httpx.AsyncClient:
    """A client of the guarded app."""
    transport = httpx.ASGITransport(Guard(INNER, token, hosts), client=(peer, 5000))
    return httpx.AsyncClient(transport=transport, base_url=base)


@pytest.mark.parametrize(
    ("base", "allowed"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://127.1.2.3", True),
        ("http://localhost:8000", True),
        ("http://LOCALHOST.:8000", True),
        ("http://[::1]:8000", True),
        ("http://evil.example:8000", False),
        ("http://localhost.evil.example", False),
        ("http://10.0.0.1", False),
        ("http://proxied.example", True),
    ],
)
async def test_without_a_token_only_this_machine_s_names(base: str, allowed: bool) -> None:
    """A name that another site has resolve to 127.0.0.1 is refused: no DNS rebinding."""
    async with client(base=base, hosts=("proxied.example",)) as browser:
        assert (await browser.get("/jobs")).status_code == (200 if allowed else 403)


@pytest.mark.parametrize("host", ["", "[", "]:::", "a b"])
async def test_a_host_that_is_none_is_refused(host: str) -> None:
    """A Host header that cannot be read is refused, and breaks nothing."""
    async with client() as browser:
        response = await browser.get("/jobs", headers={"Host": host})
        assert response.status_code == 403
        assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("peer", "status"), [("127.0.0.1", 200), ("::1", 200), ("10.0.0.2", 403), ("fe80::1%eth0", 403)]
)
async def test_without_a_token_only_this_machine_asks(peer: str, status: int) -> None:
    """Whoever binds the app to the world without a token serves nobody out there."""
    async with client(peer=peer) as other:
        assert (await other.get("/jobs")).status_code == status
        assert (await other.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:8000"}, 200),
        ({"Origin": "http://127.0.0.1:9000"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
async def test_another_site_s_page_changes_nothing(headers: dict[str, str], status: int) -> None:
    """A form or a script of another site cannot post, though it runs in this machine's browser."""
    async with client() as browser:
        assert (await browser.post("/jobs", headers=headers)).status_code == status


@pytest.mark.parametrize(
    ("headers", "query", "status"),
    [
        ({}, "", 401),
        ({"Authorization": f"Bearer {TOKEN}"}, "", 200),
        ({"Authorization": f"bearer  {TOKEN} "}, "", 200),
        ({"Authorization": f"Bearer {TOKEN}x"}, "", 401),
        ({"Authorization": "Bearer "}, "", 401),
        ({"Authorization": f"Basic {TOKEN}"}, "", 401),
        ({"Authorization": b"Bearer \xff\xfe"}, "", 401),
        ({}, f"?token={TOKEN}", 200),
        ({}, "?token=", 401),
        ({}, "?token=%ff%00", 401),
        ({"Cookie": f"streamvae={TOKEN}"}, "", 401),
    ],
)
async def test_with_a_token_every_request_needs_it(
    headers: dict[str, str | bytes], query: str, status: int
) -> None:
    """Bearer, or the query of a GET; anything else is 401 and says how. Nobody's address counts."""
    async with client(TOKEN, peer="10.0.0.2", base="http://far.example") as far:
        response = await far.get("/jobs" + query, headers=headers)
        assert response.status_code == status
        if status == 401:
            assert response.headers["www-authenticate"].startswith("Bearer")
        assert (await far.get("/healthz")).status_code == 200


async def test_a_token_in_the_address_changes_nothing() -> None:
    """A link with the token does not post: that needs the header or the cookie."""
    async with client(TOKEN) as browser:
        assert (await browser.post(f"/jobs?token={TOKEN}")).status_code == 401
        bearer = {"Authorization": f"Bearer {TOKEN}", "Origin": "https://evil.example"}
        assert (await browser.post("/jobs", headers=bearer)).status_code == 200


async def test_the_page_s_address_gives_a_cookie() -> None:
    """Opening /?token= sets a cookie that is not the token, and leaves it out of the address."""
    async with client(TOKEN, base="http://far.example") as browser:
        opened = await browser.get(f"/?theme=dark&token={TOKEN}")
        assert (opened.status_code, opened.headers["location"]) == (303, "/?theme=dark")
        cookie = opened.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert TOKEN not in cookie
        assert (await browser.get("/jobs")).status_code == 200
        assert (await browser.post("/jobs")).status_code == 200
        evil = {"Origin": "https://evil.example"}
        assert (await browser.post("/jobs", headers=evil)).status_code == 403
        assert (await browser.get("/?token=another-one-of-16")).status_code == 401
    async with client(TOKEN, base="https://far.example") as browser:
        assert "secure" in (await browser.get(f"/?token={TOKEN}")).headers["set-cookie"].lower()
    async with client(TOKEN + "2", base="http://far.example") as browser:
        name, _, value = opened.headers["set-cookie"].partition(";")[0].partition("=")
        stolen = await browser.get("/jobs", headers={"Cookie": f"{name}={value}"})
        assert stolen.status_code == 401


async def test_mounted_elsewhere_it_guards_the_same() -> None:
    """Under another root the cookie is for that root, and the probe is still open."""
    app = Starlette(routes=[Mount("/vae", Guard(INNER, TOKEN))])
    transport = httpx.ASGITransport(app, client=("10.0.0.2", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://far.example") as browser:
        opened = await browser.get(f"/vae/?token={TOKEN}")
        assert (opened.status_code, opened.headers["location"]) == (303, "/vae/")
        assert "path=/vae/" in opened.headers["set-cookie"].lower()
        assert (await browser.get("/vae/jobs")).status_code == 200
        assert (await browser.get("/vae/healthz")).status_code == 200


async def test_every_response_is_careful() -> None:
    """Each response says what browsers need to hear, refusals too, and no site may read it."""
    async with client() as browser:
        for response in (await browser.get("/"), await browser.get("/", headers={"Host": "x"})):
            assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["cross-origin-resource-policy"] == "same-origin"
            assert "access-control-allow-origin" not in response.headers


async def test_websockets_are_guarded_before_they_open() -> None:
    """A handshake without the token, or from another site's page, is refused with its reason."""
    app = create_app(TagCodec(), token=TOKEN)
    async with served(app) as server:
        url = f"ws://127.0.0.1:{server.port}/live"
        own = f"http://127.0.0.1:{server.port}"
        for address, origin, status in (
            (url, None, 401),
            (f"{url}?token={TOKEN}", "https://evil.example", 403),
            (f"ws://127.0.0.1:{server.port}/jobs/none?token={TOKEN}", own, 404),
        ):
            with pytest.raises(InvalidStatus) as caught:
                async with connect(address, origin=origin):
                    pass
            response = caught.value.response
            assert response.status_code == status
            assert response.headers["content-type"] == "application/problem+json"
        async with connect(f"{url}?token={TOKEN}", origin=own) as socket:
            await socket.send(npy(1))
            await socket.send('{"end": true}')
            assert [message async for message in socket]


@pytest.mark.parametrize("token", ["short", "with a space in it", "ünïcödé-ünïcödé", "x" * 15])
def test_a_token_must_be_a_secret(token: str) -> None:
    """One that could be guessed, or that no header can carry, is refused."""
    with pytest.raises(UsageError, match="token"):
        checked_token(token)
    assert checked_token(None) is None


def test_what_is_loopback() -> None:
    """Only this machine's own names and addresses are."""
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]")))
    assert not any(map(is_loopback, ("", "0.0.0.0", "::", "10.0.0.1", "localhost.x")))  # noqa: S104
