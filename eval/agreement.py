"""How far two readings of the same texts agree: choices, and mentions.

Sequences in, finite numbers out. A measure that the data cannot give is None, and `notes` says why under its name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_array
from sklearn.metrics import cohen_kappa_score

from eval.scores import Estimate, Numbers, bracket, proportion, ratio, resampled

Mention = tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class LabelAgreement:
    """One label. gold: times it stands in gold, said: times it was said, agreed: times both.

    precision = agreed / said, recall = agreed / gold, f1 = 2 agreed / (gold + said); None where divided by 0.
    """

    label: str
    gold: int
    said: int
    agreed: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True, slots=True)
class ChoiceAgreement:
    """n texts, of which `agreed` have the same label in both. All measures: higher is better.

    exact: share of texts with the same label, in [0, 1], with Wilson's interval.
    kappa: agreement beyond chance, in [-1, 1]; 0 is what chance gives. Symmetric in the two readings.
    macro_f1: mean F1 over the labels that occur in either, in [0, 1], with a bootstrap interval over texts.
    labels: in alphabetical order, those that occur in either.
    """

    n: int
    agreed: int
    exact: Estimate | None
    kappa: float | None
    macro_f1: Estimate | None
    labels: tuple[LabelAgreement, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpanAgreement:
    """n texts with `gold` and `said` mentions, of which `agreed` have the same start, end and label.

    exact: share of texts whose mentions agree one and all, with Wilson's interval; a text without any on both sides
    agrees. precision, recall, f1: strict, over all mentions of all texts (micro), with a bootstrap interval over texts,
    since the mentions of one text are not independent.
    gold = agreed + wrong_label + wrong_boundary + missed; said = agreed + wrong_label + wrong_boundary + spurious.
    wrong_label: the same place under another label. wrong_boundary: the same label at an overlapping place.
    Another label at another place, overlapping or not, is one missed and one spurious.
    """

    n: int
    gold: int
    said: int
    agreed: int
    missed: int
    spurious: int
    wrong_label: int
    wrong_boundary: int
    exact: Estimate | None
    precision: Estimate | None
    recall: Estimate | None
    f1: Estimate | None
    labels: tuple[LabelAgreement, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)


def choice_agreement(gold: Sequence[str], said: Sequence[str]) -> ChoiceAgreement:
    """Compare one label a text with another.

    gold, said: shape (n,), the label of each text in the same order; the order of the texts plays no part.
    No texts: everything is None, with a note. One label only on both sides: exact match is stated, with its interval;
    kappa and macro F1 are None, since a reading that cannot err proves nothing. One label only on one side: kappa is 0
    whatever stands on the other, and a note says so. A label that is in gold and never said counts with F1 0.
    Raises ValueError for unequal lengths.
    Sources: Cohen (1960) through sklearn.metrics.cohen_kappa_score; macro F1 as in sklearn.metrics.f1_score.
    """
    pairs = sorted(Counter(zip(gold, said, strict=True)).items())
    agreed = sum(count for (g, s), count in pairs if g == s)
    if not pairs:
        return ChoiceAgreement(0, 0, None, None, None, notes=dict.fromkeys(("exact", "kappa", "macro_f1"), "no texts"))
    labels = _by_label(
        _tally((g, count) for (g, _), count in pairs),
        _tally((s, count) for (_, s), count in pairs),
        _tally((g, count) for (g, s), count in pairs if g == s),
    )
    kappa, macro, notes = None, None, _one_label(gold, said)
    if len(labels) > 1:
        kappa = max(-1.0, min(1.0, float(cohen_kappa_score(gold, said))))
        macro = _macro_f1([label.label for label in labels], pairs)
    return ChoiceAgreement(len(gold), agreed, proportion(agreed, len(gold)), kappa, macro, labels, notes)


def span_agreement(gold: Sequence[Collection[Mention]], said: Sequence[Collection[Mention]]) -> SpanAgreement:
    """Compare the mentions of each text with others of the same text.

    gold, said: shape (n,), for each text its mentions (start, end, label), end exclusive; a mention that stands twice
    in one text counts once, and the order of texts and of mentions plays no part.
    No mention on either side: all measures are None, with a note. None said: precision is None and F1 is 0;
    none in gold: recall is None and F1 is 0. Where several pairings of one overlapping mention are possible, the larger
    overlap is taken first, then the earlier in the text. Raises ValueError for unequal lengths.
    Sources: strict matching of CoNLL-2003 (Tjong Kim Sang and De Meulder); the error classes follow MUC-5
    (Chinchor and Sundheim 1993).
    """
    texts = [(set(g), set(s)) for g, s in zip(gold, said, strict=True)]
    here = Counter(label for g, _ in texts for _, _, label in g)
    there = Counter(label for _, s in texts for _, _, label in s)
    both = Counter(label for g, s in texts for _, _, label in g & s)
    missed = spurious = relabelled = moved = 0
    for g, s in texts:
        if g != s:
            only_gold, only_said = g - s, s - g
            relabelled += _pair_same_place(only_gold, only_said)
            moved += _pair_same_label(only_gold, only_said)
            missed += len(only_gold)
            spurious += len(only_said)
    precision, recall, f1, notes = _span_scores(texts)
    exact = proportion(sum(g == s for g, s in texts), len(texts)) if here or there else None
    return SpanAgreement(
        n=len(texts),
        gold=here.total(),
        said=there.total(),
        agreed=both.total(),
        missed=missed,
        spurious=spurious,
        wrong_label=relabelled,
        wrong_boundary=moved,
        exact=exact,
        precision=precision,
        recall=recall,
        f1=f1,
        labels=_by_label(here, there, both),
        notes=notes,
    )


def _tally(counted: Iterable[tuple[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for label, count in counted:
        total[label] += count
    return total


def _by_label(gold: Counter[str], said: Counter[str], agreed: Counter[str]) -> tuple[LabelAgreement, ...]:
    return tuple(
        LabelAgreement(
            label=label,
            gold=gold[label],
            said=said[label],
            agreed=agreed[label],
            precision=agreed[label] / said[label] if said[label] else None,
            recall=agreed[label] / gold[label] if gold[label] else None,
            f1=2 * agreed[label] / (gold[label] + said[label]),
        )
        for label in sorted(gold.keys() | said.keys())
    )


def _one_label(gold: Sequence[str], said: Sequence[str]) -> dict[str, str]:
    """Notes for readings with one label only."""
    here, there = set(gold), set(said)
    if len(here | there) == 1:
        alone = f"{gold[0]!r} is the only label on both sides: nothing shows that another would have been told apart"
        return {"kappa": alone, "macro_f1": alone}
    sides = [name for name, labels in (("gold has", here), ("what was said has", there)) if len(labels) == 1]
    return {"kappa": f"{sides[0]} one label only, so that kappa is 0 whatever the other side has"} if sides else {}


def _macro_f1(labels: list[str], pairs: list[tuple[tuple[str, str], int]]) -> Estimate:
    """Over the kinds of (gold, said) pair: F1 of a label needs only how often each kind was drawn."""
    at = {label: i for i, label in enumerate(labels)}
    kinds = np.arange(len(pairs))
    gold = np.array([at[g] for (g, _), _ in pairs])
    said = np.array([at[s] for (_, s), _ in pairs])
    shape = (len(pairs), len(labels))
    either = csr_array((np.ones(2 * len(pairs)), (np.tile(kinds, 2), np.concatenate([gold, said]))), shape=shape)
    same = kinds[gold == said]
    both = csr_array((np.full(len(same), 2.0), (same, gold[same])), shape=shape)

    def macro(weights: Numbers) -> Numbers:
        return np.asarray(np.nanmean(ratio(weights @ both, weights @ either), axis=1))

    counts = [count for _, count in pairs]
    value = float(macro(np.array([counts], dtype=np.float64))[0])
    return bracket(value, resampled(counts, macro), sum(counts))


def _span_scores(
    texts: Sequence[tuple[set[Mention], set[Mention]]],
) -> tuple[Estimate | None, Estimate | None, Estimate | None, dict[str, str]]:
    """Precision, recall and F1 over the kinds of text: how many agreed, are in gold, were said."""
    kinds = sorted(Counter((len(g & s), len(g), len(s)) for g, s in texts if g or s).items())
    counts = [count for _, count in kinds]
    agreed, gold, said = np.array([kind for kind, _ in kinds], dtype=np.float64).reshape(-1, 3).T

    def estimate(numerator: Numbers, denominator: Numbers) -> Estimate | None:
        weights = np.array([counts], dtype=np.float64)
        if not (weights @ denominator).sum():
            return None
        value = float(ratio(weights @ numerator, weights @ denominator)[0])
        resamples = resampled(counts, lambda drawn: ratio(drawn @ numerator, drawn @ denominator))
        return bracket(value, resamples, sum(c for c, d in zip(counts, denominator, strict=True) if d))

    precision, recall, f1 = estimate(agreed, said), estimate(agreed, gold), estimate(2 * agreed, gold + said)
    if f1 is None:
        why = "no mention on either side" if texts else "no texts"
        return None, None, None, dict.fromkeys(("exact", "precision", "recall", "f1"), why)
    notes = {"precision": "no mention was said"} if precision is None else {}
    return precision, recall, f1, notes | ({"recall": "no mention in gold"} if recall is None else {})


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


def _pair_same_label(gold: set[Mention], said: set[Mention]) -> int:
    """Take overlapping mentions with the same label out of both, one for one, the larger overlap first; how many."""
    overlaps = sorted(
        (max(g[0], s[0]) - min(g[1], s[1]), g, s)
        for g in gold
        for s in said
        if g[2] == s[2] and g[0] < s[1] and s[0] < g[1]
    )
    pairs = 0
    for _, g, s in overlaps:
        if g in gold and s in said:
            gold.discard(g)
            said.discard(s)
            pairs += 1
    return pairs
