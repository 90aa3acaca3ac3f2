"""The description of the interface: complete, and true."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service import accounts, db
from service.models import Role
from service.settings import PROJECT
from tests.serving import listening, make_app, post_batch, serving
from tests.test_auth import MAY

KEY = "a-key-for-every-test"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,ignored_auth,missing_required_header"
)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return make_app(tmp_path_factory.mktemp("described"), client_keys=(KEY,), reviewer_keys=(KEY,))


@pytest.fixture(scope="module")
def described(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def test_what_is_described_is_what_happens(tmp_path: Path, empty_database_url: str) -> None:
    app = make_app(tmp_path, client_keys=(KEY,), reviewer_keys=(KEY,), database_url=empty_database_url)
    with listening(app) as url:
        body = {"texts": [{"text": "I doubt it"}, {"text": "The Samsung"}], "schema": "mood"}
        httpx.post(f"{url}/v1/batches", json=body, headers=AUTHORIZED).raise_for_status()
        with db.begin(app.state.running.database) as session:  # one who may ask for everything
            accounts.add(session, "root", [Role.admin], who="tests")
            _, token = accounts.add_key(session, "root", "", who="tests")
        command = [str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json", "--no-color"]
        # One worker: with threads, CPython 3.11 now and then fails to parse (AST constructor recursion depth mismatch).
        command += ["--header", f"Authorization: Bearer {token}", "--checks", CHECKS]
        command += ["--seed", "1", "--workers", "1"]
        command += [
            "--max-examples",
            "20",
            "--phases",
            "examples,coverage,fuzzing,stateful",
            "--generation-database",
            "none",
        ]
        here = os.environ | {"SCHEMATHESIS_HOOKS": "tests.fuzzing", "PYTHONPATH": str(PROJECT)}
        done = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def operations(described: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def test_every_route_says_what_it_does(described: dict[str, Any]) -> None:
    for method, path, operation in operations(described):
        assert operation["summary"], (method, path)
        assert operation["description"], (method, path)


def test_every_route_documents_the_errors_that_it_has(described: dict[str, Any]) -> None:
    for method, path, operation in operations(described):
        responses = operation["responses"]
        guarded = "none" not in MAY[method, path]
        assert guarded == ({"401", "403"} <= responses.keys()), (method, path)
        assert guarded == ("security" in operation), (method, path)
        assert ("422" in responses) == bool(operation.get("parameters") or "requestBody" in operation), (method, path)
        if "requestBody" in operation:
            assert {"413", "415"} <= responses.keys(), (method, path)
        for status, response in responses.items():
            if int(status) >= 400:
                content = response["content"]["application/json"]["schema"]
                assert content == {"$ref": "#/components/schemas/ErrorBody"}, (method, path, status)


def test_every_body_has_an_example(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    for method, path, operation in operations(described):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            given = content.get("examples") or examples(content["schema"], schemas)
            assert given, (method, path)


def examples(described: dict[str, Any], schemas: dict[str, Any]) -> list[Any]:
    options = [described, *described.get("anyOf", [])]
    names = [option["$ref"].rpartition("/")[2] for option in options if "$ref" in option]
    return [example for name in names for example in schemas[name].get("examples", [])]


def test_the_examples_of_bodies_are_accepted(described: dict[str, Any], tmp_path: Any) -> None:
    schemas = described["components"]["schemas"]
    with serving(tmp_path) as client:
        client.post("/v1/schemas", content=SUPPORT)
        for example in schemas["AnnotateCreate"]["examples"]:
            response = client.post("/v1/annotate", json=example)
            assert response.status_code == 200, response.text
        for example in schemas["BatchBody"]["examples"]:
            assert client.post("/v1/batches", json=example).status_code == 202
        for example in schemas["NextReview"]["examples"]:
            assert client.post("/v1/reviews/next", json=example).status_code in (200, 204)
        for content in described["paths"]["/v1/schemas"]["post"]["requestBody"]["content"].values():
            value = content["examples"]["mood"]["value"]
            sent = {"content": value} if isinstance(value, str) else {"json": value | {"version": 3}}
            assert client.post("/v1/schemas", **sent).status_code in (201, 409)
        for content in described["paths"]["/v1/gold/{name}"]["post"]["requestBody"]["content"].values():
            value = content["examples"]["one"]["value"]
            sent = {"content": value} if isinstance(value, str) else {"json": value}
            assert client.post("/v1/gold/g?schema=support", **sent).status_code == 200
        assert post_batch(client, "x")


SUPPORT = """
name: support
tasks:
  - {name: sentiment, kind: choice, labels: [negative, neutral, positive]}
  - {name: entities, kind: spans, labels: [product, organization]}
"""
