"""The rules that hold the code together, each with its reason."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.settings import PROJECT, Settings

MODULES = sorted(path for folder in ("service", "eval") for path in (PROJECT / folder).rglob("*.py"))

# What a module decides about must be testable without what it does not: no database, no HTTP, no model.
PURE = {"labels", "schema", "words", "wire", "grammar", "parse", "confidence", "route", "prompt"}
HEAVY = {"torch", "transformers", "outlines", "sqlmodel", "sqlalchemy", "fastapi", "starlette", "httpx", "datasets"}
PURE_MAY_IMPORT = PURE | {"errors", "engine"}


def imports(path: Path) -> set[str]:
    """Every module that the file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_arrows_point_one_way(path: Path) -> None:
    used = imports(path)
    roots = {name.split(".")[0] for name in used}
    ours = {name.split(".")[1] for name in used if name.startswith("service.")}
    inside = path.relative_to(PROJECT)
    assert "vllm" not in roots, "vLLM lives in its own environment; the service talks to it over HTTP"
    if inside.parts[0] == "eval":
        assert not roots & {"service", *HEAVY}, "eval takes sequences and gives numbers"
    elif inside.parts == ("service", inside.name) and inside.stem in PURE:
        assert not roots & HEAVY
        assert ours <= PURE_MAY_IMPORT
    if inside.parts[:2] == ("service", "engine"):
        assert ours <= {"engine", "errors", "settings"}, "an engine knows requests and completions, nothing of labels"
    if inside.parts == ("service", inside.name) and inside.stem in {"review", "gold", "export", "batches", "queue"}:
        assert not ours & {"api", "app", "worker"}, "the edge calls the middle, never the other way"


def test_only_one_place_commits() -> None:
    committing = {
        path.relative_to(PROJECT).as_posix()
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "commit"
    }
    assert committing == {"service/db.py"}


def test_the_light_modules_load_without_the_heavy_ones() -> None:
    code = (
        "import sys, service.grammar, service.parse, service.route, service.prompt, service.annotate\n"
        f"print([name for name in {sorted(HEAVY)!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_stands_in_the_readme_with_its_default_and_meaning(name: str) -> None:
    field = Settings.model_fields[name]
    readme = (PROJECT / "README.md").read_text()
    row = re.search(rf"^\| `CONCORD_{name.upper()}` \| (.*?) \| (.*?) \|$", readme, re.MULTILINE)
    assert row, f"the README has no row for CONCORD_{name.upper()}"
    assert field.description
    assert row[2] == field.description
    if isinstance(field.default, str | int | float) and not isinstance(field.default, bool):
        assert row[1].strip("`") == (str(field.default) or "empty")


def test_every_threshold_stands_in_the_readme_with_its_default() -> None:
    from service.route import Policy

    readme = (PROJECT / "README.md").read_text()
    for name, field in Policy.model_fields.items():
        assert f"| `{name}` | {field.default} | {field.description} |" in readme


def test_every_prompt_version_stands_in_the_list_of_prompts_and_is_published() -> None:
    folder = PROJECT / "prompts"
    listed = (folder / "README.md").read_text()
    published = (folder / "SHA256SUMS").read_text()
    for path in folder.glob("*.jinja"):
        assert f"| `{path.stem}` |" in listed
        assert path.name in published
