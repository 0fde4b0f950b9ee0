"""The checkpoint of a training at a URI."""

import pytest
import torch

from pyramid_model.train.config import OptimConfig
from pyramid_model.train.saved_state import DamagedCheckpoint
from tasks.tables import storage
from tasks.training.state import SharedState


@pytest.mark.parametrize("scheme", ["", "memory:/"])
def test_of_two_checkpoints_the_newest_that_is_whole_is_used(tmp_path, scheme):
    uri = f"{scheme}{tmp_path}/checkpoints/a/state.pt"
    state = SharedState.start(torch.nn.Linear(4, 4), OptimConfig())
    for state.step in (1, 2, 3):
        state.save(uri)
    assert state.load(uri)
    assert state.step == 3
    storage.write_bytes(uri, storage.read_bytes(uri)[:-100])
    assert state.load(uri)
    assert state.step == 2
    storage.write_bytes(f"{uri}.before", b"")
    with pytest.raises(DamagedCheckpoint, match=rf"{uri} cannot be used"):
        state.load(uri)
    assert not state.load(f"{uri}.none")
