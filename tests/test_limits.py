"""What strangers send: too much, too deep, not text, not JSON, and never a crash."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service import middleware
from service.api.bodies import lines, read, records
from service.errors import Invalid, TooLarge
from service.middleware import Limits
from tests.serving import serving

JSON = {"Content-Type": "application/json"}
GOOD = b'{"texts": [{"text": "x"}], "schema": "mood"}'
WRITES = ["/v1/annotate", "/v1/batches", "/v1/reviews/next", "/v1/reviews/1/resolve", "/v1/reviews/1/release"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("limits"), max_body=300_000, max_texts=100) as client:
        yield client


def refused(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error", "detail"}
    return str(body["detail"]["message"])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":' * 50_000, "nested too deep"),
        (b'{"texts": [{"text": "x", "meta": {"a": ' + b"[" * 900 + b"]" * 900 + b'}}], "schema": "mood"}', "texts[0]"),
        (b'{"texts": ', "line 1, column"),
        (b"\xff\xfe{}", "byte 0"),
        (b'{"texts": [{"text": "\xc3\x28"}]}', "UTF-8"),
        ('{"texts": []}'.encode("utf-16"), "UTF-8"),
        (b'{"texts": [{"text": "\xed\xa0\x80"}]}', "UTF-8"),
        (b'\xef\xbb\xbf{"texts": []}', "BOM"),
        (b'{"texts": [{"text": "a\\ud800b"}], "schema": "mood"}', "texts[0]"),
        (b'{"texts": [{"text": "a\\udc00\\ud800b"}], "schema": "mood"}', "half a surrogate pair at 1"),
        (b'{"texts": [{"text": "a\\u0000"}], "schema": "mood"}', "NUL"),
        (b'{"texts": [{"text": "x", "id": "\\ud800"}], "schema": "mood"}', "id"),
        (b'{"texts": [{"text": "x", "meta": {"\\ud800": 1}}], "schema": "mood"}', "meta"),
        (b'{"texts": [{"text": "x"}], "schema": "\\ud800"}', "schema"),
        (b'{"texts": [{"text": "x"}], "schema": "mood", "\\ud800": 1}', "body"),
        (b'{"texts": [{"text": "x"}], "schema": "mood", "schema": "mood"}', "twice"),
        (b'{"texts": [{"text": "x", "meta": {"a": NaN}}], "schema": "mood"}', "NaN"),
        (b'{"texts": [{"text": "x", "meta": {"a": 1e999}}], "schema": "mood"}', "texts[0].meta"),
        (b'{"texts": [{"text": "x"}], "schema": "mood", "schema_version": ' + b"9" * 5000 + b"}", "body"),
        (b'{"texts": [{"text": "x"}], "schema": "mood", "schema_version": 1e400}', "schema_version"),
        (b'{"texts": [{"text": "x"}], "schema": "mood", "policy": {"audit_share": "NaN"}}', "audit_share"),
        (json.dumps({f"k{n}": 1 for n in range(1001)}).encode(), "at most 1,000 fields"),
        (b"", "body"),
        (b"null", "body"),
        (b'"x"', "body"),
    ],
)
@pytest.mark.parametrize("route", ["/v1/annotate", "/v1/batches"])
def test_a_hostile_body_is_a_422_that_says_why(client: TestClient, route: str, body: bytes, says: str) -> None:
    assert says in refused(client.post(route, content=body, headers=JSON), 422)


@pytest.mark.parametrize("route", WRITES)
def test_every_write_survives_every_hostile_body(client: TestClient, route: str) -> None:
    for body in (b"[" * 100_000, b'{"\\ud800": "\\ud800"}', b'{"a": "\\u0000"}', b"\xff", b"{", b"[]", b"3", b"true"):
        refused(client.post(route, content=body, headers=JSON), 422)
    refused(client.post(route, content=b'{"is_admin": true}', headers=JSON), 422)


def test_a_body_that_is_not_said_to_be_json_is_not_taken_for_it(client: TestClient) -> None:
    for headers in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "multipart/form-data; boundary=x"}):
        response = client.post("/v1/batches", content=GOOD, headers=headers)
        assert "Content-Type: application/json" in refused(response, 422)


def test_a_compressed_body_is_refused(client: TestClient) -> None:
    for encoding in ("gzip", "deflate", "br", "gzip, identity"):
        response = client.post(
            "/v1/batches", content=gzip.compress(GOOD), headers=JSON | {"Content-Encoding": encoding}
        )
        assert "Content-Encoding" in refused(response, 415)
    assert client.post("/v1/batches", content=GOOD, headers=JSON | {"Content-Encoding": "identity"}).status_code == 202


@pytest.mark.parametrize("route", [*WRITES, "/v1/schemas", "/v1/gold/g?schema=mood", "/v1/batches/b/cancel"])
def test_a_body_over_the_limit_is_a_413_whether_announced_or_streamed(client: TestClient, route: str) -> None:
    if "cancel" not in route:  # a body that nobody reads is not counted, only its announcement
        streamed = client.post(route, content=(b"x" * 50_000 for _ in range(7)), headers=JSON)
        assert "300,000 bytes" in refused(streamed, 413)
    assert "300,000 bytes" in refused(client.post(route, content=b"x" * 300_001, headers=JSON), 413)
    lying = client.get("/healthz", headers={"Content-Length": "9" * 30})
    assert refused(lying, 413)


def test_too_many_entries_are_refused_before_they_are_looked_at(client: TestClient) -> None:
    body = b'{"texts": [' + b",".join([b"0"] * 90_000) + b'], "schema": "mood"}'
    assert "at most 100 entries" in refused(client.post("/v1/batches", content=body, headers=JSON), 413)
    wrong = json.dumps({"texts": [{"text": "x", "no": 1}] * 100, "schema": "mood"})
    response = client.post("/v1/batches", content=wrong, headers=JSON)
    refused(response, 422)
    assert len(response.json()["detail"]["problems"]) == 1  # the first text that is wrong is told, not every one


def test_too_many_values_are_refused_before_they_are_made() -> None:
    with pytest.raises(TooLarge, match="1,000,000 values"):
        read(b"[" + b"0," * 1_000_001 + b"0]")
    with pytest.raises(TooLarge):
        read(b"[" + b'"a,",' * 1_100_000 + b"0]")
    assert read(b'["' + b',\\",' * 600_000 + b'"]') == [',",' * 600_000]
    assert read(b'["' + b",," * 600_000 + b'\\\\"]') == [",," * 600_000 + "\\"]


def test_what_is_refused_is_not_echoed(client: TestClient) -> None:
    body = {"texts": [{"text": "x", "meta": "my secret"}], "schema": 12345678}
    response = client.post("/v1/batches", json=body)
    refused(response, 422)
    assert "secret" not in response.text
    assert "12345678" not in response.text
    long = client.post("/v1/batches", json={"texts": [{"text": "x"}], "schema": "mood", "f" * 200_000: 1})
    assert len(long.content) < 3000


def test_a_body_that_drips_is_a_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.05)
    from starlette.exceptions import HTTPException

    async def reads(_scope: Any, receive: Any, _send: Any) -> None:
        while (await receive()).get("more_body"):
            pass

    async def drip() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(_message: Any) -> None:
        return None

    scope = {"type": "http", "headers": []}
    with pytest.raises(HTTPException) as raised:
        asyncio.run(Limits(reads, 1000)(scope, drip, send))
    assert raised.value.status_code == 408


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.dictionaries(texts, values, max_size=4), max_size=20))
def test_lines_written_are_records_read(rows: list[dict[str, Any]]) -> None:
    data = b"".join(lines(rows))
    assert list(records(data)) == rows
    assert list(records(data.replace(b"\n", b"\r\n"))) == rows
    assert list(records(json.dumps(rows).encode())) == rows


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    for parse in (read, lambda data: list(records(data))):
        with suppress(Invalid):
            parse(data)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(texts, min_size=1, max_size=8), metas=values)
def test_texts_come_back_as_they_were_sent(client: TestClient, texts: list[str], metas: Any) -> None:
    body = {"texts": [{"text": text, "meta": {"m": metas}} for text in texts], "schema": "mood"}
    batch = client.post("/v1/batches", json=body).json()["id"]
    found = [json.loads(line) for line in client.get(f"/v1/batches/{batch}/results").text.split("\n") if line]
    assert [row["text"] for row in found] == texts
    assert [row["meta"] for row in found] == [{"m": metas}] * len(texts)
