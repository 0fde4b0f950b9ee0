"""A model on the frames of several clips."""

import numpy as np
import pytest
import torch

from pyramid_model.metrics.frame_batches import over_frames


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batches_span_clips_and_every_clip_gets_its_own_results(batch_size):
    clips = [np.full((n, 2, 2, 3), n, np.uint8) for n in (3, 1, 5)]
    sizes = []

    def model(frames):
        sizes.append(len(frames))
        return frames.mean(dim=(1, 2, 3))

    results = over_frames(clips, lambda frame: torch.from_numpy(frame).float(), model, batch_size)
    assert [values.tolist() for values in results] == [[3.0] * 3, [1.0], [5.0] * 5]
    assert max(sizes) == min(batch_size, 9)
    assert len(sizes) == -(-9 // batch_size)
