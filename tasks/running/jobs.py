"""A step as a Ray job on a cluster elsewhere (`ray.address: jobs:http://head:8265`).

The submission id follows from what is to be done, so a driver that died finds its job again. The token of a cluster
with authentication comes from the environment (`RAY_AUTH_MODE=token` with `RAY_AUTH_TOKEN` or `RAY_AUTH_TOKEN_PATH`),
never from a config. The cluster's image must hold this package, and `root` must be reachable from it.
"""

import contextlib
import json
import logging
import os
import shlex
import time
from typing import Any, TypeVar

from pyramid_model.config import Config
from tasks.running.errors import StepError
from tasks.running.run import Run, StepResult, report_progress
from tasks.tables.delta import content_id

LOG = logging.getLogger("pyramid.jobs")

RUNNING, ENDED = ("PENDING", "RUNNING"), ("SUCCEEDED", "FAILED", "STOPPED")
NO_ANSWER = (OSError, RuntimeError)  # of `requests`: all derive from OSError; of Ray: the head answered with an error
POLL_S, POLL_MOST_S = 0.5, 5.0
LOG_BYTES_A_S = 1e6  # Ray sends the whole log each time: a long one is asked for less often
REQUEST_S = 30.0
SUBMIT_TRIES = 3
UNREACHABLE_S = 120.0  # a head that is silent for longer is given up; its job is left running
LOG_TAIL_LINES = 20
ERROR = "ERROR {"  # a log line may begin with ERROR too
R = TypeVar("R", bound=StepResult)


def submission_id(step: str, run: Run, config: Config) -> str:
    """The same work on the same root always has the same id; `run_id` is left out, since it changes nothing."""
    work = content_id(step, run.root, config.model_dump(mode="json"), run.retry_failed)
    return f"pyramid-{step.replace('_', '-')}-{work}"


def submit_step(step: str, run: Run, config: Config, result_class: type[R]) -> R:
    """Run a step as a Ray job: join it if it is running already, else submit it; forward its log; return its result.

    Cancelling (Ctrl-C, a cancelled flow) stops the job. A driver that fails, is killed outright or loses the cluster
    leaves the job running; the next one joins it.

    Raises:
        StepError: the job failed or was stopped, or the cluster cannot be reached.
    """
    job_id = submission_id(step, run, config)
    client = _client(run.ray.address.removeprefix("jobs:"))
    try:
        _submit_or_join(client, job_id, step, run, config)
        job, lines = _follow(client, job_id)
    except BaseException as err:
        # Ctrl-C and Prefect's signals are no Exception, so that nobody takes them for an error; lost contact is one.
        if not isinstance(err, Exception):
            with contextlib.suppress(Exception):
                client.stop_job(job_id)
        raise
    return _outcome(job_id, job, lines, result_class)


def _client(address: str) -> Any:
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, *args: Any, **kwargs: Any) -> Any:
            return super()._do_request(*args, timeout=REQUEST_S, **kwargs)  # Ray would wait for ever

    try:
        return Client(address)
    except NO_ANSWER as err:
        raise StepError(
            f"no Ray Jobs server answers at {address} (ray.address): {err}. Check the address and port (8265 by "
            "default) and, if the cluster asks for a token, RAY_AUTH_MODE=token with RAY_AUTH_TOKEN."
        ) from err


def _submit_or_join(client: Any, job_id: str, step: str, run: Run, config: Config) -> None:
    """Join a running job; any ended one is replaced, because a step that runs again does only what is missing."""
    there = run.model_dump(mode="json") | {"ray": run.ray.model_dump(mode="json") | {"address": "auto"}}
    arguments = json.dumps({"run": there, "config": config.model_dump(mode="json")})
    for tries_left in reversed(range(SUBMIT_TRIES)):
        try:
            known = {job.submission_id: job.status.value for job in client.list_jobs()}
            if known.get(job_id) in RUNNING:
                LOG.info("joined Ray job %s, which is %s", job_id, known[job_id])
                return
            if job_id in known:
                client.delete_job(job_id)
            client.submit_job(submission_id=job_id, entrypoint=f"python -m tasks {step} {shlex.quote(arguments)}")
            LOG.info("submitted Ray job %s", job_id)
            return
        except NO_ANSWER as err:  # another driver was quicker, or an answer was lost on its way: look again
            if not tries_left:
                raise StepError(f"the Ray cluster takes no job {job_id}: {err}", transient=True) from err
            time.sleep(POLL_S)


def _follow(client: Any, job_id: str) -> tuple[Any, list[str]]:
    """Wait for the end of the job; each line of its log is logged here as it appears, progress as progress.

    Returns:
        Ray's details of the ended job, and its log lines.
    """
    lines: list[str] = []
    seen, wait_s, heard = 0, POLL_S, time.monotonic()
    while True:
        try:
            job, log = client.get_job_info(job_id), client.get_job_logs(job_id)
        except NO_ANSWER as err:
            if time.monotonic() - heard > UNREACHABLE_S:
                message = f"lost the Ray cluster while following job {job_id}, which may go on: {err}"
                raise StepError(message, transient=True) from err
            time.sleep(POLL_MOST_S)
            continue
        heard, ended = time.monotonic(), job.status.value in ENDED
        end = len(log) if ended else log.rfind("\n") + 1  # a half-written line waits for its rest
        fresh = log[seen:end].splitlines()
        for line in fresh:
            _forward(line)
        lines += fresh
        if ended:
            return job, lines
        wait_s = POLL_S if fresh else min(wait_s * 1.5, POLL_MOST_S)
        seen = max(seen, end)
        time.sleep(wait_s + len(log) / LOG_BYTES_A_S)


def _forward(line: str) -> None:
    if line.startswith("PROGRESS "):
        report_progress(**json.loads(line.removeprefix("PROGRESS ")))
    elif line.strip() and not line.startswith(("RESULT ", ERROR)):
        LOG.info("%s", line)


def _outcome(job_id: str, job: Any, lines: list[str], result_class: type[R]) -> R:
    status = job.status.value
    results = [line.removeprefix("RESULT ") for line in lines if line.startswith("RESULT ")]
    if results and status != "STOPPED":  # what comes after the result is only the end of the process
        return result_class.model_validate_json(results[-1])
    errors = [line.removeprefix("ERROR ") for line in lines if line.startswith(ERROR)]
    if errors:
        error = json.loads(errors[-1])
        raise StepError(f"Ray job {job_id} ended as {status}: {error['message']}", error["transient"])
    last_lines = "\n".join(lines[-LOG_TAIL_LINES:])
    killed = status == "FAILED" and _by_signal(job.driver_exit_code)
    told = f"Ray job {job_id} ended as {status} ({job.message or 'Ray says no more'}); its last lines:\n{last_lines}"
    raise StepError(told, transient=killed)


def _by_signal(exit_code: int | None) -> bool:
    """Whether a process was killed, itself, in its shell, or with its machine (then there is no code)."""
    return exit_code is None or exit_code < 0 or exit_code > 128
