"""Plain softmax attention with one short side, in Triton: what mediators and the text of a window
are made of.

- `rows` read `columns`. Where the rows are few, the columns are split among programs and merged by
  their log-sum-exp; where the columns are few, their gradients are sums over splits of the rows.
  Sums are taken in a fixed order.
- Scores live in base 2 inside a kernel; log-sum-exps outside are natural.
- A bias is read by its strides, 0 where it is broadcast.
- `shift` is what all c have in common, taken off before they were rounded and added to the result:
  weights sum to 1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from linattn_kernels import launch
from linattn_kernels.launch import strides, unit
from linattn_kernels.tiles import (
    add_parts,
    aligned,
    load,
    load_parts,
    power,
    powers,
    precision,
    product,
    shape_of,
    store,
    store_parts,
    zero_parts,
)

LOG2E = 1.4426950408889634
MOST_SPREAD = 128  # columns that one tile holds


@triton.jit
def online(s, scale, top, total):
    """One step of the running softmax: (weights, the old sums' factor, new maximum, new total), all
    in base 2.

    The scale is above 0, so that the maximum is taken of unscaled scores: what is left of it is one
    fused multiplication with the subtraction.
    """
    high = tl.maximum(top, tl.max(s, 1) * scale)
    safe = tl.where(high == float("-inf"), 0.0, high)  # a row that has seen nothing yet
    p = tl.exp2(s * scale - safe[:, None])
    old = tl.exp2(top - safe)
    return p, old, high, total * old + tl.sum(p, 1)


@triton.jit
def attend_step(
    s, scale, top, total, acc1, acc2, v, n, v_n, live,
    EXIT: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The running softmax over one more tile of scores and its values."""
    p, old, top, total = online(s, scale, top, total)
    v1, v2 = load_parts(v, n, v_n, live, EXIT, E1, E2, ALIGNED)
    acc1 = acc1 * old[:, None]
    if E2:
        acc2 = acc2 * old[:, None]
    acc1, acc2 = add_parts(acc1, acc2, p, v1, v2, E2, DOT, ACC)
    return top, total, acc1, acc2


@triton.jit
def slopes_of(s, told, less):
    """(weights, gradient of the scores) from scores less their log-sum-exp, in base 2."""
    p = tl.exp2(s)
    return p, p * (told - less)


@triton.jit
def row_sums(lse, delta, at, live, ACC: tl.constexpr):
    """Log-sum-exp in base 2, and what is taken off the gradient of a row's scores."""
    sums = tl.load(lse + at, mask=live, other=0.0).to(ACC) * 1.4426950408889634
    return sums, tl.load(delta + at, mask=live, other=0.0).to(ACC)


@triton.jit
def _biased(s, scale, bias, place_r, place_c, bias_r, bias_c, live, BIAS: tl.constexpr):
    """(scores, what they are still to be multiplied by) in base 2; places broadcast to the scores."""
    if BIAS:
        at = place_r.to(tl.int64) * bias_r + place_c.to(tl.int64) * bias_c
        return s * scale + tl.load(bias + at, mask=live, other=0.0).to(
            s.dtype
        ) * 1.4426950408889634, 1.0
    else:
        return s, scale


@triton.jit
def _common(shift, place, e, nothing, EXIT: tl.constexpr, BIAS: tl.constexpr):
    """What all values have in common, and 0 for rows that a bias lets read nothing."""
    common = tl.load(shift + place.to(tl.int64) * EXIT + e, mask=e < EXIT, other=0.0)[None, :]
    return tl.where(nothing[:, None], 0.0, common) if BIAS else common


@triton.jit
def _log_sum(top, total):
    """Infinite where nothing was read, so that its weights are 0 backward."""
    return tl.where(total == 0, float("inf"), (top + tl.log2(total)) / 1.4426950408889634)


@triton.jit(do_not_specialize=["rows", "columns", "chunk"])
def _attend_kernel(
    a, b, c, bias, shift, out, lse, part, part_top, part_total,
    a_b, a_n, a_h, b_b, b_n, b_h, c_b, c_n, c_h, bias_b, bias_h, bias_r, bias_c, out_b, out_n, out_h,
    lse_b, lse_h, rows, columns, heads, chunk, scale,
    BIAS: tl.constexpr, SHIFT: tl.constexpr, SPLIT: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EXIT: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    place, split = tl.program_id(1), tl.program_id(2)
    batch, head = (place // heads).to(tl.int64), (place % heads).to(tl.int64)
    a += batch * a_b + head * a_h
    b += batch * b_b + head * b_h
    c += batch * c_b + head * c_h
    if BIAS:
        bias += batch * bias_b + head * bias_h
    own, m = (tl.program_id(0) * BM).to(tl.int64), tl.arange(0, BM)
    within = m < rows - own
    a1, a2 = load_parts(a + own * a_n, m, a_n, within, DIM, D1, D2, ALIGNED)
    acc1, acc2 = zero_parts(BM, E1, E2, ACC)
    top, total = tl.full((BM,), float("-inf"), ACC), tl.zeros((BM,), ACC)
    end = tl.minimum(columns, (split + 1) * chunk)
    n = tl.arange(0, BN)
    for start in range(split * chunk, end, BN):
        live, first = n < end - start, tl.cast(start, tl.int64)
        b1, b2 = load_parts(b + first * b_n, n, b_n, live, DIM, D1, D2, ALIGNED)
        s = product(a1, a2, b1, b2, D2, DOT, ACC)
        both = within[:, None] & live[None, :]
        s, left = _biased(
            s, scale, bias, (own + m)[:, None], (start + n)[None, :], bias_r, bias_c, both, BIAS
        )
        s = tl.where(live[None, :], s, float("-inf"))
        top, total, acc1, acc2 = attend_step(
            s,
            left,
            top,
            total,
            acc1,
            acc2,
            c + first * c_n,
            n,
            c_n,
            live,
            EXIT,
            E1,
            E2,
            ALIGNED,
            DOT,
            ACC,
        )
    if SPLIT:
        row = (split * tl.num_programs(1) + place).to(tl.int64) * rows + own
        store_parts(part + row * EXIT, m, EXIT, within, acc1, acc2, EXIT, E1, E2, ALIGNED)
        tl.store(part_top + row + m, top, mask=within)
        tl.store(part_total + row + m, total, mask=within)
    else:
        out += batch * out_b + head * out_h + own * out_n
        share = (1.0 / tl.where(total == 0, 1.0, total))[:, None]
        acc1, acc2 = acc1 * share, acc2 * share
        if SHIFT:
            acc1 += _common(shift, place, tl.arange(0, E1), total == 0, EXIT, BIAS)
            if E2:
                acc2 += _common(shift, place, E1 + tl.arange(0, E2), total == 0, EXIT, BIAS)
        store_parts(out, m, out_n, within, acc1, acc2, EXIT, E1, E2, ALIGNED)
        lse += batch * lse_b + head * lse_h + own
        tl.store(lse + m, _log_sum(top, total), mask=within)


@triton.jit(do_not_specialize=["rows", "columns", "chunk"])
def _spread_kernel(
    a, b, c, bias, shift, out, lse,
    a_b, a_n, a_h, b_b, b_n, b_h, c_b, c_n, c_h, bias_b, bias_h, bias_r, bias_c, out_b, out_n, out_h,
    lse_b, lse_h, rows, columns, heads, chunk, scale,
    BIAS: tl.constexpr, SHIFT: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EXIT: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """`_attend_kernel` where one tile holds all columns: they are loaded once for a split of the
    rows.
    """
    place = tl.program_id(1)
    batch, head = (place // heads).to(tl.int64), (place % heads).to(tl.int64)
    a += batch * a_b + head * a_h
    out += batch * out_b + head * out_h
    lse += batch * lse_b + head * lse_h
    if BIAS:
        bias += batch * bias_b + head * bias_h
    m, n = tl.arange(0, BM), tl.arange(0, BN)
    live = n < columns
    b1, b2 = load_parts(b + batch * b_b + head * b_h, n, b_n, live, DIM, D1, D2, ALIGNED)
    c1, c2 = load_parts(c + batch * c_b + head * c_h, n, c_n, live, EXIT, E1, E2, ALIGNED)
    end = tl.minimum(rows, (tl.program_id(0) + 1) * chunk)
    # A bias's places, moved out of the loop, are spilled (24 bytes at heads of 144).
    for start in tl.range(tl.program_id(0) * chunk, end, BM, disable_licm=BIAS):
        within, own = m < end - start, tl.cast(start, tl.int64)
        a1, a2 = load_parts(a + own * a_n, m, a_n, within, DIM, D1, D2, ALIGNED)
        s = product(a1, a2, b1, b2, D2, DOT, ACC)
        both = within[:, None] & live[None, :]
        s, left = _biased(
            s, scale, bias, (own + m)[:, None], n[None, :], bias_r, bias_c, both, BIAS
        )
        s = tl.where(live[None, :], s, float("-inf"))
        top = tl.max(s, 1) * left
        if BIAS:
            top = tl.where(top == float("-inf"), 0.0, top)  # nothing may be read
        p = tl.exp2(s * left - top[:, None])
        total = tl.sum(p, 1)
        if BIAS:
            # then 0 is read, and weighs nothing backward
            total = tl.where(total == 0, float("inf"), total)
        tl.store(lse + own + m, (top + tl.log2(total)) / 1.4426950408889634, mask=within)
        acc1, acc2 = zero_parts(BM, E1, E2, ACC)
        acc1, acc2 = add_parts(acc1, acc2, p, c1, c2, E2, DOT, ACC)
        share = (1.0 / total)[:, None]
        acc1, acc2 = acc1 * share, acc2 * share
        if SHIFT:
            acc1 += _common(shift, place, tl.arange(0, E1), total == float("inf"), EXIT, BIAS)
            if E2:
                acc2 += _common(
                    shift, place, E1 + tl.arange(0, E2), total == float("inf"), EXIT, BIAS
                )
        store_parts(out + own * out_n, m, out_n, within, acc1, acc2, EXIT, E1, E2, ALIGNED)


@triton.jit(do_not_specialize=["rows", "splits"])
def _merge_kernel(
    part, part_top, part_total, shift, out, lse, out_b, out_n, out_h, lse_b, lse_h, rows, heads, splits,
    SHIFT: tl.constexpr, EXIT: tl.constexpr, BE: tl.constexpr, BM: tl.constexpr,
    ALIGNED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The splits' results, weighed by their share of the whole sum."""
    place, many = tl.program_id(1), tl.num_programs(1)
    batch, head = (place // heads).to(tl.int64), (place % heads).to(tl.int64)
    own, m, e = (tl.program_id(0) * BM).to(tl.int64), tl.arange(0, BM), tl.arange(0, BE)
    within = m < rows - own
    top, total, acc = (
        tl.full((BM,), float("-inf"), ACC),
        tl.zeros((BM,), ACC),
        tl.zeros((BM, BE), ACC),
    )
    for split in range(0, splits):
        row = (split * many + place).to(tl.int64) * rows + own
        most = tl.load(part_top + row + m, mask=within, other=float("-inf"))
        sums = tl.load(part_total + row + m, mask=within, other=0.0)
        high = tl.maximum(top, most)
        safe = tl.where(high == float("-inf"), 0.0, high)
        old, new = tl.exp2(top - safe), tl.exp2(most - safe)
        acc = (
            acc * old[:, None]
            + load(part + row * EXIT, m, EXIT, e, within, EXIT, ALIGNED) * new[:, None]
        )
        total, top = total * old + sums * new, high
    out += batch * out_b + head * out_h + own * out_n
    acc = acc / tl.where(total == 0, 1.0, total)[:, None]
    if SHIFT:
        acc += _common(shift, place, e, total == 0, EXIT, True)
    store(out, m, out_n, e, within, EXIT, ALIGNED, acc)
    lse += batch * lse_b + head * lse_h + own
    tl.store(lse + m, _log_sum(top, total), mask=within)


@triton.jit(do_not_specialize=["rows"])
def _delta_kernel(
    grad, out, d_lse, delta, grad_b, grad_n, grad_h, out_b, out_n, out_h, lse_b, lse_h, delta_b, delta_h, rows, heads,
    LSE: tl.constexpr, EXIT: tl.constexpr, BE: tl.constexpr, BM: tl.constexpr,
    ALIGNED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """sum(grad o out) a row, less the gradient of the log-sum-exp."""
    place = tl.program_id(1)
    batch, head = (place // heads).to(tl.int64), (place % heads).to(tl.int64)
    own, m, e = (tl.program_id(0) * BM).to(tl.int64), tl.arange(0, BM), tl.arange(0, BE)
    within = m < rows - own
    one = load(
        grad + batch * grad_b + head * grad_h + own * grad_n, m, grad_n, e, within, EXIT, ALIGNED
    ).to(ACC)
    two = load(
        out + batch * out_b + head * out_h + own * out_n, m, out_n, e, within, EXIT, ALIGNED
    ).to(ACC)
    found = tl.sum(one * two, 1)
    if LSE:
        found -= tl.load(d_lse + batch * lse_b + head * lse_h + own + m, mask=within, other=0.0).to(
            ACC
        )
    tl.store(delta + batch * delta_b + head * delta_h + own + m, found, mask=within)


@triton.jit(do_not_specialize=["rows", "columns", "chunk"])
def _rows_kernel(
    grad, a, b, c, bias, lse, delta, d_bias, part,
    grad_b, grad_n, grad_h, a_b, a_n, a_h, b_b, b_n, b_h, c_b, c_n, c_h, bias_b, bias_h, bias_r, bias_c,
    lse_b, lse_h, part_s, part_b, part_n, part_h, rows, columns, heads, chunk, scale,
    BIAS: tl.constexpr, DELTA: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EXIT: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The rows' gradient over one split of the columns, and the bias's.

    DELTA: what is taken off the scores' gradient is found here, over all columns, and written for
    `_columns_kernel`. From a result in half precision it would be as wrong as that is rounded.
    """
    place, split = tl.program_id(1), tl.program_id(2)
    batch, head = (place // heads).to(tl.int64), (place % heads).to(tl.int64)
    grad += batch * grad_b + head * grad_h
    a += batch * a_b + head * a_h
    b += batch * b_b + head * b_h
    c += batch * c_b + head * c_h
    if BIAS:
        bias += batch * bias_b + head * bias_h
    own, m, n = (tl.program_id(0) * BM).to(tl.int64), tl.arange(0, BM), tl.arange(0, BN)
    within = m < rows - own
    a1, a2 = load_parts(a + own * a_n, m, a_n, within, DIM, D1, D2, ALIGNED)
    g1, g2 = load_parts(grad + own * grad_n, m, grad_n, within, EXIT, E1, E2, ALIGNED)
    acc1, acc2 = zero_parts(BM, D1, D2, ACC)
    at = batch * lse_b + head * lse_h + own + m
    if DELTA:
        sums = tl.load(lse + at, mask=within, other=0.0).to(ACC) * 1.4426950408889634
        less = tl.zeros((BM,), ACC)
        for start in range(0, columns, BN):
            live, first = n < columns - start, tl.cast(start, tl.int64)
            b1, b2 = load_parts(b + first * b_n, n, b_n, live, DIM, D1, D2, ALIGNED)
            c1, c2 = load_parts(c + first * c_n, n, c_n, live, EXIT, E1, E2, ALIGNED)
            s, told = product(a1, a2, b1, b2, D2, DOT, ACC), product(g1, g2, c1, c2, E2, DOT, ACC)
            both = within[:, None] & live[None, :]
            s, left = _biased(
                s, scale, bias, (own + m)[:, None], (start + n)[None, :], bias_r, bias_c, both, BIAS
            )
            p, _ = slopes_of(tl.where(both, s * left - sums[:, None], float("-inf")), told, 0.0)
            less += tl.sum(p * told, 1)
        tl.store(delta + at, less, mask=within)
    else:
        sums, less = row_sums(lse, delta, at, within, ACC)
    end = tl.minimum(columns, (split + 1) * chunk)
    for start in range(split * chunk, end, BN):
        live, first = n < end - start, tl.cast(start, tl.int64)
        b1, b2 = load_parts(b + first * b_n, n, b_n, live, DIM, D1, D2, ALIGNED)
        c1, c2 = load_parts(c + first * c_n, n, c_n, live, EXIT, E1, E2, ALIGNED)
        s, told = product(a1, a2, b1, b2, D2, DOT, ACC), product(g1, g2, c1, c2, E2, DOT, ACC)
        both = within[:, None] & live[None, :]
        s, left = _biased(
            s, scale, bias, (own + m)[:, None], (start + n)[None, :], bias_r, bias_c, both, BIAS
        )
        _, ds = slopes_of(
            tl.where(both, s * left - sums[:, None], float("-inf")), told, less[:, None]
        )
        if BIAS:
            where = (
                ((place.to(tl.int64) * rows + own + m)[:, None]) * columns + (start + n)[None, :]
            )
            tl.store(d_bias + where, ds, mask=both)
        acc1, acc2 = add_parts(acc1, acc2, ds, b1, b2, D2, DOT, ACC)
    part += split.to(tl.int64) * part_s + batch * part_b + head * part_h + own * part_n
    natural = scale / 1.4426950408889634
    store_parts(part, m, part_n, within, acc1 * natural, acc2 * natural, DIM, D1, D2, ALIGNED)


@triton.jit(do_not_specialize=["rows", "columns", "chunk"])
def _columns_kernel(
    grad, a, b, c, bias, lse, delta, part_b_, part_c_,
    grad_b, grad_n, grad_h, a_b, a_n, a_h, b_b, b_n, b_h, c_b, c_n, c_h, bias_b, bias_h, bias_r, bias_c,
    lse_b, lse_h, db_s, db_b, db_n, db_h, dc_s, dc_b, dc_n, dc_h, rows, columns, heads, chunk, scale,
    BIAS: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EXIT: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The columns' gradients over one split of the rows; scores are (columns, rows), the left side
    of both products.
    """
    place, split = tl.program_id(1), tl.program_id(2)
    batch, head = (place // heads).to(tl.int64), (place % heads).to(tl.int64)
    grad += batch * grad_b + head * grad_h
    a += batch * a_b + head * a_h
    b += batch * b_b + head * b_h
    c += batch * c_b + head * c_h
    lse += batch * lse_b + head * lse_h
    delta += batch * lse_b + head * lse_h
    if BIAS:
        bias += batch * bias_b + head * bias_h
    own, n = (tl.program_id(0) * BN).to(tl.int64), tl.arange(0, BN)
    live = n < columns - own
    b1, b2 = load_parts(b + own * b_n, n, b_n, live, DIM, D1, D2, ALIGNED)
    c1, c2 = load_parts(c + own * c_n, n, c_n, live, EXIT, E1, E2, ALIGNED)
    db1, db2 = zero_parts(BN, D1, D2, ACC)
    dc1, dc2 = zero_parts(BN, E1, E2, ACC)
    end = tl.minimum(rows, (split + 1) * chunk)
    m = tl.arange(0, BM)
    # what it would hoist is spilled
    for start in tl.range(split * chunk, end, BM, disable_licm=True):
        within, first = m < end - start, tl.cast(start, tl.int64)
        a1, a2 = load_parts(a + first * a_n, m, a_n, within, DIM, D1, D2, ALIGNED)
        g1, g2 = load_parts(grad + first * grad_n, m, grad_n, within, EXIT, E1, E2, ALIGNED)
        sums, less = row_sums(lse + first, delta + first, m, within, ACC)
        s, told = product(b1, b2, a1, a2, D2, DOT, ACC), product(c1, c2, g1, g2, E2, DOT, ACC)
        both = within[None, :] & live[:, None]
        s, left = _biased(
            s, scale, bias, (start + m)[None, :], (own + n)[:, None], bias_r, bias_c, both, BIAS
        )
        p, ds = slopes_of(
            tl.where(both, s * left - sums[None, :], float("-inf")), told, less[None, :]
        )
        dc1, dc2 = add_parts(dc1, dc2, p, g1, g2, E2, DOT, ACC)
        db1, db2 = add_parts(db1, db2, ds, a1, a2, D2, DOT, ACC)
    part_b_ += split.to(tl.int64) * db_s + batch * db_b + head * db_h + own * db_n
    part_c_ += split.to(tl.int64) * dc_s + batch * dc_b + head * dc_h + own * dc_n
    natural = scale / 1.4426950408889634
    store_parts(part_b_, n, db_n, live, db1 * natural, db2 * natural, DIM, D1, D2, ALIGNED)
    store_parts(part_c_, n, dc_n, live, dc1, dc2, EXIT, E1, E2, ALIGNED)


# Launching
# ---------------------------------------------------------------------------------------------


def upright(a: Tensor, scale: float) -> tuple[Tensor, float]:
    """The same scores by a scale above 0, also when it is rounded to float32."""
    if abs(scale) < 1e-30:
        return torch.zeros_like(a), 1.0
    return (a, scale) if scale > 0 else (-a, -scale)


def attend(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    bias: Tensor | None,
    scale: float,
    out: Tensor,
    lse: Tensor,
    shift: Tensor | None = None,
) -> None:
    """softmax(a b^T scale + bias) c + shift into out (batch, rows, heads, dim) and lse (batch,
    heads, rows).

    Both may be views; the shift is (batch, 1, heads, dim), in one piece of memory.
    """
    a, b, c = unit(a), unit(b), unit(c)
    a, scale = upright(a, scale)
    batch, rows, heads, dim = a.shape
    columns, exit_dim, wide = b.shape[1], c.shape[3], launch.wide(a.dtype)
    given = {
        "BIAS": bias is not None,
        "SHIFT": shift is not None,
        **shape_of(dim, exit_dim),
        **precision(a),
    }
    given["ALIGNED"] = aligned(a, b, c, out)
    if columns <= MOST_SPREAD and rows > columns:
        how = launch.config("softmax_spread", a, max(dim, exit_dim), rows)
        splits, chunk = launch.splits(rows, batch * heads, how["BM"], a.device)
        with launch.on(a.device):
            _spread_kernel[launch.grid(splits, batch * heads)](
                a, b, c, bias, shift, out, lse,
                *strides(a), *strides(b), *strides(c), *_bias_strides(bias, batch, heads, rows, columns), *strides(out),
                *lse.stride()[:2], rows, columns, heads, chunk, scale * LOG2E, BN=powers(columns), **given, **how,
            )  # fmt: skip
        return
    how = _biased_config("softmax_attend", bias, a, max(dim, exit_dim), columns)
    tiles = launch.cdiv(rows, how["BM"])
    splits, chunk = launch.splits(columns, tiles * batch * heads, how["BN"], a.device)
    part, tops = None, (None, None)
    if splits > 1:
        part = a.new_empty(splits, batch * heads, rows, exit_dim, dtype=wide)
        tops = [a.new_empty(splits, batch * heads, rows, dtype=wide) for _ in range(2)]
    with launch.on(a.device):
        _attend_kernel[launch.grid(tiles, batch * heads, splits)](
            a, b, c, bias, shift, out, lse, part, *tops,
            *strides(a), *strides(b), *strides(c), *_bias_strides(bias, batch, heads, rows, columns), *strides(out),
            *lse.stride()[:2], rows, columns, heads, chunk, scale * LOG2E, SPLIT=splits > 1, **given, **how,
        )  # fmt: skip
        if splits > 1:
            how = launch.config("softmax_merge", a, exit_dim)
            _merge_kernel[launch.grid(launch.cdiv(rows, how["BM"]), batch * heads)](
                part, *tops, shift, out, lse, *strides(out), *lse.stride()[:2], rows, heads, splits,
                SHIFT=shift is not None, EXIT=exit_dim, BE=power(exit_dim), ALIGNED=aligned(out),
                ACC=precision(a)["ACC"], **how,
            )  # fmt: skip


def delta_of(grad: Tensor, out: Tensor, d_lse: Tensor | None) -> Tensor:
    """(batch, heads, rows)."""
    batch, rows, heads, dim = out.shape
    delta = grad.new_empty(batch, heads, rows, dtype=launch.wide(grad.dtype))
    how = launch.config("softmax_delta", grad, dim)
    with launch.on(grad.device):
        _delta_kernel[launch.grid(launch.cdiv(rows, how["BM"]), batch * heads)](
            grad, out, d_lse, delta, *strides(grad), *strides(out),
            *((0, 0) if d_lse is None else d_lse.stride()[:2]), *delta.stride()[:2], rows, heads,
            LSE=d_lse is not None, EXIT=dim, BE=power(dim), ALIGNED=aligned(grad, out),
            ACC=precision(grad)["ACC"], **how,
        )  # fmt: skip
    return delta


def rows_slope(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    delta: Tensor,
    scale: float,
    fills_delta: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(gradient of the rows, of the bias before it was broadcast); `fills_delta` writes delta
    instead of reading it.
    """
    grad, a, b, c = unit(grad), unit(a), unit(b), unit(c)
    batch, rows, heads, dim = a.shape
    columns, wide = b.shape[1], launch.wide(a.dtype)
    how = _biased_config("softmax_rows", bias, a, max(dim, c.shape[3]), columns)
    tiles = launch.cdiv(rows, how["BM"])
    splits, chunk = launch.splits(columns, tiles * batch * heads, how["BN"], a.device)
    part = a.new_empty(splits, batch, rows, heads, dim, dtype=wide if splits > 1 else a.dtype)
    d_bias = None if bias is None else a.new_empty(batch, heads, rows, columns, dtype=wide)
    with launch.on(a.device):
        _rows_kernel[launch.grid(tiles, batch * heads, splits)](
            grad, a, b, c, bias, lse, delta, d_bias, part,
            *strides(grad), *strides(a), *strides(b), *strides(c), *_bias_strides(bias, batch, heads, rows, columns),
            *_row_strides(lse, delta), *part.stride()[:4], rows, columns, heads, chunk, scale * LOG2E,
            BIAS=bias is not None, DELTA=fills_delta, ALIGNED=aligned(grad, a, b, c, part[0]),
            **shape_of(dim, c.shape[3]), **precision(a), **how,
        )  # fmt: skip
    return _summed(part, a.dtype), None if bias is None else d_bias.sum_to_size(bias.shape).to(
        bias.dtype
    )


def columns_slope(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    delta: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of b and c."""
    grad, a, b, c = unit(grad), unit(a), unit(b), unit(c)
    batch, rows, heads, dim = a.shape
    columns, exit_dim, wide = b.shape[1], c.shape[3], launch.wide(a.dtype)
    how = launch.config("softmax_columns", a, max(dim, exit_dim), rows)
    tiles = launch.cdiv(columns, how["BN"])
    splits, chunk = launch.splits(rows, tiles * batch * heads, how["BM"], a.device)
    dtype = wide if splits > 1 else a.dtype
    db = a.new_empty(splits, batch, columns, heads, dim, dtype=dtype)
    dc = a.new_empty(splits, batch, columns, heads, exit_dim, dtype=dtype)
    with launch.on(a.device):
        _columns_kernel[launch.grid(tiles, batch * heads, splits)](
            grad, a, b, c, bias, lse, delta, db, dc,
            *strides(grad), *strides(a), *strides(b), *strides(c), *_bias_strides(bias, batch, heads, rows, columns),
            *_row_strides(lse, delta), *db.stride()[:4], *dc.stride()[:4], rows, columns, heads, chunk, scale * LOG2E,
            BIAS=bias is not None, ALIGNED=aligned(grad, a, b, c, db[0], dc[0]),
            **shape_of(dim, exit_dim), **precision(a), **how,
        )  # fmt: skip
    return _summed(db, a.dtype), _summed(dc, a.dtype)


def _biased_config(
    kernel: str, bias: Tensor | None, like: Tensor, dim: int, tokens: int
) -> dict[str, int]:
    """The configuration; a bias takes registers of its own, and with them the room for a wide tile."""
    how = launch.config(kernel, like, dim, tokens)
    return how if bias is None else how | launch.config("softmax_biased", like, dim, tokens)


def _summed(part: Tensor, dtype: torch.dtype) -> Tensor:
    return part[0] if part.shape[0] == 1 else part.sum(0).to(dtype)


def _bias_strides(bias: Tensor | None, *full: int) -> tuple[int, ...]:
    return (0, 0, 0, 0) if bias is None else bias.expand(full).stride()


def _row_strides(lse: Tensor, delta: Tensor) -> tuple[int, int]:
    """Numbers a row are read by the same strides."""
    if lse.stride() != delta.stride():
        raise ValueError(
            f"log-sum-exp has strides {lse.stride()}, delta {delta.stride()}; slice both alike"
        )
    return lse.stride()[:2]
