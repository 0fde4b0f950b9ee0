"""`pyramid doctor`: lists what is missing on this machine and how to fix it."""

from typing import Annotated

import typer


def doctor(
    root: Annotated[str, typer.Option("--root", help="folder or URI that a run would write to")] = "./pyramid-demo",
) -> None:
    """Check this machine: Python, packages, codecs, GPU, memory, disk, ports, servers.

    Exit code 1: the demo would fail on this machine.
    """
    from flows.cli.console import PlainConsole, styled
    from flows.cli.manifest_view import MARKS, grid
    from tasks.doctor.doctor import all_checks

    console = PlainConsole()
    checks = []
    with console.status("checking this machine") as status:
        for check in all_checks(root):
            checks.append(check)
            status.update(f"{check.name} done")
    console.print(grid(["", "check", "facts"], [[styled(MARKS[c.status]), c.name, c.facts] for c in checks]))
    for check in checks:
        if check.advice:
            console.print(styled(MARKS[check.status], " ", (check.name, "bold"), f": {check.advice}"))
    failed = [check.name for check in checks if check.status == "fail"]
    if failed:
        console.print(styled(("This machine is not ready:", "red"), f" {', '.join(failed)}"))
        raise typer.Exit(1)
    console.print(styled("This machine can run the demo: ", ("pyramid demo", "bold")))
