"""Peak memory of a computation, measured by running its code on fake tensors, which have sizes but no data."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(call: Callable[[], object]) -> int:
    """Most bytes of tensors alive at once while `call` runs, not counting tensors that existed before.

    Counts whole storages, each once, so views are free. Not counted: temporary memory of kernels, memory that the
    allocator reserves, and tensors made without torch operations. Leave a tenth of the memory for them.

    With weights and inputs made under `torch._subclasses.FakeTensorMode`, and `call` run under it, nothing is computed
    or allocated. The peak for a clip of any size is then known within seconds, and no GPU is needed: fake tensors with
    `device="cuda"` take the CUDA path of the code. Attention on fake tensors is counted as one fused kernel, as on a
    GPU, because PyTorch cannot choose a kernel without data.
    """
    with _FusedAttention(), _Alive() as alive:
        call()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Sums the bytes of live storages: from the operation that returns one until its last tensor is freed."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        # Ids of live storages. An id is removed with its storage, before Python can use it again.
        self.counted: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._meet(tensor.untyped_storage(), 0)  # an input of an operation that was not counted existed before
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._meet(tensor.untyped_storage(), tensor.untyped_storage().nbytes())
        return result

    def _meet(self, storage: torch.UntypedStorage, size: int) -> None:
        if id(storage) not in self.counted:
            self.counted.add(id(storage))
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._part, id(storage), size)

    def _part(self, key: int, size: int) -> None:
        self.counted.discard(key)
        self.bytes -= size


class _FusedAttention(TorchFunctionMode):
    """Replaces attention on fake tensors by one operation that allocates as fused kernels do: no matrix of scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        fused = func is F.scaled_dot_product_attention and any(isinstance(tensor, FakeTensor) for tensor in args)
        return (_fused_attention if fused else func)(*args, **(kwargs or {}))


def _fused_attention(
    *qkv: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False, **options: Any
) -> Tensor:
    if attn_mask is not None:
        attn_mask = attn_mask.to(qkv[0].dtype)  # PyTorch turns a boolean mask into numbers to add
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *qkv, dropout_p, is_causal, attn_mask=attn_mask, scale=options.get("scale")
    )[0]


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
