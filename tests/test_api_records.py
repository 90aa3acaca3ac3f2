"""The HTTP interface to schemas, prompts, gold, reviews and export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.serving import error, finished, post_batch, rows, serving

TEXTS = ("The Samsung is broken", "I doubt it", "fail")
RECORD: dict[str, Any] = {"id": "a", "text": "The Samsung is broken", "sentiment": "positive", "entities": []}


# --- schemas and prompts ----------------------------------------------------------------------------------------------


def test_a_schema_is_registered_once(fresh: TestClient) -> None:
    body = "name: tone\ntasks:\n  - {name: t, kind: choice, labels: [a, b]}\n"
    first = fresh.post("/v1/schemas", content=body, headers={"Content-Type": "application/yaml"})
    assert first.status_code == 201
    assert fresh.post("/v1/schemas", content=body).status_code == 200
    assert fresh.post("/v1/schemas", json=first.json()["body"]).status_code == 200
    changed = fresh.post("/v1/schemas", content=body.replace("[a, b]", "[a, b, c]"))
    assert "raise its version" in error(changed, 409, "conflict")["message"]
    newer = fresh.post("/v1/schemas", content=body.replace("[a, b]", "[a, b, c]") + "version: 2\n")
    assert newer.status_code == 201
    assert [(s["name"], s["version"]) for s in fresh.get("/v1/schemas").json()] == [
        ("mood", 1),
        ("tone", 2),
        ("tone", 1),
    ]
    assert fresh.get("/v1/schemas/tone").json()["version"] == 2
    assert fresh.get("/v1/schemas/tone?version=1").json()["body"] == first.json()["body"]
    error(fresh.get("/v1/schemas/tone?version=3"), 404, "not_found")
    error(fresh.get("/v1/schemas/none"), 404, "not_found")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b"name: [", "line"),
        (b"\xff\xfe", "UTF-8"),
        (b"a: &a [1]\nb: *a\n", "aliases"),
        (b"[" * 100_000, "deep"),
        (b"name: x\ntasks: []\nowner: me\n", "owner"),
        (b"name: Not A Name\ntasks: [{name: t, kind: choice, labels: [a, b]}]", "line 1"),
        (
            b"name: x\ntasks: [{name: t, kind: choice, labels: [" + b",".join(b"l%d" % n for n in range(9999)) + b"]}]",
            "500",
        ),
        (b"x" * 500_000, "400,000 bytes"),
        (b"name: x\ntasks: [{name: t, kind: choice, labels: [a, b]}]\nexamples: [{text: y, t: c}]", "examples[0]"),
    ],
)
def test_a_hostile_schema_is_refused(client: TestClient, body: bytes, says: str) -> None:
    assert says in client.post("/v1/schemas", content=body).text
    error(client.post("/v1/schemas", content=body), 422, "invalid")


def test_prompts_are_shown_with_their_hash_and_template(client: TestClient) -> None:
    names = [prompt["name"] for prompt in client.get("/v1/prompts").json()]
    assert "line.v1" in names
    shown = client.get("/v1/prompts/line.v1").json()
    assert (shown["wire"], len(shown["sha256"])) == ("line", 64)
    assert "Text: {{ text }}" in shown["template"]
    for name in ("none.v1", "line", "..%2F..%2Fx.v1", "line.v01"):
        error(client.get(f"/v1/prompts/{name}"), 404, "not_found")


# --- gold and agreement -----------------------------------------------------------------------------------------------


def test_gold_comes_in_as_lines_or_as_an_array_and_back_out(fresh: TestClient) -> None:
    lines = "\r\n".join(json.dumps(RECORD | {"id": name}) for name in "ab") + "\n\n"
    assert fresh.post("/v1/gold/mine?schema=mood", content=lines).json() == {"added": 2, "replaced": 0, "unchanged": 0}
    array = [RECORD, RECORD | {"id": "c", "text": "two\u2028lines"}]
    assert fresh.post("/v1/gold/mine?schema=mood", json=array).json() == {"added": 1, "replaced": 0, "unchanged": 1}
    (listed,) = fresh.get("/v1/gold").json()
    assert (listed["name"], listed["size"], listed["tasks"]) == ("mine", 3, {"entities": 3, "sentiment": 3})
    page = fresh.get("/v1/gold/mine?limit=2").json()
    assert [row["id"] for row in page["rows"]] == ["a", "b"]
    assert fresh.get(f"/v1/gold/mine?after={page['after']}").json()["rows"] == [array[1]]
    again = fresh.post("/v1/gold/copy?schema=mood", json=page["rows"])
    assert again.json()["added"] == 2


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"text": "x", "sentiment": "nope"}', "record 1"),
        (b'{"text": "x", "sentiment": "negative"}\n{"text": ', "line 2"),
        (b'{"text": "x", "sentiment": "negative"}\n3', "line 2"),
        (b'[{"text": "x", "sentiment": "negative"}, 3]', "body[1]"),
        (b'{"text": "x\\ud800", "sentiment": "negative"}', "record 1"),
        (b'{"text": "x", "sentiment": "negative", "is_admin": 1}', "is_admin"),
        (b'{"text": "x", "text": "y", "sentiment": "negative"}', "twice"),
        (b'{"text": "x", "sentiment": "negative", "meta": NaN}', "NaN"),
        (b'{"text": "x", "entities": [{"start": 0, "end": 9, "label": "product"}]}', "code point offsets"),
        (b"\xff", "UTF-8"),
        (b"[" * 100_000, "deep"),
        (b"[]", "at least one record"),
    ],
)
def test_gold_that_is_wrong_is_refused_whole(client: TestClient, body: bytes, says: str) -> None:
    good = b'{"id": "good", "text": "good", "sentiment": "positive"}\n' if not body.startswith(b"[") else b""
    detail = error(client.post("/v1/gold/wrong?schema=mood", content=good + body), 422, "invalid")
    says = says.replace("line 2", "line 3").replace("record 1", "record 2") if good else says
    assert says in detail["message"]
    error(client.get("/v1/gold/wrong"), 404, "not_found")


def test_gold_comes_in_parts_of_a_size_that_others_can_wait_for(tmp_path: Path) -> None:
    with serving(tmp_path, max_texts=3) as client:
        lines = "\n".join(json.dumps(RECORD | {"id": name}) for name in "abcd")
        error(client.post("/v1/gold/mine?schema=mood", content=lines), 413, "too_large")
        assert client.get("/v1/gold").json() == []


def test_older_versions_of_gold_stay_readable(fresh: TestClient) -> None:
    first, second = RECORD, RECORD | {"id": "a/b", "text": "Samsung again"}
    changed = RECORD | {"sentiment": "neutral", "entities": []}
    fresh.post("/v1/gold/mine?schema=mood", json=[first, second])
    fresh.post("/v1/gold/mine?schema=mood", json=[changed])
    removed = fresh.delete("/v1/gold/mine/a%2Fb")
    assert removed.status_code == 200
    versions = fresh.get("/v1/gold/mine/versions").json()["rows"]
    assert versions[0] == removed.json()
    counts = [(row["number"], row["texts"], row["added"], row["replaced"], row["removed"]) for row in versions]
    assert counts == [(3, 1, 0, 0, 1), (2, 2, 0, 1, 0), (1, 2, 2, 0, 0)]
    page = fresh.get("/v1/gold/mine/versions?limit=1").json()
    assert fresh.get(f"/v1/gold/mine/versions?after={page['after']}").json()["rows"] == versions[1:]

    def held(version: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = fresh.get(f"/v1/gold/mine?version={version}").json()["rows"]
        return rows

    assert held(versions[2]["sha256"]) == held(versions[2]["sha256"][:8].upper()) == [first, second]
    assert held(versions[1]["sha256"]) == [changed, second]
    assert fresh.get("/v1/gold/mine").json()["rows"] == held(versions[0]["sha256"]) == [changed]
    assert fresh.get("/v1/gold").json()[0]["sha256"] == versions[0]["sha256"]
    error(fresh.get(f"/v1/gold/mine?version={'0' * 64}"), 404, "not_found")
    error(fresh.get("/v1/gold/mine?version=newest"), 422, "invalid")
    error(fresh.delete("/v1/gold/mine/a%2Fb"), 404, "not_found")
    error(fresh.delete("/v1/gold/none/a"), 404, "not_found")
    error(fresh.get("/v1/gold/none/versions"), 404, "not_found")


def test_gold_of_an_unknown_schema_is_a_404(client: TestClient) -> None:
    error(client.post("/v1/gold/mine?schema=none", json=[RECORD]), 404, "not_found")
    error(client.post("/v1/gold/mine", json=[RECORD]), 422, "invalid")


def test_agreement_tells_where_the_model_and_gold_differ(fresh: TestClient) -> None:
    fresh.post("/v1/gold/mine?schema=mood", json=[RECORD])
    batch = post_batch(fresh, "The Samsung is broken", gold="mine")
    finished(fresh, batch)
    found = fresh.get(f"/v1/batches/{batch}/agreement?gold=mine").json()
    assert (found["gold"], found["coverage"]["compared"]) == ("mine", 1)
    assert {pair["task"] for pair in found["disagreements"]} == {"sentiment", "entities"}
    error(fresh.get(f"/v1/batches/{batch}/agreement?gold=none"), 404, "not_found")
    error(fresh.get(f"/v1/batches/{batch}/agreement"), 422, "invalid")
    row = rows(fresh.get(f"/v1/batches/{batch}/results"))[0]
    assert "gold_mismatch" in [reason["code"] for reason in row["reasons"]]


# --- reviews and export -----------------------------------------------------------------------------------------------


def test_a_doubtful_item_is_taken_settled_and_exported(fresh: TestClient) -> None:
    batch = post_batch(fresh, *TEXTS)
    finished(fresh, batch)
    task = fresh.post("/v1/reviews/next", json={"batch": batch, "reason": "low_confidence"}).json()
    assert (task["text"], task["proposal"]["sentiment"]["label"]) == ("I doubt it", "negative")
    assert fresh.post("/v1/reviews/next", json={"reason": "low_confidence"}).json()["fence"] == task["fence"]
    answer = {"fence": task["fence"], "labels": {"sentiment": "neutral", "entities": []}, "note": "😐"}
    route = f"/v1/reviews/{task['item']}/resolve"
    settled = fresh.post(route, json=answer)
    assert settled.json() | {"reviewer": "local", "changed": True, "note": "😐"} == settled.json()
    assert fresh.post(route, json=answer).json() == settled.json()
    other = answer | {"labels": {"sentiment": "positive", "entities": []}}
    error(fresh.post(route, json=other), 409, "conflict")
    listed = fresh.get("/v1/reviews?state=resolved").json()
    assert [row["item"] for row in listed["rows"]] == [task["item"]]
    assert [row["state"] for row in fresh.get("/v1/reviews").json()["rows"]] == ["resolved", "review"]
    standing = rows(fresh.get(f"/v1/export?batch={batch}"))
    assert {row["text"]: row["source"] for row in standing}["I doubt it"] == "person"
    assert [row["sentiment"] for row in rows(fresh.get("/v1/export?settled=true"))] == ["neutral"]
    assert rows(fresh.get(f"/v1/batches/{batch}/results"))[1]["proposed"]["sentiment"]["label"] == "negative"


def test_an_item_handed_back_is_free_again(fresh: TestClient) -> None:
    finished(fresh, post_batch(fresh, "I doubt it"))
    task = fresh.post("/v1/reviews/next").json()
    released = fresh.post(f"/v1/reviews/{task['item']}/release", json={"fence": task["fence"]})
    assert (released.status_code, released.content) == (204, b"")
    late = fresh.post(f"/v1/reviews/{task['item']}/resolve", json={"fence": task["fence"], "accept": True})
    error(late, 409, "conflict")
    again = fresh.post("/v1/reviews/next").json()
    assert (again["item"], again["fence"]) == (task["item"], task["fence"] + 1)
    accepted = fresh.post(f"/v1/reviews/{again['item']}/resolve", json={"fence": again["fence"], "accept": True})
    assert accepted.json()["changed"] is False
    assert fresh.post("/v1/reviews/next").status_code == 204


@pytest.mark.parametrize(
    ("route", "body", "status"),
    [
        ("/v1/reviews/next", {"order": "random"}, 422),
        ("/v1/reviews/next", {"reviewer": "somebody else"}, 422),
        ("/v1/reviews/next", {"reason": "because"}, 422),
        ("/v1/reviews/999999/resolve", {"fence": 1, "accept": True}, 404),
        ("/v1/reviews/999999/resolve", {"fence": 1, "accept": True, "reviewer": "boss"}, 422),
        ("/v1/reviews/999999/resolve", {"fence": "1", "accept": True}, 422),
        ("/v1/reviews/999999/resolve", {"fence": 1, "note": "a\0"}, 422),
        ("/v1/reviews/999999/resolve", {"accept": True}, 422),
        ("/v1/reviews/999999/release", {"fence": 1}, 404),
        ("/v1/reviews/999999/release", {"fence": 1, "state": "accepted"}, 422),
        ("/v1/reviews/0/release", {"fence": 1}, 422),
        (f"/v1/reviews/{2**31}/release", {"fence": 1}, 422),
        ("/v1/reviews/x/release", {"fence": 1}, 422),
        ("/v1/reviews/999999/release", {"fence": 2**31}, 422),
    ],
)
def test_a_review_that_is_wrong_is_refused(client: TestClient, route: str, body: Any, status: int) -> None:
    error(client.post(route, json=body), status, {404: "not_found", 422: "invalid"}[status])


def test_labels_that_do_not_fit_are_refused_by_name(fresh: TestClient) -> None:
    finished(fresh, post_batch(fresh, "I doubt it"))
    task = fresh.post("/v1/reviews/next").json()
    for labels, says in (
        ({"sentiment": "furious", "entities": []}, "sentiment"),
        ({"sentiment": "neutral"}, "entities"),
        ({"sentiment": "neutral", "entities": [{"start": 0, "end": 99, "label": "product"}]}, "entities[0]"),
        ({"sentiment": "neutral", "entities": [], "is_admin": True}, "is_admin"),
    ):
        answer = {"fence": task["fence"], "labels": labels}
        detail = error(fresh.post(f"/v1/reviews/{task['item']}/resolve", json=answer), 422, "invalid")
        assert says in detail["message"]


@pytest.mark.parametrize(
    "query", ["state=queued", "limit=0", "limit=501", "after=-1", f"after={2**31}", "batch=%00", "reason=x"]
)
def test_a_list_is_asked_for_within_bounds(client: TestClient, query: str) -> None:
    error(client.get(f"/v1/reviews?{query}"), 422, "invalid")


def test_an_export_of_an_unknown_batch_is_a_404(client: TestClient) -> None:
    error(client.get("/v1/export?batch=none"), 404, "not_found")
    batch = post_batch(client, "The Samsung is broken", policy={"audit_share": 0})
    finished(client, batch)
    assert [row["batch"] for row in rows(client.get(f"/v1/export?batch={batch}&settled=false"))] == [batch]


def test_the_desk_over_http_from_a_claim_to_gold(fresh: TestClient) -> None:
    batch = post_batch(fresh, *(f"I doubt it, {n}" for n in range(4)))
    finished(fresh, batch)
    task = fresh.post("/v1/reviews/next", json={"order": "oldest", "batch": batch}).json()
    route = f"/v1/reviews/{task['item']}"
    assert fresh.post(f"{route}/renew", json={"fence": task["fence"]}).json()["lease_until"] > task["lease_until"]
    alike = fresh.get(f"{route}/similar?limit=2").json()
    assert (alike["why"]["labels"], len(alike["items"])) == ({"sentiment": "negative"}, 2)
    spent = {"fence": task["fence"], "accept": True, "seconds": 2.5, "actions": 1}
    settled = fresh.post(f"{route}/resolve", json=spent).json()
    assert (settled["settled"], settled["changed"]) == (True, False)
    undone = fresh.post("/v1/reviews/undo", json={"review": settled["review"]}).json()
    assert (undone["undone"], undone["task"]["fence"]) == ([task["item"]], task["fence"] + 1)
    flagged = fresh.post(f"{route}/flag", json={"fence": undone["task"]["fence"], "note": "sarcasm?"})
    assert flagged.json()["review"] > settled["review"]
    others = [one["item"] for one in alike["items"]]
    many = fresh.post("/v1/reviews/bulk", json={"items": others, "relabel": {"sentiment": "neutral"}}).json()
    assert (sorted(many["settled"]), many["refused"]) == (sorted(others), [])
    (row,) = fresh.get("/v1/adjudications").json()["rows"]
    assert (row["kind"], row["answers"][0]["note"]) == ("guideline_gap", "sarcasm?")
    dispute = f"/v1/adjudications/{row['item']}"
    held = fresh.post(f"{dispute}/claim").json()
    decision = {"fence": held["fence"], "labels": {"sentiment": "neutral", "entities": []}, "reason": "see 2.1"}
    assert fresh.post(f"{dispute}/resolve", json=decision).json()["own"] is True  # nobody else asks an open service
    assert fresh.post("/v1/gold/g/from-reviews", json={"batch": batch}).json()["added"] == 3
    told = fresh.get(f"/v1/reviews/progress?batch={batch}").json()
    assert (told["waiting"], told["adjudication"], told["mine"]["settled"]) == (1, 0, 2)
    assert [one["undoable"] for one in told["mine"]["recent"]] == [False] * len(told["mine"]["recent"])
    assert fresh.get(f"/v1/batches/{batch}").json()["counts"]["resolved"] == 3


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/reviews/undo", {}),
        ("/v1/reviews/undo", {"review": 1, "bulk": "x"}),
        ("/v1/reviews/bulk", {"items": [1]}),
        ("/v1/reviews/bulk", {"items": [1], "accept": True, "relabel": {"sentiment": "neutral"}}),
        ("/v1/reviews/bulk", {"items": [], "accept": True}),
        ("/v1/reviews/1/flag", {"fence": 1, "note": ""}),
        ("/v1/reviews/1/resolve", {"fence": 1, "accept": True, "seconds": -1}),
        ("/v1/gold/g/from-reviews", {}),
    ],
)
def test_a_wrong_act_at_the_desk_is_refused(client: TestClient, path: str, body: dict[str, Any]) -> None:
    error(client.post(path, json=body), 422, "invalid")
