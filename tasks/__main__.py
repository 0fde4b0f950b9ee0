"""One step in a process of its own: `python -m tasks <step> '{"run": {…}, "config": {…}}'`. Ray jobs run this.

The JSON may also be `@file` or `-` (standard input). It may have a third entry, `attempt`: a token that stands in the
first line of standard output, `BEGIN TOKEN`, and in the last one, so that the lines of
another attempt are recognised. The log is between them, with the traceback of a bug, and at most one `PROGRESS {json}`
line per second. The
last line is `RESULT TOKEN {json}` (exit code 0) or `ERROR TOKEN {"message": …, "transient": …}` (exit code 3).
"""

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from tasks.running.errors import EXPECTED_ERRORS, machine_lost
from tasks.running.jobs import BEGIN, ERROR, RESULT
from tasks.running.run import PROGRESS, PROGRESS_FIELDS, Run, Sparse, StepResult
from tasks.running.step import config_class
from tasks.running.steps import find_step

PROGRESS_EVERY_S = 1.0  # a driver that follows a Ray job fetches the whole log each time
NO_TOKEN = "-"  # in place of the token of an attempt, if the input has none
USAGE = """usage: python -m tasks STEP '{"run": {"root": …}, "config": {…}}'   (or @file, or - for standard input)"""


class LineFormatter(logging.Formatter):
    """Formats log lines; progress becomes `PROGRESS {json}`, which the driver turns into progress records again."""

    def format(self, record: logging.LogRecord) -> str:
        """The log line of one record."""
        if record.name == PROGRESS.name and hasattr(record, "total"):
            return "PROGRESS " + json.dumps({key: getattr(record, key) for key in PROGRESS_FIELDS})
        return super().format(record)


def read_arguments(arguments: str) -> dict[str, object]:
    """The JSON object itself, of `@file`, or of standard input (`-`)."""
    if arguments == "-":
        arguments = sys.stdin.read()
    elif arguments.startswith("@"):
        arguments = Path(arguments[1:]).read_text()
    return json.loads(arguments)


def run_step(name: str, given: Mapping[str, object]) -> StepResult:
    """Run the step of that name; given: its `run` and its `config`."""
    function = find_step(name)
    return function(Run.model_validate(given["run"]), config_class(function).model_validate(given["config"]))


def main(argv: list[str]) -> int:
    """Run the step that the command line names; returns the exit code."""
    if len(argv) != 2:
        print(USAGE, file=sys.stderr)
        return 2
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(LineFormatter("%(levelname)s %(message)s"))
    handler.addFilter(Sparse(PROGRESS_EVERY_S))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    token = NO_TOKEN
    try:
        given = read_arguments(argv[1])
        token = str(given.get("attempt", NO_TOKEN))
        print(BEGIN, token, flush=True)
        result = run_step(argv[0], given)
    except Exception as err:
        if not isinstance(err, EXPECTED_ERRORS):
            logging.exception("step %s failed", argv[0])
        message = " ".join(f"{type(err).__name__}: {err}".split())
        print(ERROR, token, json.dumps({"message": message, "transient": machine_lost(err)}), flush=True)
        return 3
    print(RESULT, token, result.model_dump_json(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
