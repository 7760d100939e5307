"""Mediator attention in PyTorch: two attentions of one short side, PyTorch's own and left to autograd.

- Where they are fused no score is kept; a bias with a gradient writes out its count x tokens scores.
- In float32 or wider throughout: mediators of one picture say nearly the same, and their differences are all that the
  backward sees.
- As operations of our own, which call the same functions, a call at 256 tokens took twice the time.
"""

from torch import Tensor
from torch.nn import functional as F

from linattn_kernels import launch


@launch.exact
def mediator_attention(q, k, v, mediators, bias_in, bias_out, scale):
    dtype = launch.wide(q.dtype)
    asked, keys, values, few = (launch.unit(each).to(dtype).transpose(1, 2) for each in (q, k, v, mediators))
    told = _attend(few, keys, values, bias_in, scale)  # (batch, heads, count, value_dim)
    out = _attend(asked, few, told, bias_out, scale)  # (batch, heads, queries, value_dim)
    return launch.once(out.transpose(1, 2).to(q.dtype).contiguous(), q, k, v, mediators, bias_in, bias_out)


def _attend(a: Tensor, b: Tensor, c: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(a, b, c, None if bias is None else bias.to(a.dtype), scale=scale)
