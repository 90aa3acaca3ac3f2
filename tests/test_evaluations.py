"""Evaluations over HTTP: asked for, run beside the workers, taken up by another process; standards made of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from service import batches, db, evaluations, gold, schema
from service.engine import Completion, Request
from service.errors import EngineError
from service.evaluations import ATTEMPTS, EvaluationCreate
from service.evaluator import SHARE
from service.models import EvaluationRun, RunState, now
from service.settings import PROJECT
from tests.serving import Sticks, error, finished, make_settings, post_batch, rows, serving, until

HOSTILE = "<script>alert(1)</script> <|im_end|> \u202e\u0301👍🏽"


def records(count: int, wrong: int = 0) -> list[dict[str, Any]]:
    """Texts of which the sticks say what people say, surely, but for `wrong` ones, of which they doubt."""
    sure = [{"id": f"s{n}", "text": f"{HOSTILE} word{n}, {n} of many", "sentiment": "negative"} for n in range(count)]
    doubtful = [{"id": f"d{n}", "text": f"I doubt item{n}, dear", "sentiment": "positive"} for n in range(wrong)]
    return [record | {"entities": []} for record in [*sure, *doubtful]]


def upload(client: TestClient, name: str, *found: dict[str, Any]) -> None:
    content = "\n".join(json.dumps(record) for record in found)
    response = client.post(f"/v1/gold/{name}?schema=mood", content=content)
    assert response.status_code == 200, response.text


def ask(client: TestClient, gold: str, *prompts: str, **more: Any) -> str:
    body = {"gold": gold, "schema": "mood", "prompts": prompts or ("line.v1",)} | more
    response = client.post("/v1/evaluations", json=body)
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/v1/evaluations/{response.json()['id']}"
    return str(response.json()["id"])


def ended(client: TestClient, run: str, state: str = "done") -> dict[str, Any]:
    """The evaluation, once it has ended as it should."""
    until(lambda: client.get(f"/v1/evaluations/{run}").json()["state"] not in ("queued", "running"), 120)
    found: dict[str, Any] = client.get(f"/v1/evaluations/{run}").json()
    assert found["state"] == state, found["error"]
    return found


def evaluated(client: TestClient, gold: str, *prompts: str, **more: Any) -> dict[str, Any]:
    return ended(client, ask(client, gold, *prompts, **more))


@pytest.fixture
def sticks() -> Sticks:
    return Sticks()


@pytest.fixture
def service(tmp_path: Path, sticks: Sticks) -> Iterator[TestClient]:
    """A service with the gold set `g` of 30 texts."""
    with serving(tmp_path, sticks) as client:
        upload(client, "g", *records(24, wrong=6))
        yield client


def test_an_evaluation_says_how_far_a_prompt_agrees_and_costs_nothing_the_second_time(
    service: TestClient, sticks: Sticks
) -> None:
    found = evaluated(service, "g")
    assert (found["kind"], found["done"], found["total"], found["lacking"]) == ("evaluation", 30, 30, None)
    document = found["document"]
    assert (document["kind"], document["texts"], document["failed"], document["cached"]) == ("evaluation", 30, 0, 0)
    assert document["tasks"]["sentiment"]["exact"]["value"] == 0.8
    assert list(document["tasks"]) == ["sentiment", "entities"]
    assert document["gold"]["name"] == "g"
    assert sticks.asked == 30
    again = evaluated(service, "g")
    assert again["document"]["cached"] == 30
    assert sticks.asked == 30
    listed = service.get("/v1/evaluations?limit=1").json()
    assert [row["id"] for row in listed["rows"]] == [again["id"]]
    assert "document" not in listed["rows"][0]
    older = service.get(f"/v1/evaluations?after={listed['after']}").json()
    assert ([row["id"] for row in older["rows"]], older["after"]) == ([found["id"]], None)


def test_a_comparison_reads_the_same_texts_with_each_prompt_in_the_order_given(
    service: TestClient, sticks: Sticks
) -> None:
    found = evaluated(service, "g", "line.v2", "line.v1", limit=20)
    assert (found["kind"], found["done"], found["total"]) == ("comparison", 40, 40)
    document = found["document"]
    assert (document["kind"], document["texts"], document["gold"]["texts"]) == ("comparison", 20, 30)
    assert list(document["recipes"]) == ["line.v2", "line.v1"]
    assert document["comparison"]["verdict"]
    assert sticks.asked == 40
    detail = error(service.post("/v1/standards", json={"evaluation": found["id"]}), 409, "conflict")
    assert "no errors" in detail["message"]


def test_a_standard_is_put_in_force_decided_by_and_restored(fresh: TestClient) -> None:
    service = fresh
    upload(service, "more", *records(60, wrong=30))
    wanted = {"errors": {"item": 0.2}, "confidence": 0.8}
    found = evaluated(service, "more", **wanted)
    assert found["lacking"] == []
    (promise,) = found["document"]["promises"]
    assert (promise["of"], promise["error"], promise["wrong"]) == ("item", 0.2, 0)
    assert service.get("/v1/standards").json() == {"rows": [], "after": None}
    assert "standard" not in results(service, "before", policy={})[0]

    first = service.post("/v1/standards", json={"evaluation": found["id"]})
    assert first.status_code == 201
    standard = first.json()
    assert (standard["in_force"], standard["predecessor"], standard["evaluation"]) == (True, None, found["id"])
    assert standard["recipe"] == found["document"]["recipe_sha256"]
    assert standard["gold"] == {"name": "more", "sha256": found["document"]["gold"]["sha256"]}
    assert standard["promises"] == found["document"]["promises"]
    again = service.post("/v1/standards", json={"evaluation": found["id"]})
    assert (again.status_code, again.json()) == (200, standard)

    sure, doubtful = results(service, "after", policy={"audit_share": 0})
    assert (sure["standard"], sure["decision"]) == (standard["id"], "accepted")
    assert sure["probability"] > doubtful["probability"]
    assert (doubtful["decision"], doubtful["reasons"][0]["threshold"]) == ("review", promise["threshold"])

    stricter = evaluated(service, "more", **wanted | {"confidence": 0.81})
    second = service.post("/v1/standards", json={"evaluation": stricter["id"]}).json()
    restored = service.post(f"/v1/standards/{standard['id']}/restore")
    assert restored.status_code == 201
    assert restored.json()["lines"] == standard["lines"]
    listed = service.get("/v1/standards").json()["rows"]
    assert [(row["id"], row["predecessor"], row["in_force"]) for row in listed] == [
        (restored.json()["id"], second["id"], True),
        (second["id"], standard["id"], False),
        (standard["id"], None, False),
    ]
    page = service.get("/v1/standards?limit=2").json()
    assert page["after"] == second["id"]
    assert [row["id"] for row in service.get(f"/v1/standards?after={page['after']}").json()["rows"]] == [standard["id"]]
    assert results(service, "restored", policy={"audit_share": 0})[0]["standard"] == restored.json()["id"]


def test_the_work_that_is_left_is_told_where_something_is_to_be_promised(fresh: TestClient) -> None:
    upload(fresh, "more", *records(60, wrong=30))
    wanted = {"errors": {"item": 0.2}, "confidence": 0.8, "work": {"items": 500, "seconds": 30, "price": 20}}
    document = evaluated(fresh, "more", **wanted)["document"]
    left = 1 - document["promises"][0]["coverage"]["value"]
    work = document["work"]
    assert (work["items"], work["price"]) == (500, 20)
    told = [work[key]["value"] for key in ("left", "hours", "cost")]
    assert told == pytest.approx([500 * left, 500 * left / 120, 500 * left / 6])
    usual = evaluated(fresh, "more", errors={"item": 0.001})["document"]["work"]
    assert (usual["items"], usual["left"]["value"], usual["hours"]["value"]) == (1000, 1000, pytest.approx(1000 / 240))
    assert evaluated(fresh, "more")["document"]["work"] is None


def test_an_evaluation_reads_the_version_it_was_asked_for_and_states_its_hash(fresh: TestClient) -> None:
    upload(fresh, "g", *records(8))
    upload(fresh, "g", *records(6, wrong=2))
    second, first = (row["sha256"] for row in fresh.get("/v1/gold/g/versions").json()["rows"])
    for asked, sha256, texts in ((first[:10], first, 8), (None, second, 10)):
        found = evaluated(fresh, "g", limit=5, **({"gold_version": asked} if asked else {}))
        assert found["gold_version"] == found["document"]["gold"]["sha256"] == sha256
        assert (found["document"]["gold"]["texts"], found["document"]["texts"]) == (texts, 5)


def test_an_evaluation_reads_what_the_set_held_when_it_was_asked_for(
    database: Engine, queued: str, tmp_path: Path
) -> None:
    with db.begin(database) as session:
        before = gold.newest(session, "g").sha256
        gold.upload(session, "g", schema.load(tmp_path / "schemas" / "mood.yaml"), records(3))
    with db.begin(database) as session:
        held = evaluations.claim(session, "one", 60)
        assert held is not None
        assert held.gold_version == before != gold.newest(session, "g").sha256


def test_the_same_key_asks_for_one_evaluation(service: TestClient) -> None:
    body = {"gold": "g", "schema": "mood", "prompts": ["line.v1"]}

    def post(key: str, **more: Any) -> Any:
        return service.post("/v1/evaluations", json=body | more, headers={"Idempotency-Key": key})

    first, again, other = post("one"), post("one"), post("two")
    assert (first.status_code, again.status_code, other.status_code) == (202, 200, 202)
    assert first.json()["id"] == again.json()["id"] != other.json()["id"]
    assert again.headers["location"] == first.headers["location"]
    assert error(post("one", limit=3), 409, "conflict")["evaluation"] == first.json()["id"]
    upload(service, "g", *records(1))
    assert post("one").json()["id"] == first.json()["id"]  # also when the set has changed since
    error(post("x" * 201), 422, "invalid")


def test_the_same_key_sent_many_times_at_once_asks_for_one_evaluation(database: Engine, tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    mood = schema.load(settings.schemas / "mood.yaml")
    new = EvaluationCreate(gold="g", schema="mood", prompts=("line.v1",))  # type: ignore[call-arg]
    with db.begin(database) as session:
        batches.save_schema(session, mood)
        gold.upload(session, "g", mood, records(2))

    def submit(_: int) -> tuple[str, bool]:
        with db.begin(database) as session:
            run, fresh = evaluations.submit(session, "tests", "key", new, settings)
            return run.id, fresh

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(submit, range(8)))
    assert len({run for run, _ in found}) == 1
    assert sum(fresh for _, fresh in found) == 1


def results(client: TestClient, key: str, **more: Any) -> list[dict[str, Any]]:
    batch = post_batch(client, "never seen before", "I doubt that too", key=key, **more)
    finished(client, batch)
    return rows(client.get(f"/v1/batches/{batch}/results"))


def test_what_cannot_all_be_promised_is_not_put_in_force_and_says_why(service: TestClient) -> None:
    found = evaluated(service, "g", errors={"sentiment": 0.001, "item": 0.9})
    assert [why.split(":")[0] for why in found["lacking"]] == ["sentiment", "item"]
    detail = error(service.post("/v1/standards", json={"evaluation": found["id"]}), 409, "conflict")
    assert detail["lacking"] == found["lacking"]
    assert "sentiment" in detail["message"]
    assert service.get("/v1/standards").json()["rows"] == []


def test_only_an_evaluation_that_is_done_has_a_report_and_a_standard(
    service: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = SimpleNamespace(html=lambda document: f"<title>{document['gold']['name']}</title>")
    monkeypatch.setitem(sys.modules, "service.report", stand_in)
    upload(service, "slow", {"text": "wait", "sentiment": "negative"})
    slow = ask(service, "slow")
    until(lambda: service.get(f"/v1/evaluations/{slow}").json()["total"] == 1)
    error(service.get(f"/v1/evaluations/{slow}/report"), 409, "conflict")
    error(service.post("/v1/standards", json={"evaluation": slow}), 409, "conflict")
    waiting = ask(service, "g")
    assert service.get(f"/v1/evaluations/{waiting}").json()["state"] == "queued"  # one at a time
    assert service.post(f"/v1/evaluations/{slow}/cancel").json()["state"] == "cancelled"
    assert service.post(f"/v1/evaluations/{slow}/cancel").json()["state"] == "cancelled"
    ended(service, waiting)
    assert ended(service, slow, "cancelled")["document"] is None
    page = service.get(f"/v1/evaluations/{waiting}/report")
    assert (page.status_code, page.text) == (200, "<title>g</title>")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert service.post(f"/v1/evaluations/{waiting}/cancel").json()["state"] == "done"


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"gold": "none"}, 404, "gold"),
        ({"gold": "a\0b"}, 422, "gold"),
        ({"schema": "none"}, 404, "schema"),
        ({"schema_version": 9}, 404, "schema"),
        ({"prompts": ["line.v1", "none.v1"]}, 404, "prompts[1]"),
        ({"prompts": ["line.v1", "line.v1"]}, 422, "prompts[1]"),
        ({"prompts": []}, 422, "prompts"),
        ({"errors": {"intent": 0.1}}, 422, "errors.intent"),
        ({"errors": {"sentiment": 1.5}}, 422, "errors.sentiment"),
        ({"errors": {"item": 0}}, 422, "errors.item"),
        ({"errors": {"item": 0.1}, "prompts": ["line.v1", "line.v2"]}, 422, "errors"),
        ({"confidence": 1}, 422, "confidence"),
        ({"limit": 0}, 422, "limit"),
        ({"gold_version": "0" * 64}, 404, "gold_version"),
        ({"gold_version": "newest"}, 422, "gold_version"),
        ({"work": {"items": 0}}, 422, "work.items"),
        ({"work": {"price": -1}}, 422, "work.price"),
        ({"work": {"pay": 1}}, 422, "work.pay"),
        ({"second_prompt": "line.v2"}, 422, "second_prompt"),
    ],
)
def test_a_wrong_request_is_refused_at_once_and_the_field_is_named(
    client: TestClient, change: dict[str, Any], status: int, field: str
) -> None:
    upload(client, "refused", *records(1))
    body = {"gold": "refused", "schema": "mood", "prompts": ["line.v1"]} | change
    detail = error(client.post("/v1/evaluations", json=body), status, "not_found" if status == 404 else "invalid")
    assert detail["message"].startswith(f"{field}: ")
    assert client.get("/v1/evaluations").json()["rows"] == []


def test_what_is_not_there_is_not_found(client: TestClient) -> None:
    for path in ("/v1/evaluations/none", "/v1/evaluations/none/report"):
        error(client.get(path), 404, "not_found")
    error(client.post("/v1/evaluations/none/cancel"), 404, "not_found")
    error(client.post("/v1/standards", json={"evaluation": "none"}), 404, "not_found")
    error(client.post("/v1/standards/99/restore"), 404, "not_found")


def test_gold_that_does_not_fit_the_schema_fails_the_evaluation_and_not_the_service(service: TestClient) -> None:
    newer = "name: mood\nversion: 2\ntasks:\n  - {name: sentiment, kind: choice, labels: [sad, glad]}\n"
    other = "name: other\ntasks:\n  - {name: topic, kind: choice, labels: [a, b]}\n"
    assert service.post("/v1/schemas", content=newer).status_code == 201
    assert service.post("/v1/schemas", content=other).status_code == 201
    found = ended(service, ask(service, "g"), "failed")
    assert found["error"].startswith("s0: sentiment: expected a label of the task")
    found = ended(service, ask(service, "g", schema="other"), "failed")
    assert found["error"] == "gold: no text of 'g' is labelled for a task of the schema other"
    assert evaluated(service, "g", schema_version=1)["version"] == 1


def test_texts_that_fail_are_counted_and_where_all_do_the_evaluation_fails_with_the_reason(
    service: TestClient, sticks: Sticks
) -> None:
    broken = {"id": "x", "text": "this will fail", "sentiment": "negative"}
    upload(service, "some", *records(10), broken, broken | {"id": "y", "text": "it is away"})
    assert evaluated(service, "some")["document"]["failed"] == 2
    upload(service, "all", broken)
    found = ended(service, ask(service, "all"), "failed")
    assert found["error"] == "line.v1: no text could be labelled: no answer look at the sticks"
    sticks.refusal = EngineError("nobody is there", retryable=True, hint="start it")
    found = ended(service, ask(service, "some"), "failed")  # figures of the texts that it happened to answer mislead
    assert found["error"] == "nobody is there start it"


def test_an_evaluation_leaves_room_for_batches(tmp_path: Path) -> None:
    class Watched(Sticks):
        most = 0

        async def complete(self, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Completion | EngineError]]:
            self.most = max(self.most, len(requests))
            async for answer in super().complete(requests):
                yield answer

    watched = Watched()
    with serving(tmp_path, watched, workers=0) as client:
        upload(client, "g", *records(60))
        evaluated(client, "g")
    assert watched.most == Watched.in_flight // SHARE


def test_a_service_that_stops_gives_its_evaluation_back_and_the_next_one_ends_it(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        upload(client, "g", *records(5), {"id": "w", "text": "wait for it", "sentiment": "negative"})
        run = ask(client, "g")
        until(lambda: client.get(f"/v1/evaluations/{run}").json()["total"] == 6)
    database = db.connect(f"sqlite:///{tmp_path}/concord.db")
    with db.read(database) as session:
        found = evaluations.find(session, run)
        assert (found.state, found.attempt, found.fence, found.lease_owner) == (RunState.queued, 0, 1, None)
    database.dispose()

    class Prompt(Sticks):
        async def complete(self, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Completion | EngineError]]:
            for index, request in enumerate(requests):
                last = request.messages[-1]
                quick = replace(last, content=last.content.replace("wait", ""))
                async for _, answer in super().complete([replace(request, messages=(quick,))]):
                    yield index, answer

    with serving(tmp_path, Prompt()) as client:
        assert ended(client, run)["document"]["texts"] == 6


def test_two_services_on_one_database_do_not_run_the_same_evaluation(tmp_path: Path) -> None:
    one, other = Sticks(), Sticks()
    with serving(tmp_path, one) as client, serving(tmp_path, other):
        upload(client, "g", *records(12))
        found = ended(client, ask(client, "g"))
    assert found["document"]["cached"] == 0
    assert sorted((one.asked, other.asked)) == [0, 12]


class Dying(Sticks):
    """Kills its process under the 90th text."""

    async def complete(self, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Completion | EngineError]]:
        async for answer in super().complete(requests):
            if self.asked == 90:
                os.kill(os.getpid(), signal.SIGKILL)
            yield answer


def live_and_die(folder: str) -> None:
    with serving(Path(folder), Dying(), lease_seconds=1.0) as client:
        upload(client, "g", *records(100))
        ask(client, "g")
        until(lambda: False, 60)


def test_what_a_killed_process_left_is_taken_up_and_only_the_rest_is_asked_for(tmp_path: Path) -> None:
    code = f"from tests.test_evaluations import live_and_die; live_and_die({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=os.environ | {"PYTHONPATH": str(PROJECT)})
    assert done.returncode == -signal.SIGKILL
    sticks = Sticks()
    with serving(tmp_path, sticks) as client:
        (left,) = client.get("/v1/evaluations").json()["rows"]
        assert left["state"] == "running"
        found = ended(client, left["id"])
    assert (found["document"]["texts"], found["document"]["cached"]) == (100, 64)
    assert sticks.asked == 36


# --- lease and fence --------------------------------------------------------------------------------------------------


@pytest.fixture
def queued(database: Engine, tmp_path: Path) -> str:
    """The id of a run that waits, in a database without a service."""
    settings = make_settings(tmp_path)
    mood = schema.load(settings.schemas / "mood.yaml")
    new = EvaluationCreate(gold="g", schema="mood", prompts=("line.v1",))  # type: ignore[call-arg]
    with db.begin(database) as session:
        batches.save_schema(session, mood)
        gold.upload(session, "g", mood, records(2))
        return evaluations.submit(session, "tests", None, new, settings)[0].id


def expire(database: Engine, run: str) -> None:
    with db.begin(database) as session:
        found = evaluations.find(session, run)
        found.lease_until = now() - timedelta(seconds=1)
        session.add(found)


def test_a_run_is_held_by_one_process_until_its_lease_ends(database: Engine, queued: str) -> None:
    with db.begin(database) as session:
        first = evaluations.claim(session, "one", 60)
    assert first is not None
    with db.begin(database) as session:
        assert evaluations.claim(session, "other", 60) is None
        assert evaluations.renew(session, first, 1, 2, 60)
    expire(database, queued)
    with db.begin(database) as session:
        second = evaluations.claim(session, "other", 60)
    assert second is not None
    assert (second.id, second.fence) == (first.id, first.fence + 1)
    with db.begin(database) as session:
        assert not evaluations.renew(session, first, 2, 2, 60)
        assert not evaluations.finish(session, first, 2, {"late": True}, None)
        assert not evaluations.fail(session, first, "late")
        assert not evaluations.release(session, first)
        assert evaluations.finish(session, second, 2, {"late": False}, None)
    with db.read(database) as session:
        found = evaluations.find(session, queued)
        assert (found.document, found.done, found.total) == ({"late": False}, 2, 2)


def test_a_run_that_ends_every_process_fails_and_one_that_was_given_back_does_not(
    database: Engine, queued: str
) -> None:
    for _ in range(ATTEMPTS + 2):
        with db.begin(database) as session:
            held = evaluations.claim(session, "stopped", 60)
            assert held is not None
            assert evaluations.release(session, held)
    for _ in range(ATTEMPTS):
        with db.begin(database) as session:
            assert evaluations.claim(session, "killed", 60) is not None
        expire(database, queued)
    with db.begin(database) as session:
        assert evaluations.claim(session, "next", 60) is None
    with db.read(database) as session:
        found = session.get_one(EvaluationRun, queued)
        assert (found.state, found.error) == (RunState.failed, "3 processes ended while they ran it")


def test_a_reason_that_no_database_could_keep_is_kept_as_far_as_it_goes(database: Engine, queued: str) -> None:
    with db.begin(database) as session:
        held = evaluations.claim(session, "one", 60)
        assert held is not None
        evaluations.fail(session, held, "an engine said \0\ud800" + "x" * 5000)
    with db.read(database) as session:
        kept = evaluations.find(session, queued).error
    assert kept is not None
    assert kept.startswith("an engine said \ufffd?x")
    assert len(kept) == 1000
