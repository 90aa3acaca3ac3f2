"""What proposals do to people is measured on what the lot drew, with intervals that keep their rate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.assistance import FEW, Assistance, Seen, assistance
from eval.scores import Estimate
from eval.suspects import suspects


def seen(
    number: int,
    shown: bool,
    seconds: float | None = 1.0,
    equal: bool = True,
    reviewer: str = "ann",
    chance: float = 0.5,
    **tasks: bool,
) -> Seen:
    return Seen(reviewer, number, chance, shown, seconds, tasks or {"mood": equal})


def test_the_medians_their_ratio_and_the_time_saved() -> None:
    shown = [seen(at, True, float(1 + at)) for at in range(21)]  # 1 to 21, the middle is 11
    hidden = [seen(100 + at, False, 2.0 * (1 + at)) for at in range(20)]  # 2 to 40, the middle is 21
    found = assistance(shown + hidden)
    assert found.shown.seconds is not None and found.hidden.seconds is not None and found.ratio is not None
    assert (found.shown.seconds.value, found.hidden.seconds.value) == (11.0, 21.0)
    assert found.ratio.value == pytest.approx(11 / 21)
    assert found.saved == Estimate(1 - found.ratio.value, 1 - found.ratio.high, 1 - found.ratio.low)
    assert found.ratio.low < 11 / 21 < found.ratio.high


def test_the_label_shift_of_each_task_and_of_all_together() -> None:
    shown = [seen(at, True, mood=at < 36, things=True) for at in range(40)]  # 0.9 and 1
    hidden = [seen(100 + at, False, mood=at < 10, things=at >= 10) for at in range(20)]  # 0.5 and 0.5, never both
    whole, mood, things = assistance(shown + hidden).shifts
    assert [shift.task for shift in (whole, mood, things)] == [None, "mood", "things"]
    assert [shift.difference.value for shift in (whole, mood, things) if shift.difference] == pytest.approx(
        [0.9, 0.4, 0.5]
    )
    assert mood.shown is not None and mood.shown.value == 0.9
    # Newcombe (1998, method 10) by hand from Wilson's (0.7695, 0.9604) and (0.2993, 0.7007).
    assert mood.difference is not None
    assert (mood.difference.low, mood.difference.high) == pytest.approx((0.160, 0.610), abs=0.002)


def test_a_reading_counts_by_one_over_its_chance() -> None:
    # One batch hides half, the other a tenth: among the hidden the first is five times as common as it should be.
    half = [seen(at, at % 2 == 0, 10.0, True, chance=0.5) for at in range(100)]
    tenth = [seen(1000 + at, at % 10 != 0, 30.0, False, chance=0.1) for at in range(500)]
    found = assistance(half + tenth)
    whole = found.shifts[0]
    assert whole.shown is not None and whole.hidden is not None
    assert whole.shown.value == pytest.approx(100 / 600)
    assert whole.hidden.value == pytest.approx(100 / 600)
    assert found.ratio is not None and found.ratio.value == 1.0


def test_what_no_lot_was_drawn_for_is_left_out() -> None:
    found = assistance([seen(at, True, chance=0.0) for at in range(50)] + [seen(99, False, chance=1.0)])
    assert (found.left_out, found.shown.n, found.hidden.n) == (51, 0, 0)
    assert (found.shown.seconds, found.ratio, found.saved, found.shifts[0].difference) == (None, None, None, None)


def test_of_too_few_nothing_is_said_but_why() -> None:
    found = assistance([seen(at, True) for at in range(40)] + [seen(100 + at, False) for at in range(FEW - 1)])
    assert found.shown.seconds is not None
    assert (found.hidden.seconds, found.ratio, found.shifts[0].hidden, found.shifts[0].difference) == (None,) * 4
    assert found.notes["hidden"] == f"{FEW - 1} readings with the proposal hidden; {FEW} are needed"
    assert found.notes["ratio"] == found.notes["hidden"]
    assert assistance([]).notes.keys() == {"shown", "hidden", "ratio"}


def test_labels_are_compared_where_nobody_took_the_time() -> None:
    found = assistance([seen(at, at < 30, None) for at in range(60)])
    assert (found.shown.seconds, found.shown.timed, found.ratio) == (None, 0, None)
    assert "have a time" in found.notes["hidden"]
    assert found.shifts[0].difference is not None


def test_all_alike_is_no_certainty_about_labels() -> None:
    found = assistance([seen(at, at < 30) for at in range(60)])
    difference = found.shifts[0].difference
    assert difference is not None and difference.value == 0
    assert difference.low < -0.05 and difference.high > 0.05


def test_twenty_reviewers_are_drawn_as_wholes_and_fewer_are_not() -> None:
    def crowd(people: int) -> Assistance:
        return assistance(
            [
                seen(at, at % 2 == 0, float(at % people), at % 3 == 0, reviewer=f"r{at % people}")
                for at in range(40 * people)
            ]
        )

    assert crowd(20).clusters == "reviewers"
    assert crowd(19).clusters == "items"
    assert "for these reviewers alone" in crowd(19).notes["clusters"]


@pytest.mark.parametrize("wrong", [{"chance": 1.5}, {"seconds": -1.0}, {"seconds": float("nan")}, {"other": True}])
def test_what_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        assistance([seen(0, True), seen(1, True, **wrong)])  # type: ignore[arg-type]


readings = st.builds(
    Seen,
    st.sampled_from(["ann", "ben"]),
    st.integers(0, 9),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.booleans(),
    st.none() | st.floats(0, 1e6),
    st.fixed_dictionaries({"mood": st.booleans(), "things": st.booleans()}),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(readings, max_size=80))
def test_every_number_is_finite_and_within_its_interval(found: list[Seen]) -> None:
    said = assistance(found)
    stated = [said.shown.seconds, said.hidden.seconds, said.ratio, said.saved]
    stated += [one for shift in said.shifts for one in (shift.shown, shift.hidden, shift.difference)]
    for one in stated:
        assert one is None or (np.isfinite([one.low, one.value, one.high]).all() and one.low <= one.value <= one.high)
    assert said.left_out + said.shown.n + said.hidden.n == len(found)


def simulated(rng: np.random.Generator, reviewers: int, each: int, spread: float) -> Assistance:
    """Times are lognormal and a third shorter with a proposal; answers equal it 0.9 and 0.75 of the time."""
    found = []
    for reviewer in range(reviewers):
        slow, docile = rng.normal(0, spread), rng.normal(0, spread)
        for number in range(each):
            shown = bool(rng.random() >= 0.25)
            seconds = float(np.exp(np.log(20 if shown else 30) + slow + rng.normal(0, 0.6)))
            # On the scale of the normal distribution, so that the average over reviewers is exact.
            line = (1.2816 if shown else 0.6745) * np.sqrt(1 + spread**2) + docile
            found.append(
                Seen(f"r{reviewer}", reviewer * each + number, 0.25, shown, seconds, {"t": bool(rng.normal() < line)})
            )
    return assistance(found)


@pytest.mark.parametrize(
    ("reviewers", "each", "spread", "runs"), [(3, 80, 0.0, 120), (30, 25, 0.4, 80)], ids=["items", "reviewers"]
)
def test_the_intervals_cover_the_truth_as_often_as_they_say(
    reviewers: int, each: int, spread: float, runs: int
) -> None:
    rng = np.random.default_rng(5)
    covered = {"shown": 0, "hidden": 0, "ratio": 0, "shift": 0}
    for _ in range(runs):
        said = simulated(rng, reviewers, each, spread)
        truth = {
            "shown": (said.shown.seconds, 20.0),
            "hidden": (said.hidden.seconds, 30.0),
            "ratio": (said.ratio, 2 / 3),
            "shift": (said.shifts[0].difference, 0.15),
        }
        for name, (one, right) in truth.items():
            assert one is not None
            covered[name] += one.low <= right <= one.high
    # 0.95 less four standard errors of so many runs.
    least = 0.95 - 4 * np.sqrt(0.95 * 0.05 / runs)
    assert {name: count / runs for name, count in covered.items() if count / runs < least} == {}


def test_a_label_against_a_sure_model_is_suspect_the_surest_first() -> None:
    given = ["good"] * 6 + ["bad"] * 6
    sure = [{"good": 0.8, "bad": 0.2}] * 5 + [{"good": 0.1, "bad": 0.9}] + [{"bad": 0.7, "good": 0.3}] * 6
    (found,) = suspects(given, sure)
    assert (found.index, found.given, found.likely, found.probability, found.own) == (5, "good", "bad", 0.9, 0.1)
    assert found.usual == pytest.approx(0.7)


def test_each_label_has_its_own_threshold() -> None:
    # The model is never sure of "rare": 0.45 is much of it.
    given = ["rare"] * 6 + ["usual"] * 10
    stated = [{"rare": 0.4, "usual": 0.3}] * 6 + [{"usual": 0.44, "rare": 0.45}] + [{"usual": 0.9}] * 9
    assert [(one.index, one.likely) for one in suspects(given, stated)] == [(6, "rare")]


def test_a_label_that_was_hardly_given_accuses_nobody() -> None:
    assert suspects(["a"] * 4 + ["b"] * 10, [{"a": 0.6}] * 4 + [{"a": 0.9, "b": 0.1}] * 10) == ()
    assert suspects([], []) == ()
