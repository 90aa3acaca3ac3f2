"""Confidence is read from the tokens' probabilities, each number with the meaning its name states."""

from __future__ import annotations

import math

import pytest

from service.confidence import Reader, calibrated, combine
from service.engine import Completion, Token
from service.labels import Choice, Labels, Mentions, Span
from service.parse import parse
from service.route import Calibrators, Standard
from service.schema import Schema
from service.wire import WIRES
from service.words import windows

SCHEMA = Schema.model_validate(
    {
        "name": "test",
        "tasks": [
            {"name": "intent", "kind": "choice", "labels": ["order", "order_status", "refund", "return"]},
            {"name": "names", "kind": "spans", "labels": ["person", "product"]},
        ],
    }
)
CHOICE = Schema.model_validate(
    {"name": "c", "tasks": [{"name": "mood", "kind": "choice", "labels": ["good", "good_enough", "bad"]}]}
)


def token(data: str, probability: float, **others: float) -> Token:
    """A token with its alternatives; `others` are written with _ for a blank."""
    pairs = [(data, probability), *((name.replace("_", " "), p) for name, p in others.items())]
    top = sorted(((name.encode(), math.log(p)) for name, p in pairs), key=lambda pair: -pair[1])
    return Token(data.encode(), math.log(probability), tuple(top))


END = ""


def reader(schema: Schema, text: str, tokens: list[Token], wire_name: str = "line", finish: str = "stop") -> Reader:
    completion = Completion(tuple(tokens), finish, 1)  # type: ignore[arg-type]
    wire = WIRES[wire_name](schema)
    parsed = parse(completion.text, windows(text)[0], schema, wire, cut=finish == "length")
    return Reader(completion, parsed, schema, wire)


def test_a_choice_has_the_probability_of_its_label_and_the_others_have_theirs() -> None:
    tokens = [token(" refund", 0.7, _order=0.2, _return=0.06), token(END, 0.9)]
    read = reader(SCHEMA, "x", tokens)
    found = read.choice(read.parsed.choices[0])
    assert found["refund"] == pytest.approx(0.7)
    assert found["return"] == pytest.approx(0.06)
    # The model never said which of the two labels that begin with "order" it would have been.
    assert found["order"] == found["order_status"] == pytest.approx(0.1)
    assert sum(found.values()) == pytest.approx(0.96)


def test_a_label_that_begins_like_another_is_decided_by_the_token_after_it() -> None:
    go_on = [token(" order", 0.8, _refund=0.2), token(" status", 0.6, _=0.0001, **{"_|": 0.4}), token(END, 1.0)]
    read = reader(SCHEMA, "x", go_on)
    found = read.choice(read.parsed.choices[0])
    assert found["order_status"] == pytest.approx(0.48, abs=1e-3)
    assert found["order"] == pytest.approx(0.32, abs=1e-3)
    stop = [token(" good", 0.9, _bad=0.1), token(END, 0.75, _enough=0.25)]
    read = reader(CHOICE, "x", stop)
    found = read.choice(read.parsed.choices[0])
    assert found == pytest.approx({"good": 0.675, "good_enough": 0.225, "bad": 0.1})


def test_a_label_may_be_spelled_in_other_tokens_and_that_mass_is_its_own() -> None:
    tokens = [token(" re", 0.5, _refund=0.3, _r=0.2), token("fund", 0.9, turn=0.1), token(END, 1.0)]
    read = reader(SCHEMA, "x", tokens)
    found = read.choice(read.parsed.choices[0])
    # " r" may become refund or return: half each.
    assert found["refund"] == pytest.approx(0.5 * 0.9 + 0.3 + 0.1)
    assert found["return"] == pytest.approx(0.5 * 0.1 + 0.1)


def test_choices_are_read_from_json_too() -> None:
    tokens = [token('{"intent":"', 1.0), token("refund", 0.6, order=0.3, **{"return": 0.1}), token('"', 1.0)]
    tokens += [token(',"names":[', 1.0), token("]}", 0.7, **{"{": 0.3}), token(END, 1.0)]
    read = reader(SCHEMA, "x", tokens, "json")
    found = read.choice(read.parsed.choices[0])
    assert found["refund"] == pytest.approx(0.6)
    assert found["return"] == pytest.approx(0.1)
    assert read.complete() == pytest.approx(0.7)


def test_a_mention_has_the_probability_of_being_opened_of_its_boundaries_and_of_its_label() -> None:
    tokens = [token(" refund", 1.0), token(" |", 0.9), token(" Ann", 0.8), token(" Lee", 0.7), token(" =", 0.6)]
    tokens += [token(" person", 0.5), token(END, 0.4, **{"_|": 0.6})]
    read = reader(SCHEMA, "Ann Lee came", tokens)
    (mention,) = read.parsed.mentions
    assert read.mention(mention) == pytest.approx(0.9 * 0.8 * 0.7 * 0.6 * 0.5)
    assert read.complete() == pytest.approx(0.4)


def test_nothing_is_complete_where_the_answer_was_cut() -> None:
    tokens = [token(" refund", 1.0), token(" |", 0.9), token(" Ann", 0.8)]
    read = reader(SCHEMA, "Ann Lee came", tokens, finish="length")
    assert read.parsed.mentions == ()
    assert read.complete() == 0.0


def test_a_text_of_several_windows_has_the_mean_of_their_choices_weighted_by_words() -> None:
    (task,) = CHOICE.choices
    parts = [{"good": 0.9, "good_enough": 0.0, "bad": 0.1}, {"good": 0.2, "good_enough": 0.0, "bad": 0.8}]
    choice = combine(task, parts, weights=[100, 300])
    assert (choice.label, choice.confidence) == ("bad", pytest.approx(0.625))
    assert [(a.label, a.confidence) for a in choice.alternatives] == [("good", pytest.approx(0.375))]


def calibrator(*knots: tuple[float, float]) -> dict[str, object]:
    kind = "isotonic" if knots else "identity"
    known = {"n": 40, "texts": 40, "slope": 1.0, "intercept": 0.0, "losses": {}, "gold": {}, "note": ""}
    return known | {"kind": kind, "knots": [list(knot) for knot in knots]}


def test_calibration_adds_probabilities_and_leaves_what_the_model_said() -> None:
    spans = tuple(Span(start=n, end=n + 1, label="person", text="A", confidence=0.5) for n in range(2))
    said = Labels(
        choices={"intent": Choice(label="refund", confidence=0.75), "other": Choice(label="x", confidence=0.9)},
        mentions={"names": Mentions(spans=spans, complete=0.8)},
    )
    each, whole = calibrator((0.0, 0.0), (0.5, 0.2), (1.0, 0.6)), calibrator((0.0, 0.1), (1.0, 1.0))
    standard = Standard(calibrators={"intent": Calibrators(each=each), "names": Calibrators(each=each, whole=whole)})
    found = calibrated(said, standard)
    assert found.choices["intent"].probability == pytest.approx(0.4)
    assert found.choices["other"] == said.choices["other"]  # nothing is known of this task
    names = found.mentions["names"]
    assert [span.probability for span in names.spans] == pytest.approx([0.2, 0.2])
    assert names.probability == pytest.approx(0.1 + 0.9 * 0.2)  # of 0.5 * 0.5 * 0.8
    assert names.confidence == said.mentions["names"].confidence
    stripped = {"choices": {"intent": {"probability"}}, "mentions": {"names": {"probability", "spans"}}}
    assert found.model_dump(exclude=stripped) == said.model_dump(exclude=stripped)


def test_what_does_not_say_how_sure_it_is_has_no_probability() -> None:
    said = Labels(choices={"intent": Choice(label="refund")}, mentions={"names": Mentions()})
    same = {task: Calibrators(each=calibrator(), whole=calibrator()) for task in ("intent", "names")}
    assert calibrated(said, Standard(calibrators=same)) == said
    assert calibrated(said, Standard()) == said
