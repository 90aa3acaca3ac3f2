"""Agreement numbers are those of published examples, and of other libraries on a thousand random cases each."""

from __future__ import annotations

import math
import random

import krippendorff
import numpy as np
import pytest
from nervaluate import Evaluator
from sklearn.metrics import cohen_kappa_score, confusion_matrix, f1_score, precision_recall_fscore_support

from eval import agreement, scores
from eval.agreement import Mention, beyond_chance, choice_agreement, cohen, krippendorff_alpha, span_agreement
from eval.scores import Estimate


def value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


# --- published worked examples ----------------------------------------------------------------------------------------

# Krippendorff (2011), part C: four observers, twelve units, a dot for what is missing.
OBSERVERS = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]


def units(observers: list[str]) -> list[list[str | None]]:
    return [[None if label == "." else label for label in unit] for unit in zip(*observers, strict=True)]


@pytest.mark.parametrize(
    ("observers", "alpha"),
    [
        (["0100000010", "1110010000"], 0.095),  # part A: binary, two observers
        (["aabbdcccedda", "babbbccceddd"], 0.692),  # part B: nominal, two observers
        (OBSERVERS, 0.743),
    ],
)
def test_alpha_is_what_krippendorff_works_out(observers: list[str], alpha: float) -> None:
    found = krippendorff_alpha(units(observers))
    assert found is not None
    assert found.value == pytest.approx(alpha, abs=5e-4)
    assert -1 <= found.low < found.value < found.high <= 1


def test_kappa_is_what_cohen_works_out() -> None:
    # Cohen (1968), table 1: 200 cases, two judges, three diagnoses; unweighted kappa, by Cohen (1960), is 0.492.
    table = [[88, 10, 2], [14, 40, 6], [18, 10, 12]]
    pairs = [(f"{i}", f"{j}") for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    found = choice_agreement([g for g, _ in pairs], [s for _, s in pairs])
    assert found.kappa == pytest.approx(0.29 / 0.59)
    assert [(cell.gold, cell.said, cell.count) for cell in found.confusion[:3]] == [
        ("0", "0", 88), ("0", "1", 10), ("0", "2", 2)
    ]  # fmt: skip
    assert found.kappa_interval is not None
    low, high = found.kappa_interval
    # The large-sample standard error of Fleiss, Cohen and Everitt (1969) is 0.0510 here.
    assert [low, high] == pytest.approx([0.492 - 1.96 * 0.0510, 0.492 + 1.96 * 0.0510], abs=0.02)


def test_span_scores_are_those_of_the_six_scenarios_of_semeval_2013() -> None:
    both_ways: list[tuple[list[Mention], list[Mention]]] = [
        ([(0, 9, "drug")], [(0, 9, "drug")]),  # I: right
        ([(0, 9, "drug")], [(0, 9, "drug")]),  # I
        ([], [(0, 7, "brand")]),  # II: spurious
        ([(0, 7, "brand")], []),  # III: missed
        ([(0, 11, "drug")], [(0, 11, "brand")]),  # IV: another type
        ([(3, 11, "drug")], [(0, 11, "drug")]),  # V: another boundary
        ([(5, 19, "group")], [(0, 19, "drug")]),  # VI: both
    ]
    found = span_agreement([gold for gold, _ in both_ways], [said for _, said in both_ways])
    assert (found.gold, found.said, found.agreed) == (6, 6, 2)
    assert (found.wrong_label, found.wrong_boundary, found.wrong_both, found.missed, found.spurious) == (1, 1, 1, 2, 2)
    assert [value(x) for x in (found.type_f1, found.partial_f1, found.boundary_f1, found.f1)] == [
        pytest.approx(x) for x in (3 / 6, 4 / 6, 3 / 6, 2 / 6)
    ]


# --- reference libraries ----------------------------------------------------------------------------------------------


@pytest.fixture
def numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the intervals, so that a thousand cases take a moment."""
    monkeypatch.setattr(scores, "RESAMPLES", 1)
    for module in (scores, agreement):
        monkeypatch.setattr(module, "proportion", lambda k, n: Estimate(k / n, k / n, k / n) if n else None)


@pytest.mark.usefixtures("numbers_alone")
def test_a_thousand_random_choices_score_as_in_the_reference_libraries() -> None:
    draw = random.Random(11)
    for case in range(1000):
        labels = [f"l{i}" for i in range(draw.randint(2, 6))]
        gold = [draw.choice(labels) for _ in range(draw.randint(2, 60))]
        said = [label if draw.random() < 0.6 else draw.choice(labels) for label in gold]
        found, used = choice_agreement(gold, said), sorted({*gold, *said})
        if len(used) == 1:
            assert (found.kappa, found.alpha, found.macro_f1, found.micro_f1) == (None, None, None, None)
            continue
        here, there = ([used.index(label) for label in side] for side in (gold, said))  # it is slow with strings
        precision, recall, f1, _ = precision_recall_fscore_support(here, there, zero_division=np.nan)
        for label, *expected in zip(found.labels, precision, recall, f1, strict=True):
            for ours, theirs in zip((label.precision, label.recall, label.f1), expected, strict=True):
                assert (ours is None and math.isnan(theirs)) or ours == pytest.approx(theirs, abs=1e-9)
        assert found.kappa == pytest.approx(cohen_kappa_score(here, there), abs=1e-9)
        assert value(found.macro_f1) == pytest.approx(np.mean(f1), abs=1e-9)
        assert value(found.micro_f1) == pytest.approx(np.mean(np.array(gold) == np.array(said)), abs=1e-9)
        if case % 20 == 0:
            cells = {(cell.gold, cell.said): cell.count for cell in found.confusion}
            expected = confusion_matrix(gold, said, labels=used)
            assert [[cells.get((g, s), 0) for s in used] for g in used] == expected.tolist()
            assert value(found.micro_f1) == pytest.approx(f1_score(gold, said, average="micro"), abs=1e-9)


@pytest.mark.usefixtures("numbers_alone")
def test_a_thousand_random_ratings_have_the_alpha_of_the_reference_library() -> None:
    draw, defined = random.Random(12), 0
    for _ in range(1000):
        labels = "abcde"[: draw.randint(1, 5)]
        ratings: list[list[str | None]] = [
            [draw.choice(labels) if draw.random() < 0.8 else None for _ in range(draw.randint(0, 6))]
            for _ in range(draw.randint(1, 30))
        ]
        found = krippendorff_alpha(ratings)
        table = np.array([[row.count(label) for label in labels] for row in ratings])
        pairable = table[table.sum(axis=1) > 1]
        if (pairable.sum(axis=0) > 0).sum() < 2:
            assert found is None
        else:
            expected = krippendorff.alpha(value_counts=table, level_of_measurement="nominal")
            assert value(found) == pytest.approx(expected, abs=1e-9)
            defined += 1
    assert defined > 700


@pytest.mark.usefixtures("numbers_alone")
def test_a_thousand_random_mentions_score_as_in_the_reference_library() -> None:
    # At most one mention a side in each stretch of ten characters: where several overlap, libraries pair differently.
    draw = random.Random(13)

    def marked(near: Mention | None, at: int) -> list[Mention]:
        if near and draw.random() < 0.5:
            return [(near[0], near[1], draw.choice("abc"))]
        start = at + draw.randint(0, 7)
        return [(start, draw.randint(start + 1, at + 9), draw.choice("abc"))] if draw.random() < 0.7 else []

    for _ in range(1000):
        gold, said = [], []
        for _ in range(draw.randint(1, 5)):
            stretches = [
                (here, marked(here[0] if here else None, at)) for at in (0, 10, 20) for here in [marked(None, at)]
            ]
            gold.append([m for here, _ in stretches for m in here])
            said.append([m for _, there in stretches for m in there])
        found = span_agreement(gold, said)
        if not found.gold and not found.said:
            continue
        inclusive = [
            [[{"start": a, "end": b - 1, "label": c} for a, b, c in text] for text in side] for side in (gold, said)
        ]
        expected = Evaluator(*inclusive, tags=["a", "b", "c"], loader="dict").evaluate()["overall"]
        ours = {"strict": found.f1, "exact": found.boundary_f1, "partial": found.partial_f1, "ent_type": found.type_f1}
        for name, f1 in ours.items():
            assert value(f1) == pytest.approx(expected[name].f1, abs=1e-9)
        assert value(found.precision) in (None, pytest.approx(expected["strict"].precision, abs=1e-9))
        assert value(found.recall) in (None, pytest.approx(expected["strict"].recall, abs=1e-9))
        assert expected["exact"].correct == found.agreed + found.wrong_label
        assert expected["partial"].partial == found.wrong_boundary + found.wrong_both


# --- rates ------------------------------------------------------------------------------------------------------------


def test_the_intervals_of_kappa_and_alpha_cover_about_as_often_as_they_say() -> None:
    draw, inside = random.Random(5), [0, 0]
    for _ in range(200):
        gold = [draw.choice("abc") for _ in range(100)]
        said = [g if draw.random() < 0.7 else draw.choice("abc") for g in gold]  # 0.8 the same, a third by chance
        kinds = sorted(zip(gold, said, strict=True))
        for i, found in enumerate((beyond_chance(cohen([[k] for k in kinds]), [1] * 100), krippendorff_alpha(kinds))):
            assert found is not None
            inside[i] += found.low <= 0.7 <= found.high
    assert min(inside) >= 184  # 92 %
