"""Offsets are code points in the text as received, whoever said them, and a browser gets its own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Invalid
from service.labels import Choice, Labels, Mentions, Span, from_row, to_row, utf16_offsets
from service.schema import Schema

SCHEMA = Schema.model_validate(
    {
        "name": "test",
        "tasks": [
            {"name": "mood", "kind": "choice", "labels": ["good", "bad"]},
            {"name": "names", "kind": "spans", "labels": ["person"]},
        ],
    }
)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40)


@given(text=TEXTS, data=st.data())
def test_labels_survive_the_way_to_a_row_and_back(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    span = Span(start=start, end=end, label="person", text=text[start:end])
    labels = Labels(choices={"mood": Choice(label="good")}, mentions={"names": Mentions(spans=(span,))})
    row = to_row(labels, text)
    assert from_row(row, text, SCHEMA) == labels
    utf16 = text.encode("utf-16-le")
    shown = row["names"][0]
    assert utf16[2 * shown["start_utf16"] : 2 * shown["end_utf16"]].decode("utf-16-le") == span.text


def test_utf16_offsets_count_an_emoji_twice_and_a_combining_accent_once() -> None:
    text = "👍🏽 e\u0301 Zoë"
    span = Span(start=text.index("Zoë"), end=len(text), label="person", text="Zoë")
    assert (span.start, span.end) == (6, 9)
    assert utf16_offsets(text, [span]) == [(8, 11)]


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"mood": "angry"}, "mood"),
        ({"mood": 3}, "mood"),
        ({"mood": {"label": None}}, "mood"),
        ({"names": "Ann"}, "names"),
        ({"names": [5]}, "names[0]"),
        ({"names": [{"start": 0, "end": 3, "label": "place"}]}, "names[0].label"),
        ({"names": [{"start": -1, "end": 3, "label": "person"}]}, "names[0]"),
        ({"names": [{"start": 0, "end": 99, "label": "person"}]}, "names[0]"),
        ({"names": [{"start": 2, "end": 2, "label": "person"}]}, "names[0]"),
        ({"names": [{"start": 0.0, "end": 3, "label": "person"}]}, "names[0]"),
        ({"names": [{"start": True, "end": 3, "label": "person"}]}, "names[0]"),
        ({"names": [{"start": 0, "end": 3, "label": "person", "text": "ann"}]}, "names[0].text"),
        ({"names": [{"start": 0, "end": 3, "label": "person"}, {"start": 2, "end": 5, "label": "person"}]}, "names"),
    ],
)
def test_a_wrong_row_is_refused_with_the_field(row: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as refused:
        from_row(row, "Ann and Bob", SCHEMA, where="record 7: ")
    assert refused.value.detail == {"field": f"record 7: {field}"}


def test_a_task_that_is_absent_was_not_labelled_and_an_empty_list_says_none() -> None:
    labels = from_row({"names": []}, "x", SCHEMA)
    assert labels.choices == {}
    assert labels.mentions == {"names": Mentions()}


def test_margin_is_the_distance_to_the_best_runner_up() -> None:
    choice = Choice.model_validate(
        {"label": "good", "confidence": 0.7, "alternatives": [{"label": "bad", "confidence": 0.25}]}
    )
    assert choice.margin == pytest.approx(0.45)
    assert Choice(label="good").margin is None


def test_all_mentions_of_a_text_together_are_as_sure_as_their_product() -> None:
    span = Span(start=0, end=3, label="person", text="Ann", confidence=0.5)
    assert Mentions(spans=(span, span), complete=0.8).confidence == pytest.approx(0.2)
    assert Mentions(complete=0.8).confidence == 0.8
    assert Mentions(spans=(span,)).confidence is None
    assert Mentions(spans=(span.model_copy(update={"confidence": None}),), complete=0.8).confidence is None


def test_a_row_tells_the_probability_where_there_is_one_and_reads_back_without() -> None:
    span = Span(start=0, end=3, label="person", text="Ann", confidence=0.5, probability=0.7)
    choice = Choice(label="good", confidence=0.9, probability=0.8)
    labels = Labels(choices={"mood": choice}, mentions={"names": Mentions(spans=(span,), complete=0.9)})
    row = to_row(labels, "Ann")
    assert (row["mood"]["probability"], row["names"][0]["probability"]) == (0.8, 0.7)
    assert "probability" not in to_row(from_row(row, "Ann", SCHEMA), "Ann")["mood"]
    stored = {"spans": [{"start": 0, "end": 3, "label": "person", "text": "Ann", "confidence": 0.5}], "complete": 0.9}
    assert Mentions.model_validate(stored).probability is None  # stored before there were probabilities
