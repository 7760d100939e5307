"""Linear attention in PyTorch, a piece of the sequence at a time, which bounds its memory.

- The functions are siblings of those in `linear_triton`: state, read and their backwards, with the
  same arguments and results.
- A piece is copied heads first once and mapped in place, so that no product copies it again, and
  the pass that divides a result also writes it. At 16,384 tokens, 8 heads of 64, two cores: .16 s
  forward and backward, .30 s by autograd.
- Sums are in float32 or wider: a call in bfloat16 takes 1.7 to .5 times as long as the published
  form in bfloat16.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn_kernels import launch

# Numbers in a piece: near the core it must stay in the cache, on other devices it must be worth a
# launch.
PIECE, LARGE = 1 << 19, 1 << 25


def phi_(x: Tensor, feature_map: str, shift: float) -> Tensor:
    """Apply the feature map and its shift in place."""
    if feature_map == "elu1":
        return F.elu(x, inplace=True).add_(1 + shift)
    if feature_map == "identity":
        return x.add_(shift) if shift else x
    x = x.clamp_min_(0) if feature_map == "relu" else x.clamp_min_(0).square_()
    return x.add_(shift) if shift else x


def phi_backward(grad_out: Tensor, x: Tensor, feature_map: str) -> Tensor:
    """Return the gradient of x from that of phi(x)."""
    if feature_map == "elu1":
        return torch.ops.aten.elu_backward(grad_out, 1, 1, 1, False, x)
    if feature_map == "relu":
        return torch.ops.aten.threshold_backward(grad_out, x, 0)
    return grad_out * x.clamp_min(0).mul_(2) if feature_map == "relu2" else grad_out


def _pieces(like: Tensor) -> Iterator[slice]:
    """Yield slices of the tokens of a tensor (batch, tokens, heads, dim)."""
    batch, tokens, heads, dim = like.shape
    numbers = PIECE if like.device.type == "cpu" else LARGE
    size = max(64, numbers // max(1, batch * heads * dim))
    for start in range(0, tokens, size):
        yield slice(start, start + size)


def _heads_first(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Copy (batch, tokens, heads, dim) to a contiguous (batch, heads, tokens, dim)."""
    transposed = tensor.transpose(1, 2)
    return torch.empty(transposed.shape, dtype=dtype, device=tensor.device).copy_(transposed)


@launch.without_autocast
def state(k, v, norm_k, mask, feature_map, shift):
    batch, tokens, heads, dim = k.shape
    dtype = launch.acc_dtype(k.dtype)
    kv = k.new_zeros(batch, heads, dim, v.shape[3], dtype=dtype)
    z = k.new_zeros(batch, heads, dim, dtype=dtype)
    count = k.new_full((batch,), tokens, dtype=dtype) if mask is None else mask.to(dtype).sum(1)
    for piece in _pieces(k):
        phi_k = phi_(_heads_first(k[:, piece], dtype), feature_map, shift)
        phi_norm_k = phi_k  # (batch, heads, tokens, dim)
        if norm_k is not None:
            phi_norm_k = phi_(_heads_first(norm_k[:, piece], dtype), feature_map, shift)
        value = _heads_first(v[:, piece], dtype)
        if mask is not None:
            for tensor in {phi_k, phi_norm_k, value}:
                tensor.masked_fill_(~mask[:, None, piece, None], 0)
        kv += phi_k.transpose(2, 3) @ value
        z += phi_norm_k.sum(2)
    inv_count = (1 / count.clamp_min(1)).view(-1, 1, 1)
    return kv.mul_(inv_count.unsqueeze(3)), z.mul_(inv_count), count


@launch.without_autocast
def state_backward(d_kv, d_z, count, k, v, norm_k, mask, feature_map, shift):
    dtype = d_kv.dtype
    inv_count = (1 / count.clamp_min(1)).view(-1, 1, 1)
    d_kv = d_kv * inv_count.unsqueeze(3)
    d_z = (d_z * inv_count).unsqueeze(2)  # (batch, heads, 1, dim)
    dk, dv = launch.empty_like(k), launch.empty_like(v)
    d_norm_k = k.new_empty(0) if norm_k is None else launch.empty_like(norm_k)
    for piece in _pieces(k):
        x, value = _heads_first(k[:, piece], dtype), _heads_first(v[:, piece], dtype)
        d_phi = value @ d_kv.transpose(2, 3)
        if norm_k is None:
            d_phi = d_phi.add_(d_z)
        _write(dk[:, piece], phi_backward(d_phi, x, feature_map))
        _write(dv[:, piece], phi_(x, feature_map, shift) @ d_kv)
        if norm_k is not None:
            norm_x = _heads_first(norm_k[:, piece], dtype)
            d_norm = phi_backward(d_z.expand_as(norm_x), norm_x, feature_map)
            _write(d_norm_k[:, piece], d_norm)
    if mask is not None:
        for grad in (dk, dv) if norm_k is None else (dk, dv, d_norm_k):
            grad.masked_fill_(~mask[:, :, None, None], 0)
    return dk, dv, d_norm_k


def _write(target: Tensor, result: Tensor, factor: Tensor | None = None) -> None:
    """Write a heads-first result, times a factor a token, into (batch, tokens, heads, dim)."""
    if factor is None:
        target.copy_(result.transpose(1, 2))
    elif target.dtype == result.dtype:
        torch.mul(result.transpose(1, 2), factor.transpose(1, 2), out=target)
    else:
        target.copy_((result * factor).transpose(1, 2))


@launch.without_autocast
def read(q, norm_q, kv, z, feature_map, shift, eps, normalise):
    dtype = kv.dtype
    out = q.new_empty(*q.shape[:3], kv.shape[3])
    for piece in _pieces(q):
        phi_q = phi_(_heads_first(q[:, piece], dtype), feature_map, shift)
        inv_den = None
        if normalise:
            phi_norm_q = phi_q
            if norm_q is not None:
                phi_norm_q = phi_(_heads_first(norm_q[:, piece], dtype), feature_map, shift)
            inv_den = _safe_inverse(phi_norm_q @ z.unsqueeze(3) + eps)  # (batch, heads, tokens, 1)
        _write(out[:, piece], phi_q @ kv, inv_den)
    return out


@launch.without_autocast
def read_backward(grad_out, q, norm_q, kv, z, feature_map, shift, eps, normalise):
    dtype = kv.dtype
    d_kv, d_z = torch.zeros_like(kv), torch.zeros_like(z)
    dq, d_norm_q = launch.empty_like(q), q.new_empty(0)
    if norm_q is not None:
        d_norm_q = launch.empty_like(norm_q)
    for piece in _pieces(q):
        x, do = _heads_first(q[:, piece], dtype), _heads_first(grad_out[:, piece], dtype)
        phi_q = phi_(x.clone(), feature_map, shift)
        d_phi = do @ kv.transpose(2, 3)  # (batch, heads, tokens, dim)
        if not normalise:
            d_kv += phi_q.transpose(2, 3) @ do
            _write(dq[:, piece], phi_backward(d_phi, x, feature_map))
            if norm_q is not None:
                d_norm_q[:, piece] = 0
            continue
        norm_x = x if norm_q is None else _heads_first(norm_q[:, piece], dtype)
        phi_norm_q = phi_q if norm_q is None else phi_(norm_x.clone(), feature_map, shift)
        inv_den = _safe_inverse(phi_norm_q @ z.unsqueeze(3) + eps)  # (batch, heads, tokens, 1)
        d_den = (phi_q * d_phi).sum(3, keepdim=True).mul_(inv_den.square()).neg_()
        d_phi = d_phi.mul_(inv_den)
        d_z += (d_den.transpose(2, 3) @ phi_norm_q).squeeze(2)
        d_kv += phi_q.mul_(inv_den).transpose(2, 3) @ do
        if norm_q is None:
            d_phi = d_phi.addcmul_(d_den, z.unsqueeze(2))
        else:
            d_norm = phi_backward(d_den * z.unsqueeze(2), norm_x, feature_map)
            _write(d_norm_q[:, piece], d_norm)
        _write(dq[:, piece], phi_backward(d_phi, x, feature_map))
    return dq, d_norm_q, d_kv, d_z


def _safe_inverse(den: Tensor) -> Tensor:
    """Return 1 / den, and 0 where den is 0."""
    return torch.where(den == 0, 0, 1 / torch.where(den == 0, 1, den))
