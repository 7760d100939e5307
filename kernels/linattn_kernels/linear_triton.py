"""Linear attention in Triton: four kernels, and a fifth that adds up their partial sums.

- Names: kv = mean(phi(k)^T v) and z = mean(phi(k)) are the state; num = phi(q) kv and den =
  phi(q) z + eps; do is the gradient of the output. Numbers after a name are a head's two parts of
  channels (`tiles.parts`); where one part holds them all, D2 is 0.
- Keys are read once, by several programs a head. Their partial sums are added in a fixed order,
  without atomics, so that the bits are the same every time. Queries are read once too, by programs
  that load the state once.
- The backward moves seven tensors in bf16 on Hopper where a head has up to 64 channels and no
  normaliser of its own: the programs that write dq also sum up d_kv (TOGETHER). Elsewhere a second
  kernel reads q and do again to sum up d_kv, because both at once need more registers than there
  are (H200, FLUX, 64K tokens: .81 ms in one pass, .74 in two; ptxas spills 350 bytes and more).
- The state is float32. The forward reads it rounded, less the part z c^T that is common to all
  values, which is added back unrounded; the gradients read it as hi + lo, two rounded numbers.
  Rounding it plainly would put a floor of 2e-4 under the error at any length.
- In fp16 rows are divided by their largest entry first: features and sums over keys are both too
  large and too small for its range.
- The second part of channels is written out here and not by `load_parts` and `store_parts`, as in
  the softmax kernels: these order the instructions differently (`builds.py --compare`: 64 registers
  for 80 at 80 channels of float32), and which order is faster only a GPU can tell.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from linattn_kernels import launch
from linattn_kernels.launch import strides, unit_stride
from linattn_kernels.tiles import TYPES, aligned, dot, load, parts, powers, precision, store

# What every kernel shares
# ---------------------------------------------------------------------------------------------


@triton.jit
def _exp(x):
    """Compute exp in base 2, one instruction; `tl.exp` adds three to keep values below 1e-38."""
    return tl.exp2(x * 1.4426950408889634)


@triton.jit
def _phi(x, MAP: tl.constexpr, shift):
    if MAP == "elu1":
        x = _exp(tl.minimum(x, 0.0)) + tl.maximum(x, 0.0)
    elif MAP == "relu":
        x = tl.maximum(x, 0.0)
    elif MAP == "relu2":
        x = tl.maximum(x, 0.0) * tl.maximum(x, 0.0)
    return x + shift


@triton.jit
def _phi_grad(x, MAP: tl.constexpr):
    if MAP == "elu1":
        x = _exp(tl.minimum(x, 0.0))
    elif MAP == "relu":
        x = tl.where(x > 0, x * 0 + 1, x * 0)
    elif MAP == "relu2":
        x = 2 * tl.maximum(x, 0.0)
    else:
        x = x * 0 + 1
    return x


@triton.jit
def _features(x, live, columns, DIM: tl.constexpr, MAP: tl.constexpr, shift):
    """Compute phi(x), and 0 outside the tokens and channels, where phi(0) need not be 0."""
    return tl.where(live[:, None] & (columns < DIM)[None, :], _phi(x, MAP, shift), 0.0)


@triton.jit
def _split_hi_lo(kv, DOT: tl.constexpr, EXACT: tl.constexpr):
    """Return (scale a row, hi, lo) with kv = scale (hi + lo), hi and lo in the products' precision.

    The error is the square of that precision. If EXACT, hi is kv itself.
    """
    if EXACT:
        return 1.0, kv, kv
    if tl.float16 == DOT:
        scale = tl.maximum(tl.max(tl.abs(kv), 1), 1e-30)
        kv = kv / scale[:, None]
    else:
        scale = 1.0
    hi = kv.to(DOT)
    return scale, hi, (kv - hi.to(tl.float32)).to(DOT)


# In fp16 the rows of a product's other operand are multiplied by the state's scale and then divided
# by their largest entry as well.


@triton.jit
def _matmul(a, hi, scale, DOT: tl.constexpr, ACC: tl.constexpr):
    """Compute a @ kv from kv's scale and hi."""
    if tl.float16 == DOT:
        a = a * scale[None, :]
        row_scale = tl.maximum(tl.max(tl.abs(a), 1), 1e-30)[:, None]
        return dot(a / row_scale, hi, DOT, ACC) * row_scale
    else:
        return dot(a, hi, DOT, ACC)


@triton.jit
def _matmul_transposed(a, hi, lo, scale, BOTH: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr):
    """Compute a @ kv^T from kv's scale and hi, and from lo too if BOTH."""
    if tl.float16 == DOT:
        a = a.to(ACC)
        row_scale = tl.maximum(tl.max(tl.abs(a), 1), 1e-30)[:, None]
        a = a / row_scale
    product = dot(a, tl.trans(hi), DOT, ACC)
    if BOTH:
        product += dot(a, tl.trans(lo), DOT, ACC)
    if tl.float16 == DOT:
        product = product * row_scale * scale[None, :]
    return product


@triton.jit
def _outer(f, value, DOT: tl.constexpr, ACC: tl.constexpr):
    """Compute f^T @ value.

    In fp16 a channel is divided by its largest entry: phi(q) over a denominator of 1e-6 overflows.
    """
    if tl.float16 == DOT:
        scale = tl.maximum(tl.max(tl.abs(f), 0), 1e-30)
        return dot(tl.trans(f / scale[None, :]), value, DOT, ACC) * scale[:, None]
    else:
        return dot(tl.trans(f), value, DOT, ACC)


@triton.jit
def _load_kv(kv, d, e, DIM: tl.constexpr, VDIM: tl.constexpr):
    """Load key channels d and value channels e of a state."""
    return tl.load(
        kv + d[:, None] * VDIM + e[None, :],
        mask=(d < DIM)[:, None] & (e < VDIM)[None, :],
        other=0.0,
    )


@triton.jit
def _store_kv(kv, d, e, tile, DIM: tl.constexpr, VDIM: tl.constexpr):
    tl.store(
        kv + d[:, None] * VDIM + e[None, :],
        tile,
        mask=(d < DIM)[:, None] & (e < VDIM)[None, :],
    )


@triton.jit
def _mean_value(kv1, kv2, z1, z2, D2: tl.constexpr):
    """Compute c = z^T kv / |z|^2 of shape (value_dim,): z c^T is the nearest of its form to kv.

    It is what all values have in common. z is divided by its largest entry, which keeps the squares
    in range.
    """
    largest = tl.max(tl.abs(z1), 0)
    if D2:
        largest = tl.maximum(largest, tl.max(tl.abs(z2), 0))
    largest = tl.maximum(largest, 1e-30)
    dot_z = tl.sum((z1 / largest) * (z1 / largest), 0)
    dot_kv = tl.sum(kv1 * (z1 / largest)[:, None], 0)
    if D2:
        dot_z += tl.sum((z2 / largest) * (z2 / largest), 0)
        dot_kv += tl.sum(kv2 * (z2 / largest)[:, None], 0)
    return tl.where(dot_z > 0, dot_kv / tl.where(dot_z > 0, dot_z, 1.0) / largest, 0.0)


@triton.jit
def _load_centred(
    kv, z1, z2, d1, d2, e,
    DIM: tl.constexpr, VDIM: tl.constexpr, D2: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Load a state less z c^T: return c, and scale and hi of both parts. If EXACT, keep z c^T."""
    kv1 = _load_kv(kv, d1, e, DIM, VDIM)
    kv2 = kv1
    if D2:
        kv2 = _load_kv(kv, d2, e, DIM, VDIM)
    mean_v = _mean_value(kv1, kv2, z1, z2, D2)
    if not EXACT:
        kv1 -= z1[:, None] * mean_v[None, :]
        if D2:
            kv2 -= z2[:, None] * mean_v[None, :]
    scale1, kv1, _ = _split_hi_lo(kv1, DOT, EXACT)
    if D2:
        scale2, kv2, _ = _split_hi_lo(kv2, DOT, EXACT)
        return mean_v, scale1, kv1, scale2, kv2
    else:
        return mean_v, scale1, kv1, scale1, kv1


@triton.jit
def _hi_lo_columns(z, DOT: tl.constexpr):
    """Return a vector's hi and lo as the first two of 16 columns, the least that tl.dot takes."""
    i = tl.arange(0, 16)[None, :]
    hi = z.to(DOT)
    lo = (z - hi.to(z.dtype)).to(DOT)
    return tl.where(i == 0, hi[:, None], tl.where(i == 1, lo[:, None], lo[:, None] * 0))


@triton.jit
def _denominator(
    f1, f2, z1, z2, z_columns1, z_columns2, D2: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr
):
    """Compute phi(q) . z of each row, the denominator without eps.

    In bf16 this is tl.dot, like the numerator: its layout then matches the output's, and both carry
    the same rounding error of phi(q), which cancels in the ratio. fp16 would overflow on the keys
    of many feature maps, and float32 has nothing to gain.
    """
    if tl.bfloat16 == DOT:
        den = tl.sum(dot(f1, z_columns1, DOT, ACC), 1)
        if D2:
            den += tl.sum(dot(f2, z_columns2, DOT, ACC), 1)
    else:
        den = tl.sum(f1 * z1[None, :], 1)
        if D2:
            den += tl.sum(f2 * z2[None, :], 1)
    return den


@triton.jit
def _match_layout(x, like, EXACT: tl.constexpr):
    """Return x + 0 like, which forces x into the register layout of `like`.

    phi(x) is then computed once instead of once per layout (Triton 3.6).
    """
    if EXACT:
        return x
    else:
        return x + like * 0.0


@triton.jit
def _zero_masked(x, live, MASK: tl.constexpr):
    """Zero the keys that a mask leaves out."""
    return tl.where(live[:, None], x, 0.0) if MASK else x


@triton.jit
def _safe_inverse(den):
    """Compute 1 / den, and 0 where den is 0."""
    return tl.where(den == 0, 0.0, 1.0 / tl.where(den == 0, 1.0, den))


# The state of the keys
# ---------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["tokens", "chunk"])
def _state_kernel(
    k, v, norm_k, mask, weight, norm_weight, kv, z,
    k_b, k_n, k_h, v_b, v_n, v_h, norm_b, norm_n, norm_h, mask_b,
    tokens, heads, chunk, shift,
    MAP: tl.constexpr, NORMALISER: tl.constexpr, MASK: tl.constexpr, WEIGHT: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, VDIM: tl.constexpr, BE: tl.constexpr,
    BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sum up kv += phi(k)^T v and z += phi(norm_k) over one split of the tokens.

    If WEIGHT, a token's features are multiplied by its weight (in kv) and norm_weight (in z).
    """
    split, bh, value_tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    if NORMALISER:
        norm_k += batch * norm_b + head * norm_h
    if WEIGHT:
        weight += bh.to(tl.int64) * tokens
        norm_weight += bh.to(tl.int64) * tokens
    d1, e = tl.arange(0, D1), value_tile * BE + tl.arange(0, BE)
    # z is kept as a whole tile and summed across threads once, at the end.
    kv1, z1 = tl.zeros((D1, BE), ACC), tl.zeros((BN, D1), ACC)
    if D2:
        d2 = D1 + tl.arange(0, D2)
        kv2, z2 = tl.zeros((D2, BE), ACC), tl.zeros((BN, D2), ACC)
    end = tl.minimum(tokens, (split + 1) * chunk)
    n = tl.arange(0, BN)
    for start in range(split * chunk, end, BN):
        live, first = n < end - start, tl.cast(start, tl.int64)
        if MASK:
            live = live & (tl.load(mask + batch * mask_b + first + n, mask=live, other=0) != 0)
        value = load(v + first * v_n, n, v_n, e, live, VDIM, ALIGNED)
        x1 = load(k + first * k_n, n, k_n, d1, live, DIM, ALIGNED).to(ACC)
        f1 = _features(x1, live, d1, DIM, MAP, shift)
        norm_f1 = f1
        if NORMALISER:
            norm_f1 = load(norm_k + first * norm_n, n, norm_n, d1, live, DIM, ALIGNED).to(ACC)
            norm_f1 = _features(norm_f1, live, d1, DIM, MAP, shift)
        if WEIGHT:
            w = tl.load(weight + first + n, mask=live, other=0.0)
            u = tl.load(norm_weight + first + n, mask=live, other=0.0)
            f1, norm_f1 = f1 * w[:, None], norm_f1 * u[:, None]
        kv1 += _outer(f1, value, DOT, ACC)
        z1 += norm_f1
        if D2:
            x2 = load(k + first * k_n, n, k_n, d2, live, DIM, ALIGNED).to(ACC)
            f2 = _features(x2, live, d2, DIM, MAP, shift)
            norm_f2 = f2
            if NORMALISER:
                norm_f2 = load(norm_k + first * norm_n, n, norm_n, d2, live, DIM, ALIGNED).to(ACC)
                norm_f2 = _features(norm_f2, live, d2, DIM, MAP, shift)
            if WEIGHT:
                f2, norm_f2 = f2 * w[:, None], norm_f2 * u[:, None]
            kv2 += _outer(f2, value, DOT, ACC)
            z2 += norm_f2
    kv += (split * tl.num_programs(1) + bh).to(tl.int64) * DIM * VDIM
    z += (split * tl.num_programs(1) + bh).to(tl.int64) * DIM
    _store_kv(kv, d1, e, kv1, DIM, VDIM)
    if value_tile == 0:
        tl.store(z + d1, tl.sum(z1, 0), mask=d1 < DIM)
    if D2:
        _store_kv(kv, d2, e, kv2, DIM, VDIM)
        if value_tile == 0:
            tl.store(z + d2, tl.sum(z2, 0), mask=d2 < DIM)


@triton.jit(do_not_specialize=["splits"])
def _sum_kernel(
    kv_in, z_in, kv, z, count, masked_count, heads, tokens, splits,
    KV: tl.constexpr, Z: tl.constexpr, MEAN: tl.constexpr, MASK: tl.constexpr,
    BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Add up partial sums in their order, and if MEAN divide them by the number of keys that count.

    A head has KV numbers of kv and then Z numbers of z.
    """
    bh, n_bh = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    kv_sum, z_sum = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    z_at = at - KV
    is_z = (z_at >= 0) & (z_at < Z)
    for split in range(0, splits):
        row = split * n_bh + bh
        kv_sum += tl.load(kv_in + row * KV + at, mask=at < KV, other=0.0)
        z_sum += tl.load(z_in + row * Z + z_at, mask=is_z, other=0.0)
    if MEAN:
        n_keys = tokens
        if MASK:
            n_keys = tl.load(masked_count + bh // heads)
        inv_count = 1.0 / tl.maximum(n_keys, 1.0)
        kv_sum, z_sum = kv_sum * inv_count, z_sum * inv_count
        if (tl.program_id(0) == 0) & (bh % heads == 0):
            tl.store(count + bh // heads, n_keys)
    tl.store(kv + bh * KV + at, kv_sum, mask=at < KV)
    tl.store(z + bh * Z + z_at, z_sum, mask=is_z)


@triton.jit(do_not_specialize=["tokens", "chunk"])
def _state_backward_kernel(
    d_kv, d_z, count, k, v, norm_k, mask, dk, dv, d_norm_k,
    k_b, k_n, k_h, v_b, v_n, v_h, norm_b, norm_n, norm_h, mask_b,
    dk_b, dk_n, dk_h, dv_b, dv_n, dv_h,
    tokens, heads, chunk, shift,
    MAP: tl.constexpr, NORMALISER: tl.constexpr, MASK: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, VDIM: tl.constexpr, BE: tl.constexpr,
    BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Compute dk = (v d_kv^T + d_z) phi'(k) and dv = phi(k) d_kv, both over the number of keys.

    dv is computed only if one tile holds all value channels (ONE_TILE). With a normaliser of its
    own, d_z goes to d_norm_k instead.
    """
    bh = tl.program_id(1)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    inv_count = 1.0 / tl.maximum(tl.load(count + batch), 1.0)
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    dk += batch * dk_b + head * dk_h
    dv += batch * dv_b + head * dv_h
    if NORMALISER:
        norm_k += batch * norm_b + head * norm_h
        d_norm_k += batch * dk_b + head * dk_h
    d_kv += bh.to(tl.int64) * DIM * VDIM
    d1 = tl.arange(0, D1)
    d_z1 = tl.load(d_z + bh * DIM + d1, mask=d1 < DIM, other=0.0) * inv_count
    if D2:
        d2 = D1 + tl.arange(0, D2)
        d_z2 = tl.load(d_z + bh * DIM + d2, mask=d2 < DIM, other=0.0) * inv_count
    ONE_TILE: tl.constexpr = VDIM <= BE  # then d_kv is loaded and rounded once for all tokens
    if ONE_TILE:
        e = tl.arange(0, BE)
        tile1 = _load_kv(d_kv, d1, e, DIM, VDIM) * inv_count
        scale1, hi1, lo1 = _split_hi_lo(tile1, DOT, EXACT)
        if D2:
            tile2 = _load_kv(d_kv, d2, e, DIM, VDIM) * inv_count
            scale2, hi2, lo2 = _split_hi_lo(tile2, DOT, EXACT)
    n = tl.arange(0, BN)
    end = tl.minimum(tokens, (tl.program_id(0) + 1) * chunk)
    # disable_licm: hoisting loop invariants would raise register pressure and spill.
    for start in tl.range(tl.program_id(0) * chunk, end, BN, disable_licm=True):
        inside, at = n < end - start, tl.cast(start, tl.int64)
        live = inside
        if MASK:
            live = live & (tl.load(mask + batch * mask_b + at + n, mask=live, other=0) != 0)
        x1 = load(k + at * k_n, n, k_n, d1, live, DIM, ALIGNED).to(ACC)
        df1 = tl.zeros((BN, D1), ACC)
        if D2:
            x2 = load(k + at * k_n, n, k_n, d2, live, DIM, ALIGNED).to(ACC)
            df2 = tl.zeros((BN, D2), ACC)
        for first in range(0, VDIM, BE):
            e = first + tl.arange(0, BE)
            value = load(v + at * v_n, n, v_n, e, live, VDIM, ALIGNED)
            if not ONE_TILE:
                tile1 = _load_kv(d_kv, d1, e, DIM, VDIM) * inv_count
                scale1, hi1, lo1 = _split_hi_lo(tile1, DOT, EXACT)
                if D2:
                    tile2 = _load_kv(d_kv, d2, e, DIM, VDIM) * inv_count
                    scale2, hi2, lo2 = _split_hi_lo(tile2, DOT, EXACT)
            df1 += _matmul_transposed(value, hi1, lo1, scale1, not EXACT, DOT, ACC)
            if D2:
                df2 += _matmul_transposed(value, hi2, lo2, scale2, not EXACT, DOT, ACC)
        x1 = _match_layout(x1, df1, EXACT)
        f1 = _zero_masked(_phi(x1, MAP, shift), live, MASK)
        if not NORMALISER:
            df1 += d_z1[None, :]
        dk_tile = dk + at * dk_n
        dk1 = _zero_masked(df1 * _phi_grad(x1, MAP), live, MASK)
        store(dk_tile, n, dk_n, d1, inside, DIM, ALIGNED, dk1)
        if NORMALISER:
            norm_x1 = load(norm_k + at * norm_n, n, norm_n, d1, live, DIM, ALIGNED).to(ACC)
            d_norm1 = _zero_masked(d_z1[None, :] * _phi_grad(norm_x1, MAP), live, MASK)
            store(d_norm_k + at * dk_n, n, dk_n, d1, inside, DIM, ALIGNED, d_norm1)
        if D2:
            x2 = _match_layout(x2, df2, EXACT)
            f2 = _zero_masked(_phi(x2, MAP, shift), live, MASK)
            if not NORMALISER:
                df2 += d_z2[None, :]
            dk_tile = dk + at * dk_n
            dk2 = _zero_masked(df2 * _phi_grad(x2, MAP), live, MASK)
            store(dk_tile, n, dk_n, d2, inside, DIM, ALIGNED, dk2)
            if NORMALISER:
                norm_x2 = load(norm_k + at * norm_n, n, norm_n, d2, live, DIM, ALIGNED).to(ACC)
                d_norm2 = _zero_masked(d_z2[None, :] * _phi_grad(norm_x2, MAP), live, MASK)
                store(d_norm_k + at * dk_n, n, dk_n, d2, inside, DIM, ALIGNED, d_norm2)
        if ONE_TILE:
            dv_tile = _matmul(f1, hi1, scale1, DOT, ACC)
            if D2:
                dv_tile += _matmul(f2, hi2, scale2, DOT, ACC)
            store(dv + at * dv_n, n, dv_n, tl.arange(0, BE), inside, VDIM, ALIGNED, dv_tile)


# What queries read of the state
# ---------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["tokens", "chunk"])
def _read_kernel(
    q, norm_q, kv, z, out,
    q_b, q_n, q_h, norm_b, norm_n, norm_h, out_b, out_n, out_h,
    tokens, heads, chunk, shift, eps,
    MAP: tl.constexpr, NORMALISER: tl.constexpr, NORMALISE: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, VDIM: tl.constexpr, BE: tl.constexpr,
    BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Compute out = phi(q) kv / (phi(norm_q) z + eps) for one split of the queries.

    The state is loaded and rounded once, as kv = z c^T + rest (`_load_centred`): only the rest is
    rounded; z c^T is added to the numerator unrounded.
    """
    bh, value_tile = tl.program_id(1), tl.program_id(2)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    q += batch * q_b + head * q_h
    if NORMALISER:
        norm_q += batch * norm_b + head * norm_h
    out += batch * out_b + head * out_h
    kv += bh.to(tl.int64) * DIM * VDIM
    z += bh.to(tl.int64) * DIM
    d1, d2 = tl.arange(0, D1), D1 + tl.arange(0, D2 if D2 else 1)
    e = value_tile * BE + tl.arange(0, BE)
    z1 = tl.load(z + d1, mask=d1 < DIM, other=0.0)
    z2 = z1
    if D2:
        z2 = tl.load(z + d2, mask=d2 < DIM, other=0.0)
    mean_v, scale1, kv1, scale2, kv2 = _load_centred(
        kv, z1, z2, d1, d2, e, DIM, VDIM, D2, DOT, EXACT
    )
    z_columns1, z_columns2 = z1, z2
    if tl.bfloat16 == DOT:
        z_columns1, z_columns2 = _hi_lo_columns(z1, DOT), _hi_lo_columns(z2, DOT)
    n = tl.arange(0, BN)
    end = tl.minimum(tokens, (tl.program_id(0) + 1) * chunk)
    for start in range(tl.program_id(0) * chunk, end, BN):
        live, first = n < end - start, tl.cast(start, tl.int64)
        f1 = _phi(load(q + first * q_n, n, q_n, d1, live, DIM, ALIGNED).to(ACC), MAP, shift)
        f2 = f1
        if D2:
            f2 = _phi(load(q + first * q_n, n, q_n, d2, live, DIM, ALIGNED).to(ACC), MAP, shift)
        num = _matmul(f1, kv1, scale1, DOT, ACC)
        if D2:
            num += _matmul(f2, kv2, scale2, DOT, ACC)
        den = _denominator(f1, f2, z1, z2, z_columns1, z_columns2, D2, DOT, ACC)
        if not EXACT:
            num += den[:, None] * mean_v[None, :]
        if NORMALISE:
            if NORMALISER:
                norm_x1 = load(norm_q + first * norm_n, n, norm_n, d1, live, DIM, ALIGNED).to(ACC)
                norm_f1 = _phi(norm_x1, MAP, shift)
                norm_f2 = norm_f1
                if D2:
                    norm_x2 = load(norm_q + first * norm_n, n, norm_n, d2, live, DIM, ALIGNED)
                    norm_f2 = _phi(norm_x2.to(ACC), MAP, shift)
                den = _denominator(norm_f1, norm_f2, z1, z2, z_columns1, z_columns2, D2, DOT, ACC)
            num = num * _safe_inverse(den + eps)[:, None]
        store(out + first * out_n, n, out_n, e, live, VDIM, ALIGNED, num)


@triton.jit(do_not_specialize=["tokens", "chunk"])
def _read_backward_kernel(
    do, q, norm_q, kv, z, dq, d_norm_q, weight, norm_weight, d_kv, d_z,
    do_b, do_n, do_h, q_b, q_n, q_h, norm_b, norm_n, norm_h, dq_b, dq_n, dq_h,
    tokens, heads, chunk, shift, eps,
    MAP: tl.constexpr, NORMALISER: tl.constexpr, NORMALISE: tl.constexpr, TOGETHER: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, VDIM: tl.constexpr, BE: tl.constexpr,
    BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Compute dq. If TOGETHER, also accumulate per-split partial sums of d_kv and d_z.

    Otherwise store 1 / den and the gradient of den per query, from which `_state_kernel`
    accumulates d_kv and d_z. The output is not read: with df = do kv^T, num . do is phi(q) . df.
    """
    bh = tl.program_id(1)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    do += batch * do_b + head * do_h
    q += batch * q_b + head * q_h
    dq += batch * dq_b + head * dq_h
    if NORMALISER:
        norm_q += batch * norm_b + head * norm_h
        d_norm_q += batch * dq_b + head * dq_h
    if NORMALISE and not TOGETHER:
        weight += bh.to(tl.int64) * tokens
        norm_weight += bh.to(tl.int64) * tokens
    kv += bh.to(tl.int64) * DIM * VDIM
    z += bh.to(tl.int64) * DIM
    if TOGETHER:
        tl.static_assert(
            D2 == 0 and VDIM <= BE and not NORMALISER, "one tile must hold all of d_kv"
        )
        d_kv1, d_z1 = tl.zeros((D1, BE), ACC), tl.zeros((BN, D1), ACC)
    d1, d2 = tl.arange(0, D1), D1 + tl.arange(0, D2 if D2 else 1)
    z1 = tl.load(z + d1, mask=d1 < DIM, other=0.0)
    z2 = z1
    if D2:
        z2 = tl.load(z + d2, mask=d2 < DIM, other=0.0)
    ONE_TILE: tl.constexpr = VDIM <= BE  # then kv is loaded and rounded once for all tokens
    if ONE_TILE:
        scale1, hi1, lo1 = _split_hi_lo(_load_kv(kv, d1, tl.arange(0, BE), DIM, VDIM), DOT, EXACT)
        if D2:
            scale2, hi2, lo2 = _split_hi_lo(
                _load_kv(kv, d2, tl.arange(0, BE), DIM, VDIM), DOT, EXACT
            )
    n = tl.arange(0, BN)
    end = tl.minimum(tokens, (tl.program_id(0) + 1) * chunk)
    # disable_licm: hoisting loop invariants would raise register pressure and spill.
    for start in tl.range(tl.program_id(0) * chunk, end, BN, disable_licm=True):
        live, at = n < end - start, tl.cast(start, tl.int64)
        x1 = load(q + at * q_n, n, q_n, d1, live, DIM, ALIGNED).to(ACC)
        if D2:
            x2 = load(q + at * q_n, n, q_n, d2, live, DIM, ALIGNED).to(ACC)
            df2 = tl.zeros((BN, D2), ACC)
        df1 = tl.zeros((BN, D1), ACC)
        if TOGETHER:
            do_tile = load(do + at * do_n, n, do_n, tl.arange(0, BE), live, VDIM, ALIGNED)
            df1 += _matmul_transposed(do_tile, hi1, lo1, scale1, not EXACT, DOT, ACC)
        else:
            for first in range(0, VDIM, BE):
                e = first + tl.arange(0, BE)
                do_tile = load(do + at * do_n, n, do_n, e, live, VDIM, ALIGNED)
                if not ONE_TILE:
                    scale1, hi1, lo1 = _split_hi_lo(_load_kv(kv, d1, e, DIM, VDIM), DOT, EXACT)
                    if D2:
                        scale2, hi2, lo2 = _split_hi_lo(_load_kv(kv, d2, e, DIM, VDIM), DOT, EXACT)
                df1 += _matmul_transposed(do_tile, hi1, lo1, scale1, not EXACT, DOT, ACC)
                if D2:
                    df2 += _matmul_transposed(do_tile, hi2, lo2, scale2, not EXACT, DOT, ACC)
        x1 = _match_layout(x1, df1, EXACT)
        f1 = _phi(x1, MAP, shift)
        if D2:
            x2 = _match_layout(x2, df2, EXACT)
            f2 = _phi(x2, MAP, shift)
        if NORMALISE:
            den, num_do = tl.sum(f1 * z1[None, :], 1), tl.sum(f1 * df1, 1)
            if D2:
                den += tl.sum(f2 * z2[None, :], 1)
                num_do += tl.sum(f2 * df2, 1)
            if NORMALISER:
                norm_x1 = load(norm_q + at * norm_n, n, norm_n, d1, live, DIM, ALIGNED).to(ACC)
                norm_f1 = _phi(norm_x1, MAP, shift)
                den = tl.sum(norm_f1 * z1[None, :], 1)
                if D2:
                    norm_x2 = load(norm_q + at * norm_n, n, norm_n, d2, live, DIM, ALIGNED).to(ACC)
                    den += tl.sum(_phi(norm_x2, MAP, shift) * z2[None, :], 1)
            inv_den = _safe_inverse(den + eps)
            d_den = -num_do * inv_den * inv_den
            if TOGETHER:
                d_z1 += f1 * d_den[:, None]
                f1 = f1 * inv_den[:, None]
            else:
                tl.store(weight + at + n, inv_den, mask=live)
                tl.store(norm_weight + at + n, d_den, mask=live)
            df1 = df1 * inv_den[:, None]
            if D2:
                df2 = df2 * inv_den[:, None]
            if NORMALISER:
                # norm_q and q are loaded again: kept from their first use they spill (112 bytes at
                # heads of 128).
                norm_x1 = load(norm_q + at * norm_n, n, norm_n, d1, live, DIM, ALIGNED).to(ACC)
                d_norm1 = d_den[:, None] * z1[None, :] * _phi_grad(norm_x1, MAP)
                store(d_norm_q + at * dq_n, n, dq_n, d1, live, DIM, ALIGNED, d_norm1)
                x1 = load(q + at * q_n, n, q_n, d1, live, DIM, ALIGNED).to(ACC)
                x1 = _match_layout(x1, df1, EXACT)
                if D2:
                    d_norm2 = d_den[:, None] * z2[None, :] * _phi_grad(norm_x2, MAP)
                    store(d_norm_q + at * dq_n, n, dq_n, d2, live, DIM, ALIGNED, d_norm2)
            else:
                df1 += d_den[:, None] * z1[None, :]
                if D2:
                    df2 += d_den[:, None] * z2[None, :]
        elif NORMALISER:
            store(d_norm_q + at * dq_n, n, dq_n, d1, live, DIM, ALIGNED, x1 * 0)
            if D2:
                store(d_norm_q + at * dq_n, n, dq_n, d2, live, DIM, ALIGNED, x2 * 0)
        if TOGETHER:
            d_kv1 += _outer(f1, do_tile, DOT, ACC)
        store(dq + at * dq_n, n, dq_n, d1, live, DIM, ALIGNED, df1 * _phi_grad(x1, MAP))
        if D2:
            store(dq + at * dq_n, n, dq_n, d2, live, DIM, ALIGNED, df2 * _phi_grad(x2, MAP))
    if TOGETHER:
        row = (tl.program_id(0) * tl.num_programs(1) + bh).to(tl.int64)
        _store_kv(d_kv + row * DIM * VDIM, d1, tl.arange(0, BE), d_kv1, DIM, VDIM)
        tl.store(d_z + row * DIM + d1, tl.sum(d_z1, 0), mask=d1 < DIM)


# Launching
# ---------------------------------------------------------------------------------------------


def state(k, v, norm_k, mask, feature_map, shift):
    k, v, norm_k = unit_stride(k), unit_stride(v), unit_stride(norm_k)
    batch, tokens, heads, dim = k.shape
    value_dim, acc_dtype = v.shape[3], launch.acc_dtype(k.dtype)
    kv = k.new_empty(batch, heads, dim, value_dim, dtype=acc_dtype)
    z = k.new_empty(batch, heads, dim, dtype=acc_dtype)
    count = k.new_empty(batch, dtype=acc_dtype)
    mask = _as_bytes(mask)
    masked_count = None if mask is None else mask.sum(1, dtype=acc_dtype)
    partial = _accumulate(k, v, norm_k, mask, None, None, feature_map, shift)
    _sum_partials(partial, kv, z, count, masked_count, tokens, mean=True)
    return kv, z, count


def state_backward(d_kv, d_z, count, k, v, norm_k, mask, feature_map, shift):
    k, v, norm_k = unit_stride(k), unit_stride(v), unit_stride(norm_k)
    batch, tokens, heads, dim = k.shape
    dk = launch.empty_like(k)
    d_norm_k = k.new_empty(0) if norm_k is None else launch.empty_like(norm_k)
    if not k.numel():
        return dk, launch.empty_like(v), d_norm_k
    head_dim = max(dim, v.shape[3])
    config = launch.config("linear_state_backward", k, head_dim, tokens)
    if norm_k is not None or v.shape[3] != dim:  # both take more registers
        config = config | launch.config("linear_state_backward_own", k, head_dim, tokens)
    splits, chunk = launch.splits(tokens, batch * heads, config["BN"], k.device)
    # The kernel has all of a row of d_kv only where one tile holds it. Elsewhere dv = phi(k) d_kv
    # is read as queries read a state.
    if v.shape[3] > config["BE"]:
        mean = d_kv / count.clamp(min=1)[:, None, None, None]
        dv = read(k, None, mean, torch.zeros_like(d_z), feature_map, shift, 0.0, False)
        dv = dv if mask is None else dv.masked_fill_(~mask[:, :, None, None], 0)
    else:
        dv = launch.empty_like(v)
    mask = _as_bytes(mask)
    with launch.on_device(k.device):
        _state_backward_kernel[launch.grid(splits, batch * heads)](
            d_kv.contiguous(), d_z.contiguous(), count, k, v, norm_k, mask, dk, dv, d_norm_k,
            *strides(k), *strides(v), *strides(norm_k), 0 if mask is None else mask.stride(0),
            *strides(dk), *strides(dv), tokens, heads, chunk, shift,
            MAP=feature_map, NORMALISER=norm_k is not None, MASK=mask is not None,
            ALIGNED=aligned(k, v, norm_k, dk, dv),
            **_tile_shape(dim, v.shape[3], config, k), **precision(k, exact=True),
        )  # fmt: skip
    return dk, dv, d_norm_k


def read(q, norm_q, kv, z, feature_map, shift, eps, normalise):
    q, norm_q = unit_stride(q), unit_stride(norm_q)
    batch, tokens, heads, dim = q.shape
    out = q.new_empty(batch, tokens, heads, kv.shape[3])
    if not out.numel():
        return out
    config = _tile_shape(dim, kv.shape[3], launch.config("linear_read", q, dim, tokens), q)
    value_tiles = launch.cdiv(kv.shape[3], config["BE"])
    splits, chunk = launch.splits(tokens, batch * heads * value_tiles, config["BN"], q.device)
    with launch.on_device(q.device):
        _read_kernel[launch.grid(splits, batch * heads, value_tiles)](
            q, norm_q, kv.contiguous(), z.contiguous(), out,
            *strides(q), *strides(norm_q), *strides(out), tokens, heads, chunk, shift, eps,
            MAP=feature_map, NORMALISER=norm_q is not None, NORMALISE=normalise,
            ALIGNED=aligned(q, norm_q, out), **precision(q, exact=True), **config,
        )  # fmt: skip
    return out


def read_backward(do, q, norm_q, kv, z, feature_map, shift, eps, normalise):
    do, q, norm_q = unit_stride(do), unit_stride(q), unit_stride(norm_q)
    batch, tokens, heads, dim = q.shape
    dq = launch.empty_like(q)
    d_norm_q = q.new_empty(0) if norm_q is None else launch.empty_like(norm_q)
    d_kv, d_z = launch.empty_like(kv), launch.empty_like(z)
    if not q.numel():
        return dq, d_norm_q, d_kv.zero_(), d_z.zero_()
    config = launch.config("linear_read_backward", q, max(dim, kv.shape[3]), tokens)
    together = config.get("TOGETHER", False) and norm_q is None
    config = _tile_shape(dim, kv.shape[3], config, q) | {"TOGETHER": together}
    splits, chunk = launch.splits(tokens, batch * heads, config["BN"], q.device)
    weights, partial = (None, None), (None, None)
    if together:
        partial = _empty_partial(q, splits, kv.shape[3])
    elif normalise:
        weights = tuple(q.new_empty(batch, heads, tokens, dtype=kv.dtype) for _ in range(2))
    with launch.on_device(q.device):
        _read_backward_kernel[launch.grid(splits, batch * heads)](
            do, q, norm_q, kv.contiguous(), z.contiguous(), dq, d_norm_q, *weights, *partial,
            *strides(do), *strides(q), *strides(norm_q), *strides(dq),
            tokens, heads, chunk, shift, eps,
            MAP=feature_map, NORMALISER=norm_q is not None, NORMALISE=normalise,
            ALIGNED=aligned(do, q, norm_q, dq), **precision(q, exact=True), **config,
        )  # fmt: skip
    if not together:
        partial = _accumulate(q, do, norm_q, None, *weights, feature_map, shift)
    _sum_partials(partial, d_kv, d_z)
    return dq, d_norm_q, d_kv, d_z if normalise else d_z.zero_()


def _accumulate(
    k, v, norm_k, mask, weight, norm_weight, feature_map, shift
) -> tuple[Tensor, Tensor]:
    """Return partial sums of phi(k)^T v and phi(norm_k), (splits, batch x heads, ...)."""
    batch, tokens, heads, dim = k.shape
    config = _tile_shape(dim, v.shape[3], launch.config("linear_state", k, dim, tokens), k)
    value_tiles = launch.cdiv(v.shape[3], config["BE"])
    splits, chunk = launch.splits(tokens, batch * heads * value_tiles, config["BN"], k.device)
    partial = _empty_partial(k, splits, v.shape[3])
    with launch.on_device(k.device):
        _state_kernel[launch.grid(splits, batch * heads, value_tiles)](
            k, v, norm_k, mask, weight, norm_weight, *partial,
            *strides(k), *strides(v), *strides(norm_k), 0 if mask is None else mask.stride(0),
            tokens, heads, chunk, shift,
            MAP=feature_map, NORMALISER=norm_k is not None, MASK=mask is not None,
            WEIGHT=weight is not None, ALIGNED=aligned(k, v, norm_k), **precision(k), **config,
        )  # fmt: skip
    return partial


def _empty_partial(like: Tensor, splits: int, value_dim: int) -> tuple[Tensor, Tensor]:
    """Return empty tensors for partial sums of kv and z, (splits, batch x heads, ...)."""
    batch, _, heads, dim = like.shape
    dtype = launch.acc_dtype(like.dtype)
    kv = like.new_empty(splits, batch * heads, dim * value_dim, dtype=dtype)
    return kv, like.new_empty(splits, batch * heads, dim, dtype=dtype)


def _sum_partials(partial, kv, z, count=None, masked_count=None, tokens=0, mean=False) -> None:
    batch, heads, dim, value_dim = kv.shape
    config = launch.config("linear_sum", kv, dim)
    size = dim * value_dim
    blocks = launch.cdiv(size + dim, config["BLOCK"])
    with launch.on_device(kv.device):
        _sum_kernel[launch.grid(blocks, batch * heads)](
            *partial, kv, z, count, masked_count, heads, float(tokens), partial[0].shape[0],
            KV=size, Z=dim, MEAN=mean, MASK=masked_count is not None, ACC=TYPES[kv.dtype], **config,
        )  # fmt: skip


def _as_bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def _tile_shape(dim: int, value_dim: int, config: dict[str, int], like: Tensor) -> dict[str, int]:
    """Return the configuration with the channels' parts, its tile of values cut to the values.

    In half precision up to 128 channels are one part: products are not the bottleneck, and a second
    part of 16 is too few rows for the tensor cores (DiT's 72, backward: .41 ms in one part, 1.1 in
    two).
    """
    half = launch.CLASSES[like.dtype] == "half"
    first, second = (powers(dim), 0) if half and dim <= 128 else parts(dim)
    return {
        **config,
        "DIM": dim,
        "D1": first,
        "D2": second,
        "VDIM": value_dim,
        "BE": min(config["BE"], powers(value_dim)),
    }
