"""What is trained on: every pack offers what it asks for, and says of each text what gold says."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import sets
from service.mixture import (
    AS_WRITTEN,
    INJECTIONS,
    MENTIONED,
    OUTSIDE,
    STRANGE,
    Pack,
    Training,
    held_out,
    plan,
    questions,
)
from service.parse import parse
from service.prompt import Prompt, load
from service.schema import Schema
from service.sets import Gold, GoldSet, Part, read_part
from service.settings import PROJECT, Settings
from service.words import windows

INTENTS = [f"wish_{number}" for number in range(40)]
PROMPT: Prompt = load(PROJECT / "prompts", "line.v2")


def wishes(count: int = 400) -> list[dict[str, Any]]:
    return [
        {"text": f"please do number {n}, it is {INTENTS[n % 40]}!", "intent": INTENTS[n % 40]} for n in range(count)
    ]


def feelings(count: int = 200) -> list[dict[str, Any]]:
    labels = ["negative", "neutral", "positive"]
    return [{"text": f"this is {labels[n % 3]} case {n}", "sentiment": labels[n % 3]} for n in range(count)]


def names(count: int = 200) -> list[dict[str, Any]]:
    found = []
    for n in range(count):
        text = f"Ada{n} met Bob{n} at Acme{n} 😀"
        spans = [(0, len(f"Ada{n}"), "PER")]
        spans += [
            (text.index(f"{word}{n}"), text.index(f"{word}{n}") + len(f"{word}{n}"), label)
            for word, label in (("Bob", "PER"), ("Acme", "ORG"))
        ]
        found.append({"text": text, "entities": [{"start": a, "end": b, "label": label} for a, b, label in spans]})
    return found


def part(name: str, records: list[dict[str, Any]], examples: int, **given: Any) -> Part:
    declared = GoldSet(source="here", licence="none", attribution="us", examples=examples, **given)
    (made,) = read_part(name, declared, {"train": records})
    return made


PARTS = [part("wishes", wishes(), 300), part("feelings", feelings(), 150), part("names", names(), 150)]
TRAINING = Training(
    sets={},
    joint=60,
    definitions={"wish 3": "Wants the third thing.", "person": "A human."},
    aliases={"negative": ("bad",), "person": ("people", "human")},
)


def truth(gold: Gold) -> dict[str, Any]:
    """What the texts above say of themselves, whatever was put around them."""
    found: dict[str, Any] = {}
    for intent in reversed(INTENTS):
        if f"it is {intent}!" in gold.text:
            found["intent"] = intent
    for label in ("negative", "neutral", "positive"):
        if f"this is {label} case" in gold.text:
            found["sentiment"] = label
    return found


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
def test_every_text_of_every_pack_keeps_its_labels_and_can_be_read_back(seed: int) -> None:
    for pack in plan(PARTS, TRAINING.model_copy(update={"seed": seed})):
        wire = PROMPT.open_wire(pack.schema)
        asked = list(questions(pack, PROMPT))
        assert len(asked) == len(pack.gold)
        for gold, (_, (_, user), completion) in zip(pack.gold, asked, strict=True):
            assert user.endswith(f"Text: {gold.text}")
            said = parse(completion, windows(gold.text)[0], pack.schema, wire)
            assert {c.task.name: c.label for c in said.choices} == {k: c.label for k, c in gold.labels.choices.items()}
            for name, label in truth(gold).items():
                if name in gold.labels.choices:
                    assert gold.labels.choices[name].label in (label, "other")
            for found in gold.labels.mentions.values():
                assert all(gold.text[span.start : span.end] == span.text for span in found.spans)
                assert [(m.start, m.end, m.label) for m in said.mentions] == [
                    (span.start, span.end, span.label) for span in found.spans
                ]


def test_the_same_seed_gives_the_same_packs_and_another_seed_others() -> None:
    assert plan(PARTS, TRAINING) == plan(PARTS, TRAINING)
    assert plan(PARTS, TRAINING) != plan(PARTS, TRAINING.model_copy(update={"seed": 1}))


def test_as_many_texts_are_read_as_the_declaration_says() -> None:
    read = Counter(
        pack.name.split(" + ")[0] if "+" not in pack.name else "joint"
        for pack in plan(PARTS, TRAINING)
        for _ in pack.gold
    )
    for name, count in (("wishes", 300), ("feelings", 150), ("names", 150), ("joint", 60)):
        assert count <= read[name] < count + 32


def test_a_set_of_many_small_parts_is_read_as_often_as_declared_and_every_part_has_its_chance() -> None:
    parts = [replace(part(f"tasks/{n}", feelings(40), 5), of="tasks") for n in range(30)]
    read: Counter[str] = Counter()
    for seed in range(60):
        packs = plan(parts, Training(sets={}, seed=seed, injected=0.0))
        assert 150 <= sum(len(pack.gold) for pack in packs) < 150 + 40
        read.update(pack.name for pack in packs)
    assert set(read) == {one.name for one in parts}


def test_a_text_comes_again_only_after_all_others_came() -> None:
    every = part("feelings", feelings(), 150)
    texts = Counter(gold.text for pack in plan([every], Training(sets={}, injected=0.0)) for gold in pack.gold)
    assert max(texts.values()) == 1


def test_label_sets_differ_in_size_order_names_and_definitions() -> None:
    packs = plan([part("wishes", wishes(), 3000)], TRAINING)
    offered = [tuple(label.shown for label in pack.schema.choices[0].labels) for pack in packs]
    assert min(map(len, offered)) < 8
    assert max(map(len, offered)) >= 40
    assert len(set(offered)) == len(offered)
    assert {any(label.definition for label in pack.schema.choices[0].labels) for pack in packs} == {True, False}
    assert {"other" in labels for labels in offered} == {True, False}


def test_a_label_that_is_not_offered_is_other_and_only_then() -> None:
    others = total = 0
    for pack in plan([part("wishes", wishes(), 3000)], Training(sets={}, injected=0.0)):
        offered = {label.name for label in pack.schema.choices[0].labels}
        for gold in pack.gold:
            label, right = gold.labels.choices["intent"].label, truth(gold)["intent"]
            assert label == (right if right in offered else "other")
            if "other" in offered and len(offered) < 41:
                total += 1
                others += label == "other"
    assert others / total == pytest.approx(OUTSIDE, abs=0.06)


def test_the_sets_own_label_for_none_of_these_takes_what_is_not_offered() -> None:
    records = wishes() + [{"text": f"it is nothing of that {n}", "intent": "oos"} for n in range(60)]
    packs = plan([part("wishes", records, 1000, other="oos")], Training(sets={}, injected=0.0))
    for pack in packs:
        labels = {label.name: label.shown for label in pack.schema.choices[0].labels}
        assert labels["oos"] == "other"
        for gold in pack.gold:
            right = truth(gold).get("intent")
            assert gold.labels.choices["intent"].label == (right if right in labels else "oos")


def test_what_is_held_out_is_never_trained_on() -> None:
    kept = {gold.text for pack in held_out(PARTS, TRAINING) for gold in pack.gold}
    assert kept
    assert not kept & {gold.text for pack in plan(PARTS, Training(sets={}, injected=0.0)) for gold in pack.gold}


def test_a_share_of_the_texts_comes_again_with_an_instruction_and_the_same_labels() -> None:
    told = [part for phrase in INJECTIONS for part in phrase.split("{}") if len(part) > 8]
    packs = plan([part("feelings", feelings(), 600)], Training(sets={}, injected=0.5))
    assert 200 < sum(len(pack.plain) for pack in packs) < 400
    for pack in packs:
        assert not any(piece in gold.text for gold in pack.gold[: min(pack.plain)] for piece in told)
        assert set(pack.plain) == set(range(min(pack.plain), len(pack.gold)))
        for swayed, plain in pack.plain.items():
            assert pack.gold[plain].text in pack.gold[swayed].text != pack.gold[plain].text
            assert pack.gold[swayed].labels == pack.gold[plain].labels


def test_no_instruction_that_is_measured_with_is_trained_on() -> None:
    from service.evaluation import ORDERS

    assert not set(ORDERS) & set(INJECTIONS)


def test_a_pack_of_a_short_label_list_has_many_texts_and_never_more_than_fit() -> None:
    sizes = [len(pack.gold) - len(pack.plain) for pack in plan(PARTS, TRAINING)]
    assert max(sizes) <= 32
    assert sum(sizes) / len(sizes) > 8


def test_a_mention_that_no_grammar_could_say_is_left_out() -> None:
    (half,) = read_part(
        "half",
        GoldSet(source="here", licence="none", attribution="us", examples=4),
        {"train": [{"text": "unbreakable thing", "entities": [{"start": 2, "end": 7, "label": "PER"}]}]},
    )
    pack = Pack("half", half.schema, half.splits["train"])
    assert list(questions(pack, PROMPT)) == []


def test_the_shipped_declaration_reads_its_own_set_and_names_a_source_for_all(tmp_path: Path) -> None:
    training = sets.parse_declaration(PROJECT / "models" / "annotator" / "training.yaml", Training)
    (support,) = sets.read_sets(training, tmp_path, ["train", "test"], ["support"])
    assert len(support.splits["train"]) >= 600
    assert len(support.splits["test"]) == 240
    assert not support.refused
    assert not {one.text for one in support.splits["train"]} & {one.text for one in support.splits["test"]}
    assert all("restricted" not in str(one.train) for one in training.sets.values())
    assert all(not one.examples or one.train for one in training.sets.values())
    load(Settings().prompts, training.prompt)


def test_every_kind_of_wish_is_joined_with_every_kind_of_feeling() -> None:
    joined = [pack for pack in plan(PARTS, TRAINING) if " + " in pack.name]
    assert joined
    for pack in joined:
        assert {task.name for task in pack.schema.tasks} >= {"sentiment", "intent"}
        assert all(truth(gold).keys() >= {"sentiment", "intent"} for gold in pack.gold)


def test_random_state_outside_is_left_alone() -> None:
    random.seed(5)
    before = random.getstate()
    plan(PARTS, TRAINING)
    assert random.getstate() == before


def test_texts_of_strangers_are_none_of_these_and_come_only_where_that_can_be_said() -> None:
    records = wishes() + [{"text": f"it is nothing of that {n}", "intent": "oos"} for n in range(60)]
    mine = part("wishes", records, 1500, other="oos", strangers=("feelings",))
    packs = plan([mine, part("feelings", feelings(), 0), part("names", names(), 0)], Training(sets={}, injected=0.0))
    strange = [gold for pack in packs for gold in pack.gold if "this is" in gold.text]
    assert len(strange) / sum(len(pack.gold) for pack in packs) == pytest.approx(STRANGE, abs=0.05)
    assert {gold.labels.choices["intent"].label for gold in strange} == {"oos"}
    assert {pack.name for pack in packs} == {"wishes"}
    assert not any("met Bob" in gold.text for pack in packs for gold in pack.gold)  # no stranger of that name
    without = plan([part("wishes", wishes(), 300, strangers=("feelings",)), part("feelings", feelings(), 0)], TRAINING)
    for pack in without:
        offered = {label.name for label in pack.schema.choices[0].labels}
        assert "other" in offered or not any("this is" in gold.text for gold in pack.gold)


def test_most_texts_asked_for_mentions_hold_one_of_the_types_offered_however_few_are() -> None:
    bare = [{"text": f"nobody is here at {n}", "entities": []} for n in range(200)]
    packs = plan([part("names", [*names(), *bare], 600)], TRAINING)
    texts = [gold for pack in packs for gold in pack.gold]
    holding = sum(any(found.spans for found in gold.labels.mentions.values()) for gold in texts)
    assert holding / len(texts) > MENTIONED - 0.06
    assert any("nobody" in gold.text for gold in texts), "that there is none has to be learnt too"


def test_a_schema_that_defines_its_labels_is_mostly_asked_as_it_is_written() -> None:
    (plain,) = [one for one in PARTS if one.name == "wishes"]
    (task,) = plain.schema.choices
    labels = tuple(label.model_copy(update={"definition": f"Wants {label.name}."}) for label in task.labels)
    written = replace(plain, schema=Schema(name="wishes", tasks=(task.model_copy(update={"labels": labels}),)))
    packs = plan([replace(written, examples=2000)], TRAINING.model_copy(update={"joint": 0}))
    asked = sum(pack.schema == written.schema for pack in packs) / len(packs)
    assert abs(asked - AS_WRITTEN) < 0.15
    assert not any(pack.schema == plain.schema for pack in plan([plain], TRAINING.model_copy(update={"joint": 0})))
