"""One machine's part of a run over several: the first node is whoever asked for the run, the others join it.

    python -m tasks.training.node JOB 1

runs on the second machine what the first one said; JOB is the run's folder on storage that all machines see, and the
spec's paths mean the same on all of them. The first node's processes write; a node that dies ends the run everywhere,
and the same command as before, on every node, goes on from the newest checkpoint.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from tasks.errors import DependencyDown, FactoryError, SpecRefused
from tasks.specs import AdapterSpec, ResourceSpec

JOB, DONE, ADAPTER = "job.json", "done.json", "adapter"
PORT = 29400  # torchrun's own


def with_meeting_point(spec: AdapterSpec) -> AdapterSpec:
    """The spec with the address of the first node, this machine, written in where there are several."""
    resources = spec.resources
    if resources.nodes == 1 or resources.meet_at:
        return spec
    there = {"meet_at": f"{socket.gethostname()}:{PORT}"}
    return spec.model_copy(update={"resources": resources.model_copy(update=there)})


def command_of(job: Path, resources: ResourceSpec, number: int) -> list[str]:
    """Torchrun for a node's processes. Ranks go by node, so that the first node's first process leads."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(resources.processes)]
    if resources.meet_at is None:
        command += ["--standalone"]
    else:
        command += ["--rdzv-backend", "static", "--rdzv-endpoint", resources.meet_at]
        command += ["--nnodes", str(resources.nodes), "--node-rank", str(number)]
    return [*command, "-m", "tasks.training.parallel", str(job)]


def join(job: Path, number: int) -> None:
    """Take part in a run as node `number`, 1 or more, until it ends.

    Raises:
        DependencyDown: there is no such run, or it did not come to its end.
        SpecRefused: it has no such node.
    """
    try:
        told = json.loads((job / JOB).read_text())
    except OSError as error:
        wrong = f"no run waits there: {error.strerror}"
        remedy = "start the run on the first node, and copy the line that it says"
        raise DependencyDown.one("E-TRAIN-008", job, wrong, remedy) from error
    spec = AdapterSpec.model_validate(told["spec"])
    if not 0 < number < spec.resources.nodes:
        wrong = f"has no node {number}, but 1 to {spec.resources.nodes - 1} beside the first"
        raise SpecRefused.one("E-TRAIN-008", spec.task, wrong, "copy the line that the first node says")
    with tempfile.TemporaryDirectory() as scratch:
        with (Path(scratch) / "stderr").open("wb") as errors:
            command = command_of(job, spec.resources, number)
            code = subprocess.run(command, stderr=errors, stdout=subprocess.DEVNULL).returncode  # noqa: S603
        if code:
            wrong = f"node {number} ended with code {code}: {last_words(Path(scratch) / 'stderr')}"
            remedy = "the first node says why; start the run there again, then this command"
            raise DependencyDown.one("E-TRAIN-008", spec.task, wrong, remedy)


def last_words(errors: Path) -> str:
    """Why processes ended, as far as they said it, at most 200 characters; torchrun's own frame is left out."""
    said = [line.strip() for line in errors.read_text(errors="replace").splitlines() if line.strip(" =-")]
    why = [
        line for line in said if re.search(r"^E-[A-Z]+-\d+ |Error: |Signal \d+ ", line) and "ChildFailed" not in line
    ]
    return (why or said or ["nothing was said"])[-1][:200]


if __name__ == "__main__":
    try:
        join(Path(sys.argv[1]), int(sys.argv[2]))
    except FactoryError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
