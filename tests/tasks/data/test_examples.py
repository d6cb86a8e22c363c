from __future__ import annotations

import doctest
import hashlib
import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.data import admission, examples, labels, reading, splits
from tasks.data.examples import VISIBLE, example_of, key_of, normalised
from tasks.data.labels import COMPARED, nearest_labels, spelt_otherwise


@pytest.mark.parametrize("module", [admission, examples, labels, reading, splits])
def test_every_documented_line_answers_as_it_says(module):
    assert doctest.testmod(module).attempted > 0
    assert doctest.testmod(module).failed == 0


@given(st.text())
def test_a_normalised_text_is_its_own_normal_form(text):
    assert normalised(normalised(text)) == normalised(text)


@given(st.text(st.characters(max_codepoint=0x17F, exclude_categories=["Cc", "Cf", "Cs"])))
def test_on_latin_text_the_key_is_the_hash_of_nfkc_folded_words(text):
    plain = " ".join(unicodedata.normalize("NFKC", text.casefold()).casefold().split())
    assert key_of(text) == hashlib.sha256(unicodedata.normalize("NFKC", plain).encode()).hexdigest()


@given(st.lists(st.text("abcxyz", min_size=1), min_size=1), st.sampled_from([" ", "\n", "\t ", "\u00a0", "\u3000"]))
def test_case_and_spacing_do_not_change_the_key(words, space):
    assert key_of(space.join(words).upper() + space) == key_of(" ".join(words))


def test_the_pattern_of_visible_text_and_the_normal_form_agree_on_every_character():
    pattern = re.compile(VISIBLE)
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    assert [one for one in characters if bool(pattern.search(one)) != bool(normalised(one))] == []


def test_a_generation_example_is_its_two_templates_filled_in(asks):
    spec = asks("/a.jsonl", prompt="{title}: {body}\n=>", completion=" {intent}")
    example = example_of(spec, {"title": "Card", "body": "{late} %s", "intent": "wait", "other": 3}, row=7)
    assert (example.input, example.target, example.row) == ("Card: {late} %s\n=>", " wait", 7)


def test_the_most_frequent_spelling_of_a_class_is_the_usual_one():
    assert spelt_otherwise(["Fee"] * 2 + ["fee"] * 3 + ["ＦＥＥ", "card"]) == {"Fee": "fee", "ＦＥＥ": "fee"}


def test_a_flood_of_wrong_labels_is_still_compared_by_spelling():
    flood = [f"nonsense {number}" for number in range(COMPARED * 5)]
    near = nearest_labels([*flood, " FEE "], ["card", "fee"])
    assert near[" FEE "] == "fee"
    assert {near[label] for label in flood} == {""}
