"""Facts about the transformers and their token layout. Runs in about 15 s."""

import copy
from functools import partial

import pytest
import torch
from torch._subclasses import FakeTensorMode

from pyramid_model.config import MiniFluxConfig, MMDiTConfig, PyramidConfig
from pyramid_model.dit.mmdit import MMDiT, position_table
from pyramid_model.dit.packing import _packing, clip_positions, make_packing, patchify, unpatchify
from pyramid_model.dit.rope import rotate, rotation_table
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.sampler import Sampling, sample_video
from pyramid_model.generate.compiling import compile_blocks
from pyramid_model.text import TextFeatures


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def column(*sizes, batch=1):
    return [torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(i)) for i, size in enumerate(sizes)]


def mmdit(dit):
    return isinstance(dit, MMDiT)


def replaced(config, **changes):
    return type(config).model_validate(config.model_dump() | changes)


@torch.no_grad()
def test_columns_of_one_batch_do_not_see_each_other(dit, text_rows):
    columns = [column((1, 2, 2), (1, 4, 4), batch=2), column((2, 2, 2), (1, 8, 4), batch=2)]
    timestep, text = torch.tensor([900.0, 500.0, 300.0, 10.0]), text_rows(4)
    together = dit(columns, timestep, text)
    for g in range(2):
        own = TextFeatures(text.embeds[g::2], text.mask[g::2], text.pooled[g::2])
        close(dit([columns[g]], timestep[g::2], own)[0], together[g])
        assert together[g].shape == columns[g][-1].shape


@torch.no_grad()
def test_padded_text_changes_nothing(dit, text_rows):
    text, clips = text_rows(1), [column((1, 4, 4), (1, 4, 4))]
    padded = text.concat(TextFeatures(torch.zeros(0, 9, 6), torch.zeros(0, 9, dtype=torch.bool), torch.zeros(0, 5)))
    noise = torch.where(padded.mask[..., None], padded.embeds, torch.full_like(padded.embeds, 100.0))
    timestep = torch.tensor([400.0])
    close(dit(clips, timestep, TextFeatures(noise, padded.mask, text.pooled))[0], dit(clips, timestep, text)[0])


@torch.no_grad()
def test_the_first_frame_of_a_clip_does_not_see_the_second(dit, text_rows):
    clip = column((2, 4, 4))[0]
    changed = torch.cat([clip[:, :, :1], -clip[:, :, 1:]], dim=2)
    timestep, text = torch.tensor([400.0]), text_rows(1)
    a, b = (dit([[x]], timestep, text)[0] for x in (clip, changed))
    close(a[:, :, 0], b[:, :, 0])
    assert (a[:, :, 1] - b[:, :, 1]).abs().max() > 1e-2


@torch.no_grad()
def test_history_matters(dit, text_rows):
    clips = column((1, 4, 4), (1, 4, 4))
    timestep, text = torch.tensor([400.0]), text_rows(1)
    with_history, other = (dit([[past, clips[1]]], timestep, text)[0] for past in (clips[0], -clips[0]))
    assert (with_history - other).abs().max() > 1e-2


@torch.no_grad()
def test_without_causality_one_frame_is_predicted_the_same_and_two_are_not(dit, text_rows):
    free = type(dit)(replaced(dit.config, causal=False))
    free.load_state_dict(dit.state_dict())
    timestep, text = torch.tensor([400.0]), text_rows(1)
    one, two = column((1, 4, 4)), column((2, 4, 4))
    close(free([one], timestep, text)[0], dit([one], timestep, text)[0])
    assert (free([two], timestep, text)[0] - dit([two], timestep, text)[0]).abs().max() > 1e-2


def test_a_fresh_model_predicts_zero_and_every_weight_gets_a_gradient_once_it_does_not(dit, text_rows):
    clips, timestep, text = [column((1, 2, 2), (1, 4, 4))], torch.tensor([400.0]), text_rows(1)
    fresh = type(dit)(dit.config)
    assert fresh(clips, timestep, text)[0].abs().max() == 0
    dit(clips, timestep, text)[0].square().sum().backward()
    assert all(p.grad is not None for p in dit.parameters())  # data parallelism waits for every one
    without = {name for name, p in dit.named_parameters() if p.grad.abs().max() == 0}
    # nobody reads what the text finds in MMDiT's last block; miniFLUX's image tokens are read after its last one
    last = "double_blocks.1.text."
    assert without == ({f"{last}to_q.weight", f"{last}to_q.bias", f"{last}norm_q.weight"} if mmdit(dit) else set())


@torch.no_grad()
def test_sizes_other_than_powers_of_two_and_units_of_two_frames_run(dit, text_rows):
    axes = {} if mmdit(dit) else {"rope_axes": (4, 6, 10)}
    odd = type(dit)(replaced(dit.config, num_heads=3, head_dim=20, **axes))
    for parameter in odd.parameters():
        parameter.copy_(torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
    sampling = Sampling(PyramidConfig(num_stages=2, frames_per_unit=2), (5, 8, 12), (2, 2), (1, 2), [3.0, 2.0, 2.0])
    text = text_rows(4)
    positive, negative = (TextFeatures(text.embeds[i::2], text.mask[i::2], text.pooled[i::2]) for i in range(2))
    noise = Noise([torch.Generator().manual_seed(i) for i in range(2)])
    latents = sample_video(odd, positive, negative, sampling, noise)
    assert latents.shape == (2, 4, 5, 8, 12)
    assert latents.isfinite().all()
    assert not torch.allclose(latents[0], latents[1])


@pytest.mark.parametrize("mode", [torch.inference_mode, partial(FakeTensorMode, allow_non_fake_inputs=True)])
def test_a_call_that_keeps_no_gradient_or_no_content_leaves_nothing_behind_for_one_that_does(tiny_dit, text_rows, mode):
    text, timestep = text_rows(1), torch.tensor([400.0])
    assert text.lengths == (4,)  # counted here: where there is no content there is nothing to count
    make_packing.cache_clear()
    _packing.cache_clear()
    with mode():
        tiny_dit([column((1, 4, 4))], timestep, text)
    (velocity,) = tiny_dit([column((1, 4, 4))], timestep, text)
    velocity.sum().backward()
    assert type(velocity) is torch.Tensor


@torch.no_grad()
def test_mmdit_gives_history_the_positions_of_what_it_covers_in_the_middle_of_the_table(tiny_mmdit):
    grid = tiny_mmdit.positions.unflatten(1, (8, 8))[0]
    noisy, coarse = column((1, 4, 8), (1, 2, 4))
    fine = tiny_mmdit.clip_positions(noisy, noisy)
    assert torch.equal(fine[0].permute(1, 2, 0), grid[3:5, 2:6])
    covered = fine.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-1, -2))
    close(tiny_mmdit.clip_positions(coarse, noisy), covered)


def test_mmdit_positions_differ_by_1_between_neighbours_of_a_table_of_the_base_size():
    config = MMDiTConfig(num_heads=1, head_dim=8, position_grid=6, position_base=6)
    first_w, first_h = position_table(config)[0].unflatten(0, (6, 6))[..., [0, 4]].unbind(-1)  # sines of the positions
    close(first_w, torch.arange(6.0).sin().expand(6, 6))
    close(first_h, first_w.T)


def test_mmdit_refuses_a_picture_larger_than_its_table(tiny_mmdit, text_rows):
    with pytest.raises(ValueError, match=r"18x4 latents .* at most 16 latents"):
        tiny_mmdit([column((1, 18, 4))], torch.tensor([400.0]), text_rows(1))


def test_coarse_history_sits_at_the_centres_of_what_it_covers():
    positions = clip_positions(((1, 4, 4), (1, 8, 8)))
    assert positions[:4].tolist() == [[0, 0.5, 0.5], [0, 0.5, 2.5], [0, 2.5, 0.5], [0, 2.5, 2.5]]
    assert positions[4:, 0].unique().tolist() == [1.0]
    assert positions[-1].tolist() == [1, 3, 3]


def test_rotation_keeps_lengths_and_depends_on_the_difference_of_positions():
    q, k = torch.randn(2, 1, 1, 1, 12)

    def score(q_at, k_at):
        tables = [rotation_table(torch.tensor([at], dtype=torch.float64), (4, 4, 4)) for at in (q_at, k_at)]
        turned = [rotate(x, table) for x, table in zip((q, k), tables, strict=True)]
        close(turned[0].norm(), q.norm())
        return (turned[0] * turned[1]).sum()

    close(score((1.0, 2.0, 3.0), (0.0, 5.0, 1.0)), score((3.0, 3.0, 4.0), (2.0, 6.0, 2.0)))


def test_unpatchify_inverts_patchify():
    clip = torch.randn(2, 3, 2, 4, 6)
    tokens = patchify(clip)
    assert tokens.shape == (2, 12, 12)
    assert torch.equal(unpatchify(tokens, (2, 4, 6)), clip)


def test_head_sizes_without_pairs_are_refused():
    with pytest.raises(ValueError, match="must be even"):
        MMDiTConfig(head_dim=7, num_heads=4)


def test_rope_axes_that_do_not_fill_a_head_are_refused():
    with pytest.raises(ValueError, match="add up to head_dim 64"):
        MiniFluxConfig(rope_axes=(16, 16, 16))


@torch.no_grad()
def test_compiled_blocks_predict_the_same_for_any_number_of_tokens(tiny_dit, text_rows):
    plain, timestep, text = copy.deepcopy(tiny_dit), torch.tensor([400.0]), text_rows(1)
    compile_blocks(tiny_dit, backend="eager")  # the graphs alone: what a backend makes of them needs a compiler
    torch._dynamo.reset()
    graphs = []
    for history in (1, 2, 4):
        clips = [column((history, 4, 4), (1, 8, 8))]
        close(tiny_dit(clips, timestep, text)[0], plain(clips, timestep, text)[0])
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[2] == graphs[1]  # once for any number of frames


@torch.no_grad()
def test_compiled_blocks_take_on_every_form_that_sampling_needs(tiny_dit, text_rows):
    plain = copy.deepcopy(tiny_dit)
    sampling = Sampling(PyramidConfig(num_stages=2), (4, 4, 8), (1, 1), (2, 2), [3.0, 3.0, 3.0, 1.0])
    compile_blocks(tiny_dit, backend="eager")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for rows in (1, 2):
            text, clips = text_rows(rows), []
            for dit in (tiny_dit, plain):
                noise = Noise([torch.Generator().manual_seed(i) for i in range(rows)])
                clips.append(sample_video(dit, text, text, sampling, noise))
            close(*clips)
