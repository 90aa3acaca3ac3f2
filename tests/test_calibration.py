"""Calibrated confidence: a map that never falls and never lies, and what it is worth on texts it has not seen."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import binom
from sklearn.metrics import brier_score_loss, roc_auc_score

from eval.calibration import Calibration, Calibrator, calibrate, crossfitted, fit, length_bands, reliability
from eval.scores import Estimate, Numbers, ranking

GOLD = {"name": "support", "version": "3", "sha256": "ab"}
CONFIDENCE = st.one_of(st.sampled_from([0.0, 0.2, 0.5, 0.99, 1.0]), st.floats(0, 1))
ITEMS = st.lists(st.tuples(CONFIDENCE, st.booleans(), st.integers(0, 80).map(str)), min_size=30, max_size=120)


def numbers(result: object) -> Iterator[float]:
    """Every number in a result, however deep."""
    if isinstance(result, int | float):
        yield float(result)
    elif dataclasses.is_dataclass(result):
        for field in dataclasses.fields(result):
            yield from numbers(getattr(result, field.name))
    elif isinstance(result, tuple):
        for value in result:
            yield from numbers(value)


def named(n: int) -> list[str]:
    return [f"text {i}" for i in range(n)]


def overconfident(n: int, seed: int) -> tuple[list[float], list[bool]]:
    """Right with probability expit(0.6 logit(confidence) - 0.4)."""
    rng = np.random.default_rng(seed)
    said = expit(rng.normal(2, 1.5, n))
    return said.tolist(), (rng.random(n) < expit(0.6 * logit(said) - 0.4)).tolist()


def stepped(n: int, seed: int) -> tuple[list[float], list[bool]]:
    """Right in 3 of 10 below a confidence of 0.7, and in 95 of 100 above it: no line on the logit."""
    rng = np.random.default_rng(seed)
    said = rng.random(n)
    return said.tolist(), (rng.random(n) < np.where(said < 0.7, 0.3, 0.95)).tolist()


# --- the calibrator


def test_the_logistic_map_is_the_one_that_platt_asks_for() -> None:
    said, right = overconfident(400, 1)
    found = fit(said, right, named(400), GOLD)
    assert found.kind == "logistic"
    hits = sum(right)
    target = np.where(right, (hits + 1) / (hits + 2), 1 / (400 - hits + 2))
    x = logit(np.array(said))
    off = expit(found.slope * x + found.intercept) - target
    assert [off.sum(), (off * x).sum()] == pytest.approx([0, 0], abs=1e-7)  # the gradient of its loss

    def loss(line: Numbers) -> float:
        z = line[0] * x + line[1]
        return float((np.logaddexp(0, z) - target * z).sum())

    best = minimize(loss, np.array([1.0, 0.0]), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    assert [found.slope, found.intercept] == pytest.approx(best.x, abs=1e-6)
    assert found.probability(0.9) == pytest.approx((400 * expit(found.slope * logit(0.9) + found.intercept) + 1) / 402)


def test_the_isotonic_map_is_the_one_of_the_min_max_formula() -> None:
    said, right = stepped(150, 2)
    found = fit(said, right, named(150), GOLD)
    assert found.kind == "isotonic"
    items = sorted([*zip(said, right, strict=True), *((end, hit) for end in (min(said), max(said)) for hit in (0, 1))])
    levels = sorted(set(said))
    hits = np.array([sum(r for c, r in items if c == level) for level in levels], dtype=float)
    sizes = np.array([sum(1 for c, _ in items if c == level) for level in levels], dtype=float)
    hits, sizes = np.concatenate([[0], hits.cumsum()]), np.concatenate([[0], sizes.cumsum()])
    for i, level in enumerate(levels):
        value = max(
            min((hits[k + 1] - hits[j]) / (sizes[k + 1] - sizes[j]) for k in range(i, len(levels)))
            for j in range(i + 1)
        )
        assert found.probability(level) == pytest.approx(value, abs=1e-9)


def test_a_block_of_k_right_ones_at_the_end_is_not_certain() -> None:
    said = [0.1] * 40 + [0.6] * 40 + [0.7] * 40
    right = [False] * 40 + [True] * 10 + [False] * 30 + [True] * 40
    found = fit(said, right, named(120), GOLD)
    assert found.kind == "isotonic"
    for confidence, probability in ((0.0, 1 / 42), (0.1, 1 / 42), (0.6, 0.25), (0.7, 41 / 42), (1.0, 41 / 42)):
        assert found.probability(confidence) == pytest.approx(probability)


def test_what_was_chosen_has_the_least_loss_on_texts_it_was_not_fitted_on() -> None:
    for data, kind in ((overconfident(400, 3), "logistic"), (stepped(400, 3), "isotonic")):
        found = fit(*data, named(400), GOLD)
        assert (found.kind, found.n, found.texts, found.gold) == (kind, 400, 400, GOLD)
        assert found.losses[kind] == min(found.losses.values())
        assert found.losses.keys() == {"identity", "logistic", "isotonic"}


def test_a_confidence_that_needs_no_calibration_is_left_alone() -> None:
    rng = np.random.default_rng(4)
    said = rng.beta(4, 1.5, 150)
    found = fit(said.tolist(), (rng.random(150) < said).tolist(), named(150), GOLD)
    assert (found.kind, found.note) == ("identity", "no fit did better than the confidence itself")
    assert found.probability(0.83) == 0.83


def test_a_confidence_that_falls_with_being_right_is_not_turned_over() -> None:
    said, right = overconfident(300, 5)
    found = fit(said, [not r for r in right], named(300), GOLD)
    assert found.kind != "identity"
    assert found.probability(0.1) == pytest.approx(found.probability(0.9), abs=0.02)


@pytest.mark.parametrize(
    ("n", "wrong", "same", "note"),
    [
        (0, 0, False, "0 texts; at least 30"),
        (29, 10, False, "29 texts; at least 30"),
        (200, 4, False, "196 texts with a right item and 4 with a wrong one; at least 5"),
        (200, 0, False, "200 texts with a right item and 0 with a wrong one"),
        (200, 50, True, "all items have the same confidence"),
    ],
)
def test_too_little_is_left_alone_and_says_why(n: int, wrong: int, same: bool, note: str) -> None:
    said = [0.8 if same else i / 200 for i in range(n)]
    found = fit(said, [i >= wrong for i in range(n)], named(n), GOLD)
    assert found.kind == "identity"
    assert note in found.note
    assert found.losses == {}
    assert found.probability(0.25) == 0.25


def test_many_items_of_few_texts_are_few() -> None:
    said, right = overconfident(300, 6)
    assert fit(said, right, [f"text {i % 20}" for i in range(300)], GOLD).note.startswith("20 texts")


@settings(max_examples=25, deadline=None)
@given(ITEMS)
def test_every_map_rises_stays_inside_and_survives_json(items: list[tuple[float, bool, str]]) -> None:
    said, right, texts = (list(column) for column in zip(*items, strict=True))
    found = fit(said, right, texts, GOLD)
    assert Calibrator.of(json.loads(json.dumps(found.plain(), allow_nan=False))) == found
    mapped = [found.probability(c) for c in sorted({0.0, 1.0, *said})]
    assert all(b >= a - 1e-12 for a, b in pairwise(mapped))
    if found.kind != "identity":
        assert mapped[0] > 0
        assert mapped[-1] < 1
        assert mapped[-1] <= (len(said) + 1) / (len(said) + 2) + 1e-12


@settings(max_examples=5, deadline=None)
@given(ITEMS, st.randoms(use_true_random=False))
def test_the_order_of_the_items_plays_no_part(items: list[tuple[float, bool, str]], dice: random.Random) -> None:
    mixed = dice.sample(items, len(items))

    def of(some: list[tuple[float, bool, str]]) -> Calibration:
        said, right, texts = (list(column) for column in zip(*some, strict=True))
        return calibrate(said, right, texts, {}, GOLD)

    assert of(items) == of(mixed)


def test_what_is_no_calibrator_is_refused() -> None:
    good = Calibrator("isotonic", 40, 40, knots=((0.2, 0.1), (0.8, 0.9)))
    assert Calibrator.of(good.plain()) == good
    wrongs: list[dict[str, object]] = [
        {"kind": "magic"},
        {"slope": -1.0},
        {"slope": math.nan},
        {"intercept": math.inf},
        {"knots": []},
        {"knots": [[0.8, 0.1], [0.2, 0.9]]},
        {"knots": [[0.2, 0.9], [0.8, 0.1]]},
        {"knots": [[0.2, 1.1]]},
        {"knots": [[0.2]]},
        {"knots": None},
        {"more": 1},
        {"kind": "logistic"},
    ]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"."):
            Calibrator.of({**good.plain(), **wrong})
    for confidence in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="confidence"):
            good.probability(confidence)


# --- cross-fitting


@pytest.mark.parametrize("data", [overconfident, stepped])
def test_nothing_of_a_text_is_in_its_own_probability(data: object) -> None:
    assert callable(data)
    said, right = data(240, 7)
    texts = [f"text {i // 2}" for i in range(240)]
    before = crossfitted(said, right, texts)
    for text in ("text 0", "text 17", "text 101"):
        own = [i for i in range(240) if texts[i] == text]
        after = crossfitted(said, [r ^ (i in own) for i, r in enumerate(right)], texts)
        assert after[own].tolist() == before[own].tolist()
        assert after.tolist() != before.tolist()  # it is in that of others


# --- measures


def test_measures_equal_those_of_reference_libraries() -> None:
    dice = random.Random(8)
    for _ in range(30):
        n = dice.randrange(2, 90)
        said = [round(dice.random(), dice.choice([1, 6])) for _ in range(n)]
        right = [dice.random() < c for c in said]
        found = reliability(said, right, named(n))
        assert found.brier is not None
        assert found.brier.value == pytest.approx(brier_score_loss(right, said, labels=[False, True]), abs=1e-9)
        assert found.auroc == ranking(said, right)
        if found.auroc is not None:
            assert found.auroc.value == pytest.approx(roc_auc_score(right, said), abs=1e-9)


def test_with_one_confidence_the_calibration_error_is_its_distance_from_the_share() -> None:
    """One bin: the error is that of a proportion, which is known in closed form."""
    found = reliability([0.8] * 100, [True] * 60 + [False] * 40, named(100)).ece
    assert found is not None
    spread = math.sqrt(61 * 41) / 102 / 10
    assert [found.low, found.value, found.high] == pytest.approx(
        [0.2 - 1.96 * spread, 0.2, 0.2 + 1.96 * spread], abs=0.012
    )


def test_bins_are_of_equal_mass_and_their_number_grows_with_the_items() -> None:
    for n, bins in ((27, 3), (216, 6), (1000, 10), (4096, 15)):
        said, right = overconfident(n, 9)
        found = reliability(said, right, named(n)).bins
        assert len(found) == bins
        assert max(bin.count for bin in found) - min(bin.count for bin in found) <= 1
        lowest = sorted(zip(said, right, strict=True))[: found[0].count]
        assert found[0].confidence == pytest.approx(np.mean([c for c, _ in lowest]))
        assert found[0].right.value == pytest.approx(np.mean([r for _, r in lowest]))


def test_items_of_one_confidence_are_in_one_bin_and_bins_are_all_items() -> None:
    said = [1.0] * 150 + [0.3] * 30 + [i / 100 for i in range(20)]
    found = reliability(said, [True] * 190 + [False] * 10, named(200))
    assert [bin.count for bin in found.bins] == [20, 30, 150]
    assert found.bins[-1].confidence == 1.0
    assert found.bins[0].right.value == 0.5


def test_items_of_one_text_do_not_count_as_so_many() -> None:
    said, right = overconfident(100, 10)
    once = reliability(said, right, named(100))
    copied = reliability(said * 5, right * 5, named(100) * 5)
    for name in ("right", "brier", "auroc", "ece"):
        one, many = getattr(once, name), getattr(copied, name)
        assert isinstance(one, Estimate)
        if name != "ece":  # which has more bins where there are more items
            assert many.value == pytest.approx(one.value)
        assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.35)


def clustered(rng: np.random.Generator, texts: int) -> tuple[Numbers, Numbers, list[str]]:
    """Up to four items a text, whose confidences are alike; right 15 points less often than is said."""
    of = np.repeat(np.arange(texts), rng.integers(1, 5, texts))
    said = 0.2 + 0.75 * expit(rng.normal(1, 1, texts)[of] + rng.normal(0, 0.5, len(of)))
    # One draw a text decides in half of the cases, so that items of a text are right together.
    draw = np.where(rng.random(len(of)) < 0.5, rng.random(texts)[of], rng.random(len(of)))
    return said, draw < said - 0.15, [str(i) for i in of]


def test_intervals_cover_at_their_stated_rate() -> None:
    rng = np.random.default_rng(11)
    said, right, _ = clustered(rng, 60_000)
    truth = {
        "right": right.mean(),
        "brier": ((said - right) ** 2).mean(),
        "ece": 0.15,
        "auroc": roc_auc_score(right, said),
    }
    covered = dict.fromkeys(truth, 0)
    for _ in range(60):
        said, right, texts = clustered(rng, 80)
        found = reliability(said.tolist(), right.tolist(), texts)
        for name, value in truth.items():
            interval = getattr(found, name)
            covered[name] += interval.low <= value <= interval.high
    for times in covered.values():
        assert binom.cdf(times, 60, 0.93) > 1e-2, covered


def test_a_calibrated_confidence_is_not_blamed_for_chance() -> None:
    rng = np.random.default_rng(12)
    plain, debiased, silent = [], [], 0
    for _ in range(30):
        said = rng.beta(4, 1.5, 200)
        found = reliability(said.tolist(), (rng.random(200) < said).tolist(), named(200))
        assert found.ece is not None
        plain.append(sum(bin.count * abs(bin.confidence - bin.right.value) for bin in found.bins) / 200)
        debiased.append(found.ece.value)
        silent += found.ece.low == 0
    assert np.mean(plain) > 0.045
    assert np.mean(debiased) < 0.5 * np.mean(plain)
    assert silent >= 25


# --- all together


def test_calibrating_an_overconfident_model_helps_on_texts_not_fitted_on() -> None:
    said, right = overconfident(400, 13)
    found = calibrate(said, right, named(400), {}, GOLD)
    before, after = found.before, found.after
    assert before.ece is not None
    assert before.brier is not None
    assert after.ece is not None
    assert after.brier is not None
    assert after.ece.high < before.ece.low
    assert after.brier.value < before.brier.value
    assert after.confidence == pytest.approx(sum(right) / 400, abs=0.02)


def test_slices_are_measured_and_small_ones_pooled() -> None:
    said, right = overconfident(200, 14)
    labels = ["refund"] * 100 + ["order"] * 60 + ["greeting"] * 20 + ["thanks"] * 20
    sources = ["mail"] * 190 + ["phone"] * 10
    found = calibrate(said, right, named(200), {"label": labels, "source": sources}, GOLD)
    shown = [(cell.name, cell.values, cell.n, cell.before is not None, cell.note) for cell in found.cells]
    assert shown == [
        ("label", ("order",), 60, True, ""),
        ("label", ("refund",), 100, True, ""),
        ("label", ("greeting", "thanks"), 40, True, "2 values pooled, each with fewer than 30 texts"),
        ("source", ("mail",), 190, True, ""),
        ("source", ("phone",), 10, False, "10 texts; at least 30 are needed"),
    ]
    refund = found.cells[1]
    assert refund.before == reliability(said[:100], right[:100], named(100))
    assert refund.after is not None
    assert refund.after.right == refund.before.right


def test_slices_stand_in_the_order_of_the_numbers_in_their_names() -> None:
    said, right = overconfident(280, 14)
    bands = [value for value in ("112 to 140", "9 to 36", "37 to 111", "9") for _ in range(40)]
    small = [value for value in ("v10", "v9", "²", "v9x", "", "1" * 5000) for _ in range(20)]
    found = calibrate(said, right, named(280), {"any": bands + small}, GOLD)
    *large, pooled = [cell.values for cell in found.cells]
    assert large == [("9",), ("9 to 36",), ("37 to 111",), ("112 to 140",)]
    assert pooled == ("", "1" * 5000, "v9", "v9x", "v10", "²")


def test_lengths_fall_into_bands_of_like_size() -> None:
    assert length_bands([]) == ()
    assert length_bands([5, 5, 5]) == ("5 to 5",) * 3
    bands = length_bands([*range(1, 41)])
    assert (bands[0], bands[10], bands[39]) == ("1 to 10", "11 to 20", "31 to 40")
    assert length_bands([7] * 30 + [9] * 10) == ("7 to 7",) * 30 + ("9 to 9",) * 10


def test_nothing_is_none_and_says_so() -> None:
    found = calibrate([], [], [], {"label": []}, GOLD)
    assert found.calibrator.note == "0 texts; at least 30 are needed to fit a calibrator"
    assert (found.before.brier, found.before.ece, found.before.auroc) == (None, None, None)
    assert set(found.before.notes.values()) == {"no items"}
    assert found.cells == ()
    certain = reliability([1.0] * 20, [True] * 20, named(20))
    assert certain.notes == {"auroc": "all 20 items were right"}
    assert certain.brier is not None
    assert certain.brier.high > 0.1  # twenty right ones do not prove that there is no wrong one


def test_what_cannot_be_measured_is_refused() -> None:
    for said, right, texts in (([0.5], [], ["a"]), ([1.5], [True], ["a"]), ([math.nan], [True], ["a"])):
        with pytest.raises(ValueError, match="confidence"):
            calibrate(said, right, texts, {}, GOLD)
    with pytest.raises(ValueError, match=r"."):
        calibrate([0.5], [True], ["a"], {"label": []}, GOLD)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(CONFIDENCE, st.booleans(), st.sampled_from("abcde")), max_size=20))
def test_every_number_is_finite_and_inside(items: list[tuple[float, bool, str]]) -> None:
    said, right, texts = (list(column) for column in zip(*items, strict=True)) if items else ([], [], [])
    found = reliability(said, right, texts)
    assert all(map(math.isfinite, numbers(found)))
    assert sum(bin.count for bin in found.bins) == found.n == len(items)
    for estimate in (found.right, found.brier, found.ece, found.auroc):
        assert estimate is None or 0 <= estimate.low <= estimate.value <= estimate.high <= 1
