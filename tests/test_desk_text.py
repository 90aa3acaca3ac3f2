"""The page's offsets and words are the service's: code points, and the words of service/words.py."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from service.schema import as_words
from service.words import split_words
from tests.browser import Shop

PIECES = (
    *"aZ9_-.,;:!?'\"()[]{}@#$%&*+/<>|~`^\\=",
    *" \t\r\n\u00a0\u0085\u2028\u2029\u3000\u200b\ufeff",
    "\r\n", "é", "e\u0301", "\u0301", "\u0308\u0301", "ß", "İ", "ﬁ", "½", "Ⅷ", "²", "€", "£", "°", "—", "…", "“", "’",
    "👍", "👍🏽", "👩‍👩‍👧", "🇩🇪", "🇩", "❤️", "☎", "ℹ", "\u200d", "1️⃣", "#️⃣", "🏴\U000e0067\U000e0062\U000e007f",
    "漢字", "ひらがな", "カタカナ", "ไทย", "กำ", "ລາວ", "မြန်မာ", "ខ្មែរ", "བོད་", "한국어", "각",
    "हिन्दी", "क्\u200dष", "தமிழ்", "עברית", "שָׁלוֹם", "العربية", "\u0600", "\u06dd", "\u0601٣", "١٢٣",
    "\u202e", "\u2066", "\u2069", "\u200f", "\x01", "\x1b", "\x7f", "\x1c", "\U0001d518", "𝒜𝒷", "\U00020000", "\ue000",
)  # fmt: skip


def random_texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    texts = ["", "\U0001f44d", "\u0301", "word " * 30, "x" * 200, "a" + "\u0301" * 200, "!" + "\u0301" * 200, "👍" * 70]
    texts += ["".join(draw.choices(PIECES, k=draw.randint(1, 40))) for _ in range(count - len(texts))]
    return texts


@pytest.fixture(scope="module")
def page(browser: Browser, shop: Shop) -> Iterator[Page]:
    """A page of the service's own, into which its modules can be loaded."""
    page = browser.new_page()
    page.route("**/empty", lambda route: route.fulfill(content_type="text/html", body="<!doctype html>"))
    page.goto(f"{shop.url}/empty")
    yield page
    page.close()


TEXT = "const {Text, asWords, renderMarked} = await import('/static/text.js');"


def test_words_are_those_of_the_service(page: Page) -> None:
    texts = random_texts(500, 1)
    found = page.evaluate(f"async texts => {{ {TEXT} return texts.map(text => new Text(text).words); }}", texts)
    for text, words in zip(texts, found, strict=True):
        assert [tuple(word) for word in words] == split_words(text), ascii(text)


def test_offsets_convert_to_what_the_browser_counts_and_back(page: Page) -> None:
    texts = random_texts(300, 2)
    units, back = page.evaluate(
        f"""async texts => {{ {TEXT}
            const each = texts.map(text => new Text(text));
            const points = text => [...Array(text.length + 1).keys()];
            return [each.map(text => points(text).map(p => text.toUnits(p))),
                    each.map(text => points(text).map(p => text.toPoints(text.toUnits(p))))];
        }}""",
        texts,
    )
    for text, there, again in zip(texts, units, back, strict=True):
        assert there == [len(text[:point].encode("utf-16-le")) // 2 for point in range(len(text) + 1)]
        assert again == list(range(len(text) + 1))


def test_marks_change_nothing_of_a_text_and_places_in_it_are_found_again(page: Page) -> None:
    texts = [text for text in random_texts(300, 3) if text]
    shown = page.evaluate(
        f"""async texts => {{ {TEXT}
            const root = document.createElement('div');
            document.body.append(root);
            return texts.map(given => {{
                const text = new Text(given);
                const words = text.words.filter((_, k) => k % 3 === 0);
                const spans = words.map(([start, end]) => ({{start, end, label: 'thing'}}));
                const pieces = renderMarked(root, text, spans, () => ({{tag: 'thing', className: 'span'}}));
                const wrong = [...Array(text.length + 1).keys()].map(p => text.toUnits(p)).filter(unit => {{
                    const range = pieces.range(0, unit);
                    return range.toString() !== given.slice(0, unit)
                        || pieces.unit(range.endContainer, range.endOffset) !== unit;
                }});
                return [root.textContent, [...root.querySelectorAll('mark')].map(mark => mark.textContent), wrong];
            }});
        }}""",
        texts,
    )
    for text, (content, marks, wrong) in zip(texts, shown, strict=True):
        assert content == text
        assert marks == [text[start:end] for start, end in split_words(text)[::3]]
        assert wrong == []


def test_the_steps_of_the_arrow_keys_join_what_no_blank_parts(page: Page) -> None:
    expected = {
        "order 88-K-4410, (it's $1,234.50!)": ["order", "88-K-4410", ",", "(", "it's", "$1,234.50", "!", ")"],
        "漢字 and ไทย": ["漢", "字", "and", "ไ", "ท", "ย"],
        "“R1 849” - 👍🏽 #12": ["“", "R1", "849", "”", "-", "👍🏽", "#12"],
    }
    found = page.evaluate(
        f"""async texts => {{ {TEXT}
            return texts.map(text => new Text(text)).map(text => text.runs.map(run => text.slice(...run)));
        }}""",
        list(expected),
    )
    assert found == list(expected.values())


def test_labels_read_as_they_do_in_prompts(page: Page) -> None:
    names = ["refund_request", "RefundRequest", "refund.request", "PER", "MISC", "HTTPError", "a--b", "ABC_def/Ghi"]
    found = page.evaluate(f"async names => {{ {TEXT} return names.map(asWords); }}", names)
    assert found == [as_words(name) for name in names]
