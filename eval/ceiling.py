"""How far people agree among themselves, and the model with the same people: the ceiling of what can be reached.

As in `agreement`: sequences in, finite numbers out; None with a note where the data cannot tell; intervals of 95 %.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from eval.agreement import Mention, beyond_chance, cohen, krippendorff_alpha
from eval.scores import Estimate, Numbers, bracket_difference, column, columns, ratio, resampled, shares


@dataclass(frozen=True, slots=True)
class RaterPair:
    """Two people on the n texts that both read. score: Cohen's kappa of choices, strict F1 of mentions."""

    first: str
    second: str
    n: int
    score: Estimate | None


@dataclass(frozen=True, slots=True)
class ChoiceCeiling:
    """What people reach against one another on n texts that two or more of them read, and the model against them.

    A case is one person's label of one text, held against the label that most of the others gave it; `tied` cases,
    where the others have no such label, are left out. people: share of cases in which the person says what most others
    say; model: share in which the model does; both in [0, 1], on the same cases. difference: model less people, in
    [-1, 1]; people are the ceiling as far as it is not above 0. people_kappa, model_kappa: the same beyond chance.
    alpha: Krippendorff's, of the people alone. pairs: Cohen's kappa of every two people with a text in common, by name.
    """

    n: int
    cases: int
    tied: int
    people: Estimate | None
    model: Estimate | None
    difference: Estimate | None
    people_kappa: Estimate | None
    model_kappa: Estimate | None
    alpha: Estimate | None
    pairs: tuple[RaterPair, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpanCeiling:
    """What people reach against one another on n texts that two or more of them read, and the model against them.

    A case is one person's mentions of one text, held against those that more than half of the others marked, with the
    same start, end and label; of each label, the others are those who were asked for it. people: strict F1 over all
    cases; model: of the model's mentions in the people's place; both in [0, 1]. difference: model less people, in
    [-1, 1]. f1: strict F1 over all pairs of people and all texts; pairs: of each two, by name.
    """

    n: int
    cases: int
    people: Estimate | None
    model: Estimate | None
    difference: Estimate | None
    f1: Estimate | None
    pairs: tuple[RaterPair, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Reader:
    """What one person marked in a text. asked: for mentions of which labels; None for all."""

    marked: set[Mention]
    asked: set[str] | None

    def judged(self, label: str) -> bool:
        return self.asked is None or label in self.asked

    def shares(self, other: _Reader) -> bool:
        """Whether there is a label that both were asked for."""
        if self.asked is None or other.asked is None:
            return self.asked != set() and other.asked != set()
        return bool(self.asked & other.asked)


def choice_ceiling(people: Sequence[Mapping[str, str]], said: Sequence[str]) -> ChoiceCeiling:
    """How far people agree with one another about one label a text, and the model with the same people.

    people: shape (n,), for each text who read it, with the label given; not everybody reads everything. said: shape
    (n,), the model's labels. Texts that fewer than two people read are left out. Whatever stays undefined is None with
    a note. Intervals: bootstrap over texts, since one text has several cases. Raises ValueError for unequal lengths.
    Source: each person is left out in turn, and model and person held against the rest, as in the alternative annotator
    test (Calderon, Reichart and Dror 2025).
    """
    texts = [(list(read.values()), label) for read, label in zip(people, said, strict=True) if len(read) > 1]
    held = Counter((tuple(sorted(_against_most(labels))), label) for labels, label in texts)
    kinds = sorted((kind, count) for kind, count in held.items() if kind[0])
    counts = [count for _, count in kinds]
    persons = [list(cases) for (cases, _), _ in kinds]
    models = [[(most, label) for most, _ in cases] for (cases, label), _ in kinds]
    size, right, hit = (column(map(len, persons)), column(map(_same, persons)), column(map(_same, models)))
    cases = sum(count * len(kind[0]) for kind, count in kinds)
    by_people, by_model = shares(counts, (right, size), (hit, size))
    measures = {
        "people": by_people,
        "model": by_model,
        "difference": _gap(counts, (hit, size), (right, size)),
        "people_kappa": beyond_chance(cohen(persons), counts),
        "model_kappa": beyond_chance(cohen(models), counts),
        "alpha": krippendorff_alpha([labels for labels, _ in texts]),
    }
    why = "in every case the others are tied" if texts else "no text was read by two people"
    return ChoiceCeiling(
        n=len(texts),
        cases=cases,
        tied=sum(len(labels) for labels, _ in texts) - cases,
        **measures,
        pairs=tuple(_choice_pairs(people)),
        notes=_undefined(measures, "there is one label only" if cases else why),
    )


def span_ceiling(
    people: Sequence[Mapping[str, Collection[Mention]]],
    said: Sequence[Collection[Mention]],
    asked: Sequence[Mapping[str, Collection[str]]] | None = None,
) -> SpanCeiling:
    """How far people agree with one another about the mentions of each text, and the model with the same people.

    people: shape (n,), for each text who read it, with the mentions marked, maybe none. said: shape (n,), the model's
    mentions. asked: shape (n,), the labels that a reader was asked for; who is not named was asked for all. Two people
    are compared on the labels that both were asked for, a person and most others on those that the person and another
    were, and the model, in the person's place, on the same. Otherwise as choice_ceiling.
    F1 between two people is symmetric, and is what kappa tends to where, as in running text, the places without a
    mention cannot be counted: Hripcsak and Rothschild (2005).
    Raises ValueError for unequal lengths, and for a mention with a label that its reader was not asked for.
    """
    limits = [{}] * len(people) if asked is None else asked
    readers = [_readers(read, limit) for read, limit in zip(people, limits, strict=True)]
    texts = [
        (list(read.values()), set(mentions)) for read, mentions in zip(readers, said, strict=True) if _compared(read)
    ]
    kinds = Counter(_span_cases(read, mentions) for read, mentions in texts)
    counts, (person, persons, model, models, pair, pairs) = columns(kinds.items(), 6)
    by_people, by_model, f1 = shares(counts, (person, persons), (model, models), (pair, pairs))
    gap = _gap(counts, (model, models), (person, persons))
    measures = {"people": by_people, "model": by_model, "difference": gap, "f1": f1}
    return SpanCeiling(
        n=len(texts),
        cases=sum(map(_compared, readers)),
        **measures,
        pairs=tuple(_span_pairs(readers)),
        notes=_undefined(measures, "no mention on either side" if texts else "no text was read by two people"),
    )


def _against_most(labels: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What most of the others said and what each said; not those whose others have no such label."""
    votes = Counter(labels)
    for label in labels:
        (most, count), *rest = (votes - Counter([label])).most_common(2)
        if not rest or rest[0][1] < count:
            yield most, label


def _readers(people: Mapping[str, Collection[Mention]], asked: Mapping[str, Collection[str]]) -> dict[str, _Reader]:
    read = {who: _Reader(set(marked), set(asked[who]) if who in asked else None) for who, marked in people.items()}
    for who, one in read.items():
        if beyond := {label for _, _, label in one.marked if not one.judged(label)}:
            raise ValueError(f"{who} marked {', '.join(sorted(beyond))}, but was not asked for it")
    return read


def _compared(readers: Mapping[str, _Reader]) -> int:
    """How many of a text's readers can be held against another."""
    return sum(any(one.shares(other) for other in readers.values() if other is not one) for one in readers.values())


def _span_cases(people: Sequence[_Reader], said: set[Mention]) -> tuple[int, ...]:
    """Twice what agrees and how many mentions there are: person and most others, model and the same, two people."""
    votes = Counter(mention for one in people for mention in one.marked)
    judges = {label: sum(one.judged(label) for one in people) for _, _, label in votes.keys() | said}
    person = persons = model = models = 0
    for one in people:
        held = {label for label, n in judges.items() if n > 1 and one.judged(label)}
        own, theirs = ({mention for mention in side if mention[2] in held} for side in (one.marked, said))
        most = {
            mention
            for mention, n in votes.items()
            if mention[2] in held and 2 * (n - (mention in own)) > judges[mention[2]] - 1
        }
        person, persons = person + 2 * len(most & own), persons + len(most) + len(own)
        model, models = model + 2 * len(most & theirs), models + len(most) + len(theirs)
    pair = sum(n * (n - 1) for n in votes.values())
    return person, persons, model, models, pair, sum(n * (judges[mention[2]] - 1) for mention, n in votes.items())


def _choice_pairs(people: Sequence[Mapping[str, str]]) -> Iterator[RaterPair]:
    shared: dict[tuple[str, str], Counter[tuple[str, str]]] = defaultdict(Counter)
    for read in people:
        for first, second in combinations(sorted(read), 2):
            shared[first, second][read[first], read[second]] += 1
    for (first, second), pairs in sorted(shared.items()):
        kinds = sorted(pairs)
        score = beyond_chance(cohen([[kind] for kind in kinds]), [pairs[kind] for kind in kinds])
        yield RaterPair(first, second, pairs.total(), score)


def _span_pairs(texts: Sequence[Mapping[str, _Reader]]) -> Iterator[RaterPair]:
    shared: dict[tuple[str, str], Counter[tuple[int, int]]] = defaultdict(Counter)
    for read in texts:
        for first, second in combinations(sorted(read), 2):
            one, other = read[first], read[second]
            if one.shares(other):
                here = {mention for mention in one.marked if other.judged(mention[2])}
                there = {mention for mention in other.marked if one.judged(mention[2])}
                shared[first, second][2 * len(here & there), len(here) + len(there)] += 1
    for (first, second), kinds in sorted(shared.items()):
        counts, (agreed, size) = columns(kinds.items(), 2)
        yield RaterPair(first, second, kinds.total(), *shares(counts, (agreed, size)))


def _gap(counts: Sequence[int], one: tuple[Numbers, Numbers], other: tuple[Numbers, Numbers]) -> Estimate | None:
    """One share (part, whole) less another on the same texts; None where either is nothing."""

    def gap(drawn: Numbers) -> Numbers:
        return ratio(drawn @ one[0], drawn @ one[1]) - ratio(drawn @ other[0], drawn @ other[1])

    value = float(gap(np.array([counts], dtype=np.float64))[0])
    return bracket_difference(value, resampled(counts, gap), sum(counts)) if np.isfinite(value) else None


def _same(pairs: Iterable[tuple[str, str]]) -> int:
    return sum(one == other for one, other in pairs)


def _undefined(measures: Mapping[str, Estimate | None], why: str) -> dict[str, str]:
    return {name: why for name, measure in measures.items() if measure is None}
