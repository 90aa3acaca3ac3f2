"""The wire: how labels are written in a completion. Grammar, parser and worked examples are all made from this.

line    ` negative | refund request | Samsung = product | New York = location`
json    `{"sentiment":"negative","intent":"refund request","entities":[{"text":"Samsung","label":"product"}]}`

A mention stands for the first place, after the previous mention's end, where its words occur. Where another
place is meant, a mark says so: `=2 Samsung = product` starts at the second "Samsung" of the window. On the
line wire `=` is doubled inside a mention, so that neither mark nor separator can be taken for the text's own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from service.labels import Labels, Span
from service.schema import Schema
from service.words import BARRIER, Window


class Wire(Protocol):
    """The literals around the fields of a completion, for one schema."""

    mention_between: ClassVar[str]  # between a mention and its label
    mention_close: ClassVar[str]
    surface: ClassVar[re.Pattern[str]]  # an escaped mention and mention_between; group 1 is the mention
    marked: ClassVar[re.Pattern[str]]  # a mark; group 1 is its number

    def __init__(self, schema: Schema) -> None: ...
    def __hash__(self) -> int: ...
    def choice_open(self, index: int) -> str: ...
    def choice_close(self) -> str: ...
    def mentions_open(self) -> str: ...
    def mention_open(self, first: bool) -> str: ...
    def mark(self, occurrence: int | None) -> str: ...
    def end(self) -> str: ...
    def escape(self, text: str) -> str: ...
    def unescape(self, text: str) -> str: ...


@dataclass(frozen=True)
class Line:
    schema: Schema

    mention_between: ClassVar[str] = " = "
    mention_close: ClassVar[str] = ""
    surface: ClassVar[re.Pattern[str]] = re.compile(r"((?:==|[^=])+?) = ", re.DOTALL)
    marked: ClassVar[re.Pattern[str]] = re.compile(r"=([2-9]|[1-9][0-9]{1,3}) ")

    def choice_open(self, index: int) -> str:
        return " | " if index else " "

    def choice_close(self) -> str:
        return ""

    def mentions_open(self) -> str:
        return ""

    def mention_open(self, first: bool) -> str:
        return " " if first and not self.schema.choices else " | "

    def mark(self, occurrence: int | None) -> str:
        return "" if occurrence is None else f"={occurrence} "

    def end(self) -> str:
        return ""

    def escape(self, text: str) -> str:
        return text.replace("=", "==")

    def unescape(self, text: str) -> str:
        return text.replace("==", "=")


@dataclass(frozen=True)
class Json:
    schema: Schema

    mention_between: ClassVar[str] = '","label":"'
    mention_close: ClassVar[str] = '"}'
    surface: ClassVar[re.Pattern[str]] = re.compile(r'((?:[^"\\]|\\.)+)","label":"', re.DOTALL)
    marked: ClassVar[re.Pattern[str]] = re.compile(r'"occurrence":([2-9]|[1-9][0-9]{1,3}),"text":"')

    def choice_open(self, index: int) -> str:
        return f'{"," if index else "{"}"{self.schema.choices[index].name}":"'

    def choice_close(self) -> str:
        return '"'

    def mentions_open(self) -> str:
        spans = self.schema.spans
        return f'{"," if self.schema.choices else "{"}"{spans.name}":[' if spans else ""

    def mention_open(self, first: bool) -> str:
        return "{" if first else ",{"

    def mark(self, occurrence: int | None) -> str:
        return '"text":"' if occurrence is None else f'"occurrence":{occurrence},"text":"'

    def end(self) -> str:
        return "]}" if self.schema.spans else "}"

    def escape(self, text: str) -> str:
        return json.dumps(text, ensure_ascii=False)[1:-1]

    def unescape(self, text: str) -> str:
        return str(json.loads(f'"{text}"'))


WIRES: dict[str, type[Wire]] = {"line": Line, "json": Json}


def occurrences(window: Window) -> list[int]:
    """For each word of the window, how many times the same word has stood up to here, itself included."""
    counts: dict[str, int] = {}
    found = []
    for start, end in window.words:
        word = window.text[start:end]
        counts[word] = counts.get(word, 0) + 1
        found.append(counts[word])
    return found


def locate(window: Window, surface: str, first: int) -> tuple[int, int] | None:
    """The first run of whole words, from word index `first` on, that reads `surface`: (word, word after), or None."""
    return next((run for i in range(first, len(window.words)) if (run := run_at(window, surface, i))), None)


def run_at(window: Window, surface: str, word: int) -> tuple[int, int] | None:
    """The run of whole words that starts at index `word` and reads `surface`, or None."""
    start = window.words[word][0]
    if not surface or not window.text.startswith(surface, start) or BARRIER.search(surface):
        return None
    end = start + len(surface)
    last = next((i for i in range(word, len(window.words)) if window.words[i][1] >= end), None)
    return (word, last + 1) if last is not None and window.words[last][1] == end else None


def render(labels: Labels, window: Window, schema: Schema, wire: Wire) -> str:
    """The completion that says `labels`, spans relative to the window. Raises ValueError for what it cannot say."""
    parts = []
    for index, task in enumerate(schema.choices):
        label = task.by_name[labels.choices[task.name].label]
        parts += [wire.choice_open(index), label.shown, wire.choice_close()]
    if schema.spans:
        parts.append(wire.mentions_open())
        parts += _render_mentions(labels.mentions[schema.spans.name].spans, window, schema, wire)
    parts.append(wire.end())
    return "".join(parts)


def _render_mentions(spans: Sequence[Span], window: Window, schema: Schema, wire: Wire) -> list[str]:
    assert schema.spans is not None  # noqa: S101 - narrows the type
    counts = occurrences(window)
    starts = {start: i for i, (start, _) in enumerate(window.words)}
    ends = {end: i + 1 for i, (_, end) in enumerate(window.words)}
    parts = []
    after = 0
    for number, span in enumerate(spans):
        first, last = starts.get(span.start), ends.get(span.end)
        if first is None or last is None or not after <= first < last:
            raise ValueError(f"{span.text!r} at {span.start} is not a run of whole words after the mention before it")
        surface = window.text[span.start : span.end]
        if BARRIER.search(surface):
            raise ValueError(f"{surface!r} contains a control character, which no mention may")
        mark = None if locate(window, surface, after) == (first, last) else counts[first]
        label = schema.spans.by_name[span.label].shown
        opening = wire.mention_open(number == 0) + wire.mark(mark)
        parts.append(opening + wire.escape(surface) + wire.mention_between + label + wire.mention_close)
        after = last
    return parts
