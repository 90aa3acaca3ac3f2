"""Thresholds with a promise: what may be accepted without a person, at a stated risk, for any number of items.

`promise` chooses a threshold for items to come, `promise_together` one for several errors; `accept_in_batch` decides
within one batch of which a random part has been settled by people; `work` says what is left to do; `rehearse` and
`rehearse_batch` draw calibration sets from a population whose truth is known and count how often the promise is broken.

What every promise rests on: the calibration items are a random sample of the population that the threshold will meet,
and the confidence is a fixed function of an item. A prompt chosen or a calibration fitted on the very items given here
breaks it; choose and fit on other items. So does asking again with more items until there is a promise: `level` is for
one answer. (Up to log(1 - level) / log(1 - error) items cannot do even if all are right: asking with these is free.)

Why "at most `error` among accepted" holds (`over="accepted"`; nothing is assumed of how error goes with confidence).
Put the population in a row, the surest first, ties in random order; a point v of (0, 1] stands for accepting the surest
share v, and R(v) is the error there. R is continuous, whatever the distribution. A point is bad where R(v) > error.
1. Test of a point fixed beforehand: of N calibration items before it W are wrong, W is Binomial(N, R(v)), so
   p = P(Binomial(N, error) <= W) is at most d with probability at most d if the point is bad. The same holds at the
   random place T of the (m+1)-th surest calibration item, m fixed: given T, the m before it are independent draws from
   before T.
2. One chain starts at T, at level d, tests T with the m items before it, and then each distinct confidence at or behind
   T, in turn, until one fails. It errs only if it passes T and T is bad, or T is good and it passes the first bad place
   q behind T. Where T is bad, step 1 bounds that by d.
3. Where T is good: bad stretches begin and end at points where R equals `error` exactly, so that the stretch between
   any two of them has error `error` too. Given how many calibration items fall between these points (call it B), W at
   the last of them before q is Binomial(N, error), and what lies between it and q (where q is the end of a group of
   ties that begins before the bad stretch) has a higher error. So p at q is valid given B; and B tells in which stretch
   T lies, hence which place q is. The start may therefore follow the data at no price, and the sum over the stretches
   is d.
4. Two chains (STARTS) share 1 - level: one starts early, for those who can have little accepted, one late, for those
   who can have much. Their sum is at most 1 - level.
Steps 1 and 4 are Learn then Test (Angelopoulos, Bates, Candès, Jordan and Lei 2021, arXiv 2110.01052: binomial
p-values, fixed-sequence testing and the split between several starts). Steps 2 and 3, which free the start from having
to be fixed in advance, are an argument of this project, counted out and simulated in tests/test_guarantee.py.

Over all items (`over="all"`), with those not accepted settled by people, the error P(accepted and wrong) can only grow
as the threshold falls, and one binomial test on all n items serves all thresholds: risk-controlling prediction sets
(Bates, Angelopoulos, Lei, Malik and Jordan 2021, arXiv 2101.02703) with an exact bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil, floor, inf, log, log10
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression
from scipy.special import bdtr
from scipy.stats import binomtest, hypergeom

from eval.scores import Estimate, Numbers, proportion

Counts = NDArray[np.int64]
Over = Literal["accepted", "all"]

# Where a chain starts, as a share of the calibration items; its part of what may go wrong; and its latest start, in
# times the fewest items that can pass. Chosen for the share accepted on 169 synthetic cases (sizes 60 to 4,000, errors
# 3 to 10 %, 14 shapes of risk), where it differs little from its neighbours; any fixed numbers keep the promise.
STARTS = ((0.15, 0.8, 4.0), (0.65, 0.2, inf))
DRAWS = 100  # imagined calibration sets of a size; it is enough if at least half of them have a promise
MOST = 20_000  # further items beyond which nobody goes


@dataclass(frozen=True, slots=True)
class Promise:
    """With probability `level` over the draw of the n calibration items, the error of new items is at most `error`.

    over: "accepted", the error among those accepted; "all", among all items, those not accepted being right.
    threshold: accept an item whose confidence is at least this; None if nothing can be promised.
    accepted, wrong: calibration items at or above it, and the wrong ones among them; observed: their wrong share, of
    the accepted or of all. upper: exact (Clopper-Pearson) upper bound of the error at this threshold at `level`, as if
    the threshold had been fixed beforehand; never above `error`, which is what is promised.
    coverage: share of items accepted, with Wilson's interval. 0 and not None if nothing can be promised.
    more: further calibration items with which a threshold would be promised more often than not, if the error stays as
    observed, rounded up to two digits; 0 if one is promised, None if no number would do or too little is known.
    notes: why something is None, under its name.
    """

    error: float
    level: float
    over: Over
    n: int
    threshold: float | None
    accepted: int
    wrong: int
    observed: float | None
    upper: float | None
    coverage: Estimate | None
    more: int | None
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchPromise:
    """With probability `level` over the draw, at most `error` of the n labels of a batch are wrong in the end.

    settled: items drawn and settled by people. accepted: shape (n,), those accepted without a person; none of them is
    settled. saved: their share of all n, net of what was settled for calibration. wrong: settled items, surer than the
    line, on which people disagreed; allowed: how many of them the promise bears, -1 where not even none would do.
    """

    error: float
    level: float
    n: int
    settled: int
    accepted: tuple[bool, ...]
    saved: float
    wrong: int
    allowed: int


@dataclass(frozen=True, slots=True)
class Amount:
    """An expected amount with its 95 % interval; low <= value <= high."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Work:
    """What people have to do: `left` of `items`, in hours, and what it costs in the currency of the price."""

    items: int
    left: Amount
    hours: Amount
    cost: Amount


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What became of the promise over `trials` calibration sets drawn from a population whose truth is known.

    promised: trials with a threshold. broken: share of all trials in which the true error exceeds the stated one.
    coverage: mean share accepted, 0 where nothing was promised; spread: its standard deviation over the trials.
    """

    trials: int
    promised: int
    broken: Estimate
    coverage: float
    spread: float


def promise(
    confidence: Sequence[float], right: Sequence[bool], error: float, level: float = 0.95, over: Over = "accepted"
) -> Promise:
    """Choose the lowest threshold at which the error of new items is promised to be at most `error`.

    confidence, right: shape (n,), for each calibration item how sure the label was, in [0, 1], and whether people
    agree. For whole items: whether all tasks are right, and any one confidence of the item, such as the smallest.
    error, level: in (0, 1). The order plays no part. Equal confidences are accepted or left together; where a chain
    starts amid equals, which of them come first is drawn by a seed made of the data. Such a draw costs coverage: rather
    give the raw confidence than one calibrated in steps, which has the same order and more equals.
    An item less sure than all calibration items is never accepted. No item: nothing is promised.
    Source and argument: the head of this file. Raises ValueError for unequal lengths and numbers out of range.
    """
    _check(confidence, error, level)
    tally = _tally(confidence, right)
    last = _last(np.cumsum(tally[1]), np.cumsum(tally[2]), error, 1 - level, over)
    return _promised(tally, last, error, level, over)


def promise_together(
    confidence: Sequence[float], right: Mapping[str, Sequence[bool]], error: Mapping[str, float], level: float = 0.95
) -> dict[str, Promise]:
    """One threshold for several errors of the same items, all promises together holding with probability `level`.

    confidence: shape (n,), of each item as a whole. right: by name, shape (n,): what counts as wrong differs from name
    to name, the labels of a task, or any of them. error: by name, stated for the items that are accepted. What may go
    wrong, 1 - level, is split evenly (Bonferroni), so that each promise names the higher level it is made at.
    A chain vouches for every threshold from its start to its end, all at once; so the lowest threshold that the chains
    of all names vouch for will do. A threshold for each name would not: an item that reaches all of them belongs to
    another set than those that reach one. Raises ValueError as `promise`, KeyError for a name without an error.
    """
    each = 1 - (1 - level) / max(1, len(right))
    tallies = {name: _tally(confidence, good) for name, good in right.items()}
    vouched = []
    for name, (levels, items, wrong) in tallies.items():
        _check(confidence, error[name], each)
        places = np.zeros(len(levels), dtype=np.bool_)
        for first, last in _ranges(np.cumsum(items), np.cumsum(wrong), error[name], 1 - each):
            places[first : last + 1] = True
        vouched.append(places)
    common = np.flatnonzero(np.logical_and.reduce(vouched)) if vouched else np.empty(0, dtype=np.int64)
    last = int(common[-1]) if len(common) else -1
    return {
        name: _promised(tally, last, error[name], each, "accepted", alone=bool(own.any()))
        for (name, tally), own in zip(tallies.items(), vouched, strict=True)
    }


def accept_in_batch(
    confidence: Sequence[float], right: Sequence[bool | None], error: float, level: float = 0.95
) -> BatchPromise:
    """Decide which items of a batch need no person, some of them having been drawn at random and settled by people.

    confidence: shape (n,), in [0, 1]. right: shape (n,), whether people agreed with the label, None where they were not
    asked. Those asked must be a uniform random draw from the batch, each item at most once; of draws with replacement,
    the distinct ones. In the end all other items are settled by people, without error, except those accepted here.
    Equal confidences stand in a random order of their own, so that part of them may be accepted.

    Why it holds: let E be the wrong labels that `error` allows in the batch. The surest items are accepted up to the
    settled wrong one after the first `allowed` = c. More than E accepted ones are wrong only if of the E + 1 + c surest
    wrong items at most c were drawn, or of fewer wrong ones fewer; c is the largest for which that hypergeometric
    probability is at most 1 - level. The meaning of the promise is that of probably approximately correct labels
    (Candès, Ilyas and Zrnic 2025, arXiv 2506.10908); their bound is for draws with replacement and counts settled
    errors as if they remained. Raises ValueError for unequal lengths and numbers out of range.
    """
    _check(confidence, error, level)
    if len(confidence) != len(right):
        raise ValueError(f"{len(confidence)} confidences and {len(right)} verdicts")
    asked = np.array([verdict is not None for verdict in right], dtype=np.bool_)
    disputed = np.array([verdict is not None and not verdict for verdict in right], dtype=np.bool_)
    above, allowed = _above(np.asarray(confidence, dtype=np.float64), asked, disputed, error, 1 - level)
    accepted = above & ~asked
    return BatchPromise(
        error=error,
        level=level,
        n=len(accepted),
        settled=int(asked.sum()),
        accepted=tuple(accepted.tolist()),
        saved=float(accepted.mean()) if len(accepted) else 0.0,
        wrong=int((above & disputed).sum()),
        allowed=allowed,
    )


def work(coverage: Estimate | None, items: int, seconds: float, price: float) -> Work:
    """What is left for people of `items` new items, if the share `coverage` is accepted; None: all is left.

    seconds: a person's time for one item, at least 0; price: of an hour, at least 0, in any currency.
    The interval is that of the coverage alone. Raises ValueError for negative numbers.
    """
    if min(items, seconds, price) < 0:
        raise ValueError(f"{items} items, {seconds} seconds and {price} an hour must not be negative")
    share = coverage or Estimate(0.0, 0.0, 0.0)

    def amount(unit: float) -> Amount:
        return Amount(*(items * unit * (1 - x) for x in (share.value, share.high, share.low)))

    return Work(items, amount(1.0), amount(seconds / 3600), amount(seconds / 3600 * price))


def rehearse(
    confidence: ArrayLike,
    right: ArrayLike,
    error: float,
    level: float,
    size: int,
    over: Over = "accepted",
    trials: int = 1000,
    seed: int = 0,
) -> Rehearsal:
    """Draw calibration sets of `size` items from a population, with replacement, and see whether `promise` is kept.

    confidence, right: shape (n,), the population, whose shares are the truth of new items.
    A trial in which nothing is promised breaks nothing and accepts nothing. Raises ValueError as `promise`.
    """
    sure, good = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.bool_)
    levels, items, wrong = _tally(sure, good)
    reach, errors = np.cumsum(items), np.cumsum(wrong)
    place = np.searchsorted(-levels, -sure)  # of each item in the population's levels, the surest first
    rng = np.random.default_rng(seed)
    coverage, found = np.zeros(trials), np.zeros(trials)
    for trial in range(trials):
        drawn = rng.integers(len(sure), size=size)
        many = np.bincount(place[drawn], minlength=len(levels))
        bad = np.bincount(place[drawn[~good[drawn]]], minlength=len(levels))
        seen = np.flatnonzero(many)
        last = _last(np.cumsum(many[seen]), np.cumsum(bad[seen]), error, 1 - level, over)
        if last >= 0:
            at = seen[last]
            coverage[trial] = reach[at] / len(sure)
            found[trial] = errors[at] / (reach[at] if over == "accepted" else len(sure))
    return _rehearsal(coverage, found, error)


def rehearse_batch(
    confidence: ArrayLike, right: ArrayLike, error: float, level: float, size: int, trials: int = 1000, seed: int = 0
) -> Rehearsal:
    """Draw `size` distinct items of a batch at random, and see whether `accept_in_batch` keeps its promise on it.

    confidence, right: shape (n,), the whole batch with its truth. coverage of the result is what is saved.
    """
    sure, good = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.bool_)
    rng = np.random.default_rng(seed)
    saved, found = np.zeros(trials), np.zeros(trials)
    for trial in range(trials):
        asked = np.zeros(len(sure), dtype=np.bool_)
        asked[rng.choice(len(sure), size, replace=False)] = True
        above, _ = _above(sure, asked, asked & ~good, error, 1 - level)
        saved[trial] = (above & ~asked).mean()
        found[trial] = (above & ~asked & ~good).mean()
    return _rehearsal(saved, found, error)


def _rehearsal(coverage: Numbers, found: Numbers, error: float) -> Rehearsal:
    broken = proportion(int((found > error + 1e-12).sum()), len(found))
    if broken is None:
        raise ValueError("no trials")
    return Rehearsal(len(found), int((coverage > 0).sum()), broken, float(coverage.mean()), float(coverage.std()))


def _check(confidence: Sequence[float], error: float, level: float) -> None:
    if not (0 < error < 1 and 0 < level < 1):
        raise ValueError(f"error {error} and level {level} must lie between 0 and 1")
    if not all(0 <= sure <= 1 for sure in confidence):
        raise ValueError("a confidence is not in [0, 1]")


def _tally(confidence: ArrayLike, right: ArrayLike) -> tuple[Numbers, Counts, Counts]:
    """The distinct confidences, the surest first, with the items at each and the wrong ones among them."""
    sure, good = np.asarray(confidence, dtype=np.float64), np.asarray(right, dtype=np.bool_)
    if sure.shape != good.shape:
        raise ValueError(f"{len(sure)} confidences and {len(good)} verdicts")
    levels, place, items = np.unique(-sure, return_inverse=True, return_counts=True)
    return -levels, items.astype(np.int64), np.bincount(place[~good], minlength=len(levels)).astype(np.int64)


def _promised(
    tally: tuple[Numbers, Counts, Counts], last: int, error: float, level: float, over: Over, alone: bool = False
) -> Promise:
    """The promise at the place `last`; -1: none, and `alone` says that there would be one without the others."""
    levels, items, wrong = tally
    n = int(items.sum())
    if last < 0:
        more, notes = (None, {}) if alone else _more(items, wrong, error, 1 - level, over)
        if alone:
            notes = {"threshold": "can be promised alone, but at no threshold that the other errors bear"}
        return Promise(error, level, over, n, None, 0, 0, None, None, proportion(0, n), more, notes)
    accepted, mistaken = int(items[: last + 1].sum()), int(wrong[: last + 1].sum())
    base = accepted if over == "accepted" else n
    return Promise(
        error=error,
        level=level,
        over=over,
        n=n,
        threshold=float(levels[last]),
        accepted=accepted,
        wrong=mistaken,
        observed=mistaken / base,
        upper=float(binomtest(mistaken, base, alternative="less").proportion_ci(level, method="exact").high),
        coverage=proportion(accepted, n),
        more=0,
    )


def _last(reach: Counts, errors: Counts, error: float, risk: float, over: Over) -> int:
    """The place of the lowest threshold that can be promised, -1 for none.

    reach, errors: shape (k,), how many calibration items, and wrong ones, have at least the confidence of each place.
    """
    if not len(reach):
        return -1
    if over == "all":
        return int(np.searchsorted(bdtr(errors, int(reach[-1]), error) > risk, True)) - 1
    return max((last for _, last in _ranges(reach, errors, error, risk)), default=-1)


def _ranges(reach: Counts, errors: Counts, error: float, risk: float) -> list[tuple[int, int]]:
    """First and last place that each chain vouches for, with all between; with probability 1 - risk none is bad."""
    if not len(reach):
        return []
    chains = _chains(int(reach[-1]), error, risk)
    found = [_chain(reach, errors, error, start, level) for start, level in chains]
    return [(first, last) for first, last in found if last >= first]


def _chains(n: int, error: float, risk: float) -> list[tuple[int, float]]:
    """Start and level of each chain. Fixed by n, error and risk alone: the argument needs that."""
    chains = [_start(n, error, risk * part, share, most) for share, part, most in STARTS]
    if any(start >= n for start, _ in chains):
        chains = [_start(n, error, risk, *STARTS[0][::2])]  # too few items to share: all on the early one
    return [chain for chain in chains if chain[0] < n]


def _start(n: int, error: float, level: float, share: float, most: float) -> tuple[int, float]:
    fewest = ceil(log(level) / log(1 - error))  # that can pass if all are right
    return max(fewest, ceil(min(share * n, most * fewest))), level


def _chain(reach: Counts, errors: Counts, error: float, start: int, level: float) -> tuple[int, int]:
    """The first and last place that the chain from the `start` surest items vouches for; (0, -1) for none."""
    if bdtr(_among(reach, errors, start), start, error) > level:
        return 0, -1
    first = int(np.searchsorted(reach, start, side="right"))
    failed = np.flatnonzero(bdtr(errors[first:], reach[first:], error) > level)
    end = first + int(failed[0]) if len(failed) else len(reach)
    return first, end - 1


def _among(reach: Counts, errors: Counts, start: int) -> int:
    """Wrong ones among the `start` surest, drawn at random where these end amid equals.

    Taking the equals in the order they came would let that order, which may go with being right, into the promise.
    """
    place = int(np.searchsorted(reach, start))
    if reach[place] == start:
        return int(errors[place])
    before, wrong = (int(reach[place - 1]), int(errors[place - 1])) if place else (0, 0)
    bad = int(errors[place]) - wrong
    rng = np.random.default_rng(np.concatenate([reach, errors]))
    return wrong + int(rng.hypergeometric(bad, int(reach[place]) - before - bad, start - before))


def _above(
    sure: Numbers, asked: NDArray[np.bool_], disputed: NDArray[np.bool_], error: float, risk: float
) -> tuple[NDArray[np.bool_], int]:
    """Which items of a batch stand above the line, settled or not, and how many disputed ones may."""
    allowed = _allowed(len(sure), int(asked.sum()), floor(error * len(sure) + 1e-9), risk)
    order = np.lexsort((np.random.default_rng(0).random(len(sure)), -sure))
    above = np.zeros(len(sure), dtype=np.bool_)
    above[order] = np.cumsum(disputed[order]) <= allowed
    return above, allowed


@lru_cache(maxsize=64)
def _allowed(n: int, settled: int, bearable: int, risk: float) -> int:
    """The largest c for which of bearable + 1 + c items at most c are among the settled with probability <= risk."""
    if n - settled <= bearable:
        return settled
    found = np.arange(min(settled, n - bearable - 1) + 1)
    broken = hypergeom.cdf(found, n, bearable + 1 + found, settled)
    return int(np.searchsorted(broken > risk, True)) - 1


def _more(items: Counts, wrong: Counts, error: float, risk: float, over: Over) -> tuple[int | None, dict[str, str]]:
    """How many more items would probably do, and what to say of it."""
    n = int(items.sum())
    cannot = f"cannot be promised with {n} calibration item{'' if n == 1 else 's'}"
    if n == 0:
        return None, {"threshold": cannot, "more": "nothing is known of the error"}
    more = _enough(items, wrong, error, risk, over)
    if more is not None:
        unit = 10 ** max(0, floor(log10(more)) - 1)
        more = ceil(more / unit) * unit
        return more, {"threshold": f"{cannot}: about {more} more are needed if the error stays as observed"}
    reach, errors = np.cumsum(items), np.cumsum(wrong)
    surest = int(np.searchsorted(reach, ceil(STARTS[0][0] * n))) if over == "accepted" else 0
    bearable = error * (reach[surest:] if over == "accepted" else n)
    hopeless = bool((errors[surest:] >= bearable).all())
    why = "no number would do at the observed error" if hopeless else "they leave open whether any number would do"
    seen = f"of the {reach[surest]} surest {errors[surest]} are wrong"
    return None, {"threshold": f"{cannot}: {why}", "more": f"{why}: {seen}"}


def _enough(items: Counts, wrong: Counts, error: float, risk: float, over: Over) -> int | None:
    """About the least number of further items with which there is probably a promise; None beyond MOST.

    The seen items stay. The further ones are as sure as those seen, and wrong at the rate seen, the more often the less
    sure (isotonic regression). Before the surest stands a third of an item, half right and half wrong: none wrong of
    few is not an error of 0, and (wrong + 1/6) / (n + 1/3) is about the median of what is likely (Jeffreys' prior).
    """
    rates = np.clip(isotonic_regression([0.5, *(wrong / items)], weights=[1 / 3, *items]).x[1:], 0, 1)
    rng = np.random.default_rng(0)

    def likely(further: int) -> bool:
        many = rng.multinomial(further, items / items.sum(), size=DRAWS)
        reach = (items + many).cumsum(axis=1)
        errors = (wrong + rng.binomial(many, rates)).cumsum(axis=1)
        kept = sum(_last(r, e, error, risk, over) >= 0 for r, e in zip(reach, errors, strict=True))
        return 2 * kept >= DRAWS

    low, high = 0, 10
    while not likely(high):
        low, high = high, 2 * high
        if high > MOST:
            return None
    while high - low > max(1, 0.02 * low):
        middle = (low + high) // 2
        low, high = (low, middle) if likely(middle) else (middle, high)
    return high
