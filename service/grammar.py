"""The grammar that makes wrong output impossible, compiled from the schema and the text itself.

It is a right-linear grammar over the words w0 … wn-1 of a window, written as terminals, so that llguidance
reads the whole answer as one regular expression and no lexer has to decide where a word or a label ends
(as parser rules, a label that is the beginning of another one cannot be followed by a mention). Its states:

T i   a mention ended before word i: stop here, or open another mention at i or later
O i   a mention opens: at the first place its words occur from i on, or at a marked place
P i   an unmarked mention starts at word i or later
M i   a marked mention starts at word i or later, where its first word has stood before
E i   inside a mention, after word i: go on with word i + 1, or name the label

Positions only grow, so spans are ordered, never overlap, and the answer ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from service.schema import Schema
from service.wire import Wire, occurrences
from service.words import BARRIER, Window


def compile_grammar(schema: Schema, window: Window, wire: Wire) -> str:
    """The Lark grammar of all valid completions for the window; about 5 short terminals a word."""
    lines = ["start: ANSWER"]
    fields = []
    for index, task in enumerate(schema.choices):
        lines.append(f"C{index}: {_any(_text(label.shown) for label in task.labels)}")
        fields += [_text(wire.choice_open(index)), f"C{index}", _text(wire.choice_close())]
    if schema.spans:
        fields += [_text(wire.mentions_open()), "MENTIONS"]
        first = f"{_text(wire.mention_open(True))} O0" if window.words else ""
        lines.append(f"MENTIONS: {_optional(first)}")
        lines.append(f"LABEL: {_any(_text(label.shown) for label in schema.spans.labels)}")
        lines += _positions(window, wire)
    fields.append(_text(wire.end()))
    lines.append(f"ANSWER: {' '.join(fields)}")
    return "\n".join(lines)


def token_limit(schema: Schema, window: Window) -> int:
    """Tokens that every sensible answer fits into; one that is longer is cut and reported as truncated."""
    return 64 + 24 * len(schema.choices) + 3 * len(window.words)


def _positions(window: Window, wire: Wire) -> list[str]:
    count = len(window.words)
    words = [wire.escape(window.text[start:end]) for start, end in window.words]
    standing = occurrences(window)
    label = f"{_text(wire.mention_between)} LABEL {_text(wire.mention_close)}"
    opening = f"{_text(wire.mention_open(False))} O"
    lines = [f"T{count}: {_optional('')}"]
    marked = ""  # the nearest M from word i on
    for i in reversed(range(count)):
        lines.append(f"T{i}: {_optional(f'{opening}{i}')}")
        lines.append(f"P{i}: {_text(words[i])} E{i}{f' | P{i + 1}' if i + 1 < count else ''}")
        if standing[i] > 1:
            lines.append(f"M{i}: {_text(wire.mark(standing[i]) + words[i])} E{i}{marked}")
            marked = f" | M{i}"
        lines.append(f"O{i}: {_text(wire.mark(None))} P{i}{marked}")
        step = ""
        if i + 1 < count:
            between = window.text[window.words[i][1] : window.words[i + 1][0]]
            if not BARRIER.search(between):
                step = f" | {_text(wire.escape(between) + words[i + 1])} E{i + 1}"
        lines.append(f"E{i}: {label} T{i + 1}{step}")
    return lines


def _text(value: str) -> str:
    """A literal of the grammar: JSON's escapes, and DEL, which the grammar's reader takes for an error."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _any(alternatives: Iterable[str]) -> str:
    return " | ".join(alternatives)


def _optional(expression: str) -> str:
    return f'"" | {expression}' if expression else '""'
