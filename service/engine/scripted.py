"""The engine of the unit tests: replays what it was given, records what it was asked, and invents nothing."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Literal

from service.engine import Completion, Identity, Request, Token
from service.engine.grammars import grammar_error
from service.errors import EngineError

SURE = -0.0005  # the default log-probability of a token: near 0, and within what the contract allows a sum to miss
PIECES = {"word": r"\s*\w+|\s*[^\w\s]|\s+", "character": r"(?s:.)"}

Answer = str | Completion | EngineError


class Scripted:
    """answers: one for each request, in the order asked; or a function from the request to its answer."""

    def __init__(
        self,
        answers: Iterable[Answer] | Callable[[Request], Answer],
        *,
        logprob: float = SURE,
        pieces: Literal["word", "character"] = "word",
        in_flight: int = 8,
    ) -> None:
        self.identity = Identity("scripted", "scripted")
        self.in_flight = in_flight
        self.requests: list[Request] = []
        self._answers = answers if callable(answers) else iter(answers)
        self._logprob = logprob
        self._pieces: Literal["word", "character"] = pieces

    async def complete(self, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Completion | EngineError]]:
        for index, request in enumerate(requests):
            await asyncio.sleep(0)  # as a real engine would, it lets others run between two answers
            yield index, self._answer(request)

    async def ready(self) -> None:
        return

    async def close(self) -> None:
        return

    def _answer(self, request: Request) -> Completion | EngineError:
        self.requests.append(request)
        if error := grammar_error(request.grammar):
            return EngineError(f"the grammar is not valid: {error}", retryable=False)
        answer = self._answers(request) if callable(self._answers) else next(self._answers, None)
        if answer is None:
            raise AssertionError(
                f"the script is over, and there was one more request: {request.messages[-1].content!r}"
            )
        if isinstance(answer, str):
            answer = completion(answer, logprob=self._logprob, pieces=self._pieces)
        return cut(answer, request.max_tokens) if isinstance(answer, Completion) else answer


def completion(
    text: str,
    *,
    logprob: float | Sequence[float] = SURE,
    stop: float = SURE,
    pieces: Literal["word", "character"] = "word",
    prompt_tokens: int = 0,
) -> Completion:
    """The text as a completion: a token for each word (with the blanks before it) or character, and the end token.

    logprob: of every token, or one for each of them; stop: of the end token.
    """
    parts = [match.group().encode() for match in re.finditer(PIECES[pieces], text)]
    logprobs = [logprob] * len(parts) if isinstance(logprob, float | int) else logprob
    tokens = [_token(data, value) for data, value in zip(parts, logprobs, strict=True)]
    return Completion((*tokens, _token(b"", stop)), "stop", prompt_tokens)


def cut(answer: Completion, max_tokens: int) -> Completion:
    """What a real engine returns when max_tokens ends the completion."""
    if len(answer.tokens) <= max_tokens:
        return answer
    return Completion(answer.tokens[:max_tokens], "length", answer.prompt_tokens)


def _token(data: bytes, logprob: float) -> Token:
    if not -math.inf < logprob <= 0:
        raise AssertionError(f"{logprob} is not a log-probability")
    return Token(data, logprob, ((data, logprob),))
