"""Numbers with their intervals, and what the routing of doubtful texts got right.

Sequences in, finite numbers out: never NaN, and never a certainty that the data do not carry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

Numbers = NDArray[np.float64]

RESAMPLES = 1000
BLOCK = 2_000_000  # cells drawn at once, so that memory stays at some 50 MB
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval; low <= value <= high. In [0, 1] unless said otherwise."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Routing:
    """What was accepted without a person, and what a person was asked for.

    n: texts. accepted: texts accepted, share_accepted their share of all.
    wrongly_accepted: accepted, and wrong; error_accepted their share of the accepted. This is the costly error.
    needlessly_reviewed: sent to a person, and right; waste_reviewed their share of those sent.
    A share is None where there is nothing to take a share of.
    """

    n: int
    accepted: int
    wrongly_accepted: int
    needlessly_reviewed: int
    share_accepted: Estimate | None
    error_accepted: Estimate | None
    waste_reviewed: Estimate | None


def proportion(successes: int, trials: int) -> Estimate | None:
    """The share of successes with Wilson's score interval; None for no trials.

    Range [0, 1]. With all or none successful the interval still has a width: 3 of 3 is 1.0, from 0.44 to 1.
    Source: Wilson (1927), through scipy.stats.binomtest. Raises ValueError unless 0 <= successes <= trials.
    """
    if trials == 0 and successes == 0:
        return None
    interval = binomtest(successes, trials).proportion_ci(LEVEL, method="wilson") if trials > 0 else None
    if interval is None:
        raise ValueError(f"{successes} successes in {trials} trials")
    value = successes / trials
    return Estimate(value, min(value, float(interval.low)), max(value, float(interval.high)))


def routing(accepted: Sequence[bool], right: Sequence[bool]) -> Routing:
    """Score the routing of texts whose right labels are known.

    accepted, right: shape (n,), whether a text was accepted without a person, and whether its labels were right.
    No texts: counts are 0 and shares None. The order plays no part. Raises ValueError for unequal lengths.
    """
    pairs = list(zip(accepted, right, strict=True))
    taken = sum(1 for a, _ in pairs if a)
    wrong = sum(1 for a, r in pairs if a and not r)
    needless = sum(1 for a, r in pairs if not a and r)
    return Routing(
        n=len(pairs),
        accepted=taken,
        wrongly_accepted=wrong,
        needlessly_reviewed=needless,
        share_accepted=proportion(taken, len(pairs)),
        error_accepted=proportion(wrong, taken),
        waste_reviewed=proportion(needless, len(pairs) - taken),
    )


def ranking(confidence: Sequence[float], right: Sequence[bool]) -> Estimate | None:
    """How well confidence tells right from wrong: the area under the receiver operating characteristic.

    confidence, right: shape (n,). In [0, 1]: the probability that a right one is surer than a wrong one, ties counted
    half; 0.5 says nothing. None unless there are both right and wrong ones. The interval is a bootstrap over the n.
    Equals sklearn.metrics.roc_auc_score; written on counts so that a thousand resamples cost no more than a few.
    Source: Hanley and McNeil (1982). Raises ValueError for unequal lengths.
    """
    kinds = Counter(zip(confidence, right, strict=True))
    levels = sorted({level for level, _ in kinds})
    counts = [kinds[level, is_right] for is_right in (True, False) for level in levels]
    half = len(levels)
    hits = sum(counts[:half])
    if hits in (0, len(right)):
        return None

    def area(weights: Numbers) -> Numbers:
        good, bad = weights[:, :half], weights[:, half:]
        below = np.cumsum(bad, axis=1) - bad / 2
        return ratio((good * below).sum(axis=1), good.sum(axis=1) * bad.sum(axis=1))

    value = float(area(np.array([counts], dtype=np.float64))[0])
    return bracket(value, resampled(counts, area), len(right))


def resampled(counts: Sequence[int], statistic: Callable[[Numbers], Numbers], seed: int = 0) -> Numbers:
    """The statistic over RESAMPLES bootstrap resamples of items that fall into k kinds.

    counts: shape (k,), how many items are of each kind; their sum n is the number of items drawn, with replacement.
    statistic: takes weights of shape (r, k), how often each kind was drawn in each of r resamples, and returns r
    numbers. Drawing kinds instead of items is the same distribution, and as fast for a million items as for ten.
    Resamples on which the statistic is undefined (NaN) are left out. Source: Efron (1979), the nonparametric bootstrap.
    """
    weights = np.asarray(counts, dtype=np.int64)
    total = int(weights.sum())
    if total == 0:
        return np.empty(0)
    rng = np.random.default_rng(seed)
    block = max(1, min(RESAMPLES, BLOCK // len(weights)))
    found = []
    for start in range(0, RESAMPLES, block):
        drawn = rng.multinomial(total, weights / total, size=min(block, RESAMPLES - start))
        found.append(statistic(drawn.astype(np.float64)))
    values = np.concatenate(found)
    return values[np.isfinite(values)]


def bracket(value: float, resamples: Numbers, trials: int) -> Estimate:
    """The value with the percentile interval of its resamples.

    trials: items that the value rests on. Where all resamples are alike (all right, all wrong, a single item) the
    bootstrap knows nothing of what was not seen, and would claim certainty; Wilson's interval over the items is
    taken instead, as if each item were right or wrong as a whole, which is the wider reading.
    """
    if resamples.size and float(np.ptp(resamples)) > 1e-12:
        low, high = (float(x) for x in np.quantile(resamples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    else:
        within = 1e-9  # so that 0.3 * 10 counts as 3
        low = _wilson(floor(value * trials + within), trials).low
        high = _wilson(ceil(value * trials - within), trials).high
    return Estimate(value, min(low, value), max(high, value))


def _wilson(successes: int, trials: int) -> Estimate:
    return proportion(successes, trials) or Estimate(0.0, 0.0, 1.0)


def ratio(numerator: Numbers, denominator: Numbers) -> Numbers:
    """Element by element; NaN where the denominator is 0, for `resampled` to leave out."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def bracket_difference(value: float, resamples: Numbers, trials: int, most: float = 1.0) -> Estimate:
    """A difference in [-most, most] with the percentile interval of its resamples.

    trials: texts it rests on. Where all resamples are alike, the bootstrap knows nothing of the kinds of text that were
    not seen: as large a share as Wilson's interval allows for 0 of the texts may differ by the most, either way.
    """
    if resamples.size and float(np.ptp(resamples)) > 1e-12:
        return bracket(value, resamples, trials)
    unseen = proportion(0, trials)
    reach = most * unseen.high if unseen else most
    return Estimate(value, max(-most, value - reach), min(most, value + reach))


def shares(counts: Sequence[int], *shares: tuple[Numbers, Numbers]) -> list[Estimate | None]:
    """Of each (part, whole) the sum of part over the sum of whole; None for nothing.

    counts[i] texts have part[i] and whole[i]. The texts are drawn once for all shares.
    """
    part, whole = (np.array(side, dtype=np.float64).T for side in zip(*shares, strict=True))
    weights = np.array([counts], dtype=np.float64)
    parts, wholes = (weights @ part)[0], (weights @ whole)[0]
    drawn: list[Numbers] = []

    def keep(weights: Numbers) -> Numbers:
        drawn.append(ratio(weights @ part, weights @ whole))
        return np.empty(0)

    if whole.size and whole.max() > 1:
        resampled(counts, keep)
    resamples = np.concatenate([np.empty((0, len(shares))), *drawn]).T
    return [_share(counts, *sums) for sums in zip(parts, wholes, whole.T, resamples, strict=True)]


def _share(counts: Sequence[int], part: float, total: float, whole: Numbers, resamples: Numbers) -> Estimate | None:
    if not total:
        return None
    if whole.max() <= 1:  # every text is a trial of its own
        return proportion(round(part), round(total))
    trials = sum(count for count, size in zip(counts, whole, strict=True) if size)
    return bracket(float(part / total), resamples[np.isfinite(resamples)], trials)


def columns(kinds: Iterable[tuple[tuple[int, ...], int]], width: int) -> tuple[list[int], Numbers]:
    """How many there are of each kind, and its numbers by column, shape (width, kinds)."""
    ordered = sorted(kinds)
    return [count for _, count in ordered], np.array([k for k, _ in ordered], dtype=np.float64).reshape(-1, width).T


def column(numbers: Iterable[int]) -> Numbers:
    return np.array(list(numbers), dtype=np.float64)
