"""Settings: environment variables with the prefix CONCORD_, shared by the service and the command line.

Each has a default and a description; the table in the README is checked against this class by a test.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PROJECT = Path(__file__).resolve().parent.parent


def _words(value: object) -> object:
    return value.replace(",", " ").split() if isinstance(value, str) else value


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="CONCORD_", extra="ignore", frozen=True)

    database_url: str = Field(
        "sqlite:///concord.db", description="SQLite file or PostgreSQL server (postgresql+psycopg://…)"
    )
    host: str = Field(
        "127.0.0.1",
        description="address to listen on; whoever asks on loopback may do everything while there are no API keys here",
    )
    port: int = Field(8300, ge=1, le=65535, description="port to listen on")
    client_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="API keys that may annotate, upload gold and export"
    )
    reviewer_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="API keys that may settle reviews; as name:key, the name is recorded"
    )
    secret: str = Field("", description="what signs sessions; empty: made at the first start and kept in the database")
    session_hours: float = Field(12.0, gt=0, le=8760, description="hours until somebody must sign in again")

    engine: Literal["transformers", "vllm"] = Field(
        "transformers", description="embedded engine in process, or vLLM servers"
    )
    model: str = Field("embedded", description="the embedded model, a folder, or a model name of the hub")
    revision: str = Field("", description="revision of a model of the hub; empty: the newest")
    adapter: str = Field(
        "",
        description="transformers: folder of an adapter, `none` for the bare model; vllm: name of one that the server "
        "loaded; empty: the bundled one for the embedded model, else none",
    )
    vllm_urls: Annotated[tuple[str, ...], NoDecode] = Field(
        ("http://127.0.0.1:8301",), description="vLLM servers, blank or comma between"
    )
    vllm_key: str = Field("", description="API key that the vLLM servers expect")
    in_flight: int = Field(
        0, ge=0, le=4096, description="requests in the engine at once; 0: 48 a processor embedded, 128 a vLLM server"
    )
    threads: int = Field(0, ge=0, description="threads of the embedded engine; 0: one for each processor")
    cache: Path = Field(Path.home() / ".cache" / "concord", description="folder for the prepared model")

    schemas: Path = Field(PROJECT / "schemas", description="folder of schema files")
    prompts: Path = Field(PROJECT / "prompts", description="folder of prompt files")
    prompt: str = Field("line.v1", description="prompt used when a request names none")

    workers: int = Field(
        1, ge=0, le=64, description="annotation workers inside the service; 0: run `concord worker` elsewhere"
    )
    chunk: int = Field(32, ge=1, le=1000, description="items a worker claims at a time")
    lease_seconds: float = Field(
        60.0, gt=0, description="how long a claimed item stays with a worker that no longer answers"
    )
    review_lease_seconds: float = Field(900.0, gt=0, description="how long a claimed review stays with its reviewer")

    max_body: int = Field(32_000_000, ge=1_000, description="bytes of a request body")
    max_texts: int = Field(10_000, ge=1, description="texts in a batch")
    max_annotate: int = Field(64, ge=1, description="texts in one POST /v1/annotate")
    max_text: int = Field(200_000, ge=1, description="code points in a text")
    seed: int = Field(0, description="seed of the audit sample")

    _split = field_validator("client_keys", "reviewer_keys", "vllm_urls", mode="before")(_words)


@cache
def settings() -> Settings:
    """The settings of this process, read from the environment once."""
    return Settings()
