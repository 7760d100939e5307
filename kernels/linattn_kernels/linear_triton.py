"""Linear attention in Triton: four kernels and one that adds up partial sums.

- Keys are read once, by several programs a head; their partial sums are added in a fixed order: no
  atomics, the same bits every time. Queries are read once too, by programs that load the state
  once.
- The backward moves seven tensors in bf16 on Hopper where a head has up to 64 channels and no
  normaliser of its own: dS is added up by the programs that write dq (TOGETHER). Elsewhere queries
  and what their results are told are read again, as a state is added up: both want more registers
  than there are (H200, FLUX, 64K tokens: .81 ms in one pass, .74 in two; ptxas spills 350 bytes and
  more).
- The state is float32. Results read it rounded, without what all values have in common, which they
  get back unrounded; gradients read it as two numbers, its rounded self and the rest. Rounded as it
  is, it puts a floor of 2e-4 under the error at any length.
- In fp16 rows are divided by their largest entry first: features and sums over keys leave its range
  on both sides.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from linattn_kernels import launch
from linattn_kernels.launch import strides, unit
from linattn_kernels.tiles import TYPES, aligned, dot, load, parts, powers, precision, store

# What every kernel shares
# ---------------------------------------------------------------------------------------------


@triton.jit
def _exp(x):
    """In base 2, where the GPU has an instruction: `tl.exp` adds three more to keep what lies below
    1e-38.
    """
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
def _slope(x, MAP: tl.constexpr):
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
    """phi, and zero where there is no token or no channel: phi(0) is not."""
    return tl.where(live[:, None] & (columns < DIM)[None, :], _phi(x, MAP, shift), 0.0)


@triton.jit
def _halves(s, DOT: tl.constexpr, EXACT: tl.constexpr):
    """(scale of each row, rounded, rest): s = scale (rounded + rest) up to the square of the
    precision.
    """
    if EXACT:
        return 1.0, s, s
    if tl.float16 == DOT:
        scale = tl.maximum(tl.max(tl.abs(s), 1), 1e-30)
        s = s / scale[:, None]
    else:
        scale = 1.0
    rounded = s.to(DOT)
    return scale, rounded, (s - rounded.to(tl.float32)).to(DOT)


# In fp16 the rows of the other operand are divided by their largest entry as well, after they took
# the state's scale.


@triton.jit
def _times(a, rounded, scale, DOT: tl.constexpr, ACC: tl.constexpr):
    """a @ s, s as `_halves` gives it, without the rest."""
    if tl.float16 == DOT:
        a = a * scale[None, :]
        size = tl.maximum(tl.max(tl.abs(a), 1), 1e-30)[:, None]
        return dot(a / size, rounded, DOT, ACC) * size
    else:
        return dot(a, rounded, DOT, ACC)


@triton.jit
def _times_turned(
    a, rounded, rest, scale, BOTH: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr
):
    """a @ s^T, of BOTH halves or without the rest."""
    if tl.float16 == DOT:
        a = a.to(ACC)
        size = tl.maximum(tl.max(tl.abs(a), 1), 1e-30)[:, None]
        a = a / size
    found = dot(a, tl.trans(rounded), DOT, ACC)
    if BOTH:
        found += dot(a, tl.trans(rest), DOT, ACC)
    if tl.float16 == DOT:
        found = found * size * scale[None, :]
    return found


@triton.jit
def _outer(f, told, DOT: tl.constexpr, ACC: tl.constexpr):
    """f^T told. In fp16 a channel is divided by its largest entry: phi(q) over a normaliser of 1e-6
    is beyond it.
    """
    if tl.float16 == DOT:
        scale = tl.maximum(tl.max(tl.abs(f), 0), 1e-30)
        return dot(tl.trans(f / scale[None, :]), told, DOT, ACC) * scale[:, None]
    else:
        return dot(tl.trans(f), told, DOT, ACC)


@triton.jit
def _square(values, d, e, DIM: tl.constexpr, EXIT: tl.constexpr):
    """Channels d x e of a state."""
    return tl.load(
        values + d[:, None] * EXIT + e[None, :],
        mask=(d < DIM)[:, None] & (e < EXIT)[None, :],
        other=0.0,
    )


@triton.jit
def _put_square(values, d, e, found, DIM: tl.constexpr, EXIT: tl.constexpr):
    tl.store(
        values + d[:, None] * EXIT + e[None, :],
        found,
        mask=(d < DIM)[:, None] & (e < EXIT)[None, :],
    )


@triton.jit
def _common(s1, s2, z1, z2, D2: tl.constexpr):
    """What all values have in common: the c for which z c^T is nearest to the state."""
    most = tl.max(tl.abs(z1), 0)
    if D2:
        most = tl.maximum(most, tl.max(tl.abs(z2), 0))
    most = tl.maximum(most, 1e-30)  # squares of what is divided by it neither overflow nor vanish
    size, found = tl.sum((z1 / most) * (z1 / most), 0), tl.sum(s1 * (z1 / most)[:, None], 0)
    if D2:
        size += tl.sum((z2 / most) * (z2 / most), 0)
        found += tl.sum(s2 * (z2 / most)[:, None], 0)
    return tl.where(size > 0, found / tl.where(size > 0, size, 1.0) / most, 0.0)  # (value_dim,)


@triton.jit
def _apart(
    values, z1, z2, d1, d2, e,
    DIM: tl.constexpr, EXIT: tl.constexpr, D2: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """(what values have in common, scale and rounded rest of both parts of a state)."""
    s1 = _square(values, d1, e, DIM, EXIT)
    s2 = s1
    if D2:
        s2 = _square(values, d2, e, DIM, EXIT)
    common = _common(s1, s2, z1, z2, D2)
    if not EXACT:
        s1 -= z1[:, None] * common[None, :]
        if D2:
            s2 -= z2[:, None] * common[None, :]
    scale1, s1, _ = _halves(s1, DOT, EXACT)
    if D2:
        scale2, s2, _ = _halves(s2, DOT, EXACT)
        return common, scale1, s1, scale2, s2
    else:
        return common, scale1, s1, scale1, s1


@triton.jit
def _columns(z, DOT: tl.constexpr):
    """A vector as two columns of a product's side of 16, rounded and the rest: (rows, 16)."""
    i = tl.arange(0, 16)[None, :]
    rounded = z.to(DOT)
    rest = (z - rounded.to(z.dtype)).to(DOT)
    return tl.where(i == 0, rounded[:, None], tl.where(i == 1, rest[:, None], rest[:, None] * 0))


@triton.jit
def _along(f1, f2, z1, z2, zz1, zz2, D2: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr):
    """Compute the denominator phi(q) . z of each row.

    In bf16 this is tl.dot, like the numerator: its layout then matches the output's, and both carry
    the same rounding error of phi(q), which cancels in the ratio. fp16 would overflow on the keys
    of many feature maps, and float32 has nothing to gain.
    """
    if tl.bfloat16 == DOT:
        found = tl.sum(dot(f1, zz1, DOT, ACC), 1)
        if D2:
            found += tl.sum(dot(f2, zz2, DOT, ACC), 1)
    else:
        found = tl.sum(f1 * z1[None, :], 1)
        if D2:
            found += tl.sum(f2 * z2[None, :], 1)
    return found


@triton.jit
def _there(x, t, EXACT: tl.constexpr):
    """Return x + 0 t, which forces x into t's register layout.

    phi(x) is then computed once instead of once per layout (Triton 3.6).
    """
    if EXACT:
        return x
    else:
        return x + t * 0.0


@triton.jit
def _kept(x, live, MASK: tl.constexpr):
    """Zero for the keys that a mask leaves out."""
    return tl.where(live[:, None], x, 0.0) if MASK else x


@triton.jit
def _inverse(bottom):
    return tl.where(bottom == 0, 0.0, 1.0 / tl.where(bottom == 0, 1.0, bottom))


# What is kept of the keys
# ---------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["tokens", "chunk"])
def _state_kernel(
    k, v, below, mask, weight, below_weight, values, keys,
    k_b, k_n, k_h, v_b, v_n, v_h, below_b, below_n, below_h, mask_b,
    tokens, heads, chunk, shift,
    MAP: tl.constexpr, BELOW: tl.constexpr, MASK: tl.constexpr, WEIGHT: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EXIT: tl.constexpr, BE: tl.constexpr,
    BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Partial sums over one split's tokens: values += phi(k)^T v, keys += phi(k). Weights are a
    number a token.
    """
    split, place, column = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, head = (place // heads).to(tl.int64), (place % heads).to(tl.int64)
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    if BELOW:
        below += batch * below_b + head * below_h
    if WEIGHT:
        weight += place.to(tl.int64) * tokens
        below_weight += place.to(tl.int64) * tokens
    d1, e = tl.arange(0, D1), column * BE + tl.arange(0, BE)
    # z is a sum of tiles: across threads it is added once
    s1, z1 = tl.zeros((D1, BE), ACC), tl.zeros((BN, D1), ACC)
    if D2:
        d2 = D1 + tl.arange(0, D2)
        s2, z2 = tl.zeros((D2, BE), ACC), tl.zeros((BN, D2), ACC)
    end = tl.minimum(tokens, (split + 1) * chunk)
    n = tl.arange(0, BN)
    for start in range(split * chunk, end, BN):
        live, first = n < end - start, tl.cast(start, tl.int64)
        if MASK:
            live = live & (tl.load(mask + batch * mask_b + first + n, mask=live, other=0) != 0)
        value = load(v + first * v_n, n, v_n, e, live, EXIT, ALIGNED)
        f1 = _features(
            load(k + first * k_n, n, k_n, d1, live, DIM, ALIGNED).to(ACC), live, d1, DIM, MAP, shift
        )
        g1 = f1
        if BELOW:
            g1 = load(below + first * below_n, n, below_n, d1, live, DIM, ALIGNED).to(ACC)
            g1 = _features(g1, live, d1, DIM, MAP, shift)
        if WEIGHT:
            w = tl.load(weight + first + n, mask=live, other=0.0)
            u = tl.load(below_weight + first + n, mask=live, other=0.0)
            f1, g1 = f1 * w[:, None], g1 * u[:, None]
        s1 += _outer(f1, value, DOT, ACC)
        z1 += g1
        if D2:
            f2 = _features(
                load(k + first * k_n, n, k_n, d2, live, DIM, ALIGNED).to(ACC),
                live,
                d2,
                DIM,
                MAP,
                shift,
            )
            g2 = f2
            if BELOW:
                g2 = load(below + first * below_n, n, below_n, d2, live, DIM, ALIGNED).to(ACC)
                g2 = _features(g2, live, d2, DIM, MAP, shift)
            if WEIGHT:
                f2, g2 = f2 * w[:, None], g2 * u[:, None]
            s2 += _outer(f2, value, DOT, ACC)
            z2 += g2
    values += (split * tl.num_programs(1) + place).to(tl.int64) * DIM * EXIT
    keys += (split * tl.num_programs(1) + place).to(tl.int64) * DIM
    _put_square(values, d1, e, s1, DIM, EXIT)
    if column == 0:
        tl.store(keys + d1, tl.sum(z1, 0), mask=d1 < DIM)
    if D2:
        _put_square(values, d2, e, s2, DIM, EXIT)
        if column == 0:
            tl.store(keys + d2, tl.sum(z2, 0), mask=d2 < DIM)


@triton.jit(do_not_specialize=["splits"])
def _sum_kernel(
    values_in, keys_in, values, keys, count, counted, heads, known, splits,
    SIZE: tl.constexpr, KEYS: tl.constexpr, MEAN: tl.constexpr, MASK: tl.constexpr, BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Partial sums added in their order and divided by the number of keys that count."""
    place, many = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total, below = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    other = at - SIZE
    is_key = (other >= 0) & (other < KEYS)
    for split in range(0, splits):
        row = split * many + place
        total += tl.load(values_in + row * SIZE + at, mask=at < SIZE, other=0.0)
        below += tl.load(keys_in + row * KEYS + other, mask=is_key, other=0.0)
    if MEAN:
        seen = known
        if MASK:
            seen = tl.load(counted + place // heads)
        share = 1.0 / tl.maximum(seen, 1.0)
        total, below = total * share, below * share
        if (tl.program_id(0) == 0) & (place % heads == 0):
            tl.store(count + place // heads, seen)
    tl.store(values + place * SIZE + at, total, mask=at < SIZE)
    tl.store(keys + place * KEYS + other, below, mask=is_key)


@triton.jit(do_not_specialize=["tokens", "chunk"])
def _state_backward_kernel(
    d_values, d_keys, count, k, v, below, mask, dk, dv, d_below,
    k_b, k_n, k_h, v_b, v_n, v_h, below_b, below_n, below_h, mask_b, dk_b, dk_n, dk_h, dv_b, dv_n, dv_h,
    tokens, heads, chunk, shift,
    MAP: tl.constexpr, BELOW: tl.constexpr, MASK: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EXIT: tl.constexpr, BE: tl.constexpr,
    BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """dk = v dS^T phi'(k) + dz phi'(k), dv = phi(k) dS, both over the number of keys; dv where one
    tile holds a row.
    """
    place = tl.program_id(1)
    batch, head = (place // heads).to(tl.int64), (place % heads).to(tl.int64)
    share = 1.0 / tl.maximum(tl.load(count + batch), 1.0)
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    dk += batch * dk_b + head * dk_h
    dv += batch * dv_b + head * dv_h
    if BELOW:
        below += batch * below_b + head * below_h
        d_below += batch * dk_b + head * dk_h
    d_values += place.to(tl.int64) * DIM * EXIT
    d1 = tl.arange(0, D1)
    z1 = tl.load(d_keys + place * DIM + d1, mask=d1 < DIM, other=0.0) * share
    if D2:
        d2 = D1 + tl.arange(0, D2)
        z2 = tl.load(d_keys + place * DIM + d2, mask=d2 < DIM, other=0.0) * share
    WHOLE: tl.constexpr = EXIT <= BE  # then dS is loaded and rounded once for all tiles
    if WHOLE:
        e = tl.arange(0, BE)
        scale1, rounded1, rest1 = _halves(_square(d_values, d1, e, DIM, EXIT) * share, DOT, EXACT)
        if D2:
            scale2, rounded2, rest2 = _halves(
                _square(d_values, d2, e, DIM, EXIT) * share, DOT, EXACT
            )
    n = tl.arange(0, BN)
    end = tl.minimum(tokens, (tl.program_id(0) + 1) * chunk)
    # disable_licm: hoisting loop invariants would raise register pressure and spill.
    for start in tl.range(tl.program_id(0) * chunk, end, BN, disable_licm=True):
        inside, at = n < end - start, tl.cast(start, tl.int64)
        live = inside
        if MASK:
            live = live & (tl.load(mask + batch * mask_b + at + n, mask=live, other=0) != 0)
        x1, a1 = load(k + at * k_n, n, k_n, d1, live, DIM, ALIGNED).to(ACC), tl.zeros((BN, D1), ACC)
        if D2:
            x2, a2 = (
                load(k + at * k_n, n, k_n, d2, live, DIM, ALIGNED).to(ACC),
                tl.zeros((BN, D2), ACC),
            )
        for first in range(0, EXIT, BE):
            e = first + tl.arange(0, BE)
            value = load(v + at * v_n, n, v_n, e, live, EXIT, ALIGNED)
            if not WHOLE:
                scale1, rounded1, rest1 = _halves(
                    _square(d_values, d1, e, DIM, EXIT) * share, DOT, EXACT
                )
                if D2:
                    scale2, rounded2, rest2 = _halves(
                        _square(d_values, d2, e, DIM, EXIT) * share, DOT, EXACT
                    )
            a1 += _times_turned(value, rounded1, rest1, scale1, not EXACT, DOT, ACC)
            if D2:
                a2 += _times_turned(value, rounded2, rest2, scale2, not EXACT, DOT, ACC)
        x1 = _there(x1, a1, EXACT)
        f1 = _kept(_phi(x1, MAP, shift), live, MASK)
        if not BELOW:
            a1 += z1[None, :]
        store(
            dk + at * dk_n,
            n,
            dk_n,
            d1,
            inside,
            DIM,
            ALIGNED,
            _kept(a1 * _slope(x1, MAP), live, MASK),
        )
        if BELOW:
            y1 = load(below + at * below_n, n, below_n, d1, live, DIM, ALIGNED).to(ACC)
            b1 = _kept(z1[None, :] * _slope(y1, MAP), live, MASK)
            store(d_below + at * dk_n, n, dk_n, d1, inside, DIM, ALIGNED, b1)
        if D2:
            x2 = _there(x2, a2, EXACT)
            f2 = _kept(_phi(x2, MAP, shift), live, MASK)
            if not BELOW:
                a2 += z2[None, :]
            store(
                dk + at * dk_n,
                n,
                dk_n,
                d2,
                inside,
                DIM,
                ALIGNED,
                _kept(a2 * _slope(x2, MAP), live, MASK),
            )
            if BELOW:
                y2 = load(below + at * below_n, n, below_n, d2, live, DIM, ALIGNED).to(ACC)
                b2 = _kept(z2[None, :] * _slope(y2, MAP), live, MASK)
                store(d_below + at * dk_n, n, dk_n, d2, inside, DIM, ALIGNED, b2)
        if WHOLE:
            slope_v = _times(f1, rounded1, scale1, DOT, ACC)
            if D2:
                slope_v += _times(f2, rounded2, scale2, DOT, ACC)
            store(dv + at * dv_n, n, dv_n, tl.arange(0, BE), inside, EXIT, ALIGNED, slope_v)


# What queries read
# ---------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["tokens", "chunk"])
def _read_kernel(
    q, below, values, keys, out,
    q_b, q_n, q_h, below_b, below_n, below_h, out_b, out_n, out_h,
    tokens, heads, chunk, shift, eps,
    MAP: tl.constexpr, BELOW: tl.constexpr, NORMALISE: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EXIT: tl.constexpr, BE: tl.constexpr,
    BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out = phi(q) S / (phi(q) z + eps) for one split of the queries: the state is loaded and
    rounded once.

    S is rounded without what all values have in common, which the result gets back unrounded: S = z
    c^T + the rest.
    """
    place, column = tl.program_id(1), tl.program_id(2)
    batch, head = (place // heads).to(tl.int64), (place % heads).to(tl.int64)
    q += batch * q_b + head * q_h
    if BELOW:
        below += batch * below_b + head * below_h
    out += batch * out_b + head * out_h
    values += place.to(tl.int64) * DIM * EXIT
    keys += place.to(tl.int64) * DIM
    d1, d2, e = tl.arange(0, D1), D1 + tl.arange(0, D2 if D2 else 1), column * BE + tl.arange(0, BE)
    z1 = tl.load(keys + d1, mask=d1 < DIM, other=0.0)
    z2 = z1
    if D2:
        z2 = tl.load(keys + d2, mask=d2 < DIM, other=0.0)
    common, scale1, s1, scale2, s2 = _apart(values, z1, z2, d1, d2, e, DIM, EXIT, D2, DOT, EXACT)
    zz1, zz2 = z1, z2
    if tl.bfloat16 == DOT:
        zz1, zz2 = _columns(z1, DOT), _columns(z2, DOT)
    n = tl.arange(0, BN)
    end = tl.minimum(tokens, (tl.program_id(0) + 1) * chunk)
    for start in range(tl.program_id(0) * chunk, end, BN):
        live, first = n < end - start, tl.cast(start, tl.int64)
        f1 = _phi(load(q + first * q_n, n, q_n, d1, live, DIM, ALIGNED).to(ACC), MAP, shift)
        f2 = f1
        if D2:
            f2 = _phi(load(q + first * q_n, n, q_n, d2, live, DIM, ALIGNED).to(ACC), MAP, shift)
        found = _times(f1, s1, scale1, DOT, ACC)
        if D2:
            found += _times(f2, s2, scale2, DOT, ACC)
        bottom = _along(f1, f2, z1, z2, zz1, zz2, D2, DOT, ACC)
        if not EXACT:
            found += bottom[:, None] * common[None, :]
        if NORMALISE:
            if BELOW:
                g1 = _phi(
                    load(below + first * below_n, n, below_n, d1, live, DIM, ALIGNED).to(ACC),
                    MAP,
                    shift,
                )
                g2 = g1
                if D2:
                    g2 = _phi(
                        load(below + first * below_n, n, below_n, d2, live, DIM, ALIGNED).to(ACC),
                        MAP,
                        shift,
                    )
                bottom = _along(g1, g2, z1, z2, zz1, zz2, D2, DOT, ACC)
            found = found * _inverse(bottom + eps)[:, None]
        store(out + first * out_n, n, out_n, e, live, EXIT, ALIGNED, found)


@triton.jit(do_not_specialize=["tokens", "chunk"])
def _read_backward_kernel(
    grad, q, below, values, keys, dq, d_below, weight, below_weight, d_values, d_keys,
    grad_b, grad_n, grad_h, q_b, q_n, q_h, below_b, below_n, below_h, dq_b, dq_n, dq_h,
    tokens, heads, chunk, shift, eps,
    MAP: tl.constexpr, BELOW: tl.constexpr, NORMALISE: tl.constexpr, TOGETHER: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EXIT: tl.constexpr, BE: tl.constexpr,
    BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, EXACT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Compute dq. If TOGETHER, also accumulate per-split partial sums of dS and dz.

    Otherwise store 1 / den and the gradient of den per query, from which `_state_kernel`
    accumulates dS and dz. The output is not read: with t = grad S^T, the numerator's part of the
    denominator's gradient is phi(q) t.
    """
    place = tl.program_id(1)
    batch, head = (place // heads).to(tl.int64), (place % heads).to(tl.int64)
    grad += batch * grad_b + head * grad_h
    q += batch * q_b + head * q_h
    dq += batch * dq_b + head * dq_h
    if BELOW:
        below += batch * below_b + head * below_h
        d_below += batch * dq_b + head * dq_h
    if NORMALISE and not TOGETHER:
        weight += place.to(tl.int64) * tokens
        below_weight += place.to(tl.int64) * tokens
    values += place.to(tl.int64) * DIM * EXIT
    keys += place.to(tl.int64) * DIM
    if TOGETHER:
        tl.static_assert(D2 == 0 and EXIT <= BE and not BELOW, "one tile of dS is all of it")
        s1, weighed = tl.zeros((D1, BE), ACC), tl.zeros((BN, D1), ACC)
    d1, d2 = tl.arange(0, D1), D1 + tl.arange(0, D2 if D2 else 1)
    z1 = tl.load(keys + d1, mask=d1 < DIM, other=0.0)
    z2 = z1
    if D2:
        z2 = tl.load(keys + d2, mask=d2 < DIM, other=0.0)
    WHOLE: tl.constexpr = EXIT <= BE  # then S is loaded and rounded once for all tiles
    if WHOLE:
        scale1, rounded1, rest1 = _halves(
            _square(values, d1, tl.arange(0, BE), DIM, EXIT), DOT, EXACT
        )
        if D2:
            scale2, rounded2, rest2 = _halves(
                _square(values, d2, tl.arange(0, BE), DIM, EXIT), DOT, EXACT
            )
    n = tl.arange(0, BN)
    end = tl.minimum(tokens, (tl.program_id(0) + 1) * chunk)
    # disable_licm: hoisting loop invariants would raise register pressure and spill.
    for start in tl.range(tl.program_id(0) * chunk, end, BN, disable_licm=True):
        live, at = n < end - start, tl.cast(start, tl.int64)
        x1 = load(q + at * q_n, n, q_n, d1, live, DIM, ALIGNED).to(ACC)
        if D2:
            x2 = load(q + at * q_n, n, q_n, d2, live, DIM, ALIGNED).to(ACC)
            t2 = tl.zeros((BN, D2), ACC)
        t1 = tl.zeros((BN, D1), ACC)
        if TOGETHER:
            told = load(grad + at * grad_n, n, grad_n, tl.arange(0, BE), live, EXIT, ALIGNED)
            t1 += _times_turned(told, rounded1, rest1, scale1, not EXACT, DOT, ACC)
        else:
            for first in range(0, EXIT, BE):
                e = first + tl.arange(0, BE)
                told = load(grad + at * grad_n, n, grad_n, e, live, EXIT, ALIGNED)
                if not WHOLE:
                    scale1, rounded1, rest1 = _halves(_square(values, d1, e, DIM, EXIT), DOT, EXACT)
                    if D2:
                        scale2, rounded2, rest2 = _halves(
                            _square(values, d2, e, DIM, EXIT), DOT, EXACT
                        )
                t1 += _times_turned(told, rounded1, rest1, scale1, not EXACT, DOT, ACC)
                if D2:
                    t2 += _times_turned(told, rounded2, rest2, scale2, not EXACT, DOT, ACC)
        x1 = _there(x1, t1, EXACT)
        f1 = _phi(x1, MAP, shift)
        if D2:
            x2 = _there(x2, t2, EXACT)
            f2 = _phi(x2, MAP, shift)
        if NORMALISE:
            bottom, above = tl.sum(f1 * z1[None, :], 1), tl.sum(f1 * t1, 1)
            if D2:
                bottom += tl.sum(f2 * z2[None, :], 1)
                above += tl.sum(f2 * t2, 1)
            if BELOW:
                y1 = load(below + at * below_n, n, below_n, d1, live, DIM, ALIGNED).to(ACC)
                g1 = _phi(y1, MAP, shift)
                bottom = tl.sum(g1 * z1[None, :], 1)
                if D2:
                    y2 = load(below + at * below_n, n, below_n, d2, live, DIM, ALIGNED).to(ACC)
                    bottom += tl.sum(_phi(y2, MAP, shift) * z2[None, :], 1)
            inverse = _inverse(bottom + eps)
            d_bottom = -above * inverse * inverse
            if TOGETHER:
                weighed += f1 * d_bottom[:, None]
                f1 = f1 * inverse[:, None]
            else:
                tl.store(weight + at + n, inverse, mask=live)
                tl.store(below_weight + at + n, d_bottom, mask=live)
            t1 = t1 * inverse[:, None]
            if D2:
                t2 = t2 * inverse[:, None]
            if BELOW:
                # Both are read again: kept from their first use, they are spilled (112 bytes at
                # heads of 128).
                y1 = load(below + at * below_n, n, below_n, d1, live, DIM, ALIGNED).to(ACC)
                down1 = d_bottom[:, None] * z1[None, :] * _slope(y1, MAP)
                store(d_below + at * dq_n, n, dq_n, d1, live, DIM, ALIGNED, down1)
                x1 = _there(load(q + at * q_n, n, q_n, d1, live, DIM, ALIGNED).to(ACC), t1, EXACT)
                if D2:
                    down2 = d_bottom[:, None] * z2[None, :] * _slope(y2, MAP)
                    store(d_below + at * dq_n, n, dq_n, d2, live, DIM, ALIGNED, down2)
            else:
                t1 += d_bottom[:, None] * z1[None, :]
                if D2:
                    t2 += d_bottom[:, None] * z2[None, :]
        elif BELOW:
            store(d_below + at * dq_n, n, dq_n, d1, live, DIM, ALIGNED, x1 * 0)
            if D2:
                store(d_below + at * dq_n, n, dq_n, d2, live, DIM, ALIGNED, x2 * 0)
        if TOGETHER:
            s1 += _outer(f1, told, DOT, ACC)
        store(dq + at * dq_n, n, dq_n, d1, live, DIM, ALIGNED, t1 * _slope(x1, MAP))
        if D2:
            store(dq + at * dq_n, n, dq_n, d2, live, DIM, ALIGNED, t2 * _slope(x2, MAP))
    if TOGETHER:
        part = (tl.program_id(0) * tl.num_programs(1) + place).to(tl.int64)
        _put_square(d_values + part * DIM * EXIT, d1, tl.arange(0, BE), s1, DIM, EXIT)
        tl.store(d_keys + part * DIM + d1, tl.sum(weighed, 0), mask=d1 < DIM)


# Launching
# ---------------------------------------------------------------------------------------------


def state(k, v, below, mask, feature_map, shift):
    k, v, below = unit(k), unit(v), unit(below)
    batch, tokens, heads, dim = k.shape
    exit_dim, wide = v.shape[3], launch.wide(k.dtype)
    values, keys = (
        k.new_empty(batch, heads, dim, exit_dim, dtype=wide),
        k.new_empty(batch, heads, dim, dtype=wide),
    )
    count = k.new_empty(batch, dtype=wide)
    mask = _bytes(mask)
    counted = None if mask is None else mask.sum(1, dtype=wide)
    partial = _accumulate(k, v, below, mask, None, None, feature_map, shift)
    _add(partial, values, keys, count, counted, tokens, mean=True)
    return values, keys, count


def state_backward(d_values, d_keys, count, k, v, below, mask, feature_map, shift):
    k, v, below = unit(k), unit(v), unit(below)
    batch, tokens, heads, dim = k.shape
    dk, d_below = launch.like(k), k.new_empty(0) if below is None else launch.like(below)
    if not k.numel():
        return dk, launch.like(v), d_below
    how = launch.config("linear_state_backward", k, max(dim, v.shape[3]), tokens)
    if below is not None or v.shape[3] != dim:  # both take registers of their own
        how = how | launch.config("linear_state_backward_own", k, max(dim, v.shape[3]), tokens)
    splits, chunk = launch.splits(tokens, batch * heads, how["BN"], k.device)
    # a row of dS is not at hand in one piece: what keys give to dv they read of it
    if v.shape[3] > how["BE"]:
        mean = d_values / count.clamp(min=1)[:, None, None, None]
        dv = read(k, None, mean, torch.zeros_like(d_keys), feature_map, shift, 0.0, False)
        dv = dv if mask is None else dv.masked_fill_(~mask[:, :, None, None], 0)
    else:
        dv = launch.like(v)
    mask = _bytes(mask)
    with launch.on(k.device):
        _state_backward_kernel[launch.grid(splits, batch * heads)](
            d_values.contiguous(), d_keys.contiguous(), count, k, v, below, mask, dk, dv, d_below,
            *strides(k), *strides(v), *strides(below), 0 if mask is None else mask.stride(0),
            *strides(dk), *strides(dv), tokens, heads, chunk, shift,
            MAP=feature_map, BELOW=below is not None, MASK=mask is not None, ALIGNED=aligned(k, v, below, dk, dv),
            **_shape(dim, v.shape[3], how, k), **precision(k, exact=True),
        )  # fmt: skip
    return dk, dv, d_below


def read(q, below, values, keys, feature_map, shift, eps, normalise):
    q, below = unit(q), unit(below)
    batch, tokens, heads, dim = q.shape
    out = q.new_empty(batch, tokens, heads, values.shape[3])
    if not out.numel():
        return out
    how = _shape(dim, values.shape[3], launch.config("linear_read", q, dim, tokens), q)
    columns = launch.cdiv(values.shape[3], how["BE"])
    splits, chunk = launch.splits(tokens, batch * heads * columns, how["BN"], q.device)
    with launch.on(q.device):
        _read_kernel[launch.grid(splits, batch * heads, columns)](
            q, below, values.contiguous(), keys.contiguous(), out,
            *strides(q), *strides(below), *strides(out), tokens, heads, chunk, shift, eps,
            MAP=feature_map, BELOW=below is not None, NORMALISE=normalise, ALIGNED=aligned(q, below, out),
            **precision(q, exact=True), **how,
        )  # fmt: skip
    return out


def read_backward(grad, q, below, values, keys, feature_map, shift, eps, normalise):
    grad, q, below = unit(grad), unit(q), unit(below)
    batch, tokens, heads, dim = q.shape
    dq, d_below = launch.like(q), q.new_empty(0) if below is None else launch.like(below)
    d_values, d_keys = launch.like(values), launch.like(keys)
    if not q.numel():
        return dq, d_below, d_values.zero_(), d_keys.zero_()
    how = launch.config("linear_read_backward", q, max(dim, values.shape[3]), tokens)
    together = how.get("TOGETHER", False) and below is None
    how = _shape(dim, values.shape[3], how, q) | {"TOGETHER": together}
    splits, chunk = launch.splits(tokens, batch * heads, how["BN"], q.device)
    weights, partial = (None, None), (None, None)
    if together:
        partial = _partial(q, splits, values.shape[3])
    elif normalise:
        weights = tuple(q.new_empty(batch, heads, tokens, dtype=values.dtype) for _ in range(2))
    with launch.on(q.device):
        _read_backward_kernel[launch.grid(splits, batch * heads)](
            grad, q, below, values.contiguous(), keys.contiguous(), dq, d_below, *weights, *partial,
            *strides(grad), *strides(q), *strides(below), *strides(dq), tokens, heads, chunk, shift, eps,
            MAP=feature_map, BELOW=below is not None, NORMALISE=normalise,
            ALIGNED=aligned(grad, q, below, dq), **precision(q, exact=True), **how,
        )  # fmt: skip
    if not together:
        partial = _accumulate(q, grad, below, None, *weights, feature_map, shift)
    _add(partial, d_values, d_keys)
    return dq, d_below, d_values, d_keys if normalise else d_keys.zero_()


def _accumulate(
    k, v, below, mask, weight, below_weight, feature_map, shift
) -> tuple[Tensor, Tensor]:
    """Partial sums of phi(k)^T v and phi(k), (splits, batch x heads, ...)."""
    batch, tokens, heads, dim = k.shape
    how = _shape(dim, v.shape[3], launch.config("linear_state", k, dim, tokens), k)
    columns = launch.cdiv(v.shape[3], how["BE"])
    splits, chunk = launch.splits(tokens, batch * heads * columns, how["BN"], k.device)
    partial = _partial(k, splits, v.shape[3])
    with launch.on(k.device):
        _state_kernel[launch.grid(splits, batch * heads, columns)](
            k, v, below, mask, weight, below_weight, *partial,
            *strides(k), *strides(v), *strides(below), 0 if mask is None else mask.stride(0),
            tokens, heads, chunk, shift,
            MAP=feature_map, BELOW=below is not None, MASK=mask is not None, WEIGHT=weight is not None,
            ALIGNED=aligned(k, v, below), **precision(k), **how,
        )  # fmt: skip
    return partial


def _partial(like: Tensor, splits: int, exit_dim: int) -> tuple[Tensor, Tensor]:
    """Room for partial sums of values and keys, (splits, batch x heads, ...)."""
    batch, _, heads, dim = like.shape
    rows, wide = (splits, batch * heads), launch.wide(like.dtype)
    return like.new_empty(*rows, dim * exit_dim, dtype=wide), like.new_empty(*rows, dim, dtype=wide)


def _add(partial, values, keys, count=None, counted=None, tokens=0, mean=False) -> None:
    batch, heads, dim, exit_dim = values.shape
    how = launch.config("linear_sum", values, dim)
    with launch.on(values.device):
        _sum_kernel[launch.grid(launch.cdiv(dim * exit_dim + dim, how["BLOCK"]), batch * heads)](
            *partial, values, keys, count, counted, heads, float(tokens), partial[0].shape[0],
            SIZE=dim * exit_dim, KEYS=dim, MEAN=mean, MASK=counted is not None, ACC=TYPES[values.dtype], **how,
        )  # fmt: skip


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def _shape(dim: int, exit_dim: int, how: dict[str, int], like: Tensor) -> dict[str, int]:
    """The configuration, with the channels' parts and no wider a tile of values than there are
    values.

    In half precision up to 128 channels are one part: products are not what is waited for, and a
    second part of 16 is too few rows for the tensor cores (DiT's 72, backward: .41 ms in one part,
    1.1 in two).
    """
    half = launch.CLASSES[like.dtype] == "half"
    first, second = (powers(dim), 0) if half and dim <= 128 else parts(dim)
    return {
        **how,
        "DIM": dim,
        "D1": first,
        "D2": second,
        "EXIT": exit_dim,
        "BE": min(how["BE"], powers(exit_dim)),
    }
