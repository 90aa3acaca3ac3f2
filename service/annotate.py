"""From texts and a plan to labels: the one place that knows prompt, grammar, engine, parser and confidence.

Every text comes back exactly once, as labels or as a failure that says why; nothing is dropped.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from service.confidence import Reader, combine
from service.engine import Completion, Engine, Identity, Request
from service.errors import EngineError
from service.grammar import compile_grammar, token_limit
from service.labels import Labels, Mentions, Span
from service.parse import Parsed, ParseError, parse
from service.prompt import Prompt
from service.route import Code
from service.schema import Schema
from service.words import Window, windows


@dataclass(frozen=True)
class Plan:
    """Everything that decides a label: schema, prompt, engine with model, and how it decodes. Its hash is the recipe.

    second: a prompt that reads every text as well; its labels are compared with the first's, never used.
    Raises Invalid when a prompt cannot be rendered for the schema.
    """

    schema: Schema
    prompt: Prompt
    identity: Identity
    second: Prompt | None = None

    def __post_init__(self) -> None:
        for one in self.prompts:
            one.messages(windows("")[0], self.schema)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        return (self.prompt,) if self.second is None else (self.prompt, self.second)

    @cached_property
    def body(self) -> dict[str, Any]:
        return {
            "schema": {"name": self.schema.name, "version": self.schema.version, "sha256": self.schema.sha256},
            "prompt": _named(self.prompt),
            "engine": asdict(self.identity),
            "decoding": {"method": "greedy", "grammar": "positions.1", "wire": self.prompt.wire},
        } | ({"second_prompt": _named(self.second)} if self.second else {})

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.body, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Annotated:
    """truncated: an answer was cut at the token limit, so mentions may be missing. tokens: output tokens spent.

    second: what the plan's second prompt said.
    """

    labels: Labels
    truncated: bool = False
    tokens: int = 0
    second: Labels | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a text has no labels. retryable: the engine was at fault, and the same text may succeed later."""

    code: Code
    detail: str
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class _Piece:
    """One window of one text, to be read with one prompt."""

    text: int
    prompt: Prompt
    window: Window


@dataclass(frozen=True, slots=True)
class _Read:
    window: Window
    parsed: Parsed
    reader: Reader


async def annotate(texts: Sequence[str], plan: Plan, engine: Engine) -> AsyncIterator[tuple[int, Annotated | Failure]]:
    """Yield (index, labels or failure) for each text exactly once, in the order they finish.

    A text longer than a window is read in several; its choices are the weighted mean of theirs.
    """
    # In a thread: a long text takes long to cut and to write grammars for, and others wait on this event loop.
    pieces, requests = await asyncio.to_thread(_prepare, texts, plan)
    waiting = Counter(piece.text for piece in pieces)
    answers: dict[int, list[tuple[_Piece, _Read | Failure]]] = {index: [] for index in waiting}
    async for number, answer in engine.complete(requests):
        piece = pieces[number]
        answers[piece.text].append((piece, _read(answer, piece, plan.schema)))
        if len(answers[piece.text]) == waiting[piece.text]:
            yield piece.text, _join(answers.pop(piece.text), plan)


def _prepare(texts: Sequence[str], plan: Plan) -> tuple[list[_Piece], list[Request]]:
    pieces = [
        _Piece(index, prompt, window)
        for prompt in plan.prompts  # all of one prompt first: engines share its beginning
        for index, text in enumerate(texts)
        for window in windows(text)
    ]
    return pieces, [request(plan.schema, piece.prompt, piece.window) for piece in pieces]


def request(schema: Schema, prompt: Prompt, window: Window) -> Request:
    """What the engine is asked for one window."""
    return Request(
        messages=prompt.messages(window, schema),
        grammar=compile_grammar(schema, window, prompt.open_wire(schema)),
        max_tokens=token_limit(schema, window),
    )


def _read(answer: Completion | EngineError, piece: _Piece, schema: Schema) -> _Read | Failure:
    if isinstance(answer, EngineError):
        detail = f"{answer.message} {answer.hint}".strip()
        return Failure(Code.failed, detail, retryable=answer.retryable)
    wire = piece.prompt.open_wire(schema)
    cut = answer.finish == "length"
    try:
        parsed = parse(answer.text, piece.window, schema, wire, cut=cut)
    except ParseError as error:
        code = Code.truncated if cut else Code.ungrounded
        return Failure(code, f"the answer is not one that the grammar allows: {error}")
    return _Read(piece.window, parsed, Reader(answer, parsed, schema, wire))


def _join(answers: Sequence[tuple[_Piece, _Read | Failure]], plan: Plan) -> Annotated | Failure:
    """The outcome of a text from its windows' by each prompt."""
    ordered = sorted(answers, key=lambda answer: answer[0].window.offset)
    outcomes = [
        _assemble([read for piece, read in ordered if piece.prompt is one], plan.schema) for one in plan.prompts
    ]
    failed = next((outcome for outcome in outcomes if isinstance(outcome, Failure)), None)
    if failed:
        return failed
    first, *second = (outcome for outcome in outcomes if isinstance(outcome, Annotated))
    if not second:
        return first
    return replace(first, second=second[0].labels, tokens=first.tokens + second[0].tokens)


def _assemble(parts: Sequence[_Read | Failure], schema: Schema) -> Annotated | Failure:
    """The labels of a text from those of its windows; a text with one failed window has failed."""
    read = [part for part in parts if isinstance(part, _Read)]
    if len(read) < len(parts):
        return next(part for part in parts if isinstance(part, Failure))
    weights = [max(1, len(part.window.words)) for part in read]
    choices = {
        task.name: combine(task, [part.reader.choice(part.parsed.choices[index]) for part in read], weights)
        for index, task in enumerate(schema.choices)
    }
    mentions = {}
    if schema.spans:
        spans = tuple(span for part in read for span in _spans(part))
        mentions[schema.spans.name] = Mentions(spans=spans, complete=math.prod(part.reader.complete() for part in read))
    return Annotated(
        labels=Labels(choices=choices, mentions=mentions),
        truncated=not all(part.parsed.whole for part in read),
        tokens=sum(len(part.reader.completion.tokens) for part in read),
    )


def _named(prompt: Prompt) -> dict[str, Any]:
    return {"name": prompt.name, "version": prompt.version, "sha256": prompt.sha256}


def _spans(part: _Read) -> list[Span]:
    offset = part.window.offset
    return [
        Span(
            start=mention.start + offset,
            end=mention.end + offset,
            label=mention.label,
            text=part.window.text[mention.start : mention.end],
            confidence=part.reader.mention(mention),
        )
        for mention in part.parsed.mentions
    ]
