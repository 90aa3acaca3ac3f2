"""Better prompts, made from gold: candidates that change one thing each, and what became of them.

Every gold text has one use (`eval.parts.use_of`). Candidates are made, and put in order, on `tune`. The best few are
compared with the present recipe on `choose`, by the paired tests of `eval.compare`, corrected for all that are tried
there. One is kept only if it wins, and is then compared once on the untouched `test`. Promises are made on `promise`
alone, so nothing that is chosen here can spoil one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import regex

from service import comparison
from service.annotate import Failure, Plan
from service.engine import Message
from service.errors import Invalid
from service.evaluation import Evaluation, sample
from service.labels import Labels, plain
from service.prompt import Prompt
from service.schema import Example, Label, Schema, Task
from service.sets import Gold
from service.standards import agrees
from service.wire import locate
from service.words import windows

if TYPE_CHECKING:
    from eval.compare import ChoiceTask, Contrast, SpanTask

PRESENT = "present"  # how the recipe that is to be improved is called beside the candidates
SIZES = (3, 8)  # worked examples of a set
SHARE = 4  # a set takes at most one tune text in so many: the others tell whether it helps
LONGEST = 400  # code points of a worked example, which every text then pays for
POOL = 2000  # tune texts that are read
SCREENED = 200  # tune texts on which candidates are put in order
TRIED = 3  # candidates compared on the texts for choosing; each more makes a difference harder to show
FEWEST = 6  # texts for choosing: an exact test at 5 % finds nothing in fewer, whatever the answers
# What could be taken for the frame of a prompt, or for a template.
FRAMES = regex.compile(r"[\p{Cc}\p{Zl}\p{Zp}<>]|\{[{%#]|[}%#]\}")

Measure = Callable[[Sequence[Gold], Plan, str], Awaitable[Evaluation]]  # of texts, by a plan, under a title


@dataclass(frozen=True)
class Candidate:
    """A recipe that differs from the present one in the thing it is named after."""

    name: str
    plan: Plan


@dataclass(frozen=True)
class Trial:
    """What became of a candidate.

    screened: on the tune texts its score less that of the present recipe, in [-1, 1]; the score is the mean over tasks
    of accuracy or strict F1. None where there was nothing to score.
    contrasts: with the present recipe, one a task, on the texts for choosing; empty where it was not tried there.
    failed: texts there that it could not label and the present recipe could.
    """

    candidate: Candidate
    screened: float | None
    contrasts: tuple[Contrast, ...] = ()
    failed: int = 0

    @property
    def wins(self) -> bool:
        """Shown to be better on a task, and worse on none, for which its interval alone is enough; and never failing
        where the present recipe does not."""
        worse = any(one.effect is not None and one.effect.difference.high < 0 for one in self.contrasts)
        return any(one.better == self.candidate.name for one in self.contrasts) and not worse and not self.failed

    @property
    def gain(self) -> float:
        return sum(one.effect.difference.value for one in self.contrasts if one.effect is not None)


@dataclass(frozen=True)
class Improvement:
    """trials: of all candidates, those that did best on the tune texts first. kept: the one that won, or None.

    uses: gold texts of each use. test: the comparison of the kept one with the present recipe on the test part
    (`comparison.document`); None where nothing is kept, or that part is empty. missing: what the gold set lacks.
    """

    present: Plan
    trials: tuple[Trial, ...]
    kept: Candidate | None
    uses: dict[str, int]
    test: dict[str, Any] | None
    missing: tuple[str, ...]
    verdict: str

    def document(self) -> dict[str, Any]:
        """{"kind": "improvement", "recipe", "uses", "trials", "kept", "test", "missing", "verdict"} as plain data."""
        trials = [
            {
                "name": trial.candidate.name,
                "recipe": trial.candidate.plan.body,
                "screened": trial.screened,
                "contrasts": [asdict(contrast) for contrast in trial.contrasts],
                "failed": trial.failed,
                "wins": trial.wins,
            }
            for trial in self.trials
        ]
        return {
            "kind": "improvement",
            "recipe": self.present.body,
            "uses": self.uses,
            "trials": trials,
            "kept": self.kept.name if self.kept else None,
            "test": self.test,
            "missing": list(self.missing),
            "verdict": self.verdict,
        }


async def improve(
    gold: Sequence[Gold],
    name: str,
    present: Plan,
    prompts: Iterable[Prompt],
    measure: Measure,
    *,
    limit: int | None = None,
    seed: int = 0,
) -> Improvement:
    """Look for a recipe that is better than the present one, and keep it only where that is shown.

    gold: a whole set, called `name`, of any size. prompts: those that candidates may use. measure: evaluates texts by a
    plan. limit: read so many texts at most; worked examples keep away from all texts of the set that are held out.
    seed: decides between worked examples that are equally good, and in which order they stand.
    """
    from eval.parts import use_of

    uses: dict[str, list[Gold]] = {"tune": [], "choose": [], "promise": [], "test": []}
    for one in sample(gold, limit):
        uses[use_of(one.text)].append(one)
    sizes = {use: len(texts) for use, texts in uses.items()}
    if missing := _missing(uses):
        return Improvement(present, (), None, sizes, None, missing, f"nothing changes: {'; '.join(missing)}")
    tune = await measure(sample(uses["tune"], POOL), present, f"{PRESENT}, tune")
    held = [one.text for one in gold if use_of(one.text) != "tune"]
    screened = await _screened(present, propose(tune, held, prompts, seed), tune.gold, measure)
    hopeful = [trial for trial in screened if trial.screened is not None and trial.screened > 0][:TRIED]
    tried = await _tried(present, hopeful, uses["choose"], measure)
    trials = (*tried, *(trial for trial in screened if trial not in hopeful))
    best = max((trial for trial in tried if trial.wins), key=lambda trial: trial.gain, default=None)
    test = await _tested(present, best.candidate, uses["test"], name, gold, measure) if best else None
    verdict = _kept(best, test) if best else _unchanged(trials)
    return Improvement(present, trials, best.candidate if best else None, sizes, test, (), verdict)


def propose(tune: Evaluation, held: Sequence[str], prompts: Iterable[Prompt], seed: int) -> list[Candidate]:
    """Candidates that change one thing of the recipe that read the tune texts: worked examples, whether definitions are
    shown, the order of labels, the order of choices. Nothing is invented: all of it stands in the schema or in gold.

    held: the texts that no worked example may be near to. A candidate that shows an engine nothing new is none.
    """
    plan = tune.plan
    sets = select(tune, held, seed)
    variants = [*_additions(plan, prompts, sets), *_removals(plan), *_orders(tune)]
    found: dict[tuple[Message, ...], Candidate] = {}
    known = {_shown(plan.prompt, plan.schema)}
    names: set[str] = set()
    for name, prompt, schema in variants:
        shown = _shown(prompt, schema)
        if shown is None or shown in known or name in names:
            continue
        known.add(shown)
        names.add(name)
        found[shown] = Candidate(name, Plan(schema, prompt, plan.identity))
    return list(found.values())


def select(tune: Evaluation, held: Sequence[str], seed: int) -> dict[str, tuple[Example, ...]]:
    """Sets of worked examples by name, from the tune texts: near to those that were labelled wrongly, and near to all.

    Each set is chosen greedily, by labels that it does not show yet and by how much nearer it comes to the texts it is
    meant for (cosine of TF-IDF over characters). What the set has near already counts no more, which keeps it diverse:
    greedy maximisation of a submodular function (Nemhauser, Wolsey and Fisher 1978; Lin and Bilmes 2011).
    held: texts of which none may be a near-duplicate (`eval.parts.leaks`). The same seed gives the same sets.
    """
    pool = _pool(tune, held)
    verdicts = [
        (gold, [agrees(gold.labels, said, task.name) for task in tune.plan.schema.tasks]) for gold, said in tune.pairs
    ]
    near = {
        "what was wrong": [gold.text for gold, right in verdicts if False in right],
        "all texts": [gold.text for gold, _ in verdicts],
    }
    most = len(tune.gold) // SHARE
    sets = {}
    for what, targets in near.items():
        ranked = _greedy(pool, targets, max(SIZES), seed) if pool and targets else []
        for size in SIZES:
            if size <= min(most, len(ranked)):
                ordered = sorted(ranked[:size], key=lambda example: _draw(example.text, seed))
                sets[f"{size} examples near {what}"] = tuple(ordered)
    return sets


def _missing(uses: Mapping[str, Sequence[Gold]]) -> tuple[str, ...]:
    from eval.parts import CHOOSING, UPTO

    upto = dict(UPTO)
    missing = []
    if not uses["tune"]:
        missing.append("no gold text is in the tune part, of which candidates are made")
    if len(uses["choose"]) < FEWEST:
        share = (upto["calibrate"] - upto["tune"]) * CHOOSING
        have = f"{len(uses['choose'])} of {sum(map(len, uses.values()))} gold texts are for choosing a prompt"
        enough = f"about {round(FEWEST / share)} gold texts have as many"
        missing.append(f"{have}, and no test can show a difference with fewer than {FEWEST}; {enough}")
    return tuple(missing)


def _pool(tune: Evaluation, held: Sequence[str]) -> dict[Example, set[tuple[str, str]]]:
    """The tune texts that can be worked examples, with the labels they show; `no mention` is one."""
    from eval.parts import canonical, leaks

    texts = [one.text for one in tune.gold]
    near = {leak.other for leak in leaks({"held": held, "tune": texts})}
    pool: dict[str, tuple[Example, set[tuple[str, str]]]] = {}
    for one in tune.gold:
        example = None if one.text in near else worked_example(one, tune.plan.schema)
        if example is not None:
            pool.setdefault(canonical(one.text), (example, set(_labels(one.labels))))
    return dict(pool.values())


def worked_example(gold: Gold, schema: Schema) -> Example | None:
    """The text as a worked example; None where it is long, could be taken for a prompt's frame, lacks the labels of a
    task, or has mentions whose places an example cannot say."""
    window, *more = windows(gold.text)
    if more or len(gold.text) > LONGEST or FRAMES.search(gold.text):
        return None
    said: dict[str, Any] = plain(gold.labels)
    if any(task.name not in said for task in schema.tasks):
        return None
    for task, mentions in gold.labels.mentions.items():
        after = 0
        for span in mentions.spans:
            run = locate(window, span.text, after)
            if run is None or window.words[run[0]][0] + window.offset != span.start:
                return None
            after = run[1]
        said[task] = [{"text": span.text, "label": span.label} for span in mentions.spans]
    return Example(text=gold.text, **said)


def _labels(labels: Labels) -> Iterator[tuple[str, str]]:
    for task, choice in labels.choices.items():
        yield task, choice.label
    for task, mentions in labels.mentions.items():
        yield from ((task, span.label) for span in mentions.spans)
        if not mentions.spans:
            yield task, ""


def _greedy(
    pool: Mapping[Example, set[tuple[str, str]]], targets: Sequence[str], count: int, seed: int
) -> list[Example]:
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    examples = sorted(pool, key=lambda example: _draw(example.text, seed))
    texts = [example.text for example in examples]
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True).fit([*texts, *targets])
    near = (vectors.transform(texts) @ vectors.transform(targets).T).toarray()  # shape (examples, targets), in [0, 1]
    every = len(set().union(*pool.values()))
    reached, covered = np.zeros(len(targets)), set[tuple[str, str]]()
    ranked: list[Example] = []
    while len(ranked) < min(count, len(examples)):
        gains = np.maximum(near - reached, 0).mean(axis=1)
        gains += [len(pool[example] - covered) / every for example in examples]
        gains[[example in ranked for example in examples]] = -1
        best = int(np.argmax(gains.round(9)))
        ranked.append(examples[best])
        covered |= pool[examples[best]]
        reached = np.maximum(reached, near[best])
    return ranked


def _draw(text: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{text}".encode()).digest()


def _additions(
    plan: Plan, prompts: Iterable[Prompt], sets: Mapping[str, tuple[Example, ...]]
) -> Iterator[tuple[str, Prompt, Schema]]:
    """What can be shown besides. A prompt that shows too little gives way to one that, given less, reads the same."""
    schema, present = plan.schema, _shown(plan.prompt, plan.schema)
    others = sorted((p for p in prompts if p.wire == plan.prompt.wire and p.id != plan.prompt.id), key=lambda p: p.id)
    for prompt in (plan.prompt, *others):
        for defined in (True, False):
            for examples in dict.fromkeys((schema.examples, ())):
                if _shown(prompt, _dressed(schema, defined, examples)) != present:
                    continue
                yield "label definitions", prompt, _dressed(schema, True, examples)
                yield "the examples of the schema", prompt, _dressed(schema, defined, schema.examples)
                for name, chosen in sets.items():
                    yield name, prompt, _dressed(schema, defined, chosen)


def _removals(plan: Plan) -> Iterator[tuple[str, Prompt, Schema]]:
    yield "no label definitions", plan.prompt, _dressed(plan.schema, False, plan.schema.examples)
    yield "no examples", plan.prompt, _dressed(plan.schema, True, ())


def _orders(tune: Evaluation) -> Iterator[tuple[str, Prompt, Schema]]:
    plan = tune.plan
    seen = Counter((task, label) for one in tune.gold for task, label in _labels(one.labels))

    def arranged(key: Callable[[Task, Label], Any] | None) -> Schema:
        def labels(task: Task) -> Iterable[Label]:
            return reversed(task.labels) if key is None else sorted(task.labels, key=lambda label: key(task, label))

        tasks = [
            task.model_dump() | {"labels": [one.model_dump() for one in labels(task)]} for task in plan.schema.tasks
        ]
        return _variant(plan.schema, tasks=tasks)

    yield "frequent labels first", plan.prompt, arranged(lambda task, label: -seen[task.name, label.name])
    yield "labels by alphabet", plan.prompt, arranged(lambda _, label: label.shown.casefold())
    yield "labels reversed", plan.prompt, arranged(None)
    tasks = [task.model_dump() for task in reversed(plan.schema.tasks)]
    yield "choices reversed", plan.prompt, _variant(plan.schema, tasks=tasks)


def _dressed(schema: Schema, defined: bool, examples: tuple[Example, ...]) -> Schema:
    """The schema with or without definitions, and with these examples; the schema itself where that is no change."""
    data = schema.model_dump()
    dressed = data | {"examples": [example.model_dump() for example in examples]}
    if not defined:
        dressed["tasks"] = [
            task | {"labels": [label | {"definition": ""} for label in task["labels"]]} for task in data["tasks"]
        ]
    same = examples == schema.examples and (defined or not any(x.definition for t in schema.tasks for x in t.labels))
    return schema if same else _variant(schema, **{key: dressed[key] for key in ("tasks", "examples")})


def _variant(schema: Schema, **changes: Any) -> Schema:
    """Anew from plain data: a copy would keep what the schema has computed of its labels."""
    return Schema.model_validate(schema.model_dump() | {"version": schema.version + 1} | changes)


def _shown(prompt: Prompt, schema: Schema) -> tuple[Message, ...] | None:
    """What an engine reads before the text; None where the prompt cannot be used with the schema."""
    try:
        return prompt.messages(windows("")[0], schema)
    except Invalid:
        return None


def _apart(gold: Sequence[Gold], plans: Iterable[Plan]) -> list[Gold]:
    """The texts that no worked example of the plans is, or nearly is."""
    from eval.parts import leaks

    shown = [example.text for plan in plans for example in plan.schema.examples]
    if not shown:
        return list(gold)
    near = {leak.other for leak in leaks({"examples": shown, "gold": [one.text for one in gold]})}
    return [one for one in gold if one.text not in near]


async def _screened(
    present: Plan, candidates: Sequence[Candidate], tune: Sequence[Gold], measure: Measure
) -> list[Trial]:
    """All candidates on the same tune texts, of which none is an example of any; the best first."""
    texts = sample(_apart(tune, [present, *(one.plan for one in candidates)]), SCREENED)
    if not texts or not candidates:
        return [Trial(one, None) for one in candidates]
    before = _score(await measure(texts, present, f"{PRESENT}, tune"))
    trials = []
    for one in candidates:
        after = _score(await measure(texts, one.plan, f"{one.name}, tune"))
        trials.append(Trial(one, after - before if after is not None and before is not None else None))
    return sorted(trials, key=lambda trial: -2.0 if trial.screened is None else trial.screened, reverse=True)


def _score(found: Evaluation) -> float | None:
    """The mean over tasks of accuracy or strict F1, each over all texts that have labels."""
    scores = [figures["exact" if figures["kind"] == "choice" else "f1"] for figures in found.tasks.values()]
    known = [score["value"] for score in scores if score is not None]
    return sum(known) / len(known) if known else None


async def _tried(present: Plan, hopeful: Sequence[Trial], choose: Sequence[Gold], measure: Measure) -> list[Trial]:
    """Each with its contrasts, corrected over all of them and all tasks."""
    from eval.compare import compare

    texts = _apart(choose, [present, *(trial.candidate.plan for trial in hopeful)])
    if not texts or not hopeful:
        return list(hopeful)
    before = await measure(texts, present, f"{PRESENT}, choose")
    paired: dict[str, ChoiceTask | SpanTask] = {}
    failed = []
    for number, trial in enumerate(hopeful):
        name = trial.candidate.name
        after = await measure(texts, trial.candidate.plan, f"{name}, choose")
        answers = zip(before.answers, after.answers, strict=True)
        failed.append(sum(isinstance(b, Failure) and not isinstance(a, Failure) for a, b in answers))
        sides = comparison.paired({PRESENT: before, name: after})
        paired |= {f"{task}@{number}": side for task, side in sides.items()}
    contrasts: list[list[Contrast]] = [[] for _ in hopeful]
    for contrast in compare(paired).contrasts:
        task, _, place = contrast.task.rpartition("@")
        verdict = contrast.verdict.replace(contrast.task, task)
        contrasts[int(place)].append(replace(contrast, task=task, verdict=verdict))
    both = zip(hopeful, contrasts, failed, strict=True)
    return [replace(trial, contrasts=tuple(found), failed=count) for trial, found, count in both]


async def _tested(
    present: Plan, kept: Candidate, test: Sequence[Gold], name: str, everything: Sequence[Gold], measure: Measure
) -> dict[str, Any] | None:
    texts = _apart(test, [present, kept.plan])
    if not texts:
        return None
    found = {
        one.name: await measure(texts, one.plan, f"{one.name}, test") for one in (Candidate(PRESENT, present), kept)
    }
    return comparison.document(found, name, everything)


def _kept(best: Trial, test: Mapping[str, Any] | None) -> str:
    seen = (
        f"on {test['texts']} untouched test texts: {test['comparison']['verdict']}"
        if test
        else "no text is left to test it"
    )
    return (
        f"{best.candidate.name}: kept, since {_said(best)}; {seen}. This is a new recipe, for which no standard is in "
        "force: make one (concord calibrate); what it promises rests on texts that had no part in this choice"
    )


def _unchanged(trials: Sequence[Trial]) -> str:
    tried = [trial for trial in trials if trial.contrasts]
    if not trials:
        return "nothing changes: there is nothing that a candidate could change"
    if not tried:
        return f"nothing changes: none of {len(trials)} candidates did better on the tune texts"
    told = "; ".join(f"{trial.candidate.name}: {_said(trial)}" for trial in tried)
    return f"none of them is better: nothing changes. Of {len(trials)} candidates {len(tried)} were tried: {told}"


def _said(trial: Trial) -> str:
    failed = [f"it fails on {trial.failed} texts that the present recipe can label"] if trial.failed else []
    return ", ".join([one.verdict for one in trial.contrasts] + failed)
