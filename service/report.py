"""Reports: an evaluation or a comparison as one HTML file that needs nothing else, for a browser and for paper.

Nothing is computed here but where things stand on the page. Every number is the document's, written as
`<data value="…">` with all of its digits beside the rounded ones. Texts and names are whatever people and models wrote:
they are escaped, kept from turning the lines around them, and what cannot be seen is shown by a sign.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import floor, log10
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from service import plots

Span = tuple[int, int, str]  # start, end, label

TEMPLATES = {"evaluation": "report_evaluation.html", "comparison": "report_comparison.html"}

LONG = 900  # code points up to which a text is shown whole
KEPT = 150  # on either side of a mark, of a text that is longer
MATRIX = 16  # labels up to which a confusion matrix can be read
LISTED = 20  # pairs of labels in the table of the most confused
ROWS = 30  # of one plot, so that it fits a page
HALF = 18  # columns of each recipe's name in a pair
PICKED = 20  # points of a curve in its table

# Control characters by their signs; those that turn the line around by one sign for all; what no file can hold by the
# mark of what is missing. One for one, so that offsets stay. Tabs and line ends are seen as they are.
SEEN = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
SEEN |= dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0x2426)
SEEN |= dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], 0xFFFD)


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a text as it is shown. label: of a mention, else empty; verdict: of eval.agreement.span_verdicts,
    or empty where none is told. A stretch that is left out has cut set and no text."""

    text: str
    label: str = ""
    verdict: str = ""
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a text with the mentions of `side`, which never overlap; those that do stand in further lines."""

    side: str
    pieces: tuple[Piece, ...]


def html(document: Mapping[str, Any]) -> str:
    """The report of an evaluation or a comparison: one HTML file without scripts, links or anything to be fetched.

    document: what `service.evaluation` or `service.comparison` gives, as plain data. What is None in it is shown as
    "not defined", with its note. The same document gives the same characters.
    Raises ValueError for a document of any other kind.
    """
    if document.get("kind") not in TEMPLATES:
        raise ValueError(f"a report is of one of {', '.join(TEMPLATES)}, not {document.get('kind')!r}")
    return _environment().get_template(TEMPLATES[document["kind"]]).render(document)


def marked(text: str, gold: Sequence[Mapping[str, Any]], said: Sequence[Mapping[str, Any]]) -> list[Line]:
    """The text once with the mentions of gold and once with those said, each with its verdict.

    gold, said: spans in plain form. Joined, the pieces of a line are the text, but for what is cut: long stretches
    without a mention on either side.
    """
    from eval.agreement import span_verdicts

    sides = {"gold": _mentions(gold), "said": _mentions(said)}
    verdicts = dict(zip(sides, span_verdicts(*sides.values()), strict=True))
    shown = _shown(text, [span for spans in sides.values() for span in spans])
    return [line for side, spans in sides.items() for line in _lines(text, side, spans, verdicts[side], shown)]


def each_marked(
    text: str, gold: Sequence[Mapping[str, Any]], answers: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[list[Line], dict[str, list[str]]]:
    """The text with the mentions of gold, then with those of each recipe and their verdicts; and what each missed."""
    from eval.agreement import span_verdicts

    right, said = _mentions(gold), {recipe: _mentions(spans) for recipe, spans in answers.items()}
    shown = _shown(text, [span for spans in (right, *said.values()) for span in spans])
    lines, missed = _lines(text, "gold", right, {}, shown), {}
    for recipe, spans in said.items():
        of_gold, verdicts = span_verdicts(right, spans)
        lines += _lines(text, recipe, spans, verdicts, shown)
        missed[recipe] = [text[start:end] for start, end, _ in (s for s in right if of_gold[s] == "missed")]
    return lines, missed


def visible(text: str) -> str:
    """The text with a sign for each character that would not be seen, as many code points as before."""
    return text.translate(SEEN)


def _mentions(spans: Sequence[Mapping[str, Any]]) -> list[Span]:
    return sorted({(span["start"], span["end"], span["label"]) for span in spans})


def _shown(text: str, spans: Sequence[Span]) -> list[tuple[int, int]]:
    """The stretches of the text that are not left out, in order."""
    if len(text) <= LONG:
        return [(0, len(text))]
    kept: list[tuple[int, int]] = []
    for start, end, _ in sorted(spans) or [(0, LONG - KEPT, "")]:
        first, last = max(0, start - KEPT), min(len(text), end + KEPT)
        if kept and first <= kept[-1][1]:
            first, last = kept[-1][0], max(last, kept.pop()[1])
        kept.append((first, last))
    return kept


def _lines(
    text: str, side: str, spans: Sequence[Span], verdicts: Mapping[Span, str], shown: Sequence[tuple[int, int]]
) -> list[Line]:
    lanes: list[list[Span]] = [[]]
    for span in spans:
        free = next((lane for lane in lanes if not lane or lane[-1][1] <= span[0]), None)
        if free is None:
            lanes.append(free := [])
        free.append(span)
    return [Line(side, tuple(_pieces(text, lane, verdicts, shown))) for lane in lanes]


def _pieces(
    text: str, lane: Sequence[Span], verdicts: Mapping[Span, str], shown: Sequence[tuple[int, int]]
) -> Iterator[Piece]:
    at = 0
    for first, last in shown:
        if first > at:
            yield Piece("", cut=True)
        at = first
        for span in (span for span in lane if first <= span[0] < last):
            if span[0] > at:
                yield Piece(text[at : span[0]])
            yield Piece(text[span[0] : span[1]], span[2], verdicts.get(span, ""))
            at = span[1]
        if at < last:
            yield Piece(text[at:last])
        at = last
    if at < len(text):
        yield Piece("", cut=True)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS | {"flat": _flat}
    environment.globals |= {
        "stated": _stated,
        "why": _why,
        "marked": marked,
        "each_marked": each_marked,
        "matrix": _matrix,
        "confused": _confused,
        "picked": lambda points: points[:: max(1, -(-len(points) // PICKED))],
        "reliability_plot": lambda found, key, alt: plots.reliability(
            found["before"], found["after"], key, visible(alt)
        ),
        "coverage_plot": lambda curve, stated, key, alt: plots.coverage(curve, stated, key, visible(alt)),
        "agreement_plot": _agreement_plot,
        "forest": _forest,
        "MATRIX": MATRIX,
    }
    return environment


def _finalized(value: Any) -> Any:
    """Whatever a template writes: a text is made visible before it is escaped, and nothing is ever "None"."""
    if value is None:
        return "not defined"
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _apart(text: str) -> Markup:
    """A name or a text amid others, which keeps its direction of writing to itself."""
    return Markup("<bdi>{}</bdi>").format(visible(str(text)))


def _shares(value: float) -> str:
    return f"{_within(100 * value, 1, 100)} %"


def _scores(value: float) -> str:
    return _within(value, 3, 1)


def _within(value: float, decimals: int, whole: int) -> str:
    """Rounded, but never to a nought or a whole that it is not."""
    rounded, step = round(value, decimals), 10**-decimals
    if rounded == 0 != value:
        return f"<{step:.{decimals}f}" if value > 0 else f">−{step:.{decimals}f}"
    if abs(rounded) == whole != abs(value):
        return f">{whole - step:.{decimals}f}" if value > 0 else f"<−{whole - step:.{decimals}f}"
    return f"{rounded:.{decimals}f}".replace("-", "−")


def _points(value: float) -> str:
    """Signed percentage points, with a digit more where one would read as nought."""
    sign = "+" if value > 0 else "−" if value < 0 else ""
    size = abs(100 * value)
    decimals = 1 if size >= 0.05 or not size else 1 - floor(log10(size))
    return f"{sign}{size:.{decimals}f}"


def _thresholds(value: float) -> str:
    """With all digits where fewer would read as 0 or 1, which accept everything or nothing."""
    short = f"{value:.6g}"
    return json.dumps(value) if float(short) in (0, 1) else short


def _amounts(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.1f}" if value >= 0.05 else "<0.1"


def _chances(value: float) -> str:
    """A p-value."""
    return f"{value:.4f}" if value >= 0.0001 else "<0.0001"


STYLES: dict[str, Callable[[float], str]] = {
    "share": _shares,
    "score": _scores,
    "points": _points,
    "amount": _amounts,
    "chance": _chances,
    "threshold": _thresholds,
    "count": lambda value: f"{value:,}",
}


def _numbers(style: str) -> Callable[[Any], Markup]:
    """A number, or an estimate with its interval, in a style of STYLES."""

    def number(value: float) -> Markup:
        return Markup('<data value="{}">{}</data>').format(json.dumps(value), STYLES[style](value))

    def shown(found: Any) -> Markup:
        if found is None:
            return Markup('<span class="undefined">not defined</span>')
        if not isinstance(found, Mapping):
            return number(found)
        ends = (number(found["value"]), number(found["low"]), number(found["high"]))
        return Markup('<span class="figure">{} <span class="interval">({} to {})</span></span>').format(*ends)

    return shown


# How pages write what comes from people and from measurement.
FILTERS: dict[str, Callable[..., Any]] = {style: _numbers(style) for style in STYLES} | {
    "apart": _apart,
    "seen": lambda text: visible(str(text).replace("\r\n", "\n")),
}


def _stated(fields: Mapping[str, Any], name: str, style: str, note: str = "") -> Markup:
    """The figure of that name with its interval, or "not defined", and the note that goes with it.

    note: said where the figure is None and the document has no note.
    """
    found, around = fields[name], fields.get(f"{name}_interval")
    if found is not None and around is not None:
        found = {"value": found, "low": around[0], "high": around[1]}
    said = _why(fields, name) or (note if found is None else "")
    beside = Markup(' <span class="note">{}</span>').format(_apart(said)) if said else ""
    return _numbers(style)(found) + beside


def _why(fields: Mapping[str, Any], name: str) -> str:
    """The note under the name; where there is none and the figure is None, the one that stands for all."""
    notes: Mapping[str, str] = fields.get("notes") or {}
    general = set(notes.values()) if fields.get(name) is None else set()
    return notes.get(name) or (general.pop() if len(general) == 1 else "")


def _flat(found: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every entry of nested plain data: the keys that lead to it, and what stands there."""
    if isinstance(found, Mapping) and found:
        for key, value in found.items():
            yield from _flat(value, f"{path} {key}".strip())
    elif found not in (None, "", {}, []):
        yield path, found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _matrix(task: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], list[tuple[str, int, int]]]]:
    """For each label of gold: (label said, count, shade). shade: 0 to 4, by the share of the label's texts."""
    counts = {(cell["gold"], cell["said"]): cell["count"] for cell in task["confusion"]}
    rows = []
    for label in task["labels"]:
        cells = [(other["label"], counts.get((label["label"], other["label"]), 0)) for other in task["labels"]]
        rows.append((label, [(said, n, -(-4 * n // label["gold"]) if n else 0) for said, n in cells]))
    return rows


def _confused(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    wrong = [cell for cell in task["confusion"] if cell["gold"] != cell["said"]]
    return sorted(wrong, key=lambda cell: (-cell["count"], cell["gold"], cell["said"]))[:LISTED]


def _agreement_plot(tasks: Mapping[str, Mapping[str, Any]], key: str) -> Markup:
    """Agreement of every task on one scale, with what people reach where that is known; empty where nothing is."""
    rows = []
    for name, task in tasks.items():
        seen = visible(name)
        if found := task["exact" if task["kind"] == "choice" else "f1"]:
            rows.append(plots.Row(seen, found))
        if (ceiling := task.get("ceiling")) and ceiling["people"]:
            rows.append(plots.Row(f"people: {seen}", ceiling["people"], plain=True))
    if not rows:
        return Markup("")
    alt = "Agreement of each task with its 95 % interval; the tables below give the numbers."
    return plots.intervals(rows, "agreement (choices: accuracy; spans: strict F1)", (0, 1), key, alt)


def _forest(contrasts: Sequence[Mapping[str, Any]], key: str) -> list[tuple[str, Markup]]:
    """For each task the differences of its contrasts, in as many plots as it takes, all on one scale."""
    tasks: dict[str, list[plots.Row]] = {}
    for contrast in contrasts:
        if effect := contrast["effect"]:
            pair = [plots.shortened(visible(contrast[side]), HALF) for side in ("second", "first")]
            row = plots.Row(" less ".join(pair), effect["difference"], plain=contrast["better"] is None)
            tasks.setdefault(contrast["task"], []).append(row)
    most = max([0.01, *(abs(row.found[end]) for rows in tasks.values() for row in rows for end in ("low", "high"))])
    sheets = [(task, rows[at : at + ROWS]) for task, rows in tasks.items() for at in range(0, len(rows), ROWS)]
    return [
        (task, _forest_sheet(rows, most, f"{key}-{number}", visible(task)))
        for number, (task, rows) in enumerate(sheets)
    ]


def _forest_sheet(rows: Sequence[plots.Row], most: float, key: str, task: str) -> Markup:
    alt = f"Differences on {task} with their 95 % intervals; filled where one is shown. The table gives the numbers."
    zero = "← first is better  |  second is better →"
    return plots.intervals(rows, "difference in points", (-most, most), key, alt, zero=zero, scale=100)
