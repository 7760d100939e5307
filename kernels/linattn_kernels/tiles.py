"""Products and sizes of tiles, for all kernels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from linattn_kernels import launch

LEAST = 16  # the smallest side of a product on a GPU
TYPES = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


def power(size: int) -> int:
    """The power of two that holds `size`. Triton's own takes 4 us: it looks for what it would have
    to unwrap.
    """
    return 1 << max(size - 1, 0).bit_length()


def powers(size: int) -> int:
    """The same, at least the smallest tile."""
    return max(LEAST, power(size))


def parts(dim: int) -> tuple[int, int]:
    """Two powers of two that hold `dim` channels together, the second 0 where one does: 72 is 64
    and 16, 128 is 128.

    A second part saves half the products of 72 and 160 channels; below 64 and at 96 there is too
    little to save.
    """
    whole = powers(dim)
    first = whole // 2
    if first < 4 * LEAST or dim == whole:
        return whole, 0
    second = powers(dim - first)
    return (first, second) if 4 * second <= first else (whole, 0)


def shape_of(dim: int, exit_dim: int) -> dict[str, int]:
    """Both parts of a head's channels on the way in and out."""
    (d1, d2), (e1, e2) = parts(dim), parts(exit_dim)
    return {"DIM": dim, "D1": d1, "D2": d2, "EXIT": exit_dim, "E1": e1, "E2": e2}


def precision(like: Tensor, exact: bool = False) -> dict:
    """What products are taken of, and what they are added up in. The interpreter multiplies bf16 as
    bit patterns.
    """
    dtype = torch.float32 if launch.INTERPRETED and like.dtype == torch.bfloat16 else like.dtype
    found = {"DOT": TYPES[dtype], "ACC": TYPES[launch.wide(dtype)]}
    return found | {"EXACT": dtype in (torch.float32, torch.float64)} if exact else found


def aligned(*tensors: Tensor | None) -> bool:
    """Whether every row of channels begins at an address that 16 bytes divide.

    Triton looks at strides alone and knows 16 elements only: to it the 72 channels of a DiT head
    begin anywhere, and loads fall apart into single numbers.
    """
    bits = 0
    for each in tensors:
        if each is not None:
            batch, token, head, _ = each.stride()
            bits |= each.data_ptr() | (batch | token | head) * each.element_size()
    return bits % 16 == 0


@triton.jit
def pointers(base, n, stride, columns, ALIGNED: tl.constexpr):
    """Places within a tile, in 32 bits (`launch.strides` sees to it); the base is moved to the
    tile, in 64.
    """
    at = base + (n[:, None] * stride + columns[None, :])
    return tl.multiple_of(at, [1, 16]) if ALIGNED else at


@triton.jit
def load(base, n, stride, columns, live, DIM: tl.constexpr, ALIGNED: tl.constexpr):
    """Tokens n, channels `columns`: (tokens, channels) in the tensor's own precision, zeros
    outside.
    """
    at = pointers(base, n, stride, columns, ALIGNED)
    return tl.load(at, mask=live[:, None] & (columns < DIM)[None, :], other=0.0)


@triton.jit
def store(base, n, stride, columns, live, DIM: tl.constexpr, ALIGNED: tl.constexpr, values):
    at = pointers(base, n, stride, columns, ALIGNED)
    tl.store(at, values, mask=live[:, None] & (columns < DIM)[None, :])


# A head's channels in two parts (`parts`); where one holds them all, the second is the first again
# and nobody reads it.


@triton.jit
def load_parts(
    base,
    n,
    stride,
    live,
    DIM: tl.constexpr,
    P1: tl.constexpr,
    P2: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    one = load(base, n, stride, tl.arange(0, P1), live, DIM, ALIGNED)
    if P2:
        return one, load(base, n, stride, P1 + tl.arange(0, P2), live, DIM, ALIGNED)
    else:
        return one, one


@triton.jit
def store_parts(
    base, n, stride, live, one, two,
    DIM: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    store(base, n, stride, tl.arange(0, P1), live, DIM, ALIGNED, one)
    if P2:
        store(base, n, stride, P1 + tl.arange(0, P2), live, DIM, ALIGNED, two)


@triton.jit
def zero_parts(ROWS: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, ACC: tl.constexpr):
    one = tl.zeros((ROWS, P1), ACC)
    if P2:
        return one, tl.zeros((ROWS, P2), ACC)
    else:
        return one, one


@triton.jit
def add_parts(
    acc1, acc2, weights, one, two, P2: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr
):
    """acc + weights @ parts."""
    acc1 += dot(weights, one, DOT, ACC)
    if P2:
        acc2 += dot(weights, two, DOT, ACC)
    return acc1, acc2


@triton.jit
def product(a1, a2, b1, b2, P2: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr):
    """a b^T."""
    s = dot(a1, tl.trans(b1), DOT, ACC)
    if P2:
        s += dot(a2, tl.trans(b2), DOT, ACC)
    return s


@triton.jit
def dot(a, b, DOT: tl.constexpr, ACC: tl.constexpr):
    """a @ b of operands rounded to DOT, added up in ACC; float32 is never rounded to tf32."""
    return tl.dot(a.to(DOT), b.to(DOT), input_precision="ieee", out_dtype=ACC)
