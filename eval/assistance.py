"""What a proposal does to the people who see it: the time that it saves them, and how far it pulls them its way.

Some proposals are hidden by lot, so that readings with and without one differ in nothing else on average. Sequences in,
finite numbers out; None with a note where there are too few. Intervals are of 95 %.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, sqrt
from typing import Literal

import numpy as np

from eval.scores import BLOCK, LEVEL, Estimate, Numbers, bracket, bracket_difference, proportion, ratio, resampled

FEW = 20  # readings of either kind below which nothing is said of it
REVIEWERS = 20  # from which on they are drawn as wholes


@dataclass(frozen=True, slots=True)
class Seen:
    """One person's reading of one item for which there was a proposal.

    chance: probability, in [0, 1], with which the lot hides the proposal. shown: whether it was shown.
    seconds: from the first look to the answer, at least 0; None where nobody measured.
    equal: for each task, whether the answer is the proposal, seen or not.
    """

    reviewer: str
    item: int
    chance: float
    shown: bool
    seconds: float | None
    equal: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class Arm:
    """n readings by so many reviewers, `timed` of them with seconds. seconds: their median, in seconds."""

    n: int
    reviewers: int
    timed: int
    seconds: Estimate | None


@dataclass(frozen=True, slots=True)
class LabelShift:
    """How often answers equal the proposal, where it was shown and where it was hidden, each in [0, 1].

    task: None for the answer as a whole. difference: shown less hidden, in [-1, 1]; above 0, people say what they would
    not have said by themselves. Whether that makes them better or worse, it cannot tell.
    """

    task: str | None
    shown: Estimate | None
    hidden: Estimate | None
    difference: Estimate | None


@dataclass(frozen=True, slots=True)
class Assistance:
    """clusters: what the intervals draw as wholes. left_out: readings whose proposal no lot could have hidden or shown.

    ratio: median seconds shown through hidden, above 0; saved: 1 less that, at most 1 and below 0 where proposals cost
    time. shifts: the answer as a whole, then each task by name.
    """

    clusters: Literal["items", "reviewers"]
    left_out: int
    shown: Arm
    hidden: Arm
    ratio: Estimate | None
    saved: Estimate | None
    shifts: tuple[LabelShift, ...]
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Side:
    """Readings of one kind as arrays: cluster, weight; of those with seconds, in their order, the same."""

    readings: Sequence[Seen]
    cluster: np.ndarray[tuple[int], np.dtype[np.int64]]
    weight: Numbers
    timed: np.ndarray[tuple[int], np.dtype[np.int64]]
    seconds: Numbers


def assistance(readings: Sequence[Seen]) -> Assistance:
    """Time and labels of readings with the proposal shown against those with it hidden.

    Every reading counts by one over the chance of the lot that it drew (Hájek 1971), so that batches that hide
    different shares can be put together; where the chance is 0 or 1 nothing was drawn, and the reading is left out.
    A measure needs FEW readings on either side.

    Intervals: a bootstrap of whole clusters (Field and Welsh 2007), since one reviewer's readings are alike. With fewer
    than REVIEWERS of them it would claim too much (Cameron, Gelbach and Miller 2008): items are drawn instead, and what
    is said holds for these reviewers, not for others. A share whose readings are one a cluster and count alike has
    Wilson's interval. The difference of two shares has, where items are drawn, that of Newcombe (1998, method 10),
    since one item is seldom on both sides; else that of the bootstrap.

    That people drift to what they are shown is anchoring (Tversky and Kahneman 1974), found in annotation by Fort and
    Sagot (2010) and Berzak et al. (2016). Raises ValueError for a chance outside [0, 1], seconds that are negative or
    not finite, and readings of different tasks.
    """
    drawn = [reading for reading in readings if _checked(reading, readings[0].equal.keys())]
    people = sorted({reading.reviewer for reading in drawn})
    by_reviewer = len(people) >= REVIEWERS
    whose = {name: at for at, name in enumerate(people if by_reviewer else sorted({r.item for r in drawn}))}
    clusters = [whose[reading.reviewer if by_reviewer else reading.item] for reading in drawn]
    sides = [
        _side([(r, c) for r, c in zip(drawn, clusters, strict=True) if r.shown is shown]) for shown in (True, False)
    ]
    tasks: list[str | None] = [None, *sorted(readings[0].equal)] if readings else [None]
    equal = [[_equal(side, task) for side in sides] for task in tasks]

    def statistic(weights: Numbers) -> Numbers:
        medians = [_medians(side, weights) for side in sides]
        shares = [_share(side, same, weights) for pair in equal for side, same in zip(sides, pair, strict=True)]
        return np.stack([*medians, *shares], axis=1)

    ones = np.ones((1, len(whose)))
    values = statistic(ones)[0]
    resamples = _resamples(len(whose), statistic) if whose else np.empty((0, len(values)))
    shown, hidden = (_arm(side, _median(side, values[at], resamples[:, at])) for at, side in enumerate(sides))
    measured = _ratio(values, resamples) if shown.seconds and hidden.seconds else None
    return Assistance(
        clusters="reviewers" if by_reviewer else "items",
        left_out=len(readings) - len(drawn),
        shown=shown,
        hidden=hidden,
        ratio=measured,
        saved=Estimate(1 - measured.value, 1 - measured.high, 1 - measured.low) if measured else None,
        shifts=tuple(
            _shift(task, sides, equal[at], values[2 * at + 2 :], resamples[:, 2 * at + 2 :], by_reviewer)
            for at, task in enumerate(tasks)
        ),
        notes=_notes(shown, hidden, measured, by_reviewer),
    )


def _checked(reading: Seen, tasks: object) -> bool:
    """Whether a lot was drawn for the reading."""
    if not 0 <= reading.chance <= 1:
        raise ValueError(f"a chance in [0, 1], not {reading.chance!r}")
    if reading.seconds is not None and not (isfinite(reading.seconds) and reading.seconds >= 0):
        raise ValueError(f"seconds of at least 0, not {reading.seconds!r}")
    if reading.equal.keys() != tasks:
        raise ValueError("readings of the same tasks")
    return 0 < reading.chance < 1


def _side(readings: Sequence[tuple[Seen, int]]) -> _Side:
    order = sorted(
        (at for at, (r, _) in enumerate(readings) if r.seconds is not None), key=lambda at: _time(readings[at])
    )
    return _Side(
        readings=[reading for reading, _ in readings],
        cluster=np.array([cluster for _, cluster in readings], dtype=np.int64),
        weight=np.array([1 / (1 - r.chance if r.shown else r.chance) for r, _ in readings], dtype=np.float64),
        timed=np.array(order, dtype=np.int64),
        seconds=np.array([_time(readings[at]) for at in order], dtype=np.float64),
    )


def _time(reading: tuple[Seen, int]) -> float:
    return reading[0].seconds or 0.0


def _equal(side: _Side, task: str | None) -> Numbers:
    same = [all(r.equal.values()) if task is None else r.equal[task] for r in side.readings]
    return np.array(same, dtype=np.float64)


def _resamples(clusters: int, statistic: Callable[[Numbers], Numbers]) -> Numbers:
    """The statistics of each resample, shape (RESAMPLES, k), with NaN where one is undefined."""
    found: list[Numbers] = []

    def keep(weights: Numbers) -> Numbers:
        found.append(statistic(weights))
        return np.empty(0)

    resampled([1] * clusters, keep)
    return np.concatenate(found)


def _medians(side: _Side, weights: Numbers) -> Numbers:
    """The weighted median of the seconds for each row of cluster weights; NaN where none was drawn."""
    if not side.timed.size:
        return np.full(len(weights), np.nan)
    cluster, weight = side.cluster[side.timed], side.weight[side.timed]
    step = max(1, BLOCK // len(cluster))  # rows at once: there may be many more readings than clusters
    return np.concatenate(
        [
            _weighted_median(side.seconds, weights[at : at + step][:, cluster] * weight)
            for at in range(0, len(weights), step)
        ]
    )


def _weighted_median(values: Numbers, weights: Numbers) -> Numbers:
    """values: shape (n,), ascending. weights: shape (r, n). The middle of the two where the weight falls in halves."""
    below = np.cumsum(weights, axis=1)
    total = below[:, -1:]
    first = np.argmax(below >= total * (0.5 - 1e-12), axis=1)
    last = np.argmax(below > total * (0.5 + 1e-12), axis=1)
    return np.where(total[:, 0] > 0, (values[first] + values[last]) / 2, np.nan)


def _share(side: _Side, same: Numbers, weights: Numbers) -> Numbers:
    clusters = weights.shape[1]
    part = np.bincount(side.cluster, side.weight * same, minlength=clusters)
    whole = np.bincount(side.cluster, side.weight, minlength=clusters)
    return ratio(weights @ part, weights @ whole)


def _arm(side: _Side, seconds: Estimate | None) -> Arm:
    return Arm(len(side.readings), len({r.reviewer for r in side.readings}), len(side.timed), seconds)


def _median(side: _Side, value: float, resamples: Numbers) -> Estimate | None:
    return _percentiles(value, resamples) if len(side.timed) >= FEW else None


def _ratio(values: Numbers, resamples: Numbers) -> Estimate | None:
    if not values[1] > 0 or not values[0] > 0:
        return None
    return _percentiles(float(values[0] / values[1]), ratio(resamples[:, 0], resamples[:, 1]))


def _percentiles(value: float, resamples: Numbers) -> Estimate:
    """As `eval.scores.bracket`, of what is no share: alike in all resamples, it has no width."""
    found = resamples[np.isfinite(resamples)]
    low, high = (float(x) for x in np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return Estimate(float(value), min(low, float(value)), max(high, float(value)))


def _shift(
    task: str | None,
    sides: Sequence[_Side],
    equal: Sequence[Numbers],
    values: Numbers,
    resamples: Numbers,
    by_reviewer: bool,
) -> LabelShift:
    shown, hidden = (
        _share_estimate(side, same, float(values[at]), resamples[:, at])
        for at, (side, same) in enumerate(zip(sides, equal, strict=True))
    )
    difference = None
    if shown and hidden:
        gaps = resamples[:, 0] - resamples[:, 1]
        known = by_reviewer and all(np.nanmax(resamples[:, at]) - np.nanmin(resamples[:, at]) > 1e-12 for at in (0, 1))
        difference = (
            bracket_difference(float(values[0] - values[1]), gaps[np.isfinite(gaps)], len(sides[1].readings))
            if known
            else _newcombe(shown, hidden)
        )
    return LabelShift(task, shown, hidden, difference)


def _share_estimate(side: _Side, same: Numbers, value: float, resamples: Numbers) -> Estimate | None:
    if len(side.readings) < FEW:
        return None
    sizes = Counter(side.cluster.tolist())
    if max(sizes.values()) == 1 and float(np.ptp(side.weight)) == 0:
        return proportion(round(same.sum()), len(same))
    return bracket(value, resamples[np.isfinite(resamples)], len(sizes))


def _newcombe(one: Estimate, other: Estimate) -> Estimate:
    """The difference of two shares that are independent, from the interval of each."""
    value = one.value - other.value
    low = value - sqrt((one.value - one.low) ** 2 + (other.high - other.value) ** 2)
    high = value + sqrt((one.high - one.value) ** 2 + (other.value - other.low) ** 2)
    return Estimate(value, max(-1.0, low), min(1.0, high))


def _notes(shown: Arm, hidden: Arm, measured: Estimate | None, by_reviewer: bool) -> dict[str, str]:
    notes = {}
    for name, arm in (("shown", shown), ("hidden", hidden)):
        if arm.n < FEW:
            notes[name] = f"{arm.n} readings with the proposal {name}; {FEW} are needed"
        elif arm.timed < FEW:
            notes[name] = f"{arm.timed} readings with the proposal {name} have a time; {FEW} are needed"
    if measured is None:
        notes["ratio"] = "; ".join(notes.values()) or "half of the readings took no time at all"
    if shown.n and hidden.n and not by_reviewer:
        notes["clusters"] = (
            f"fewer than {REVIEWERS} reviewers: items are drawn for the intervals, which hold for these reviewers alone"
        )
    return notes
