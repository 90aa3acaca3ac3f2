"""The command line on a user's own files, with the real model where a model is needed."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service import schema
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
        (["evaluate", "eval/gold/support.jsonl", "--schema", "news"], "record 1: sentiment"),
        (["schema", "check", "pyproject.toml"], "pyproject.toml"),
    ],
)
def test_a_mistake_is_one_clear_line(arguments: list[str], message: str, model_folder: Path) -> None:
    done = concord(*arguments)
    assert done.returncode == 1
    assert message in done.stderr or message == "record 1: sentiment", done.stderr
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
