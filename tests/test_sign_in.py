"""Signing in with a browser: cookies, tokens, pauses, and where one is sent afterwards."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service import accounts, db
from service.auth import own_path
from service.models import Account, Role
from tests.serving import make_app, until

HTTP, HTTPS = "http://desk.example", "https://desk.example"
_names = (f"ada{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """One that listens to everybody and has no keys: nobody gets in but by an account."""
    app = make_app(tmp_path_factory.mktemp("signed"), host="0.0.0.0", workers=0)
    with TestClient(app, base_url=HTTP) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        yield client


def account(service: TestClient, *roles: Role, changed: bool = True) -> tuple[str, str]:
    """Name and password of a new account."""
    with db.begin(service.app.state.running.database) as session:  # type: ignore[attr-defined]
        name = next(_names)
        _, password = accounts.add(session, name, roles or (Role.reviewer,), who="tests")
        if changed:
            accounts.set_password(session, name, accounts.hashed(password), who=name)
    return name, password


def browser(service: TestClient, url: str = HTTP) -> TestClient:
    """Another browser: no cookies, and every request says that it comes from a page of the service."""
    headers = {"Origin": url, "Accept": "text/html"}
    return TestClient(service.app, base_url=url, headers=headers, follow_redirects=False)


def sign_in(client: TestClient, name: str, password: str, **more: str) -> Any:
    return client.post("/sign-in", data={"name": name, "password": password, **more})


def signed_in(service: TestClient, *roles: Role, url: str = HTTP) -> tuple[TestClient, str]:
    """A browser in which a new account has signed in, and the account's name."""
    client = browser(service, url)
    name, password = account(service, *roles)
    assert sign_in(client, name, password).status_code == 303
    return client, name


def token(client: TestClient) -> str:
    """What the session's pages carry."""
    found = re.search(r'<meta name="csrf" content="([^"]+)">', client.get("/password").text)
    assert found
    return found[1]


def test_a_page_sends_who_is_not_known_to_sign_in_and_back_again(service: TestClient) -> None:
    client = browser(service)
    response = client.get("/review?batch=b&reason=audit")
    assert response.status_code == 303
    where = response.headers["location"]
    assert where == "/sign-in?next=%2Freview%3Fbatch%3Db%26reason%3Daudit"
    page = client.get(where).text
    assert 'value="/review?batch=b&amp;reason=audit"' in page
    name, password = account(service)
    answer = sign_in(client, name, password, next="/review?batch=b&reason=audit")
    assert (answer.status_code, answer.headers["location"]) == (303, "/review?batch=b&reason=audit")
    assert client.get("/").headers["location"] == "/review"


def test_the_api_says_401_in_json_whatever_is_accepted(service: TestClient) -> None:
    response = browser(service).get("/v1/reviews")
    assert (response.status_code, response.json()["error"]) == (401, "unauthorized")
    assert browser(service).get("/").headers["location"] == "/sign-in"


@pytest.mark.parametrize(("url", "start", "secure"), [(HTTP, "concord=", False), (HTTPS, "__Host-concord=", True)])
def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(
    service: TestClient, url: str, start: str, secure: bool
) -> None:
    client = browser(service, url)
    cookie = sign_in(client, *account(service)).headers["set-cookie"]
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert cookie.startswith(start)
    assert {"httponly", "samesite=strict", "path=/", "max-age=43200"} <= parts
    assert ("secure" in parts) == secure
    assert not any(part.startswith("domain") for part in parts)
    assert client.get("/v1/reviews").status_code == 200
