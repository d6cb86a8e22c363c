"""What happens by itself: the event that asks for a retrain, and the end of runs whose machine died.

The retrain itself is a trigger in prefect.yaml, which `prefect deploy` replaces at every deployment, and so is the
merge of what a promotion made stale; the names that these events must carry stand here, once, for the flow that emits
them and the test that reads prefect.yaml.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from infra.environment import HEARTBEAT_SECONDS

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events.schemas.automations import AutomationCore

DRIFT_EVENT = "adapter.drift.detected"
STALE_EVENT = "merged.stale"
SILENT_RUNS = "runs that fell silent"
MISSED_HEARTBEATS = 3
_ENDS = ("Completed", "Failed", "Cancelled", "Crashed", "Suspended", "AwaitingRetry")


def drift_resource(task: str) -> dict[str, str]:
    """What a drift event is about. The trigger matches the id and hands the name to `retrain(task)`.

    >>> drift_resource("triage")
    {'prefect.resource.id': 'adapter.triage', 'prefect.resource.name': 'triage'}
    """
    return {"prefect.resource.id": f"adapter.{task}", "prefect.resource.name": task}


def stale_resource(name: str) -> dict[str, str]:
    """What an event about a stale merge is about.

    >>> stale_resource("desk")
    {'prefect.resource.id': 'merged.desk', 'prefect.resource.name': 'desk'}
    """
    return {"prefect.resource.id": f"merged.{name}", "prefect.resource.name": name}


def silent_runs() -> AutomationCore:
    """A run that beat once and then neither beats nor ends is called Crashed; Prefect's own server leaves it Running.

    This is what a lost machine or a worker killed with its run looks like. Fires MISSED_HEARTBEATS * HEARTBEAT_SECONDS
    after the last beat, by the server's clock. Where it fires for a run that just ended, the server refuses the change.
    """
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    return AutomationCore(
        name=SILENT_RUNS,
        description="Calls a run Crashed when its heartbeat stops, so that it can be retried and its slot is freed.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={f"prefect.flow-run.{name}" for name in ("heartbeat", *_ENDS)},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=MISSED_HEARTBEATS * HEARTBEAT_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                message="No heartbeat: the process or its machine is gone.",
                force=False,
            )
        ],
    )


def ensure_automations(client: SyncPrefectClient) -> None:
    """Each automation exists exactly once and says what this version of the factory says."""
    wanted = silent_runs()
    found: list[Any] = client.read_automations_by_name(wanted.name)
    if found:
        client.update_automation(found[0].id, wanted)
        for extra in found[1:]:
            client.delete_automation(extra.id)
    else:
        client.create_automation(wanted)
