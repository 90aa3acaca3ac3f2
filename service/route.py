"""Who decides an item: the service alone, or a person. Every threshold has its one home here.

`decide` is pure: labels, policy and what was measured go in, a decision with its reasons and the very
numbers behind them comes out; the review desk shows those numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from service.labels import Choice, Labels, Mentions, Probability

TIES = 1e-3  # weight of the raw confidence in a score
DIGITS = 9
UNJUDGED = {"audit_share", "reviewed_twice", "proposal_hidden", "standard"}  # of a policy: nothing is accepted by these


class Outcome(StrEnum):
    accepted = "accepted"
    review = "review"
    audit = "audit"  # accepted, and drawn at random to be looked at by a person all the same


class Code(StrEnum):
    low_confidence = "low_confidence"
    ambiguous = "ambiguous"
    disagreement = "disagreement"
    low_agreement = "low_agreement"
    gold_mismatch = "gold_mismatch"
    ungrounded = "ungrounded"
    truncated = "truncated"
    failed = "failed"
    audit = "audit"


class Policy(BaseModel):
    """When labels are accepted without a person. Compared as: below the threshold goes to review."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choice_confidence: Probability = Field(0.6, description="least probability of a chosen label")
    choice_margin: Probability = Field(0.2, description="least distance of a chosen label to the runner-up")
    span_confidence: Probability = Field(
        0.4, description="least probability of a mention, boundaries and label together"
    )
    complete: Probability = Field(0.5, description="least probability that no mention was missed")
    label_agreement: Probability = Field(0.5, description="least share of a label's uses that agreed with gold")
    label_agreement_uses: Annotated[int, Field(ge=1)] = Field(
        20, description="uses of a label on gold below which its agreement is not judged"
    )
    audit_share: Probability = Field(
        0.02, description="share of accepted items that a person sees all the same, at random"
    )
    reviewed_twice: Probability = Field(
        0.1, description="share of items for people that two of them read, blind to each other"
    )
    proposal_hidden: Probability = Field(
        0.1, description="share of readings by people in which the model's proposal is hidden"
    )
    standard: bool | None = Field(
        None,
        description="decide by the recipe's standard, where one is in force; null: unless a threshold is given here",
    )

    @property
    def by_standard(self) -> bool:
        return not self.model_fields_set - UNJUDGED if self.standard is None else self.standard

    def settled(self) -> Policy:
        """The same policy, saying outright whether a standard decides, so that it can be stored."""
        return self.model_copy(update={"standard": self.by_standard})


class Line(BaseModel):
    """What an item must reach to be accepted, and what is promised of those that do.

    threshold: least `score` of all tasks together. error, level: with probability `level` over the draw of the gold
    items, at most the share `error` of the items that reach it disagrees with people: in the labels of `task`, or,
    where that is None, in any label.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str | None
    threshold: Probability
    error: Probability
    level: Probability


class Calibrators(BaseModel):
    """Of one task, as plain data of eval.calibration.Calibrator.

    each: for a label or a mention; whole: for all mentions of a text together, None for a choice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    each: dict[str, Any]
    whole: dict[str, Any] | None = None


class Standard(BaseModel):
    """What the labels of a recipe are held to. It stands alone: other thresholds would make its promises void.

    version: its number in the table, 0 before it has one. lines: all of them must be reached; none: the thresholds of
    the policy decide.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 0
    lines: tuple[Line, ...] = ()
    calibrators: dict[str, Calibrators] = Field(default_factory=dict)


class Reason(BaseModel):
    """Why a person should look: what was measured (`value`) against what was asked (`threshold`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: Code
    task: str | None = None
    label: str | None = None
    value: float | None = None
    threshold: float | None = None
    detail: str = ""


class Decision(BaseModel):
    """inclusion: the probability with which an accepted item is drawn for the audit; None for a routed one.

    standard: version of the standard that decided; None where the policy's thresholds did.
    probability: that all labels of the item agree with people, where calibration says so (`score`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Outcome
    reasons: tuple[Reason, ...] = ()
    inclusion: Probability | None = None
    standard: int | None = None
    probability: Probability | None = None

    def row(self) -> dict[str, Any]:
        """The decision in a result row."""
        reasons = [reason.model_dump(mode="json", exclude_none=True) for reason in self.reasons]
        held = {"standard": self.standard, "probability": self.probability}
        stated = {name: value for name, value in held.items() if value is not None}
        return {"decision": self.outcome.value, "reasons": reasons, **stated}


@dataclass(frozen=True, slots=True)
class Measured:
    """How often uses of a label agreed with gold."""

    agreed: int
    uses: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of an item besides its labels.

    draw: uniform in [0, 1), the item's lot in the audit, from `lot`.
    gold: the labels that people agreed on, where the text is a gold text.
    second: what a second prompt made of the text, where one was asked.
    measured: agreement by (task, label) of this recipe on gold.
    truncated: the completion was cut off, so that something may be missing.
    standard: what the recipe's labels are held to; the labels carry its probabilities then.
    """

    draw: float
    gold: Labels | None = None
    second: Labels | None = None
    measured: Mapping[tuple[str, str], Measured] = field(default_factory=dict)
    truncated: bool = False
    standard: Standard | None = None


@dataclass(frozen=True, slots=True)
class Readings:
    """How people read an item, should they read it.

    readers: 1 or 2, blind to each other. hidden: bit n is set where reader n, counted from 0, sees no proposal.
    """

    readers: int = 1
    hidden: int = 0


ONCE = Readings()


def lot(seed: int, batch: str, position: int, draw: str = "") -> float:
    """The item's place in a draw: uniform in [0, 1), the same for the same seed, batch and position.

    draw: which one, each by itself; none is that of the audit.
    """
    digest = hashlib.sha256(f"{seed}:{batch}:{position}{draw and ':' + draw}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def readings(policy: Policy, seed: int, batch: str, position: int) -> Readings:
    """By lot, so that who is shown what depends on nobody's choice, and asking again shows no more."""
    twice = lot(seed, batch, position, "twice") < policy.reviewed_twice
    hidden = (lot(seed, batch, position, f"hidden {turn}") < policy.proposal_hidden for turn in (0, 1))
    return Readings(2 if twice else 1, sum(1 << turn for turn, drawn in enumerate(hidden) if drawn))


def decide(labels: Labels, policy: Policy, evidence: Evidence) -> Decision:
    """Accepted where nothing speaks against it; otherwise review with every reason, or audit by lot."""
    held = evidence.standard if evidence.standard and evidence.standard.lines and policy.by_standard else None
    if held:
        reasons = _shortfalls(labels, held)
    else:
        reasons = [*_doubts(labels, policy), *_measured_doubts(labels, policy, evidence.measured)]
    if evidence.gold is not None:
        reasons += _differences(labels, evidence.gold, Code.gold_mismatch, "gold")
    if evidence.second is not None:
        reasons += _differences(labels, evidence.second, Code.disagreement, "second reading")
    if evidence.truncated:
        reasons.append(Reason(code=Code.truncated, detail="the answer was cut off at the token limit"))
    version = held.version if held else None
    probability = score(labels) if evidence.standard else None
    if reasons:
        return Decision(outcome=Outcome.review, reasons=tuple(reasons), standard=version, probability=probability)
    drawn = evidence.draw < policy.audit_share
    audit = Reason(code=Code.audit, value=evidence.draw, threshold=policy.audit_share)
    return Decision(
        outcome=Outcome.audit if drawn else Outcome.accepted,
        reasons=(audit,) if drawn else (),
        inclusion=policy.audit_share,
        standard=version,
        probability=probability,
    )


def score(labels: Labels, tasks: Collection[str] | None = None) -> float | None:
    """How sure the labels of some tasks are together, in [0, 1]; None where it is not stated. tasks: None for all.

    A calibrated probability where there is one, else the raw confidence; all mentions of a text count as one; of
    several tasks the product. What calibration makes equal keeps the order of its confidence (TIES), so that a
    threshold can part it.
    """
    said: dict[str, Choice | Mentions] = {**labels.choices, **labels.mentions}
    stated = [
        one.confidence
        if one.probability is None or one.confidence is None
        else (1 - TIES) * one.probability + TIES * one.confidence
        for name, one in said.items()
        if tasks is None or name in tasks
    ]
    if not stated or None in stated:
        return None
    # In order of size, since a database may change that of the tasks, and without the last digits, in which an engine
    # differs from itself as texts come together otherwise.
    return round(math.prod(sorted(x for x in stated if x is not None)), DIGITS)


def refuse(code: Code, detail: str) -> Decision:
    """The decision for an item that could not be labelled at all: failure is data, and a person sees it."""
    return Decision(outcome=Outcome.review, reasons=(Reason(code=code, detail=detail),))


def _shortfalls(labels: Labels, standard: Standard) -> list[Reason]:
    found = score(labels)
    least = min([*labels.choices, *labels.mentions], key=lambda task: score(labels, [task]) or 0.0, default=None)
    choice = labels.choices.get(least or "")
    reasons = []
    for line in standard.lines:
        if found is None or found < line.threshold:
            detail = f"for at most {100 * line.error:.3g} % of accepted items wrong in {line.task or 'any label'}"
            detail += "; how sure it is was not stated" if found is None else ""
            reasons.append(_low(least, choice.label if choice else None, found, line.threshold, detail))
    return reasons


def _doubts(labels: Labels, policy: Policy) -> list[Reason]:
    reasons = []
    for task, choice in labels.choices.items():
        margin = choice.margin
        if choice.confidence is None or margin is None:
            continue
        if choice.confidence < policy.choice_confidence:
            reasons.append(_low(task, choice.label, choice.confidence, policy.choice_confidence))
        if margin < policy.choice_margin:
            second = choice.alternatives[0].label if choice.alternatives else ""
            reasons.append(
                Reason(
                    code=Code.ambiguous,
                    task=task,
                    label=choice.label,
                    value=margin,
                    threshold=policy.choice_margin,
                    detail=second,
                )
            )
    for task, mentions in labels.mentions.items():
        for span in mentions.spans:
            if span.confidence is not None and span.confidence < policy.span_confidence:
                reasons.append(_low(task, span.label, span.confidence, policy.span_confidence, span.text))
        if mentions.complete is not None and mentions.complete < policy.complete:
            reasons.append(_low(task, None, mentions.complete, policy.complete, "a mention may be missing"))
    return reasons


def _low(task: str | None, label: str | None, value: float | None, threshold: float, detail: str = "") -> Reason:
    return Reason(code=Code.low_confidence, task=task, label=label, value=value, threshold=threshold, detail=detail)


def _measured_doubts(labels: Labels, policy: Policy, measured: Mapping[tuple[str, str], Measured]) -> list[Reason]:
    used = {(task, choice.label) for task, choice in labels.choices.items()}
    used |= {(task, span.label) for task, mentions in labels.mentions.items() for span in mentions.spans}
    reasons = []
    for task, label in sorted(used & measured.keys()):
        found = measured[task, label]
        share = found.agreed / found.uses if found.uses else 0.0
        if found.uses >= policy.label_agreement_uses and share < policy.label_agreement:
            detail = f"{found.agreed} of {found.uses} uses on gold"
            reasons.append(
                Reason(
                    code=Code.low_agreement,
                    task=task,
                    label=label,
                    value=share,
                    threshold=policy.label_agreement,
                    detail=detail,
                )
            )
    return reasons


def _differences(labels: Labels, other: Labels, code: Code, source: str) -> list[Reason]:
    """A reason for each task of which the other labels say something else."""
    reasons = []
    for task, choice in other.choices.items():
        said = labels.choices.get(task)
        if said is not None and said.label != choice.label:
            reasons.append(Reason(code=code, task=task, label=said.label, detail=f"{source}: {choice.label}"))
    for task, mentions in other.mentions.items():
        if task not in labels.mentions:
            continue
        here, there = labels.mentions[task].places, mentions.places
        if here != there:
            detail = f"{len(there - here)} missed, {len(here - there)} not in the {source}"
            reasons.append(Reason(code=code, task=task, detail=detail))
    return reasons
