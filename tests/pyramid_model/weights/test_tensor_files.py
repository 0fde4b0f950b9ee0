"""Files of tensors: shards, damage, and no code that runs."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from pyramid_model.weights.released_names import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    WEIGHTS_STEM,
)
from pyramid_model.weights.weights import (
    load_dit,
    load_perceptual,
    save_dit,
    weights_hash,
)


class RunsCode:
    def __reduce__(self):
        return print, ("code of the file was run",)


def test_a_file_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"features.0.weight": RunsCode()}, tmp_path / "vgg16.pth")
    with pytest.raises(ValueError, match="without running code"):
        load_perceptual([tmp_path / "vgg16.pth", tmp_path / "vgg16.pth"])
    assert not capsys.readouterr().out


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def shard(folder, weights=WEIGHTS_FILE):
    """Cut the weights of a folder into two files with an index, as large models are published."""
    tensors = load_file(folder / weights)
    names = sorted(tensors)
    table = {name: f"{WEIGHTS_STEM}-0000{1 + (name > names[9])}-of-00002.safetensors" for name in names}
    for file in set(table.values()):
        save_file({name: tensors[name] for name in names if table[name] == file}, folder / file)
    (folder / f"{weights}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    (folder / weights).unlink()
    return sorted(set(table.values()))


def test_weights_of_torch_save_and_in_shards_are_read_like_those_in_one_piece(dit, tmp_path):
    for name in ("whole", "shards", "bin"):
        save_dit(dit, tmp_path / name)
    shard(tmp_path / "shards")
    torch.save(load_file(tmp_path / "bin" / WEIGHTS_FILE), tmp_path / "bin" / f"{WEIGHTS_STEM}.bin")
    (tmp_path / "bin" / WEIGHTS_FILE).unlink()
    for name in ("whole", "shards", "bin"):
        assert same_weights(load_dit(tmp_path / name), dit)
    assert len({weights_hash(tmp_path / name) for name in ("whole", "shards", "bin")}) == 3


def test_a_missing_shard_and_a_tensor_that_no_shard_holds_are_named(tiny_dit, tmp_path):
    save_dit(tiny_dit, tmp_path)
    first, second = shard(tmp_path)
    tensors = load_file(tmp_path / first)
    lost = tensors.popitem()[0]
    save_file(tensors, tmp_path / first)
    with pytest.raises(ValueError, match=f"lists tensors that are in no shard, such as {lost}"):
        load_dit(tmp_path)
    (tmp_path / second).unlink()
    with pytest.raises(FileNotFoundError, match=f"names {second}: missing"):
        load_dit(tmp_path)


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3944118400\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda whole: whole[:-100],
            r"cut off: it has [\d,]+ bytes, [\d,]+ according to its header; download it again",
        ),
        (lambda whole: whole[:100], r"cut off inside its header: it has 100 bytes, the header alone [\d,]+; download"),
        (lambda whole: whole + b"more", "is damaged: it has"),
        (lambda whole: whole[:8] + b"[" + whole[9:], "its header cannot be read"),
        (lambda whole: b"", r"is empty \(0 bytes\): download it again"),
        (lambda whole: b"<!DOCTYPE html><html>404</html>", "is not a safetensors file"),
        (lambda whole: LFS_POINTER, r"git-lfs pointer to a file of 3,944,118,400 bytes .* `git lfs pull`"),
    ],
    ids=["data cut off", "header cut off", "too long", "broken header", "empty", "web page", "git-lfs pointer"],
)
def test_a_damaged_file_is_refused_by_its_name_with_what_to_do(tiny_dit, tmp_path, damage, message):
    save_dit(tiny_dit, tmp_path)
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        load_dit(tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", LFS_POINTER, b"<!DOCTYPE html>", None])
def test_a_damaged_file_of_torch_save_is_refused_by_its_name(tiny_dit, tmp_path, content):
    save_dit(tiny_dit, tmp_path)
    path = tmp_path / f"{WEIGHTS_STEM}.bin"
    torch.save(load_file(tmp_path / WEIGHTS_FILE), path)
    (tmp_path / WEIGHTS_FILE).unlink()
    path.write_bytes(path.read_bytes()[:-500] if content is None else content)
    with pytest.raises(ValueError, match="download") as error:
        load_dit(tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "<html>"])
def test_a_config_that_is_no_json_object_is_refused_by_its_name(tiny_dit, tmp_path, content):
    save_dit(tiny_dit, tmp_path)
    (tmp_path / CONFIG_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"config\.json .*download it again"):
        load_dit(tmp_path)
