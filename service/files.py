"""Texts and gold from JSONL, CSV and Parquet files, compressed or not, or from a data set of the hub."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.errors import Invalid, NotFound

LOADERS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}


def read_records(source: str, split: str = "train") -> Iterator[dict[str, Any]]:
    """The records of a file, or of the `split` of a data set by its hub name, one at a time, never all in memory.

    Raises NotFound where there is no such file or data set, Invalid where it cannot be read.
    """
    path = Path(source)
    kind = next((LOADERS[suffix] for suffix in path.suffixes if suffix in LOADERS), None)
    if kind == "json":
        yield from _json_lines(path)
        return
    if kind and not path.is_file():
        raise NotFound(f"no file {source}")
    from datasets import load_dataset

    try:
        if kind:
            options = _csv_options(path) if kind == "csv" else {}
            records = load_dataset(kind, data_files=str(path), split="train", streaming=True, **options)
        else:
            records = load_dataset(source, split=split, streaming=True)
        yield from (dict(record) for record in records)
    except FileNotFoundError as error:
        raise NotFound(f"no file {source}, and no data set of that name: {error}") from error
    except (OSError, ValueError) as error:
        raise Invalid(f"{source}: {error}") from error


def _csv_options(path: Path) -> dict[str, Any]:
    """Every cell is the word that stands in it, also 007, NA and null."""
    import fsspec
    from datasets import Features, Value

    separator = "\t" if ".tsv" in path.suffixes else ","
    with fsspec.open(str(path), "rt", encoding="utf-8-sig", newline="", compression="infer") as file:
        names = next(csv.reader(file, delimiter=separator), [])
    features = Features({name: Value("string") for name in names})
    return {"sep": separator, "features": features, "keep_default_na": False, "encoding": "utf-8-sig"}


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """JSON Lines, read line by line: `datasets` gives every record the union of all keys, so that a task that was
    not labelled and one without a mention could no longer be told apart."""
    import fsspec

    if not path.is_file():
        raise NotFound(f"no file {path}")
    with fsspec.open(str(path), "rt", encoding="utf-8", compression="infer") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise Invalid(f"{path}, line {number}: not JSON: {error}") from error
            if not isinstance(record, dict):
                raise Invalid(f"{path}, line {number}: expected an object with text, not {type(record).__name__}")
            yield record
