"""The HTTP interface: what each route does when all is well, and what it says when not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError
from sqlmodel import Session

from service import db, standards
from service.errors import EngineError
from service.route import Line, Standard
from tests.serving import Sticks, error, finished, post_batch, rows, serving, until

TEXTS = ("The Samsung is broken", "I doubt it", "fail")


# --- annotate ---------------------------------------------------------------------------------------------------------


def test_a_few_texts_are_annotated_at_once(client: TestClient) -> None:
    texts = ["The 🎧 Samsung is broken", {"id": "x", "text": "I doubt it", "meta": {"k": [1]}}, "fail"]
    response = client.post("/v1/annotate", json={"texts": texts, "schema": "mood"})
    assert response.status_code == 200
    first, second, third = response.json()["rows"]
    assert [row["id"] for row in (first, second, third)] == ["0", "x", "2"]
    span = first["entities"][0]
    assert first["text"][span["start"] : span["end"]] == span["text"] == "Samsung"
    assert (span["start"], span["start_utf16"]) == (6, 7)
    assert (first["decision"], second["decision"]) == ("accepted", "review")
    assert second["meta"] == {"k": [1]}
    assert second["reasons"][0]["code"] == "low_confidence"
    assert third["reasons"][0]["code"] == "failed"


def test_a_row_of_annotate_has_the_fields_of_a_row_of_results(client: TestClient) -> None:
    now = client.post("/v1/annotate", json={"texts": list(TEXTS), "schema": "mood"}).json()["rows"]
    batch = post_batch(client, *TEXTS, key="same-fields", policy={"audit_share": 0})
    finished(client, batch)
    assert rows(client.get(f"/v1/batches/{batch}/results")) == now


def test_labels_are_decided_by_the_standard_that_is_in_force(tmp_path: Path) -> None:
    body: dict[str, Any] = {"texts": ["The Samsung is broken"], "schema": "mood"}
    with serving(tmp_path) as client:
        (before,) = client.post("/v1/annotate", json=body).json()["rows"]
        line = Line(task="sentiment", threshold=0.95, error=0.03, level=0.95)
        database = db.connect(f"sqlite:///{tmp_path}/concord.db")
        with db.begin(database) as session:
            made = {"standard": Standard(lines=(line,)).model_dump(mode="json")}
            version = standards.put(session, before["recipe"], {}, made).id
        database.dispose()
        (after,) = client.post("/v1/annotate", json=body).json()["rows"]
        own = body | {"policy": {"choice_confidence": 0.5}}
        (by_policy,) = client.post("/v1/annotate", json=own).json()["rows"]
        batch = post_batch(client, *body["texts"], policy={"audit_share": 0})
        finished(client, batch)
        (stored,) = rows(client.get(f"/v1/batches/{batch}/results"))
    assert (before["decision"], after["decision"], by_policy["decision"]) == ("accepted", "review", "accepted")
    assert (after["standard"], after["reasons"][0]["threshold"]) == (version, 0.95)
    assert 0 < after["probability"] < 0.9
    assert "standard" not in before.keys() | by_policy.keys()
    assert stored == after


def test_nothing_annotated_at_once_is_stored(fresh: TestClient) -> None:
    fresh.post("/v1/annotate", json={"texts": ["I doubt it"], "schema": "mood", "policy": {"audit_share": 1}})
    assert fresh.get("/v1/batches").json()["rows"] == []
    assert fresh.post("/v1/reviews/next").status_code == 204


def test_annotate_says_why_when_the_engine_is_away(client: TestClient) -> None:
    detail = error(client.post("/v1/annotate", json={"texts": ["away"], "schema": "mood"}), 503, "engine")
    assert detail["retryable"] is True
    assert "hint" in detail
    partly = client.post("/v1/annotate", json={"texts": ["away", "fine"], "schema": "mood"})
    assert [row["decision"] for row in partly.json()["rows"]] == ["review", "accepted"]


def test_annotate_before_the_engine_is_ready_says_what_is_wrong(tmp_path: Path) -> None:
    engine = Sticks()
    engine.refusal = EngineError("the constraint does not bite", retryable=False, hint="use the guidance backend")
    with serving(tmp_path, engine, ready=False) as client:
        until(lambda: "bite" in client.get("/readyz").text)
        response = client.post("/v1/annotate", json={"texts": ["x"], "schema": "mood"})
        assert error(response, 503, "engine")["hint"] == "use the guidance backend"
        batch = post_batch(client, "x")
        assert engine.asked == 0
        engine.refusal = None
        finished(client, batch)
        assert engine.asked == 1


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"texts": [], "schema": "mood"}, 422, "texts"),
        ({"texts": ["x"]}, 422, "schema"),
        ({"texts": ["x"], "schema": "mood", "state": "accepted"}, 422, "state: no such field"),
        ({"texts": ["x", {"text": "y", "client": "z"}], "schema": "mood"}, 422, "texts[1].client: no such field"),
        ({"texts": ["x", 3], "schema": "mood"}, 422, "texts[1]: "),
        ({"texts": ["x", "a\0b"], "schema": "mood"}, 422, "texts[1]: a NUL character at 1"),
        ({"texts": ["x"], "schema": "mood", "policy": {"audit_share": 2}}, 422, "policy.audit_share"),
        ({"texts": ["x"], "schema": "mood", "policy": {"threshold": 1}}, 422, "policy.threshold: no such field"),
        ({"texts": ["x"] * 10_001, "schema": "mood"}, 413, "at most 10,000"),
        ({"texts": ["x", "y" * 200_001], "schema": "mood"}, 413, "texts[1]"),
        ({"texts": ["x"], "schema": "none"}, 404, "no schema 'none'"),
        ({"texts": ["x"], "schema": "mood", "schema_version": 7}, 404, "version 7"),
        ({"texts": ["x"], "schema": "mood", "prompt": "none.v1"}, 404, "no prompt 'none.v1'"),
        ({"texts": ["x"], "schema": "mood", "prompt": "../../etc/passwd"}, 404, "no prompt"),
        ([], 422, "body"),
        (None, 422, "body"),
    ],
)
@pytest.mark.parametrize("route", ["/v1/annotate", "/v1/batches"])
def test_a_request_that_is_wrong_is_told_the_field(
    client: TestClient, route: str, body: Any, status: int, says: str
) -> None:
    if route == "/v1/batches" and isinstance(body, dict):
        texts = [{"text": text} if isinstance(text, str) else text for text in body["texts"]]
        says = says.replace("texts[1]: a NUL", "texts[1].text: a NUL")
        body = body | {"texts": texts}
    detail = error(client.post(route, json=body), status, {413: "too_large", 404: "not_found", 422: "invalid"}[status])
    assert says in detail["message"]
    if "texts[1]" in says and status == 422:
        assert detail["problems"][0]["index"] == 1


def test_too_many_texts_at_once_belong_into_a_batch(client: TestClient) -> None:
    response = client.post("/v1/annotate", json={"texts": ["x"] * 65, "schema": "mood"})
    assert "post a batch" in error(response, 413, "too_large")["message"]
    response = client.post("/v1/annotate", json={"texts": ["x" * 150_000] * 2, "schema": "mood"})
    assert "200,000 characters together" in error(response, 413, "too_large")["message"]


# --- batches ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_accepted_counted_and_read_back_in_order(client: TestClient) -> None:
    texts = [{"text": text, "id": f"t{number}"} for number, text in enumerate(TEXTS)]
    response = client.post("/v1/batches", json={"texts": texts, "schema": "mood"})
    assert response.status_code == 202
    batch = response.json()
    assert response.headers["location"] == f"/v1/batches/{batch['id']}"
    assert batch | {"schema": "mood", "version": 1, "prompt": "line.v1", "total": 3} == batch
    done = finished(client, batch["id"])
    assert sum(done["counts"].values()) == done["total"] == done["done"] == 3
    assert done["seconds_left"] == 0
    found = rows(client.get(f"/v1/batches/{batch['id']}/results"))
    assert [row["id"] for row in found] == ["t0", "t1", "t2"]
    assert [row["text"] for row in found] == list(TEXTS)
    assert [row["state"] for row in found][1:] == ["review", "review"]


def test_results_of_many_pages_hold_every_text_once(client: TestClient) -> None:
    batch = post_batch(client, *(f"text {number}" for number in range(1203)))
    found = rows(client.get(f"/v1/batches/{batch}/results"))
    assert [row["id"] for row in found] == [str(number) for number in range(1203)]


def test_results_keep_what_lines_and_browsers_trip_over(client: TestClient) -> None:
    texts = ["a\u2028b\u0085c", "line\r\nline", "👩‍👩‍👧 é\u0301", "\ufeffx", ""]
    found = rows(client.get(f"/v1/batches/{post_batch(client, *texts)}/results"))
    assert [row["text"] for row in found] == texts


def test_the_same_request_again_is_the_same_batch(client: TestClient) -> None:
    body = {"texts": [{"text": "once"}], "schema": "mood"}
    headers = {"Idempotency-Key": "once"}
    first = client.post("/v1/batches", json=body, headers=headers)
    again = client.post("/v1/batches", json=body, headers=headers)
    assert (first.status_code, again.status_code) == (202, 200)
    assert first.json() == again.json()
    assert again.headers["location"] == first.headers["location"]
    other = client.post("/v1/batches", json=body | {"texts": [{"text": "twice"}]}, headers=headers)
    assert error(other, 409, "conflict")["batch"] == first.json()["id"]


def test_a_key_that_is_not_one_is_refused(client: TestClient) -> None:
    body = {"texts": [{"text": "x"}], "schema": "mood"}
    for key in ("", "x" * 201, "sha256:mine"):
        error(client.post("/v1/batches", json=body, headers={"Idempotency-Key": key}), 422, "invalid")


def test_ids_are_unique_within_a_batch(client: TestClient) -> None:
    texts = [{"text": "a", "id": "x"}, {"text": "b", "id": "x"}]
    detail = error(client.post("/v1/batches", json={"texts": texts, "schema": "mood"}), 422, "invalid")
    assert "texts[1]: the id 'x' is that of texts[0]" in detail["message"]


def test_batches_are_listed_newest_first_page_by_page(fresh: TestClient) -> None:
    made = [post_batch(fresh, f"text {number}") for number in range(5)]
    listed, after, pages = [], None, 0
    while True:
        page = fresh.get("/v1/batches", params={"limit": 2} | ({"after": after} if after else {})).json()
        listed += [row["id"] for row in page["rows"]]
        assert all(sum(row["counts"].values()) == row["total"] for row in page["rows"])
        after, pages = page["after"], pages + 1
        if after is None:
            break
    assert listed == made[::-1]
    assert pages == 3


def test_a_batch_that_is_followed_ends_with_done(client: TestClient) -> None:
    batch = post_batch(client, *(f"text {number}" for number in range(40)))
    response = client.get(f"/v1/batches/{batch}/events")
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [block.split("\n") for block in response.text.split("\n\n") if block]
    names = [lines[0].removeprefix("event: ") for lines in events]
    assert names[-1] == "done"
    assert set(names[:-1]) <= {"progress"}
    for lines in events:
        data = json.loads(lines[1].removeprefix("data: "))
        assert sum(data["counts"].values()) == 40


def test_a_cancelled_batch_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.worker.GRACE_SECONDS", 0.2)
    with serving(tmp_path, chunk=1) as client:
        batch = post_batch(client, "quick", "wait", "wait")
        until(lambda: client.get(f"/v1/batches/{batch}").json()["done"] == 1)
        assert client.post(f"/v1/batches/{batch}/cancel").json() == {"id": batch, "cancelled": 2}
        done = client.get(f"/v1/batches/{batch}").json()
        assert (done["counts"]["accepted"], done["counts"]["cancelled"], done["finished"]) == (1, 2, True)
        assert client.post(f"/v1/batches/{batch}/cancel").json()["cancelled"] == 0
        states = [row["state"] for row in rows(client.get(f"/v1/batches/{batch}/results"))]
        assert states == ["accepted", "cancelled", "cancelled"]
        assert "event: done" in client.get(f"/v1/batches/{batch}/events").text


@pytest.mark.parametrize("route", ["", "/results", "/events", "/agreement?gold=g"])
def test_a_batch_that_is_not_there_is_a_404(client: TestClient, route: str) -> None:
    error(client.get(f"/v1/batches/nope{route}"), 404, "not_found")
    error(client.get(f"/v1/batches/{'0' * 32}{route}"), 404, "not_found")
    error(client.get(f"/v1/batches/%00{route}"), 422, "invalid")
    error(client.post("/v1/batches/nope/cancel"), 404, "not_found")


def test_a_prompt_and_schema_that_do_not_go_together_are_refused_at_the_door(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "odd.v1.jinja").write_text(
        '{% set wire = "line" %}{% block system %}{{ schema.tone }}{% endblock %}'
        "{% block user %}{{ text }}{% endblock %}"
    )
    with serving(tmp_path, prompts=prompts, prompt="odd.v1") as client:
        response = client.post("/v1/batches", json={"texts": [{"text": "x"}], "schema": "mood"})
        assert "tone" in error(response, 422, "invalid")["message"]
        assert client.get("/v1/batches").json()["rows"] == []


def test_a_commit_that_fails_is_no_acceptance(fresh: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_session: Session) -> None:
        raise OperationalError("COMMIT", {}, Exception("database or disk is full"))

    def broken(_session: Session) -> None:
        raise RuntimeError("a secret")

    body = {"texts": [{"text": "x"}], "schema": "mood"}
    with monkeypatch.context() as patch:
        patch.setattr(Session, "commit", fail)
        assert "full" in error(fresh.post("/v1/batches", json=body), 503, "unavailable")["message"]
        patch.setattr(Session, "commit", broken)
        response = fresh.post("/v1/batches", json=body)
        error(response, 500, "internal")
        assert "secret" not in response.text
    assert fresh.get("/v1/batches").json()["rows"] == []


# --- health and all the rest ------------------------------------------------------------------------------------------


def test_metrics_count_and_name_no_text(fresh: TestClient) -> None:
    batch = post_batch(fresh, "The Samsung is broken, said Zebulon", "I doubt it")
    finished(fresh, batch)
    fresh.get("/zebulon/secret")
    found = fresh.get("/metrics").text
    assert 'concord_items{state="review"} 1.0' in found
    assert 'concord_texts_total{outcome="labelled"} 2.0' in found
    assert "concord_output_tokens_total 5.0" in found
    assert 'route="/v1/batches/{batch}"' in found
    assert 'route="unknown",status="404"' in found
    assert "concord_ready 1.0" in found
    assert "ebulon" not in found
    assert batch not in found


def test_every_answer_has_safe_headers(client: TestClient) -> None:
    for route in ("/healthz", "/v1/schemas", "/nowhere", "/v1/export"):
        headers = client.get(route).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "default-src 'none'" in headers["content-security-policy"]


@pytest.mark.parametrize(
    ("method", "route", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/nowhere", 404, "not_found"),
        ("GET", "/v1/batches/", 404, "not_found"),
        ("GET", "//v1/batches", 404, "not_found"),
        ("DELETE", "/v1/batches", 405, "method_not_allowed"),
        ("PUT", "/healthz", 405, "method_not_allowed"),
        ("GET", "/v1/annotate", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/annotate", 405, "method_not_allowed"),
    ],
)
def test_what_no_route_knows_is_an_error_of_the_same_shape(
    client: TestClient, method: str, route: str, status: int, code: str
) -> None:
    response = client.request(method, route)
    error(response, status, code)
    assert ("allow" in response.headers) == (status == 405)


def test_an_unforeseen_error_tells_nothing_of_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(*_: Any) -> None:
        raise ValueError("the text was: my secret")

    monkeypatch.setattr("service.batches.counts", explode)
    with serving(tmp_path) as client:
        batch = post_batch(client, "x")
        response = client.get(f"/v1/batches/{batch}")
        error(response, 500, "internal")
        assert "secret" not in response.text
    assert "secret" not in caplog.text
    assert "ValueError at test_api.py" in caplog.text


def test_a_stream_that_breaks_is_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path) as client:
        batch = post_batch(client, *(f"{number}" for number in range(600)))
        read, calls = db.read, []

        def fail(engine: Any) -> Any:
            calls.append(engine)
            if len(calls) > 1:
                raise RuntimeError("the disk is gone")
            return read(engine)

        monkeypatch.setattr(db, "read", fail)
        with pytest.raises(ConnectionAbortedError, match="broke off"):
            client.get(f"/v1/batches/{batch}/results")
