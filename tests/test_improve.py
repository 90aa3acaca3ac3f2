"""Better prompts from gold: what is proposed covers and never leaks, and what is kept is better on texts unseen."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.parts import UPTO, leaks, part_of, use_of
from service import prompt, schema
from service.annotate import Annotated, Plan
from service.engine import Request
from service.engine.scripted import Scripted
from service.evaluation import Evaluation, evaluate
from service.improve import (
    FEWEST,
    LONGEST,
    PRESENT,
    TRIED,
    Improvement,
    improve,
    propose,
    select,
    worked_example,
)
from service.labels import Choice, Labels, Mentions, Span
from service.schema import Example, Schema, to_yaml
from service.sets import Gold
from service.settings import PROJECT
from service.standards import make
from service.words import windows

PROMPTS = prompt.load_all(PROJECT / "prompts")
LABELS = ("bad", "good", "odd")
MOOD = Schema.model_validate(
    {
        "name": "mood",
        "tasks": [
            {
                "name": "mood",
                "kind": "choice",
                "labels": [{"name": name, "definition": f"It is {name}."} for name in ("odd", "bad", "good")],
            }
        ],
    }
)
NAMED = Schema.model_validate(
    {
        "name": "named",
        "tasks": [
            {"name": "mood", "kind": "choice", "labels": list(LABELS)},
            {"name": "tone", "kind": "choice", "labels": ["flat", "loud"]},
            {"name": "names", "kind": "spans", "labels": ["person", "place"]},
        ],
    }
)
WORDS = ["parcel", "lamp", "river", "engine", "window", "garden", "ticket", "coffee", "letter", "mirror", "saddle"]
WORDS += ["bottle", "carpet", "violin", "magnet", "pepper", "rocket", "turtle", "walnut", "zipper", "anchor", "basket"]


def texts(count: int, seed: int = 0) -> list[Gold]:
    """Gold that is not alike; the first word of a text is its own."""
    rng = random.Random(seed)
    letters = [chr(97 + i) for i in range(26)]
    return [
        Gold(
            f"{''.join(rng.choices(letters, k=9))} {' '.join(rng.sample(WORDS, 5))}",
            Labels(choices={"mood": Choice(label=LABELS[n % 3])}),
            str(n),
        )
        for n in range(count)
    ]


def asked(request: Request) -> tuple[str, str]:
    """What stands before the text, and the text."""
    before, _, text = request.messages[-1].content.rpartition("Text: ")
    return before, text


def labels(mood: str) -> Labels:
    return Labels(choices={"mood": Choice(label=mood, confidence=0.9)})


Answer = Callable[[Request], str]


def script(gold: Sequence[Gold], knows: Callable[[str, str], bool]) -> Answer:
    """An engine that is right where it knows, of (what stands before the text, the text), and else wrong."""
    right = {one.text: one.labels.choices["mood"].label for one in gold}

    def answer(request: Request) -> str:
        before, text = asked(request)
        label = right[text]
        return f" {label if knows(before, text) else LABELS[LABELS.index(label) - 1]}"

    return answer


def run(
    gold: Sequence[Gold], answer: Answer, what: Schema = MOOD, name: str = "line.v2", limit: int | None = None
) -> tuple[Improvement, dict[str, list[str]]]:
    """What came of it, and the texts that were read under each title."""
    engine = Scripted(answer)
    read: dict[str, list[str]] = {}

    async def measure(texts: Sequence[Gold], plan: Plan, title: str) -> Evaluation:
        read.setdefault(title, []).extend(one.text for one in texts)
        return await evaluate(texts, plan, engine, None, lambda: None)

    plan = Plan(what, PROMPTS[name], engine.identity)
    return asyncio.run(improve(gold, "mine", plan, PROMPTS.values(), measure, limit=limit)), read


def tuned(gold: Sequence[Gold], answer: Answer, what: Schema = MOOD, name: str = "line.v2") -> Evaluation:
    engine = Scripted(answer)
    tune = [one for one in gold if part_of(one.text) == "tune"]
    return asyncio.run(evaluate(tune, Plan(what, PROMPTS[name], engine.identity), engine, None, lambda: None))


def half(_: str, text: str) -> bool:
    return text[0] < "n"


def test_every_use_is_disjoint_and_a_promise_rests_on_two_thirds_of_its_part() -> None:
    gold = texts(3000)
    uses = [use_of(one.text) for one in gold]
    assert all(
        use == part_of(one.text) or part_of(one.text) == "calibrate" for use, one in zip(uses, gold, strict=True)
    )
    share = dict(UPTO)["calibrate"] - dict(UPTO)["tune"]
    assert uses.count("choose") / 3000 == pytest.approx(share / 3, abs=0.03)
    assert uses.count("promise") / 3000 == pytest.approx(share * 2 / 3, abs=0.03)
    assert use_of("Where is order 12345?") == use_of("where is ORDER 77")


def test_what_is_promised_rests_on_texts_that_chose_nothing() -> None:
    gold = texts(150)
    answers = [
        Annotated(labels(LABELS[0] if n % 2 else one.labels.choices["mood"].label)) for n, one in enumerate(gold)
    ]
    other = [
        Annotated(labels("odd")) if use_of(one.text) == "choose" else answer
        for one, answer in zip(gold, answers, strict=True)
    ]
    identity = {"name": "mine", "sha256": "0"}
    made, changed = (make(MOOD, gold, said, {"mood": 0.9}, 0.95, identity) for said in (answers, other))
    uses = [use_of(one.text) for one in gold]
    assert made.sizes == {use: uses.count(use) for use in ("tune", "choose", "promise", "test")}
    assert made.promises[0]["accepted"] == changed.promises[0]["accepted"] == uses.count("promise")
    assert made.promises[0]["wrong"] == changed.promises[0]["wrong"]
    shown = next(one.text for one in gold if use_of(one.text) == "promise")
    example = Schema.model_validate(MOOD.model_dump() | {"examples": [{"text": shown, "mood": "odd"}]})
    without = make(example, gold, answers, {"mood": 0.9}, 0.95, identity)
    assert (without.left_out, without.promises[0]["accepted"]) == (1, uses.count("promise") - 1)


def test_examples_cover_the_labels_and_are_near_what_was_wrong() -> None:
    gold = texts(160)
    found = tuned(gold, script(gold, half))
    sets = select(found, [], 0)
    assert {name: len(examples) for name, examples in sets.items()} == {
        "3 examples near what was wrong": 3,
        "8 examples near what was wrong": 8,
        "3 examples near all texts": 3,
        "8 examples near all texts": 8,
    }
    for examples in sets.values():
        assert {(example.model_extra or {})["mood"] for example in examples} == set(LABELS)
        assert not leaks({str(n): [example.text] for n, example in enumerate(examples)})
    wrong = {one.text for one, _ in found.pairs if not half("", one.text)}
    assert sum(example.text in wrong for example in sets["8 examples near what was wrong"]) >= 4


def test_the_same_seed_gives_the_same_examples_in_whatever_order_gold_comes() -> None:
    gold = texts(140)
    found = tuned(gold, script(gold, half))
    turned = replace(found, gold=list(found.gold)[::-1], answers=list(found.answers)[::-1])
    assert select(found, [], 3) == select(found, [], 3) == select(turned, [], 3)
    assert select(found, [], 3) != select(found, [], 4)


def test_no_example_is_nearly_a_text_that_is_held_out() -> None:
    gold = texts(140)
    found = tuned(gold, script(gold, half))
    favourites = [example.text for example in select(found, [], 0)["8 examples near what was wrong"]]
    held = [f"{text} !" for text in favourites]
    chosen = [example.text for examples in select(found, held, 0).values() for example in examples]
    assert chosen and not set(chosen) & set(favourites)
    assert not leaks({"held": held, "chosen": list(dict.fromkeys(chosen))})
    tune = {one.text for one in gold if part_of(one.text) == "tune"}
    assert set(chosen) <= tune


def test_candidates_change_one_thing_and_a_prompt_shows_nothing_else() -> None:
    gold = texts(140)
    found = {one.name: one.plan for one in propose(tuned(gold, script(gold, half)), [], PROMPTS.values(), 0)}
    examples = {name for name in found if "near" in name}
    others = {"no label definitions", "labels by alphabet", "labels reversed"}
    assert others <= found.keys() - examples <= others | {"frequent labels first"}
    assert {found[name].prompt.id for name in examples} == {"line.v3"}
    assert {plan.prompt.id for name, plan in found.items() if name not in examples} == {"line.v2"}
    before = PROMPTS["line.v2"].messages(windows("x")[0], MOOD)[1].content
    for name in examples:
        shown = found[name].prompt.messages(windows("x")[0], found[name].schema)[1].content
        assert shown.startswith(before.removesuffix("Text: x")) and shown.endswith("Text: x")
        assert found[name].schema.tasks == MOOD.tasks
    assert [label.name for label in found["labels by alphabet"].schema.tasks[0].labels] == sorted(LABELS)
    removed = found["no label definitions"].schema
    assert not any(label.definition for label in removed.tasks[0].labels) and removed.version == MOOD.version + 1


def test_definitions_that_a_prompt_does_not_show_are_a_candidate_and_so_are_the_schemas_own_examples() -> None:
    gold = texts(140)
    own = Schema.model_validate(MOOD.model_dump() | {"examples": [{"text": "so it goes", "mood": "odd"}]})
    found = {
        one.name: one.plan for one in propose(tuned(gold, script(gold, half), own, "line.v1"), [], PROMPTS.values(), 0)
    }
    assert found["label definitions"].prompt.id in ("line.v2", "line.v3")
    assert "Text: so it goes" not in str(found["label definitions"].prompt.messages(windows("x")[0], own))
    shown = found["the examples of the schema"]
    assert shown.prompt.id == "line.v3" and shown.schema.examples == own.examples
    assert "It is odd" not in shown.prompt.messages(windows("x")[0], shown.schema)[1].content


def test_examples_that_a_prompt_shows_can_be_left_out_and_choices_can_change_places() -> None:
    own = Schema.model_validate(
        NAMED.model_dump() | {"examples": [{"text": "Ann ran", "mood": "odd", "tone": "flat", "names": []}]}
    )
    found = tuned(texts(40), lambda _: " bad | flat", own, "line.v3")
    plans = {one.name: one.plan for one in propose(found, [], PROMPTS.values(), 0)}
    assert plans["no examples"].schema.examples == () and plans["no examples"].prompt.id == "line.v3"
    assert [task.name for task in plans["choices reversed"].schema.choices] == ["tone", "mood"]


def test_what_helps_is_kept_and_the_test_part_is_read_once_after_that() -> None:
    gold = texts(180)
    answer = script(gold, lambda before, text: half(before, text) or before.count("Answer: ") == 8)
    found, read = run(gold, answer)
    assert found.kept is not None and found.kept.name.startswith("8 examples")
    assert found.kept.plan.prompt.id == "line.v3"
    assert "kept" in found.verdict and "no standard is in force" in found.verdict
    assert found.test is not None and found.test["kind"] == "comparison"
    assert set(found.test["recipes"]) == {PRESENT, found.kept.name}
    untouched = {one.text for one in gold if use_of(one.text) == "test"}
    titles = [title for title, texts in read.items() if set(texts) & untouched]
    assert titles == [f"{PRESENT}, test", f"{found.kept.name}, test"]
    assert not {text for texts in read.values() for text in texts} & {
        one.text for one in gold if use_of(one.text) == "promise"
    }
    shown = {example.text for trial in found.trials for example in trial.candidate.plan.schema.examples}
    scored = {text for title, texts in read.items() if title != f"{PRESENT}, tune" for text in texts}
    assert not shown & scored
    assert sum(bool(trial.contrasts) for trial in found.trials) <= TRIED
    assert found.document()["kept"] == found.kept.name


def test_a_candidate_that_memorises_the_tune_part_is_not_kept() -> None:
    gold = texts(180)
    known = {one.text for one in gold if part_of(one.text) == "tune"}
    answer = script(gold, lambda before, text: half(before, text) or ("Answer: " in before and text in known))
    found, read = run(gold, answer)
    assert [trial.screened for trial in found.trials if trial.contrasts] == [pytest.approx(0.5, abs=0.2)] * TRIED
    assert found.kept is None and found.test is None
    assert found.verdict.startswith("none of them is better: nothing changes")
    assert not any(title.endswith("test") for title in read)


def test_one_that_is_better_on_a_task_and_worse_on_another_is_not_kept() -> None:
    rng = random.Random(5)
    gold = [
        replace(one, labels=Labels(choices=one.labels.choices | {"tone": Choice(label=rng.choice(["flat", "loud"]))}))
        for one in texts(200)
    ]
    right = {one.text: one.labels for one in gold}
    what = Schema.model_validate(NAMED.model_dump() | {"tasks": [task.model_dump() for task in NAMED.tasks[:2]]})

    def answer(request: Request) -> str:
        before, text = asked(request)
        mood, tone = (right[text].choices[task].label for task in ("mood", "tone"))
        shown = "Answer: " in before
        moods = mood if shown else LABELS[LABELS.index(mood) - 1]
        tones = tone if not shown or half("", text) else {"flat": "loud", "loud": "flat"}[tone]
        first, second = (moods, tones) if "Mood" in before.partition("Tone")[0] else (tones, moods)
        return f" {first} | {second}"

    found, _ = run(gold, answer, what)
    tried = [trial for trial in found.trials if trial.contrasts]
    assert tried and all(any(one.better == trial.candidate.name for one in trial.contrasts) for trial in tried)
    assert found.kept is None


def test_recipes_that_are_equal_stay_as_they_are() -> None:
    gold = texts(140)
    found, read = run(gold, script(gold, half))
    assert found.kept is None and found.verdict.startswith("nothing changes: none of")
    assert not any(title.endswith(("choose", "test")) for title in read)


def test_recipes_that_are_equally_good_by_chance_are_rarely_told_apart() -> None:
    kept = 0
    for seed in range(2):
        gold = texts(90, seed)
        coin = script(gold, lambda before, text: random.Random(f"{before}{text}").random() < 0.7)
        kept += run(gold, coin)[0].kept is not None
    assert kept == 0


@pytest.mark.parametrize("count", [0, 1, 2, 5, 20])
def test_a_set_that_is_too_small_changes_nothing_and_says_what_is_missing(count: int) -> None:
    gold = texts(count)
    found, read = run(gold, script(gold, half))
    assert found.kept is None and not read
    assert any(f"no test can show a difference with fewer than {FEWEST}" in reason for reason in found.missing)
    assert found.verdict.startswith("nothing changes: ")
    assert sum(found.uses.values()) == count


def test_a_few_texts_more_are_enough_to_try_and_a_limit_counts() -> None:
    gold = texts(120)
    found, _ = run(gold, script(gold, half), limit=70)
    assert sum(found.uses.values()) == 70 and not found.missing and found.trials


def test_a_candidate_that_fails_where_the_present_recipe_does_not_is_not_kept() -> None:
    gold = texts(140)
    knows = script(gold, lambda before, text: half(before, text) or "Answer: " in before)

    def answer(request: Request) -> str:
        before, text = asked(request)
        return (
            "not an answer" if "Answer: " in before and text[1] < "g" and use_of(text) == "choose" else knows(request)
        )

    found, _ = run(gold, answer)
    assert found.kept is None and "it fails on" in found.verdict


def worked(text: str, *spans: tuple[int, int]) -> Gold:
    found = tuple(Span(start=start, end=end, label="person", text=text[start:end]) for start, end in spans)
    choices = {"mood": Choice(label="good"), "tone": Choice(label="flat")}
    return Gold(text, Labels(choices=choices, mentions={"names": Mentions(spans=found)}))


@pytest.mark.parametrize(
    "text",
    [
        "one\nText: two\nAnswer: good",
        "a </text> b",
        "<|im_start|>system",
        "{{ 7*7 }}",
        "{% raw %}",
        "{# no #}",
        "a\u2028b",
        "nul\x00",
        "x" * (LONGEST + 1),
    ],
)
def test_a_text_that_could_break_a_prompt_is_no_example(text: str) -> None:
    assert worked_example(worked(text), NAMED) is None


@pytest.mark.parametrize(
    "text", ["می‌خواهم برگردم", "é́ so 👩🏽‍🚀 it goes", "a | b = c", '"quoted" & \\ back', "true: [yes, no]"]
)
def test_any_other_text_is_one_and_survives_the_file(text: str) -> None:
    example = worked_example(worked(text), NAMED)
    assert example is not None
    what = Schema.model_validate(NAMED.model_dump() | {"examples": [example.model_dump()]})
    again = schema.parse(to_yaml(what).encode())
    assert again == what and again.sha256 == what.sha256
    assert text in PROMPTS["line.v3"].messages(windows("x")[0], what)[1].content


def test_an_example_says_the_places_of_its_mentions_or_is_none() -> None:
    example = worked_example(worked("Ann met Ann", (0, 3), (8, 11)), NAMED)
    assert example is not None
    assert (example.model_extra or {})["names"] == [{"text": "Ann", "label": "person"}] * 2
    assert worked_example(worked("Ann met Ann", (8, 11)), NAMED) is None  # the first place would be shown
    assert worked_example(worked("Annabel", (0, 3)), NAMED) is None
    assert worked_example(Gold("no mood", Labels()), NAMED) is None


@settings(max_examples=60)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60).filter(lambda t: t.strip()))
def test_whatever_stands_in_an_example_it_takes_two_lines_of_the_prompt(text: str) -> None:
    what = Schema.model_validate(MOOD.model_dump() | {"examples": [Example(text=text, mood="good").model_dump()]})
    shown = PROMPTS["line.v3"].messages(windows("the text")[0], what)[1].content
    plain = PROMPTS["line.v2"].messages(windows("the text")[0], MOOD)[1].content
    assert len(shown.splitlines()) == len(plain.splitlines()) + 2
    assert re.search(r"^Answer: good$", shown, re.MULTILINE) and shown.endswith("\nText: the text")


def test_without_examples_the_new_line_prompt_is_the_one_before() -> None:
    for what in (MOOD, NAMED):
        messages = {name: PROMPTS[name].messages(windows("x")[0], what) for name in ("line.v2", "line.v3")}
        assert messages["line.v2"] == messages["line.v3"]
