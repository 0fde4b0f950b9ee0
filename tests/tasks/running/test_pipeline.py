"""Ray pipelines: every pending item ends in exactly one row, whatever dies; nothing starts when nothing is pending."""

import os
import subprocess
import sys
from functools import partial

import pytest

from pyramid_model.config import Config
from tasks.running.errors import StepError
from tasks.running.pipeline import covered_s, run_blocks, split_blocks
from tasks.running.run import RayConfig, Run
from tasks.running.work import PerItemWork, Produced
from tasks.tables.content_ids import content_id
from tasks.tables.delta import read_table
from tasks.tables.pending import pending
from tasks.tables.rows import bad_row, ok_row

IDS = [content_id("item", number) for number in range(24)]


class NoSettings(Config):
    """A step without settings."""


def run_captions(run: Run, worker: type, ids: list[str], block_size: int = 4, **worker_args):
    todo = pending(run.root, "captions", ids, run.retry_failed)
    work = PerItemWork(
        step="captions",
        version="1",
        config=NoSettings(),
        worker=partial(worker, **worker_args),
        done_table="captions",
        block_size=block_size,
    )
    return run_blocks(run, work, todo.items([{"caption_id": row_id} for row_id in ids], "caption_id"), todo.num_done)


def process_writer() -> type:
    """A worker that notes its process; local, so that Ray ships it by value."""

    class ProcessWriter:
        def __call__(self, items):
            place = f"{sys.executable} {os.getcwd()}"
            return Produced({"captions": [ok_row(item, caption_id=item["caption_id"], text=place) for item in items]})

    return ProcessWriter


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([9, 5, 4, 2, 2, 1], [[9], [5], [4, 2], [2, 1]]),  # a large one is a block of its own
        ([1, 1, 1, 1, 1], [[1, 1, 1], [1, 1]]),
        ([], []),
    ],
)
def test_blocks_hold_so_many_items_and_so_many_bytes_at_most(sizes, expected):
    blocks = split_blocks([{"size_bytes": size} for size in sizes], block_size=3, max_bytes=7)
    assert [[item["size_bytes"] for item in block] for block in blocks] == expected


@pytest.mark.ray
def test_each_item_gets_one_row_and_the_second_run_does_nothing(ray_local, tmp_path):
    run = Run(root=str(tmp_path))
    first = run_captions(run, process_writer(), IDS)
    assert (first.num_in, first.num_ok, first.rows) == (24, 24, {"captions": 24})
    again = run_captions(run, process_writer(), IDS)
    assert (again.num_in, again.num_done, again.num_new, again.note) == (24, 24, 0, "nothing new")
    assert read_table(run.root, "captions", newest=False).num_rows == 24


@pytest.mark.ray
def test_workers_run_in_the_drivers_environment_and_folder(ray_local, tmp_path):
    run_captions(Run(root=str(tmp_path)), process_writer(), IDS[:4])
    places = set(read_table(str(tmp_path), "captions")["text"].to_pylist())
    assert places == {f"{sys.executable} {os.getcwd()}"}


@pytest.mark.ray
def test_an_actor_killed_in_mid_run_loses_and_doubles_nothing(ray_local, tmp_path):
    class DiesOnce:
        def __init__(self, flag):
            self.flag = flag

        def __call__(self, items):
            if IDS[9] in [item["caption_id"] for item in items] and not os.path.exists(self.flag):
                open(self.flag, "w").close()
                os.kill(os.getpid(), 9)
            return Produced({"captions": [ok_row(item, caption_id=item["caption_id"]) for item in items]})

    result = run_captions(Run(root=str(tmp_path)), DiesOnce, IDS, flag=str(tmp_path / "died"))
    assert (tmp_path / "died").exists()
    assert result.num_ok == 24
    assert sorted(read_table(str(tmp_path), "captions", newest=False)["caption_id"].to_pylist()) == sorted(IDS)


@pytest.mark.ray
def test_bad_items_become_counted_rows_and_are_retried_only_on_request(ray_local, tmp_path):
    class FailsOnce:
        def __call__(self, items):
            return Produced(
                {
                    "captions": [
                        bad_row(item, ("timeout", "took too long"), caption_id=item["caption_id"])
                        if item["attempt"] == 1 and item["caption_id"] in IDS[:3]
                        else ok_row(item, caption_id=item["caption_id"])
                        for item in items
                    ]
                }
            )

    run = Run(root=str(tmp_path))
    first = run_captions(run, FailsOnce, IDS)
    assert (first.num_ok, first.num_failed, first.errors) == (21, 3, {"timeout": 3})
    assert run_captions(run, FailsOnce, IDS).num_new == 0
    retried = run_captions(Run(root=str(tmp_path), retry_failed=True), FailsOnce, IDS)
    assert (retried.num_ok, retried.num_failed) == (3, 0)
    assert set(read_table(run.root, "captions")["status"].to_pylist()) == {"ok"}


@pytest.mark.ray
def test_a_bug_stops_the_step_with_its_cause_and_keeps_what_was_committed(ray_local, tmp_path):
    class DiskFull:
        def __call__(self, items):
            if IDS[-1] in [item["caption_id"] for item in items]:
                raise OSError(28, "No space left on device")
            return Produced({"captions": [ok_row(item, caption_id=item["caption_id"]) for item in items]})

    with pytest.raises(StepError, match=r"step 'captions' stopped: OSError: .*No space left on device") as raised:
        run_captions(Run(root=str(tmp_path)), DiskFull, IDS)
    assert not raised.value.transient
    num_rows = read_table(str(tmp_path), "captions").num_rows
    assert num_rows % 4 == 0
    assert num_rows < 24


@pytest.mark.ray
def test_a_worker_that_cannot_be_built_stops_the_step_with_its_sentence_alone(ray_local, tmp_path):
    class NoModel:
        def __init__(self):
            raise ValueError("the model is cut short")

    with pytest.raises(StepError, match=r"step 'captions' stopped: ValueError: the model is cut short") as raised:
        run_captions(Run(root=str(tmp_path)), NoModel, IDS)
    assert not raised.value.transient
    assert "Traceback" not in str(raised.value)


@pytest.mark.ray
def test_a_workers_lost_connection_is_known_as_such_although_errors_travel_as_text(ray_local, tmp_path):
    class StoreGone:
        def __call__(self, items):
            raise RuntimeError("cannot append") from ConnectionResetError("by peer")

    with pytest.raises(StepError, match="RuntimeError: cannot append") as raised:
        run_captions(Run(root=str(tmp_path)), StoreGone, IDS)
    assert raised.value.transient


def test_nothing_pending_starts_no_ray(tmp_path):
    code = (
        "import sys\n"
        "from pyramid_model.config import Config\n"
        "from tasks.running.pipeline import run_blocks\nfrom tasks.running.run import Run\n"
        "from tasks.running.work import PerItemWork\n"
        "work = PerItemWork(step='s', version='1', config=Config(), worker=object, done_table='clips')\n"
        f"result = run_blocks(Run(root={str(tmp_path)!r}), work, [], num_done=3)\n"
        "assert result.num_done == 3 and not {'ray', 'torch', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.ray
def test_a_pipeline_without_progress_stops_with_advice(tmp_path):
    code = f"""
import time
from pyramid_model.config import Config
from tasks.running.errors import StepError
from tasks.running.pipeline import run_blocks
from tasks.running.run import RayConfig, Run
from tasks.running.work import PerItemWork
class Hangs:
    def __call__(self, items):
        time.sleep(600)
run = Run(root={str(tmp_path)!r}, ray=RayConfig(num_cpus=2, no_progress_timeout_s=1))
try:
    work = PerItemWork(step="hangs", version="1", config=Config(), worker=Hangs, done_table="clips")
    run_blocks(run, work, [{{"attempt": 1}}])
except StepError as err:
    print(err)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "no block finished within 1 s (ray.no_progress_timeout_s)" in done.stdout, done.stderr[-2000:]


def test_covered_time_counts_overlaps_once():
    assert covered_s([(0, 2), (1, 3), (5, 6), (5.2, 5.4)]) == pytest.approx(4)
    assert covered_s([]) == 0


def test_addresses_are_checked_before_anything_starts():
    with pytest.raises(
        ValueError, match=r"'localhost:8265' is not a Ray address: use local, auto, ray://.*ray\.address"
    ):
        RayConfig(address="localhost:8265")
