"""A standard keeps what it promises, rests on the texts it may rest on, and is kept in versions that nobody changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom
from sqlalchemy import Engine as Database
from sqlmodel import select

from eval.parts import use_of
from service import db, standards
from service.annotate import Annotated, Failure
from service.confidence import calibrated
from service.errors import Invalid, NotFound
from service.labels import Choice, Labels, Mentions, Span
from service.models import Recipe, StandardVersion
from service.route import Calibrators, Code, Evidence, Line, Outcome, Policy, Standard, decide, score
from service.schema import Schema
from service.sets import Gold
from service.standards import ITEM, Made, make, scored

WHAT = Schema.model_validate(
    {
        "name": "mood",
        "tasks": [
            {"name": "mood", "kind": "choice", "labels": ["bad", "good"]},
            {"name": "names", "kind": "spans", "labels": ["person"]},
        ],
    }
)
CHOICE = Schema.model_validate({"name": "mood", "tasks": WHAT.model_dump()["tasks"][:1]})
GOLD = {"name": "set", "sha256": "0" * 64}
TRIALS = 80
LEVEL = 0.8
Row = tuple[Gold, Annotated | Failure]


def words(count: int, seed: int = 0) -> Iterator[str]:
    """Texts that differ in their letters, since texts that differ in numbers alone are in one part."""
    rng = np.random.default_rng(seed)
    for letters in rng.integers(0, 26, (count, 12)):
        yield "Ann " + "".join(chr(97 + letter) for letter in letters)


def said(sure: float, mood: str = "good", *, name: bool = True, span: float = 0.9, complete: float = 0.9) -> Labels:
    spans = (Span(start=0, end=3, label="person", text="Ann", confidence=span),) if name else ()
    return Labels(
        choices={"mood": Choice(label=mood, confidence=sure)},
        mentions={"names": Mentions(spans=spans, complete=complete)},
    )


def gold(text: str, mood: str = "good") -> Gold:
    return Gold(text, said(1.0, mood), text)


def row(text: str, sure: float, right: bool) -> Row:
    return gold(text), Annotated(said(sure, "good" if right else "bad"))


def made(rows: Sequence[Row], errors: dict[str, float], level: float = LEVEL, schema: Schema = CHOICE) -> Made:
    return make(schema, [one for one, _ in rows], [answer for _, answer in rows], errors, level, GOLD)


def promised(rows: Sequence[Row], error: float = 0.1) -> dict[str, Any]:
    (found,) = made(rows, {"mood": error}).promises
    return found


def in_part(part: str, count: int) -> list[str]:
    return [text for text in words(5 * count + 60) if use_of(text) == part][:count]


# --- what is promised -------------------------------------------------------------------------------------------------

PLACES = np.linspace(0.3, 0.995, 60)  # confidences of the population, each as frequent as the others
RISKS = {
    "falls as confidence rises": 0.35 * (1 - PLACES) + 0.02,
    "is a little too high everywhere": np.full_like(PLACES, 0.104),
    "is highest where the model is surest": np.where(PLACES > 0.9, 0.14, 0.06),
}


@pytest.mark.parametrize("shape", RISKS)
def test_the_accepted_error_exceeds_the_stated_one_no_more_often_than_was_said(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.guarantee._enough", lambda *_: None)  # how many more are needed: not asked here
    rng = np.random.default_rng(1)
    texts = list(words(TRIALS * 250, seed=2))
    risk, broken = RISKS[shape], 0
    for trial in range(TRIALS):
        drawn = rng.integers(0, len(PLACES), 250)
        right = rng.random(250) >= risk[drawn]
        mine = texts[250 * trial : 250 * (trial + 1)]
        found = made([row(t, PLACES[k], bool(r)) for t, k, r in zip(mine, drawn, right, strict=True)], {"mood": 0.1})
        broken += bool(found.standard.lines) and accepted_error(found.standard, risk) > 0.1 + 1e-9
    assert broken <= binom.ppf(0.999, TRIALS, 1 - LEVEL)


def accepted_error(standard: Standard, risk: Any) -> float:
    """Of all texts to come, by the very decision that the service makes."""
    decisions = [
        decide(calibrated(said(sure), standard), Policy(), Evidence(draw=1.0, standard=standard)) for sure in PLACES
    ]
    taken = [decision.outcome is Outcome.accepted for decision in decisions]
    return float(risk[taken].mean()) if any(taken) else 0.0


def test_a_promise_of_whole_items_counts_an_item_as_wrong_where_any_task_is() -> None:
    texts = in_part("promise", 60)
    rows: list[Row] = [(gold(text), Annotated(said(0.9, name=n % 6 > 0))) for n, text in enumerate(texts)]
    (whole,) = made(rows, {ITEM: 0.5}, schema=WHAT).promises
    (mood,) = made(rows, {"mood": 0.5}, schema=WHAT).promises
    assert (whole["of"], whole["accepted"], whole["wrong"]) == (ITEM, 60, 10)
    assert (mood["of"], mood["accepted"], mood["wrong"]) == ("mood", 60, 0)
    assert made(rows, {ITEM: 0.5}, schema=WHAT).standard.lines[0].task is None


def test_several_promises_hold_together_by_each_holding_more_surely() -> None:
    rows = [row(text, 0.9, True) for text in in_part("promise", 120)]
    found = made(rows, {"mood": 0.1, "names": 0.2, ITEM: 0.3}, level=0.94, schema=WHAT)
    assert [line.task for line in found.standard.lines] == ["mood", "names", None]
    assert [line.error for line in found.standard.lines] == [0.1, 0.2, 0.3]
    assert {round(line.level, 12) for line in found.standard.lines} == {0.98}
    assert {round(promise["level"], 12) for promise in found.promises} == {0.98}


def test_with_too_little_gold_it_is_said_how_much_more_is_needed_and_nothing_is_held_to() -> None:
    found = made([row(text, 0.9, True) for text in in_part("promise", 12)], {"mood": 0.03}, level=0.95)
    assert found.standard.lines == ()
    assert found.checks == []
    (why,) = found.lacking
    assert "mood: cannot be promised with 12 calibration items: about" in why
    assert "more are needed" in why
    assert made([], {"mood": 0.03}).lacking == ["mood: cannot be promised with 0 calibration items"]


@pytest.mark.parametrize(
    ("errors", "level", "says"),
    [
        ({"moot": 0.1}, 0.9, "no task 'moot'"),
        ({"mood": 0.0}, 0.9, "error of mood"),
        ({"mood": 1.0}, 0.9, "error of mood"),
        ({ITEM: float("nan")}, 0.9, "error of item"),
        ({"mood": 0.1}, 1.0, "confidence"),
        ({"mood": 0.1}, float("nan"), "confidence"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_by_name(errors: dict[str, float], level: float, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        made([], errors, level)


# --- what it rests on -------------------------------------------------------------------------------------------------


def test_a_promise_counts_the_calibrate_part_and_the_test_part_only_tells_what_came_of_it() -> None:
    tune, calibrate, test = (in_part(part, 60) for part in ("tune", "promise", "test"))
    sure = [row(text, 0.5 + n / 200, True) for n, text in enumerate(calibrate)]
    without = made(sure, {"mood": 0.1})
    rest = [row(text, 0.99, n % 2 == 0) for n, text in enumerate(test)]
    found = made(sure + rest, {"mood": 0.1})
    assert found.promises == without.promises
    assert found.promises[0]["n"] == 60
    assert (found.checks[0]["n"], found.checks[0]["error"]["value"]) == (60, 0.5)
    wrong = made(sure + rest + [row(text, 0.99, False) for text in tune], {"mood": 0.1})
    for key in ("n", "accepted", "wrong", "coverage"):
        assert wrong.promises[0][key] == without.promises[0][key]
    assert wrong.sizes == {"tune": 60, "choose": 0, "promise": 60, "test": 60}


def test_calibrators_are_fitted_on_the_tune_part_alone() -> None:
    tune = [row(text, 0.5 + n % 40 / 100, n % 3 > 0) for n, text in enumerate(in_part("tune", 60))]
    others = [row(text, 0.9, False) for part in ("promise", "test") for text in in_part(part, 60)]
    found = made(tune + others, {}, schema=WHAT).standard
    assert found.calibrators == made(tune, {}, schema=WHAT).standard.calibrators
    assert (found.calibrators["mood"].each["texts"], found.calibrators["mood"].whole) == (60, None)
    assert found.calibrators["names"].whole is not None
    assert found.calibrators["mood"].each["gold"] == GOLD


def test_texts_that_a_person_sees_in_any_case_are_left_out() -> None:
    texts = in_part("promise", 80)
    sure = [row(text, 0.9, True) for text in texts[:60]]
    other, same = said(0.9, "bad"), said(0.2, "good")
    routed: list[Row] = [(gold(text), Annotated(said(0.9, "bad"), truncated=True)) for text in texts[60:65]]
    routed += [(gold(text), Annotated(said(0.9, "good"), second=other)) for text in texts[65:70]]
    agreed: list[Row] = [(gold(text), Annotated(said(0.9, "good"), second=same)) for text in texts[70:75]]
    failed: list[Row] = [(gold(text), Failure(Code.failed, "down")) for text in texts[75:]]
    found = made(sure + routed + agreed + failed, {"mood": 0.1})
    assert found.promises[0]["n"] == found.promises[0]["accepted"] == 65
    assert (found.left_out, found.sizes["promise"]) == (10, 80)


def test_texts_of_which_gold_lacks_a_task_that_is_promised_do_not_count() -> None:
    texts = in_part("promise", 60)
    partly = [Gold(text, Labels(choices={"mood": Choice(label="good")}), text) for text in texts]
    rows: list[Row] = [(one if n < 20 else gold(one.text), Annotated(said(0.9))) for n, one in enumerate(partly)]
    found = made(rows, {"mood": 0.2, "names": 0.2, ITEM: 0.2}, schema=WHAT)
    assert [promise["n"] for promise in found.promises] == [40, 40, 40]
    assert made(rows, {"mood": 0.2}, schema=WHAT).promises[0]["n"] == 60


def test_an_error_for_some_tasks_alone_is_told_and_cannot_be_put_in_force() -> None:
    rows = [row(text, 0.9, True) for text in in_part("promise", 60)]
    found = made(rows, {"mood": 0.2}, schema=WHAT)
    assert found.promises[0]["threshold"] is not None
    assert found.lacking == ["names: no error was stated"]
    assert made(rows, {"mood": 0.2, "names": 0.2}, schema=WHAT).lacking == []
    assert made(rows, {ITEM: 0.2}, schema=WHAT).lacking == []


def test_texts_that_stand_several_times_are_told_of() -> None:
    rows = [row(text, 0.9, True) for text in in_part("promise", 40)]
    assert made(rows, {"mood": 0.2}).notes == {}
    assert made(rows + rows[:10], {"mood": 0.2}).notes["sample"].startswith("10 of the 50 texts")


def test_how_sure_and_whether_right_are_told_text_by_text() -> None:
    rows: list[Row] = [row("Ann a", 0.9, True), row("Ann b", 0.6, False), (gold("Ann c"), Failure(Code.failed, "down"))]
    golds, answers = [one for one, _ in rows], [answer for _, answer in rows]
    assert scored(golds, answers, Standard(), ["mood"], ["mood"]) == ([0.9, 0.6], [True, False])
    sure, right = scored(golds, answers, Standard(), ["mood", "names"], ["mood"])
    assert sure == pytest.approx([0.9**3, 0.6 * 0.81])
    assert right == [True, False]


@pytest.mark.parametrize("errors", [{"mood": 0.2, "names": 0.4}, {ITEM: 0.2}])
def test_the_service_accepts_exactly_what_was_counted(errors: dict[str, float]) -> None:
    """The stored standard, the labels with their tasks in another order: the same decision text by text."""
    rng = np.random.default_rng(0)
    texts = list(words(400, seed=5))
    rows: list[Row] = []
    for text, sure in zip(texts, rng.uniform(0.2, 1, 400), strict=True):
        labels = said(float(sure), "good" if rng.random() < sure else "bad", span=float(rng.uniform(0.8, 1)))
        rows.append((gold(text), Annotated(labels)))
    found = made(rows, errors, schema=WHAT)
    promise = found.promises[0]
    standard = Standard.model_validate_json(found.standard.model_dump_json())
    taken = []
    for one, answer in rows:
        assert isinstance(answer, Annotated)
        labels = calibrated(Labels(mentions=answer.labels.mentions, choices=answer.labels.choices), standard)
        decision = decide(labels, Policy(audit_share=0), Evidence(draw=0.5, standard=standard))
        if use_of(one.text) == "promise" and decision.outcome is Outcome.accepted:
            taken.append(standards.agrees(one.labels, answer.labels, "mood"))
    assert (len(taken), taken.count(False)) == (promise["accepted"], promise["wrong"])
    assert 0 < len(taken) < promise["n"]


# --- versions ---------------------------------------------------------------------------------------------------------


def body(threshold: float) -> dict[str, Any]:
    line = Line(task="mood", threshold=threshold, error=0.03, level=0.95)
    each = {"kind": "isotonic", "n": 40, "texts": 40, "knots": [[0.1, 0.1 + 0.2], [0.9, 2 / 3]]}
    calibrator = Calibrators(each={"slope": 1.0, "intercept": 0.0, "losses": {}, "gold": {}, "note": "", **each})
    made = Standard(lines=(line,), calibrators={"mood": calibrator})
    return {"standard": made.model_dump(mode="json"), "promises": [], "gold": GOLD}


def test_the_newest_standard_of_a_recipe_is_in_force_and_its_predecessor_is_kept(database: Database) -> None:
    with db.begin(database) as session:
        assert standards.in_force(session, "a" * 64) is None
        first = standards.put(session, "a" * 64, {"name": "a"}, body(0.5)).id
        second = standards.put(session, "a" * 64, {"name": "a"}, body(0.7))
        assert second.predecessor == first
    with db.read(database) as session:
        standard = standards.in_force(session, "a" * 64)
        assert standard is not None
        assert (standard.version, standard.lines[0].threshold) == (second.id, 0.7)
        assert [found.id for found in standards.history(session)] == [second.id, first]
        kept = session.get(StandardVersion, first)
        assert kept is not None and kept.body == body(0.5)
        assert session.exec(select(Recipe)).one().body == {"name": "a"}


def test_what_was_stored_maps_confidence_exactly_as_before(database: Database) -> None:
    with db.begin(database) as session:
        standards.put(session, "a" * 64, {}, body(0.1 + 0.2))
    with db.read(database) as session:
        standard = standards.in_force(session, "a" * 64)
    before = Standard.model_validate(body(0.1 + 0.2)["standard"])
    assert standard is not None
    assert standard.lines == before.lines
    for sure in np.linspace(0, 1, 50):
        assert score(calibrated(said(sure), standard), "mood") == score(calibrated(said(sure), before), "mood")


def test_an_earlier_standard_comes_back_as_a_new_version(database: Database) -> None:
    with db.begin(database) as session:
        first = standards.put(session, "a" * 64, {}, body(0.5)).id or 0
        second = standards.put(session, "a" * 64, {}, body(0.7)).id
        third = standards.restore(session, first)
        assert (third.predecessor, third.body) == (second, body(0.5))
        with pytest.raises(NotFound, match="no standard 99"):
            standards.restore(session, 99)
    with db.read(database) as session:
        found = {version.id: (version.predecessor, version.body) for version in standards.history(session)}
        assert found == {
            first: (None, body(0.5)),
            second: (first, body(0.7)),
            third.id: (second, body(0.5)),
        }
        standard = standards.in_force(session, "a" * 64)
        assert standard is not None and (standard.version, standard.lines[0].threshold) == (third.id, 0.5)


def test_the_standard_of_one_recipe_is_nothing_to_another(database: Database) -> None:
    with db.begin(database) as session:
        first = standards.put(session, "a" * 64, {}, body(0.5)).id
        other = standards.put(session, "b" * 64, {}, body(0.7))
        assert other.predecessor is None
    with db.read(database) as session:
        standard = standards.in_force(session, "a" * 64)
        assert standard is not None and (standard.version, standard.lines[0].threshold) == (first, 0.5)
        assert standards.in_force(session, "c" * 64) is None
