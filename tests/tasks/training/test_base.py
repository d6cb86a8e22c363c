"""The base: only a whole and honest folder becomes one, and lending it out leaves no trace."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tasks.errors import ArtifactRefused, DependencyDown, SpecRefused
from tasks.methods.build import fresh_adapter
from tasks.specs import BaseSpec, MethodSpec
from tasks.training.base import (
    Base,
    compute_dtype_for,
    cpu_threads,
    dense_weights,
    device_for,
    linear_modules,
    load_base,
    load_libraries,
)

ROOT = Path(__file__).parents[3]
LABELS = ("card", "loan", "theft")
CPU = torch.device("cpu")


def loaded(folder: Path, kind: str = "generation", **spec: Any) -> Base:
    return load_base(BaseSpec(model=str(folder), **spec), kind=kind, labels=LABELS if kind == "classification" else ())


def held_bytes(model: nn.Module) -> dict[str, bytes]:
    """Every tensor that a model holds, byte by byte, with the scales of its 4-bit weights."""
    return {
        name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in model.state_dict().items()
        if torch.is_tensor(tensor)
    }


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base that a test may damage."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def rewrite_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def rewrite_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lengthen_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])


UP = "model.layers.1.mlp.up_proj.weight"
DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no folder": (shutil.rmtree, "E-BASE-002", "no such folder"),
    "no config": (lambda f: (f / "config.json").unlink(), "E-BASE-002", "config.json"),
    "a config that is no JSON": (lambda f: (f / "config.json").write_text("{"), "E-BASE-002", "config.json"),
    "a config that is a list": (lambda f: (f / "config.json").write_text("[]"), "E-BASE-002", "config.json"),
    "an empty config": (lambda f: (f / "config.json").write_text("{}"), "E-BASE-004", "base"),
    "an unknown architecture": (lambda f: rewrite_config(f, model_type="nonesuch"), "E-BASE-004", "nonesuch"),
    "code": (lambda f: rewrite_config(f, auto_map={"AutoConfig": "evil.Config"}), "E-BASE-005", "auto_map"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "E-BASE-003", "no safetensors"),
    "weights cut short": (truncate, "E-BASE-004", "base"),
    "an endless header": (lengthen_header, "E-BASE-004", "base"),
    "a missing weight": (lambda f: rewrite_weights(f, lambda w: w.pop(UP)), "E-BASE-004", UP),
    "a misshapen weight": (lambda f: rewrite_weights(f, lambda w: w.update({UP: torch.ones(9, 9)})), "E-BASE-004", UP),
    "no output layer": (lambda f: rewrite_config(f, tie_word_embeddings=False), "E-BASE-004", "lm_head.weight"),
    "no tokenizer": (lambda f: [path.unlink() for path in f.glob("tokenizer*")], "E-BASE-004", "base"),
    "a broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "E-BASE-004", "base"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_refused_with_what_is_wrong(damage: str, folder: Path) -> None:
    harm, code, named = DAMAGE[damage]
    harm(folder)
    with pytest.raises(ArtifactRefused) as refused:
        loaded(folder, quantization="none")
    assert refused.value.exit_code == 4
    (problem,) = refused.value.problems
    assert problem.code == code
    assert named in f"{problem.where} {problem.wrong}"
    assert str(folder) in problem.where


def test_the_same_folder_undamaged_is_a_base(folder: Path) -> None:
    assert loaded(folder, quantization="none").model.num_parameters() > 0


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_is_never_opened_as_weights(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Canary(tmp_path / "owned")))
    with pytest.raises(ArtifactRefused) as refused:
        loaded(folder)
    assert refused.value.exit_code == 4
    assert name.endswith("safetensors") or name in str(refused.value)
    assert not (tmp_path / "owned").exists()
    pickle.loads((folder / name).read_bytes())  # the canary is alive: whoever unpickles it leaves a trace
    assert (tmp_path / "owned").exists()


def test_a_hub_id_that_cannot_be_fetched_may_be_retried() -> None:
    with pytest.raises(DependencyDown) as refused:
        load_base(BaseSpec(model="nobody/nothing", revision="0" * 40), kind="generation")
    assert refused.value.exit_code == 7
    assert "nobody/nothing" in str(refused.value)


def test_a_base_is_loaded_once_in_a_process(tiny_base: Path) -> None:
    assert loaded(tiny_base) is loaded(tiny_base)
    assert loaded(tiny_base) is not loaded(tiny_base, double_quant=False)


def test_a_loaded_base_is_frozen_and_in_evaluation_mode(tiny_base: Path) -> None:
    model = loaded(tiny_base).model
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


def test_weights_that_the_files_lack_are_the_same_in_every_process(tiny_encoder: Path, tmp_path: Path) -> None:
    models = []
    for i in range(2):
        folder = Path(shutil.copytree(tiny_encoder, tmp_path / str(i)))
        rewrite_weights(folder, lambda w: [w.pop(name) for name in list(w) if name.startswith("pooler")])
        torch.manual_seed(i)  # as different as two processes are
        before = torch.get_rng_state()
        models.append(loaded(folder, "classification").model)
        assert torch.equal(torch.get_rng_state(), before)
    first, second = (held_bytes(model) for model in models)
    assert first == second
    assert any("pooler" in name for name in first)


def test_a_published_classifier_gets_a_head_for_its_new_classes(tiny_base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    rewrite_weights(folder, lambda w: w.update({"score.weight": torch.ones(7, 64)}))
    assert loaded(folder, "classification").model.score.weight.shape == (3, 64)


@pytest.mark.parametrize("which", ["tiny_base", "tiny_encoder"])
def test_a_head_is_not_quantised_and_the_body_is(which: str, request: pytest.FixtureRequest) -> None:
    model = loaded(request.getfixturevalue(which), "classification").model
    head = model.score if which == "tiny_base" else model.classifier
    assert type(head) is nn.Linear
    assert head.weight.is_floating_point()
    assert {type(module).__name__ for module in linear_modules(model).values()} == {"Linear4bit"}


@pytest.mark.parametrize("double_quant", [True, False])
def test_dense_weights_are_what_the_layers_multiply_with(tiny_base: Path, double_quant: bool) -> None:
    base = loaded(tiny_base, double_quant=double_quant)
    dense = dense_weights(base)
    stored = load_file(tiny_base / "model.safetensors")
    assert dense.keys() == stored.keys()
    for name, module in linear_modules(base.model).items():
        with torch.no_grad():
            rows = module(torch.eye(module.in_features))  # x W^T of the identity is W^T
        assert torch.allclose(dense[f"{name}.weight"], rows.T, atol=1e-6)
        exact = stored[f"{name}.weight"]
        error = (dense[f"{name}.weight"] - exact).abs().max() / exact.abs().max()
        assert 0 < error < 0.2  # the widest gap of NF4's levels is 0.3 of a block's largest weight; half of it is lost


def test_dense_weights_of_a_base_as_stored_are_the_files(tiny_base: Path) -> None:
    dense, stored = dense_weights(loaded(tiny_base, quantization="none")), load_file(tiny_base / "model.safetensors")
    assert all(torch.equal(dense[name], stored[name]) for name in dense)


def test_evaluation_does_not_change_the_quantised_weights(tiny_base: Path) -> None:
    base = loaded(tiny_base, compute_dtype="bfloat16")
    before, dense = held_bytes(base.model), dense_weights(base)
    ids = torch.randint(3, 300, (4, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), base.autocast():
        first = base.model(ids).logits
        second = base.model(ids).logits
    assert torch.equal(first, second)
    assert held_bytes(base.model) == before
    assert all(torch.equal(value, dense[name]) for name, value in dense_weights(base).items())


def test_left_alone_bitsandbytes_would_repack_the_weights() -> None:
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(128, 64, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4").to("cpu")
    if not getattr(layer, "support_avx512bf16_for_cpu", False):
        pytest.skip("this CPU has no AVX512-BF16, so bitsandbytes leaves the weights as they are")
    before = layer.weight.data.clone()
    layer.eval()
    with torch.no_grad():
        layer(torch.randn(2, 128, dtype=torch.bfloat16))
    assert layer.weight.data.shape != before.shape or not torch.equal(layer.weight.data, before)


def test_the_end_of_an_answer_is_what_the_base_ends_a_text_with(
    tiny_base: Path, tiny_encoder: Path, folder: Path
) -> None:
    assert loaded(tiny_base).end_id == 2
    encoder = loaded(tiny_encoder, "classification")
    assert encoder.end_id == encoder.tokenizer.sep_token_id
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2]}))
    assert loaded(folder).end_id == 5


def test_a_base_that_never_ends_a_text_is_refused(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    rewrite_config(folder, eos_token_id=None)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ArtifactRefused, match="E-BASE-006"):
        loaded(folder)


def test_the_compute_type_is_the_one_asked_for() -> None:
    assert compute_dtype_for("bfloat16", CPU, 64)[0] == torch.bfloat16
    assert compute_dtype_for("float32", CPU, 8192)[0] == torch.float32


def test_a_cpu_computes_in_bfloat16_where_it_has_tiles_for_it_and_enough_to_fill_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for tiles, hidden, expected in ((True, 64, "float32"), (True, 128, "bfloat16"), (False, 4096, "float32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda tiles=tiles: {"amx_bf16": tiles})
        found, why = compute_dtype_for("auto", CPU, hidden)
        assert found == getattr(torch, expected)
        assert ("AMX" in why) != (tiles and hidden == 64)


def test_a_device_that_is_not_there_is_refused() -> None:
    assert device_for("cpu") == CPU
    if torch.cuda.is_available():
        assert device_for("auto") == device_for("cuda") == torch.device("cuda")
        return
    assert device_for("auto") == CPU
    with pytest.raises(SpecRefused, match="no GPU is visible"):
        device_for("cuda")


def test_threads_are_limited_inside_the_block_only() -> None:
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with cpu_threads(None):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


def test_loading_a_base_does_not_load_a_compiler_and_leaves_it_to_who_wants_it() -> None:
    """In a process of its own, for others have loaded it in this one."""
    asked = (
        "import sys, torch\n"
        "from tasks.training.base import load_libraries\n"
        "load_libraries()\n"
        "import bitsandbytes, os\n"
        "loaded = 'torch._inductor.compile_fx' in sys.modules\n"
        "print(loaded, torch._dynamo.config.disable, os.environ.get('TORCHDYNAMO_DISABLE'))"
    )
    own = {name: value for name, value in os.environ.items() if name != "TORCHDYNAMO_DISABLE"}
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True, cwd=ROOT, env=own)
    assert done.stdout.split() == ["False", "False", "None"]


def test_what_peft_asks_of_a_base_warns_nobody(tiny_base: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        load_libraries()
        with fresh_adapter(loaded(tiny_base), MethodSpec(rank=2), 0):
            pass
