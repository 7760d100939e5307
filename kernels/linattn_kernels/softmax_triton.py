"""Plain softmax attention with one short side, in Triton: for mediators and the text of a window.

- Where the queries are few, the keys are split among programs, whose results are merged by their
  log-sum-exp. Where the keys are few, their gradients are sums over splits of the queries. Sums are
  taken in a fixed order.
- Scores are in base 2 inside a kernel; log-sum-exps outside are natural.
- A bias is read by its strides, 0 where it is broadcast.
- `v_mean` is the mean of the values, which the caller takes off before it rounds them. It is added
  to the result: the weights sum to 1.
- Numbers after a name are the two parts of a head's channels (`tiles.parts`), m and n index the
  queries and keys of a tile.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from linattn_kernels import launch
from linattn_kernels.launch import strides, unit_stride
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
MAX_SPREAD = 128  # keys that one tile can hold


@triton.jit
def online(s, scale, row_max, row_sum):
    """Take one step of the online softmax: return (p, alpha, row_max, row_sum), all in base 2.

    alpha is the factor of what was summed before. The scale is above 0, so the maximum can be taken
    of unscaled scores, and scaling is fused with the subtraction.
    """
    new_max = tl.maximum(row_max, tl.max(s, 1) * scale)
    safe_max = tl.where(new_max == float("-inf"), 0.0, new_max)  # -inf - -inf is NaN
    p = tl.exp2(s * scale - safe_max[:, None])
    alpha = tl.exp2(row_max - safe_max)
    return p, alpha, new_max, row_sum * alpha + tl.sum(p, 1)


@triton.jit
def attend_step(
    s, scale, row_max, row_sum, acc1, acc2, v, n, v_n, live,
    VDIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Take the online softmax over one more tile of scores and its values."""
    p, alpha, row_max, row_sum = online(s, scale, row_max, row_sum)
    v1, v2 = load_parts(v, n, v_n, live, VDIM, E1, E2, ALIGNED)
    acc1 = acc1 * alpha[:, None]
    if E2:
        acc2 = acc2 * alpha[:, None]
    acc1, acc2 = add_parts(acc1, acc2, p, v1, v2, E2, DOT, ACC)
    return row_max, row_sum, acc1, acc2


@triton.jit
def score_grad(s, dp, delta_m):
    """Return p = 2^s and ds = p (dp - delta), where s are scores less their log-sum-exp."""
    p = tl.exp2(s)
    return p, p * (dp - delta_m)


@triton.jit
def load_lse_delta(lse, delta, at, live, ACC: tl.constexpr):
    """Load a tile's log-sum-exps, in base 2, and deltas."""
    lse_m = tl.load(lse + at, mask=live, other=0.0).to(ACC) * 1.4426950408889634
    return lse_m, tl.load(delta + at, mask=live, other=0.0).to(ACC)


@triton.jit
def _biased(s, scale, bias, query_at, key_at, bias_m, bias_n, live, BIAS: tl.constexpr):
    """Return (scores, the scale that is still to be applied), in base 2.

    With a bias the scores are scaled already. The positions broadcast to the scores.
    """
    if BIAS:
        at = query_at.to(tl.int64) * bias_m + key_at.to(tl.int64) * bias_n
        scaled = s * scale
        tile = tl.load(bias + at, mask=live, other=0.0).to(s.dtype)
        return scaled + tile * 1.4426950408889634, 1.0
    else:
        return s, scale


@triton.jit
def _load_mean(v_mean, bh, e, reads_nothing, VDIM: tl.constexpr, BIAS: tl.constexpr):
    """Load the values' mean, and 0 for queries that a bias lets read nothing."""
    mean = tl.load(v_mean + bh.to(tl.int64) * VDIM + e, mask=e < VDIM, other=0.0)[None, :]
    return tl.where(reads_nothing[:, None], 0.0, mean) if BIAS else mean


@triton.jit
def _log_sum_exp(row_max, row_sum):
    """Compute the natural log-sum-exp, inf where nothing was read: then p is 0 in the backward."""
    return tl.where(row_sum == 0, float("inf"), (row_max + tl.log2(row_sum)) / 1.4426950408889634)


@triton.jit(do_not_specialize=["n_queries", "n_keys", "chunk"])
def _attend_kernel(
    q, k, v, bias, v_mean, out, lse, part, part_max, part_sum,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, bias_b, bias_h, bias_m, bias_n,
    out_b, out_n, out_h, lse_b, lse_h, n_queries, n_keys, heads, chunk, scale,
    BIAS: tl.constexpr, CENTRED: tl.constexpr, SPLIT: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    VDIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Attend with a tile of queries to one split of the keys.

    If SPLIT, store the unnormalised sums for `_merge_kernel`, else the result.
    """
    bh, split = tl.program_id(1), tl.program_id(2)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    q += batch * q_b + head * q_h
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    if BIAS:
        bias += batch * bias_b + head * bias_h
    tile_start, m = (tl.program_id(0) * BM).to(tl.int64), tl.arange(0, BM)
    within = m < n_queries - tile_start
    q1, q2 = load_parts(q + tile_start * q_n, m, q_n, within, DIM, D1, D2, ALIGNED)
    acc1, acc2 = zero_parts(BM, E1, E2, ACC)
    row_max, row_sum = tl.full((BM,), float("-inf"), ACC), tl.zeros((BM,), ACC)
    end = tl.minimum(n_keys, (split + 1) * chunk)
    n = tl.arange(0, BN)
    for start in range(split * chunk, end, BN):
        live, first = n < end - start, tl.cast(start, tl.int64)
        k1, k2 = load_parts(k + first * k_n, n, k_n, live, DIM, D1, D2, ALIGNED)
        s = product(q1, q2, k1, k2, D2, DOT, ACC)
        both = within[:, None] & live[None, :]
        s, s_scale = _biased(
            s, scale, bias, (tile_start + m)[:, None], (start + n)[None, :],
            bias_m, bias_n, both, BIAS,
        )  # fmt: skip
        s = tl.where(live[None, :], s, float("-inf"))
        row_max, row_sum, acc1, acc2 = attend_step(
            s, s_scale, row_max, row_sum, acc1, acc2, v + first * v_n, n, v_n, live,
            VDIM, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
    if SPLIT:
        row = (split * tl.num_programs(1) + bh).to(tl.int64) * n_queries + tile_start
        store_parts(part + row * VDIM, m, VDIM, within, acc1, acc2, VDIM, E1, E2, ALIGNED)
        tl.store(part_max + row + m, row_max, mask=within)
        tl.store(part_sum + row + m, row_sum, mask=within)
    else:
        out += batch * out_b + head * out_h + tile_start * out_n
        inv_sum = (1.0 / tl.where(row_sum == 0, 1.0, row_sum))[:, None]
        acc1, acc2 = acc1 * inv_sum, acc2 * inv_sum
        if CENTRED:
            acc1 += _load_mean(v_mean, bh, tl.arange(0, E1), row_sum == 0, VDIM, BIAS)
            if E2:
                acc2 += _load_mean(v_mean, bh, E1 + tl.arange(0, E2), row_sum == 0, VDIM, BIAS)
        store_parts(out, m, out_n, within, acc1, acc2, VDIM, E1, E2, ALIGNED)
        lse += batch * lse_b + head * lse_h + tile_start
        tl.store(lse + m, _log_sum_exp(row_max, row_sum), mask=within)


@triton.jit(do_not_specialize=["n_queries", "n_keys", "chunk"])
def _spread_kernel(
    q, k, v, bias, v_mean, out, lse,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, bias_b, bias_h, bias_m, bias_n,
    out_b, out_n, out_h, lse_b, lse_h, n_queries, n_keys, heads, chunk, scale,
    BIAS: tl.constexpr, CENTRED: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    VDIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Do what `_attend_kernel` does where one tile holds all keys: load them once a split."""
    bh = tl.program_id(1)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    q += batch * q_b + head * q_h
    out += batch * out_b + head * out_h
    lse += batch * lse_b + head * lse_h
    if BIAS:
        bias += batch * bias_b + head * bias_h
    m, n = tl.arange(0, BM), tl.arange(0, BN)
    live = n < n_keys
    k1, k2 = load_parts(k + batch * k_b + head * k_h, n, k_n, live, DIM, D1, D2, ALIGNED)
    v1, v2 = load_parts(v + batch * v_b + head * v_h, n, v_n, live, VDIM, E1, E2, ALIGNED)
    end = tl.minimum(n_queries, (tl.program_id(0) + 1) * chunk)
    # disable_licm: a bias's offsets, hoisted out of the loop, spill (24 bytes at heads of 144).
    for start in tl.range(tl.program_id(0) * chunk, end, BM, disable_licm=BIAS):
        within, tile_start = m < end - start, tl.cast(start, tl.int64)
        q1, q2 = load_parts(q + tile_start * q_n, m, q_n, within, DIM, D1, D2, ALIGNED)
        s = product(q1, q2, k1, k2, D2, DOT, ACC)
        both = within[:, None] & live[None, :]
        s, s_scale = _biased(
            s, scale, bias, (tile_start + m)[:, None], n[None, :], bias_m, bias_n, both, BIAS
        )
        s = tl.where(live[None, :], s, float("-inf"))
        row_max = tl.max(s, 1) * s_scale
        if BIAS:
            row_max = tl.where(row_max == float("-inf"), 0.0, row_max)  # all scores are -inf
        p = tl.exp2(s * s_scale - row_max[:, None])
        row_sum = tl.sum(p, 1)
        if BIAS:
            # A query that reads nothing gets 0, and p = 0 in the backward.
            row_sum = tl.where(row_sum == 0, float("inf"), row_sum)
        lse_at = lse + tile_start + m
        tl.store(lse_at, (row_max + tl.log2(row_sum)) / 1.4426950408889634, mask=within)
        acc1, acc2 = zero_parts(BM, E1, E2, ACC)
        acc1, acc2 = add_parts(acc1, acc2, p, v1, v2, E2, DOT, ACC)
        inv_sum = (1.0 / row_sum)[:, None]
        acc1, acc2 = acc1 * inv_sum, acc2 * inv_sum
        if CENTRED:
            acc1 += _load_mean(v_mean, bh, tl.arange(0, E1), row_sum == float("inf"), VDIM, BIAS)
            if E2:
                e2 = E1 + tl.arange(0, E2)
                acc2 += _load_mean(v_mean, bh, e2, row_sum == float("inf"), VDIM, BIAS)
        store_parts(out + tile_start * out_n, m, out_n, within, acc1, acc2, VDIM, E1, E2, ALIGNED)


@triton.jit(do_not_specialize=["n_queries", "splits"])
def _merge_kernel(
    part, part_max, part_sum, v_mean, out, lse,
    out_b, out_n, out_h, lse_b, lse_h, n_queries, heads, splits,
    CENTRED: tl.constexpr, VDIM: tl.constexpr, BE: tl.constexpr, BM: tl.constexpr,
    ALIGNED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Merge the splits' results by their running maxima and sums."""
    bh, n_bh = tl.program_id(1), tl.num_programs(1)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    tile_start, m, e = (tl.program_id(0) * BM).to(tl.int64), tl.arange(0, BM), tl.arange(0, BE)
    within = m < n_queries - tile_start
    row_max, row_sum = tl.full((BM,), float("-inf"), ACC), tl.zeros((BM,), ACC)
    acc = tl.zeros((BM, BE), ACC)
    for split in range(0, splits):
        row = (split * n_bh + bh).to(tl.int64) * n_queries + tile_start
        split_max = tl.load(part_max + row + m, mask=within, other=float("-inf"))
        split_sum = tl.load(part_sum + row + m, mask=within, other=0.0)
        new_max = tl.maximum(row_max, split_max)
        safe_max = tl.where(new_max == float("-inf"), 0.0, new_max)
        alpha, beta = tl.exp2(row_max - safe_max), tl.exp2(split_max - safe_max)
        acc = acc * alpha[:, None]
        acc += load(part + row * VDIM, m, VDIM, e, within, VDIM, ALIGNED) * beta[:, None]
        row_sum, row_max = row_sum * alpha + split_sum * beta, new_max
    out += batch * out_b + head * out_h + tile_start * out_n
    acc = acc / tl.where(row_sum == 0, 1.0, row_sum)[:, None]
    if CENTRED:
        acc += _load_mean(v_mean, bh, e, row_sum == 0, VDIM, True)
    store(out, m, out_n, e, within, VDIM, ALIGNED, acc)
    lse += batch * lse_b + head * lse_h + tile_start
    tl.store(lse + m, _log_sum_exp(row_max, row_sum), mask=within)


@triton.jit(do_not_specialize=["n_queries"])
def _delta_kernel(
    do, out, d_lse, delta,
    do_b, do_n, do_h, out_b, out_n, out_h, lse_b, lse_h, delta_b, delta_h, n_queries, heads,
    LSE: tl.constexpr, VDIM: tl.constexpr, BE: tl.constexpr, BM: tl.constexpr,
    ALIGNED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Compute delta = sum(do * out) - d_lse of each query."""
    bh = tl.program_id(1)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    tile_start, m, e = (tl.program_id(0) * BM).to(tl.int64), tl.arange(0, BM), tl.arange(0, BE)
    within = m < n_queries - tile_start
    do += batch * do_b + head * do_h + tile_start * do_n
    do_tile = load(do, m, do_n, e, within, VDIM, ALIGNED).to(ACC)
    out += batch * out_b + head * out_h + tile_start * out_n
    out_tile = load(out, m, out_n, e, within, VDIM, ALIGNED).to(ACC)
    delta_m = tl.sum(do_tile * out_tile, 1)
    if LSE:
        d_lse += batch * lse_b + head * lse_h + tile_start
        delta_m -= tl.load(d_lse + m, mask=within, other=0.0).to(ACC)
    tl.store(delta + batch * delta_b + head * delta_h + tile_start + m, delta_m, mask=within)


@triton.jit(do_not_specialize=["n_queries", "n_keys", "chunk"])
def _dq_kernel(
    do, q, k, v, bias, lse, delta, d_bias, dq,
    do_b, do_n, do_h, q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, bias_b, bias_h, bias_m, bias_n,
    lse_b, lse_h, dq_s, dq_b, dq_n, dq_h, n_queries, n_keys, heads, chunk, scale,
    BIAS: tl.constexpr, DELTA: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    VDIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Compute dq of a tile of queries over one split of the keys, and the bias's gradient.

    If DELTA, compute delta = sum(p * dp) here, over all keys, and store it for `_dkv_kernel`: from
    an output in half precision it would carry that rounding error.
    """
    bh, split = tl.program_id(1), tl.program_id(2)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    do += batch * do_b + head * do_h
    q += batch * q_b + head * q_h
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    if BIAS:
        bias += batch * bias_b + head * bias_h
    tile_start, m, n = (tl.program_id(0) * BM).to(tl.int64), tl.arange(0, BM), tl.arange(0, BN)
    within = m < n_queries - tile_start
    q1, q2 = load_parts(q + tile_start * q_n, m, q_n, within, DIM, D1, D2, ALIGNED)
    do1, do2 = load_parts(do + tile_start * do_n, m, do_n, within, VDIM, E1, E2, ALIGNED)
    acc1, acc2 = zero_parts(BM, D1, D2, ACC)
    at = batch * lse_b + head * lse_h + tile_start + m
    if DELTA:
        lse_m = tl.load(lse + at, mask=within, other=0.0).to(ACC) * 1.4426950408889634
        delta_m = tl.zeros((BM,), ACC)
        for start in range(0, n_keys, BN):
            live, first = n < n_keys - start, tl.cast(start, tl.int64)
            k1, k2 = load_parts(k + first * k_n, n, k_n, live, DIM, D1, D2, ALIGNED)
            v1, v2 = load_parts(v + first * v_n, n, v_n, live, VDIM, E1, E2, ALIGNED)
            s = product(q1, q2, k1, k2, D2, DOT, ACC)
            dp = product(do1, do2, v1, v2, E2, DOT, ACC)
            both = within[:, None] & live[None, :]
            s, s_scale = _biased(
                s, scale, bias, (tile_start + m)[:, None], (start + n)[None, :],
            bias_m, bias_n, both, BIAS,
            )  # fmt: skip
            s = tl.where(both, s * s_scale - lse_m[:, None], float("-inf"))
            p, _ = score_grad(s, dp, 0.0)
            delta_m += tl.sum(p * dp, 1)
        tl.store(delta + at, delta_m, mask=within)
    else:
        lse_m, delta_m = load_lse_delta(lse, delta, at, within, ACC)
    end = tl.minimum(n_keys, (split + 1) * chunk)
    for start in range(split * chunk, end, BN):
        live, first = n < end - start, tl.cast(start, tl.int64)
        k1, k2 = load_parts(k + first * k_n, n, k_n, live, DIM, D1, D2, ALIGNED)
        v1, v2 = load_parts(v + first * v_n, n, v_n, live, VDIM, E1, E2, ALIGNED)
        s = product(q1, q2, k1, k2, D2, DOT, ACC)
        dp = product(do1, do2, v1, v2, E2, DOT, ACC)
        both = within[:, None] & live[None, :]
        s, s_scale = _biased(
            s, scale, bias, (tile_start + m)[:, None], (start + n)[None, :],
            bias_m, bias_n, both, BIAS,
        )  # fmt: skip
        s = tl.where(both, s * s_scale - lse_m[:, None], float("-inf"))
        _, ds = score_grad(s, dp, delta_m[:, None])
        if BIAS:
            row = (bh.to(tl.int64) * n_queries + tile_start + m)[:, None]
            tl.store(d_bias + (row * n_keys + (start + n)[None, :]), ds, mask=both)
        acc1, acc2 = add_parts(acc1, acc2, ds, k1, k2, D2, DOT, ACC)
    dq += split.to(tl.int64) * dq_s + batch * dq_b + head * dq_h + tile_start * dq_n
    natural_scale = scale / 1.4426950408889634
    acc1, acc2 = acc1 * natural_scale, acc2 * natural_scale
    store_parts(dq, m, dq_n, within, acc1, acc2, DIM, D1, D2, ALIGNED)


@triton.jit(do_not_specialize=["n_queries", "n_keys", "chunk"])
def _dkv_kernel(
    do, q, k, v, bias, lse, delta, dk, dv,
    do_b, do_n, do_h, q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, bias_b, bias_h, bias_m, bias_n,
    lse_b, lse_h, dk_s, dk_b, dk_n, dk_h, dv_s, dv_b, dv_n, dv_h,
    n_queries, n_keys, heads, chunk, scale,
    BIAS: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    VDIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Compute dk and dv of a tile of keys over one split of the queries.

    Scores are (keys, queries) here, so that they are the left operand of both products.
    """
    bh, split = tl.program_id(1), tl.program_id(2)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    do += batch * do_b + head * do_h
    q += batch * q_b + head * q_h
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    lse += batch * lse_b + head * lse_h
    delta += batch * lse_b + head * lse_h
    if BIAS:
        bias += batch * bias_b + head * bias_h
    tile_start, n = (tl.program_id(0) * BN).to(tl.int64), tl.arange(0, BN)
    live = n < n_keys - tile_start
    k1, k2 = load_parts(k + tile_start * k_n, n, k_n, live, DIM, D1, D2, ALIGNED)
    v1, v2 = load_parts(v + tile_start * v_n, n, v_n, live, VDIM, E1, E2, ALIGNED)
    dk1, dk2 = zero_parts(BN, D1, D2, ACC)
    dv1, dv2 = zero_parts(BN, E1, E2, ACC)
    end = tl.minimum(n_queries, (split + 1) * chunk)
    m = tl.arange(0, BM)
    # disable_licm: what would be hoisted out of the loop spills.
    for start in tl.range(split * chunk, end, BM, disable_licm=True):
        within, first = m < end - start, tl.cast(start, tl.int64)
        q1, q2 = load_parts(q + first * q_n, m, q_n, within, DIM, D1, D2, ALIGNED)
        do1, do2 = load_parts(do + first * do_n, m, do_n, within, VDIM, E1, E2, ALIGNED)
        lse_m, delta_m = load_lse_delta(lse + first, delta + first, m, within, ACC)
        s = product(k1, k2, q1, q2, D2, DOT, ACC)
        dp = product(v1, v2, do1, do2, E2, DOT, ACC)
        both = within[None, :] & live[:, None]
        s, s_scale = _biased(
            s, scale, bias, (start + m)[None, :], (tile_start + n)[:, None],
            bias_m, bias_n, both, BIAS,
        )  # fmt: skip
        s = tl.where(both, s * s_scale - lse_m[None, :], float("-inf"))
        p, ds = score_grad(s, dp, delta_m[None, :])
        dv1, dv2 = add_parts(dv1, dv2, p, do1, do2, E2, DOT, ACC)
        dk1, dk2 = add_parts(dk1, dk2, ds, q1, q2, D2, DOT, ACC)
    dk += split.to(tl.int64) * dk_s + batch * dk_b + head * dk_h + tile_start * dk_n
    dv += split.to(tl.int64) * dv_s + batch * dv_b + head * dv_h + tile_start * dv_n
    natural_scale = scale / 1.4426950408889634
    store_parts(dk, n, dk_n, live, dk1 * natural_scale, dk2 * natural_scale, DIM, D1, D2, ALIGNED)
    store_parts(dv, n, dv_n, live, dv1, dv2, VDIM, E1, E2, ALIGNED)


# Launching
# ---------------------------------------------------------------------------------------------


def positive_scale(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """Return q and a scale above 0 that give the same scores, the scale rounded to float32 too."""
    if abs(scale) < 1e-30:
        return torch.zeros_like(q), 1.0
    return (q, scale) if scale > 0 else (-q, -scale)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    scale: float,
    out: Tensor,
    lse: Tensor,
    v_mean: Tensor | None = None,
) -> None:
    """Write softmax(q k^T scale + bias) v + v_mean into out, and its log-sum-exp into lse.

    out (batch, queries, heads, value_dim) and lse (batch, heads, queries) may be views; v_mean is a
    contiguous (batch, 1, heads, value_dim).
    """
    q, k, v = unit_stride(q), unit_stride(k), unit_stride(v)
    q, scale = positive_scale(q, scale)
    batch, n_queries, heads, dim = q.shape
    n_keys, value_dim, acc_dtype = k.shape[1], v.shape[3], launch.acc_dtype(q.dtype)
    all_strides = (
        *strides(q), *strides(k), *strides(v),
        *_bias_strides(bias, batch, heads, n_queries, n_keys), *strides(out), *lse.stride()[:2],
    )  # fmt: skip
    constants: dict[str, Any] = {
        "BIAS": bias is not None,
        "CENTRED": v_mean is not None,
        "ALIGNED": aligned(q, k, v, out),
        **shape_of(dim, value_dim),
        **precision(q),
    }
    head_dim = max(dim, value_dim)
    if n_keys <= MAX_SPREAD and n_queries > n_keys:
        config = launch.config("softmax_spread", q, head_dim, n_queries)
        splits, chunk = launch.splits(n_queries, batch * heads, config["BM"], q.device)
        with launch.on_device(q.device):
            _spread_kernel[launch.grid(splits, batch * heads)](
                q, k, v, bias, v_mean, out, lse, *all_strides,
                n_queries, n_keys, heads, chunk, scale * LOG2E,
                BN=powers(n_keys), **constants, **config,
            )  # fmt: skip
        return
    config = _biased_config("softmax_attend", bias, q, head_dim, n_keys)
    tiles = launch.cdiv(n_queries, config["BM"])
    splits, chunk = launch.splits(n_keys, tiles * batch * heads, config["BN"], q.device)
    part, part_max, part_sum = None, None, None
    if splits > 1:
        part = q.new_empty(splits, batch * heads, n_queries, value_dim, dtype=acc_dtype)
        part_max = q.new_empty(splits, batch * heads, n_queries, dtype=acc_dtype)
        part_sum = torch.empty_like(part_max)
    with launch.on_device(q.device):
        _attend_kernel[launch.grid(tiles, batch * heads, splits)](
            q, k, v, bias, v_mean, out, lse, part, part_max, part_sum, *all_strides,
            n_queries, n_keys, heads, chunk, scale * LOG2E,
            SPLIT=splits > 1, **constants, **config,
        )  # fmt: skip
        if splits > 1:
            config = launch.config("softmax_merge", q, value_dim)
            _merge_kernel[launch.grid(launch.cdiv(n_queries, config["BM"]), batch * heads)](
                part, part_max, part_sum, v_mean, out, lse,
                *strides(out), *lse.stride()[:2], n_queries, heads, splits,
                CENTRED=v_mean is not None, VDIM=value_dim, BE=power(value_dim),
                ALIGNED=aligned(out), ACC=precision(q)["ACC"], **config,
            )  # fmt: skip


def delta_of(do: Tensor, out: Tensor, d_lse: Tensor | None) -> Tensor:
    """Return delta = sum(do * out) - d_lse, (batch, heads, queries)."""
    batch, n_queries, heads, dim = out.shape
    delta = do.new_empty(batch, heads, n_queries, dtype=launch.acc_dtype(do.dtype))
    config = launch.config("softmax_delta", do, dim)
    with launch.on_device(do.device):
        _delta_kernel[launch.grid(launch.cdiv(n_queries, config["BM"]), batch * heads)](
            do, out, d_lse, delta, *strides(do), *strides(out),
            *((0, 0) if d_lse is None else d_lse.stride()[:2]), *delta.stride()[:2],
            n_queries, heads, LSE=d_lse is not None, VDIM=dim, BE=power(dim),
            ALIGNED=aligned(do, out), ACC=precision(do)["ACC"], **config,
        )  # fmt: skip
    return delta


def dq_and_bias(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    delta: Tensor,
    scale: float,
    fills_delta: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return (dq, d_bias in the bias's own shape); `fills_delta` writes delta, not reads it."""
    do, q, k, v = unit_stride(do), unit_stride(q), unit_stride(k), unit_stride(v)
    batch, n_queries, heads, dim = q.shape
    n_keys, value_dim, acc_dtype = k.shape[1], v.shape[3], launch.acc_dtype(q.dtype)
    config = _biased_config("softmax_rows", bias, q, max(dim, value_dim), n_keys)
    tiles = launch.cdiv(n_queries, config["BM"])
    splits, chunk = launch.splits(n_keys, tiles * batch * heads, config["BN"], q.device)
    dtype = acc_dtype if splits > 1 else q.dtype
    dq, d_bias = q.new_empty(splits, batch, n_queries, heads, dim, dtype=dtype), None
    if bias is not None:
        d_bias = q.new_empty(batch, heads, n_queries, n_keys, dtype=acc_dtype)
    with launch.on_device(q.device):
        _dq_kernel[launch.grid(tiles, batch * heads, splits)](
            do, q, k, v, bias, lse, delta, d_bias, dq,
            *strides(do), *strides(q), *strides(k), *strides(v),
            *_bias_strides(bias, batch, heads, n_queries, n_keys),
            *_lse_strides(lse, delta), *dq.stride()[:4],
            n_queries, n_keys, heads, chunk, scale * LOG2E,
            BIAS=bias is not None, DELTA=fills_delta, ALIGNED=aligned(do, q, k, v, dq[0]),
            **shape_of(dim, value_dim), **precision(q), **config,
        )  # fmt: skip
    if bias is not None and d_bias is not None:
        d_bias = d_bias.sum_to_size(bias.shape).to(bias.dtype)
    return _sum_splits(dq, q.dtype), d_bias


def dk_and_dv(
    do: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    delta: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return (dk, dv)."""
    do, q, k, v = unit_stride(do), unit_stride(q), unit_stride(k), unit_stride(v)
    batch, n_queries, heads, dim = q.shape
    n_keys, value_dim, acc_dtype = k.shape[1], v.shape[3], launch.acc_dtype(q.dtype)
    config = launch.config("softmax_columns", q, max(dim, value_dim), n_queries)
    tiles = launch.cdiv(n_keys, config["BN"])
    splits, chunk = launch.splits(n_queries, tiles * batch * heads, config["BM"], q.device)
    dtype = acc_dtype if splits > 1 else q.dtype
    dk = q.new_empty(splits, batch, n_keys, heads, dim, dtype=dtype)
    dv = q.new_empty(splits, batch, n_keys, heads, value_dim, dtype=dtype)
    with launch.on_device(q.device):
        _dkv_kernel[launch.grid(tiles, batch * heads, splits)](
            do, q, k, v, bias, lse, delta, dk, dv,
            *strides(do), *strides(q), *strides(k), *strides(v),
            *_bias_strides(bias, batch, heads, n_queries, n_keys),
            *_lse_strides(lse, delta), *dk.stride()[:4], *dv.stride()[:4],
            n_queries, n_keys, heads, chunk, scale * LOG2E,
            BIAS=bias is not None, ALIGNED=aligned(do, q, k, v, dk[0], dv[0]),
            **shape_of(dim, value_dim), **precision(q), **config,
        )  # fmt: skip
    return _sum_splits(dk, q.dtype), _sum_splits(dv, q.dtype)


def _biased_config(
    kernel: str, bias: Tensor | None, like: Tensor, dim: int, tokens: int
) -> dict[str, int]:
    """Return the configuration; with a bias, which takes more registers, that of a smaller tile."""
    config = launch.config(kernel, like, dim, tokens)
    return config if bias is None else config | launch.config("softmax_biased", like, dim, tokens)


def _sum_splits(partial: Tensor, dtype: torch.dtype) -> Tensor:
    return partial[0] if partial.shape[0] == 1 else partial.sum(0).to(dtype)


def _bias_strides(bias: Tensor | None, *shape: int) -> tuple[int, ...]:
    return (0, 0, 0, 0) if bias is None else bias.expand(shape).stride()


def _lse_strides(lse: Tensor, delta: Tensor) -> tuple[int, int]:
    """Return the strides that lse and delta must share."""
    if lse.stride() != delta.stride():
        raise ValueError(
            f"log-sum-exp has strides {lse.stride()}, delta {delta.stride()}; slice both alike"
        )
    return lse.stride(0), lse.stride(1)
