"""Tiny models, and clips made from a real frame, for the tests of pyramid_model."""

from pathlib import Path

import pytest

TINY_DIT = {"latent_channels": 4, "num_heads": 2, "head_dim": 8, "text_dim": 6, "pooled_dim": 5}


@pytest.fixture(scope="module")
def one_thread():
    """Torch on one thread: tiny tensors, of which a second thread only makes more work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_vae():
    """A VAE with random weights, 8x8x8, in evaluation mode."""
    import torch

    from pyramid_model.config import VAEConfig, VAEStackConfig
    from pyramid_model.vae.autoencoder import CausalVideoVAE

    torch.manual_seed(0)
    stack = VAEStackConfig(channels=(4, 4, 8, 8), layers=(1, 1, 1, 1), norm_groups=2)
    return CausalVideoVAE(VAEConfig(latent_channels=4, encoder=stack, decoder=stack)).eval()


@pytest.fixture
def tiny_dit():
    """A miniFLUX with random weights, in evaluation mode."""
    from pyramid_model.config import MiniFluxConfig
    from pyramid_model.dit.miniflux import MiniFlux

    sizes = TINY_DIT | {"num_double_blocks": 1, "num_single_blocks": 1, "rope_axes": (2, 2, 4)}
    return randomised(MiniFlux(MiniFluxConfig(**sizes)))


@pytest.fixture
def tiny_mmdit():
    """An MMDiT with random weights, in evaluation mode; pictures of up to 16x16 latents."""
    from pyramid_model.config import MMDiTConfig
    from pyramid_model.dit.mmdit import MMDiT

    return randomised(MMDiT(MMDiTConfig(**TINY_DIT, num_blocks=2, position_grid=8, position_base=4)))


@pytest.fixture(params=["tiny_dit", "tiny_mmdit"], ids=["miniflux", "mmdit"])
def dit(request):
    """Either DiT, one after the other."""
    return request.getfixturevalue(request.param)


def randomised(dit):
    """Random weights everywhere, so that no output is zero."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5)
    return dit.eval()


@pytest.fixture
def text_rows():
    """`text_rows(n)`: features for n prompts, the last tokens of every other one being padding."""
    import torch

    from pyramid_model.text import TextFeatures

    def make(rows: int) -> TextFeatures:
        generator = torch.Generator().manual_seed(7)
        mask = torch.ones(rows, 4, dtype=torch.bool)
        mask[1::2, 2:] = False
        embeds = torch.randn(rows, 4, 6, generator=generator)
        return TextFeatures(embeds, mask, torch.randn(rows, 5, generator=generator))

    return make


# ---- clips made from a real frame ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def picture():
    """A frame of a real video, gray uint8 (480 854)."""
    import cv2

    from pyramid_model.video.footage import Footage

    with Footage(str(Path(__file__).parents[2] / "datasets" / "sample" / "bbb_meadow.mp4")) as footage:
        frames = footage.frames()
        return cv2.cvtColor(next(frame for frame in frames if frame.index == 240).rgb(), cv2.COLOR_RGB2GRAY)


@pytest.fixture(scope="session")
def view():
    """`view(picture, right=px, down=px, scale=1.0, turned=degrees)`: a frame (144 256) of a camera on the picture.

    The content is moved, scaled, and turned clockwise.
    """
    import cv2

    def view(picture, right=0.0, down=0.0, scale=1.0, turned=0.0):
        height, width = picture.shape
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), -turned, 0.5 * scale)
        matrix[:, 2] += [256 / 2 + right - width / 2, 144 / 2 + down - height / 2]
        return cv2.warpAffine(picture, matrix, (256, 144), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)

    return view


@pytest.fixture(scope="session")
def filmed(view):
    """`filmed(picture, num_frames=24, **speeds)`: frames (t 144 256) of a steady move.

    Speeds per frame: `right`, `down` in px, `zoom` in log scale and `turned` in degrees.
    """
    import numpy as np

    def filmed(picture, num_frames=24, **speeds):
        zoom = speeds.pop("zoom", 0.0)
        steps = np.arange(num_frames) - num_frames / 2
        return np.stack(
            [view(picture, scale=np.exp(zoom * t), **{n: speed * t for n, speed in speeds.items()}) for t in steps]
        )

    return filmed


@pytest.fixture(scope="session")
def encoded():
    """`encoded(path, frames, fps=24)`: writes gray frames as one of our clips; returns its path."""
    from fractions import Fraction

    import numpy as np

    from pyramid_model.video.video import open_video

    def encoded(path, frames, fps=24):
        with open_video(str(path), Fraction(fps)) as video:
            for frame in frames:
                video.write(np.repeat(frame[None, ..., None], 3, axis=-1))
        return str(path)

    return encoded
