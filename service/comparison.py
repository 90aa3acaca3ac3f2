"""Whether one prompt is better than another: the same gold texts, paired tests, a verdict in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from service.annotate import Annotated
from service.evaluation import Evaluation
from service.findings import gold_identity
from service.labels import Labels, plain
from service.models import now
from service.schema import ChoiceTask as Choices
from service.sets import Gold

if TYPE_CHECKING:
    from eval.compare import ChoiceTask, SpanTask

SHOWN = 20  # items that changed, of each contrast


def document(found: Mapping[str, Evaluation], name: str, everything: Sequence[Gold]) -> dict[str, Any]:
    """What sets recipes apart: {"kind": "comparison", "made", "gold", "schema", "recipes": {name: figures}, "texts",
    "comparison": asdict of eval.compare.Comparison, "changed"}.

    found: two or more evaluations of the same texts, by the name they go by, under schemas with the same tasks and
    labels; the first one's is named. Compared are the texts that all of them could label. everything: the whole gold
    set. changed: at most 20 items a contrast, of every kind some.
    """
    from eval.compare import compare

    schema = next(iter(found.values())).plan.schema
    tasks = _tasks(found)
    made = compare(paired(found))
    changed = []
    for contrast in made.contrasts:
        golds = tasks[contrast.task][0]
        kinds = {"gained": contrast.gained, "lost": contrast.lost, "still_wrong": contrast.still_wrong}
        in_turn = sorted((turn, kind, place) for kind, places in kinds.items() for turn, place in enumerate(places))
        for _, kind, place in in_turn[:SHOWN]:
            gold, said = golds[place]
            answers = {who: plain(said[who])[contrast.task] for who in (contrast.first, contrast.second)}
            entry = {"id": gold.id, "text": gold.text, "task": contrast.task, "gold": plain(gold.labels)[contrast.task]}
            changed.append(entry | {"answers": answers, "change": kind})
    return {
        "kind": "comparison",
        "made": f"{now():%Y-%m-%dT%H:%M:%SZ}",
        "gold": gold_identity(name, everything),
        "schema": {"name": schema.name, "version": schema.version, "sha256": schema.sha256},
        "recipes": {who: one.figures() for who, one in found.items()},
        "texts": len(_common(found)),
        "comparison": asdict(made),
        "changed": changed,
    }


def paired(found: Mapping[str, Evaluation]) -> dict[str, ChoiceTask | SpanTask]:
    """Gold and answers of the texts that all of them could label, by task, as `eval.compare.compare` takes them.

    found: evaluations of the same texts, by the name they go by; their schemas have the same tasks and labels. A task
    without gold is left out.
    """
    return {task: sides for task, (_, sides) in _tasks(found).items() if sides is not None}


def _tasks(
    found: Mapping[str, Evaluation],
) -> dict[str, tuple[list[tuple[Gold, dict[str, Labels]]], ChoiceTask | SpanTask | None]]:
    rows = _common(found)
    tasks = next(iter(found.values())).plan.schema.tasks
    return {task.name: _sides(task.name, isinstance(task, Choices), rows) for task in tasks}


def _common(found: Mapping[str, Evaluation]) -> list[tuple[Gold, dict[str, Labels]]]:
    """The texts that every recipe could label, with what each said."""
    gold = next(iter(found.values())).gold
    rows = []
    for n, one in enumerate(gold):
        answers = {who: evaluation.answers[n] for who, evaluation in found.items()}
        said = {who: answer.labels for who, answer in answers.items() if isinstance(answer, Annotated)}
        if len(said) == len(found):
            rows.append((one, said))
    return rows


def _sides(
    task: str, choice: bool, rows: Sequence[tuple[Gold, dict[str, Labels]]]
) -> tuple[list[tuple[Gold, dict[str, Labels]]], ChoiceTask | SpanTask | None]:
    """The texts whose gold has the task, and gold and answers as `compare` takes them; None where there is none."""
    from eval.compare import ChoiceTask, SpanTask

    labelled = [row for row in rows if task in row[0].labels.choices or task in row[0].labels.mentions]
    if not labelled:
        return [], None
    names = labelled[0][1]
    if choice:
        gold = [one.labels.choices[task].label for one, _ in labelled]
        return labelled, ChoiceTask(gold, {n: [said[n].choices[task].label for _, said in labelled] for n in names})

    marked = {n: [said[n].mentions[task].places for _, said in labelled] for n in names}
    return labelled, SpanTask([one.labels.mentions[task].places for one, _ in labelled], marked)
