"""Every number of an evaluation's document comes from the functions of `eval`, and what it lists is what it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine as Database

from eval.agreement import choice_agreement, span_agreement
from eval.calibration import calibrate, length_bands
from eval.ceiling import choice_ceiling, span_ceiling
from eval.guarantee import work
from eval.parts import part_of
from eval.scores import Estimate, proportion, ranking
from service import db, findings, prompt, standards
from service.annotate import Annotated, Failure, Plan
from service.engine import Identity, Request
from service.engine.scripted import Scripted, completion
from service.errors import EngineError
from service.evaluation import Evaluation, evaluate
from service.labels import Choice, Labels, Mentions, Span
from service.route import Standard
from service.schema import Schema
from service.sets import Gold, Judgement
from service.settings import PROJECT

WHAT = Schema.model_validate(
    {
        "name": "mood",
        "tasks": [
            {"name": "mood", "kind": "choice", "labels": ["bad", "good", "so so"]},
            {"name": "names", "kind": "spans", "labels": ["person", "place"]},
        ],
    }
)
LINE = prompt.load(PROJECT / "prompts", "line.v2")
Said = tuple[str, float]  # mood, log-probability of each token
RNG = np.random.default_rng(3)
WORDS = ["".join(chr(97 + x) for x in letters) for letters in RNG.integers(0, 26, (400, 9))]


def labels(text: str, mood: str | None, names: Sequence[tuple[str, str]] | None = ()) -> Labels:
    spans = tuple(
        Span(start=text.index(name), end=text.index(name) + len(name), label=label, text=name)
        for name, label in names or ()
    )
    return Labels(
        choices={"mood": Choice(label=mood)} if mood else {},
        mentions={} if names is None else {"names": Mentions(spans=spans)},
    )


def gold(text: str, mood: str | None = "good", names: Sequence[tuple[str, str]] | None = (), **more: Any) -> Gold:
    return Gold(text, labels(text, mood, names), more.pop("id", text), **more)


def evaluated(
    golds: Sequence[Gold], answers: Mapping[str, Said], database: Database | None = None, model: str = "m"
) -> Evaluation:
    """answers: by text, what the model says; `down`: nothing."""

    def answer(request: Request) -> Any:
        text = request.messages[-1].content.rpartition("Text: ")[2]
        said, logprob = answers[text]
        return EngineError("down", retryable=True) if said == "down" else completion(f" {said}", logprob=logprob)

    engine = Scripted(answer)
    engine.identity = Identity("scripted", model)
    plan = Plan(WHAT, LINE, engine.identity)
    return asyncio.run(evaluate(golds, plan, engine, database, lambda: None))


def placed(one: Labels) -> set[tuple[int, int, str]]:
    return {(span.start, span.end, span.label) for span in one.mentions["names"].spans}


@pytest.fixture(scope="module")
def found() -> Evaluation:
    golds, answers = [], {}
    for n, word in enumerate(WORDS[:120]):
        text = f"Ann went to Oslo {word}"
        people = [Judgement(who, labels(text, "good" if n % (3 + k) else "bad")) for k, who in enumerate(("eva", "jo"))]
        names = [("Ann", "person")] + ([("Oslo", "place")] if n % 2 else [])
        meta = {"source": "mail" if n % 2 else "chat", "label": "x" if n < 60 else "y", "length": n % 2, "n": n}
        meta |= {"odd": [1], "half": 0.5, "nothing": None}
        golds.append(gold(text, "bad" if n % 7 == 0 else "good", names, people=people if n < 40 else (), meta=meta))
        mood = "down" if n == 119 else "so so" if n % 11 == 0 else "good"
        answers[text] = (f"{mood} | Ann = {'person' if n % 5 else 'place'} | Oslo = place" if n != 119 else mood, 0.0)
        answers[text] = (answers[text][0], -0.02 * (1 + n % 13))
    return evaluated(golds, answers)


def test_every_number_is_that_of_the_function_it_is_named_after(found: Evaluation) -> None:
    document = findings.document(found, "set", found.gold, None)
    mood, names = document["tasks"]["mood"], document["tasks"]["names"]
    pairs = found.pairs
    assert (document["texts"], document["failed"], len(pairs)) == (120, 1, 119)
    sides = [[one.choices["mood"] for one in side] for side in zip(*((g.labels, s) for g, s in pairs), strict=True)]
    right = [a.label == b.label for a, b in zip(*sides, strict=True)]
    sure = [choice.confidence or 0.0 for choice in sides[1]]
    texts = [one.text for one, _ in pairs]
    assert mood.items() >= asdict(choice_agreement([c.label for c in sides[0]], [c.label for c in sides[1]])).items()
    assert mood["ranking"] == asdict(ranking(sure, right))  # type: ignore[arg-type]
    slices = {
        "label": [choice.label for choice in sides[1]],
        "length": list(length_bands([len(text) for text in texts])),
        "meta.label": [one.meta["label"] for one, _ in pairs],
        "meta.length": [str(one.meta["length"]) for one, _ in pairs],
        "source": [one.meta["source"] for one, _ in pairs],
    }
    identity = {key: document["gold"][key] for key in ("name", "sha256")}
    worth = asdict(calibrate(sure, right, texts, slices, identity))
    assert {key: mood["confidence"][key] for key in ("before", "after")} == {k: worth[k] for k in ("before", "after")}
    assert sorted(map(str, mood["confidence"]["cells"])) == sorted(map(str, worth["cells"]))
    read = pairs[:40]
    people = [{one.who: one.labels.choices["mood"].label for one in g.people} for g, _ in read]
    assert mood["ceiling"] == asdict(choice_ceiling(people, [s.choices["mood"].label for _, s in read]))
    assert (
        names.items()
        >= asdict(span_agreement([placed(g.labels) for g, _ in pairs], [placed(s) for _, s in pairs])).items()
    )
    marked = [{one.who: placed(one.labels) for one in g.people} for g, _ in read]
    assert names["ceiling"] == asdict(span_ceiling(marked, [placed(s) for _, s in read]))


def test_people_who_were_asked_for_some_labels_are_the_ceiling_of_these() -> None:
    text = "Ann went to Oslo so"
    ann, oslo = ("Ann", "person"), ("Oslo", "place")
    judged = [("eva", [ann], "person"), ("jo", [ann], "person"), ("jo", [oslo], "place"), ("kim", [], "place")]
    people = [Judgement(who, labels(text, None, names), frozenset({asked})) for who, names, asked in judged]
    found = evaluated([gold(text, people=people)], {text: ("good | Ann = person | Oslo = place", -0.1)})
    ceiling = findings.document(found, "set", found.gold, None)["tasks"]["names"]["ceiling"]
    # eva and jo agree on Ann; jo marked Oslo, kim did not.
    assert (ceiling["n"], ceiling["cases"], ceiling["f1"]["value"]) == (1, 3, 2 / 3)
    assert [(pair["first"], pair["second"], pair["score"]["value"]) for pair in ceiling["pairs"]] == [
        ("eva", "jo", 1.0),
        ("jo", "kim", 0.0),
    ]


def test_a_document_is_plain_json_without_a_number_that_is_none(found: Evaluation) -> None:
    document = findings.document(found, "set", found.gold, None)
    again = json.loads(json.dumps(document, allow_nan=False))
    assert again["kind"] == "evaluation"
    assert {curve["of"] for curve in again["curves"]} == {"item", "mood", "names"}


@pytest.mark.parametrize(
    "golds",
    [
        [],
        [gold("Ann")],
        [gold("down")],
        [gold("Ann", None, None)],
        [gold("Ann", "good", None), gold("Bob", None, ())],
        [gold("Ann", "bad", (), meta={"a": True}, people=[Judgement("eva", labels("Ann", "bad", None))])],
    ],
)
def test_next_to_no_gold_is_told_in_full_too(golds: list[Gold]) -> None:
    said = {"down": "down", "Ann": "good | Ann = person", "Bob": "good"}
    answers = {one.text: (said[one.text], -0.1) for one in golds}
    found = evaluated(golds, answers)
    made = standards.make(WHAT, golds, found.answers, {"mood": 0.1, "item": 0.1}, 0.9, {"name": "g"})
    document = findings.promised(findings.document(found, "set", golds, None), found, made, findings.Workload())
    json.dumps(document, allow_nan=False)
    assert {"mood", "item"} <= {curve["of"] for curve in document["curves"]}
    assert all(curve["chosen"] is None for curve in document["curves"])


LOAD = findings.Workload(items=500, seconds=30.0, price=20.0)


# --- curves -----------------------------------------------------------------------------------------------------------


def told(rows: Sequence[tuple[float, bool]]) -> Evaluation:
    """Texts with these confidences, right or not."""
    golds = [gold(WORDS[n % 400] * (1 + n // 400)) for n in range(len(rows))]
    answers: list[Annotated | Failure] = [
        Annotated(
            Labels(
                choices={"mood": Choice(label="good" if right else "bad", confidence=sure)},
                mentions={"names": Mentions(complete=1.0)},
            )
        )
        for sure, right in rows
    ]
    return Evaluation(Plan(WHAT, LINE, Identity("e", "m")), golds, answers, {"mood": {}, "names": {}}, 0, 0.0, 0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 100), st.booleans()), min_size=1, max_size=300))
def test_a_curve_is_what_counting_gives(rows: list[tuple[int, bool]]) -> None:
    pairs = [(sure / 100, right) for sure, right in rows]
    points = findings.curve(told(pairs), "mood", Standard(), ["mood"], ["mood"])["points"]
    assert 1 <= len(points) <= 60
    for point in points:
        taken = [right for sure, right in pairs if sure >= point["threshold"]]
        assert point["coverage"] == len(taken) / len(pairs)
        assert point["error"] == asdict(proportion(taken.count(False), len(taken)))  # type: ignore[arg-type]
    assert points[-1]["coverage"] == 1
    thresholds = [point["threshold"] for point in points]
    assert thresholds == sorted(set(thresholds), reverse=True)


def test_the_point_that_was_chosen_stands_on_its_curve_with_what_the_test_part_gave() -> None:
    found = told([(0.4 + n / 1000, n % 20 > 0 or n > 300) for n in range(390)])
    made = standards.make(WHAT, found.gold, found.answers, {"mood": 0.2}, 0.9, {"name": "g"})
    document = findings.promised({"curves": [{"of": "item"}, {"of": "mood"}]}, found, made, LOAD)
    mood, item = document["curves"]
    assert item == {"of": "item"}
    (check,), (line,) = document["checks"], made.standard.lines
    assert mood["chosen"] == {
        "threshold": line.threshold,
        "coverage": check["coverage"]["value"],
        "error": check["error"]["value"],
    }
    assert document["promises"] == made.promises
    assert made.lacking  # nothing is promised of the names, so that no item can be accepted
    assert document["work"] == asdict(work(None, 500, 30.0, 20.0)) | {"price": 20.0}
    document = findings.promised(document, found, replace(made, unstated=()), LOAD)
    coverage = Estimate(**made.promises[0]["coverage"])
    assert document["work"] == asdict(work(coverage, 500, 30.0, 20.0)) | {"price": 20.0}
    assert mood["points"][-1]["threshold"] <= line.threshold <= mood["points"][0]["threshold"]


# --- what is listed ---------------------------------------------------------------------------------------------------


def test_disagreements_of_all_kinds_are_shown_the_surest_first() -> None:
    golds, answers = [], {}
    kinds = {
        "good": ("bad", [("Ann", "person")]),
        "good | Ann = person": ("so so", [("Ann", "person")]),
        "bad | Ann = place": ("bad", [("Ann", "person")]),
        "bad | Ann": ("bad", []),
    }
    for n, word in enumerate(WORDS[:80]):
        text = f"Ann {word}"
        said = list(kinds)[0 if n < 60 else n % 3]
        mood, names = kinds[said]
        golds.append(gold(text, mood, names))
        answers[text] = (said, -0.001 * (1 + (n * 37) % 80))
    listed = findings.disagreements(evaluated(golds, answers))
    assert len(listed) == findings.SHOWN
    seen: dict[tuple[str, str], list[float]] = {}
    for entry in listed:
        seen.setdefault((entry["task"], entry["why"]), []).append(entry["confidence"])
    assert set(seen) == {
        ("mood", "good was said where people say bad"),
        ("mood", "good was said where people say so so"),
        ("names", "1 missed"),
        ("names", "1 wrong label"),
    }
    assert all(sure == sorted(sure, reverse=True) for sure in seen.values())


def suspicious(word: str = WORDS[200]) -> tuple[list[Gold], dict[str, Said], str]:
    """A hundred texts on which a sure label is right, unsure ones are not; and one sure label that gold contradicts."""
    golds = [gold(word, "good" if n < 80 or n % 2 else "bad") for n, word in enumerate(WORDS[:100])]
    answers: dict[str, Said] = {one.text: ("good", -0.01 if n < 80 else -1.2) for n, one in enumerate(golds)}
    golds.append(gold(word, "bad", id="odd"))
    answers[word] = ("good", -0.01)
    return golds, answers, word


def test_gold_that_a_sure_label_contradicts_is_suspected_with_the_reason() -> None:
    golds, answers, word = suspicious()
    (entry,) = findings.suspects(evaluated(golds, answers), None)
    assert (entry["id"], entry["text"], entry["gold"], entry["said"]) == ("odd", word, "bad", "good")
    assert entry["reason"].startswith("labels as sure as this agree with people in 9")
    twin = gold(word, "good", id="twin")
    (entry,) = findings.suspects(evaluated([*golds, twin], answers), None)
    assert entry["reason"].endswith("the same text has another label in twin")


def test_gold_is_not_suspected_where_another_recipe_sides_with_it(database: Database) -> None:
    golds, answers, word = suspicious()
    found = evaluated(golds, answers, database)
    evaluated(golds, answers | {WORDS[3]: ("bad", -0.01)}, database, "another")
    with db.read(database) as session:
        (entry,) = findings.suspects(found, session)
    assert "1 other recipe says the same" in entry["reason"]
    evaluated([golds[-1]], {word: ("bad", -0.01)}, database, "a third")
    with db.read(database) as session:
        assert findings.suspects(found, session) == []


def test_texts_that_are_nearly_the_same_in_two_parts_are_reported() -> None:
    long = "please send the parcel with the green garden chairs to my new address in the old town "
    twins = {part_of(long + word): long + word for word in WORDS[:60]}
    assert len(twins) == 3
    leaks = findings.gold_identity("set", [gold(text) for text in [*twins.values(), *WORDS[:50]]])["leaks"]
    assert len(leaks) == 3
    for leak in leaks:
        assert {part_of(leak["one"]), part_of(leak["other"])} == set(leak["groups"])
        assert leak["one"].startswith(long) and leak["other"].startswith(long)


def test_a_gold_set_is_the_same_whatever_its_order_and_another_when_a_label_changes() -> None:
    golds = [gold(word) for word in WORDS[:40]]
    identity = findings.gold_identity("set", golds)
    assert findings.gold_identity("set", golds[::-1])["sha256"] == identity["sha256"]
    assert findings.gold_identity("set", [gold(WORDS[0], "bad"), *golds[1:]])["sha256"] != identity["sha256"]
    assert sum(identity["parts"].values()) == identity["texts"] == 40
