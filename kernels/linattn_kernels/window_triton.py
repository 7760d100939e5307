"""Window attention in Triton, on tiles of the picture in raster order, without a mask in memory.

- A program owns a tile of rows x columns of the picture. Raster order would read ten times the
  needed keys at 256 tokens a row and radius 16; tiles of 8 x 8 read twice. (Tiles of 8 x 16 draw
  less from the L2, but leave no room for a second program on a multiprocessor: 3.77 ms to 3.02 at
  64K tokens of FLUX on an H200.)
- The keys that a tile of queries can reach lie in a box, which is walked in tiles of keys from its
  corner. At radius 16 and below hardly any of them lies wholly inside a window, so each is masked,
  by arithmetic on coordinates in float32: exact below 2048, and twice as fast as integers.
- Text and extra keys come first, unmasked. Text queries, and the gradients of text and extra keys,
  are plain softmax attention with one short side (`softmax_triton`).
"""

import math
from typing import Any

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
    positive_scale,
    score_grad,
)
from linattn_kernels.tiles import (
    add_parts,
    aligned,
    load_parts,
    precision,
    product,
    shape_of,
    store_parts,
    zero_parts,
)

# Not specialised, so that no kernel is compiled again for another picture.
SIZES = ["height", "width", "across", "far", "text", "extra"]


@triton.jit
def _tile_offsets(width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return (row, column, offset) of a tile's tokens from its first, the same for all tiles."""
    i = tl.arange(0, ROWS * COLUMNS)
    y = i // COLUMNS
    # Not i % COLUMNS: that would hide from the compiler which of a thread's tokens share a column.
    x = i - y * COLUMNS
    return y, x, y * width + x


@triton.jit
def _tile_tokens(tile, across, height, width, text, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return (first token, offsets, y, x, inside) of a tile's tokens; y and x are in float32."""
    y, x, n = _tile_offsets(width, ROWS, COLUMNS)
    top, left = (tile // across) * ROWS, (tile % across) * COLUMNS
    inside = (y < height - top) & (x < width - left)
    first = (text + top * width + left).to(tl.int64)
    return first, n, (top + y).to(tl.float32), (left + x).to(tl.float32), inside


@triton.jit
def _mask(s, y, x, other_y, other_x, far, limit, DISC: tl.constexpr, FUSED: tl.constexpr):
    """Set the scores of tokens outside each other's windows to -inf.

    The coordinates are in float32 and broadcast against each other. `distance` depends on the
    columns alone and `reach` on the rows alone, so the compiler computes each once, and a score
    costs a comparison and a selection. If FUSED, both are one piece of inline assembly: otherwise
    the compiler makes the masks before the scores are there and keeps a bit for each, for which
    there are too few registers.
    """
    dy, dx = y - other_y, x - other_x
    if DISC:
        distance, reach = dx * dx, limit - dy * dy
    else:
        distance, reach = tl.abs(dx), tl.where(tl.abs(dy) <= far, far.to(tl.float32), -1.0)
    distance, reach = tl.broadcast_to(distance, s.shape), tl.broadcast_to(reach, s.shape)
    if FUSED:
        return tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.le.f32 p, $2, $3; selp.f32 $0, $1, 0fFF800000, p; }",
            "=f,f,f,f", [s, distance, reach], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    return tl.where(distance <= reach, s, float("-inf"))


@triton.jit
def _box(tile, across, far, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return (first row, end, first column, end) of what the windows of a tile can reach."""
    y, x = (tile // across) * ROWS, (tile % across) * COLUMNS
    return (
        tl.maximum(y - far, 0),
        tl.minimum(y + ROWS + far, height),
        tl.maximum(x - far, 0),
        tl.minimum(x + COLUMNS + far, width),
    )


@triton.jit
def _next_corner(at_y, at_x, box, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the corner of the box's next tile."""
    _, _, first_x, end_x = box
    over = at_x + COLUMNS >= end_x
    return tl.where(over, at_y + ROWS, at_y), tl.where(over, first_x, at_x + COLUMNS)


@triton.jit
def _box_tile(at_y, at_x, box, rows, columns):
    """Return (y, x, inside) of the tile at a corner; y and x are float32, 1e18 outside the box."""
    _, end_y, _, end_x = box
    low, left = rows < end_y - at_y, columns < end_x - at_x
    y = tl.where(low, (at_y + rows).to(tl.float32), 1e18)
    return y, tl.where(left, (at_x + columns).to(tl.float32), 1e18), low & left


@triton.jit
def _count_tiles(box, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    first_y, end_y, first_x, end_x = box
    return tl.cdiv(end_y - first_y, ROWS) * tl.cdiv(end_x - first_x, COLUMNS)


@triton.jit
def _attend_shared_keys(
    q1, q2, row_max, row_sum, acc1, acc2, k, k_n, v, v_n, count, scale, BN: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    VDIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Attend to the first `count` keys, text or extra, which every query of the tile sees."""
    n = tl.arange(0, BN)
    for start in range(0, count, BN):
        live, first = n < count - start, tl.cast(start, tl.int64)
        k1, k2 = load_parts(k + first * k_n, n, k_n, live, DIM, D1, D2, ALIGNED)
        s = tl.where(live[None, :], product(q1, q2, k1, k2, D2, DOT, ACC), float("-inf"))
        row_max, row_sum, acc1, acc2 = attend_step(
            s, scale, row_max, row_sum, acc1, acc2, v + first * v_n, n, v_n, live,
            VDIM, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
    return row_max, row_sum, acc1, acc2


@triton.jit(do_not_specialize=SIZES)
def _forward_kernel(
    q, k, v, extra_k, extra_v, out, lse,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, ek_b, ek_n, ek_h, ev_b, ev_n, ev_h,
    out_b, out_n, out_h, lse_b, lse_h,
    height, width, across, far, limit, text, extra, heads, scale,
    DISC: tl.constexpr, FUSED: tl.constexpr, EXTRA: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    VDIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    QY: tl.constexpr, QX: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Attend with a tile of the picture's queries to text, extra keys and windows."""
    BM: tl.constexpr = QY * QX
    BN: tl.constexpr = KY * KX
    tile, bh = tl.program_id(0), tl.program_id(1)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    q += batch * q_b + head * q_h
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    tile_start, m, y, x, inside = _tile_tokens(tile, across, height, width, text, QY, QX)
    q1, q2 = load_parts(q + tile_start * q_n, m, q_n, inside, DIM, D1, D2, ALIGNED)
    acc1, acc2 = zero_parts(BM, E1, E2, ACC)
    row_max, row_sum = tl.full((BM,), float("-inf"), ACC), tl.zeros((BM,), ACC)
    row_max, row_sum, acc1, acc2 = _attend_shared_keys(
        q1, q2, row_max, row_sum, acc1, acc2, k, k_n, v, v_n, text, scale, BN,
        DIM, D1, D2, VDIM, E1, E2, ALIGNED, DOT, ACC,
    )  # fmt: skip
    if EXTRA:
        extra_k += batch * ek_b + head * ek_h
        extra_v += batch * ev_b + head * ev_h
        row_max, row_sum, acc1, acc2 = _attend_shared_keys(
            q1, q2, row_max, row_sum, acc1, acc2, extra_k, ek_n, extra_v, ev_n, extra, scale, BN,
            DIM, D1, D2, VDIM, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
    y, x = y[:, None], x[:, None]
    rows, columns, n = _tile_offsets(width, KY, KX)
    box = _box(tile, across, far, height, width, QY, QX)
    at_y, _, at_x, _ = box
    for _ in range(0, _count_tiles(box, KY, KX)):
        ky, kx, live = _box_tile(at_y, at_x, box, rows, columns)
        corner = (text + at_y * width + at_x).to(tl.int64)
        k1, k2 = load_parts(k + corner * k_n, n, k_n, live, DIM, D1, D2, ALIGNED)
        s = product(q1, q2, k1, k2, D2, DOT, ACC)
        s = _mask(s, y, x, ky[None, :], kx[None, :], far, limit, DISC, FUSED)
        row_max, row_sum, acc1, acc2 = attend_step(
            s, scale, row_max, row_sum, acc1, acc2, v + corner * v_n, n, v_n, live,
            VDIM, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
        at_y, at_x = _next_corner(at_y, at_x, box, KY, KX)
    inv_sum = (1.0 / tl.where(row_sum == 0, 1.0, row_sum))[:, None]
    out += batch * out_b + head * out_h + tile_start * out_n
    store_parts(out, m, out_n, inside, acc1 * inv_sum, acc2 * inv_sum, VDIM, E1, E2, ALIGNED)
    lse_m = (row_max + tl.log2(tl.where(row_sum == 0, 1.0, row_sum))) / 1.4426950408889634
    tl.store(lse + batch * lse_b + head * lse_h + tile_start + m, lse_m, mask=inside)


@triton.jit
def _scores_and_dp(
    q1, q2, do1, do2, k, k_n, v, v_n, n, live,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    VDIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return (both parts of the keys, scores, dp) of one tile of keys."""
    k1, k2 = load_parts(k, n, k_n, live, DIM, D1, D2, ALIGNED)
    v1, v2 = load_parts(v, n, v_n, live, VDIM, E1, E2, ALIGNED)
    return k1, k2, product(q1, q2, k1, k2, D2, DOT, ACC), product(do1, do2, v1, v2, E2, DOT, ACC)


@triton.jit
def _dq_over_shared_keys(
    q1, q2, do1, do2, lse_m, delta_m, acc1, acc2, k, k_n, v, v_n, count, scale, BN: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    VDIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Add to dq what comes from the first `count` keys, text or extra."""
    n = tl.arange(0, BN)
    for start in range(0, count, BN):
        live, first = n < count - start, tl.cast(start, tl.int64)
        k1, k2, s, dp = _scores_and_dp(
            q1, q2, do1, do2, k + first * k_n, k_n, v + first * v_n, v_n, n, live,
            DIM, D1, D2, VDIM, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
        s = tl.where(live[None, :], s * scale - lse_m[:, None], float("-inf"))
        _, ds = score_grad(s, dp, delta_m[:, None])
        acc1, acc2 = add_parts(acc1, acc2, ds, k1, k2, D2, DOT, ACC)
    return acc1, acc2


@triton.jit(do_not_specialize=SIZES)
def _window_dq_kernel(
    do, q, k, v, extra_k, extra_v, lse, delta, dq,
    do_b, do_n, do_h, q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    ek_b, ek_n, ek_h, ev_b, ev_n, ev_h, dq_b, dq_n, dq_h, lse_b, lse_h,
    height, width, across, far, limit, text, extra, heads, scale,
    DISC: tl.constexpr, FUSED: tl.constexpr, EXTRA: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    VDIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    QY: tl.constexpr, QX: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Compute dq of a tile of the picture's queries, on the same walk as the forward."""
    BM: tl.constexpr = QY * QX
    BN: tl.constexpr = KY * KX
    tile, bh = tl.program_id(0), tl.program_id(1)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    do += batch * do_b + head * do_h
    q += batch * q_b + head * q_h
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    tile_start, m, y, x, inside = _tile_tokens(tile, across, height, width, text, QY, QX)
    q1, q2 = load_parts(q + tile_start * q_n, m, q_n, inside, DIM, D1, D2, ALIGNED)
    do1, do2 = load_parts(do + tile_start * do_n, m, do_n, inside, VDIM, E1, E2, ALIGNED)
    acc1, acc2 = zero_parts(BM, D1, D2, ACC)
    query_at = batch * lse_b + head * lse_h + tile_start + m
    lse_m, delta_m = load_lse_delta(lse, delta, query_at, inside, ACC)
    acc1, acc2 = _dq_over_shared_keys(
        q1, q2, do1, do2, lse_m, delta_m, acc1, acc2, k, k_n, v, v_n, text, scale, BN,
        DIM, D1, D2, VDIM, E1, E2, ALIGNED, DOT, ACC,
    )  # fmt: skip
    if EXTRA:
        extra_k += batch * ek_b + head * ek_h
        extra_v += batch * ev_b + head * ev_h
        acc1, acc2 = _dq_over_shared_keys(
            q1, q2, do1, do2, lse_m, delta_m, acc1, acc2, extra_k, ek_n, extra_v, ev_n,
            extra, scale, BN, DIM, D1, D2, VDIM, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
    y, x = y[:, None], x[:, None]
    rows, columns, n = _tile_offsets(width, KY, KX)
    box = _box(tile, across, far, height, width, QY, QX)
    at_y, _, at_x, _ = box
    # disable_licm: hoisting loop invariants would raise register pressure and spill.
    for _ in tl.range(0, _count_tiles(box, KY, KX), disable_licm=True):
        ky, kx, live = _box_tile(at_y, at_x, box, rows, columns)
        corner = (text + at_y * width + at_x).to(tl.int64)
        k1, k2, s, dp = _scores_and_dp(
            q1, q2, do1, do2, k + corner * k_n, k_n, v + corner * v_n, v_n, n, live,
            DIM, D1, D2, VDIM, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
        s = s * scale - lse_m[:, None]
        s = _mask(s, y, x, ky[None, :], kx[None, :], far, limit, DISC, FUSED)
        _, ds = score_grad(s, dp, delta_m[:, None])
        acc1, acc2 = add_parts(acc1, acc2, ds, k1, k2, D2, DOT, ACC)
        at_y, at_x = _next_corner(at_y, at_x, box, KY, KX)
    natural_scale = scale / 1.4426950408889634
    dq += batch * dq_b + head * dq_h + tile_start * dq_n
    acc1, acc2 = acc1 * natural_scale, acc2 * natural_scale
    store_parts(dq, m, dq_n, inside, acc1, acc2, DIM, D1, D2, ALIGNED)


@triton.jit
def _transposed_scores_and_dp(
    k1, k2, v1, v2, q, q_n, do, do_n, lse, delta, m, live, scale,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    VDIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return both parts of a tile's q and do, its scores less lse, dp and delta.

    Scores are (keys, queries) here, so that they are the left operand of both products and stay in
    registers.
    """
    q1, q2 = load_parts(q, m, q_n, live, DIM, D1, D2, ALIGNED)
    do1, do2 = load_parts(do, m, do_n, live, VDIM, E1, E2, ALIGNED)
    lse_m, delta_m = load_lse_delta(lse, delta, m, live, ACC)
    s = product(k1, k2, q1, q2, D2, DOT, ACC) * scale - lse_m[None, :]
    return q1, q2, do1, do2, s, product(v1, v2, do1, do2, E2, DOT, ACC), delta_m[None, :]


@triton.jit
def _add_dkv(
    dk1, dk2, dv1, dv2, q1, q2, do1, do2, s, dp, delta_m,
    D2: tl.constexpr, E2: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Add a tile of queries to dk and dv."""
    p, ds = score_grad(s, dp, delta_m)
    dv1, dv2 = add_parts(dv1, dv2, p, do1, do2, E2, DOT, ACC)
    dk1, dk2 = add_parts(dk1, dk2, ds, q1, q2, D2, DOT, ACC)
    return dk1, dk2, dv1, dv2


@triton.jit(do_not_specialize=SIZES[:-1])
def _window_dkv_kernel(
    do, q, k, v, lse, delta, dk, dv,
    do_b, do_n, do_h, q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    dk_b, dk_n, dk_h, dv_b, dv_n, dv_h, lse_b, lse_h,
    height, width, across, far, limit, text, heads, scale,
    DISC: tl.constexpr, FUSED: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    VDIM: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    QY: tl.constexpr, QX: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Compute dk and dv of a tile of the picture's keys.

    Windows are symmetric, so a tile of keys walks the box of the queries that can reach it.
    """
    BM: tl.constexpr = QY * QX
    BN: tl.constexpr = KY * KX
    tile, bh = tl.program_id(0), tl.program_id(1)
    batch, head = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    do += batch * do_b + head * do_h
    q += batch * q_b + head * q_h
    lse += batch * lse_b + head * lse_h
    delta += batch * lse_b + head * lse_h
    tile_start, n, y, x, inside = _tile_tokens(tile, across, height, width, text, KY, KX)
    k += batch * k_b + head * k_h + tile_start * k_n
    k1, k2 = load_parts(k, n, k_n, inside, DIM, D1, D2, ALIGNED)
    v += batch * v_b + head * v_h + tile_start * v_n
    v1, v2 = load_parts(v, n, v_n, inside, VDIM, E1, E2, ALIGNED)
    dk1, dk2 = zero_parts(BN, D1, D2, ACC)
    dv1, dv2 = zero_parts(BN, E1, E2, ACC)
    m = tl.arange(0, BM)
    for start in tl.range(0, text, BM, disable_licm=True):
        live, first = m < text - start, tl.cast(start, tl.int64)
        q1, q2, do1, do2, s, dp, delta_m = _transposed_scores_and_dp(
            k1, k2, v1, v2, q + first * q_n, q_n, do + first * do_n, do_n,
            lse + first, delta + first, m, live, scale,
            DIM, D1, D2, VDIM, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
        s = tl.where(live[None, :], s, float("-inf"))
        dk1, dk2, dv1, dv2 = _add_dkv(
            dk1, dk2, dv1, dv2, q1, q2, do1, do2, s, dp, delta_m, D2, E2, DOT, ACC
        )
    y, x = y[:, None], x[:, None]
    rows, columns, m = _tile_offsets(width, QY, QX)
    box = _box(tile, across, far, height, width, KY, KX)
    at_y, _, at_x, _ = box
    # disable_licm: hoisting loop invariants would raise register pressure and spill.
    for _ in tl.range(0, _count_tiles(box, QY, QX), disable_licm=True):
        qy, qx, live = _box_tile(at_y, at_x, box, rows, columns)
        corner = (text + at_y * width + at_x).to(tl.int64)
        q1, q2, do1, do2, s, dp, delta_m = _transposed_scores_and_dp(
            k1, k2, v1, v2, q + corner * q_n, q_n, do + corner * do_n, do_n,
            lse + corner, delta + corner, m, live, scale,
            DIM, D1, D2, VDIM, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
        s = _mask(s, y, x, qy[None, :], qx[None, :], far, limit, DISC, FUSED)
        dk1, dk2, dv1, dv2 = _add_dkv(
            dk1, dk2, dv1, dv2, q1, q2, do1, do2, s, dp, delta_m, D2, E2, DOT, ACC
        )
        at_y, at_x = _next_corner(at_y, at_x, box, QY, QX)
    natural_scale = scale / 1.4426950408889634
    dk += batch * dk_b + head * dk_h + tile_start * dk_n
    dv += batch * dv_b + head * dv_h + tile_start * dv_n
    store_parts(dk, n, dk_n, inside, dk1 * natural_scale, dk2 * natural_scale, DIM, D1, D2, ALIGNED)
    store_parts(dv, n, dv_n, inside, dv1, dv2, VDIM, E1, E2, ALIGNED)


# Launching
# ---------------------------------------------------------------------------------------------


def window(q, k, v, extra_k, extra_v, height, width, radius, text, shape, scale, return_lse):
    q, k, v, extra_k, extra_v = (unit_stride(tensor) for tensor in (q, k, v, extra_k, extra_v))
    batch, tokens, heads, dim = q.shape
    out = q.new_empty(batch, tokens, heads, v.shape[3])
    lse = q.new_empty(batch, heads, tokens, dtype=launch.acc_dtype(q.dtype))
    if not out.numel():
        return out, lse
    q, scale = positive_scale(q, scale)
    if text:  # the programs that run longest start first
        attend(q[:, :text], k, v, None, scale, out[:, :text], lse[:, :, :text])
    config = launch.config("window_forward", q, max(dim, v.shape[3]), tokens)
    across = launch.cdiv(width, config["QX"])
    extra = 0 if extra_k is None else extra_k.shape[1]
    with launch.on_device(q.device):
        _forward_kernel[launch.grid(across * launch.cdiv(height, config["QY"]), batch * heads)](
            q, k, v, extra_k, extra_v, out, lse,
            *_picture_strides(height, width, q, k, v), *strides(extra_k), *strides(extra_v),
            *_picture_strides(height, width, out), *lse.stride()[:2],
            height, width, across, *_reach(radius, height, width), text, extra, heads,
            scale * LOG2E, EXTRA=extra_k is not None,
            ALIGNED=aligned(q, k, v, extra_k, extra_v, out), **_constants(q, v, shape), **config,
        )  # fmt: skip
    return out, lse


def window_backward(
    do, d_lse, q, k, v, extra_k, extra_v, out, lse, height, width, radius, text, shape, scale
):
    do, q, k, v = unit_stride(do), unit_stride(q), unit_stride(k), unit_stride(v)
    extra_k, extra_v = unit_stride(extra_k), unit_stride(extra_v)
    dq, dk, dv = launch.empty_like(q), launch.empty_like(k), launch.empty_like(v)
    d_extra_k, d_extra_v = q.new_empty(0), q.new_empty(0)
    if extra_k is not None:
        d_extra_k, d_extra_v = launch.empty_like(extra_k), launch.empty_like(extra_v)
    if not q.numel():
        return dq, dk, dv, d_extra_k.zero_(), d_extra_v.zero_()
    if d_lse is not None:
        d_lse = d_lse.contiguous()  # the gradient of a sum has strides of 0
    delta = delta_of(do, out, d_lse)
    _picture_gradients(
        do, q, k, v, extra_k, extra_v, lse, delta, dq, dk, dv,
        height, width, radius, text, shape, scale,
    )  # fmt: skip
    if text:
        dq[:, :text], _ = dq_and_bias(
            do[:, :text], q[:, :text], k, v, None, lse[:, :, :text], delta[:, :, :text], scale
        )
        text_k, text_v = k[:, :text], v[:, :text]
        dk[:, :text], dv[:, :text] = dk_and_dv(do, q, text_k, text_v, None, lse, delta, scale)
    if extra_k is not None and extra_k.shape[1]:
        picture_lse, picture_delta = lse[:, :, text:], delta[:, :, text:]
        d_extra_k, d_extra_v = dk_and_dv(
            do[:, text:], q[:, text:], extra_k, extra_v, None, picture_lse, picture_delta, scale
        )
    return dq, dk, dv, d_extra_k, d_extra_v


def _picture_gradients(
    do, q, k, v, extra_k, extra_v, lse, delta, dq, dk, dv,
    height, width, radius, text, shape, scale,
):  # fmt: skip
    """Write the gradients of the picture's queries, keys and values into dq, dk and dv."""
    batch, tokens, heads, dim = q.shape
    head_dim = max(dim, v.shape[3])
    constants = _constants(q, v, shape)
    constants["ALIGNED"] = aligned(do, q, k, v, extra_k, extra_v, dq, dk, dv)
    reach, extra = _reach(radius, height, width), 0 if extra_k is None else extra_k.shape[1]
    config = launch.config("window_queries", q, head_dim, tokens)
    across = launch.cdiv(width, config["QX"])
    with launch.on_device(q.device):
        _window_dq_kernel[launch.grid(across * launch.cdiv(height, config["QY"]), batch * heads)](
            do, q, k, v, extra_k, extra_v, lse, delta, dq,
            *_picture_strides(height, width, do, q, k, v), *strides(extra_k), *strides(extra_v),
            *_picture_strides(height, width, dq), *lse.stride()[:2],
            height, width, across, *reach, text, extra, heads, scale * LOG2E,
            EXTRA=extra_k is not None, **constants, **config,
        )  # fmt: skip
        config = launch.config("window_keys", q, head_dim, tokens)
        across = launch.cdiv(width, config["KX"])
        _window_dkv_kernel[launch.grid(across * launch.cdiv(height, config["KY"]), batch * heads)](
            do, q, k, v, lse, delta, dk, dv,
            *_picture_strides(height, width, do, q, k, v, dk, dv), *lse.stride()[:2],
            height, width, across, *reach, text, heads, scale * LOG2E, **constants, **config,
        )  # fmt: skip


def _constants(q: Tensor, v: Tensor, shape: str) -> dict[str, Any]:
    return {
        "DISC": shape == "disc",
        "FUSED": not launch.INTERPRETED,
        **shape_of(q.shape[3], v.shape[3]),
        **precision(q),
    }


def _picture_strides(height: int, width: int, *tensors: Tensor) -> tuple[int, ...]:
    """Return the tensors' strides; a tile's tokens lie up to eight rows of the picture apart."""
    return tuple(stride for tensor in tensors for stride in strides(tensor, min(8, height) * width))


def _reach(radius: float, height: int, width: int) -> tuple[int, float]:
    """Return the largest whole distance inside a radius, and the largest whole square of one."""
    radius = min(radius, float(height + width))
    return math.ceil(radius) - 1, float(math.ceil(radius * radius) - 1)
