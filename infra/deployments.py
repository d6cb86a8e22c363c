"""prefect.yaml: where it is, what it declares, and putting it on a server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.errors import Problem, ServerDown, SettingsRefused
from infra.redaction import redacted

FILE = "prefect.yaml"
DEPLOY_SECONDS = 300


def prefect_file(workdir: Path) -> Path:
    """The file in the working folder, else beside the packages (an editable install, an image).

    Raises:
        SettingsRefused: if there is none.
    """
    beside_the_packages = Path(__file__).resolve().parent.parent
    for folder in (workdir, beside_the_packages):
        if (folder / FILE).is_file():
            return folder / FILE
    wrong = f"is neither in {workdir} nor in {beside_the_packages}"
    raise SettingsRefused(Problem("E-PREFECT-001", FILE, wrong, "start from a checkout, or copy the file here"))


def declared(file: Path) -> dict[str, dict[str, Any]]:
    """The deployments of the file by `flow/name`, the way Prefect's server calls them.

    >>> sorted(declared(prefect_file(Path())))[:2]
    ['fleet/fleet', 'merge/merge']
    """
    from ruamel.yaml import YAML

    rows = YAML(typ="safe").load(file)["deployments"]
    return {f"{row['entrypoint'].rpartition('.')[2]}/{row['name']}": row for row in rows}


def deploy(file: Path, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Put every deployment of the file on the server that `environment` names; repeatable. Returns their names.

    Raises:
        ServerDown: with Prefect's own last words, if one of them does not get there.
    """
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    environment = {**os.environ, **environment, "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING", "COLUMNS": "500"}
    try:
        done = subprocess.run(  # noqa: S603 - our interpreter, our file
            command,
            cwd=file.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEPLOY_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        late = f"is not deployed after {DEPLOY_SECONDS} s"
        raise ServerDown(
            Problem("E-PREFECT-002", str(file), late, "look at the server's log, then start again")
        ) from None
    if done.returncode != 0:
        words = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip(" │╭╮╰╯─")]
        last = redacted(words[-1]) if words else f"exit code {done.returncode}"
        remedy = f"run `{Path(sys.executable).with_name('prefect')} deploy --all` there to see all of it"
        raise ServerDown(Problem("E-PREFECT-002", str(file), f"cannot be deployed: {last}", remedy))
    return tuple(declared(file))
