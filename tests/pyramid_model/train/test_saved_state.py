"""A damaged checkpoint is told in a sentence, and the one before it is used."""

import os

import pytest
import torch

from pyramid_model.train.config import OptimConfig
from pyramid_model.train.loop import TrainState
from pyramid_model.train.saved_state import DamagedCheckpoint, previous_of, read_state

DAMAGES = {
    "cut off": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "garbage": lambda data: bytes(range(256)) * 8,
    "one bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    "other file": lambda data: b"PK\x05\x06" + bytes(18),
}


def state(step: int, width: int = 64) -> TrainState:
    torch.manual_seed(step)
    made = TrainState.start(torch.nn.Linear(width, 64), OptimConfig())
    made.step = step
    return made


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_checkpoint_is_told_with_path_and_remedy(tmp_path, damage):
    path = tmp_path / "state.pt"
    state(3).save(path)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(DamagedCheckpoint, match=r"state\.pt cannot be used: .*\. Remove it") as told:
        state(0).load(path)
    assert "weights_only" not in str(told.value)


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_the_checkpoint_before_a_damaged_one_is_used(tmp_path, damage):
    path = tmp_path / "state.pt"
    for step in (3, 4):
        state(step).save(path)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    resumed = state(0)
    assert resumed.load(path)
    assert resumed.step == 3
    resumed.step = 5
    resumed.save(path)  # replaces the damaged one, not the good one
    assert read_state(path)["step"] == 5
    assert read_state(previous_of(path))["step"] == 3


def test_every_flipped_bit_of_a_tensor_is_seen(tmp_path):
    path = tmp_path / "state.pt"
    state(3).save(path)
    data = path.read_bytes()
    start = data.index(state(3).ema.shadow["weight"].numpy().tobytes()[:64])
    for offset in range(0, 64 * 64 * 4, 997):
        changed = bytearray(data)
        changed[start + offset] ^= 1 << (offset % 8)
        path.write_bytes(changed)
        with pytest.raises(DamagedCheckpoint, match="checksum"):
            read_state(path)


def test_a_checkpoint_of_another_training_is_not_used(tmp_path):
    state(3, width=32).save(tmp_path / "state.pt")
    with pytest.raises(DamagedCheckpoint, match="another training"):
        state(0).load(tmp_path / "state.pt")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"objective": Evil()}, tmp_path / "state.pt")
    with pytest.raises(DamagedCheckpoint):
        read_state(tmp_path / "state.pt")
    assert not (tmp_path / "ran").exists()
