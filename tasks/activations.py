"""What a step holds beside weights and optimiser: activations kept for the backward pass, and outputs.

Counted tensor by tensor from what autograd keeps in this project's loop (`benchmarks/memory_plan.py` measures it):
frozen linear layers keep nothing, an adapted one keeps its input (shared by those that read the same) and r columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.methods.catalogue import METHODS
from tasks.specs import AdapterSpec

ENCODERS = ("bert", "roberta", "electra", "distilbert")
LOGIT_SCALES = ("logits_scaling", "logit_scale")


@dataclass(frozen=True)
class Step:
    """Rows that are computed together, in tokens, and how.

    Attributes:
        answers: learned positions of a row; the output layer runs on those alone.
        inputs, results: in-features, out-features of all adapted modules together.
        modules: how many they are.
    """

    rows: int
    tokens: int
    answers: int
    inputs: int
    results: int
    modules: int
    on_gpu: bool
    half: bool

    @property
    def width(self) -> int:
        """Bytes of an activation."""
        return 2 if self.half else 4


def held(spec: AdapterSpec, config: Mapping[str, Any], step: Step) -> dict[str, int]:
    """Bytes by cause at the highest point of a step; a look at the validation rows takes as many rows and less."""
    width, tokens = step.width, step.rows * step.tokens
    hidden, inner, layers = _sizes(config)
    kept = _layer_bytes(config, step)
    if spec.training.gradient_checkpointing:
        activations = tokens * (kept + hidden * width * layers)
        adapters = tokens * _adapter_bytes(spec, step) // max(layers, 1)
    else:
        activations = tokens * kept * layers
        adapters = tokens * _adapter_bytes(spec, step)
    wide = width if step.on_gpu else 4
    backward = tokens * wide * (2 * inner + 4 * hidden)  # gradients of one layer's activations
    mask = 0 if step.on_gpu else step.rows * step.tokens**2 * 4  # of attention, shared by the layers
    outputs = _output_bytes(spec, config, step)
    return {"activations": activations + adapters + backward + mask, "outputs": outputs}


def _sizes(config: Mapping[str, Any]) -> tuple[int, int, int]:
    hidden = int(config["hidden_size"])
    return hidden, int(config.get("intermediate_size", 4 * hidden)), int(config["num_hidden_layers"])


def _layer_bytes(config: Mapping[str, Any], step: Step) -> int:
    """Bytes per token that one layer keeps, adapters apart. Norms and, on a CPU, attention work in float32."""
    hidden, inner, _ = _sizes(config)
    heads = int(config.get("num_attention_heads", 12))
    width, attention = step.width, 4 if not step.on_gpu else step.width
    kept = 2 * hidden * 4  # what the norms read
    kept += 4 * hidden * attention  # queries, keys, values, result
    kept += 3 * hidden * width  # what q, k, v read; what o reads; what the feed-forward part reads
    if config.get("attn_logit_softcapping"):  # no kernel caps scores; such layers norm what they give too
        kept += 2 * heads * step.tokens * 4 + 2 * hidden * 4
    if config.get("model_type") not in ENCODERS:
        return kept + 4 * inner * width  # gate, its activation, up, their product
    kept += 2 * inner * width
    kept += 2 * hidden * 4 if config.get("hidden_dropout_prob", 0.1) else 0  # two masks
    kept += 3 * heads * step.tokens * 4 if config.get("attention_probs_dropout_prob", 0.1) else 0  # no kernel drops out
    return kept


def _adapter_bytes(spec: AdapterSpec, step: Step) -> int:
    """Bytes per token that all adapters keep: r columns each, and a mask of one byte where there is dropout.

    PEFT's own layers, which a GPU and DoRA run, keep a copy of their input per module too where there is dropout or the
    products run in 16 bit; their mask is as large as the input on a CPU.
    """
    row, drops = METHODS[spec.method.name], bool(spec.method.dropout)
    if not row.is_low_rank:
        return 0
    columns = row.rank_while_training(spec.method.rank) * step.modules * step.width
    if not step.on_gpu and spec.method.name != "dora":
        return columns + step.inputs * drops
    copied = step.width if drops or step.half else 0
    if spec.method.name == "dora":  # what the base gives and what the update gives, for the magnitude's gradient
        columns += 2 * step.results * step.width
    return columns + step.inputs * (copied + drops * (1 if step.on_gpu else 4))


def _output_bytes(spec: AdapterSpec, config: Mapping[str, Any], step: Step) -> int:
    """Logarithms of the shares in float32, and the gradients of these and of the logits, where something is learned."""
    if spec.kind == "classification":
        return 0
    vocabulary = step.rows * int(config.get("vocab_size", 32_000))
    whole = step.tokens * step.width
    if config.get("final_logit_softcapping"):  # at all positions: what tanh gave, and the gradients back to it
        return vocabulary * max(4 * whole, 2 * whole + 12 * step.answers)
    scaled = any(config.get(name) not in (None, 1) for name in LOGIT_SCALES)
    everywhere = scaled or METHODS[spec.method.name].not_for_classes
    return vocabulary * (step.tokens if everywhere else step.answers) * 12
