"""What costs time to start, once for the session: the prepared model and a real vLLM server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.engine import Engine, open_engine
from service.engine.tokenizer import Tokenizer
from service.settings import Settings

pytest_plugins = ["tests.databases", "tests.serving", "tests.browser"]


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The model that both real engines load: what CONCORD_MODEL names, else the embedded one, prepared if need be."""
    from service.engine.embedded import model_folder

    return Path(model_folder(Settings()))


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> Tokenizer:
    return Tokenizer(model_folder)


@pytest.fixture(scope="session")
def transformers(model_folder: Path) -> Iterator[Engine]:
    """The embedded engine on the embedded model."""
    pytest.importorskip("torch")
    engine = open_engine(Settings(engine="transformers", model=str(model_folder)))
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="session")
def vllm_url(model_folder: Path) -> Iterator[str]:
    """A real vLLM server on the processor; the tests that need one are skipped where vLLM is not installed."""
    from service.engine import vllm_server

    if vllm_server.python() is None:
        pytest.skip("vLLM is not installed: `make .venv-vllm/ready`, or set CONCORD_VLLM_VENV")
    with vllm_server.running(model_folder) as url:
        yield url
