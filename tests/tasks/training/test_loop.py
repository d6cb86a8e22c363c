"""The training loop, against transformers' own loss and schedule, and against itself cut up differently."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from tasks.data.examples import Example
from tasks.methods.build import attached, fresh_adapter
from tasks.specs import AdapterSpec, BaseSpec, MethodSpec
from tasks.training import loop, part
from tasks.training.base import Base, load_base
from tasks.training.curve import Look, Step
from tasks.training.encoding import collate, encode
from tasks.training.loop import Progress, Trained, train_adapter
from tasks.training.losses import answer_logits_of, summed_loss, validation_loss, validation_reading
from tasks.training.part import Part, alone, gradients
from tasks.training.state import RunState

LABELS = ("card", "loan", "theft")
KINDS = [("generation", "tiny_base"), ("classification", "tiny_base"), ("classification", "tiny_encoder")]
WEIGHTS = "adapter_model.safetensors"
Make = Callable[..., Any]


def base_of(folder: Path, kind: str = "generation", **spec: Any) -> Base:
    return load_base(BaseSpec(model=str(folder), **spec), kind=kind, labels=LABELS if kind == "classification" else ())


def base_for(spec: AdapterSpec) -> Base:
    return load_base(spec.base, kind=spec.kind, labels=spec.data.labels if spec.kind == "classification" else ())


def run(spec: AdapterSpec, rows: Sequence[Example], folder: Path, **others: Any) -> Trained:
    return train_adapter(base_for(spec), spec, rows, others.pop("validation", rows[:8]), folder, **others)


def losses(trained: Trained) -> list[float]:
    return [step.loss for step in trained.curve.steps]


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([tensor.flatten() for _, tensor in sorted(load_file(folder / WEIGHTS).items())])


@pytest.mark.parametrize(("kind", "which"), KINDS)
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_a_batch_cut_into_pieces_has_the_same_gradient(
    kind: str, which: str, micro_batch: int, request: pytest.FixtureRequest, make_rows: Make
) -> None:
    base = base_of(request.getfixturevalue(which), kind, quantization="none")
    rows = encode(base, make_rows(kind, 8))
    found = []
    for micro in (None, micro_batch):
        with fresh_adapter(base, MethodSpec(rank=4, dropout=0), seed=0) as model:
            for name, parameter in model.named_parameters():
                if "lora_B" in name:  # B starts at zero, where A has no gradient yet
                    parameter.data.normal_(std=0.05, generator=torch.Generator().manual_seed(1))
            answer = answer_logits_of(base, model, rows[:2])
            model.eval()  # an encoder has dropout of its own
            loss, seen, _ = alone(gradients(Part.of(base, model, answer, rows, RunState()), micro, lambda: False))
            grads = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
            found.append((loss, seen, torch.cat(grads)))
    (loss, seen, whole), (again, seen_again, pieces) = found
    assert again == pytest.approx(loss, rel=1e-5)
    assert seen == seen_again
    assert whole.norm() > 0
    assert (pieces - whole).norm() < 1e-5 * whole.norm()


def test_a_run_in_micro_batches_learns_the_same(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    rows = make_rows("generation", 40)
    whole = run(make_spec("generation", tiny_base, quantization="none"), rows, tmp_path / "whole")
    pieces = run(make_spec("generation", tiny_base, quantization="none", micro_batch=3), rows, tmp_path / "pieces")
    assert losses(pieces) == pytest.approx(losses(whole), rel=1e-3)
    assert weights(tmp_path / "pieces") == pytest.approx(weights(tmp_path / "whole"), abs=2e-3)


@pytest.mark.parametrize(("kind", "which"), KINDS)
def test_the_loss_is_the_one_that_transformers_computes(
    kind: str, which: str, request: pytest.FixtureRequest, make_rows: Make
) -> None:
    base = base_of(request.getfixturevalue(which), kind)
    rows = encode(base, make_rows(kind, 13))
    answer = answer_logits_of(base, base.model, rows[:2])
    inputs, labels = collate(base, rows)
    if kind == "generation":  # transformers shifts by itself: labels are the tokens, -100 on prompt and padding
        labels = inputs["input_ids"].clone()
        labels[inputs["attention_mask"] == 0] = -100
        for i, row in enumerate(rows):
            labels[i, : len(row.prompt)] = -100
    with torch.no_grad():
        witness = float(base.model(**inputs, labels=labels).loss)
        loss, learned = summed_loss(base, answer, *collate(base, rows))
    assert float(loss) / learned == pytest.approx(witness, rel=1e-5)
    assert validation_loss(base, base.model, answer, rows) == pytest.approx(witness, rel=1e-5)


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_the_short_way_to_the_learned_positions_gives_the_models_own_logits(
    tiny_base: Path, quantization: str, make_rows: Make
) -> None:
    base = base_of(tiny_base, quantization=quantization)
    rows = encode(base, make_rows("generation", 9))
    inputs, labels = collate(base, rows)
    where = labels >= 0
    with fresh_adapter(base, MethodSpec(rank=4, dropout=0), seed=0) as model, torch.no_grad():
        answer = answer_logits_of(base, model, rows[:2])
        assert answer.__name__ == "short_way"
        assert torch.allclose(answer(inputs, where), model(**inputs).logits[where], atol=1e-5)


def test_a_model_that_caps_its_logits_goes_the_long_way(tiny_base: Path, make_rows: Make) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16, "vocab_size": 300}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        capped = Gemma2ForCausalLM(Gemma2Config(num_attention_heads=2, num_key_value_heads=1, **sizes)).eval()
    base = replace(base_of(tiny_base, quantization="none"), model=capped)
    rows = encode(base, make_rows("generation", 6))
    inputs, labels = collate(base, rows)
    answer = answer_logits_of(base, capped, rows[:2])
    capped.get_output_embeddings().weight.data.mul_(500)  # as training may: now the cap of 30 is felt
    with torch.no_grad():
        own = capped(**inputs).logits[labels >= 0]
        assert own.abs().max() > 20
        assert torch.allclose(answer(inputs, labels >= 0), own, atol=1e-5)


@pytest.mark.parametrize(("kind", "which"), KINDS)
def test_the_best_look_is_what_is_written(
    kind: str, which: str, request: Any, tmp_path: Path, make_rows: Make, make_spec: Make, good_run: Trained
) -> None:
    folder = request.getfixturevalue(which)
    start = good_run.folder if kind == "generation" else None  # the random base has nothing to lose
    peak = 0.5 if start else 1.0  # the rate rises to it, until all is ruined
    spec = make_spec(
        kind, folder, steps=32, validations=16, learning_rate=peak, warmup=1.0, head_rate=1.0, max_grad_norm=1e9
    )
    held_out = make_rows(kind, 24, 1)
    trained = run(spec, make_rows(kind, 24), tmp_path, validation=held_out, start=start)
    looks, best = trained.curve.looks, trained.curve.best
    assert best is not None
    assert best.loss == min(look.loss for look in looks)
    assert best.step < looks[-1].step, "the last look is the best: this run shows nothing"
    base = base_for(spec)
    rows = encode(base, held_out)
    with attached(base, tmp_path) as model:
        found = validation_loss(base, model, answer_logits_of(base, model, rows[:2]), rows)
    assert found == pytest.approx(best.loss, rel=1e-4)


def test_a_loss_that_is_no_number_ends_the_run_with_the_best_adapter(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = part.backward, count(1)
    monkeypatch.setattr(part, "backward", lambda asked: math.nan if next(calls) == 7 else whole(asked))
    spec = make_spec("generation", tiny_base, steps=12, validations=4)
    trained = run(spec, make_rows("generation", 24), tmp_path)
    assert len(trained.curve.steps) == 7
    assert math.isnan(losses(trained)[-1])
    assert [look.step for look in trained.curve.looks] == [3, 6]
    assert trained.curve.planned_steps == 12
    assert torch.isfinite(weights(tmp_path)).all()
    assert weights(tmp_path).abs().max() > 0


@pytest.mark.parametrize(("kind", "which"), KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputing_activations_changes_nothing_but_memory(
    kind: str, which: str, dropout: float, request: Any, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    folder, rows, method = request.getfixturevalue(which), make_rows(kind, 16), MethodSpec(rank=4, dropout=dropout)
    asked = {"method": method, "steps": 3, "quantization": "none"}
    plain = run(make_spec(kind, folder, **asked), rows, tmp_path / "plain")
    again = run(make_spec(kind, folder, gradient_checkpointing=True, **asked), rows, tmp_path / "again")
    assert losses(again) == pytest.approx(losses(plain), rel=1e-4)
    norms = [[step.grad_norm for step in trained.curve.steps] for trained in (plain, again)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    assert not base_of(folder, kind, quantization="none").model.is_gradient_checkpointing


def test_activations_are_really_recomputed(tiny_base: Path, make_rows: Make, make_spec: Make, tmp_path: Path) -> None:
    base, passes = base_of(tiny_base, quantization="none"), {}
    for checkpointing in (False, True):
        calls: list[int] = []
        hook = base.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        spec = make_spec("generation", tiny_base, quantization="none", steps=2, gradient_checkpointing=checkpointing)
        run(spec, make_rows("generation", 16), tmp_path, validation=[])
        hook.remove()
        passes[checkpointing] = len(calls)
    assert passes[True] == passes[False] + 2  # one more forward pass per step


@pytest.mark.parametrize(("kind", "which"), [("generation", "tiny_base"), ("classification", "exact_encoder")])
def test_both_compute_types_train_and_agree(
    kind: str, which: str, request: pytest.FixtureRequest, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    """Without dropout, which is drawn for padding too, of which 16 bit has more; later steps compound the rounding."""
    folder, rows, exact = request.getfixturevalue(which), make_rows(kind, 48), MethodSpec(rank=4, dropout=0.0)
    full, half = (
        run(make_spec(kind, folder, compute_dtype=dtype, method=exact), rows, tmp_path / dtype)
        for dtype in ("float32", "bfloat16")
    )
    assert losses(half)[:3] == pytest.approx(losses(full)[:3], rel=0.1)
    assert losses(half) != losses(full)
    for dtype in ("float32", "bfloat16"):
        assert {tensor.dtype for tensor in load_file(tmp_path / dtype / WEIGHTS).values()} == {torch.float32}


def test_every_row_is_seen_once_per_epoch(tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make) -> None:
    rows = make_rows("generation", 21)
    spec = make_spec("generation", tiny_base, steps=None, epochs=2, batch_size=8)
    trained = run(spec, rows, tmp_path)
    encoded = encode(base_for(spec), rows)
    assert len(trained.curve.steps) == 2 * math.ceil(21 / 8)
    assert sum(step.tokens for step in trained.curve.steps) == 2 * sum(row.length for row in encoded)


def test_a_batch_larger_than_the_data_is_the_data(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    spec = make_spec("generation", tiny_base, steps=None, epochs=3, batch_size=4096)
    trained = run(spec, make_rows("generation", 10), tmp_path)
    assert len(trained.curve.steps) == 3
    assert len({step.tokens for step in trained.curve.steps}) == 1


def test_everything_that_happens_is_told_as_it_happens(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    steps: list[Step] = []
    looks: list[Look] = []
    progress: list[Progress] = []
    ticks = count()
    spec = make_spec("generation", tiny_base, steps=6, validations=3)
    trained = run(
        spec,
        make_rows("generation", 24),
        tmp_path,
        on_step=steps.append,
        on_look=looks.append,
        on_progress=progress.append,
        clock=lambda: float(next(ticks)),
    )
    assert tuple(steps) == trained.curve.steps
    assert tuple(looks) == trained.curve.looks
    assert [look.step for look in looks] == [2, 4, 6]
    assert [(p.step, p.steps) for p in progress] == [(i, 6) for i in range(1, 7)]
    assert progress[-1].seconds_left == 0
    assert all(later.seconds_left <= earlier.seconds_left for earlier, later in pairwise(progress))
    assert [step.seconds for step in steps] == sorted(step.seconds for step in steps)
    assert trained.seconds >= steps[-1].seconds
    assert trained.tokens_per_second == pytest.approx(sum(step.tokens for step in steps) / trained.seconds)


def test_the_loss_before_the_first_step_is_that_of_the_untouched_base(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    spec, held_out = make_spec("generation", tiny_base, steps=1), make_rows("generation", 24, 1)
    trained = run(spec, make_rows("generation", 16), tmp_path, validation=held_out)
    base = base_for(spec)
    rows = encode(base, held_out)
    alone = validation_loss(base, base.model, answer_logits_of(base, base.model, rows[:2]), rows)
    assert trained.curve.start_loss == pytest.approx(alone, rel=1e-6)


def test_a_look_that_is_no_number_is_never_the_best(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = iter([2.0, math.nan, 1.5, 1.8, math.nan])  # the first is before training
    snapshots: list[torch.Tensor] = []

    def look(base: Base, model: Any, answer: Any, *rest: Any) -> tuple[float, int, int]:
        trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        snapshots.append(torch.cat([p.detach().flatten() for _, p in sorted(trainable)]))
        return next(planted), 0, 1

    monkeypatch.setattr(loop, "validation_sums", look)
    run(make_spec("generation", tiny_base, steps=4, validations=4), make_rows("generation", 16), tmp_path)
    assert torch.equal(weights(tmp_path), snapshots[2])


def test_without_validation_rows_the_last_adapter_is_written(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    rows = make_rows("generation", 16)
    trained = run(make_spec("generation", tiny_base, steps=3), rows, tmp_path, validation=[])
    assert trained.curve.looks == ()
    assert trained.curve.best is None
    assert weights(tmp_path).abs().max() > 0


@pytest.mark.parametrize(("kind", "which"), KINDS)
def test_a_run_may_go_on_from_an_adapter(
    kind: str, which: str, request: pytest.FixtureRequest, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    folder, rows = request.getfixturevalue(which), make_rows(kind, 24)
    first = run(make_spec(kind, folder, steps=12, validations=1), rows, tmp_path / "first")
    spec = make_spec(kind, folder, steps=1, validations=1, learning_rate=1e-12)
    run(spec, rows, tmp_path / "second", start=tmp_path / "first")
    assert weights(tmp_path / "second") == pytest.approx(weights(tmp_path / "first"), abs=1e-9)
    assert first.trainable_parameters == len(weights(tmp_path / "first"))


def test_training_leaves_the_callers_chance_alone(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    spec = make_spec("generation", tiny_base, method=MethodSpec(dropout=0.5), steps=2)
    run(spec, make_rows("generation", 16), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_drawn_from_the_seed(tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make) -> None:
    rows, drawn = make_rows("generation", 12), {}
    for dropout in (0.0, 0.6):
        method, start = MethodSpec(rank=4, dropout=dropout), tmp_path / f"start {dropout}"
        spec = make_spec("generation", tiny_base, method=method, steps=20, batch_size=12, learning_rate=0.02)
        run(spec, rows, start, validation=[])
        for seed in (1, 2):  # one adapter, one batch of all rows: nothing but dropout is left to chance
            spec = make_spec("generation", tiny_base, method=method, steps=1, batch_size=12, seed=seed)
            drawn[dropout, seed] = losses(run(spec, rows, tmp_path / "out", validation=[], start=start))
    assert drawn[0.0, 1] == pytest.approx(drawn[0.0, 2], rel=1e-4)
    assert drawn[0.6, 1] != pytest.approx(drawn[0.6, 2], rel=1e-3)


def test_the_peak_is_that_of_this_process(tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make) -> None:
    spec, rows = make_spec("generation", tiny_base, steps=1), make_rows("generation", 8)
    before = run(spec, rows, tmp_path).peak_bytes
    block = torch.ones(before, dtype=torch.uint8)  # as much again as the process ever held
    after = run(spec, rows, tmp_path).peak_bytes
    assert 100 << 20 < before < after < before + block.numel() + (256 << 20)


def test_the_summed_loss_is_a_sum(tiny_base: Path, make_rows: Make) -> None:
    base = base_of(tiny_base)
    rows = encode(base, make_rows("generation", 5))
    answer = answer_logits_of(base, base.model, rows[:2])
    with torch.no_grad():
        together, learned = summed_loss(base, answer, *collate(base, rows))
        alone = 0.0
        for row in rows:  # one row, one position at a time
            logits = base.model(torch.tensor([row.prompt + row.target])).logits[0]
            for t, token in enumerate(row.target):
                alone += float(F.cross_entropy(logits[len(row.prompt) + t - 1], torch.tensor(token)))
    assert float(together) == pytest.approx(alone, rel=1e-4)
    assert learned == sum(len(row.target) for row in rows)


@pytest.mark.parametrize(("kind", "which"), KINDS)
def test_the_score_of_a_look_is_the_share_of_likeliest_answers_that_are_right(
    kind: str, which: str, make_rows: Make, request: pytest.FixtureRequest
) -> None:
    base = base_of(request.getfixturevalue(which), kind)
    rows, right, count = encode(base, make_rows(kind, 70)), 0, 0
    loss, score = validation_reading(base, base.model, answer_logits_of(base, base.model, rows[:2]), rows)
    with torch.no_grad():
        for row in rows:  # one at a time
            logits = base.model(torch.tensor([row.prompt + (row.target if kind == "generation" else ())])).logits[0]
            said = logits[len(row.prompt) - 1 : -1] if kind == "generation" else logits[None]
            right += int((said.argmax(-1) == torch.tensor(row.target)).sum())
            count += len(row.target)
    assert score == pytest.approx(right / count, abs=1.5 / count)  # bfloat16 may turn a tie
    assert loss == validation_loss(base, base.model, answer_logits_of(base, base.model, rows[:2]), rows)
