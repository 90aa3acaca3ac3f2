"""Thresholds with a promise: exact where it can be counted, kept in simulation, and silent where it cannot be made."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import itertools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import beta, binom, hypergeom, multinomial

from eval import guarantee
from eval.guarantee import (
    Over,
    Promise,
    accept_in_batch,
    promise,
    promise_together,
    rehearse,
    rehearse_batch,
    work,
)
from eval.scores import Estimate

PAC = Path(os.environ.get("CONCORD_DATA", "../shared/data")) / "pac" / "stance.csv.gz"
Population = tuple[NDArray[np.float64], NDArray[np.bool_]]
Risk = Callable[[NDArray[np.float64]], NDArray[np.float64]]
SURE = st.sampled_from([0.0, 0.2, 0.5, 0.8, 0.9, 0.95, 1.0]) | st.floats(0, 1)
ITEMS = st.lists(st.tuples(SURE, st.booleans()), max_size=120)
ERRORS = st.sampled_from([0.01, 0.03, 0.05, 0.2, 0.5])


def population(risk: Risk, levels: NDArray[np.float64] | None = None, n: int = 8_000) -> Population:
    """Items with a confidence each, all different or one of a few levels, wrong with the risk of their confidence.

    From the surest on, the wrong ones are as many as the risks add up to: so a risk just too high is so everywhere.
    """
    rng = np.random.default_rng(7)
    sure = -np.sort(-(rng.random(n) if levels is None else rng.choice(levels, n)))
    return sure, np.diff(np.floor(np.cumsum(risk(sure)) + 0.5), prepend=0) < 1


def near(edge: float, swing: float) -> Risk:
    """The error of the surest share v swings about `edge`, so that thresholds good and bad follow one another."""

    def risk(sure: NDArray[np.float64]) -> NDArray[np.float64]:
        v = np.maximum(1 - sure, 1e-9)
        return np.clip(edge + swing * (np.sin(40 * v) / np.sqrt(v) + 40 * v * np.cos(40 * v) / 3), 0, 1)

    return risk


VERBAL = np.array([0.2, 0.5, 0.7, 0.8, 0.8, 0.9, 0.9, 0.9, 0.95, 0.95, 0.99, 1.0])
POPULATIONS: dict[str, Population] = {
    "calibrated": population(lambda c: 0.4 * (1 - c)),
    "overconfident": population(lambda c: 0.02 + 0.6 * (1 - c)),
    "flat and too high": population(lambda c: np.full_like(c, 0.052)),
    "flat and low": population(lambda c: np.full_like(c, 0.02)),
    "the surest are the worst": population(lambda c: np.where(c > 0.93, 0.25, 0.01 + 0.3 * (1 - c) ** 3)),
    "good and bad by turns": population(lambda c: np.where(np.floor(c * 12) % 2 == 0, 0.12, 0.002)),
    "at the edge, up and down": population(near(0.05, 0.01)),
    "few levels": population(lambda c: 0.5 * (1 - c), VERBAL),
    "few levels, not in order": population(lambda c: np.where(c == 0.95, 0.1, np.where(c > 0.85, 0.03, 0.2)), VERBAL),
    "one level": population(lambda c: np.full_like(c, 0.03), np.array([0.9])),
}


def columns(file: Path) -> tuple[list[float], list[bool]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return [float(row["confidence"]) for row in rows], [row["Y"] == row["Yhat (GPT4o)"] for row in rows]


@pytest.fixture(scope="module")
def stance() -> tuple[list[float], list[bool]]:
    if not PAC.exists():
        pytest.skip(f"{PAC} is not here: it is no part of the repository; set CONCORD_DATA to the folder that has it")
    return columns(PAC)


# The promise, in simulation


@pytest.mark.parametrize("over", ["accepted", "all"])
@pytest.mark.parametrize("name", POPULATIONS)
def test_the_promise_is_broken_in_at_most_five_of_a_hundred_trials(name: str, over: Over) -> None:
    for size in (150, 600):
        found = rehearse(*POPULATIONS[name], error=0.05, level=0.95, size=size, over=over)
        assert found.broken.value <= 0.05, (name, size, found)


def test_something_is_accepted_where_something_can_be() -> None:
    """At 600 items, where a seer of the truth could accept 0.5, 1, 1 and 0.75 of all."""
    cases = (
        ("calibrated", 0.1, 0.15),
        ("flat and low", 0.05, 0.6),
        ("one level", 0.05, 0.3),
        ("few levels", 0.05, 0.35),
    )
    for name, error, least in cases:
        found = rehearse(*POPULATIONS[name], error=error, level=0.95, size=600, trials=200)
        assert found.coverage >= least, (name, found)


def test_more_calibration_items_accept_more() -> None:
    sizes = (100, 300, 1000, 3000)
    found = [rehearse(*POPULATIONS["few levels"], 0.05, 0.95, size, trials=100).coverage for size in sizes]
    assert found == sorted(found)
    assert found[-1] > 0.6  # the truth allows 0.75


def test_taking_the_lowest_threshold_that_looks_good_breaks_the_promise() -> None:
    """What the chains are for: the same exact bound at every threshold, and the best of them taken."""
    sure, right = POPULATIONS["flat and too high"]
    rng, broken = np.random.default_rng(0), 0
    for _ in range(300):
        drawn = rng.integers(len(sure), size=600)
        order = drawn[np.argsort(-sure[drawn])]
        reach = np.arange(1, 601)
        passed = np.flatnonzero(guarantee.bdtr(np.cumsum(~right[order]), reach, 0.05) <= 0.05)
        if len(passed):
            broken += float((~right)[sure >= sure[order[passed[-1]]]].mean()) > 0.05
    assert broken > 0.1 * 300


# The promise, counted out


def test_the_threshold_is_that_of_the_chains_walked_step_by_step() -> None:
    """Against scipy's binomial distribution, one item at a time, on 200 sets without equals."""
    rng = np.random.default_rng(11)
    for _ in range(200):
        n, error = int(rng.integers(20, 500)), float(rng.choice([0.03, 0.05, 0.1, 0.3]))
        right = np.sort(rng.random(n)) >= rng.random(n) * rng.choice([0.01, 0.1, 0.5])
        wrong, reach, reached = np.cumsum(~right[::-1]), np.arange(1, n + 1), 0
        p = binom.cdf(wrong, reach, error)
        for start, level in guarantee._chains(n, error, 0.05):
            k = start
            while k <= n and p[k - 1] <= level:
                k += 1
            reached = max(reached, k - 1 if k - 1 > start else 0)
        assert guarantee._last(reach, wrong, error, 0.05, "accepted") + 1 == reached


def outcomes(n: int, kinds: int) -> Iterator[tuple[int, ...]]:
    """All ways in which n items fall into kinds."""
    for bars in itertools.combinations(range(n + kinds - 1), kinds - 1):
        ends = (-1, *bars, n + kinds - 1)
        yield tuple(b - a - 1 for a, b in itertools.pairwise(ends))


@pytest.mark.parametrize("start", [3, 5])
def test_a_chain_errs_with_at_most_its_level_whatever_the_risk(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly: over all 1,287 outcomes of 8 items on three levels of confidence, and all draws among equals."""
    error, level, n = 0.45, 0.3, 8
    counts = np.array(list(outcomes(n, 6)))
    vouched = np.zeros((len(counts), n + 1, 3), dtype=np.bool_)  # by outcome and wrong ones among the first
    among = np.zeros((len(counts), n + 1))
    for i, kinds in enumerate(counts.reshape(-1, 3, 2)):
        seen = np.flatnonzero(kinds.sum(axis=1))
        reach, errors = kinds.sum(axis=1)[seen].cumsum(), kinds[seen, 1].cumsum()
        at = int(np.searchsorted(reach, start))
        before, wrong = (int(reach[at - 1]), int(errors[at - 1])) if at else (0, 0)
        group, bad = int(reach[at]) - before, int(errors[at]) - wrong
        for extra in range(bad + 1):
            among[i, wrong + extra] = hypergeom.pmf(extra, group, bad, start - before)
            monkeypatch.setattr(guarantee, "_among", lambda *_, w=wrong + extra: w)
            first, last = guarantee._chain(reach, errors, error, start, level)
            vouched[i, wrong + extra, seen[first : last + 1]] = True
    rng = np.random.default_rng(start)
    for _ in range(400):
        mass = rng.dirichlet(np.full(3, rng.choice([0.5, 2, 20])))
        # near the edge, and far on either side of it: where a chain is likeliest to be misled
        risk = np.clip(error + rng.choice([0.02, 0.2, 0.6]) * rng.normal(size=3), 0, 1)
        reached = np.cumsum(mass * risk) / np.cumsum(mass) > error
        chance = multinomial.pmf(counts, n, np.stack([mass * (1 - risk), mass * risk], axis=1).ravel())
        broken = (among * (vouched & reached).any(axis=2)).sum(axis=1)  # any place of its range, not only the last
        assert float(chance @ broken) <= level + 1e-9, (mass, risk)


def test_a_batch_errs_with_at_most_its_level_whatever_is_wrong() -> None:
    """Exactly: over all draws of 4 out of 8 items, for every number and place of wrong ones."""
    n, settled, error, level = 8, 4, 0.25, 0.6
    sure = [1 - i / n for i in range(n)]
    draws = list(itertools.combinations(range(n), settled))
    worst = 0.0
    for truth in itertools.product([True, False], repeat=n):
        broken = 0
        for draw in draws:
            found = accept_in_batch(sure, [truth[i] if i in draw else None for i in range(n)], error, level)
            broken += sum(a and not t for a, t in zip(found.accepted, truth, strict=True)) > error * n
        worst = max(worst, broken / len(draws))
    assert worst <= 1 - level + 1e-9
    assert worst > 0.5 * (1 - level)  # and what may go wrong is not left unused


def test_over_all_items_one_binomial_test_serves_all_thresholds() -> None:
    """Of 500 items 16 may be wrong at 5 %: P(Binomial(500, 0.05) <= 16) = 0.036, and <= 17 0.058."""
    sure = [1 - i / 1000 for i in range(500)]
    right = [i % 10 != 9 for i in range(500)]  # the 17th wrong one is the 170th item
    found = promise(sure, right, 0.05, over="all")
    assert (found.accepted, found.wrong, found.threshold) == (169, 16, sure[168])
    assert found.observed == 16 / 500


# The batch of the published method


def test_more_is_saved_than_by_the_published_method(stance: tuple[list[float], list[bool]]) -> None:
    """28.4 % of the labels at error 0.05 and level 0.95 with 500 draws, calibration labels counted as people's work."""
    found = rehearse_batch(*stance, error=0.05, level=0.95, size=500)
    assert found.broken.value <= 0.05
    assert found.coverage > 0.30


def test_thresholds_keep_their_promise_on_verbal_confidences(stance: tuple[list[float], list[bool]]) -> None:
    for error, over in ((0.03, "accepted"), (0.05, "accepted"), (0.1, "accepted"), (0.05, "all")):
        found = rehearse(*stance, error, 0.95, 500, over)
        assert found.broken.value <= 0.05, (error, over, found)


def test_equals_in_a_batch_may_be_parted_and_settled_items_are_never_accepted() -> None:
    asked = np.random.default_rng(1).permutation(400) < 150
    found = accept_in_batch([0.9] * 400, [bool(i % 8) if asked[i] else None for i in range(400)], 0.05)
    assert 0 < sum(found.accepted) < 250
    assert not any(a and q for a, q in zip(found.accepted, asked, strict=True))
    assert found.saved == sum(found.accepted) / 400
    assert found.wrong == found.allowed


def test_a_batch_too_little_of_which_was_settled_is_left_to_people() -> None:
    found = accept_in_batch([0.9] * 1000, [True] * 20 + [None] * 980, 0.03)
    assert (sum(found.accepted), found.allowed) == (0, -1)
    assert accept_in_batch([], [], 0.03).saved == 0
    assert sum(accept_in_batch([0.9] * 100, [False] * 97 + [None] * 3, 0.03).accepted) == 3  # 3 in 100 can be borne


# What is said


def finite(result: object) -> bool:
    values = [getattr(result, f.name) for f in dataclasses.fields(result)]  # type: ignore[arg-type]
    return all(
        finite(v) if dataclasses.is_dataclass(v) else not isinstance(v, float) or math.isfinite(v) for v in values
    )


@settings(deadline=None, max_examples=25)
@given(ITEMS, ERRORS, st.sampled_from(["accepted", "all"]), st.randoms(use_true_random=False))
def test_what_is_said_is_finite_consistent_and_does_not_depend_on_the_order(
    items: list[tuple[float, bool]], error: float, over: Over, shuffle: object
) -> None:
    found = promise([c for c, _ in items], [r for _, r in items], error, over=over)
    assert finite(found)
    if found.threshold is None:
        assert {"threshold"} <= found.notes.keys()
        assert found.more is None or found.more > 0
        assert (found.more is None) == ("more" in found.notes)
    else:
        above = [r for c, r in items if c >= found.threshold]
        assert (len(above), above.count(False)) == (found.accepted, found.wrong)
        assert found.upper is not None
        assert found.upper <= error + 1e-9
        assert found.more == 0
    shuffle.shuffle(items)  # type: ignore[attr-defined]
    assert promise([c for c, _ in items], [r for _, r in items], error, over=over) == found


def test_the_upper_bound_is_the_exact_one() -> None:
    sure = [1 - i / 1000 for i in range(700)]
    found = promise(sure, [i % 60 != 59 for i in range(700)], 0.05)
    assert (found.accepted, found.wrong) == (700, 11)
    assert found.upper == pytest.approx(beta.ppf(0.95, 12, 689), abs=1e-9)
    assert found.coverage is not None
    assert found.coverage.value == 1
    assert found.coverage.low < 1


def test_a_hundred_right_ones_are_the_fewest_for_three_percent() -> None:
    assert promise([0.9] * 100, [True] * 100, 0.03).threshold == 0.9
    refused = promise([0.9] * 99, [True] * 99, 0.03)
    assert refused.threshold is None
    assert refused.coverage is not None
    assert refused.coverage.value == 0


def test_forty_gold_items_are_too_few_and_it_is_said_how_many_more_are_needed() -> None:
    found = promise([i / 40 for i in range(40)], [True] * 40, 0.03)
    assert found.more is not None
    assert 60 <= found.more <= 160
    assert found.notes["threshold"] == (
        f"cannot be promised with 40 calibration items: about {found.more} more are needed "
        "if the error stays as observed"
    )


def test_with_so_many_more_items_there_is_a_promise_more_often_than_not() -> None:
    """One in two hundred is wrong, and 60 items have been seen; over the answers that say how many more."""
    rng, kept = np.random.default_rng(3), []
    sure, right = population(lambda c: np.full_like(c, 0.005))
    for _ in range(6):
        drawn = rng.integers(len(sure), size=60)
        more = promise(sure[drawn].tolist(), right[drawn].tolist(), 0.03).more
        if more is not None:
            kept.append(rehearse(sure, right, 0.03, 0.95, 60 + more, trials=50).promised / 50)
    assert len(kept) >= 4
    assert 0.4 <= np.mean(kept) <= 0.9, kept


def test_where_even_the_surest_are_wrong_too_often_no_number_would_do() -> None:
    found = promise([1 - i / 300 for i in range(300)], [i % 5 != 0 for i in range(300)], 0.03)
    assert (found.threshold, found.more) == (None, None)
    assert found.notes["more"] == "no number would do at the observed error: of the 45 surest 9 are wrong"
    assert promise([], [], 0.03).notes["more"] == "nothing is known of the error"
    assert promise([], [], 0.03).coverage is None


def test_several_errors_have_one_threshold_and_share_what_may_go_wrong() -> None:
    sure, right = [0.9] * 200, [True] * 200
    found = promise_together(sure, {"intent": right, "sentiment": right}, {"intent": 0.03, "sentiment": 0.05}, 0.9)
    assert {p.level for p in found.values()} == {0.95}
    assert {p.threshold for p in found.values()} == {0.9}
    assert found["intent"] == promise(sure, right, 0.03, found["intent"].level)
    assert promise_together([], {}, {}) == {}
    with pytest.raises(KeyError):
        promise_together(sure, {"intent": right}, {})


@given(ITEMS, ERRORS)
def test_one_error_alone_is_promised_as_ever(items: list[tuple[float, bool]], error: float) -> None:
    sure, right = [c for c, _ in items], [r for _, r in items]
    with mock.patch.object(guarantee, "_enough", return_value=None):  # how many more are needed: not asked here
        assert promise_together(sure, {"all": right}, {"all": error}, 0.9) == {"all": promise(sure, right, error, 0.9)}


def test_errors_that_no_threshold_bears_together_are_not_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarantee, "_enough", lambda *_: None)
    rng = np.random.default_rng(3)
    sure = rng.random(4000)
    late = (sure < 0.9) | (rng.random(4000) < 0.6)  # wrong where it is surest: fine only when much is accepted
    early = sure > 0.8  # right where it is surest: fine only when little is accepted
    found = promise_together(
        sure.tolist(), {"late": late.tolist(), "early": early.tolist()}, {"late": 0.06, "early": 0.06}
    )
    assert all(one.threshold is None for one in found.values())
    assert "other errors" in "".join(one.notes["threshold"] for one in found.values())


def test_all_promises_hold_at_once_for_the_very_items_that_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A is wrong more often where B is sure: a threshold for each would accept a set of which nothing was promised."""
    monkeypatch.setattr(guarantee, "_enough", lambda *_: None)
    rng = np.random.default_rng(4)
    broken = promised = 0
    for _ in range(200):
        sure = rng.random(1500)
        a = rng.random(1500) >= np.where(sure > 0.7, 0.075, 0.005)
        b = rng.random(1500) >= 0.15 * (1 - sure)
        found = promise_together(sure.tolist(), {"a": a.tolist(), "b": b.tolist()}, {"a": 0.06, "b": 0.06}, 0.9)
        line = found["a"].threshold
        if line is not None:
            promised += 1
            surest = min(0.3, 1 - line)
            error_a = (0.075 * surest + 0.005 * (1 - line - surest)) / (1 - line)
            error_b = 0.15 * (1 - line) / 2
            broken += error_a > 0.06 or error_b > 0.06
    assert promised >= 20
    assert broken <= binom.ppf(0.999, 200, 0.1)


def test_whole_items_are_promised_by_their_least_sure_task() -> None:
    rng = np.random.default_rng(5)
    sure = rng.random((20_000, 3)) ** 0.1
    right = rng.random((20_000, 3)) >= 0.2 * (1 - sure)
    found = rehearse(sure.min(axis=1), right.all(axis=1), 0.05, 0.95, 800, trials=300)
    assert found.broken.value <= 0.05
    assert found.coverage > 0.1


def test_the_work_left_is_in_items_hours_and_money() -> None:
    left = work(Estimate(0.75, 0.7, 0.8), items=10_000, seconds=18, price=40)
    assert (left.left.value, left.left.low, left.left.high) == pytest.approx((2500, 2000, 3000))
    assert (left.hours.value, left.cost.value) == pytest.approx((12.5, 500))
    assert work(None, 10, 36, 10).cost == guarantee.Amount(1, 1, 1)
    with pytest.raises(ValueError, match="negative"):
        work(None, 10, -1, 10)


@pytest.mark.parametrize("call", [promise, accept_in_batch])
def test_senseless_questions_are_refused(call: Callable[..., Promise]) -> None:
    with pytest.raises(ValueError, match="verdicts"):
        call([0.5], [], 0.03)
    with pytest.raises(ValueError, match="between 0 and 1"):
        call([0.5], [True], 0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        call([0.5], [True], 0.03, 1)
    for sure in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match="confidence"):
            call([sure], [True], 0.03)
