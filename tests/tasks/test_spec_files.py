"""Specs from files: every fault is one line that names file, line and remedy; nothing is read without end."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import SHOWN, Problem, SpecRefused
from tasks.spec_files import MAX_BYTES, is_merge_recipe, load_adapter_spec, load_merge_spec

GOOD = """\
task: triage
kind: generation
base:
  model: ./base
data:
  source: ./rows.jsonl
  prompt: "{message} ->"
  completion: " {intent}"
"""
LINE = re.compile(r"^E-SPEC-\d{3} \S+: .+ -> .+$", re.DOTALL)


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "spec.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(folder: Path, content: str | bytes) -> list[Problem]:
    """The problems of a refused spec; each keeps the form that people and scripts read."""
    with pytest.raises(SpecRefused) as caught:
        load_adapter_spec(written(folder, content))
    assert caught.value.exit_code == 2
    assert all(LINE.match(line) and len(line) < 600 for line in caught.value.lines()[:SHOWN])
    return list(caught.value.problems)


def the_one(folder: Path, content: str | bytes) -> Problem:
    (problem,) = refused(folder, content)
    return problem


def test_1e_4_is_a_number(tmp_path: Path) -> None:
    spec = load_adapter_spec(written(tmp_path, GOOD + "training: {learning_rate: 1e-4, epochs: 2, warmup: 0}\n"))
    assert (spec.training.learning_rate, spec.training.epochs, spec.training.warmup) == (0.0001, 2.0, 0.0)


def test_yes_and_no_are_labels_not_booleans(tmp_path: Path) -> None:
    assert load_adapter_spec(written(tmp_path, GOOD + "  labels: [yes, no, on]\n")).data.labels == ("yes", "no", "on")


@pytest.mark.parametrize(
    ("text", "line", "field", "remedy"),
    [
        (GOOD + "method:\n  rnk: 3\n", 10, "method.rnk", "did you mean 'rank'?"),
        (GOOD + "trainig: {}\n", 9, "trainig", "did you mean 'training'?"),
        (GOOD.replace("prompt:", "promt:"), 7, "data.promt", "did you mean 'prompt'?"),
        (GOOD + "evaluation:\n  gates: {beat_bas_by: 0}\n", 10, "evaluation.gates.beat_bas_by", "'beat_base_by'"),
        (GOOD + "  expectations:\n    - expect: expect_x\n      severty: warning\n", 11, "severty", "'severity'"),
        (GOOD.replace("./base", "./base\n  trust_remote_code: true"), 5, "base.trust_remote_code", "quantization"),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_the_nearest_key(
    tmp_path: Path, text: str, line: int, field: str, remedy: str
) -> None:
    problem = next(found for found in refused(tmp_path, text) if found.code == "E-SPEC-005")
    assert problem.where.startswith(f"{tmp_path / 'spec.yaml'}:{line}:")
    assert problem.where.endswith(field)
    assert remedy in problem.remedy


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("method", "rank", value)
        for value in ("0", "-1", "1e9", "1000000000", "true", '"16"', "16.5", ".nan", "~", "[16]", "{a: 1}")
    ]
    + [("method", "alpha", "0"), ("method", "dropout", "1.0"), ("method", "dropout", "-1")]
    + [("method", "targets", value) for value in ("5", "q_proj", "[]", "[5]", "{q: 1}")]
    + [("method", "layers", "[]"), ("method", "layers", "[first]"), ("method", "name", "lorax")]
    + [("training", "learning_rate", value) for value in ("0", ".nan", ".inf", "-.inf", "1e9", "1e400", "fast")]
    + [("training", "learning_rate", '"1e-4"')]
    + [("training", "epochs", "0"), ("training", "batch_size", "0"), ("training", "gradient_checkpointing", "1")]
    + [("data", "labels", "[a, 1]"), ("data", "completion", "no column"), ("base", "revision", "main")],
)
def test_a_wrong_value_is_one_problem_at_its_line(tmp_path: Path, section: str, key: str, value: str) -> None:
    lines = [line for line in GOOD.splitlines() if not line.startswith(f"  {key}:")]
    if f"{section}:" not in lines:
        lines.append(f"{section}:")
    at = lines.index(f"{section}:") + 1
    lines.insert(at, f"  {key}: {value}")
    problem = the_one(tmp_path, "\n".join(lines))
    assert problem.where.startswith(f"{tmp_path / 'spec.yaml'}:{at + 1}:{section}.{key}")


@pytest.mark.parametrize("seed", ["-1", "18446744073709551616", "9" * 300, "1.5", "true"])
def test_a_seed_beyond_32_bits_is_refused(tmp_path: Path, seed: str) -> None:
    assert the_one(tmp_path, GOOD + f"seed: {seed}\n").where.endswith(":9:seed")


def test_all_faults_of_a_file_are_told_together(tmp_path: Path) -> None:
    text = GOOD.replace("task: triage", "task: ../x") + "method: {rank: 0, rnk: 1}\ntraining: {epochs: -1}\n"
    assert [problem.where.rsplit(":", 1)[1] for problem in refused(tmp_path, text)] == [
        "task",
        "method.rank",
        "method.rnk",
        "training.epochs",
    ]


def test_more_than_twenty_faults_are_twenty_and_a_count(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD + "method:\n" + "".join(f"  key{i}: 1\n" for i in range(33)))
    with pytest.raises(SpecRefused) as caught:
        load_adapter_spec(path)
    assert len(caught.value.lines()) == SHOWN + 1
    assert caught.value.lines()[-1] == "... and 13 more"


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        (GOOD + "task: again\n", "E-SPEC-003", 9),
        (GOOD + "  source: ./other.jsonl\n", "E-SPEC-003", 9),
        (GOOD + "a: &x 1\nb: *x\n", "E-SPEC-004", 9),
        (GOOD + "a: &x [1]\n", "E-SPEC-004", 9),
        (GOOD + "a: !!python/object/apply:os.system [touch /tmp/owned]\n", "E-SPEC-004", 9),
        (GOOD + "a: !custom 1\n", "E-SPEC-004", 9),
        (GOOD + "a: !!str 1\n", "E-SPEC-004", 9),
        (GOOD + "a: " + "[" * 10_000 + "\n", "E-SPEC-004", 9),
        ("{a: " * 10_000, "E-SPEC-004", 1),
        (GOOD + "a: [1\n", "E-SPEC-002", 10),
        (GOOD + "---\ntask: other\n", "E-SPEC-002", 9),
        (GOOD + "\tx: 1\n", "E-SPEC-002", 9),
        (GOOD + "x: a\0b\n", "E-SPEC-002", 9),
        (GOOD + f"seed: {'9' * 5000}\n", "E-SPEC-002", 1),
    ],
)
def test_yaml_that_could_surprise_is_refused_at_its_line(tmp_path: Path, text: str, code: str, line: int) -> None:
    problem = the_one(tmp_path, text)
    assert (problem.code, problem.where) == (code, f"{tmp_path / 'spec.yaml'}:{line}")


def test_a_bomb_of_aliases_never_expands(tmp_path: Path) -> None:
    rows = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    rows += [f"{n}: &{n} [{', '.join(['*' + p] * 9)}]" for p, n in zip("abcdefgh", "bcdefghi", strict=True)]
    assert the_one(tmp_path, "\n".join(rows)).code == "E-SPEC-004"


@pytest.mark.parametrize("content", [b"", b"# only a comment\n", b"- a\n- b\n", b"text\n", b"~\n"])
def test_a_file_without_keys_is_no_spec(tmp_path: Path, content: bytes) -> None:
    assert the_one(tmp_path, content).code == "E-SPEC-002"


@pytest.mark.parametrize("content", [b"task: caf\xe9\n", GOOD.encode("utf-16"), b"\xff\xfe\x00", b"task: \x80triage"])
def test_bytes_that_are_not_utf_8_are_refused_with_their_place(tmp_path: Path, content: bytes) -> None:
    problem = the_one(tmp_path, content)
    assert problem.code == "E-SPEC-001"
    assert re.search(r"byte \d+ is not UTF-8", problem.wrong)


def test_a_spec_may_begin_with_a_byte_order_mark_and_end_lines_like_windows(tmp_path: Path) -> None:
    assert load_adapter_spec(written(tmp_path, b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())).task == "triage"


def test_a_file_over_the_cap_is_refused_unread(tmp_path: Path) -> None:
    padded = GOOD + "#" * (MAX_BYTES - len(GOOD) - 1) + "\n"
    assert load_adapter_spec(written(tmp_path, padded)).task == "triage"
    assert the_one(tmp_path, padded + "\n").code == "E-SPEC-001"
    with (tmp_path / "spec.yaml").open("wb") as file:
        file.truncate(50 * 1024**3)  # sparse: 50 GiB that no machine would read in time
    with pytest.raises(SpecRefused):
        load_adapter_spec(tmp_path / "spec.yaml")


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), tmp_path / "absent.yaml", tmp_path / "a\0b"):
        with pytest.raises(SpecRefused) as caught:
            load_adapter_spec(path)
        (problem,) = caught.value.problems
        assert (problem.code, problem.where) == ("E-SPEC-001", str(path))


def test_a_path_is_relative_to_the_spec_and_a_home_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("MODELS", "/models")
    monkeypatch.chdir("/")
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").mkdir()
    for written_as, meant in (
        ("./base", tmp_path / "base"),
        ("../base", tmp_path.parent / "base"),
        ("base", tmp_path / "base"),
        ("/abs/base", Path("/abs/base")),
        ("~/base", Path("/home/someone/base")),
        ("${MODELS}/base", Path("/models/base")),
        ("owner/name", tmp_path / "owner" / "name"),  # a folder of that name is meant, not the hub
    ):
        assert load_adapter_spec(written(tmp_path, GOOD.replace("./base", written_as))).base.model == str(meant)


def test_a_data_file_in_a_folder_is_no_hub_id(tmp_path: Path) -> None:
    spec = load_adapter_spec(written(tmp_path, GOOD.replace("./rows.jsonl", "data/rows.jsonl")))
    assert spec.data.source == str(tmp_path / "data" / "rows.jsonl")


@pytest.mark.parametrize("name", ["owner/name", "Qwen/Qwen2.5-0.5B", "a/b.c-d_e"])
def test_a_hub_id_needs_the_hash_of_a_commit(tmp_path: Path, name: str) -> None:
    for section, local in (("base.model", "./base"), ("data.source", "./rows.jsonl")):
        problem = the_one(tmp_path, GOOD.replace(local, name))
        assert (problem.code, problem.where.rsplit(":", 1)[1]) == ("E-SPEC-008", section)
        pinned = load_adapter_spec(written(tmp_path, GOOD.replace(local, f"{name}\n  revision: {'0a' * 20}")))
        assert name in (pinned.base.model, pinned.data.source)


def test_a_local_path_has_no_revision(tmp_path: Path) -> None:
    problem = the_one(tmp_path, GOOD.replace("./base", f"./base\n  revision: {'0a' * 20}"))
    assert (problem.code, problem.where.rsplit(":", 1)[1]) == ("E-SPEC-008", "base.model")


@pytest.mark.parametrize(
    "url", ["https://someone:hunter2@hub.example/owner/name", "file:///etc/hunter2", "s3://hunter2/x"]
)
def test_a_url_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    problem = the_one(tmp_path, GOOD.replace("./base", url))
    assert (problem.code, problem.where.rsplit(":", 2)[1:]) == ("E-SPEC-008", ["4", "base.model"])
    assert "hunter2" not in str(problem)


def test_a_variable_that_is_not_set_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    problem = the_one(tmp_path, GOOD.replace("./rows.jsonl", "${NOT_THERE}/rows.jsonl"))
    assert (problem.code, problem.where.rsplit(":", 2)[1:]) == ("E-SPEC-007", ["6", "data.source"])
    assert "NOT_THERE" in problem.wrong


def test_a_variable_is_expanded_in_places_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    spec = load_adapter_spec(written(tmp_path, GOOD.replace("{message} ->", "${{SECRET}} {message} ->")))
    assert spec.data.prompt == "${{SECRET}} {message} ->"


def test_a_recipe_with_parents_is_a_merge(tmp_path: Path) -> None:
    path = written(tmp_path, "name: all\nparents: [a@champion, b:2]\nrules:\n  - {rule: ties, density: [0.2]}\n")
    assert is_merge_recipe(path)
    assert load_merge_spec(path).parents == ("a@champion", "b:2")
    assert not is_merge_recipe(written(tmp_path, GOOD))
    with pytest.raises(SpecRefused, match=r"spec\.yaml:4:rules\.0\.densty: unknown key .*mean 'density'"):
        load_merge_spec(written(tmp_path, "name: all\nparents: [a]\nrules:\n  - {rule: ties, densty: [0.2]}\n"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_spec_is_read_or_refused_and_never_anything_else(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(GOOD, "utf-8")
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4) | st.sampled_from(TOKENS))
    with suppress(SpecRefused):
        load_adapter_spec(written(tmp_path, bytes(content)))


TOKENS = [b"{", b"}", b"[", b"]", b": ", b"\n", b"- ", b"&a ", b"*a", b"!!", b"? ", b"| ", b'"', b"<<: ", b"%", b"${A}"]


@pytest.mark.parametrize("targets", ["[q_proj, v_proj]", "\n  - q_proj\n  - v_proj"])
def test_modules_and_layers_are_lists_in_a_file(targets: str, tmp_path: Path) -> None:
    spec = load_adapter_spec(written(tmp_path, GOOD + f"method:\n  layers: [0, 3]\n  targets: {targets}\n"))
    assert (spec.method.targets, spec.method.layers) == (("q_proj", "v_proj"), (0, 3))
