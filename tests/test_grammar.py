"""The grammar allows exactly the valid answers, for any text, and the parser inverts it exactly."""

from __future__ import annotations

import json
import subprocess
import sys

import llguidance
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from service.engine.tokenizer import Tokenizer
from service.grammar import compile_grammar
from service.labels import Choice, Labels, Mentions, Span
from service.parse import ParseError, parse
from service.schema import Schema
from service.wire import WIRES, render
from service.words import BARRIER, Window, split_words, windows

# Labels that begin alike, on purpose: "order" must not be taken for the beginning of "order status".
SCHEMA = Schema.model_validate(
    {
        "name": "test",
        "tasks": [
            {"name": "sentiment", "kind": "choice", "labels": ["negative", "positive"]},
            {"name": "intent", "kind": "choice", "labels": ["order", "order_status", "order_status_late"]},
            {"name": "entities", "kind": "spans", "labels": ["product", "product_name", "person"]},
        ],
    }
)
SPANS_ONLY = Schema.model_validate(
    {"name": "spans", "tasks": [{"name": "entities", "kind": "spans", "labels": ["a", "b"]}]}
)
CHOICE_ONLY = Schema.model_validate(
    {"name": "choice", "tasks": [{"name": "sentiment", "kind": "choice", "labels": ["good", "good_enough"]}]}
)
SCHEMAS = [SCHEMA, SPANS_ONLY, CHOICE_ONLY]

PIECES = st.one_of(
    st.sampled_from(
        ["a", "b", "a", "Sam", "Samsung", "New York", "=", "==", "=2", "|", " | ", " = ", "product", "order", '"', "\\"]
        + [
            "\n",
            "\r\n",
            "\t",
            "  ",
            " ",
            "'",
            "5.5",
            "<|im_end|>",
            "é",
            "e\u0301",
            "👍🏽",
            "👨‍👩‍👧",
            "日本語",
            "عربي",
            "ไทย",
            "\x01",
            "\x7f",
        ]
    ),
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00"), max_size=4),
)
TEXTS = st.lists(PIECES, max_size=14).map("".join)
wires = pytest.mark.parametrize("wire_name", sorted(WIRES))


@st.composite
def assignments(draw: st.DrawFn) -> tuple[Schema, Window, Labels]:
    """A schema, a text and any labels that may be said of it."""
    schema = draw(st.sampled_from(SCHEMAS))
    window = windows(draw(TEXTS))[0]
    spans = []
    after = 0
    while schema.spans and after < len(window.words) and draw(st.booleans()):
        first = draw(st.integers(after, len(window.words) - 1))
        last = draw(st.integers(first, min(first + 3, len(window.words) - 1)))
        start, end = window.words[first][0], window.words[last][1]
        assume(not BARRIER.search(window.text[start:end]))
        label = draw(st.sampled_from([label.name for label in schema.spans.labels]))
        spans.append(Span(start=start, end=end, label=label, text=window.text[start:end]))
        after = last + 1
    choices = {t.name: Choice(label=draw(st.sampled_from([x.name for x in t.labels]))) for t in schema.choices}
    mentions = {schema.spans.name: Mentions(spans=tuple(spans))} if schema.spans else {}
    return schema, window, Labels(choices=choices, mentions=mentions)


def accepts(tokenizer: Tokenizer, grammar: str, completion: str) -> bool:
    """Whether the grammar lets a model write the completion, token by token, and then end."""
    matcher = llguidance.LLMatcher(tokenizer.llg, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer.hf.encode(completion, add_special_tokens=False, split_special_tokens=True)
    return all(matcher.consume_token(token) for token in tokens) and matcher.is_accepting()


def parses(completion: str, window: Window, schema: Schema, wire_name: str) -> bool:
    try:
        parse(completion, window, schema, WIRES[wire_name](schema))
    except ParseError:
        return False
    return True


@wires
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=assignments())
def test_every_assignment_can_be_said_and_is_read_back(tokenizer: Tokenizer, wire_name: str, case: tuple) -> None:  # type: ignore[type-arg]
    schema, window, labels = case
    wire = WIRES[wire_name](schema)
    completion = render(labels, window, schema, wire)
    assert accepts(tokenizer, compile_grammar(schema, window, wire), completion)
    parsed = parse(completion, window, schema, wire)
    assert {c.task.name: c.label for c in parsed.choices} == {name: c.label for name, c in labels.choices.items()}
    expected = [(s.start, s.end, s.label) for m in labels.mentions.values() for s in m.spans]
    assert [(m.start, m.end, m.label) for m in parsed.mentions] == expected


@wires
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=assignments(), data=st.data())
def test_grammar_and_parser_accept_exactly_the_same_completions(
    tokenizer: Tokenizer,
    wire_name: str,
    case: tuple,
    data: st.DataObject,  # type: ignore[type-arg]
) -> None:
    schema, window, labels = case
    wire = WIRES[wire_name](schema)
    completion = render(labels, window, schema, wire)
    at = data.draw(st.integers(0, len(completion)))
    cut = data.draw(st.integers(0, 3))
    alphabet = sorted(set(completion) | set('= |2a"{}'))
    put = data.draw(st.text(st.sampled_from(alphabet), max_size=3))
    mutated = completion[:at] + put + completion[at + cut :]
    grammar = compile_grammar(schema, window, wire)
    assert accepts(tokenizer, grammar, mutated) == parses(mutated, window, schema, wire_name), mutated


@wires
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"sentiment": "angry"}, id="a label that the task lacks"),
        pytest.param({"mention": "Nokia"}, id="a mention that the text lacks"),
        pytest.param({"mention": "amsung"}, id="half a word"),
        pytest.param({"mention": "York New"}, id="words in another order"),
        pytest.param({"label": "animal"}, id="an entity label that the schema lacks"),
    ],
)
def test_wrong_output_cannot_be_produced(tokenizer: Tokenizer, wire_name: str, wrong: dict[str, str]) -> None:
    window = windows("Samsung in New York")[0]
    said = {"sentiment": "negative", "mention": "Samsung", "label": "product"}
    form = {
        "line": " {sentiment} | order | {mention} = {label}",
        "json": '{{"sentiment":"{sentiment}","intent":"order","entities":[{{"text":"{mention}","label":"{label}"}}]}}',
    }[wire_name]
    grammar = compile_grammar(SCHEMA, window, WIRES[wire_name](SCHEMA))
    assert accepts(tokenizer, grammar, form.format(**said))
    assert not accepts(tokenizer, grammar, form.format(**(said | wrong)))


def test_spans_cannot_overlap_repeat_or_go_back(tokenizer: Tokenizer) -> None:
    window = windows("Sam met Ann in Rome")[0]
    grammar = compile_grammar(SPANS_ONLY, window, WIRES["line"](SPANS_ONLY))
    assert accepts(tokenizer, grammar, " Sam = a | Ann in Rome = b")
    for wrong in (" Ann = a | Sam = b", " Sam = a | Sam = a", " Sam met = a | met Ann = b", " Sam = a |", " Sam"):
        assert not accepts(tokenizer, grammar, wrong)


def test_a_mention_stands_for_its_first_free_place_and_a_mark_for_a_later_one() -> None:
    text = "May I come in May, May asks"
    window = windows(text)[0]
    wire = WIRES["line"](SPANS_ONLY)

    def starts(completion: str) -> list[int]:
        return [m.start for m in parse(completion, window, SPANS_ONLY, wire).mentions]

    assert starts(" May = a") == [0]
    assert starts(" =2 May = a") == [14]
    assert starts(" =2 May = a | May = b") == [14, 19]
    assert starts(" May asks = b") == [19]


@pytest.mark.parametrize(
    "text", ["", " ", "\n\t ", "\u200b", "a" * 5000, "😀" * 10_000, "=" * 400, "word " * 20_000, "́" * 3000]
)
def test_any_text_compiles_window_by_window_and_no_word_is_left_out(tokenizer: Tokenizer, text: str) -> None:
    pieces = windows(text)
    assert [(s + w.offset, e + w.offset) for w in pieces for s, e in w.words] == split_words(text)
    for window in pieces[:2] + pieces[-1:]:
        assert text[window.offset : window.offset + len(window.text)] == window.text
        assert len(window.words) <= 250 and len(window.text.encode()) <= 1400
        for name, wire in WIRES.items():
            matcher = llguidance.LLMatcher(tokenizer.llg, compile_grammar(SCHEMA, window, wire(SCHEMA)))
            assert not matcher.is_error(), (name, matcher.get_error())


@settings(max_examples=300, deadline=None)
@given(text=st.lists(PIECES, max_size=60).map("".join))
@example(text="x. " * 300)
def test_words_tile_everything_that_is_not_white_space(text: str) -> None:
    position = 0
    for start, end in split_words(text):
        assert position <= start < end
        assert BARRIER.sub("", text[position:start]).strip() == ""
        position = end
    assert BARRIER.sub("", text[position:]).strip() == ""


def test_a_long_text_is_cut_after_a_sentence() -> None:
    text = "This sentence has six words here. " * 60
    assert all(w.text.endswith("here.") for w in windows(text))


def test_a_schema_of_150_intents_compiles(tokenizer: Tokenizer) -> None:
    labels = [f"intent_{i}" for i in range(150)]
    schema = Schema.model_validate({"name": "many", "tasks": [{"name": "intent", "kind": "choice", "labels": labels}]})
    grammar = compile_grammar(schema, windows("hello")[0], WIRES["line"](schema))
    assert accepts(tokenizer, grammar, " intent 14") and accepts(tokenizer, grammar, " intent 149")
    assert not accepts(tokenizer, grammar, " intent 150")


def test_the_largest_window_is_far_from_the_size_at_which_the_grammar_library_dies(tokenizer: Tokenizer) -> None:
    """In a process of its own, because a grammar that is too deep would kill the test run too."""
    code = (
        "import json, sys, threading, llguidance\n"
        "from llguidance.hf import from_tokenizer\n"
        "from transformers import AutoTokenizer\n"
        "folder, grammar = json.load(sys.stdin)\n"
        "llg = from_tokenizer(AutoTokenizer.from_pretrained(folder))\n"
        "def check(): assert not llguidance.LLMatcher(llg, grammar).is_error()\n"
        "thread = threading.Thread(target=check); thread.start(); thread.join()\n"
    )
    text = " ".join(f"w{i}" for i in range(500))  # twice the largest window
    window = Window(text, 0, tuple(split_words(text)))
    grammar = compile_grammar(SCHEMA, window, WIRES["json"](SCHEMA))
    stdin = json.dumps([tokenizer.hf.name_or_path, grammar])
    done = subprocess.run([sys.executable, "-c", code], input=stdin, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
