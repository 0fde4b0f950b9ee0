"""Tiny real videos, a real Prefect server with a worker, and a real Ray head, each in processes of its own."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CHECKOUT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
BRIDGE, WEB_HOOK = (str(Path(__file__).with_name(name)) for name in ("bridge.py", "web_hook.py"))
PASSWORD = "test:only"
LEASES = "prefect.server.concurrency.lease_storage.filesystem"

END_STATES = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
CAPTIONS = ("a bright square moves over stripes", "a dark square moves over a checkerboard")


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory) -> Path:
    """A folder of three videos of two shots each, with captions and a pinned split."""
    folder = tmp_path_factory.mktemp("videos")
    write_tiny_source(folder)
    return folder


def write_tiny_source(folder: Path, num_videos: int = 3) -> None:
    """Fill a folder with small videos whose shots anybody can tell apart."""
    from pyramid_model.video.video import write_video

    lines = ["file,start_s,end_s,text"]
    for i in range(num_videos):
        shots = [moving_square(24, seed=2 * i + shot, dark=bool(shot)) for shot in range(2)]
        write_video(str(folder / f"video{i}.mp4"), np.concatenate(shots), fps=12)
        lines += [f"video{i}.mp4,{2 * shot}.0,{2 * shot + 2}.0,{CAPTIONS[shot]}" for shot in range(2)]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    splits = [f"{{file: video{i}.mp4, split: {'val' if i == num_videos - 1 else 'train'}}}" for i in range(num_videos)]
    card = f"name: tiny\nlicense: CC0-1.0\ncaptions: captions.csv\nsplits: [{', '.join(splits)}]\n"
    (folder / "source.yaml").write_text(card)


def moving_square(num_frames: int, seed: int, dark: bool) -> np.ndarray:
    """A square on stripes or a checkerboard, moving; uint8 (t 96 128 c)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:96, :128]
    pattern = ((x // 8 + (y // 8 if dark else 0)) % 2)[..., None]
    back = np.where(pattern, rng.integers(90, 160, 3), rng.integers(0, 256, 3)).astype(np.uint8)
    frames = np.repeat(back[None], num_frames, axis=0)
    for t in range(num_frames):
        edge = 4 + 3 * t
        frames[t, 30:60, edge : edge + 30] = 20 if dark else 235
    return frames


def environment(**extra: str) -> dict[str, str]:
    """This process's environment without what would point a child at somebody's own servers."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "RAY_", "MLFLOW_", "PYRAMID_"))}
    own = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    # Under `uv run`, Ray would pack the working directory of whatever it starts and send it to its workers.
    own |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    return inherited | own | extra


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], Any], float, str], Any]:
    """`until(ready, timeout_s, what)`: the first truthy answer of `ready`."""
    return wait_for


@pytest.fixture(scope="session")
def write_videos() -> Callable[..., None]:
    """`write_videos(folder, num_videos)`: the videos of `tiny_source`, as many as wanted."""
    return write_tiny_source


def wait_for(ready: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """The first truthy answer of `ready`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if answer := ready():
            return answer
        time.sleep(0.5)
    raise TimeoutError(f"{what}: not within {timeout_s:g} s")


@contextlib.contextmanager
def running(command: list[str], log: Path, *, grace_s: float = 20, **options: Any) -> Iterator[subprocess.Popen]:
    """A process in a group of its own, ended with everything it started."""
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True, **options)
    try:
        yield process
    finally:
        end_group(process, grace_s)


def end_group(process: subprocess.Popen, grace_s: float) -> None:
    """Terminate a process group, then kill what is left of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)


class PrefectServer:
    """A server on loopback behind a password, and the environment with which others reach it."""

    def __init__(self, home: Path, port: int):
        self.home = home
        self.url = f"http://127.0.0.1:{port}/api"
        self.environment = environment(
            PREFECT_HOME=str(home), PREFECT_API_URL=self.url, PREFECT_API_AUTH_STRING=PASSWORD
        )

    def call(self, method: str, path: str, body: Mapping[str, Any] | list | None = None, auth: bool = True) -> Any:
        """One request to the API; its JSON answer."""
        import base64

        request = urllib.request.Request(f"{self.url}{path}", method=method)
        request.add_header("Content-Type", "application/json")
        if auth:
            request.add_header("Authorization", f"Basic {base64.b64encode(PASSWORD.encode()).decode()}")
        data = None if body is None else json.dumps(body).encode()
        content = wait_for(lambda: self._content(request, data), 120, f"an answer to {method} {path}")[0]
        return json.loads(content) if content else None

    @staticmethod
    def _content(request: urllib.request.Request, data: bytes | None) -> tuple[bytes] | None:
        """Content of the answer; None while the server asks to come back later, since its database is busy."""
        try:
            with urllib.request.urlopen(request, data, timeout=120) as answer:
                return (answer.read(),)
        except urllib.error.HTTPError as err:
            if err.code != 503:
                raise
            return None

    def cli(self, *arguments: str, **extra: str) -> str:
        """Output of a `prefect` command that must succeed."""
        command = [str(BIN / "prefect"), "--no-prompt", *arguments]
        done = subprocess.run(
            command, cwd=CHECKOUT, env=self.environment | extra, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def healthy(self) -> bool:
        """Whether it answers yet."""
        with contextlib.suppress(OSError):
            return bool(self.call("GET", "/health", auth=False))
        return False


@pytest.fixture
def web_hook(tmp_path, free_port) -> Iterator[tuple[str, Path]]:
    """URL of a web hook, and the file to which it appends what it was sent."""
    port, lines = free_port(), tmp_path / "hook.jsonl"
    with running([sys.executable, WEB_HOOK, str(port), str(lines)], tmp_path / "hook.log"):
        yield f"http://127.0.0.1:{port}/hook", lines


@pytest.fixture(scope="package")
def prefect_server(tmp_path_factory, free_port) -> Iterator[PrefectServer]:
    """A Prefect server of the session's own: its home, port and password touch nobody else's."""
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    server = PrefectServer(home, port)
    settings = {
        "PREFECT_SERVER_API_AUTH_STRING": PASSWORD,
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES,
    }
    command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with running(command, home / "server.log", env=server.environment | settings):
        wait_for(server.healthy, 120, "Prefect server")
        yield server


@pytest.fixture(scope="module")
def prefect_worker(prefect_server, tmp_path_factory) -> Iterator[Path]:
    """Every flow deployed as prefect.yaml says, and a worker on its pool; yields the root of the deployments."""
    root = tmp_path_factory.mktemp("deployed")
    prefect_server.cli("work-pool", "create", "local-process", "--type", "process")
    said = prefect_server.cli("deploy", "--all", PYRAMID_ROOT=str(root), PYRAMID_RECIPE="smoke", PYRAMID_RAY="local")
    assert said.count("successfully created") == 8, said
    command = [str(BIN / "prefect"), "worker", "start", "--pool", "local-process", "--type", "process"]
    quick = prefect_server.environment | {"PREFECT_WORKER_QUERY_SECONDS": "2"}
    with running(command, prefect_server.home / "worker.log", env=quick, cwd=root):
        yield root


class RayHead:
    """A Ray head with token authentication, alone in a network namespace where the machine allows one."""

    def __init__(self, folder: Path, enter: list[str], port: int):
        self.folder, self.enter = folder, enter
        self.address = f"jobs:http://127.0.0.1:{port}"
        token = folder / "token"
        token.write_text("t" * 64)
        token.chmod(0o600)
        self.environment = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))

    def start_python(self, code: str, log: Path) -> subprocess.Popen:
        """Run Python code where the head can be reached."""
        with log.open("w") as out:
            return subprocess.Popen(
                [*self.enter, sys.executable, "-u", "-c", code], stdout=out, stderr=out, env=self.environment
            )


@pytest.fixture(scope="module")
def ray_head(free_port) -> Iterator[RayHead]:
    """`ray start --head` with a Jobs server."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: Ray's sockets live below it
    unshare = next((u for u in (["unshare", "-n"], ["unshare", "-rn"]) if can(u)), [])
    port = 8265 if unshare else free_port()
    start = (
        f"ray start --head --block --disable-usage-stats --num-cpus=2 --node-ip-address=127.0.0.1 "
        f"--dashboard-host=127.0.0.1 --dashboard-port={port} --object-store-memory=200000000 --temp-dir={folder}"
    )
    command = [*unshare, "bash", "-c", f"ip link set lo up; exec {start}" if unshare else f"exec {start}"]
    head = RayHead(folder, [], port)
    log = folder / "head.log"
    options = {"env": head.environment | {"PYTHONUNBUFFERED": "1"}, "cwd": folder}
    with running(command, log, grace_s=1, **options) as process:  # left to itself it would drain for 30 s
        user = ["-U", "--preserve-credentials"] if "-rn" in unshare else []
        head.enter = ["nsenter", f"--target={process.pid}", "-n", *user] if unshare else []
        wait_for(lambda: "Ray runtime started" in log.read_text(), 240, f"Ray head ({log})")
        yield head
    shutil.rmtree(folder, ignore_errors=True)


def can(unshare: list[str]) -> bool:
    """Whether this machine lets us have a network of our own."""
    try:
        return subprocess.run([*unshare, "ip", "link", "set", "lo", "up"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


class Night:
    """The servers of one installation, which a test may kill and start again."""

    def __init__(self, head, folder: Path, free_port: Callable[[], int]) -> None:
        self.head, self.folder = head, folder
        self.root = folder / "root"
        self.root.mkdir()
        self.hooks = folder / "hooks.jsonl"
        self.started: list[subprocess.Popen] = []
        outer, inner = socket.create_server(("127.0.0.1", 0)), free_port()
        self.start(
            ["python", BRIDGE, str(outer.fileno()), str(inner)],
            "bridge",
            pass_fds=[outer.fileno()],
        )
        self.port = inner
        self.api = PrefectServer(folder, outer.getsockname()[1])
        own_url = {"PREFECT_API_URL": f"http://127.0.0.1:{inner}/api"}
        self.environment = self.api.environment | head.environment | own_url
        self.hook_port = free_port()
        self.start(["python", WEB_HOOK, str(self.hook_port), str(self.hooks)], "hook")
        self.server = self.start_server()
        self.cli("prefect", "work-pool", "create", "local-process", "--type", "process")
        where = {"PYRAMID_ROOT": str(self.root), "PYRAMID_RECIPE": "smoke", "PYRAMID_RAY": head.address}
        self.cli("prefect", "--no-prompt", "deploy", "--all", **where)
        self.worker = self.start_worker()

    def start(self, command: list[str], name: str, pass_fds: list[int] | None = None, **extra: str) -> subprocess.Popen:
        """A process in the namespace of the Ray head."""
        program = sys.executable if command[0] == "python" else str(BIN / command[0])
        env = getattr(self, "environment", os.environ) | extra
        with (self.folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                [*self.head.enter, program, *command[1:]],
                stdout=log, stderr=log, env=env, cwd=self.root, start_new_session=True, pass_fds=pass_fds or (),
            )  # fmt: skip
        self.started.append(process)
        return process

    def cli(self, *command: str, **extra: str) -> str:
        """Output of a command that must succeed."""
        done = subprocess.run(
            [*self.head.enter, str(BIN / command[0]), *command[1:]],
            env=self.environment | extra, cwd=CHECKOUT, capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start_server(self) -> subprocess.Popen:
        settings = {"PREFECT_SERVER_API_AUTH_STRING": PASSWORD, "PREFECT_SERVER_UI_ENABLED": "false"}
        settings |= {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES}
        command = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        process = self.start(command, "server", **settings)
        wait_for(self.api.healthy, 180, "Prefect server")
        return process

    def restart_server(self) -> None:
        end_group(self.server, 30)
        self.server = self.start_server()

    def start_worker(self) -> subprocess.Popen:
        command = ["prefect", "worker", "start", "--pool", "local-process", "--type", "process"]
        return self.start(command, "worker", PREFECT_WORKER_QUERY_SECONDS="2")

    def run(self, source: Path, **settings: Any) -> str:
        """Ask for a run of `curate`; its id."""
        (deployment,) = self.api.call("POST", "/deployments/filter", {"deployments": {"name": {"any_": ["curate"]}}})
        body = {"parameters": {"source": str(source), "settings": {"clips.min_frames": 9} | settings}}
        return self.api.call("POST", f"/deployments/{deployment['id']}/create_flow_run", body)["id"]

    def state(self, run_id: str) -> dict:
        return self.api.call("GET", f"/flow_runs/{run_id}")["state"]

    def ended(self, run_id: str, timeout_s: float = 300) -> dict:
        """The end state of a run."""
        what = f"the end of run {run_id}"
        return wait_for(lambda: (s := self.state(run_id))["type"] in END_STATES and s, timeout_s, what)

    def log(self, run_id: str) -> str:
        body = {"logs": {"flow_run_id": {"any_": [run_id]}}, "limit": 200, "sort": "TIMESTAMP_ASC"}
        return "\n".join(line["message"] for line in self.api.call("POST", "/logs/filter", body))

    def jobs(self) -> dict[str, str]:
        """Status of each Ray job of the clips step, by submission id."""
        code = "import json\nfrom ray.job_submission import JobSubmissionClient\n"
        code += f"jobs = JobSubmissionClient({self.head.address.removeprefix('jobs:')!r}).list_jobs()\n"
        code += "print('JOBS', json.dumps({j.submission_id: j.status.value for j in jobs if j.submission_id}))"
        said = subprocess.run(
            [*self.head.enter, sys.executable, "-c", code], env=self.head.environment, capture_output=True, text=True
        ).stdout
        statuses = json.loads(said.split("JOBS ")[1])
        return {name: status for name, status in statuses.items() if name.startswith("pyramid-clips-")}

    def told(self) -> list[str]:
        """What the web hook was told."""
        lines = self.hooks.read_text().splitlines() if self.hooks.exists() else []
        return [json.loads(line)["text"] for line in lines]

    def clips_at_work(self, run_id: str) -> None:
        """Wait until the clips job of a run has begun."""
        wait_for(lambda: "clips 0/" in self.log(run_id), 300, "the clips job")


@pytest.fixture(scope="module")
def night(ray_head, tmp_path_factory, free_port) -> Iterator[Night]:
    """A Prefect server, a worker and a Ray head that tests may kill, with a web hook that is told what goes wrong."""
    night = Night(ray_head, tmp_path_factory.mktemp("night"), free_port)
    night.cli("pyramid", "alerts", "--webhook", f"http://127.0.0.1:{night.hook_port}/hook", "--silence", "120")
    yield night
    for process in reversed(night.started):
        end_group(process, 10)
