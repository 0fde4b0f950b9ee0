"""A function in a child process, which may crash or hang without harm to its parent.

The child is started as `python -m tasks.running.isolated module:function`.

Calls and answers are JSON lines. The process lives from call to call, since its imports are slow, and ends with its
parent, however that ends.
"""

import importlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
import traceback
from typing import Any

import psutil

MAX_CALLS = 200  # a child: whatever a library leaks goes with it, and its start is a small part of so many calls
WATCH_EVERY_S = 0.2


class Crashed(Exception):
    """The process died in the middle of a call."""


class TimedOut(Exception):
    """The call took too long."""


class TookTooMuch(Exception):
    """The call took too much memory."""


class Isolated:
    """Calls one function in a child process, with limits of time and memory; now and then in a fresh one.

    Args:
        function: "module:function".
        max_bytes: resident memory of the child; None for no limit.
        max_calls: calls that one child answers.
    """

    def __init__(self, function: str, max_bytes: int | None = None, max_calls: int = MAX_CALLS):
        self.function, self.max_bytes, self.max_calls = function, max_bytes, max_calls
        self._child: subprocess.Popen | None = None
        self._num_calls = 0

    def call(self, timeout_s: float, **arguments: Any) -> Any:
        """The function's result; arguments and result pass as JSON.

        Raises:
            Crashed: the child died, by a signal for instance.
            TimedOut: no answer in time; the child has been killed.
            TookTooMuch: the child grew above `max_bytes`; it has been killed.
            OSError: the function ran into one, such as a full disk.
            RuntimeError: the function has a bug; the text is its traceback.
        """
        child = self._child = self._child if self._child and self._child.poll() is None else self._start()
        assert child.stdin, "the child is started with pipes"
        try:
            child.stdin.write(json.dumps(arguments).encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            raise Crashed(self._stop()) from None
        line = self._read_line(child, timeout_s)
        self._num_calls += 1
        # Memory that stays at half of the limit would count against the next call.
        if self._num_calls >= self.max_calls or (self.max_bytes and _resident(child) > self.max_bytes / 2):
            self.close()
        answer = json.loads(line)
        if "os_error" in answer:
            raise OSError(*answer["os_error"])
        if "bug" in answer:
            raise RuntimeError(answer["bug"])
        return answer["result"]

    def _start(self) -> subprocess.Popen:
        self._num_calls = 0
        command = [sys.executable, "-m", "tasks.running.isolated", self.function]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def _read_line(self, child: subprocess.Popen, timeout_s: float) -> bytes:
        assert child.stdout, "the child is started with pipes"
        deadline = time.monotonic() + timeout_s
        line = b""
        while not line.endswith(b"\n"):
            left_s = deadline - time.monotonic()
            ready, _, _ = select.select([child.stdout], [], [], max(0.0, min(left_s, WATCH_EVERY_S)))
            if not ready and left_s <= 0:
                self.close()
                raise TimedOut(f"no end after {timeout_s:g} s")
            if not ready:
                self._check_memory(child)
                continue
            piece = os.read(child.stdout.fileno(), 1 << 20)
            if not piece:
                raise Crashed(self._stop())
            line += piece
        return line

    def _check_memory(self, child: subprocess.Popen) -> None:
        if self.max_bytes and (resident := _resident(child)) > self.max_bytes:
            self.close()
            raise TookTooMuch(f"{resident / 2**30:.1f} GiB, at most {self.max_bytes / 2**30:.3g} GiB")

    def _stop(self) -> str:
        """See the child off, which is dying by itself; how it ended, in words."""
        child, self._child = self._child, None
        if child is None:
            return ""
        try:
            code = child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            child.kill()
            code = child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe:
                pipe.close()
        return f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"

    def close(self) -> None:
        """End the child process."""
        if self._child:
            self._child.kill()
            self._stop()


def _resident(child: subprocess.Popen) -> int:
    """Resident memory of a child, bytes; 0 when it has just ended."""
    try:
        return psutil.Process(child.pid).memory_info().rss
    except psutil.Error:
        return 0


def _serve(name: str) -> None:
    """Answer calls on standard input until it closes."""
    module, _, function_name = name.partition(":")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    calls: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(calls,), daemon=True).start()
    function = getattr(importlib.import_module(module), function_name)
    while True:
        answers.write(json.dumps(_answer(function, calls.get())) + "\n")
        answers.flush()


def _listen(calls: "queue.Queue[str]") -> None:
    """Read calls; when the parent is gone, so are we, even in the middle of one."""
    for line in sys.stdin:
        calls.put(line)
    os._exit(0)


def _answer(function: Any, call: str) -> dict[str, Any]:
    try:
        return {"result": function(**json.loads(call))}
    except OSError as err:
        return {"os_error": [err.errno or 0, err.strerror or str(err), str(err.filename or "")]}
    except Exception:
        return {"bug": traceback.format_exc()}


if __name__ == "__main__":
    _serve(sys.argv[1])
