"""What is said of accepted labels after the fact: covered as often as stated, and silent where nothing changed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import binom, chi2_contingency, ks_2samp

from eval.audit import BETS, RunningError, Window, error_drift, running_error, shifts
from eval.scores import Numbers

SHARE = 0.02


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


def rarely(times: int, runs: int, rate: float = 0.05) -> bool:
    """Whether so many times in so many runs is no proof (at one in a thousand) that it happens oftener than `rate`."""
    return bool(binom.sf(times - 1, runs, rate) > 1e-3)


def ever_missed(found: RunningError, truth: Numbers) -> bool:
    """truth: shape (n,), the true error after each audited item."""
    return any(not interval.low <= truth[k - 1] <= interval.high for k, interval in found.path)


def evenly(wrong: Numbers) -> RunningError:
    return running_error(wrong.tolist(), [SHARE] * len(wrong), SHARE)


# --- the running error


def test_the_value_is_the_share_of_wrong_ones_weighted_by_one_over_inclusion() -> None:
    found = running_error([True, False, False, True], [0.1, 0.2, 0.4, 0.4], 0.1)
    assert (found.n, found.wrong) == (4, 2)
    assert found.effective == pytest.approx(1 + 1 / 2 + 1 / 4 + 1 / 4)
    assert found.error is not None
    assert found.error.value == pytest.approx((10 + 2.5) / (10 + 5 + 2.5 + 2.5))
    assert found.path[-1] == (4, found.error)


def test_the_interval_ends_where_the_capital_of_the_bets_comes_to_forty() -> None:
    found = evenly(np.array([1.0] * 12 + [0.0] * 388)).error
    assert found is not None
    for bets, end in ((BETS, found.low), (-BETS, found.high)):
        stake = np.expm1(bets) / (1 + end * np.expm1(bets))  # a fraction of the capital, at each of the 400 items
        capital = ((1 + stake * (1 - end)) ** 12 * (1 - stake * end) ** 388).mean()
        assert capital == pytest.approx(2 / 0.05, rel=1e-6)


def test_the_mixture_of_bets_is_as_good_as_the_continuous_one_it_stands_for() -> None:
    """The 64 bets stand for a density even in the logarithm of the bet: the same capital within a few percent."""
    found = evenly(np.array([1.0] * 12 + [0.0] * 388)).error
    assert found is not None

    def capital(scale: float) -> float:
        bet = math.exp(scale)
        return math.exp(bet * 12 - 400 * math.log1p(found.low * math.expm1(bet)))

    low, high = math.log(BETS[0]), math.log(BETS[-1])
    assert quad(capital, low, high, limit=200)[0] / (high - low) == pytest.approx(2 / 0.05, rel=0.05)


def test_the_interval_narrows_as_items_come_and_is_wider_than_one_that_may_be_looked_at_once() -> None:
    found = [evenly(np.array([1.0, *[0.0] * 24] * k)).error for k in (2, 20, 200)]
    widths = [interval.high - interval.low for interval in found if interval is not None]
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == pytest.approx(2 * 1.96 * math.sqrt(0.04 * 0.96 / 5000) * 1.7, rel=0.2)


def test_the_true_error_is_covered_at_all_moments_at_once() -> None:
    rng = np.random.default_rng(1)
    missed = sum(
        ever_missed(evenly((rng.random(600) < error).astype(np.float64)), np.full(600, error))
        for error in [0.03, 0.2] * 40
    )
    assert rarely(missed, 80)


def test_it_is_covered_where_the_doubtful_are_drawn_more_often() -> None:
    rng = np.random.default_rng(2)
    missed, values = 0, []
    for _ in range(80):
        # Accepted items: a tenth are doubtful, and wrong in 30 of 100; of the others 2 in 100 are. In all 4.8 %.
        doubtful = rng.random(6000) < 0.1
        inclusion = np.where(doubtful, 0.25, 0.05)
        wrong = rng.random(6000) < np.where(doubtful, 0.3, 0.02)
        drawn = rng.random(6000) < inclusion
        found = running_error(wrong[drawn].tolist(), inclusion[drawn].tolist(), 0.05)
        missed += ever_missed(found, np.full(found.n, 0.048))
        assert found.error is not None
        values.append(found.error.value)
        assert wrong[drawn].mean() > 0.07  # what counting without weights would say
    assert rarely(missed, 80)
    assert np.mean(values) == pytest.approx(0.048, abs=0.003)


def test_where_the_error_moves_its_running_mean_is_covered() -> None:
    rng = np.random.default_rng(3)
    chance = 0.02 + 0.2 * (np.sin(np.arange(600) / 60) > 0.5)
    inclusion = np.where(np.arange(600) < 300, 0.02, 0.05)  # the audit share was raised on the way
    weight = 0.02 / inclusion
    truth = np.cumsum(chance * weight) / np.cumsum(weight)
    runs = [running_error((rng.random(600) < chance).tolist(), inclusion.tolist(), 0.02) for _ in range(80)]
    assert rarely(sum(ever_missed(found, truth) for found in runs), 80)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0.01, 1)), max_size=40))
def test_every_number_is_finite_and_in_order(items: list[tuple[bool, float]]) -> None:
    wrong, inclusion = [w for w, _ in items], [i for _, i in items]
    found = running_error(wrong, inclusion, 0.01)
    drift = error_drift(wrong, inclusion, 0.01, 0.03)
    assert all(map(math.isfinite, [*numbers(found), *numbers(drift)]))
    assert all(0 <= x.low <= x.value <= x.high <= 1 for _, x in found.path)
    assert (found.error is None) == (not items)
    assert 0 < drift.p <= 1


def test_nothing_audited_says_nothing() -> None:
    found = running_error([], [], SHARE)
    assert found.error is None
    assert found.notes == {"error": "no audited item"}
    assert not error_drift([], [], SHARE, 0.03).raised


def test_what_cannot_be_an_audit_is_refused() -> None:
    for wrong, inclusion, least in (([True], [], 0.1), ([True], [0.05], 0.1), ([True], [1.5], 0.1), ([], [], 0.0)):
        with pytest.raises(ValueError, match="inclusion"):
            running_error(wrong, inclusion, least)
    with pytest.raises(ValueError, match="inclusion"):
        running_error([True], [math.nan], 0.1)
    with pytest.raises(ValueError, match="promised"):
        error_drift([True], [0.1], 0.1, 1.0)


# --- above what was promised


def test_an_error_just_as_promised_raises_no_alarm_at_any_time() -> None:
    rng = np.random.default_rng(4)
    alarms = sum(
        error_drift((rng.random(1000) < 0.03).tolist(), [SHARE] * 1000, SHARE, 0.03).raised for _ in range(200)
    )
    assert rarely(alarms, 200)


def test_nor_where_the_doubtful_are_drawn_more_often() -> None:
    rng = np.random.default_rng(5)
    alarms = 0
    for _ in range(100):
        doubtful = rng.random(8000) < 0.1
        inclusion = np.where(doubtful, 0.25, 0.05)
        drawn = rng.random(8000) < inclusion
        wrong = rng.random(8000) < np.where(doubtful, 0.3, 0.02)
        alarms += error_drift(wrong[drawn].tolist(), inclusion[drawn].tolist(), 0.05, 0.048).raised
    assert rarely(alarms, 100)


def test_an_error_that_rises_late_is_found_and_dated() -> None:
    rng = np.random.default_rng(6)
    delays, dates = [], []
    for _ in range(40):
        wrong = np.concatenate([rng.random(500) < 0.02, rng.random(600) < 0.12])
        found = error_drift(wrong.tolist(), [SHARE] * 1100, SHARE, 0.03)
        assert found.at is not None
        assert found.since is not None
        assert found.error_since is not None
        delays.append(found.at - 500)
        dates.append(found.since)
        assert found.p <= 0.05
        assert found.error_since == pytest.approx(0.12, abs=0.05)
    assert 0 < np.median(delays) < 200
    assert np.median(dates) == pytest.approx(501, abs=30)


def test_the_alarm_is_the_plain_sum_over_all_beginnings() -> None:
    """For a short stream, the definition: capital of every bet begun at every item, written as loops."""
    rng = np.random.default_rng(7)
    wrong, inclusion = rng.random(60) < 0.2, rng.choice([0.1, 0.3], 60)
    left = [1 / math.log2(k + 2) for k in range(61)]
    best = 1.0
    for now in range(1, 61):
        whole = left[now]
        for start in range(now):
            gain = np.zeros(len(BETS))
            for k in range(start, now):
                gain += 0.1 / inclusion[k] * (BETS * wrong[k] - np.log1p(0.05 * np.expm1(BETS)))
            whole += (left[start] - left[start + 1]) * np.exp(gain).mean()
        best = max(best, whole)
    assert error_drift(wrong.tolist(), inclusion.tolist(), 0.1, 0.05).p == pytest.approx(1 / best, rel=1e-9)


# --- labels and confidence


def choices(rng: np.random.Generator, n: int, shares: list[float]) -> Window:
    labels = rng.choice(len(shares), n, p=shares)
    return Window([(f"label {i}",) for i in labels], rng.beta(8, 2, n).tolist())


def test_windows_of_the_same_stream_raise_an_alarm_at_most_at_the_stated_rate() -> None:
    rng = np.random.default_rng(8)
    tasks = {"intent": [0.5, 0.3, 0.1, 0.07, 0.03], "mood": [0.9, 0.1]}
    alarms = 0
    for _ in range(120):
        windows = [{task: choices(rng, n, shares) for task, shares in tasks.items()} for n in (200, 120)]
        alarms += any(shift.p is not None and shift.p <= 0.05 for shift in shifts(windows[0], windows[1], looks=1))
    assert rarely(alarms, 120)


def test_mentions_that_come_in_bursts_raise_no_alarm() -> None:
    """Where one mention of a label brings others, mentions are no independent draws: texts are what is dealt."""
    rng = np.random.default_rng(9)

    def window(n: int) -> dict[str, Window]:
        return {"names": Window([(str(rng.choice(["a", "b"])),) * int(rng.integers(0, 9)) for _ in range(n)])}

    alarms = naive = 0
    for _ in range(120):
        before, now = window(80), window(60)
        (labels, _) = shifts(before, now, looks=1)
        assert labels.p is not None
        alarms += labels.p <= 0.05
        tally = [[sum(list(x).count(y) for x in some["names"].labels) for y in "ab"] for some in (before, now)]
        naive += chi2_contingency(tally, correction=False).pvalue <= 0.05
    assert rarely(alarms, 120)
    assert not rarely(naive, 120)


def test_a_shift_is_raised_with_the_labels_that_moved() -> None:
    rng = np.random.default_rng(10)
    before, now = choices(rng, 400, [0.6, 0.3, 0.1]), choices(rng, 300, [0.4, 0.3, 0.3])
    labels, confidence = shifts({"intent": before}, {"intent": now}, looks=12)
    assert labels.raised
    assert labels.effect == pytest.approx(0.2, abs=0.06)
    assert {moved.name for moved in labels.moved[:2]} == {"label 0", "label 2"}
    assert (labels.reference, labels.recent) == (400, 300)
    assert (confidence.what, confidence.raised) == ("confidence", False)


def test_a_fallen_confidence_is_raised_with_the_place_where_it_shows() -> None:
    rng = np.random.default_rng(11)
    before, now = rng.beta(9, 1, 400), rng.beta(6, 2, 300)
    labels, confidence = shifts({"t": Window([], before.tolist())}, {"t": Window([], now.tolist())}, looks=1)
    assert (labels.p, labels.raised, labels.note) == (None, False, "a window is empty")
    assert confidence.raised
    reference = ks_2samp(before, now)
    assert confidence.effect == pytest.approx(reference.statistic, abs=1e-12)
    (share,) = confidence.moved
    assert share.recent - share.reference == pytest.approx(confidence.effect)


def test_a_certain_but_tiny_shift_is_not_raised() -> None:
    def window(n: int, first: int) -> dict[str, Window]:
        return {"t": Window([("a",)] * first + [("b",)] * (n - first), [0.9] * first + [0.8] * (n - first))}

    for shift in shifts(window(100_000, 50_000), window(100_000, 52_000), looks=1):
        assert shift.p is not None
        assert shift.p < 0.05
        assert shift.effect == pytest.approx(0.02)
        assert not shift.raised


def test_one_label_a_text_gives_the_p_of_the_exact_test() -> None:
    before, now = [("a",)] * 30 + [("b",)] * 10, [("a",)] * 15 + [("b",)] * 15
    # All tables with these margins, by the hypergeometric distribution; those at least as far by chi-square.
    table = np.array([[30, 10], [15, 15]])
    seen = chi2_contingency(table, correction=False).statistic
    p = 0.0
    for a in range(5, 31):
        chance = math.comb(45, a) * math.comb(25, 30 - a) / math.comb(70, 30)
        other = chi2_contingency([[45 - a, a - 5], [a, 30 - a]], correction=False).statistic
        p += chance if other >= seen - 1e-9 else 0
    labels, _ = shifts({"t": Window(before)}, {"t": Window(now)}, looks=1)
    assert labels.p == pytest.approx(p, abs=4 * math.sqrt(p / 1999))


def test_more_looks_and_more_tasks_ask_for_more() -> None:
    before, now = {"t": Window([("a",)] * 30 + [("b",)] * 10)}, {"t": Window([("a",)] * 15 + [("b",)] * 15)}
    once, often = (shifts(before, now, looks=looks)[0].p for looks in (1, 5))
    assert once is not None
    assert often == pytest.approx(5 * once, rel=0.5)
    more = shifts({**before, "u": Window([("a",)])}, {**now, "u": Window([("a",)])}, looks=1)
    assert more[0].p == pytest.approx(2 * once, rel=0.5)
    with pytest.raises(ValueError, match="0 looks"):
        shifts(before, now, looks=0)


def test_a_task_that_one_window_lacks_is_noted() -> None:
    found = shifts({"t": Window([("a",)], [0.5])}, {}, looks=1)
    assert [(x.task, x.p, x.raised) for x in found] == [("t", None, False)] * 2
    assert all(x.note for x in found)


TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=3), max_size=12)


@settings(max_examples=30, deadline=None)
@given(TEXTS, TEXTS)
def test_windows_of_any_kind_give_finite_numbers(before: list[list[str]], now: list[list[str]]) -> None:
    found = shifts({"t": Window(before, [0.5] * len(before))}, {"t": Window(now, [1.0] * len(now))}, looks=1)
    turned = [{"t": Window(some[::-1], [c] * len(some))} for some, c in ((before, 0.5), (now, 1.0))]
    assert all(map(math.isfinite, numbers(found)))
    assert all(0 <= x <= 1 for shift in found for x in (shift.p, shift.effect) if x is not None)
    assert shifts(turned[0], turned[1], looks=1) == found
