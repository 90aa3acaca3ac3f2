"""A real browser on a real service: pages as people have them. For tests only.

Chromium is what CONCORD_CHROMIUM names, else one on the PATH, else playwright's own; without one the tests that need it
are skipped, and say so.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, Playwright, sync_playwright
from sqlalchemy import Engine
from sqlmodel import col, select

from service import db
from service.app import Server
from service.labels import Alternative, Choice, Labels, Mentions, Span
from service.models import Item, Review
from service.schema import ChoiceTask, Schema
from tests.serving import listening, make_app, until

KEYS = {name: f"{name}-has-a-key-of-length" for name in ("ann", "bob")}
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium(playwright: Playwright) -> str | None:
    named = os.environ.get("CONCORD_CHROMIUM")
    own = playwright.chromium.executable_path
    found = [named, *map(shutil.which, PROGRAMS), own if Path(own).exists() else None]
    return next((path for path in found if path), None)


# For each module anew: while playwright runs, its event loop is that of the main thread, where other tests have theirs.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        program = chromium(playwright)
        if program is None:
            pytest.skip("no Chromium: install the system's package, or name one in CONCORD_CHROMIUM")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Desk:
    """One reviewer's page. foreign: requests that left the origin; broken: errors of scripts, violations of the policy,
    dialogs that a script opened."""

    page: Page
    foreign: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def open(self, path: str = "/review") -> None:
        self.page.goto(path)
        self.page.wait_for_selector("html[data-ready]")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def ref(self) -> str | None:
        """Of the item in hand; None where nothing waits."""
        if self.page.locator("#item").is_hidden():
            return None
        return self.page.locator("#item-title bdi").inner_text()

    def settle(self, *keys: str) -> None:
        """Press keys that settle the item, and wait for the next one."""
        before = self.page.evaluate("document.querySelector('#item-title bdi')?.textContent")
        self.press(*keys)
        self.page.wait_for_function(
            "before => !document.querySelector('#item[aria-busy]') && (document.querySelector('#item').hidden"
            " || document.querySelector('#item-title bdi').textContent !== before)",
            arg=before,
        )

    def said(self) -> str:
        return self.page.locator("#said").inner_text()

    def choice(self, task: str) -> str | None:
        chosen = self.page.locator(f"fieldset[data-task={task}] input:checked")
        return chosen.get_attribute("value") if chosen.count() else None

    def marks(self) -> list[tuple[str, str]]:
        """(text, label as shown) of each mark."""
        found = self.page.locator(".text mark").evaluate_all("all => all.map(m => [m.textContent, m.dataset.tag])")
        return [(text, tag) for text, tag in found]

    def place(self, start: int, end: int) -> dict[str, float]:
        """Where a piece of the text, in UTF-16 units, begins (x, y) and ends (right, bottom) in the window."""
        box: dict[str, float] = self.page.evaluate(
            """([start, end]) => {
                const walker = document.createTreeWalker(document.querySelector('.text'), NodeFilter.SHOW_TEXT);
                const range = document.createRange();
                let passed = 0, begun = false;
                for (let node = walker.nextNode(); node; node = walker.nextNode()) {
                    const next = passed + node.length;
                    if (!begun && start < next) { range.setStart(node, start - passed); begun = true; }
                    if (end <= next) { range.setEnd(node, end - passed); break; }
                    passed = next;
                }
                const boxes = [...range.getClientRects()].filter(b => b.width > 0);
                const [first, last] = [boxes[0], boxes.at(-1)];
                const middle = box => box.top + box.height / 2;
                return {x: first.left, y: middle(first), right: last.right, bottom: middle(last)};
            }""",
            [start, end],
        )
        return box

    def drag(self, start: int, end: int, *held: str) -> None:
        """Select a piece of the text, in UTF-16 units, with the mouse."""
        box = self.place(start, end)
        for key in held:
            self.page.keyboard.down(key)
        self.page.mouse.move(box["x"] + 1, box["y"])
        self.page.mouse.down()
        self.page.mouse.move(box["right"] - 1, box["bottom"], steps=4)
        self.page.mouse.up()
        for key in held:
            self.page.keyboard.up(key)
        self.page.evaluate("new Promise(done => setTimeout(done))")


@contextmanager
def reviewing(browser: Browser, url: str, name: str | None = "ann", **options: Any) -> Iterator[Desk]:
    """A browser of this reviewer's own, with the desk in it, watched. name: whose key it sends; None: it has none."""
    headers = {"Authorization": f"Bearer {KEYS[name]}"} if name else {}
    context = browser.new_context(base_url=url, extra_http_headers=headers, **options)
    desk = Desk(context.new_page())
    watch(desk, url)
    try:
        yield desk
    finally:
        context.close()


def watch(desk: Desk, url: str) -> None:
    origin = urlsplit(url).netloc

    def request(asked: Any) -> None:
        parts = urlsplit(asked.url)
        if parts.scheme not in ("data", "blob") and parts.netloc != origin:
            desk.foreign.append(asked.url)

    def told(line: Any) -> None:
        if "Content Security Policy" in line.text:
            desk.broken.append(line.text)

    def asked(dialog: Any) -> None:
        desk.broken.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    desk.page.on("request", request)
    desk.page.on("console", told)
    desk.page.on("dialog", asked)
    desk.page.on("pageerror", lambda error: desk.broken.append(str(error)))
    desk.page.add_init_script(
        "addEventListener('securitypolicyviolation', e => console.error('Content Security Policy: ' + e.blockedURI))"
    )


def settings_of_desk(**more: Any) -> dict[str, Any]:
    return {"reviewer_keys": tuple(f"{name}:{key}" for name, key in KEYS.items()), "workers": 0} | more


@dataclass(frozen=True)
class Shop:
    """A service with its database."""

    url: str
    database: Engine

    def reviews(self) -> list[Review]:
        """Answers that stand, in the order in which they were given."""
        with db.read(self.database) as session:
            return list(session.exec(select(Review).where(col(Review.stands)).order_by(col(Review.id))))

    def items(self) -> list[Item]:
        with db.read(self.database) as session:
            return list(session.exec(select(Item).order_by(col(Item.id))))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A service in a thread of its own, for this module."""
    folder = tmp_path_factory.mktemp("desk")
    with listening(make_app(folder, **settings_of_desk())) as url:
        database = db.connect(f"sqlite:///{folder}/concord.db")
        yield Shop(url, database)
        database.dispose()


class Mortal:
    """A service in a process of its own, on one port and one database, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: Any = None

    def start(self) -> None:
        self.process = multiprocessing.get_context("spawn").Process(target=live, args=(self.folder, self.port))
        self.process.start()
        until(self._answers, 60)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=1).status_code == 200
        except httpx.TransportError:
            return False


def live(folder: Path, port: int) -> None:
    """Serve until killed."""
    Server(make_app(folder, port=port, **settings_of_desk()), "127.0.0.1", port, log_level="warning").run()


def proposal(row: Mapping[str, Any], text: str, schema: Schema, sure: float = 0.55) -> Labels:
    """The labels of a gold record as a model's answer, all of them as sure."""
    choices, mentions = {}, {}
    for task in schema.tasks:
        if isinstance(task, ChoiceTask):
            others = [label.name for label in task.labels if label.name != row[task.name]]
            rest = tuple(Alternative(label=name, confidence=(1 - sure) / 4) for name in others[:2])
            choices[task.name] = Choice(label=row[task.name], confidence=sure, alternatives=rest)
        else:
            spans = [
                Span(
                    start=s["start"], end=s["end"], label=s["label"], text=text[s["start"] : s["end"]], confidence=sure
                )
                for s in row[task.name]
            ]
            mentions[task.name] = Mentions(spans=tuple(spans), complete=sure)
    return Labels(choices=choices, mentions=mentions)
