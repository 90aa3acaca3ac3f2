"""People who sign in, and a service that nobody gets into but by an account. For tests only."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher

from service import accounts, db
from service.models import Role
from tests.serving import make_app, until

HTTP, HTTPS = "http://desk.example", "https://desk.example"
_names = (f"ada{number}" for number in itertools.count())


@pytest.fixture
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords are not worth guessing here, and a hash is worth nothing."""
    cheap = PasswordHash((Argon2Hasher(time_cost=1, memory_cost=64, parallelism=1),))
    monkeypatch.setattr(accounts, "_passwords", cheap)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service that listens to everybody and has no keys."""
    app = make_app(tmp_path_factory.mktemp("desk"), host="0.0.0.0", workers=0)
    with TestClient(app, base_url=HTTP) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        yield client


def account(desk: TestClient, *roles: Role, changed: bool = True) -> tuple[str, str]:
    """Name and password of a new account."""
    with db.begin(desk.app.state.running.database) as session:  # type: ignore[attr-defined]
        name = next(_names)
        _, password = accounts.add(session, name, roles or (Role.reviewer,), who="tests")
        if changed:
            accounts.set_password(session, name, accounts.hashed(password), who=name)
    return name, password


def browser(desk: TestClient, url: str = HTTP) -> TestClient:
    """Another browser: no cookies, and every request says that it comes from a page of the service."""
    headers = {"Origin": url, "Accept": "text/html"}
    return TestClient(desk.app, base_url=url, headers=headers, follow_redirects=False)


def sign_in(client: TestClient, name: str, password: str, **more: str) -> Any:
    return client.post("/sign-in", data={"name": name, "password": password, **more})


def signed_in(desk: TestClient, *roles: Role, url: str = HTTP) -> tuple[TestClient, str]:
    """A browser in which a new account has signed in, and the account's name."""
    client = browser(desk, url)
    name, password = account(desk, *roles)
    assert sign_in(client, name, password).status_code == 303
    return client, name


def token(client: TestClient) -> str:
    """What the session's pages carry."""
    found = re.search(r'<meta name="csrf" content="([^"]+)">', client.get("/password").text)
    assert found
    return found[1]
