"""A real Prefect server with a worker: deploy all, run by hand, run on a schedule. Runs in 2 min on two cores."""

import urllib.error
import uuid
from datetime import UTC, datetime, timedelta

import pytest

pytestmark = [pytest.mark.server, pytest.mark.ray, pytest.mark.slow]

FLOWS = {
    "curate": "nightly",
    "recaption": "nightly",
    "extract": None,
    "train-vae": None,
    "train-dit": None,
    "evaluate-and-gate": None,
    "generate": "nightly",
    "data-to-model": None,
}


@pytest.fixture(scope="module")
def deployments(prefect_server, prefect_worker) -> dict[str, dict]:
    """Every deployment by name."""
    return {deployment["name"]: deployment for deployment in prefect_server.call("POST", "/deployments/filter", {})}


@pytest.fixture(scope="module")
def by_hand(prefect_server, prefect_worker, deployments, tiny_source, until) -> dict:
    """A run of `curate` that was asked for, when it has ended."""
    body = {"parameters": {"source": str(tiny_source), "settings": {"clips.crf": 30}}}
    run = prefect_server.call("POST", f"/deployments/{deployments['curate']['id']}/create_flow_run", body)
    return until(lambda: ended(prefect_server, run["id"]), 240, "the run by hand")


def ended(server, run_id: str) -> dict | None:
    run = server.call("GET", f"/flow_runs/{run_id}")
    return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def log_of(server, run: dict) -> str:
    body = {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "limit": 200}
    return "\n".join(line["message"] for line in server.call("POST", "/logs/filter", body))


def test_the_server_asks_for_a_password(prefect_server):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        prefect_server.call("POST", "/deployments/filter", {}, auth=False)


def test_every_flow_is_deployed_with_its_schedule_limit_and_module_path(deployments):
    assert set(deployments) == set(FLOWS)
    for name, schedule in FLOWS.items():
        deployment = deployments[name]
        module = name.replace("-", "_")
        assert deployment["entrypoint"] == f"flows.{module}.{module}"
        assert deployment["global_concurrency_limit"]["limit"] == 1
        assert deployment["tags"]
        assert [entry["slug"] for entry in deployment["schedules"]] == ([schedule] if schedule else [])
        assert deployment["parameters"]["recipe"] == "smoke"
        assert deployment["parameters"]["ray"] == "local"


def test_run_by_hand_completes_with_log_and_artifacts(prefect_server, by_hand, until):
    assert by_hand["state_type"] == "COMPLETED", log_of(prefect_server, by_hand)
    # Log lines travel in batches and may arrive after the state.
    until(lambda: "select finished" in log_of(prefect_server, by_hand), 60, "the log of select")
    body = {"artifacts": {"flow_run_id": {"any_": [by_hand["id"]]}}}
    artifacts = {artifact["key"]: artifact for artifact in prefect_server.call("POST", "/artifacts/filter", body)}
    assert set(artifacts) == {
        "curation",
        *(f"counts-{step}" for step in ("ingest", "clips", "scores", "duplicates", "select")),
    }
    assert "data:image/jpeg" in artifacts["curation"]["data"]
    assert "data:image/svg" in artifacts["curation"]["data"]


def test_settings_of_a_run_leave_the_deployments_root_recipe_and_ray_alone(prefect_worker, by_hand):
    parameters = {"root": str(prefect_worker), "recipe": "smoke", "ray": "local"}
    assert parameters.items() <= by_hand["parameters"].items()
    assert by_hand["parameters"]["settings"] == {"clips.crf": 30}


def test_run_by_hand_wrote_its_tables(prefect_worker, by_hand):
    from tasks.tables.delta import read_table

    assert read_table(str(prefect_worker), "clips").num_rows == 6


def test_new_champion_triggers_generation(prefect_server, deployments):
    from prefect.server.events.schemas.automations import EventTrigger
    from prefect.server.events.schemas.events import ReceivedEvent

    from flows.evaluate_and_gate import PROMOTED, champion_resource

    related = f"/automations/related-to/prefect.deployment.{deployments['generate']['id']}"
    (automation,) = prefect_server.call("GET", related)
    trigger = EventTrigger.model_validate(automation["trigger"])
    event = {"occurred": datetime.now(UTC), "id": uuid.uuid4(), "event": PROMOTED}
    assert trigger.covers(ReceivedEvent(resource=champion_resource("3f2a"), **event))
    assert not trigger.covers(ReceivedEvent(resource={"prefect.resource.id": "pyramid.table.clips"}, **event))
    assert trigger.immediate


def test_scheduler_creates_a_run_and_the_worker_completes_it(prefect_server, deployments, by_hand, until):
    deployment = deployments["recaption"]["id"]
    soon = datetime.now(UTC) + timedelta(seconds=15)  # a start that has passed before it is planned is left out
    every_hour = {"interval": 3600, "anchor_date": soon.isoformat()}
    schedule = {"active": True, "schedule": every_hour, "slug": "test"}
    prefect_server.call("POST", f"/deployments/{deployment}/schedules", [schedule])

    def due() -> dict | None:
        body = {
            "deployments": {"id": {"any_": [deployment]}},
            "sort": "EXPECTED_START_TIME_ASC",
            "limit": 1,
        }
        runs = prefect_server.call("POST", "/flow_runs/filter", body)
        return next(
            (run for run in runs if run["expected_start_time"] < (soon + timedelta(seconds=60)).isoformat()), None
        )

    run = until(due, 120, "a scheduled run")
    assert run["auto_scheduled"]
    done = until(lambda: ended(prefect_server, run["id"]), 240, "the scheduled run")
    assert done["state_type"] == "COMPLETED", log_of(prefect_server, done)


def test_a_nightly_run_is_dropped_while_the_deployment_is_busy(prefect_server, deployments, by_hand, until):
    curate = deployments["curate"]
    limits = {"ids": [curate["concurrency_limit_id"]] if "concurrency_limit_id" in curate else []}
    limit = limits["ids"][0] if limits["ids"] else curate["global_concurrency_limit"]["id"]
    body = {"slots": 1, "names": [curate["global_concurrency_limit"]["name"]], "lease_duration": 120}
    assert prefect_server.call("POST", "/v2/concurrency_limits/increment-with-lease", body)["limits"][0]["id"] == limit
    run = prefect_server.call("POST", f"/deployments/{curate['id']}/create_flow_run", {})
    state = until(lambda: ended(prefect_server, run["id"]), 120, "the end of the second run")["state"]
    assert state["type"] == "CANCELLED"
    assert "concurrency limit" in state["message"].lower()
