"""Random adapters on the tiny bases of the whole suite, and a base with a different answer per adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)

LABELS = {"mood": ("calm", "angry", "glad"), "topic": ("billing", "delivery")}


def loaded(folder: Path, kind: str = "generation", labels: int = 2, **arguments: Any) -> Any:
    import transformers

    if kind == "classification":
        model_of: Any = transformers.AutoModelForSequenceClassification
        return model_of.from_pretrained(folder, num_labels=labels, **arguments).eval()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **arguments).eval()


def adapted(model: Any, seed: int, **settings: Any) -> Any:
    import peft

    torch.manual_seed(seed)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings})
    model = peft.get_peft_model(model, config).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> dict[str, Path]:
    """Two adapters of the tiny Llama."""
    folders = {}
    for seed, task in enumerate(("triage", "route")):
        folders[task] = tmp_path_factory.mktemp(task)
        adapted(loaded(tiny_base), seed, task_type="CAUSAL_LM").save_pretrained(folders[task])
    return folders


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Path) -> dict[str, Path]:
    """Two adapters of the tiny encoder, each with a head of its own size."""
    folders = {}
    for seed, (task, labels) in enumerate(LABELS.items()):
        folders[task] = tmp_path_factory.mktemp(task)
        settings = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier"]}
        adapted(loaded(tiny_encoder, "classification", len(labels)), seed, **settings).save_pretrained(folders[task])
    return folders


@pytest.fixture
def tokens() -> torch.Tensor:
    """(batch, time) token ids."""
    return torch.randint(5, 250, (4, 12), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="session")
def build() -> Any:
    """The builders of this file."""

    class Builders:
        loaded: Callable[..., Any] = staticmethod(loaded)
        adapted: Callable[..., Any] = staticmethod(adapted)
        labels = LABELS

    return Builders
