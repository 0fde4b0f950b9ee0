"""Facts that hold for every diffusion transformer, on tiny ones with random weights."""

import torch

from pyramid_model.config import PyramidConfig
from pyramid_model.dit.mmdit import MMDiT
from pyramid_model.flow.noise import Noise
from pyramid_model.flow.sampler import Sampling, sample_video
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
    short, long = column((1, 4, 4)), column((2, 4, 4))
    close(free([short], timestep, text)[0], dit([short], timestep, text)[0])
    assert (free([long], timestep, text)[0] - dit([long], timestep, text)[0]).abs().max() > 1e-2


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
