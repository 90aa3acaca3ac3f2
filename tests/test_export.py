"""What stands leaves the service exactly as it stands, and what people settled comes back as gold, bit for bit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from service import db, export, gold, review
from service.labels import Choice, Labels, Mentions, Span
from service.models import State
from service.schema import RESERVED
from tests.stage import ACCEPTED, DOUBT, FAILED, RECIPE, SCHEMA, Play, labels, stage

AWKWARD = [
    "👩🏽‍🚀 flew to 🇨🇭",
    "e\u0301te\u0301 ou été",
    "one\r\ntwo\u2028three\u0085four",
    "שלום עולם \u202eright\u202c",
    "東京タワーは高い。",
    "I\u0307STANBUL İ ẞ ﬁ",
    "=1+1\t\"a\";'b',c",
    "<script>alert(1)</script>\x7f\x01",
]
STORABLE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)
TEXTS = STORABLE | st.sampled_from(AWKWARD) | st.builds(str.__add__, st.sampled_from(AWKWARD), STORABLE)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[str, Labels]:
    text = draw(TEXTS)
    ends = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
    places = list(zip(ends[::2], ends[1::2], strict=False))
    said = [Span(start=s, end=e, label=draw(st.sampled_from(["person", "place"])), text=text[s:e]) for s, e in places]
    choice = Choice(label=draw(st.sampled_from(["negative", "neutral", "positive"])))
    return text, Labels(choices={"sentiment": choice}, mentions={"entities": Mentions(spans=tuple(said))})


def settle(engine: Engine, batch: str, answers: dict[str, dict[str, Any] | None] | None = None) -> None:
    """A person settles all of the batch: with these answers by ref, or as the model proposed."""
    while True:
        with db.begin(engine) as session:
            task = review.next_item(session, "zoë", lease_seconds=60, batch=batch)
            if task is None:
                return
            said = (answers or {}).get(task.ref)
            review.resolve(session, task.item, task.fence, "zoë", said, accept=said is None)


def upload(engine: Engine, name: str, rows: list[dict[str, Any]]) -> dict[str, int]:
    with db.begin(engine) as session:
        return gold.upload(session, name, SCHEMA, rows)


def test_what_stands_is_said_with_its_source(database: Engine) -> None:
    text = "😀 Ann"
    said = labels(text, "neutral", [(2, 5, "person")])
    batch, _ = stage(
        database,
        [
            Play(text, said, ACCEPTED),
            Play(text, said, DOUBT, "b"),
            Play("?", None, FAILED),
            Play("!", labels("!", "neutral"), DOUBT),
        ],
    )
    settle(
        database,
        batch,
        {"2": {"sentiment": "negative", "entities": []}, "b": {"sentiment": "positive", "entities": []}},
    )
    by_model, by_person, failed, _ = export.rows(database, batch=batch)
    assert by_model == {
        "id": "0",
        "text": text,
        "sentiment": {"label": "neutral", "confidence": 0.5, "alternatives": ()},
        "entities": [
            {
                "start": 2,
                "end": 5,
                "label": "person",
                "text": "Ann",
                "confidence": 0.5,
                "start_utf16": 3,
                "end_utf16": 6,
            }
        ],
        "complete": 0.9,
        "source": "model",
        "reviewer": None,
        "recipe": RECIPE,
        "state": "accepted",
        "decision": "accepted",
        "batch": batch,
        "position": 0,
        "meta": {},
    }
    assert (by_person["id"], by_person["source"], by_person["reviewer"]) == ("b", "person", "zoë")
    assert (by_person["sentiment"]["label"], by_person["decision"], by_person["state"]) == (
        "positive",
        "review",
        "resolved",
    )
    assert (failed["source"], failed["recipe"], failed["sentiment"]["label"]) == ("person", None, "negative")


def test_what_does_not_stand_is_left_out_unless_asked_for(database: Engine) -> None:
    batch, _ = stage(
        database,
        [Play("a", labels("a", "neutral")), Play("?", None, FAILED), Play("b", labels("b", "neutral"), ACCEPTED)],
    )
    assert [row["text"] for row in export.rows(database, batch=batch)] == ["b"]
    doubtful = list(export.rows(database, batch=batch, states=[State.review]))
    assert [row["text"] for row in doubtful] == ["a", "?"]
    assert "sentiment" in doubtful[0]
    assert "sentiment" not in doubtful[1]
    assert list(export.rows(database, batch=batch, settled=True)) == []
    assert list(export.rows(database, batch="none")) == []


def test_the_stream_turns_its_pages_without_a_gap_or_a_repeat(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, items = stage(database, [Play(str(n), labels(str(n), "neutral"), ACCEPTED) for n in range(7)])
    other, _ = stage(database, [Play("other", labels("other", "neutral"), ACCEPTED)])
    with db.read(database) as session:
        first = export.page(session, limit=3)
        second = export.page(session, limit=5, after=first.after or 0)
        assert (first.after, second.after) == (items[2], items[6] + 1)
        assert export.page(session, limit=5, after=second.after or 0).rows == []
    assert [row["text"] for row in first.rows + second.rows] == [*map(str, range(7)), "other"]
    monkeypatch.setattr(export.page, "__kwdefaults__", {**(export.page.__kwdefaults__ or {}), "limit": 2})
    assert [row["text"] for row in export.rows(database)] == [*map(str, range(7)), "other"]
    assert [row["text"] for row in export.rows(database, batch=other)] == ["other"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(labelled(), min_size=1, max_size=6))
def test_what_people_settled_comes_back_as_gold_bit_for_bit(database: Engine, texts: list[tuple[str, Labels]]) -> None:
    batch, _ = stage(database, [Play(text, said) for text, said in texts])
    settle(database, batch)
    lines = [json.dumps(row, ensure_ascii=False) for row in export.rows(database, batch=batch, settled=True)]
    rows = [json.loads(line) for line in lines]
    assert [row["text"] for row in rows] == [text for text, _ in texts]
    for row, (text, said) in zip(rows, texts, strict=True):
        assert row["sentiment"] == said.choices["sentiment"].label
        assert all(span["text"] == text[span["start"] : span["end"]] for span in row["entities"])
        assert [(x["start"], x["end"], x["label"]) for x in row["entities"]] == [
            (x.start, x.end, x.label) for x in said.mentions["entities"].spans
        ]
    assert upload(database, batch, rows) == {"added": len(texts), "replaced": 0, "unchanged": 0}
    assert upload(database, batch, rows) == {"added": 0, "replaced": 0, "unchanged": len(texts)}
    with db.read(database) as session:
        again = gold.items(session, batch).rows
    assert again == [{name: row[name] for name in ("id", "text", "sentiment", "entities")} for row in rows]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(labelled())
def test_every_span_that_leaves_is_exact_in_code_points_and_utf16(database: Engine, made: tuple[str, Labels]) -> None:
    text, said = made
    batch, _ = stage(database, [Play(text, said, ACCEPTED)])
    (row,) = map(json.loads, [json.dumps(row) for row in export.rows(database, batch=batch)])
    units = text.encode("utf-16-le")
    assert row["text"] == text
    for span in row["entities"]:
        assert span["text"] == text[span["start"] : span["end"]]
        assert span["text"] == units[2 * span["start_utf16"] : 2 * span["end_utf16"]].decode("utf-16-le")


def test_two_texts_with_one_id_both_come_back_as_gold(database: Engine) -> None:
    one, _ = stage(
        database, [Play("a", labels("a", "neutral"), ref="same"), Play("b", labels("b", "positive"), ref="same")]
    )
    two, _ = stage(database, [Play("c", labels("c", "negative"), ref="same")])
    settle(database, one)
    settle(database, two)
    rows = list(export.rows(database, settled=True))
    assert [row["id"] for row in rows] == ["same", f"{one}:1", f"{two}:0"]
    assert upload(database, "all", rows)["added"] == 3


def test_no_field_of_a_row_can_be_the_name_of_a_task(database: Engine) -> None:
    batch, _ = stage(database, [Play("a", labels("a", "neutral"))])
    settle(database, batch)
    tasks = {task.name for task in SCHEMA.tasks}
    for settled in (False, True):
        (row,) = export.rows(database, batch=batch, settled=settled)
        assert row.keys() - tasks <= RESERVED
