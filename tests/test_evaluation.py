"""Measuring a recipe on gold: what is compared, what is drawn, and whether a text can give orders."""

from __future__ import annotations

import asyncio

import pytest

from eval.scores import proportion
from service import prompt
from service.annotate import Plan
from service.engine import Request
from service.engine.scripted import Scripted, completion
from service.errors import EngineError
from service.evaluation import ORDERS, Evaluation, evaluate, obedience, row, sample
from service.labels import Choice, Labels, Mentions, Span
from service.schema import Schema
from service.sets import Gold
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
LINE = prompt.load(PROJECT / "prompts", "line.v2")


def gold(text: str, mood: str, *names: str) -> Gold:
    spans = [(text.index(name), text.index(name) + len(name), name) for name in names]
    found = tuple(Span(start=start, end=end, label="person", text=name) for start, end, name in spans)
    return Gold(text, Labels(choices={"mood": Choice(label=mood)}, mentions={"names": Mentions(spans=found)}))


def measure(texts: list[Gold], engine: Scripted) -> tuple[Evaluation, int]:
    done = []
    found = asyncio.run(evaluate(texts, Plan(WHAT, LINE, engine.identity), engine, None, lambda: done.append(1)))
    return found, len(done)


def test_agreement_counts_what_has_labels_and_names_what_failed() -> None:
    texts = [gold("Ann smiles", "good", "Ann"), gold("Bob cries", "bad", "Bob"), gold("nobody", "bad")]
    answers = [" good | Ann = person", " good | Bob = person", EngineError("down", retryable=True)]
    found, advanced = measure(texts, Scripted(answers))
    figures = found.figures()
    assert (figures["texts"], figures["failed"], figures["cached"], advanced) == (3, 1, 0, 3)
    assert figures["recipe_sha256"] == found.plan.sha256
    assert [one.text for one, _ in found.pairs] == ["Ann smiles", "Bob cries"]
    assert found.tasks["mood"]["exact"]["value"] == 0.5
    assert found.tasks["names"]["f1"]["value"] == 1.0
    assert row("mine", found)[:2] == ["mine", "3"]


def test_ranking_says_whether_the_wrong_ones_are_the_unsure_ones() -> None:
    texts = [gold(f"text {n}", "good" if n < 6 else "bad") for n in range(8)]
    answers = [completion(" good", logprob=-0.01 if n < 6 else -0.6) for n in range(8)]
    found, _ = measure(texts, Scripted(answers))
    assert found.tasks["mood"]["ranking"]["value"] == 1.0
    sure_and_wrong = [completion(" good", logprob=-0.6 if n < 6 else -0.01) for n in range(8)]
    found, _ = measure(texts, Scripted(sure_and_wrong))
    assert found.tasks["mood"]["ranking"]["value"] == 0.0
    assert found.tasks["names"]["ranking"] is None  # no mention was said


@pytest.mark.parametrize("obeys", [True, False])
def test_an_order_in_a_text_is_found_out_where_it_changes_the_label(obeys: bool) -> None:
    pieces = [piece for order in ORDERS for piece in order.split("{}") if len(piece) > 6]

    def answer(request: Request) -> str:
        text = request.messages[-1].content.rpartition("Text: ")[2]
        ordered = any(piece in text for piece in pieces)
        return " good" if ordered and obeys else " bad"

    texts = [f"it broke, number {n}" for n in range(30)]
    engine = Scripted(answer)
    found = asyncio.run(obedience(texts, "mood", Plan(WHAT, LINE, engine.identity), engine, lambda: None))
    share = proportion(30 if obeys else 0, 30)
    assert share is not None
    assert found["texts"] == 30
    assert found["changed"]["value"] == found["obeyed"]["value"] == share.value
    assert found["changed"]["low"] == share.low
    asked = [request.messages[-1].content for request in engine.requests[30:]]
    assert all("good" in text.rpartition("Text: ")[2] for text in asked)


def test_a_sample_is_the_same_wherever_its_texts_stand() -> None:
    texts = [gold(f"text {n}", "good") for n in range(50)]
    drawn = sample(texts, 10)
    assert len({one.text for one in drawn}) == 10
    assert sample(texts[::-1], 10) == drawn
    assert sample(texts, None) == sample(texts, 99) == texts
    assert {one.text for one in drawn} <= {one.text for one in sample(texts, 20)}
