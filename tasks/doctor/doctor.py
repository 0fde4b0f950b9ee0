"""Checks of this machine before a run. Each reports the state, and what to do if something is missing."""

from collections.abc import Callable, Iterator

from tasks.doctor.machine import (
    Check,
    check_bytecode,
    check_cpus,
    check_disk,
    check_hf_datasets,
    check_packages,
    check_python,
    check_ram,
    check_root,
    check_shm,
    check_uv,
)
from tasks.doctor.media import CODECS, check_codec, check_decord, check_torch
from tasks.doctor.network import PORTS, check_mlflow, check_port, check_prefect, check_prefect_leases, check_ray_auth


def all_checks(root: str) -> Iterator[Check]:
    """Results of all checks, one after another; a check that raises becomes a warning."""
    checks: list[Callable[[], Check | list[Check]]] = [
        check_python,
        check_packages,
        check_hf_datasets,
        check_bytecode,
        check_cpus,
        check_ram,
        check_shm,
        lambda: check_root(root),
        lambda: check_disk(root),
        *(lambda codec=codec: check_codec(*codec) for codec in CODECS),
        check_decord,
        check_torch,
        *(lambda port=port: check_port(port) for port in PORTS),
        check_ray_auth,
        check_uv,
        check_prefect,
        check_prefect_leases,
        lambda: check_mlflow(root),
    ]
    for check in checks:
        try:
            result = check()
        except Exception as err:
            result = Check("a check broke", "warn", f"{type(err).__name__}: {err}", "please report this")
        yield from result if isinstance(result, list) else [result]
