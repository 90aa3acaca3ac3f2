"""A running service around an engine made of sticks: what it answers stands in the text. For tests only."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.app import Server, create_app
from service.engine import Completion, Identity, Request, Token
from service.errors import EngineError
from service.settings import PROJECT, Settings

URL = "http://127.0.0.1:8300"
CLIENT, REVIEWER = "a-key-for-clients-1", "a-key-for-reviewers-1"
MOOD = """
name: mood
tasks:
  - {name: sentiment, kind: choice, labels: [negative, neutral, positive]}
  - {name: entities, kind: spans, labels: [product]}
"""


class Sticks:
    """Answers for the schema `mood`: negative, and `Samsung` is a product. `doubt` in the text: a doubtful label.

    `fail`: no answer, and no use asking again; `away`: no answer this time; `wait`: an answer in a minute.
    """

    identity = Identity("sticks", "none")
    in_flight = 64

    def __init__(self) -> None:
        self.refusal: EngineError | None = None
        self.asked = 0

    async def complete(self, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Completion | EngineError]]:
        for index, request in enumerate(requests):
            self.asked += 1
            text = request.messages[-1].content.rpartition("Text: ")[2]
            if "wait" in text:
                await asyncio.sleep(60)
            if "fail" in text or "away" in text:
                yield index, EngineError("no answer", retryable="away" in text, hint="look at the sticks")
            else:
                yield index, _answer(text)

    async def ready(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    async def close(self) -> None:
        return None


def _answer(text: str) -> Completion:
    sure = 0.4 if "doubt" in text else 0.9
    pieces = [(" negative", sure)] + ([(" | Samsung = product", 0.9)] if "Samsung" in text else [])
    tokens = [
        Token(p.encode(), math.log(x), ((p.encode(), math.log(x)), (b" neutral", math.log(0.05)))) for p, x in pieces
    ]
    return Completion((*tokens, Token(b"", -0.01, ((b"", -0.01),))), "stop", 10)


def make_settings(folder: Path, **changes: Any) -> Settings:
    schemas = folder / "schemas"
    schemas.mkdir(exist_ok=True)
    (schemas / "mood.yaml").write_text(MOOD)
    values: dict[str, Any] = {
        "database_url": f"sqlite:///{folder}/concord.db",
        "schemas": schemas,
        "prompts": PROJECT / "prompts",
    }
    return Settings(**(values | changes))


def make_app(folder: Path, engine: Sticks | None = None, **changes: Any) -> FastAPI:
    return create_app(make_settings(folder, **changes), engine=engine or Sticks())


@contextmanager
def serving(folder: Path, engine: Sticks | None = None, ready: bool = True, **changes: Any) -> Iterator[TestClient]:
    """A client of a service that runs for the length of the block, and is ready unless told otherwise."""
    with TestClient(make_app(folder, engine, **changes), base_url=URL) as client:
        if ready:
            until(lambda: client.get("/readyz").status_code == 200)
        yield client


def until(holds: Any, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError("it never came true")
        time.sleep(0.02)


def post_batch(client: TestClient, *texts: str, key: str | None = None, **more: Any) -> str:
    """A batch of the schema `mood`: nothing is drawn by lot, each text has one reader who sees the proposal; its id."""
    body = {"texts": [{"text": text} for text in texts], "schema": "mood"} | more
    body["policy"] = {"reviewed_twice": 0, "proposal_hidden": 0, "audit_share": 0} | more.get("policy", {})
    response = client.post("/v1/batches", json=body, headers={"Idempotency-Key": key} if key else {})
    assert response.status_code in (200, 202), response.text
    return str(response.json()["id"])


def finished(client: TestClient, batch: str) -> dict[str, Any]:
    """The batch, once all its texts are done."""
    until(lambda: client.get(f"/v1/batches/{batch}").json()["finished"])
    found: dict[str, Any] = client.get(f"/v1/batches/{batch}").json()
    return found


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The URL of a real server on a free port, stopped at the end of the block."""
    server = Server(app, "127.0.0.1", 0, log_level="warning")
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


def error(response: Any, status: int, code: str) -> dict[str, Any]:
    """The detail of an error of this status and code, in the one shape."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error", "detail"}
    assert body["error"] == code
    assert isinstance(body["detail"]["message"], str)
    detail: dict[str, Any] = body["detail"]
    return detail


def rows(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.split("\n") if line]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("service")) as client:
        yield client


@pytest.fixture
def fresh(tmp_path: Path, empty_database_url: str) -> Iterator[TestClient]:
    """A service that nobody else has posted to, on each database."""
    with serving(tmp_path, database_url=empty_database_url) as client:
        yield client
