"""Many specs at once: in this process, where one loaded base serves them all, or over the work pool."""

from __future__ import annotations

from collections.abc import Mapping

from prefect import flow

from flows.abreast import train_abreast
from flows.progress import voice
from flows.together import Refusal, raise_together, unless_stopped
from flows.train import TrainOutcome, train
from flows.wiring import opened
from registry.errors import RegistryError
from tasks.errors import DependencyDown, FactoryError, GateRefused, Problem, raise_if_any
from tasks.spec_files import load_adapter_spec

TRAIN = "train/train"  # flow and deployment, as prefect.yaml names them


@flow(
    name="fleet",
    description="Train many adapters; one base is loaded once for all, and passed once where that is faster.",
)
def fleet(spec_paths: list[str], promote: bool = True, over_pool: bool = False) -> dict[str, TrainOutcome | None]:
    """One adapter per spec; what became of each, by its path.

    Args:
        spec_paths: The adapter specs, YAML files; all are read before the first is trained.
        promote: Serve each new version that passes its gates.
        over_pool: Hand each spec to the work pool as a run of its own, instead of training here.
    """
    specs = {path: load_adapter_spec(path) for path in spec_paths}
    if over_pool:
        return handed_over(list(specs), promote)
    order = sorted(specs, key=lambda p: (specs[p].base.model, specs[p].task))
    train_abreast(opened(), [specs[path] for path in order])
    done: dict[str, TrainOutcome | None] = {}
    refused: list[Refusal] = []
    for place, path in enumerate(order, start=1):
        voice.say(f"[{place}/{len(specs)}] {specs[path].task}")
        try:
            done[path] = train(path, promote)
        except (FactoryError, RegistryError) as error:
            refused.append(unless_stopped(error))
    raise_together(refused)
    return done


def refuse_unless_all_passed(done: Mapping[str, TrainOutcome | None]) -> None:
    """
    Raises:
        GateRefused: one problem per gate that failed, of all adapters.
    """
    problems: list[Problem] = []
    for outcome in filter(None, done.values()):
        try:
            outcome.decision.refuse_unless_passed()
        except GateRefused as refused:
            problems += refused.problems
    raise_if_any(GateRefused, problems)


def handed_over(spec_paths: list[str], promote: bool) -> dict[str, TrainOutcome | None]:
    """A run of the train deployment per spec; the pool's GPU slots decide how many go at once.

    Raises:
        DependencyDown: the server does not know the deployment.
    """
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound

    for path in spec_paths:
        try:
            run = run_deployment(TRAIN, parameters={"spec_path": path, "promote": promote}, timeout=0)
        except ObjectNotFound:
            wrong = "is not deployed on this Prefect server"
            raise DependencyDown.one("E-PREFECT-003", TRAIN, wrong, "run `factory up` first") from None
        voice.say(f"  {path}: run {run.name} is scheduled")  # type: ignore[union-attr]
    return dict.fromkeys(spec_paths)
