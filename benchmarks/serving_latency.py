"""What an adapter costs while it serves: the base, the merged model, and the adapter attached to the base.

    python benchmarks/serving_latency.py [--hidden 512 --layers 8 --rank 16 --rounds 15]

A random Llama in float32 and a random LoRA on all of its linear layers, on one thread. The merged model is written by
the factory's own export and read again by transformers. In every round all three do the same work, each time in another
order: read a prompt of 128 tokens, and write 32 tokens greedily, one by one. A ratio is the median over rounds of two
CPU times of the same round, with its quartiles. Merged and attached must give the same logits. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from tasks.export.model import export_model
from tasks.merging.base import open_base
from tasks.merging.plan import Parent, check_parents
from tasks.merging.stream import merged_stream

PROMPT, WRITTEN, VOCABULARY = 128, 32, 512
SAME = 1e-3  # of the adapter's largest change of a logit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        models = three_models(Path(scratch), asked.hidden, asked.layers, asked.rank)
    tokens = torch.randint(3, VOCABULARY, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    refuse_unless_alike(models, tokens)
    order = random.Random(0)
    rounds = [
        {who: seconds(models[who], tokens) for who in order.sample(sorted(models), len(models))}
        for _ in range(asked.rounds)
    ]
    results = {}
    for place, work in enumerate(("read", "write")):
        for who in ("merged", "attached"):
            ratios = [one[who][place] / one["base"][place] for one in rounds]
            low, middle, high = statistics.quantiles(ratios, n=4)
            base = statistics.median(one["base"][place] for one in rounds)
            print(f"{work}: {who} {middle:.3f} x the base's {base * 1000:.0f} ms, quartiles {low:.3f} to {high:.3f}")
            results[f"{who}_{work}_ratio"] = round(middle, 3)
    print(json.dumps({"hidden": asked.hidden, "layers": asked.layers, "rank": asked.rank, **results}))
    return 0


def three_models(folder: Path, hidden: int, layers: int, rank: int) -> dict[str, Any]:
    """The same base three times: as it is, with the adapter merged, with the adapter attached."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=2 * (PROMPT + WRITTEN),
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    loaded = transformers.AutoModelForCausalLM
    loaded.from_config(config).save_pretrained(folder / "base")
    settings: dict[str, Any] = {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear"}
    adapted = peft.get_peft_model(
        loaded.from_pretrained(folder / "base"), peft.LoraConfig(task_type="CAUSAL_LM", **settings)
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder / "adapter")
    base = open_base(folder / "base")
    plan = check_parents([Parent("one:1", "one", folder / "adapter", "base")], base)
    export_model(folder / "merged", base, merged_stream(plan, "task_arithmetic"))
    models = {who: loaded.from_pretrained(folder / who).eval() for who in ("base", "merged")}
    return {**models, "attached": adapted.eval()}


def refuse_unless_alike(models: dict[str, Any], tokens: torch.Tensor) -> None:
    """Merged and attached are one model, and not the base."""
    with torch.no_grad():
        logits = {who: model(tokens).logits for who, model in models.items()}
    change = float((logits["attached"] - logits["base"]).abs().max())
    apart = float((logits["attached"] - logits["merged"]).abs().max())
    if not change > 0 or not apart <= SAME * change:
        sys.exit(f"results differ: merged is {apart:.2g} from attached, which changes a logit by {change:.2g}")


@torch.no_grad()
def seconds(model: Any, tokens: torch.Tensor) -> tuple[float, float]:
    """CPU seconds to read the prompt, and to write the answer after it."""
    began = time.process_time()
    said = model(tokens, use_cache=True)
    read = time.process_time() - began
    began = time.process_time()
    for _ in range(WRITTEN):
        token = said.logits[:, -1:].argmax(-1)
        said = model(token, past_key_values=said.past_key_values, use_cache=True)
    return read, time.process_time() - began


if __name__ == "__main__":
    sys.exit(main())
