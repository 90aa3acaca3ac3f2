"""How sure the model was, read from the constrained distribution.

All numbers come from the log-probabilities after the grammar's mask, so they are probabilities among valid
answers. A choice has the probability of its label, and the runners-up have theirs; a mention has that of its
boundaries and label; an item that of stopping where the model stopped, i.e. that nothing was missed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

from service.engine import Completion
from service.labels import Alternative, Choice, Labels
from service.parse import Parsed, ParsedChoice, ParsedMention
from service.route import Calibrators, Standard
from service.schema import ChoiceTask, Schema
from service.wire import Wire

if TYPE_CHECKING:
    from eval.calibration import Calibrator

ALTERNATIVES = 5  # runners-up kept with a choice


@dataclass(frozen=True)
class Reader:
    """The confidences of one completion. `parsed` must come from the completion's own text."""

    completion: Completion
    parsed: Parsed
    schema: Schema
    wire: Wire

    def choice(self, choice: ParsedChoice) -> dict[str, float]:
        """Probability of each label of the task, by name; they sum to at most 1.

        The answer's path gives its label exactly. Where the path could have left it, the alternative tokens
        give the mass of the labels that begin that way; labels that share such a beginning share its mass
        equally, since the model never went there. Mass outside the reported alternatives is nobody's.
        """
        text = self.completion.text
        before = text[: choice.open].encode()
        opening = self.wire.choice_open(choice.index)
        closing = self.wire.choice_close()
        endings = {x.name: before + (opening + x.shown + closing).encode() for x in choice.task.labels}
        following = self._following(choice)
        masses = dict.fromkeys(endings, 0.0)
        path, reach = b"", 1.0
        for token in self.completion.tokens:
            if len(path) + len(token.data) <= len(before) and token.data:
                path += token.data
                continue
            for data, logprob in token.top:
                if data == token.data:
                    continue
                able = _compatible(path + data, endings, following, ended=not data)
                for name in able:
                    masses[name] += reach * math.exp(logprob) / len(able)
            path += token.data
            reach *= math.exp(token.logprob)
            if len(_compatible(path, endings, following, ended=not token.data)) <= 1:
                break
        masses[choice.label] += reach
        return {name: min(1.0, mass) for name, mass in masses.items()}

    def mention(self, mention: ParsedMention) -> float:
        """Probability of the mention: that one is opened, its boundaries, and its label."""
        text = self.completion.text
        begin, end = len(text[: mention.open].encode()), len(text[: mention.close].encode())
        starts = accumulate((len(token.data) for token in self.completion.tokens), initial=0)
        logprob = sum(
            token.logprob
            for start, token in zip(starts, self.completion.tokens, strict=False)
            if begin <= start < end and token.data
        )
        return min(1.0, math.exp(logprob))

    def complete(self) -> float:
        """Probability of stopping after the last mention rather than opening another; 0 where the answer was cut."""
        last = self.completion.tokens[-1] if self.completion.tokens else None
        if last is None or last.data or not self.parsed.whole:
            return 0.0
        closing = len(self.wire.end().encode())
        logprob, size = last.logprob, 0
        for token in reversed(self.completion.tokens[:-1]):  # the literals that close the answer are part of stopping
            if size >= closing:
                break
            size += len(token.data)
            logprob += token.logprob
        return min(1.0, math.exp(logprob))

    def _following(self, choice: ParsedChoice) -> bytes:
        """The literal after the field, which tells a label from a longer one that begins with it."""
        if choice.index + 1 < len(self.schema.choices):
            return self.wire.choice_open(choice.index + 1).encode()
        if self.schema.spans:
            return (self.wire.mentions_open() or self.wire.mention_open(False)).encode()
        return self.wire.end().encode()


def _compatible(path: bytes, endings: Mapping[str, bytes], following: bytes, ended: bool) -> list[str]:
    """The labels that an answer beginning with `path` may still have; ended: it stops there."""
    able = []
    for name, ending in endings.items():
        if ended:
            fits = path.startswith(ending) and path[len(ending) :] in (b"", following)
        elif len(path) <= len(ending):
            fits = ending.startswith(path)
        else:
            rest = path[len(ending) :]
            fits = (
                path.startswith(ending)
                and bool(following)
                and (following.startswith(rest) or rest.startswith(following))
            )
        if fits:
            able.append(name)
    return able


def combine(task: ChoiceTask, distributions: Sequence[Mapping[str, float]], weights: Sequence[float]) -> Choice:
    """One choice for a text from those of its windows: the mean of their distributions, weighted by words."""
    total = sum(weights)
    mean = {
        label.name: sum(w * d[label.name] for d, w in zip(distributions, weights, strict=True)) / total
        for label in task.labels
    }
    best, *others = sorted(mean.items(), key=lambda entry: -entry[1])
    return Choice(
        label=best[0],
        confidence=min(1.0, best[1]),
        alternatives=tuple(Alternative(label=n, confidence=min(1.0, p)) for n, p in others[:ALTERNATIVES] if p > 0),
    )


def calibrated(labels: Labels, standard: Standard) -> Labels:
    """The labels with the probabilities that the standard's calibrators make of their confidences."""
    maps = {task: _maps(found) for task, found in standard.calibrators.items()}
    choices = {
        task: choice.model_copy(update={"probability": _mapped(maps[task][0], choice.confidence)})
        for task, choice in labels.choices.items()
        if task in maps
    }
    mentions = {}
    for task, found in labels.mentions.items():
        if task in maps:
            each, whole = maps[task]
            spans = [s.model_copy(update={"probability": _mapped(each, s.confidence)}) for s in found.spans]
            update = {"spans": tuple(spans), "probability": _mapped(whole, found.confidence)}
            mentions[task] = found.model_copy(update=update)
    return Labels(choices={**labels.choices, **choices}, mentions={**labels.mentions, **mentions})


@lru_cache(maxsize=64)
def _calibrator(data: str) -> Calibrator:
    from eval.calibration import Calibrator  # scikit-learn takes a second to import

    return Calibrator.of(json.loads(data))


def _maps(found: Calibrators) -> tuple[Calibrator, Calibrator | None]:
    return _calibrator(json.dumps(found.each)), _calibrator(json.dumps(found.whole)) if found.whole else None


def _mapped(calibrator: Calibrator | None, confidence: float | None) -> float | None:
    return None if calibrator is None or confidence is None else calibrator.probability(confidence)
