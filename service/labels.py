"""What is said of one text: spans, choices, and exactly where and how sure.

Offsets are Unicode code points, end exclusive, in the text exactly as received:
`text[span.start:span.end] == span.text`, always.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from service.errors import Invalid
from service.schema import ChoiceTask, Schema

Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Span(_Frozen):
    """One mention. `confidence`: probability of its boundaries and label; None where a person said it.

    probability, here and below: of agreeing with people, what calibration makes of the confidence; None where none was.
    """

    start: int = Field(ge=0)
    end: int = Field(gt=0)
    label: str
    text: str
    confidence: Probability | None = None
    probability: Probability | None = None


class Alternative(_Frozen):
    label: str
    confidence: Probability


class Choice(_Frozen):
    """The chosen label, its probability among the labels of the task, and the runners-up, best first."""

    label: str
    confidence: Probability | None = None
    alternatives: tuple[Alternative, ...] = ()
    probability: Probability | None = None

    @property
    def margin(self) -> float | None:
        """Probability of the label less that of the best runner-up, in [-1, 1]."""
        if self.confidence is None:
            return None
        return self.confidence - max((a.confidence for a in self.alternatives), default=0.0)


class Mentions(_Frozen):
    """All spans of a text in reading order, never overlapping. `complete`: probability that none was missed.

    probability: that they agree with people one and all.
    """

    spans: tuple[Span, ...] = ()
    complete: Probability | None = None
    probability: Probability | None = None

    @property
    def confidence(self) -> float | None:
        """Of all of it: the product of the mentions' and of that none was missed; None where one is not stated."""
        stated = [self.complete, *(span.confidence for span in self.spans)]
        return math.prod(x for x in stated if x is not None) if None not in stated else None

    @property
    def places(self) -> frozenset[tuple[int, int, str]]:
        """(start, end, label) of each mention: what two readings of a text are compared by."""
        return frozenset((span.start, span.end, span.label) for span in self.spans)


class Labels(_Frozen):
    """Everything said of one text: a Choice for each choice task, Mentions for each spans task, by task name."""

    choices: dict[str, Choice] = Field(default_factory=dict)
    mentions: dict[str, Mentions] = Field(default_factory=dict)


def utf16_offsets(text: str, spans: Iterable[Span]) -> list[tuple[int, int]]:
    """The spans' offsets in UTF-16 code units, as a browser counts them, in the order given."""
    ordered = sorted({offset for span in spans for offset in (span.start, span.end)})
    units: dict[int, int] = {}
    position = total = 0
    for offset in ordered:
        total += len(text[position:offset].encode("utf-16-le")) // 2
        units[offset] = total
        position = offset
    return [(units[span.start], units[span.end]) for span in spans]


def to_row(labels: Labels, text: str) -> dict[str, Any]:
    """The labels as users see them, one key a task, and "complete", the probability that no mention was missed."""
    row: dict[str, Any] = {}
    for task, choice in labels.choices.items():
        row[task] = choice.model_dump(exclude_none=True)
    for task, mentions in labels.mentions.items():
        row[task] = [
            span.model_dump(exclude_none=True) | {"start_utf16": start, "end_utf16": end}
            for span, (start, end) in zip(mentions.spans, utf16_offsets(text, list(mentions.spans)), strict=True)
        ]
    stated = [mentions.complete for mentions in labels.mentions.values() if mentions.complete is not None]
    return row | ({"complete": min(stated)} if stated else {})


def plain(labels: Labels) -> dict[str, Any]:
    """The labels alone, as in a gold file: a choice is its label, a mention its start, end, label and text.

    `from_row` reads it back to the same labels, without the confidences.
    """
    row: dict[str, Any] = {task: choice.label for task, choice in labels.choices.items()}
    for task, mentions in labels.mentions.items():
        row[task] = [span.model_dump(include={"start", "end", "label", "text"}) for span in mentions.spans]
    return row


def from_row(row: Mapping[str, Any], text: str, schema: Schema, where: str = "") -> Labels:
    """Labels from gold or from a person: `{"sentiment": "negative", "entities": [{"start", "end", "label"}]}`.

    A choice is its label, alone or under "label"; a spans task is a list; a task that is absent was not labelled.
    Raises Invalid, naming the field, for a label that the schema lacks, offsets outside the text, a "text"
    that is not what the offsets say, and spans that overlap.
    """
    choices: dict[str, Choice] = {}
    mentions: dict[str, Mentions] = {}
    for task in schema.tasks:
        value = row.get(task.name)
        if value is None:
            continue
        field = f"{where}{task.name}"
        known = {label.name for label in task.labels}
        if isinstance(task, ChoiceTask):
            label = value.get("label") if isinstance(value, Mapping) else value
            _require(label in known if isinstance(label, str) else False, field, f"a label of the task, not {label!r}")
            choices[task.name] = Choice(label=label)
        else:
            _require(isinstance(value, list), field, "a list of spans")
            spans = [_span(entry, text, known, f"{field}[{i}]") for i, entry in enumerate(value)]
            spans.sort(key=lambda span: (span.start, span.end))
            for before, after in pairwise(spans):
                _require(
                    before.end <= after.start,
                    field,
                    f"spans that do not overlap; {before.text!r} and {after.text!r} do",
                )
            mentions[task.name] = Mentions(spans=tuple(spans))
    return Labels(choices=choices, mentions=mentions)


def _span(entry: Any, text: str, known: set[str], field: str) -> Span:
    _require(isinstance(entry, Mapping), field, "an object with start, end and label")
    start, end, label = entry.get("start"), entry.get("end"), entry.get("label")
    exact = type(start) is int and type(end) is int and 0 <= start < end <= len(text)
    _require(exact, field, f"code point offsets with 0 <= start < end <= {len(text)}, not {start!r} to {end!r}")
    _require(
        label in known if isinstance(label, str) else False, f"{field}.label", f"a label of the task, not {label!r}"
    )
    surface = text[start:end]
    stated = entry.get("text", surface)
    _require(stated == surface, f"{field}.text", f"{surface!r}, which stands at {start} to {end}, not {stated!r}")
    return Span(start=start, end=end, label=label, text=surface)


def _require(holds: bool, field: str, expected: str) -> None:
    if not holds:
        raise Invalid(f"{field}: expected {expected}", {"field": field})
