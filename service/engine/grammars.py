"""Whether a grammar can be used, asked before any engine meets it."""

from __future__ import annotations

from llguidance import LLMatcher

MAX_RULES = 1500  # lines; a chain of 2,700 rules overflows the C stack of llguidance 1.7 and 1.9, and the process dies


def too_long(grammar: str) -> str:
    """Why the grammar must not even be compiled; empty where it may."""
    return f"it has more than {MAX_RULES} rules" if grammar.count("\n") >= MAX_RULES else ""


def grammar_error(grammar: str) -> str:
    """Why a grammar cannot be used; empty where it can. Takes 5 ms for 100 rules, 35 ms for 2,000, without the GIL."""
    return too_long(grammar) or LLMatcher.validate_grammar(grammar)
