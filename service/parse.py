"""From a completion back to labels: the exact inverse of the grammar, with the place of every field kept.

The parser trusts nothing: an engine that ignored its grammar is found out here, not believed.
"""

from __future__ import annotations

from dataclasses import dataclass

from service.schema import ChoiceTask, Schema, SpansTask
from service.wire import Wire, locate, occurrences, run_at
from service.words import Window


class ParseError(ValueError):
    """The completion is not one that the grammar allows; says where."""


@dataclass(frozen=True, slots=True)
class ParsedChoice:
    """open, close: code point offsets of the field in the completion, its literals included."""

    task: ChoiceTask
    index: int
    label: str
    open: int
    close: int


@dataclass(frozen=True, slots=True)
class ParsedMention:
    """start, end: code point offsets in the window's text. open, close: of the field in the completion."""

    start: int
    end: int
    label: str
    open: int
    close: int


@dataclass(frozen=True, slots=True)
class Parsed:
    choices: tuple[ParsedChoice, ...]
    mentions: tuple[ParsedMention, ...]
    whole: bool  # False: the completion was cut off, and what stands before the cut is here


def parse(completion: str, window: Window, schema: Schema, wire: Wire, cut: bool = False) -> Parsed:
    """Read a completion. cut: it was ended by the token limit, so an unfinished mention at its end is dropped.

    Raises ParseError where the completion is not in the language of the grammar.
    """
    choices = []
    position = 0
    for index, task in enumerate(schema.choices):
        begin = position
        position = _expect(completion, position, wire.choice_open(index))
        label, position = _label(completion, position, task)
        position = _expect(completion, position, wire.choice_close())
        choices.append(ParsedChoice(task, index, label, begin, position))
    mentions: list[ParsedMention] = []
    try:
        if schema.spans:
            position = _expect(completion, position, wire.mentions_open())
            position = _mentions(completion, position, window, schema.spans, wire, mentions)
        position = _expect(completion, position, wire.end())
        if position != len(completion):
            raise ParseError(f"unexpected text at {position}: {completion[position : position + 40]!r}")
    except ParseError:
        if not cut:
            raise
        return Parsed(tuple(choices), tuple(mentions), whole=False)
    return Parsed(tuple(choices), tuple(mentions), whole=not cut)


def _mentions(
    completion: str, position: int, window: Window, task: SpansTask, wire: Wire, found: list[ParsedMention]
) -> int:
    """Append the mentions from `position` on to `found`; the position after the last."""
    counts = occurrences(window)
    after = 0
    while completion.startswith(wire.mention_open(not found), position):
        begin = position
        position += len(wire.mention_open(not found))
        mark = wire.marked.match(completion, position)
        position = mark.end() if mark else _expect(completion, position, wire.mark(None))
        surface = wire.surface.match(completion, position)
        if not surface:
            raise ParseError(f"no mention with a label at {position}")
        words = _unescape(surface[1], wire)
        run = _marked_run(window, words, int(mark[1]), counts, after) if mark else locate(window, words, after)
        if run is None:
            raise ParseError(f"{words!r} is not a run of whole words where it could stand")
        label, position = _label(completion, surface.end(), task)
        position = _expect(completion, position, wire.mention_close)
        after = run[1]
        found.append(ParsedMention(window.words[run[0]][0], window.words[run[1] - 1][1], label, begin, position))
    return position


def _marked_run(window: Window, surface: str, number: int, counts: list[int], after: int) -> tuple[int, int] | None:
    """The run that reads `surface` and starts at the number-th standing of its first word."""
    for i in range(after, len(window.words)):
        start, end = window.words[i]
        first = window.text[start:end]
        if counts[i] == number and surface.startswith(first) and (run := run_at(window, surface, i)):
            return run
    return None


def _expect(completion: str, position: int, literal: str) -> int:
    if not completion.startswith(literal, position):
        raise ParseError(f"expected {literal!r} at {position}, found {completion[position : position + 20]!r}")
    return position + len(literal)


def _label(completion: str, position: int, task: ChoiceTask | SpansTask) -> tuple[str, int]:
    """The longest displayed label that stands here (a label may be the beginning of another), by its name."""
    shown = max((s for s in task.by_shown if completion.startswith(s, position)), key=len, default=None)
    if shown is None:
        raise ParseError(f"no label of {task.name} at {position}: {completion[position : position + 40]!r}")
    return task.by_shown[shown], position + len(shown)


def _unescape(text: str, wire: Wire) -> str:
    try:
        words = wire.unescape(text)
    except ValueError:
        words = ""
    if wire.escape(words) != text:
        raise ParseError(f"{text!r} is not written as a mention must be")
    return words
