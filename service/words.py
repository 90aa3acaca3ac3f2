"""Words and windows of a text: the units that a mention is made of, and the pieces that an engine reads at once.

Nothing is altered: a word is a pair of code point offsets into the text exactly as received.
"""

from __future__ import annotations

from dataclasses import dataclass

import regex

WINDOW_WORDS = 250  # the grammar has about three rules a word; at 1,000 the grammar library has died of it
WINDOW_BYTES = 1400  # a byte is a token at worst, so the prompt's length is bounded whatever the script
WORD_LENGTH = 64  # code points; longer runs (base64, a wall of combining marks) are cut into pieces

# Characters that a model may have no token for: control characters and the unassigned planes. They are in no word
# and no mention runs across them, so that the grammar never leads to a place where no token fits.
_BARRIER = r"\x00-\x08\x0B\x0C\x0E-\x1F\x7F\U00040000-\U000DFFFF"
BARRIER = regex.compile(rf"[{_BARRIER}]")
# Scripts written without spaces: each character, with its marks, is a word.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
# A word: letters, digits and underscore with their combining marks; or else one visible character as people see it
# (a grapheme cluster: an emoji with its skin tone and joiners is one).
_WORD = regex.compile(
    rf"[{_UNSPACED}]\p{{M}}*|(?:(?![{_UNSPACED}])[\p{{L}}\p{{N}}_])(?:(?![{_UNSPACED}])[\p{{L}}\p{{N}}\p{{M}}_])*|(?![\s{_BARRIER}])\X"
)
_SENTENCE_END = regex.compile(r"(?:[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]|\n)\s*")


@dataclass(frozen=True, slots=True)
class Window:
    """A piece of a text. words: (start, end) code point offsets into `text`; `offset`: where the piece starts."""

    text: str
    offset: int
    words: tuple[tuple[int, int], ...]


def split_words(text: str) -> list[tuple[int, int]]:
    """Code point offsets of the words of a text, in order, none empty, never overlapping, none over WORD_LENGTH."""
    return [
        (start, min(start + WORD_LENGTH, match.end()))
        for match in _WORD.finditer(text)
        for start in range(match.start(), match.end(), WORD_LENGTH)
    ]


def windows(text: str) -> list[Window]:
    """The text in pieces of at most WINDOW_WORDS words and WINDOW_BYTES bytes, cut after a sentence if possible.

    Every word is in exactly one piece; only white space between pieces, and around the text, is in none.
    A text without words is one empty piece.
    """
    words = split_words(text)
    ends = {match.end() for match in _SENTENCE_END.finditer(text)}
    pieces = []
    first = 0
    while first < len(words):
        last = _fill(text, words, first)
        if last < len(words):  # go back to a sentence end, but not by more than half a window
            last = next((i for i in range(last, first + (last - first) // 2, -1) if words[i][0] in ends), last)
        offset, end = words[first][0], words[last - 1][1]
        inside = tuple((start - offset, stop - offset) for start, stop in words[first:last])
        pieces.append(Window(text[offset:end], offset, inside))
        first = last
    return pieces or [Window("", 0, ())]


def _fill(text: str, words: list[tuple[int, int]], first: int) -> int:
    """Index after the last word that still fits into a window that starts with word `first`."""
    size, position = 0, words[first][0]
    for i in range(first, min(first + WINDOW_WORDS, len(words))):
        size += len(text[position : words[i][1]].encode())
        if size > WINDOW_BYTES:
            return i
        position = words[i][1]
    return min(first + WINDOW_WORDS, len(words))
