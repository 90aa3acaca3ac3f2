"""What people and models write stays text: no script runs, nothing leaves, nothing is changed on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice, product
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from service import db
from service.route import Code, Decision, Outcome, Reason
from service.schema import SEPARATORS, Schema
from tests.browser import KEYS, Desk, Shop, reviewing, settings_of_desk
from tests.serving import listening, make_app
from tests.stage import Play, labels, stage

RUN = "window.hacked=1;alert(1)"
MARKUP = (
    "<script>{run}</script>", "<ScRiPt\n>{run}</sCrIpT >", "</script><script>{run}</script>",
    "<script src=//evil.example/x.js>",
    "<img src=x onerror={run}>", "<img/src=`x`onerror={run}//", "<svg onload={run}>",
    "<svg><script>{run}</script></svg>",
    "<svg><animate onbegin={run} attributeName=x dur=1s>", "<math><mtext><style><img src=x onerror={run}></style>",
    "<body onload={run}>", "<details open ontoggle={run}>", "<input autofocus onfocus={run}>",
    "<video><source onerror={run}>",
    "<marquee onstart={run}>", "<iframe srcdoc='<script>{run}</script>'>", "<iframe src=javascript:{run}>",
    "<object data=//evil.example>",
    "<embed src=//evil.example>", "<link rel=stylesheet href=//evil.example/x.css>",
    "<style>@import '//evil.example'</style>",
    "<base href=//evil.example/>", "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<form action=//evil.example><button>",
    "<a href=javascript:{run}>click</a>", "<a href='java\tscript:{run}'>click</a>",
    "<p style=background:url(//evil.example)>",
    "javascript:{run}", "data:text/html,<script>{run}</script>", "vbscript:{run}", "//evil.example/x",
    "https://evil.example/?q=1",
    "<!--", "-->", "<![CDATA[", "]]>", "</title>", "</textarea>", "</style>",
    "</template><img src=x onerror={run}>", "<plaintext>",
    "&lt;script&gt;", "&#60;script&#62;{run}", "&amp;", "\\u003cscript\\u003e", "%3Cscript%3E",
    "<template><script>{run}</script></template>",
)  # fmt: skip
QUOTING = (
    "\"onmouseover={run} x=\"", "'onmouseover={run} x='", "`${{{run}}}`", "${{{run}}}", "{{{{7*7}}}}",
    "{{% raw %}}", "{{{{ config }}}}",
    "<%= 7*7 %>", "#{{7*7}}", "[[constructor]]", "__proto__", "constructor", "toString", "\");{run};(\"",
    "'-{run}-'", "\\", "\\\\", "\\n", "\\0",
    "'; DROP TABLE item; --", "%s%n", "../../etc/passwd", "null", "undefined", "NaN", "[object Object]", "0", "-1",
    "true", "", " ", "  two  ",
)  # fmt: skip
UNICODE = (
    "\u202egnp.exe", "\u202a\u202b\u202c\u202d", "\u2066\u2067\u2068\u2069", "\u200e\u200f\u061c", "\u2028",
    "\u2029", "\ufeff", "\u200b\u200c\u200d\u2060",
    "\u0301", "a" + "\u0301" * 60, "\u0e33\u0e33", "\U0001f44d\U0001f3fd",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9", "\ufe0f",
    "\ufff9\ufffa\ufffb", "\ufffd", "\ufffe", "\uffff", "\U0010ffff", "\ue000", "\u0085", "\x01\x02\x03",
    "\x1b[31mred", "\x7f", "\x0b\x0c", "\r", "\r\n", "\n\n\n",
    "\t\t", "ﷺ", "ﷺ" * 20, "שלום abc עולם", "العربية ١٢٣ abc", "𝕳𝖊𝖑𝖑𝖔", "İıſK", "ß\u1e9e", "漢字かなカナ", "한글",
    "ไทยไทย", "\U000e0041\U000e0042", "\u034f",
    "\uff1cscript\uff1e", "\u02b9\u02ba", "\u0130" * 5, "x" * 10_000, "\u0915\u094d\u200d\u0937",
)  # fmt: skip


def hostile() -> list[str]:
    """500 strings: each alone, then with one inside, before and after another."""
    alone = [text.format(run=RUN) for text in (*MARKUP, *QUOTING)] + list(UNICODE)
    pairs = (a + b for a, b in product(alone[:: len(MARKUP) // 8], UNICODE + tuple(alone[5::9])))
    return list(islice(dict.fromkeys([*alone, *pairs]), 500))


STRINGS = hostile()
# A name of a user is printable, of at most 100 characters, and ends at the first colon of the setting.
USER = "<img src=x onerror=window.hacked=1> {{7*7}} \"'`"


def labelled(text: str, number: int) -> str:
    """A label's display name, as close to the text as a schema allows."""
    kept = "".join(c for c in text if c.isprintable() and c not in SEPARATORS)
    return " ".join(f"{kept} {number}".split())[-100:].strip()


def hostile_schema(texts: list[str]) -> Schema:
    shown = [
        {"name": f"l{n}", "display": labelled(text, n), "definition": text.replace("\x00", "")[:900]}
        for n, text in enumerate(texts)
    ]
    return Schema.model_validate(
        {
            "name": "hostile",
            "guideline": "\n".join(text[:60] for text in texts[:200])[:20_000],
            "tasks": [
                {"name": "sentiment", "kind": "choice", "labels": shown[:250], "instruction": texts[0]},
                {"name": "entities", "kind": "spans", "labels": shown[250:], "instruction": texts[1]},
            ],
        }
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("hostile")
    keys = settings_of_desk()["reviewer_keys"]
    app = make_app(folder, **settings_of_desk(reviewer_keys=(*keys, f"{USER}:{KEYS['ann']}-too")))
    with listening(app) as url:
        database = db.connect(f"sqlite:///{folder}/concord.db")
        yield Shop(url, database)
        database.dispose()


@pytest.fixture(scope="module")
def desk(browser: Browser, shop: Shop) -> Iterator[Desk]:
    with reviewing(browser, shop.url, "bob") as desk:
        yield desk


def unharmed(desk: Desk) -> None:
    assert desk.page.evaluate("window.hacked") is None
    assert desk.broken == []
    assert desk.foreign == []


def test_there_are_five_hundred_strings() -> None:
    assert len(set(STRINGS)) == len(STRINGS) == 500


def test_each_string_is_shown_as_it_is_as_text_label_and_definition(desk: Desk) -> None:
    """All of them through the editor, one after the other: the text with a mark in it, and labels named after it."""
    desk.open()
    wrong, shown = desk.page.evaluate(
        """async texts => {
            const {mountEditor} = await import('/static/editor.js');
            const {Text} = await import('/static/text.js');
            const root = document.createElement('div');
            document.body.append(root);
            const wrong = [], shown = [];
            for (const text of texts.filter(text => text)) {
                const label = {name: 'x', display: text, definition: text};
                const labels = [label, {name: 'y', display: 'y'}];
                const tasks = [{name: 'mood', kind: 'choice', instruction: text, labels},
                               {name: 'things', kind: 'spans', instruction: text, labels: [label]}];
                const spans = new Text(text).words.slice(0, 1).map(([start, end]) => ({start, end, label: 'x'}));
                const said = [];
                const editor = mountEditor(root, {text, schema: {tasks}, labels: {mood: 'x', things: spans},
                    proposal: {mood: {label: 'x', confidence: 0.5, alternatives: []}}, say: words => said.push(words)});
                const parts = {
                    text: root.querySelector('.text').textContent,
                    option: root.querySelector('.option .name').textContent,
                    instruction: root.querySelector('.instruction').textContent,
                    label: root.querySelector('.marking bdi').textContent,
                    definition: root.querySelector('.option').title,
                    tag: spans.length ? root.querySelector('mark').dataset.tag : text,
                };
                for (const [part, found] of Object.entries(parts)) if (found !== text) wrong.push([part, text, found]);
                shown.push(editor.labels().things[0]?.text ?? null);
                editor.destroy();
            }
            root.remove();
            return [wrong, shown];
        }""",
        STRINGS,
    )
    assert wrong == []
    assert len(shown) == len([text for text in STRINGS if text])
    unharmed(desk)


def test_a_page_full_of_them_runs_nothing_and_changes_nothing(desk: Desk, shop: Shop) -> None:
    """As text, reference, metadata, labels, definitions, guideline, reasons and note, delivered within the page."""
    schema = hostile_schema(STRINGS)
    text = "\n".join(text for text in STRINGS if len(text) < 1000)
    reasons = tuple(
        Reason(code=code, task="sentiment", label=f"l{n}", value=0.5, threshold=0.6, detail=STRINGS[n])
        for n, code in enumerate(Code)
    )
    said = labels(text, "l3", [(0, 8, "l260")])
    refs = [STRINGS[n][:150] for n in (0, 4, 6, 40)]
    batch, items = stage(
        shop.database,
        [Play(text, said, Decision(outcome=Outcome.review, reasons=reasons), ref=r) for r in refs],
        schema,
    )
    put_meta(shop, items, {text[:80]: text[:300] for text in STRINGS[:60]} | {"inner": {"<b>": STRINGS[:9]}})
    desk.open(f"/review?batch={batch}&order=oldest")
    assert desk.page.locator(".text").evaluate("one => one.textContent") == text
    shown = desk.page.locator(".option .name, .marking bdi").evaluate_all("all => all.map(one => one.textContent)")
    assert sorted(shown) == sorted(label.shown for task in schema.tasks for label in task.labels)
    named = desk.page.locator("#definitions dd").evaluate_all("all => all.map(one => one.textContent)")
    assert named == [label.definition or "no definition" for task in schema.tasks for label in task.labels]
    terms = desk.page.locator("#meta-list > *").evaluate_all("all => all.map(one => one.textContent)")
    meta = dict(zip(terms[::2], terms[1::2], strict=True))
    assert json.loads(meta.pop("inner")) == {"<b>": STRINGS[:9]}
    assert meta == {text[:80]: text[:300] for text in STRINGS[:60]}
    desk.press("g", "Escape", "?", "Escape")
    desk.page.locator("#note").fill(STRINGS[4])
    desk.settle("Enter", "Enter")  # out of the note, and settle
    assert desk.ref() == refs[1]
    desk.press("f")
    desk.page.locator("#flag-note").fill(STRINGS[0])
    desk.settle("Control+Enter")
    desk.press("x")
    desk.page.wait_for_selector("#bulk-dialog[open]", timeout=60_000)
    desk.press("Escape")
    unharmed(desk)
    notes = [one.note for one in shop.reviews() if one.item_id in items]
    assert notes == [STRINGS[4]]


def put_meta(shop: Shop, items: list[int], meta: dict[str, Any]) -> None:
    from service.models import Item

    with db.begin(shop.database) as session:
        for item in items:
            session.get_one(Item, item).meta = meta


def test_a_user_whose_name_is_markup_is_a_user_with_an_odd_name(browser: Browser, shop: Shop) -> None:
    batch, (item,) = stage(shop.database, [Play("Odd", labels("Odd", "neutral"))])
    KEYS[USER] = f"{KEYS['ann']}-too"
    with reviewing(browser, shop.url, USER) as odd:
        odd.open(f"/review?batch={batch}")
        assert odd.page.locator(".who").inner_text().startswith("<img src=x onerror=")
        odd.settle("Enter")
        unharmed(odd)
    assert [one.reviewer for one in shop.reviews() if one.item_id == item] == [USER]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Browser, shop: Shop, scheme: Any) -> None:
    text = "Ann Lee is in Ghent 👍 and writes to Bob"
    batch, _ = stage(shop.database, [Play(text, labels(text, "neutral", [(0, 7, "person")])) for _ in range(3)])
    with reviewing(browser, shop.url, "bob", color_scheme=scheme, viewport={"width": 1024, "height": 768}) as bob:
        bob.open(f"/review?batch={batch}")
        check(bob)
        for key, dialog in (("?", "keys"), ("g", "guideline"), ("f", "flag"), ("x", "bulk")):
            bob.press(key)
            bob.page.wait_for_selector(f"#{dialog}-dialog[open]", timeout=60_000)
            check(bob)
            bob.press("Escape")
            bob.page.wait_for_selector(f"#{dialog}-dialog:not([open])", state="attached")


def check(desk: Desk) -> None:
    found = Axe().run(desk.page).response["violations"]
    serious = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
    assert serious == []
