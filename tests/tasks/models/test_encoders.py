"""Which text encoder counts."""

import pytest

from tasks.captioning.captions import captions
from tasks.captioning.config import CaptionsConfig
from tasks.encoding.text_features import TextFeaturesConfig, text_features
from tasks.models.encoders import find_encoder


@pytest.mark.ray
@pytest.mark.slow
def test_the_encoder_that_was_asked_for_last_is_the_newest(ray_local, squares):
    captions(squares, CaptionsConfig())
    small, large = (TextFeaturesConfig(dim=dim, num_layers=1, vocab_size=64) for dim in (16, 32))
    for config in (small, large, small):
        result = text_features(squares, config)
        assert find_encoder(squares).hash == result.encoder_hash
    assert result.num_new == 0
