"""The command line on a user's own files, with the real model where a model is needed."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service import schema
from service.__main__ import app
from service.engine import Completion, Request
from service.engine.scripted import Scripted, completion
from service.files import read_records
from service.settings import PROJECT


def concord(*arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
        env=os.environ | {"COLUMNS": "200"} | settings,
    )


def test_a_csv_is_labelled_row_by_row_with_exact_spans(tmp_path: Path, model_folder: Path) -> None:
    texts = ["Maria from Acme says the X200 never came 😀 to Oslo.", 'He said "hi, you", twice', "ok"]
    with (tmp_path / "in.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "message"])
        writer.writerows(enumerate(texts, start=7))
    out = tmp_path / "out.jsonl"
    done = concord("annotate", tmp_path / "in.csv", "--text", "message", "--id", "number", "--out", out)
    assert done.returncode == 0, done.stderr
    rows = {row["id"]: row for row in map(json.loads, out.read_text("utf-8").splitlines())}
    assert [rows[str(number)]["text"] for number in (7, 8, 9)] == texts
    for row in rows.values():
        assert {"sentiment", "intent", "entities", "decision", "reasons", "recipe"} <= row.keys()
        assert all(row["text"][s["start"] : s["end"]] == s["text"] for s in row["entities"])
    assert "3 texts:" in done.stderr


def test_parquet_and_compressed_json_lines_are_read_too(tmp_path: Path) -> None:
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    records = [{"id": "a", "text": "é😀"}, {"id": "b", "text": "line\nbreak"}]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "t.parquet")
    with gzip.open(tmp_path / "t.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    assert list(read_records(str(tmp_path / "t.parquet"))) == records
    assert list(read_records(str(tmp_path / "t.jsonl.gz"))) == records


def test_every_cell_of_a_csv_is_the_word_that_stands_in_it(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('id,text\n01,NA\n02,null\n03,123\n04,\n05,"a\r\nb"\n', newline="")
    (tmp_path / "t.tsv").write_text("id\ttext\n1\ta, b\n")
    assert [r["text"] for r in read_records(str(tmp_path / "t.csv"))] == ["NA", "null", "123", "", "a\r\nb"]
    assert list(read_records(str(tmp_path / "t.tsv"))) == [{"id": "1", "text": "a, b"}]


def test_gold_is_evaluated_and_the_figures_are_written(tmp_path: Path, model_folder: Path) -> None:
    figures = tmp_path / "figures.json"
    gold = PROJECT / "eval" / "gold" / "support.jsonl"
    done = concord("evaluate", gold, "--schema", "support", "--limit", "12", "--json", figures)
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert (found["texts"], found["failed"]) == (12, 0)
    assert {name: task["n"] for name, task in found["tasks"].items()} == {"sentiment": 12, "intent": 12, "entities": 12}
    assert "Cohen's kappa" in done.stdout


def test_a_schema_is_inferred_from_any_gold_file(tmp_path: Path) -> None:
    gold = tmp_path / "my-set.jsonl"
    gold.write_text('{"text": "a", "intent": "B2"}\n{"text": "b", "intent": "A1"}\n')
    out = tmp_path / "my.yaml"
    assert concord("schema", "infer", gold, "--out", out).returncode == 0
    what = schema.load(out)
    assert (what.name, [label.name for label in what.tasks[0].labels]) == ("my_set", ["A1", "B2"])
    assert "intent (choice): A1, B2" in concord("schema", "check", out).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["annotate", "nowhere.jsonl"], "no file nowhere.jsonl"),
        (["annotate", "README.md.csv"], "no file README.md.csv"),
        (["annotate", "eval/gold/support.jsonl", "--schema", "nothing"], "no schema 'nothing'"),
        (["annotate", "eval/gold/support.jsonl", "--prompt", "nothing.v1"], "no prompt 'nothing.v1'"),
        (["annotate", "eval/gold/support.jsonl", "--text", "body"], "expected a text in the field 'body'"),
        (
            ["evaluate", "eval/gold/support.jsonl", "--schema", "news"],
            "record 1: entities[2].label: expected a label of the task, not 'product'",
        ),
        (["evaluate", "eval/gold/support.jsonl", "--prompt", "nothing.v1"], "no prompt 'nothing.v1'"),
        (["calibrate", "eval/gold/support.jsonl", "--prompt", "nothing.v1"], "no prompt 'nothing.v1'"),
        (["compare", "eval/gold/support.jsonl", "--prompt", "line.v1", "--prompt", "no.v1"], "no prompt 'no.v1'"),
        (["schema", "check", "pyproject.toml"], "pyproject.toml"),
    ],
)
def test_a_mistake_is_one_clear_line_before_any_engine_is_opened(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    database = f"sqlite:///{tmp_path}/x.db"
    done = concord(*arguments, CONCORD_MODEL=str(tmp_path / "none"), CONCORD_DATABASE_URL=database)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_doctor_says_what_is_there_and_that_the_constraint_bites(tmp_path: Path, model_folder: Path) -> None:
    done = concord("doctor", CONCORD_DATABASE_URL=f"sqlite:///{tmp_path}/x.db")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bites" in done.stdout and "line.v1" in done.stdout and "support" in done.stdout


def test_the_doctor_says_what_is_wrong(tmp_path: Path) -> None:
    done = concord(
        "doctor",
        "--engine",
        "vllm",
        CONCORD_DATABASE_URL=f"sqlite:///{tmp_path}/x.db",
        CONCORD_VLLM_URLS="http://127.0.0.1:9",
    )
    assert done.returncode == 1
    assert "problem" in done.stdout and "127.0.0.1:9" in done.stdout


def _answer(request: Request) -> Completion:
    text = request.messages[-1].content.rpartition("Text: ")[2]
    return completion(" good", logprob=-0.9 if "doubt" in text else -0.02)


def _gold_file(folder: Path) -> tuple[str, str]:
    """Texts of which every other one is doubtful, and half of these wrong; and their schema."""
    words = [f"{a}{b}{c}" for a in "bdfgklmnpr" for b in "aeiou" for c in "bdfgk"]
    records = [
        {"text": f"{word} {'sure' if n % 2 else 'doubt'}", "mood": "bad" if n % 4 == 2 else "good"}
        for n, word in enumerate(words)
    ]
    (folder / "gold.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "mood.yaml").write_text(schema.to_yaml(schema.infer("mood", records)))
    return str(folder / "gold.jsonl"), str(folder / "mood.yaml")


def test_from_gold_to_labels_that_are_accepted_by_a_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Scripted(_answer)
    monkeypatch.setattr("service.commands.console.open_engine", lambda _: engine)
    monkeypatch.setenv("CONCORD_DATABASE_URL", f"sqlite:///{tmp_path}/concord.db")
    monkeypatch.setenv("COLUMNS", "200")
    gold, what = _gold_file(tmp_path)

    def run(*arguments: str, code: int = 0) -> str:
        found = CliRunner().invoke(app, list(arguments))
        assert found.exit_code == code, (found.output, found.exception)
        return found.stdout

    calibrate = ["calibrate", gold, "--schema", what, "--error", "mood=0.08", "--confidence", "0.9"]
    told = run(*calibrate, "--json", str(tmp_path / "told.json"))
    assert "mood: at most 8 % of accepted labels wrong, 90 % sure: accept from " in told
    assert "nothing was changed" in told
    asked = len(engine.requests)
    assert asked == 250
    assert "no standard was ever put in force" in run("standards")
    document = json.loads((tmp_path / "told.json").read_text())
    assert {curve["of"] for curve in document["curves"]} == {"mood"}
    assert document["work"]["items"] == 1000

    assert "standard 1 is in force for mood.v1" in run(*calibrate, "--apply")
    assert len(engine.requests) == asked  # all of it was known
    assert "standard 2 is in force" in run("calibrate", gold, "--schema", what, "--apply")  # calibrators alone
    assert "standard 3, which is 1 again, is in force" in run("standards", "--restore", "1")
    run("annotate", gold, "--schema", what, "--out", str(tmp_path / "out.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {row["standard"] for row in rows} == {3}
    for row in rows:
        assert (row["decision"] == "review") == ("doubt" in row["text"])
        assert row["probability"] == pytest.approx(row["mood"]["probability"], abs=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate", "--error", "much"], "--error much: expected a share such as 0.03"),
        (["compare", "--prompt", "line.v1", "--prompt", "line.v1"], "two or more different prompts"),
    ],
)
def test_a_senseless_question_is_one_clear_line_and_opens_no_engine(arguments: list[str], message: str) -> None:
    command, *options = arguments
    done = concord(command, "eval/gold/support.jsonl", *options)
    assert done.returncode == 1
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
