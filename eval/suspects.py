"""Labels that were given although something that is usually right was sure of another: worth a second look."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

USES = 5  # of a label, below which nobody knows how sure of it is usual


@dataclass(frozen=True, slots=True)
class Suspect:
    """The label given to text number `index`, and the one that is likelier.

    probability, own: of the likely and of the given label, in [0, 1]. usual: how probable the likely label is on
    average where it was given; `probability` is at least that.
    """

    index: int
    given: str
    likely: str
    probability: float
    own: float
    usual: float


def suspects(given: Sequence[str], probabilities: Sequence[Mapping[str, float]]) -> tuple[Suspect, ...]:
    """Confident learning: the labels that are probably errors, the surest first.

    given: shape (n,), one label a text. probabilities: shape (n,), what a model that never saw these labels makes of
    each; a label that is absent has 0. A text is suspect where some other label is likelier than the given one, and at
    least as likely as is usual for texts that were given it: each label has its own threshold, so that a model that is
    always unsure of one does not hide its errors. Labels with fewer than USES texts have none. Ordered by the distance
    of the two probabilities, ties by place. No texts: nothing. Raises ValueError for unequal lengths.
    Source: Northcutt, Jiang and Chuang (2021), Confident Learning, equations 1 and 2; ranked by normalized margin as
    cleanlab does.
    """
    own: dict[str, list[float]] = defaultdict(list)
    for label, stated in zip(given, probabilities, strict=True):
        own[label].append(stated.get(label, 0.0))
    usual = {label: sum(found) / len(found) for label, found in own.items() if len(found) >= USES}
    found = []
    for index, (label, stated) in enumerate(zip(given, probabilities, strict=True)):
        sure = {other: p for other, p in stated.items() if other in usual and p >= usual[other]}
        likely = max(sorted(sure), key=lambda other: sure[other], default=label)
        if likely != label and sure[likely] > stated.get(label, 0.0):
            found.append(Suspect(index, label, likely, sure[likely], stated.get(label, 0.0), usual[likely]))
    return tuple(sorted(found, key=lambda one: (one.own - one.probability, one.index)))
