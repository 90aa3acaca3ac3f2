"""The page /evaluations in a real browser, without scripts: measured, compared, promised, decided by, restored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.parse import quote

import httpx
import pytest
from fastapi.testclient import TestClient
from playwright.sync_api import Browser, Page, expect

from service.models import Role
from tests.browser import Desk, browser, watch
from tests.people import desk, quick_hashes, signed_in
from tests.serving import listening, make_app, until
from tests.test_evaluations import records
from tests.test_lead_pages import axe

__all__ = ["browser", "desk", "quick_hashes"]

HOSTILE = "<img src=x onerror=alert(1)><svg onload=alert(2)>\u202e{{7*7}} \U0001f600"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service with a gold set whose name is as hostile as its texts."""
    with listening(make_app(tmp_path_factory.mktemp("evaluations"))) as url:
        until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        content = "\n".join(json.dumps(record) for record in records(60, wrong=30))
        httpx.post(f"{url}/v1/gold/{quote(HOSTILE, safe='')}?schema=mood", content=content).raise_for_status()
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    context = browser.new_context(base_url=url, java_script_enabled=False)
    context.set_default_timeout(15_000)
    page = context.new_page()
    seen = Desk(page)
    watch(seen, url)
    page.goto("/evaluations")
    yield page
    context.close()
    assert (seen.broken, seen.foreign) == ([], [])


def evaluate(page: Page, error: str = "", *more: str) -> str:
    """The row of what the form asked for, once it is done."""
    page.get_by_label("accepted items wrong").fill(error)
    page.get_by_label("confidence").fill("80")
    for prompt in more:
        page.get_by_role("checkbox", name=prompt).check()
    page.get_by_role("button", name="Evaluate").click()
    row = page.locator("tbody").first.locator("tr").first

    def done() -> bool:
        page.get_by_role("link", name="Look again").click()
        return "Report" in row.inner_text()

    until(done, 60)
    return row.inner_text()


def test_what_is_promised_is_decided_by_and_what_was_before_is_restored(page: Page) -> None:
    row = evaluate(page, "20")
    assert "sentiment accuracy 0.667" in row
    assert "at most 20.0 % of accepted items wrong, 80.0 % sure" in row
    page.get_by_role("button", name="Decide by it").first.click()
    expect(page.locator("tbody").last).to_contain_text("in force")
    evaluate(page, "30")
    page.get_by_role("button", name="Decide by it").first.click()
    assert "decides, as standard 2" in page.locator("tbody").first.inner_text()
    page.get_by_role("button", name="Restore: standard 1").click()
    newest = page.locator("tbody").last.locator("tr").first.inner_text()
    assert newest.startswith("3") and "at most 20.0 %" in newest and "in force" in newest


def test_prompts_are_compared_in_words_and_the_report_opens(page: Page) -> None:
    assert "no difference" in evaluate(page, "", "line.v2").lower()
    page.locator("tbody").first.get_by_role("link", name="Report").first.click()
    assert "Comparison of line.v1 and line.v2" in page.locator("h1").inner_text()
    assert page.locator("img[src=x]").count() == 0


def test_what_cannot_be_done_is_said(page: Page) -> None:
    page.get_by_role("checkbox", name="line.v1").uncheck()
    page.get_by_role("button", name="Evaluate").click()
    assert "prompts" in page.locator("main").inner_text()
    page.go_back()
    page.get_by_role("checkbox", name="line.v1").check()
    page.get_by_role("checkbox", name="line.v2").check()
    page.get_by_label("accepted items wrong").fill("3")
    page.get_by_role("button", name="Evaluate").click()
    assert "promise for the one that is chosen" in page.locator("main").inner_text()


def test_axe_finds_nothing_serious(browser: Browser, url: str) -> None:
    for scheme in ("light", "dark"):
        context = browser.new_context(base_url=url, color_scheme=scheme)  # type: ignore[arg-type]
        seen = Desk(context.new_page())
        seen.page.goto("/evaluations")
        assert axe(seen) == []
        context.close()


@pytest.mark.usefixtures("quick_hashes")
def test_who_may_evaluate_begins_there_and_who_may_not_is_told(desk: TestClient) -> None:
    client, _ = signed_in(desk, Role.client)
    assert client.get("/").headers["location"] == "/evaluations"
    assert client.get("/evaluations").status_code == 200
    assert client.post("/evaluations/cancel", data={"evaluation": "x"}).status_code == 403  # not from its page
    reviewer, _ = signed_in(desk, Role.reviewer)
    assert reviewer.get("/").headers["location"] == "/review"
    assert reviewer.get("/evaluations").status_code == 403
