"""Calls of a function in a child process, whose crashes and hangs leave the parent unharmed.

The child is started as `python -m tasks.running.isolated module:function`. Calls and answers are JSON lines. A child
serves several calls, since its imports are slow. It exits when its parent exits, also when the parent is killed.
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
from collections.abc import Callable
from typing import Any

import psutil

MAX_CALLS = 200  # calls of one child; a new child frees leaked memory, and starts quickly compared with so many calls
WATCH_EVERY_S = 0.2


class Crashed(Exception):
    """The process died in the middle of a call."""


class TimedOut(Exception):
    """The call took too long."""


class MemoryExceeded(Exception):
    """The call used too much memory."""


class Isolated:
    """Calls one function in a child process, with limits on time and memory.

    A child is replaced after `max_calls` calls, or when it uses more than half of `max_bytes`.

    Args:
        function: "module:function".
        max_bytes: most resident memory of the child; None: no limit.
        max_calls: calls after which the child is replaced.
    """

    def __init__(self, function: str, max_bytes: int | None = None, max_calls: int = MAX_CALLS):
        self.function, self.max_bytes, self.max_calls = function, max_bytes, max_calls
        self._child: subprocess.Popen | None = None
        self._num_calls = 0

    def call(self, timeout_s: float, **arguments: Any) -> Any:
        """Result of a call. Arguments and result must be JSON values.

        Raises:
            Crashed: the child exited, by a signal for instance.
            TimedOut: no answer in time; the child has been killed.
            MemoryExceeded: the child used more than `max_bytes`; it has been killed.
            OSError: raised by the function, for instance for a full disk.
            RuntimeError: the function raised another exception; the message is its traceback.
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
        # A child that still uses half of the limit is replaced: its memory would count against the next call.
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
            remaining_s = deadline - time.monotonic()
            ready, _, _ = select.select([child.stdout], [], [], max(0.0, min(remaining_s, WATCH_EVERY_S)))
            if not ready and remaining_s <= 0:
                self.close()
                raise TimedOut(f"no answer after {timeout_s:g} s")
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
            raise MemoryExceeded(f"{resident / 2**30:.1f} GiB, at most {self.max_bytes / 2**30:.3g} GiB")

    def _stop(self) -> str:
        """Wait for the exiting child process and return a phrase with its signal or exit code."""
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
    """Resident memory of a child, bytes; 0 when it has exited."""
    try:
        return psutil.Process(child.pid).memory_info().rss
    except psutil.Error:
        return 0


def _serve(name: str) -> None:
    """Answer calls on standard input until it closes."""
    module, _, function_name = name.partition(":")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with the answers
    calls: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(calls,), daemon=True).start()
    function = getattr(importlib.import_module(module), function_name)
    while True:
        answers.write(json.dumps(_answer(function, calls.get())) + "\n")
        answers.flush()


def _listen(calls: "queue.Queue[str]") -> None:
    """Put calls from standard input into the queue; exit at once when the parent has closed it, even during a call."""
    for line in sys.stdin:
        calls.put(line)
    os._exit(0)


def _answer(function: Callable[..., object], call: str) -> dict[str, object]:
    """Result or error of one call, as `Isolated.call` reads it."""
    try:
        return {"result": function(**json.loads(call))}
    except OSError as err:
        return {"os_error": [err.errno or 0, err.strerror or str(err), str(err.filename or "")]}
    except Exception:
        return {"bug": traceback.format_exc()}


if __name__ == "__main__":
    _serve(sys.argv[1])
