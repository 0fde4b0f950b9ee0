"""Random rows of binary tables: the newest ones, checked, read where they lie."""

import os
import pickle
import signal

import pyarrow as pa
import pytest
import torch

from tasks.tables.appending import append_block
from tasks.tables.blob_reader import BlobReader
from tasks.tables.blobs import CorruptBlobError, tensor_bytes
from tasks.tables.content_ids import crc32
from tasks.tables.delta import table_version
from tasks.tables.rows import Lineage

LINEAGE = Lineage("run", "latents", "1", "params", "code")
SHAPE = (16, 8, 48, 80)  # 1 MB as bfloat16: a row group of its own


def latent_row(number: int, size=SHAPE, **changed) -> tuple[torch.Tensor, dict]:
    latent = torch.randn(size, generator=torch.Generator().manual_seed(number)).bfloat16()
    data = tensor_bytes(latent, "bfloat16")
    columns = {"latent_id": f"id{number}", "clip_id": f"clip{number}", "vae_hash": "v", "bucket": "b"}
    stored = {"shape": list(size), "dtype": "bfloat16", "latent": data, "crc32": crc32(data)}
    return latent, columns | stored | changed


@pytest.fixture(scope="module")
def latents(tmp_path_factory) -> tuple[str, dict[str, torch.Tensor]]:
    root = str(tmp_path_factory.mktemp("root"))
    written = {}
    for block in range(2):
        rows = []
        for number in range(3 * block, 3 * block + 3):
            # Of the second block the rows are small and share a row group.
            latent, row = latent_row(number, SHAPE if block == 0 else (4, 2, 8, 8))
            written[row["latent_id"]] = latent
            rows.append(row)
        append_block(root, "latents", rows, f"block{block}", LINEAGE)
    return root, written


def reader_of(root: str, ids, version: int | None = None) -> BlobReader:
    return BlobReader(root, "latents", table_version(root, "latents") if version is None else version, ids)


def test_every_row_comes_back_bit_for_bit_in_any_order_and_only_what_was_asked_for(latents):
    root, written = latents
    reader = reader_of(root, [*written, "unknown"])
    assert reader.ids.to_pylist() == sorted(written)
    assert reader.shapes(reader.ids) == [tuple(written[row_id].shape) for row_id in sorted(written)]
    for row_id in reversed(written):
        (tensor,) = reader.read(row_id)
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, written[row_id])
    assert reader_of(root, ["id4"]).ids.to_pylist() == ["id4"]
    with pytest.raises(KeyError):
        reader.read("unknown")


def test_a_pinned_version_shows_what_was_there_then_and_the_newest_attempt_counts(tmp_path):
    root = str(tmp_path)
    first, row = latent_row(0, (4, 2, 8, 8))
    append_block(root, "latents", [row], "first", LINEAGE)
    before = table_version(root, "latents")
    second, again = latent_row(1, (4, 2, 8, 8), latent_id="id0", attempt=2)
    append_block(root, "latents", [again], "second", LINEAGE)
    assert torch.equal(reader_of(root, ["id0"], before).read("id0")[0], first)
    assert torch.equal(reader_of(root, ["id0"]).read("id0")[0], second)
    failed = {name: row[name] for name in ("latent_id", "clip_id", "vae_hash", "bucket")}
    append_block(root, "latents", [failed | {"status": "failed", "attempt": 3}], "third", LINEAGE)
    assert reader_of(root, ["id0"]).ids.equals(pa.chunked_array([], pa.string()))
    assert reader_of(root, ["never written"]).ids.equals(pa.chunked_array([], pa.string()))


def test_bytes_that_are_not_what_was_written_are_refused(tmp_path):
    root = str(tmp_path)
    wrong_crc, wrong_length = (
        latent_row(0, (4, 2, 8, 8), crc32=1)[1],
        latent_row(1, (4, 2, 8, 8), shape=[4, 2, 8, 9])[1],
    )
    append_block(root, "latents", [wrong_crc, wrong_length], "rows", LINEAGE)
    reader = reader_of(root, ["id0", "id1"])
    with pytest.raises(CorruptBlobError, match="expected 00000001"):
        reader.read("id0")
    assert reader.read("id0", check=False)[0].shape == (4, 2, 8, 8)
    with pytest.raises(CorruptBlobError, match="1024 bytes, expected 576"):
        reader.read("id1")


def test_texts_come_with_their_pooled_vector(tmp_path):
    embeds, pooled = torch.randn(5, 8), torch.randn(6)
    data = tensor_bytes(embeds, "float32"), tensor_bytes(pooled, "float32")
    row = {"text_feature_id": "t", "text": "a", "encoder_hash": "e", "shape": [5, 8], "dtype": "float32"}
    append_block(
        str(tmp_path),
        "text_features",
        [row | {"embeds": data[0], "pooled": data[1], "crc32": crc32(*data)}],
        "b",
        LINEAGE,
    )
    tensors = BlobReader(str(tmp_path), "text_features", table_version(str(tmp_path), "text_features"), ["t"]).read("t")
    assert torch.equal(tensors[0], embeds)
    assert torch.equal(tensors[1], pooled)


def test_a_forked_process_and_a_pickled_reader_read_by_themselves(latents):
    root, written = latents
    reader = reader_of(root, written)
    reader.read("id0")  # its file is open in this process
    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        torch.set_num_threads(1)  # as a DataLoader's workers: threads of OpenMP do not live through a fork
        equal = all(torch.equal(reader.read(row_id)[0], latent) for row_id, latent in written.items())
        os.write(here, b"1" if equal else b"0")
        os._exit(0)
    os.close(here)
    os.waitpid(child, 0)
    assert os.read(there, 1) == b"1"
    assert torch.equal(pickle.loads(pickle.dumps(reader)).read("id2")[0], written["id2"])
