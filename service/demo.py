"""The main job from end to end, as `make demo` runs it: a fresh database, the real model, texts over HTTP."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from service.commands.evaluate import print_agreement
from service.engine.embedded import prepare
from service.settings import PROJECT, Settings

GOLD = PROJECT / "eval" / "gold" / "support.jsonl"
FOLDER = PROJECT / "demo"
EVERY = 3  # one text of so many is posted; the rest of the gold set stays unused
STYLES = {
    "person": "bold magenta",
    "organization": "bold blue",
    "product": "bold cyan",
    "location": "bold green",
    "date": "bold yellow",
    "order_number": "bold red",
    "money": "bold bright_green",
}

console = Console(width=None if Console().is_terminal else 120)


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    with console.status("Preparing the embedded model (about half a minute, the first time only)"):
        prepare(Settings())
    with GOLD.open(encoding="utf-8") as file:
        gold = [json.loads(line) for line in file]
    with running(FOLDER / "service.log", _environment()) as client:
        client.post("/v1/gold/support", params={"schema": "support"}, json=gold).raise_for_status()
        batch = _post(client, gold[::EVERY])
        rows = _rows(client, batch)
        agreement = client.get(f"/v1/batches/{batch}/agreement", params={"gold": "support"}).raise_for_status().json()
        _show(rows)
        print_agreement(console, agreement["tasks"])
        _show_review(client, rows)


@contextmanager
def running(log: Path, environment: Mapping[str, str]) -> Iterator[httpx.Client]:
    """The service in a process of its own, on a free port of loopback, ready to label; it stops with the context."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "service", "serve", "--port", str(port)]
    with log.open("w") as sink:
        process = subprocess.Popen(command, env=environment, stdout=sink, stderr=subprocess.STDOUT, cwd=PROJECT)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            with console.status(f"Starting the service on port {port}"):
                _wait(client, process, log)
            yield client
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.3)
    console.print(log.read_text()[-3000:], markup=False)
    raise SystemExit("the service did not become ready; its log is above")


def _environment() -> dict[str, str]:
    """This process's, without settings that would make it another demo."""
    kept = {name: os.environ[name] for name in ("CONCORD_CACHE", "CONCORD_THREADS") if name in os.environ}
    others = {name: value for name, value in os.environ.items() if not name.startswith("CONCORD_")}
    return others | kept | {"CONCORD_DATABASE_URL": f"sqlite:///{FOLDER / 'concord.db'}"}


def _post(client: httpx.Client, gold: list[dict[str, Any]]) -> str:
    texts = [{"id": record["id"], "text": record["text"]} for record in gold]
    answer = client.post("/v1/batches", json={"schema": "support", "texts": texts}).raise_for_status().json()
    batch: str = answer["id"]
    columns = (
        TextColumn("Labelling"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} texts/s"),
    )
    started = time.monotonic()
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("", total=len(texts), rate=0.0)
        while not progress.finished:
            state = client.get(f"/v1/batches/{batch}").raise_for_status().json()
            progress.update(bar, completed=state["done"], rate=state["done"] / (time.monotonic() - started))
            time.sleep(0.2)
    return batch


def _rows(client: httpx.Client, batch: str) -> list[dict[str, Any]]:
    answer = client.get(f"/v1/batches/{batch}/results").raise_for_status()
    return [json.loads(line) for line in answer.text.splitlines()]


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"What became of {len(rows)} texts", title_justify="left", show_lines=True)
    table.add_column("text, its entities marked", ratio=5)
    table.add_column("sentiment", ratio=1)
    table.add_column("intent", ratio=2)
    table.add_column("decision", ratio=2)
    for row in rows:
        table.add_row(_marked(row), _choice(row, "sentiment"), _choice(row, "intent"), _decision(row))
    console.print(table)


def _marked(row: dict[str, Any]) -> Text:
    """The text, each mention coloured and followed by its label."""
    shown, position = Text(), 0
    for span in row.get("entities", []):
        shown.append(row["text"][position : span["start"]])
        shown.append(span["text"], STYLES[span["label"]] + " underline")
        shown.append(f"‹{span['label']}›", "dim")
        position = span["end"]
    return shown.append(row["text"][position:])


def _choice(row: dict[str, Any], task: str) -> str:
    choice = row.get(task)
    return f"{choice['label']}\n{choice['confidence']:.2f}" if choice else "none"


def _decision(row: dict[str, Any]) -> Text:
    style = {"accepted": "green", "audit": "cyan", "review": "yellow"}[row["decision"]]
    shown = Text(row["decision"], style)
    for reason in row["reasons"]:
        where = ", ".join(str(reason[key]) for key in ("task", "label") if reason.get(key))
        numbers = f" {reason['value']:.2f} < {reason['threshold']:.2f}" if reason.get("threshold") is not None else ""
        shown.append(f"\n{reason['code'].replace('_', ' ')}: {where}{numbers}", "dim")
    return shown


def _show_review(client: httpx.Client, rows: list[dict[str, Any]]) -> None:
    outcomes = Counter(row["decision"] for row in rows)
    reasons = Counter(reason["code"] for row in rows for reason in row["reasons"])
    console.print(
        f"\n[bold]{outcomes['accepted']} accepted, {outcomes['audit']} accepted and drawn for an audit, "
        f"{outcomes['review']} wait for review[/], because of: "
        + ", ".join(f"{code.replace('_', ' ')} ({count})" for code, count in reasons.most_common())
    )
    task = client.post("/v1/reviews/next", json={}).raise_for_status().json()
    client.post(f"/v1/reviews/{task['item']}/release", json={"fence": task["fence"]})
    console.print("The first of them is:", Text(task["text"], "italic"))
    console.print(
        "\nTo go on with what the demo left:\n"
        f"  CONCORD_DATABASE_URL=sqlite:///{(FOLDER / 'concord.db').relative_to(PROJECT)} make serve\n"
        "and settle what waits at http://localhost:8300/review\n"
        "The README shows how to post texts of your own and label a file.",
        highlight=False,
    )


if __name__ == "__main__":
    main()
