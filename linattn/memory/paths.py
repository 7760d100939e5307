"""Let fake tensors, which claim to lie on the CPU, take the path that real ones take on a device.

- On a GPU our operations are Triton kernels, and attention is flash attention. PyTorch's own on
  fake tensors would write out the whole map, 2 GB a layer of FLUX.1 at 1024 px.
- On a CPU small inputs go to the functions of `small_torch`, and larger ones to the PyTorch code of
  our operations, which holds float32 copies on the way.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes

from linattn_kernels import launch, small_torch

GPU = torch.device("cuda")


@contextlib.contextmanager
def taken(device: str) -> Iterator[None]:
    """Take the paths of a device, "cuda" or "cpu", inside the block."""
    with flash(), of_gpu() if device == "cuda" else of_cpu():
        yield


@contextlib.contextmanager
def of_gpu() -> Iterator[None]:
    """Choose as for a GPU that Triton compiles for, whether there is one or not."""
    original = launch.choose

    def choose(device: torch.device, *arguments: Any) -> launch.Backend:
        return original(GPU, *arguments)

    with (
        patch.object(launch, "obstacle", lambda device: None),
        patch.object(launch, "choose", choose),
    ):
        yield


@contextlib.contextmanager
def of_cpu() -> Iterator[None]:
    """Let small inputs go where eager ones go; the masks they share are real and stay."""
    original = small_torch._mask

    def mask(*arguments: Any) -> Tensor:
        with _disable_current_modes():
            return original(*arguments)

    with (
        patch.object(small_torch, "is_eager", lambda q: True),
        patch.object(small_torch, "_mask", mask),
    ):
        yield


@contextlib.contextmanager
def flash() -> Iterator[None]:
    """Let attention on fake tensors keep what flash attention keeps: no map, unless a mask learns.

    PyTorch takes its own flash attention on a CPU but for masks with gradients.
    """
    original = F.scaled_dot_product_attention

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if not isinstance(query, FakeTensor):
            return original(query, key, value, attn_mask, *args, **kwargs)
        if attn_mask is not None and attn_mask.requires_grad:
            run = torch.ops.aten._scaled_dot_product_attention_math
            return run(query, key, value, attn_mask, *args, **kwargs)[0]
        run = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return run(query, key, value)[0]

    with patch.object(F, "scaled_dot_product_attention", attention):
        yield
