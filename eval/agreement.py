"""How far two readings of the same texts agree: choices, and mentions.

Sequences in, finite numbers out. A measure that the data cannot give is None, and `notes` says why under its name.
Intervals are of 95 %. They come from a bootstrap over texts (Efron 1979), since labels of one text are not independent;
where no text has more than one to count, they are Wilson's, which keep their rate where few are.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from eval.scores import Estimate, Numbers, bracket, column, columns, proportion, ratio, resampled, shares

Mention = tuple[int, int, str]
Interval = tuple[float, float]  # low, high
Parts = Callable[[Numbers], tuple[Numbers, Numbers]]  # weights, as in `resampled`, to agreement: observed, by chance


@dataclass(frozen=True, slots=True)
class LabelAgreement:
    """One label. gold: times it stands in gold, said: times it was said, agreed: times both.

    precision = agreed / said, recall = agreed / gold, f1 = 2 agreed / (gold + said); None where divided by 0, and so is
    the interval of each.
    """

    label: str
    gold: int
    said: int
    agreed: int
    precision: float | None
    recall: float | None
    f1: float | None
    precision_interval: Interval | None
    recall_interval: Interval | None
    f1_interval: Interval | None


@dataclass(frozen=True, slots=True)
class Confusion:
    """How many texts have this label in gold and that one said; right where they are the same."""

    gold: str
    said: str
    count: int


@dataclass(frozen=True, slots=True)
class ChoiceAgreement:
    """n texts, of which `agreed` have the same label in both. All measures: higher is better.

    exact: share of texts with the same label, in [0, 1], with Wilson's interval.
    kappa: agreement beyond chance, in [-1, 1]; 0 is what chance gives. Symmetric in the two readings.
    macro_f1: mean F1 over the labels that occur in either, in [0, 1], with a bootstrap interval over texts.
    micro_f1: F1 over all labels together. With one label a text it is the same number as `exact`.
    alpha: Krippendorff's, in [-1, 1]: as kappa, but chance is what one common distribution of labels gives.
    labels: in alphabetical order, those that occur in either. confusion: every pair of labels that occurs, in order.
    Without texts n is 0, every measure is None, and the notes stand under exact, kappa and macro_f1 for all of them.
    """

    n: int
    agreed: int
    exact: Estimate | None
    kappa: float | None
    macro_f1: Estimate | None
    kappa_interval: Interval | None = None
    micro_f1: Estimate | None = None
    alpha: Estimate | None = None
    labels: tuple[LabelAgreement, ...] = ()
    confusion: tuple[Confusion, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpanAgreement:
    """n texts with `gold` and `said` mentions, of which `agreed` have the same start, end and label.

    exact: share of texts whose mentions agree one and all, with Wilson's interval; a text without any on both sides
    agrees. precision, recall, f1: strict, over all mentions of all texts (micro), with a bootstrap interval over texts,
    since the mentions of one text are not independent.
    gold = agreed + wrong_label + wrong_boundary + missed; said = agreed + wrong_label + wrong_boundary + spurious.
    wrong_label: the same place under another label. wrong_boundary: the same label at an overlapping place.
    Another label at another place, overlapping or not, is one missed and one spurious; wrong_both says how many of
    those pairs overlap.
    boundary_f1, type_f1, partial_f1: 2 right / (gold + said), where right is, of the same pairs, agreed + wrong_label;
    agreed + wrong_boundary; agreed + wrong_label + (wrong_boundary + wrong_both) / 2. None is below the strict f1.
    """

    n: int
    gold: int
    said: int
    agreed: int
    missed: int
    spurious: int
    wrong_label: int
    wrong_boundary: int
    wrong_both: int
    exact: Estimate | None
    precision: Estimate | None
    recall: Estimate | None
    f1: Estimate | None
    boundary_f1: Estimate | None
    partial_f1: Estimate | None
    type_f1: Estimate | None
    labels: tuple[LabelAgreement, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)


def choice_agreement(gold: Sequence[str], said: Sequence[str]) -> ChoiceAgreement:
    """Compare one label a text with another.

    gold, said: shape (n,), the label of each text in the same order; the order of the texts plays no part.
    No texts: everything is None, with a note. One label only on both sides: exact match is stated, with its interval;
    kappa, alpha and F1 are None, since a reading that cannot err proves nothing. One label only on one side: kappa is 0
    whatever stands on the other, and a note says so. A label that is in gold and never said counts with F1 0.
    Raises ValueError for unequal lengths.
    Sources: Cohen (1960), equals sklearn.metrics.cohen_kappa_score; macro F1 as in sklearn.metrics.f1_score;
    alpha: see krippendorff_alpha.
    """
    pairs = sorted(Counter(zip(gold, said, strict=True)).items())
    agreed = sum(count for (g, s), count in pairs if g == s)
    if not pairs:
        return ChoiceAgreement(0, 0, None, None, None, notes=dict.fromkeys(("exact", "kappa", "macro_f1"), "no texts"))
    exact = proportion(agreed, len(gold))
    labels = _by_label(_label_kinds(pairs))
    several = len(labels) > 1
    kappa = beyond_chance(cohen([[pair] for pair, _ in pairs]), [count for _, count in pairs])
    return ChoiceAgreement(
        n=len(gold),
        agreed=agreed,
        exact=exact,
        kappa=_value(kappa),
        kappa_interval=_interval(kappa),
        macro_f1=_macro_f1(pairs) if several else None,
        micro_f1=exact if several else None,
        alpha=krippendorff_alpha(list(zip(gold, said, strict=True))),
        labels=labels,
        confusion=tuple(Confusion(g, s, count) for (g, s), count in pairs),
        notes=_one_label(gold, said),
    )


def span_agreement(gold: Sequence[Collection[Mention]], said: Sequence[Collection[Mention]]) -> SpanAgreement:
    """Compare the mentions of each text with others of the same text.

    gold, said: shape (n,), for each text its mentions (start, end, label), end exclusive; a mention that stands twice
    in one text counts once, and the order of texts and of mentions plays no part.
    No mention on either side: all measures are None, with a note. None said: precision is None and F1 is 0;
    none in gold: recall is None and F1 is 0. Mentions are paired once, for all measures alike: those that agree, then
    the same place, then the same label at an overlapping place, then what else overlaps. Where several pairings of one
    overlapping mention are possible, the larger overlap is taken first, then the earlier in the text.
    Raises ValueError for unequal lengths.
    Sources: strict matching of CoNLL-2003 (Tjong Kim Sang and De Meulder); the error classes follow MUC-5
    (Chinchor and Sundheim 1993, with half a point for a partial match); the four F1 are "strict", "exact", "partial"
    and "type" of SemEval-2013 task 9.1 (Segura-Bedmar, Martinez and Herrero-Zazo 2013).
    """
    texts = [(set(g), set(s)) for g, s in zip(gold, said, strict=True)]
    kinds = Counter(_aligned(g, s) for g, s in texts)
    every = _Aligned(*(sum(count * kind[i] for kind, count in kinds.items()) for i in range(len(_Aligned._fields))))
    paired = every.agreed + every.wrong_label + every.wrong_boundary
    scores, notes = _span_scores(kinds)
    by_label: dict[str, Counter[tuple[int, int, int]]] = defaultdict(Counter)
    for g, s in texts:
        here, there, both = (Counter(label for _, _, label in mentions) for mentions in (g, s, g & s))
        for label in here.keys() | there.keys():
            by_label[label][both[label], here[label], there[label]] += 1
    same = sum(count for kind, count in kinds.items() if kind.agreed == kind.gold == kind.said)
    return SpanAgreement(
        n=len(texts),
        gold=every.gold,
        said=every.said,
        agreed=every.agreed,
        missed=every.gold - paired,
        spurious=every.said - paired,
        wrong_label=every.wrong_label,
        wrong_boundary=every.wrong_boundary,
        wrong_both=every.wrong_both,
        exact=proportion(same, len(texts)) if every.gold or every.said else None,
        **scores,
        labels=_by_label(by_label),
        notes=notes,
    )


def span_verdicts(
    gold: Collection[Mention], said: Collection[Mention]
) -> tuple[dict[Mention, str], dict[Mention, str]]:
    """What became of each mention of one text, in gold and in what was said, by the pairing of `span_agreement`.

    A verdict is `agreed`, `wrong_label` or `wrong_boundary`, each as often on both sides; what is left is `missed` in
    gold and `spurious` in what was said. Counted over texts they are the numbers of `SpanAgreement`.
    """
    only_gold, only_said = set(gold) - set(said), set(said) - set(gold)
    of_gold, of_said = dict.fromkeys(gold, "agreed"), dict.fromkeys(said, "agreed")
    found = [(set(only_gold), set(only_said))]
    _pair_same_place(only_gold, only_said)
    found.append((set(only_gold), set(only_said)))
    _pair_overlapping(only_gold, only_said, lambda g, s: g[2] == s[2])
    found.append((only_gold, only_said))
    sides = (("wrong_label", "wrong_boundary", "missed"), ("wrong_label", "wrong_boundary", "spurious"))
    for (in_gold, in_said), verdict, other in zip(found, *sides, strict=True):
        of_gold.update(dict.fromkeys(in_gold, verdict))
        of_said.update(dict.fromkeys(in_said, other))
    return of_gold, of_said


def krippendorff_alpha(ratings: Sequence[Sequence[str | None]]) -> Estimate | None:
    """Krippendorff's alpha for nominal labels, in [-1, 1]: 1 is full agreement, 0 what chance gives.

    ratings: shape (n, any), the labels that each text was given, by however many; None is a missing one. Who gave which
    plays no part. A text with fewer than two labels says nothing of agreement and is left out.
    None where no text has two, or where all labels are one: nothing shows that another would have been told apart.
    The interval is a bootstrap over texts, which Zapf et al. (2016) find to keep its rate. Equals krippendorff.alpha;
    that has no interval, and takes texts times labels squared numbers (2 GB for 10,000 texts with 150 labels).
    Source: Krippendorff (2011), Computing Krippendorff's Alpha-Reliability, part C.
    """
    rows = (tuple(sorted(label for label in row if label is not None)) for row in ratings)
    kinds = sorted(Counter(row for row in rows if len(row) > 1).items())
    table = _table([row for row, _ in kinds], {label for row, _ in kinds for label in row})
    size = np.array([len(row) for row, _ in kinds], dtype=np.float64)
    alike = np.array([sum(n * (n - 1) for n in Counter(row).values()) / (len(row) - 1) for row, _ in kinds])

    def parts(weights: Numbers) -> tuple[Numbers, Numbers]:
        found = weights @ table
        total = weights @ size
        return ratio(weights @ alike, total), ratio((found * (found - 1)).sum(axis=1), total * (total - 1))

    return beyond_chance(parts, [count for _, count in kinds])


def cohen(kinds: Sequence[Sequence[tuple[str, str]]]) -> Parts:
    """Cohen's kappa in parts, for `corrected` and `beyond_chance`.

    kinds: for each kind of text its pairs of labels (gold, said): one in plain readings, several where a text is held
    against several people. Source: Cohen (1960).
    """
    used = {label for pairs in kinds for pair in pairs for label in pair}
    gold, said = (_table([[pair[side] for pair in pairs] for pairs in kinds], used) for side in (0, 1))
    same, size = column(sum(one == other for one, other in pairs) for pairs in kinds), column(map(len, kinds))

    def parts(weights: Numbers) -> tuple[Numbers, Numbers]:
        total = weights @ size
        return ratio(weights @ same, total), ratio(((weights @ gold) * (weights @ said)).sum(axis=1), total**2)

    return parts


def corrected(parts: Parts) -> Callable[[Numbers], Numbers]:
    """Agreement beyond chance, (observed - chance) / (1 - chance), for `resampled`; NaN where chance alone gives 1."""

    def statistic(weights: Numbers) -> Numbers:
        observed, chance = parts(weights)
        return ratio(observed - chance, 1 - chance)

    return statistic


def beyond_chance(parts: Parts, counts: Sequence[int]) -> Estimate | None:
    """Agreement beyond chance in [-1, 1] with its bootstrap interval; None where chance alone gives 1, or for nothing.

    counts: shape (k,), how many texts are of each kind that `parts` weighs. Where all resamples are alike, Wilson's
    interval of the observed agreement over the texts is taken, and brought to this scale with chance as it stands.
    """
    observed, chance = (float(part[0]) for part in parts(np.array([counts], dtype=np.float64)))
    if not chance < 1:
        return None
    value = max(-1.0, min(1.0, (observed - chance) / (1 - chance)))
    resamples = resampled(counts, corrected(parts))
    if not _alike(resamples):
        return bracket(value, resamples, sum(counts))
    share = bracket(observed, resamples, sum(counts))
    low, high = ((bound - chance) / (1 - chance) for bound in (share.low, share.high))
    return Estimate(value, max(-1.0, min(low, value)), max(high, value))


class _Aligned(NamedTuple):
    """What became of the mentions of one text, or of all."""

    gold: int
    said: int
    agreed: int
    wrong_label: int
    wrong_boundary: int
    wrong_both: int


def _aligned(gold: set[Mention], said: set[Mention]) -> _Aligned:
    only_gold, only_said = gold - said, said - gold
    return _Aligned(
        gold=len(gold),
        said=len(said),
        agreed=len(gold & said),
        wrong_label=_pair_same_place(only_gold, only_said),
        wrong_boundary=_pair_overlapping(only_gold, only_said, lambda g, s: g[2] == s[2]),
        wrong_both=_pair_overlapping(only_gold, only_said, lambda g, s: True),
    )


def _label_kinds(pairs: Iterable[tuple[tuple[str, str], int]]) -> dict[str, Counter[tuple[int, int, int]]]:
    """For each label, how many texts have it (agreed, in gold, said)."""
    kinds: dict[str, Counter[tuple[int, int, int]]] = defaultdict(Counter)
    for (gold, said), count in pairs:
        if gold == said:
            kinds[gold][1, 1, 1] += count
        else:
            kinds[gold][0, 1, 0] += count
            kinds[said][0, 0, 1] += count
    return kinds


def _by_label(kinds: Mapping[str, Counter[tuple[int, int, int]]]) -> tuple[LabelAgreement, ...]:
    """kinds: for each label, how many texts have it how often (agreed, in gold, said)."""
    return tuple(_label_agreement(label, kinds[label]) for label in sorted(kinds))


def _label_agreement(label: str, kinds: Counter[tuple[int, int, int]]) -> LabelAgreement:
    counts, (agreed, gold, said) = columns(kinds.items(), 3)
    precision, recall, f1 = shares(counts, (agreed, said), (agreed, gold), (2 * agreed, gold + said))
    return LabelAgreement(
        label=label,
        gold=round(gold @ counts),
        said=round(said @ counts),
        agreed=round(agreed @ counts),
        precision=_value(precision),
        recall=_value(recall),
        f1=_value(f1),
        precision_interval=_interval(precision),
        recall_interval=_interval(recall),
        f1_interval=_interval(f1),
    )


def _one_label(gold: Sequence[str], said: Sequence[str]) -> dict[str, str]:
    """Notes for readings with one label only."""
    here, there = set(gold), set(said)
    if len(here | there) == 1:
        alone = f"{gold[0]!r} is the only label on both sides: nothing shows that another would have been told apart"
        return dict.fromkeys(("kappa", "macro_f1", "micro_f1", "alpha"), alone)
    sides = [name for name, labels in (("gold has", here), ("what was said has", there)) if len(labels) == 1]
    return {"kappa": f"{sides[0]} one label only, so that kappa is 0 whatever the other side has"} if sides else {}


def _macro_f1(pairs: Sequence[tuple[tuple[str, str], int]]) -> Estimate:
    """Over the kinds of (gold, said) pair: F1 of a label needs only how often each kind was drawn."""
    used = {label for pair, _ in pairs for label in pair}
    either = _table([pair for pair, _ in pairs], used)
    both = _table([pair if pair[0] == pair[1] else () for pair, _ in pairs], used)

    def macro(weights: Numbers) -> Numbers:
        return np.asarray(np.nanmean(ratio(weights @ both, weights @ either), axis=1))

    counts = [count for _, count in pairs]
    value = float(macro(np.array([counts], dtype=np.float64))[0])
    return bracket(value, resampled(counts, macro), sum(counts))


def _span_scores(every: Counter[_Aligned]) -> tuple[dict[str, Estimate | None], dict[str, str]]:
    """Precision, recall and the four F1 over the kinds of text, and why some are None."""
    kinds = Counter({kind: count for kind, count in every.items() if kind.gold or kind.said})
    counts, (gold, said, agreed, relabelled, moved, beside) = columns(kinds.items(), 6)
    partly = agreed + relabelled + (moved + beside) / 2
    wanted = {
        "precision": (agreed, said),
        "recall": (agreed, gold),
        "f1": (2 * agreed, gold + said),
        "boundary_f1": (2 * (agreed + relabelled), gold + said),
        "partial_f1": (2 * partly, gold + said),
        "type_f1": (2 * (agreed + moved), gold + said),
    }
    scores = dict(zip(wanted, shares(counts, *wanted.values()), strict=True))
    if not kinds:
        return scores, dict.fromkeys(("exact", *scores), "no mention on either side" if every else "no texts")
    why = {"precision": "no mention was said", "recall": "no mention in gold"}
    return scores, {name: note for name, note in why.items() if scores[name] is None}


def _table(rows: Sequence[Iterable[str]], used: Collection[str]) -> csr_array:
    """How often each row holds each label, shape (rows, labels)."""
    at = {label: i for i, label in enumerate(sorted(used))}
    cells = [(row, at[label]) for row, labels in enumerate(rows) for label in labels]
    places = np.array(cells, dtype=np.int64).reshape(-1, 2).T
    return csr_array((np.ones(len(cells)), (places[0], places[1])), shape=(len(rows), len(at)))


def _alike(resamples: Numbers) -> bool:
    return not resamples.size or float(np.ptp(resamples)) <= 1e-12  # as `bracket` has it


def _value(estimate: Estimate | None) -> float | None:
    return estimate.value if estimate else None


def _interval(estimate: Estimate | None) -> Interval | None:
    return (estimate.low, estimate.high) if estimate else None


def _pair_same_place(gold: set[Mention], said: set[Mention]) -> int:
    """Take mentions with the same start and end but another label out of both, one for one; how many."""
    pairs = 0
    places: dict[tuple[int, int], list[Mention]] = {}
    for mention in sorted(said):
        places.setdefault(mention[:2], []).append(mention)
    for mention in sorted(gold):
        if waiting := places.get(mention[:2]):
            said.discard(waiting.pop(0))
            gold.discard(mention)
            pairs += 1
    return pairs


def _pair_overlapping(gold: set[Mention], said: set[Mention], fit: Callable[[Mention, Mention], bool]) -> int:
    """Take overlapping mentions that fit out of both, one for one, the larger overlap first; how many.

    Equal overlaps are taken by what stands earlier on either side, so that gold and said may change places.
    """
    overlaps = sorted(
        (max(g[0], s[0]) - min(g[1], s[1]), sorted((g, s)), g, s)
        for g in gold
        for s in said
        if g[0] < s[1] and s[0] < g[1] and fit(g, s)
    )
    pairs = 0
    for _, _, g, s in overlaps:
        if g in gold and s in said:
            gold.discard(g)
            said.discard(s)
            pairs += 1
    return pairs
