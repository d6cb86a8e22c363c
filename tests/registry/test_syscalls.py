"""C10, C12: killed or failed at every system call that writes, syncs, renames or makes a folder, no object is torn."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from registry.errors import IntegrityError
from registry.store import Store

ROOT = Path(__file__).parents[2]
CALLS = ("rename", "fsync", "mkdir", "write")
PROGRAM = "import sys; from registry.store import Store; Store(sys.argv[1]).put(sys.argv[2])"
STRIDE = int(os.environ.get("FACTORY_STRIDE", "1"))  # 1 walks every single call


def traced(options: list[str], store: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = ["strace", "-f", "-o", str(store.parent / "trace"), *options, sys.executable, "-S", "-c", PROGRAM]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{sys.path[-1]}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, str(store), str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    folder = tmp_path / "adapter"
    (folder / "nested").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights" * 100)
    (folder / "nested" / "tokenizer.json").write_text("{}")
    return folder


def test_a_put_that_dies_at_any_system_call_leaves_the_whole_object_or_none(folder: Path, tmp_path: Path) -> None:
    done = traced(["-e", f"trace={','.join(CALLS)}"], tmp_path / "whole", folder)
    if done.returncode:
        pytest.skip(f"processes cannot be traced here: {done.stderr.strip()[:200]}")
    trace = (tmp_path / "trace").read_text()
    counts = {call: len(re.findall(rf"\b{call}\(", trace)) for call in CALLS}
    assert counts["fsync"] >= 5
    assert counts["rename"] == 1
    points = [(call, place) for call, count in counts.items() for place in range(1, count + 1)]
    disturbed = 0
    for number, (call, place) in enumerate(points[::STRIDE]):
        store = tmp_path / f"store-{number}"
        for fault in ("signal=SIGKILL",) if number % 2 else ("error=EIO",):
            done = traced(["-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={place}"], store, folder)
            disturbed += done.returncode != 0
            found = Store(store)
            for digest in found.digests():
                found.path(digest)  # what is there is whole
            try:
                assert found.path(found.put(folder)).is_dir()
            except IntegrityError as torn:
                raise AssertionError(f"{fault} at {call} {place}: {torn}") from torn
    assert disturbed >= 0.8 * len(points[::STRIDE])  # an unheard failure would prove nothing
