"""Alarms: a run that is late, failed, crashed or stuck calls a webhook. Prefect watches, these are its automations."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from uuid import UUID

from prefect.automations import Automation, EventTrigger, Posture
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.events.actions import CallWebhook
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import PrefectHTTPStatusError

from ruvllm.errors import SettingsError
from ruvllm.settings import Settings

BLOCK = "ruvllm-alarms"
STUCK_AFTER = timedelta(hours=6)
_RUNS = ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"})
_ENDS = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Crashed", "Cancelled")}
_PAYLOAD = (
    '{"alarm": "%s", "flow": "{{ flow.name }}", "run": "{{ flow_run.name }}", "state": "{{ flow_run.state.name }}",'
    ' "message": {{ (flow_run.state.message or "") | tojson }}, "url": "{{ flow_run | ui_url }}"}'
)


def triggers(stuck_after: timedelta = STUCK_AFTER) -> dict[str, EventTrigger]:
    """What alarms, by name."""

    def when(*states: str) -> EventTrigger:
        return EventTrigger(
            match=_RUNS, expect={f"prefect.flow-run.{state}" for state in states}, posture=Posture.Reactive,
            for_each={"prefect.resource.id"}, threshold=1, within=timedelta(0),
        )  # fmt: skip

    stuck = EventTrigger(
        match=_RUNS, after={"prefect.flow-run.Running"}, expect=_ENDS, posture=Posture.Proactive,
        for_each={"prefect.resource.id"}, threshold=1, within=stuck_after,
    )  # fmt: skip
    return {"failed": when("Failed", "Crashed"), "late": when("Late"), "stuck": stuck}


def ensure_alarms(settings: Settings, stuck_after: timedelta = STUCK_AFTER) -> list[str]:
    """Make the automations, or make them anew; their names. The address is a secret: it may hold a token.

    Raises:
        SettingsError: the file of the address is missing or empty.
    """
    block = Webhook(url=_address(settings))  # type: ignore[arg-type]  # a SecretStr is made of it
    block_id = block.save(BLOCK, overwrite=True)
    assert isinstance(block_id, UUID)
    names = []
    for name, trigger in triggers(stuck_after).items():
        names.append(f"ruvllm: a run is {name}")
        _replace(
            Automation(
                name=names[-1], description=f"Calls the webhook of RUVLLM_ALERT_WEBHOOK_FILE when a run is {name}.",
                trigger=trigger, actions=[CallWebhook(block_document_id=block_id, payload=_PAYLOAD % name)],
            )
        )  # fmt: skip
    return names


def _address(settings: Settings) -> str:
    path = Path(settings.alert_webhook_file)
    try:
        address = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"RUVLLM_ALERT_WEBHOOK_FILE: {path}: {error.strerror or error}") from error
    if not address.startswith(("http://", "https://")):
        raise SettingsError(f"RUVLLM_ALERT_WEBHOOK_FILE: {path} holds no http(s) address")
    return address


def _replace(automation: Automation) -> None:
    with get_client(sync_client=True) as client:
        for found in client.read_automations_by_name(automation.name):
            try:
                client.delete_automation(found.id)
            except PrefectHTTPStatusError as error:
                if error.response.status_code != 404:  # another process did it
                    raise
    automation.create()
