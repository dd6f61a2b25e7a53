"""The OpenAPI document is what the app does, and nothing it allows makes the app fail."""

import re
from pathlib import Path

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CHECKS as KNOWN
from schemathesis.checks import load_all_checks
from starlette.routing import Route

from streamvae.live import create_app
from streamvae.testing import TagCodec

from .serving import npy, served, threaded

load_all_checks()
CHECKS = KNOWN.get_by_names([
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "use_after_free",
])


def documented(paths: dict) -> set[tuple[str, str]]:
    """Paths and methods of a document."""
    return {(path, method.upper()) for path, item in paths.items() for method in item}


async def test_every_route_is_documented_and_every_documented_route_is_there() -> None:
    """Paths and methods of the document are those of the app, to the last one."""
    app = create_app(TagCodec())
    there = {
        (route.path, method)
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    async with served(app) as server:
        told = (await server.client.get("/openapi.json")).json()
    assert told["openapi"].startswith("3.1")
    assert documented(told["paths"]) == there


@pytest.mark.parametrize("token", [None, "a-token-of-the-tests"])
async def test_what_is_answered_is_as_documented(token: str | None, tmp_path: Path) -> None:
    """Jobs in each state, lists and problems have the shape that the document gives them."""
    app = create_app(TagCodec(), token=token, folder=tmp_path)
    async with served(app) as server:
        if token is not None:
            server.client.headers["Authorization"] = f"Bearer {token}"
        told = (await server.client.get("/openapi.json")).json()
        assert ("security" in told) == (token is not None)

        def check(name: str, instance: object) -> None:
            schema = {"$ref": f"#/components/schemas/{name}", "components": told["components"]}
            jsonschema_rs.validate(schema, instance)

        waiting = (await server.client.post("/decode?start=viewer", content=npy())).json()
        check("Job", waiting)
        check("Job", await server.over(await server.job()))
        check("Problem", (await server.client.get("/jobs/none")).json())
        check("Problem", (await server.client.post("/decode", content=b"x")).json())
        references = set(re.findall(r'"#/components/schemas/(\w+)"', str(told).replace("'", '"')))
        assert references == set(told["components"]["schemas"])


def operations(url: str) -> list[schemathesis.APIOperation]:
    """All that the document of an app has."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    return [each.ok() for each in schema.get_all_operations()]


BOUNDED = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def attack(operation: schemathesis.APIOperation, url: str, ids: list[str]) -> None:
    """Right and wrong requests to one operation, of no job and of those that are there."""

    @BOUNDED
    @given(st.data())
    def one(data: st.DataObject) -> None:
        mode = data.draw(st.sampled_from(list(schemathesis.GenerationMode)))
        known = {"job_id": data.draw(st.sampled_from(ids))} if data.draw(st.booleans()) else None
        known = known if "{job_id}" in operation.path else None
        case = data.draw(operation.as_strategy(mode, path_parameters=known))
        case.call_and_validate(base_url=url, checks=CHECKS, timeout=10)

    one()


def test_nothing_that_the_document_allows_makes_the_app_fail() -> None:
    """Schemathesis, right and wrong requests to every operation: no 500, no answer undocumented."""
    with threaded(create_app(TagCodec(), max_streams=2, max_waiting=6)) as url:
        for operation in operations(url):
            with httpx.Client(base_url=url) as client:
                ids = [client.post("/decode", content=npy()).json()["id"] for _ in range(2)]
            attack(operation, url, ids)
