"""Tiny random bases and adapters, made with transformers and PEFT so that the room's reading is tested against
theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

torch.set_num_threads(1)


def new_model(config: Any, kind: str, seed: int = 0) -> Any:
    import transformers

    torch.manual_seed(seed)
    model_of: Any = transformers.AutoModelForCausalLM
    if kind == "classification":
        model_of = transformers.AutoModelForSequenceClassification
    return model_of.from_config(config).eval()


class SecondDevice(TorchDispatchMode):
    """`meta` as a GPU that is not there: it computes shapes alone, is read as zeros, and as a GPU it refuses to compute
    with tensors that lie in the machine's own memory, scalars and indexes apart."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten, tensors = torch.ops.aten, [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        to = (kwargs or {}).get("device")
        read = func is aten._local_scalar_dense.default or (func is aten._to_copy.default and to == torch.device("cpu"))
        if read and tensors[0].is_meta:
            zeros = torch.zeros(tensors[0].shape, dtype=(kwargs or {}).get("dtype") or tensors[0].dtype)
            return zeros.item() if func is aten._local_scalar_dense.default else zeros
        mixed = len({tensor.device for tensor in tensors if tensor.dim()}) > 1
        assert not mixed or func in (aten.copy_.default, aten.index.Tensor), f"{func} of tensors on two devices"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def elsewhere() -> Iterator[Callable[[Any], Any]]:
    """Take a base to a second device, as `load_base` does where there is a GPU, and hold that device's rules."""
    with SecondDevice():
        yield lambda base: replace(base, model=base.model.to("meta"), device=torch.device("meta"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with biases on its attention projections, float32."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attention_bias=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    folder = tmp_path_factory.mktemp("llama")
    model = new_model(config, "generation")
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


def loaded(folder: Path, kind: str, labels: int = 3, **arguments: Any) -> Any:
    import transformers

    torch.manual_seed(99)  # a fresh head is drawn
    if kind == "classification":
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=labels, **arguments
        ).eval()
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **arguments).eval()


def random_adapter(model: Any, seed: int, size: float = 0.2, **settings: Any) -> Any:
    """The model with an adapter whose every weight is random: B, DoRA's magnitudes and biases too."""
    import peft

    torch.manual_seed(seed)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings})
    adapted = peft.get_peft_model(model, config).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            torch.nn.init.normal_(parameter, std=size)
        elif "magnitude" in name:
            parameter.data *= 1 + 0.3 * torch.rand_like(parameter)
        elif "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=size)
    return adapted


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Callable[..., Path]:
    """Write a random adapter of the Llama and return its folder; the same one for the same settings."""
    written: dict[str, Path] = {}

    def make(seed: int, **settings: Any) -> Path:
        name = f"{seed} {settings}"
        if name not in written:
            written[name] = tmp_path_factory.mktemp("adapter")
            model = random_adapter(loaded(llama, "generation"), seed, task_type="CAUSAL_LM", **settings)
            model.save_pretrained(written[name])
        return written[name]

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    """(batch, time) token ids."""
    return torch.randint(3, 48, (4, 12), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def tiny() -> Any:
    """The builders of this file, for tests that need models of their own."""

    class Builders:
        model = staticmethod(new_model)
        loaded = staticmethod(loaded)
        random_adapter = staticmethod(random_adapter)

    return Builders
