"""Agreement numbers: checked against counts by hand, against scikit-learn, and for what they must never claim."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator
from time import perf_counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, f1_score, roc_auc_score

from eval.agreement import Mention, choice_agreement, krippendorff_alpha, span_agreement
from eval.ceiling import choice_ceiling, span_ceiling
from eval.scores import Estimate, proportion, ranking, routing

LABELS = st.sampled_from(["negative", "neutral", "positive", "Ärger", "怒り"])
PAIRS = st.lists(st.tuples(LABELS, LABELS), min_size=1, max_size=40)
PLACES = st.tuples(st.integers(0, 12), st.integers(1, 5), st.sampled_from("abc"))
MENTIONS = st.lists(PLACES.map(lambda p: (p[0], p[0] + p[1], p[2])), max_size=5)
TEXTS = st.lists(st.tuples(MENTIONS, MENTIONS), max_size=12)


def numbers(result: object) -> Iterator[float]:
    """Every number in a result, however deep."""
    if isinstance(result, float):
        yield result
    elif dataclasses.is_dataclass(result):
        for field in dataclasses.fields(result):
            yield from numbers(getattr(result, field.name))
    elif isinstance(result, tuple):
        for value in result:
            yield from numbers(value)


def value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


# Twenty texts: 10 a/a, 2 a/b, 3 b/a, 5 b/b. Observed 0.75; by chance (12*13 + 8*7) / 400 = 0.53.
GOLD = ["a"] * 12 + ["b"] * 8
SAID = ["a"] * 10 + ["b"] * 2 + ["a"] * 3 + ["b"] * 5


def test_choices_agree_as_counted_by_hand() -> None:
    found = choice_agreement(GOLD, SAID)
    assert (found.n, found.agreed) == (20, 15)
    assert found.kappa == pytest.approx((0.75 - 0.53) / (1 - 0.53))
    a, b = found.labels
    assert (a.gold, a.said, a.agreed) == (12, 13, 10)
    assert (a.precision, a.recall) == (10 / 13, 10 / 12)
    assert (b.precision, b.recall) == (5 / 7, 5 / 8)
    assert found.macro_f1 is not None
    assert found.macro_f1.value == pytest.approx((20 / 25 + 10 / 15) / 2)
    assert found.exact is not None
    # Wilson's interval of 15 in 20, from the closed form with z = 1.96.
    assert [found.exact.low, found.exact.high] == pytest.approx([0.5313, 0.8881], abs=1e-4)
    assert found.notes == {}


def test_spans_agree_as_counted_by_hand() -> None:
    gold: list[list[Mention]] = [
        [(0, 5, "person"), (10, 16, "place")],  # one right, one under another label
        [(3, 12, "firm")],  # found, cut short
        [(0, 4, "person")],  # missed
        [],  # one that is not there
        [(0, 4, "person")],  # another label at another place: missed, and one that is not there
    ]
    said: list[list[Mention]] = [
        [(0, 5, "person"), (10, 16, "firm")],
        [(3, 8, "firm")],
        [],
        [(1, 2, "date")],
        [(2, 6, "firm")],
    ]
    found = span_agreement(gold, said)
    assert (found.n, found.gold, found.said, found.agreed) == (5, 5, 5, 1)
    assert (found.wrong_label, found.wrong_boundary, found.missed, found.spurious) == (1, 1, 2, 2)
    assert found.exact == proportion(0, 5)
    assert found.precision is not None
    assert found.recall is not None
    assert found.f1 is not None
    assert (found.precision.value, found.recall.value, found.f1.value) == (1 / 5, 1 / 5, 1 / 5)
    person = next(label for label in found.labels if label.label == "person")
    assert (person.gold, person.said, person.agreed, person.precision, person.recall) == (3, 1, 1, 1.0, 1 / 3)


def test_of_two_overlapping_mentions_the_larger_overlap_is_paired() -> None:
    found = span_agreement([[(0, 10, "a")]], [[(0, 2, "a"), (3, 10, "a")]])
    assert (found.wrong_boundary, found.missed, found.spurious) == (1, 0, 1)


def test_a_mention_that_stands_twice_counts_once() -> None:
    assert span_agreement([[(0, 1, "a"), (0, 1, "a")]], [[(0, 1, "a")]]).agreed == 1


def test_one_place_under_two_labels_can_be_right_twice() -> None:
    both: list[list[Mention]] = [[(0, 5, "a"), (0, 5, "b")]]
    assert span_agreement(both, both).agreed == 2
    assert span_agreement(both, [[(0, 5, "b"), (0, 5, "c")]]).wrong_label == 1


def test_unanimous_raters_on_three_items_explain_themselves() -> None:
    found = choice_agreement(["a"] * 3, ["a"] * 3)
    assert found.kappa is None
    assert found.macro_f1 is None
    assert "only label" in found.notes["kappa"]
    assert found.exact is not None
    assert found.exact.low < 0.5
    assert found.exact.high == 1.0


def test_full_agreement_on_few_texts_has_a_wide_interval() -> None:
    choices = choice_agreement(["a", "b", "a"], ["a", "b", "a"])
    assert choices.kappa == 1.0
    assert choices.macro_f1 is not None
    assert choices.macro_f1.low < 0.5
    spans = span_agreement([[(0, 1, "a")]] * 3, [[(0, 1, "a")]] * 3)
    for estimate in (spans.precision, spans.recall, spans.f1):
        assert estimate is not None
        assert estimate.value == 1.0
        assert estimate.low < 0.5


def test_a_single_half_right_text_claims_nothing() -> None:
    found = span_agreement([[(0, 1, "a"), (2, 3, "a")]], [[(0, 1, "a"), (4, 5, "a")]])
    assert found.f1 is not None
    assert found.f1.value == 0.5
    assert found.f1.low == 0.0
    assert found.f1.high == 1.0


def test_one_label_on_one_side_gives_kappa_nought_and_says_why() -> None:
    found = choice_agreement(["a"] * 10, ["a"] * 9 + ["b"])
    assert found.kappa == 0.0
    assert "gold has one label only" in found.notes["kappa"]
    assert choice_agreement(["a", "b"], ["b", "b"]).notes["kappa"].startswith("what was said has")


def test_nothing_gives_none_and_says_why() -> None:
    choices, spans, empty = choice_agreement([], []), span_agreement([], []), span_agreement([[], []], [[], []])
    assert (choices.exact, choices.kappa, choices.macro_f1) == (None, None, None)
    assert choices.notes == {"exact": "no texts", "kappa": "no texts", "macro_f1": "no texts"}
    for found, why in ((spans, "no texts"), (empty, "no mention on either side")):
        assert (found.exact, found.precision, found.recall, found.f1) == (None, None, None, None)
        assert set(found.notes.values()) == {why}


def test_a_one_sided_absence_of_mentions_is_nought_or_undefined_and_never_one() -> None:
    silent, inventive = span_agreement([[(0, 1, "a")]], [[]]), span_agreement([[]], [[(0, 1, "a")]])
    assert silent.precision is None
    assert silent.notes == {"precision": "no mention was said"}
    assert inventive.recall is None
    assert inventive.notes == {"recall": "no mention in gold"}
    assert silent.f1 is not None
    assert inventive.f1 is not None
    assert silent.f1.value == inventive.f1.value == 0.0


def test_readings_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError):
        choice_agreement(["a"], [])
    with pytest.raises(ValueError):
        span_agreement([[]], [])


@settings(deadline=None)
@given(PAIRS)
def test_choice_numbers_are_finite_in_range_and_inside_their_interval(pairs: list[tuple[str, str]]) -> None:
    found = choice_agreement([g for g, _ in pairs], [s for _, s in pairs])
    assert all(math.isfinite(x) and -1 <= x <= 1 for x in numbers(found))
    for estimate in (found.exact, found.macro_f1):
        assert estimate is None or 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert (found.kappa is None) == (len({label for pair in pairs for label in pair}) == 1)
    assert sum(label.gold for label in found.labels) == sum(label.said for label in found.labels) == found.n


@settings(deadline=None)
@given(PAIRS)
def test_kappa_is_symmetric_and_blind_to_order(pairs: list[tuple[str, str]]) -> None:
    gold, said = [g for g, _ in pairs], [s for _, s in pairs]
    there, back = choice_agreement(gold, said), choice_agreement(said, gold)
    assert (there.kappa is None) == (back.kappa is None)
    assert there.kappa is None or there.kappa == pytest.approx(back.kappa)
    shuffled = random.Random(1).sample(pairs, len(pairs))
    again = choice_agreement([g for g, _ in shuffled], [s for _, s in shuffled])
    assert (again.exact, again.macro_f1, again.labels) == (there.exact, there.macro_f1, there.labels)
    assert again.kappa == pytest.approx(there.kappa)


@settings(deadline=None)
@given(st.lists(LABELS, min_size=2, max_size=40))
def test_a_reading_agrees_with_itself(labels: list[str]) -> None:
    found = choice_agreement(labels, labels)
    assert found.exact is not None
    assert found.exact.value == 1.0
    assert found.exact.low < 1.0
    if len(set(labels)) > 1:
        assert found.kappa == pytest.approx(1.0)
        assert found.macro_f1 is not None
        assert found.macro_f1.value == 1.0
        assert found.macro_f1.low < 1.0


@settings(deadline=None)
@given(PAIRS)
def test_choices_score_as_in_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    gold, said = [g for g, _ in pairs], [s for _, s in pairs]
    found = choice_agreement(gold, said)
    if found.kappa is not None and found.macro_f1 is not None:
        assert found.kappa == pytest.approx(cohen_kappa_score(gold, said))
        assert found.macro_f1.value == pytest.approx(f1_score(gold, said, average="macro", zero_division=0.0))


@settings(deadline=None)
@given(TEXTS)
def test_span_numbers_are_finite_add_up_and_mirror(texts: list[tuple[list[Mention], list[Mention]]]) -> None:
    gold, said = [g for g, _ in texts], [s for _, s in texts]
    found, back = span_agreement(gold, said), span_agreement(said, gold)
    assert all(math.isfinite(x) and 0 <= x <= 1 for x in numbers(found))
    assert found.gold == found.agreed + found.wrong_label + found.wrong_boundary + found.missed
    assert found.said == found.agreed + found.wrong_label + found.wrong_boundary + found.spurious
    assert [value(x) for x in (back.f1, back.precision, back.recall)] == [
        value(x) for x in (found.f1, found.recall, found.precision)
    ]
    assert (back.wrong_label, back.wrong_boundary) == (found.wrong_label, found.wrong_boundary)
    for estimate in (found.exact, found.precision, found.recall, found.f1):
        assert estimate is None or 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@settings(deadline=None)
@given(TEXTS)
def test_spans_do_not_depend_on_order(texts: list[tuple[list[Mention], list[Mention]]]) -> None:
    found = span_agreement([g for g, _ in texts], [s for _, s in texts])
    other = [(g[::-1], s[::-1]) for g, s in reversed(texts)]
    assert span_agreement([g for g, _ in other], [s for _, s in other]) == found


@settings(deadline=None)
@given(st.lists(MENTIONS, min_size=1, max_size=12))
def test_mentions_agree_with_themselves(texts: list[list[Mention]]) -> None:
    found = span_agreement(texts, texts)
    if any(texts):
        assert found.f1 is not None
        assert found.f1.value == 1.0
        assert found.f1.low < 1.0
        assert (found.missed, found.spurious, found.wrong_label, found.wrong_boundary) == (0, 0, 0, 0)


def test_the_bootstrap_covers_the_true_f1_about_as_often_as_it_says() -> None:
    draw = random.Random(7)
    inside = 0
    for _ in range(100):
        gold: list[list[Mention]] = [[(i, i + 1, "a") for i in range(draw.randint(1, 4))] for _ in range(80)]
        said = [[m if draw.random() < 0.8 else (m[0], m[1], "b") for m in mentions] for mentions in gold]
        found = span_agreement(gold, said).f1
        assert found is not None
        inside += found.low <= 0.8 <= found.high
    assert 88 <= inside <= 100


def test_ten_thousand_texts_take_seconds_not_minutes() -> None:
    draw = random.Random(3)
    labels = [f"intent_{i}" for i in range(150)]
    gold = [draw.choice(labels) for _ in range(10_000)]
    said = [label if draw.random() < 0.8 else draw.choice(labels) for label in gold]
    mentions: list[list[Mention]] = [[(i, i + 1, "a") for i in range(draw.randint(0, 6))] for _ in range(10_000)]
    found = [[m for m in text if draw.random() < 0.8] for text in mentions]
    start = perf_counter()
    choice_agreement(gold, said)
    span_agreement(mentions, found)
    assert perf_counter() - start < 5  # takes 0.3 s on two cores


def test_routing_names_the_costly_error_apart_from_the_cheap_one() -> None:
    found = routing([True] * 8 + [False] * 2, [True] * 7 + [False] + [True, False])
    assert (found.accepted, found.wrongly_accepted, found.needlessly_reviewed) == (8, 1, 1)
    assert found.error_accepted == proportion(1, 8)
    assert found.waste_reviewed == proportion(1, 2)
    nothing = routing([], [])
    assert (nothing.share_accepted, nothing.error_accepted, nothing.waste_reviewed) == (None, None, None)


def test_a_proportion_keeps_its_width_at_the_ends() -> None:
    assert proportion(0, 0) is None
    none, every = proportion(0, 10), proportion(10, 10)
    assert none is not None
    assert every is not None
    assert none.low == 0.0
    assert none.high == pytest.approx(0.2775, abs=1e-4)
    assert (every.value, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(1 - none.high)
    for successes, trials in ((1, 0), (-1, 3), (4, 3)):
        with pytest.raises(ValueError):
            proportion(successes, trials)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.5000001, 0.9, 1.0]), st.booleans()), max_size=60))
def test_ranking_is_the_area_that_the_reference_computes(pairs: list[tuple[float, bool]]) -> None:
    confidence, right = [c for c, _ in pairs], [r for _, r in pairs]
    found = ranking(confidence, right)
    if len(set(right)) < 2:
        assert found is None
    else:
        assert found is not None
        assert found.value == pytest.approx(roc_auc_score(right, confidence), abs=1e-9)
        assert 0 <= found.low <= found.value <= found.high <= 1


def test_a_perfect_ranking_of_few_texts_is_not_certain() -> None:
    found = ranking([0.9, 0.8, 0.2], [True, True, False])
    assert found is not None
    assert found.value == 1.0
    assert found.low < 0.9


# --- what may and may not be claimed ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(TEXTS)
def test_looser_span_scores_are_never_below_strict_ones_and_mirror(
    texts: list[tuple[list[Mention], list[Mention]]],
) -> None:
    gold, said = [g for g, _ in texts], [s for _, s in texts]
    found, back = span_agreement(gold, said), span_agreement(said, gold)
    assert found.wrong_both == back.wrong_both <= min(found.missed, found.spurious)
    for name in ("boundary_f1", "partial_f1", "type_f1"):
        there = getattr(found, name)
        assert value(there) == value(getattr(back, name))
        if found.f1:
            assert 0 <= found.f1.value <= there.value <= 1
            assert there.low <= there.value <= there.high


def test_one_label_alone_has_no_alpha_and_no_f1() -> None:
    found = choice_agreement(["a"] * 9, ["a"] * 9)
    assert (found.alpha, found.micro_f1, found.kappa_interval) == (None, None, None)
    assert set(found.notes) == {"kappa", "macro_f1", "micro_f1", "alpha"}
    assert krippendorff_alpha([]) is None
    assert krippendorff_alpha([["a"], ["b", None], [None]]) is None  # nobody read what another read


def test_perfect_agreement_on_few_texts_leaves_kappa_and_alpha_wide_open() -> None:
    found = choice_agreement(["a", "b", "a"], ["a", "b", "a"])
    assert found.alpha is not None
    assert found.kappa_interval is not None
    assert (found.alpha.value, found.alpha.high, found.kappa_interval[1]) == (1.0, 1.0, 1.0)
    assert found.alpha.low < 0.2
    assert found.kappa_interval[0] < 0.2


def test_each_label_has_its_intervals() -> None:
    a, b = choice_agreement(GOLD, SAID).labels
    seen = proportion(10, 13)
    assert seen is not None
    assert a.precision_interval == (seen.low, seen.high)
    for label in (a, b):
        for number, interval in (
            (label.precision, label.precision_interval),
            (label.recall, label.recall_interval),
            (label.f1, label.f1_interval),
        ):
            assert number is not None
            assert interval is not None
            assert 0 <= interval[0] < number < interval[1] <= 1
    unsaid = choice_agreement(["a", "b"], ["b", "b"]).labels[0]
    assert (unsaid.precision, unsaid.precision_interval) == (None, None)


# --- several people a text --------------------------------------------------------------------------------------------


def test_people_are_held_against_most_of_the_others_and_so_is_the_model() -> None:
    people = [
        {"ann": "x", "bob": "x", "eve": "y"},  # ann's and bob's others are tied; eve is wrong, the model right
        {"ann": "y", "bob": "y", "eve": "y"},  # three cases, all right; the model is wrong in each
        {"ann": "x", "bob": "y"},  # two cases, both wrong; the model is right in one
        {"ann": "x"},  # nobody to compare with
    ]
    found = choice_ceiling(people, ["x", "x", "y", "x"])
    assert (found.n, found.cases, found.tied) == (3, 6, 2)
    assert (value(found.people), value(found.model)) == (3 / 6, 2 / 6)
    assert value(found.difference) == pytest.approx(-1 / 6)
    assert [(pair.first, pair.second, pair.n) for pair in found.pairs] == [
        ("ann", "bob", 3), ("ann", "eve", 2), ("bob", "eve", 2)
    ]  # fmt: skip
    assert value(found.pairs[0].score) == pytest.approx(cohen_kappa_score(["x", "y", "x"], ["x", "y", "y"]))
    assert value(found.alpha) == value(krippendorff_alpha([["x", "x", "y"], ["y"] * 3, ["x", "y"]]))
    most, by = ["x", "y", "y", "y", "x", "y"], ["y", "y", "y", "y", "y", "x"]
    assert value(found.people_kappa) == pytest.approx(cohen_kappa_score(most, by))
    assert value(found.model_kappa) == pytest.approx(cohen_kappa_score(most, ["x", "x", "x", "x", "y", "y"]))
    assert found.notes == {}


def test_mentions_that_most_others_marked_are_what_person_and_model_are_held_against() -> None:
    a, b, c = (0, 3, "x"), (5, 9, "x"), (5, 9, "y")
    people = [{"ann": [a, b], "bob": [a], "eve": [a, c]}, {"ann": [b], "bob": []}, {"eve": [a]}]
    found = span_ceiling(people, [[a], [b], []])
    # First text: all three have only `a` against them. Second: ann has nothing against her, bob has `b`.
    assert (found.n, found.cases) == (2, 5)
    assert value(found.people) == pytest.approx(2 * 3 / (3 + 5 + 0 + 1 + 1 + 0))
    assert value(found.model) == pytest.approx(2 * (3 + 1) / (3 + 3 + 0 + 1 + 1 + 1))
    assert value(found.f1) == pytest.approx(2 * 3 / (3 + 4 + 3 + 1))
    assert [value(pair.score) for pair in found.pairs] == pytest.approx([2 / 4, 2 / 4, 2 / 3])
    assert found.difference is not None
    assert found.difference.low <= found.difference.value <= found.difference.high


def test_people_are_compared_on_the_labels_that_both_were_asked_for() -> None:
    a, b, c = (0, 3, "x"), (5, 9, "y"), (12, 15, "z")
    people = [
        {"ann": [a, b], "bob": [a], "eve": [b], "joe": [c]},
        {"ann": [a], "bob": [b]},  # nothing that both were asked for
        {"ann": [a], "bob": []},  # who is not named was asked for all
    ]
    asked = [
        {"ann": ["x", "y"], "bob": ["x"], "eve": ["y"], "joe": ["z"]},
        {"ann": ["x"], "bob": ["y"]},
        {"ann": ["x"]},
    ]
    found = span_ceiling(people, [[a, c], [a, b], [a, b]], asked)
    # First text: ann has a against her from bob, b from eve; each of these has what ann marked. joe is alone.
    # Third: ann has nothing against her; bob has a.
    assert (found.n, found.cases) == (2, 5)
    assert value(found.people) == pytest.approx(2 * (2 + 1 + 1) / (4 + 2 + 2 + 1 + 1))
    # The model, on the same labels: a of ann's x and y, a of bob's x, nothing of eve's y; then a twice.
    assert value(found.model) == pytest.approx(2 * (1 + 1 + 0 + 0 + 1) / (3 + 2 + 1 + 1 + 2))
    assert value(found.f1) == pytest.approx(2 * 2 / (2 + 2 + 1))
    assert [(pair.first, pair.second, pair.n) for pair in found.pairs] == [("ann", "bob", 2), ("ann", "eve", 1)]
    assert [value(pair.score) for pair in found.pairs] == pytest.approx([2 / 3, 1])
    with pytest.raises(ValueError, match="joe marked z, but was not asked for it"):
        span_ceiling(people[:1], [[]], [{"joe": ["x"]}])
    with pytest.raises(ValueError):
        span_ceiling(people, [[]] * 3, asked[:2])


def test_who_was_asked_for_every_label_there_is_was_asked_for_all() -> None:
    draw = random.Random(4)
    places = [(at, at + 1, label) for at in range(4) for label in "xy"]
    marks = [[draw.sample(places, draw.randrange(4)) for _ in range(4)] for _ in range(60)]
    people = [dict(zip("abc", of, strict=False)) for of in marks]
    said = [of[3] for of in marks]
    assert span_ceiling(people, said) == span_ceiling(people, said, [dict.fromkeys("abc", "xy")] * 60)
    alone = [{who: {m for m in one if m[2] == "x"} for who, one in of.items()} for of in people]
    ours = [[m for m in one if m[2] == "x"] for one in said]
    assert span_ceiling(alone, ours) == span_ceiling(alone, said, [dict.fromkeys("abc", "x")] * 60)


def test_two_people_are_each_others_ceiling() -> None:
    here, there = [[(0, 1, "x")], [(2, 4, "y")], []], [[(0, 1, "x")], [(2, 5, "y")], [(0, 2, "x")]]
    found = span_ceiling([{"ann": a, "bob": b} for a, b in zip(here, there, strict=True)], here)
    assert value(found.people) == value(found.f1) == value(span_agreement(here, there).f1)


def test_what_people_cannot_show_is_none_with_the_reason() -> None:
    alone = choice_ceiling([{"ann": "x"}, {}], ["x", "y"])
    assert set(alone.notes.values()) == {"no text was read by two people"}
    assert set(alone.notes) == {"people", "model", "difference", "people_kappa", "model_kappa", "alpha"}
    tied = choice_ceiling([{"ann": "x", "bob": "y", "eve": "z"}], ["x"])
    assert (tied.cases, tied.tied, tied.people) == (0, 3, None)
    assert tied.notes["people"] == "in every case the others are tied"
    assert tied.alpha is not None
    one = choice_ceiling([{"ann": "x", "bob": "x"}] * 3, ["x"] * 3)
    assert one.people is not None
    assert one.people.low < 0.6
    assert one.notes == dict.fromkeys(("people_kappa", "model_kappa", "alpha"), "there is one label only")
    silent = span_ceiling([{"ann": [], "bob": []}], [[]])
    assert silent.notes == dict.fromkeys(("people", "model", "difference", "f1"), "no mention on either side")
    with pytest.raises(ValueError):
        choice_ceiling([{}], [])


def test_a_model_that_reads_as_people_do_reaches_the_ceiling_and_no_more() -> None:
    draw, inside = random.Random(9), 0

    def read(truth: str) -> str:
        return truth if draw.random() < 0.75 else draw.choice("abc")

    for _ in range(25):
        truths = [draw.choice("abc") for _ in range(80)]
        people = [{name: read(truth) for name in ("ann", "bob", "eve", "joe")} for truth in truths]
        found = choice_ceiling(people, [read(truth) for truth in truths]).difference
        assert found is not None
        inside += found.low <= 0 <= found.high
    assert inside >= 22
