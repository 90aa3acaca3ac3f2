"""The production engine: one or several vLLM servers, spoken to over their OpenAI-compatible HTTP API.

A server serves only after it has passed a check: it is healthy, it has the model, the canary shows that its grammars
bite, that its tokenizer is ours and that its log-probabilities are those after the mask. It is checked again whenever
its circuit breaker has opened, so a server that comes back with other flags is not trusted again by accident.

An engine belongs to the event loop that first used it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx

from service.engine import CANARY, CANARY_PATTERN, TOP, Completion, Identity, Request, Token
from service.engine.embedded import fingerprint, model_folder
from service.engine.grammars import grammar_error
from service.engine.tokenizer import Tokenizer
from service.errors import EngineError
from service.settings import Settings

log = logging.getLogger(__name__)

PER_SERVER = 128  # requests in flight for each server, where the settings do not say
FORBIDDEN = -9998.0  # vLLM writes -9999 for what the grammar's mask forbids

SERVER_FLAGS = """--structured-outputs-config '{"backend":"guidance","disable_any_whitespace":true}'"""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often a server is asked. Times in seconds.

    read: for one answer; a CPU server with a full queue takes minutes. check: for one answer of the start-up check.
    pause: before the second try at most, doubled for each further one up to longest_pause (full jitter).
    failures: in a row after which the breaker of a server opens. rest: before an open breaker lets the first check
    through, doubled after each check that fails, up to longest_rest.
    """

    tries: int = 5
    pause: float = 0.5
    longest_pause: float = 30.0
    failures: int = 5
    rest: float = 2.0
    longest_rest: float = 60.0
    connect: float = 5.0
    read: float = 300.0
    check: float = 120.0


@dataclass(eq=False, slots=True)
class _Server:
    """A server and its circuit breaker: closed where admitted, half-open where its rest is over, open otherwise."""

    url: str
    model: str = ""
    admitted: bool = False
    in_flight: int = 0
    failures: int = 0  # in a row, of requests
    checks: int = 0  # in a row, that failed
    rest_until: float = 0.0
    refusal: EngineError | None = None
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)


class _RetryError(Exception):
    """This try failed, another may not. after: seconds that the server asked to be left alone."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


class _BusyError(_RetryError):
    """The server is well but has no room; this does not count against it."""


class _NotOursError(_RetryError):
    """The server does not know us or our model: no request can succeed there, and none is to blame."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class VLLM:
    def __init__(
        self,
        settings: Settings,
        *,
        tokenizer: Tokenizer | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        patience: Patience = Patience(),
    ) -> None:
        """tokenizer, transport: to replace what the settings name, in tests. Raises EngineError without a tokenizer."""
        if not settings.vllm_urls:
            raise EngineError("no vLLM server is named", retryable=False, hint="set CONCORD_VLLM_URLS")
        model = model_folder(settings)
        revision = fingerprint(Path(model)) if Path(model).is_dir() else settings.revision
        self.identity = Identity("vllm", settings.model, revision, settings.adapter)
        self.in_flight = settings.in_flight or PER_SERVER * len(settings.vllm_urls)
        self._patience = patience
        self._tokenizer = tokenizer or _tokenizer(model, settings)
        self._servers = [_Server(url.rstrip("/").removesuffix("/v1")) for url in settings.vllm_urls]
        self._room = asyncio.Semaphore(self.in_flight)
        self._checks: set[asyncio.Task[None]] = set()
        self._http = httpx.AsyncClient(
            transport=transport,
            headers={"Authorization": f"Bearer {settings.vllm_key}"} if settings.vllm_key else None,
            timeout=httpx.Timeout(patience.read, connect=patience.connect),
            limits=httpx.Limits(
                max_connections=self.in_flight + len(self._servers),  # a check never waits for room
                max_keepalive_connections=self.in_flight,
                keepalive_expiry=4.0,  # the server closes idle connections after 5 s; be first
            ),
        )

    async def complete(self, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Completion | EngineError]]:
        """Yield (index, completion or error) for each request exactly once, in the order they finish."""
        todo = iter(enumerate(requests))
        done: asyncio.Queue[tuple[int, Completion | EngineError]] = asyncio.Queue()

        async def work() -> None:
            for index, request in todo:
                async with self._room:
                    done.put_nowait((index, await self._answer(request)))

        tasks = [asyncio.create_task(work()) for _ in range(min(len(requests), self.in_flight))]
        try:
            for _ in requests:
                yield await done.get()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def ready(self) -> None:
        """Check every server now. One good server is enough: the others get no requests until they pass."""
        await asyncio.gather(*(self._check(server, now=True) for server in self._servers))
        if not any(server.admitted for server in self._servers):
            hopeful = any(server.refusal and server.refusal.retryable for server in self._servers)
            raise _no_server(self._servers, retryable=hopeful)

    async def close(self) -> None:
        for task in self._checks:
            task.cancel()
        await asyncio.gather(*self._checks, return_exceptions=True)
        await self._http.aclose()

    async def _answer(self, request: Request) -> Completion | EngineError:
        try:
            # The grammar is compiled here first: one that the library cannot read has hurt shared servers before.
            if error := await asyncio.to_thread(grammar_error, request.grammar):
                return EngineError(f"the grammar is not valid: {error}", retryable=False)
            return await self._persist(request, self._tokenizer.encode(request.messages))
        except EngineError as error:
            return error
        except Exception as error:  # whatever one request does to us must not cost the others their answers
            log.exception("a request failed unexpectedly")
            return EngineError(f"the request failed: {error!r}", retryable=False)

    async def _persist(self, request: Request, prompt: list[int]) -> Completion:
        """Ask until there is an answer or the tries are used up."""
        patience = self._patience
        for tried in range(1, patience.tries + 1):
            try:
                server = await self._admitted()
                return await self._ask(server, request, prompt)
            except _RetryError as failure:
                again = failure
            except EngineError as error:
                if tried == 1 or not error.retryable:
                    raise  # without a server new requests fail at once; those under way may outlast its absence
                again = _RetryError(error.message)
            if tried < patience.tries:
                pause = random.uniform(0, min(patience.longest_pause, patience.pause * 2 ** (tried - 1)))  # noqa: S311
                await asyncio.sleep(max(pause, min(again.after, patience.longest_pause)))
        raise EngineError(
            f"no answer after {patience.tries} tries; the last: {again}",
            retryable=True,
            hint="look at the vLLM server's log; it may be overloaded, restarting or down",
        )

    async def _admitted(self) -> _Server:
        """The admitted server with the fewest requests in flight. Servers whose rest is over are checked again."""
        good = [server for server in self._servers if server.admitted]
        if not good:
            await asyncio.gather(*(self._check(server) for server in self._servers))
            good = [server for server in self._servers if server.admitted]
        elif len(good) < len(self._servers):
            self._check_in_background()
        if not good:
            raise _no_server(self._servers, retryable=True)
        return min(good, key=lambda server: server.in_flight)

    def _check_in_background(self) -> None:
        for server in self._servers:
            if not server.admitted and time.monotonic() >= server.rest_until and not server.checking.locked():
                task = asyncio.create_task(self._check(server))
                self._checks.add(task)
                task.add_done_callback(self._checks.discard)

    async def _ask(self, server: _Server, request: Request, prompt: list[int]) -> Completion:
        """One try. Raises _RetryError where another may succeed, EngineError where the request itself is at fault."""
        server.in_flight += 1
        try:
            choice = await self._post(server, request, prompt, self._patience.read)
            answer = _completion(choice, len(prompt), self._tokenizer)
        except _BusyError:
            raise
        except _NotOursError as failure:
            self._refuse(server, failure)
            raise
        except _RetryError as failure:
            self._failed(server, str(failure))
            raise
        finally:
            server.in_flight -= 1
        server.failures = 0
        return answer

    def _failed(self, server: _Server, reason: str) -> None:
        server.failures += 1
        if server.admitted and server.failures >= self._patience.failures:
            server.admitted = False
            server.refusal = EngineError(reason, retryable=True)
            server.rest_until = time.monotonic() + self._patience.rest
            log.warning("vLLM server %s rests after %d failures in a row: %s", server.url, server.failures, reason)

    async def _post(self, server: _Server, request: Request, prompt: list[int], timeout: float) -> dict[str, Any]:
        """The first choice of the server's answer."""
        body = {
            "model": server.model,
            "prompt": prompt,
            "max_tokens": request.max_tokens,
            "structured_outputs": {"grammar": request.grammar},
            "logprobs": TOP,
            "return_tokens_as_token_ids": True,
            "temperature": 0,
            # Otherwise the model's generation_config.json decides, and its repetition penalty harms copied mentions.
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
        }
        answer = await self._http_json(server, "POST", "/v1/completions", timeout, body)
        match answer:
            case {"choices": [dict(choice), *_]}:
                return choice
        raise _RetryError("the answer has no choices")

    async def _http_json(
        self, server: _Server, method: Literal["GET", "POST"], path: str, timeout: float, body: Any = None
    ) -> Any:
        limits = httpx.Timeout(timeout, connect=self._patience.connect)
        try:
            response = await self._http.request(method, server.url + path, json=body, timeout=limits)
        except httpx.TimeoutException as error:
            raise _RetryError(f"no answer in time ({type(error).__name__})") from error
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise _RetryError(f"connection lost: {error or type(error).__name__}") from error
        if not response.is_success:
            raise _failure(response)
        if path == "/health":
            return None
        try:
            return response.json()
        except ValueError as error:
            raise _RetryError(f"the answer is not JSON: {response.text[:80]!r}") from error

    async def _check(self, server: _Server, now: bool = False) -> None:
        """Admit or refuse the server. Without now, only where it is not admitted and has rested."""
        async with server.checking:  # one check at a time; whoever waited for it takes its outcome
            if not now and (server.admitted or time.monotonic() < server.rest_until):
                return
            try:
                await self._prove(server)
            except (_RetryError, EngineError) as failure:
                self._refuse(server, failure)
            else:
                server.admitted, server.refusal, server.failures, server.checks = True, None, 0, 0

    def _refuse(self, server: _Server, failure: _RetryError | EngineError) -> None:
        patience = self._patience
        if isinstance(failure, EngineError):
            refusal = failure
        elif isinstance(failure, _NotOursError):
            refusal = EngineError(str(failure), retryable=False, hint=failure.hint)
        else:
            refusal = EngineError(str(failure), retryable=True)
        rest = min(patience.longest_rest, patience.rest * 2**server.checks)
        server.admitted, server.refusal = False, refusal
        server.rest_until, server.checks = time.monotonic() + rest, min(server.checks + 1, 16)
        log.warning("vLLM server %s is refused for %.0f s: %s", server.url, rest, refusal)

    async def _prove(self, server: _Server) -> None:
        timeout = self._patience.check
        await self._http_json(server, "GET", "/health", timeout)
        server.model = self._served(await self._http_json(server, "GET", "/v1/models", timeout))
        choice = await self._post(server, CANARY, self._tokenizer.encode(CANARY.messages), timeout)
        prove_constraint(choice, self._tokenizer)

    def _served(self, models: Any) -> str:
        """The name to send with requests: the adapter, or the server's name for the model."""
        try:
            entries = {str(entry["id"]): entry.get("root") for entry in models["data"]}
            first = next(iter(entries))
        except (TypeError, KeyError, AttributeError, StopIteration) as error:
            raise _RetryError("the list of models cannot be read") from error
        adapter, model = self.identity.adapter, self.identity.model
        if adapter and adapter not in entries:
            raise EngineError(
                f"the server does not serve the adapter {adapter!r}; it serves {', '.join(entries)}",
                retryable=False,
                hint=f"start it with --enable-lora --lora-modules {adapter}=FOLDER, or unset CONCORD_ADAPTER",
            )
        return adapter or next((name for name, root in entries.items() if model in (name, root)), first)


def _failure(response: httpx.Response) -> Exception:
    """What a status means: another try, a server that is not ours to use, or a request that is wrong."""
    message = f"HTTP {response.status_code}: {_said(response)}"
    if response.status_code == 429:
        return _BusyError(message, _retry_after(response))
    if response.status_code >= 500 or response.status_code in (408, 425):
        return _RetryError(message, _retry_after(response))
    if response.status_code in (401, 403):
        return _NotOursError(message, "set CONCORD_VLLM_KEY to the server's --api-key")
    if response.is_redirect or response.status_code in (404, 405):
        return _NotOursError(message, "CONCORD_VLLM_URLS must name vLLM servers that serve this model")
    return EngineError(message, retryable=False)


def _said(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return response.text[:200] or response.reason_phrase


def _retry_after(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0  # a date; the usual pause will do


def _completion(choice: dict[str, Any], prompt_tokens: int, tokenizer: Tokenizer) -> Completion:
    finish = choice.get("finish_reason")
    if finish not in ("stop", "length"):
        raise _RetryError(f"the server ended the completion with {finish!r}")
    tokens = _tokens(choice, tokenizer)
    if finish == "stop" and (not tokens or tokens[-1].data):
        raise EngineError(
            "the server leaves out the end token",
            retryable=False,
            hint="the engine was tested with vLLM 0.32; other versions may report log-probabilities differently",
        )
    return Completion(tokens, finish, prompt_tokens)


def _tokens(choice: dict[str, Any], tokenizer: Tokenizer) -> tuple[Token, ...]:
    """vLLM lists every sampled token in logprobs, the end token too, although its text leaves that one out."""
    try:
        logprobs = choice["logprobs"]
        names, values, tops = logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"]
        return tuple(
            Token(tokenizer.data(_id(name)), min(0.0, float(value)), _top(name, top, tokenizer))
            for name, value, top in zip(names, values, tops, strict=True)
        )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise _RetryError(f"the log-probabilities cannot be read: {error!r}") from error


def _top(chosen: str, top: dict[str, float], tokenizer: Tokenizer) -> tuple[tuple[bytes, float], ...]:
    allowed = [(name, value) for name, value in top.items() if value > FORBIDDEN]
    allowed.sort(key=lambda pair: (-pair[1], pair[0] != chosen))  # the chosen one first among equals
    return tuple((tokenizer.data(_id(name)), min(0.0, value)) for name, value in allowed[:TOP])


def _id(name: str) -> int:
    return int(name.removeprefix("token_id:"))


def prove_constraint(choice: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Raise EngineError unless the answer to CANARY shows what every label depends on."""
    if not re.fullmatch(CANARY_PATTERN, str(choice.get("text"))):
        raise EngineError(
            "the server ignores the grammar",
            retryable=False,
            hint=f"start it with {SERVER_FLAGS}",
        )
    answer = _completion(choice, 0, tokenizer)
    if not re.fullmatch(CANARY_PATTERN, answer.text):
        raise EngineError(
            "the server's tokenizer is not the one of this model",
            retryable=False,
            hint="CONCORD_MODEL must name the model that the server serves",
        )
    # The canary begins with "z" or "zq" and nothing else, so after the mask these two share all of the probability.
    if abs(sum(math.exp(value) for _, value in answer.tokens[0].top) - 1) > 1e-2:
        raise EngineError(
            "the server's log-probabilities are not those after the grammar's mask",
            retryable=False,
            hint="start it with --logprobs-mode raw_logprobs (the default) and without speculative decoding",
        )


def _no_server(servers: Sequence[_Server], retryable: bool) -> EngineError:
    reasons = "; ".join(f"{server.url}: {server.refusal or 'not checked yet'}" for server in servers)
    hint = next((server.refusal.hint for server in servers if server.refusal and server.refusal.hint), "")
    return EngineError(
        f"no vLLM server can be used. {reasons}",
        retryable=retryable,
        hint=hint or "start a vLLM server (`make vllm` runs one on this machine) and look at its log",
    )


def _tokenizer(model: str | Path, settings: Settings) -> Tokenizer:
    try:
        return Tokenizer(model, settings.revision)
    except OSError as error:
        raise EngineError(
            f"the tokenizer of {str(model)!r} cannot be read: {error}",
            retryable=False,
            hint="CONCORD_MODEL must name the model that the server serves: a folder, or a name of the hub",
        ) from error
