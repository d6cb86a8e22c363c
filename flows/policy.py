"""Patience beside the work: how often a step is tried, how long it may take, and what it holds meanwhile.

A policy turns a plain function into a Prefect task of the same signature:

    validated = cheap(validate)
    trained = on_gpu(train_adapter)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.concurrency.sync import concurrency

from infra.pools import GPU_LIMIT

P = ParamSpec("P")
R = TypeVar("R")

MINUTE = 60
DAY = 24 * 60 * MINUTE
LEASE_SECONDS = 60  # after a kill the slot is free again in a minute; Prefect's default is five
DEPENDENCY_DOWN = 7


def cheap(function: Callable[P, R]) -> Callable[P, R]:
    """Seconds of work on this machine: not tried again, for the same input gives the same refusal."""
    return _task(function, timeout_seconds=60 * MINUTE)


def over_network(function: Callable[P, R]) -> Callable[P, R]:
    """Speaks to a service: tried again while the service is down, and only then."""
    return _task(
        function,
        timeout_seconds=30 * MINUTE,
        retries=3,
        retry_delay_seconds=[2, 10, 60],
        retry_jitter_factor=0.3,
        retry_condition_fn=_service_is_down,
        tags={"network"},
    )


def on_gpu(function: Callable[P, R]) -> Callable[P, R]:
    """Holds one slot of the accelerator while it runs; waits for it as long as it takes."""

    @wraps(function)
    def holding_a_slot(*args: P.args, **kwargs: P.kwargs) -> R:
        with _slot():
            return function(*args, **kwargs)

    return _task(holding_a_slot, timeout_seconds=DAY, tags={"gpu"})


@contextmanager
def _slot() -> Iterator[None]:
    """A slot of the server's limit; a run without a server is alone on its machine and needs none."""
    if not os.environ.get("PREFECT_API_URL"):
        yield
        return
    with concurrency(
        GPU_LIMIT, occupy=1, strict=True, lease_duration=LEASE_SECONDS, raise_on_lease_renewal_failure=False
    ):
        yield


def _task(function: Callable[P, R], **policy: Any) -> Callable[P, R]:
    name = function.__name__.replace("_", " ")
    return task(name=name, cache_policy=NO_CACHE, persist_result=False, **policy)(function)


def _service_is_down(task: Any, run: Any, state: Any) -> bool:
    try:
        state.result(raise_on_failure=True)
    except Exception as error:  # any error may ask for a retry here; it is raised again by Prefect if none follows
        return getattr(error, "exit_code", None) == DEPENDENCY_DOWN or isinstance(error, ConnectionError)
    return False
