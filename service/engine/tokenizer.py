"""From messages to token ids and from token ids to bytes, the same for every engine.

The trust boundary runs here: only the chat template's own scaffolding may contain control tokens.
Whatever a message contains (the user's text above all, but also labels and guidelines) is tokenised with
special-token splitting, so `<|im_end|>` in a text is nine ordinary characters and never ends the turn.
"""

from __future__ import annotations

import secrets
import threading
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import llguidance.hf
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from service.engine import Message


class Tokenizer:
    def __init__(self, model: str | Path, revision: str = "") -> None:
        """model: a folder, or a model name of the hub. Raises OSError when neither can be read."""
        hf: Any = AutoTokenizer.from_pretrained(str(model), revision=revision or "main")
        self.hf: PreTrainedTokenizerFast = hf
        # Whether special tokens are split is a state of the tokenizer that every call sets: two threads at once would
        # tokenise a text as if it were trusted.
        self._splitting = threading.Lock()
        self._scaffold = lru_cache(maxsize=64)(self._render_scaffold)

    def encode(self, messages: tuple[Message, ...]) -> list[int]:
        """Token ids of the conversation, ready for the model to answer."""
        pieces = self._scaffold(tuple(message.role for message in messages))
        if len(pieces) != len(messages) + 1:  # the template has no system turn: it opens the user's
            first, second, *rest = messages
            messages = (Message("user", f"{first.content}\n\n{second.content}"), *rest)
        ids = list(pieces[0])
        for message, after in zip(messages, pieces[1:], strict=True):
            ids += self.plain(message.content) + list(after)
        return ids

    def plain(self, text: str) -> list[int]:
        """Token ids of a text, none of them a control token whatever the text holds."""
        with self._splitting:
            return list(self.hf.encode(text, add_special_tokens=False, split_special_tokens=True))

    def data(self, token: int) -> bytes:
        """The bytes a token stands for; none for the end token and other control tokens."""
        if token in self.control:
            return b""
        found = self._bytes.get(token)
        if found is None:
            found = self._bytes[token] = self.llg.decode_bytes([token])
        return found

    @cached_property
    def llg(self) -> llguidance.LLTokenizer:
        """The tokenizer as the grammar library sees it. Takes about a second to build."""
        return llguidance.hf.from_tokenizer(self.hf)

    @cached_property
    def control(self) -> frozenset[int]:
        return frozenset(self.hf.all_special_ids)

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        return {}

    def _render_scaffold(self, roles: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """The chat template around the contents, as token ids: one piece before, between and after each."""
        marks = [f"@@{secrets.token_hex(12)}@@" for _ in roles]
        turns = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        try:
            text = self._apply(turns)
        except TemplateError:
            if roles[0] != "system":
                raise
            marks = marks[1:]
            text = self._apply(turns[1:])
        pieces = []
        for mark in marks:
            before, found, text = text.partition(mark)
            if not found:
                raise ValueError("the chat template drops or alters a message")
            pieces.append(before)
        pieces.append(text)
        with self._splitting:
            return tuple(tuple(self.hf.encode(piece, add_special_tokens=False)) for piece in pieces)

    def _apply(self, turns: list[dict[str, str]]) -> str:
        # enable_thinking is read by the templates of reasoning models and ignored by all others.
        return str(
            self.hf.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        )
