"""Reports: the document's numbers and no others, whatever was written in a text, in a file that needs nothing else."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from dataclasses import asdict
from functools import lru_cache
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.agreement import choice_agreement, span_agreement, span_verdicts
from eval.calibration import calibrate, length_bands
from eval.ceiling import choice_ceiling, span_ceiling
from eval.compare import ChoiceTask, SpanTask, compare
from eval.guarantee import promise, work
from eval.scores import proportion, ranking
from service.report import each_marked, html, marked, visible

HOSTILE = (
    '</p><script>alert("x")</script> <|im_end|> & \x00\x1b[31m \u202edoow\u202c שלום 👩\u200d👧 e\u0301 $x_1$ {{ 7 }}'
)
LABELS = ["bad", "good", "<b>&", "טוב"]

Plain = dict[str, Any]


def spans(text: str, *places: tuple[int, int, str]) -> list[Plain]:
    return [{"start": a, "end": b, "label": label, "text": text[a:b]} for a, b, label in places]


def plain(found: Any) -> Any:
    """As the JSON file has it."""
    return json.loads(json.dumps(asdict(found)))


def identity(name: str) -> Plain:
    return {
        "schema": {"name": "mood", "version": 1, "sha256": "c" * 64},
        "prompt": {"name": name, "version": 2, "sha256": "a" * 64},
        "engine": {"engine": "scripted", "model": "none", "revision": None, "adapter": None},
        "decoding": {"temperature": 0},
    }


def gold(**more: Any) -> Plain:
    parts = {"tune": 90, "calibrate": 120, "test": 150}
    return {"name": "shop <i>", "sha256": "f" * 64, "texts": 150, "part": "test", "parts": parts, "leaks": []} | more


def drawn(n: int, share: float, seed: int = 0) -> tuple[list[str], list[str], list[float], list[bool]]:
    """Gold labels, labels said, confidence, and whether right: the surer the more often."""
    rng = np.random.default_rng(seed)
    confidence = rng.beta(4, 1.5, n)
    right = rng.random(n) < share * confidence**0.3
    truth = rng.integers(len(LABELS), size=n)
    said = np.where(right, truth, (truth + rng.integers(1, len(LABELS), n)) % len(LABELS))
    return [LABELS[i] for i in truth], [LABELS[i] for i in said], confidence.tolist(), right.tolist()


def mentions(n: int, seed: int) -> tuple[list[set[tuple[int, int, str]]], list[set[tuple[int, int, str]]]]:
    rng = np.random.default_rng(seed)
    here, there = [], []
    for _ in range(n):
        start = int(rng.integers(0, 8))
        here.append({(start, start + 3, "who"), (20, 24, "what")})
        kept = {(start, start + 3, "who")} if rng.random() < 0.7 else {(start, start + 2, "who")}
        there.append(kept | ({(20, 24, "who")} if rng.random() < 0.3 else {(20, 24, "what")}))
    return here, there


def curve(of: str, confidence: list[float], right: list[bool]) -> Plain:
    ordered = sorted(zip(confidence, right, strict=True), reverse=True)
    points: list[Plain] = []
    for n in range(5, len(ordered) + 1, 5):
        error = proportion(sum(not good for _, good in ordered[:n]), n)
        assert error
        points.append({"threshold": ordered[n - 1][0], "coverage": n / len(ordered), "error": asdict(error)})
    chosen = points[len(points) // 2]
    return {"of": of, "points": points, "chosen": chosen | {"error": chosen["error"]["value"]}}


def evaluation() -> Plain:
    return copy.deepcopy(built_evaluation())


def comparison() -> Plain:
    return copy.deepcopy(built_comparison())


@lru_cache
def built_evaluation() -> Plain:
    right_labels, said, confidence, right = drawn(150, 1.0)
    texts = [f"text {i}" for i in range(150)]
    slices = {"label": said, "length": length_bands([i % 40 for i in range(150)]), "source": ["shop"] * 149 + ["<u>"]}
    found = calibrate(confidence, right, texts, slices, {"name": "shop"})
    people = [{"ann": label, "bob": label if i % 7 else LABELS[0]} for i, label in enumerate(right_labels)]
    here, there = mentions(80, 1)
    choice = {
        "kind": "choice",
        **plain(choice_agreement(right_labels, said)),
        "outside_schema": ["ghost<"],
        "ranking": plain(ranking(confidence, right)),
        "confidence": {
            "before": plain(found.before),
            "after": plain(found.after),
            "calibrator": found.calibrator.plain(),
            "cells": [plain(cell) for cell in found.cells],
        },
        "ceiling": plain(choice_ceiling(people, said)),
    }
    names = {
        "kind": "spans",
        **plain(span_agreement(here, there)),
        "outside_schema": [],
        "ranking": None,
        "confidence": None,
        "ceiling": plain(span_ceiling([{"ann": h, "bob": t} for h, t in zip(here, there, strict=True)], there)),
    }
    promises = [
        {"of": "item", **plain(promise(confidence, right, 0.2, 0.95))},
        {"of": "mood", **plain(promise(confidence[:40], right[:40], 0.03, 0.95))},
    ]
    text = f"Ann {HOSTILE} 👍Bob"
    return {
        "kind": "evaluation",
        "made": "2026-01-02T03:04:05Z",
        "gold": gold(leaks=[{"one": HOSTILE, "other": "two", "groups": ["tune", "test"], "similarity": 0.8125}]),
        "schema": {"name": "mood", "version": 1, "sha256": "c" * 64},
        "recipe": identity("line"),
        "recipe_sha256": "e" * 64,
        "texts": 150,
        "failed": 2,
        "refused": 1,
        "seconds": 123.4567,
        "tokens": 12345,
        "cached": 17,
        "tasks": {"mood": choice, "names": names},
        "curves": [curve("item", confidence, right)],
        "promises": promises,
        "checks": [
            {
                "of": promises[0]["of"],
                "n": 40,
                "coverage": plain(proportion(22, 40)),
                "error": plain(proportion(1, 22)),
            }
        ],
        "work": plain(work(proportion(60, 100), 1000, 20, 30)) | {"price": 30},
        "disagreements": [
            {
                "id": "1",
                "text": text,
                "task": "mood",
                "gold": "good",
                "said": "bad",
                "confidence": 0.99991,
                "why": "sure",
            },
            {
                "id": "2",
                "text": text,
                "task": "names",
                "gold": spans(text, (0, 3, "who"), (len(text) - 4, len(text), "who")),
                "said": spans(text, (0, 3, "what"), (len(text) - 3, len(text), "who"), (4, 12, "<who>")),
                "confidence": None,
                "why": HOSTILE,
            },
        ],
        "suspects": [
            {
                "id": HOSTILE,
                "text": "x",
                "task": "mood",
                "gold": "bad",
                "said": "good",
                "confidence": 0.9,
                "reason": "r",
            }
        ],
    }


@lru_cache
def built_comparison() -> Plain:
    right_labels, first, *_ = drawn(150, 0.6)
    second = drawn(150, 0.95)[1]
    here, there = mentions(80, 1)
    names = {"line <v1>": first, 'B "two"': second}
    found = compare(
        {
            "mood": ChoiceTask(right_labels, names),
            "names": SpanTask(here, dict(zip(names, (there, here), strict=True))),
            "none": SpanTask([], dict.fromkeys(names, ())),
        }
    )
    text = HOSTILE + " Ann"
    recipes = {
        name: {
            "recipe": identity(name),
            "recipe_sha256": "e" * 64,
            "texts": 150,
            "failed": 0,
            "seconds": 3.25,
            "tokens": 999,
            "cached": 150,
            "tasks": {
                "mood": {"kind": "choice", **plain(choice_agreement(right_labels, answers)), "outside_schema": []}
            },
        }
        for name, answers in names.items()
    }
    gave = dict.fromkeys(names, spans(text, (0, 4, "who")))
    return {
        "kind": "comparison",
        "made": "2026-01-02T03:04:05Z",
        "gold": gold(),
        "schema": {"name": "mood", "version": 1, "sha256": "c" * 64},
        "recipes": recipes,
        "comparison": plain(found),
        "changed": [
            {
                "id": "1",
                "text": text,
                "task": "mood",
                "gold": "bad",
                "answers": dict.fromkeys(names, "bad"),
                "change": "gained",
            },
            {
                "id": "2",
                "text": text,
                "task": "names",
                "gold": spans(text, (len(text) - 3, len(text), "who")),
                "answers": gave,
                "change": "still_wrong",
            },
        ],
    }


class Page(HTMLParser):
    """What a browser would have: elements with their attributes, and text with the elements it stands in."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, list[tuple[str, dict[str, str | None]]]]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1][0] == tag, f"</{tag}> ends {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append((data, list(self.open)))

    def paragraphs(self) -> list[str]:
        """The texts of items, as they are read, without the tags of their marks."""
        found: list[str] = []
        seen: list[dict[str, str | None]] = []
        for data, around in self.texts:
            text = next((attrs for tag, attrs in around if tag == "p" and attrs.get("class") == "text"), None)
            if text is None or any("tag" in (attrs.get("class") or "") for _, attrs in around):
                continue
            if any(text is one for one in seen):
                found[-1] += data
            else:
                seen.append(text)
                found.append(data)
        return found


@pytest.fixture(scope="module", params=[evaluation, comparison], ids=["evaluation", "comparison"])
def document(request: pytest.FixtureRequest) -> Plain:
    wanted: Plain = request.param()
    return wanted


@pytest.fixture(scope="module")
def written(document: Plain) -> str:
    return html(document)


@pytest.fixture(scope="module")
def page(written: str) -> Page:
    return Page(written)


def numbers(found: Any) -> set[float]:
    if isinstance(found, dict):
        return {n for value in found.values() for n in numbers(value)}
    if isinstance(found, (list, tuple)):
        return {float(len(found))} | {n for value in found for n in numbers(value)}
    return {float(found)} if isinstance(found, (int, float)) and not isinstance(found, bool) else set()


def test_every_number_on_the_page_is_one_of_the_document(document: Plain, page: Page) -> None:
    known = numbers(document)
    shown = [(float(attrs["value"] or "nan"), attrs) for tag, attrs in page.elements if tag == "data"]
    assert len(shown) > 50
    assert [value for value, _ in shown if value not in known] == []


def test_what_is_read_is_the_number_rounded(page: Page) -> None:
    for text, around in page.texts:
        if around and around[-1][0] == "data":
            value, read = float(around[-1][1]["value"] or "nan"), re.sub("[ %,+]", "", text.replace("−", "-"))
            if read[0] in "<>":
                bounds = (float(read[1:]), float(read[1:]) / 100)
                assert value not in (0, 1) and any((value < bound) == (read[0] == "<") for bound in bounds)
            else:
                within = 0.5 * 10.0 ** -len(read.partition(".")[2]) + 1e-9
                assert min(abs(float(read) - value), abs(float(read) - 100 * value)) <= within, (text, value)


def test_no_number_stands_on_the_page_but_as_the_documents(page: Page) -> None:
    taken = {"data", "svg", "code", "bdi", "time", "style", "title", "mark", "caption"}  # or names of the document
    for text, around in page.texts:
        words = re.sub(r"F1|95 %|5 %|80 %", "", text)
        if re.search(r"\d", words) and not taken & {tag for tag, _ in around}:
            assert any(attrs.get("class") == "text" for _, attrs in around)


def test_the_main_figures_are_on_the_page() -> None:
    document = evaluation()
    read = html(document)
    shown = {float(attrs["value"] or "nan") for tag, attrs in Page(read).elements if tag == "data"}
    mood, names, work_left = document["tasks"]["mood"], document["tasks"]["names"], document["work"]
    must: list[Any] = [mood["exact"], mood["kappa"], mood["kappa_interval"], mood["alpha"], mood["macro_f1"]]
    must += [mood["confidence"][side][figure] for side in ("before", "after") for figure in ("ece", "brier", "auroc")]
    must += [names[field] for field in ("f1", "precision", "partial_f1", "missed", "spurious", "wrong_boundary")]
    must += [work_left, document["tokens"], document["seconds"], document["cached"]]
    must += [document["promises"][0][field] for field in ("threshold", "coverage", "upper", "error", "level")]
    must += [document["promises"][1]["more"], document["gold"]["leaks"][0]["similarity"]]
    assert {n for figure in must for n in numbers(figure) if not isinstance(figure, list) or n != 2} - shown == set()
    for identity_of in (document["recipe_sha256"], document["gold"]["sha256"], document["recipe"]["prompt"]["sha256"]):
        assert identity_of in read


def test_texts_are_text_whatever_they_hold(document: Plain, page: Page) -> None:
    wanted = {one["text"] for name in ("disagreements", "suspects", "changed") for one in document.get(name, ())}
    assert wanted and {visible(text) for text in wanted} <= set(page.paragraphs())
    assert not [tag for tag, _ in page.elements if tag in {"script", "i", "u", "img", "iframe", "object", "link"}]
    assert not page.open


def test_nothing_is_fetched_and_nothing_runs(written: str, page: Page) -> None:
    policy = next(a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    for _, attrs in page.elements:
        assert not {"src", "srcset", "action", "data"} & attrs.keys() and not [a for a in attrs if a.startswith("on")]
        assert (attrs.get("href") or "#").startswith("#")
        assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)", attrs.get("style") or ""))
    assert not re.search(r"https?://|@import|url\((?!#)", written)


def test_ids_are_unique_and_every_link_meets_one(page: Page) -> None:
    ids = Counter(attrs["id"] for _, attrs in page.elements if "id" in attrs)
    assert [name for name, times in ids.items() if times > 1] == []
    links = {attrs["href"] for _, attrs in page.elements if "href" in attrs}
    links |= {f"#{attrs['aria-labelledby']}" for _, attrs in page.elements if "aria-labelledby" in attrs}
    assert {link for link in links if link} <= {f"#{name}" for name in ids}


def test_a_reader_who_cannot_see_has_headings_captions_and_words_for_plots(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    tags = Counter(tag for tag, _ in page.elements)
    assert tags["caption"] == tags["table"] > 5
    assert all(attrs.get("aria-label") and attrs["role"] == "img" for tag, attrs in page.elements if tag == "svg")
    assert tags["svg"] >= 1 and tags["text"] > 5


def test_the_same_document_gives_the_same_page(document: Plain, written: str) -> None:
    assert html(copy.deepcopy(document)) == written


def test_what_is_undefined_is_said_with_its_note() -> None:
    document = evaluation()
    alone = plain(choice_agreement(["bad"] * 5, ["bad"] * 5))
    empty = plain(span_agreement([set()], [set()]))
    few = [True] * 10
    sure = calibrate([0.5] * 10, few, [str(i) for i in range(10)], {"label": ["a"] * 10}, {})
    confidence = {"before": plain(sure.before), "after": plain(sure.after), "calibrator": sure.calibrator.plain()}
    confidence["cells"] = [plain(cell) for cell in sure.cells]
    more: Plain = {"outside_schema": [], "ranking": None, "ceiling": None}
    document["tasks"] = {
        "mood": {"kind": "choice", **alone, **more, "confidence": confidence},
        "names": {"kind": "spans", **empty, **more, "confidence": None},
        "nil": {"kind": "choice", **plain(choice_agreement([], [])), **more, "confidence": None},
    }
    document |= {
        "curves": [],
        "promises": [],
        "checks": [],
        "work": None,
        "disagreements": [],
        "suspects": [],
        "gold": gold(),
    }
    read = re.sub(r"\s+", " ", " ".join(text for text, _ in Page(html(document)).texts))
    assert f"Cohen’s kappa not defined {alone['notes']['kappa']}" in read
    assert f"Strict F1 not defined {empty['notes']['f1']}" in read
    assert "nil : agreement is not defined: no texts" in read
    assert "Krippendorff’s alpha not defined no texts" in read
    assert sure.before.notes["auroc"] in read and sure.cells[0].note in read and sure.calibrator.note in read
    assert "No promise was asked for" in read
    assert "None" not in read


def test_a_threshold_that_cannot_be_promised_says_why() -> None:
    read = "".join(text for text, _ in Page(html(evaluation())).texts)
    note = evaluation()["promises"][1]["notes"]["threshold"]
    assert note.startswith("cannot be promised with 40") and read.count(note) == 2


def test_a_verdict_comes_first_in_a_comparison() -> None:
    document = comparison()
    read = "".join(text for text, _ in Page(html(document)).texts)
    for contrast in document["comparison"]["contrasts"]:
        assert 0 <= read.index(contrast["verdict"]) < read.index("Differences, in points")


def test_names_in_plots_are_text_and_never_formulas() -> None:
    document = comparison()
    document["comparison"]["contrasts"][0]["second"] = "$\\bad{$ 👍 <x>"
    texts = [text for text, around in Page(html(document)).texts if around and around[-1][0] == "text"]
    assert any("$\\bad{$ 👍 <x>" in text for text in texts)


def test_many_labels_are_shown_as_the_pairs_most_confused() -> None:
    labels = [f"label {i:03}" for i in range(150)]
    document = evaluation()
    found = plain(choice_agreement(labels * 2, labels + labels[1:] + labels[:1]))
    document["tasks"]["mood"] |= {**found}
    read = html(document)
    assert "Most confused labels of mood" in read and 'class="matrix"' not in read


def test_a_number_is_never_rounded_to_a_certainty_that_it_is_not() -> None:
    document = evaluation()
    document["tasks"]["mood"]["exact"] = {"value": 0.99996, "low": 0.00002, "high": 1.0}
    document["tasks"]["mood"]["kappa"] = -0.00001
    read = html(document)
    assert "&gt;99.9 %" in read and "&lt;0.1 %" in read and ">100.0 %<" in read and "&gt;−0.001" in read


def test_a_document_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="not 'diary'"):
        html({"kind": "diary"})


WRITTEN = st.text(st.sampled_from("ab 👍👩\u200dשe\u0301\n<&\u202e"), min_size=1, max_size=30)


@st.composite
def annotated(draw: st.DrawFn) -> tuple[str, list[Plain], list[Plain]]:
    text = draw(WRITTEN)
    place = st.tuples(st.integers(0, len(text) - 1), st.integers(1, 6), st.sampled_from(["who", "<what>"]))
    sides = [draw(st.lists(place, max_size=4)) for _ in range(2)]
    gold_spans, said = ([(a, min(len(text), a + n), label) for a, n, label in side] for side in sides)
    return text, spans(text, *gold_spans), spans(text, *said)


@given(annotated())
def test_marks_stand_exactly_where_the_spans_do(case: tuple[str, list[Plain], list[Plain]]) -> None:
    text, here, there = case
    lines = marked(text, here, there)
    assert all("".join(piece.text for piece in line.pieces) == text for line in lines)
    for side, wanted in (("gold", here), ("said", there)):
        found = []
        for line in (line for line in lines if line.side == side):
            at = 0
            for piece in line.pieces:
                if piece.label:
                    found.append((at, at + len(piece.text), piece.label))
                at += len(piece.text)
        assert sorted(found) == sorted({(s["start"], s["end"], s["label"]) for s in wanted})


@given(annotated())
def test_what_marks_say_is_what_agreement_counts(case: tuple[str, list[Plain], list[Plain]]) -> None:
    sides = [{(s["start"], s["end"], s["label"]) for s in side} for side in case[1:]]
    counts = span_agreement([sides[0]], [sides[1]])
    of_gold, of_said = (Counter(verdicts.values()) for verdicts in span_verdicts(*sides))
    for verdict in ("agreed", "wrong_label", "wrong_boundary"):
        assert of_gold[verdict] == of_said[verdict] == getattr(counts, verdict)
    assert (of_gold["missed"], of_said["spurious"]) == (counts.missed, counts.spurious)


def test_overlapping_marks_are_told_apart_in_words() -> None:
    text = "👍👍 Ann Lee of New York"
    here = spans(text, (3, 10, "who"), (14, 22, "where"), (0, 1, "sign"))
    there = spans(text, (3, 6, "who"), (14, 22, "who"), (11, 13, "where"))
    gold_line, said_line = marked(text, here, there)
    assert [(p.text, p.verdict) for p in gold_line.pieces if p.label] == [
        ("👍", "missed"),
        ("Ann Lee", "wrong_boundary"),
        ("New York", "wrong_label"),
    ]
    assert [(p.text, p.verdict) for p in said_line.pieces if p.label] == [
        ("Ann", "wrong_boundary"),
        ("of", "spurious"),
        ("New York", "wrong_label"),
    ]


def test_a_long_text_is_cut_alike_in_both_lines_and_never_in_a_mark() -> None:
    text = "a" * 2000 + "Ann" + "b" * 2000 + "Bob"
    here, there = spans(text, (2000, 2003, "who")), spans(text, (4003, 4006, "who"))
    lines = marked(text, here, there)
    cuts = [[piece.cut for piece in line.pieces].count(True) for line in lines]
    assert cuts == [2, 2]
    assert {sum(len(piece.text) for piece in line.pieces) for line in lines} == {150 + 3 + 150 + 150 + 3}
    assert [p.text for line in lines for p in line.pieces if p.label] == ["Ann", "Bob"]


def test_each_recipe_is_marked_against_gold_with_what_it_missed() -> None:
    text = "Ann met Bob"
    lines, missed = each_marked(
        text,
        spans(text, (0, 3, "who"), (8, 11, "who")),
        {"A": spans(text, (0, 3, "who")), "B": spans(text, (4, 7, "who"))},
    )
    told = [(line.side, [(p.text, p.verdict) for p in line.pieces if p.label]) for line in lines]
    assert told == [
        ("gold", [("Ann", ""), ("Bob", "")]),
        ("A", [("Ann", "agreed")]),
        ("B", [("met", "spurious")]),
    ]
    assert missed == {"A": ["Bob"], "B": ["Ann", "Bob"]}
