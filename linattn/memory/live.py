"""Count the bytes of all tensors that are alive during a call, fake or real.

An operation of `linattn_kernels` that takes its PyTorch path is looked into: its code runs on the
same tensors, and what it holds on the way counts. A Triton kernel is one operation.
"""

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OURS = "linattn_kernels"  # the namespace of our operations


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
        result = self._run(func, args, kwargs or {})
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._know(value, value.untyped_storage().nbytes())
        return result

    def _run(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run an operation; one of ours on its PyTorch path by its code, which this mode sees."""
        if func.namespace != OURS or "torch" not in args:
            return func(*args, **kwargs)
        with self:
            return OPDEFS[func._schema.name]._init_fn(*args, **kwargs)

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
    with Live() as live:
        call()
    return live.peak
