"""Window attention in Triton, on tiles of the picture as it lies: no permutation of tokens, no mask or block table.

- A program owns a tile of rows x columns of the picture. Raster order would read ten times the needed keys at 256
  tokens a row and radius 16; tiles of 8 x 16 queries and 8 x 8 keys read 2.4 times.
- The bounding box of what a tile can reach is walked in tiles of keys that begin at the box's corner. At radius 16 and
  below hardly any of them lies wholly inside, so each is masked, by arithmetic on coordinates in float32: exact below
  2048, and twice as fast as integers.
- Text and extra keys come first, unmasked. Text queries, and the gradients of text and extra keys, are plain softmax
  attention with one short side (`softmax_triton`).
"""

import math

import triton
import triton.language as tl

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
)
from linattn_kernels.tiles import add_parts, aligned, load_parts, precision, product, shape_of, store_parts, zero_parts

# Never compiled anew for another picture.
SIZES = ["height", "width", "across", "far", "text", "extra"]


@triton.jit
def _places(tile, across, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(y, x, inside) of one tile's tokens."""
    i = tl.arange(0, ROWS * COLUMNS)
    y, x = (tile // across) * ROWS + i // COLUMNS, (tile % across) * COLUMNS + i % COLUMNS
    return y, x, (y < height) & (x < width)


@triton.jit
def _near(y, x, other_y, other_x, far, limit, DISC: tl.constexpr):
    """Which of the others (the last dimension) lie in the window of which."""
    dy = y.to(tl.float32)[:, None] - other_y.to(tl.float32)[None, :]
    dx = x.to(tl.float32)[:, None] - other_x.to(tl.float32)[None, :]
    if DISC:
        return dy * dy + dx * dx <= limit
    return (tl.abs(dy) <= far) & (tl.abs(dx) <= far)


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
def _step_over(box, step, text, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(y, x, place among all tokens, inside) of a box's tile number `step`."""
    first_y, end_y, first_x, end_x = box
    wide = tl.cdiv(end_x - first_x, COLUMNS)
    i = tl.arange(0, ROWS * COLUMNS)
    y, x = first_y + (step // wide) * ROWS + i // COLUMNS, first_x + (step % wide) * COLUMNS + i % COLUMNS
    return y, x, text + y * width + x, (y < end_y) & (x < end_x)


@triton.jit
def _steps(box, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    first_y, end_y, first_x, end_x = box
    return tl.cdiv(end_y - first_y, ROWS) * tl.cdiv(end_x - first_x, COLUMNS)


@triton.jit
def _read(
    q1, q2, top, total, acc1, acc2, k, k_n, v, v_n, n, live, seen, scale,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EXIT: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Forward over one tile of keys, of which `seen` are."""
    k1, k2 = load_parts(k, n, k_n, live, DIM, D1, D2, ALIGNED)
    s = tl.where(seen, product(q1, q2, k1, k2, D2, DOT, ACC) * scale, float("-inf"))
    return attend_step(s, top, total, acc1, acc2, v, n, v_n, live, EXIT, E1, E2, ALIGNED, DOT, ACC)


@triton.jit
def _read_all(
    q1, q2, top, total, acc1, acc2, k, k_n, v, v_n, count, scale, BN: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EXIT: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Forward over the first `count` keys, text or extra, which everyone sees."""
    for start in range(0, count, BN):
        n = start + tl.arange(0, BN)
        live = n < count
        top, total, acc1, acc2 = _read(
            q1, q2, top, total, acc1, acc2, k, k_n, v, v_n, n, live, live[None, :], scale,
            DIM, D1, D2, EXIT, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
    return top, total, acc1, acc2


@triton.jit(do_not_specialize=SIZES)
def _forward_kernel(
    q, k, v, extra_k, extra_v, out, lse,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, ek_b, ek_n, ek_h, ev_b, ev_n, ev_h, out_b, out_n, out_h, lse_b, lse_h,
    height, width, across, far, limit, text, extra, heads, scale,
    DISC: tl.constexpr, EXTRA: tl.constexpr, DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
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
    y, x, inside = _places(tile, across, height, width, QY, QX)
    m = text + y * width + x
    q1, q2 = load_parts(q, m, q_n, inside, DIM, D1, D2, ALIGNED)
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
    box = _box(tile, across, far, height, width, QY, QX)
    for step in range(0, _steps(box, KY, KX)):
        ky, kx, n, live = _step_over(box, step, text, width, KY, KX)
        seen = _near(y, x, ky, kx, far, limit, DISC) & live[None, :]
        top, total, acc1, acc2 = _read(
            q1, q2, top, total, acc1, acc2, k, k_n, v, v_n, n, live, seen, scale,
            DIM, D1, D2, EXIT, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
    share = (1.0 / tl.where(total == 0, 1.0, total))[:, None]
    out += batch * out_b + head * out_h
    store_parts(out, m, out_n, inside, acc1 * share, acc2 * share, EXIT, E1, E2, ALIGNED)
    sums = (top + tl.log2(tl.where(total == 0, 1.0, total))) / 1.4426950408889634
    tl.store(lse + batch * lse_b + head * lse_h + m, sums, mask=inside)


@triton.jit
def _pull(
    q1, q2, g1, g2, sums, less, acc1, acc2, k, k_n, v, v_n, n, live, seen, scale,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EXIT: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The queries' gradient over one tile of keys, of which `seen` are."""
    k1, k2 = load_parts(k, n, k_n, live, DIM, D1, D2, ALIGNED)
    v1, v2 = load_parts(v, n, v_n, live, EXIT, E1, E2, ALIGNED)
    s = tl.where(seen, product(q1, q2, k1, k2, D2, DOT, ACC) * scale, float("-inf"))
    _, ds = slopes_of(s, sums, g1, g2, v1, v2, less, E2, DOT, ACC)
    return add_parts(acc1, acc2, ds, k1, k2, D2, DOT, ACC)


@triton.jit
def _pull_all(
    q1, q2, g1, g2, sums, less, acc1, acc2, k, k_n, v, v_n, count, scale, BN: tl.constexpr,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EXIT: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    for start in range(0, count, BN):
        n = start + tl.arange(0, BN)
        live = n < count
        acc1, acc2 = _pull(
            q1, q2, g1, g2, sums, less, acc1, acc2, k, k_n, v, v_n, n, live, live[None, :], scale,
            DIM, D1, D2, EXIT, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
    return acc1, acc2


@triton.jit(do_not_specialize=SIZES)
def _queries_kernel(
    grad, q, k, v, extra_k, extra_v, lse, delta, dq,
    grad_b, grad_n, grad_h, q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h,
    ek_b, ek_n, ek_h, ev_b, ev_n, ev_h, dq_b, dq_n, dq_h, lse_b, lse_h,
    height, width, across, far, limit, text, extra, heads, scale,
    DISC: tl.constexpr, EXTRA: tl.constexpr, DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
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
    y, x, inside = _places(tile, across, height, width, QY, QX)
    m = text + y * width + x
    q1, q2 = load_parts(q, m, q_n, inside, DIM, D1, D2, ALIGNED)
    g1, g2 = load_parts(grad, m, grad_n, inside, EXIT, E1, E2, ALIGNED)
    acc1, acc2 = zero_parts(BM, D1, D2, ACC)
    sums, less = row_sums(lse, delta, batch * lse_b + head * lse_h + m, inside, ACC)
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
    box = _box(tile, across, far, height, width, QY, QX)
    for step in range(0, _steps(box, KY, KX)):
        ky, kx, n, live = _step_over(box, step, text, width, KY, KX)
        seen = _near(y, x, ky, kx, far, limit, DISC) & live[None, :]
        acc1, acc2 = _pull(
            q1, q2, g1, g2, sums, less, acc1, acc2, k, k_n, v, v_n, n, live, seen, scale,
            DIM, D1, D2, EXIT, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
    natural = scale / 1.4426950408889634
    dq += batch * dq_b + head * dq_h
    store_parts(dq, m, dq_n, inside, acc1 * natural, acc2 * natural, DIM, D1, D2, ALIGNED)


@triton.jit
def _gather(
    k1, k2, v1, v2, dk1, dk2, dv1, dv2, q, q_n, grad, grad_n, lse, delta, m, live, seen, scale,
    DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, EXIT: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The keys' and values' gradients over one tile of queries, by which they are `seen`."""
    q1, q2 = load_parts(q, m, q_n, live, DIM, D1, D2, ALIGNED)
    g1, g2 = load_parts(grad, m, grad_n, live, EXIT, E1, E2, ALIGNED)
    sums, less = row_sums(lse, delta, m, live, ACC)
    s = tl.where(seen, product(q1, q2, k1, k2, D2, DOT, ACC) * scale, float("-inf"))
    p, ds = slopes_of(s, sums, g1, g2, v1, v2, less, E2, DOT, ACC)
    dv1, dv2 = add_parts(dv1, dv2, tl.trans(p), g1, g2, E2, DOT, ACC)
    dk1, dk2 = add_parts(dk1, dk2, tl.trans(ds), q1, q2, D2, DOT, ACC)
    return dk1, dk2, dv1, dv2


@triton.jit(do_not_specialize=SIZES[:-1])
def _keys_kernel(
    grad, q, k, v, lse, delta, dk, dv,
    grad_b, grad_n, grad_h, q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, dk_b, dk_n, dk_h, dv_b, dv_n, dv_h,
    lse_b, lse_h, height, width, across, far, limit, text, heads, scale,
    DISC: tl.constexpr, DIM: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
    EXIT: tl.constexpr, E1: tl.constexpr, E2: tl.constexpr,
    QY: tl.constexpr, QX: tl.constexpr, KY: tl.constexpr, KX: tl.constexpr,
    ALIGNED: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The picture keys' gradients: windows are symmetric, so a tile of keys walks the queries it can reach."""
    BM: tl.constexpr = QY * QX
    BN: tl.constexpr = KY * KX
    tile, place = tl.program_id(0), tl.program_id(1)
    batch, head = (place // heads).to(tl.int64), (place % heads).to(tl.int64)
    grad += batch * grad_b + head * grad_h
    q += batch * q_b + head * q_h
    lse += batch * lse_b + head * lse_h
    delta += batch * lse_b + head * lse_h
    y, x, inside = _places(tile, across, height, width, KY, KX)
    n = text + y * width + x
    k1, k2 = load_parts(k + batch * k_b + head * k_h, n, k_n, inside, DIM, D1, D2, ALIGNED)
    v1, v2 = load_parts(v + batch * v_b + head * v_h, n, v_n, inside, EXIT, E1, E2, ALIGNED)
    dk1, dk2 = zero_parts(BN, D1, D2, ACC)
    dv1, dv2 = zero_parts(BN, E1, E2, ACC)
    for start in range(0, text, BM):
        m = start + tl.arange(0, BM)
        live = m < text
        dk1, dk2, dv1, dv2 = _gather(
            k1, k2, v1, v2, dk1, dk2, dv1, dv2, q, q_n, grad, grad_n, lse, delta, m, live, live[:, None], scale,
            DIM, D1, D2, EXIT, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
    box = _box(tile, across, far, height, width, KY, KX)
    for step in range(0, _steps(box, QY, QX)):
        qy, qx, m, live = _step_over(box, step, text, width, QY, QX)
        seen = _near(qy, qx, y, x, far, limit, DISC) & live[:, None]
        dk1, dk2, dv1, dv2 = _gather(
            k1, k2, v1, v2, dk1, dk2, dv1, dv2, q, q_n, grad, grad_n, lse, delta, m, live, seen, scale,
            DIM, D1, D2, EXIT, E1, E2, ALIGNED, DOT, ACC,
        )  # fmt: skip
    natural = scale / 1.4426950408889634
    dk += batch * dk_b + head * dk_h
    dv += batch * dv_b + head * dv_h
    store_parts(dk, n, dk_n, inside, dk1 * natural, dk2 * natural, DIM, D1, D2, ALIGNED)
    store_parts(dv, n, dv_n, inside, dv1, dv2, EXIT, E1, E2, ALIGNED)


# Launching -----------------------------------------------------------------------------------------------------------


def window(q, k, v, extra_k, extra_v, height, width, radius, text, shape, scale, wants_lse):
    q, k, v, extra_k, extra_v = (unit(each) for each in (q, k, v, extra_k, extra_v))
    batch, tokens, heads, dim = q.shape
    out = q.new_empty(batch, tokens, heads, v.shape[3])
    lse = q.new_empty(batch, heads, tokens, dtype=launch.wide(q.dtype))
    if not out.numel():
        return out, lse
    if text:  # the longest of all programs: first
        attend(q[:, :text], k, v, None, scale, out[:, :text], lse[:, :, :text])
    how = launch.config("window_forward", q, max(dim, v.shape[3]), tokens)
    across = triton.cdiv(width, how["QX"])
    with launch.on(q.device):
        _forward_kernel[launch.grid(across * triton.cdiv(height, how["QY"]), batch * heads)](
            q, k, v, extra_k, extra_v, out, lse, *strides(q), *strides(k), *strides(v), *strides(extra_k),
            *strides(extra_v), *strides(out), *lse.stride()[:2], height, width, across, *_reach(radius), text,
            0 if extra_k is None else extra_k.shape[1], heads, scale * LOG2E,
            DISC=shape == "disc", EXTRA=extra_k is not None, ALIGNED=aligned(q, k, v, extra_k, extra_v, out),
            **shape_of(dim, v.shape[3]), **precision(q), **how,
        )  # fmt: skip
    return out, lse


def window_backward(grad, d_lse, q, k, v, extra_k, extra_v, out, lse, height, width, radius, text, shape, scale):
    grad, q, k, v, extra_k, extra_v = (unit(each) for each in (grad, q, k, v, extra_k, extra_v))
    dq, dk, dv = launch.like(q), launch.like(k), launch.like(v)
    more = [q.new_empty(0) if each is None else launch.like(each) for each in (extra_k, extra_v)]
    if not q.numel():
        return dq, dk, dv, *(each.zero_() for each in more)
    delta = delta_of(grad, out, None if d_lse is None else d_lse.contiguous())  # a sum's gradient has strides of 0
    _picture(grad, q, k, v, extra_k, extra_v, lse, delta, dq, dk, dv, height, width, radius, text, shape, scale)
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


def _picture(grad, q, k, v, extra_k, extra_v, lse, delta, dq, dk, dv, height, width, radius, text, shape, scale):
    """Gradients of the picture's queries, keys and values."""
    batch, tokens, heads, dim = q.shape
    given = {"DISC": shape == "disc", **shape_of(dim, v.shape[3]), **precision(q)}
    given["ALIGNED"] = aligned(grad, q, k, v, extra_k, extra_v, dq, dk, dv)
    how = launch.config("window_queries", q, max(dim, v.shape[3]), tokens)
    across = triton.cdiv(width, how["QX"])
    with launch.on(q.device):
        _queries_kernel[launch.grid(across * triton.cdiv(height, how["QY"]), batch * heads)](
            grad, q, k, v, extra_k, extra_v, lse, delta, dq, *strides(grad), *strides(q), *strides(k), *strides(v),
            *strides(extra_k), *strides(extra_v), *strides(dq), *lse.stride()[:2], height, width, across,
            *_reach(radius), text, 0 if extra_k is None else extra_k.shape[1], heads, scale * LOG2E,
            EXTRA=extra_k is not None, **given, **how,
        )  # fmt: skip
        how = launch.config("window_keys", q, max(dim, v.shape[3]), tokens)
        across = triton.cdiv(width, how["KX"])
        _keys_kernel[launch.grid(across * triton.cdiv(height, how["KY"]), batch * heads)](
            grad, q, k, v, lse, delta, dk, dv, *strides(grad), *strides(q), *strides(k), *strides(v), *strides(dk),
            *strides(dv), *lse.stride()[:2], height, width, across, *_reach(radius), text, heads, scale * LOG2E,
            **given, **how,
        )  # fmt: skip


def _reach(radius: float) -> tuple[int, float]:
    """The farthest whole distance strictly inside, and the largest whole square of a distance that is."""
    far = math.ceil(radius) - 1
    return far, float(math.ceil(radius * radius) - 1)
