"""The embedded engine: a transformers model in this process, on a CPU, with a grammar for every text.

What makes it fast on two cores, in order of effect:
- Each processor has a lane of its own, a thread with its own rows; they share the weights and one queue.
- Rows are batched continuously: a finished text leaves and the next one enters between two steps, and the
  first tokens of new texts are computed in the same pass as the next tokens of those under way. Nothing is
  padded in the linear layers: the tokens of all rows are laid end to end.
- The beginning that the prompts share (instructions, label lists) is computed once and attended to by all rows.
- Weights are laid out once for the processor's matrix library.
- The grammar's mask is known before the logits, so the output layer is applied to the allowed tokens alone.
None of it changes a number but by rounding: attention is over the same keys, the softmax over the same tokens.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import llguidance
import llguidance.numpy
import numpy as np
import outlines
import torch
from numpy.typing import NDArray
from outlines.backends.llguidance import LLGuidanceBackend
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from service.engine import CANARY, CANARY_PATTERN, TOP, Completion, Identity, Request, Token
from service.engine.attention import Pass, Prefix, attend, groups_of
from service.engine.embedded import adapter_folder, fingerprint, merge, model_folder
from service.engine.grammars import too_long
from service.engine.tokenizer import Tokenizer
from service.errors import EngineError
from service.settings import Settings

LANES = 4  # threads that batch on their own, at most; more processors than that share the work within a lane
ROWS = 48  # rows of a lane; more help little and delay the first answer
POSITIONS = 12_000  # keys held for all rows of a lane together; about 0.6 GB for the embedded model
SHARED = 16  # shortest beginning worth sharing, in tokens
PREFIXES = 8  # beginnings kept

Answer = Completion | EngineError


class Transformers:
    def __init__(self, settings: Settings) -> None:
        processors = settings.threads or os.cpu_count() or 1
        lanes = min(LANES, processors)
        torch.set_num_threads(processors // lanes)
        where = model_folder(settings)
        self.tokenizer = Tokenizer(where, settings.revision)
        adapter = None if settings.model == "embedded" else adapter_folder(settings)  # the embedded one has it merged
        model = _load(where, settings.revision, adapter)
        local = Path(where).is_dir()
        revision = fingerprint(Path(where)) if local else settings.revision or str(model.config._commit_hash)
        self.identity = Identity("transformers", settings.model, revision, fingerprint(adapter) if adapter else "")
        self.in_flight = settings.in_flight or ROWS * lanes
        self._queue = _Queue()
        rows = -(-self.in_flight // lanes)
        self._lanes = [_Lane(model, self.tokenizer, self._queue, rows) for _ in range(lanes)]

    async def complete(self, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Answer]]:
        loop = asyncio.get_running_loop()
        answers: asyncio.Queue[tuple[int, Answer]] = asyncio.Queue()
        jobs = []
        for index, request in enumerate(requests):

            def done(answer: Answer, index: int = index) -> None:
                with suppress(RuntimeError):  # the loop that asked is closed: nobody waits any more
                    loop.call_soon_threadsafe(answers.put_nowait, (index, answer))

            jobs.append(_Job(request, done))
        self._queue.submit(jobs)
        try:
            for _ in requests:
                yield await answers.get()
        finally:
            for job in jobs:
                job.cancelled = True

    async def ready(self) -> None:
        async for _, answer in self.complete([CANARY]):
            if isinstance(answer, EngineError):
                raise answer
            if not re.fullmatch(CANARY_PATTERN, answer.text):
                raise EngineError("the constraint does not bite", retryable=False, hint="reinstall llguidance")

    async def close(self) -> None:
        self._queue.close()
        for lane in self._lanes:
            await asyncio.to_thread(lane.join)


def _load(where: Path | str, revision: str, adapter: Path | None) -> PreTrainedModel:
    disable_progress_bar()
    try:
        # float32 on every processor: the same text gets the same numbers whatever else is in the batch.
        model = AutoModelForCausalLM.from_pretrained(str(where), revision=revision or "main", dtype=torch.float32)
    except OSError as error:
        raise EngineError(
            f"cannot load the model {where}: {error}", retryable=False, hint="set CONCORD_MODEL"
        ) from error
    if adapter:
        merge(model, adapter)
    AttentionInterface.register("concord", attend)
    model.set_attn_implementation("concord")
    loaded: PreTrainedModel = model.eval()
    _pack(loaded.base_model)
    gc.collect()
    gc.freeze()  # what was loaded stays: without this each collection walks through it, at 6 % of the time
    return loaded


class _Packed(torch.nn.Module):
    """A linear layer whose weight is laid out once as oneDNN wants it: 1.2 to 1.35 times as fast for some 50 tokens."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        # The operators that torch's own compiler puts in the place of a linear layer on a CPU.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return result


def _pack(model: torch.nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Linear:
                setattr(module, name, _Packed(child))


@dataclass(eq=False)
class _Job:
    """One request on its way through a lane."""

    request: Request
    done: Callable[[Answer], None]
    ids: list[int] = field(default_factory=list)
    cancelled: bool = False


@dataclass(eq=False)
class _Row:
    """One text under way. pending: tokens not yet computed; length: keys already held beyond the shared beginning."""

    job: _Job
    matcher: llguidance.LLMatcher
    pending: list[int]
    length: int = 0
    tokens: list[Token] = field(default_factory=list)


class _Queue:
    """What waits for a lane, and the beginnings that the lanes share."""

    def __init__(self) -> None:
        self._jobs: deque[_Job] = deque()
        self._signal = threading.Condition()
        self._closed = False
        self.prefixes: deque[Prefix] = deque(maxlen=PREFIXES)
        self.prefixing = threading.Lock()  # held while a beginning is computed, so that no two lanes compute the same

    def submit(self, jobs: Sequence[_Job]) -> None:
        with self._signal:
            closed = self._closed
            if not closed:
                self._jobs.extend(jobs)
                self._signal.notify_all()
        if closed:
            _answer_all(jobs, EngineError("the engine is closed", retryable=True))

    def take(self, block: bool) -> _Job | None:
        """The next job, waiting for it where block is True; None where there is none, or the engine is closed."""
        with self._signal:
            while block and not self._jobs and not self._closed:
                self._signal.wait()
            return self._jobs.popleft() if self._jobs and not self._closed else None

    def put_back(self, job: _Job) -> None:
        with self._signal:
            closed = self._closed
            if not closed:
                self._jobs.appendleft(job)
        if closed:
            _answer_all([job], EngineError("the engine is closed", retryable=True))

    def ahead(self, count: int) -> list[_Job]:
        """The next jobs, left where they are."""
        with self._signal:
            return list(islice(self._jobs, count))

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        with self._signal:
            self._closed = True
            left, self._jobs = list(self._jobs), deque()
            self._signal.notify_all()
        _answer_all(left, EngineError("the engine is closed", retryable=True))


class _Lane:
    """A thread that keeps rows under way: it admits jobs, computes a step for all rows, and hands out answers.

    Two lanes of one thread each are faster than one of two: no operation waits for the slower of two threads.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, queue: _Queue, rows: int) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._queue = queue
        config = model.config
        self._layers = int(config.num_hidden_layers)
        self._heads = int(config.num_key_value_heads)
        self._size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self._limit = int(config.max_position_embeddings)
        self._output: torch.Tensor = model.get_output_embeddings().weight
        # The tokenizer as outlines prepares it for its llguidance backend; its logits processor holds one grammar
        # for all rows and masks the whole vocabulary, so the matchers are driven here, one a row.
        wrapped = outlines.from_transformers(model, tokenizer.hf)  # type: ignore[arg-type]
        self._llg = LLGuidanceBackend(wrapped).llg_tokenizer
        self._executor = llguidance.LLExecutor(num_threads=torch.get_num_threads())
        self._capacity = rows
        self._rows: list[_Row] = []
        self._keys, self._values = self._store(0, 0)
        self._prefix: Prefix | None = None
        self._thread = threading.Thread(target=self._run, name="concord-engine", daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(timeout=30)

    def _run(self) -> None:
        with torch.inference_mode():
            while not self._queue.closed:
                self._admit()
                if self._rows:
                    try:
                        self._step()
                    except Exception as error:  # the thread must outlive whatever one step meets
                        self._fail(EngineError(f"the engine failed: {error!r}", retryable=True))
        self._fail(EngineError("the engine is closed", retryable=True))

    def _fail(self, error: EngineError) -> None:
        rows, self._rows = self._rows, []
        _answer_all([row.job for row in rows], error)

    def _admit(self) -> None:
        """Move jobs from the queue into free rows, as long as they share the beginning of the rows under way."""
        while len(self._rows) < self._capacity:
            job = self._queue.take(block=not self._rows)
            if job is None:
                return
            if job.cancelled:
                continue
            try:
                if not self._enter(job):
                    self._queue.put_back(job)
                    return  # the rows under way finish first: order is kept, and nobody starves
            except EngineError as error:
                job.done(error)
            except Exception as error:  # whatever one text does to tokenizer or grammar is its failure alone
                job.done(EngineError(f"the request cannot be run: {error!r}", retryable=False))

    def _enter(self, job: _Job) -> bool:
        """Make the job a row; False where it has to wait. Raises EngineError where it cannot be run."""
        self._encode(job)
        if len(job.ids) + job.request.max_tokens > self._limit:
            message = f"the prompt has {len(job.ids)} tokens, the model reads {self._limit} with the answer"
            raise EngineError(message, retryable=False, hint="use fewer labels or shorter definitions")
        if not self._rows:
            self._prefix = self._choose_prefix(job)
        begin = self._prefix.ids if self._prefix else ()
        if tuple(job.ids[: len(begin)]) != begin or not self._room(job, len(begin)):
            return False
        if error := too_long(job.request.grammar):
            raise EngineError(f"the grammar is not valid: {error}", retryable=False)
        matcher = llguidance.LLMatcher(self._llg, job.request.grammar, log_level=0)
        if matcher.is_error():
            raise EngineError(f"the grammar is not valid: {matcher.get_error()}", retryable=False)
        self._rows.append(_Row(job, matcher, job.ids[len(begin) :]))
        return True

    def _encode(self, job: _Job) -> None:
        if not job.ids:
            job.ids = self._tokenizer.encode(job.request.messages)

    def _room(self, job: _Job, begin: int) -> bool:
        """Make room for one more row; False when the keys of all rows together would get too many."""
        need = len(job.ids) - begin + job.request.max_tokens
        held = self._keys.shape[3]
        wide = max(held, -(-need // 64) * 64)
        if self._rows and wide * (len(self._rows) + 1) > POSITIONS:
            return False
        if not self._rows and held * self._capacity > POSITIONS and need < held:
            wide = -(-need // 64) * 64  # an outsize text has left; go back to a store of the usual width
        rows = max(1, min(self._capacity, POSITIONS // wide))
        if (rows, wide) != (self._keys.shape[1], held):
            keys, values = self._store(rows, wide)
            kept, width = len(self._rows), min(wide, held)
            keys[:, :kept, :, :width] = self._keys[:, :kept, :, :width]
            values[:, :kept, :, :width] = self._values[:, :kept, :, :width]
            self._keys, self._values = keys, values
        return True

    def _store(self, rows: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (self._layers, rows, self._heads, positions, self._size)
        return torch.zeros(shape, dtype=self._model.dtype), torch.zeros(shape, dtype=self._model.dtype)

    def _choose_prefix(self, job: _Job) -> Prefix | None:
        """The beginning that the job shares with those waiting behind it, or with one computed before.

        A job that waits alone is taken whole; the next one cuts that beginning back to what they share.
        """
        common = []
        for other in self._queue.ahead(2 * self._capacity):
            with suppress(Exception):  # what is wrong with it is said when its turn comes
                self._encode(other)
                common.append(_common(job.ids, other.ids))
        common = [length for length in common if length >= SHARED]
        shared = min([*common, len(job.ids) - 1])
        with self._queue.prefixing:
            prefixes = self._queue.prefixes
            known = max(prefixes, key=lambda prefix: _common(prefix.ids, job.ids), default=None)
            if known:
                length = min(_common(known.ids, job.ids), shared)
                # Texts that happen to begin alike must not make a new beginning, nor a stranger cut a good one short.
                if length >= max(SHARED, len(known.ids) // 2) and (not common or length >= 0.8 * shared):
                    if length < len(known.ids):
                        prefixes.remove(known)
                        known = Prefix(known.ids[:length], known.keys[:, :, :length], known.values[:, :, :length])
                        prefixes.append(known)
                    return known
            if shared < SHARED:
                return None
            prefixes.append(self._compute_prefix(job.ids[:shared]))
            return prefixes[-1]

    def _compute_prefix(self, ids: Sequence[int]) -> Prefix:
        keys, values = self._store(1, len(ids))
        self._prefix = None
        self._forward([(0, ids, 0)], keys, values)
        return Prefix(tuple(ids), keys[:, 0].clone(), values[:, 0].clone())

    def _step(self) -> None:
        """Compute the pending tokens of all rows, and each row's next token."""
        jobs = [(number, row.pending, row.length) for number, row in enumerate(self._rows)]
        hidden = self._forward(jobs, self._keys, self._values)
        for row in self._rows:
            row.length += len(row.pending)
        mask = llguidance.numpy.allocate_token_bitmask(len(self._rows), self._llg.vocab_size)
        matchers = [(row.matcher, number) for number, row in enumerate(self._rows)]
        llguidance.numpy.fill_next_token_bitmask_par(self._executor, matchers, mask)
        bits = np.unpackbits(mask.view(np.uint8), axis=1, bitorder="little")
        going = [self._advance(row, hidden[number], bits[number]) for number, row in enumerate(self._rows)]
        for number in reversed(range(len(self._rows))):
            if not going[number]:
                self._remove(number)

    def _advance(self, row: _Row, hidden: torch.Tensor, bits: NDArray[np.uint8]) -> bool:
        """Choose the row's next token among the allowed ones; False when the row is finished."""
        allowed = torch.from_numpy(np.flatnonzero(bits[: self._output.shape[0]]))
        if len(allowed) == 0:
            row.job.done(EngineError(f"the grammar allows no token: {row.matcher.get_error()}", retryable=False))
            return False
        logprobs = torch.log_softmax((self._output[allowed] @ hidden).float(), -1)
        best = torch.topk(logprobs, min(TOP, len(allowed)))
        data = [self._tokenizer.data(int(token)) for token in allowed[best.indices]]
        top = tuple(zip(data, (min(0.0, x) for x in best.values.tolist()), strict=True))
        chosen = int(allowed[best.indices[0]])
        row.tokens.append(Token(top[0][0], top[0][1], top))
        row.matcher.consume_token(chosen)
        row.pending = [chosen]
        ended = chosen in self._tokenizer.control
        if ended or len(row.tokens) >= row.job.request.max_tokens or row.job.cancelled:
            finish = "stop" if ended else "length"
            row.job.done(Completion(tuple(row.tokens), finish, len(row.job.ids)))  # type: ignore[arg-type]
            return False
        return True

    def _remove(self, number: int) -> None:
        """Take a row out; the last one moves into its place, so that the rows stay a slice of the store."""
        last = len(self._rows) - 1
        if number != last:
            length = self._rows[last].length
            self._keys[:, number, :, :length] = self._keys[:, last, :, :length]
            self._values[:, number, :, :length] = self._values[:, last, :, :length]
            self._rows[number] = self._rows[last]
        self._rows.pop()

    def _forward(
        self, jobs: Sequence[tuple[int, Sequence[int], int]], keys: torch.Tensor, values: torch.Tensor
    ) -> torch.Tensor:
        """Run (row, tokens, place of the first) through the model; the last hidden state of each, (rows, hidden)."""
        begin = len(self._prefix.ids) if self._prefix else 0
        counts = [len(ids) for _, ids, _ in jobs]
        ids = torch.tensor([token for _, tokens, _ in jobs for token in tokens])
        row = torch.repeat_interleave(torch.tensor([number for number, _, _ in jobs]), torch.tensor(counts))
        position = torch.cat([torch.arange(start, start + len(tokens)) for _, tokens, start in jobs])
        groups = groups_of(counts, [start for _, _, start in jobs])
        state = self._model.base_model(
            input_ids=ids[None],
            position_ids=(position + begin)[None],
            use_cache=False,
            concord=Pass(self._prefix, keys, values, row, position, groups),
        ).last_hidden_state[0]
        result: torch.Tensor = state[torch.tensor(counts).cumsum(0) - 1]
        return result


def _answer_all(jobs: Sequence[_Job], error: EngineError) -> None:
    for job in jobs:
        job.done(error)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the beginning that two sequences share."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
