"""Parts of a gold set: disjoint, stable, of the stated sizes, and honest about what leaks between them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.parts import ALIKE, leaks, part_of, version


@given(st.text(min_size=1))
def test_every_text_has_one_part_and_always_the_same(text: str) -> None:
    assert part_of(text) == part_of(text)
    assert part_of(text) in ("tune", "calibrate", "test")


def test_parts_have_their_shares() -> None:
    counts = Counter(part_of(f"{''.join(chr(97 + (n // 26**k) % 26) for k in range(4))} speaks") for n in range(20_000))
    for name, share in (("tune", 0.3), ("calibrate", 0.4), ("test", 0.3)):
        assert counts[name] / 20_000 == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize(
    "other", ["where is ORDER 77?", "Where is order 12345", "  where   is order 9!!", "Where is order ①?"]
)
def test_texts_that_say_the_same_are_never_parted(other: str) -> None:
    assert part_of(other) == part_of("Where is order 12345?")


def test_a_version_depends_on_content_and_not_on_order() -> None:
    one, two = {"text": "a", "mood": "x"}, {"mood": "y", "text": "b"}
    assert version([one, two]) == version([dict(reversed(two.items())), one])
    assert version([one, two]) != version([one, two | {"mood": "x"}])


def test_near_duplicates_across_parts_are_found_and_within_a_part_are_not_leaks() -> None:
    groups = {
        "tune": ["The delivery man threw my parcel over the fence yesterday evening.", "Completely other words here."],
        "test": [
            "the delivery man threw my parcel over the fence yesterday morning",
            "the delivery man threw my parcel over the fence yesterday morning!",
        ],
    }
    found = leaks(groups)
    assert {(leak.one, leak.other) for leak in found} == {(groups["tune"][0], text) for text in groups["test"]}
    assert all(leak.groups == ("tune", "test") and ALIKE <= leak.similarity <= 1 for leak in found)


def test_texts_without_letters_can_be_compared_too() -> None:
    (leak,) = leaks({"tune": ["😀👍🏽"], "test": ["😀👍🏽", "!!!"], "calibrate": [""]})
    assert (leak.one, leak.similarity) == ("😀👍🏽", 1.0)
