"""Whether one recipe is better than another on the same gold items: effect, test, and what it says in words.

Sequences in, finite numbers out. A recipe is whatever answers: a prompt, a model, a set of examples. Every comparison
is paired, item by item, so that what is hard for both recipes does not hide what sets them apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from math import ceil, sqrt
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.sparse import csr_array
from scipy.stats import binomtest, norm

from eval.agreement import Mention
from eval.scores import BLOCK, LEVEL, Estimate, Numbers, bracket_difference, ratio, resampled

Kind = tuple[Any, Any, Any]  # of an item: what both recipes share (gold), the first's answer, the second's
# Weights, as in `resampled`, shape (r, k), to r scores and to what each of the k kinds adds to them, to first order.
Scored = Callable[[Numbers], tuple[Numbers, Numbers]]

PERMUTATIONS = 4_999  # the smallest p is 1 / 5,000, which leaves room for some hundred comparisons
POWER = 0.8
SURE = float(norm.ppf((1 + LEVEL) / 2))


@dataclass(frozen=True, slots=True)
class ChoiceTask:
    """gold: shape (n,), the right label of each item. answers: for each recipe the label it gave, in the same order."""

    gold: Sequence[str]
    answers: Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class SpanTask:
    """gold: shape (n,), the right mentions of each item. answers: for each recipe those it gave, in the same order."""

    gold: Sequence[Collection[Mention]]
    answers: Mapping[str, Sequence[Collection[Mention]]]


@dataclass(frozen=True, slots=True)
class Effect:
    """The second recipe less the first, with its 95 % interval, and how little chance explains it.

    difference: in [-1, 1], of kappa in [-2, 2].

    p: two-sided. p_corrected: after Holm (1979) over all comparisons of the same call, by this measure.
    """

    difference: Estimate
    p: float
    p_corrected: float


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two recipes on the n items of a task.

    first_score, second_score, effect: accuracy of a choice, strict micro F1 of mentions; None with a note where
    undefined. kappa: the same for Cohen's kappa, of choices. better: the recipe that is shown to be better, else None.
    needed: where none is, about how many items would show the difference seen here, in four cases of five, if it is the
    true one; None where a difference is shown, where none is seen, or none can be told.
    lost: indexes of the items that the first has right and the second wrong; gained: the other way round; still_wrong:
    both wrong, with different answers. An item with mentions is right when they are right one and all.
    """

    task: str
    measure: str
    first: str
    second: str
    n: int
    first_score: float | None
    second_score: float | None
    effect: Effect | None
    kappa: Effect | None
    lost: tuple[int, ...]
    gained: tuple[int, ...]
    still_wrong: tuple[int, ...]
    better: str | None = None
    needed: int | None = None
    verdict: str = ""
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Every two recipes on every task, in the order given. tests: how many comparisons p is corrected for."""

    contrasts: tuple[Contrast, ...]
    tests: int
    verdict: str


def compare(tasks: Mapping[str, ChoiceTask | SpanTask]) -> Comparison:
    """Compare every two recipes on every task, and say in words what is shown.

    A difference is declared where p, corrected over all pairs and tasks, is at most 0.05 and the 95 % interval leaves
    out 0; so one is declared between equals in at most 5 % of calls, over everything that is compared. The interval
    is of each comparison on its own. Choices: difference in accuracy, see `paired_difference`, with McNemar's exact
    test. Mentions: difference in strict micro F1, with the percentile interval of a paired bootstrap over items, and a
    paired permutation test. Kappa: as mentions; it decides nothing.
    The permutation test is exact where the recipes are alike in all, and keeps its level with many items where they
    have the same F1 for unlike reasons (one misses, one invents).
    Raises ValueError for fewer than two recipes, or answers that are not as many as gold.
    Sources: McNemar (1947), exact as in scipy.stats.binomtest on the items that changed; Holm (1979); the permutation
    test is approximate randomization (Noreen 1989; Yeh 2000, for F1) of the difference over its standard error (Chung
    and Romano 2013), with the observed case counted among the drawn (Phipson and Smyth 2010).
    """
    found = [
        _contrast(name, task, first, second)
        for name, task in tasks.items()
        for first, second in combinations(_recipes(name, task), 2)
    ]
    found = [
        replace(contrast, effect=effect, kappa=kappa)
        for contrast, effect, kappa in zip(
            found, _holm([c.effect for c in found]), _holm([c.kappa for c in found]), strict=True
        )
    ]
    tests = sum(contrast.effect is not None for contrast in found)
    several = any(len(task.answers) > 2 for task in tasks.values())
    judged = tuple(_judged(contrast, tests, several) for contrast in found)
    return Comparison(judged, tests, "; ".join(contrast.verdict for contrast in judged))


def paired_difference(gained: int, lost: int, n: int) -> Estimate:
    """The difference between two proportions of the same n items, (gained - lost) / n, with its score interval.

    gained: items that only the second has right; lost: that only the first has; n at least 1. In [-1, 1]. The interval
    has a width with nothing gained or lost, too. Wherever McNemar's exact test finds a difference at 5 %, the interval
    leaves out 0; near 5 % the test may find none where the interval does, being the more careful.
    Raises ValueError unless gained + lost <= n.
    Source: Tango (1998), the score interval; recommended by Fagerland, Lydersen and Laake (2014).
    """
    if min(gained, lost) < 0 or n < 1 or gained + lost > n:
        raise ValueError(f"{gained} gained and {lost} lost of {n}")
    return Estimate((gained - lost) / n, _score_bound(gained, lost, n), -_score_bound(lost, gained, n))


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in the order given: compare them with 0.05 as if there were one.

    The chance of any false finding among all is at most 5 %, however they depend on one another. In [0, 1].
    Source: Holm (1979).
    """
    adjusted, least = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        least = max(least, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = least
    return adjusted


def _recipes(name: str, task: ChoiceTask | SpanTask) -> Iterable[str]:
    if len(task.answers) < 2:
        raise ValueError(f"{name!r} has {len(task.answers)} recipes: two are needed to compare")
    for recipe, answers in task.answers.items():
        if len(answers) != len(task.gold):
            raise ValueError(f"{recipe!r} has {len(answers)} answers to {len(task.gold)} items of {name!r}")
    return task.answers


def _contrast(name: str, task: ChoiceTask | SpanTask, first: str, second: str) -> Contrast:
    """Everything but what needs the other comparisons: the corrected p, and what is concluded."""
    if isinstance(task, ChoiceTask):
        rows: list[Kind] = list(zip(task.gold, task.answers[first], task.answers[second], strict=True))
        (scores, effect), kappa = _accuracy(rows), _kappa(rows)
        why = {"effect": "no items", "kappa": "gold has fewer than two labels"}
    else:
        sides = (task.gold, task.answers[first], task.answers[second])
        rows = [(frozenset(g), frozenset(a), frozenset(b)) for g, a, b in zip(*sides, strict=True)]
        (scores, effect), kappa = _strict_f1(rows), None
        why = {"effect": "no mention in gold" if rows else "no items"}
    return Contrast(
        task=name,
        measure="accuracy" if isinstance(task, ChoiceTask) else "f1",
        first=first,
        second=second,
        n=len(rows),
        first_score=scores[0],
        second_score=scores[1],
        effect=effect,
        kappa=kappa,
        lost=tuple(i for i, (gold, a, b) in enumerate(rows) if a == gold != b),
        gained=tuple(i for i, (gold, a, b) in enumerate(rows) if a != gold == b),
        still_wrong=tuple(i for i, (gold, a, b) in enumerate(rows) if len({gold, a, b}) == 3),
        notes={key: note for key, note in why.items() if (effect if key == "effect" else kappa) is None},
    )


def _accuracy(rows: Sequence[Kind]) -> tuple[tuple[float | None, float | None], Effect | None]:
    n = len(rows)
    if not n:
        return (None, None), None
    first, second = ([answers[side] == answers[0] for answers in rows] for side in (1, 2))
    gained, lost = (sum(a and not b for a, b in zip(*pair, strict=True)) for pair in ((second, first), (first, second)))
    p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return (sum(first) / n, sum(second) / n), Effect(paired_difference(gained, lost, n), p, p)


def _kappa(rows: Sequence[Kind]) -> Effect | None:
    if len({gold for gold, _, _ in rows}) < 2:
        return None
    kinds, counts = _with_mirrors(rows)
    first = _kappa_scored([(gold, a) for gold, a, _ in kinds])
    second = _kappa_scored([(gold, b) for gold, _, b in kinds])
    return _effect(kinds, counts, first, second, most=2.0)


def _kappa_scored(kinds: Sequence[tuple[str, str]]) -> Scored:
    """Cohen's kappa of (gold, said), and by the delta method what each kind adds (Fleiss, Cohen and Everitt 1969)."""
    labels = sorted({label for pair in kinds for label in pair})
    gold, said = np.array([[labels.index(label) for label in pair] for pair in kinds]).T
    same, ones, rows = (gold == said).astype(np.float64), np.ones(len(kinds)), np.arange(len(kinds))
    in_gold, in_said = (csr_array((ones, (rows, side)), shape=(len(kinds), len(labels))) for side in (gold, said))

    def scored(weights: Numbers) -> tuple[Numbers, Numbers]:
        n = weights.sum(axis=1, keepdims=True)
        here, there = (weights @ in_gold) / n, (weights @ in_said) / n
        chance = (here * there).sum(axis=1, keepdims=True)
        observed = (weights @ same)[:, np.newaxis] / n
        kappa = ratio(observed - chance, 1 - chance)
        adds = same - observed - (1 - kappa) * (there[:, gold] + here[:, said] - 2 * chance)
        return kappa[:, 0], ratio(adds, np.broadcast_to((1 - chance) * n, weights.shape))

    return scored


def _strict_f1(rows: Sequence[Kind]) -> tuple[tuple[float | None, float | None], Effect | None]:
    """Over the kinds of item: how many mentions are in gold, and for each recipe how many agreed, how many it gave."""
    if not any(gold for gold, _, _ in rows):
        return (None, None), None
    kinds, counts = _with_mirrors([(len(g), (len(g & a), len(a)), (len(g & b), len(b))) for g, a, b in rows])
    first = _f1_scored([(gold, *a) for gold, a, _ in kinds])
    second = _f1_scored([(gold, *b) for gold, _, b in kinds])
    whole = np.array([counts], dtype=np.float64)
    return (float(first(whole)[0][0]), float(second(whole)[0][0])), _effect(kinds, counts, first, second, most=1.0)


def _f1_scored(kinds: Sequence[tuple[int, int, int]]) -> Scored:
    """Micro F1 of (in gold, agreed, said), and by the delta method, as of any ratio, what each kind adds."""
    gold, agreed, said = np.array(kinds, dtype=np.float64).T

    def scored(weights: Numbers) -> tuple[Numbers, Numbers]:
        size = (weights @ (gold + said))[:, np.newaxis]
        f1 = ratio((weights @ (2 * agreed))[:, np.newaxis], size)
        return f1[:, 0], ratio(2 * agreed - f1 * (gold + said), np.broadcast_to(size, weights.shape))

    return scored


def _with_mirrors(rows: Iterable[Kind]) -> tuple[list[Kind], list[int]]:
    """The kinds of item and how many are of each; with every kind stands the one with the recipes exchanged."""
    counts = Counter(rows)
    kinds = sorted(counts.keys() | {(shared, b, a) for shared, a, b in counts})
    return kinds, [counts[kind] for kind in kinds]


def _effect(kinds: Sequence[Kind], counts: Sequence[int], first: Scored, second: Scored, most: float) -> Effect:
    """first, second: the scores of the recipes, defined for the items as they are, whoever gave which answer.

    most: how far they can be apart.
    """

    def apart(weights: Numbers) -> tuple[Numbers, Numbers]:
        """The difference and its standard error."""
        (one, adds), (other, other_adds) = first(weights), second(weights)
        return other - one, np.sqrt((weights * (other_adds - adds) ** 2).sum(axis=1))

    value = float(apart(np.array([counts], dtype=np.float64))[0][0])
    interval = bracket_difference(value, resampled(counts, lambda weights: apart(weights)[0]), sum(counts), most)
    p = _permuted(kinds, counts, apart)
    return Effect(interval, p, p)


def _permuted(kinds: Sequence[Kind], counts: Sequence[int], apart: Scored, seed: int = 0) -> float:
    """How often a difference as large for its error comes of exchanging the recipes' answers, each item by a coin.

    Of the items of a kind and its mirror, how many fall on one side is binomial: as fast for many items as for few.
    """

    def size(weights: Numbers) -> Numbers:
        difference, error = apart(weights)
        return np.abs(difference) / np.maximum(error, 1e-9)  # no error, as of a single item: a tie with its mirror

    at = {kind: i for i, kind in enumerate(kinds)}
    pairs = np.array([(i, at[s, b, a]) for i, (s, a, b) in enumerate(kinds) if a < b], dtype=np.int64).reshape(-1, 2)
    whole = np.array([counts], dtype=np.float64)
    least = float(size(whole)[0]) * (1 - 1e-9) - 1e-6  # so that rounding breaks no ties
    together = whole[0][pairs].sum(axis=1).astype(np.int64)
    rng, extreme, block = np.random.default_rng(seed), 0, max(1, BLOCK // len(kinds))
    for start in range(0, PERMUTATIONS, block):
        weights = np.repeat(whole, min(block, PERMUTATIONS - start), axis=0)
        weights[:, pairs[:, 0]] = rng.binomial(together, 0.5, size=(len(weights), len(pairs)))
        weights[:, pairs[:, 1]] = together - weights[:, pairs[:, 0]]
        extreme += int((size(weights) >= least).sum())
    return (extreme + 1) / (PERMUTATIONS + 1)


def _score_bound(gained: int, lost: int, n: int) -> float:
    """Tango's lower bound: the smallest difference that a score test at 5 % would not reject."""
    value = (gained - lost) / n

    def beyond(delta: float) -> float:
        a, b = 2 * n, (2 * n - gained + lost) * delta - gained - lost
        only_first = (sqrt(max(0.0, b * b + 4 * a * lost * delta * (1 - delta))) - b) / (2 * a)
        return gained - lost - n * delta - SURE * sqrt(max(0.0, n * (2 * only_first + delta * (1 - delta))))

    just_below = value - 1e-12  # at the value itself the variance can be 0, and 0 would count as a root
    return float(brentq(beyond, -1.0, just_below)) if just_below > -1 else -1.0


def _holm(effects: Sequence[Effect | None]) -> list[Effect | None]:
    """The effects with p corrected; those that are undefined were not tested and do not count."""
    adjusted = iter(holm([effect.p for effect in effects if effect]))
    return [replace(effect, p_corrected=next(adjusted)) if effect else None for effect in effects]


def _judged(contrast: Contrast, tests: int, several: bool) -> Contrast:
    """The contrast with what is concluded. several: there are more than two recipes, so that both must be named."""
    effect, task = contrast.effect, contrast.task
    if effect is None:
        return replace(contrast, verdict=f"nothing can be said of {task}: {contrast.notes['effect']}")
    found = effect.difference
    if effect.p_corrected <= 1 - LEVEL and (found.low > 0 or found.high < 0):
        better, other = (contrast.second, contrast.first) if found.low > 0 else (contrast.first, contrast.second)
        low, high = sorted((abs(found.low), abs(found.high)))
        than = f" than {other}" if several else ""
        verdict = f"{better} is better{than} by {_points(low)} to {_points(high)} points on {task}"
        return replace(contrast, better=better, verdict=verdict)
    between = f" between {contrast.first} and {contrast.second}" if several else ""
    verdict = f"no difference{between} on {task} can be shown with {contrast.n:,} items"
    if abs(found.value) <= 1e-12:
        return replace(contrast, verdict=f"{verdict}, and no number of items would do: both score the same")
    needed = max(contrast.n + 1, _needed(contrast, found, tests))
    seen = f"about {_rounded(needed):,} would be needed to show the {_points(abs(found.value))} points seen"
    return replace(contrast, needed=needed, verdict=f"{verdict}; {seen}")


def _needed(contrast: Contrast, found: Estimate, tests: int) -> int:
    """Items for POWER at the level that one of so many tests is sure to have, if what was seen is the truth.

    Accuracy: Connor (1987), and 1 / |difference| more, since the exact test is the more careful by about
    half an item on either side. F1: by the width of the interval, which falls with the square root of the items.
    """
    level, power = float(norm.ppf(1 - (1 - LEVEL) / 2 / tests)), float(norm.ppf(POWER))
    size = abs(found.value)
    if contrast.measure == "accuracy":
        changed = (len(contrast.gained) + len(contrast.lost)) / contrast.n
        return ceil(((level * sqrt(changed) + power * sqrt(changed - size**2)) / size) ** 2 + 1 / size)
    spread = (found.high - found.low) / (2 * SURE)
    return ceil(contrast.n * ((level + power) * spread / size) ** 2)


def _points(share: float) -> str:
    """In percentage points; with a digit more where one would read as nought."""
    return f"{100 * share:.1f}" if share >= 0.0005 else f"{100 * share:.2g}"


def _rounded(items: int) -> int:
    """Up to two digits, since no more is known."""
    step = int(10 ** max(0, len(str(items)) - 2))
    return -(-items // step) * step
