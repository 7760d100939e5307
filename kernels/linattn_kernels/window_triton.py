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
from linattn_kernels.softmax_triton import LOG2E, attend, columns_slope, delta_of, online, rows_slope, scores
from linattn_kernels.tiles import aligned, dot, load, precision, shape_of, store

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
    d1, e1 = tl.arange(0, D1), tl.arange(0, E1)
    q1 = load(q, m, q_n, d1, inside, DIM, ALIGNED)
    acc1 = tl.zeros((BM, E1), ACC)
    if D2:
        d2 = D1 + tl.arange(0, D2)
        q2 = load(q, m, q_n, d2, inside, DIM, ALIGNED)
    else:
        q2, k2 = q1, q1
    if E2:
        e2 = E1 + tl.arange(0, E2)
        acc2 = tl.zeros((BM, E2), ACC)
    top, total = tl.full((BM,), float("-inf"), ACC), tl.zeros((BM,), ACC)
    for start in range(0, text, BN):
        n = start + tl.arange(0, BN)
        live = n < text
        k1 = load(k, n, k_n, d1, live, DIM, ALIGNED)
        if D2:
            k2 = load(k, n, k_n, d2, live, DIM, ALIGNED)
        s = tl.where(live[None, :], scores(q1, q2, k1, k2, D2, DOT, ACC) * scale, float("-inf"))
        p, old, top, total = online(s, top, total)
        acc1 = acc1 * old[:, None] + dot(p, load(v, n, v_n, e1, live, EXIT, ALIGNED), DOT, ACC)
        if E2:
            acc2 = acc2 * old[:, None] + dot(p, load(v, n, v_n, e2, live, EXIT, ALIGNED), DOT, ACC)
    if EXTRA:
        extra_k += batch * ek_b + head * ek_h
        extra_v += batch * ev_b + head * ev_h
        for start in range(0, extra, BN):
            n = start + tl.arange(0, BN)
            live = n < extra
            k1 = load(extra_k, n, ek_n, d1, live, DIM, ALIGNED)
            if D2:
                k2 = load(extra_k, n, ek_n, d2, live, DIM, ALIGNED)
            s = tl.where(live[None, :], scores(q1, q2, k1, k2, D2, DOT, ACC) * scale, float("-inf"))
            p, old, top, total = online(s, top, total)
            acc1 = acc1 * old[:, None] + dot(p, load(extra_v, n, ev_n, e1, live, EXIT, ALIGNED), DOT, ACC)
            if E2:
                acc2 = acc2 * old[:, None] + dot(p, load(extra_v, n, ev_n, e2, live, EXIT, ALIGNED), DOT, ACC)
    first_y, end_y, first_x, end_x = _box(tile, across, far, height, width, QY, QX)
    wide = tl.cdiv(end_x - first_x, KX)
    i = tl.arange(0, BN)
    for step in range(0, tl.cdiv(end_y - first_y, KY) * wide):
        ky, kx = first_y + (step // wide) * KY + i // KX, first_x + (step % wide) * KX + i % KX
        live = (ky < end_y) & (kx < end_x)
        n = text + ky * width + kx
        k1 = load(k, n, k_n, d1, live, DIM, ALIGNED)
        if D2:
            k2 = load(k, n, k_n, d2, live, DIM, ALIGNED)
        seen = _near(y, x, ky, kx, far, limit, DISC) & live[None, :]
        s = tl.where(seen, scores(q1, q2, k1, k2, D2, DOT, ACC) * scale, float("-inf"))
        p, old, top, total = online(s, top, total)
        acc1 = acc1 * old[:, None] + dot(p, load(v, n, v_n, e1, live, EXIT, ALIGNED), DOT, ACC)
        if E2:
            acc2 = acc2 * old[:, None] + dot(p, load(v, n, v_n, e2, live, EXIT, ALIGNED), DOT, ACC)
    share = (1.0 / tl.where(total == 0, 1.0, total))[:, None]
    out += batch * out_b + head * out_h
    store(out, m, out_n, e1, inside, EXIT, ALIGNED, acc1 * share)
    if E2:
        store(out, m, out_n, e2, inside, EXIT, ALIGNED, acc2 * share)
    sums = (top + tl.log2(tl.where(total == 0, 1.0, total))) / 1.4426950408889634
    tl.store(lse + batch * lse_b + head * lse_h + m, sums, mask=inside)


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
    d1, e1 = tl.arange(0, D1), tl.arange(0, E1)
    q1, g1 = load(q, m, q_n, d1, inside, DIM, ALIGNED), load(grad, m, grad_n, e1, inside, EXIT, ALIGNED)
    acc1 = tl.zeros((BM, D1), ACC)
    if D2:
        d2 = D1 + tl.arange(0, D2)
        q2, acc2 = load(q, m, q_n, d2, inside, DIM, ALIGNED), tl.zeros((BM, D2), ACC)
    else:
        q2, k2 = q1, q1
    if E2:
        e2 = E1 + tl.arange(0, E2)
        g2 = load(grad, m, grad_n, e2, inside, EXIT, ALIGNED)
    else:
        g2, v2 = g1, g1
    at = batch * lse_b + head * lse_h + m
    sums = tl.load(lse + at, mask=inside, other=0.0).to(ACC) * 1.4426950408889634
    less = tl.load(delta + at, mask=inside, other=0.0).to(ACC)
    for start in range(0, text, BN):
        n = start + tl.arange(0, BN)
        live = n < text
        k1, v1 = load(k, n, k_n, d1, live, DIM, ALIGNED), load(v, n, v_n, e1, live, EXIT, ALIGNED)
        if D2:
            k2 = load(k, n, k_n, d2, live, DIM, ALIGNED)
        if E2:
            v2 = load(v, n, v_n, e2, live, EXIT, ALIGNED)
        s = tl.where(live[None, :], scores(q1, q2, k1, k2, D2, DOT, ACC) * scale, float("-inf"))
        ds = tl.exp2(s - sums[:, None]) * (scores(g1, g2, v1, v2, E2, DOT, ACC) - less[:, None])
        acc1 += dot(ds, k1, DOT, ACC)
        if D2:
            acc2 += dot(ds, k2, DOT, ACC)
    if EXTRA:
        extra_k += batch * ek_b + head * ek_h
        extra_v += batch * ev_b + head * ev_h
        for start in range(0, extra, BN):
            n = start + tl.arange(0, BN)
            live = n < extra
            k1, v1 = load(extra_k, n, ek_n, d1, live, DIM, ALIGNED), load(extra_v, n, ev_n, e1, live, EXIT, ALIGNED)
            if D2:
                k2 = load(extra_k, n, ek_n, d2, live, DIM, ALIGNED)
            if E2:
                v2 = load(extra_v, n, ev_n, e2, live, EXIT, ALIGNED)
            s = tl.where(live[None, :], scores(q1, q2, k1, k2, D2, DOT, ACC) * scale, float("-inf"))
            ds = tl.exp2(s - sums[:, None]) * (scores(g1, g2, v1, v2, E2, DOT, ACC) - less[:, None])
            acc1 += dot(ds, k1, DOT, ACC)
            if D2:
                acc2 += dot(ds, k2, DOT, ACC)
    first_y, end_y, first_x, end_x = _box(tile, across, far, height, width, QY, QX)
    wide = tl.cdiv(end_x - first_x, KX)
    i = tl.arange(0, BN)
    for step in range(0, tl.cdiv(end_y - first_y, KY) * wide):
        ky, kx = first_y + (step // wide) * KY + i // KX, first_x + (step % wide) * KX + i % KX
        live = (ky < end_y) & (kx < end_x)
        n = text + ky * width + kx
        k1, v1 = load(k, n, k_n, d1, live, DIM, ALIGNED), load(v, n, v_n, e1, live, EXIT, ALIGNED)
        if D2:
            k2 = load(k, n, k_n, d2, live, DIM, ALIGNED)
        if E2:
            v2 = load(v, n, v_n, e2, live, EXIT, ALIGNED)
        seen = _near(y, x, ky, kx, far, limit, DISC) & live[None, :]
        s = tl.where(seen, scores(q1, q2, k1, k2, D2, DOT, ACC) * scale, float("-inf"))
        ds = tl.exp2(s - sums[:, None]) * (scores(g1, g2, v1, v2, E2, DOT, ACC) - less[:, None])
        acc1 += dot(ds, k1, DOT, ACC)
        if D2:
            acc2 += dot(ds, k2, DOT, ACC)
    natural = scale / 1.4426950408889634
    dq += batch * dq_b + head * dq_h
    store(dq, m, dq_n, d1, inside, DIM, ALIGNED, acc1 * natural)
    if D2:
        store(dq, m, dq_n, d2, inside, DIM, ALIGNED, acc2 * natural)


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
    d1, e1 = tl.arange(0, D1), tl.arange(0, E1)
    k1 = load(k + batch * k_b + head * k_h, n, k_n, d1, inside, DIM, ALIGNED)
    v1 = load(v + batch * v_b + head * v_h, n, v_n, e1, inside, EXIT, ALIGNED)
    dk1, dv1 = tl.zeros((BN, D1), ACC), tl.zeros((BN, E1), ACC)
    if D2:
        d2 = D1 + tl.arange(0, D2)
        k2, dk2 = load(k + batch * k_b + head * k_h, n, k_n, d2, inside, DIM, ALIGNED), tl.zeros((BN, D2), ACC)
    else:
        q2, k2 = k1, k1
    if E2:
        e2 = E1 + tl.arange(0, E2)
        v2, dv2 = load(v + batch * v_b + head * v_h, n, v_n, e2, inside, EXIT, ALIGNED), tl.zeros((BN, E2), ACC)
    else:
        g2, v2 = v1, v1
    for start in range(0, text, BM):
        m = start + tl.arange(0, BM)
        live = m < text
        q1, g1 = load(q, m, q_n, d1, live, DIM, ALIGNED), load(grad, m, grad_n, e1, live, EXIT, ALIGNED)
        if D2:
            q2 = load(q, m, q_n, d2, live, DIM, ALIGNED)
        if E2:
            g2 = load(grad, m, grad_n, e2, live, EXIT, ALIGNED)
        sums = tl.load(lse + m, mask=live, other=0.0).to(ACC) * 1.4426950408889634
        less = tl.load(delta + m, mask=live, other=0.0).to(ACC)
        s = tl.where(live[:, None], scores(q1, q2, k1, k2, D2, DOT, ACC) * scale, float("-inf"))
        p = tl.exp2(s - sums[:, None])
        ds = p * (scores(g1, g2, v1, v2, E2, DOT, ACC) - less[:, None])
        dv1 += dot(tl.trans(p), g1, DOT, ACC)
        dk1 += dot(tl.trans(ds), q1, DOT, ACC)
        if E2:
            dv2 += dot(tl.trans(p), g2, DOT, ACC)
        if D2:
            dk2 += dot(tl.trans(ds), q2, DOT, ACC)
    first_y, end_y, first_x, end_x = _box(tile, across, far, height, width, KY, KX)
    wide = tl.cdiv(end_x - first_x, QX)
    i = tl.arange(0, BM)
    for step in range(0, tl.cdiv(end_y - first_y, QY) * wide):
        qy, qx = first_y + (step // wide) * QY + i // QX, first_x + (step % wide) * QX + i % QX
        live = (qy < end_y) & (qx < end_x)
        m = text + qy * width + qx
        q1, g1 = load(q, m, q_n, d1, live, DIM, ALIGNED), load(grad, m, grad_n, e1, live, EXIT, ALIGNED)
        if D2:
            q2 = load(q, m, q_n, d2, live, DIM, ALIGNED)
        if E2:
            g2 = load(grad, m, grad_n, e2, live, EXIT, ALIGNED)
        sums = tl.load(lse + m, mask=live, other=0.0).to(ACC) * 1.4426950408889634
        less = tl.load(delta + m, mask=live, other=0.0).to(ACC)
        seen = _near(qy, qx, y, x, far, limit, DISC) & live[:, None]
        s = tl.where(seen, scores(q1, q2, k1, k2, D2, DOT, ACC) * scale, float("-inf"))
        p = tl.exp2(s - sums[:, None])
        ds = p * (scores(g1, g2, v1, v2, E2, DOT, ACC) - less[:, None])
        dv1 += dot(tl.trans(p), g1, DOT, ACC)
        dk1 += dot(tl.trans(ds), q1, DOT, ACC)
        if E2:
            dv2 += dot(tl.trans(p), g2, DOT, ACC)
        if D2:
            dk2 += dot(tl.trans(ds), q2, DOT, ACC)
    natural = scale / 1.4426950408889634
    dk += batch * dk_b + head * dk_h
    dv += batch * dv_b + head * dv_h
    store(dk, n, dk_n, d1, inside, DIM, ALIGNED, dk1 * natural)
    store(dv, n, dv_n, e1, inside, EXIT, ALIGNED, dv1)
    if D2:
        store(dk, n, dk_n, d2, inside, DIM, ALIGNED, dk2 * natural)
    if E2:
        store(dv, n, dv_n, e2, inside, EXIT, ALIGNED, dv2)


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
