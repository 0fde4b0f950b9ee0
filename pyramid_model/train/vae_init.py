"""Initial weights with which a VAE is a linear codec that is fitted to clips, before any training.

With standard random weights, a small VAE spends most of its training on learning to use the latents at all. Here every
residual branch starts at zero, so that encoder and decoder consist of their resampling convolutions alone:

- Each halving of the encoder projects blocks of 2 x 2 positions, or of 2 frames, on their principal components. All
  halvings together are a truncated hierarchical Karhunen-Loeve transform of blocks of 8 x 8 x 8 pixels. The last one
  scales the components to unit variance: they are the latents.
- Each doubling of the decoder is fitted by ridge regression, from the features that it gets to those of the smaller
  blocks that its new positions stand for: their principal components, scaled to unit variance; the last one to colours.

Norm and activation stand between the last of these convolutions and the output. They become the identity: a value x is
held in two channels as x and -x, whose mean is zero and for which silu(x) - silu(-x) = x. The other channels of their
group hold constants, so large that the norm divides every frame by nearly the same number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from pyramid_model.vae.autoencoder import CausalVideoVAE, Decoder, Encoder
from pyramid_model.vae.blocks import DownBlock, FrameAttention, ResnetBlock, SpaceUpsample, TimeUpsample, UpBlock
from pyramid_model.vae.conv import CausalConv3d, Chunk, FrameGroupNorm, store_by_frame

LOG_VARIANCE = -6.0  # of the latents, whose variance is 1: with more noise, the decoder would learn to ignore them
CONSTANT = 8.0  # value of the constant channels; colours and latents are about 1
RIDGE = 3e-4  # penalty of a weight, as a share of its predictor's sum of squares
NUM_ROWS = 30_000  # positions on which a projection or a regression is fitted
SPACE_TAPS, TIME_TAPS = (1, 3, 3), (2, 1, 1)  # part of the 3x3x3 kernel that doubles space or time
COLOURS = 3


@torch.no_grad()
def initialise_vae(vae: CausalVideoVAE, frames: Tensor, generator: Generator) -> None:
    """Initialise the weights of a newly built VAE in place.

    Args:
        vae: with PyTorch's default weights, which the first convolution of each residual branch keeps.
        frames: (b 3 1+8k h w) in [-1, 1], k > 0, excerpts of training clips; also used mirrored and upside down.
        generator: draws the positions on which the convolutions are fitted.
    """
    frames = torch.cat([frames, frames.flip(-1), frames.flip(-2), frames.flip(-1, -2)])
    frames = store_by_frame(frames[torch.randperm(len(frames), generator=generator).to(frames.device)])
    for module in vae.modules():
        if isinstance(module, ResnetBlock):
            _zero(module.conv2)
            if module.shortcut:
                _copy_channels(module.shortcut)
        elif isinstance(module, FrameAttention):
            _zero(module.to_out)
    for conv in (vae.encoder.conv_in, vae.to_moments, vae.from_latents, vae.decoder.conv_in):
        _copy_channels(conv)
    vae.to_moments.bias[vae.config.latent_channels :] = LOG_VARIANCE
    latents = _fit_encoder(vae.encoder, frames, vae.config.latent_channels, generator)
    _fit_decoder(vae.decoder, latents, frames, generator)


def _fit_encoder(encoder: Encoder, frames: Tensor, num_latents: int, generator: Generator) -> Tensor:
    """Fit all halvings; returns the latents (b num_latents t h w) of the frames."""
    blocks = [block for block in encoder.blocks if isinstance(block, DownBlock)]
    last = [conv for block in blocks for conv in (block.space, block.time) if conv][-1]
    pairs = Pairs.plan(num_latents, min(last.out_channels, encoder.conv_out.in_channels), encoder.norm_out)
    x, num_values = encoder.conv_in(frames, Chunk()), COLOURS
    for block in blocks:
        x = _skip_residuals(block.resnets, x)
        for conv in (block.space, block.time):
            if conv is None:
                continue
            parts = _space_blocks(x[:, :num_values]) if conv is block.space else _time_blocks(x[:, :num_values])
            num_kept = min(num_latents if conv is last else conv.out_channels, parts.shape[1])
            axes, power = _principal_axes(parts, num_kept, generator)
            kernel = conv.weight.new_zeros(num_kept, 1, *conv.weight.shape[1:])
            taps = kernel[:, 0, :num_values, -1, 1:, 1:] if conv is block.space else kernel[:, 0, :num_values, 1:, 1, 1]
            taps[:] = (axes / power.sqrt()[:, None] if conv is last else axes).view(taps.shape)
            _write(conv, kernel, pairs if conv is last else None)
            x, num_values = conv(x, Chunk()), num_kept
    pairs.read(encoder.norm_out, encoder.conv_out, x)
    return encoder.conv_out(F.silu(encoder.norm_out(x)), Chunk())[:, :num_latents]


def _fit_decoder(decoder: Decoder, latents: Tensor, frames: Tensor, generator: Generator) -> None:
    """Fit all doublings, so that the decoder restores the frames (b 3 1+8k 8h 8w) from their latents (b c 1+k h w)."""
    blocks = [block for block in decoder.blocks if isinstance(block, UpBlock)]
    last = [up for block in blocks for up in (block.space, block.time) if up][-1]
    pairs = Pairs.plan(COLOURS, min(last.conv.in_channels, decoder.conv_out.in_channels), decoder.norm_out)
    x, num_values = decoder.conv_in(latents, Chunk()), latents.shape[1]
    space, time = frames.shape[3] // latents.shape[3], (frames.shape[2] - 1) // (latents.shape[2] - 1)
    for block in blocks:
        x = _skip_residuals(block.resnets, x)
        for up in (block.space, block.time):
            if up is None:
                continue
            space, time = (space // 2, time) if up is block.space else (space, time // 2)
            num_clips = -(-4 * NUM_ROWS // x[0, 0].numel())
            x, frames = x[:num_clips], frames[:num_clips]
            features = _pixel_blocks(frames, space, time)
            if up is not last:
                num_kept = min(up.conv.in_channels, features.shape[1])
                axes, power = _principal_axes(features, num_kept, generator)
                features = torch.einsum("kd,bdthw->bkthw", axes / power.sqrt()[:, None], features)
            kernel = _regression(up, x[:, :num_values], features, generator)
            _write(up.conv, kernel, pairs if up is last else None)
            x, num_values = up(x, Chunk()), features.shape[1]
    pairs.read(decoder.norm_out, decoder.conv_out, x)


@dataclass(frozen=True)
class Pairs:
    """Channels before a norm that hold values as pairs x and -x, and channels that hold constants.

    channels: the two channels of each value. constants: an even number in each group of the norm.
    """

    channels: list[tuple[int, int]]
    constants: list[int]

    @classmethod
    def plan(cls, num_values: int, num_channels: int, norm: FrameGroupNorm) -> Pairs:
        """Distribute the values over the groups of `norm` that lie in the first `num_channels` channels.

        Where the channels suffice, each group keeps two for constants: without them, the norm loses the brightness of
        a frame. In a VAE that is narrower still, the last values have no channels, and start at zero.
        """
        size = norm.num_channels // norm.num_groups
        groups = [range(start, start + size) for start in range(0, num_channels - size + 1, size)]
        share, more = divmod(min(num_values, size // 2 * len(groups)), len(groups))
        channels, constants = [], []
        for number, group in enumerate(groups):
            num_pairs = share + (number < more)
            channels += [(group[2 * i], group[2 * i + 1]) for i in range(num_pairs)]
            constants += group[2 * num_pairs : size - size % 2]
        return cls(channels, constants)

    def read(self, norm: FrameGroupNorm, conv: CausalConv3d, x: Tensor) -> None:
        """Let `conv(silu(norm(x)))` be the values that x (b c t h w) holds."""
        _zero(conv)
        normed, middle = norm(x), conv.kernel_size[-1] // 2
        for value, (plus, minus) in enumerate(self.channels):
            for channel, sign in ((plus, 1), (minus, -1)):
                gain = (x[:, channel] * normed[:, channel]).sum() / normed[:, channel].square().sum().clamp(min=1e-12)
                norm.weight[channel] = gain
                conv.weight[value, channel, -1, middle, middle] = sign


def _write(conv: CausalConv3d, kernel: Tensor, pairs: Pairs | None) -> None:
    """Set all weights of a convolution.

    Args:
        conv: its output channels are `copies` for each channel of the result.
        kernel: (values copies in kt kh kw).
        pairs: where the result holds the values; None: in its first channels.
    """
    _zero(conv)
    weight = conv.weight.view(-1, *kernel.shape[1:])
    if pairs is None:
        weight[: len(kernel)] = kernel
        return
    bias = conv.bias.view(weight.shape[:2])
    for (plus, minus), taps in zip(pairs.channels, kernel, strict=False):
        weight[plus], weight[minus] = taps, -taps
    for number, channel in enumerate(pairs.constants):
        bias[channel] = CONSTANT if number % 2 else -CONSTANT


def _regression(up: SpaceUpsample | TimeUpsample, x: Tensor, target: Tensor, generator: Generator) -> Tensor:
    """Kernel (values copies in 3 3 3) with which `up` maps x (b c t h w) to `target` (b values t' h' w')."""
    if isinstance(up, SpaceUpsample):
        sizes, target = SPACE_TAPS, rearrange(target, "b c t (h p) (w q) -> b (c p q) t h w", p=2, q=2)
    else:
        sizes, target = TIME_TAPS, rearrange(_with_past(target, 1), "b c (t p) h w -> b (c p) t h w", p=2)
    positions = _random_positions(x, generator)
    height, width = sizes[1] // 2, sizes[2] // 2
    padded = F.pad(x, (width, width, height, height, sizes[0] - 1, 0))
    windows = padded.unfold(2, sizes[0], 1).unfold(3, sizes[1], 1).unfold(4, sizes[2], 1)
    predictors = rearrange(windows, "b c t h w i j k -> b t h w c i j k")[positions].flatten(1)
    wanted = rearrange(target, "b c t h w -> b t h w c")[positions]
    products = (predictors.T @ predictors).double()
    scale = products.diagonal().clamp(min=1e-9 * float(products.diagonal().max()))
    solution = torch.linalg.solve(products + torch.diag(RIDGE * scale), (predictors.T @ wanted).double())
    kernel = x.new_zeros(target.shape[1], *up.conv.weight.shape[1:])
    taps = kernel[:, : x.shape[1], 3 - sizes[0] :, 1 - height : 2 + height, 1 - width : 2 + width]
    taps[:] = solution.T.to(x.dtype).view(taps.shape)
    return kernel.view(-1, 4 if isinstance(up, SpaceUpsample) else 2, *kernel.shape[1:])


def _principal_axes(x: Tensor, num_axes: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Axes (num_axes c) of the greatest mean squares of x (b c t h w), and these mean squares (num_axes)."""
    rows = rearrange(x, "b c t h w -> b t h w c")[_random_positions(x, generator)].double()
    power, axes = torch.linalg.eigh(rows.T @ rows / len(rows))
    power = power.flip(0).clamp(min=1e-6 * float(power[-1]) + 1e-12)[:num_axes]
    return axes.flip(1)[:, :num_axes].T.to(x.dtype), power.to(x.dtype)


def _random_positions(x: Tensor, generator: Generator) -> tuple[Tensor, ...]:
    """Indices of b, t, h and w of at most NUM_ROWS positions of x (b c t h w)."""
    shape = (x.shape[0], *x.shape[2:])
    picked = torch.randperm(x[:, 0].numel(), generator=generator)[:NUM_ROWS].to(x.device)
    return torch.unravel_index(picked, shape)


def _pixel_blocks(frames: Tensor, space: int, time: int) -> Tensor:
    """(b 3 t h w) -> the pixels of each block of time x space x space as channels; the first frame is one block."""
    return rearrange(
        _with_past(frames, time - 1), "b c (t f) (h p) (w q) -> b (c f p q) t h w", f=time, p=space, q=space
    )


def _space_blocks(x: Tensor) -> Tensor:
    """(b c t 2h 2w) -> (b c*4 t h w)."""
    return _pixel_blocks(x, 2, 1)


def _time_blocks(x: Tensor) -> Tensor:
    """(b c 1+2m h w) -> (b c*2 1+m h w)."""
    return _pixel_blocks(x, 1, 2)


def _with_past(x: Tensor, num_frames: int) -> Tensor:
    """Prepend zero frames to (b c t h w)."""
    return F.pad(x, (0, 0, 0, 0, num_frames, 0)) if num_frames else x


def _skip_residuals(resnets: Iterable[nn.Module], x: Tensor) -> Tensor:
    """What residual blocks with branches of zero do to x: their shortcuts."""
    for resnet in resnets:
        if isinstance(resnet, ResnetBlock) and resnet.shortcut:
            x = resnet.shortcut(x, Chunk())
    return x


def _copy_channels(conv: CausalConv3d) -> None:
    """Copy each input channel to the output channel of its number, at the same position."""
    _zero(conv)
    middle, shared = conv.kernel_size[-1] // 2, min(conv.weight.shape[:2])
    conv.weight[range(shared), range(shared), -1, middle, middle] = 1


def _zero(layer: CausalConv3d | nn.Linear) -> None:
    layer.weight.zero_()
    layer.bias.zero_()
