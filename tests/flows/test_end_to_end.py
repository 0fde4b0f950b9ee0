"""Raw videos to generated clips, run again, and killed on the way. Runs in 6 min on two cores."""

import json
import random
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.server, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

HEAVY = ("torch", "ray", "mlflow", "transformers", "diffusers", "av", "matplotlib")
RUN = """
import json, sys
from flows.cli.launch import launch
from flows.cli.settings import command_recipe
launch("data_to_model", {root!r}, lambda: command_recipe("smoke", ["ingest.source={source}"], {{}}))
print("IMPORTED", json.dumps(sorted(set(sys.modules) & set({heavy!r}))))
"""
README = Path(__file__).parents[2] / "README.md"
RECIPES = Path(__file__).parents[2] / "flows" / "recipes"
COMMANDS = re.findall(r"^(?:pip install uv && )?uv run pyramid ([^#\n]+)", README.read_text(), re.MULTILINE)
# Tiny random weights at a tiny size: the same options on the same code.
TINY = "--height 64 --width 128 --steps 1 --device cpu --set generate.dtype=float32"
KILL_WITHIN_STEPS = ((0, 6), (6, 12))  # so once early and once late


@pytest.fixture(scope="module")
def start(prefect_server, tiny_source):
    """Starts `data-to-model` on a root in a process of its own; its output goes to <root>.log."""

    def started(root: Path) -> subprocess.Popen:
        code = RUN.format(root=str(root), source=tiny_source, heavy=HEAVY)
        with root.with_suffix(".log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-c", code], env=prefect_server.environment, stdout=log, stderr=log, cwd=root.parent
            )

    return started


@pytest.fixture(scope="module")
def done(start, tmp_path_factory) -> Path:
    """The root of a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("undisturbed") / "root"
    assert start(root).wait(600) == 0, root.with_suffix(".log").read_text()
    return root


def ids(root: Path) -> dict[str, list[str]]:
    """All ids of every table, each attempt, sorted."""
    from tasks.tables.delta import read_table
    from tasks.tables.schemas import ID_COLUMNS

    return {
        table: sorted(read_table(str(root), table, [column], newest=False)[column].to_pylist())
        for table, column in ID_COLUMNS.items()
    }


def test_videos_become_a_clip_a_champion_and_a_report(done):
    from tasks.models.registry import champion
    from tasks.tables.delta import read_table

    (clip,) = read_table(str(done), "generations").to_pylist()
    assert Path(clip["uri"]).stat().st_size > 0
    best = champion(str(done))
    assert best is not None
    assert clip["weights_hash"] == best.dit.hash
    assert sorted(read_table(str(done), "evaluations")["passed"].to_pylist()) == [False, True]
    assert "<html" in (done / "report.html").read_text()


def test_every_input_is_accounted_for(done):
    steps = [json.loads(path.read_text()) for path in (done / "runs").glob("*/*.json")]
    assert len(steps) == 15
    for step in steps:
        counted = step["num_done"] + step["num_ok"] + step["num_failed"] + step["num_skipped"]
        assert counted == step["num_in"], step


def promotions(server) -> int:
    """Events of a new champion that the server has heard of."""
    wanted = {"filter": {"event": {"name": ["pyramid.champion.promoted"]}}}
    return server.call("POST", "/events/filter", wanted)["total"]


def test_second_run_does_nothing_and_imports_nothing_heavy(done, start, prefect_server, until):
    before = ids(done)
    # The event alone is sent again, since a run that died after the promotion would have kept it back.
    heard = until(lambda: promotions(prefect_server), 60, "the first event")
    assert start(done).wait(300) == 0
    assert ids(done) == before
    until(lambda: promotions(prefect_server) == heard + 1, 60, "the second event")
    said = done.with_suffix(".log").read_text()
    assert json.loads(said.rsplit("IMPORTED ")[-1]) == []
    lines = [line for line in said.splitlines() if re.match(r"^[·✓!] ", line)]
    assert [line[0] for line in lines[len(lines) // 2 :]] == ["·"] * 15


def test_killed_again_and_again_it_ends_with_the_same_tables(done, start, tmp_path):
    root = tmp_path / "root"
    seed = random.randrange(10**6)
    moments = random.Random(seed)
    for first, last in KILL_WITHIN_STEPS:
        process = start(root)
        kill_after = moments.randrange(first, last)
        while process.poll() is None and steps_finished(root) < kill_after:
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 6))
        process.kill()
        process.wait(20)
    assert start(root).wait(600) == 0, root.with_suffix(".log").read_text()
    present, wanted = ids(root), ids(done)
    for table in wanted:
        assert present[table] == wanted[table], f"{table}, seed {seed}"


def steps_finished(root: Path) -> int:
    """Steps whose result some run has recorded; a later run records the early ones again, so each name counts once."""
    names = {path.name.split("-", 1)[1] for path in (root / "runs").glob("*/*.json")}
    return len(names)


def as_smoke(source: Path) -> str:
    """Options that give the recipe demo the settings of the recipe smoke, and these videos."""
    smoke, demo = (yaml.safe_load((RECIPES / f"{name}.yaml").read_text()) for name in ("smoke", "demo"))
    sections = {name: smoke.get(name, {}) for name in {*smoke, *demo}} | {"ingest": {"source": str(source)}}
    return " ".join(f"--set {shlex.quote(f'{name}={json.dumps(value)}')}" for name, value in sorted(sections.items()))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_readme_run(done, command, prefect_server, tiny_source, released, tmp_path):
    """Each line of the README on the finished root, with the smoke recipe in place of the demo."""
    from PIL import Image

    Image.new("RGB", (128, 64), "teal").save(tmp_path / "boat.jpg")
    given = command.strip().replace("run demo", "run smoke").replace("--seconds 5", "--seconds 0.4")
    given = f"demo --root {done} {as_smoke(tiny_source)}" if given == "demo" else given
    given += " --recipe smoke" if given.startswith("curate") else ""
    given += f" {TINY}" if "--weights" in given else ""
    places = {
        "~/videos": tiny_source,
        "./mine": done,
        "./pyramid-demo": done,
        "~/pyramid-flow-miniflux": released("miniflux"),
        "~/pyramid-flow-sd3": released("sd3"),
    }
    words = [str(places.get(word, word)) for word in shlex.split(given)]
    code = "import sys; from flows.cli.main import app; sys.argv[0] = 'pyramid'; app()"
    ended = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=prefect_server.environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert ended.stdout.strip()
