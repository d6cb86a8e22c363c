"""Several processes that share a run, without torchrun: forked from a server that has loaded the libraries."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import socket
import warnings
from itertools import count
from pathlib import Path
from typing import Any

LIBRARIES = ["bitsandbytes", "peft", "tasks.training.parallel", "tasks.training.sharded", "torch.distributed"]
LIBRARIES += ["transformers.models.llama.modeling_llama", "transformers.models.bert.modeling_bert"]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(LIBRARIES)


def run_shares(
    job: Path, size: int, *, stop_at: int = 0, room: int | None = None, cramped_after: int = 0
) -> list[dict[str, Any]]:
    """A job in so many processes: what each holds at the end, bytes of all `tensors` and the files that are `mapped`.

    Args:
        stop_at: SIGTERM comes to the first process after this step; 0 for never.
        room: rows at once for which the last process has memory; any number by default.
        cramped_after: passes in which it still has memory for all.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    team = [
        SERVER.Process(target=_share, args=(job, rank, size, port, stop_at, room, cramped_after))
        for rank in range(size)
    ]
    for process in team:
        process.start()
    for process in team:
        process.join(120)
        process.kill()
    return [json.loads((job / f"held-{rank}").read_text()) for rank in range(size)]


def _share(job: Path, rank: int, size: int, port: int, stop_at: int, room: int | None, cramped_after: int) -> None:
    from tasks.training import parallel, part

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def hear(what: str, told: dict[str, Any]) -> None:
        if what == "step" and told["step"] == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    summed_loss, passes = part.summed_loss, count(1)

    def cramped(base: Any, answer: Any, inputs: Any, labels: Any) -> Any:
        if room is not None and rank == size - 1 and len(labels) > room and next(passes) > cramped_after:
            raise MemoryError
        return summed_loss(base, answer, inputs, labels)

    part.summed_loss = cramped
    parallel._tell = hear
    try:
        parallel.run_share(job)
    finally:
        (job / f"held-{rank}").write_text(json.dumps({"tensors": held_bytes(), "mapped": mapped_files()}))


def held_bytes() -> int:
    """Bytes behind all tensors of this process, each storage counted once."""
    import torch

    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        storages = [found.untyped_storage() for found in gc.get_objects() if isinstance(found, torch.Tensor)]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def mapped_files() -> list[str]:
    """Files that are part of this process's memory."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return sorted({line.split(maxsplit=5)[5] for line in maps if "/" in line})
