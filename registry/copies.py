"""Where else the bytes of a damaged object may lie. A copy counts only if its hash is the object's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from registry.errors import RegistryError
from registry.ledger import Ledger
from registry.mlflow_access import RUN_KEY, experiment_ids, saying_when_it_is_down
from registry.tracking import Tracker

PLACES = {"artifact": "adapter", "figures": "figures"}  # a version's object -> its folder in MLflow


def in_mlflow(ledger: Ledger, tracker: Tracker) -> Callable[[str], Iterator[Path]]:
    """A function from a digest to folders downloaded from the runs of the versions that own it; none while MLflow is
    down. Merged weights are not in MLflow."""

    def copies(digest: str) -> Iterator[Path]:
        for version in ledger.versions():
            for field, place in PLACES.items():
                if getattr(version, field) != digest:
                    continue
                with suppress(RegistryError), TemporaryDirectory(prefix="factory-") as folder:
                    with saying_when_it_is_down(tracker.uri):
                        client = tracker.client()
                        key = version.run or version.version_key
                        runs = client.search_runs(experiment_ids(client), f"tags.`{RUN_KEY}` = '{key}'", max_results=1)
                        for run in runs:
                            client.download_artifacts(run.info.run_id, place, folder)
                    if (Path(folder) / place).is_dir():
                        yield Path(folder) / place

    return copies
