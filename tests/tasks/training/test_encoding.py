"""Examples as tokens: the prompt is read, the completion and its end are learned, and padding is neither."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.data.examples import Example
from tasks.specs import BaseSpec
from tasks.training.base import Base, load_base
from tasks.training.encoding import IGNORED, Encoded, collate, encode, length_grouped, prompt_tokens

LABELS = ("card", "loan", "theft")
ids = st.lists(st.integers(3, 299), min_size=1, max_size=12).map(tuple)
rows_of_tokens = st.lists(st.builds(Encoded, ids, ids), min_size=1, max_size=6)
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(BaseSpec(model=str(tiny_base), quantization="none"), kind="generation")


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Path) -> Base:
    return load_base(BaseSpec(model=str(tiny_encoder), quantization="none"), kind="classification", labels=LABELS)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows_of_tokens)
def test_a_batch_is_what_a_loop_over_tokens_says(base: Base, rows: list[Encoded]) -> None:
    inputs, labels = collate(base, rows)
    width = max(len(row.prompt) + len(row.target) for row in rows)
    for i, row in enumerate(rows):
        tokens = [*row.prompt, *row.target]
        for t in range(width):
            assert inputs["input_ids"][i, t] == (tokens[t] if t < len(tokens) else base.pad_id)
            assert inputs["attention_mask"][i, t] == (1 if t < len(tokens) else 0)
            learned = len(row.prompt) <= t + 1 < len(tokens)  # the token after t belongs to the completion
            assert labels[i, t] == (tokens[t + 1] if learned else -100)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.builds(Encoded, ids, st.integers(0, 2).map(lambda c: (c,))), min_size=1, max_size=6))
def test_a_batch_of_texts_to_classify_holds_the_texts_alone(encoder: Base, rows: list[Encoded]) -> None:
    inputs, labels = collate(encoder, rows)
    assert inputs["input_ids"].shape[1] == max(len(row.prompt) for row in rows)
    assert labels.tolist() == [row.target[0] for row in rows]
    for i, row in enumerate(rows):
        assert tuple(inputs["input_ids"][i][inputs["attention_mask"][i].bool()].tolist()) == row.prompt


def test_a_completion_is_closed_by_the_end_token_and_a_prompt_is_not(base: Base, make_rows: Make) -> None:
    examples = make_rows("generation", 20)
    for example, row in zip(examples, encode(base, examples), strict=True):
        assert row.prompt[0] == base.tokenizer.bos_token_id
        assert row.target[-1] == base.end_id
        assert base.end_id not in (*row.prompt, *row.target[:-1])
        assert base.tokenizer.decode(row.prompt[1:]) == example.input
        assert base.tokenizer.decode(row.target[:-1]) == example.target


def test_a_class_is_its_place_in_the_labels(encoder: Base, make_rows: Make) -> None:
    examples = make_rows("classification", 20)
    assert [LABELS[row.target[0]] for row in encode(encoder, examples)] == [example.target for example in examples]
    assert {row.prompt[-1] for row in encode(encoder, examples)} == {encoder.tokenizer.sep_token_id}


def test_a_tokenizer_that_closes_every_text_does_not_close_the_prompt(base: Base, tiny_base: Path) -> None:
    from tokenizers import processors
    from transformers import AutoTokenizer

    closing = AutoTokenizer.from_pretrained(tiny_base)
    specials = [("<bos>", closing.bos_token_id), ("<eos>", closing.eos_token_id)]
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=specials
    )
    assert closing("what")["input_ids"][-1] == closing.eos_token_id
    assert prompt_tokens(closing, ["what", ""])[0] == prompt_tokens(base.tokenizer, ["what"])[0]


def test_a_chat_template_makes_the_prompt_a_turn_of_the_user(tiny_base: Path) -> None:
    from transformers import AutoTokenizer

    chatty = AutoTokenizer.from_pretrained(tiny_base)
    chatty.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    (row,) = prompt_tokens(chatty, ["what is it?"])
    assert chatty.decode(row) == "<user>what is it?<assistant>"
    (row,) = prompt_tokens(chatty, ["System: be brief\nUser: what is it?\nAssistant: this\nUser: and?\nAssistant:\n"])
    assert chatty.decode(row) == "<system>be brief<user>what is it?<assistant>this<user>and?<assistant>"


def test_nothing_is_truncated(base: Base) -> None:
    long = Example("k", "ba " * 900 + "->", " card", 1)
    (row,) = encode(base, [long])
    assert base.tokenizer.decode(row.prompt[1:]) == long.input


def test_no_rows_are_no_tokens(base: Base) -> None:
    assert encode(base, []) == []
    assert prompt_tokens(base.tokenizer, []) == []


@given(st.lists(st.integers(1, 500), min_size=1, max_size=300), st.integers(1, 40), st.integers(0, 2**31))
def test_one_epoch_holds_every_row_once_in_full_batches(lengths: list[int], size: int, seed: int) -> None:
    batches = length_grouped(lengths, size, torch.Generator().manual_seed(seed))
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert sum(len(batch) < size for batch in batches) <= 1
    assert max(len(batch) for batch in batches) <= size


def padding(lengths: list[int], batches: list[list[int]]) -> int:
    """Padded places when each batch is as wide as its longest row."""
    return sum(max(lengths[other] for other in batch) - lengths[row] for batch in batches for row in batch)


@pytest.mark.parametrize("seed", range(5))
def test_grouping_by_length_computes_little_padding(seed: int) -> None:
    draw = Random(seed)
    lengths = [1 + int(draw.lognormvariate(4, 0.8)) for _ in range(2000)]
    order = draw.sample(range(2000), 2000)
    plain = padding(lengths, [order[i : i + 16] for i in range(0, 2000, 16)])
    grouped = padding(lengths, length_grouped(lengths, 16, torch.Generator().manual_seed(seed)))
    assert grouped < 0.15 * plain


def test_no_length_is_tied_to_a_place_in_the_epoch() -> None:
    lengths, firsts = list(range(1, 513)), []
    for seed in range(40):
        first = length_grouped(lengths, 8, torch.Generator().manual_seed(seed))[0]
        firsts.append(statistics.mean(lengths[row] for row in first))
    assert min(firsts) < 128
    assert max(firsts) > 384
    assert abs(statistics.mean(firsts) - 256) < 3 * 148 / 40**0.5  # a uniform draw over lengths has deviation 148


def test_the_order_of_batches_comes_from_the_generator_alone() -> None:
    lengths = [5, 9, 2, 7, 7, 1, 3, 8, 4, 6]
    one, two, other = (length_grouped(lengths, 3, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert one == two
    assert one != other


def test_labels_on_the_prompt_teach_nothing(base: Base, make_rows: Make) -> None:
    rows = encode(base, make_rows("generation", 4))
    _, labels = collate(base, rows)
    assert int((labels >= 0).sum()) == sum(len(row.target) for row in rows)
    moved = [replace(row, prompt=tuple(reversed(row.prompt))) for row in rows]
    assert torch.equal(collate(base, moved)[1], labels)


@pytest.mark.parametrize(
    ("dtype", "positions", "width"),
    [("bfloat16", 512, 16), ("float32", 512, 13), ("bfloat16", 128 + 16, 16), ("bfloat16", 128 + 15, 13)],
)
def test_in_16_bit_rows_are_padded_to_eights_as_far_as_the_base_reads(
    dtype: str, positions: int, width: int, base: Base
) -> None:
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=positions))
    base = replace(base, model=model, compute_dtype=getattr(torch, dtype))
    rows = [Encoded((1,) * 9, (2,) * 4), Encoded((1,) * 3, (2,))]
    inputs, labels = collate(base, rows)
    assert inputs["input_ids"].shape == labels.shape == (2, width)
    assert inputs["attention_mask"].sum(1).tolist() == [13, 4]
    assert (labels != IGNORED).sum(1).tolist() == [4, 1]
