"""Comparing recipes: published examples, exact levels, and words that say no more than the numbers."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from eval import compare as compare_module
from eval.agreement import Mention, choice_agreement, span_agreement
from eval.compare import ChoiceTask, Contrast, SpanTask, compare, holm, paired_difference

LABELS = st.sampled_from("abc")
TRIPLES = st.lists(st.tuples(LABELS, LABELS, LABELS), min_size=1, max_size=30)
PLACES = st.tuples(st.integers(0, 3), st.integers(4, 6), st.sampled_from("xy"))
MENTIONS = st.lists(PLACES, max_size=3)
SPAN_TRIPLES = st.lists(st.tuples(MENTIONS, MENTIONS, MENTIONS), min_size=1, max_size=10)


def choices(right_a: str, right_b: str, name: str = "intent") -> Contrast:
    """Two recipes A and B, item by item: "1" where right."""
    answers = {recipe: ["x" if r == "1" else "y" for r in right] for recipe, right in (("A", right_a), ("B", right_b))}
    (found,) = compare({name: ChoiceTask(["x"] * len(right_a), answers)}).contrasts
    return found


def table(both: int, lost: int, gained: int, neither: int) -> Contrast:
    return choices(
        "1" * (both + lost) + "0" * (gained + neither), "1" * both + "0" * lost + "1" * gained + "0" * neither
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer permutations: the level is as exact with 199 as with 4,999."""
    monkeypatch.setattr(compare_module, "PERMUTATIONS", 199)


# --- published worked examples ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("both", "lost", "gained", "neither", "low", "high"),
    [
        (4, 3, 9, 16, -0.027, 0.390),  # Tango (1998)
        (53, 8, 16, 9, -0.020, 0.207),  # Agresti and Min (2005)
        (1, 7, 1, 12, -0.517, -0.026),  # Fagerland, Lydersen and Laake (2014): airway responsiveness
    ],
)
def test_the_interval_of_a_paired_difference_is_as_published(
    both: int, lost: int, gained: int, neither: int, low: float, high: float
) -> None:
    found = paired_difference(gained, lost, both + lost + gained + neither)
    assert [found.low, found.high] == pytest.approx([low, high], abs=6e-4)


def test_mcnemars_exact_test_is_as_published_and_the_careful_one_decides() -> None:
    found = table(1, 7, 1, 12)  # Fagerland, Lydersen and Laake (2013): exact p 0.070, where the interval leaves out 0
    assert found.effect is not None
    assert found.effect.p == pytest.approx(0.0703, abs=5e-5)
    assert found.effect.difference.high < 0
    assert found.better is None


def test_holm_is_as_published() -> None:
    assert holm([0.5, 0.003, 0.32, 0.054, 0.0003]) == pytest.approx([0.64, 0.012, 0.64, 0.162, 0.0015])  # pingouin
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


# --- numbers that can be counted --------------------------------------------------------------------------------------


def test_items_that_changed_are_told_by_index() -> None:
    task = ChoiceTask(list("xxxyy"), {"A": list("xyzzy"), "B": list("yxyzz")})
    (found,) = compare({"mood": task}).contrasts
    assert (found.lost, found.gained, found.still_wrong) == ((0, 4), (1,), (2,))
    assert (found.first_score, found.second_score) == (2 / 5, 1 / 5)
    a, b = (0, 3, "x"), (4, 6, "y")
    spans = SpanTask([[a], [a, b], [], [b]], {"A": [[a], [a], [], [a]], "B": [[b], [b, a], [], []]})
    (found,) = compare({"names": spans}).contrasts
    assert (found.lost, found.gained, found.still_wrong) == ((0,), (1,), (3,))


def test_scores_and_kappa_are_those_of_agreement() -> None:
    draw = random.Random(4)
    gold = [draw.choice("abc") for _ in range(60)]
    answers = {name: [g if draw.random() < 0.6 else draw.choice("abc") for g in gold] for name in "AB"}
    (found,) = compare({"t": ChoiceTask(gold, answers)}).contrasts
    kappas = [choice_agreement(gold, answers[name]).kappa or 0.0 for name in "AB"]
    assert found.kappa is not None
    assert found.kappa.difference.value == pytest.approx(kappas[1] - kappas[0], abs=1e-9)
    assert found.effect is not None
    assert found.effect.p == binomtest(len(found.gained), len(found.gained) + len(found.lost)).pvalue
    marked = [mentions(draw, 1.0) for _ in range(40)]
    said = {name: [[m for m in text if draw.random() < 0.7] for text in marked] for name in "AB"}
    (spans,) = compare({"t": SpanTask(marked, said)}).contrasts
    f1 = [span_agreement(marked, said[name]).f1 for name in "AB"]
    assert [spans.first_score, spans.second_score] == pytest.approx([x.value for x in f1 if x], abs=1e-9)


def test_the_permutation_test_is_the_one_over_all_exchanges() -> None:
    draw = random.Random(8)
    gold = [mentions(draw, 1.0) for _ in range(9)]
    a = [[m for m in text if draw.random() < 0.9] for text in gold]
    b = [[m for m in text if draw.random() < 0.5] for text in gold]

    def apart(exchanged: Sequence[bool]) -> float:
        """The difference over its standard error, item by item."""
        sides = [(y, x) if swap else (x, y) for x, y, swap in zip(a, b, exchanged, strict=True)]
        f1 = [span_f1(gold, [side[i] for side in sides]) for i in (0, 1)]
        size = [sum(len(g) + len(side[i]) for g, side in zip(gold, sides, strict=True)) for i in (0, 1)]
        adds = [
            [(2 * len(set(g) & set(side[i])) - f1[i] * (len(g) + len(side[i]))) / size[i] for i in (0, 1)]
            for g, side in zip(gold, sides, strict=True)
        ]
        return abs(f1[1] - f1[0]) / math.sqrt(sum((second - first) ** 2 for first, second in adds))

    every = [apart(exchanged) for exchanged in itertools.product((False, True), repeat=len(gold))]
    exact = sum(x >= every[0] - 1e-9 for x in every) / len(every)
    (found,) = compare({"names": SpanTask(gold, {"A": a, "B": b})}).contrasts
    assert found.effect is not None
    assert found.effect.p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 4999))


@pytest.mark.parametrize(("lost", "gained", "n"), [(12, 18, 180), (3, 8, 60), (40, 52, 1000), (0, 4, 200)])
def test_as_many_items_as_are_said_to_be_needed_show_the_difference_in_four_cases_of_five(
    lost: int, gained: int, n: int
) -> None:
    found = table(n - lost - gained, lost, gained, 0)
    assert found.better is None
    assert found.needed is not None
    changed = np.arange(
        found.needed + 1
    )  # how many items could change, and the fewest and most gains that show nothing
    few = binom.ppf(0.025, changed, 0.5)
    few += binom.cdf(few, changed, 0.5) <= 0.025
    shown = binom.cdf(few - 1, changed, gained / (gained + lost)) + binom.sf(
        changed - few, changed, gained / (gained + lost)
    )
    assert 0.79 <= np.sum(shown * binom.pmf(changed, found.needed, (gained + lost) / n)) <= 0.9


# --- words ------------------------------------------------------------------------------------------------------------


def test_the_verdict_says_what_is_shown_and_how_much_more_is_needed_where_nothing_is() -> None:
    found = table(800, 40, 80, 80)
    assert found.effect is not None
    low, high = 100 * found.effect.difference.low, 100 * found.effect.difference.high
    assert found.verdict == f"B is better by {low:.1f} to {high:.1f} points on intent"
    assert (found.better, found.needed) == ("B", None)
    assert table(800, 80, 40, 80).verdict == f"A is better by {low:.1f} to {high:.1f} points on intent"
    undecided = table(130, 12, 18, 20)
    assert undecided.verdict == (
        "no difference on intent can be shown with 180 items; about 1,300 would be needed to show the 3.3 points seen"
    )


def test_where_no_difference_is_seen_none_would_do() -> None:
    for equal in (table(100, 5, 5, 10), table(10, 0, 0, 0)):
        assert equal.needed is None
        assert equal.verdict.endswith("items, and no number of items would do: both score the same")
        assert equal.effect is not None
        assert equal.effect.p == 1.0
        assert equal.effect.difference.low < 0 < equal.effect.difference.high
    same: list[list[Mention]] = [[(0, 1, "x")]] * 5
    (spans,) = compare({"names": SpanTask(same, {"A": same, "B": same})}).contrasts
    assert spans.effect is not None
    assert spans.effect.difference.low < -0.3
    assert spans.effect.difference.high > 0.3


def test_three_recipes_are_named_and_every_pair_is_counted() -> None:
    gold = ["x", "y"] * 100
    wrong = ["y", "x"] * 100
    answers = {"A": gold, "B": gold[:60] + wrong[60:], "C": gold[:62] + wrong[62:]}
    found = compare({"intent": ChoiceTask(gold, answers)})
    assert found.tests == 3
    ab, ac, bc = found.contrasts
    assert (ab.better, ac.better, bc.better) == ("A", "A", None)
    assert ab.verdict.startswith("A is better than B by ")
    assert bc.verdict.startswith("no difference between B and C on intent can be shown with 200 items; about ")
    assert found.verdict == "; ".join(contrast.verdict for contrast in found.contrasts)
    for contrast in found.contrasts:
        assert contrast.effect is not None
        assert contrast.effect.p <= contrast.effect.p_corrected <= min(1.0, 3 * contrast.effect.p)


def test_what_cannot_be_compared_says_why() -> None:
    nothing = compare({"intent": ChoiceTask([], {"A": [], "B": []}), "names": SpanTask([[]], {"A": [[]], "B": [[]]})})
    assert nothing.tests == 0
    assert (
        nothing.verdict == "nothing can be said of intent: no items; nothing can be said of names: no mention in gold"
    )
    one = choices("1101", "1111")
    assert one.kappa is None
    assert one.notes == {"kappa": "gold has fewer than two labels"}
    with pytest.raises(ValueError, match="two are needed"):
        compare({"intent": ChoiceTask(["x"], {"A": ["x"]})})
    with pytest.raises(ValueError, match="2 answers to 1 items"):
        compare({"intent": ChoiceTask(["x"], {"A": ["x", "y"], "B": ["x"]})})
    for counts in ((1, 1, 1), (-1, 0, 3), (0, 0, 0)):
        with pytest.raises(ValueError):
            paired_difference(*counts)


def test_a_single_item_shows_nothing() -> None:
    found = choices("0", "1")
    assert found.effect is not None
    assert (found.better, found.effect.p) == (None, 1.0)
    (spans,) = compare({"names": SpanTask([[(0, 1, "x")]], {"A": [[]], "B": [[(0, 1, "x")]]})}).contrasts
    assert spans.better is None
    assert spans.effect is not None
    assert spans.effect.p > 0.9
    assert spans.effect.difference.low < 0.5


# --- what always holds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 12, 40, 300])
def test_where_the_exact_test_finds_a_difference_the_interval_leaves_out_nought(n: int) -> None:
    for changed in range(min(n, 40) + 1):
        for gained in range(changed + 1):
            found = paired_difference(gained, changed - gained, n)
            assert -1 <= found.low <= found.value <= found.high <= 1
            assert found.low < found.high
            if changed and binomtest(gained, changed).pvalue <= 0.05:
                assert found.low > 0 or found.high < 0


@settings(deadline=None, max_examples=25)
@given(TRIPLES, SPAN_TRIPLES)
def test_exchanging_the_recipes_exchanges_the_findings(
    rows: list[tuple[str, str, str]], spans: list[tuple[list[Mention], list[Mention], list[Mention]]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_module, "PERMUTATIONS", 99)
        there = compare({"c": ChoiceTask(*columns(rows, "AB")), "s": SpanTask(*columns(spans, "AB"))})
        back = compare({"c": ChoiceTask(*columns(rows, "BA")), "s": SpanTask(*columns(spans, "BA"))})
    for one, other in zip(there.contrasts, back.contrasts, strict=True):
        assert (one.lost, one.gained, one.still_wrong) == (other.gained, other.lost, other.still_wrong)
        for effect, mirrored, most in ((one.effect, other.effect, 1), (one.kappa, other.kappa, 2)):
            assert (effect is None) == (mirrored is None)
            if effect and mirrored:
                assert effect.p == mirrored.p
                assert 0 < effect.p <= effect.p_corrected <= 1
                assert effect.difference.value == -mirrored.difference.value
                assert -most <= effect.difference.low <= effect.difference.value <= effect.difference.high <= most


# --- rates, by simulation ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_of_400_comparisons_of_equal_recipes_at_most_one_in_twenty_declares_a_difference() -> None:
    declared, raw = 0, [0, 0]
    for seed in range(400):
        found = compare(equals(random.Random(seed)))
        declared += any(contrast.better for contrast in found.contrasts)
        for i, contrast in enumerate(found.contrasts):
            assert contrast.effect is not None
            raw[i] += contrast.effect.p <= 0.05
    assert declared <= 20
    assert max(raw) <= 28  # each test alone keeps 5 %, give or take two standard errors


@pytest.mark.usefixtures("quick")
def test_recipes_that_score_the_same_for_unlike_reasons_are_not_told_apart_either() -> None:
    declared = 0
    for seed in range(400):
        draw = random.Random(seed)
        gold = [mentions(draw, 1.0) for _ in range(80)]
        misses = [[m for m in text if draw.random() < 0.8] for text in gold]  # F1 is 2 * 0.8 / 1.8
        invents = [
            text + [(m[0] + 5, m[1] + 3, "x") for m in text if draw.random() < 0.25] for text in gold
        ]  # 2 / 2.25
        (contrast,) = compare({"names": SpanTask(gold, {"A": misses, "B": invents})}).contrasts
        declared += contrast.better is not None
    assert declared <= 28  # 5 % of 400, and two standard errors


@pytest.mark.usefixtures("quick")
def test_a_recipe_that_is_better_is_found_and_by_how_much() -> None:
    found, inside = 0, 0
    for seed in range(100):
        draw = random.Random(seed)
        gold = [mentions(draw, 1.0) for _ in range(120)]
        a, b = (
            [[m if draw.random() < right else (m[0], m[1], "z") for m in text] for text in gold] for right in (0.7, 0.8)
        )
        (contrast,) = compare({"names": SpanTask(gold, {"A": a, "B": b})}).contrasts
        assert contrast.effect is not None
        found += contrast.better == "B"
        inside += contrast.effect.difference.low <= 0.1 <= contrast.effect.difference.high
    assert found >= 70
    assert inside >= 90


def test_the_interval_of_a_paired_difference_covers_as_often_as_it_says() -> None:
    draw, inside = random.Random(2), 0
    for _ in range(600):
        changes = [draw.choices((1, -1, 0), (0.10, 0.04, 0.86))[0] for _ in range(100)]
        found = paired_difference(changes.count(1), changes.count(-1), 100)
        inside += found.low <= 0.06 <= found.high
    assert inside >= 558  # 93 %


def equals(draw: random.Random) -> dict[str, ChoiceTask | SpanTask]:
    """Two recipes that are equally good, on a task of each kind; some items are hard for both."""
    hard = [draw.random() < 0.3 for _ in range(120)]
    gold = [draw.choice("abc") for _ in hard]
    marked = [mentions(draw, 0.8) for _ in hard[:70]]

    def label(i: int) -> str:
        return gold[i] if draw.random() < (0.5 if hard[i] else 0.9) else draw.choice("abc")

    def marks(i: int) -> list[Mention]:
        kept = [m for m in marked[i] if draw.random() < (0.4 if hard[i] else 0.9)]
        return kept + ([(90, 95, "x")] if draw.random() < 0.2 else [])

    return {
        "intent": ChoiceTask(gold, {name: [label(i) for i in range(len(gold))] for name in "AB"}),
        "names": SpanTask(marked, {name: [marks(i) for i in range(len(marked))] for name in "AB"}),
    }


def mentions(draw: random.Random, some: float) -> list[Mention]:
    return [(10 * i, 10 * i + 5, draw.choice("xy")) for i in range(draw.randint(1, 4))] if draw.random() < some else []


def span_f1(gold: Sequence[Sequence[Mention]], said: Sequence[Sequence[Mention]]) -> float:
    agreed = sum(len(set(g) & set(s)) for g, s in zip(gold, said, strict=True))
    return 2 * agreed / (sum(map(len, gold)) + sum(map(len, said)))


def columns(rows: Sequence[tuple[Any, Any, Any]], names: str) -> tuple[list[Any], dict[str, list[Any]]]:
    """Gold and the answers of two recipes; of "BA" in the other order."""
    gold, *answers = ([row[i] for row in rows] for i in range(3))
    both = dict(zip("AB", answers, strict=True))
    return gold, {name: both[name] for name in names}
