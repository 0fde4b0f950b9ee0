"""Names of drop reasons: the rules of a selection, as written to `selections.drop_reasons` and read by reports.

A limit on a score has three reasons: the name of the score, then one of the suffixes of `LIMIT_SUFFIXES`.
"""

from tasks.tables.schemas import DUPLICATE_METHODS

MISSING, LOW, HIGH = "_missing", "_low", "_high"  # the clip has no score; the score is below or above the limit
LIMIT_SUFFIXES = (MISSING, LOW, HIGH)

OUTER_SET = "not_in_"  # prefix before the name of a nested set: the clip is not in the wider set
TOO_FEW_FRAMES = "too_few_frames"
TOO_SHORT, TOO_SMALL = "too_short", "too_small"  # for every bucket, see `fitting_bucket`
STRADDLES_SPLITS, PINS_CONFLICT = "straddles_splits", "pins_conflict"
DUPLICATE = "duplicate_"  # prefix before the name of the method
OVER_MAX_PER_VIDEO, SOURCE_LEFT_OUT = "over_max_per_video", "source_left_out"
OVER_SOURCE_SHARE, OVER_MAX_CLIPS = "over_source_share", "over_max_clips"
NOT_CURRENT = "not_current"  # not a rule: the clips step no longer makes the clip

# Rules after all limits on scores, in the order in which a selection applies them.
LATER_RULES = (
    *(TOO_FEW_FRAMES, TOO_SHORT, TOO_SMALL, STRADDLES_SPLITS, PINS_CONFLICT),
    *(DUPLICATE + method for method in DUPLICATE_METHODS),
    *(OVER_MAX_PER_VIDEO, SOURCE_LEFT_OUT, OVER_SOURCE_SHARE, OVER_MAX_CLIPS),
)


def limit_suffix(reason: str) -> str:
    """The suffix of a reason that is a limit on a score, one of `LIMIT_SUFFIXES`; "" for other rules."""
    if reason in LATER_RULES or reason.startswith(OUTER_SET):
        return ""
    return next((suffix for suffix in LIMIT_SUFFIXES if reason.endswith(suffix)), "")
