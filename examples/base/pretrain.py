"""Pretrain the embedded default base from generated text: tokenizer, training, checks, export.

    python examples/base/pretrain.py --minutes 45 --out examples/base

The time budget sets the learning-rate schedule, so the run always ends on its cool-down. A checkpoint in `--work`
every three minutes makes it resumable: the same command goes on where the last one was cut off.
"""

import argparse
import ctypes
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent))
import text

CONTEXT, VOCABULARY = 256, 1536
SPECIALS = ("<pad>", "<bos>", "<eos>")
PAD, BOS, EOS = range(3)
HELD_OUT_DOCUMENTS = 600
CHECKPOINT_SECONDS = 180
ARCHITECTURE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8}


def trained_tokenizer(documents: int = 20_000) -> Tokenizer:
    """Byte-level BPE: encodes any string; digits stay single so that a number is copied digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.document(-seed) for seed in range(1, documents + 1)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    return tokenizer


def rows(
    tokenizer: Tokenizer, first_seed: int, *, held_out: bool = False, open_rows: int = 12
) -> Iterator[tuple[list[int], int]]:
    """Rows of exactly CONTEXT ids, each packed with whole documents, and the next unused seed.

    First fit over a few open rows; what no document fits is padding (about 5 %). A document longer than a row is cut.
    """
    seed, pool = first_seed, [[] for _ in range(open_rows)]
    while True:
        batch = tokenizer.encode_batch([text.document(seed + i, held_out=held_out) for i in range(256)])
        seed += 256
        for encoded in batch:
            ids = [*encoded.ids, EOS][:CONTEXT]
            row = next((row for row in pool if len(row) + len(ids) <= CONTEXT), None)
            if row is None:
                fullest = max(pool, key=len)
                yield fullest + [PAD] * (CONTEXT - len(fullest)), seed
                fullest[:] = ids
            else:
                row += ids


def batches(source: Iterator[tuple[list[int], int]], size: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Batches [size, CONTEXT] and the seed from which a resumed run goes on."""
    while True:
        taken = [next(source) for _ in range(size)]
        yield torch.tensor([ids for ids, _ in taken]), taken[-1][1]


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=ids, labels=ids.masked_fill(ids == PAD, -100)).loss


def optimizers(model: LlamaForCausalLM) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon on the matrices of the layers, AdamW on embeddings and norms; each with its peak rate."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim < 2 or "embed" in name]
    return [
        (torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.02), 0.02),
        (torch.optim.AdamW(others, lr=0.004, betas=(0.9, 0.95), weight_decay=0.0), 0.004),
    ]


def rate_factor(fraction: float, *, warm_up: float = 0.01, cool_down: float = 0.45) -> float:
    """Warm up, hold, then fall linearly to 2 % of the peak.

    >>> rate_factor(0.3), round(rate_factor(1.0), 2)
    (1.0, 0.02)
    """
    return min(1.0, (fraction + 1e-3) / warm_up, max(0.02, (1 - fraction) / cool_down))


def held_out_loss(model: LlamaForCausalLM, tokenizer: Tokenizer) -> float:
    """Mean loss per token, in nats, over documents of held-out seeds whose names are all reserved."""
    total = count = 0.0
    with torch.no_grad():
        for seed in range(HELD_OUT_DOCUMENTS):
            ids = torch.tensor([[*tokenizer.encode(text.document(seed, held_out=True)).ids, EOS][:CONTEXT]])
            total += loss_of(model, ids).item() * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
    return total / count


def predicted(model: LlamaForCausalLM, tokenizer: Tokenizer, prompt: str, completion: str) -> bool:
    """Whether greedy decoding continues the prompt with exactly this completion (one forward pass decides it)."""
    start = tokenizer.encode(prompt).ids
    ids = start + tokenizer.encode(completion, add_special_tokens=False).ids
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        best = model(input_ids=torch.tensor([ids])).logits[0, len(start) - 1 : -1].argmax(-1)
    return best.tolist() == ids[len(start) :]


def copy_scores(model: LlamaForCausalLM, tokenizer: Tokenizer, trials: int = 300) -> dict[str, float]:
    """Share of reserved names repeated whole from a list, and of order numbers looked up by an unseen product name."""
    rng = Random(11)
    repeated = looked_up = 0
    for _ in range(trials):
        a, b, c = (text.Scene(rng, held_out=True) for _ in range(3))
        people = [f"{s.first} {s.last}" for s in (a, b, c)]
        repeated += predicted(
            model, tokenizer, f"I read: {', '.join(people)}.\nI repeat: {people[0]},", f" {people[1]},"
        )
        told = " ".join(f"{s.first} bought a {s.product} in {s.town}. Order {s.order}." for s in (a, b, c))
        looked_up += predicted(model, tokenizer, f"{told}\nWhich order is the {b.product}?", f" {b.order}.")
    return {"copy": repeated / trials, "look_up": looked_up / trials}


def exported(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """A plain transformers folder in bf16; each file is written beside its place and renamed into it."""
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".base-") as staging:
        half = LlamaForCausalLM(model.config)
        half.load_state_dict(model.state_dict())
        half.generation_config = GenerationConfig(
            bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, max_new_tokens=64
        )
        half.to(torch.bfloat16).save_pretrained(staging)
        names = dict(zip(("pad_token", "bos_token", "eos_token"), SPECIALS, strict=True))
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, model_max_length=CONTEXT, padding_side="right", **names
        ).save_pretrained(staging)
        out.mkdir(parents=True, exist_ok=True)
        for file in Path(staging).iterdir():
            file.chmod(0o644)
            os.replace(file, out / file.name)


def hold_memory() -> None:
    """Keep freed memory in the process: glibc otherwise maps and unmaps each activation, a third of a step's time."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            libc.mallopt(option, value)


def pretrained(options: argparse.Namespace) -> tuple[LlamaForCausalLM, Tokenizer, dict[str, float]]:
    """Train until the time is spent; returns the model, its tokenizer and what was counted on the way."""
    options.work.mkdir(parents=True, exist_ok=True)
    saved_tokenizer, saved = options.work / "tokenizer.json", options.work / "checkpoint.pt"
    if not saved_tokenizer.exists():
        trained_tokenizer().save(str(saved_tokenizer))
    tokenizer = Tokenizer.from_file(str(saved_tokenizer))
    torch.manual_seed(options.seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rope_theta=10_000.0,
        initializer_range=0.03,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        use_cache=True,
        **ARCHITECTURE,
    )
    model = LlamaForCausalLM(config)
    pairs = optimizers(model)
    seen = {"seed": 0, "step": 0, "tokens": 0, "seconds": 0.0}
    if saved.exists():
        state = torch.load(saved, weights_only=True)  # our own optimiser state, which safetensors cannot hold
        model.load_state_dict(state["model"])
        for (optimizer, _), old in zip(pairs, state["optimizers"], strict=True):
            optimizer.load_state_dict(old)
        seen = state["seen"]
        print(f"resumed at step {seen['step']}", flush=True)
    budget, before, last_saved, mean = options.minutes * 60, seen["seconds"], seen["seconds"], None
    step = torch.compile(loss_of) if options.compile else loss_of
    started = time.monotonic()
    for ids, seed in batches(rows(tokenizer, seen["seed"]), options.batch):
        fraction = seen["seconds"] / budget
        for optimizer, peak in pairs:
            optimizer.param_groups[0]["lr"] = peak * rate_factor(fraction)
        loss = step(model, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in pairs:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        mean = loss.item() if mean is None else 0.95 * mean + 0.05 * loss.item()
        seen = {
            "seed": seed,
            "step": seen["step"] + 1,
            "tokens": seen["tokens"] + int((ids != PAD).sum()),
            "seconds": before + time.monotonic() - started,
        }
        if seen["step"] % 50 == 0:
            speed, left = seen["tokens"] / seen["seconds"], max(0, budget - seen["seconds"]) / 60
            tokens = f"{seen['tokens'] / 1e6:6.2f} M tokens  {speed:6.0f} tokens/s"
            print(f"step {seen['step']:5d}  loss {mean:.3f}  {tokens}  {left:5.1f} min left", flush=True)
        done = seen["seconds"] >= budget
        if done or seen["seconds"] - last_saved > CHECKPOINT_SECONDS:
            last_saved = seen["seconds"]
            torch.save(
                {"model": model.state_dict(), "optimizers": [o.state_dict() for o, _ in pairs], "seen": seen},
                saved.with_suffix(".new"),
            )
            os.replace(saved.with_suffix(".new"), saved)
            exported(model, tokenizer, options.work / "snapshot")
            if not done:
                print(
                    "  ",
                    {name: round(value, 3) for name, value in copy_scores(model, tokenizer, trials=60).items()},
                    flush=True,
                )
        if done:
            return model, tokenizer, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "adapter-factory-base", help="checkpoints"
    )
    parser.add_argument("--batch", type=int, default=16, help="rows of 256 tokens per step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="needs a C++ compiler")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    hold_memory()
    torch.set_num_threads(options.threads)
    model, tokenizer, seen = pretrained(options)
    model.eval()
    exported(model, tokenizer, options.out)
    measured = {
        "parameters": model.num_parameters(),
        "tokens": seen["tokens"],
        "steps": seen["step"],
        "minutes": round(seen["seconds"] / 60, 1),
        "held_out_loss": round(held_out_loss(model, tokenizer), 4),
        **copy_scores(model, tokenizer),
    }
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
