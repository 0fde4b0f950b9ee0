"""The published training of the VAE: reconstruction, LPIPS and an adversary, with both sides trained in one step."""

from __future__ import annotations

from torch import Generator, Tensor
from torch.func import functional_call

from pyramid_model.config import VAEGANConfig
from pyramid_model.train.config import VAELossConfig
from pyramid_model.train.vae_loss import VAEObjective
from pyramid_model.vae.autoencoder import CausalVideoVAE
from pyramid_model.vae.discriminator import PatchDiscriminator
from pyramid_model.vae.loss import PerceptualDistance, discriminator_loss, restoration_loss


class VAEGANObjective(VAEObjective):
    """A VAE with the published loss and its discriminator in one module.

    The returned loss is that of the VAE. Its gradient has two parts that share no weight: that of the VAE, to which the
    discriminator is a constant, and that of the discriminator, which sees the same reconstruction as a constant. So one
    backward pass serves both optimisers, whose order does not matter.

    Args:
        vae: the model.
        config: weights of the terms, and the discriminator.
        perceptual: LPIPS; None if its weight is 0.

    Attributes:
        discriminator: has an optimiser of its own, see `loop.make_optimizers`.
        lr_scale: learning rate of the discriminator as a multiple of that of the VAE.
    """

    def __init__(self, vae: CausalVideoVAE, config: VAEGANConfig, perceptual: PerceptualDistance | None = None):
        super().__init__(vae, VAELossConfig())
        self.gan, self.perceptual = config, perceptual
        self.discriminator = PatchDiscriminator(config.discriminator_layers, config.discriminator_channels)
        self.lr_scale = config.discriminator_lr_scale

    def forward(self, frames: Tensor, generator: Generator, step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """See `restoration_loss` for the parts; {"discriminator"} is the hinge loss of the discriminator.

        Args:
            frames: (b 3 1+8k h w) in [-1, 1].
            generator: draws the latents from the posterior.
            step: optimiser step, from 0; the adversarial loss starts at `adversarial_start`.
        """
        posterior = self.vae.encode(frames)
        restored = self.vae.decode(posterior.sample(generator))
        last_layer = self.vae.decoder.conv_out.weight
        others = self.perceptual, self._constant_discriminator, self.gan, step
        loss, parts = restoration_loss(frames, restored, posterior, last_layer, *others)
        if step >= self.gan.adversarial_start:
            judged = discriminator_loss(frames, restored, self.discriminator, self.gan, step)
            loss = loss + judged - judged.detach()
            parts["discriminator"] = judged.detach()
        return loss, parts

    def _constant_discriminator(self, frames: Tensor) -> Tensor:
        """The discriminator's logits without gradients of its weights."""
        weights = {name: weight.detach() for name, weight in self.discriminator.named_parameters()}
        return functional_call(self.discriminator, weights, (frames,))
