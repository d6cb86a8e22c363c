"""Every row of the catalogue, for real: starts as the base, trains what it says, reloads to the same logits, learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.errors import SpecRefused
from tasks.methods.build import attached, fresh_adapter, train_only_what_it_says
from tasks.methods.catalogue import EXTRA, METHODS, TRAINED
from tasks.methods.principal import start_at_principal_inputs
from tasks.specs import AdapterSpec, BaseSpec, MethodSpec
from tasks.training.base import Base, load_base, target_modules
from tasks.training.encoding import encode
from tasks.training.loop import Trained, _readings, train_adapter

LABELS = ("card", "loan", "theft")
Make = Callable[..., Any]
RATES = {"ia3": 3e-2, "layernorm": 1e-2, "prefix": 3e-2, "prompt": 3e-2, "ptuning": 1e-2, "vera": 3e-2, "full": 2e-3}
RATES |= {"bitfit": 1e-2, "loraplus": 1e-3, "adalora": 3e-2}
SLOWER = {"adalora": 3e-2, "full": 1e-3, "vera": 1e-2, "ia3": 1e-2, "loraplus": 5e-4, "layernorm": 1e-2, "bitfit": 1e-2}
BIASED = "tiny_encoder"  # the tiny Llama has no biases


def cells() -> list[tuple[str, str, str, str]]:
    """Every (method, quantization, kind, base) that the catalogue says can work here."""
    found = []
    for name in TRAINED:
        for quantization in ("nf4", "none"):
            for kind, which in (("generation", "tiny_base"), ("classification", BIASED)):
                row = METHODS[name]
                blocked = (quantization == "nf4" and row.not_on_nf4) or (
                    kind == "classification" and row.not_for_classes
                )
                if not blocked and not (name == "bitfit" and which != BIASED):
                    found.append((name, quantization, kind, which))
    return found


def base_of(folder: Path, kind: str, quantization: str) -> Base:
    spec = BaseSpec(model=str(folder), quantization=quantization)  # type: ignore[arg-type]
    return load_base(spec, kind=kind, labels=LABELS if kind == "classification" else ())


def probe(base: Base, model: Any) -> torch.Tensor:
    ids = torch.randint(4, 300, (3, 11), generator=torch.Generator().manual_seed(7))
    model.eval()
    with torch.no_grad(), base.autocast():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
    return logits[:, -11:] if base.kind == "generation" else logits


def bytes_of(model: torch.nn.Module) -> dict[str, bytes]:
    return {
        name: tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, tensor in model.state_dict().items()
        if torch.is_tensor(tensor)
    }


def spec_of(make_spec: Make, name: str, kind: str, folder: Path, quantization: str, steps: int) -> AdapterSpec:
    method = MethodSpec(name=name, rank=8, dropout=0.0)
    others: dict[str, Any] = {"steps": steps, "learning_rate": RATES.get(name, 6e-3), "batch_size": 16}
    if kind == "classification":  # a random encoder: its head starts near its best, and the adapter must do the rest
        others |= {
            "steps": (5 if name in ("bitfit", "layernorm") else 2) * steps,
            "learning_rate": SLOWER.get(name, 6e-3),
            "head_rate": 0.1,
        }
    return make_spec(kind, folder, quantization=quantization, method=method, **others)


@pytest.mark.parametrize(("name", "quantization", "kind", "which"), cells())
def test_it_starts_as_the_base_trains_what_it_says_and_leaves_the_base_as_it_was(
    name: str, quantization: str, kind: str, which: str, request: Any
) -> None:
    base, row, method = (
        base_of(request.getfixturevalue(which), kind, quantization),
        METHODS[name],
        MethodSpec(name=name, rank=8),
    )
    before, alone = bytes_of(base.model), probe(base, base.model)
    modules = target_modules(base.model, method)
    with fresh_adapter(base, method, seed=3) as model:
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        head = sum(p.numel() for n, p in trained.items() if "modules_to_save" in n or ".classifier." in n)
        count = sum(p.numel() for p in trained.values()) - head
        if kind == "generation":
            assert torch.equal(probe(base, model), alone) == row.starts_as_base
        inner = base.model
        expected = {
            "layernorm": sum(
                p.numel() for m in inner.modules() if "norm" in type(m).__name__.lower() for p in m.parameters()
            ),
            "bitfit": sum(
                p.numel() for n, p in inner.named_parameters() if n.endswith(".bias") and "classifier" not in n
            ),
            "full": sum(p.numel() for n, p in inner.named_parameters() if "classifier" not in n),
            "prefix": 2 * 2 * 8 * 32,  # keys and values, two layers, eight tokens, two heads of sixteen
            "prompt": 8 * 64,
            "ptuning": 8 * 64 + 3 * (64 * 64 + 64),
        }
        planned = expected.get(name) or row.parameters(modules, 8)
        assert count == planned
        if row.is_low_rank and name != "shared-a":
            assert all("lora_" in n or "modules_to_save" in n for n in trained)
    assert bytes_of(base.model) == before
    assert torch.equal(probe(base, base.model), alone)
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


@pytest.fixture(scope="module")
def runs() -> dict[tuple[str, ...], tuple[Trained, float]]:
    return {}


@pytest.mark.parametrize(("name", "quantization", "kind", "which"), cells())
def test_it_learns_and_reloads_to_the_same_logits(
    name: str, quantization: str, kind: str, which: str, request: Any, make_rows: Make, make_spec: Make, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(which)
    base = base_of(folder, kind, quantization)
    spec = spec_of(make_spec, name, kind, folder, quantization, 20)
    rows, held_out, seen = make_rows(kind, 160), make_rows(kind, 48, 1), {}
    import tasks.training.loop as loop

    write = loop.write_adapter

    def noting(model: Any, *rest: Any) -> None:
        seen["logits"] = probe(base, model)
        write(model, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "write_adapter", noting)
        done = train_adapter(base, spec, rows, held_out, tmp_path / "adapter")
    best = done.curve.best
    assert best is not None
    assert done.curve.start_loss is not None
    assert best.loss < done.curve.start_loss, f"{done.curve.start_loss:.3f} -> {best.loss:.3f}"
    assert done.change > 0
    with attached(base, tmp_path / "adapter") as model:
        assert torch.allclose(probe(base, model), seen["logits"], atol=1e-5, rtol=1e-5)
        assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", [name for name in TRAINED if name != "bitfit"])
def test_what_it_writes_is_what_its_logits_say(name: str, tiny_base: Path, make_rows: Make) -> None:
    """Greedy decoding through generate, against one forward pass without it."""
    from tasks.evaluation.scoring import answers
    from tasks.training.encoding import prompt_tokens

    base = base_of(tiny_base, "generation", "none")
    prompts = [row.input for row in make_rows("generation", 6)]
    with fresh_adapter(base, MethodSpec(name=name, rank=4), seed=3) as model:
        for answer, ids in zip(
            answers(base, model, prompts, max_new_tokens=1), prompt_tokens(base.tokenizer, prompts), strict=True
        ):
            with torch.no_grad():
                logits = model(
                    input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)
                ).logits
            assert answer.text == base.tokenizer.decode(logits[0, -1:].argmax(-1), skip_special_tokens=True)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in TRAINED])
def test_a_row_that_cannot_work_is_refused_with_its_reason(name: str, tiny_base: Path, make_spec: Make) -> None:
    with pytest.raises(ValueError, match=METHODS[name].refused[:30]):
        spec_of(make_spec, name, "generation", tiny_base, "nf4", 1)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("quantization", ["nf4", "none"])
@pytest.mark.parametrize("kind", ["generation", "classification"])
def test_a_cell_that_cannot_work_is_refused_and_every_other_is_taken(
    name: str, quantization: str, kind: str, tiny_base: Path, make_spec: Make
) -> None:
    row = METHODS[name]
    why = (quantization == "nf4" and row.not_on_nf4) or (kind == "classification" and row.not_for_classes)
    if why:
        with pytest.raises(ValueError, match=f"method {name} cannot be trained here: {why[:20]}"):
            spec_of(make_spec, name, kind, tiny_base, quantization, 1)
    else:
        spec_of(make_spec, name, kind, tiny_base, quantization, 1)


def test_a_base_without_biases_has_nothing_for_bitfit(tiny_base: Path) -> None:
    base = base_of(tiny_base, "generation", "nf4")
    with (
        pytest.raises(SpecRefused, match=r"E-SPEC-041 method\.name: the base has no biases"),
        fresh_adapter(base, MethodSpec(name="bitfit"), 0),
    ):
        pass


def test_shared_a_is_the_same_for_every_seed_and_stays(tiny_base: Path) -> None:
    base, drawn = base_of(tiny_base, "generation", "nf4"), []
    for seed in (0, 5):
        with fresh_adapter(base, MethodSpec(name="shared-a", rank=4), seed) as model:
            drawn.append([p.detach().clone() for n, p in model.named_parameters() if "lora_A" in n])
            assert not any(p.requires_grad for n, p in model.named_parameters() if "lora_A" in n)
            assert train_only_what_it_says(model, MethodSpec(name="shared-a")) is model
    assert all(torch.equal(one, other) for one, other in zip(*drawn, strict=True))


def test_two_shared_a_adapters_add_exactly_at_their_own_rank(tiny_base: Path) -> None:
    """s B1 A + s B2 A = s (B1 + B2) A, the property that the row is for, against the sum of dense updates."""
    base = base_of(tiny_base, "generation", "none")
    with fresh_adapter(base, MethodSpec(name="shared-a", rank=4, alpha=8), 0) as model:
        layers = [m for m in model.modules() if hasattr(m, "lora_A") and "default" in getattr(m, "lora_A", {})]
        a, b = layers[0].lora_A["default"].weight.detach(), layers[0].lora_B["default"].weight
        one, two = torch.randn_like(b), torch.randn_like(b)
        dense = 2.0 * (one @ a) + 2.0 * (two @ a)
        assert torch.allclose(2.0 * ((one + two) @ a), dense, atol=1e-5)
        assert torch.linalg.matrix_rank(dense) <= 4


def test_bottlenecks_stand_where_the_paper_puts_them_and_have_its_count(tiny_base: Path) -> None:
    """Houlsby et al. 2019, section 2.1: 2md + d + m parameters each, two in a layer."""
    base = base_of(tiny_base, "generation", "nf4")
    with fresh_adapter(base, MethodSpec(name="bottleneck", rank=6), 0) as model:
        assert sorted(model.settings["bottlenecks"]) == [
            f"model.layers.{layer}.{place}" for layer in (0, 1) for place in ("mlp.down_proj", "self_attn.o_proj")
        ]
        assert sum(p.numel() for p in model.trained().values()) == 4 * (2 * 6 * 64 + 64 + 6)


def test_b_learns_sixteen_times_as_fast_in_loraplus_alone(tiny_base: Path, make_spec: Make) -> None:
    from tasks.training.optimiser import optimizer_of

    base = base_of(tiny_base, "generation", "none")
    spec = spec_of(make_spec, "loraplus", "generation", tiny_base, "none", 1)
    with fresh_adapter(base, spec.method, 0) as model:
        for name, ratio in (("loraplus", 16.0), ("lora", 1.0)):
            groups = optimizer_of(model, spec.training, base, 1e-3, METHODS[name].b_rate).param_groups
            rates = {id(p): group["lr"] for group in groups for p in group["params"]}
            found = {n: rates[id(p)] for n, p in model.named_parameters() if p.requires_grad}
            assert {rate for n, rate in found.items() if "lora_A" in n} == {1e-3}
            assert {rate for n, rate in found.items() if "lora_B" in n} == {ratio * 1e-3}


@pytest.mark.parametrize(
    "harm", [{"method": 3}, {"extra": 1}, {"bottlenecks": {"x": -1}}, {"rank": True}, {"trains": None}]
)
def test_a_folder_of_ours_that_says_anything_else_is_refused(
    harm: dict[str, Any], tiny_base: Path, make_rows: Make, make_spec: Make, tmp_path: Path
) -> None:
    import json

    from tasks.errors import ArtifactRefused
    from tasks.methods.build import write_adapter

    base = base_of(tiny_base, "generation", "nf4")
    with fresh_adapter(base, MethodSpec(name="layernorm"), 0) as model:
        write_adapter(model, tmp_path, "tiny")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | harm))
    with pytest.raises(ArtifactRefused, match="E-ADAPTER-007"), attached(base, tmp_path):
        pass


def test_the_table_names_each_family_that_it_builds() -> None:
    assert {row.family for row in METHODS.values()} == {
        EXTRA,
        "LORA",
        "ADALORA",
        "VERA",
        "IA3",
        "PREFIX_TUNING",
        "PROMPT_TUNING",
        "P_TUNING",
    }


def test_the_page_about_methods_is_what_the_table_says() -> None:
    from tasks.methods.document import methods_page

    assert Path("docs/methods.md").read_text(encoding="utf-8") == methods_page()
    assert all(f"`{name}`" in methods_page() for name in METHODS)


def test_evas_a_is_the_principal_subspace_of_what_each_module_reads_and_b_is_zero(
    tiny_base: Path, make_rows: Make
) -> None:
    base = base_of(tiny_base, "generation", "none")
    rows = encode(base, make_rows("generation", 24))
    read: dict[str, list[torch.Tensor]] = {}
    with fresh_adapter(base, MethodSpec(name="eva", rank=3, dropout=0.0), seed=0) as model:
        calls = list(_readings(base, model, rows, 8))
        layers = {name: m for name, m in model.named_modules() if hasattr(m, "lora_A") and len(m.lora_A)}

        def keeping(name: str) -> Any:
            return lambda _, x: read.setdefault(name, []).append(x[0].flatten(0, 1))

        hooks = [layer.register_forward_pre_hook(keeping(name)) for name, layer in layers.items()]
        with torch.no_grad():
            for call in calls:
                call()
        for hook in hooks:
            hook.remove()
        before = probe(base, model)
        assert start_at_principal_inputs(model, calls) == len(layers) == 14
        assert torch.equal(probe(base, model), before)
        for name, layer in layers.items():
            A = layer.lora_A["default"].weight.double()
            torch.testing.assert_close(A @ A.T, torch.eye(3).double(), atol=1e-5, rtol=0)
            X = torch.cat(read[name]).double()
            held = float((X @ A.T).pow(2).sum())
            best = float((torch.linalg.svdvals(X)[:3] ** 2).sum())
            assert held == pytest.approx(best, rel=1e-2)  # batch by batch, the weakest let go
