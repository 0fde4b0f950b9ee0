"""Initial weights with which a VAE preserves colours before any training.

With standard random weights, a small VAE spends most of its training on learning to use the latents at all. Here
residual branches start at zero, downsampling starts as a mean and upsampling as a copy, so encoder and decoder start
as a linear map. The weights of past frames start at zero: the video model starts as an image model, which can be
trained on still frames first.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.vae.blocks import DownBlock, FrameAttention, ResnetBlock, SpaceUpsample, TimeUpsample
from pyramid_model.vae.conv import CausalConv3d

NOISE = 0.1  # scale of the remaining random weights, which make channels different from each other
LOG_VARIANCE = -6.0  # of the latents: with more noise at first, the decoder would learn to ignore them
REFERENCE, PERIOD = 1.0, 8  # value and spacing of the constant channels


@torch.no_grad()
def initialise_vae(vae: CausalVideoVAE, generator: Generator) -> None:
    """Initialise the weights of a newly built VAE in place.

    Group norm would map a bright and a dark plain frame to the same values. Therefore two channels in eight are the
    constants +REFERENCE and -REFERENCE: they dominate the deviation that the norm divides by, and preserve brightness.
    """
    for conv in (vae.encoder.conv_in, vae.decoder.conv_in):
        _mix(conv, generator)
        _add_reference(conv)
    for conv in (vae.encoder.conv_out, vae.decoder.conv_out, vae.to_moments, vae.from_latents):
        _mix(conv, generator)
    for module in vae.modules():
        if isinstance(module, ResnetBlock):
            _zero(module.conv2)
            if module.shortcut:
                _carry(module.shortcut, torch.ones(1, 1, 1))
        elif isinstance(module, FrameAttention):
            _zero(module.to_out)
        elif isinstance(module, DownBlock):
            if module.space:
                _carry(module.space, _last_frame(torch.tensor([0.25, 0.5, 0.25])))
            if module.time:
                _carry(module.time, _last_frame(torch.tensor([0.0, 1.0, 0.0])))
        elif isinstance(module, SpaceUpsample | TimeUpsample):
            _copy(module.conv)
    for module in vae.modules():
        if isinstance(module, CausalConv3d):
            module.weight[:, :, :-1] = 0
    num_latents = vae.config.latent_channels
    vae.to_moments.weight[num_latents:] *= NOISE
    vae.to_moments.bias[num_latents:] = LOG_VARIANCE


def _mix(conv: CausalConv3d, generator: Generator) -> None:
    """Set each output channel to an independent mixture of the input channels at the same position."""
    _only_noise(conv)
    num_out, num_in = conv.weight.shape[:2]
    mixture = nn.init.orthogonal_(torch.empty(num_out, num_in), generator=generator)
    _centre(conv)[:] += mixture * max(1.0, num_out / num_in) ** 0.5  # keeps the mean square


def _add_reference(conv: CausalConv3d) -> None:
    for channel in range(conv.out_channels):
        if channel % PERIOD < 2:
            conv.weight[channel] = 0
            conv.bias[channel] = REFERENCE if channel % PERIOD == 0 else -REFERENCE


def _carry(conv: CausalConv3d, taps: Tensor) -> None:
    """Copy input channel c modulo in_channels to output channel c. taps: kernel of the copy, (kt kh kw)."""
    _only_noise(conv)
    for channel in range(conv.out_channels):
        conv.weight[channel, channel % conv.in_channels] += taps


def _copy(conv: CausalConv3d) -> None:
    """Copy each input channel to all output channels that become its new pixels or frames."""
    _only_noise(conv)
    copies = conv.out_channels // conv.in_channels
    for channel in range(conv.out_channels):
        _centre(conv)[channel, channel // copies] += 1


def _last_frame(profile: Tensor) -> Tensor:
    """Kernel (3 3 3) that reads only the newest frame, with the given profile along height and along width."""
    return torch.stack([torch.zeros(3, 3), torch.zeros(3, 3), torch.outer(profile, profile)])


def _centre(conv: CausalConv3d) -> Tensor:
    """View (o c) of the weights at the same position in the newest frame."""
    middle = conv.kernel_size[-1] // 2
    return conv.weight[:, :, -1, middle, middle]


def _only_noise(conv: CausalConv3d) -> None:
    conv.weight *= NOISE
    conv.bias.zero_()


def _zero(layer: CausalConv3d | nn.Linear) -> None:
    layer.weight.zero_()
    layer.bias.zero_()
