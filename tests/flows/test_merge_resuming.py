"""A merge that was killed goes on where it was: nothing is measured twice, and the same model comes of it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

PAIR = ("intent:1", "tone:1")


@pytest.fixture
def recipe(factory: Any, intent: Any, fleet: Any) -> Path:
    rules = [{"rule": "ties", "scale": [1.0], "density": [0.5]}, {"rule": "regmean"}]
    gates = {"min_retention": -9, "min_rows": 30}
    path: Path = factory.recipe("cut-short", PAIR, rules=rules, gates=gates, attribution=False)
    return path


def test_a_killed_merge_measures_nothing_twice_and_ends_with_the_same_bytes(
    factory: Any, recipe: Path, monkeypatch: pytest.MonkeyPatch, at_its_word: None
) -> None:
    from flows import merge_candidates
    from tasks.export import model

    killed = factory.finish(factory.start("merge", recipe, FACTORY_FAILPOINT="merge.after_write=kill"))
    assert killed.code == -signal.SIGKILL, killed.err
    (place,) = [folder for folder in (factory.home / "checkpoints").iterdir() if (folder / "run-0" / "scores").is_dir()]
    known = sorted(path.name for path in (place / "run-0" / "scores").iterdir())
    # two settings on validation rows, both and the 4-bit model on test rows, for two tasks
    assert len(known) >= (2 + 2 + 1) * 2
    assert [path.name for path in (place / "run-0").glob("regmean-*")]
    assert list((place / "run-0").glob("*/model/manifest.json"))
    measured: list[Any] = []
    written: list[Any] = []
    as_it_is, shards = merge_candidates.Scorer.as_it_is, model.ShardWriter

    def noted(self: Any, e: Any, side: Any) -> Any:
        measured.append(e)
        return as_it_is(self, e, side)

    def opened(*asked: Any) -> Any:
        written.append(asked)
        return shards(*asked)

    monkeypatch.setattr(merge_candidates.Scorer, "as_it_is", noted)
    monkeypatch.setattr(model, "ShardWriter", opened)
    done = factory.run("merge", recipe)
    assert done.code == 0, done.err
    assert f"goes on where it was stopped: {len(known)} scores are known" in done.err
    assert measured == []
    assert written == []
    assert not place.exists()
    ((artifact, number),) = factory.sql("SELECT artifact, number FROM versions WHERE name = 'cut-short'")
    assert number == 1
    assert factory.litter() == []
    again = factory.run("merge", recipe)  # nothing is known any more, and all of it is measured again
    assert again.code == 0, again.err
    assert measured
    assert factory.sql("SELECT artifact, number FROM versions WHERE name = 'cut-short'") == [(artifact, number)]


def test_a_model_of_another_setting_is_written_anew(tmp_path: Path) -> None:
    """A search that has time for more trials when it is run again may choose another setting."""
    import hashlib
    import json
    from types import SimpleNamespace

    from flows.merge_place import MergePlace

    def write(text: str) -> Any:
        def fill(folder: Path, key: str) -> None:
            begun.append(text)
            folder.mkdir()
            (folder / "weights").write_text(text)
            digest = hashlib.sha256(text.encode()).hexdigest()
            (folder / "manifest.json").write_text(json.dumps({"files": {"weights": {"sha256": digest}}}))

        return fill

    begun: list[str] = []
    home: Any = SimpleNamespace(store=SimpleNamespace(put=lambda folder: (folder / "weights").read_text()))
    place = MergePlace.of(tmp_path)
    assert [place.written(home, name, write(name)) for name in ("one", "two", "one")] == ["one", "two", "one"]
    assert begun == ["one", "two"]
