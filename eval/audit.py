"""Is what was promised for accepted labels still true: their running error from the audit, and signs of drift.

Sequences in, finite numbers out. What is said of errors holds at every moment at once, however often one looks; the
windows of `shifts` are compared a stated number of times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, exp, log
from typing import Any

import numpy as np
from scipy.special import logsumexp
from scipy.stats import ks_2samp

from eval.scores import BLOCK, LEVEL, Estimate, Numbers, ratio

ALPHA = 1 - LEVEL
# What is bet on: by how much, on the scale of log odds, the error differs from what is tested. Evenly spaced in the
# logarithm, so that no size of stream is favoured: the small ones tell after 100,000 items, the large ones after 10.
BETS = np.geomspace(0.01, 8.0, 64)
HALVINGS = 30  # of [0, 1]: bounds to 1e-9
PATH = 50  # moments at which the running interval is given
MOVED = 0.1  # effect below which a shift is not worth a person's attention, however certain
DRAWS = 1999
SHOWN = 5


@dataclass(frozen=True, slots=True)
class RunningError:
    """The error of accepted labels so far.

    n: audited items, `wrong` of them wrong. effective: how many equally likely draws they count for, in (0, n].
    error: weighted share of wrong ones, with an interval that covers at all moments at once; see `running_error`.
    path: (audited items so far, error then) at up to 50 moments, the last of which is now.
    """

    n: int
    wrong: int
    effective: float
    error: Estimate | None
    path: tuple[tuple[int, Estimate], ...] = ()
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ErrorDrift:
    """Whether the error of accepted labels rose above `promised`.

    p: valid at whatever moment one looks; raised: it came to 0.05 or less, at the audited item number `at` (from 1).
    since: the audited item from which on the case against the promise is strongest, and `error_since` the weighted
    share of wrong ones from there on. It is picked for being high: it says where to look, not how large the error is.
    """

    promised: float
    n: int
    p: float
    raised: bool
    at: int | None
    since: int | None
    error_since: float | None


@dataclass(frozen=True, slots=True)
class Window:
    """What one task gave in a stretch of time. labels: shape (n,), those of each text: one of a choice, any number of
    mentions, none at all. confidence: shape (m,), one for a text, in [0, 1]; empty where there is none."""

    labels: Sequence[Collection[str]]
    confidence: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Moved:
    """A share, in [0, 1], in the reference window and in the recent one."""

    name: str
    reference: float
    recent: float


@dataclass(frozen=True, slots=True)
class Shift:
    """Whether the `labels` or the `confidence` of a task (`what`) are distributed otherwise than before.

    reference, recent: texts in either window. effect: in [0, 1], 0 for none; of labels, the share of them that would
    have to be another one (total variation distance); of confidence, the largest difference of the shares below any
    value (Kolmogorov-Smirnov). p: corrected for the number of tests and of looks. raised: p <= 0.05 and effect >= 0.1.
    moved: of labels, the five that changed most; a text without any counts under "". Of confidence, the share of texts
    up to the value where the two windows are farthest apart.
    """

    task: str
    what: str
    reference: int
    recent: int
    effect: float | None
    p: float | None
    raised: bool
    moved: tuple[Moved, ...] = ()
    note: str = ""


def running_error(wrong: Sequence[bool], inclusion: Sequence[float], least: float) -> RunningError:
    """Estimate the error of accepted labels from those that were drawn for the audit.

    wrong: shape (n,), audited items in the order in which they were accepted. That order must not depend on the
    verdicts: leave out what was accepted after the oldest item that still waits for its verdict.
    inclusion: shape (n,), the probability with which each was drawn, in [least, 1]. least: the smallest that may occur,
    known before the first draw; a stream whose audit share is lowered below it begins anew.

    Each item weighs least / inclusion, in (0, 1]. With S the weight of the wrong ones and V of all, the value is S / V,
    and the interval leaves out an error m where the mean over bets b of exp(b S - V log(1 + m (e^b - 1))), b > 0 for
    the lower and b < 0 for the upper end, comes to 2 / 0.05. With equal inclusion each bet is the capital of a gambler
    who stakes (e^b - 1) / (1 + m (e^b - 1)) against m at every item, and which can grow only by luck where m is the
    error. Hence, with probability at least 0.95, at all moments at once, the interval covers (1) the error of accepted
    labels, where it stays the same, whatever inclusion depends on; and (2) where it moves, its mean over the items so
    far, in the same weights, each being the chance of an error given the past and the item's inclusion.
    Since it may move, intervals of earlier moments are not intersected. Very unequal inclusion costs width.
    None for no items, with a note. Raises ValueError for unequal lengths or an inclusion outside [least, 1].
    Source: Waudby-Smith and Ramdas (2024), section 4, with a mixture of constant bets (Robbins 1970) in place of
    predicted ones, which makes (2) true: for each b the logarithm is concave in m, so that moving only loses capital.
    """
    bad, weight = _checked(wrong, inclusion, least)
    n = len(weight)
    if not n:
        return RunningError(0, 0, 0.0, None, notes={"error": "no audited item"})
    moments = np.unique(np.linspace(1, n, min(n, PATH)).round().astype(np.int64))
    lost, total = np.cumsum(bad * weight)[moments - 1], np.cumsum(weight)[moments - 1]
    value = np.minimum(lost / total, 1.0)
    low = np.minimum(_bound(BETS, 0.0, lost, total), value)
    high = np.maximum(_bound(-BETS, 1.0, lost, total), value)
    path = [
        (int(k), Estimate(float(v), float(a), float(b))) for k, v, a, b in zip(moments, value, low, high, strict=True)
    ]
    return RunningError(n, int(bad.sum()), float(total[-1]), path[-1][1], tuple(path))


def error_drift(wrong: Sequence[bool], inclusion: Sequence[float], least: float, promised: float) -> ErrorDrift:
    """Test, item by item, whether the error of accepted labels is above what was promised.

    Arguments as in `running_error`; promised: in (0, 1). As long as no accepted item was likelier than `promised` to be
    wrong given what came before it, this is ever raised with probability at most 0.05, however long the stream and
    however often one looks, and whatever inclusion depends on.
    A gambler as in `running_error` begins anew at every item, with a part of the capital that falls slowly with the
    item's number, so that an error which rises late is found without first losing what was earned in good times.
    Sources: Waudby-Smith and Ramdas (2024), section 4; Shin, Ramdas and Rinaldo (2024), e-detectors, here with
    weights that sum to 1, so that the chance of any false alarm is bounded and not only the time to it.
    Raises ValueError as `running_error` does, and for a promise outside (0, 1).
    """
    bad, weight = _checked(wrong, inclusion, least)
    if not 0 < promised < 1:
        raise ValueError(f"a promised error of {promised}")
    n = len(weight)
    left = 1 / np.log2(np.arange(2, n + 3))  # of the capital, before the first item and after each
    gain = weight[:, None] * (BETS * bad[:, None] - np.log1p(promised * np.expm1(BETS)))  # logarithms from here on
    grown = np.cumsum(gain, axis=0)
    begun = np.logaddexp.accumulate(np.log(left[:-1] - left[1:])[:, None] - (grown - gain), axis=0)
    evidence = np.logaddexp(np.logaddexp.reduce(grown + begun, axis=1) - log(len(BETS)), np.log(left[1:]))
    best = float(evidence.max(initial=0.0))
    found = ErrorDrift(promised, n, exp(-min(best, 690.0)), best >= -log(ALPHA), None, None, None)
    if not found.raised:
        return found
    lost, total = np.cumsum((bad * weight)[::-1])[::-1], np.cumsum(weight[::-1])[::-1]
    start = int(np.argmax(_evidence(BETS, lost, total, np.full(len(total), promised))))
    at = int(np.argmax(evidence >= -log(ALPHA))) + 1
    return replace(found, at=at, since=start + 1, error_since=min(1.0, float(lost[start] / total[start])))


def shifts(reference: Mapping[str, Window], recent: Mapping[str, Window], looks: int) -> tuple[Shift, ...]:
    """Compare the labels and the confidence of every task in a recent window with a reference window.

    looks: how many times in all this will be asked of the stream; every look gets an equal part of the error.
    Where nothing changed, some shift is raised, at any of the looks, with probability at most 0.05. Where something did
    it is raised only if it is also large: with many texts the least change is certain.
    Labels: chi-square statistic, with its distribution found by dealing the texts anew to the two windows (1,999 times
    or more, seeded): exact for rare labels, and where a text has several. Confidence: Kolmogorov-Smirnov through
    scipy. Both kinds and all tasks together: Holm (1979). A task that one window lacks is noted, not tested.
    Raises ValueError unless looks >= 1.
    """
    if looks < 1:
        raise ValueError(f"{looks} looks")
    tests = 2 * len(reference.keys() | recent.keys())
    draws = max(DRAWS, ceil(2 * tests * looks / ALPHA))  # or else p could not fall to the corrected level
    nothing = Window((), ())
    found = []
    for task in sorted(reference.keys() | recent.keys()):
        before, now = reference.get(task, nothing), recent.get(task, nothing)
        found += [_label_shift(task, before.labels, now.labels, draws), _confidence_shift(task, before, now)]
    return _corrected(found, looks)


def _checked(wrong: Sequence[bool], inclusion: Sequence[float], least: float) -> tuple[Numbers, Numbers]:
    """1 for wrong, and the weight of each item."""
    if len(wrong) != len(inclusion):
        raise ValueError(f"{len(wrong)} verdicts, {len(inclusion)} inclusion probabilities")
    drawn = np.asarray(inclusion, dtype=np.float64)
    if not (0 < least <= 1 and bool(np.all((drawn >= least) & (drawn <= 1)))):
        raise ValueError(f"inclusion probabilities must be in [{least}, 1], and that within (0, 1]")
    return np.asarray(wrong, dtype=np.float64), least / drawn


def _evidence(bets: Numbers, lost: Numbers, total: Numbers, error: Numbers) -> Numbers:
    """Logarithm of the mean capital of all bets against an error; arrays of shape (k,)."""
    capital = lost[:, None] * bets - total[:, None] * np.log1p(error[:, None] * np.expm1(bets))
    return np.asarray(logsumexp(capital, axis=1) - log(len(bets)))


def _bound(bets: Numbers, end: float, lost: Numbers, total: Numbers) -> Numbers:
    """The error between the value and `end` beyond which the evidence is too strong: it rises that way."""
    inside, outside = np.minimum(lost / total, 1.0), np.full_like(total, end)
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        kept = _evidence(bets, lost, total, middle) < log(2 / ALPHA)
        inside, outside = np.where(kept, middle, inside), np.where(kept, outside, middle)
    return outside


def _label_shift(task: str, before: Sequence[Collection[str]], now: Sequence[Collection[str]], draws: int) -> Shift:
    shift = Shift(task, "labels", len(before), len(now), None, None, False)
    if not (len(before) and len(now)):
        return replace(shift, note="a window is empty")
    old, new = (Counter(tuple(sorted(some)) or ("",) for some in texts) for texts in (before, now))
    kinds = sorted(old | new)
    names = sorted({label for kind in kinds for label in kind})
    carries = np.array([[kind.count(name) for name in names] for kind in kinds], dtype=np.float64)
    counts = np.array([[some[kind] for kind in kinds] for some in (old, new)])
    tallies = counts @ carries
    shares = tallies / tallies.sum(axis=1, keepdims=True)
    apart = shares[1] - shares[0]
    moved = sorted(range(len(names)), key=lambda i: (-abs(apart[i]), names[i]))[:SHOWN]
    return replace(
        shift,
        effect=min(1.0, float(np.abs(apart).sum() / 2)),
        p=_dealt_anew(counts, carries, draws),
        moved=tuple(Moved(names[i], float(shares[0, i]), float(shares[1, i])) for i in moved),
    )


def _dealt_anew(counts: np.ndarray[Any, np.dtype[np.int64]], carries: Numbers, draws: int) -> float:
    """p of the chi-square statistic when texts are dealt to the windows at random.

    counts: shape (2, k), texts of each kind in either window. carries: shape (k, labels), how often a kind has a label.
    """
    together = counts.sum(axis=0) @ carries

    def statistic(dealt: Numbers) -> Numbers:
        tally = dealt @ carries
        part = tally.sum(axis=1, keepdims=True) / together.sum()
        return np.asarray(np.nansum(ratio((tally - part * together) ** 2, part * (1 - part) * together), axis=1))

    seen = float(statistic(counts[1:].astype(np.float64))[0]) * (1 - 1e-9)  # so that ties count in spite of rounding
    rng = np.random.default_rng(0)
    block = max(1, min(draws, BLOCK // counts.shape[1]))
    above = 0
    for start in range(0, draws, block):
        size = min(block, draws - start)
        dealt = rng.multivariate_hypergeometric(counts.sum(axis=0), int(counts[1].sum()), size=size)
        above += int((statistic(dealt.astype(np.float64)) >= seen).sum())
    return (1 + above) / (1 + draws)


def _confidence_shift(task: str, before: Window, now: Window) -> Shift:
    old, new = np.asarray(before.confidence, dtype=np.float64), np.asarray(now.confidence, dtype=np.float64)
    shift = Shift(task, "confidence", len(old), len(new), None, None, False)
    if not (len(old) and len(new)):
        return replace(shift, note="a window has no confidence")
    # The exact method is for small windows only: for large ones scipy gives it up with a warning.
    found = ks_2samp(old, new, method="exact" if len(old) * len(new) <= 10_000 else "asymp")
    place = float(found.statistic_location)
    share = Moved(f"up to {place:.3g}", float((old <= place).mean()), float((new <= place).mean()))
    return replace(shift, effect=float(found.statistic), p=float(found.pvalue), moved=(share,))


def _corrected(found: list[Shift], looks: int) -> tuple[Shift, ...]:
    """Holm's correction over the tests of one look, Bonferroni's over the looks."""
    tested = sorted((shift.p, i) for i, shift in enumerate(found) if shift.p is not None)
    worst = 0.0
    for rank, (p, i) in enumerate(tested):
        worst = max(worst, min(1.0, p * (len(tested) - rank) * looks))
        raised = worst <= ALPHA and (found[i].effect or 0.0) >= MOVED
        found[i] = replace(found[i], p=worst, raised=raised)
    return tuple(found)
