"""`factory doctor`: is this machine fit to run the factory, and if not, what to do. It looks and changes nothing.

Every check is a function from what it looks at to one `Check`, so that a test can show it a broken machine.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from infra import running
from infra.redaction import redacted
from infra.settings import Settings

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "adapter-factory"
PACKAGES = ("flows", "tasks", "registry", "infra")
OLDEST_PYTHON = (3, 11)
FREE_GIB = 5.0
NF4_SECONDS = 180
NF4_WORST_ERROR = 0.2  # relative, of a round trip through 16 levels; a normal matrix gives about 0.10
INSTALL = "pip install -c constraints.txt -e '.[train,postgres,inspect,dev]'"

# Runs apart: it needs the GPU stack, which takes seconds to load and which this package never imports.
NF4_PROBE = """
import json, logging
logging.getLogger("bitsandbytes").setLevel("ERROR")
import torch, bitsandbytes.functional as F
device = "cuda" if torch.cuda.is_available() else "cpu"
weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(device)
packed, state = F.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
error = ((F.dequantize_4bit(packed, state) - weight).norm() / weight.norm()).item()
gpu = torch.cuda.get_device_properties(0) if device == "cuda" else None
print(json.dumps({"device": device, "error": error, "gpu": gpu.name if gpu else "",
                  "gib": gpu.total_memory / 2**30 if gpu else 0.0,
                  "bf16": bool(gpu) and torch.cuda.is_bf16_supported()}))
"""


@dataclass(frozen=True)
class Check:
    """One thing looked at. `remedy` is what to do when it is not ok."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def checks(settings: Settings, *, probe: Callable[[], Mapping[str, object] | str] | None = None) -> tuple[Check, ...]:
    """All checks, in the order in which one would mend them. `probe` answers like `probe_nf4`."""
    answer = (probe or probe_nf4)()
    return (
        python(sys.version_info[:2]),
        *packages(),
        kernels(installed("kernels")),
        *(one_home(name, homes(name, sys.path)) for name in PACKAGES),
        nf4(answer),
        gpu(answer, driver=shutil.which("nvidia-smi") is not None),
        writable(settings.home),
        disk(settings.home),
        reachable("ledger", settings.ledger_url),
        reachable("MLflow", settings.mlflow_uri),
        *([reachable("Prefect", settings.prefect_api_url)] if settings.prefect_api_url else []),
        servers(settings.home),
    )


def python(version: tuple[int, int]) -> Check:
    need = ".".join(map(str, OLDEST_PYTHON))
    return Check("Python", version >= OLDEST_PYTHON, ".".join(map(str, version)), f"install Python {need} or newer")


def packages() -> Iterator[Check]:
    """One row per package that our metadata or the tested set names and that is not right; one row if all are."""
    from packaging.requirements import Requirement

    try:
        required = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:
        yield Check("packages", False, f"{DISTRIBUTION} is not installed", INSTALL)
        return
    tested = tested_versions(Path(__file__).resolve().parent.parent / "constraints.txt")
    wrong = [
        check for row in required if not (check := fits(row, installed(row.name), tested.get(row.name.lower()))).ok
    ]
    yield from wrong
    if not wrong:
        yield Check("packages", True, f"{len(required)} as declared" + (", in the tested versions" if tested else ""))


def fits(required: Requirement, version: str | None, tested: str | None) -> Check:
    """Whether an installed version is allowed and, where there is a tested set, the tested one.

    A requirement of an extra may be absent: a control plane has no torch.
    """
    from packaging.version import Version

    optional = required.marker is not None and "extra" in str(required.marker)
    if version is None:
        return Check(required.name, optional, "not installed", INSTALL)
    if not required.specifier.contains(version, prereleases=True):
        return Check(required.name, False, f"{version}, needs {required.specifier}", INSTALL)
    if tested is not None and Version(version).public != Version(tested).public:
        return Check(required.name, False, f"{version}, tested with {tested}", INSTALL)
    return Check(required.name, True, version)


def tested_versions(constraints: Path) -> dict[str, str]:
    """Package -> version of constraints.txt; empty where an install came without the file."""
    if not constraints.is_file():
        return {}
    lines = (line.partition("#")[0].strip() for line in constraints.read_text().splitlines())
    return {name.lower(): version for name, found, version in (line.partition("==") for line in lines) if found}


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def kernels(version: str | None) -> Check:
    """With this package there, bitsandbytes on an AVX512-BF16 CPU loads native code from the hub when imported."""
    found = "not installed, as it should be" if version is None else version
    return Check("kernels", version is None, found, "pip uninstall kernels: it makes bitsandbytes download native code")


def homes(name: str, path: Sequence[str]) -> tuple[Path, ...]:
    """Every place on the path that `import name` could come from, in the order in which Python looks."""
    folders = dict.fromkeys(Path(entry or os.curdir).resolve() for entry in path)
    candidates = (place for folder in folders for place in (folder / name / "__init__.py", folder / f"{name}.py"))
    return tuple(file.parent if file.name == "__init__.py" else file for file in candidates if file.is_file())


def one_home(name: str, found: Sequence[Path]) -> Check:
    remedy = "give the factory an environment of its own, or rename the other package" if found else INSTALL
    return Check(f"import {name}", len(found) == 1, ", ".join(map(str, found)) or "nowhere on sys.path", remedy)


def probe_nf4() -> Mapping[str, object] | str:
    """What NF4_PROBE prints, run by this interpreter in a process of its own; text if it went wrong."""
    command = [sys.executable, "-c", NF4_PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=NF4_SECONDS, check=True)  # noqa: S603
        answer: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        return f"no answer after {NF4_SECONDS} s"
    except subprocess.CalledProcessError as error:
        return redacted((error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1])
    except (ValueError, IndexError):
        return "no answer"
    return answer


def nf4(answer: Mapping[str, object] | str) -> Check:
    if isinstance(answer, str):
        return Check("NF4", False, answer, INSTALL)
    error = float(str(answer["error"]))
    found = f"round trip on {answer['device']}, relative error {error:.3f}"
    return Check(
        "NF4", error <= NF4_WORST_ERROR, found, "the 4-bit kernels give wrong numbers here; reinstall bitsandbytes"
    )


def gpu(answer: Mapping[str, object] | str, *, driver: bool) -> Check:
    """No GPU is fine; a driver whose GPU torch cannot see is not."""
    if isinstance(answer, str):
        return Check("GPU", not driver, "not asked: NF4 did not load", INSTALL)
    if answer["gpu"]:
        kind = "bfloat16" if answer["bf16"] else "no bfloat16"
        return Check("GPU", True, f"{answer['gpu']}, {float(str(answer['gib'])):.0f} GiB, {kind}")
    remedy = "install the torch build for this driver, and check CUDA_VISIBLE_DEVICES"
    return Check(
        "GPU", not driver, "nvidia-smi is here, torch sees no GPU" if driver else "none: the CPU is used", remedy
    )


def writable(home: Path) -> Check:
    place = _existing(home)
    try:
        with tempfile.TemporaryFile(dir=place):
            return Check("home", True, f"{home}" + ("" if place == home else " (will be made)"))
    except OSError as error:
        return Check("home", False, f"{home}: {error.strerror}", "choose a folder you may write: FACTORY_HOME=...")


def disk(home: Path) -> Check:
    free = shutil.disk_usage(_existing(home)).free / 2**30
    remedy = f"free {FREE_GIB:.0f} GiB, or move FACTORY_HOME to another disk"
    return Check("disk", free >= FREE_GIB, f"{free:.1f} GiB free for {home}", remedy)


def reachable(what: str, url: str) -> Check:
    """A file opens as SQLite (or is not there yet); a server accepts a connection. No password is sent or shown."""
    name, shown = f"{what} answers", redacted(url)
    if url.startswith("sqlite:///"):
        file = Path(url.removeprefix("sqlite:///"))
        if not file.exists():
            return Check(name, True, f"{shown} (will be made)")
        try:
            with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as database:
                database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            return Check(name, False, f"{shown}: {error}", "restore the file from a backup, or name another one")
        return Check(name, True, shown)
    place = urlsplit(url)
    ok = running.answers(url, seconds=3.0)
    return Check(
        name, ok, shown if ok else f"{shown}: no connection", f"start it, or check the route to {place.hostname}"
    )


def servers(home: Path) -> Check:
    """Servers that are not up are fine; servers that were up and died are not."""
    noted = running.recorded(home)
    if not noted:
        return Check("servers", True, "not running (`factory up` starts them)")
    there = running.alive(home)
    found = ", ".join(f"{name} {'up' if name in there else 'gone'}" for name in noted)
    return Check("servers", len(there) == len(noted), found, "run `factory down`, then `factory up`; see logs/ in home")


def _existing(folder: Path) -> Path:
    return next(place for place in (folder, *folder.parents) if place.exists())
