"""The work pool that deployed flows run on, and the slots that keep runs from fighting over one accelerator."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

POOL = "gpu"  # the name in prefect.yaml
GPU_LIMIT = "gpu"  # the name that a run asks for: concurrency(GPU_LIMIT, strict=True)


def ensure_pool(client: SyncPrefectClient) -> None:
    """The pool exists and takes work: runs are processes of the worker's machine."""
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    try:
        if client.read_work_pool(POOL).is_paused:
            client.update_work_pool(POOL, WorkPoolUpdate(is_paused=False))
    except ObjectNotFound:
        wanted = WorkPoolCreate(
            name=POOL,
            type="process",
            description="Machines that train, merge and measure adapters.",
            base_job_template=ProcessWorker.get_default_base_job_template(),
        )
        client.create_work_pool(wanted)


def ensure_gpu_slots(client: SyncPrefectClient, slots: int, *, ours: bool) -> int:
    """At most so many runs hold the accelerator at once, over all workers; returns how many.

    Without the limit a run that asks for it is refused. It belongs to the server: whoever starts the server (`ours`)
    says how many, a machine that only joins makes the limit where there is none.
    """
    from prefect.exceptions import ObjectNotFound

    if not ours:
        try:
            return client.read_global_concurrency_limit_by_name(GPU_LIMIT).limit
        except ObjectNotFound:
            pass
    client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, slots)
    return slots
