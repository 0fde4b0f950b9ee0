"""The parity harness: finds and runs reference cases, and decides whether they pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyramid_model.parity.case import CONFIG, Case, CaseError, Comparison
from pyramid_model.parity.dit_cases import FAMILIES, run_forward, run_generate, run_train_step
from pyramid_model.parity.flow_cases import run_renoise, run_scheduler, run_train_noise
from pyramid_model.parity.loss_cases import run_loss
from pyramid_model.parity.vae_cases import run_decode, run_decode_chunked, run_encode, run_encode_chunked, run_tiled

Runner = Callable[[Case], None]
Verdict = Literal["pass", "FAIL", "error", "unsupported"]

KINDS: dict[str, Runner] = {
    "vae_encode": run_encode,
    "vae_encode_chunked": run_encode_chunked,
    "vae_decode": run_decode,
    "vae_decode_chunked": run_decode_chunked,
    "vae_tiled": run_tiled,
    "vae_loss": run_loss,
    "scheduler": run_scheduler,
    "renoise": run_renoise,
    "train_noise": run_train_noise,
    **{f"{family}_forward": run_forward for family in FAMILIES},
    **{f"{family}_generate": run_generate for family in FAMILIES},
    **{f"{family}_train_step": run_train_step for family in FAMILIES},
}
UNSUPPORTED = ("flashvideo", "hunyuan")  # kinds of cases for models that are not part of this package


@dataclass(frozen=True)
class Result:
    """Result of one case.

    name: path of its folder, relative to the folder that was searched.
    verdict: "FAIL": a result is beyond its tolerance; "error": the case could not be read or run.
    worst: the comparison with the largest error relative to its tolerance.
    note: description of the problem.
    """

    name: str
    verdict: Verdict
    worst: Comparison | None = None
    note: str = ""


def find_cases(folder: Path) -> list[Path]:
    """Folders that contain a config.json or a safetensors file, including `folder` itself."""
    return sorted({path.parent for pattern in (CONFIG, "*.safetensors") for path in folder.rglob(pattern)})


def run_cases(folder: Path) -> Iterator[Result]:
    """Run all cases under a folder; yield each result."""
    for path in find_cases(folder):
        yield run_case(path, path.relative_to(folder).as_posix() if path != folder else path.name)


def run_case(folder: Path, name: str) -> Result:
    """Run one case."""
    case = None
    try:
        case = Case(folder)
        if any(_is_kind(case.name, kind) for kind in UNSUPPORTED):
            return Result(name, "unsupported")
        runner = KINDS[kind_of(case)]
        case.open()
        runner(case)
    except Exception as err:  # an error in one case must not stop the others
        note = str(err) if isinstance(err, CaseError) else f"{folder}: {type(err).__name__}: {err}"
        compared = case.comparisons if case else []
        return Result(name, "error", max(compared, key=lambda comparison: comparison.used, default=None), note)
    worst = max(case.comparisons, key=lambda comparison: comparison.used, default=None)
    if worst is None:
        return Result(name, "error", note=f"{folder} has nothing to compare")
    if failed := [comparison.name for comparison in case.comparisons if not comparison.passed]:
        more = f" and {len(failed) - 4} more" if len(failed) > 4 else ""
        return Result(name, "FAIL", worst, f"{folder}: beyond tolerance: {', '.join(failed[:4])}{more}")
    if unused := case.unused():
        more = f" and {len(unused) - 4} more" if len(unused) > 4 else ""
        return Result(
            name, "error", worst, f"{folder} has results that were not checked: {', '.join(unused[:4])}{more}"
        )
    return Result(name, "pass", worst)


def kind_of(case: Case) -> str:
    """The longest kind in `KINDS` that the case's name starts with.

    Raises:
        CaseError: no kind matches the name.
    """
    kinds = [kind for kind in KINDS if _is_kind(case.name, kind)]
    if not kinds:
        raise CaseError(f"{case.folder / CONFIG}: unknown case {case.name!r}; known kinds: {', '.join(sorted(KINDS))}")
    return max(kinds, key=len)


def all_passed(results: Sequence[Result]) -> bool:
    """Whether at least one case passed and all others are unsupported."""
    return any(r.verdict == "pass" for r in results) and all(r.verdict in ("pass", "unsupported") for r in results)


def _is_kind(name: str, kind: str) -> bool:
    return name == kind or name.startswith(f"{kind}_")
