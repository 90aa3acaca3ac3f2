"""How far a confidence can be trusted: fitted to gold, stored as plain data, measured before and after.

An item is one answer with a confidence, and was right or wrong; a text may give several. Sequences in, finite numbers
out. A measure that the data cannot give is None, and `notes` says why under its name.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from math import inf, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.sparse import csr_array
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from eval.scores import LEVEL, RESAMPLES, Estimate, Numbers, bracket, proportion, ranking, ratio, resampled

Places = NDArray[np.int64]

FOLDS = 5
ENOUGH_TEXTS = 30
ENOUGH_OF_A_KIND = 5  # texts with a right item, and with a wrong one: one for each fold
CLIP = 1e-6  # a confidence nearer to 0 or 1 counts as this near: its logit would be infinite
MOST_BINS = 15
SMALL_CELL = 30  # texts below which a slice is not measured on its own
BANDS = 4
KINDS = ("identity", "logistic", "isotonic")  # of two that do equally well the simpler one is taken


@dataclass(frozen=True, slots=True)
class Calibrator:
    """Maps a confidence to the probability of being right: never falling, and never exactly 0 or 1 by fitting.

    kind: `identity`, the confidence itself; `logistic`, `slope` and `intercept` on the logit of the confidence;
    `isotonic`, straight lines between `knots` (confidence, probability), level beyond the first and the last.
    n, texts: what it was fitted on. losses: mean log loss of each kind in cross-fitting, in nats, lower is better;
    empty where nothing was fitted, and `note` says why. gold: what the items were, in the caller's words.
    Raises ValueError for anything that no such map can be.
    """

    kind: str
    n: int
    texts: int
    slope: float = 1.0
    intercept: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()
    losses: dict[str, float] = field(default_factory=dict)
    gold: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.n < 0 or self.texts < 0:
            raise ValueError(f"no calibrator is of kind {self.kind!r} with {self.n} items of {self.texts} texts")
        if not (0 <= self.slope < inf and isfinite(self.intercept)):
            raise ValueError(f"slope {self.slope} and intercept {self.intercept}: not a rising line")
        if bool(self.knots) != (self.kind == "isotonic"):
            raise ValueError("knots belong to the isotonic kind, and it cannot be without")
        ends = ((-inf, 0.0), *self.knots, (inf, 1.0))
        if not all(x < next_x and y <= next_y for (x, y), (next_x, next_y) in pairwise(ends)):
            raise ValueError("knots must rise in confidence and never fall in probability")

    def probability(self, confidence: float) -> float:
        """The probability that an item of this confidence is right. Raises ValueError outside [0, 1]."""
        if not 0 <= confidence <= 1:
            raise ValueError(f"a confidence of {confidence}")
        return float(self.mapped(np.array([confidence]))[0])

    def mapped(self, confidence: Numbers) -> Numbers:
        """`probability` for shape (n,), unchecked."""
        if self.kind == "identity":
            return confidence
        if self.kind == "logistic":
            # Laplace's rule of succession: n items carry no more certainty than (n + 1) / (n + 2).
            return np.asarray((self.n * expit(self.slope * _logit(confidence) + self.intercept) + 1) / (self.n + 2))
        x, y = np.array(self.knots).T
        above = y[np.minimum(np.searchsorted(x, confidence), len(x) - 1)]
        # Rounding must not lift a line over its own end.
        return np.asarray(np.minimum(np.interp(confidence, x, y), above))

    def plain(self) -> dict[str, Any]:
        """As data that JSON can hold; `Calibrator.of` reads it back as an equal calibrator."""
        return {**asdict(self), "knots": [list(knot) for knot in self.knots]}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Calibrator:
        """From what `plain` gave. Raises ValueError for anything else."""
        try:
            return cls(**{**data, "knots": tuple((float(x), float(y)) for x, y in data["knots"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a calibrator: {error}") from error


@dataclass(frozen=True, slots=True)
class Bin:
    """Items of like confidence: how many, their mean confidence, and the share right with Wilson's interval."""

    count: int
    confidence: float
    right: Estimate


@dataclass(frozen=True, slots=True)
class Reliability:
    """What a confidence was worth on n items of `texts` texts, with 95 % intervals.

    confidence: its mean. right: share of items that were right.
    brier: mean squared distance of confidence and outcome, in [0, 1]; lower is better (Brier 1950).
    ece: mean distance of confidence and share right over `bins`, less what chance adds (see `reliability`), in [0, 1];
    lower is better.
    auroc: see `eval.scores.ranking`; higher is better.
    bins: in rising order of confidence, of about equally many items each; their union is all items.
    """

    n: int
    texts: int
    confidence: float | None
    right: Estimate | None
    brier: Estimate | None
    ece: Estimate | None
    auroc: Estimate | None
    bins: tuple[Bin, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cell:
    """The items with one of `values` in the slice `name`; several values where each alone had too few texts.

    before, after: None where even together there are too few, and `note` says so.
    """

    name: str
    values: tuple[str, ...]
    n: int
    texts: int
    before: Reliability | None
    after: Reliability | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A calibrator, and what it is worth.

    calibrator: fitted on all items. before: the confidence as it was. after: as it is for items that played no part in
    fitting: each text's items are mapped by a calibrator chosen and fitted without its fold. cells: by slice.
    """

    calibrator: Calibrator
    before: Reliability
    after: Reliability
    cells: tuple[Cell, ...] = ()


def calibrate(
    confidence: Sequence[float],
    right: Sequence[bool],
    texts: Sequence[str],
    slices: Mapping[str, Sequence[str]],
    gold: Mapping[str, str],
) -> Calibration:
    """Fit a calibrator, and measure confidence before and after, over all items and in every slice.

    confidence: shape (n,), in [0, 1]. right: shape (n,). texts: shape (n,), which text each item is of.
    slices: by name, shape (n,), the value of each item: its label, language, source, a `length_bands` band.
    gold: identity of the items, kept in the calibrator. The order of items plays no part.
    Cells are in the order of the values, numbers in them by size.
    Values that fewer than 30 texts have are pooled in one cell; fewer than 30 together are counted, not measured.
    Raises ValueError for unequal lengths or a confidence outside [0, 1].
    """
    said, was, _ = _checked(confidence, right, texts)
    after = crossfitted(confidence, right, texts)
    cells = [
        cell
        for name, values in slices.items()
        for cell in _cells(name, list(zip(values, said.tolist(), after.tolist(), was > 0, texts, strict=True)))
    ]
    return Calibration(
        calibrator=fit(confidence, right, texts, gold),
        before=reliability(confidence, right, texts),
        after=reliability(after.tolist(), right, texts),
        cells=tuple(cells),
    )


def fit(
    confidence: Sequence[float], right: Sequence[bool], texts: Sequence[str], gold: Mapping[str, str]
) -> Calibrator:
    """The calibrator of the kind that does best on texts it was not fitted on, refitted on all.

    Arguments as in `calibrate`. Isotonic, logistic and the confidence itself are compared by their mean log loss in
    5-fold cross-fitting; a text's items are in one fold, which is a hash of the text. So a calibrator that does worse
    than none is not taken. The identity, with a note, where fewer than 30 texts, or fewer than 5 with a right or 5 with
    a wrong item, or a single confidence are all there is: ends and slope would then be made of a handful of texts.
    Sources: Platt (1999), with his smoothed targets; Zadrozny and Elkan (2002), isotonic regression through sklearn;
    the choice between them, since isotonic overfits small sets: Niculescu-Mizil and Caruana (2005).
    Raises ValueError as `calibrate` does.
    """
    said, was, at = _checked(confidence, right, texts)
    alone = Calibrator("identity", len(said), len(set(texts)), gold=dict(gold))
    if note := _too_little(said, was, at):
        return replace(alone, note=note)
    order = _standing(said, was, at)
    said, was, folds = said[order], was[order], _folds(texts)[order]
    losses = {}
    for kind in KINDS:
        mapped = np.empty_like(said)
        for fold in np.unique(folds):
            mapped[folds == fold] = _fitted(kind, said[folds != fold], was[folds != fold]).mapped(said[folds == fold])
        losses[kind] = float(-np.log(np.clip(np.where(was > 0, mapped, 1 - mapped), CLIP, 1)).mean())
    kind = min(KINDS, key=lambda name: losses[name])
    note = "no fit did better than the confidence itself" if kind == "identity" else ""
    return replace(_fitted(kind, said, was), texts=alone.texts, losses=losses, gold=alone.gold, note=note)


def crossfitted(confidence: Sequence[float], right: Sequence[bool], texts: Sequence[str]) -> Numbers:
    """The probability of each item by a calibrator that `fit` chose and fitted on the texts of other folds; shape (n,).

    Choosing is part of what is repeated (nested cross-fitting), so that nothing of an item is in its own probability.
    """
    said, was, _ = _checked(confidence, right, texts)
    folds = _folds(texts)
    mapped = said.copy()
    for fold in np.unique(folds):
        others = np.flatnonzero(folds != fold).tolist()
        found = fit(said[others].tolist(), (was[others] > 0).tolist(), [texts[i] for i in others], {})
        mapped[folds == fold] = found.mapped(said[folds == fold])
    return mapped


def reliability(confidence: Sequence[float], right: Sequence[bool], texts: Sequence[str]) -> Reliability:
    """What the confidence is worth, with 95 % intervals, from resampling texts (1,000 times, seeded) but for ECE.

    Arguments as in `calibrate`. Bins carry Wilson's interval over items; all else lets the items of a text go together.
    The calibration error (ECE) is taken over about n^(1/3) bins of equal mass (adaptive, as in Nixon et al. 2019), at
    most 15; items of one confidence are never parted. The plain estimate, which can be read off the bins, is too large
    since chance alone takes every bin off the line (Kumar, Liang and Ma 2019), and resampling adds chance once more.
    So the interval is what a test does not refuse: errors are put on the line, chance is added to them (normal, its
    covariance from the texts), and their size is sought under which the plain estimate stands at 2.5, 50 and 97.5 % of
    1,000 draws (the grid bootstrap of Hansen 1999; 50 % is the value, which is median-unbiased). The value has the
    proportions over the bins that were seen; for the ends, the upper has all bins equally wrong and the lower only
    those surely so, the hardest cases. In simulations with 150 to 1,000 items this covered in 92 to 100 of 100 cases,
    where the bootstrap did in 71 to 94.
    No items: all None, with notes. AUROC: None with a note where all were right, or all wrong.
    Raises ValueError as `calibrate` does.
    """
    said, was, at = _checked(confidence, right, texts)
    if not len(said):
        names = ("confidence", "right", "brier", "ece", "auroc")
        return Reliability(0, 0, None, None, None, None, None, notes=dict.fromkeys(names, "no items"))
    order = _standing(said, was, at)
    said, was, at = said[order], was[order], at[order]
    bins = _equal_mass(said, min(MOST_BINS, round(len(said) ** (1 / 3))))
    auroc = _auroc(said, was, at)
    return Reliability(
        n=len(said),
        texts=len(set(texts)),
        confidence=float(said.mean()),
        right=_mean(was, at),
        brier=_mean((said - was) ** 2, at),
        ece=_calibration_error(said - was, was, bins, at),
        auroc=auroc,
        bins=tuple(_bin(said[bins == i], was[bins == i]) for i in range(int(bins.max()) + 1)),
        notes={} if auroc else {"auroc": f"all {len(said)} items were {'right' if was[0] else 'wrong'}"},
    )


def length_bands(lengths: Sequence[int]) -> tuple[str, ...]:
    """The band of each length, named by the shortest and longest in it, such as `3 to 12`; shape (n,).

    At most 4 bands of about equally many items each; equal lengths are in one band. None for none.
    """
    if not lengths:
        return ()
    sizes = np.asarray(lengths)
    bands = _equal_mass(sizes.astype(np.float64), BANDS)
    names = [f"{sizes[bands == i].min()} to {sizes[bands == i].max()}" for i in range(int(bands.max()) + 1)]
    return tuple(names[i] for i in bands)


def _checked(
    confidence: Sequence[float], right: Sequence[bool], texts: Sequence[str]
) -> tuple[Numbers, Numbers, Places]:
    """Confidence, 1 for right, and the place of each item's text among the texts in alphabetical order."""
    if not len(confidence) == len(right) == len(texts):
        raise ValueError(f"{len(confidence)} confidences, {len(right)} times right or wrong, {len(texts)} texts")
    said = np.asarray(confidence, dtype=np.float64)
    if not bool(np.all((said >= 0) & (said <= 1))):
        raise ValueError("a confidence must be in [0, 1]")
    place = {text: i for i, text in enumerate(sorted(set(texts)))}
    return said, np.asarray(right, dtype=np.float64), np.array([place[text] for text in texts], dtype=np.int64)


def _standing(said: Numbers, was: Numbers, at: Places) -> Places:
    """An order that is the same however the items came, so that not even rounding depends on it."""
    return np.asarray(np.lexsort((was, said, at)), dtype=np.int64)


def _folds(texts: Sequence[str]) -> Places:
    """The fold of each text by its hash: the same whatever the order, and whatever other texts there are."""
    found = {text: hashlib.sha256(f"fold:{text}".encode()).digest()[0] % FOLDS for text in set(texts)}
    return np.array([found[text] for text in texts], dtype=np.int64)


def _too_little(said: Numbers, was: Numbers, at: Places) -> str:
    """Why nothing should be fitted to these items; empty where it may be."""
    texts, right, wrong = (len(np.unique(some)) for some in (at, at[was > 0], at[was == 0]))
    if texts < ENOUGH_TEXTS:
        return f"{texts} texts; at least {ENOUGH_TEXTS} are needed to fit a calibrator"
    if min(right, wrong) < ENOUGH_OF_A_KIND:
        return (
            f"{right} texts with a right item and {wrong} with a wrong one; "
            f"at least {ENOUGH_OF_A_KIND} of each are needed to fit a calibrator"
        )
    return "" if float(np.ptp(said)) > 0 else "all items have the same confidence"


def _fitted(kind: str, said: Numbers, was: Numbers) -> Calibrator:
    if kind == "isotonic":
        return _isotonic(said, was)
    return _logistic(said, was) if kind == "logistic" else Calibrator("identity", len(said), 0)


def _isotonic(said: Numbers, was: Numbers) -> Calibrator:
    """One right and one wrong item are added at either end, so that k of k right say (k + 1) / (k + 2) and not 1."""
    low, high = said.min(), said.max()
    model = IsotonicRegression()
    model.fit(np.concatenate([said, [low, low, high, high]]), np.concatenate([was, [0.0, 1.0, 0.0, 1.0]]))
    knots = zip(model.X_thresholds_.tolist(), model.y_thresholds_.tolist(), strict=True)
    return Calibrator("isotonic", len(said), 0, knots=tuple(knots))


def _logistic(said: Numbers, was: Numbers) -> Calibrator:
    """Platt's fit: targets just short of 0 and 1 keep the slope finite where confidence parts right from wrong."""
    n, hits = len(was), was.sum()
    target = np.where(was > 0, (hits + 1) / (hits + 2), 1 / (n - hits + 2))
    x = _logit(said)
    centre, scale = float(x.mean()), float(x.std())
    level = Calibrator("logistic", n, 0, slope=0.0, intercept=float(logit(target.mean())))
    if scale < 1e-9:
        return level
    # sklearn takes no target between 0 and 1: each item stands there twice, as right and as wrong, with its weights.
    model = LogisticRegression(C=inf, solver="newton-cholesky", tol=1e-10)
    both = np.concatenate([x, x])[:, None]
    weights = np.concatenate([target, 1 - target])
    model.fit((both - centre) / scale, np.repeat([1, 0], n), sample_weight=weights)
    slope = float(model.coef_[0, 0]) / scale
    if slope <= 0:  # the loss is convex: the best line that does not fall is the level one
        return level
    return replace(level, slope=slope, intercept=float(model.intercept_[0]) - slope * centre)


def _logit(confidence: Numbers) -> Numbers:
    return np.asarray(logit(np.clip(confidence, CLIP, 1 - CLIP)))


def _equal_mass(values: Numbers, bins: int) -> Places:
    """The bin of each value, from 0 up without gaps: by the middle rank of its equals, so that they are not parted."""
    _, level, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    _, bin_of = np.unique((middle * bins / len(values)).astype(np.int64), return_inverse=True)
    return np.asarray(bin_of[level], dtype=np.int64)


def _bin(said: Numbers, was: Numbers) -> Bin:
    right = proportion(int(was.sum()), len(was))
    if right is None:
        raise ValueError("a bin without items")
    return Bin(len(was), float(said.mean()), right)


def _mean(values: Numbers, at: Places) -> Estimate:
    """The mean over items, resampled by texts."""
    texts = np.column_stack([np.bincount(at, values), np.bincount(at)])
    kinds, counts = np.unique(texts, axis=0, return_counts=True)
    resamples = resampled(counts.tolist(), lambda drawn: ratio(drawn @ kinds[:, 0], drawn @ kinds[:, 1]))
    return bracket(float(values.mean()), resamples, len(texts))


def _auroc(said: Numbers, was: Numbers, at: Places) -> Estimate | None:
    """`ranking`, with texts resampled instead of items where a text has several."""
    found = ranking(said.tolist(), (was > 0).tolist())
    texts = int(at.max()) + 1
    if found is None or texts == len(said):
        return found
    levels, level = np.unique(said, return_inverse=True)
    good, bad = (csr_array((some, (at, level)), shape=(texts, len(levels))) for some in (was, 1 - was))

    def area(drawn: Numbers) -> Numbers:
        right, wrong = drawn @ good, drawn @ bad
        below = np.cumsum(wrong, axis=1) - wrong / 2
        return ratio((right * below).sum(axis=1), right.sum(axis=1) * wrong.sum(axis=1))

    return bracket(found.value, resampled([1] * texts, area), texts)


def _calibration_error(off: Numbers, was: Numbers, bins: Places, at: Places) -> Estimate:
    """off: confidence less outcome of each item. See `reliability`."""
    shape = (int(at.max()) + 1, int(bins.max()) + 1)
    cell = at * shape[1] + bins
    count = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
    gap = np.bincount(cell, off, minlength=shape[0] * shape[1]).reshape(shape)
    size = count.sum(axis=0)
    mean, share = gap.sum(axis=0) / size, size / size.sum()
    apart = (gap - mean * count) / size
    spread = apart.T @ apart
    laplace = (np.bincount(bins, was) + 1) / (size + 2)  # a bin of k right ones of k has chance in it, too
    np.fill_diagonal(spread, np.maximum(spread.diagonal(), laplace * (1 - laplace) / size))
    chance = np.random.default_rng(0).multivariate_normal(np.zeros(shape[1]), spread, RESAMPLES, method="eigh")
    seen = float(share @ np.abs(mean))

    def where(errors: Numbers, quantile: float) -> float:
        """The size of errors in these proportions under which what was seen stands at this quantile."""
        unit = errors / (share @ np.abs(errors))

        def beyond(size: float) -> float:
            return float(np.quantile(np.abs(size * unit + chance) @ share, quantile)) - seen

        if beyond(0.0) >= 0:
            return 0.0
        return float(brentq(beyond, 0.0, 1.0, xtol=1e-9)) if beyond(1.0) > 0 else 1.0

    even = np.where(mean < 0, -1.0, 1.0)
    sure = np.abs(mean) / np.sqrt(spread.diagonal())
    few = np.where((sure > 2) | (sure == sure.max()), even * np.maximum(np.abs(mean), 1e-9), 0.0)
    value = where(mean, 0.5) if seen > 0 else 0.0
    return Estimate(value, min(value, where(few, (1 + LEVEL) / 2)), max(value, where(even, (1 - LEVEL) / 2)))


def _cells(name: str, items: list[tuple[str, float, float, bool, str]]) -> list[Cell]:
    """items: (value, confidence before, after, right, text)."""
    texts = Counter(value for value, _ in {(item[0], item[4]) for item in items})
    ordered = sorted(texts, key=_by_number)
    large = [(value,) for value in ordered if texts[value] >= SMALL_CELL]
    small = tuple(value for value in ordered if texts[value] < SMALL_CELL)
    cells = []
    for values in [*large, *([small] if small else [])]:
        _, before, after, right, of = zip(*(item for item in items if item[0] in values), strict=True)
        seen = len(set(of))
        cell = Cell(name, values, len(of), seen, None, None, note=f"{seen} texts; at least {SMALL_CELL} are needed")
        if seen >= SMALL_CELL:
            note = f"{len(values)} values pooled, each with fewer than {SMALL_CELL} texts" if values == small else ""
            pair = reliability(before, right, of), reliability(after, right, of)
            cell = replace(cell, before=pair[0], after=pair[1], note=note)
        cells.append(cell)
    return cells


def _by_number(value: str) -> tuple[list[str | int], str]:
    """Sorts `9 to 20` before `10 to 30`, and what has no numbers in it as text."""
    parts = re.split(r"(\d{1,18})", value)  # text and numbers in turn
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], value
