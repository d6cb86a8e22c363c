"""Wrong input through the command line: one line per problem, the right exit code, and nothing left behind."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

LINE = re.compile(r"^E-[A-Z]+-\d{3} .+: .+ -> .+$")


class Shop(NamedTuple):
    """What a wrong request is built from."""

    factory: Any
    task: Any
    folder: Path

    def spec(self, **changes: Any) -> Path:
        return self.factory.spec(self.task, "wrong", **changes)

    def data(self, *rows: Any) -> Path:
        return self.factory.rows("wrong.jsonl", rows)

    def base(self, *, without: str = "", config: dict[str, Any] | None = None) -> str:
        folder = self.folder / "base"
        shutil.copytree(self.factory.base, folder)
        for path in folder.glob(without) if without else ():
            path.unlink()
        if config:
            path = folder / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return str(folder)

    def written(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path


@pytest.fixture(scope="module")
def opened(factory: Any, desk: Any) -> Any:
    """A home that is there, with one snapshot in it."""
    assert factory.run("validate", factory.spec(desk["tone"])).code == 0
    return factory


def rows_of(shop: Shop, wrong: int, **fields: Any) -> Path:
    rows = shop.task.rows(280, seed=0)
    return shop.data(*({**row, **fields} if place < wrong else row for place, row in enumerate(rows)))


LABELLED = {"data__label_column": "label"}
REFUSED: dict[str, tuple[int, str, Callable[[Shop], tuple[object, ...]]]] = {
    "a spec that is not there": (2, "E-SPEC-001 .*no such file", lambda s: ("train", s.folder / "nope.yaml")),
    "a folder as a spec": (2, "E-SPEC-001 .*is not a regular file", lambda s: ("train", s.folder)),
    "a spec in no known encoding": (
        2,
        "E-SPEC-001 .*is not UTF-8",
        lambda s: ("train", s.written("a.yaml", b"task: \xff")),
    ),
    "a spec that is no YAML": (
        2,
        r"E-SPEC-002 .*a\.yaml:2",
        lambda s: ("train", s.written("a.yaml", b"task: x\n  y: [\n")),
    ),
    "an unknown key": (
        2,
        r"E-SPEC-005 .*wrong\.yaml:\d+:method\.rnak: unknown key 'rnak' -> did you mean 'rank'\?",
        lambda s: ("train", s.spec(method__rnak=4)),
    ),
    "an unknown method": (
        2,
        "E-SPEC-006 .*method.name: 'loar' is not a method",
        lambda s: ("train", s.spec(method__name="loar")),
    ),
    "a name that is none": (2, "E-SPEC-006 .*lower-case letters", lambda s: ("train", s.spec(task="My Task"))),
    "a merge recipe where a spec is wanted": (
        2,
        "E-SPEC-005 .*unknown key 'parents'",
        lambda s: ("train", s.factory.recipe("recipe", ["intent:1"])),
    ),
    "a hub id without its revision": (
        2,
        "E-SPEC-008 .*no revision",
        lambda s: ("plan", s.spec(base__model="org/model")),
    ),
    "a rank above the dimension": (
        2,
        r"E-SPEC-012 method.rank: rank 65 is above the dimension of .* \(.*\) -> use a rank of at most \d+",
        lambda s: ("train", s.spec(method__rank=65)),
    ),
    "a layer that the base lacks": (
        2,
        "E-SPEC-011 .*there is no layer 7",
        lambda s: ("plan", s.spec(method__layers=[7])),
    ),
    "more than the memory": (
        2,
        "E-SPEC-013 .*GiB are there",
        lambda s: ("train", s.spec(resources__memory_gib=0.0001)),
    ),
    "a size that is none": (2, "E-SPEC-016 --device: 'lots'", lambda s: ("plan", s.spec(), "--device", "lots")),
    "a device too small": (2, "E-SPEC-013", lambda s: ("plan", s.spec(), "--device", "1MiB")),
    "a recipe that is not there": (2, "E-SPEC-001", lambda s: ("merge", s.folder / "nope.yaml")),
    "an unknown kind of schema": (2, "E-SPEC-015 .*'adaptor'", lambda s: ("schema", "adaptor")),
    "an unknown command": (2, "E-SPEC-019 factory: no such command 'trian'", lambda s: ("trian",)),
    "a missing argument": (2, "E-SPEC-019 factory train: missing argument", lambda s: ("train",)),
    "an unknown option": (
        2,
        "E-SPEC-019 factory train: no such option: --ranks",
        lambda s: ("train", "x", "--ranks", "4"),
    ),
    "an unknown start": (
        2,
        "E-SPEC-019 factory retrain: .*'middle'",
        lambda s: ("retrain", "tone", "--start", "middle"),
    ),
    "a share above one": (2, "E-SPEC-019 factory retrain", lambda s: ("retrain", "tone", "--replay-share", "1.5")),
    "an unknown name": (2, "E-LEDGER-001 nobody-here: ", lambda s: ("show", "nobody-here")),
    "a reference that is none": (2, "E-LEDGER-004 ", lambda s: ("lineage", "Some Thing")),
    "a task without a champion": (3, "E-DRIFT-021 nobody: no version is served", lambda s: ("retrain", "nobody")),
    "a data file that is not there": (
        3,
        "E-DATA-001 .*no such file",
        lambda s: ("train", s.spec(data__source="gone.jsonl")),
    ),
    "a data file of another kind": (
        3,
        "E-DATA-001 .*names no data format",
        lambda s: ("train", s.spec(data__source=str(s.written("rows.pickle", b"\x80\x04")))),
    ),
    "no rows": (3, "E-DATA-005 .*no rows", lambda s: ("train", s.spec(data=s.data()))),
    "a column that the rows lack": (
        3,
        "E-DATA-004 .*'text'",
        lambda s: ("train", s.spec(data=s.data({"words": "a", "label": "b"}))),
    ),
    "many labels outside the set": (
        3,
        r"E-DATA-\d+ .*wrong.jsonl:1:label: .*'other'",
        lambda s: ("train", s.spec(data=rows_of(s, 40, label="other"), data__labels=list(s.task.labels), **LABELLED)),
    ),
    "half a base": (
        4,
        "E-BASE-003 .*has no safetensors weights",
        lambda s: ("train", s.spec(base__model=s.base(without="*.safetensors"))),
    ),
    "no base": (4, "E-BASE-002 .*no such folder", lambda s: ("train", s.spec(base__model=str(s.folder / "gone")))),
    "a base that brings code": (
        4,
        "E-BASE-005 .*auto_map",
        lambda s: ("train", s.spec(base__model=s.base(config={"auto_map": {"AutoModel": "evil.Model"}}))),
    ),
    "a base whose weights do not fit its config": (
        4,
        "E-BASE-004 .*weights are missing or misshapen",
        lambda s: ("train", s.spec(base__model=s.base(config={"hidden_size": 32}))),
    ),
    "a hub that cannot be reached": (
        7,
        "E-BASE-001 org/model: cannot be fetched",
        lambda s: ("plan", s.spec(base__model="org/model", base__revision="0" * 40)),
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(opened: Any, desk: Any, tmp_path: Path, what: str) -> None:
    code, expected, words = REFUSED[what]
    asked = words(Shop(opened, desk["tone"], tmp_path))
    before = opened.remembered()
    content = {"bases": 0}  # a base that was looked at may be known by its content,
    content |= {"runs": 0, "attempts": 0, "leases": 0}  # and that something was tried is known too
    said = opened.run("--json", *asked)
    assert said.code == code, said.err
    assert re.search(expected, said.err), said.err
    answer = json.loads(said.out)
    assert (answer["ok"], answer["exit_code"]) == (False, code)
    shown = [f"{p['code']} {p['where']}: {p['wrong']} -> {p['remedy']}" for p in answer["problems"]]
    assert said.lines == (shown if len(shown) <= 20 else [*shown[:20], f"... and {len(shown) - 20} more"])
    assert [line for line in shown if not LINE.match(line)] == []
    assert opened.remembered() | content == before | content
    assert opened.litter() == []


def test_a_gpu_that_is_not_there(opened: Any, desk: Any) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    before = opened.remembered()
    said = opened.run("--quiet", "train", opened.spec(desk["tone"], "wrong", resources__device="cuda"))
    assert (said.code, [line.split(":")[0] for line in said.lines]) == (2, ["E-SPEC-009 resources.device"])
    assert opened.remembered() == before


def test_few_labels_outside_the_set_are_kept_out_row_by_row_and_the_rest_goes_on(
    opened: Any, desk: Any, tmp_path: Path
) -> None:
    shop = Shop(opened, desk["tone"], tmp_path)
    spec = shop.spec(data=rows_of(shop, 3, label="other"), data__labels=list(shop.task.labels), **LABELLED)
    said = opened.run("validate", spec)
    assert said.code == 0
    assert [line.split(":")[0] for line in said.out.splitlines()[:3]] == [
        f"wrong.jsonl row {n} label" for n in (1, 2, 3)
    ]
    counts = opened.sql("SELECT rows_in, accepted, quarantined, deduplicated FROM datasets ORDER BY rowid DESC LIMIT 1")
    assert counts == [(280, 277, 3, 0)]


BAD = {"empty": [], "blank": [{"text": " ", "label": "yes"}] * 40}


def test_all_specs_of_a_fleet_are_read_and_all_their_faults_told_together(
    opened: Any, desk: Any, tmp_path: Path
) -> None:
    one = opened.spec(desk["tone"], "one", method__rnak=1, trainin__steps=2)
    two = opened.spec(desk["tone"], "two", data__promt="x")
    said = opened.run("--quiet", "fleet", one, two, tmp_path / "three.yaml")
    assert said.code == 2
    assert ["one.yaml" in line for line in said.lines] == [True, True, False, False]
    assert ["two.yaml" in line for line in said.lines] == [False, False, True, False]


def test_the_data_of_a_whole_fleet_is_looked_at_before_the_first_is_trained(
    opened: Any, desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.train.train", lambda *_: pytest.fail("a spec was trained"))
    good = opened.spec(desk["tone"])
    empty, blank = (
        opened.spec(desk["tone"], name, data=opened.rows(f"{name}.jsonl", rows)) for name, rows in BAD.items()
    )
    said = opened.run("--quiet", "fleet", good, empty, blank)
    assert said.code == 3
    assert all(f"{name}.jsonl" in said.err for name in BAD)


def test_no_argument_shows_the_help_and_is_a_usage_error(opened: Any) -> None:
    said = opened.run()
    assert (said.code, said.err) == (2, "")
    assert "Usage: factory" in said.out


@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        ("FACTORY_LEDGER_URL", "postgresql://me:hunter2@127.0.0.1:1/ledger", 7),
        ("FACTORY_LEDGER_URL", "oracle://me:hunter2@127.0.0.1:1/ledger", 2),
        ("FACTORY_MLFLOW_URI", "me:hunter2", 2),
        ("FACTORY_GPU_SLOTS", "none", 2),
    ],
)
def test_settings_that_lead_nowhere_are_told_without_their_secrets(
    opened: Any, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, code: int
) -> None:
    monkeypatch.setitem(opened.settings, variable, value)
    said = opened.run("--json", "show")
    assert said.code == code, said.err
    assert said.lines
    assert [line for line in said.lines if not LINE.match(line)] == []
    assert "hunter2" not in said.err + said.out


def test_a_full_disk_is_told_as_that_and_nothing_half_written_is_left(
    opened: Any, desk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, usage = opened.remembered(), shutil.disk_usage
    monkeypatch.setattr("registry.store.shutil.disk_usage", lambda place: usage(place)._replace(free=100))
    rows = opened.rows("new rows.jsonl", desk["tone"].rows(280, seed=77))
    said = opened.run("--quiet", "validate", opened.spec(desk["tone"], "new rows", data=rows))
    assert said.code == 8
    assert [line.split()[0] for line in said.lines] == ["E-STORE-006"]
    assert opened.remembered() == before
    assert opened.litter() == []


def test_a_damaged_artifact_is_found_by_fsck_and_not_served(opened: Any, fleet: Any, intent: Any) -> None:
    """One bit of one weight, put back afterwards."""
    path = opened.files(intent.outcome.version.artifact)["adapter_model.safetensors"]
    whole = path.read_bytes()
    before = opened.sql("SELECT count(*) FROM promotions")
    assert opened.run("fsck").code == 0
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        found = opened.run("--json", "fsck")
        assert found.code == 4
        answer = json.loads(found.out)
        assert any("adapter_model.safetensors" in str(problem.values()) for problem in answer["problems"])
        for words in (("promote", "intent:1"), ("show", "intent:1")):
            said = opened.run("--quiet", *words)
            assert said.code == 4, said.err
            assert [line for line in said.lines if not LINE.match(line)] == []
    finally:
        path.write_bytes(whole)
    assert opened.sql("SELECT count(*) FROM promotions") == before


def test_a_bug_of_ours_is_one_line_and_seventy(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(home: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("flows.showing.all_names", broken)
    said = opened.run("show")
    assert said.code == 70
    assert said.lines == ["E-ENV-099 ZeroDivisionError: division by zero -> this is a bug of ours; --debug shows where"]
    assert "Traceback" in opened.run("--debug", "show").err


def test_what_is_registered_is_shown_to_people_and_to_machines(opened: Any, intent: Any) -> None:
    version = intent.outcome.version
    table = opened.run("show")
    assert "intent:1" in table.out
    facts = json.loads(opened.run("show", "intent:1", "--json").out)
    assert (facts["ok"], facts["exit_code"]) == (True, 0)
    assert facts["result"]["version"] == "intent:1"
    assert facts["result"]["champion"] is True
    assert version.artifact in facts["result"]["artifact"]
    assert any(row[3] == pytest.approx(intent.outcome.scores.score) for row in facts["result"]["scores"])
    drawn = opened.run("lineage", "intent:1", "--mermaid").out
    assert drawn.startswith("flowchart LR")
    assert version.base[:12] in drawn


def test_a_plan_says_what_a_run_needs_and_touches_nothing(opened: Any, desk: Any) -> None:
    before = opened.remembered()
    said = opened.run("--json", "plan", opened.spec(desk["tone"]), "--device", "1GiB")
    plan = json.loads(said.out)["result"]
    assert said.code == 0
    assert plan["available_bytes"] == 2**30
    assert 0 < sum(plan["causes"].values()) < 2**30
    assert plan["trainable"] == 16_384  # rank 8 on two layers of seven matrices, by hand: 8 * (out + in) each
    assert opened.remembered() == before


def test_the_schema_takes_what_the_factory_takes_and_refuses_what_it_refuses(opened: Any, desk: Any) -> None:
    import jsonschema
    from ruamel.yaml import YAML

    schema = json.loads(opened.run("schema").out)
    jsonschema.Draft202012Validator.check_schema(schema)
    spec = YAML(typ="safe").load(opened.spec(desk["tone"]))
    jsonschema.validate(spec, schema)
    for wrong in ({"rnak": 1}, {"task": "My Task"}, {"kind": "regression"}, {"method": {"rank": 0}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**spec, **wrong}, schema)
    assert json.loads(opened.run("schema", "merge").out)["title"] == "MergeSpec"
