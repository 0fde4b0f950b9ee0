"""The promotion gate: pure functions that compute checks and a verdict from the figures of a candidate."""

import math
from collections.abc import Mapping, Sequence

from pydantic import Field

from pyramid_model.config import Config


class GateConfig(Config):
    """Limits that a model must meet before it may become champion."""

    max_loss_to_untrained: float = Field(
        default=0.9, gt=0, description="largest allowed validation loss, as a share of the untrained model's"
    )
    max_loss_to_champion: float = Field(
        default=1.01,
        gt=0,
        description="largest allowed validation loss, as a share of the champion's (with the same VAE)",
    )
    max_loss_to_linear: float = Field(
        default=1.0,
        gt=0,
        description="largest allowed validation loss, as a share of a linear predictor's, fitted to training clips",
    )
    max_loss_to_no_text: float = Field(
        default=1.0,
        gt=0,
        description="largest allowed validation loss, as a share of the same model's with the empty text",
    )
    min_psnr_over_linear_db: float = Field(
        default=0.0, description="least gain in held-out PSNR over the linear codec of the VAE's rate"
    )
    motion_range: tuple[float, float] | None = Field(
        default=None, description="allowed motion of sampled clips, as shares of the data's median; null: no limit"
    )


class Check(Config):
    """One limit, the value that was measured, and whether it was met."""

    name: str
    value: float | None = Field(description="measured value; null if it is not finite")
    limit: float
    passed: bool
    rule: str = Field(description="the rule as a sentence")


def decide(metrics: Mapping[str, object], config: GateConfig) -> list[Check]:
    """Compare the figures with the limits; a check whose figures are missing is left out.

    Args:
        metrics: `num_not_finite`, `val_loss`, `val_loss_untrained`; where they apply `val_loss_champion`,
            `val_loss_linear` and `val_loss_no_text` (all on the same latents and noise), `vae_psnr` with
            `vae_psnr_linear`, `motion` with `motion_data`.
        config: the limits.

    Returns:
        The checks; the candidate passes when all of them do (see `passed`).
    """
    checks = [
        _at_most("finite", _number(metrics, "num_not_finite"), 0, "no weight, loss or sampled pixel may be NaN or Inf"),
        _loss_check(metrics, "untrained", config.max_loss_to_untrained, "that of the untrained model"),
    ]
    for other, limit, whose in (
        ("champion", config.max_loss_to_champion, "that of the champion"),
        ("linear", config.max_loss_to_linear, "that of a linear predictor fitted to training clips"),
        ("no_text", config.max_loss_to_no_text, "its own with the empty text in place of the captions"),
    ):
        if metrics.get(f"val_loss_{other}") is not None:
            checks.append(_loss_check(metrics, other, limit, whose))
    if metrics.get("vae_psnr_linear") is not None:
        gain = _number(metrics, "vae_psnr") - _number(metrics, "vae_psnr_linear")
        rule = "the VAE must restore held-out clips at least as well as a linear codec with as many numbers (dB)"
        checks.append(_at_least("vae_psnr_over_linear", gain, config.min_psnr_over_linear_db, rule))
    if config.motion_range is not None:
        low, high = config.motion_range
        share = _ratio(_number(metrics, "motion"), _number(metrics, "motion_data"))
        checks.append(_at_least("motion_floor", share, low, "sampled clips must move, compared with the data"))
        checks.append(_at_most("motion_ceiling", share, high, "sampled clips must not move wildly more than the data"))
    return checks


def passed(checks: Sequence[Check]) -> bool:
    """Whether every check passed; False if there are no checks."""
    return bool(checks) and all(check.passed for check in checks)


def failures(checks: Sequence[Check]) -> str:
    """The failed checks in one line, for messages."""
    return "; ".join(
        f"{check.name} is {'not a number' if check.value is None else f'{check.value:.4g}'}, limit {check.limit:.4g}"
        for check in checks
        if not check.passed
    )


def _loss_check(metrics: Mapping[str, object], other: str, limit: float, whose: str) -> Check:
    share = _ratio(_number(metrics, "val_loss"), _number(metrics, f"val_loss_{other}"))
    rule = f"validation loss as a share of {whose}, on the same held-out latents and noise"
    return _at_most(f"val_loss_to_{other}", share, limit, rule)


def _number(metrics: Mapping[str, object], name: str) -> float:
    """A figure as a float; NaN if it is missing or infinite, so that its check fails."""
    value = metrics.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference else math.nan


def _at_most(name: str, value: float, limit: float, rule: str) -> Check:
    return _check(name, value, limit, value <= limit, rule)


def _at_least(name: str, value: float, limit: float, rule: str) -> Check:
    return _check(name, value, limit, value >= limit, rule)


def _check(name: str, value: float, limit: float, good: bool, rule: str) -> Check:
    finite = math.isfinite(value)
    return Check(name=name, value=value if finite else None, limit=limit, passed=finite and good, rule=rule)
