"""A checkpoint appears whole or not at all; a damaged one is told in a sentence, and the one before it is used."""

import io
import json
import os
import pickle
import re
import subprocess
import sys

import pytest
import torch

from pyramid_model.train.checkpoints import Checkpoints, DamagedCheckpoint
from pyramid_model.train.config import OptimConfig
from pyramid_model.train.loop import TrainState

DAMAGES = {
    "cut off": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "garbage": lambda data: bytes(range(256)) * 8,
    "one bit": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
}


def state(step: int, size: tuple[int, int] = (8, 4)) -> TrainState:
    """A state whose tensors all depend on the step, with two optimisers."""
    torch.manual_seed(step)
    model = torch.nn.ModuleDict({"blocks": torch.nn.Sequential(torch.nn.Linear(*size))})
    made = TrainState.start(model, OptimConfig(name="muon"))
    assert len(made.optimizers) == 2
    made.step, made.ema.num_updates, made.curve = step, step, [{"step": step}]
    made.first_step, made.untrained = step // 2, {"val_loss": float(step)}
    for optimizer in made.optimizers:
        for moments in optimizer.state.values():
            for tensor in moments.values():
                tensor.fill_(step)
    return made


def flat(value, name=""):
    """{dotted name: tensor or number} of nested dictionaries."""
    if not isinstance(value, dict):
        return {name: value}
    return {inner: x for key in value for inner, x in flat(value[key], f"{name}.{key}").items()}


@pytest.fixture(params=["", "memory:/"], ids=["local", "object store"])
def checkpoints(request, tmp_path):
    return Checkpoints(f"{request.param}{tmp_path}/checkpoints")


def files_of(checkpoints, step):
    """Paths of the files of a checkpoint."""
    return checkpoints.fs.ls(checkpoints._folder(step), detail=False)


def test_everything_that_has_state_comes_back(checkpoints):
    resumed, saved = state(0), state(3)
    saved.best = (2, 0.5)
    checkpoints.save(saved)
    torch.rand(1)  # moves the generator, which the checkpoint sets back
    assert checkpoints.load(resumed)
    expected, restored = flat(saved.tensors()), flat(resumed.tensors())
    assert restored.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(restored[name], value) if isinstance(value, torch.Tensor) else restored[name] == value, name
    assert resumed.facts() == saved.facts() | {"best": (2, 0.5)}


def test_a_walk_over_the_state_meets_nothing_that_no_checkpoint_holds():
    made = state(3)
    held = {tensor.data_ptr() for tensor in flat(made.tensors()).values() if isinstance(tensor, torch.Tensor)}
    owners = [
        made.objective.state_dict(),
        made.ema.shadow,
        *(moments for optimizer in made.optimizers for moments in optimizer.state.values()),
    ]
    assert all(tensor.data_ptr() in held for owner in owners for tensor in owner.values())
    stated = {"objective", "optimizers", "ema", "step", "first_step", "untrained", "curve", "best", "skipped"}
    assert set(vars(made)) == stated, "put what is new into tensors() or facts(), and its name here"
    assert set(vars(made.ema)) == {"decay", "num_updates", "shadow"}  # decay is a setting


def test_a_training_that_goes_on_does_not_change_the_checkpoint_that_is_being_written(checkpoints):
    going = state(3)
    before = {name: tensor.clone() for name, tensor in going.ema.shadow.items()}
    checkpoints.save(going)
    for tensor in going.ema.shadow.values():
        tensor.zero_()
    resumed = state(0)
    checkpoints.load(resumed)
    assert all(torch.equal(tensor, before[name]) for name, tensor in resumed.ema.shadow.items())


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_the_checkpoint_before_a_damaged_one_is_used(checkpoints, damage, caplog):
    for step in (3, 4):
        checkpoints.save(state(step))
    checkpoints.wait()
    for path in files_of(checkpoints, 4):
        data = checkpoints.fs.cat_file(path)
        checkpoints.fs.pipe_file(path, DAMAGES[damage](data))
        resumed = state(0)
        assert checkpoints.load(resumed)
        assert resumed.step == 3, path
        assert "step-00000004 cannot be used: " in caplog.text
        assert "continues from the checkpoint before it" in caplog.text
        caplog.clear()
        checkpoints.fs.pipe_file(path, data)
    assert checkpoints.load(resumed)
    assert resumed.step == 4


def test_if_no_checkpoint_is_sound_the_newest_is_named(checkpoints):
    for step in (3, 4):
        checkpoints.save(state(step))
    checkpoints.wait()
    for step in (3, 4):
        checkpoints.fs.rm(next(path for path in files_of(checkpoints, step) if path.endswith("distcp")))
    with pytest.raises(DamagedCheckpoint, match=r"step-00000004 cannot be used: its file .* is missing\. Remove it"):
        checkpoints.load(state(0))


def test_a_folder_that_is_not_whole_does_not_count(checkpoints):
    checkpoints.save(state(3))
    checkpoints.save(state(4))
    checkpoints.wait()
    checkpoints.fs.rm(f"{checkpoints._folder(4)}/whole.json")
    resumed = state(0)
    assert checkpoints.load(resumed)
    assert resumed.step == 3


def test_a_killed_writer_leaves_a_folder_under_another_name(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    (tmp_path / ".partial-step-00000003").mkdir()
    (tmp_path / ".partial-step-00000003" / "__0_0.distcp").write_bytes(b"half")
    assert not checkpoints.load(state(0))
    checkpoints.save(state(3))
    checkpoints.wait()
    assert os.listdir(tmp_path) == ["step-00000003"]


def test_the_last_two_and_the_best_are_kept(checkpoints):
    for step in range(1, 7):
        checkpoints.save(state(step), best=2)
    checkpoints.wait()
    assert sorted(checkpoints._steps()) == [2, 5, 6]
    resumed = state(0)
    assert checkpoints.load(resumed, step=2)
    assert resumed.step == 2


def test_a_checkpoint_of_another_training_is_refused(checkpoints):
    checkpoints.save(state(3, size=(16, 4)))
    with pytest.raises(DamagedCheckpoint, match="it is of another training"):
        checkpoints.load(state(0))


def test_a_checkpoint_that_cannot_be_written_stops_the_training_with_a_sentence(tmp_path):
    checkpoints = Checkpoints(str(tmp_path / "full"))
    (tmp_path / "full").write_text("a file where the folder should be")
    checkpoints.save(state(3))
    with pytest.raises(OSError, match=r"a checkpoint could not be written to .*full: .*\. Free space"):
        checkpoints.wait()


@pytest.mark.parametrize("free", [20000, 40000])  # with the second, torch.save hides the reason
def test_a_disk_that_is_full_during_a_checkpoint_leaves_the_one_before_it_whole(tmp_path, free):
    code = f"""
import resource, signal, sys, torch
from pyramid_model.train.checkpoints import Checkpoints
from pyramid_model.train.config import OptimConfig
from pyramid_model.train.loop import TrainState
model = torch.nn.ModuleDict({{"blocks": torch.nn.Sequential(torch.nn.Linear(64, 64))}})
state = TrainState.start(model, OptimConfig(name="muon"))
checkpoints = Checkpoints({str(tmp_path)!r})
state.step = 3
checkpoints.save(state)
checkpoints.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({free}, {free}))  # as on a full disk, a write fails half-way
state.step = 4
checkpoints.save(state)
try:
    checkpoints.wait()
except OSError as err:
    print(err)
"""
    message = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert re.match(rf"a checkpoint could not be written to {tmp_path}: .*File too large.*Free space", message), message
    resumed = state(0, size=(64, 64))
    assert Checkpoints(str(tmp_path)).load(resumed)
    assert resumed.step == 3
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000003"]
    again = Checkpoints(str(tmp_path))
    resumed.step = 4
    again.save(resumed)
    again.wait()
    assert sorted(os.listdir(tmp_path)) == ["step-00000003", "step-00000004"]


def test_the_mark_names_every_file(tmp_path):
    checkpoints = Checkpoints(str(tmp_path))
    checkpoints.save(state(3))
    checkpoints.wait()
    whole = json.loads((tmp_path / "step-00000003" / "whole.json").read_text())
    assert {*whole["files"], "whole.json"} == set(os.listdir(tmp_path / "step-00000003"))


class Sneaky:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["SNEAKY_MARKER"],)


def as_if_written(folder):
    """Give the files of a checkpoint the list with sizes and checksums that a stranger would write."""
    checkpoints = Checkpoints(str(folder.parent))
    facts = json.loads((folder / "whole.json").read_text())["facts"]
    files = {path.name: checkpoints._checksum(str(path)) for path in folder.iterdir() if path.name != "whole.json"}
    (folder / "whole.json").write_text(json.dumps({"facts": facts, "files": files}))


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """Folder of a checkpoint, and the folder that code of a stranger would make."""
    monkeypatch.setenv("SNEAKY_MARKER", str(tmp_path / "marker"))
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"))
    checkpoints.save(state(3))
    checkpoints.wait()
    return checkpoints, tmp_path / "checkpoints" / "step-00000003", tmp_path / "marker"


def test_code_in_the_list_of_tensors_never_runs(foreign):
    checkpoints, folder, marker = foreign
    (folder / ".metadata").write_bytes(pickle.dumps(Sneaky()))
    with pytest.raises(DamagedCheckpoint, match=r"\.metadata has changed"):
        checkpoints.load(state(0))
    as_if_written(folder)
    with pytest.raises(DamagedCheckpoint, match=r"names (posix|os)\.mkdir, which no list of tensors contains"):
        checkpoints.load(state(0))
    assert not marker.exists()


def test_code_in_a_value_that_is_no_tensor_never_runs(foreign):
    checkpoints, folder, marker = foreign
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    index = next(index for index in metadata.storage_data if index.fqn.endswith("weight_decay"))
    code = io.BytesIO()
    torch.save(Sneaky(), code)
    (folder / "code.distcp").write_bytes(code.getvalue())
    place = metadata.storage_data[index]
    place.relative_path, place.offset, place.length = "code.distcp", 0, len(code.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    as_if_written(folder)
    with pytest.raises(DamagedCheckpoint):
        checkpoints.load(state(0))
    assert not marker.exists()
    place.relative_path = "../../code.distcp"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    as_if_written(folder)
    with pytest.raises(DamagedCheckpoint, match="which is not in its folder"):
        checkpoints.load(state(0))


@pytest.mark.parametrize("files", [{}, {"../../etc/passwd": [1, 1]}, [], {"__0_0.distcp": 3}])
def test_a_list_of_files_that_leaves_files_out_is_refused(foreign, files):
    checkpoints, folder, _ = foreign
    (folder / "whole.json").write_text(json.dumps({"facts": {}, "files": files}))
    with pytest.raises(DamagedCheckpoint, match=r"is missing|is not in the list|cannot be read"):
        checkpoints.load(state(0))


def test_facts_of_another_kind_are_told_in_a_sentence(foreign):
    checkpoints, folder, _ = foreign
    whole = json.loads((folder / "whole.json").read_text())
    (folder / "whole.json").write_text(json.dumps(whole | {"facts": {"step": 3}}))
    with pytest.raises(DamagedCheckpoint, match="it is of another training"):
        checkpoints.load(state(0))
