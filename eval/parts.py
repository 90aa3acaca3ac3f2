"""Three disjoint parts of a gold set, so that nothing is chosen and scored on the same texts, and what leaks across.

tune: worked examples are taken from it, prompts are tried on it, and confidence is fitted on it.
calibrate: a third of it tells whether a prompt is better than another; thresholds are promised on the rest (`use_of`).
test: touched by nothing but the last measure.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import regex
from datasketch import MinHash, MinHashLSH

Name = Literal["tune", "calibrate", "test"]
Use = Literal["tune", "choose", "promise", "test"]

# Calibration has the most: how small an error can be promised depends on it more than anything else does.
UPTO: tuple[tuple[Name, float], ...] = (("tune", 0.3), ("calibrate", 0.7), ("test", 1.0))
CHOOSING = 1 / 3  # of the calibrate part
SHINGLE = 5  # characters
PERMUTATIONS = 128
ALIKE = 0.7  # Jaccard similarity of shingles from which two texts are near-duplicates


@dataclass(frozen=True, slots=True)
class Leak:
    """Two texts that are nearly the same and stand in different groups. similarity: Jaccard, in [ALIKE, 1]."""

    one: str
    other: str
    groups: tuple[str, str]
    similarity: float


def part_of(text: str) -> Name:
    """The part that a text belongs to, in every gold set and every version of it.

    By a hash of what the text says: texts that differ in case, punctuation, spacing or the digits of their numbers fall
    into the same part.
    """
    digest = hashlib.sha256(canonical(text).encode()).digest()
    share = int.from_bytes(digest[:8]) / 2**64
    return next(name for name, end in UPTO if share < end)


def use_of(text: str) -> Use:
    """What a text is for: its part, where calibrate is divided into texts to choose by and texts to promise on.

    A promise on texts by which its recipe was chosen would be too good, however often the choice was made; one on the
    others is not touched by it. By another hash than `part_of`, of the same canonical form.
    """
    part = part_of(text)
    if part != "calibrate":
        return part
    digest = hashlib.sha256(f"choose:{canonical(text)}".encode()).digest()
    return "choose" if int.from_bytes(digest[:8]) / 2**64 < CHOOSING else "promise"


def canonical(text: str) -> str:
    """Letters and digits alone, folded, numbers as 0, a blank between words; the text itself where nothing is left."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = regex.findall(r"[\p{L}\p{M}]+|\p{N}+", folded)
    return " ".join("0" if regex.match(r"\p{N}", word) else word for word in words) or text


def version(records: Iterable[Mapping[str, Any]]) -> str:
    """The sha256 of what a gold set holds, whatever the order of its records and of their keys."""
    rows = sorted(json.dumps(record, sort_keys=True, ensure_ascii=False) for record in records)
    return hashlib.sha256("\n".join(rows).encode("utf-8", "surrogatepass")).hexdigest()


def leaks(groups: Mapping[str, Sequence[str]]) -> list[Leak]:
    """Near-duplicates across groups (parts, worked examples, training texts), the most alike first.

    Candidates by MinHash and banding (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section
    3.4), each then compared exactly; a pair at ALIKE is found with a probability of about 0.95, closer ones with more.
    """
    index = MinHashLSH(threshold=ALIKE - 0.15, num_perm=PERMUTATIONS)
    known: list[tuple[str, str, frozenset[str]]] = []
    found = []
    for group, texts in groups.items():
        for text in texts:
            shingles = _shingles(text)
            sketch = _sketch(shingles)
            for number in index.query(sketch):
                other, before, theirs = known[int(number)]
                alike = len(shingles & theirs) / len(shingles | theirs)
                if other != group and alike >= ALIKE:
                    found.append(Leak(before, text, (other, group), alike))
            index.insert(str(len(known)), sketch)
            known.append((group, text, shingles))
    return sorted(found, key=lambda leak: -leak.similarity)


def _shingles(text: str) -> frozenset[str]:
    plain = canonical(text)
    return frozenset(plain[i : i + SHINGLE] for i in range(max(1, len(plain) - SHINGLE + 1)))


def _sketch(shingles: frozenset[str]) -> MinHash:
    sketch = MinHash(num_perm=PERMUTATIONS, seed=1)
    sketch.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in shingles])
    return sketch
