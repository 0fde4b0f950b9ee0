"""Ray's workers run the driver's interpreter in the driver's folder, under `uv run` as well. Runs in 20 s."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]
CHECKOUT = Path(__file__).parents[2]

DRIVER = """
import json, os, sys
from pyramid_model.config import Config
from tasks.running.pipeline import run_blocks
from tasks.running.run import RayConfig, Run
from tasks.running.work import PerItemWork, Produced
from tasks.tables.delta import read_table
from tasks.tables.rows import ok_row

class Teller:
    def __call__(self, items):
        where = json.dumps([sys.executable, os.getcwd()])
        return Produced({"captions": [ok_row(item, caption_id=item["caption_id"], text=where) for item in items]})

run = Run(root=sys.argv[1], ray=RayConfig(num_cpus=2))
work = PerItemWork(step="tell", version="1", config=Config(), worker=Teller, done_table="captions")
run_blocks(run, work, [{"caption_id": "a", "attempt": 1}])
print(json.dumps([[sys.executable, os.getcwd()], json.loads(read_table(run.root, "captions")["text"][0].as_py())]))
"""


@pytest.mark.parametrize("launcher", ["python", "uv run"])
def test_worker_is_in_the_drivers_environment(tmp_path, launcher):
    command = [sys.executable]
    if launcher == "uv run":
        if not shutil.which("uv"):
            pytest.skip("uv is not installed")
        command = ["uv", "run", "--project", str(CHECKOUT), "--no-sync", "python"]
    done = subprocess.run(
        [*command, "-c", DRIVER, str(tmp_path / "root")], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    driver, worker = json.loads(done.stdout.splitlines()[-1])
    assert worker == driver
    assert driver[1] == str(tmp_path)
