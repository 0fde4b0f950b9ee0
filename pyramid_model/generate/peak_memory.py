"""Memory of a computation, found by running the real code while nothing but the sizes of tensors is known."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(call: Callable[[], object]) -> int:
    """Most bytes of tensors alive at once while `call` runs, not counting tensors that existed before.

    Counts whole storages, each once, so views are free. What a kernel takes for itself while it runs, what an
    allocator holds back, and tensors made without torch operations are not seen: leave a tenth of the memory for them.

    With weights and inputs made under `torch._subclasses.FakeTensorMode`, and `call` run under it, nothing is computed
    or allocated, so this answers within seconds whether a clip of any size will fit, and on no GPU at all: tensors
    made there with `device="cuda"` take the CUDA path of the code.
    """
    with _Alive() as alive:
        call()
    return alive.peak


class _Alive(TorchDispatchMode):
    """Adds up the storages that operations return, from when each appears until its last tensor goes."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self.known: set[int] = set()  # ids of storages; each leaves with its storage, before the id is used again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._meet(tensor.untyped_storage(), 0)  # met as an input first: it was there before
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._meet(tensor.untyped_storage(), tensor.untyped_storage().nbytes())
        return result

    def _meet(self, storage: torch.UntypedStorage, size: int) -> None:
        if id(storage) not in self.known:
            self.known.add(id(storage))
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._part, id(storage), size)

    def _part(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
