"""What the report says of the steps of a run."""

import re
import time

from pyramid_model.config import Config
from tasks.report.run import step_lines, step_records
from tasks.running.run import Run, StepResult
from tasks.running.step import step


@step
def count_films(run: Run, config: Config) -> StepResult:
    return StepResult(step="count_films", num_in=5, num_done=1, num_ok=3, num_skipped=1, rows={"videos": 4}, busy_s=2.5)


def test_steps_are_listed_from_their_records(tmp_path, page_of):
    count_films(Run(root=str(tmp_path)), Config())
    cells = re.search(r"<tr><td>count_films.*?</tr>", page_of(str(tmp_path)), re.DOTALL)[0]
    assert re.findall(r">([^<>\n]+)</td>", cells)[:8] == ["count_films", "5", "1", "3", "0", "1", "4 videos", "2.5"]


@step
def duplicates(run: Run, config: Config) -> StepResult:
    return StepResult(step="duplicates", num_in=6, num_done=6)


def test_a_step_that_ran_and_found_nothing_counts_0_in_the_picture(tmp_path, page_of):
    box = r'>duplicates</text><text class="count"[^>]*>([^<]*)<'
    assert re.findall(box, page_of(str(tmp_path))) == ["–"]
    duplicates(Run(root=str(tmp_path)), Config())
    assert re.findall(box, page_of(str(tmp_path), title="after the search")) == ["0"]


def test_calls_of_a_step_in_one_run_are_added_up_and_idle_runs_do_not_hide_the_last_work(tmp_path):
    for run_id, num_calls in (("1", 1), ("2", 2)):
        for _ in range(num_calls):
            count_films(Run(root=str(tmp_path), run_id=run_id), Config())
            time.sleep(0.01)  # records are named by the millisecond
    idle = StepResult(step="count_films", num_in=5, num_done=5)
    [line] = step_lines([*step_records(str(tmp_path)), ("3", idle)])
    assert (line.num_in, line.num_ok, line.rows, line.busy_s) == (10, 6, {"videos": 8}, 5.0)
    [line] = step_lines([("3", idle)])
    assert line.num_done == 5
