"""The pages for leads in a real browser: decided by keys alone, readable without scripts, and safe with any text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect
from sqlalchemy import Engine
from sqlmodel import col, select

from service import db
from service.labels import plain
from service.models import GoldItem, Item, Kind, Review, State
from service.schema import Schema
from tests.browser import Desk, browser, watch
from tests.serving import listening, make_app
from tests.stage import DOUBT, SCHEMA, Play, labels, stage

__all__ = ["browser"]

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>\u202e{{7*7}} ${1} \U0001f600"
TEXT = "\U0001f600 Ann is in Ghent"
EVIL = Schema.model_validate(
    {
        "name": "evil",
        "guideline": HOSTILE,
        "tasks": [
            {
                "name": "sentiment",
                "kind": "choice",
                "instruction": HOSTILE,
                "labels": [
                    {"name": "negative", "definition": HOSTILE},
                    {"name": "neutral", "display": "<svg onload>"},
                    "positive",
                ],
            },
            {"name": "entities", "kind": "spans", "labels": ["person", "<script>"]},
        ],
    }
)


class Place:
    """A service without keys, where whoever asks is a lead, and its database."""

    def __init__(self, url: str, database: Engine) -> None:
        self.url = url
        self.database = database

    def dispute(
        self,
        text: str,
        first: dict[str, Any],
        second: dict[str, Any],
        ref: str | None = None,
        note: str = "",
        schema: Schema = SCHEMA,
    ) -> int:
        """An item that ann and ben answered differently."""
        said = labels(text, "neutral", [(2, 5, "person")], 0.5)
        _, (item,) = stage(self.database, [Play(text, said, DOUBT, ref=ref)], schema)
        with db.begin(self.database) as session:
            found = session.get_one(Item, item)
            found.state, found.answers = State.adjudication, 2
            for name, given in (("ann", first), ("ben", second)):
                session.add(
                    Review(
                        item_id=item,
                        reviewer=name,
                        labels=given,
                        changed=given != plain(said),
                        stands=False,
                        seconds=5.0,
                        note=note,
                    )
                )
        return item

    def standing(self, item: int) -> Review | None:
        with db.read(self.database) as session:
            query = select(Review).where(col(Review.item_id) == item, col(Review.stands))
            return session.exec(query).first()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder: Path = tmp_path_factory.mktemp("leads")
    with listening(make_app(folder, workers=0)) as url:
        database = db.connect(f"sqlite:///{folder}/concord.db")
        yield Place(url, database)
        database.dispose()


@pytest.fixture
def lead(browser: Browser, place: Place) -> Iterator[Desk]:
    context = browser.new_context(base_url=place.url)
    context.set_default_timeout(15_000)
    desk = Desk(context.new_page())
    watch(desk, place.url)
    yield desk
    context.close()
    assert (desk.broken, desk.foreign) == ([], [])


def person(start: int, end: int, text: str = TEXT, label: str = "person") -> dict[str, Any]:
    return {"start": start, "end": end, "label": label, "text": text[start:end]}


ONE: dict[str, Any] = {"sentiment": "negative", "entities": [person(2, 5)]}
OTHER: dict[str, Any] = {"sentiment": "positive", "entities": [person(2, 5), person(12, 17, label="place")]}


def letter_of(desk: Desk, value: str) -> str:
    """The letter under which the sentiment stands."""
    side = desk.page.locator("[data-task=sentiment] .side", has=desk.page.locator(".value", has_text=value))
    return str(side.locator("input").get_attribute("value"))


def axe(desk: Desk) -> list[str]:
    found = Axe().run(desk.page).response["violations"]
    return [
        f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found if one["impact"] in ("serious", "critical")
    ]


def test_a_dispute_is_decided_by_keys_alone_and_names_come_after(lead: Desk, place: Place) -> None:
    item = place.dispute(TEXT, ONE, OTHER, ref="first")
    lead.open(f"/adjudicate/{item}")
    assert not re.search(r"\b(ann|ben)\b", lead.page.content())
    assert lead.page.locator("mark.differs").all_inner_texts() == ["Ghent place · only here"]
    ben = letter_of(lead, "positive")
    lead.press(ben.lower())  # sentiment; on to the entities
    lead.press(str("AB".index(ben) + 1))  # on to the reason
    lead.page.keyboard.type("Ghent is a place")
    lead.press("Enter")
    expect(lead.page.locator("#done")).to_be_visible()
    assert f"{ben} was ben" in lead.page.locator("#names").inner_text()
    stands = place.standing(item)
    assert stands is not None
    assert (stands.kind, stands.labels, stands.note) == (Kind.adjudication, OTHER, "Ghent is a place")
    assert lead.page.evaluate("document.activeElement.id") == "next"


def test_a_third_answer_is_made_in_the_editor_with_the_emoji_counted_right(lead: Desk, place: Place) -> None:
    item = place.dispute(TEXT, ONE, OTHER)
    lead.open(f"/adjudicate/{item}")
    lead.press("k", "e")
    lead.page.locator("[data-task=sentiment] .own input[value=neutral]").press("Space")
    lead.press("Escape", "j", letter_of(lead, "negative").lower(), "r")
    lead.page.keyboard.type("neither")
    lead.press("Enter")
    expect(lead.page.locator("#done")).to_be_visible()
    stands = place.standing(item)
    assert stands is not None
    assert stands.labels == {"sentiment": "neutral", "entities": ONE["entities"]}


def test_nothing_is_settled_without_a_reason_or_with_a_task_open(lead: Desk, place: Place) -> None:
    item = place.dispute(TEXT, ONE, OTHER)
    lead.open(f"/adjudicate/{item}")
    lead.press("Enter")
    expect(lead.page.locator("#problem")).to_have_text("sentiment: expected an answer")
    lead.press("a", "a", "Enter")
    expect(lead.page.locator("#problem")).to_have_text("Reason: expected why this is right")
    assert place.standing(item) is None


def test_the_proposal_opens_when_asked_for_and_can_be_taken(lead: Desk, place: Place) -> None:
    item = place.dispute(TEXT, ONE, OTHER)
    lead.open(f"/adjudicate/{item}")
    assert lead.page.locator(".model:visible").count() == 0
    lead.press("m")
    expect(lead.page.locator("#told")).to_have_text("Show the proposal first, with p.")
    lead.press("p", "m", "m")
    lead.page.keyboard.type("as proposed")
    lead.press("Enter")
    expect(lead.page.locator("#done")).to_be_visible()
    stands = place.standing(item)
    assert stands is not None and not stands.changed


def test_what_is_left_is_free_again_and_what_another_lead_holds_is_not_taken(lead: Desk, place: Place) -> None:
    item = place.dispute(TEXT, ONE, OTHER)
    lead.open(f"/adjudicate/{item}")
    lead.press("Escape")
    lead.page.wait_for_url("**/adjudicate")
    with db.begin(place.database) as session:
        found = session.get_one(Item, item)
        assert found.lease_owner is None
        found.lease_owner, found.lease_until = "lea", found.updated_at.replace(year=2100)
    lead.page.goto(f"/adjudicate/{item}")
    expect(lead.page.locator("#problem")).to_contain_text("in the hands of lea")
    expect(lead.page.locator("#settle")).to_be_disabled()


def test_what_was_decided_goes_into_gold(lead: Desk, place: Place) -> None:
    item = place.dispute(
        "\U0001f600 Bob is in Ghent too", ONE | {"entities": []}, OTHER | {"entities": []}, ref="golden"
    )
    lead.open(f"/adjudicate/{item}")
    lead.press("a", "r")
    lead.page.keyboard.type("so it is")
    lead.press("Enter")
    expect(lead.page.locator("#done")).to_be_visible()
    lead.page.locator("#to-gold input[name=gold]").fill("agreed on")
    lead.press("Enter")
    expect(lead.page.locator("#to-gold .told")).to_contain_text("1 added")
    with db.read(place.database) as session:
        (found,) = session.exec(select(GoldItem).where(col(GoldItem.gold) == "agreed on"))
    assert found.ref == "golden"


def test_hostile_strings_are_shown_and_do_nothing(lead: Desk, place: Place) -> None:
    text = f"{HOSTILE} Ann"
    one = {"sentiment": "negative", "entities": [person(0, 5, text, "<script>")]}
    item = place.dispute(text, one, one | {"sentiment": "positive"}, HOSTILE, HOSTILE, EVIL)
    lead.open(f"/adjudicate/{item}")
    assert "<img src=x" in lead.page.locator(".text-in-full").inner_text()
    lead.press("p", "g", "e")
    for path in ("/adjudicate", "/quality"):
        lead.page.goto(path)
        lead.page.wait_for_load_state("networkidle")
    assert lead.page.locator("img[src=x]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Browser, place: Place, scheme: Any) -> None:
    item = place.dispute(TEXT, ONE, OTHER)
    context = browser.new_context(base_url=place.url, color_scheme=scheme)
    desk = Desk(context.new_page())
    desk.open("/adjudicate")
    assert axe(desk) == []
    desk.open(f"/adjudicate/{item}")
    assert axe(desk) == []
    desk.press("p", "e")
    assert axe(desk) == []
    desk.page.goto("/quality")
    assert axe(desk) == []
    context.close()


def test_the_pages_can_be_read_without_scripts(browser: Browser, place: Place) -> None:
    item = place.dispute(TEXT, ONE, OTHER)
    context = browser.new_context(base_url=place.url, java_script_enabled=False)
    page = context.new_page()
    page.goto(f"/adjudicate/{item}")
    expect(page.locator("noscript .error")).to_contain_text("Deciding needs JavaScript")
    assert page.locator(".side:not(.model) mark").count() == 3
    page.goto("/quality")
    expect(page.locator(".summary li").first).to_be_visible()
    page.locator("input[name=since]").fill("2026-01-01")
    page.locator("form.asked button").click()
    assert "since=2026-01-01" in page.url and "until=" in page.url
    assert page.locator("h1").inner_text() == "Quality"
    assert page.request.get(f"{place.url}/quality/plots/model.svg").headers["content-type"] == "image/svg+xml"
    assert page.request.get(f"{place.url}/quality/plots/nothing.svg").status == 404
    assert page.locator(".plot img").count() >= 2
    for picture in page.locator(".plot img").all():
        assert len(picture.get_attribute("alt") or "") > 30
    context.close()
