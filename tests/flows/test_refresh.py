from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flows
from flows.merge_stale import Stale
from flows.promote import made_champion
from registry.ledger import Ledger
from registry.records import BaseRecord, CodeRecord, DatasetRecord, VersionDraft, VersionRecord
from registry.store import Store
from tasks.promotion import Decision

MARKS = (
    Stale("desk:1", "triage:1", "triage:2"),
    Stale("desk:1", "reply:1", "reply:2"),
    Stale("all:3", "triage:1", "triage:2"),
)


@pytest.fixture
def shelf(tmp_path: Path) -> Any:
    """A ledger of its own, in which versions are registered and served without any training."""
    store = Store(tmp_path / "store")
    ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.db", store=store)
    base = ledger.remember_base(BaseRecord("1" * 64, "tiny", None, "llama", 1000)).digest
    code = ledger.remember_code(CodeRecord("2" * 64, {}, {})).digest
    data = store.put_files({"examples.parquet": b"rows"})
    ledger.remember_dataset(DatasetRecord(data, "triage", "rows.jsonl", "3" * 64, 3, {"train": 3}, 0, 0))

    def made(name: str, *parents: str, more: str = "") -> VersionRecord:
        edges = [("parent", ref) for ref in parents] or [("dataset", f"dataset:{data}")]
        artifact = store.put_files({"weights": f"{name} {parents} {more}".encode()})
        kind: Any = "merged" if parents else "adapter"
        return ledger.register(VersionDraft(name, kind, artifact, artifact, base, code, {}, tuple(edges)))

    def serve(version: VersionRecord) -> None:
        champion = ledger.champion(version.name)
        made_champion(SimpleNamespace(ledger=ledger), version, Decision(version.ref, ()), champion, None)  # type: ignore[arg-type]

    yield SimpleNamespace(ledger=ledger, made=made, serve=serve)
    ledger.close()


def test_a_promotion_sends_one_event_for_each_served_merge_that_contains_its_task(
    shelf: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """desk and all contain triage, other does not, shelved was never served."""
    heard: list[Any] = []
    monkeypatch.setattr(
        "flows.refresh.emit_event",
        lambda name, *, resource, payload: heard.append((name, resource["prefect.resource.id"], payload)),
    )
    monkeypatch.setattr("flows.progress.voice.quiet", False)
    for version in (shelf.made("triage"), shelf.made("route")):
        shelf.serve(version)
    for name, *parents in (("desk", "triage:1", "route:1"), ("all", "desk:1", "triage:1"), ("other", "route:1")):
        shelf.serve(shelf.made(name, *parents))
    shelf.made("shelved", "triage:1", "route:1")
    assert heard == []
    shelf.serve(shelf.made("triage", more="again"))
    payload = {"task": "triage"}
    assert heard == [
        ("merged.stale", "merged.all", {"merged": "all:1", **payload}),
        ("merged.stale", "merged.desk", {"merged": "desk:1", **payload}),
    ]
    assert "desk:1 contains triage:1; triage:2 is served since: merge its recipe again" in capsys.readouterr().err
    heard.clear()
    shelf.serve(shelf.made("desk", "triage:2", "route:1"))
    assert heard == [("merged.stale", "merged.all", {"merged": "all:1", "task": "desk"})]


def test_a_rollback_tells_what_it_made_stale_as_a_promotion_does_and_to_people_where_no_server_hears(
    shelf: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """desk is merged again after triage:2 came; triage:1 comes back. A free port is a server that is down."""
    import socket

    import flows.rollback as back

    heard: list[Any] = []
    monkeypatch.setattr("flows.refresh.emit_event", lambda name, *, resource, payload: heard.append((name, payload)))
    monkeypatch.setattr("flows.progress.voice.quiet", False)
    monkeypatch.setattr(back, "moves_told_within", lambda *_: None)
    for version in (shelf.made("triage"), shelf.made("triage", more="again"), shelf.made("triage", more="third")):
        shelf.serve(version)
    shelf.serve(shelf.made("route"))
    shelf.serve(shelf.made("desk", "triage:3", "route:1"))
    heard.clear()
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"http://127.0.0.1:{server.getsockname()[1]}/api"
        home: Any = SimpleNamespace(ledger=shelf.ledger, settings=SimpleNamespace(prefect_api_url=there))
        monkeypatch.setattr(back, "opened", lambda: home)
        assert back.rollback("triage").number == 2
    assert heard == [("merged.stale", {"merged": "desk:1", "task": "triage"})]
    for home.settings.prefect_api_url in (there, None):
        capsys.readouterr()
        back.stale_told(home, "triage")
        said = capsys.readouterr().err
        assert "desk:1 contains triage:3; triage:2 is served since: merge its recipe again" in said
        assert "`factory merge --stale`" in said
    assert len(heard) == 1
    capsys.readouterr()
    back.stale_told(home, "route")
    assert capsys.readouterr().err == ""


def test_no_flow_moves_a_champion_beside_the_place_that_tells_what_became_stale() -> None:
    """The witness reads the sources."""
    written = {path.name: path.read_text() for path in Path(flows.__file__ or "").parent.glob("**/*.py")}
    assert [name for name, text in written.items() if re.search(r"ledger\.promote\(", text)] == ["promote.py"]
    moving = written["promote.py"].split("def made_champion(")
    assert "ledger.promote(" not in moving[0]


def test_a_refresh_merges_what_is_stale_and_nothing_where_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import flows.refresh as flow

    asked: list[Any] = []

    def again(home: Any, marked: Any) -> tuple[str, ...]:
        asked.append(marked)
        return ("done",)

    monkeypatch.setattr(flow, "opened", SimpleNamespace)
    monkeypatch.setattr(flow, "merged_again", again)
    monkeypatch.setattr(flow, "stale_merges", lambda home: ())
    assert (flow.refresh.fn(), asked) == ((), [])
    monkeypatch.setattr(flow, "stale_merges", lambda home: MARKS)
    assert (flow.refresh.fn(), asked) == (("done",), [MARKS])
