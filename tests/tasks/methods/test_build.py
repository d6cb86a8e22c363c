"""Adapters on a borrowed base: nothing passes unseen, and nothing stays behind."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.errors import ArtifactRefused, SpecRefused
from tasks.methods.build import ADAPTER_FILES, attached, fresh_adapter, write_adapter
from tasks.methods.catalogue import LORA_METHODS as METHODS
from tasks.specs import BaseSpec, MethodSpec
from tasks.training.base import Base, dense_weights, load_base
from tasks.training.loop import train_adapter

LABELS = ("card", "loan", "theft")
KINDS = [("generation", "tiny_base"), ("classification", "tiny_base"), ("classification", "tiny_encoder")]
CONFIG, WEIGHTS = ADAPTER_FILES
Make = Callable[..., Any]


def base_of(folder: Path, kind: str = "generation", **spec: Any) -> Base:
    return load_base(BaseSpec(model=str(folder), **spec), kind=kind, labels=LABELS if kind == "classification" else ())


def probe(base: Base, model: Any) -> torch.Tensor:
    """Logits of a fixed batch with padding."""
    ids = torch.randint(4, 300, (3, 11), generator=torch.Generator().manual_seed(7))
    mask = torch.ones_like(ids)
    mask[1, 6:], ids[1, 6:] = 0, base.pad_id
    was_training = model.training
    model.eval()
    with torch.no_grad(), base.autocast():
        logits = model(input_ids=ids, attention_mask=mask).logits.float()
    model.train(was_training)
    return logits[mask.bool()] if base.kind == "generation" else logits


def held_bytes(model: torch.nn.Module) -> dict[str, bytes]:
    return {
        name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in model.state_dict().items()
        if torch.is_tensor(tensor)
    }


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def trained(tiny_base: Path, make_rows: Make, make_spec: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained adapter of the tiny base."""
    folder = tmp_path_factory.mktemp("trained")
    rows = make_rows("generation", 32)
    train_adapter(base_of(tiny_base), make_spec("generation", tiny_base), rows, rows[:8], folder)
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def rewrite_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def rewrite_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def refused(base: Base, folder: Path) -> ArtifactRefused:
    """The refusal of an adapter, after which the base is what it was."""
    before, modules = held_bytes(base.model), list(base.model.modules())
    with pytest.raises(ArtifactRefused) as caught, attached(base, folder):
        pass
    assert caught.value.exit_code == 4
    assert held_bytes(base.model) == before
    assert all(now is then for now, then in zip(base.model.modules(), modules, strict=True))
    return caught.value


@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("name", METHODS)
def test_a_fresh_adapter_answers_exactly_like_the_base(tiny_base: Path, name: str, quantization: str) -> None:
    base = base_of(tiny_base, quantization=quantization)
    alone = probe(base, base.model)
    with fresh_adapter(base, MethodSpec(name=name, rank=8, dropout=0.3), seed=3) as model:
        assert torch.equal(probe(base, model), alone)


def test_a_fresh_adapter_is_drawn_from_its_seed_alone(tiny_base: Path) -> None:
    drawn = []
    for i, seed in enumerate((3, 3, 4)):
        torch.manual_seed(i)
        with fresh_adapter(base_of(tiny_base), MethodSpec(rank=8), seed) as model:
            drawn.append(torch.cat([p.detach().flatten() for n, p in model.named_parameters() if "lora_A" in n]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(("kind", "which"), KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_lending_the_base_leaves_no_trace(
    name: str, kind: str, which: str, request: pytest.FixtureRequest, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    base = base_of(folder := request.getfixturevalue(which), kind)
    before, modules, alone = held_bytes(base.model), list(base.model.named_modules()), probe(base, base.model)
    rows = make_rows(kind, 24)
    spec = make_spec(kind, folder, method=MethodSpec(name=name, rank=4), steps=4)
    train_adapter(base, spec, rows, rows[:8], tmp_path)
    with attached(base, tmp_path) as model:
        assert not torch.equal(probe(base, model), alone)
    assert held_bytes(base.model) == before
    assert [name for name, _ in base.model.named_modules()] == [name for name, _ in modules]
    assert all(now is then for (_, now), (_, then) in zip(base.model.named_modules(), modules, strict=True))
    assert torch.equal(probe(base, base.model), alone)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not any(module.training for module in base.model.modules())


def test_the_base_is_whole_again_after_an_error(tiny_base: Path) -> None:
    base = base_of(tiny_base)
    before, alone = held_bytes(base.model), probe(base, base.model)

    def failing() -> None:
        with fresh_adapter(base, MethodSpec(rank=4), seed=0) as model:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data.fill_(1.0)
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    assert held_bytes(base.model) == before
    assert torch.equal(probe(base, base.model), alone)


@pytest.mark.parametrize(("kind", "which"), KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_each_method_trains_only_what_it_says(name: str, kind: str, which: str, request: pytest.FixtureRequest) -> None:
    base = base_of(request.getfixturevalue(which), kind)
    parts = {"lora_B"} if name == "shared-a" else {"lora_A", "lora_B"}
    parts |= {"lora_magnitude_vector"} if METHODS[name].config.get("use_dora") else set()
    with fresh_adapter(base, MethodSpec(name=name, rank=4), seed=0) as model:
        trainable = {n for n, p in model.named_parameters() if p.requires_grad}
        head = {n for n in trainable if "modules_to_save" in n}
        assert {part for n in trainable - head for part in n.split(".") if part.startswith("lora_")} == parts
        assert bool(head) == (kind == "classification")
        ids = torch.randint(4, 300, (2, 7), generator=torch.Generator().manual_seed(1))
        model.train()
        model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().pow(2).sum().backward()
        assert {n for n, p in model.named_parameters() if p.grad is not None} == trainable


def test_chosen_layers_and_targets_get_an_adapter_and_no_others(tiny_base: Path) -> None:
    base = base_of(tiny_base)
    with fresh_adapter(base, MethodSpec(rank=4, targets=("q_proj", "mlp.up_proj"), layers=(1,)), seed=0) as model:
        adapted = {n.split(".lora_")[0] for n, p in model.named_parameters() if p.requires_grad}
    prefix = "base_model.model.model.layers.1"
    assert adapted == {f"{prefix}.self_attn.q_proj", f"{prefix}.mlp.up_proj"}


def test_a_method_that_does_not_fit_is_refused_and_leaves_no_trace(tiny_base: Path) -> None:
    base = base_of(tiny_base)
    before = held_bytes(base.model)
    with pytest.raises(SpecRefused), fresh_adapter(base, MethodSpec(rank=99), seed=0):
        pass
    assert held_bytes(base.model) == before


@pytest.mark.parametrize(("kind", "which"), KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_a_written_adapter_answers_as_it_did_when_it_was_trained(
    name: str, kind: str, which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base = base_of(request.getfixturevalue(which), kind)
    draw = torch.Generator().manual_seed(5)
    with fresh_adapter(base, MethodSpec(name=name, rank=4, alpha=3), seed=1) as model:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)
        said = probe(base, model)
        write_adapter(model, tmp_path, "tiny")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(ADAPTER_FILES)
    with attached(base, tmp_path) as model:
        assert torch.equal(probe(base, model), said)


def test_a_low_rank_update_is_what_the_catalogue_says(tiny_base: Path) -> None:
    base = base_of(tiny_base, quantization="none")
    module = "model.layers.0.self_attn.q_proj"
    weight = dense_weights(base)[f"{module}.weight"]
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    for name in METHODS:
        method = MethodSpec(name=name, rank=4, alpha=6, dropout=0, targets=(module,))
        with fresh_adapter(base, method, seed=0) as model:
            layer = model.get_base_model().get_submodule(module)
            draw = torch.Generator().manual_seed(2)
            layer.lora_B["default"].weight.data = torch.randn(64, 4, generator=draw)
            a, b = layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data
            dense = weight + 6 / 4 ** METHODS[name].scale_exponent * b @ a  # W + alpha / r^p B A
            if name == "dora":
                magnitude = weight.norm(dim=1, keepdim=True)
                dense = magnitude * dense / dense.norm(dim=1, keepdim=True)
            with torch.no_grad():
                assert torch.allclose(layer(x), x @ dense.T, atol=1e-4), name


def test_an_attached_adapter_is_frozen_and_answers_the_same_twice(tiny_base: Path, trained: Path, copy: Path) -> None:
    rewrite_config(copy, lora_dropout=0.9)
    base = base_of(tiny_base)
    ids = torch.arange(4, 20)[None]
    with attached(base, copy) as model, torch.no_grad():
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert torch.equal(model(ids).logits, model(ids).logits)
    with attached(base, copy, trainable=True) as model:
        assert all(p.requires_grad == ("lora_" in n) for n, p in model.named_parameters())


def first_tensor(folder: Path) -> str:
    return min(load_file(folder / WEIGHTS))


TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor], str], object], str]] = {
    "missing": (lambda w, n: w.pop(n), "E-ADAPTER-005"),
    "extra": (lambda w, n: w.update({n + "2": w[n].clone()}), "E-ADAPTER-005"),
    "renamed": (lambda w, n: w.update({n.replace("lora_A", "lora_C"): w.pop(n)}), "E-ADAPTER-005"),
    "misshapen": (lambda w, n: w.update({n: w[n].T.contiguous()}), "E-ADAPTER-006"),
    "of another rank": (lambda w, n: w.update({n: torch.cat([w[n], w[n]])}), "E-ADAPTER-006"),
    "not a number": (lambda w, n: w[n].view(-1)[3].fill_(float("nan")), "E-ADAPTER-003"),
    "infinite": (lambda w, n: w[n].view(-1)[0].fill_(float("-inf")), "E-ADAPTER-003"),
}


@pytest.mark.parametrize("fault", TENSORS)
def test_a_tensor_that_is_not_as_it_should_be_is_named(fault: str, tiny_base: Path, copy: Path) -> None:
    name = first_tensor(copy)
    harm, code = TENSORS[fault]
    rewrite_weights(copy, lambda weights: harm(weights, name))
    error = refused(base_of(tiny_base), copy)
    assert {problem.code for problem in error.problems} == {code}
    assert any(f"{copy / WEIGHTS}:{name.split('lora_A')[0]}" in problem.where for problem in error.problems)


def test_an_adapter_of_another_base_is_refused_tensor_by_tensor(tiny_base: Path, trained: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    for wider, code in (({"hidden_size": 96}, "E-ADAPTER-006"), ({"num_hidden_layers": 1}, "E-ADAPTER-005")):
        other = Path(shutil.copytree(tiny_base, tmp_path / code))
        config = LlamaConfig.from_pretrained(tiny_base, **wider)
        LlamaForCausalLM(config).save_pretrained(other)
        error = refused(base_of(other), trained)
        assert code in {problem.code for problem in error.problems}
        assert all("base that the adapter was trained on" in problem.remedy for problem in error.problems)


def test_a_classifier_is_no_adapter_for_generation(
    tiny_base: Path, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    rows = make_rows("classification", 24)
    spec = make_spec("classification", tiny_base, steps=1)
    train_adapter(base_of(tiny_base, "classification"), spec, rows, [], tmp_path)
    refused(base_of(tiny_base), tmp_path)
    two = load_base(spec.base, kind="classification", labels=LABELS[:2])
    assert "score.weight" in str(refused(two, tmp_path))


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "LOHA"}, "peft_type"),
    "no kind": ({"peft_type": None}, "peft_type"),
    "a start that changes the base": ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    "another start that changes the base": ({"init_lora_weights": "olora"}, "init_lora_weights"),
    "layers built anew": ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    "a file to unpickle": ({"corda_config": {"cache_file": "/tmp/x.pt"}}, "corda_config"),
    "a module to import": ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "megatron_core"),
    "code to import": ({"auto_mapping": {"base_model_class": "X", "parent_library": "os"}}, "auto_mapping"),
    "a trained bias": ({"bias": "all"}, "bias"),
    "a setting of another version": ({"future_setting": 3}, "future_setting"),
    "no such module": ({"target_modules": ["nope"]}, "nope"),
    "a layer that cannot be adapted": ({"target_modules": ["q_proj", "norm"]}, CONFIG),
    "a rank that is no number": ({"r": "many"}, CONFIG),
    "no rank": ({"r": 0}, CONFIG),
}


@pytest.mark.parametrize("fault", SETTINGS)
def test_a_setting_that_the_factory_never_writes_is_named(fault: str, tiny_base: Path, copy: Path) -> None:
    changes, named = SETTINGS[fault]
    rewrite_config(copy, **changes)
    error = refused(base_of(tiny_base), copy)
    assert all(str(copy / CONFIG) in problem.where for problem in error.problems)
    assert named in str(error)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
def test_a_broken_config_is_refused(content: bytes, tiny_base: Path, copy: Path) -> None:
    (copy / CONFIG).write_bytes(content)
    assert str(copy / CONFIG) in str(refused(base_of(tiny_base), copy))


@pytest.mark.parametrize("cut", [0, 7, 100, 5000])
def test_cut_weights_are_refused(cut: int, tiny_base: Path, copy: Path) -> None:
    path = copy / WEIGHTS
    path.write_bytes(path.read_bytes()[:cut])
    assert "E-ADAPTER-002" in str(refused(base_of(tiny_base), copy))


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["adapter_model.bin", WEIGHTS])
def test_a_pickle_is_never_opened_as_an_adapter(name: str, tiny_base: Path, copy: Path, tmp_path: Path) -> None:
    (copy / WEIGHTS).unlink()
    (copy / name).write_bytes(pickle.dumps(Canary(tmp_path / "owned")))
    assert WEIGHTS in str(refused(base_of(tiny_base), copy))
    assert not (tmp_path / "owned").exists()


def test_a_folder_without_files_lists_them(tiny_base: Path, tmp_path: Path) -> None:
    error = refused(base_of(tiny_base), tmp_path)
    assert [problem.where for problem in error.problems] == [str(tmp_path / name) for name in ADAPTER_FILES]


@pytest.mark.parametrize(("kind", "which"), KINDS)
def test_the_same_spec_and_seed_give_the_same_bytes(
    kind: str, which: str, request: pytest.FixtureRequest, tmp_path: Path, make_rows: Make, make_spec: Make
) -> None:
    base = base_of(folder := request.getfixturevalue(which), kind)
    rows = make_rows(kind, 24)
    for i, seed in enumerate((5, 5, 6)):
        torch.manual_seed(i)  # the caller's own chance has no say
        spec = make_spec(kind, folder, method=MethodSpec(rank=4, dropout=0.2), seed=seed, steps=3)
        train_adapter(base, spec, rows, rows[:8], tmp_path / str(i))
    first, again, other = (digests(tmp_path / str(i)) for i in range(3))
    assert first == again
    assert first[WEIGHTS] != other[WEIGHTS]
    assert first[CONFIG] == other[CONFIG]


def test_no_path_of_this_machine_is_in_the_files(tiny_base: Path, trained: Path) -> None:
    for path in trained.iterdir():
        content = path.read_bytes()
        for place in (tiny_base, trained, Path.home(), Path.cwd()):
            assert str(place).encode() not in content
    assert json.loads((trained / CONFIG).read_text())["base_model_name_or_path"] == tiny_base.name


def test_putting_an_adapter_on_and_writing_it_open_no_socket(
    tiny_base: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    import huggingface_hub.constants

    asked: list[str] = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: asked.append(host) or [])
    monkeypatch.chdir(tmp_path)  # where a folder named like the base does not lie
    with attached(base_of(tiny_base), trained, trainable=True) as model:
        write_adapter(model, tmp_path / "again", "owner/name")
    assert asked == []
    assert digests(tmp_path / "again")[WEIGHTS] == digests(trained)[WEIGHTS]
