"""What the reading of a training curve is worth: real runs with the cause planted, a third of them held out.

    python benchmarks/diagnosis.py                       # trains what the cache lacks, then reads every curve
    python benchmarks/diagnosis.py --cache FOLDER --seeds 6

Each run trains an adapter with this project's loop on a small base that is made first (two layers, width 64; it has
learned to answer 100 key words among filler words). The task gives key words new answers, to be written (generation) or
chosen (classification). A cause is planted in the rate, the data, the rank, the layers or the number of steps; beside
them run healthy ones that look like them from outside: a small rank that is enough, few layers that are enough, noise,
NF4, other schedules. Runs of every third seed are held out: no threshold was set on them. A reading is right if its
first finding is the planted cause. The last line is JSON:

    held_out_accuracy     right readings among the held-out runs
    healthy_called_sick   held-out healthy runs whose first finding is another than healthy
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch

from tasks.data.examples import Example, key_of
from tasks.memory import read_shapes
from tasks.specs import AdapterSpec, BaseSpec, DataSpec, MethodSpec, TrainingSpec
from tasks.training import encoding, loop
from tasks.training.base import load_base
from tasks.training.curve import Curve, Look, Step
from tasks.training.diagnosis import Reach, diagnose
from tasks.training.recipe import reach_of

ROOT = Path(__file__).parents[1]
KINDS = ("generation", "classification")
HELD_OUT_EVERY = 3
GOAL_RIGHT, GOAL_SICK = 0.90, 0.05


@dataclass(frozen=True)
class Plant:
    """How a run is made: key words in the task, rows, and what differs from a good recipe."""

    cause: str
    keys: int = 8
    answers: int | None = None  # fewer than keys: each is the answer to several; by default one a key
    rows: int = 512
    noise: float = 0.0  # share of rows whose answer is drawn by chance
    garbage: int = 0  # long rows whose answer is none of the task's
    masked: bool = False
    kinds: tuple[str, ...] = KINDS
    quantization: Any = "none"
    method: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


RATES = (1e-8, 1e-7, 1e-6)
PLANTS: dict[str, Callable[[Random], Plant]] = {
    "good": lambda d: Plant("healthy"),
    "good, hard task": lambda d: Plant("healthy", kinds=("generation",), **HARD, training={"steps": 150}),
    "good, hard classes": lambda d: Plant("healthy", kinds=("classification",), **MIXED, training={"steps": 150}),
    "good, small rank": lambda d: Plant("healthy", method={"rank": d.choice((1, 2))}),
    "good, few modules": lambda d: Plant("healthy", method={"targets": ("q_proj", "v_proj")}),
    "good, one layer": lambda d: Plant("healthy", method={"layers": (d.randrange(2),)}),
    "good, NF4": lambda d: Plant("healthy", quantization="nf4"),
    "good, held back": lambda d: Plant("healthy", method={"dropout": 0.1}, training={"weight_decay": 0.05}),
    "good, some noise": lambda d: Plant("healthy", noise=0.04),
    "good, other schedule": lambda d: Plant("healthy", training={"schedule": "linear", "batch_size": 8, "steps": 160}),
    "rate far too low": lambda d: Plant("did not move", training={"learning_rate": d.choice(RATES)}),
    "every label masked": lambda d: Plant("nothing to learn", masked=True, kinds=("generation",)),
    "rank too low": lambda d: Plant("rank too low", kinds=("generation",), **HARD, method={"rank": 1}),
    "rank too low for classes": lambda d: Plant("rank too low", kinds=("classification",), **MIXED, method={"rank": 1}),
    "wrong layers": lambda d: Plant("wrong layers", kinds=("generation",), **HARD, method=narrow(d)),
    "wrong layers for classes": lambda d: Plant("wrong layers", kinds=("classification",), **MIXED, method=narrow(d)),
    "overfit": lambda d: Plant("overfit", keys=40, rows=d.choice((24, 32, 40)), training={"learning_rate": 1e-2}),
    "rate far too high": lambda d: Plant("diverged", training={"learning_rate": d.choice((0.3, 1.0)), **UNCLIPPED}),
    "rate too high": lambda d: Plant("diverged", training={"learning_rate": d.choice(HIGH), **some_steps(d)}),
    "rate too high, hard task": lambda d: Plant(
        "diverged", kinds=("generation",), **HARD, training={"learning_rate": d.choice(HIGH), **some_steps(d)}
    ),
    "rate too high, hard classes": lambda d: Plant(
        "diverged", kinds=("classification",), **MIXED, training={"learning_rate": d.choice(HIGH), **some_steps(d)}
    ),
    "garbage rows": lambda d: Plant("spiked", rows=496, garbage=16),
    "labels by chance": lambda d: Plant(
        "plateau", kinds=("generation",), rows=2400, noise=d.choice((0.6, 0.8)), **LONG
    ),
    "classes by chance": lambda d: Plant(
        "plateau", kinds=("classification",), keys=24, answers=8, rows=2400, noise=0.6, **LONG
    ),
    "overflow": lambda d: Plant("not a number", method={"alpha": 1e30}),
    "too few steps": lambda d: Plant("still improving", **HARD, training={"steps": 32}),
}
HARD: dict[str, Any] = {"keys": 40, "rows": 800}  # 40 answers, one a key: a small rank is not enough
MIXED: dict[str, Any] = {"keys": 64, "answers": 8, "rows": 1200}  # eight keys a class, which no head tells apart alone
LONG: dict[str, Any] = {"training": {"steps": 150}}
HIGH = (0.1, 0.3, 1.0)  # with the usual clipping and schedule the loss stays finite, and falls
UNCLIPPED = {"max_grad_norm": 1e9, "schedule": "constant"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / ".factory" / "diagnosis", help="folder of curves")
    parser.add_argument("--seeds", type=int, default=6, help="runs per plant and kind; every third is held out")
    parser.add_argument("--show", action="store_true", help="print every wrong reading that is not held out")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    asked.cache.mkdir(parents=True, exist_ok=True)
    read = list(readings(asked.cache, asked.seeds))
    held_out = [one for one in read if one["held_out"]]
    for title, runs in (("set on", [one for one in read if not one["held_out"]]), ("held out", held_out)):
        print(f"\n{title}: {len(runs)} runs, {right(runs):.1%} right\n{matrix(runs)}")
    for one in read if asked.show else ():
        if one["told"] != one["cause"] and not one["held_out"]:
            print(one["name"], one["told"], "|", one["sentence"])
    healthy = [one for one in held_out if one["cause"] == "healthy"]
    sick = sum(one["told"] != "healthy" for one in healthy) / len(healthy)
    result = {"runs": len(read), "held_out": len(held_out), "held_out_accuracy": round(right(held_out), 4)}
    print(json.dumps({**result, "healthy_called_sick": round(sick, 4)}))
    return 0 if right(held_out) >= GOAL_RIGHT and sick <= GOAL_SICK else 1


def readings(cache: Path, seeds: int) -> Iterator[dict[str, Any]]:
    """Every run with what its curve says; a run whose curve is in the cache is not trained again."""
    for name in PLANTS:
        for seed in range(seeds):
            plant = PLANTS[name](Random(f"{name} {seed}"))
            for kind in plant.kinds:
                path = cache / f"{name.replace(', ', ' ').replace(' ', '-')}-{kind}-{seed}.json"
                if not path.is_file():
                    print(f"training {path.stem}", file=sys.stderr)
                    path.write_text(json.dumps(one_run(cache, plant, kind, seed)))
                told = json.loads(path.read_text())
                findings = diagnose(curve_of(told["curve"]), told["change"], Reach(**told["reach"]))
                yield {
                    "name": path.stem,
                    "cause": plant.cause,
                    "told": findings[0].cause,
                    "sentence": findings[0].sentence,
                    "held_out": seed % HELD_OUT_EVERY == HELD_OUT_EVERY - 1,
                }


def one_run(cache: Path, plant: Plant, kind: str, seed: int) -> dict[str, Any]:
    """One training: its curve, how much it changed the answers, and what its adapter could reach."""
    folder = small_base(cache / "base")
    words = vocabulary(folder)
    draw = Random(f"answers {seed}")
    chosen = draw.sample(words[:100], plant.answers or plant.keys)
    answers = [chosen[place % len(chosen)] for place in draw.sample(range(plant.keys), plant.keys)]
    data: dict[str, Any] = {"labels": tuple(chosen)}
    if kind == "generation":
        data = {"prompt": "{text} ->", "completion": " {answer}"}
    # a head that learns fast would do the work that is asked of the adapter
    quick = {"steps": 100, "batch_size": 16, "learning_rate": 5e-3, "validations": 10, "head_rate": 0.1}
    spec = AdapterSpec(
        task="planted",
        kind=kind,  # type: ignore[arg-type]
        base=BaseSpec(model=str(folder.resolve()), quantization=plant.quantization),
        data=DataSpec(source="generated", **data),
        method=MethodSpec(**{"rank": 16, "dropout": 0.0, **plant.method}),
        training=TrainingSpec(**{**quick, **plant.training}),
        seed=seed,
    )
    base = load_base(spec.base, kind=kind, labels=spec.data.labels)
    learn = rows(words, answers, kind, plant, seed=2 * seed)
    judged = Plant("", keys=plant.keys, rows=200, noise=plant.noise)
    held_out = rows(words, answers, kind, judged, seed=2 * seed + 1)
    encode = masked if plant.masked else encoding.encode
    with tempfile.TemporaryDirectory() as scratch:
        loop.encode = encode  # type: ignore[attr-defined]
        done = loop.train_adapter(base, spec, learn, held_out, Path(scratch))
        loop.encode = encoding.encode  # type: ignore[attr-defined]
    reach = reach_of(spec, read_shapes(folder), len(learn))
    return {"curve": done.curve.as_dict(), "change": done.change, "reach": asdict(reach)}


def some_steps(draw: Random) -> dict[str, int]:
    return {"steps": draw.choice((20, 60, 120))}


def narrow(draw: Random) -> dict[str, Any]:
    """Adapters on what decides where attention looks, and on nothing that carries what it sees."""
    return {"targets": draw.choice((("q_proj", "k_proj"), ("q_proj",), ("k_proj",)))}


def rows(words: Sequence[str], answers: Sequence[str], kind: str, plant: Plant, seed: int) -> list[Example]:
    """Rows of two to five filler words and one key word, in any order; its answer is the one at its place."""
    draw, made = Random(seed), []
    for number in range(plant.rows + plant.garbage):
        key = draw.randrange(plant.keys)
        spoken = draw.choices(words[100:], k=draw.randint(2, 5) if number < plant.rows else 24)
        spoken.insert(draw.randrange(len(spoken) + 1), words[key])
        if number >= plant.rows:
            key = (key + 1 + draw.randrange(plant.keys - 1)) % plant.keys  # another one
        elif draw.random() < plant.noise:
            key = draw.randrange(plant.keys)
        text, target = " " + " ".join(spoken), answers[key]
        if kind == "generation":
            text, target = f"{text} ->", f" {target}"
        made.append(Example(key_of(text), text, target, number + 1))
    return made


def masked(base: Any, examples: Sequence[Example]) -> list[encoding.Encoded]:
    """Rows of which nothing is learned, as of completions that a template has lost."""
    return [encoding.Encoded(row.prompt + row.target, ()) for row in encoding.encode(base, examples)]


def vocabulary(folder: Path) -> list[str]:
    """Words of one token each, the 100 key words first."""
    from transformers import AutoTokenizer

    found = sorted(word[1:] for word in AutoTokenizer.from_pretrained(folder).get_vocab() if word.startswith("Ġ"))
    words = [word for word in found if len(word) > 3 and word.isalpha() and word.islower()]
    Random(3).shuffle(words)
    return words


def small_base(folder: Path) -> Path:
    """A two-layer Llama of width 64 with the embedded base's tokenizer, trained to answer key words: 20 s, once."""
    if (folder / "config.json").is_file():
        return folder
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples" / "base")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    words, draw = vocabulary(folder), Random(0)
    number = {word: tokenizer(" " + word, add_special_tokens=False)["input_ids"][0] for word in words}
    answer = dict(zip(words[:100], draw.sample(words[:100], 100), strict=True))
    arrow = tokenizer(" ->", add_special_tokens=False)["input_ids"]
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, initializer_range=0.05, **sizes, **ids)
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, 900)
    for _ in range(900):
        length, lines = draw.randint(2, 5), []
        for _ in range(32):
            key, spoken = draw.choice(words[:100]), draw.choices(words[100:], k=length)
            spoken.insert(draw.randrange(length + 1), key)
            tokens = [number[word] for word in spoken]
            lines.append([ids["bos_token_id"], *tokens, *arrow, number[answer[key]], ids["eos_token_id"]])
        batch = torch.tensor(lines)
        logits = model(input_ids=batch).logits[:, -3:-1]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, -2:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def curve_of(tree: dict[str, Any]) -> Curve:
    steps = tuple(Step(**step) for step in tree["steps"])
    return Curve(**tree | {"steps": steps, "looks": tuple(Look(**look) for look in tree["looks"])})


def right(runs: Sequence[dict[str, Any]]) -> float:
    return sum(one["told"] == one["cause"] for one in runs) / max(1, len(runs))


def matrix(runs: Sequence[dict[str, Any]]) -> str:
    """Planted causes down, readings across."""
    counts = Counter((one["cause"], one["told"]) for one in runs)
    names = list(dict.fromkeys([one["cause"] for one in runs] + [one["told"] for one in runs]))
    lines = [" " * 18 + "".join(f"{name[:11]:>12}" for name in names)]
    lines += [f"{cause:18}" + "".join(f"{counts[cause, told] or '':>12}" for told in names) for cause in names]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
