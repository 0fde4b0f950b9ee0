"""Limits each step to one run at a time on a root, for all deployments and commands together."""

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL

LOG = logging.getLogger("pyramid.limits")
LEASE_S = 120.0  # s; the slot of a killed run is free after this time; a live run renews its lease


def limit_name(step: str, root: str) -> str:
    """Name of the global concurrency limit of a step on a root; Prefect allows no slashes in it."""
    return f"pyramid-{step.replace('_', '-')}-{hashlib.blake2b(root.encode(), digest_size=6).hexdigest()}"


@contextlib.contextmanager
def one_at_a_time(step: str, root: str) -> Iterator[None]:
    """Wait until no other run of this server works on the same step of the same root, then hold the slot.

    If the server cannot be reached for a while, the slot is lost, but the step continues: two runs of a step waste time
    but write no row twice.
    """
    name = limit_name(step, root)
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name(name, limit=1)
        busy = client.read_global_concurrency_limit_by_name(name).active_slots
    if busy:
        LOG.info("%s waits: another run works on it in %s", step, root)
    with concurrency(name, lease_duration=LEASE_S, raise_on_lease_renewal_failure=False):
        yield


def has_server() -> bool:
    """Whether a shared Prefect server is configured; the temporary server of a command has no URL."""
    return bool(PREFECT_API_URL.value())


def is_cancelled() -> bool:
    """Whether the flow run of this process was cancelled; False if the server does not answer."""
    with contextlib.suppress(Exception), get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(str(flow_run.root_flow_run_id))).state
        return state is not None and (state.is_cancelling() or state.is_cancelled())
    return False
