"""How much of the engine's speed the service keeps, and what the wires cost. See bench/README.md."""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from service import demo, prompt, schema
from service.annotate import Plan, request
from service.engine import TOP, Completion, Engine, Request, open_engine
from service.engine.embedded import prepare
from service.engine.tokenizer import Tokenizer
from service.engine.vllm_server import running
from service.files import read_records
from service.settings import PROJECT, Settings
from service.words import windows

console = Console(width=None if Console().is_terminal else 120)


@dataclass
class Round:
    raw: float
    service: float

    @property
    def ratio(self) -> float:
        return self.service / self.raw


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", default=str(PROJECT / "eval" / "gold" / "support.jsonl"))
    parser.add_argument("--schema", default="support", help="a shipped schema, a file, or: infer")
    parser.add_argument("--limit", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=["transformers", "vllm"])
    options = parser.parse_args()
    records = [record for record, _ in zip(read_records(options.texts), range(options.limit), strict=False)]
    texts = [str(record["text"]) for record in records]
    what = _schema(options.schema, records)
    table = Table(
        "engine", "texts", "raw texts/s", "service texts/s", "ratio, median (all)", "tokens line", "tokens json"
    )
    for name in options.engines:
        with _settings(name) as settings:
            rounds, tokens = measure(settings, what, texts, options.rounds)
        ratios = [one.ratio for one in rounds]
        table.add_row(
            name,
            str(len(texts)),
            f"{statistics.median(one.raw for one in rounds):.1f}",
            f"{statistics.median(one.service for one in rounds):.1f}",
            f"{statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})",
            *(f"{tokens[wire]:.1f}" for wire in ("line.v1", "guided.v1")),
        )
    console.print(table)


def measure(
    settings: Settings, what: schema.Schema, texts: Sequence[str], rounds: int
) -> tuple[list[Round], dict[str, float]]:
    """Rounds of raw and service speed, one after the other, and mean output tokens by prompt."""
    found: list[Round] = []
    with _service(settings) as client:
        client.post("/v1/schemas", content=schema.to_yaml(what).encode()).raise_for_status()
        _batch(client, what, texts[:32], "warm-up")
    tokens = asyncio.run(_tokens(settings, what, texts))
    asyncio.run(_raw(settings, what, texts))  # the first round of all is slower, whoever runs it
    for number in range(rounds):
        # The embedded engine of the one must not hold the processors while the other is measured.
        raw = asyncio.run(_raw(settings, what, texts))
        with _service(settings) as client:
            _batch(client, what, texts[:32], f"warm-up {number}")
            found.append(Round(raw, _batch(client, what, texts, f"round {number}")))
        console.print(f"{settings.engine}, round {number + 1}: raw {raw:.1f}, service {found[-1].service:.1f} texts/s")
    return found, tokens


def _requests(
    settings: Settings, what: schema.Schema, texts: Sequence[str], name: str, engine: Engine
) -> list[Request]:
    plan = Plan(what, prompt.load(settings.prompts, name), engine.identity)
    return [request(what, plan.prompt, window) for text in texts for window in windows(text)]


async def _raw(settings: Settings, what: schema.Schema, texts: Sequence[str]) -> float:
    engine = open_engine(settings)
    requests = _requests(settings, what, texts, "line.v1", engine)
    if settings.engine == "vllm":
        seconds = await _straight(settings, requests, engine.in_flight)
    else:
        async for _ in engine.complete(requests[:32]):
            pass
        begun = time.perf_counter()
        async for _, answer in engine.complete(requests):
            assert isinstance(answer, Completion), answer
        seconds = time.perf_counter() - begun
    await engine.close()
    return len(texts) / seconds


async def _straight(settings: Settings, requests: Sequence[Request], in_flight: int) -> float:
    """Seconds that the server takes for the requests when a bare client sends them."""
    tokenizer = Tokenizer(prepare(settings))
    url = settings.vllm_urls[0]
    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=in_flight)) as client:
        model = (await client.get(f"{url}/v1/models")).json()["data"][0]["id"]
        bodies = [
            {
                "model": model,
                "prompt": tokenizer.encode(one.messages),
                "max_tokens": one.max_tokens,
                "structured_outputs": {"grammar": one.grammar},
                "logprobs": TOP,
                "temperature": 0,
            }
            for one in requests
        ]
        room = asyncio.Semaphore(in_flight)

        async def send(body: dict[str, Any]) -> None:
            async with room:
                (await client.post(f"{url}/v1/completions", json=body)).raise_for_status()

        await asyncio.gather(*(send(body) for body in bodies[:32]))
        begun = time.perf_counter()
        await asyncio.gather(*(send(body) for body in bodies))
        return time.perf_counter() - begun


async def _tokens(settings: Settings, what: schema.Schema, texts: Sequence[str]) -> dict[str, float]:
    """Mean output tokens a text, by prompt, on the first texts."""
    engine = open_engine(settings)
    found = {}
    for name in ("line.v1", "guided.v1"):
        total = 0
        requests = _requests(settings, what, texts[:60], name, engine)
        async for _, answer in engine.complete(requests):
            assert isinstance(answer, Completion), answer
            total += len(answer.tokens)
        found[name] = total / len(texts[:60])
    await engine.close()
    return found


def _batch(client: httpx.Client, what: schema.Schema, texts: Sequence[str], key: str) -> float:
    """Texts/s of one batch, from the POST to the last stored result."""
    body = {"schema": what.name, "texts": [{"text": text} for text in texts]}
    begun = time.perf_counter()
    batch = client.post("/v1/batches", json=body, headers={"Idempotency-Key": key}).raise_for_status().json()["id"]
    while client.get(f"/v1/batches/{batch}").raise_for_status().json()["done"] < len(texts):
        time.sleep(0.5)
    return len(texts) / (time.perf_counter() - begun)


@contextmanager
def _service(settings: Settings) -> Iterator[httpx.Client]:
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "CONCORD_DATABASE_URL": f"sqlite:///{folder}/bench.db",
            "CONCORD_ENGINE": settings.engine,
            "CONCORD_VLLM_URLS": " ".join(settings.vllm_urls),
        }
        with demo.running(Path(folder) / "log", environment) as client:
            yield client


@contextmanager
def _settings(engine: str) -> Iterator[Settings]:
    """Settings for the engine; for vLLM with a server of our own on the embedded model."""
    with ExitStack() as stack:
        urls: tuple[str, ...] = ()
        if engine == "vllm":
            urls = (stack.enter_context(running(prepare(Settings()), 8399)),)
        yield Settings(engine=engine, **({"vllm_urls": urls} if urls else {}))  # type: ignore[arg-type]


def _schema(name: str, records: Sequence[dict[str, Any]]) -> schema.Schema:
    return schema.infer("bench", records) if name == "infer" else schema.find(name, PROJECT / "schemas")


if __name__ == "__main__":
    main()
