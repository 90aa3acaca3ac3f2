"""The review desk in a real browser: few keys an item, exact offsets, and no answer lost or counted twice."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Route

from service import accounts, db
from service.labels import Choice, Labels, Mentions
from service.models import Item, Review, Role, now
from service.route import Code, Decision, Outcome, Reason
from service.schema import Schema, load
from service.settings import PROJECT
from tests.browser import KEYS, Desk, Mortal, Shop, proposal, reviewing
from tests.serving import listening, make_app, until
from tests.stage import FAILED, Play, labels, stage

SUPPORT = load(PROJECT / "schemas" / "support.yaml")
GOLD = [json.loads(line) for line in (PROJECT / "eval" / "gold" / "support.jsonl").read_text("utf-8").splitlines()]
PASSWORD = "a-long-word-that-only-eve-knows"
TASKS = [task.name for task in SUPPORT.tasks]
MIXED = "👍🏽 Ann met\r\nZoe\u0301 Müller in 東京都, e\u0301 👩‍👩‍👧 fin.\r\n\tשלום Bob & <b>Ghent</b>\u2028end"


def unsure(task: str | None, label: str | None = None) -> Decision:
    reason = Reason(code=Code.low_confidence, task=task, label=label, value=0.55, threshold=0.6)
    return Decision(outcome=Outcome.review, reasons=(reason,))


@pytest.fixture(scope="module")
def ann(browser: Browser, shop: Shop) -> Iterator[Desk]:
    with reviewing(browser, shop.url, viewport={"width": 1280, "height": 900}) as desk:
        yield desk
        assert desk.foreign == []
        assert desk.broken == []


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A service in which people sign in: what a page sends while it goes away has no headers but the browser's own."""
    folder = tmp_path_factory.mktemp("house")
    with listening(make_app(folder, workers=0, reviewer_keys=("of-nobody-in-these-tests",))) as url:
        database = db.connect(f"sqlite:///{folder}/concord.db")
        with db.begin(database) as session:
            accounts.add(session, "eve", [Role.reviewer], who="tests")
            accounts.set_password(session, "eve", accounts.hashed(PASSWORD), who="eve")
        yield Shop(url, database)
        database.dispose()


@pytest.fixture
def eve(browser: Browser, house: Shop) -> Iterator[Desk]:
    """A reviewer who has signed in."""
    with reviewing(browser, house.url, None) as desk:
        desk.page.goto("/sign-in")
        sign_in(desk)
        yield desk


def sign_in(desk: Desk) -> None:
    """On the page that asks for it, to the page that comes then."""
    desk.page.get_by_label("Name").fill("eve")
    desk.page.get_by_label("Password").fill(PASSWORD)
    desk.page.get_by_role("button", name="Sign in").click()
    desk.page.wait_for_url(lambda url: "/sign-in" not in url)


def opened(desk: Desk, shop: Shop, plays: Sequence[Play], schema: Schema | None = None) -> list[int]:
    """The ids of these items, which the desk now has before it, one after the other."""
    batch, items = stage(shop.database, plays, **({"schema": schema} if schema else {}))
    desk.open(f"/review?batch={batch}&order=oldest")
    return items


def review_of(shop: Shop, item: int) -> Review:
    (found,) = [one for one in shop.reviews() if one.item_id == item]
    return found


def key_of(desk: Desk, task: str, label: str) -> str:
    """The letter of a label, else its digit, as the page shows it."""
    shown = next(one.shown for t in SUPPORT.tasks if t.name == task for one in t.labels if one.name == label)
    if task == "entities":
        place = desk.page.locator(".marking .label").filter(has_text=re.compile(rf"{shown}$"))
    else:
        place = desk.page.locator(f"fieldset[data-task={task}] .option").filter(
            has=desk.page.locator(f"input[value={label}]")
        )
    return place.locator("kbd").last.inner_text().lower()


def units(text: str, start: int, end: int) -> tuple[int, int]:
    return len(text[:start].encode("utf-16-le")) // 2, len(text[:end].encode("utf-16-le")) // 2


def test_fifty_items_are_settled_with_the_keyboard_alone(ann: Desk, shop: Shop) -> None:
    records = GOLD[:50]
    plays = [
        Play(r["text"], proposal(r, r["text"], SUPPORT), unsure("intent", r["intent"]), ref=r["id"]) for r in records
    ]
    items = opened(ann, shop, plays, SUPPORT)
    expected: list[Any] = []
    for number, record in enumerate(records):
        assert ann.ref() == record["id"]
        wanted = {task: record[task] for task in TASKS}
        if number % 5 == 1:  # the task in focus is the doubtful one
            wanted["intent"] = "other" if record["intent"] != "other" else "feedback"
            ann.settle(f"Shift+{key_of(ann, 'intent', wanted['intent'])}")
        elif number % 5 == 2 and record["entities"]:
            wanted["entities"] = record["entities"][1:]
            ann.press(".", "Delete")
            ann.settle("Enter")
        else:
            ann.settle("a" if number % 2 else "Enter")
        expected.append(wanted)
    assert ann.ref() is None
    answers = {one.item_id: one for one in shop.reviews()}
    assert [answers[item].labels for item in items] == expected
    assert {answers[item].reviewer for item in items} == {"ann"}
    assert sum(answers[item].actions or 0 for item in items) <= 50 + 2 * 10


WHERE = [  # what is marked, how its first word is reached, and by how many steps it is longer
    ("Zoe\u0301 Müller", "zo", 1),
    ("東京都", "東", 2),
    ("👩‍👩‍👧", "👩", 0),
    ("Bob", "b", 0),
    ("Ghent", "gh", 0),
    ("end", "end", 0),
]


@pytest.mark.parametrize("hand", ["mouse", "keyboard"])
def test_marks_have_exact_offsets_after_emoji_combining_marks_and_line_ends(ann: Desk, shop: Shop, hand: str) -> None:
    assert [MIXED.count(what) for what, _, _ in WHERE] == [1] * len(WHERE)
    places = [(MIXED.index(what), MIXED.index(what) + len(what)) for what, _, _ in WHERE]
    (item,) = opened(ann, shop, [Play(MIXED, labels(MIXED, "neutral"))])
    assert ann.page.locator(".text").evaluate("text => text.textContent") == MIXED
    for (start, end), (_, word, more) in zip(places, WHERE, strict=True):
        if hand == "mouse":
            ann.drag(*units(MIXED, start, end))
        else:
            ann.press("/")
            ann.page.keyboard.insert_text(word)
            ann.press("Enter", *["Shift+ArrowRight"] * more)
        ann.press("2" if more else "1")
    assert ann.marks() == [(what, "place" if more else "person") for what, _, more in WHERE]
    ann.settle("Enter")
    found = review_of(shop, item).labels["entities"]
    assert [(span["start"], span["end"]) for span in found] == places
    assert [span["text"] for span in found] == [what for what, _, _ in WHERE]


def test_marks_are_moved_relabelled_removed_and_brought_back(ann: Desk, shop: Shop) -> None:
    text = "Ann Lee and Bob are in Ghent."
    said = labels(text, "neutral", [(0, 3, "person"), (12, 15, "place"), (16, 19, "place")])
    (item,) = opened(ann, shop, [Play(text, said)])
    ann.press(".", "]")  # Ann Lee
    assert ann.marks()[0] == ("Ann Lee", "person")
    ann.press("{", "[", "}", "]")
    assert ann.marks()[0] == ("Ann Lee", "person")
    ann.press(".", "1", ".", "Delete")  # Bob is a person, `are` is nothing
    ann.press("End", "ArrowLeft", "2")
    assert ann.marks() == [("Ann Lee", "person"), ("Bob", "person"), ("Ghent", "place")]
    ann.press("Control+z", "Control+z")
    assert ann.marks() == [("Ann Lee", "person"), ("Bob", "person"), ("are", "place")]
    ann.page.locator(".text mark").nth(2).click()
    ann.press("Delete")
    ann.settle("Enter")
    spans = review_of(shop, item).labels["entities"]
    assert [(s["text"], s["label"]) for s in spans] == [("Ann Lee", "person"), ("Bob", "person")]


def test_a_key_right_after_a_click_acts_on_what_was_clicked(ann: Desk, shop: Shop) -> None:
    text = "Ann Lee and Bob are in Ghent."
    opened(ann, shop, [Play(text, labels(text, "neutral", [(0, 7, "person"), (12, 15, "person"), (23, 28, "place")]))])
    ann.page.evaluate(
        """() => {  // in one turn: the page has no time in between, as on a busy machine
            const mark = document.querySelectorAll('.text mark')[2];
            getSelection().collapse(mark.firstChild, 2);
            mark.closest('[tabindex]').focus();
            mark.dispatchEvent(new MouseEvent('mousedown', {bubbles: true}));
            mark.dispatchEvent(new MouseEvent('mouseup', {bubbles: true}));
            mark.dispatchEvent(new KeyboardEvent('keydown', {key: 'Delete', bubbles: true}));
        }"""
    )
    assert ann.marks() == [("Ann Lee", "person"), ("Bob", "person")]


def test_the_mouse_takes_whole_words_and_with_alt_exactly_what_it_passed(ann: Desk, shop: Shop) -> None:
    text = "unbelievable Ghent"
    (item,) = opened(ann, shop, [Play(text, labels(text, "neutral"))])
    ann.drag(14, 16)
    ann.page.locator(".marking button", has_text="place").click()
    assert ann.marks() == [("Ghent", "place")]
    ann.drag(2, 9, "Alt")
    ann.press("1")
    assert ann.marks() == [("believa", "person"), ("Ghent", "place")]
    ann.settle("Enter")
    assert [s["start"] for s in review_of(shop, item).labels["entities"]] == [2, 13]


def test_marks_that_would_overlap_are_refused_with_the_reason(ann: Desk, shop: Shop) -> None:
    text = "Ann Lee in Ghent"
    opened(ann, shop, [Play(text, labels(text, "neutral", [(0, 7, "person")]))])
    ann.drag(4, 10)
    ann.press("2")
    assert "Marks cannot overlap: “Ann Lee” (person) is in the way" in ann.said()
    assert ann.marks() == [("Ann Lee", "person")]


def test_two_reviewers_never_have_the_same_item_and_lose_none(browser: Browser, ann: Desk, shop: Shop) -> None:
    plays = [Play(f"Item {n}", labels(f"Item {n}", "neutral"), ref=f"two-{n}") for n in range(16)]
    items = opened(ann, shop, plays)
    query = ann.page.url.partition("?")[2]
    held: list[str] = []
    with reviewing(browser, shop.url, "bob") as bob:
        bob.open(f"/review?{query}")
        while (hers := ann.ref()) or bob.ref():
            his = bob.ref()
            assert hers != his
            for desk, ref in ((bob, his), (ann, hers)):
                if ref:
                    held.append(ref)
                    desk.settle("Enter")
    assert sorted(held) == sorted(play.ref or "" for play in plays)
    answers = [one for one in shop.reviews() if one.item_id in items]
    assert sorted(one.item_id for one in answers) == items
    assert {one.reviewer for one in answers} == {"ann", "bob"}


def test_a_killed_service_loses_nothing_and_settles_nothing_twice(browser: Browser, tmp_path: Path) -> None:
    mortal = Mortal(tmp_path)
    database = db.connect(f"sqlite:///{tmp_path}/concord.db")
    db.migrate(database)
    texts = [f"Text {n}" for n in range(6)]
    _, items = stage(database, [Play(text, labels(text, "neutral"), ref=text) for text in texts])
    mortal.start()
    shop = Shop(mortal.url, database)
    try:
        with reviewing(browser, mortal.url) as desk:
            desk.open("/review?order=oldest")
            desk.settle("Enter")
            mortal.kill()
            desk.press("1", "Enter")
            desk.page.wait_for_selector("#trouble:not([hidden])")
            assert "Your answer is kept here and will be sent again" in desk.page.locator("#trouble").inner_text()
            assert "Text 1" in desk.page.evaluate("sessionStorage.getItem('concord.outbox')")
            assert len(shop.reviews()) == 1
            mortal.start()
            desk.page.wait_for_function("() => document.querySelector('#item-title bdi').textContent === 'Text 2'")
            desk.page.wait_for_selector("#trouble", state="hidden")
            lose_one_response(desk)
            for _ in range(4):
                desk.settle("Enter")
            assert desk.ref() is None
            assert desk.broken == []
    finally:
        mortal.kill()
    answers = shop.reviews()
    database.dispose()
    assert [one.item_id for one in answers] == items
    assert [one.labels["sentiment"] for one in answers] == ["neutral", "negative", *["neutral"] * 4]


def lose_one_response(desk: Desk) -> None:
    """The next answer reaches the service, and what the service says to it is lost."""

    def lose(route: Route) -> None:
        route.fetch()
        route.abort()

    desk.page.route("**/resolve", lose, times=1)


def test_an_ended_session_keeps_the_answer_and_shows_where_to_sign_in(ann: Desk, shop: Shop) -> None:
    (item, _) = opened(ann, shop, [Play("One", labels("One", "neutral")), Play("Two", labels("Two", "neutral"))])
    ended = json.dumps({"error": "unauthorized", "detail": {"message": "sign in"}})
    ann.page.route("**/resolve", lambda route: route.fulfill(status=401, body=ended))
    ann.press("3", "Enter")
    link = ann.page.get_by_role("link", name="in another tab")
    link.wait_for()
    assert link.get_attribute("target") == "_blank"
    assert "Your session has ended. Your answer is kept here" in ann.page.locator("#trouble").inner_text()
    ann.page.unroute("**/resolve")
    ann.page.evaluate("dispatchEvent(new Event('focus'))")  # back from the other tab
    link.wait_for(state="hidden")
    ann.page.wait_for_function("() => document.querySelector('#item-title bdi').textContent === '1'")
    assert review_of(shop, item).labels["sentiment"] == "positive"


def test_who_lost_an_item_is_told_to_whom_and_what_was_not_saved(ann: Desk, shop: Shop) -> None:
    (item, _) = opened(ann, shop, [Play("Late", labels("Late", "neutral")), Play("Next", labels("Next", "neutral"))])
    with db.begin(shop.database) as session:
        session.get_one(Item, item).lease_until = now()
    headers = {"Authorization": f"Bearer {KEYS['bob']}"}
    with httpx.Client(base_url=shop.url, headers=headers) as bob:
        wanted = {"batch": ann.page.url.partition("batch=")[2].partition("&")[0]}
        taken = bob.post("/v1/reviews/next", json=wanted).json()
        assert taken["item"] == item
        answer = {"fence": taken["fence"], "labels": {"sentiment": "neutral", "entities": []}}
        assert bob.post(f"/v1/reviews/{item}/resolve", json=answer).status_code == 200
    ann.page.locator("#note").fill("I am sure")
    ann.press("Enter", "1")
    ann.settle("Enter")
    told = ann.page.locator("#lost").inner_text()
    assert "Not saved: 0" in told and "settled by bob" in told
    assert "sentiment: negative" in told and "I am sure" in told
    assert ann.ref() == "1"
    ann.page.get_by_role("button", name="Dismiss").click()


def test_the_item_and_its_edits_outlive_a_reload(eve: Desk, house: Shop) -> None:
    text = "Ann is in Ghent"
    batch, (item, _) = stage(house.database, [Play(text, labels(text, "neutral")) for _ in range(2)])
    eve.open(f"/review?batch={batch}&order=oldest")
    eve.press("1", "ArrowRight", "1")
    eve.page.reload()
    eve.page.wait_for_selector("html[data-ready]")
    assert eve.ref() == "0"
    assert (eve.choice("sentiment"), eve.marks()) == ("negative", [("Ann", "person")])
    eve.page.wait_for_timeout(500)  # what the page that went away sent is there by now
    assert held(house, item)
    eve.settle("Enter")
    assert eve.ref() == "1"
    assert review_of(house, item).labels["sentiment"] == "negative"


def test_who_leaves_hands_the_item_back(eve: Desk, house: Shop) -> None:
    batch, (item,) = stage(house.database, [Play("Left", labels("Left", "neutral"))])
    eve.open(f"/review?batch={batch}")
    assert held(house, item)
    eve.page.goto("/static/concord.svg")
    until(lambda: not held(house, item))


def test_an_answer_outlives_its_session_and_is_saved_after_signing_in_again(eve: Desk, house: Shop) -> None:
    batch, (item, _) = stage(house.database, [Play(one, labels(one, "neutral")) for one in ("Late", "Next")])
    eve.open(f"/review?batch={batch}&order=oldest")
    with db.begin(house.database) as session:
        accounts.end_sessions(session, "eve", who="tests")
    eve.press("Shift+3")
    link = eve.page.get_by_role("link", name="in another tab")
    link.wait_for()
    assert [one for one in house.reviews() if one.item_id == item] == []
    with eve.page.context.expect_page() as other:
        link.click()
    sign_in(Desk(other.value))
    other.value.close()
    eve.page.locator("#item-title bdi", has_text="1").wait_for(timeout=20_000)
    assert review_of(house, item).labels["sentiment"] == "positive"


def held(shop: Shop, item: int) -> bool:
    return any(one.id == item and one.lease_until is not None for one in shop.items())


def test_what_was_settled_last_is_taken_back_with_one_key(ann: Desk, shop: Shop) -> None:
    (first, _) = opened(ann, shop, [Play("First", labels("First", "neutral")), Play("Next", labels("Next", "neutral"))])
    ann.settle("Shift+1")
    assert ann.ref() == "1"
    ann.settle("u")
    assert (ann.ref(), ann.choice("sentiment")) == ("0", "negative")
    assert "taken back" in ann.said()
    assert [one for one in shop.reviews() if one.item_id == first] == []
    ann.settle("Shift+3")
    assert review_of(shop, first).labels["sentiment"] == "positive"


def test_a_skipped_item_comes_last_and_a_flagged_one_goes_to_a_lead(ann: Desk, shop: Shop) -> None:
    plays = [Play(f"T {n}", labels(f"T {n}", "neutral")) for n in range(3)]
    items = opened(ann, shop, plays)
    ann.settle("s")
    assert ann.ref() == "1"
    ann.press("f")
    ann.page.keyboard.type("Is <b>this</b> a feeling?")
    ann.settle("Control+Enter")
    assert ann.ref() == "2"
    ann.settle("Enter")
    assert ann.ref() == "0"
    states = {one.id: one.state for one in shop.items()}
    assert [states[item] for item in items] == ["review", "adjudication", "resolved"]


def test_many_similar_items_are_settled_at_once_and_taken_back_at_once(ann: Desk, shop: Shop) -> None:
    plays = [Play(f"Where is my parcel number {n}?", labels("", "neutral")) for n in range(6)]
    items = opened(ann, shop, plays)
    ann.press("x")
    ann.page.wait_for_selector("#bulk-dialog[open]", timeout=60_000)  # what compares texts is loaded when first asked
    assert ann.page.locator("#bulk-list li").count() == 6
    ann.page.locator("#bulk-all").click()
    if ann.page.locator("#bulk-list input:checked").count() < 6:
        ann.page.locator("#bulk-all").click()
    ann.page.locator("#bulk-relabel").select_option(label="sentiment: negative")
    ann.page.locator("#bulk-set").click()
    ann.page.wait_for_selector("#empty:not([hidden])")
    assert "6 settled" in ann.said()
    answers = [one for one in shop.reviews() if one.item_id in items]
    assert [one.labels["sentiment"] for one in answers] == ["negative"] * 6
    ann.press("u")
    ann.page.wait_for_selector("#item:not([hidden])")
    assert [one for one in shop.reviews() if one.item_id in items] == []


def test_a_text_without_a_proposal_is_labelled_from_nothing(ann: Desk, shop: Shop) -> None:
    (item,) = opened(ann, shop, [Play("No answer came", None, FAILED)])
    assert "The model could not label this text" in ann.page.locator("#reasons").inner_text()
    ann.press("Enter")
    assert "sentiment has no answer yet" in ann.said()
    ann.settle("Shift+2")
    assert review_of(shop, item).labels == {"sentiment": "neutral", "entities": []}


def test_an_item_whose_proposal_is_hidden_says_so_and_shows_nothing_of_it(ann: Desk, shop: Shop) -> None:
    batch, (item,) = stage(shop.database, [Play("Ann", labels("Ann", "positive", [(0, 3, "person")]))])
    with db.begin(shop.database) as session:
        session.get_one(Item, item).hidden = 1
    ann.open(f"/review?batch={batch}")
    assert "without the model’s proposal" in ann.page.locator("#reasons").inner_text()
    assert (ann.choice("sentiment"), ann.marks()) == (None, [])
    assert ann.page.locator(".proposed, .likely").count() == 0
    ann.settle("Shift+1")
    found = review_of(shop, item)
    assert (found.shown, found.labels["sentiment"]) == (False, "negative")


def test_pauses_of_over_a_minute_do_not_count_as_work(browser: Browser, shop: Shop) -> None:
    batch, (item,) = stage(shop.database, [Play("Slow", labels("Slow", "neutral"))])
    with reviewing(browser, shop.url, "bob") as bob:
        bob.page.clock.install()
        bob.open(f"/review?batch={batch}")
        bob.page.clock.run_for(20_000)
        bob.press("1")
        bob.page.clock.run_for(90_000)
        bob.press("2")
        bob.page.clock.run_for(5_000)
        bob.press("Enter")
        bob.page.wait_for_selector("#empty:not([hidden])")
    found = review_of(shop, item)
    assert found.seconds == pytest.approx(25, abs=2)
    assert found.actions == 3


def test_a_text_of_two_hundred_thousand_code_points_stays_usable(ann: Desk, shop: Shop) -> None:
    text = ("The 👍 parcel from Zoë did not come, where is it now?\r\n" * 4000)[:199_990] + " last Ann"
    (item,) = opened(ann, shop, [Play(text, labels(text, "neutral", [(4, 5, "person")]))])
    began = ann.page.evaluate("performance.now()")
    ann.press("ArrowRight", "End", "1", "Home", ".", "Delete", "ArrowRight")
    spent = ann.page.evaluate("performance.now()") - began
    assert ann.marks() == [("Ann", "person")]
    assert spent < 10_000
    ann.settle("Enter")
    (span,) = review_of(shop, item).labels["entities"]
    assert (span["start"], span["end"]) == (len(text) - 3, len(text))


def test_at_least_sixty_percent_fewer_actions_than_from_nothing(ann: Desk, shop: Shop) -> None:
    """A seeded sample of the shipped gold: half of the proposals right, a quarter with one choice wrong, a quarter
    without one of the mentions; each text once more from nothing. An action is a key, a click or a drag."""
    draw = random.Random(11)
    sample = draw.sample([record for record in GOLD if record["entities"]], 12)
    plays, faults = [], []
    for number, record in enumerate(sample):
        fault = ("", "choice", "", "span")[number % 4]
        wrong, said = fault, dict(record)
        if fault == "choice":
            wrong = ("intent", "sentiment")[number % 8 > 3]
            task = next(task for task in SUPPORT.tasks if task.name == wrong)
            said[wrong] = next(label.name for label in task.labels if label.name != record[wrong])
        elif fault == "span":
            said["entities"] = record["entities"][:-1]
        # The doubt names the other choice, so that the wrong one is not the one in focus.
        decision = unsure("sentiment", said["sentiment"])
        plays += [Play(record["text"], proposal(said, record["text"], SUPPORT), decision), nothing(record)]
        faults += [wrong, "all"]
    items = opened(ann, shop, plays, SUPPORT)
    for number, fault in enumerate(faults):
        record = sample[number // 2]
        {"": accept, "span": add_span, "all": from_nothing}.get(fault, correct)(ann, record, fault)
    answers = [review_of(shop, item) for item in items]
    for answer, number in zip(answers, range(len(faults)), strict=True):
        assert answer.labels == {task: sample[number // 2][task] for task in TASKS}
        most = {"": 1, "span": 4, "all": 99}.get(faults[number], 2)
        assert answer.actions is not None and answer.actions <= most
    assisted = sum(answer.actions or 0 for answer in answers[::2])
    unassisted = sum(answer.actions or 0 for answer in answers[1::2])
    assert assisted <= 0.4 * unassisted


def nothing(record: dict[str, Any]) -> Play:
    none: Labels | None = None
    return Play(record["text"], none, FAILED)


def accept(desk: Desk, _record: dict[str, Any], _fault: str) -> None:
    desk.settle("Enter")


def correct(desk: Desk, record: dict[str, Any], task: str) -> None:
    keys = ["Tab"] if task == "intent" else []
    desk.settle(*keys, f"Shift+{key_of(desk, task, record[task])}")


def add_span(desk: Desk, record: dict[str, Any], _fault: str) -> None:
    span = record["entities"][-1]
    desk.drag(*units(record["text"], span["start"], span["end"]))
    desk.press(key_of(desk, "entities", span["label"]))
    desk.settle("Enter")


def from_nothing(desk: Desk, record: dict[str, Any], _fault: str) -> None:
    """As fast as the page allows: a key for each choice, a drag and a key for each mention."""
    desk.press(key_of(desk, "sentiment", record["sentiment"]), key_of(desk, "intent", record["intent"]))
    for span in record["entities"]:
        desk.drag(*units(record["text"], span["start"], span["end"]))
        desk.press(key_of(desk, "entities", span["label"]))
    desk.settle("Enter")


def test_a_mention_is_added_by_keyboard_with_at_most_four_keys_beyond_reaching_it(ann: Desk, shop: Shop) -> None:
    text = "Please, where is order 88-K-4410 from Instant Pot Ltd?"
    record = {"text": text, "sentiment": "neutral", "intent": "order_status", "entities": []}
    (item,) = opened(ann, shop, [Play(text, proposal(record, text, SUPPORT), unsure("intent"))], SUPPORT)
    reach = ["/", "8", "8", "Enter"]
    ann.press(*reach)
    beyond = [f"Shift+{key_of(ann, 'entities', 'order_number')}"]
    ann.settle(*beyond)
    found = review_of(shop, item)
    assert [span["text"] for span in found.labels["entities"]] == ["88-K-4410"]
    assert len(beyond) <= 4


def test_the_page_fits_a_phone(browser: Browser, shop: Shop) -> None:
    record = GOLD[0]
    batch, _ = stage(shop.database, [Play(record["text"], proposal(record, record["text"], SUPPORT))], SUPPORT)
    size: Any = {"width": 320, "height": 640}
    with reviewing(browser, shop.url, "bob", viewport=size, has_touch=True, is_mobile=True) as bob:
        bob.open(f"/review?batch={batch}")
        assert bob.page.evaluate("document.documentElement.scrollWidth") <= 320
        bob.page.locator(".option", has_text="positive").tap()
        assert bob.choice("sentiment") == "positive"
        bob.page.locator(".text mark").first.tap()
        bob.page.locator(".marking button", has_text="organization").tap()
        assert bob.marks()[0] == ("Bongani", "organization")


ROOMS = [
    f"{side} {room}" for side in ("north", "south", "old", "new") for room in ("hall", "kitchen", "attic", "study")
]
THINGS = [
    f"{kind} {thing}" for kind in ("red", "blue", "wooden", "small") for thing in ("chair", "lamp", "clock", "rug")
]
SPARE = [f"number {n}" for n in range(20)]
MANY = Schema.model_validate(
    {
        "name": "many",
        "tasks": [
            {"name": "room", "kind": "choice", "labels": [{"name": name} for name in (*ROOMS, *SPARE)]},
            {"name": "things", "kind": "spans", "labels": [{"name": name} for name in (*THINGS, *SPARE)]},
        ],
    }
)


def test_of_more_labels_than_keys_one_is_found_by_its_name(ann: Desk, shop: Shop) -> None:
    text = "The clock by the door"
    said = Labels(choices={"room": Choice(label="north hall", confidence=0.5)}, mentions={"things": Mentions()})
    first, second = opened(ann, shop, [Play(text, said), Play(text, said)], MANY)
    ann.press("=")
    ann.page.keyboard.type("kit")
    assert ann.page.locator(".option:visible").count() == 4
    ann.press("ArrowDown", "Enter")  # the second of the kitchens
    assert ann.choice("room") == "south kitchen"
    assert ann.page.locator(".option:visible").count() == len(ROOMS) + len(SPARE)
    ann.press("ArrowRight", "ArrowRight", "=")
    ann.page.keyboard.type("wood clo")
    ann.press("Enter")
    assert ann.marks() == [("clock", "wooden clock")]
    ann.press("=")  # the mark is selected, so its label is asked for
    ann.page.keyboard.type("clock sofa")
    ann.press("Enter")
    assert "No label has “clock sofa” in its name" in ann.said()
    ann.press("Escape", "Escape", "=")  # nothing is selected: of the choice
    ann.page.keyboard.type("OLD att")
    ann.settle("Shift+Enter")
    assert review_of(shop, first).labels == {
        "room": "old attic",
        "things": [{"start": 4, "end": 9, "label": "wooden clock", "text": "clock"}],
    }
    ann.page.get_by_label("Room: find a label by its name").fill("new study")
    ann.page.locator(".option", has_text="new study").click()
    assert ann.choice("room") == "new study"
    ann.settle("Enter")
    assert review_of(shop, second).labels["room"] == "new study"


def test_where_every_label_has_a_key_there_is_nothing_to_find(ann: Desk, shop: Shop) -> None:
    opened(ann, shop, [Play("Few", labels("Few", "neutral"))])
    ann.press("=")
    assert ann.page.locator(".finder").count() == 0
    assert "Every label here has a key of its own" in ann.said()


def keys_table() -> list[dict[str, Any]]:
    module = (PROJECT / "service" / "web" / "static" / "keys.js").read_text("utf-8")
    found = re.search(r"export const KEYS = (\[.*?\n\]);", module, re.DOTALL)
    assert found
    rows: list[dict[str, Any]] = json.loads(found[1])
    return rows


def test_the_key_map_shows_every_key_and_those_of_the_labels(ann: Desk, shop: Shop) -> None:
    opened(ann, shop, [Play("Keys", labels("Keys", "neutral"))])
    ann.press("?")
    shown = ann.page.locator("#keys-dialog").inner_text()
    for row in keys_table():
        assert row["says"] in shown
    assert "negative" in shown and "person" in shown
    ann.press("Escape")
    assert ann.page.evaluate("document.activeElement.closest('fieldset')?.dataset.task") == "sentiment"


def test_every_key_stands_in_the_readme() -> None:
    readme = (PROJECT / "README.md").read_text("utf-8")
    for row in keys_table():
        keys = ", ".join(f"`{key}`" for key in row["keys"])
        assert f"| {keys} | {row['says']} |" in readme
