from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks.drift.embedding import embedded, points_of
from tasks.drift.nearness import NEIGHBOURS, OUTSIDE, distances, foreign_chances, scope_of


def test_a_point_is_the_mean_of_the_last_states_whatever_else_is_in_the_batch(
    tiny_encoder: Path, made_up_words: list[str]
) -> None:
    """The witness asks one text at a time, without padding."""
    from transformers import AutoModel, AutoTokenizer

    texts = [" ".join(made_up_words[n : n + 1 + n % 7]) for n in range(30)]
    points = embedded(texts, tiny_encoder, threads=1)
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_encoder), AutoModel.from_pretrained(tiny_encoder).eval()
    for text, point in zip(texts, points, strict=True):
        with torch.no_grad():
            mean = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].mean(0).numpy()
        assert point == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_no_text_is_no_point(tiny_encoder: Path) -> None:
    assert len(embedded([], tiny_encoder, threads=1)) == 0


def test_a_loaded_base_places_texts_as_its_files_do(tiny_encoder: Path, made_up_words: list[str]) -> None:
    from tasks.specs import BaseSpec
    from tasks.training.base import load_base

    spec = BaseSpec(model=str(tiny_encoder), quantization="none", compute_dtype="float32")
    base: Any = load_base(spec, kind="classification", labels=("a", "b"), device="cpu")
    texts = made_up_words[:9]
    assert points_of(base, texts) == pytest.approx(embedded(texts, tiny_encoder, threads=1), abs=1e-5)


def cloud(seed: int, rows: int, *, centre: int = 0) -> np.ndarray:
    points = 0.3 * np.random.default_rng(seed).standard_normal((rows, 16)) + 2 * np.eye(16)[centre]
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def test_the_distance_is_that_of_the_fifth_nearest_and_leaves_a_row_itself_out() -> None:
    points, asked = cloud(0, 60), cloud(1, 7)
    for row, found in zip(asked, distances(asked, points), strict=True):
        assert found == pytest.approx(sorted(1 - points @ row)[NEIGHBOURS - 1])
    for place, found in enumerate(distances(points, points, itself=True)):
        others = np.delete(points, place, axis=0)
        assert found == pytest.approx(sorted(1 - others @ points[place])[NEIGHBOURS - 1])


def test_rows_of_another_topic_are_found_by_their_share_and_alike_rows_are_not() -> None:
    reference, chances = cloud(0, 800), []
    for seed in range(1, 21):
        mixed = np.concatenate([cloud(seed, 210), cloud(100 + seed, 90, centre=3)])
        found = scope_of(reference, mixed)
        assert found.p < 1e-6
        assert found.foreign == pytest.approx(0.3, abs=0.06)
        assert found.outside[210:].all()
        chances.append(scope_of(reference, cloud(200 + seed, 300)).p)
    assert min(chances) > 0.001


def test_the_chances_of_being_foreign_add_up_to_the_foreign_rows() -> None:
    reference, chance = cloud(0, 800), np.random.default_rng(5)
    before = chance.beta(12, 2, 800)
    mixed = np.concatenate([cloud(1, 210), cloud(101, 90, centre=3)])
    now = np.concatenate([chance.beta(12, 2, 210), chance.beta(3, 3, 90)])
    assert foreign_chances(reference, mixed, before, now).sum() == pytest.approx(90, abs=15)
    quiet = foreign_chances(reference, cloud(7, 300), before, chance.beta(12, 2, 300))
    assert quiet.sum() < 300 * OUTSIDE
