"""Plots of reports as inline SVG: text stays text, no scripts, nothing from outside, the same bytes every time.

Names come from outside and may be anything. They never meet the plotting library, which would read them as formulas
and look for their glyphs: placeholders of the same width are drawn, and the names put in their place in the SVG.
"""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Estimated = Mapping[str, float]  # value, low, high

SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "concord",
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#5b6573",
    "xtick.color": "#3d4653",
    "ytick.color": "#3d4653",
    "axes.labelcolor": "#1d2530",
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
}
BLUE, ORANGE, GREY = "#1b5e9e", "#a8480a", "#69727f"
COLOURS = (
    "#1b5e9e",
    "#d98032",
    "#4f9a6c",
    "#8d62b3",
    "#c9a227",
    "#7fb2d9",
    "#a9aeb6",
)  # told apart without red and green
LONGEST = 42  # columns that a name has beside a plot; it stands in full in the table
NARROW = 22  # the same, beside bars
MOST_ROWS = 30  # of one plot, so that it fits a page

_one_at_a_time = Lock()  # the library's settings are of the whole process


@dataclass(frozen=True, slots=True)
class Row:
    """One interval. plain: drawn hollow, as what shows nothing or is only held beside the rest."""

    name: str
    found: Estimated
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """found: shape (weeks,), numbers or estimates, None for none. most: the upper end of the axis; None: as needed."""

    title: str
    axis: str
    found: Sequence[Estimated | float | None]
    most: float | None = None
    colour: str = BLUE


@dataclass(frozen=True, slots=True)
class Stack:
    """shares: for each name, shape (weeks,), in [0, 1], adding up to 1 in each week."""

    title: str
    weeks: Sequence[str]
    shares: Mapping[str, Sequence[float]]


def reliability(before: Mapping[str, Any], after: Mapping[str, Any], key: str, alt: str) -> Markup:
    """Share right against confidence, bin by bin with its interval, and how many items, before and after calibration.

    before, after: `eval.calibration.Reliability` as plain data. key: unique in the page; alt: what is seen, in words.
    """
    with _drawing() as figure:
        figure.set_size_inches(6.8, 3.9)
        axes = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3.4, 1))
        sides = (("Before calibration", before, ORANGE, "s"), ("After calibration", after, BLUE, "o"))
        for column, (title, side, colour, shape) in enumerate(sides):
            upper, lower = axes[:, column]
            upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
            for found in side["bins"]:
                _interval(upper, found["confidence"], found["right"], colour, shape)
                lower.plot([found["confidence"]] * 2, [0, found["count"]], color=colour, linewidth=3)
            upper.set_title(title)
            upper.set_ylim(-0.03, 1.03)
            lower.set_xlim(-0.03, 1.03)
            lower.set_ylim(bottom=0)
            lower.set_xlabel("confidence (mean of the bin)")
        axes[0, 0].set_ylabel("share right")
        axes[1, 0].set_ylabel("items")
        return _svg(figure, key, alt, {})


def coverage(curve: Mapping[str, Any], stated: float | None, key: str, alt: str) -> Markup:
    """Error among those accepted against the share accepted, with its interval, and the chosen point.

    curve: points {threshold, coverage, error} and the chosen one or None; points of undefined error are not drawn.
    stated: the error that was asked for, drawn as a line.
    """
    points = sorted(
        (point for point in curve["points"] if point["error"] is not None), key=lambda point: _middle(point["coverage"])
    )
    with _drawing() as figure:
        figure.set_size_inches(6.8, 3.1)
        axes = figure.subplots()
        x = [_middle(point["coverage"]) for point in points]
        low, value, high = ([point["error"][end] for point in points] for end in ("low", "value", "high"))
        if len(points) == 1:
            _interval(axes, x[0], points[0]["error"], BLUE, "o")
        axes.fill_between(x, low, high, color=BLUE, alpha=0.18, linewidth=0, label="95 % interval")
        axes.plot(x, value, color=BLUE, linewidth=1.6, label="error among accepted")
        if stated is not None:
            axes.axhline(stated, color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="error asked for")
        chosen = curve["chosen"]
        if chosen and chosen["error"] is not None:  # else none of the texts it was tried on was accepted
            at = _middle(chosen["coverage"])
            axes.axvline(at, color=ORANGE, linewidth=1, linestyle=":")
            axes.plot(at, _middle(chosen["error"]), "D", color=ORANGE, markersize=8, label="chosen threshold")
        settled = [point for point in points if _middle(point["coverage"]) >= 0.1] or points
        highest = max([stated or 0, 0.01, *(point["error"]["high"] for point in settled)])
        axes.set_xlim(0, 1.01)
        axes.set_ylim(0, min(1.0, 1.25 * highest))  # of very few accepted the interval is all there is to see
        axes.set_xlabel("share accepted without a person")
        axes.set_ylabel("share wrong")
        axes.legend(frameon=False, loc="upper left")
        return _svg(figure, key, alt, {})


def intervals(
    rows: Sequence[Row], axis: str, reach: tuple[float, float], key: str, alt: str, zero: str = "", scale: float = 1
) -> Markup:
    """One line a row: its value and interval. reach: ends of the axis; zero: what a line at 0 parts, if one is drawn.

    scale: what values are multiplied with to be in the unit of the axis, 100 for points.
    """
    with _drawing() as figure:
        figure.set_size_inches(6.8, 0.75 + 0.27 * len(rows) + (0.2 if zero else 0))
        axes = figure.subplots()
        names = {}
        for place, row in enumerate(rows):
            value, low, high = (scale * row.found[end] for end in ("value", "low", "high"))
            colour, fill, shape = (GREY, "white", "D") if row.plain else (BLUE, BLUE, "o")
            ends = [[value - low], [high - value]]
            axes.errorbar(
                [value], [place], xerr=ends, fmt=shape, color=colour, mfc=fill, markersize=6, linewidth=1.8, capsize=3
            )
            names[_placeholder(place, shortened(row.name))] = shortened(row.name)
        if zero:
            axes.axvline(0, color=GREY, linewidth=1)
            axes.set_title(zero, fontweight="normal", fontsize=9, loc="center")
        axes.set_yticks(range(len(rows)), list(names))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#dfe3e8", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        room = 0.02 * (reach[1] - reach[0])
        axes.set_xlim(scale * (reach[0] - room), scale * (reach[1] + room))
        axes.set_xlabel(axis)
        return _svg(figure, key, alt, names)


def over_weeks(weeks: Sequence[str], panels: Sequence[Panel], key: str, alt: str) -> Markup:
    """What each panel shows, week by week, one panel below the other; where a week has nothing the line is broken."""
    with _drawing() as figure:
        figure.set_size_inches(6.8, 0.7 + 1.45 * len(panels))
        rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)
        for (axes,), panel in zip(rows, panels, strict=True):
            nothing = float("nan")
            middle = [nothing if found is None else _middle(found) for found in panel.found]
            axes.plot(range(len(weeks)), middle, color=panel.colour, linewidth=1.6, marker="o", markersize=4)
            for end in (at for at, found in enumerate(panel.found) if isinstance(found, Mapping)):
                _interval(axes, end, panel.found[end], panel.colour, "o")  # type: ignore[arg-type]
            axes.set_title(panel.title)
            axes.set_ylabel(panel.axis)
            axes.set_ylim(0, panel.most)
            axes.grid(axis="y", color="#dfe3e8", linewidth=0.7)
        _weeks_below(rows[-1][0], weeks)
        return _svg(figure, key, alt, {})


def stacks(rows: Sequence[Stack], key: str, alt: str) -> Markup:
    """Shares of labels by week as stacked bars, a row of plots each, the labels named beside it, the first at the foot.

    At most as many labels as there are COLOURS.
    """
    with _drawing() as figure:
        figure.set_size_inches(6.8, 0.5 + 1.9 * len(rows))
        names = {}
        grid = figure.subplots(len(rows), 1, squeeze=False)
        for number, ((axes,), row) in enumerate(zip(grid, rows, strict=True)):
            below = [0.0] * len(row.weeks)
            for place, (name, shares) in enumerate(row.shares.items()):
                shown = shortened(name, NARROW)
                sign = _placeholder(100 * number + place, shown)
                names[sign] = shown
                axes.bar(range(len(row.weeks)), shares, bottom=below, color=COLOURS[place], width=0.86, label=sign)
                below = [under + share for under, share in zip(below, shares, strict=True)]
            title = _placeholder(100 * number + 99, row.title)
            names[title] = row.title
            axes.set_title(title)
            axes.set_ylim(0, 1)
            axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5), reverse=True)
            _weeks_below(axes, row.weeks)
        return _svg(figure, key, alt, names)


def running(path: Sequence[Mapping[str, Any]], promised: float | None, key: str, alt: str) -> Markup:
    """The error so far against the items it rests on. path: {audited, value, low, high}; promised: drawn as a line."""
    with _drawing() as figure:
        figure.set_size_inches(6.8, 2.9)
        axes = figure.subplots()
        low, value, high = ([one[end] for one in path] for end in ("low", "value", "high"))
        x = [one["audited"] for one in path]
        axes.fill_between(
            x, low, high, color=BLUE, alpha=0.18, linewidth=0, label="95 % interval, at all moments at once"
        )
        axes.plot(x, value, color=BLUE, linewidth=1.6, label="share wrong so far")
        if promised is not None:
            axes.axhline(promised, color=ORANGE, linewidth=1.2, linestyle=(0, (4, 3)), label="promised")
        settled = [one["high"] for one in path if one["audited"] >= x[-1] / 10]
        axes.set_ylim(0, min(1.0, 1.1 * max(0.02, promised or 0, *settled)))
        axes.set_xlim(left=0)
        axes.set_xlabel("audited items")
        axes.set_ylabel("share wrong")
        axes.legend(frameon=False, loc="upper right")
        return _svg(figure, key, alt, {})


def image(figure: Markup) -> str:
    """A plot as a file of its own, for what asks for pictures by their address."""
    return str(figure).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def _weeks_below(axes: Axes, weeks: Sequence[str]) -> None:
    step = max(1, -(-len(weeks) // 10))
    axes.set_xticks(range(0, len(weeks), step), [week.replace("-", "\n") for week in weeks[::step]])
    axes.set_xlim(-0.6, len(weeks) - 0.4)


def _middle(found: Estimated | float) -> float:
    """The value of an estimate, or the number itself."""
    return found["value"] if isinstance(found, Mapping) else found


def shortened(name: str, longest: int = LONGEST) -> str:
    """The beginning of the name, as far as it fits into `longest` columns."""
    if _columns(name) <= longest:
        return name
    while _columns(name) >= longest:
        name = name[:-1]
    return name + "…"


def _interval(axes: Axes, x: float, found: Estimated, colour: str, shape: str) -> None:
    ends = [[found["value"] - found["low"]], [found["high"] - found["value"]]]
    axes.errorbar([x], [found["value"]], yerr=ends, fmt=shape, color=colour, markersize=5, linewidth=1.3, capsize=2.5)


def _placeholder(place: int, name: str) -> str:
    return f"@{place}".ljust(_columns(name), "n")


def _columns(name: str) -> int:
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in name)


@contextmanager
def _drawing() -> Iterator[Figure]:
    import matplotlib
    from matplotlib.figure import Figure

    with _one_at_a_time, matplotlib.rc_context(STYLE):
        yield Figure(layout="constrained")


def _svg(figure: Figure, key: str, alt: str, names: Mapping[str, str]) -> Markup:
    """The figure as an element for HTML, all its ids begun with `key`, and names in place of their placeholders."""
    written = io.BytesIO()
    figure.savefig(written, format="svg", transparent=True)
    root = ElementTree.fromstring(written.getvalue())  # noqa: S314 - written by the line before
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in {f"{SVG}metadata", f"{SVG}style"}:  # a date; and rules that would hold for the whole page
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        element.attrib = {_plain(name): _own(name, value, key) for name, value in element.attrib.items()}
        element.text = names.get(element.text or "", element.text)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": alt, "stroke-linejoin": "round"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 - escaped by the writer


def _plain(attribute: str) -> str:
    return "href" if attribute == LINK else attribute


def _own(attribute: str, value: str, key: str) -> str:
    if attribute == "id":
        return f"{key}-{value}"
    if attribute == LINK:
        return f"#{key}-{value.removeprefix('#')}"
    return re.sub(r"url\(#([^)]*)\)", rf"url(#{key}-\1)", value)
