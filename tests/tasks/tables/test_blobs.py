"""Tensors in binary columns come back as they were stored; other bytes are refused."""

import pytest
import torch

from tasks.tables.blobs import DTYPES, CorruptBlobError, bytes_tensor, embedding_of, tensor_bytes
from tasks.tables.content_ids import crc32


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tensor_comes_back_in_its_stored_precision(dtype):
    tensor = torch.randn(3, 2).T  # not contiguous
    data = tensor_bytes(tensor, dtype)
    assert torch.equal(bytes_tensor(data, tensor.shape, dtype), tensor.to(DTYPES[dtype]).float())


def test_bytes_that_do_not_fill_the_shape_are_refused():
    with pytest.raises(CorruptBlobError, match=r"4 bytes, expected 24 for float32 \(2, 3\)"):
        bytes_tensor(b"1234", (2, 3), "float32")


def test_an_embedding_has_unit_length_and_a_changed_one_is_refused():
    data = tensor_bytes(torch.tensor([[3.0, 4.0]]), "float16")
    row = {"embedding": data, "shape": [1, 2], "dtype": "float16", "crc32": crc32(data)}
    torch.testing.assert_close(embedding_of(row), torch.tensor([[0.6, 0.8]]))
    with pytest.raises(CorruptBlobError, match="crc32 is"):
        embedding_of(row | {"crc32": crc32(data) ^ 1})
