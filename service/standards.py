"""Standards: what the labels of a recipe are held to, made from gold, and kept in versions.

`make` is pure. Every gold text has one use (`eval.parts.use_of`): on `tune` and `choose` prompts are chosen and
calibrators fitted, on `promise` thresholds are promised, and `test` tells what came of it. So nothing is promised on
texts that helped to choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import func
from sqlmodel import Session, col, select

from service.annotate import Annotated, Failure
from service.confidence import calibrated
from service.errors import Invalid, NotFound
from service.labels import Labels
from service.models import StandardVersion
from service.queue import keep_recipe
from service.route import Calibrators, Line, Standard, score
from service.schema import Schema
from service.sets import Gold

ITEM = "item"  # how a promise of whole items is called in documents, and on the command line


@dataclass(frozen=True, slots=True)
class Made:
    """A standard, and what it rests on.

    promises: one a stated error, asdict of eval.guarantee.Promise with "of", a task or `item`.
    checks: what came of it on the test part, one a promise with a threshold: "of", "n", and the Estimates "coverage"
    and "error".
    sizes: texts of each use. left_out: labelled texts that no promise counts, since a person sees them in any case, or
    since they are worked examples that the prompt may show. unstated: tasks of which no error was stated, and which
    play no part in the threshold. notes: "sample", what speaks against the texts being a random sample of those to
    come.
    """

    standard: Standard
    promises: list[dict[str, Any]]
    checks: list[dict[str, Any]]
    sizes: dict[str, int]
    left_out: int
    unstated: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)

    def body(self, recipe: Mapping[str, Any], identity: Mapping[str, str]) -> dict[str, Any]:
        """What `put` keeps: the standard and all that it rests on. recipe: its body. identity: of the gold set."""
        return {
            "standard": self.standard.model_dump(mode="json"),
            "recipe": dict(recipe),
            "gold": dict(identity),
            "promises": self.promises,
            "checks": self.checks,
            "parts": self.sizes,
        }

    @property
    def lacking(self) -> list[str]:
        """Why it cannot be put in force; empty where it can.

        Every label that is accepted must be backed: of each task, or of whole items, an error must be stated.
        """
        lacking = [f"{one['of']}: {one['notes']['threshold']}" for one in self.promises if one["threshold"] is None]
        return lacking + [f"{task}: no error was stated" for task in self.unstated if self.promises]


@dataclass(frozen=True, slots=True)
class _Item:
    gold: Gold
    said: Labels


def make(
    schema: Schema,
    gold: Sequence[Gold],
    answers: Sequence[Annotated | Failure],
    errors: Mapping[str, float],
    level: float,
    identity: Mapping[str, str],
) -> Made:
    """Fit calibrators, and choose the threshold at which the stated errors are promised.

    gold, answers: shape (n,). errors: by task, or by `item` for all tasks of a text together, the share of accepted
    items whose labels may disagree with people, in (0, 1). There is one threshold, on how sure all tasks of which an
    error is stated are together, since all promises are about the same items. Together they hold with probability
    `level`. identity: of the gold set, kept in the calibrators. Raises Invalid for an unknown task or a number out of
    range.
    """
    from eval.guarantee import promise_together
    from eval.parts import canonical, use_of

    _check(schema, errors, level)
    items: dict[str, list[_Item]] = {"tune": [], "choose": [], "promise": [], "test": []}
    sizes = dict.fromkeys(items, 0)
    left_out = 0
    examples = {canonical(example.text) for example in schema.examples}
    for one, answer in zip(gold, answers, strict=True):
        use = use_of(one.text)
        sizes[use] += 1
        if isinstance(answer, Annotated) and (_routed_otherwise(answer) or canonical(one.text) in examples):
            left_out += 1
        elif isinstance(answer, Annotated):
            items[use].append(_Item(one, answer.labels))
    standard = Standard(calibrators=_calibrators(schema, items["tune"] + items["choose"], identity))
    everything = [task.name for task in schema.tasks]
    ranked = everything if ITEM in errors else [task for task in everything if task in errors]
    about = {name: everything if name == ITEM else [name] for name in errors}
    confidence, promising = _scored(items["promise"], standard, ranked)
    right = {name: _right(promising, tasks) for name, tasks in about.items()}
    found = promise_together(confidence, right, errors, level)
    lines = [
        Line(task=None if name == ITEM else name, threshold=one.threshold, error=one.error, level=one.level)
        for name, one in found.items()
        if one.threshold is not None
    ]
    checks = []
    if lines:
        confidence, tested = _scored(items["test"], standard, ranked)
        checks = [_check_on_test(n, confidence, _right(tested, about[n]), lines[0].threshold) for n in found]
    return Made(
        standard.model_copy(update={"lines": tuple(lines)}),
        [{"of": name, **asdict(one)} for name, one in found.items()],
        checks,
        sizes,
        left_out,
        tuple(task for task in everything if task not in ranked),
        _notes([one.gold.text for one in items["promise"]]),
    )


def scored(
    gold: Sequence[Gold],
    answers: Sequence[Annotated | Failure],
    standard: Standard,
    tasks: Sequence[str],
    of: Sequence[str],
) -> tuple[list[float], list[bool]]:
    """For each text that both label in all of `tasks`: how sure these labels are together (`route.score`), and whether
    those of the tasks `of`, which are among them, agree with gold one and all."""
    pairs = zip(gold, answers, strict=True)
    items = [_Item(one, answer.labels) for one, answer in pairs if isinstance(answer, Annotated)]
    confidence, kept = _scored(items, standard, tasks)
    return confidence, _right(kept, of)


def agrees(gold: Labels, said: Labels, task: str) -> bool | None:
    """Whether the labels of a task are the same, all mentions of a text counting as one; None where gold has none."""
    if task in gold.choices and task in said.choices:
        return gold.choices[task].label == said.choices[task].label
    if task in gold.mentions and task in said.mentions:
        return gold.mentions[task].places == said.mentions[task].places
    return None


def each_said(task: str, gold: Labels, said: Labels) -> list[tuple[str, float, bool]]:
    """(label, confidence, whether it agrees) of the choice, or of each mention that was said."""
    if task in gold.choices and task in said.choices:
        choice = said.choices[task]
        return [(choice.label, choice.confidence or 0.0, choice.label == gold.choices[task].label)]
    if task in gold.mentions and task in said.mentions:
        places = gold.mentions[task].places
        return [
            (span.label, span.confidence or 0.0, (span.start, span.end, span.label) in places)
            for span in said.mentions[task].spans
        ]
    return []


def put(session: Session, recipe: str, body: Mapping[str, Any], made: Mapping[str, Any]) -> StandardVersion:
    """Put a standard in force for a recipe. made: "standard", and whatever tells how it was made. Nothing is lost: the
    one before stays, as `predecessor`."""
    keep_recipe(session, recipe, body)
    before = newest(session, recipe)
    row = StandardVersion(recipe=recipe, predecessor=before.id if before else None, body=dict(made))
    session.add(row)
    session.flush()
    return row


def in_force(session: Session, recipe: str) -> Standard | None:
    """What the labels of the recipe are held to now; None where no standard was ever put in force."""
    row = newest(session, recipe)
    if row is None:
        return None
    held = Standard.model_validate(row.body["standard"]).model_copy(update={"version": row.id})
    calibrated(Labels(), held)  # here, in a thread: reading calibrators the first time takes a second or two
    return held


def restore(session: Session, version: int) -> StandardVersion:
    """Put an earlier standard in force again, as a new version. Raises NotFound."""
    row = session.get(StandardVersion, version)
    if row is None:
        raise NotFound(f"no standard {version}")
    before = newest(session, row.recipe)
    again = StandardVersion(recipe=row.recipe, predecessor=before.id if before else None, body=row.body)
    session.add(again)
    session.flush()
    return again


def history(session: Session, before: int | None = None, limit: int | None = None) -> list[StandardVersion]:
    """Standards, the newest first: all, or at most `limit` of those older than the version `before`."""
    query = select(StandardVersion).order_by(col(StandardVersion.id).desc())
    if before is not None:
        query = query.where(col(StandardVersion.id) < before)
    return list(session.exec(query.limit(limit)))


def versions_in_force(session: Session) -> set[int]:
    """The version that is in force for each recipe."""
    query = select(func.max(StandardVersion.id)).group_by(col(StandardVersion.recipe))
    return {version for version in session.exec(query) if version is not None}


def newest(session: Session, recipe: str) -> StandardVersion | None:
    """The standard in force for the recipe, as it was stored; None where there is none."""
    query = select(StandardVersion).where(StandardVersion.recipe == recipe).order_by(col(StandardVersion.id).desc())
    return session.exec(query.limit(1)).first()


def noted(row: StandardVersion) -> dict[str, Any]:
    """What the ledger says of a standard that came in force: the arguments of `ledger.append` but who and action."""
    before = None if row.predecessor is None else {"standard": row.predecessor}
    after = {"standard": row.id, "body": row.body}
    return {"subject": f"standard:{row.id}", "before": before, "after": after, "recipe": row.recipe}


def _check(schema: Schema, errors: Mapping[str, float], level: float) -> None:
    known = [task.name for task in schema.tasks]
    for name, error in errors.items():
        if name != ITEM and name not in known:
            raise Invalid(
                f"error: no task {name!r} in the schema {schema.name}; there is {', '.join(known)}, or {ITEM}"
            )
        if not 0 < error < 1:
            raise Invalid(f"error of {name}: expected a share between 0 and 1, such as 0.03, not {error}")
    if not 0 < level < 1:
        raise Invalid(f"confidence: expected a share between 0 and 1, such as 0.95, not {level}")


def _notes(texts: Sequence[str]) -> dict[str, str]:
    repeats = len(texts) - len(set(texts))
    if not repeats:
        return {}
    found = f"{repeats} of the {len(texts)} texts that promises rest on repeat others"
    return {"sample": f"{found}: what is promised holds only if texts to come repeat as often"}


def _routed_otherwise(answer: Annotated) -> bool:
    """Whether a person sees the text however sure its labels are."""
    if answer.truncated:
        return True
    second = answer.second
    tasks = [*second.choices, *second.mentions] if second else []
    return any(agrees(second, answer.labels, task) is False for task in tasks) if second else False


def _calibrators(schema: Schema, items: Sequence[_Item], identity: Mapping[str, str]) -> dict[str, Calibrators]:
    from eval.calibration import fit

    found = {}
    for task in schema.tasks:
        rows = [(one, row) for one in items for row in each_said(task.name, one.gold.labels, one.said)]
        each = fit([row[1] for _, row in rows], [row[2] for _, row in rows], [o.gold.text for o, _ in rows], identity)
        whole = None
        if task.kind == "spans":
            texts = [one.gold.text for one in items if agrees(one.gold.labels, one.said, task.name) is not None]
            whole = fit(*_raw(items, task.name), texts, identity).plain()
        found[task.name] = Calibrators(each=each.plain(), whole=whole)
    return found


def _raw(items: Sequence[_Item], task: str) -> tuple[list[float], list[bool]]:
    pairs = [(score(one.said, [task]), agrees(one.gold.labels, one.said, task)) for one in items]
    known = [(sure or 0.0, right) for sure, right in pairs if right is not None]
    return [sure for sure, _ in known], [right for _, right in known]


def _scored(items: Sequence[_Item], standard: Standard, tasks: Sequence[str]) -> tuple[list[float], list[_Item]]:
    """The items whose gold has all of the tasks, and how sure their labels of these are together."""
    confidence, kept = [], []
    for one in items:
        sure = score(calibrated(one.said, standard), tasks)
        if sure is not None and all(agrees(one.gold.labels, one.said, task) is not None for task in tasks):
            confidence.append(sure)
            kept.append(one)
    return confidence, kept


def _right(items: Sequence[_Item], tasks: Sequence[str]) -> list[bool]:
    return [all(agrees(one.gold.labels, one.said, task) for task in tasks) for one in items]


def _check_on_test(name: str, confidence: Sequence[float], right: Sequence[bool], threshold: float) -> dict[str, Any]:
    from eval.scores import proportion

    accepted = [good for sure, good in zip(confidence, right, strict=True) if sure >= threshold]
    coverage, error = proportion(len(accepted), len(confidence)), proportion(accepted.count(False), len(accepted))
    return {
        "of": name,
        "n": len(confidence),
        "coverage": asdict(coverage) if coverage else None,
        "error": asdict(error) if error else None,
    }
