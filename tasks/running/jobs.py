"""A step as a Ray job on a cluster elsewhere (`ray.address: jobs:http://head:8265`).

Each attempt is a separate job, `pyramid-STEP-WORK-NUMBER`; WORK is a hash of the step's work. While an attempt
runs, every driver with the same work joins it, so a driver that died finds its job again. Each attempt has a random
token, kept in the job's metadata and printed with its first and its last line: Ray appends the log of a job to the log
of an earlier job of that id, and only lines after the first token belong to this attempt.

The password of a cluster with token authentication comes from the environment (`RAY_AUTH_MODE=token` with
`RAY_AUTH_TOKEN` or `RAY_AUTH_TOKEN_PATH`), never from a config. The cluster's image must hold this package, and `root`
must be reachable from it.
"""

import contextlib
import json
import logging
import os
import re
import shlex
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pyramid_model.config import Config
from tasks.running.errors import StepError
from tasks.running.run import PROGRESS_FIELDS, Run, StepResult, report_progress
from tasks.tables.content_ids import content_id

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

LOG = logging.getLogger("pyramid.jobs")

RUNNING, ENDED = ("PENDING", "RUNNING"), ("SUCCEEDED", "FAILED", "STOPPED")
NO_ANSWER = (OSError, RuntimeError)  # OSError: any error of `requests`; RuntimeError: Ray's head answered with an error
POLL_S, POLL_MOST_S = 0.5, 5.0
LOG_BYTES_PER_S = 1e6  # Ray sends the whole log each time: long logs are polled less often
REQUEST_S = 30.0
SUBMIT_TRIES = 3
UNREACHABLE_S = 120.0  # after this time without an answer the driver stops with an error; the job continues
LOG_TAIL_LINES = 20
BEGIN, RESULT, ERROR = "BEGIN", "RESULT", "ERROR"  # first words of lines with the token of an attempt
R = TypeVar("R", bound=StepResult)
TOKEN = "pyramid_attempt"  # name of the token in a job's metadata
ANSI_CODES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARNING": logging.WARNING, "ERROR": logging.ERROR}


@dataclass(frozen=True)
class Attempt:
    """One Ray job: its submission id, and the token that marks the lines of its log."""

    job_id: str
    token: str


def job_prefix(step: str, run: Run, config: Config) -> str:
    """Common prefix of the job ids of all attempts at the same work on the same root; `run_id` changes nothing."""
    work = content_id(step, run.root, config.model_dump(mode="json"), run.retry_failed)
    return f"pyramid-{step.replace('_', '-')}-{work}-"


def submit_step(step: str, run: Run, config: Config, result_class: type[R]) -> R:
    """Run a step as a Ray job: join a running attempt, else submit one; forward its log; return its result.

    Ctrl-C stops the job. A driver that fails, is killed or loses the cluster leaves it running; the next driver joins
    it. A cancelled flow stops it by `stop_step`.

    Raises:
        StepError: the job failed or was stopped, or the cluster cannot be reached.
    """
    client = _client(run.ray.address.removeprefix("jobs:"))
    try:
        attempt = _join_or_submit(client, step, run, config)
        job, lines = _follow(client, attempt)
    except KeyboardInterrupt:
        stop_step(step, run, config)
        raise
    return result_class.model_validate_json(_outcome(attempt, job, lines))


def stop_step(step: str, run: Run, config: Config) -> None:
    """Stop the running attempt of a step, if it exists and the cluster answers."""
    with contextlib.suppress(StepError, *NO_ANSWER):
        client = _client(run.ray.address.removeprefix("jobs:"))
        attempt = _running_attempt(client.list_jobs(), job_prefix(step, run, config))
        if attempt:
            client.stop_job(attempt.job_id)
            LOG.info("stopped Ray job %s", attempt.job_id)


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


def _join_or_submit(client: "JobSubmissionClient", step: str, run: Run, config: Config) -> Attempt:
    """The running attempt at this work, else a new one; the log and status of the last ended one stay readable."""
    prefix = job_prefix(step, run, config)
    for tries_left in reversed(range(SUBMIT_TRIES)):
        try:
            jobs = client.list_jobs()
            if attempt := _running_attempt(jobs, prefix):
                LOG.info("joined Ray job %s, which is running", attempt.job_id)
                return attempt
            numbers = _attempt_numbers(jobs, prefix)
            attempt = Attempt(f"{prefix}{max(numbers, default=0) + 1}", uuid.uuid4().hex)
            work = {"run": _remote(run, attempt), "config": config.model_dump(mode="json"), "attempt": attempt.token}
            client.submit_job(
                submission_id=attempt.job_id,
                entrypoint=f"python -m tasks {step} {shlex.quote(json.dumps(work))}",
                metadata={TOKEN: attempt.token},
            )
            LOG.info("submitted Ray job %s", attempt.job_id)
            for number in sorted(numbers)[:-1]:
                client.delete_job(f"{prefix}{number}")
            return attempt
        except NO_ANSWER as err:  # another driver submitted this id first, or the head's answer was lost: look again
            if not tries_left:
                raise StepError(f"the Ray cluster takes no job {prefix}…: {err}", transient=True) from err
            time.sleep(POLL_S)
    raise AssertionError("the last try returns or raises")


def _remote(run: Run, attempt: Attempt) -> dict[str, object]:
    """The run as JSON for its job on the cluster, with the address of that job on the Ray dashboard."""
    address = run.ray.address.removeprefix("jobs:").rstrip("/")
    links = {"ray_job": attempt.job_id, "ray_url": f"{address}/#/jobs/{attempt.job_id}"}
    on_cluster = run.model_copy(
        update={"ray": run.ray.model_copy(update={"address": "auto"}), "links": run.links | links}
    )
    return on_cluster.model_dump(mode="json")


def _running_attempt(jobs: "list[JobDetails]", prefix: str) -> Attempt | None:
    for job in jobs:
        token = (job.metadata or {}).get(TOKEN)
        if token and (job.submission_id or "").startswith(prefix) and job.status.value in RUNNING:
            return Attempt(str(job.submission_id), token)
    return None


def _attempt_numbers(jobs: "list[JobDetails]", prefix: str) -> list[int]:
    """Numbers of the attempts at this work that the cluster lists."""
    suffixes = [(job.submission_id or "").removeprefix(prefix) for job in jobs if job.submission_id]
    return [int(suffix) for suffix in suffixes if suffix.isdigit()]


def _follow(client: "JobSubmissionClient", attempt: Attempt) -> "tuple[JobDetails, list[str]]":
    """Wait for the end of a job. Its log lines are logged here as they appear; progress lines become progress records.

    Returns:
        Ray's details of the ended job, and the lines that this attempt printed.
    """
    lines: list[str] = []
    first_line = f"{BEGIN} {attempt.token}\n"
    log_start, wait_s, heard = 0, POLL_S, time.monotonic()
    while True:
        try:
            job, log = client.get_job_info(attempt.job_id), client.get_job_logs(attempt.job_id)
        except NO_ANSWER as err:
            if time.monotonic() - heard > UNREACHABLE_S:
                message = f"lost the Ray cluster while following job {attempt.job_id}, which may go on: {err}"
                raise StepError(message, transient=True) from err
            time.sleep(POLL_MOST_S)
            continue
        heard, ended = time.monotonic(), job.status.value in ENDED
        log_start = log_start or log.find(first_line) + len(first_line) if first_line in log else 0
        end = len(log) if ended else log.rfind("\n") + 1  # an incomplete line is kept until the rest of it arrives
        new_lines = log[log_start:end].rstrip("\n").split("\n") if log_start < end and log_start else []
        for line in new_lines:
            _forward(line, attempt.token)
        lines += new_lines
        if ended:
            return job, lines
        wait_s = POLL_S if new_lines else min(wait_s * 1.5, POLL_MOST_S)
        log_start = max(log_start, end) if log_start else 0
        time.sleep(wait_s + len(log) / LOG_BYTES_PER_S)


def _forward(line: str, token: str) -> None:
    """Log a line of the job at its level. A progress line becomes a progress record; a result line is not logged."""
    line = ANSI_CODES.sub("", line)
    if progress := _progress(line):
        report_progress(**progress)
    elif line.strip() and token not in line:
        level, _, text = line.partition(" ")
        LOG.log(LEVELS.get(level, logging.INFO), "%s", text if level in LEVELS else line)


def _progress(line: str) -> dict[str, Any]:
    """Arguments of `report_progress` that a line of the job states; empty if it is another line."""
    try:
        progress = json.loads(line.removeprefix("PROGRESS ")) if line.startswith("PROGRESS ") else {}
    except ValueError:
        return {}
    if not isinstance(progress, dict) or progress.keys() != PROGRESS_FIELDS.keys():
        return {}
    return progress if all(isinstance(progress[name], kind) for name, kind in PROGRESS_FIELDS.items()) else {}


def _outcome(attempt: Attempt, job: "JobDetails", lines: list[str]) -> str:
    """The result of an ended job, as JSON. A printed result counts only if the status of the job is SUCCEEDED.

    Raises:
        StepError: it failed, was stopped, or ended without a result.
    """
    status = job.status.value
    if status == "SUCCEEDED" and (result := _last_word(lines, RESULT, attempt.token)):
        return result
    name = f"Ray job {attempt.job_id} ended as {status}"
    if error := _last_word(lines, ERROR, attempt.token):
        reason = json.loads(error)
        raise StepError(f"{name}: {reason['message']}", reason["transient"])
    killed = status == "FAILED" and _by_signal(job.driver_exit_code)
    tail = "\n".join(lines[-LOG_TAIL_LINES:]) or "(it printed none)"
    raise StepError(f"{name} ({job.message or 'Ray gives no reason'}); its last lines:\n{tail}", transient=killed)


def _last_word(lines: list[str], word: str, token: str) -> str:
    """The JSON of the last line `WORD TOKEN JSON`; empty if no line has this form."""
    start = f"{word} {token} "
    return next((line.removeprefix(start) for line in reversed(lines) if line.startswith(start)), "")


def _by_signal(exit_code: int | None) -> bool:
    """Whether the process or its shell was killed by a signal, or its machine was lost (then there is no exit code)."""
    return exit_code is None or exit_code < 0 or exit_code > 128
