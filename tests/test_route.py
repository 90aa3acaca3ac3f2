"""A decision names every reason with the number that was measured and the threshold it was held against."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.labels import Alternative, Choice, Labels, Mentions, Span
from service.route import Code, Evidence, Line, Measured, Outcome, Policy, Standard, decide, lot, refuse, score

SURE = Evidence(draw=0.99)


def labels(confidence: float = 0.95, second: float = 0.03, span: float = 0.9, complete: float = 0.9) -> Labels:
    return Labels(
        choices={
            "mood": Choice(
                label="good", confidence=confidence, alternatives=(Alternative(label="bad", confidence=second),)
            )
        },
        mentions={
            "names": Mentions(
                spans=(Span(start=0, end=3, label="person", text="Ann", confidence=span),), complete=complete
            )
        },
    )


def test_what_nothing_speaks_against_is_accepted_with_its_chance_of_an_audit() -> None:
    decision = decide(labels(), Policy(), SURE)
    assert (decision.outcome, decision.reasons, decision.inclusion) == (Outcome.accepted, (), Policy().audit_share)


@pytest.mark.parametrize(
    ("said", "code", "task", "value", "threshold"),
    [
        (labels(confidence=0.55, second=0.01), Code.low_confidence, "mood", 0.55, 0.6),
        (labels(confidence=0.61, second=0.45), Code.ambiguous, "mood", 0.16, 0.2),
        (labels(span=0.3), Code.low_confidence, "names", 0.3, 0.4),
        (labels(complete=0.4), Code.low_confidence, "names", 0.4, 0.5),
    ],
)
def test_a_doubt_sends_the_item_to_review_with_the_very_numbers(
    said: Labels, code: Code, task: str, value: float, threshold: float
) -> None:
    decision = decide(said, Policy(), SURE)
    (reason,) = decision.reasons
    assert (decision.outcome, decision.inclusion) == (Outcome.review, None)
    assert (reason.code, reason.task, reason.threshold) == (code, task, threshold)
    assert reason.value == pytest.approx(value)


def test_a_threshold_itself_is_accepted() -> None:
    policy = Policy(choice_confidence=0.95, choice_margin=0.0, span_confidence=0.9, complete=0.9)
    assert decide(labels(), policy, SURE).outcome is Outcome.accepted


def test_a_label_that_disagreed_with_gold_too_often_is_not_accepted_on_its_own() -> None:
    measured = {("mood", "good"): Measured(agreed=8, uses=20), ("names", "person"): Measured(agreed=1, uses=19)}
    (reason,) = decide(labels(), Policy(), Evidence(draw=0.99, measured=measured)).reasons
    assert (reason.code, reason.label, reason.value, reason.threshold) == (Code.low_agreement, "good", 0.4, 0.5)
    assert reason.detail == "8 of 20 uses on gold"


def test_a_text_whose_gold_says_otherwise_goes_to_review() -> None:
    gold = Labels(choices={"mood": Choice(label="bad")}, mentions={"names": Mentions()})
    reasons = decide(labels(), Policy(), Evidence(draw=0.99, gold=gold)).reasons
    assert [(r.code, r.task, r.detail) for r in reasons] == [
        (Code.gold_mismatch, "mood", "gold: bad"),
        (Code.gold_mismatch, "names", "0 missed, 1 not in the gold"),
    ]
    same = Labels(choices={"mood": Choice(label="good")})
    assert decide(labels(), Policy(), Evidence(draw=0.99, gold=same)).outcome is Outcome.accepted


def test_a_second_reading_that_says_otherwise_sends_the_item_to_review() -> None:
    second = Labels(choices={"mood": Choice(label="bad")}, mentions=labels().mentions)
    (reason,) = decide(labels(), Policy(), Evidence(draw=0.99, second=second)).reasons
    assert (reason.code, reason.task, reason.detail) == (Code.disagreement, "mood", "second reading: bad")
    assert decide(labels(), Policy(), Evidence(draw=0.99, second=labels(0.3))).outcome is Outcome.accepted


def test_a_cut_answer_and_a_failed_text_go_to_review() -> None:
    (reason,) = decide(labels(), Policy(), Evidence(draw=0.99, truncated=True)).reasons
    assert reason.code is Code.truncated
    refused = refuse(Code.failed, "the engine answered 400")
    assert (refused.outcome, refused.reasons[0].detail) == (Outcome.review, "the engine answered 400")


def test_the_audit_takes_accepted_items_by_lot_and_never_routed_ones() -> None:
    drawn = Evidence(draw=0.0)
    assert decide(labels(), Policy(), drawn).outcome is Outcome.audit
    assert decide(labels(span=0.1), Policy(), drawn).outcome is Outcome.review
    assert decide(labels(), Policy(audit_share=0.0), drawn).outcome is Outcome.accepted
    assert decide(labels(), Policy(audit_share=1.0), SURE).outcome is Outcome.audit


def test_the_lot_is_uniform_and_depends_on_seed_batch_and_position_alone() -> None:
    lots = [lot(7, "batch", position) for position in range(20_000)]
    assert lots == [lot(7, "batch", position) for position in range(20_000)]
    assert lot(8, "batch", 0) != lots[0] != lot(7, "other", 0)
    for share in (0.02, 0.5):
        assert sum(draw < share for draw in lots) / len(lots) == pytest.approx(share, abs=0.01)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_accepted_means_that_every_number_reached_its_threshold(a: float, b: float, c: float, d: float) -> None:
    policy = Policy()
    decision = decide(labels(a, b, c, d), policy, SURE)
    reached = (
        a >= policy.choice_confidence
        and a - b >= policy.choice_margin
        and c >= policy.span_confidence
        and d >= policy.complete
    )
    assert (decision.outcome is Outcome.accepted) == reached


# --- by a standard ----------------------------------------------------------------------------------------------------


def held(*lines: tuple[str | None, float]) -> Evidence:
    drawn = tuple(Line(task=task, threshold=threshold, error=0.03, level=0.95) for task, threshold in lines)
    return Evidence(draw=0.99, standard=Standard(version=7, lines=drawn))


def test_a_standard_decides_alone_and_says_which_it_was() -> None:
    doubtful = labels(confidence=0.5, second=0.49, span=0.1, complete=0.1)
    decision = decide(doubtful, Policy(), held(("mood", 0.004), ("names", 0.004)))
    assert (decision.outcome, decision.standard, decision.inclusion) == (Outcome.accepted, 7, 0.02)
    assert decision.probability == pytest.approx(0.5 * 0.1 * 0.1)
    assert decision.row() == {
        "decision": "accepted",
        "reasons": [],
        "standard": 7,
        "probability": decision.probability,
    }


def test_every_line_that_the_item_does_not_reach_is_a_reason_with_its_numbers() -> None:
    decision = decide(labels(), Policy(), held(("mood", 0.96), ("names", 0.85), (None, 0.5)))
    assert (decision.outcome, decision.standard) == (Outcome.review, 7)
    mood, names = decision.reasons
    assert (mood.code, mood.task, mood.label, mood.threshold) == (Code.low_confidence, "names", None, 0.96)
    assert (names.task, names.threshold) == ("names", 0.85)  # of the whole item the least sure task
    assert [reason.value for reason in decision.reasons] == pytest.approx([0.95 * 0.81] * 2)
    assert mood.detail == "for at most 3 % of accepted items wrong in mood"


@pytest.mark.parametrize("task", ["mood", "names", None])
def test_what_does_not_say_how_sure_it_is_is_covered_by_no_promise(task: str | None) -> None:
    silent = Labels(choices={"mood": Choice(label="good")}, mentions={"names": Mentions(complete=None)})
    for said in (silent, Labels()):
        (reason,) = decide(said, Policy(), held((task, 0.0))).reasons
        assert (reason.code, reason.value, reason.threshold) == (Code.low_confidence, None, 0.0)
        assert reason.detail.endswith("how sure it is was not stated")


def test_gold_a_second_reading_and_a_cut_answer_speak_beside_a_standard() -> None:
    other = Labels(choices={"mood": Choice(label="bad")})
    standard = held(("mood", 0.1)).standard
    evidence = Evidence(draw=0.0, gold=other, second=other, truncated=True, standard=standard)
    codes = [reason.code for reason in decide(labels(), Policy(), evidence).reasons]
    assert codes == [Code.gold_mismatch, Code.disagreement, Code.truncated]
    assert decide(labels(), Policy(), Evidence(draw=0.0, standard=standard)).outcome is Outcome.audit


def test_a_standard_without_lines_leaves_the_decision_to_the_policy() -> None:
    decision = decide(labels(confidence=0.5, second=0.1), Policy(), held())
    assert (decision.outcome, decision.standard) == (Outcome.review, None)
    assert decision.probability is not None


def test_who_gives_a_threshold_of_their_own_decides_by_it_unless_told_otherwise() -> None:
    said = labels(confidence=0.7)
    for policy in (Policy(), Policy(audit_share=0.5), Policy(standard=True), Policy(choice_margin=0.9, standard=True)):
        assert policy.by_standard
        assert decide(said, policy, held(("mood", 0.9))).standard == 7
    for policy in (Policy(choice_confidence=0.6), Policy(standard=False), Policy(audit_share=0.1, complete=0.5)):
        assert not policy.by_standard
        assert decide(said, policy, held(("mood", 0.9))).standard is None


def test_a_policy_that_was_stored_means_what_it_meant_when_it_came_in() -> None:
    before = {name: value for name, value in Policy().model_dump(mode="json").items() if name != "standard"}
    assert not Policy.model_validate(before).by_standard  # stored when there were no standards
    for policy in (Policy(), Policy(complete=0.5), Policy(audit_share=0.1), Policy(standard=True, complete=0.9)):
        again = Policy.model_validate(policy.settled().model_dump(mode="json"))
        assert again.by_standard == policy.by_standard
        assert again == policy.settled()


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_score_rises_with_probability_and_parts_equals_by_their_confidence(
    low: float, high: float, one: float, other: float
) -> None:
    low, high, one, other = min(low, high), max(low, high), min(one, other), max(one, other)

    def of(probability: float, confidence: float) -> float:
        said = labels().choices["mood"].model_copy(update={"probability": probability, "confidence": confidence})
        found = score(Labels(choices={"mood": said}))
        assert found is not None
        return found

    assert 0 <= of(low, one) <= of(high, other) <= 1
    if other - one > 2e-6:  # what a thousandth of it leaves after nine digits
        assert of(low, one) < of(low, other)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=6))
def test_a_score_does_not_depend_on_the_order_of_the_tasks(sure: list[float]) -> None:
    said = {str(n): Choice(label="good", confidence=confidence) for n, confidence in enumerate(sure)}
    assert score(Labels(choices=said)) == score(Labels(choices=dict(reversed(said.items()))))
    assert score(Labels(choices=said), ["0"]) == pytest.approx(sure[0], abs=1e-9)
    assert score(Labels(choices=said), ["none"]) is None
