"""Recipes are compared on the same texts, pair by pair, and equal ones are told apart by nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from eval.compare import ChoiceTask, compare
from service import prompt
from service.annotate import Annotated, Failure, Plan
from service.comparison import SHOWN, document
from service.engine import Identity
from service.evaluation import Evaluation
from service.labels import Choice, Labels, Mentions, Span
from service.measure import compare as agreement
from service.route import Code
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
DOWN = Failure(Code.failed, "down", retryable=True)


def labels(mood: str, named: bool = True) -> Labels:
    spans = (Span(start=0, end=3, label="person", text="Ann"),) if named else ()
    return Labels(choices={"mood": Choice(label=mood)}, mentions={"names": Mentions(spans=spans)})


GOLD = [Gold(f"Ann {n}", labels("good" if n % 2 else "bad"), str(n)) for n in range(80)]


def found(name: str, say: Callable[[int], Labels | None], golds: Sequence[Gold] = GOLD) -> Evaluation:
    said = [say(n) for n in range(len(golds))]
    answers = [Annotated(one) if one is not None else DOWN for one in said]
    tasks = agreement(WHAT, [(one.labels, answer) for one, answer in zip(golds, said, strict=True) if answer])
    plan = Plan(WHAT, prompt.load(PROJECT / "prompts", name), Identity("e", "m"))
    return Evaluation(plan, golds, answers, tasks, 0, 0.0, 0)


def right(n: int) -> Labels:
    return GOLD[n].labels


def wrong(n: int) -> Labels:
    return labels("bad" if n % 2 else "good")


def test_equal_recipes_are_told_apart_by_nothing() -> None:
    say = [right if n % 3 else wrong for n in range(80)]
    both = {name: found(name, lambda n: say[n](n)) for name in ("line.v1", "line.v2")}
    made = document(both, "set", GOLD)
    assert [contrast["better"] for contrast in made["comparison"]["contrasts"]] == [None, None]
    assert made["changed"] == []
    assert "no difference" in made["comparison"]["verdict"]
    assert made["recipes"]["line.v1"]["recipe_sha256"] != made["recipes"]["line.v2"]["recipe_sha256"]


def test_the_pairs_are_those_of_eval_compare_item_by_item() -> None:
    first = found("line.v1", lambda n: wrong(n) if n < 30 else right(n))
    second = found("line.v2", lambda n: wrong(n) if n >= 70 else right(n))
    made = document({"A": first, "B": second}, "set", GOLD)
    contrast = made["comparison"]["contrasts"][0]
    assert (contrast["first"], contrast["second"], contrast["better"]) == ("A", "B", "B")
    assert (len(contrast["gained"]), len(contrast["lost"]), contrast["n"]) == (30, 10, 80)
    sides = {
        who: [answer.labels.choices["mood"].label for answer in one.answers if isinstance(answer, Annotated)]
        for who, one in (("A", first), ("B", second))
    }
    alone = compare({"mood": ChoiceTask([one.labels.choices["mood"].label for one in GOLD], sides)}).contrasts[0]
    assert contrast["effect"]["difference"]["value"] == alone.effect.difference.value  # type: ignore[union-attr]
    assert contrast["effect"]["p"] == alone.effect.p  # type: ignore[union-attr]
    assert made["comparison"]["verdict"].startswith("B is better than A") or "B is better" in contrast["verdict"]
    json.dumps(made, allow_nan=False)


def test_what_changed_is_shown_of_every_kind_with_what_each_said() -> None:
    first = found("line.v1", lambda n: wrong(n) if n < 30 else right(n))
    second = found("line.v2", lambda n: wrong(n) if n >= 70 else right(n))
    changed = document({"A": first, "B": second}, "set", GOLD)["changed"]
    assert len(changed) == SHOWN
    assert [entry["change"] for entry in changed].count("lost") == 10
    for entry in changed:
        n = int(entry["id"])
        assert (entry["text"], entry["gold"]) == (f"Ann {n}", "good" if n % 2 else "bad")
        assert (entry["answers"]["A"] == entry["gold"]) == (entry["change"] == "lost")
        assert (entry["answers"]["B"] == entry["gold"]) == (entry["change"] == "gained")


def test_only_texts_that_every_recipe_could_label_are_compared() -> None:
    first = found("line.v1", lambda n: None if n < 10 else right(n))
    second = found("line.v2", lambda n: None if 5 <= n < 20 else right(n))
    made = document({"A": first, "B": second}, "set", GOLD)
    assert made["texts"] == 60
    assert {contrast["n"] for contrast in made["comparison"]["contrasts"]} == {60}
    assert [made["recipes"][who]["failed"] for who in "AB"] == [10, 15]
    nothing = document({"A": first, "B": found("line.v2", lambda n: None)}, "set", GOLD)
    assert (nothing["texts"], nothing["comparison"]["contrasts"], nothing["changed"]) == (0, (), [])


def test_a_task_is_compared_on_the_texts_whose_gold_has_it() -> None:
    golds = [
        one if n < 50 else Gold(one.text, Labels(mentions=one.labels.mentions), one.id) for n, one in enumerate(GOLD)
    ]
    both = {
        "A": found("line.v1", right, golds),
        "B": found("line.v2", lambda n: wrong(n) if n < 20 else labels("good", named=n % 2 > 0), golds),
    }
    mood, names = document(both, "set", golds)["comparison"]["contrasts"]
    assert (mood["n"], names["n"]) == (50, 80)
    assert (mood["better"], names["better"]) == ("A", "A")
