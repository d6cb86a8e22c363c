"""The start of a classification head, against scikit-learn's nearest centroid."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import NearestCentroid
from torch.nn import functional as F

from tasks.evaluation.scoring import score
from tasks.evaluation.yardstick import untouched
from tasks.methods.build import final_linear, fresh_adapter
from tasks.specs import BaseSpec, MethodSpec
from tasks.training.base import Base, load_base
from tasks.training.encoding import Encoded, collate, encode
from tasks.training.head import class_mean_head, start_head_from_class_means

LABELS = ("card", "loan", "theft")
Make = Callable[..., Any]


def clouds(
    seed: int, rows: int = 60, classes: int = 4, hidden: int = 8, apart: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy points around one centre per class; every class has some."""
    draw = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), draw.integers(0, classes, rows - classes)])
    x = draw.normal(size=(classes, hidden))[y] * apart + draw.normal(size=(rows, hidden)) + 3
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def features(base: Base, model: Any, rows: list[Encoded]) -> torch.Tensor:
    """What the head reads, one row at a time: no batch, no padding."""
    _, head = final_linear(model)
    read: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0].detach()))
    with torch.no_grad():
        for row in rows:
            model(**collate(base, [row])[0])
    hook.remove()
    return torch.stack([value[0, -1] if value.dim() == 3 else value[0] for value in read])


@given(st.integers(0, 10_000), st.integers(2, 7), st.floats(0.1, 5.0))
def test_the_head_is_the_nearest_centroid(seed: int, classes: int, apart: float) -> None:
    x, y = clouds(seed, classes=classes, apart=apart)
    weight, bias = class_mean_head(x, y, classes)
    new, _ = clouds(seed + 1, apart=apart)
    logits = new @ weight.T + bias
    top = logits.topk(2).values
    sure = ((top[:, 0] - top[:, 1]) > 1e-4 * logits.abs().max()).numpy()  # ties in float32 may fall either way
    witness = NearestCentroid().fit(x.numpy(), y.numpy()).predict(new.numpy())
    assert (logits.argmax(1).numpy() == witness)[sure].all()


@given(st.integers(0, 10_000), st.floats(0.01, 100.0))
def test_the_unit_of_the_features_does_not_matter(seed: int, unit: float) -> None:
    x, y = clouds(seed)
    weight, bias = class_mean_head(x, y, 4)
    scaled, shift = class_mean_head(x * unit, y, 4)
    assert torch.allclose(x @ weight.T + bias, (x * unit) @ scaled.T + shift, rtol=1e-2, atol=1e-2)


def loss_when_left_out(x: torch.Tensor, y: torch.Tensor, factor: float) -> float:
    """Mean cross entropy of nearest-centroid logits, each row judged by means that it has no part in."""
    total = 0.0
    for i in range(len(x)):
        others = torch.arange(len(x)) != i
        means = torch.stack([x[others & (y == c)].mean(0) if c == y[i] else x[y == c].mean(0) for c in range(4)])
        total += float(F.cross_entropy(-factor * (x[i] - means).pow(2).sum(1)[None] / 2, y[i : i + 1]))
    return total / len(x)


@pytest.mark.parametrize("apart", [0.3, 0.8, 2.0])
def test_the_head_is_as_sure_as_it_is_right_on_rows_that_were_left_out(apart: float) -> None:
    x, y = clouds(8, rows=60, apart=apart)
    weight, _ = class_mean_head(x, y, 4)
    means = torch.stack([x[y == c].mean(0) for c in range(4)])
    factor = float((weight[0] - weight[1]).norm() / (means[0] - means[1]).norm())
    losses = [loss_when_left_out(x, y, factor * step) for step in (0.5, 0.8, 1.25, 2.0)]
    assert loss_when_left_out(x, y, factor) < min(losses) + 1e-3


def test_where_features_say_nothing_the_head_is_not_sure() -> None:
    x, y = torch.randn(400, 32, generator=torch.Generator().manual_seed(0)), torch.arange(400) % 4
    weight, bias = class_mean_head(x, y, 4)
    fresh = torch.randn(400, 32, generator=torch.Generator().manual_seed(1))
    assert F.cross_entropy(fresh @ weight.T + bias, y) == pytest.approx(math.log(4), abs=0.02)


def test_where_classes_are_apart_the_head_is_sure_and_right() -> None:
    x, y = clouds(3, rows=400, apart=6.0)
    weight, bias = class_mean_head(x[:200], y[:200], 4)
    assert F.cross_entropy(x[200:] @ weight.T + bias, y[200:]) < 0.05


def test_the_noise_of_training_makes_the_head_less_sure() -> None:
    x, y = clouds(3, rows=400, apart=3.0)
    noisy = x[:300] + 4 * torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    calm, doubtful = class_mean_head(x, y, 4)[0], class_mean_head(x, y, 4, noisy)[0]
    assert doubtful.norm() < 0.6 * calm.norm()
    assert torch.allclose(doubtful / doubtful.norm(), calm / calm.norm(), atol=1e-5)


def test_a_class_of_one_row_or_none_leaves_the_head_finite() -> None:
    x, y = clouds(1, rows=20, classes=3)
    weight, bias = class_mean_head(x, y + 1, 6)  # class 0, 4 and 5 have no rows
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()
    alone, at = class_mean_head(x[:3], torch.arange(3), 3)
    assert torch.isfinite(alone).all()
    assert torch.isfinite(at).all()


@pytest.mark.parametrize(("which", "agreement"), [("tiny_encoder", 1.0), ("tiny_base", 0.95)])
def test_a_model_starts_as_the_nearest_centroid_of_its_own_features(
    which: str, agreement: float, request: pytest.FixtureRequest, make_rows: Make
) -> None:
    spec = BaseSpec(model=str(request.getfixturevalue(which)))
    base = load_base(spec, kind="classification", labels=LABELS)
    rows, new = (encode(base, make_rows("classification", n, seed)) for n, seed in ((180, 0), (60, 1)))
    classes = [row.target[0] for row in rows]
    with fresh_adapter(base, MethodSpec(rank=4), seed=0) as model:
        witness = NearestCentroid().fit(features(base, model, rows).numpy(), classes)
        start_head_from_class_means(base, model, rows)
        expected = witness.predict(features(base, model, new).numpy())
        inputs, _ = collate(base, new)
        model.eval()
        with torch.no_grad():
            said = model(**inputs).logits.argmax(1).numpy()
    assert (said == expected).mean() >= agreement  # a decoder's head has no bias, and reads it off the features
    assert len(set(expected)) == 3


def test_the_untouched_base_answers_as_every_adapter_starts_and_is_as_before(
    tiny_encoder: Path, make_rows: Make
) -> None:
    base = load_base(BaseSpec(model=str(tiny_encoder)), kind="classification", labels=LABELS)
    train, test = make_rows("classification", 90), make_rows("classification", 60, 1)
    before = base.model.classifier.weight.clone()
    with untouched(base, train) as model:
        alone = score(base, model, test, "accuracy")
    assert torch.equal(base.model.classifier.weight, before)
    with fresh_adapter(base, MethodSpec(rank=4), seed=0) as model:
        start_head_from_class_means(base, model, encode(base, train))
        assert score(base, model, test, "accuracy") == alone
    assert alone.mean > 0.4  # three classes: better than chance
