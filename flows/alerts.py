"""Alerts: events that flows emit, and Prefect automations that send messages about them.

`pyramid alerts` creates the automations on a Prefect server. Each has a fixed name, so a second call updates them
instead of adding others.
"""

import logging
import shutil
from datetime import timedelta
from uuid import UUID

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.events import emit_event
from prefect.events.actions import CallWebhook, ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.variables import Variable
from pydantic import SecretStr

from tasks.running.run import Run, StepResult
from tasks.tables import storage

LOG = logging.getLogger("pyramid.alerts")

FLOWS = ["curate", "recaption", "extract", "train-vae", "train-dit", "evaluate-and-gate", "generate", "data-to-model"]
ROWS_FAILED = "pyramid.rows.failed"
GATE_REFUSED = "pyramid.gate.refused"
DISK_FILLS = "pyramid.disk.fills"
MAX_FAILED_SHARE, MIN_FREE_SHARE = 0.1, 0.1  # defaults; the Prefect variables below override them
FAILED_SHARE_VARIABLE, FREE_SHARE_VARIABLE = "pyramid_max_failed_share", "pyramid_min_free_share"
HEARTBEAT = "prefect.flow-run.heartbeat"
SILENCE_S = 600  # longer than a restart of the server, since a restart delays heartbeats
BLOCK = "pyramid-alerts"
CRASH_DETECTION = "pyramid: runs whose process is gone are Crashed"


def watch_step(run: Run, result: StepResult) -> None:
    """Emit an event if many new rows of a step failed, and one if the root's disk is nearly full."""
    # Without failed rows no limit is exceeded, so the server is not asked for it.
    if result.num_failed and result.num_failed / result.num_new > _limit(FAILED_SHARE_VARIABLE, MAX_FAILED_SHARE):
        reasons = ", ".join(f"{count} {kind}" for kind, count in sorted(result.errors.items()))
        text = f"{result.step}: {result.num_failed} of {result.num_new} new rows failed in {run.root} ({reasons})"
        _emit(ROWS_FAILED, run, text)
    if storage.is_local(run.root):
        disk = shutil.disk_usage(run.root)
        if disk.free / disk.total < _limit(FREE_SHARE_VARIABLE, MIN_FREE_SHARE):
            text = f"{disk.free / 2**30:.1f} of {disk.total / 2**30:.0f} GiB are free on the disk that holds {run.root}"
            _emit(DISK_FILLS, run, text)


def emit_refusal(run: Run, note: str) -> None:
    """Emit the event that the gate refused a trained model."""
    _emit(GATE_REFUSED, run, f"the gate refused the trained model in {run.root}: {note}")


def _emit(event: str, run: Run, text: str) -> None:
    """Emit an event about a root; text: the message that the automations send."""
    root = {"prefect.resource.id": f"pyramid.root.{run.root}", "prefect.resource.name": run.root}
    emit_event(event, root, payload={"text": text})


def _limit(variable: str, default: float) -> float:
    """A share that `pyramid alerts` stored on the server; the default for a value that is no number."""
    value = Variable.get(variable, default=default)
    if isinstance(value, int | float):
        return float(value)
    LOG.warning(
        "the Prefect variable %s is %r, not a number: %g is used. Set it with pyramid alerts", variable, value, default
    )
    return default


def set_up_alerts(
    webhook: str = "",
    block: str = "",
    max_failed_share: float = MAX_FAILED_SHARE,
    min_free_share: float = MIN_FREE_SHARE,
    silence_s: int = SILENCE_S,
) -> list[str]:
    """Create or update the automations on the server of PREFECT_API_URL; returns their names.

    Args:
        webhook: URL that gets a POST with the JSON `{"text": …}`, which Slack, Mattermost and Google Chat accept;
            the server stores it as a secret. Empty: no message is sent.
        block: an existing Prefect block in place of a URL, `TYPE/NAME`, e.g. `slack-webhook/ops`.
        max_failed_share: a message is sent if a larger share of a step's new rows failed.
        min_free_share: a message is sent if a smaller share of the root's disk is free.
        silence_s: a run without a heartbeat for this time becomes Crashed; runs of our deployments send one every 30 s.

    Raises:
        ValueError: both a URL and a block are given, or the block does not exist.
    """
    if webhook and block:
        raise ValueError("give either a webhook or a block, not both")
    Variable.set(FAILED_SHARE_VARIABLE, max_failed_share, overwrite=True)
    Variable.set(FREE_SHARE_VARIABLE, min_free_share, overwrite=True)
    with get_client(sync_client=True) as client:
        automations = [_crash_detection(silence_s)]
        if webhook or block:
            automations += _alerts(client, webhook, block)
        for automation in automations:
            _upsert(client, automation)
    return [automation.name for automation in automations]


def _upsert(client: SyncPrefectClient, automation: AutomationCore) -> None:
    earlier = client.read_automations_by_name(automation.name)
    if earlier:
        client.update_automation(earlier[0].id, automation)
    else:
        client.create_automation(automation)


def _crash_detection(silence_s: int) -> AutomationCore:
    """Automation that sets a run to Crashed if its heartbeats stop before it reaches a final state."""
    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Crashed", "Cancelled", "Cancelling")}
    waits = {f"prefect.flow-run.{state}" for state in ("AwaitingRetry", "Paused", "Suspended", "Scheduled")}
    trigger = EventTrigger(
        posture=Posture.Proactive,
        after={HEARTBEAT},
        expect={HEARTBEAT} | ends | waits,
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=_our_flows(),
        for_each={"prefect.resource.id"},
        threshold=1,
        within=timedelta(seconds=silence_s),
    )
    message = f"no heartbeat for {silence_s} s: the process of this run has ended. A new run of the flow continues."
    crash = ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=message, force=False)
    return AutomationCore(name=CRASH_DETECTION, trigger=trigger, actions=[crash])


def _alerts(client: SyncPrefectClient, webhook: str, block: str) -> list[AutomationCore]:
    run_text = "flow_run.name ~ ' (' ~ flow.name ~ ') is ' ~ flow_run.state.name ~ ': ' ~ flow_run.state.message"
    own_text = "event.payload.text"
    runs, roots = "prefect.flow-run.*", "pyramid.root.*"
    watched = (
        ("a run failed", ["prefect.flow-run.Failed", "prefect.flow-run.Crashed"], runs, run_text),
        ("a run is late", ["prefect.flow-run.Late"], runs, run_text),
        ("many rows failed", [ROWS_FAILED], roots, own_text),
        ("the gate refused a model", [GATE_REFUSED], roots, own_text),
        ("a disk fills", [DISK_FILLS], roots, own_text),
    )
    kind, block_id = _sender(client, webhook, block)
    return [
        AutomationCore(
            name=f"pyramid: {name}",
            trigger=EventTrigger(
                posture=Posture.Reactive,
                expect=set(events),
                match={"prefect.resource.id": resource},
                match_related=_our_flows() if resource == runs else {},
                for_each={"prefect.resource.id"},
                threshold=1,
                within=timedelta(0),
            ),
            actions=[_message(kind, block_id, name, text)],
        )
        for name, events, resource, text in watched
    ]


def _our_flows() -> dict[str, str | list[str]]:
    return {"prefect.resource.role": "flow", "prefect.resource.name": list(FLOWS)}


def _sender(client: SyncPrefectClient, webhook: str, block: str) -> tuple[str, UUID]:
    """Kind of action (`call-webhook` or `send-notification`) and id of the block that sends messages."""
    if webhook:
        Webhook(method="POST", url=SecretStr(webhook)).save(BLOCK, overwrite=True)
        block = f"webhook/{BLOCK}"
    kind, _, name = block.partition("/")
    try:
        document = client.read_block_document_by_name(name, kind)
    except ObjectNotFound as err:
        raise ValueError(f"the server has no block {block!r}: create it first, see `prefect block type ls`") from err
    return "call-webhook" if kind == "webhook" else "send-notification", document.id


def _message(kind: str, block_id: UUID, name: str, text: str) -> CallWebhook | SendNotification:
    """Action that sends a message. text: a Jinja expression of the event, its flow run and its flow."""
    if kind == "call-webhook":
        return CallWebhook(block_document_id=block_id, payload=f'{{"text": {{{{ ({text}) | tojson }}}}}}')
    return SendNotification(block_document_id=block_id, subject=f"pyramid: {name}", body=f"{{{{ {text} }}}}")
