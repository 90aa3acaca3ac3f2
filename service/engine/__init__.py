"""Engines: rendered prompts plus a grammar go in, completions with token log-probabilities come out.

One file an engine, imported only when it is opened. All pass `tests/test_engines.py`.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from service.errors import EngineError
from service.settings import Settings

TOP = 20  # alternatives reported for each token, at most; what vLLM gives unless told otherwise


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of the conversation. Its content is data: it is tokenised so that it cannot become a control token."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Request:
    messages: tuple[Message, ...]
    grammar: str  # Lark, as llguidance reads it
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. Log-probabilities are natural, after the grammar's mask, at temperature 1.

    top: the most probable tokens at this place, the chosen one among them, at most TOP, best first.
    The end token has empty bytes.
    """

    data: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """tokens: what was generated, the end token last where finish is "stop".

    finish: "stop" when the model ended, "length" when max_tokens cut it off.
    prompt_tokens: length of the prompt in tokens, shared prefix included.
    """

    tokens: tuple[Token, ...]
    finish: Literal["stop", "length"]
    prompt_tokens: int

    @property
    def text(self) -> str:
        return b"".join(token.data for token in self.tokens).decode("utf-8", errors="replace")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a label depends on besides schema and prompt; part of the recipe."""

    engine: str
    model: str
    revision: str = ""
    adapter: str = ""


class Engine(Protocol):
    identity: Identity
    in_flight: int  # requests it can usefully hold at once

    def complete(self, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Completion | EngineError]]:
        """Yield (index, completion or error) for each request exactly once, in the order they finish.

        Decoding is greedy. May be called concurrently; the calls share the engine's capacity.
        """
        ...

    async def ready(self) -> None:
        """Return when the engine answers and its constraint bites; raise EngineError with a hint otherwise."""
        ...

    async def close(self) -> None: ...


ENGINES = {
    "transformers": "service.engine.transformers:Transformers",
    "vllm": "service.engine.vllm:VLLM",
}


def let_threads_sleep() -> None:
    """Threads that wait by spinning stand in each other's way as soon as anything else runs on the processor (four
    times slower, measured). To be called before torch is first imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def open_engine(settings: Settings) -> Engine:
    """The engine that the settings name. Raises EngineError when what it needs is not installed."""
    let_threads_sleep()
    module, name = ENGINES[settings.engine].split(":")
    try:
        engine: Engine = getattr(importlib.import_module(module), name)(settings)
    except ImportError as error:
        raise EngineError(
            f"the engine {settings.engine!r} needs the package {error.name!r}",
            retryable=False,
            hint="pip install 'concord[embedded]'" if settings.engine == "transformers" else "pip install concord",
        ) from error
    return engine


# A grammar that no free model would follow: the canary of the constraint.
CANARY = Request(
    messages=(Message("user", "What is the capital of France? Answer with one word."),),
    grammar='start: CANARY\nCANARY: "zq" /[0-9]{7}/ "qz"',
    max_tokens=24,
)
CANARY_PATTERN = r"zq[0-9]{7}qz"
