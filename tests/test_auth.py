"""Who may do what: every route, with no key, a client's and a reviewer's. Sessions are in test_sign_in.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.requests import HTTPConnection

from service.auth import LOCAL, Caller, Door, Guard, Role, expanded
from service.errors import Forbidden, Invalid, Unauthorized
from tests.serving import CLIENT, REVIEWER, URL, finished, make_app, make_settings, post_batch, serving

NOBODY, EITHER = frozenset({"none", "client", "reviewer"}), frozenset({"client", "reviewer"})
CLIENTS, REVIEWERS = frozenset({"client"}), frozenset({"reviewer"})
LEADS: frozenset[str] = frozenset()  # nobody who has a key of the settings

# Who gets past the door. A route that is missing here fails the test below.
MAY: dict[tuple[str, str], frozenset[str]] = {
    ("GET", "/healthz"): NOBODY,
    ("GET", "/readyz"): NOBODY,
    ("GET", "/metrics"): EITHER,
    ("GET", "/v1/schemas"): EITHER,
    ("GET", "/v1/schemas/{name}"): EITHER,
    ("GET", "/v1/prompts"): EITHER,
    ("GET", "/v1/prompts/{name}"): EITHER,
    ("POST", "/v1/schemas"): CLIENTS,
    ("POST", "/v1/annotate"): CLIENTS,
    ("POST", "/v1/batches"): CLIENTS,
    ("GET", "/v1/batches"): CLIENTS,
    ("GET", "/v1/batches/{batch}"): CLIENTS,
    ("GET", "/v1/batches/{batch}/results"): CLIENTS,
    ("GET", "/v1/batches/{batch}/events"): CLIENTS,
    ("GET", "/v1/batches/{batch}/agreement"): CLIENTS,
    ("POST", "/v1/batches/{batch}/cancel"): CLIENTS,
    ("POST", "/v1/gold/{name}"): CLIENTS,
    ("GET", "/v1/gold"): CLIENTS,
    ("GET", "/v1/gold/{name}"): CLIENTS,
    ("GET", "/v1/gold/{name}/versions"): CLIENTS,
    ("DELETE", "/v1/gold/{name}/{id}"): CLIENTS,
    ("GET", "/v1/export"): CLIENTS,
    ("GET", "/v1/audit"): EITHER,
    ("POST", "/v1/evaluations"): CLIENTS,
    ("GET", "/v1/evaluations"): CLIENTS,
    ("GET", "/v1/evaluations/{evaluation}"): CLIENTS,
    ("GET", "/v1/evaluations/{evaluation}/report"): CLIENTS,
    ("POST", "/v1/evaluations/{evaluation}/cancel"): CLIENTS,
    ("POST", "/v1/standards"): CLIENTS,
    ("GET", "/v1/standards"): EITHER,
    ("POST", "/v1/standards/{standard}/restore"): CLIENTS,
    ("POST", "/v1/reviews/next"): REVIEWERS,
    ("GET", "/v1/reviews"): REVIEWERS,
    ("POST", "/v1/reviews/{item}/resolve"): REVIEWERS,
    ("POST", "/v1/reviews/{item}/release"): REVIEWERS,
    ("POST", "/v1/reviews/{item}/renew"): REVIEWERS,
    ("POST", "/v1/reviews/{item}/flag"): REVIEWERS,
    ("POST", "/v1/reviews/undo"): REVIEWERS,
    ("GET", "/v1/reviews/progress"): REVIEWERS,
    ("GET", "/v1/reviews/{item}/similar"): REVIEWERS,
    ("POST", "/v1/reviews/bulk"): REVIEWERS,
    ("GET", "/v1/quality"): LEADS,
    ("GET", "/v1/adjudications"): LEADS,
    ("POST", "/v1/adjudications/{item}/claim"): LEADS,
    ("POST", "/v1/adjudications/{item}/release"): LEADS,
    ("POST", "/v1/adjudications/{item}/resolve"): LEADS,
    ("POST", "/v1/gold/{name}/from-reviews"): LEADS,
}
HEADERS: dict[str, dict[str, str]] = {
    "none": {},
    "client": {"Authorization": f"Bearer {CLIENT}"},
    "reviewer": {"Authorization": f"Bearer {REVIEWER}"},
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("guarded")
    keys: dict[str, Any] = {"client_keys": (f"shop:{CLIENT}",), "reviewer_keys": (f"ada:{REVIEWER}",)}
    with serving(folder, host="0.0.0.0", **keys) as client:
        yield client


def identify(door: Door, headers: dict[str, str], method: str = "GET") -> Caller:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": "/v1/batches", "headers": raw}
    return asyncio.run(door.identify(HTTPConnection(scope)))


def routes(client: TestClient) -> set[tuple[str, str]]:
    paths = client.get("/openapi.json").json()["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


def test_the_matrix_names_every_route(guarded: TestClient) -> None:
    assert routes(guarded) == MAY.keys()


@pytest.mark.parametrize("who", sorted(NOBODY))
@pytest.mark.parametrize(("method", "path"), sorted(MAY))
def test_a_route_opens_to_whom_it_should_and_to_nobody_else(
    guarded: TestClient, method: str, path: str, who: str
) -> None:
    response = guarded.request(
        method, path.format(batch="b", name="n", id="i", item=1, evaluation="e", standard=1), headers=HEADERS[who]
    )
    if who in MAY[method, path]:
        assert response.status_code not in (401, 403)
    else:
        assert response.status_code == (401 if who == "none" else 403)
        assert response.json()["error"] == ("unauthorized" if who == "none" else "forbidden")
        assert ("www-authenticate" in response.headers) == (who == "none")


@pytest.mark.parametrize(
    "value",
    [
        "Bearer",
        "Bearer ",
        f"Bearer {CLIENT}x",
        f"Bearer {CLIENT[:-1]}",
        f"Basic {CLIENT}",
        CLIENT,
        f"Bearer shop:{CLIENT}",
    ],
)
def test_what_is_almost_a_key_is_none(guarded: TestClient, value: str) -> None:
    assert guarded.get("/v1/batches", headers={"Authorization": value}).status_code == 401
    assert guarded.get("/v1/batches", headers={b"Authorization": b"Bearer \xff\xfe" * 9}).status_code == 401


@pytest.mark.parametrize(
    "path", ["/v1/nowhere", "/v1/batches/", "/v1//batches", "/v1/../v1/batches", "/v1/%2e%2e/metrics"]
)
def test_tricks_with_the_path_open_nothing(guarded: TestClient, path: str) -> None:
    assert guarded.get(path).status_code in (401, 404)
    assert guarded.get(path, headers={"Host": "127.0.0.1", "X-Forwarded-For": "127.0.0.1"}).status_code in (401, 404)


def test_nothing_is_read_from_who_has_no_key(tmp_path: Path) -> None:
    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(_message: Any) -> None:
        raise AssertionError("the route was reached")

    guard = Guard(send, Door(make_settings(tmp_path, client_keys=(CLIENT,))))  # type: ignore[arg-type]
    scope = {"type": "http", "method": "POST", "path": "/v1/batches", "headers": []}
    with pytest.raises(Unauthorized):
        asyncio.run(guard(scope, receive, send))


def test_the_name_of_a_key_is_what_is_recorded(guarded: TestClient) -> None:
    guarded.headers.update(HEADERS["client"])
    batch = post_batch(guarded, "I doubt it")
    finished(guarded, batch)
    guarded.headers.update(HEADERS["reviewer"])
    task = guarded.post("/v1/reviews/next").json()
    answer: dict[str, Any] = {"fence": task["fence"], "accept": True}
    assert guarded.post(f"/v1/reviews/{task['item']}/resolve", json=answer).json()["reviewer"] == "ada"
    assert guarded.get("/v1/reviews?reviewer=ada").json()["rows"][0]["reviewer"] == "ada"
    del guarded.headers["Authorization"]


def test_one_key_may_have_both_roles_and_one_without_a_name_gets_one(tmp_path: Path) -> None:
    both = "one-key-for-everything"
    door = Door(make_settings(tmp_path, client_keys=(both, CLIENT), reviewer_keys=(f"ada:{both}",)))
    everything = identify(door, {"authorization": f"bearer {both}"})
    assert (everything.name, everything.roles) == ("ada", frozenset({Role.client, Role.reviewer}))
    client = identify(door, {"authorization": f"Bearer  {CLIENT} "})
    assert client.name.startswith("key-")
    assert CLIENT not in client.name
    with pytest.raises(Unauthorized):
        identify(door, {})


def test_roles_imply_others(tmp_path: Path) -> None:
    assert expanded(["lead"]) == {Role.lead, Role.reviewer}
    assert expanded(["admin"]) == set(Role)
    assert expanded(["client", "reviewer"]) == {Role.client, Role.reviewer}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"client_keys": ("short",)}, "CONCORD_CLIENT_KEYS, entry 1"),
        ({"reviewer_keys": (REVIEWER, "ada:")}, "CONCORD_REVIEWER_KEYS, entry 2"),
        ({"client_keys": (f":{CLIENT}",)}, "a name has"),
        ({"client_keys": ("x" * 15,)}, "at least 16"),
        ({"client_keys": ("schlüssel-schlüssel",)}, "ASCII"),
        ({"client_keys": (f"shop:{CLIENT}",), "reviewer_keys": (f"ada:{CLIENT}",)}, "two names"),
        ({"prompt": "none.v1"}, "CONCORD_PROMPT"),
    ],
)
def test_a_service_with_keys_that_cannot_be_does_not_start(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(Invalid, match=says) as raised:
        make_app(tmp_path, **changes)
    assert CLIENT not in str(raised.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_needs_no_key(tmp_path: Path, host: str) -> None:
    own = {"host": "127.0.0.1:8300"}
    assert identify(Door(make_settings(tmp_path, host=host)), own) == LOCAL


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "concord.example", "", "127.0.0.1.example"])
def test_without_keys_a_service_that_others_reach_is_closed(tmp_path: Path, host: str) -> None:
    with pytest.raises(Unauthorized):
        identify(Door(make_settings(tmp_path, host=host)), {"host": "127.0.0.1:8300"})


@pytest.mark.parametrize(
    ("headers", "good"),
    [
        ({"host": "127.0.0.1:8300"}, True),
        ({"host": "localhost"}, True),
        ({"host": "[::1]:8300"}, True),
        ({"host": "127.0.0.1:8300", "origin": "http://127.0.0.1:8300", "sec-fetch-site": "same-origin"}, True),
        ({"host": "attacker.example:8300"}, False),
        ({"host": "127.0.0.1.attacker.example"}, False),
        ({"host": ""}, False),
        ({}, False),
        ({"host": "127.0.0.1:8300", "origin": "https://attacker.example"}, False),
        ({"host": "127.0.0.1:8300", "origin": "null"}, False),
        ({"host": "127.0.0.1:8300", "origin": "http://[127.0.0.1:8300"}, False),
        ({"host": "[::1"}, False),
        ({"host": "127.0.0.1:8300", "authorization": "Basic aaaa"}, True),
        ({"host": "127.0.0.1:8300", "origin": "http://127.0.0.1:9999"}, False),
        ({"host": "127.0.0.1:8300", "sec-fetch-site": "cross-site"}, False),
    ],
)
def test_without_keys_no_other_web_page_is_answered(tmp_path: Path, headers: dict[str, str], good: bool) -> None:
    door = Door(make_settings(tmp_path))
    if good:
        assert identify(door, headers) == LOCAL
    else:
        with pytest.raises(Forbidden):
            identify(door, headers)


def test_an_open_service_refuses_a_key_that_nobody_has(tmp_path: Path) -> None:
    with pytest.raises(Unauthorized):
        identify(Door(make_settings(tmp_path)), {"host": "127.0.0.1:8300", "authorization": f"Bearer {CLIENT}"})


def test_without_keys_the_service_says_to_whom_it_answers(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        assert client.get("/v1/batches").status_code == 200
        response = client.get("/v1/batches", headers={"Host": "attacker.example"})
        assert (response.status_code, response.json()["error"]) == (403, "forbidden")
        assert client.get("/healthz", headers={"Host": "attacker.example"}).status_code == 200
        assert URL.endswith("8300")
