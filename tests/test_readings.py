"""What a recipe said of a text is asked for once, kept as it comes, and is nothing to another recipe."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest
from sqlalchemy import Engine as Database
from sqlmodel import select

from service import db, prompt, readings
from service.annotate import Annotated, Failure, Plan
from service.engine import Completion, Request
from service.engine.scripted import Scripted, completion
from service.errors import EngineError
from service.models import Reading
from service.readings import Readings, others, read
from service.schema import Schema
from service.settings import PROJECT

WHAT = Schema.model_validate(
    {
        "name": "mood",
        "tasks": [
            {"name": "mood", "kind": "choice", "labels": ["bad", "good"]},
            {"name": "names", "kind": "spans", "labels": ["person"]},
        ],
    }
)
LINES = [prompt.load(PROJECT / "prompts", name) for name in ("line.v1", "line.v2")]
HOSTILE = ["<b>Ann</b>", "Ann 👩‍👩‍👧 e\u0301", "Ann \u202eולפ", "Ann\r\n\u2028", "\u0301Ann", "", "Ann <|im_end|>"]


def answer(request: Request) -> Completion:
    text = request.messages[-1].content.rpartition("Text: ")[2]
    return completion(" good | Ann = person" if "Ann" in text else " bad", logprob=-0.01 * (1 + len(text) % 7))


def ask(
    texts: Sequence[str],
    engine: Scripted,
    database: Database | None,
    plan: Callable[[Scripted], Plan] = lambda engine: Plan(WHAT, LINES[1], engine.identity),
) -> Readings:
    done: list[int] = []
    found = asyncio.run(read(texts, plan(engine), engine, database, lambda: done.append(1)))
    assert len(done) == len(found.answers) == len(texts)
    return found


def test_a_second_run_asks_the_engine_nothing_and_says_the_same(database: Database) -> None:
    texts = [*HOSTILE, *(f"nobody {n}" for n in range(90))]
    engine = Scripted(answer)
    first = ask(texts, engine, database)
    assert (len(engine.requests), first.cached) == (len(texts), 0)
    assert first.tokens == sum(one.tokens for one in first.answers if isinstance(one, Annotated)) > 0
    again = ask(texts[::-1], engine, database)
    assert len(engine.requests) == len(texts)
    assert again.answers == first.answers[::-1]
    assert (again.cached, again.tokens) == (len(texts), 0)


def test_what_a_second_prompt_said_and_that_an_answer_was_cut_is_kept_too(database: Database) -> None:
    def cut(request: Request) -> Completion:
        return completion(" good | Ann") if "cut" in request.messages[-1].content else answer(request)

    def two(engine: Scripted) -> Plan:
        return Plan(WHAT, LINES[1], engine.identity, LINES[0])

    class Short(Scripted):
        async def complete(self, requests: Sequence[Request]):  # type: ignore[no-untyped-def]
            async for index, said in super().complete(requests):
                last = isinstance(said, Completion) and "cut" in requests[index].messages[-1].content
                yield index, Completion(said.tokens[:-1], "length", 0) if last else said

    engine = Short(cut)
    first = ask(["Ann is cut", "Ann smiles"], engine, database, two)
    again = ask(["Ann is cut", "Ann smiles"], engine, database, two)
    assert again.answers == first.answers
    assert [one.truncated for one in again.answers if isinstance(one, Annotated)] == [True, False]
    assert all(isinstance(one, Annotated) and one.second is not None for one in again.answers)


def test_a_text_that_failed_is_asked_again(database: Database) -> None:
    engine = Scripted([EngineError("down", retryable=True), " bad", " good"])
    first = ask(["one", "two"], engine, database)
    assert [type(one) for one in first.answers] == [Failure, Annotated]
    again = ask(["one", "two"], engine, database)
    assert (len(engine.requests), again.cached) == (3, 1)
    assert all(isinstance(one, Annotated) for one in again.answers)


def test_a_run_that_was_killed_goes_on_where_it_was(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readings, "STORE", 4)
    monkeypatch.setattr(readings, "CHUNK", 20)
    texts = [f"text {n}" for n in range(50)]
    left = iter(range(30))

    def dies(request: Request) -> Completion:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return answer(request)

    with pytest.raises(KeyboardInterrupt):
        ask(texts, Scripted(dies), database)
    engine = Scripted(answer)
    found = ask(texts, engine, database)
    assert 26 <= found.cached <= 30
    assert len(engine.requests) == 50 - found.cached


def test_a_text_that_stands_several_times_is_asked_once(database: Database) -> None:
    for kept in (database, None):
        engine = Scripted(answer)
        found = ask(["Ann", "Bob", "Ann", "Ann"], engine, kept)
        assert (len(engine.requests), found.cached) == (2, 2)
        assert found.answers[0] == found.answers[2] == found.answers[3] != found.answers[1]


def test_nothing_is_kept_where_no_database_is_given(database: Database) -> None:
    engine = Scripted(answer)
    assert ask(["Ann"], engine, None) is not ask(["Ann"], engine, None)
    assert len(engine.requests) == 2
    with db.read(database) as session:
        assert session.exec(select(Reading)).all() == []


def test_no_text_at_all_is_nothing_to_ask() -> None:
    assert ask([], Scripted([]), None) == Readings([], 0, 0.0, 0)


def test_every_recipe_is_asked_for_itself_and_knows_what_the_others_said(database: Database) -> None:
    def first(engine: Scripted) -> Plan:
        return Plan(WHAT, LINES[0], engine.identity)

    engine = Scripted(answer)
    mine = ask(["Ann", "Bob"], engine, database)
    theirs = ask(["Ann"], engine, database, first)
    assert (len(engine.requests), theirs.cached) == (3, 0)
    recipe, other = Plan(WHAT, LINES[1], engine.identity).sha256, first(engine).sha256
    said = theirs.answers[0]
    assert isinstance(said, Annotated)
    with db.read(database) as session:
        assert list(others(session, recipe, ["Ann", "Bob", "nobody asked"])) == [(other, "Ann", said.labels)]
        assert {text for _, text, _ in others(session, other, ["Ann", "Bob"])} == {"Ann", "Bob"}
    assert ask(["Ann", "Bob"], engine, database).answers == mine.answers
