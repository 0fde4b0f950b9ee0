"""A function that crashes or hangs harms nobody but its own process. About 8 s."""

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from tasks.running.isolated import Crashed, Isolated, MemoryExceeded, TimedOut


@pytest.fixture
def isolated():
    made = []

    def make(function: str, **limits) -> Isolated:
        made.append(Isolated(function, **limits))
        return made[-1]

    yield make
    for child in made:
        child.close()


def test_results_pass_and_the_process_stays(isolated):
    child = isolated("shutil:which")
    assert child.call(60, cmd="sh").endswith("/sh")
    first = child._child
    assert child.call(60, cmd="surely-not-a-command") is None
    assert child._child is first


def test_a_crash_is_told_and_the_next_call_works(isolated):
    child = isolated("os:_exit")
    for _ in range(2):
        with pytest.raises(Crashed, match="exit code 7"):
            child.call(60, status=7)


def test_death_by_signal_is_named(isolated):
    child = isolated("subprocess:check_output")

    def shoot_down():
        while child._child is None:
            time.sleep(0.01)
        os.kill(child._child.pid, signal.SIGSEGV)

    threading.Thread(target=shoot_down, daemon=True).start()
    with pytest.raises(Crashed, match="killed by signal 11"):
        child.call(60, args=["sleep", "20"])


def test_a_hang_ends_at_the_limit(isolated):
    child = isolated("subprocess:check_output")
    with pytest.raises(TimedOut, match=r"no answer after 0\.5 s"):
        child.call(0.5, args=["sleep", "20"])
    assert child._child is None


def test_system_errors_keep_their_number_and_bugs_their_traceback(isolated):
    with pytest.raises(FileNotFoundError):
        isolated("os:listdir").call(60, path="/no/such/folder")
    with pytest.raises(RuntimeError, match=r"TypeError: .*unexpected"):
        isolated("shutil:which").call(60, unexpected=1)


def test_what_a_function_prints_is_not_its_answer(isolated):
    assert isolated("builtins:print").call(60, end="noise\n") is None


def test_the_process_ends_with_its_parent():
    code = (
        "import os, threading, time\nfrom tasks.running.isolated import Isolated\n"
        "child = Isolated('subprocess:check_output')\n"
        "threading.Thread(target=child.call, args=(60,), kwargs={'args': ['sleep', '30']}, daemon=True).start()\n"
        "time.sleep(1)\nprint(child._child.pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout)
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    pytest.fail("the child outlived its parent")


def test_memory_above_the_limit_ends_the_call_and_the_next_one_works(isolated):
    child = isolated("timeit:timeit", max_bytes=300 * 2**20)
    with pytest.raises(MemoryExceeded, match=r"GiB, at most 0\.293 GiB"):
        child.call(60, stmt="taken = b'x' * 500 * 2**20; import time; time.sleep(30)", number=1)
    assert child._child is None
    assert child.call(60, stmt="", number=1) >= 0


def test_a_child_that_keeps_memory_or_has_answered_often_is_replaced(isolated):
    child = isolated("timeit:timeit", max_bytes=300 * 2**20)
    child.call(60, stmt="import sys; sys.kept = b'x' * 200 * 2**20", number=1)
    assert child._child is None
    often = isolated("os:getpid", max_calls=2)
    pids = [often.call(60) for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_a_hang_in_c_that_lets_no_python_run_is_ended_too_and_leaves_no_zombie(isolated):
    child = isolated("timeit:timeit")
    with pytest.raises(TimedOut):
        child.call(1, stmt="import ctypes; ctypes.PyDLL(None).sleep(30)", number=1)
    assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]
