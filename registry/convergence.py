"""One version, or one name, made to stand in MLflow as it stands in the ledger. Writes only where MLflow differs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from registry.delivery import TAGS_PER_CALL, send_dataset
from registry.failpoint import failpoint
from registry.ledger import Ledger
from registry.mlflow_access import RUN_KEY, experiment_id, experiment_ids, run_of
from registry.pages import (
    VERSION_KEY,
    VersionFacts,
    flat,
    lineage_file,
    name_page,
    plain_name,
    version_page,
    version_parents,
    version_tags,
)
from registry.records import VersionRecord
from registry.store import Store

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

NOTE = "mlflow.note.content"  # what MLflow shows as a run's description
CARDS = ("README.md", "config.json", "adapter_config.json")  # of a merged model only these, never its weights


class Convergence:
    """The comparison of ledger and MLflow, thing by thing. `changes` counts every write to MLflow."""

    def __init__(self, ledger: Ledger, store: Store, mlflow: MlflowClient, artifacts: Path) -> None:
        self.changes = 0
        self._ledger = ledger
        self._store = store
        self._mlflow = mlflow
        self._artifacts = artifacts

    # One version ----------------------------------------------------------------------------------------------------

    def version(self, version: VersionRecord) -> None:
        """Run, files, model entity and registered version, each written where it differs."""
        page = version_page(self._facts(version))
        run = self._run(version)
        self._tell_run(run, version, page)
        self._send_files(run.info.run_id, version)
        failpoint("mirror.after_run")
        self._logged_model(run, version)
        failpoint("mirror.after_model")
        self._model_version(run.info.run_id, version, page)

    def _run(self, version: VersionRecord) -> Any:
        """The run that trained it; one of our own where MLflow never heard of that."""
        key = version.run or version.version_key
        found = run_of(self._mlflow, key)
        if found is not None:
            return found
        experiment = experiment_id(self._mlflow, version.name, self._artifacts)
        started_ms = int(version.created_at.timestamp() * 1000)
        created = self._mlflow.create_run(experiment, started_ms, tags={RUN_KEY: key}, run_name=version.ref)
        self._mlflow.set_terminated(created.info.run_id, "FINISHED", started_ms)
        self.changes += 1
        return self._mlflow.get_run(created.info.run_id)

    def _tell_run(self, run: Any, version: VersionRecord, page: str) -> None:
        """Tags, parameters, metrics and inputs that the run lacks; what the training itself said stands."""
        from mlflow.entities import Metric, Param, RunTag

        run_id, at_ms = run.info.run_id, int(version.created_at.timestamp() * 1000)
        wanted = {**version_tags(version), NOTE: page}
        tags = [RunTag(key, value) for key, value in wanted.items() if run.data.tags.get(key) != value]
        params = [Param(key, value) for key, value in flat(version.spec) if key not in run.data.params]
        metrics = [
            Metric(key, value, at_ms, 0) for key, value in self._metrics(version).items() if key not in run.data.metrics
        ]
        for start in range(0, max(len(tags), len(params), len(metrics)), TAGS_PER_CALL):
            part = slice(start, start + TAGS_PER_CALL)
            self._mlflow.log_batch(run_id, metrics=metrics[part], params=params[part], tags=tags[part])
            self.changes += 1
        known = {entry.dataset.digest for entry in run.inputs.dataset_inputs} if run.inputs else set()
        for role, ref in version.parents:
            digest = ref.removeprefix("dataset:")
            if ref.startswith("dataset:") and digest[:36] not in known:
                dataset = self._ledger.dataset(digest)
                context = "training" if role == "dataset" else role
                send_dataset(self._mlflow, run_id, f"{dataset.task} {dataset.purpose}", digest, dataset.source, context)
                self.changes += 1

    def _metrics(self, version: VersionRecord) -> dict[str, float]:
        """What was measured: side/metric on the version's own data, side/metric/digest on other data."""
        own = next((ref.removeprefix("dataset:") for role, ref in version.parents if role == "dataset"), None)
        found = {plain_name(name): value for name, value in version.metrics.items()}
        for score in self._ledger.evaluations(version.ref):
            suffix = "" if score.dataset == own else f"/{score.dataset[:12]}"
            found.setdefault(plain_name(f"{score.side}/{score.metric}{suffix}"), score.score)
        return found

    def _send_files(self, run_id: str, version: VersionRecord) -> None:
        """The adapter's files under adapter/, of a merged model its manifest and card; figures and lineage beside."""
        entries = self._store.manifest(version.artifact)
        folder = self._store.path(version.artifact)
        with TemporaryDirectory(prefix="factory-") as temporary:
            lineage, manifest = Path(temporary, "lineage.md"), Path(temporary, "manifest.json")
            lineage.write_text(lineage_file(self._ledger.lineage(version.ref, "up")))
            manifest.write_text(json.dumps([entry._asdict() for entry in entries], indent=1))
            merged = version.kind == "merged"
            files = {entry.path: folder / entry.path for entry in entries if not merged or entry.path in CARDS}
            self._send_missing(run_id, "adapter", files | {"manifest.json": manifest} if merged else files)
            self._send_missing(run_id, "lineage", {"lineage.md": lineage})
        if version.figures is not None:
            figures = self._store.path(version.figures)
            names = [entry.path for entry in self._store.manifest(version.figures)]
            self._send_missing(run_id, "figures", {name: figures / name for name in names})

    def _send_missing(self, run_id: str, place: str, files: Mapping[str, Path]) -> None:
        present = dict(_files_below(self._mlflow, run_id, place))
        for name, path in files.items():
            target = f"{place}/{name}"
            if present.get(target) != path.stat().st_size:
                self._mlflow.log_artifact(run_id, str(path), target.rpartition("/")[0])
                self.changes += 1

    def _logged_model(self, run: Any, version: VersionRecord) -> None:
        """MLflow's own model entity: it is what links a run to the models that went in and came out."""
        from mlflow.entities import LoggedModelInput, LoggedModelOutput, LoggedModelStatus

        model = self._find_logged_model(version)
        if model is None:
            params = {key: value[:250] for key, value in flat(version.spec)[:100]}
            model = self._mlflow.create_logged_model(
                run.info.experiment_id,
                name=f"{version.name}-v{version.number}",
                source_run_id=run.info.run_id,
                tags=version_tags(version),
                params=params,
                model_type=version.kind,
            )
            self.changes += 1
        if model.status != LoggedModelStatus.READY:
            self._mlflow.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
            self.changes += 1
        out = {entry.model_id for entry in run.outputs.model_outputs} if run.outputs else set()
        if model.model_id not in out:
            self._mlflow.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, 0)])
            self.changes += 1
        into = {entry.model_id for entry in run.inputs.model_inputs} if run.inputs else set()
        for ref in version_parents(version):
            parent = self._find_logged_model(self._ledger.version(ref))
            if parent is not None and parent.model_id not in into:
                self._mlflow.log_inputs(run.info.run_id, models=[LoggedModelInput(parent.model_id)])
                self.changes += 1

    def _find_logged_model(self, version: VersionRecord) -> Any | None:
        ours = f"tags.`{VERSION_KEY}` = '{version.version_key}'"
        found = self._mlflow.search_logged_models(experiment_ids(self._mlflow), ours, max_results=1)
        return found[0] if found else None

    def _model_version(self, run_id: str, version: VersionRecord, page: str) -> None:
        self._registered_model(version.name)
        tags = version_tags(version)
        found = self._find_model_version(version)
        if found is None:
            self._mlflow.create_model_version(
                version.name,
                source=f"runs:/{run_id}/adapter",
                run_id=run_id,
                tags=tags,
                description=page,
                await_creation_for=0,
            )
            self.changes += 1
            return
        for key, value in tags.items():
            if found.tags.get(key) != value:
                self._mlflow.set_model_version_tag(version.name, str(found.version), key, value)
                self.changes += 1
        self._describe(found, page)

    def page(self, version: VersionRecord) -> None:
        """Only the page, on the version and on its run: a child was born."""
        page, found = version_page(self._facts(version)), self._find_model_version(version)
        if found is not None and found.description != page:
            self._describe(found, page)
            self._mlflow.set_tag(found.run_id, NOTE, page)
            self.changes += 1

    def _describe(self, found: Any, page: str) -> None:
        if found.description != page:
            self._mlflow.update_model_version(found.name, str(found.version), page)
            self.changes += 1

    def _find_model_version(self, version: VersionRecord) -> Any | None:
        ours = f"name = '{version.name}' and tags.`{VERSION_KEY}` = '{version.version_key}'"
        found = self._mlflow.search_model_versions(ours, max_results=1)
        return found[0] if found else None

    def _facts(self, version: VersionRecord) -> VersionFacts:
        previous = next((ref for role, ref in version.parents if role == "previous"), None)
        return VersionFacts(
            version=version,
            scores=self._ledger.evaluations(version.ref),
            base_scores=self._ledger.evaluations(f"base:{version.base}"),
            previous_scores=self._ledger.evaluations(previous) if previous else (),
            above=self._ledger.lineage(version.ref, "up"),
            near=self._ledger.neighbourhood(version.ref),
            withdrawal=self._ledger.withdrawal(version.ref),
        )

    # One name -------------------------------------------------------------------------------------------------------

    def _registered_model(self, name: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            return self._mlflow.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        self.changes += 1
        return self._mlflow.create_registered_model(name, tags={"factory.name": name})

    def name(self, name: str) -> None:
        """Description and aliases of a registered model."""
        registered = self._registered_model(name)
        page = name_page(name, self._ledger.history(name))
        if registered.description != page:
            self._mlflow.update_registered_model(name, page)
            self.changes += 1
        aliases = {"champion": self._ledger.champion(name), "challenger": self._ledger.challenger(name)}
        present = {alias: str(number) for alias, number in registered.aliases.items()}
        for alias, version in aliases.items():
            found = None if version is None else self._find_model_version(version)
            wanted = None if found is None else str(found.version)
            if wanted is not None and present.get(alias) != wanted:
                self._mlflow.set_registered_model_alias(name, alias, wanted)
                self.changes += 1
            elif wanted is None and alias in present:
                self._mlflow.delete_registered_model_alias(name, alias)
                self.changes += 1


def _files_below(mlflow: MlflowClient, run_id: str, place: str) -> Iterator[tuple[str, int]]:
    for entry in mlflow.list_artifacts(run_id, place):
        if entry.is_dir:
            yield from _files_below(mlflow, run_id, entry.path)
        else:
            yield entry.path, entry.file_size or 0
