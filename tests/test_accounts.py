"""Accounts and their keys: functions, commands and the page for admins."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine
from sqlmodel import Session, select
from typer.testing import CliRunner

from service import accounts, db, ledger
from service.__main__ import app
from service.accounts import FREE_FAILURES, LONGEST_PAUSE
from service.errors import Conflict, Invalid, NotFound, Paused, ServiceError
from service.models import Account, ApiKey, Role, Secret
from service.settings import Settings
from tests.people import account, browser, sign_in, signed_in, token
from tests.serving import make_app

pytestmark = pytest.mark.usefixtures("quick_hashes")

FIRST = """
import sys
from service import accounts, db
with db.begin(db.connect(sys.argv[1])) as session:
    sys.stdout.write(accounts.first_admin(session) or "")
"""


@pytest.fixture
def session(database: Engine) -> Iterator[Session]:
    with Session(database) as session:
        yield session


def told(session: Session, name: str) -> list[tuple[str, str]]:
    return [(line.who, line.action) for line in ledger.lines(session, f"account:{name}")]


def test_the_first_start_makes_one_admin_whose_password_is_kept_by_nobody(session: Session) -> None:
    password = accounts.first_admin(session)
    assert password is not None
    admin = accounts.find(session, "admin")
    assert (admin.roles, admin.must_change) == (["admin"], True)
    assert accounts.matches(admin, password)
    assert password not in str(admin.model_dump())
    assert accounts.first_admin(session) is None
    assert told(session, "admin") == [("service", "account.add")]


def test_of_processes_that_start_at_once_one_makes_the_admin(database_url: str) -> None:
    command = [sys.executable, "-c", FIRST, database_url]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    ended = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, ended
    (password,) = [out.decode() for out, _ in ended if out]
    database = db.connect(database_url)
    with db.read(database) as session:
        (admin,) = accounts.listing(session)
    assert admin.password is not None and password
    database.dispose()


def test_no_two_passwords_that_are_generated_are_the_same(session: Session) -> None:
    made = {accounts.add(session, f"a{number}", [Role.client], who="t")[1] for number in range(20)}
    assert len(made) == 20
    assert min(map(len, made)) >= 20


@pytest.mark.parametrize(
    "name", ["", " ada", "ada ", "a\0", "a\nb", "ש\u202e", "\ud800", "x" * 101, "local", "Service"]
)
def test_a_name_that_nobody_could_read_or_that_is_taken_by_the_service_is_refused(session: Session, name: str) -> None:
    with pytest.raises(Invalid, match="name"):
        accounts.add(session, name, [Role.client], who="t")


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "O'Hara; DROP TABLE account", "אדה", "😀", "x" * 100, "{{7*7}}"]
)
def test_any_other_name_is_kept_as_it_is(session: Session, name: str) -> None:
    made, password = accounts.add(session, name, [Role.lead, Role.client, Role.client], who="t")
    assert (made.name, made.roles) == (name, ["client", "lead"])
    assert accounts.matches(accounts.attempt(session, name), password)
    with pytest.raises(Conflict):
        accounts.add(session, name, [Role.client], who="t")


def test_a_name_is_the_same_however_its_accents_are_typed(session: Session) -> None:
    accounts.add(session, "Zoe\u0301", [Role.client], who="t")
    found = accounts.attempt(session, "Zo\u00e9")
    assert found is not None and found.name == "Zo\u00e9"
    with pytest.raises(Conflict):
        accounts.add(session, "Zo\u00e9", [Role.client], who="t")


def test_an_account_without_roles_is_refused(session: Session) -> None:
    with pytest.raises(Invalid, match="roles"):
        accounts.add(session, "ada", [], who="t")
    accounts.add(session, "ada", [Role.client], who="t")
    with pytest.raises(Invalid, match="roles"):
        accounts.set_roles(session, "ada", [], who="t")


def test_the_last_admin_stays_one(session: Session) -> None:
    accounts.add(session, "ada", [Role.admin], who="t")
    accounts.add(session, "bob", [Role.lead], who="t")
    for act in (
        lambda: accounts.disable(session, "ada", who="t"),
        lambda: accounts.set_roles(session, "ada", [Role.lead], who="t"),
    ):
        with pytest.raises(Conflict, match="last admin"):
            act()
    accounts.set_roles(session, "bob", [Role.admin], who="t")
    accounts.disable(session, "ada", who="t")
    with pytest.raises(Conflict, match="last admin"):
        accounts.disable(session, "bob", who="t")
    accounts.enable(session, "ada", who="t")
    accounts.disable(session, "bob", who="t")


def test_what_is_done_to_nobody_is_not_found(session: Session) -> None:
    for act in (accounts.disable, accounts.enable, accounts.reset_password, accounts.end_sessions):
        with pytest.raises(NotFound):
            act(session, "nobody\0", who="t")
    with pytest.raises(NotFound):
        accounts.add_key(session, "nobody", "", who="t")
    with pytest.raises(NotFound):
        accounts.revoke(session, 99, who="t")


def test_every_change_is_a_line_with_the_state_before_and_after(session: Session) -> None:
    accounts.add(session, "ada", [Role.admin], who="root")
    accounts.add(session, "bob", [Role.client], who="ada")
    accounts.set_roles(session, "bob", [Role.lead], who="ada")
    accounts.reset_password(session, "bob", who="ada")
    key, _ = accounts.add_key(session, "bob", "laptop", who="bob")
    for _ in range(2):
        accounts.revoke(session, key.id or 0, who="ada")
    accounts.end_sessions(session, "bob", who="bob")
    accounts.disable(session, "bob", who="ada")
    actions = ["add", "roles", "password", "key", "revoke", "end_sessions", "disable"]
    lines = ledger.lines(session, "account:bob")
    assert [line.action for line in lines] == [f"account.{action}" for action in actions]
    assert [line.who for line in lines] == ["ada", "ada", "ada", "bob", "ada", "bob", "ada"]
    assert all(line.before != line.after for line in lines)
    assert lines[-1].after == ledger.digest(accounts.state(accounts.find(session, "bob")))
    assert ledger.verify(session).why == ""


def test_a_key_opens_until_it_is_revoked_or_its_account_disabled(session: Session) -> None:
    accounts.add(session, "ada", [Role.client], who="t")
    accounts.add(session, "root", [Role.admin], who="t")
    first, one = accounts.add_key(session, "ada", "laptop", who="t")
    _, two = accounts.add_key(session, "ada", "", who="t")
    assert one not in str(first.model_dump())

    def opens(key: str) -> bool:
        found = accounts.by_key(session, accounts.digest_of(key))
        return found is not None and found.name == "ada"

    assert [opens(key) for key in (one, two, one[:-1], "")] == [True, True, False, False]
    accounts.revoke(session, first.id or 0, who="t")
    assert [opens(key) for key in (one, two)] == [False, True]
    accounts.disable(session, "ada", who="t")
    assert not opens(two)
    accounts.enable(session, "ada", who="t")
    assert [opens(key) for key in (one, two)] == [False, True]
    assert {key.digest for key in session.exec(select(ApiKey))} == {accounts.digest_of(key) for key in (one, two)}


def test_each_failure_makes_the_next_wait_longer_and_a_success_forgets_them(session: Session) -> None:
    _, password = accounts.add(session, "ada", [Role.client], who="t")
    pauses = []
    for number in range(1, 16):
        found = accounts.attempt(session, "ada")
        assert found is not None and found.failures == number
        began, found.paused_until = found.paused_until, None
        pauses.append(round((began - db.clock(session)).total_seconds()) if began else 0)
        session.add(found)
    assert pauses[: FREE_FAILURES + 4] == [0, 0, 0, 0, 2, 4, 8, 16]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE.total_seconds()
    found = accounts.attempt(session, "ada")
    with pytest.raises(Paused, match="wait"):
        accounts.attempt(session, "ada")
    assert accounts.matches(found, password)
    assert found is not None and accounts.signed_in(session, "ada", found.epoch) is not None
    again = accounts.attempt(session, "ada")
    assert again is not None and (again.failures, again.paused_until) == (1, None)


def test_who_was_disabled_or_changed_meanwhile_does_not_get_in(session: Session) -> None:
    accounts.add(session, "root", [Role.admin], who="t")
    _, password = accounts.add(session, "ada", [Role.client], who="t")
    before = accounts.find(session, "ada").epoch
    accounts.set_password(session, "ada", accounts.hashed("a word for a door"), who="t")
    assert accounts.signed_in(session, "ada", before) is None
    found = accounts.attempt(session, "ada")
    assert not accounts.matches(found, password)
    assert accounts.matches(found, "a word for a door")
    accounts.disable(session, "ada", who="t")
    assert not accounts.matches(accounts.find(session, "ada"), "a word for a door")
    assert not accounts.matches(None, "")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(min_size=12, max_size=40).filter(lambda text: "ada" not in text.casefold()))
def test_any_long_text_is_a_password(password: str) -> None:
    try:
        accounts.check_new_password(password, "ada")
        kept = accounts.hashed(password)
    except ServiceError:
        raise AssertionError(password) from None
    assert accounts.matches(Account(name="ada", password=kept, roles=[]), password)
    assert not accounts.matches(Account(name="ada", password=kept, roles=[]), password + "x")


def test_a_password_of_the_name_alone_is_refused() -> None:
    with pytest.raises(Invalid, match="name"):
        accounts.check_new_password("Ada-Lovelace1", "ada-lovelace")


def test_the_secret_is_made_once_and_that_of_the_settings_goes_first(session: Session) -> None:
    made = accounts.secret(session, Settings())
    assert len(made) >= 32
    assert accounts.secret(session, Settings()) == made
    assert accounts.secret(session, Settings(secret="s" * 32)) == "s" * 32
    assert session.get_one(Secret, 1).value == made
    with pytest.raises(Invalid, match="CONCORD_SECRET"):
        accounts.secret(session, Settings(secret="s" * 31))


def test_accounts_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCORD_DATABASE_URL", f"sqlite:///{tmp_path}/concord.db")
    monkeypatch.setenv("COLUMNS", "40")  # a secret is one line, however narrow the terminal

    def run(*arguments: str) -> tuple[int, str, str]:
        found = CliRunner().invoke(app, ["accounts", *arguments])
        return found.exit_code, found.stdout, found.stderr

    code, password, said = run("add", "[red]ada[/]", "--role", "reviewer", "--role", "admin")
    assert code == 0 and re.fullmatch(r"[\w-]{20}\n", password)
    assert "[red]ada[/]" in said
    assert run("add", "bob", "--role", "king")[0] == 2
    assert run("add", "bob")[0] == 2
    run("add", "bob", "--role", "client")
    code, key, said = run("key", "bob", "--label", "cron")
    assert code == 0 and re.fullmatch(r"concord_[\w-]{43}\n", key)
    number = said.split()[1]
    monkeypatch.setenv("COLUMNS", "200")
    _, listed, _ = run("list")
    assert all(word in listed for word in ("[red]ada[/]", "reviewer, admin", f"{number} cron", "must change"))
    assert password.strip() not in listed and key.strip() not in listed
    assert run("password", "bob")[1] not in ("", password)
    assert run("disable", "bob")[0] == 0
    assert "disabled" in run("list")[1]
    assert run("enable", "bob")[0] == 0
    assert run("revoke", number)[0] == 0
    assert "cron" not in run("list")[1]
    found = CliRunner().invoke(app, ["accounts", "disable", "[red]ada[/]"])
    assert isinstance(found.exception, Conflict)


def test_serving_tells_the_first_password_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Settings] = []
    monkeypatch.setattr("service.app.serve", served.append)
    monkeypatch.setenv("CONCORD_DATABASE_URL", f"sqlite:///{tmp_path}/concord.db")
    first, second = (CliRunner().invoke(app, ["serve", "--port", "8000"]) for _ in range(2))
    where = r"sign in at http://127\.0\.0\.1:8000/ as admin, password ([\w-]{20})"
    told = re.fullmatch(where + "; it is shown this once and must be changed\n", first.stderr)
    assert told and first.stdout == ""
    assert told[1] not in second.output
    assert len(served) == 2
    assert told[1].encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_an_admin_adds_changes_and_disables_accounts_with_forms_alone(desk: TestClient) -> None:
    admin, me = signed_in(desk, Role.admin)
    csrf = token(admin)
    assert admin.get("/accounts").status_code == 200
    answer = admin.post("/accounts/add", data={"csrf": csrf, "name": "Zoë <b>", "roles": ["client", "reviewer"]})
    password = html.unescape(re.findall(r'<code class="secret">(.*)</code>', answer.text)[0])
    assert "Zoë &lt;b&gt;" in answer.text and "<b>" not in answer.text
    zoe = browser(desk)
    assert sign_in(zoe, "Zoë <b>", password).headers["location"] == "/"
    fields = {"csrf": token(zoe), "old": password, "new": "a word for a door", "again": "a word for a door"}
    assert zoe.post("/password", data=fields).status_code == 303
    assert zoe.get("/v1/batches").status_code == 200
    assert zoe.get("/accounts").status_code == 403

    assert admin.post("/accounts/roles", data={"csrf": csrf, "name": "Zoë <b>", "roles": "reviewer"}).status_code == 303
    assert zoe.get("/v1/batches").status_code == 403  # from the next request on
    answer = admin.post("/accounts/key", data={"csrf": csrf, "name": "Zoë <b>", "label": '"><script>x</script>'})
    key = re.findall(r"concord_[\w-]+", answer.text)[0]
    assert "<script>x" not in answer.text
    bearer = {"Authorization": f"Bearer {key}"}
    assert browser(desk).get("/v1/reviews", headers=bearer).status_code == 200
    # A key needs no token: no browser sends it by itself.
    assert desk.post("/v1/reviews/next", json={}, headers=bearer).status_code == 204
    assert key not in admin.get("/accounts").text
    number = re.findall(r'name="key" value="(\d+)"', admin.get("/accounts").text)[-1]
    assert admin.post("/accounts/revoke", data={"csrf": csrf, "key": number}).status_code == 303
    assert desk.get("/v1/reviews", headers=bearer).status_code == 401

    assert admin.post("/accounts/disable", data={"csrf": csrf, "name": "Zoë <b>"}).status_code == 303
    assert zoe.get("/v1/reviews").status_code == 401
    assert sign_in(zoe, "Zoë <b>", "a word for a door").status_code == 401
    assert admin.post("/accounts/enable", data={"csrf": csrf, "name": "Zoë <b>"}).status_code == 303
    answer = admin.post("/accounts/password", data={"csrf": csrf, "name": "Zoë <b>"})
    password = html.unescape(re.findall(r'<code class="secret">(.*)</code>', answer.text)[0])
    assert sign_in(zoe, "Zoë <b>", password).status_code == 303

    refused = admin.post("/accounts/add", data={"csrf": csrf, "name": me, "roles": "client"})
    assert refused.status_code == 409
    assert "<h1>" in refused.text
    for wrong in ({"name": "x"}, {"name": "x", "roles": "king"}, {"name": "", "roles": "client"}):
        assert admin.post("/accounts/add", data={"csrf": csrf} | wrong).status_code == 422


def test_only_admins_see_accounts(desk: TestClient) -> None:
    for roles in ([Role.client], [Role.reviewer], [Role.lead]):
        client, _ = signed_in(desk, *roles)
        name, _ = account(desk)
        for path in ("add", "roles", "disable", "enable", "password", "key", "revoke"):
            fields = {"csrf": token(client), "name": name, "roles": "client", "key": "1"}
            assert client.post(f"/accounts/{path}", data=fields).status_code == 403
        assert client.get("/accounts").status_code == 403
        assert 'href="/accounts"' not in client.get("/password").text


def test_an_open_service_can_be_given_its_first_accounts_without_signing_in(tmp_path: Path) -> None:
    with TestClient(make_app(tmp_path, workers=0), base_url="http://127.0.0.1:8300") as client:
        answer = client.post("/accounts/add", data={"name": "ada", "roles": "admin"})
        assert answer.status_code == 200 and "ada" in answer.text
        away = {"Origin": "https://attacker.example"}
        assert client.post("/accounts/add", data={"name": "eve", "roles": "admin"}, headers=away).status_code == 403
