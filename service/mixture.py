"""What a model is trained on: gold sets turned into packs of questions that differ in what they offer.

A model that always sees the same labels learns to remember them. So the labels of each pack are shuffled, subsampled,
renamed, with and without definitions, with and without "other", for one task or several: it has to read them.
Texts of a pack are asked under one schema, so that the beginning of their prompts is computed once.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path
from random import Random

from pydantic import Field

from service.labels import Choice, Labels, Mentions, Span
from service.prompt import Prompt
from service.schema import ChoiceTask, Label, Schema, SpansTask
from service.sets import OTHER, Collection, Gold, Part
from service.wire import render
from service.words import windows

AS_WRITTEN = 0.6  # share of packs that ask for all a schema has, as it is written, where its labels are defined in it
FEWEST = 3  # labels offered at least, where a task has that many
ALL_LABELS = 0.6  # share of packs that offer every label of a choice
ALL_TASKS = 0.8  # share of packs that ask every task of a set
DEFINED = 0.3  # share of packs that show definitions, where there are some
RENAMED = 0.4  # share of packs in which labels go by another name, where they have one
OFFERED = 0.3  # share of packs that offer "other" though the set has no such label
OUTSIDE = 0.2  # share of texts whose label is not offered, where "other" is
STRANGE = 0.25  # share of texts that come from the strangers of a set, where it has some
MENTIONED = 0.75  # share of texts asked for spans that hold one of the types offered, at least
LEAST_OTHER = 0.05  # share of texts that are "other" where every label of the set is offered, at least
PACK_TOKENS = 480  # of texts and answers in a pack, about; three times as many as its beginning has where that is more
HELD_OUT = 32  # of a set without a dev file, one text in so many is not trained on
HELD_OUT_TEXTS = 16  # held-out texts of each set

# Instructions to the reader of a text, which are only text, one a line; {} is a label. Lines without {} ask nothing:
# a text that the model is unsure of is swayed by any further sentence.
INJECTIONS = tuple((Path(__file__).parent / "injections.txt").read_text("utf-8").splitlines())


class Training(Collection):
    """How an adapter is trained, and on what."""

    prompt: str = "line.v2"
    rank: int = Field(32, ge=1, le=256)
    alpha: int = Field(64, ge=1)
    rate: float = Field(1.2e-3, gt=0, description="peak learning rate")
    seed: int = 0
    joint: int = Field(0, ge=0, description="examples that join texts of a sentiment set and of an intent set")
    injected: float = Field(
        0.05, ge=0, le=1, description="share of texts read once more with an instruction to their reader"
    )


@dataclass(frozen=True)
class Pack:
    """Texts asked under one schema; their labels are in its terms. name: of the part they come from.

    plain: for the number of each text in `gold` that carries an instruction, the number of the same text without it.
    """

    name: str
    schema: Schema
    gold: tuple[Gold, ...]
    plain: Mapping[int, int] = field(default_factory=dict)


def plan(parts: Sequence[Part], training: Training) -> list[Pack]:
    """All packs of a training, in the order in which they are read; the same for the same seed."""
    rng = Random(training.seed)  # noqa: S311 - repeatable, not secret
    draws = {part.name: _Draws(part, rng) for part in parts}
    for one in draws.values():
        one.strangers = [other for other in draws.values() if other.part.of in one.part.strangers]
    packs: list[Pack] = []
    owed: dict[str, int] = defaultdict(int)  # texts by set; what a pack has too many, the next part has less
    for part in rng.sample(parts, len(parts)):
        owed[part.of] += part.examples
        owed[part.of] -= _fill(packs, owed[part.of], partial(_pack, draws[part.name], training, rng))
    feelings = [draws[part.name] for part in parts if _feeling(part) and part.examples]
    wishes = [draws[part.name] for part in parts if _wish(part) and part.examples]
    if feelings and wishes:
        _fill(packs, training.joint, lambda: _joined(_of_size(feelings, rng), _of_size(wishes, rng), training, rng))
    rng.shuffle(packs)
    return packs


def held_out(parts: Sequence[Part], training: Training) -> list[Pack]:
    """Texts that are not trained on, asked as they will be in use: all tasks, all labels, in the schema's order.

    HELD_OUT_TEXTS of each set; the name of a pack is its set's.
    """
    kept: dict[str, list[tuple[bytes, Gold, Part]]] = defaultdict(list)
    for part in parts:
        every = part.splits.get("dev") or [one for one in part.splits.get("train", ()) if _is_held_out(one)]
        kept[part.of] += [(hashlib.sha256(one.text.encode()).digest(), one, part) for one in every if part.examples]
    schemas = {part.name: part.schema for part in parts}
    packs = []
    for name, candidates in kept.items():
        chosen: dict[str, list[Gold]] = defaultdict(list)
        for _, gold, part in sorted(candidates, key=itemgetter(0))[:HELD_OUT_TEXTS]:
            chosen[part.name].append(gold)
        packs += [Pack(name, schemas[one], tuple(texts)) for one, texts in chosen.items()]
    return packs


def questions(pack: Pack, prompt: Prompt) -> Iterator[tuple[int, tuple[str, str], str]]:
    """(number in the pack, (system, user), completion) for each text that can be asked in one window."""
    wire = prompt.open_wire(pack.schema)
    for number, gold in enumerate(pack.gold):
        window, *more = windows(gold.text)
        if more:
            continue
        try:
            completion = render(_shifted(gold.labels, -window.offset), window, pack.schema, wire)
        except ValueError:
            continue  # a mention that is no run of whole words: the grammar could not say it either
        system, user = prompt.messages(window, pack.schema)
        yield number, (system.content, user.content), completion


class _Draws:
    """The texts of a part in random order, each once before any comes again."""

    def __init__(self, part: Part, rng: Random) -> None:
        self.part = part
        gold = part.splits.get("train", ())
        self.gold = list(gold) if part.splits.get("dev") else [one for one in gold if not _is_held_out(one)]
        self.mean = sum(len(one.text) for one in self.gold) / max(1, len(self.gold))
        self.proper = {task.name: sum(label.shown != OTHER for label in task.labels) for task in part.schema.choices}
        others = sum(any(_label(one, task) == name for task, name in part.other.items()) for one in self.gold)
        self.other_share = max(LEAST_OTHER, others / max(1, len(self.gold)))
        self.strangers: list[_Draws] = []
        self._rng = rng
        self._waiting: deque[Gold] = deque()

    def take(self, count: int, suits: Callable[[Gold], bool]) -> list[Gold]:
        """Up to `count` texts that suit; those passed over keep their place."""
        taken: list[Gold] = []
        passed: list[Gold] = []
        for _ in range(2):
            while self._waiting and len(taken) < count:
                one = self._waiting.popleft()
                (taken if suits(one) else passed).append(one)
            if len(taken) == count or len(passed) >= len(self.gold):
                break
            self._waiting.extend(self._rng.sample(self.gold, len(self.gold)))
        self._waiting.extendleft(reversed(passed))
        return taken


def _fill(packs: list[Pack], examples: int, make: Callable[[], Pack]) -> int:
    """Append packs until they hold so many texts; a pack without any counts as one. Returns how many they hold."""
    made = 0
    while made < examples:
        packs.append(make())
        made += max(1, len(packs[-1].gold))
    return made


def _pack(draws: _Draws, training: Training, rng: Random) -> Pack:
    what = _offer(draws.part.schema, training, rng)
    gold = _translated(draws, what, _texts_in_pack(draws, what), rng)
    return _with_orders(draws.part.name, what, gold, training, rng)


def _joined(first: _Draws, second: _Draws, training: Training, rng: Random) -> Pack:
    """Two texts as one, with the feeling of the first and the wish of the second."""
    feeling, wish = _offer(first.part.schema, training, rng), _offer(second.part.schema, training, rng)
    tasks = [*feeling.choices, *wish.tasks]
    rng.shuffle(tasks)
    what = Schema(name="joint", tasks=tuple(tasks))
    count = max(4, _texts_in_pack(first, what) // 2)
    left, right = _translated(first, feeling, count, rng), _translated(second, wish, count, rng)
    gold = []
    for one, other in zip(left, right, strict=False):
        before, between = (one.text, rng.choice((" ", "\n", " - "))) if rng.random() < 0.5 else ("", "")
        text = before + between + other.text if before else f"{other.text} {one.text}"
        moved = _shifted(other.labels, len(before) + len(between))
        labels = Labels(choices={**one.labels.choices, **moved.choices}, mentions=moved.mentions)
        gold.append(Gold(text, labels))
    return _with_orders(f"{first.part.name} + {second.part.name}", what, gold, training, rng)


def _offer(what: Schema, training: Training, rng: Random) -> Schema:
    """What one pack asks of a set: some of its tasks and labels, in some order, under some names.

    A schema that defines its labels was written to be used as it is: most packs ask it so.
    """
    if _is_defined(what) and rng.random() < AS_WRITTEN:
        return what
    tasks = list(what.tasks)
    if len(tasks) > 1 and rng.random() > ALL_TASKS:
        tasks = rng.sample(tasks, rng.randint(1, len(tasks) - 1))
    rng.shuffle(tasks)
    defined, renamed = rng.random() < DEFINED, rng.random() < RENAMED
    offered: list[ChoiceTask | SpansTask] = []
    for task in tasks:
        chosen = _some_labels(task, rng)
        named = _named(chosen, training, defined, rng if renamed else None)
        kind = ChoiceTask if isinstance(task, ChoiceTask) else SpansTask
        offered.append(kind(name=task.name, labels=tuple(named)))
    return Schema(name=what.name, tasks=tuple(offered))


def _is_defined(what: Schema) -> bool:
    return any(label.definition for task in what.tasks for label in task.labels)


def _some_labels(task: ChoiceTask | SpansTask, rng: Random) -> list[Label]:
    proper = [label for label in task.labels if label.shown != OTHER]
    other = [label for label in task.labels if label.shown == OTHER]
    count = len(proper)
    if count > FEWEST and rng.random() > ALL_LABELS:
        count = round(math.exp(rng.uniform(math.log(FEWEST), math.log(count))))
    chosen = rng.sample(proper, count)
    if isinstance(task, ChoiceTask):
        if not other and len(proper) > 2 * FEWEST and rng.random() < OFFERED:
            other = [Label(name=OTHER)]
        chosen += other
        rng.shuffle(chosen)
    return chosen


def _named(labels: Sequence[Label], training: Training, defined: bool, rename: Random | None) -> list[Label]:
    named: list[Label] = []
    used = {label.shown for label in labels}
    for label in labels:
        shown = label.shown
        free = [alias for alias in training.aliases.get(shown, ()) if alias not in used]
        if rename and free:
            shown = rename.choice(free)
            used.add(shown)
        definition = (label.definition or training.definitions.get(label.shown, "")) if defined else ""
        named.append(Label(name=label.name, display=shown, definition=definition))
    return named


def _translated(draws: _Draws, what: Schema, count: int, rng: Random) -> list[Gold]:
    """Texts whose labels can be said in the terms of `what`, with some that are "other" where that is offered."""
    offered = {task.name: {label.name for label in task.labels} for task in what.tasks}
    rest = {task.name: _rest(task, draws.part) for task in what.choices}

    def inside(gold: Gold) -> bool:
        return all(_label(gold, name) in offered[name] - {rest[name]} for name in rest) and _labelled(gold, what)

    def outside(gold: Gold) -> bool:
        """At least one label is not offered, and can be called "other"."""
        fits = all(_label(gold, name) in offered[name] or rest[name] is not None for name in rest)
        return fits and not inside(gold) and _labelled(gold, what)

    def mentioning(gold: Gold) -> bool:
        return inside(gold) and any(
            span.label in offered[name]
            for name, found in gold.labels.mentions.items()
            if name in offered
            for span in found.spans
        )

    lacking = any(len(task.labels) - (rest[task.name] is not None) < draws.proper[task.name] for task in what.choices)
    share = (OUTSIDE if lacking else draws.other_share) if any(rest.values()) else 0.0
    strange = sum(rng.random() < STRANGE for _ in range(count)) if draws.strangers and _only_choices(what, rest) else 0
    others = sum(rng.random() < share for _ in range(count - strange))
    # Where few types are offered nothing is the answer to most texts, and the model learns to say it of any new type.
    mentioned = sum(rng.random() < MENTIONED for _ in range(count - strange - others)) if what.spans else 0
    gold = draws.take(mentioned, mentioning) + draws.take(count - strange - others - mentioned, inside)
    gold += draws.take(others, outside)
    translated = [_in_terms(one, offered, rest) for one in gold]
    for _ in range(strange):
        text = rng.choice(draws.strangers).take(1, bool)[0].text
        translated.append(Gold(text, Labels(choices={name: Choice(label=str(rest[name])) for name in rest})))
    rng.shuffle(translated)
    return translated


def _only_choices(what: Schema, rest: Mapping[str, str | None]) -> bool:
    """Whether a text that is none of these in every task has all the labels asked for."""
    return not what.spans and all(rest.values())


def _rest(task: ChoiceTask, part: Part) -> str | None:
    """The label of an offered task that stands for all those not offered."""
    known = part.other.get(task.name, OTHER)
    return known if known in task.by_name else None


def _label(gold: Gold, task: str) -> str | None:
    choice = gold.labels.choices.get(task)
    return choice.label if choice else None


def _labelled(gold: Gold, what: Schema) -> bool:
    return all(task.name in gold.labels.choices or task.name in gold.labels.mentions for task in what.tasks)


def _in_terms(gold: Gold, offered: Mapping[str, set[str]], rest: Mapping[str, str | None]) -> Gold:
    choices = {}
    for name, other in rest.items():
        label = gold.labels.choices[name].label
        choices[name] = Choice(label=label if label in offered[name] else str(other))
    mentions = {
        name: Mentions(spans=tuple(span for span in found.spans if span.label in offered[name]))
        for name, found in gold.labels.mentions.items()
        if name in offered
    }
    return Gold(gold.text, Labels(choices=choices, mentions=mentions))


def _with_orders(name: str, what: Schema, gold: Sequence[Gold], training: Training, rng: Random) -> Pack:
    """The texts, and some of them once more with an instruction to their reader; the labels stay what they are."""
    texts, plain = list(gold), {}
    for number, one in enumerate(gold):
        if what.choices and rng.random() < training.injected:
            plain[len(texts)] = number
            texts.append(_injected(one, what, rng))
    return Pack(name, what, tuple(texts), plain)


def _injected(gold: Gold, what: Schema, rng: Random) -> Gold:
    label = rng.choice(rng.choice(what.choices).labels).shown
    said = rng.choice(INJECTIONS).replace("{}", label)
    if rng.random() < 0.7:
        return Gold(f"{gold.text} {said}", gold.labels)
    return Gold(f"{said} {gold.text}", _shifted(gold.labels, len(said) + 1))


def _shifted(labels: Labels, by: int) -> Labels:
    mentions = {
        name: Mentions(
            spans=tuple(
                Span(start=span.start + by, end=span.end + by, label=span.label, text=span.text) for span in found.spans
            )
        )
        for name, found in labels.mentions.items()
    }
    return Labels(choices=labels.choices, mentions=mentions)


def _texts_in_pack(draws: _Draws, what: Schema) -> int:
    answer = 16 if what.spans else 6
    beginning = sum(len(label.shown) + 2 + len(label.definition) for task in what.tasks for label in task.labels) / 4
    return max(4, min(32, round(max(PACK_TOKENS, 3 * beginning) / (draws.mean / 4 + 6 + answer))))


def _of_size(draws: Sequence[_Draws], rng: Random) -> _Draws:
    return rng.choices(draws, [one.part.examples for one in draws])[0]


def _feeling(part: Part) -> bool:
    return [task.name for task in part.schema.tasks] == ["sentiment"]


def _wish(part: Part) -> bool:
    return part.schema.choices != () and all(task.name != "sentiment" for task in part.schema.tasks)


def _is_held_out(gold: Gold) -> bool:
    return int.from_bytes(hashlib.sha256(gold.text.encode()).digest()[:4]) % HELD_OUT == 0
