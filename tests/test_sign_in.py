"""Signing in with a browser: cookies, tokens, pauses, and where one is sent afterwards."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from service import accounts, db, web
from service.auth import own_path
from service.models import Role
from tests.people import HTTP, HTTPS, account, browser, sign_in, signed_in, token
from tests.serving import make_app

pytestmark = pytest.mark.usefixtures("quick_hashes")


def test_a_page_sends_who_is_not_known_to_sign_in_and_back_again(desk: TestClient) -> None:
    client = browser(desk)
    response = client.get("/review?batch=b&reason=audit")
    assert response.status_code == 303
    where = response.headers["location"]
    assert where == "/sign-in?next=%2Freview%3Fbatch%3Db%26reason%3Daudit"
    page = client.get(where).text
    assert 'value="/review?batch=b&amp;reason=audit"' in page
    name, password = account(desk)
    answer = sign_in(client, name, password, next="/review?batch=b&reason=audit")
    assert (answer.status_code, answer.headers["location"]) == (303, "/review?batch=b&reason=audit")
    assert client.get("/").headers["location"] == "/review"


def test_every_page_but_the_sign_in_is_behind_the_door(desk: TestClient) -> None:
    client = browser(desk)
    pages = [route for router in web.routers for route in router.routes if isinstance(route, APIRoute)]
    assert len(pages) > 10
    for page in pages:
        path = re.sub(r"\{.*?\}", "1", page.path)
        if path == "/sign-in":
            continue
        for method in page.methods:
            response = client.request(method, path)
            assert response.status_code == (303 if method == "GET" else 401), (method, path)
            assert method != "GET" or response.headers["location"].startswith("/sign-in"), path


def test_the_api_says_401_in_json_whatever_is_accepted(desk: TestClient) -> None:
    response = browser(desk).get("/v1/reviews")
    assert (response.status_code, response.json()["error"]) == (401, "unauthorized")
    assert browser(desk).get("/").headers["location"] == "/sign-in"


@pytest.mark.parametrize(("url", "start", "secure"), [(HTTP, "concord=", False), (HTTPS, "__Host-concord=", True)])
def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(
    desk: TestClient, url: str, start: str, secure: bool
) -> None:
    client = browser(desk, url)
    cookie = sign_in(client, *account(desk)).headers["set-cookie"]
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert cookie.startswith(start)
    assert {"httponly", "samesite=strict", "path=/", "max-age=43200"} <= parts
    assert ("secure" in parts) == secure
    assert not any(part.startswith("domain") for part in parts)
    assert client.get("/v1/reviews").status_code == 200


def test_what_changes_anything_names_the_token_and_comes_from_a_page_of_this_host(desk: TestClient) -> None:
    client, _ = signed_in(desk)
    good = {"X-CSRF-Token": token(client)}
    assert client.post("/v1/reviews/next", json={}, headers=good).status_code == 204
    refused: list[dict[str, str]] = [
        {},
        {"X-CSRF-Token": ""},
        {"X-CSRF-Token": good["X-CSRF-Token"] + "x"},
        good | {"Origin": "https://attacker.example"},
        good | {"Origin": "null"},
        good | {"Origin": f"{HTTP}.attacker.example"},
        good | {"Sec-Fetch-Site": "cross-site"},
        good | {"Sec-Fetch-Site": "same-site"},
    ]
    for headers in refused:
        response = client.post("/v1/reviews/next", json={}, headers=headers)
        assert (response.status_code, response.json()["error"]) == (403, "forbidden"), headers
    del client.headers["Origin"]
    assert client.post("/v1/reviews/next", json={}, headers=good).status_code == 403
    assert client.post("/v1/reviews/next", json={}, headers=good | {"Sec-Fetch-Site": "same-origin"}).status_code == 204


def test_a_form_names_the_token_in_a_field_and_the_api_takes_no_forms(desk: TestClient) -> None:
    client, _ = signed_in(desk)
    other, _ = signed_in(desk)
    for fields in ({}, {"csrf": ""}, {"csrf": token(other)}, {"csrf": [token(client), token(client)]}):
        response = client.post("/sign-out", data=fields)
        assert response.status_code == 403
        assert "<h1>" in response.text  # an error of a page is a page
    many = "&".join(f"a{number}=1" for number in range(2000)) + f"&csrf={token(client)}"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post("/sign-out", content=many, headers=form).status_code == 403
    assert client.post("/sign-out", files={"csrf": token(client)}).status_code == 403
    assert client.post("/sign-out", content=b"x" * 1_100_000, headers=form).status_code == 413
    assert client.post("/v1/reviews/next", data={"csrf": token(client)}).status_code == 403
    assert client.get("/v1/reviews").status_code == 200
    assert client.post("/sign-out", data={"csrf": token(client)}).status_code == 303
    assert client.get("/v1/reviews").status_code == 401


def test_a_page_says_where_its_forms_come_from(desk: TestClient) -> None:
    client, _ = signed_in(desk)
    response = client.get("/password")
    assert response.headers["referrer-policy"] == "same-origin"  # else browsers send `Origin: null` with a form
    assert response.headers["cache-control"] == "no-store"
    assert "'unsafe" not in response.headers["content-security-policy"]


def test_another_site_signs_nobody_in(desk: TestClient) -> None:
    client = browser(desk)
    name, password = account(desk)
    for origin in ("https://attacker.example", "null"):
        answer = client.post("/sign-in", data={"name": name, "password": password}, headers={"Origin": origin})
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers


def test_a_session_that_was_planted_is_not_the_one_that_is_signed_in(desk: TestClient) -> None:
    """Fixation: what the browser had before plays no part in the session that begins."""
    mallory, _ = signed_in(desk)
    planted, its_token = mallory.cookies["concord"], token(mallory)
    client = browser(desk)
    client.cookies.set("concord", planted, domain="desk.example", path="/")
    name, password = account(desk)
    assert sign_in(client, name, password).status_code == 303
    assert client.cookies["concord"] != planted
    assert token(client) != its_token
    assert name in client.get("/password").text
    assert name not in mallory.get("/password").text


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s[:-2] + ("A" if s[-2] != "A" else "B") + s[-1],  # the last letter holds two bits that say nothing
        lambda s: "x" * 2000,
        str.swapcase,
    ],
)
def test_a_cookie_that_was_changed_is_none(desk: TestClient, change: Any) -> None:
    client, _ = signed_in(desk)
    value = client.cookies["concord"]
    client.cookies.clear()
    client.cookies.set("concord", change(value), domain="desk.example", path="/")
    assert client.get("/v1/reviews").status_code == 401


def test_a_session_ends_by_itself(desk: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = signed_in(desk)
    began = int(time.time())
    # The service's clock alone: the browser would drop its cookie by itself.
    clock = "itsdangerous.timed.TimestampSigner.get_timestamp"
    monkeypatch.setattr(clock, lambda _: began + 12 * 3600 - 5)
    assert client.get("/v1/reviews").status_code == 200
    monkeypatch.setattr(clock, lambda _: began + 12 * 3600 + 5)
    response = client.get("/v1/reviews")
    assert (response.status_code, response.json()["detail"]["message"]) == (401, "the session is over: sign in again")
    assert client.get("/review").headers["location"].startswith("/sign-in")


def test_signing_out_everywhere_ends_all_sessions_and_a_new_password_all_others(desk: TestClient) -> None:
    name, password = account(desk)
    clients = [browser(desk) for _ in range(3)]
    for client in clients:
        sign_in(client, name, password)
    fields = {"csrf": token(clients[0]), "old": password, "new": "a word for a door", "again": "a word for a door"}
    answer = clients[0].post("/password", data=fields)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert [client.get("/v1/reviews").status_code for client in clients] == [200, 401, 401]
    assert sign_in(clients[1], name, password).status_code == 401
    assert sign_in(clients[1], name, "a word for a door").status_code == 303
    clients[1].post("/sign-out", data={"csrf": token(clients[1]), "everywhere": "yes"})
    assert [client.get("/v1/reviews").status_code for client in clients] == [401, 401, 401]


@pytest.mark.parametrize(
    ("old", "new", "again", "says"),
    [
        ("wrong", "a word for a door", "a word for a door", "not right"),
        (None, "a word for a door", "another word for it", "expected the same"),
        (None, "short", "short", "12 to 200"),
        (None, None, None, "another one than until now"),
    ],
)
def test_a_new_password_is_checked(
    desk: TestClient, old: str | None, new: str | None, again: str | None, says: str
) -> None:
    client = browser(desk)
    name, password = account(desk)
    sign_in(client, name, password)
    fields = {"csrf": token(client), "old": old or password, "new": new or password, "again": again or password}
    response = client.post("/password", data=fields)
    assert response.status_code in (401, 422)
    assert says in response.text
    assert sign_in(browser(desk), name, password).status_code == 303


def test_a_given_password_is_good_for_nothing_but_its_change(desk: TestClient) -> None:
    client = browser(desk)
    name, password = account(desk, Role.admin, changed=False)
    assert sign_in(client, name, password, next="/accounts").status_code == 303
    for path in ("/", "/accounts", "/review"):
        assert client.get(path).headers["location"] == "/password"
    assert client.get("/v1/reviews").status_code == 403
    assert client.post("/accounts/disable", data={"csrf": token(client), "name": name}).status_code == 403
    fields = {"csrf": token(client), "old": password, "new": "a word for a door", "again": "a word for a door"}
    assert client.post("/password", data=fields).status_code == 303
    assert client.get("/accounts").status_code == 200


def test_guesses_have_to_wait_and_no_password_is_looked_at_meanwhile(desk: TestClient) -> None:
    client = browser(desk)
    name, password = account(desk)
    for _ in range(accounts.FREE_FAILURES):
        assert sign_in(client, name, "a wrong guess").status_code == 401
    assert sign_in(client, name, "a wrong guess").status_code == 401
    refused = sign_in(client, name, password)
    assert refused.status_code == 429
    assert "wait" in refused.text
    assert sign_in(client, *account(desk)).status_code == 303  # nobody else waits


def test_a_wrong_name_and_a_wrong_password_are_told_alike(desk: TestClient) -> None:
    client = browser(desk)
    name, _ = account(desk)
    texts = {sign_in(client, who, "a wrong guess").text.replace(who, "") for who in (name, "nobody-at-all")}
    assert len(texts) == 1
    for hostile in ("\0", "ada\n", "x" * 500, "ש\u202e", "<script>alert(1)</script>"):
        answer = sign_in(client, hostile, "a wrong guess")
        assert answer.status_code == 401
        assert "<script>" not in answer.text


@pytest.mark.parametrize(
    "where",
    [
        "https://attacker.example",
        "//attacker.example",
        "/\\attacker.example",
        "/\t/attacker.example",
        "\\\\attacker.example",
        "javascript:alert(1)",
        "review",
        "",
        " /review",
        "/re\nview",
        "/ü",
    ],
)
def test_nobody_is_sent_elsewhere_after_signing_in(desk: TestClient, where: str) -> None:
    assert own_path(where) == "/"
    answer = sign_in(browser(desk), *account(desk), next=where)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_own_paths_are_kept() -> None:
    for path in ("/", "/review?batch=b&x=%2F%2Fy", "/quality#drift", "/a//b"):
        assert own_path(path) == path


def test_errors_are_pages_for_browsers_and_json_for_programs(desk: TestClient) -> None:
    client, _ = signed_in(desk)
    page = client.get("/accounts")
    assert page.status_code == 403
    assert "which ada" in page.text and page.headers["content-type"].startswith("text/html")
    assert client.get("/accounts", headers={"Accept": "application/json"}).json()["error"] == "forbidden"
    assert client.get("/nowhere").text.startswith("<!doctype html>")
    assert client.get("/v1/nowhere").json()["error"] == "not_found"


def test_on_an_open_service_one_may_sign_in_too(tmp_path: Path) -> None:
    with TestClient(make_app(tmp_path, workers=0), base_url="http://127.0.0.1:8300", follow_redirects=False) as client:
        client.headers["Origin"] = "http://127.0.0.1:8300"
        assert client.get("/").headers["location"] == "/review"
        assert client.get("/password").status_code == 404
        name, password = account(client)
        assert sign_in(client, name, password).status_code == 303
        assert name in client.get("/password").text
        assert client.post("/v1/reviews/next", json={}).status_code == 403  # a session's token, also here
        with db.begin(client.app.state.running.database) as session:  # type: ignore[attr-defined]
            accounts.disable(session, name, who="tests")
        assert client.get("/v1/reviews").status_code == 401  # and not `local` all of a sudden
        client.cookies.clear()
        assert client.get("/v1/reviews").status_code == 200
