"""Messages about a root, through a real Prefect server to a real web hook."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow]

EMIT = """
import sys
from prefect.events.worker import EventsWorker
from flows.alerts import emit_refusal, watch_step
from tasks.running.run import Run, StepResult
run = Run(root=sys.argv[1])
counts = {"num_in": 10, "num_ok": 8, "num_failed": 2}
watch_step(run, StepResult(step="clips", **counts, errors={"no_video_stream": 2}))
watch_step(run, StepResult(step="captions", num_in=10, num_ok=10))
emit_refusal(run, "val_loss is 0.5, limit 0.4")
EventsWorker.instance().drain()
"""


def test_failed_rows_a_full_disk_and_a_refused_model_are_told_once_each(prefect_server, web_hook, tmp_path, until):
    url, lines = web_hook
    environment = prefect_server.environment
    pyramid = Path(sys.executable).with_name("pyramid")
    subprocess.run(
        [pyramid, "alerts", "--webhook", url, "--min-free-share", "1"], check=True, timeout=120, env=environment
    )
    subprocess.run([sys.executable, "-c", EMIT, str(tmp_path)], check=True, timeout=120, env=environment)

    def texts() -> list[str]:
        return sorted(json.loads(line)["text"] for line in lines.read_text().splitlines()) if lines.exists() else []

    until(lambda: len(texts()) >= 4, 60, "four messages")
    expected = [
        f"clips: 2 of 10 new rows failed in {tmp_path} (2 no_video_stream)",
        f"the gate refused the trained model in {tmp_path}: val_loss is 0.5, limit 0.4",
    ]
    assert [text for text in texts() if "are free on the disk" not in text] == expected
    assert sum(f"on the disk that holds {tmp_path}" in text for text in texts()) == 2  # one for each step
