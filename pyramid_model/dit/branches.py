"""Columns with several noisy clips: branches that continue one shared history.

Ordinary columns hold one noisy clip with its history. The units of a clip have most of their history in common, so a
column with branches computes it once: its clips are [shared clip, clips of branch 0, clips of branch 1, …], and the
last clip of each branch is noisy. A branch continues the first frames of the shared clip. This is exact if the tokens
of the history do not depend on the timestep of a noisy clip, as with clean history time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyramid_model.dit.attention import frame_mask
from pyramid_model.dit.branch_attention import Span, branch_mask, flex_mask
from pyramid_model.dit.packing import Packing, Size, clip_positions, frame_ends, tokens_of
from pyramid_model.dit.rope import rotation_table


@dataclass(frozen=True)
class Branch:
    """A noisy clip of a column, with the history clips that belong to it alone.

    num_clips: clips of the branch, its noisy clip the last.
    num_shared: first frames of the column's shared clip that come before them.
    """

    num_clips: int
    num_shared: int


Branches = tuple[Branch, ...]  # of a column; empty: an ordinary column
Clip = TypeVar("Clip")


def clips_of(clips: Sequence[Clip], branches: Branches) -> list[list[Clip]]:
    """The clips of each branch, the shared ones left out; clips: of the whole column."""
    bounds = accumulate((branch.num_clips for branch in branches), initial=1)
    return [list(clips[start:stop]) for start, stop in pairwise(bounds)]


def ordinary_columns(clips: Sequence[Tensor], branches: Branches) -> list[list[Tensor]]:
    """One ordinary column for each branch, with the history that the branch sees; clips: of the whole column."""
    of_branches = zip(branches, clips_of(clips, branches), strict=True)
    return [[clips[0][:, :, : branch.num_shared], *own] for branch, own in of_branches]


def noisy_clips(columns: Sequence[Sequence[Tensor]], branches: Sequence[Branches]) -> list[Tensor]:
    """The noisy clips of all columns, in the order of the model's velocities."""
    return [
        clip
        for column, of_column in zip(columns, branches, strict=True)
        for clip in ([own[-1] for own in clips_of(column, of_column)] if of_column else column[-1:])
    ]


@lru_cache(maxsize=64)
def make_branch_packing(
    columns: tuple[tuple[Size, ...], ...],
    branches: tuple[Branches, ...],
    num_valid: tuple[int, ...],
    rope_axes: tuple[int, ...],
    device: torch.device,
    mode: object = None,
) -> Packing:
    """Layout for columns of which some have branches, of a causal model with clean history time.

    Args:
        columns: sizes of each column's clips.
        branches: of each column; empty for an ordinary one.
        num_valid, rope_axes, device, mode: as in `make_packing`.
    """
    num_text, num_columns = max(num_valid), len(columns)
    parts = [_column(column, own, num_text) for column, own in zip(columns, branches, strict=True)]
    pads = tuple(tuple(num_text - n for n in num_valid[number::num_columns]) for number in range(num_columns))
    with torch.inference_mode(False):  # the layout is cached, and a later call may need gradients
        rotation = rotation_table(torch.cat([part.positions for part in parts]), rope_axes).to(device)
        masks = tuple(part.mask(own_pads, device) for part, own_pads in zip(parts, pads, strict=True))
    return Packing(
        num_text=num_text,
        num_history=tuple(n for part in parts for n in part.num_history),
        num_noisy=tuple(n for part in parts for n in part.num_noisy),
        ends=tuple(part.ends for part in parts),
        rotation=rotation,
        clean_history=True,
        pads=pads,
        masks=masks,
        num_branches=tuple(len(part.num_noisy) for part in parts),
        spans=tuple(part.spans for part in parts),
    )


@dataclass(frozen=True)
class _Column:
    """Layout of one column. The history of its first branch contains the shared clip.

    positions: coordinates of all tokens, those of the text included, (n 3).
    ends: see `Packing`; of an ordinary column. spans: of one with branches.
    """

    positions: Tensor
    num_history: list[int]
    num_noisy: list[int]
    ends: tuple[int, ...] = ()
    spans: tuple[Span, ...] = ()

    def mask(self, pads: tuple[int, ...], device: torch.device) -> Any:
        """See `Packing.masks`."""
        if not self.spans:
            mask = frame_mask(self.ends, pads, 0)
        elif (mask := branch_mask(self.spans, pads)) is None and device.type == "cuda":
            return flex_mask(self.spans, pads, device)
        return None if mask is None else mask.to(device)


def _column(column: tuple[Size, ...], branches: Branches, num_text: int) -> _Column:
    text = torch.zeros(num_text, 3, dtype=torch.float64)
    if not branches:
        noisy, ends = tokens_of(column[-1]), frame_ends(column, num_text)
        positions = torch.cat([text, clip_positions(column)])
        return _Column(positions, [ends[-1] - num_text - noisy], [noisy], ends)
    shared, own = column[0], clips_of(column, branches)
    num_shared = tokens_of(shared)
    positions = [text, clip_positions((shared, column[-1]))[:num_shared]]
    shared_ends = frame_ends((shared,), num_text)
    spans = [Span(start, stop, 0, 0) for start, stop in pairwise([0, *shared_ends])]
    for branch, clips in zip(branches, own, strict=True):
        begin = spans[-1].stop
        positions.append(clip_positions(tuple(clips), first_frame=branch.num_shared))
        ends = [begin + end for end in frame_ends(tuple(clips), 0)]
        spans += [Span(*of_frame, shared_ends[branch.num_shared - 1], begin) for of_frame in pairwise([begin, *ends])]
    noisy = [tokens_of(clips[-1]) for clips in own]
    history = [sum(map(tokens_of, clips[:-1])) for clips in own]
    history[0] += num_shared
    return _Column(torch.cat(positions), history, noisy, spans=tuple(spans))
