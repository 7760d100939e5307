"""Mediator attention in PyTorch: two attentions of one short side, PyTorch's own and left to
autograd.

- Where they are fused no score is kept; a bias with a gradient writes out its count x tokens
  scores.
- In float32 or wider throughout: mediators of one picture say nearly the same, and their
  differences are all that the backward sees. A call in bfloat16 takes up to 2.8 times what the
  published form takes in it (forward and backward, 4 to 64 mediators, 256 to 16,384 tokens, one
  core); in float32 1.15 to .6 times.
- As operations of our own, which call the same functions, a call at 256 tokens took twice the time.
"""

from torch import Tensor

from linattn_kernels import launch
from linattn_kernels.window_torch import attention


@launch.exact
def mediator_attention(q, k, v, mediators, bias_in, bias_out, scale):
    dtype = launch.wide(q.dtype)
    q, k, v, mediators, bias_in, bias_out = launch.once(q, k, v, mediators, bias_in, bias_out)
    asked, keys, values, few = (
        launch.unit(each).to(dtype).transpose(1, 2) for each in (q, k, v, mediators)
    )
    told = _attend(few, keys, values, bias_in, scale)  # (batch, heads, count, value_dim)
    out = _attend(asked, few, told, bias_out, scale)  # (batch, heads, queries, value_dim)
    return out.transpose(1, 2).to(q.dtype).contiguous()


def _attend(a: Tensor, b: Tensor, c: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    return attention(a, b, c, None if bias is None else bias.to(a.dtype), scale)
