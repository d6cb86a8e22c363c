from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def failed(error: BaseException) -> Any:
    from prefect.states import Failed

    return Failed(data=error)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        ("dependency", True),
        ("connection", True),
        ("spec", False),
        ("bug", False),
    ],
)
def test_only_a_silent_service_is_asked_again(error: str, again: bool) -> None:
    from flows.policy import _service_is_down
    from registry.errors import DependencyDown
    from tasks.errors import SpecRefused

    errors = {
        "dependency": DependencyDown.one("E-MLFLOW-001", "mlflow", "does not answer", "wait"),
        "connection": ConnectionResetError("gone"),
        "spec": SpecRefused.one("E-SPEC-001", "a.yaml", "missing", "write it"),
        "bug": KeyError("x"),
    }
    assert _service_is_down(None, None, failed(errors[error])) is again


def test_a_step_for_the_accelerator_holds_its_slot_while_it_runs_and_then_gives_it_back(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client

    from flows.policy import on_gpu
    from infra.pools import GPU_LIMIT

    def taken() -> int:
        with get_client(sync_client=True) as client:
            return client.read_global_concurrency_limit_by_name(GPU_LIMIT).active_slots

    def measure_slots(more: int) -> int:
        return taken() + more

    monkeypatch.setenv("PREFECT_API_URL", server)
    assert on_gpu(measure_slots)(0) == 1
    assert taken() == 0


def test_a_policy_keeps_signature_and_result(server: str) -> None:
    from flows.policy import cheap, on_gpu, over_network

    def join_words(first: str, *, second: str = "b") -> str:
        return first + second

    wrapped: list[Callable[..., str]] = [cheap(join_words), over_network(join_words), on_gpu(join_words)]
    assert [step("a", second="c") for step in wrapped] == ["ac"] * 3
    assert [step.name for step in wrapped] == ["join words"] * 3  # type: ignore[attr-defined]
