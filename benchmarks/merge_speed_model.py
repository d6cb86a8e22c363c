"""A whole model merged by mergekit and by our stream, each in a process of its own: CPU seconds and peak memory.

Called by `merge_speed.py`; `python benchmarks/merge_speed_model.py FOLDER` alone is our side: the adapters of FOLDER
into its base by TIES in mergekit's dialect. mergekit is no dependency of this project; where it cannot be imported, the
keys are left out and the reason is printed.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

DENSITY, RANK, PARENTS = 0.2, 16, 3
ROOT = Path(__file__).parents[1]


def full_model(folder: Path, *, hidden: int, layers: int) -> dict[str, float]:
    """Ratios of CPU seconds and of peak memory, theirs over ours, and what the streaming merge itself reaches of a
    copy's bandwidth; without mergekit that alone."""
    if subprocess.run([sys.executable, "-c", "import mergekit.scripts.run_yaml"], capture_output=True).returncode:
        print("mergekit cannot be imported: full_ratio_mergekit and peak_memory_ratio are left out", flush=True)
        write_model(folder / "large", hidden=hidden, layers=layers, dtype=torch.bfloat16)
        return bandwidth_shares(folder / "large")
    small = folder / "small"
    write_model(small, hidden=256, layers=2, dtype=torch.float32)
    ours_in(small)
    mergekit_in(small)
    difference = apart(small)
    if difference > 5e-3:
        sys.exit(f"results differ: the merged change is {difference:.1%} off mergekit's in float32")
    write_model(folder / "large", hidden=hidden, layers=layers, dtype=torch.bfloat16)
    size = sum(path.stat().st_size for path in (folder / "large" / "base").glob("*.safetensors"))
    ours_in(folder / "large")  # the first use of a loop in 16 bit compiles it, and keeps it on the disk
    ours, theirs = ours_in(folder / "large"), mergekit_in(folder / "large")
    print(
        f"TIES of {PARENTS} parents into bf16, {size / 1e6:.0f} MB: {ours[0]:.2f} s, peak {ours[1] / 1e6:.0f} MB"
        f" against {theirs[0]:.1f} s, {theirs[1] / 1e6:.0f} MB; float32 changes {difference:.1e} apart",
        flush=True,
    )
    return {
        "full_ratio_mergekit": theirs[0] / ours[0],
        "peak_memory_ratio": theirs[1] / ours[1],
        **bandwidth_shares(folder / "large"),
    }


def bandwidth_shares(folder: Path, rounds: int = 3) -> dict[str, float]:
    """Bytes that our merge of the folder's adapters reads and writes of the model a second, over what a copy does, both
    elapsed, the best of alternating rounds: with a module on each core, as it runs by default, and with one at a time,
    as a copy does. What a process does once is not in it: imports, reading the adapters, loading the compiled loops."""
    model, cores = folder / "base" / "model.safetensors", len(os.sched_getaffinity(0))
    merged: dict[int, list[float]] = {1: [], cores: []}
    copied = []
    for _ in range(rounds + 1):
        for workers, seconds in merged.items():
            seconds.append(merge_in(folder, workers))
        (folder / "copy").unlink(missing_ok=True)
        began = time.perf_counter()
        shutil.copyfile(model, folder / "copy")
        copied.append(time.perf_counter() - began)
    (folder / "copy").unlink()
    alone, best, copy, memory = min(merged[1]), min(merged[cores]), min(copied), copy_bandwidth()
    bandwidth = 2 * model.stat().st_size / best
    print(
        f"streaming merge itself: {best:.2f} s on {cores} cores, {alone:.2f} s on one, a copy of the file {copy:.2f} s;"
        f" {bandwidth / 1e9:.2f} GB/s, from memory to memory {memory / 1e9:.1f} GB/s",
        flush=True,
    )
    return {
        "bandwidth_share": copy / best,
        "bandwidth_share_one_core": copy / alone,
        "memory_share": bandwidth / memory,
    }


def merge_in(folder: Path, workers: int) -> float:
    """Our merge of a folder's adapters into its base; the seconds from the checked plan to the finished folder."""
    from tasks.export.model import export_model
    from tasks.merging.base import open_base
    from tasks.merging.plan import Parent, check_parents
    from tasks.merging.stream import merged_stream

    shutil.rmtree(folder / "ours", ignore_errors=True)
    base = open_base(folder / "base")
    parents = [Parent(f"p{place}:1", f"p{place}", folder / f"p{place}", "base") for place in range(PARENTS)]
    plan, began = check_parents(parents, base), time.perf_counter()
    changes = merged_stream(plan, "ties_mergekit", density=DENSITY)
    export_model(folder / "ours", base, changes, workers=workers)
    return time.perf_counter() - began


def write_model(folder: Path, *, hidden: int, layers: int, dtype: torch.dtype) -> None:
    """A random Llama and random adapters on all its linear layers."""
    import transformers

    inner, vocabulary = 11 * hidden // 4, 8192
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        tie_word_embeddings=True,
        architectures=["LlamaForCausalLM"],
        dtype=str(dtype).removeprefix("torch."),
    )
    (folder / "base").mkdir(parents=True)
    config.save_pretrained(folder / "base")
    generator = torch.Generator().manual_seed(0)
    shapes = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
    shapes |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    weights = {"model.embed_tokens.weight": torch.randn(vocabulary, hidden, generator=generator) * 0.02}
    weights["model.norm.weight"] = torch.ones(hidden)
    for layer in range(layers):
        place = f"model.layers.{layer}"
        weights |= {
            f"{place}.{norm}.weight": torch.ones(hidden) for norm in ("input_layernorm", "post_attention_layernorm")
        }
        for name, shape in shapes.items():
            weights[f"{place}.{name}.weight"] = torch.randn(shape, generator=generator) * 0.02
    save_file(
        {name: value.to(dtype) for name, value in weights.items()},
        folder / "base" / "model.safetensors",
        {"format": "pt"},
    )
    modules = [f"model.layers.{layer}.{name}" for layer in range(layers) for name in shapes]
    for parent in range(PARENTS):
        target = folder / f"p{parent}"
        target.mkdir()
        tensors = {}
        for module in modules:
            out, into = shapes[".".join(module.split(".")[-2:])]
            prefix = f"base_model.model.{module}.lora_"
            tensors[f"{prefix}A.weight"] = torch.randn(RANK, into, generator=generator) / into**0.5
            tensors[f"{prefix}B.weight"] = torch.randn(out, RANK, generator=generator) * 0.05
        save_file(tensors, target / "adapter_model.safetensors", {"format": "pt"})
        asked = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "bias": "none"}
        asked |= {"target_modules": sorted({name.split(".")[-1] for name in shapes}), "fan_in_fan_out": False}
        asked |= {"base_model_name_or_path": str(folder / "base"), "lora_dropout": 0.0, "inference_mode": True}
        (target / "adapter_config.json").write_text(json.dumps(asked))


def ours_in(folder: Path) -> tuple[float, int]:
    return watched([__file__, str(folder)], {"PYTHONPATH": str(ROOT)})


def mergekit_in(folder: Path) -> tuple[float, int]:
    models = "".join(
        f"  - model: {folder}/base+{folder}/p{parent}\n    parameters: {{weight: 1.0, density: {DENSITY}}}\n"
        for parent in range(PARENTS)
    )
    dtype = json.loads((folder / "base" / "config.json").read_text())["dtype"]
    text = f"merge_method: ties\nbase_model: {folder}/base\ndtype: {dtype}\nmodels:\n{models}"
    (folder / "recipe.yaml").write_text(text)
    words = [
        "mergekit.scripts.run_yaml",
        str(folder / "recipe.yaml"),
        str(folder / "theirs"),
        "--no-copy-tokenizer",
    ]
    words += ["--lora-merge-cache", str(folder / "cache")]
    return watched(words, {})


WATCHED = """
import atexit, runpy, sys
def say():
    lines = open("/proc/self/status").read().splitlines()
    print("peak", next(line.split()[1] for line in lines if line.startswith("VmHWM")), flush=True)
atexit.register(say)
sys.argv = sys.argv[1:]
run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
run(sys.argv[0], run_name="__main__")
"""


def watched(words: list[str], variables: dict[str, str]) -> tuple[float, int]:
    """CPU seconds and peak bytes of a script or module that must succeed, one thread. The peak is the process's own:
    what `wait4` tells includes that of whoever started it."""
    command = [sys.executable, "-c", WATCHED, *words]
    paths = os.pathsep.join(filter(None, [variables.get("PYTHONPATH", ""), os.environ.get("PYTHONPATH", "")]))
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.Popen(
        command, env={**os.environ, **threads, "PYTHONPATH": paths}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said = process.stdout.read().decode(errors="replace") if process.stdout else ""
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(words)} failed:\n{said[-2000:]}")
    peak = next(line for line in reversed(said.splitlines()) if line.startswith("peak "))
    return usage.ru_utime + usage.ru_stime, int(peak.split()[1]) * 1024


def apart(folder: Path) -> float:
    """Norm of the difference of both merged changes over the norm of the change."""
    base = load_file(folder / "base" / "model.safetensors")
    ours = load_file(folder / "ours" / "model.safetensors")
    theirs = {}
    for path in (folder / "theirs").glob("*.safetensors"):
        theirs |= load_file(path)
    off = sum(float((ours[name] - theirs[name]).norm() ** 2) for name in ours if name in theirs)
    change = sum(float((ours[name] - base[name]).norm() ** 2) for name in ours)
    return (off / change) ** 0.5


def copy_bandwidth() -> float:
    """Bytes read and written a second by a plain copy of 256 MB, one thread, the best of five."""
    source = np.ones(1 << 25, np.float64)
    target = np.empty_like(source)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - began)
    return 2 * source.nbytes / best


def main() -> int:
    """Our side: merge and write, one module at a time; the start of the interpreter and its imports count on both.
    Without a folder, both sides on a small model."""
    if len(sys.argv) < 2:
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(full_model(Path(scratch), hidden=512, layers=4)))
        return 0
    merge_in(Path(sys.argv[1]), workers=1)
    gc.freeze()  # as the `factory` command does at its end
    return 0


if __name__ == "__main__":
    sys.exit(main())
