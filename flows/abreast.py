"""Adapters of one base trained at the same pace, ahead of their turn, where one pass for all their rows is faster.

Nothing here decides what becomes of them: each leaves the checkpoint of its last step where its own flow looks for it,
and that flow goes on from there as from any run that was interrupted, in the same run in MLflow.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.learn import device_memory, threads
from flows.policy import on_gpu
from flows.progress import voice
from flows.resuming import ahead_on
from flows.teach import heard_by, recorded
from flows.together import raise_together, unless_stopped
from flows.train import TAGS, Prepared, prepared
from flows.wiring import Home
from registry.errors import RegistryError
from tasks.errors import FactoryError
from tasks.methods.catalogue import METHODS
from tasks.specs import AdapterSpec

if TYPE_CHECKING:
    from tasks.training.together import Begin


AT_ONCE = 8
FEW_ROWS = 4  # of one adapter in one pass; with more a pass of its own has enough to do


def train_abreast(home: Home, specs: Sequence[AdapterSpec]) -> None:
    """Train ahead what may share passes; what is refused here is refused again, and told, in its turn.

    Raises:
        Stopped: SIGTERM came; each has a checkpoint.
    """
    for alike in those_on_one_base(specs):
        ready: dict[str, Prepared] = {}
        for spec in alike:
            try:
                with voice.hushed():
                    one = prepared(home, spec)
            except (FactoryError, RegistryError) as error:
                unless_stopped(error)
            else:
                ready |= {one.key: one} if is_worth_it(one) and not home.ledger.by_key(one.key) else {}
        for crowd in those_that_fit(list(ready.values())):
            taught_abreast(home, crowd)


def those_on_one_base(specs: Sequence[AdapterSpec]) -> Iterator[list[AdapterSpec]]:
    """Two and more that may share passes over a base, by what their specs say."""
    groups: dict[tuple[str, ...], list[AdapterSpec]] = {}
    for spec in specs:
        if _may_share(spec):
            where = (spec.base.model_dump_json(), spec.resources.device, str(spec.resources.threads))
            groups.setdefault(where, []).append(spec)
    return (group for group in groups.values() if len(group) > 1 and not device_memory(group[0]).on_gpu)


def _may_share(spec: AdapterSpec) -> bool:
    """Many rows fill a pass by themselves, classes have heads and labels of their own, a team shares each batch
    already, and what is computed again in the backward pass would be dropped out anew."""
    method = METHODS[spec.method.name]
    return (
        spec.resources.together == "auto"
        and spec.resources.team_size == 1
        and spec.kind == "generation"
        and (spec.training.micro_batch or spec.training.batch_size) <= FEW_ROWS
        and method.is_low_rank
        and not method.config.get("use_dora")
        and not spec.training.gradient_checkpointing
    )


def is_worth_it(one: Prepared) -> bool:
    """Whether it takes so many steps that the few on which together is tried do not matter."""
    from tasks.training import loop, together

    rows = len(one.data.snapshot.examples("train"))
    return loop.number_of_steps(one.spec, rows) >= together.ENOUGH_STEPS


def those_that_fit(ready: Sequence[Prepared]) -> list[list[Prepared]]:
    """Two and more at once, in their order, as long as one base and all that each takes beside it have room; never so
    many that their checkpoints could not be written in the time that SIGTERM leaves."""
    crowds: list[list[Prepared]] = []
    room = 0
    for one in ready:
        beside = sum(one.plan.above_base.values())
        if not crowds or beside > room or len(crowds[-1]) == AT_ONCE:
            room = one.plan.available_bytes - (one.plan.peak_bytes - beside)
            crowds.append([])
        crowds[-1].append(one)
        room -= beside
    return [crowd for crowd in crowds if len(crowd) > 1]


@on_gpu
def taught_abreast(home: Home, crowd: Sequence[Prepared]) -> None:
    """The runs of a crowd, each to its last step, or to the step at which they parted.

    Raises:
        Stopped: SIGTERM came; each has a checkpoint.
    """
    from tasks.training.base import load_base
    from tasks.training.folder import first_line
    from tasks.training.interruption import Stopped, told_to_stop
    from tasks.training.together import train_together

    spec = crowd[0].spec
    with threads(spec.resources.threads), told_to_stop() as stop, ExitStack() as stack:
        begun = [(one.spec.task, run) for one in crowd if (run := _begun(home, one, stack))]
        if len(begun) < 2:
            return
        names = ", ".join(task for task, _ in begun)
        voice.say(f"{names}: in one pass over their base, where that is faster")
        for one in crowd:
            rows, peak, room = one.data.record, one.plan.peak_bytes / 2**20, one.plan.available_bytes / 2**30
            came_in = f"{rows.rows_in} rows in, {rows.quarantined} quarantined"
            voice.say(f"  {one.spec.task}: {came_in}; plan {peak:.0f} MiB of {room:.1f} GiB")
        base = load_base(spec.base, kind=spec.kind, labels=spec.data.labels, device=spec.resources.device)
        found = train_together(base, [run for _, run in begun], stop=stop)
        stopped = []
        for (task, _), outcome in zip(begun, found.outcomes, strict=True):
            if isinstance(outcome, Stopped):
                stopped.append(outcome)
            elif isinstance(outcome, Exception):
                voice.say(f"  {task}: {first_line(outcome)}; again in its turn")
        if stop():
            raise_together(stopped or [Stopped.one("E-TRAIN-003", names, "were told to stop", "run it again")])
        voice.say(f"  {found.reason}")


def _begun(home: Home, one: Prepared, stack: ExitStack) -> Begin | None:
    """How its run begins; None where another process is at it."""
    from tasks.training.loop import steps_of

    workplace = stack.enter_context(ahead_on(home, one.key))
    if workplace is None:
        return None
    folder = Path(tempfile.mkdtemp(dir=home.scratch()))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    spec, snapshot = one.spec, one.data.snapshot
    run = stack.enter_context(recorded(home, spec, name=spec.task, tags=TAGS, datasets=[one.data], workplace=workplace))
    told: Mapping[str, Any] = {
        **heard_by(run, spec.task),
        "say": lambda said: voice.say(f"  {spec.task}: {said.strip()}"),
    }
    return lambda base, stop: steps_of(
        base,
        spec,
        snapshot.examples("train"),
        snapshot.examples("validation"),
        folder,
        checkpoints=workplace.checkpoints(),
        stop=stop,
        **told,
    )
