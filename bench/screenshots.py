"""The README's pictures of the pages, from real data: python bench/screenshots.py [folder]

The embedded engine labels the shipped gold texts in a database of its own; three readers, who answer as the gold does
but for a seeded share of slips, settle most of what waits; then the pages are opened as a lead sees them. Takes some
minutes, most of them the engine's. Writes desk-light.png, desk-dark.png, desk-phone.png, desk-keys.png, adjudicate.png
and quality.png to docs/, or to the folder that is named.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from playwright.sync_api import Browser, Page, sync_playwright
from sqlalchemy import Engine

from service import db, review
from service.demo import GOLD, running
from service.engine.embedded import prepare
from service.review import Cost
from service.settings import PROJECT, Settings
from tests.browser import chromium

READERS = ("ann", "bob", "cho")
LEFT = 25  # items that still wait when the pictures are taken
SLIPS = 0.12  # share of answers in which a reader differs from gold
FLAGGED = 0.03
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 360, "height": 740}
POLICY = {"reviewed_twice": 0.3, "proposal_hidden": 0.25, "audit_share": 0.2}


def main(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    records = [json.loads(line) for line in GOLD.read_text("utf-8").splitlines()]
    prepare(Settings())
    with tempfile.TemporaryDirectory() as place:
        url = f"sqlite:///{place}/concord.db"
        others = {name: value for name, value in os.environ.items() if not name.startswith("CONCORD_")}
        kept = {name: os.environ[name] for name in ("CONCORD_CACHE", "CONCORD_THREADS") if name in os.environ}
        with running(Path(place) / "service.log", others | kept | {"CONCORD_DATABASE_URL": url}) as client:
            client.post("/v1/gold/support", params={"schema": "support"}, json=records).raise_for_status()
            label(client, records)
            database = db.connect(url)
            settle(database, {record["id"]: record for record in records})
            database.dispose()
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=chromium(playwright), args=["--no-sandbox"])
                take(browser, str(client.base_url), folder)
                browser.close()


def label(client: httpx.Client, records: list[dict[str, Any]]) -> None:
    texts = [{"id": one["id"], "text": one["text"], "meta": {"channel": "e-mail"}} for one in records]
    body = {"schema": "support", "texts": texts, "policy": POLICY}
    batch = client.post("/v1/batches", json=body).raise_for_status().json()["id"]
    while not (state := client.get(f"/v1/batches/{batch}").raise_for_status().json())["finished"]:
        print(f"\r{state['done']} of {len(texts)} labelled", end="", flush=True)
        time.sleep(1)
    print()


def settle(database: Engine, gold: dict[str, dict[str, Any]]) -> None:
    """As readers at the desk, in turn: each answers with gold, slips, or flags."""
    draw = np.random.default_rng(5)
    idle = 0
    while idle < len(READERS):
        for reader in READERS:
            with db.begin(database) as session:
                task = review.next_item(session, reader, lease_seconds=60)
                waiting = session.connection().exec_driver_sql(
                    "SELECT count(*) FROM item WHERE state IN ('review', 'audit')"
                )
                if task is None or (waiting.scalar_one() <= LEFT):
                    if task is not None:
                        review.release(session, task.item, task.fence, reader)
                    idle += 1
                    continue
                if draw.random() < FLAGGED:
                    review.flag(
                        session, task.item, task.fence, reader, "Is a marketplace an organization or a product?"
                    )
                    continue
                said = {name: gold[task.ref][name] for name in ("sentiment", "intent", "entities")}
                if draw.random() < SLIPS:
                    said["sentiment"] = str(draw.choice(["negative", "neutral", "positive"]))
                    said["entities"] = said["entities"][1:]
                cost = Cost(round(float(draw.lognormal(1.6 if task.shown else 2.2, 0.5)), 1), int(draw.integers(1, 5)))
                review.resolve(session, task.item, task.fence, reader, said, cost=cost)


def take(browser: Browser, url: str, folder: Path) -> None:
    for name, scheme, size in (("light", "light", WIDE), ("dark", "dark", WIDE), ("phone", "light", PHONE)):
        page = opened(browser, url, "/review", scheme, size)
        while not page.locator(".text mark").count():  # one in which the model found something
            page.keyboard.press("s")
            page.wait_for_load_state("networkidle")
            page.locator("#item:not([aria-busy])").wait_for()
        picture(page, folder / f"desk-{name}.png")
        if name == "light":
            page.keyboard.press("?")
            picture(page, folder / "desk-keys.png")
        page.context.close()
    page = opened(browser, url, "/adjudicate", "light", WIDE)
    page.locator("main tr, main li", has_text="disagree").locator("a[href*='/adjudicate/']").first.click()
    page.wait_for_load_state("networkidle")
    picture(page, folder / "adjudicate.png", whole=True)
    page.set_viewport_size({"width": 1280, "height": 1500})
    page.goto("/quality")
    page.wait_for_load_state("networkidle")
    picture(page, folder / "quality.png")
    page.context.close()


def opened(browser: Browser, url: str, path: str, scheme: Any, size: Any) -> Page:
    context = browser.new_context(base_url=url, color_scheme=scheme, viewport=size)
    page = context.new_page()
    page.goto(path)
    page.wait_for_load_state("networkidle")
    return page


def picture(page: Page, path: Path, whole: bool = False) -> None:
    page.screenshot(path=path, full_page=whole)
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PROJECT / "docs")
