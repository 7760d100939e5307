"""Mediator attention in PyTorch: two calls of its own attention, left to autograd.

- Where PyTorch fuses them no score is kept; a bias with a gradient writes out its count x tokens
  scores.
- Everything is in float32 or wider: mediators of one picture hold nearly the same values, and their
  differences are all that the backward sees. A call in bfloat16 takes up to 2.8 times as long as
  the published form in bfloat16 (forward and backward, 4 to 64 mediators, 256 to 16,384 tokens, one
  core); in float32 1.15 to .6 times.
- As operations of our own, which call the same functions, a call at 256 tokens took twice the time.
"""

from torch import Tensor

from linattn_kernels import launch
from linattn_kernels.window_torch import attention


@launch.without_autocast
def mediator_attention(q, k, v, mediators, bias_in, bias_out, scale):
    inputs = launch.first_order_only(q, k, v, mediators, bias_in, bias_out)
    *tensors, bias_in, bias_out = inputs
    dtype = launch.acc_dtype(q.dtype)
    queries, keys, values, m = (
        launch.unit_stride(tensor).to(dtype).transpose(1, 2) for tensor in tensors
    )
    gathered = _attend(m, keys, values, bias_in, scale)  # (batch, heads, count, value_dim)
    out = _attend(queries, m, gathered, bias_out, scale)  # (batch, heads, queries, value_dim)
    return out.transpose(1, 2).to(q.dtype).contiguous()


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    return attention(q, k, v, None if bias is None else bias.to(q.dtype), scale)
