"""The document of an evaluation: everything that its report and the API say of a recipe on a gold set, as plain data.

Shape: see `document`. Estimates are {"value", "low", "high"}, of 95 %; what cannot be told is None, with a note.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlmodel import Session

from service import readings, standards
from service.evaluation import Evaluation
from service.labels import Labels, plain
from service.models import now
from service.route import Standard, score
from service.sets import Gold, Judgement
from service.standards import ITEM, Made

Place = tuple[int, int, str]  # of a mention: start, end, label

SHOWN = 20  # disagreements, and suspects, that are listed
SLICES = 20  # values that a field of meta may have to be a slice
POINTS = 60  # of a curve
SURE = 0.9  # probability from which a disagreement speaks against gold


class Workload(BaseModel):
    """New texts to come, and what people's time is: of which the work left is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: int = Field(1000, ge=1, le=1_000_000_000, strict=True, description="texts for which the work left is told")
    seconds: float = Field(15.0, ge=0, le=1_000_000, strict=True, description="a person's time for one text")
    price: float = Field(0.0, ge=0, le=1_000_000, strict=True, description="of a person's hour, in any currency")


def document(found: Evaluation, name: str, everything: Sequence[Gold], session: Session | None) -> dict[str, Any]:
    """What an evaluation found, without anything promised: {"kind": "evaluation", "made", "gold", "schema", "recipe",
    "recipe_sha256", "texts", "failed", "refused", "cached", "seconds", "tokens", "tasks", "curves", "promises",
    "checks", "work", "disagreements", "suspects"}.

    everything: the whole gold set, of which the evaluation may have read a part. session: of the database with what
    other recipes said; None for none. refused: records that could not be read, for the caller to fill in. tasks: as
    `Evaluation.tasks`, and "confidence" (`eval.calibration.Calibration`) and "ceiling" (`eval.ceiling`, where several
    people labelled a text). curves: error against coverage, for each task and for `item`, all tasks of a text together.
    """
    plan = found.plan
    identity = gold_identity(name, everything)
    what = {"name": plan.schema.name, "version": plan.schema.version, "sha256": plan.schema.sha256}
    figures = found.figures()
    for task, numbers in figures["tasks"].items():
        numbers["confidence"] = _confidence(task, found, identity)
        numbers["ceiling"] = _ceiling(task, found)
    tasks = [task.name for task in plan.schema.tasks if task.name in figures["tasks"]]
    return {
        "kind": "evaluation",
        "made": f"{now():%Y-%m-%dT%H:%M:%SZ}",
        "gold": identity,
        "schema": what,
        **figures,
        "refused": 0,
        "curves": _curves(found, tasks),
        "promises": [],
        "checks": [],
        "work": None,
        "disagreements": disagreements(found),
        "suspects": suspects(found, session),
    }


def promised(document: dict[str, Any], found: Evaluation, made: Made, load: Workload) -> dict[str, Any]:
    """The document with what was promised, the work that is then left, and the point chosen on each curve."""
    chosen = {line.task or ITEM: line.threshold for line in made.standard.lines}
    tested = {check["of"]: check for check in made.checks}
    everything = [task.name for task in found.plan.schema.tasks]
    curves = []
    for promise in made.promises:
        about = everything if promise["of"] == ITEM else [promise["of"]]
        ranked = [task for task in everything if task not in made.unstated]
        drawn = curve(found, promise["of"], made.standard, ranked, about)
        if promise["of"] in chosen:
            at = {key: (tested[promise["of"]][key] or {}).get("value") for key in ("coverage", "error")}
            drawn["chosen"] = {"threshold": chosen[promise["of"]], **at}
        curves.append(drawn)
    named = {promise["of"] for promise in made.promises} | ({*everything} if len(everything) == 1 else set())
    curves += [one for one in document["curves"] if one["of"] not in named]
    return document | {"curves": curves, "promises": made.promises, "checks": made.checks, "work": _work(made, load)}


def gold_identity(name: str, gold: Sequence[Gold]) -> dict[str, Any]:
    """{"name", "sha256", "texts", "parts", "leaks"}: what the set holds, and what stands in two of its parts."""
    from eval.parts import UPTO, leaks, part_of, version

    parts: dict[str, list[str]] = {part: [] for part, _ in UPTO}
    for one in gold:
        parts[part_of(one.text)].append(one.text)
    return {
        "name": name,
        "sha256": version(one.record() for one in gold),
        "texts": len(gold),
        "parts": {part: len(texts) for part, texts in parts.items()},
        "leaks": [asdict(leak) for leak in leaks(parts)],
    }


def curve(found: Evaluation, of: str, standard: Standard, tasks: Sequence[str], about: Sequence[str]) -> dict[str, Any]:
    """{"of", "points": [{"threshold", "coverage", "error"}], "chosen": None}: the error in the tasks `about` among
    accepted as more is accepted, those first whose `tasks` are surest together, at up to 60 thresholds. It promises
    nothing: it is what these texts gave."""
    from eval.scores import proportion

    confidence, right = standards.scored(found.gold, found.answers, standard, tasks, about)
    ranked = sorted(zip(confidence, right, strict=True), key=lambda one: -one[0])
    ends = [n for n in range(1, len(ranked) + 1) if n == len(ranked) or ranked[n][0] < ranked[n - 1][0]]
    step = max(1, -(-len(ends) // POINTS))
    wrong = [0]
    for _, good in ranked:
        wrong.append(wrong[-1] + (not good))
    points = []
    for end in sorted({*ends[step - 1 :: step], *ends[-1:]}):
        error = proportion(wrong[end], end)
        points.append(
            {
                "threshold": ranked[end - 1][0],
                "coverage": end / len(ranked),
                "error": asdict(error) if error else None,
            }
        )
    return {"of": of, "points": points, "chosen": None}


def disagreements(found: Evaluation) -> list[dict[str, Any]]:
    """At most 20 that differ from gold, of every kind some, those first where the model was surest."""
    kinds: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for gold, said in found.pairs:
        for task in found.tasks:
            if standards.agrees(gold.labels, said, task) is False:
                entry = _entry(gold, said, task)
                kinds[_kind(entry)].append(entry | {"why": _why(entry)})
    for entries in kinds.values():
        entries.sort(key=lambda entry: -(entry["confidence"] or 0.0))
    turns = sorted(kinds.values(), key=lambda entries: -len(entries))
    in_turn = [entries[turn] for turn in range(SHOWN) for entries in turns if turn < len(entries)]
    return in_turn[:SHOWN]


def suspects(found: Evaluation, session: Session | None) -> list[dict[str, Any]]:
    """At most 20 texts whose gold is probably wrong, with the reason, the likeliest first.

    Confident: by a calibration that the text had no part in, the label agrees with people in at least 9 of 10 cases,
    and here it does not. Consistent: every other recipe that is known to have read the text says the same, and so does
    the same text elsewhere in the set.
    """
    texts = [gold.text for gold, _ in found.pairs]
    others: dict[str, list[Labels]] = defaultdict(list)
    if session is not None:
        for _, text, labels in readings.others(session, found.plan.sha256, texts):
            others[text].append(labels)
    listed = []
    for task in found.tasks:
        for gold, said, probability in _probable(task, found):
            if standards.agrees(gold.labels, said, task) is not False or probability < SURE:
                continue
            reads = [standards.agrees(said, other, task) for other in others[gold.text]]
            if False in reads:
                continue
            same = [
                o for o in found.gold if o.text == gold.text and standards.agrees(gold.labels, o.labels, task) is False
            ]
            voices = [f"labels as sure as this agree with people in {probability:.0%} of cases"]
            voices += [f"{len(reads)} other recipes say the same"] if len(reads) > 1 else []
            voices += ["1 other recipe says the same"] if len(reads) == 1 else []
            voices += [f"the same text has another label in {', '.join(o.id for o in same)}"] if same else []
            listed.append(_entry(gold, said, task) | {"reason": "; ".join(voices), "weight": probability + len(same)})
    listed.sort(key=lambda entry: -entry["weight"])
    return [{key: value for key, value in entry.items() if key != "weight"} for entry in listed[:SHOWN]]


def _work(made: Made, load: Workload) -> dict[str, Any] | None:
    """What is left for people; None where nothing was to be promised."""
    from eval.guarantee import work
    from eval.scores import Estimate

    if not made.promises:
        return None
    coverage = None if made.lacking else Estimate(**made.promises[0]["coverage"])  # the same for all: one threshold
    return asdict(work(coverage, load.items, load.seconds, load.price)) | {"price": load.price}


def _curves(found: Evaluation, tasks: Sequence[str]) -> list[dict[str, Any]]:
    whole = [curve(found, ITEM, Standard(), tasks, tasks)] if len(tasks) > 1 else []
    return whole + [curve(found, task, Standard(), [task], [task]) for task in tasks]


def _confidence(task: str, found: Evaluation, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    from eval.calibration import calibrate, length_bands

    rows = [(gold, *one) for gold, said in found.pairs for one in standards.each_said(task, gold.labels, said)]
    if not rows:
        return None
    slices = {"label": [label for _, label, _, _ in rows], "length": length_bands([len(row[0].text) for row in rows])}
    for name in sorted({key for gold, *_ in rows for key, value in gold.meta.items() if isinstance(value, str | int)}):
        values = [str(gold.meta.get(name, "")) for gold, *_ in rows]
        if 1 < len(set(values)) <= SLICES:
            slices[name if name not in slices else f"meta.{name}"] = values
    made = calibrate(
        [row[2] for row in rows],
        [row[3] for row in rows],
        [row[0].text for row in rows],
        slices,
        {"name": str(identity["name"]), "sha256": str(identity["sha256"])},
    )
    return asdict(made) | {"calibrator": made.calibrator.plain()}


def _ceiling(task: str, found: Evaluation) -> dict[str, Any] | None:
    from eval.ceiling import choice_ceiling, span_ceiling

    read = [(gold, said) for gold, said in found.pairs if len({one.who for one in _judged(gold, task)}) > 1]
    if not read:
        return None
    if task in read[0][1].choices:
        people = [{one.who: one.labels.choices[task].label for one in _judged(gold, task)} for gold, _ in read]
        return asdict(choice_ceiling(people, [said.choices[task].label for _, said in read]))
    marked, asked = zip(*(_marked(gold, task) for gold, _ in read), strict=True)
    return asdict(span_ceiling(marked, [said.mentions[task].places for _, said in read], asked))


def _judged(gold: Gold, task: str) -> list[Judgement]:
    return [one for one in gold.people if task in one.labels.choices or task in one.labels.mentions]


def _marked(gold: Gold, task: str) -> tuple[dict[str, set[Place]], dict[str, set[str]]]:
    """What each person marked, and for which labels those were asked who were not asked for all."""
    marked: dict[str, set[Place]] = defaultdict(set)
    asked: dict[str, set[str]] = defaultdict(set)
    judged = _judged(gold, task)
    for one in judged:
        marked[one.who] |= one.labels.mentions[task].places
        asked[one.who] |= one.asked or set()
    return marked, {who: labels for who, labels in asked.items() if all(x.asked for x in judged if x.who == who)}


def _probable(task: str, found: Evaluation) -> Iterator[tuple[Gold, Labels, float]]:
    """Each text with the probability that its labels of the task, one and all, agree with people."""
    from eval.calibration import crossfitted

    rows = [(gold, said, standards.agrees(gold.labels, said, task)) for gold, said in found.pairs]
    known = [(gold, said, right) for gold, said, right in rows if right is not None]
    sure = [score(said, [task]) or 0.0 for _, said, _ in known]
    mapped = crossfitted(sure, [right for *_, right in known], [gold.text for gold, *_ in known])
    for (gold, said, _), probability in zip(known, mapped.tolist(), strict=True):
        yield gold, said, probability


def _entry(gold: Gold, said: Labels, task: str) -> dict[str, Any]:
    return {
        "id": gold.id,
        "text": gold.text,
        "task": task,
        "gold": plain(gold.labels)[task],
        "said": plain(said)[task],
        "confidence": score(said, [task]),
    }


def _kind(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """What went wrong: of a choice the two labels, of mentions the classes of error."""
    if isinstance(entry["gold"], str):
        return entry["task"], entry["gold"], entry["said"]
    return entry["task"], *sorted(_errors([entry]))


def _why(entry: Mapping[str, Any]) -> str:
    if isinstance(entry["gold"], str):
        return f"{entry['said']} was said where people say {entry['gold']}"
    return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in _errors([entry]).items())


def _errors(entries: Iterable[Mapping[str, Any]]) -> Counter[str]:
    from eval.agreement import span_agreement

    sides = [[{(s["start"], s["end"], s["label"]) for s in e[side]} for e in entries] for side in ("gold", "said")]
    found = span_agreement(*sides)
    kinds = ("missed", "spurious", "wrong_label", "wrong_boundary")
    return Counter({kind: getattr(found, kind) for kind in kinds if getattr(found, kind)})
