"""The whole pipeline with its root in a bucket, on a real S3 server of this machine. About 2 min."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("s3fs", reason="the extra `s3` is not installed")
moto_server = pytest.importorskip("moto.server", reason="moto[server], which plays S3, is not installed")

pytestmark = [pytest.mark.server, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = "s3://films/root"
KEYS = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory) -> Command:
    """`pyramid(*arguments, **environment)`: a command that reaches the bucket `films`."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    folder = tmp_path_factory.mktemp("elsewhere")
    store = KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
    store |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null", "HOME": str(folder)}
    places = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "PREFECT_HOME": str(folder / "prefect")}
    own = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PREFECT_", "MLFLOW_"))}

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name("pyramid"), *arguments], cwd=folder, env=own | store | places | environment,
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip

    import s3fs

    s3fs.S3FileSystem(key="any", secret="any", endpoint_url=store["AWS_ENDPOINT_URL"]).mkdir("films")
    yield run
    server.stop()


@pytest.fixture(scope="module")
def whole_run(pyramid, tiny_source) -> str:
    """Output of the run that fills the root."""
    done = pyramid("run", "smoke", "--source", str(tiny_source), "--root", ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_step_works_on_a_bucket(whole_run):
    for step in ("ingest", "captions", "train_vae", "train_dit", "evaluate", "register", "generate", "report"):
        assert f"✓ {step}" in whole_run
    assert f"Report      {ROOT}/report.html" in whole_run


def test_a_second_run_finds_nothing_new(whole_run, pyramid, tiny_source):
    done = pyramid("run", "smoke", "--source", str(tiny_source), "--root", ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "✓" not in done.stdout


@pytest.mark.parametrize("command", ["stats", "verify", "vacuum", "report"])
def test_manifest_commands_work_on_a_bucket(whole_run, pyramid, command):
    done = pyramid("manifest", command, ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none failed" in done.stdout or command != "verify"


def test_missing_credentials_are_one_sentence_for_readers_and_writers(pyramid, tiny_source):
    none = dict.fromkeys(KEYS, "")
    curate = ("curate", "--source", str(tiny_source), "--root", ROOT)
    for done in (pyramid("manifest", "stats", ROOT, **none), pyramid(*curate, **none)):
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "set in the environment of every machine AWS_ACCESS_KEY_ID" in done.stderr


def test_a_bucket_without_a_tracking_server_is_refused_before_any_work(pyramid, tiny_source):
    command = ("run", "smoke", "--source", str(tiny_source), "--root", "s3://films/other")
    done = pyramid(*command, MLFLOW_TRACKING_URI="")
    assert done.returncode == 1
    assert "set MLFLOW_TRACKING_URI to an MLflow server" in done.stderr
    assert "ingest" not in done.stdout
