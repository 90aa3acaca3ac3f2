"""Collections of gold sets: declared in YAML, read from a folder, every record used or refused with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.errors import Invalid, NotFound
from service.sets import Collection, GoldSet, parse_declaration, read_file, read_part, read_sets
from service.settings import Settings

DECLARED = {
    "mood": {"train": "mood/train.jsonl", "test": "mood/test.jsonl"},
    "bots": {"train": "bots/train.jsonl", "by": "domain", "other": "NONE", "examples": 30},
}


def collection(**changes: dict[str, Any]) -> Collection:
    about = {"source": "here", "licence": "none", "attribution": "us"}
    return Collection.model_validate({"sets": {k: about | v | changes.get(k, {}) for k, v in DECLARED.items()}})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    def write(name: str, records: list[dict[str, Any]]) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))

    write("mood/train.jsonl", [{"text": "good", "mood": "positive"}, {"text": "hm", "mood": "neutral"}])
    write("mood/test.jsonl", [{"text": "bad", "mood": "negative"}])
    bots = [("x", "a", "hi"), ("x", "NONE", "?"), ("y", "b", "bye"), ("y", "c", "so"), ("y", "NONE", "!")]
    write("bots/train.jsonl", [{"text": t, "intent": i, "meta": {"domain": d}} for d, i, t in bots])
    return tmp_path


def test_the_schema_of_a_set_knows_the_labels_of_all_its_files(data: Path) -> None:
    (mood,) = read_sets(collection(), data, ["test"], ["mood"])
    assert [label.name for label in mood.schema.tasks[0].labels] == ["negative", "neutral", "positive"]
    assert [gold.text for gold in mood.splits["test"]] == ["bad"]
    assert "train" not in mood.splits


def test_parts_with_label_sets_of_their_own_are_told_apart(data: Path) -> None:
    x, y = read_sets(collection(), data, ["train"], ["bots"])
    assert (x.name, y.name) == ("bots/x", "bots/y")
    assert [label.shown for label in y.schema.tasks[0].labels] == ["other", "b", "c"]
    assert x.other == {"intent": "NONE"}
    assert (x.examples, y.examples) == (12, 18)


def test_labels_can_be_left_out_and_shown_under_other_names(data: Path) -> None:
    (mood,) = read_sets(
        collection(mood={"without": ["neutral"], "display": {"negative": "awful"}}), data, ["train", "test"], ["mood"]
    )
    assert {label.name: label.shown for label in mood.schema.tasks[0].labels} == {
        "negative": "awful",
        "positive": "positive",
    }
    assert [gold.text for gold in mood.splits["train"]] == ["good"]


def test_a_record_that_the_schema_cannot_hold_is_refused_with_its_reason_and_the_rest_is_read(data: Path) -> None:
    spans = [{"start": 0, "end": 4, "label": "a"}, {"start": 2, "end": 6, "label": "a"}]
    records = [{"id": "one", "text": "abcdefgh", "names": spans}, {"id": "two", "text": "ok", "names": []}]
    (data / "mood" / "test.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (mood,) = read_sets(collection(mood={"train": None}), data, ["test"], ["mood"])
    assert [gold.text for gold in mood.splits["test"]] == ["ok"]
    (refused,) = mood.refused
    assert refused.startswith("mood, test, record one: ")
    assert "overlap" in refused


def test_a_mistake_in_a_declaration_names_the_field(tmp_path: Path) -> None:
    path = tmp_path / "sets.yaml"
    path.write_text("sets:\n  mood: {source: here, licence: none, attribution: us, exmples: 3}\n")
    with pytest.raises(Invalid, match=r"sets\.mood\.exmples"):
        parse_declaration(path, Collection)
    path.write_text("sets: [")
    with pytest.raises(Invalid, match=r"sets\.yaml"):
        parse_declaration(path, Collection)
    with pytest.raises(Invalid, match="nowhere"):
        parse_declaration(tmp_path / "nowhere.yaml", Collection)


def test_a_set_that_is_not_declared_or_not_there_is_named(data: Path) -> None:
    with pytest.raises(Invalid, match="no set 'nothing'; there is mood, bots"):
        read_sets(collection(), data, ["test"], ["nothing"])
    with pytest.raises(NotFound, match=r"nothing\.jsonl"):
        read_sets(collection(mood={"test": "nothing.jsonl"}), data, ["test"], ["mood"])


def test_a_part_without_labels_is_named() -> None:
    declared = GoldSet(source="here", licence="none", attribution="us", by="bot")
    moods = [{"text": mood, "mood": mood, "meta": {"bot": "one"}} for mood in ("low", "high")]
    records = [*moods, {"text": "b", "meta": {"bot": "two"}}]
    with pytest.raises(Invalid, match=r"^bots/two: no schema can be made of these records"):
        read_part("bots", declared, {"test": records})


def test_a_gold_file_that_does_not_fit_says_which_record_and_field(tmp_path: Path) -> None:
    path = tmp_path / "9 odd-Name.jsonl"
    path.write_text('{"text": "a", "topic": "x"}\n{"text": "b", "topic": "y"}\n')
    assert read_file(str(path), None, Settings()).schema.name == "s_9_odd_name"
    path.write_text('{"text": "a", "sentiment": "negative"}\n{"text": "b", "sentiment": "glad"}\n')
    with pytest.raises(Invalid, match="record 2: sentiment"):
        read_file(str(path), "support", Settings())
    path.write_text('{"body": "a"}\n')
    with pytest.raises(Invalid, match="record 1: expected a text"):
        read_file(str(path), "support", Settings())
    path.write_text("")
    with pytest.raises(Invalid, match="no records"):
        read_file(str(path), "support", Settings())


def test_a_gold_file_keeps_who_said_what_where_it_came_from_and_its_id(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    people: list[Any] = [
        {"annotator": "eva", "sentiment": "positive"},
        {"annotator": "jo", "sentiment": {"label": "negative"}},
        {"annotator": "asked for some labels only", "sentiment": "positive", "labels": ["positive"]},
        {"annotator": 5, "sentiment": "positive"},
        "nobody",
    ]
    records = [
        {"id": 7, "text": "a", "sentiment": "positive", "meta": {"source": "mail"}, "annotations": people},
        {"text": "b", "sentiment": "negative", "meta": "none", "annotations": "none"},
        {"text": "c", "sentiment": "negative", "annotations": 5},
        {"text": "d", "sentiment": "negative", "annotations": {"annotator": "eva"}},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    first, *others = read_file(str(path), "support", Settings()).splits["test"]
    assert (first.id, first.meta) == ("7", {"source": "mail"})
    assert [(one.who, one.labels.choices["sentiment"].label, one.asked) for one in first.people] == [
        ("eva", "positive", None),
        ("jo", "negative", None),
    ]
    assert first.record() == {"id": "7", "text": "a", "sentiment": "positive"}
    assert [(one.id, one.meta, one.people) for one in others] == [("2", {}, ()), ("3", {}, ()), ("4", {}, ())]


def test_a_gold_file_says_which_labels_each_person_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    ann = {"start": 0, "end": 3, "label": "person", "text": "Ann"}
    town, thing = ann | {"label": "place"}, ann | {"label": "thing"}
    people = [
        {"annotator": "eva", "labels": ["person"], "entities": [ann]},
        {"annotator": "eva", "labels": ["place"], "entities": [town]},  # overlaps what she said when asked before
        {"annotator": "jo", "labels": ["person", "thing"], "entities": [ann, ann | {"label": "thing"}]},
        {"annotator": "kim", "labels": ["thing"], "entities": [thing]},  # gold knows no things
        {"annotator": "lou", "labels": [], "entities": []},
        {"annotator": "max", "labels": ["place"]},  # was asked, and is not known to have answered
    ]
    both = [ann, {"start": 4, "end": 8, "label": "place"}]
    path.write_text(json.dumps({"text": "Ann Oslo", "entities": both, "annotations": people}))
    (first,) = read_file(str(path), None, Settings()).splits["test"]
    said = [(one.who, one.asked, [s.label for s in one.labels.mentions["entities"].spans]) for one in first.people]
    assert said == [
        ("eva", {"person"}, ["person"]),
        ("eva", {"place"}, ["place"]),
        ("jo", {"person"}, ["person"]),
    ]
    for wrong, says in (
        ({"labels": ["place"], "entities": [ann]}, r"eva: entities\[0\].label: expected a label that was asked for"),
        ({"labels": "place", "entities": []}, "eva: labels: expected a list"),
        ({"labels": ["place"], "entities": [5]}, r"eva: entities\[0\]: expected an object"),
        ({"labels": ["place"], "entities": [{"label": []}]}, r"eva: entities\[0\]"),
        ({"labels": ["place"], "entities": "none"}, "eva: entities: expected a list"),
    ):
        path.write_text(
            json.dumps({"text": "Ann Oslo", "entities": both, "annotations": [{"annotator": "eva"} | wrong]})
        )
        with pytest.raises(Invalid, match=says):
            read_file(str(path), None, Settings())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (r'{"text": "a\u0000b", "sentiment": "positive"}', "record 2: a NUL character at 1"),
        (r'{"text": "\ud83d", "sentiment": "positive"}', "record 2: half a surrogate pair at 0"),
        (
            '{"text": "b", "annotations": [{"annotator": "eva", "sentiment": "glad"}]}',
            "record 2: annotations, eva: sentiment",
        ),
    ],
)
def test_a_gold_text_that_cannot_be_kept_and_a_label_that_nobody_can_give_name_their_record(
    tmp_path: Path, line: str, says: str
) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f'{{"text": "a", "sentiment": "positive"}}\n{line}\n')
    with pytest.raises(Invalid, match=says):
        read_file(str(path), "support", Settings())


def test_a_set_names_the_sets_whose_texts_mean_none_of_its_labels(data: Path) -> None:
    parts = read_sets(collection(bots={"strangers": ["mood"]}), data, ["train"])
    assert {part.name: part.strangers for part in parts} == {"mood": (), "bots/x": ("mood",), "bots/y": ("mood",)}
