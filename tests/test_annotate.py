"""Every text comes back exactly once, as labels or as a failure that says why."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from service import prompt, schema
from service.annotate import Annotated, Failure, Plan, annotate
from service.engine import Completion, Request
from service.engine.scripted import Scripted, completion, cut
from service.errors import EngineError, Invalid
from service.route import Code
from service.schema import Schema
from service.settings import PROJECT
from service.words import windows

MOOD = schema.parse(
    b"""
name: mood
tasks:
  - {name: mood, kind: choice, labels: [good, bad]}
  - {name: names, kind: spans, labels: [person]}
"""
)
LINE = prompt.load(PROJECT / "prompts", "line.v1")
GUIDED = prompt.load(PROJECT / "prompts", "guided.v1")


def label(
    texts: Sequence[str], engine: Scripted, second: prompt.Prompt | None = None, what: Schema = MOOD
) -> dict[int, Annotated | Failure]:
    async def collect() -> dict[int, Annotated | Failure]:
        found: dict[int, Annotated | Failure] = {}
        async for index, outcome in annotate(texts, Plan(what, LINE, engine.identity, second), engine):
            assert index not in found
            found[index] = outcome
        return found

    return asyncio.run(collect())


def test_an_answer_becomes_labels_with_exact_spans() -> None:
    outcome = label(["Well done, Ann Lee!"], Scripted([" good | Ann Lee = person"]))[0]
    assert isinstance(outcome, Annotated)
    assert outcome.labels.choices["mood"].label == "good"
    (span,) = outcome.labels.mentions["names"].spans
    assert (span.start, span.end, span.text, span.label) == (11, 18, "Ann Lee", "person")
    assert not outcome.truncated


def test_a_failure_is_the_failure_of_its_text_alone() -> None:
    answers = [" good", EngineError("down", retryable=True, hint="wait"), " awful", " bad | Nobody = person", " bad"]
    found = label(["a", "b", "c", "d", "e"], Scripted(answers))
    assert isinstance(found[0], Annotated) and isinstance(found[4], Annotated)
    assert found[1] == Failure(Code.failed, "down wait", retryable=True)
    for index in (2, 3):
        failure = found[index]
        assert isinstance(failure, Failure)
        assert (failure.code, failure.retryable) == (Code.ungrounded, False)


def test_a_cut_answer_keeps_what_was_whole_and_says_so() -> None:
    answer = completion(" good | Ann = person | Bo")
    answer = cut(answer, len(answer.tokens) - 1)
    outcome = label(["Ann and Bob"], Scripted([answer]))[0]
    assert isinstance(outcome, Annotated)
    assert outcome.truncated
    assert [span.text for span in outcome.labels.mentions["names"].spans] == ["Ann"]
    assert outcome.labels.mentions["names"].complete == 0.0
    failure = label(["Ann"], Scripted([cut(completion(" go"), 1)]))[0]
    assert isinstance(failure, Failure) and failure.code is Code.truncated


def test_a_long_text_is_read_in_windows_and_its_spans_count_from_its_own_beginning() -> None:
    sentence = "Ann wrote a letter to the shop today. "
    text = "\n" + sentence * 100
    engine = Scripted(lambda _: " bad | Ann = person")
    outcome = label([text], engine)[0]
    assert isinstance(outcome, Annotated)
    spans = outcome.labels.mentions["names"].spans
    assert len(spans) == len(engine.requests) == len(windows(text)) > 3
    assert all(text[span.start : span.end] == "Ann" == span.text for span in spans)


def test_one_failed_window_fails_the_text() -> None:
    text = "Ann wrote a letter to the shop today. " * 100
    answers: list[str | Completion | EngineError] = [" bad"] * len(windows(text))
    answers[1] = EngineError("refused", retryable=False)
    assert label([text], Scripted(answers))[0] == Failure(Code.failed, "refused", retryable=False)


def test_a_second_prompt_reads_every_text_and_its_labels_stand_beside_the_first() -> None:
    def answer(request: Request) -> str:
        return '{"mood":"bad","names":[]}' if "<text>" in request.messages[-1].content else " good"

    found = label(["a", "b"], Scripted(answer), second=GUIDED)
    for outcome in found.values():
        assert isinstance(outcome, Annotated) and outcome.second is not None
        assert outcome.labels.choices["mood"].label == "good"
        assert outcome.second.choices["mood"].label == "bad"


def test_the_recipe_changes_with_everything_that_decides_a_label() -> None:
    identity = Scripted([]).identity
    other = schema.parse(schema.to_yaml(MOOD).replace("bad", "sad").encode())
    plans = [
        Plan(MOOD, LINE, identity),
        Plan(MOOD, GUIDED, identity),
        Plan(MOOD, LINE, identity, GUIDED),
        Plan(other, LINE, identity),
        Plan(MOOD, LINE, type(identity)("scripted", "another")),
    ]
    assert len({plan.sha256 for plan in plans}) == len(plans)
    assert Plan(MOOD, LINE, identity).sha256 == plans[0].sha256


def test_a_prompt_that_cannot_be_rendered_for_the_schema_makes_no_plan() -> None:
    wrong = schema.parse(schema.to_yaml(MOOD).encode() + b"examples: [{text: Ann, mood: angry, names: []}]\n")
    with pytest.raises(Invalid, match="examples"):
        Plan(wrong, GUIDED, Scripted([]).identity)
