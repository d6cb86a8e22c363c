"""Scores, against real greedy generation and against one row at a time."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from tasks.data.examples import Example
from tasks.evaluation.scoring import answers, perplexities, score
from tasks.methods.build import attached
from tasks.specs import BaseSpec
from tasks.training.base import Base, load_base
from tasks.training.encoding import encode
from tasks.training.loop import Trained, train_adapter

LABELS = ("card", "loan", "theft")
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return load_base(BaseSpec(model=str(tiny_base)), kind="generation")


@pytest.fixture
def model(base: Base, good_run: Trained) -> Iterator[Any]:
    """The tiny base with an adapter that answers most rows right."""
    with attached(base, good_run.folder) as model:
        yield model


@pytest.fixture(scope="module")
def classifier(tiny_encoder: Path) -> Base:
    return load_base(BaseSpec(model=str(tiny_encoder)), kind="classification", labels=LABELS)


@pytest.fixture(scope="module")
def class_adapter(
    classifier: Base, tiny_encoder: Path, make_rows: Make, make_spec: Make, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    spec = make_spec("classification", tiny_encoder, steps=25, batch_size=16)
    train_adapter(classifier, spec, make_rows("classification", 100), make_rows("classification", 20, 1), folder)
    return folder


def greedy(base: Base, model: Any, prompt: tuple[int, ...], length: int) -> list[int]:
    """Tokens by argmax, one full forward pass each, no cache and no batch."""
    ids = list(prompt)
    for _ in range(length):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == base.end_id:
            break
    return ids[len(prompt) :]


def test_exact_match_by_one_forward_pass_is_what_greedy_decoding_writes(
    base: Base, model: Any, make_rows: Make
) -> None:
    examples = make_rows("generation", 40, 2)
    found = score(base, model, examples, "exact_match")
    written = [float(greedy(base, model, row.prompt, 8) == list(row.target)) for row in encode(base, examples)]
    assert list(found.outcomes) == written
    assert 0 < found.mean < 1, "all right or all wrong shows nothing"
    assert found.keys == tuple(example.key for example in examples)
    assert found.mean == pytest.approx(sum(written) / 40)


def test_an_answer_is_right_if_and_only_if_its_row_scores(base: Base, model: Any, make_rows: Make) -> None:
    examples = make_rows("generation", 40, 3)
    said = answers(base, model, [example.input for example in examples], max_new_tokens=8)
    scored = score(base, model, examples, "exact_match").outcomes
    assert [float(a.text == example.target) for a, example in zip(said, examples, strict=True)] == list(scored)


def test_token_accuracy_is_the_share_of_tokens_that_are_likeliest(base: Base, model: Any, make_rows: Make) -> None:
    examples = make_rows("generation", 15, 4)
    found = score(base, model, examples, "token_accuracy").outcomes
    for row, outcome in zip(encode(base, examples), found, strict=True):
        with torch.no_grad():
            said = model(torch.tensor([row.prompt + row.target])).logits[0].argmax(-1).tolist()
        hits = [said[len(row.prompt) + t - 1] == token for t, token in enumerate(row.target)]
        assert outcome == pytest.approx(sum(hits) / len(hits))
    exact = score(base, model, examples, "exact_match").outcomes
    assert [outcome == 1 for outcome in found] == [outcome == 1 for outcome in exact]


def test_accuracy_is_the_class_with_the_highest_logit(classifier: Base, class_adapter: Path, make_rows: Make) -> None:
    examples = make_rows("classification", 40, 2)
    with attached(classifier, class_adapter) as model:
        found = score(classifier, model, examples, "accuracy")
        said = answers(classifier, model, [example.input for example in examples])
        for example, outcome, answer in zip(examples, found.outcomes, said, strict=True):
            ids = torch.tensor([classifier.tokenizer(example.input)["input_ids"]])
            with torch.no_grad():
                shares = torch.softmax(model(ids, attention_mask=torch.ones_like(ids)).logits[0], -1)
            assert outcome == float(LABELS[int(shares.argmax())] == example.target)
            assert answer.text == LABELS[int(shares.argmax())]
            assert answer.confidence == pytest.approx(float(shares.max()), abs=1e-4)
    assert 1 / 3 < found.mean < 1


@pytest.mark.parametrize("which", ["generation", "classification"])
def test_the_company_and_the_order_of_a_row_do_not_change_its_outcome(
    which: str, base: Base, good_run: Trained, classifier: Base, class_adapter: Path, make_rows: Make
) -> None:
    on, folder = (base, good_run.folder) if which == "generation" else (classifier, class_adapter)
    metric = "token_accuracy" if which == "generation" else "accuracy"
    examples = make_rows(which, 30, 5)
    shuffled = Random(0).sample(examples, len(examples))
    with attached(on, folder) as model:
        together, reordered = score(on, model, examples, metric), score(on, model, shuffled, metric)
        alone = {e.key: score(on, model, [e], metric).outcomes[0] for e in examples}
    assert dict(zip(together.keys, together.outcomes, strict=True)) == alone
    assert dict(zip(reordered.keys, reordered.outcomes, strict=True)) == alone


def test_padding_on_the_left_does_not_change_an_answer(base: Base, model: Any, make_rows: Make) -> None:
    prompts = [example.input for example in make_rows("generation", 12, 6)]
    prompts += [f"{' '.join([prompts[0]] * 6)}", "ba"]  # a long one and a short one: much padding
    together = answers(base, model, prompts, max_new_tokens=6)
    alone = [answers(base, model, [prompt], max_new_tokens=6)[0] for prompt in prompts]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert [a.confidence for a in together] == pytest.approx([a.confidence for a in alone], rel=1e-3)


def test_a_confidence_is_the_geometric_mean_of_the_probabilities(base: Base, model: Any, make_rows: Make) -> None:
    for example in make_rows("generation", 5, 7):
        (said,) = answers(base, model, [example.input], max_new_tokens=6)
        (row,) = encode(base, [example])
        tokens, logs = greedy(base, model, row.prompt, 6), 0.0
        for t, token in enumerate(tokens):
            with torch.no_grad():
                logits = model(torch.tensor([[*row.prompt, *tokens[:t]]])).logits[0, -1]
            logs += float(torch.log_softmax(logits, -1)[token])
        assert said.confidence == pytest.approx(math.exp(logs / len(tokens)), rel=1e-3)
        assert said.text == base.tokenizer.decode([t for t in tokens if t != base.end_id])


def test_an_answer_ends_where_it_must(base: Base, model: Any) -> None:
    (said,) = answers(base, model, ["ba be"], max_new_tokens=1)
    assert len(base.tokenizer(said.text, add_special_tokens=False)["input_ids"]) <= 1


def test_what_a_base_wishes_for_its_samples_does_not_touch_an_answer(
    tiny_base: Path, base: Base, model: Any, good_run: Trained, tmp_path: Path, make_rows: Make
) -> None:
    from transformers import GenerationConfig

    folder = Path(shutil.copytree(tiny_base, tmp_path / tiny_base.name))
    wishes = {"repetition_penalty": 5.0, "num_beams": 3, "do_sample": True, "temperature": 2.0, "min_new_tokens": 6}
    GenerationConfig(eos_token_id=2, pad_token_id=0, **wishes).save_pretrained(folder)
    wishful = load_base(BaseSpec(model=str(folder)), kind="generation")
    prompts = [example.input for example in make_rows("generation", 6, 8)]
    with attached(wishful, good_run.folder) as other:
        assert answers(wishful, other, prompts) == answers(base, model, prompts)


def test_nothing_asked_is_nothing_answered(base: Base) -> None:
    assert answers(base, base.model, []) == []
    found = score(base, base.model, [], "exact_match")
    assert (found.n, found.mean, found.outcomes) == (0, 0.0, ())


def test_a_score_counts_every_row(base: Base, make_rows: Make) -> None:
    examples: list[Example] = make_rows("generation", 70, 9)  # more than one batch
    found = score(base, base.model, examples, "token_accuracy")
    assert (found.n, len(found.keys)) == (70, 70)
    assert found.mean == pytest.approx(sum(found.outcomes) / 70)


def test_an_entropy_is_that_of_the_distributions_from_which_the_answer_was_taken(
    base: Base, model: Any, classifier: Base, class_adapter: Path, make_rows: Make
) -> None:
    for example in make_rows("generation", 4, 8):
        (said,) = answers(base, model, [example.input], max_new_tokens=6)
        (row,) = encode(base, [example])
        ids, found = list(row.prompt), []
        for token in greedy(base, model, row.prompt, 6):
            with torch.no_grad():
                chances = torch.softmax(model(torch.tensor([ids])).logits[0, -1], -1).tolist()
            found.append(-sum(p * math.log(p) for p in chances if p > 0))
            ids.append(token)
        assert said.entropy == pytest.approx(sum(found) / len(found), rel=1e-3)
    with attached(classifier, class_adapter) as sorts:
        (said,) = answers(classifier, sorts, [make_rows("classification", 1, 8)[0].input])
    assert 0 < said.entropy < math.log(len(LABELS))
    assert (
        said.entropy
        < -said.confidence * math.log(said.confidence)
        + (1 - said.confidence) * math.log(2 / (1 - said.confidence))
        + 1e-4
    )  # the most that is left open where the others share the rest


def test_a_perplexity_is_the_exponential_of_the_loss_that_the_model_itself_states(
    base: Base, model: Any, make_rows: Make
) -> None:
    texts = [example.input for example in make_rows("generation", 6, 9)] + ["ba be bi " * 9]
    for text, found in zip(texts, perplexities(base, model, texts), strict=True):
        ids = torch.tensor([encode(base, [Example("0", text, "", 0)])[0].prompt])
        with torch.no_grad():
            loss = float(model(input_ids=ids, labels=ids).loss)
        assert found == pytest.approx(math.exp(loss), rel=1e-3)
    assert perplexities(base, model, [""])[0] is None
