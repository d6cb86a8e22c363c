"""A version leaves the ledger in the form that was asked for, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

PROMPTS = 3


@pytest.fixture(scope="module")
def pair(factory: Any, intent: Any, fleet: Any) -> Any:
    """Two experts summed, which a plain adapter of their ranks together can hold."""
    from flows.merge import merge

    rules = [{"rule": "task_arithmetic", "scale": [0.8]}]
    recipe = factory.recipe("pair", ["intent:1", "tone:1"], rules=rules, gates={"min_retention": -9, "min_rows": 30})
    with factory.active(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.export.answer.answer_in_fresh_process", lambda _, asked, **__: ("yes",) * len(asked))
        return merge(str(recipe))


def artifact_of(factory: Any, name: str) -> Path:
    ((artifact,),) = factory.sql("SELECT artifact FROM versions WHERE name = ? AND number = 1", name)
    return next(iter(factory.files(artifact).values())).parent


def logits(model: Any, folder: Path, prompts: list[str]) -> list[Any]:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [model(**tokenizer(prompt, return_tensors="pt")).logits[0].numpy() for prompt in prompts]


def test_an_adapter_is_exported_with_its_base_and_agrees_with_it(
    factory: Any, intent: Any, desk: Any, tmp_path: Path
) -> None:
    """The command's own comparison, in a fresh process, is on the 4-bit base; it says what it measured."""
    said = factory.run("--json", "export", "intent:1", "--out", tmp_path / "model")
    assert said.code == 0, said.err
    note = json.loads(said.out)["result"]["note"]
    assert note.startswith("its logits are within ")
    assert float(note.split()[4]) < 0.005
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert {"config.json", "manifest.json", "model.safetensors", "README.md"} <= {
        path.name for path in (tmp_path / "model").iterdir()
    }


def test_a_merge_is_exported_as_an_adapter_that_peft_loads(factory: Any, pair: Any, desk: Any, tmp_path: Path) -> None:
    import numpy
    import peft
    import torch
    import transformers
    from safetensors.torch import load_file

    said = factory.run(
        "--json", "export", "pair:1", "--format", "adapter", "--energy", "1", "--out", tmp_path / "adapter"
    )
    assert said.code == 0, said.err
    assert json.loads(said.out)["result"]["note"].startswith("up to 0.00%")
    stored = artifact_of(factory, "pair")
    merged = transformers.AutoModelForCausalLM.from_pretrained(stored).eval()
    base = transformers.AutoModelForCausalLM.from_pretrained(stored).eval()
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    named = dict(base.named_parameters())
    for key in (key for key in adapter if key.endswith("lora_A.weight")):  # alpha is the rank
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        with torch.no_grad():
            named[f"{module}.weight"] -= adapter[key.replace("lora_A", "lora_B")] @ adapter[key]
    prompts = [row["text"] for row in desk["intent"].rows(PROMPTS, seed=51)]
    expected = logits(merged, stored, prompts)
    adapted = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    for one, other in zip(logits(adapted, stored, prompts), expected, strict=True):
        numpy.testing.assert_allclose(one, other, atol=1e-3)


def test_a_merge_that_was_measured_on_rows_is_exported_as_an_adapter_with_its_loss(
    factory: Any, intent: Any, fleet: Any, tmp_path: Path, at_its_word: None
) -> None:
    """The witness is the stored model against the base as the adapters saw it: at full energy nothing is left over."""
    import torch
    from safetensors.torch import load_file

    recipe = factory.recipe(
        "fitted", ["intent:1", "tone:1"], rules=[{"rule": "regmean"}], gates={"min_retention": -9, "min_rows": 30}
    )
    assert factory.run("merge", recipe).code == 0
    lost = {}
    for words in (("--energy", 1), ("--rank", 4)):
        out = tmp_path / str(words[1])
        said = factory.run("--json", "export", "fitted:1", "--format", "adapter", *words, "--out", out)
        assert said.code == 0, said.err
        lost[words[0]] = float(json.loads(said.out)["result"]["note"].split()[2].rstrip("%"))
    assert lost["--energy"] == 0
    assert 0 < lost["--rank"] < 100
    adapter, stored = load_file(tmp_path / "1" / "adapter_model.safetensors"), artifact_of(factory, "fitted")
    weights = load_file(stored / "model.safetensors")
    base = factory.base_as_the_adapters_saw_it()
    for key in (key for key in adapter if key.endswith("lora_A.weight")):
        module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        change = weights[f"{module}.weight"] - base.get_submodule(module).weight.data
        found = adapter[key.replace("lora_A", "lora_B")] @ adapter[key]
        assert torch.linalg.norm(found - change) < 1e-3 * torch.linalg.norm(change)


def test_a_merge_is_exported_as_gguf(factory: Any, pair: Any, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    said = factory.run("export", "pair:1", "--format", "gguf", "--out", tmp_path / "pair.gguf")
    assert said.code == 0, said.err
    assert gguf.GGUFReader(tmp_path / "pair.gguf").fields["general.name"].contents() == "pair"
    assert [path.name for path in tmp_path.iterdir()] == ["pair.gguf"]


def test_a_stored_form_is_copied_as_it_is(factory: Any, pair: Any, tmp_path: Path) -> None:
    for name, form in (("intent", "adapter"), ("pair", "transformers")):
        said = factory.run("export", f"{name}:1", "--format", form, "--out", tmp_path / form)
        assert said.code == 0, said.err
        copied = {path.name: path.read_bytes() for path in (tmp_path / form).iterdir() if path.is_file()}
        assert copied == {p.name: p.read_bytes() for p in artifact_of(factory, name).iterdir() if p.is_file()}


def test_a_base_that_has_changed_since_is_not_merged_into(factory: Any, pair: Any, tmp_path: Path) -> None:
    added = factory.base / "vocab.extra"
    added.write_text("a word")
    try:
        for words in (("intent:1",), ("pair:1", "--format", "adapter", "--energy", "1")):
            said = factory.run("export", *words, "--out", tmp_path / "out")
            assert said.code == 4
            assert "E-MERGE-042" in said.lines[-1]
            assert "has changed" in said.lines[-1]
    finally:
        added.unlink()
    assert list(tmp_path.iterdir()) == []


def test_with_a_key_what_is_unsigned_stays_here_and_what_leaves_is_signed(
    factory: Any, intent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("model_signing", reason="the extra `signing` is not installed")
    import subprocess
    import sys

    key, public, out = tmp_path / "factory.pem", tmp_path / "factory.pub", tmp_path / "adapter"
    for words in (["ecparam", "-name", "prime256v1", "-genkey", "-noout"], ["ec", "-in", str(key), "-pubout"]):
        made = public if key.exists() else key
        subprocess.run(["openssl", *words, "-out", str(made)], check=True, capture_output=True)
    monkeypatch.setitem(factory.settings, "FACTORY_SIGNING_KEY", str(key))
    refused = factory.run("export", "intent:1", "--format", "adapter", "--out", out)
    assert refused.code == 4
    assert refused.lines[-1].startswith("E-SIGN-002 intent:1: is not signed")
    assert not out.exists()
    assert factory.run("sign", "intent:1").code == 0
    said = factory.run("export", "intent:1", "--format", "adapter", "--out", out)
    assert said.code == 0, said.err
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(out)]
    command += ["--signature", str(out / "model.sig"), "--public_key", str(public)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (("intent:1", "--format", "onnx", "--out", "x"), 2, "E-EXPORT-007 --format: 'onnx' is no format"),
        (("intent:1", "--out", "."), 2, "E-EXPORT-001"),
        (("nobody:1", "--out", "x"), 2, "nobody"),
        (("mood:1", "--format", "gguf", "--out", "x"), 2, "E-EXPORT-009 mood:1: is a classifier"),
        (("pair:1", "--format", "adapter", "--out", "x"), 2, "E-MERGE-010"),
        (("intent:1", "--format", "adapter", "--rank", "2", "--out", "x"), 2, "E-EXPORT-010 --rank, --energy"),
        (("pair:1", "--format", "gguf", "--energy", "0.9", "--out", "x"), 2, "E-EXPORT-010 --rank, --energy"),
        (("intent:1", "--out", "/dev/null/x"), 2, "E-SPEC-049 --out /dev/null/x: cannot be written: not a directory"),
        (("intent:1", "--out", "x" * 300), 2, "cannot be written: file name too long"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    factory: Any,
    pair: Any,
    mood: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    code: int,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = factory.run("export", *words)
    assert said.code == code
    assert expected in said.lines[-1]
    assert list(tmp_path.iterdir()) == []
