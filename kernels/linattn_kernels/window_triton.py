"""Window attention in Triton, on tiles of the picture as it lies: no permutation of tokens, no mask
or block table.

- A program owns a tile of rows x columns of the picture. Raster order would read ten times the
  needed keys at 256 tokens a row and radius 16; tiles of 8 x 8 read twice. (Tiles of 8 x 16 draw
  less from the L2, but leave no room for a second program on a multiprocessor: 3.77 ms to 3.02 at
  64K tokens of FLUX on an H200.)
- The bounding box of what a tile can reach is walked in tiles of keys that begin at the box's
  corner. At radius 16 and below hardly any of them lies wholly inside, so each is masked, by
  arithmetic on coordinates in float32: exact below 2048, and twice as fast as integers.
- Text and extra keys come first, unmasked. Text queries, and the gradients of text and extra keys,
  are plain softmax attention with one short side (`softmax_triton`).
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from linattn_kernels import launch
from linattn_kernels.launch import strides, unit
from linattn_kernels.softmax_triton import (
    LOG2E,
    attend,
    attend_step,
    columns_slope,
    delta_of,
    row_sums,
    rows_slope,
    slopes_of,
    upright,
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

# Never compiled anew for another picture.
SIZES = ["height", "width", "across", "far", "text", "extra"]


@triton.jit
def _sides(width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(row, column, place) of a tile's tokens within it: the same for all tiles."""
    i = tl.arange(0, ROWS * COLUMNS)
    y = i // COLUMNS
    # a remainder would hide from the compiler which of a thread's tokens share a column
    x = i - y * COLUMNS
    return y, x, y * width + x


@triton.jit
def _own(tile, across, height, width, text, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(first token, place within the tile, y, x, inside) of one tile's tokens; y and x in float32."""
    y, x, n = _sides(width, ROWS, COLUMNS)
    top, left = (tile // across) * ROWS, (tile % across) * COLUMNS
    inside = (y < height - top) & (x < width - left)
    return (
        (text + top * width + left).to(tl.int64),
        n,
        (top + y).to(tl.float32),
        (left + x).to(tl.float32),
        inside,
    )


@triton.jit
def _mask(s, y, x, other_y, other_x, far, limit, DISC: tl.constexpr, FUSED: tl.constexpr):
    """Scores of what lies in the window of which, and -inf; the four are in float32 and broadcast
    against each other.

    What is compared is a column's and what with a row's: the compiler takes each once, and a score
    costs a comparison and a selection. FUSED: they are one instruction to it. Left to itself it
    makes the masks before the scores are there, and waits with a bit for each, in registers there
    are too few of.
    """
    dy, dx = y - other_y, x - other_x
    if DISC:
        ahead, most = dx * dx, limit - dy * dy
    else:
        ahead, most = tl.abs(dx), tl.where(tl.abs(dy) <= far, far.to(tl.float32), -1.0)
    ahead, most = tl.broadcast_to(ahead, s.shape), tl.broadcast_to(most, s.shape)
    if FUSED:
        return tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.le.f32 p, $2, $3; selp.f32 $0, $1, 0fFF800000, p; }",
            "=f,f,f,f", [s, ahead, most], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    return tl.where(ahead <= most, s, float("-inf"))


@triton.jit
def _box(tile, across, far, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(first row, end, first column, end) of what the windows of a tile's tokens can reach."""
    y, x = (tile // across) * ROWS, (tile % across) * COLUMNS
    return (
        tl.maximum(y - far, 0),
        tl.minimum(y + ROWS + far, height),
        tl.maximum(x - far, 0),
        tl.minimum(x + COLUMNS + far, width),
    )


@triton.jit
def _next(at_y, at_x, box, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The corner of a box's next tile."""
    _, _, first_x, end_x = box
    over = at_x + COLUMNS >= end_x
    return tl.where(over, at_y + ROWS, at_y), tl.where(over, first_x, at_x + COLUMNS)


@triton.jit
def _at(at_y, at_x, box, rows, columns):
    """(y, x, inside) of the tile at a corner, in float32: a row or column that is not inside is out
    of all reach.
    """
    _, end_y, _, end_x = box
    low, left = rows < end_y - at_y, columns < end_x - at_x
    y = tl.where(low, (at_y + rows).to(tl.float32), 1e18)
    return y, tl.where(left, (at_x + columns).to(tl.float32), 1e18), low & left


@triton.jit
def _steps(box, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    first_y, end_y, first_x, end_x = box
    return tl.cdiv(end_y - first_y, ROWS) * tl.cdiv(end_x - first_x, COLUMNS)


@triton.jit
def _read_all(
    q1, q2, top, total, acc1, acc2, k, k_n, v, v_n, count, scale, BN: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EXIT: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Forward over the first `count` keys, text or extra, which everyone sees."""
    n = tl.arange(0, BN)
    for start in range(0, count, BN):
        live, first = n < count - start, tl.cast(start, tl.int64)
        k1, k2 = load_parts(k + first * k_n, n, k_n, live, DIM, D1, D2, ALIGNED)
        s = tl.where(live[None, :], product(q1, q2, k1, k2, D2, DOT, ACC), float("-inf"))
        top, total, acc1, acc2 = attend_step(
            s,
            scale,
            top,
            total,
            acc1,
            acc2,
            v + first * v_n,
            n,
            v_n,
            live,
            EXIT,
            E1,
            E2,
            ALIGNED,
            DOT,
            ACC,
        )
    return top, total, acc1, acc2


@triton.jit(do_not_specialize=SIZES)
def _forward_kernel(
    q, k, v, extra_k, extra_v, out, lse,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, ek_b, ek_n, ek_h, ev_b, ev_n, ev_h, out_b, out_n, out_h, lse_b, lse_h,
    height, width, across, far, limit, text, extra, heads, scale,
    DISC: tl.constexpr, FUSED: tl.constexpr, EXTRA: tl.constexpr, DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    EXIT: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    QY: tl.constexpr, QX: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    BM: tl.constexpr = QY * QX
    BN: tl.constexpr = KY * KX
    tile, place = tl.program_id(0), tl.program_id(1)
    batch, head = (place // heads).to(tl.int64), (place % heads).to(tl.int64)
    q += batch * q_b + head * q_h
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    own, m, y, x, inside = _own(tile, across, height, width, text, QY, QX)
    q1, q2 = load_parts(q + own * q_n, m, q_n, inside, DIM, D1, D2, ALIGNED)
    acc1, acc2 = zero_parts(BM, E1, E2, ACC)
    top, total = tl.full((BM,), float("-inf"), ACC), tl.zeros((BM,), ACC)
    top, total, acc1, acc2 = _read_all(
        q1, q2, top, total, acc1, acc2, k, k_n, v, v_n, text, scale, BN,
        DIM, D1, D2, EXIT, E1, E2, ALIGNED, DOT, ACC,
    )  # fmt: skip
    if EXTRA:
        extra_k += batch * ek_b + head * ek_h
        extra_v += batch * ev_b + head * ev_h
        top, total, acc1, acc2 = _read_all(
            q1, q2, top, total, acc1, acc2, extra_k, ek_n, extra_v, ev_n, extra, scale, BN,
            DIM, D1, D2, EXIT, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
    y, x = y[:, None], x[:, None]
    rows, columns, n = _sides(width, KY, KX)
    box = _box(tile, across, far, height, width, QY, QX)
    at_y, _, at_x, _ = box
    for _ in range(0, _steps(box, KY, KX)):
        ky, kx, live = _at(at_y, at_x, box, rows, columns)
        corner = (text + at_y * width + at_x).to(tl.int64)
        k1, k2 = load_parts(k + corner * k_n, n, k_n, live, DIM, D1, D2, ALIGNED)
        s = product(q1, q2, k1, k2, D2, DOT, ACC)
        s = _mask(s, y, x, ky[None, :], kx[None, :], far, limit, DISC, FUSED)
        top, total, acc1, acc2 = attend_step(
            s,
            scale,
            top,
            total,
            acc1,
            acc2,
            v + corner * v_n,
            n,
            v_n,
            live,
            EXIT,
            E1,
            E2,
            ALIGNED,
            DOT,
            ACC,
        )
        at_y, at_x = _next(at_y, at_x, box, KY, KX)
    share = (1.0 / tl.where(total == 0, 1.0, total))[:, None]
    out += batch * out_b + head * out_h + own * out_n
    store_parts(out, m, out_n, inside, acc1 * share, acc2 * share, EXIT, E1, E2, ALIGNED)
    sums = (top + tl.log2(tl.where(total == 0, 1.0, total))) / 1.4426950408889634
    tl.store(lse + batch * lse_b + head * lse_h + own + m, sums, mask=inside)


@triton.jit
def _pull(
    q1, q2, g1, g2, k, k_n, v, v_n, n, live,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EXIT: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """(keys in two parts, scores, gradients of the weights) of one tile of keys."""
    k1, k2 = load_parts(k, n, k_n, live, DIM, D1, D2, ALIGNED)
    v1, v2 = load_parts(v, n, v_n, live, EXIT, E1, E2, ALIGNED)
    return k1, k2, product(q1, q2, k1, k2, D2, DOT, ACC), product(g1, g2, v1, v2, E2, DOT, ACC)


@triton.jit
def _pull_all(
    q1, q2, g1, g2, sums, less, acc1, acc2, k, k_n, v, v_n, count, scale, BN: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EXIT: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    n = tl.arange(0, BN)
    for start in range(0, count, BN):
        live, first = n < count - start, tl.cast(start, tl.int64)
        k1, k2, s, told = _pull(
            q1,
            q2,
            g1,
            g2,
            k + first * k_n,
            k_n,
            v + first * v_n,
            v_n,
            n,
            live,
            DIM,
            D1,
            D2,
            EXIT,
            E1,
            E2,
            ALIGNED,
            DOT,
            ACC,
        )
        _, ds = slopes_of(
            tl.where(live[None, :], s * scale - sums[:, None], float("-inf")), told, less[:, None]
        )
        acc1, acc2 = add_parts(acc1, acc2, ds, k1, k2, D2, DOT, ACC)
    return acc1, acc2


@triton.jit(do_not_specialize=SIZES)
def _queries_kernel(
    grad, q, k, v, extra_k, extra_v, lse, delta, dq,
    grad_b, grad_n, grad_h, q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    ek_b, ek_n, ek_h, ev_b, ev_n, ev_h, dq_b, dq_n, dq_h, lse_b, lse_h,
    height, width, across, far, limit, text, extra, heads, scale,
    DISC: tl.constexpr, FUSED: tl.constexpr, EXTRA: tl.constexpr, DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    EXIT: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    QY: tl.constexpr, QX: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The picture queries' gradient: forward's walk."""
    BM: tl.constexpr = QY * QX
    BN: tl.constexpr = KY * KX
    tile, place = tl.program_id(0), tl.program_id(1)
    batch, head = (place // heads).to(tl.int64), (place % heads).to(tl.int64)
    grad += batch * grad_b + head * grad_h
    q += batch * q_b + head * q_h
    k += batch * k_b + head * k_h
    v += batch * v_b + head * v_h
    own, m, y, x, inside = _own(tile, across, height, width, text, QY, QX)
    q1, q2 = load_parts(q + own * q_n, m, q_n, inside, DIM, D1, D2, ALIGNED)
    g1, g2 = load_parts(grad + own * grad_n, m, grad_n, inside, EXIT, E1, E2, ALIGNED)
    acc1, acc2 = zero_parts(BM, D1, D2, ACC)
    sums, less = row_sums(lse, delta, batch * lse_b + head * lse_h + own + m, inside, ACC)
    acc1, acc2 = _pull_all(
        q1, q2, g1, g2, sums, less, acc1, acc2, k, k_n, v, v_n, text, scale, BN,
        DIM, D1, D2, EXIT, E1, E2, ALIGNED, DOT, ACC,
    )  # fmt: skip
    if EXTRA:
        extra_k += batch * ek_b + head * ek_h
        extra_v += batch * ev_b + head * ev_h
        acc1, acc2 = _pull_all(
            q1, q2, g1, g2, sums, less, acc1, acc2, extra_k, ek_n, extra_v, ev_n, extra, scale, BN,
            DIM, D1, D2, EXIT, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
    y, x = y[:, None], x[:, None]
    rows, columns, n = _sides(width, KY, KX)
    box = _box(tile, across, far, height, width, QY, QX)
    at_y, _, at_x, _ = box
    # disable_licm: hoisting loop invariants would raise register pressure and spill.
    for _ in tl.range(0, _steps(box, KY, KX), disable_licm=True):
        ky, kx, live = _at(at_y, at_x, box, rows, columns)
        corner = (text + at_y * width + at_x).to(tl.int64)
        k1, k2, s, told = _pull(
            q1, q2, g1, g2, k + corner * k_n, k_n, v + corner * v_n, v_n, n, live,
            DIM, D1, D2, EXIT, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
        s = _mask(
            s * scale - sums[:, None], y, x, ky[None, :], kx[None, :], far, limit, DISC, FUSED
        )
        _, ds = slopes_of(s, told, less[:, None])
        acc1, acc2 = add_parts(acc1, acc2, ds, k1, k2, D2, DOT, ACC)
        at_y, at_x = _next(at_y, at_x, box, KY, KX)
    natural = scale / 1.4426950408889634
    dq += batch * dq_b + head * dq_h + own * dq_n
    store_parts(dq, m, dq_n, inside, acc1 * natural, acc2 * natural, DIM, D1, D2, ALIGNED)


@triton.jit
def _gather(
    k1, k2, v1, v2, q, q_n, grad, grad_n, lse, delta, m, live, scale,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EXIT: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """(queries, gradients, exponents, gradients of the weights, what is taken off) of a tile of
    queries.

    Scores are (keys, queries) here: so they are the left side of both products, and stay in
    registers.
    """
    q1, q2 = load_parts(q, m, q_n, live, DIM, D1, D2, ALIGNED)
    g1, g2 = load_parts(grad, m, grad_n, live, EXIT, E1, E2, ALIGNED)
    sums, less = row_sums(lse, delta, m, live, ACC)
    s = product(k1, k2, q1, q2, D2, DOT, ACC) * scale - sums[None, :]
    return q1, q2, g1, g2, s, product(v1, v2, g1, g2, E2, DOT, ACC), less[None, :]


@triton.jit
def _add(
    dk1, dk2, dv1, dv2, q1, q2, g1, g2, s, told, less,
    D2: tl.constexpr, E2: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    p, ds = slopes_of(s, told, less)
    dv1, dv2 = add_parts(dv1, dv2, p, g1, g2, E2, DOT, ACC)
    dk1, dk2 = add_parts(dk1, dk2, ds, q1, q2, D2, DOT, ACC)
    return dk1, dk2, dv1, dv2


@triton.jit(do_not_specialize=SIZES[:-1])
def _keys_kernel(
    grad, q, k, v, lse, delta, dk, dv,
    grad_b, grad_n, grad_h, q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, dk_b, dk_n, dk_h, dv_b, dv_n, dv_h,
    lse_b, lse_h, height, width, across, far, limit, text, heads, scale,
    DISC: tl.constexpr, FUSED: tl.constexpr, DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    EXIT: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    QY: tl.constexpr, QX: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The picture keys' gradients: windows are symmetric, so a tile of keys walks the queries it
    can reach.
    """
    BM: tl.constexpr = QY * QX
    BN: tl.constexpr = KY * KX
    tile, place = tl.program_id(0), tl.program_id(1)
    batch, head = (place // heads).to(tl.int64), (place % heads).to(tl.int64)
    grad += batch * grad_b + head * grad_h
    q += batch * q_b + head * q_h
    lse += batch * lse_b + head * lse_h
    delta += batch * lse_b + head * lse_h
    own, n, y, x, inside = _own(tile, across, height, width, text, KY, KX)
    k1, k2 = load_parts(
        k + batch * k_b + head * k_h + own * k_n, n, k_n, inside, DIM, D1, D2, ALIGNED
    )
    v1, v2 = load_parts(
        v + batch * v_b + head * v_h + own * v_n, n, v_n, inside, EXIT, E1, E2, ALIGNED
    )
    dk1, dk2 = zero_parts(BN, D1, D2, ACC)
    dv1, dv2 = zero_parts(BN, E1, E2, ACC)
    m = tl.arange(0, BM)
    for start in tl.range(0, text, BM, disable_licm=True):
        live, first = m < text - start, tl.cast(start, tl.int64)
        q1, q2, g1, g2, s, told, less = _gather(
            k1, k2, v1, v2, q + first * q_n, q_n, grad + first * grad_n, grad_n,
            lse + first, delta + first, m, live, scale,
            DIM, D1, D2, EXIT, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
        s = tl.where(live[None, :], s, float("-inf"))
        dk1, dk2, dv1, dv2 = _add(
            dk1, dk2, dv1, dv2, q1, q2, g1, g2, s, told, less, D2, E2, DOT, ACC
        )
    y, x = y[:, None], x[:, None]
    rows, columns, m = _sides(width, QY, QX)
    box = _box(tile, across, far, height, width, KY, KX)
    at_y, _, at_x, _ = box
    # disable_licm: hoisting loop invariants would raise register pressure and spill.
    for _ in tl.range(0, _steps(box, QY, QX), disable_licm=True):
        qy, qx, live = _at(at_y, at_x, box, rows, columns)
        corner = (text + at_y * width + at_x).to(tl.int64)
        q1, q2, g1, g2, s, told, less = _gather(
            k1, k2, v1, v2, q + corner * q_n, q_n, grad + corner * grad_n, grad_n,
            lse + corner, delta + corner, m, live, scale,
            DIM, D1, D2, EXIT, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
        s = _mask(s, y, x, qy[None, :], qx[None, :], far, limit, DISC, FUSED)
        dk1, dk2, dv1, dv2 = _add(
            dk1, dk2, dv1, dv2, q1, q2, g1, g2, s, told, less, D2, E2, DOT, ACC
        )
        at_y, at_x = _next(at_y, at_x, box, QY, QX)
    natural = scale / 1.4426950408889634
    dk += batch * dk_b + head * dk_h + own * dk_n
    dv += batch * dv_b + head * dv_h + own * dv_n
    store_parts(dk, n, dk_n, inside, dk1 * natural, dk2 * natural, DIM, D1, D2, ALIGNED)
    store_parts(dv, n, dv_n, inside, dv1, dv2, EXIT, E1, E2, ALIGNED)


# Launching
# ---------------------------------------------------------------------------------------------


def window(q, k, v, extra_k, extra_v, height, width, radius, text, shape, scale, wants_lse):
    q, k, v, extra_k, extra_v = (unit(each) for each in (q, k, v, extra_k, extra_v))
    batch, tokens, heads, dim = q.shape
    out = q.new_empty(batch, tokens, heads, v.shape[3])
    lse = q.new_empty(batch, heads, tokens, dtype=launch.wide(q.dtype))
    if not out.numel():
        return out, lse
    q, scale = upright(q, scale)
    if text:  # the longest of all programs: first
        attend(q[:, :text], k, v, None, scale, out[:, :text], lse[:, :, :text])
    how = launch.config("window_forward", q, max(dim, v.shape[3]), tokens)
    across = launch.cdiv(width, how["QX"])
    with launch.on(q.device):
        _forward_kernel[launch.grid(across * launch.cdiv(height, how["QY"]), batch * heads)](
            q, k, v, extra_k, extra_v, out, lse, *_near(height, width, q, k, v), *strides(extra_k), *strides(extra_v),
            *_near(height, width, out), *lse.stride()[:2], height, width, across, *_reach(radius, height, width), text,
            0 if extra_k is None else extra_k.shape[1], heads, scale * LOG2E,
            DISC=shape == "disc", FUSED=not launch.INTERPRETED, EXTRA=extra_k is not None,
            ALIGNED=aligned(q, k, v, extra_k, extra_v, out), **shape_of(dim, v.shape[3]), **precision(q), **how,
        )  # fmt: skip
    return out, lse


def window_backward(
    grad, d_lse, q, k, v, extra_k, extra_v, out, lse, height, width, radius, text, shape, scale
):
    grad, q, k, v, extra_k, extra_v = (unit(each) for each in (grad, q, k, v, extra_k, extra_v))
    dq, dk, dv = launch.like(q), launch.like(k), launch.like(v)
    more = [q.new_empty(0) if each is None else launch.like(each) for each in (extra_k, extra_v)]
    if not q.numel():
        return dq, dk, dv, *(each.zero_() for each in more)
    delta = delta_of(
        grad, out, None if d_lse is None else d_lse.contiguous()
    )  # a sum's gradient has strides of 0
    _picture(
        grad,
        q,
        k,
        v,
        extra_k,
        extra_v,
        lse,
        delta,
        dq,
        dk,
        dv,
        height,
        width,
        radius,
        text,
        shape,
        scale,
    )
    if text:
        head = slice(0, text)
        known = (None, lse, delta, scale)
        own = (None, lse[:, :, head], delta[:, :, head], scale)
        dq[:, head], _ = rows_slope(grad[:, head], q[:, head], k, v, *own)
        dk[:, head], dv[:, head] = columns_slope(grad, q, k[:, head], v[:, head], *known)
    if extra_k is not None and extra_k.shape[1]:
        below = (None, lse[:, :, text:], delta[:, :, text:], scale)
        more = columns_slope(grad[:, text:], q[:, text:], extra_k, extra_v, *below)
    return dq, dk, dv, *more


def _picture(
    grad,
    q,
    k,
    v,
    extra_k,
    extra_v,
    lse,
    delta,
    dq,
    dk,
    dv,
    height,
    width,
    radius,
    text,
    shape,
    scale,
):
    """Gradients of the picture's queries, keys and values."""
    batch, tokens, heads, dim = q.shape
    given = {
        "DISC": shape == "disc",
        "FUSED": not launch.INTERPRETED,
        **shape_of(dim, v.shape[3]),
        **precision(q),
    }
    given["ALIGNED"] = aligned(grad, q, k, v, extra_k, extra_v, dq, dk, dv)
    how = launch.config("window_queries", q, max(dim, v.shape[3]), tokens)
    across = launch.cdiv(width, how["QX"])
    with launch.on(q.device):
        _queries_kernel[launch.grid(across * launch.cdiv(height, how["QY"]), batch * heads)](
            grad, q, k, v, extra_k, extra_v, lse, delta, dq, *_near(height, width, grad, q, k, v), *strides(extra_k),
            *strides(extra_v), *_near(height, width, dq), *lse.stride()[:2], height, width, across,
            *_reach(radius, height, width), text, 0 if extra_k is None else extra_k.shape[1], heads, scale * LOG2E,
            EXTRA=extra_k is not None, **given, **how,
        )  # fmt: skip
        how = launch.config("window_keys", q, max(dim, v.shape[3]), tokens)
        across = launch.cdiv(width, how["KX"])
        _keys_kernel[launch.grid(across * launch.cdiv(height, how["KY"]), batch * heads)](
            grad, q, k, v, lse, delta, dk, dv, *_near(height, width, grad, q, k, v, dk, dv), *lse.stride()[:2],
            height, width, across, *_reach(radius, height, width), text, heads, scale * LOG2E, **given, **how,
        )  # fmt: skip


def _near(height: int, width: int, *tensors: Tensor) -> tuple[int, ...]:
    """Their strides; a tile's tokens lie up to eight of the picture's rows apart."""
    return tuple(each for tensor in tensors for each in strides(tensor, min(8, height) * width))


def _reach(radius: float, height: int, width: int) -> tuple[int, float]:
    """The farthest whole distance strictly inside, and the largest whole square of a distance that
    is.
    """
    radius = min(radius, float(height + width))
    return math.ceil(radius) - 1, float(math.ceil(radius * radius) - 1)
