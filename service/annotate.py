"""From texts and a plan to labels: the one place that knows prompt, grammar, engine, parser and confidence.

Every text comes back exactly once, as labels or as a failure that says why; nothing is dropped.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
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

    Raises Invalid when the prompt cannot be rendered for the schema.
    """

    schema: Schema
    prompt: Prompt
    identity: Identity

    def __post_init__(self) -> None:
        self.prompt.messages(windows("")[0], self.schema)

    @cached_property
    def body(self) -> dict[str, Any]:
        return {
            "schema": {"name": self.schema.name, "version": self.schema.version, "sha256": self.schema.sha256},
            "prompt": {"name": self.prompt.name, "version": self.prompt.version, "sha256": self.prompt.sha256},
            "engine": asdict(self.identity),
            "decoding": {"method": "greedy", "grammar": "positions.1", "wire": self.prompt.wire},
        }

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(json.dumps(self.body, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Annotated:
    """truncated: an answer was cut at the token limit, so mentions may be missing. tokens: output tokens spent."""

    labels: Labels
    truncated: bool = False
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a text has no labels. retryable: the engine was at fault, and the same text may succeed later."""

    code: Code
    detail: str
    retryable: bool = False


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
    waiting: dict[int, int] = {}
    for index, _ in pieces:
        waiting[index] = waiting.get(index, 0) + 1
    answers: dict[int, dict[int, _Read | Failure]] = {index: {} for index in waiting}
    async for number, answer in engine.complete(requests):
        index, window = pieces[number]
        answers[index][window.offset] = _read(answer, window, plan)
        if len(answers[index]) == waiting[index]:
            parts = [part for _, part in sorted(answers.pop(index).items())]
            yield index, _assemble(parts, plan.schema)


def _prepare(texts: Sequence[str], plan: Plan) -> tuple[list[tuple[int, Window]], list[Request]]:
    pieces = [(index, window) for index, text in enumerate(texts) for window in windows(text)]
    return pieces, [request(plan, window) for _, window in pieces]


def request(plan: Plan, window: Window) -> Request:
    """What the engine is asked for one window."""
    return Request(
        messages=plan.prompt.messages(window, plan.schema),
        grammar=compile_grammar(plan.schema, window, plan.prompt.open_wire(plan.schema)),
        max_tokens=token_limit(plan.schema, window),
    )


def _read(answer: Completion | EngineError, window: Window, plan: Plan) -> _Read | Failure:
    if isinstance(answer, EngineError):
        detail = f"{answer.message} {answer.hint}".strip()
        return Failure(Code.failed, detail, retryable=answer.retryable)
    wire = plan.prompt.open_wire(plan.schema)
    cut = answer.finish == "length"
    try:
        parsed = parse(answer.text, window, plan.schema, wire, cut=cut)
    except ParseError as error:
        code = Code.truncated if cut else Code.ungrounded
        return Failure(code, f"the answer is not one that the grammar allows: {error}")
    return _Read(window, parsed, Reader(answer, parsed, plan.schema, wire))


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
