"""Prompts are versioned, strict and sandboxed, and the text in them stays a text."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import prompt, schema
from service.errors import Invalid, NotFound, ServiceError
from service.schema import Schema
from service.settings import PROJECT
from service.words import windows

PROMPTS = PROJECT / "prompts"
SUPPORT = schema.load(PROJECT / "schemas" / "support.yaml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(PROMPTS, tmp_path / "prompts")
    return tmp_path / "prompts"


def user_message(name: str, text: str, what: Schema = SUPPORT) -> str:
    return prompt.load(PROMPTS, name).messages(windows(text)[0], what)[1].content


def test_the_line_prompt_is_the_one_that_the_adapter_was_trained_on() -> None:
    what = schema.parse(
        b"""
name: x
tasks:
  - {name: sentiment, kind: choice, labels: [negative, neutral, positive]}
  - {name: entities, kind: spans, labels: [person, organization, product]}
  - {name: intent, kind: choice, labels: [refund_request, track_order, other]}
"""
    )
    system, user = prompt.load(PROMPTS, "line.v1").messages(windows("Maria says the X200 never came.")[0], what)
    assert (system.role, system.content) == ("system", "Label the text.")
    assert user.content == (
        "Sentiment: negative, neutral, positive\n"
        "Intent: refund request, track order, other\n"
        "Entities: person, organization, product\n"
        "Text: Maria says the X200 never came."
    )


@pytest.mark.parametrize("name", prompt.names(PROMPTS))
@given(text=st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60))
def test_the_text_stands_in_the_prompt_exactly_as_received(name: str, text: str) -> None:
    assert windows(text)[0].text in user_message(name, text)


@pytest.mark.parametrize("name", prompt.names(PROMPTS))
def test_a_text_that_looks_like_a_template_is_not_one(name: str) -> None:
    assert "{{ 7*7 }} {% raw %} {#" in user_message(name, "{{ 7*7 }} {% raw %} {#")


def test_a_published_prompt_that_changed_is_refused(folder: Path) -> None:
    with (folder / "line.v1.jinja").open("a") as file:
        file.write(" ")
    with pytest.raises(Invalid, match=r"line\.v1 was changed after it was published"):
        prompt.load_all(folder)


def test_a_published_prompt_that_is_gone_is_an_error(folder: Path) -> None:
    (folder / "line.v1.jinja").unlink()
    with pytest.raises(ServiceError, match=r"line\.v1\.jinja is missing"):
        prompt.load_all(folder)


def test_a_draft_may_be_used_and_changed(folder: Path) -> None:
    draft = folder / "line.v99.jinja"
    draft.write_text((folder / "line.v1.jinja").read_text())
    first = prompt.load(folder, "line.v99")
    draft.write_text(draft.read_text().replace("Label the text.", "Label this text."))
    assert prompt.load(folder, "line.v99").sha256 != first.sha256


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("no blocks", "must set wire"),
        ('{% set wire = "xml" %}{% block system %}{% endblock %}{% block user %}{% endblock %}', "must set wire"),
        ('{% set wire = "line" %}{% block system %}{% endblock %}', "blocks system and user"),
        ("{% block system %}", "prompt bad.v1"),
    ],
)
def test_a_template_that_is_none_is_refused(folder: Path, source: str, reason: str) -> None:
    (folder / "bad.v1.jinja").write_text(source)
    with pytest.raises(Invalid, match=reason):
        prompt.load(folder, "bad.v1")


@pytest.mark.parametrize(
    "expression",
    ["{{ missing }}", "{{ schema.missing.deeper }}", "{{ text.__class__.__mro__ }}", "{{ schema.__init__ }}"],
)
def test_a_missing_variable_or_a_way_out_of_the_sandbox_is_an_error(folder: Path, expression: str) -> None:
    source = '{% set wire = "line" %}{% block system %}' + expression + "{% endblock %}{% block user %}{% endblock %}"
    (folder / "bad.v1.jinja").write_text(source)
    with pytest.raises(Invalid, match=r"prompt bad\.v1"):
        prompt.load(folder, "bad.v1").messages(windows("x")[0], SUPPORT)


@pytest.mark.parametrize("name", ["nothing.v1", "../secrets.v1", "line", "line.vx", "line.v1.jinja", "", "/etc/passwd"])
def test_an_unknown_prompt_is_not_found(name: str) -> None:
    with pytest.raises(NotFound, match=r"guided\.v1, line\.v1"):
        prompt.load(PROMPTS, name)


@pytest.mark.parametrize(
    ("example", "field"),
    [
        ("{text: Ann came, mood: angry, names: []}", r"examples\[0\]\.mood"),
        ("{text: Ann came, names: []}", r"examples\[0\]\.mood"),
        ("{text: Ann came, mood: good}", r"examples\[0\]\.names"),
        ("{text: Ann came, mood: good, names: [{text: Bob, label: person}]}", r"examples\[0\]\.names\[0\]\.text"),
        ("{text: Ann came, mood: good, names: [{text: Ann, label: place}]}", r"examples\[0\]\.names\[0\]\.label"),
        ("{text: Ann came, mood: good, names: [], tone: x}", r"examples\[0\]\.tone"),
    ],
)
def test_a_worked_example_that_the_schema_does_not_allow_is_refused(example: str, field: str) -> None:
    what = schema.parse(
        f"""
name: x
tasks:
  - {{name: mood, kind: choice, labels: [good, bad]}}
  - {{name: names, kind: spans, labels: [person]}}
examples:
  - {example}
""".encode()
    )
    with pytest.raises(Invalid, match=field):
        prompt.load(PROMPTS, "guided.v1").messages(windows("x")[0], what)
