"""Tile attention in Triton: a block of one tile's queries walks the tokens of the kept tiles.

- Blocks of keys run on over the kept tiles, since one tile of 4 x 4 would be a poor product: a
  key's address follows from the number of its tile and its place there.
- Means come first, so that their share of the weights is what the running sum was then. A mask of
  tiles x tiles says which are kept: (N / tile^2)^2 bytes a head.
- Gradients of a tile's keys walk the tiles of queries that keep it, which are sorted out of `kept`
  in PyTorch. Nothing is added atomically, so that gradients are the same every time.
- A threshold takes a pass over the scores beforehand, for the largest of each row.
- Text queries, and the gradients of the text's keys, are plain softmax attention with one short
  side (`softmax_triton`).
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from linattn_kernels import launch
from linattn_kernels.launch import strides, unit_stride
from linattn_kernels.softmax_triton import (
    LOG2E,
    attend,
    attend_step,
    delta_of,
    dk_and_dv,
    dq_and_bias,
    load_lse_delta,
    score_grad,
)
from linattn_kernels.tiles import (
    add_parts,
    aligned,
    load_parts,
    powers,
    precision,
    product,
    shape_of,
    store_parts,
    zero_parts,
)

# Not specialised, so that no kernel is compiled again for another picture.
SIZES = ["height", "width", "across", "tiles", "count", "text"]


@triton.jit
def _place(number, at, height, width, across, text, TILE: tl.constexpr):
    """Return (token, inside) of place `at` in a tile, in 64 bits; both may be blocks."""
    y = (number // across) * TILE + at // TILE
    x = (number % across) * TILE + at % TILE
    inside = (y < height) & (x < width) & (at < TILE * TILE)
    return (text + y * width + x).to(tl.int64), inside


@triton.jit
def _listed(names, start, end, height, width, across, text, n, TILE: tl.constexpr):
    """Return (token, inside) of the tokens of listed tiles, from the n-th on."""
    AREA: tl.constexpr = TILE * TILE
    listed = start + n // AREA
    number = tl.load(names + listed, mask=listed < end, other=0).to(tl.int32)
    token, inside = _place(number, n % AREA, height, width, across, text, TILE)
    return token, inside & (listed < end)


@triton.jit
def _log_size(number, height, width, across, TILE: tl.constexpr):
    """Return the base-2 logarithm of the number of tokens of tiles, 0 beyond the last."""
    rows = tl.minimum(height - (number // across) * TILE, TILE)
    columns = tl.minimum(width - (number % across) * TILE, TILE)
    return tl.log2(tl.maximum(rows * columns, 1).to(tl.float32))


@triton.jit
def _larger(largest, s, scale, read):
    """Return the largest score of each row so far, in base 2."""
    return tl.maximum(largest, tl.max(tl.where(read[None, :], s * scale, float("-inf")), 1))


@triton.jit
def _mean_scores(s, scale, floor_m, skipped, log_size, FLOOR: tl.constexpr):
    """Return the scores of means in base 2, with their tokens; -inf where they are not read."""
    s = s * scale
    read = skipped[None, :]
    if FLOOR:
        read = read & (s >= floor_m[:, None])
    return tl.where(read, s + log_size[None, :], float("-inf"))


@triton.jit
def _key_scores(s, scale, floor_m, inside, FLOOR: tl.constexpr):
    """Return the scores of kept keys, in base 2; -inf where they are not read."""
    s = s * scale
    read = inside[None, :]
    if FLOOR:
        read = read & (s >= floor_m[:, None])
    return tl.where(read, s, float("-inf"))


@triton.jit(do_not_specialize=SIZES)
def _floor_kernel(
    q, k, mean_k, kept, mask, floor,
    q_b, q_n, q_h, k_b, k_n, k_h, mk_b, mk_n, mk_h, lse_b, lse_h,
    height, width, across, tiles, count, text, heads, scale, least,
    MEANS: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Store the least score, in base 2, that a row's keys need to be read."""
    AREA: tl.constexpr = TILE * TILE
    BLOCKS: tl.constexpr = (AREA + BM - 1) // BM
    tile, bh = tl.program_id(0) // BLOCKS, tl.program_id(1)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    q += batch * q_b + head * q_h
    k += batch * k_b + head * k_h
    row = bh.to(tl.int64) * tiles + tile
    at, n = (tl.program_id(0) % BLOCKS) * BM + tl.arange(0, BM), tl.arange(0, BN)
    m, within = _place(tile, at, height, width, across, text, TILE)
    q1, q2 = load_parts(q, m, q_n, within, DIM, D1, D2, ALIGNED)
    largest = tl.full((BM,), float("-inf"), ACC)
    for start in range(0, text, BN):
        live = n < text - start
        k1, k2 = load_parts(k, start + n.to(tl.int64), k_n, live, DIM, D1, D2, ALIGNED)
        s = product(q1, q2, k1, k2, D2, DOT, ACC)
        largest = _larger(largest, s, scale, live)
    if MEANS:
        mean_k += batch * mk_b + head * mk_h
        for start in range(0, tiles, BN):
            live = n < tiles - start
            k1, k2 = load_parts(mean_k, start + n.to(tl.int64), mk_n, live, DIM, D1, D2, ALIGNED)
            s = product(q1, q2, k1, k2, D2, DOT, ACC)
            skipped = tl.load(mask + row * tiles + start + n, mask=live, other=0) != 0
            largest = _larger(largest, s, scale, skipped)
    for start in range(0, count * AREA, BN):
        token, inside = _listed(
            kept + row * count, 0, count, height, width, across, text, start + n, TILE
        )
        k1, k2 = load_parts(k, token, k_n, inside, DIM, D1, D2, ALIGNED)
        s = product(q1, q2, k1, k2, D2, DOT, ACC)
        largest = _larger(largest, s, scale, inside)
    tl.store(floor + batch * lse_b + head * lse_h + m, largest + least, mask=within)


@triton.jit(do_not_specialize=SIZES)
def _forward_kernel(
    q, k, v, mean_k, mean_v, kept, mask, floor, out, lse, share,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, mk_b, mk_n, mk_h, mv_b, mv_n, mv_h,
    out_b, out_n, out_h, lse_b, lse_h,
    height, width, across, tiles, count, text, heads, scale,
    MEANS: tl.constexpr, FLOOR: tl.constexpr, TILE: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    VDIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Attend with a block of a tile's queries to means, text and kept tiles."""
    AREA: tl.constexpr = TILE * TILE
    BLOCKS: tl.constexpr = (AREA + BM - 1) // BM
    tile, bh = tl.program_id(0) // BLOCKS, tl.program_id(1)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    q += batch * q_b + head * q_h
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    row = bh.to(tl.int64) * tiles + tile
    at, n = (tl.program_id(0) % BLOCKS) * BM + tl.arange(0, BM), tl.arange(0, BN)
    m, within = _place(tile, at, height, width, across, text, TILE)
    q1, q2 = load_parts(q, m, q_n, within, DIM, D1, D2, ALIGNED)
    acc1, acc2 = zero_parts(BM, E1, E2, ACC)
    row_max, row_sum = tl.full((BM,), float("-inf"), ACC), tl.zeros((BM,), ACC)
    row_at = batch * lse_b + head * lse_h + m
    floor_m = row_sum
    if FLOOR:
        floor_m = tl.load(floor + row_at, mask=within, other=0.0)
    if MEANS:
        mean_k += batch * mk_b + head * mk_h
        mean_v += batch * mv_b + head * mv_h
        for start in range(0, tiles, BN):
            live, number = n < tiles - start, start + n
            k1, k2 = load_parts(mean_k, number.to(tl.int64), mk_n, live, DIM, D1, D2, ALIGNED)
            s = product(q1, q2, k1, k2, D2, DOT, ACC)
            skipped = tl.load(mask + row * tiles + number, mask=live, other=0) != 0
            log_size = _log_size(number, height, width, across, TILE)
            s = _mean_scores(s, scale, floor_m, skipped, log_size, FLOOR)
            row_max, row_sum, acc1, acc2 = attend_step(
                s, 1.0, row_max, row_sum, acc1, acc2, mean_v, number.to(tl.int64), mv_n, live,
                VDIM, E1, E2, ALIGNED, DOT, ACC,
            )  # fmt: skip
    mean_max, mean_sum = row_max, row_sum
    for start in range(0, text, BN):
        live, token = n < text - start, start + n.to(tl.int64)
        k1, k2 = load_parts(k, token, k_n, live, DIM, D1, D2, ALIGNED)
        s = product(q1, q2, k1, k2, D2, DOT, ACC) * scale
        s = tl.where(live[None, :], s, float("-inf"))
        row_max, row_sum, acc1, acc2 = attend_step(
            s, 1.0, row_max, row_sum, acc1, acc2, v, token, v_n, live,
            VDIM, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
    for start in range(0, count * AREA, BN):
        token, inside = _listed(
            kept + row * count, 0, count, height, width, across, text, start + n, TILE
        )
        k1, k2 = load_parts(k, token, k_n, inside, DIM, D1, D2, ALIGNED)
        s = product(q1, q2, k1, k2, D2, DOT, ACC)
        s = _key_scores(s, scale, floor_m, inside, FLOOR)
        row_max, row_sum, acc1, acc2 = attend_step(
            s, 1.0, row_max, row_sum, acc1, acc2, v, token, v_n, inside,
            VDIM, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
    row_sum = tl.where(row_sum == 0, 1.0, row_sum)  # of rows outside the picture
    row_max = tl.where(row_max == float("-inf"), 0.0, row_max)
    inv_sum = (1.0 / row_sum)[:, None]
    out += batch * out_b + head * out_h
    store_parts(out, m, out_n, within, acc1 * inv_sum, acc2 * inv_sum, VDIM, E1, E2, ALIGNED)
    tl.store(lse + row_at, (row_max + tl.log2(row_sum)) / 1.4426950408889634, mask=within)
    if MEANS:
        tl.store(share + row_at, mean_sum * tl.exp2(mean_max - row_max) / row_sum, mask=within)


@triton.jit(do_not_specialize=SIZES)
def _tile_dq_kernel(
    do, q, k, v, mean_k, mean_v, kept, mask, floor, lse, delta, mean_delta, dq,
    do_b, do_n, do_h, q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    mk_b, mk_n, mk_h, mv_b, mv_n, mv_h, dq_b, dq_n, dq_h, lse_b, lse_h,
    height, width, across, tiles, count, text, heads, scale,
    MEANS: tl.constexpr, FLOOR: tl.constexpr, TILE: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    VDIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Compute dq of a block of a tile's queries, on the same walk as the forward."""
    AREA: tl.constexpr = TILE * TILE
    BLOCKS: tl.constexpr = (AREA + BM - 1) // BM
    tile, bh = tl.program_id(0) // BLOCKS, tl.program_id(1)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    do += batch * do_b + head * do_h
    q += batch * q_b + head * q_h
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    row = bh.to(tl.int64) * tiles + tile
    at, n = (tl.program_id(0) % BLOCKS) * BM + tl.arange(0, BM), tl.arange(0, BN)
    m, within = _place(tile, at, height, width, across, text, TILE)
    q1, q2 = load_parts(q, m, q_n, within, DIM, D1, D2, ALIGNED)
    do1, do2 = load_parts(do, m, do_n, within, VDIM, E1, E2, ALIGNED)
    acc1, acc2 = zero_parts(BM, D1, D2, ACC)
    row_at = batch * lse_b + head * lse_h + m
    lse_m, delta_m = load_lse_delta(lse, delta, row_at, within, ACC)
    floor_m = lse_m
    if FLOOR:
        floor_m = tl.load(floor + row_at, mask=within, other=0.0)
    if MEANS:
        mean_k += batch * mk_b + head * mk_h
        mean_v += batch * mv_b + head * mv_h
        mean_delta_m = tl.load(mean_delta + row_at, mask=within, other=0.0)
        for start in range(0, tiles, BN):
            live, number = n < tiles - start, start + n
            mean = number.to(tl.int64)
            k1, k2 = load_parts(mean_k, mean, mk_n, live, DIM, D1, D2, ALIGNED)
            v1, v2 = load_parts(mean_v, mean, mv_n, live, VDIM, E1, E2, ALIGNED)
            s = product(q1, q2, k1, k2, D2, DOT, ACC)
            dp = product(do1, do2, v1, v2, E2, DOT, ACC)
            skipped = tl.load(mask + row * tiles + number, mask=live, other=0) != 0
            log_size = _log_size(number, height, width, across, TILE)
            s = _mean_scores(s, scale, floor_m, skipped, log_size, FLOOR)
            _, ds = score_grad(s - lse_m[:, None], dp, mean_delta_m[:, None])
            acc1, acc2 = add_parts(acc1, acc2, ds, k1, k2, D2, DOT, ACC)
    for start in range(0, text, BN):
        live, token = n < text - start, start + n.to(tl.int64)
        k1, k2 = load_parts(k, token, k_n, live, DIM, D1, D2, ALIGNED)
        v1, v2 = load_parts(v, token, v_n, live, VDIM, E1, E2, ALIGNED)
        s = product(q1, q2, k1, k2, D2, DOT, ACC) * scale - lse_m[:, None]
        dp = product(do1, do2, v1, v2, E2, DOT, ACC)
        _, ds = score_grad(tl.where(live[None, :], s, float("-inf")), dp, delta_m[:, None])
        acc1, acc2 = add_parts(acc1, acc2, ds, k1, k2, D2, DOT, ACC)
    for start in range(0, count * AREA, BN):
        token, inside = _listed(
            kept + row * count, 0, count, height, width, across, text, start + n, TILE
        )
        k1, k2 = load_parts(k, token, k_n, inside, DIM, D1, D2, ALIGNED)
        v1, v2 = load_parts(v, token, v_n, inside, VDIM, E1, E2, ALIGNED)
        s = product(q1, q2, k1, k2, D2, DOT, ACC)
        dp = product(do1, do2, v1, v2, E2, DOT, ACC)
        s = _key_scores(s, scale, floor_m, inside, FLOOR)
        _, ds = score_grad(s - lse_m[:, None], dp, delta_m[:, None])
        acc1, acc2 = add_parts(acc1, acc2, ds, k1, k2, D2, DOT, ACC)
    natural_scale = scale / 1.4426950408889634
    dq += batch * dq_b + head * dq_h
    acc1, acc2 = acc1 * natural_scale, acc2 * natural_scale
    store_parts(dq, m, dq_n, within, acc1, acc2, DIM, D1, D2, ALIGNED)


@triton.jit
def _add_dkv(
    dk1, dk2, dv1, dv2, k1, k2, v1, v2, q, q_n, do, do_n, lse, delta, floor, m, live, read, scale,
    log_size, FLOOR: tl.constexpr, DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    VDIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Add a block of queries m to dk and dv; `read` says which of its scores count.

    Scores are (keys, queries) here, so that they are the left operand of both products.
    """
    q1, q2 = load_parts(q, m, q_n, live, DIM, D1, D2, ALIGNED)
    do1, do2 = load_parts(do, m, do_n, live, VDIM, E1, E2, ALIGNED)
    lse_m, delta_m = load_lse_delta(lse, delta, m, live, ACC)
    s = product(k1, k2, q1, q2, D2, DOT, ACC) * scale
    if FLOOR:
        read = read & (s >= tl.load(floor + m, mask=live, other=0.0)[None, :])
    s = tl.where(read, s + log_size - lse_m[None, :], float("-inf"))
    dp = product(v1, v2, do1, do2, E2, DOT, ACC)
    p, ds = score_grad(s, dp, delta_m[None, :])
    dv1, dv2 = add_parts(dv1, dv2, p, do1, do2, E2, DOT, ACC)
    dk1, dk2 = add_parts(dk1, dk2, ds, q1, q2, D2, DOT, ACC)
    return dk1, dk2, dv1, dv2


@triton.jit(do_not_specialize=SIZES)
def _tile_dkv_kernel(
    do, q, k, v, readers, first, floor, lse, delta, dk, dv,
    do_b, do_n, do_h, q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    dk_b, dk_n, dk_h, dv_b, dv_n, dv_h, lse_b, lse_h,
    height, width, across, tiles, count, text, heads, scale,
    FLOOR: tl.constexpr, TILE: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    VDIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Compute dk and dv of a block of a tile's keys, from the text and the tiles that keep it."""
    AREA: tl.constexpr = TILE * TILE
    BLOCKS: tl.constexpr = (AREA + BN - 1) // BN
    tile, bh = tl.program_id(0) // BLOCKS, tl.program_id(1)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    do += batch * do_b + head * do_h
    q += batch * q_b + head * q_h
    lse += batch * lse_b + head * lse_h
    delta += batch * lse_b + head * lse_h
    at, m = (tl.program_id(0) % BLOCKS) * BN + tl.arange(0, BN), tl.arange(0, BM)
    n, inside = _place(tile, at, height, width, across, text, TILE)
    k1, k2 = load_parts(k + batch * k_b + head * k_h, n, k_n, inside, DIM, D1, D2, ALIGNED)
    v1, v2 = load_parts(v + batch * v_b + head * v_h, n, v_n, inside, VDIM, E1, E2, ALIGNED)
    dk1, dk2 = zero_parts(BN, D1, D2, ACC)
    dv1, dv2 = zero_parts(BN, E1, E2, ACC)
    for start in range(0, text, BM):
        live = m < text - start
        dk1, dk2, dv1, dv2 = _add_dkv(
            dk1, dk2, dv1, dv2, k1, k2, v1, v2, q, q_n, do, do_n, lse, delta, lse,
            start + m.to(tl.int64), live, live[None, :] & inside[:, None], scale, 0.0, False,
            DIM, D1, D2, VDIM, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
    if FLOOR:
        floor += batch * lse_b + head * lse_h
    row = bh.to(tl.int64)
    begin = tl.load(first + row * (tiles + 1) + tile).to(tl.int32)
    end = tl.load(first + row * (tiles + 1) + tile + 1).to(tl.int32)
    readers += row * tiles * count
    for start in range(0, (end - begin) * AREA, BM):
        token, live = _listed(readers, begin, end, height, width, across, text, start + m, TILE)
        dk1, dk2, dv1, dv2 = _add_dkv(
            dk1, dk2, dv1, dv2, k1, k2, v1, v2, q, q_n, do, do_n, lse, delta, floor,
            token, live, live[None, :] & inside[:, None], scale, 0.0, FLOOR,
            DIM, D1, D2, VDIM, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
    natural_scale = scale / 1.4426950408889634
    dk += batch * dk_b + head * dk_h
    dv += batch * dv_b + head * dv_h
    dk1, dk2 = dk1 * natural_scale, dk2 * natural_scale
    store_parts(dk, n, dk_n, inside, dk1, dk2, DIM, D1, D2, ALIGNED)
    store_parts(dv, n, dv_n, inside, dv1, dv2, VDIM, E1, E2, ALIGNED)


@triton.jit(do_not_specialize=SIZES)
def _mean_dkv_kernel(
    do, q, mean_k, mean_v, mask, floor, lse, delta, d_mean_k, d_mean_v,
    do_b, do_n, do_h, q_b, q_n, q_h, mk_b, mk_n, mk_h, mv_b, mv_n, mv_h,
    dmk_b, dmk_n, dmk_h, dmv_b, dmv_n, dmv_h, lse_b, lse_h,
    height, width, across, tiles, count, text, heads, scale,
    FLOOR: tl.constexpr, TILE: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    VDIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a block of means, from all queries of the picture."""
    bh = tl.program_id(1)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    do += batch * do_b + head * do_h + text * do_n
    q += batch * q_b + head * q_h + text * q_n
    lse += batch * lse_b + head * lse_h + text
    delta += batch * lse_b + head * lse_h + text
    if FLOOR:
        floor += batch * lse_b + head * lse_h + text
    mask += bh.to(tl.int64) * tiles * tiles
    number, m = tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, BM)
    mean, inside = number.to(tl.int64), number < tiles
    mean_k += batch * mk_b + head * mk_h
    k1, k2 = load_parts(mean_k, mean, mk_n, inside, DIM, D1, D2, ALIGNED)
    mean_v += batch * mv_b + head * mv_h
    v1, v2 = load_parts(mean_v, mean, mv_n, inside, VDIM, E1, E2, ALIGNED)
    log_size = _log_size(number, height, width, across, TILE)[:, None]
    dk1, dk2 = zero_parts(BN, D1, D2, ACC)
    dv1, dv2 = zero_parts(BN, E1, E2, ACC)
    for start in range(0, height * width, BM):
        token = start + m
        live = token < height * width
        tile = (token // width // TILE) * across + token % width // TILE
        both = live[None, :] & inside[:, None]
        at = tile.to(tl.int64)[None, :] * tiles + mean[:, None]
        read = tl.load(mask + at, mask=both, other=0) != 0
        dk1, dk2, dv1, dv2 = _add_dkv(
            dk1, dk2, dv1, dv2, k1, k2, v1, v2, q, q_n, do, do_n, lse, delta, floor,
            token.to(tl.int64), live, read, scale, log_size, FLOOR,
            DIM, D1, D2, VDIM, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
    natural_scale = scale / 1.4426950408889634
    d_mean_k += batch * dmk_b + head * dmk_h
    d_mean_v += batch * dmv_b + head * dmv_h
    dk1, dk2 = dk1 * natural_scale, dk2 * natural_scale
    store_parts(d_mean_k, mean, dmk_n, inside, dk1, dk2, DIM, D1, D2, ALIGNED)
    store_parts(d_mean_v, mean, dmv_n, inside, dv1, dv2, VDIM, E1, E2, ALIGNED)


# Launching
# ---------------------------------------------------------------------------------------------


class _Call:
    """Hold what every launch of one call shares."""

    def __init__(self, q, k, v, mean_k, mean_v, kept, height, width, tile, text, scale, least):
        self.q, self.k, self.v = unit_stride(q), unit_stride(k), unit_stride(v)
        self.mean_k, self.mean_v = unit_stride(mean_k), unit_stride(mean_v)
        self.kept, self.tile, self.text, self.scale = kept.contiguous(), tile, text, scale
        self.batch, self.tokens, self.heads, dim = q.shape
        self.dim = max(dim, v.shape[3])
        self.tiles, self.count = kept.shape[2:]
        across = launch.cdiv(width, tile)
        numbers = (height, width, across, self.tiles, self.count, text, self.heads)
        self.numbers = (*numbers, scale * LOG2E)
        self.mask = None if mean_k is None else self._mask()
        self.constants = {"TILE": tile, **shape_of(dim, v.shape[3]), **precision(q)}
        self.floor = None if least == -math.inf else self._floor(least * LOG2E)

    def _mask(self) -> Tensor:
        """Return 1 where a tile is not kept, (batch, heads, tiles, tiles)."""
        shape = (*self.kept.shape[:3], self.tiles)
        mask = torch.ones(shape, dtype=torch.uint8, device=self.kept.device)
        return mask.scatter_(3, self.kept, 0)

    def _floor(self, least: float) -> Tensor:
        floor = self.rows()
        tensors = (self.q, self.k, self.mean_k)
        constants = {
            name: self.constants[name] for name in ("TILE", "DIM", "D1", "D2", "DOT", "ACC")
        }
        config = self.config("tile_forward", "BM")
        with launch.on_device(self.q.device):
            _floor_kernel[self.grid(config["BM"])](
                *tensors, self.kept, self.mask, floor, *_strides(*tensors), *floor.stride()[:2],
                *self.numbers, least,
                MEANS=self.mean_k is not None, ALIGNED=aligned(*tensors), **constants, **config,
            )  # fmt: skip
        return floor

    def rows(self) -> Tensor:
        """Return an empty (batch, heads, tokens) for sums."""
        dtype = launch.acc_dtype(self.q.dtype)
        return self.q.new_empty(self.batch, self.heads, self.tokens, dtype=dtype)

    def config(self, kernel: str, of_tile: str = "") -> dict[str, int]:
        """Return a kernel's configuration; a block `of_tile` is no larger than a tile."""
        config = launch.config(kernel, self.q, self.dim, self.tokens)
        if of_tile:
            config = config | {of_tile: min(config[of_tile], powers(self.tile**2))}
        return config

    def grid(self, block: int) -> tuple[int, ...]:
        blocks = launch.cdiv(self.tile**2, block)
        return launch.grid(self.tiles * blocks, self.batch * self.heads)

    def readers(self) -> tuple[Tensor, Tensor]:
        """Return the tiles of queries that keep each tile of keys, one list, and where it begins.

        The list is (batch, heads, tiles * count), the beginnings (batch, heads, tiles + 1).
        """
        ordered, order = self.kept.flatten(2).sort(stable=True)
        numbers = torch.arange(self.tiles + 1, device=self.kept.device)
        numbers = numbers.expand(self.batch, self.heads, -1).contiguous()
        return order // self.count, torch.searchsorted(ordered, numbers)


def tile(q, k, v, mean_k, mean_v, kept, height, width, tile, text, scale, least, return_lse):
    options = (height, width, tile, text, scale, least)
    out = q.new_empty(*q.shape[:3], v.shape[3])
    call = _Call(q, k, v, mean_k, mean_v, kept, *options)
    lse, share = call.rows(), q.new_empty(0, dtype=launch.acc_dtype(q.dtype))
    if mean_k is not None:
        share = torch.zeros_like(lse)
    if not out.numel():
        return out, lse, share
    if text:  # the programs that run longest start first
        attend(call.q[:, :text], call.k, call.v, None, scale, out[:, :text], lse[:, :, :text])
    tensors = (call.q, call.k, call.v, call.mean_k, call.mean_v)
    config = call.config("tile_forward", "BM")
    with launch.on_device(q.device):
        _forward_kernel[call.grid(config["BM"])](
            *tensors, call.kept, call.mask, call.floor, out, lse, share,
            *_strides(*tensors, out), *lse.stride()[:2], *call.numbers,
            MEANS=mean_k is not None, FLOOR=call.floor is not None,
            ALIGNED=aligned(*tensors, out), **call.constants, **config,
        )  # fmt: skip
    return out, lse, share


def tile_backward(
    do, d_lse, d_share, q, k, v, mean_k, mean_v, kept, out, lse, share,
    height, width, tile, text, scale, least,
):  # fmt: skip
    d_mean_k, d_mean_v = q.new_empty(0), q.new_empty(0)
    dq, dk, dv = launch.empty_like(q), launch.empty_like(k), launch.empty_like(v)
    if mean_k is not None:
        d_mean_k, d_mean_v = launch.empty_like(mean_k), launch.empty_like(mean_v)
    if not q.numel():
        return dq, dk, dv, d_mean_k.zero_(), d_mean_v.zero_()
    do = unit_stride(do)
    call = _Call(q, k, v, mean_k, mean_v, kept, height, width, tile, text, scale, least)
    delta, mean_delta = _deltas(do, out, share, d_lse, d_share)
    _queries(call, do, lse, delta, mean_delta, dq)
    _keys(call, do, lse, delta, dk, dv)
    if mean_k is not None:
        _means(call, do, lse, mean_delta, d_mean_k, d_mean_v)
    if text:
        of_text = (lse[:, :, :text], delta[:, :, :text])
        dq[:, :text], _ = dq_and_bias(
            do[:, :text], call.q[:, :text], call.k, call.v, None, *of_text, scale
        )
        text_k, text_v = call.k[:, :text], call.v[:, :text]
        dk[:, :text], dv[:, :text] = dk_and_dv(do, call.q, text_k, text_v, None, lse, delta, scale)
    return dq, dk, dv, d_mean_k, d_mean_v


def _deltas(do, out, share, d_lse, d_share) -> tuple[Tensor, Tensor]:
    """Return delta of keys and of means, whose weights also add up to the share."""
    if d_share is not None:
        of_share = d_share * share
        d_lse = -of_share if d_lse is None else d_lse - of_share
    delta = delta_of(do, out, None if d_lse is None else d_lse.contiguous())
    return delta, delta if d_share is None else delta - d_share


def _queries(call: _Call, do, lse, delta, mean_delta, dq) -> None:
    """Write dq of the picture's queries."""
    tensors = (do, call.q, call.k, call.v, call.mean_k, call.mean_v)
    config = call.config("tile_queries", "BM")
    with launch.on_device(do.device):
        _tile_dq_kernel[call.grid(config["BM"])](
            *tensors, call.kept, call.mask, call.floor, lse, delta, mean_delta, dq,
            *_strides(*tensors, dq), *lse.stride()[:2], *call.numbers,
            MEANS=call.mean_k is not None, FLOOR=call.floor is not None,
            ALIGNED=aligned(*tensors, dq), **call.constants, **config,
        )  # fmt: skip


def _keys(call: _Call, do, lse, delta, dk, dv) -> None:
    """Write dk and dv of the picture's keys, without what their means get."""
    tensors = (do, call.q, call.k, call.v)
    config = call.config("tile_keys", "BN")
    with launch.on_device(do.device):
        _tile_dkv_kernel[call.grid(config["BN"])](
            *tensors, *call.readers(), call.floor, lse, delta, dk, dv,
            *_strides(*tensors, dk, dv), *lse.stride()[:2], *call.numbers,
            FLOOR=call.floor is not None, ALIGNED=aligned(*tensors, dk, dv),
            **call.constants, **config,
        )  # fmt: skip


def _means(call: _Call, do, lse, mean_delta, d_mean_k, d_mean_v) -> None:
    """Write the gradients of the means."""
    tensors, gradients = (do, call.q, call.mean_k, call.mean_v), (d_mean_k, d_mean_v)
    config = call.config("tile_means")
    programs = launch.grid(launch.cdiv(call.tiles, config["BN"]), call.batch * call.heads)
    with launch.on_device(do.device):
        _mean_dkv_kernel[programs](
            *tensors, call.mask, call.floor, lse, mean_delta, *gradients,
            *_strides(*tensors, *gradients), *lse.stride()[:2], *call.numbers,
            FLOOR=call.floor is not None, ALIGNED=aligned(*tensors, *gradients),
            **call.constants, **config,
        )  # fmt: skip


def _strides(*tensors: Tensor | None) -> tuple[int, ...]:
    """Return the tensors' strides; a token's offset is of 64 bits, so none is too far."""
    return tuple(stride for tensor in tensors for stride in strides(tensor, 1))
