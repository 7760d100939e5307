"""Count the bytes of all tensors that are alive during a call: on the meta device, where tensors
have sizes and no memory, as well as on a real one.

Attention is counted as flash attention runs it: PyTorch's own operation on the meta device would
write out the whole map, 2 GB a layer of FLUX.1 at 1024 px.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Sum the bytes of the tensors that are made while the mode is on, and remember the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):
                self._know(value, 0)  # it was there before the call, or was counted
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._know(value, value.untyped_storage().nbytes())
        return result

    def _know(self, tensor: Tensor, size: int) -> None:
        """Count a storage that is new, until it is freed."""
        storage = tensor.untyped_storage()
        if id(storage) in self.seen:
            return
        self.seen.add(id(storage))
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, id(storage), size)

    def _free(self, storage: int, size: int) -> None:
        self.seen.discard(storage)
        self.now -= size


def peak_of(call: Callable[[], Any]) -> int:
    """Return the most bytes that were alive at once, of the tensors that the call made."""
    with flash(), Live() as live:
        call()
    return live.peak


@contextlib.contextmanager
def flash() -> Iterator[None]:
    """Let attention on the meta device keep what flash attention keeps: no map."""
    original = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(query, FakeTensor):
            return original(query, key, value, *args, **kwargs)
        run = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return run(query, key, value)[0]

    with patch.object(F, "scaled_dot_product_attention", attention):
        yield
