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
    """Return the least power of two that holds `size`.

    `triton.next_power_of_2` takes 4 us, since it looks for constexprs to unwrap.
    """
    return 1 << max(size - 1, 0).bit_length()


def powers(size: int) -> int:
    """Return the least power of two that holds `size` and is a side of a product."""
    return max(LEAST, power(size))


def parts(dim: int) -> tuple[int, int]:
    """Return two powers of two that hold `dim` channels: 72 in 64 and 16, 128 in 128 and 0.

    A second part saves half the products of 72 and 160 channels; below 64 and at 96 there is too
    little to save.
    """
    single = powers(dim)
    first = single // 2
    if first < 4 * LEAST or dim == single:
        return single, 0
    second = powers(dim - first)
    return (first, second) if 4 * second <= first else (single, 0)


def shape_of(dim: int, value_dim: int) -> dict[str, int]:
    """Return the sizes of a head's channels, and their parts, for queries and for values."""
    (d1, d2), (e1, e2) = parts(dim), parts(value_dim)
    return {"DIM": dim, "D1": d1, "D2": d2, "VDIM": value_dim, "E1": e1, "E2": e2}


def precision(like: Tensor, exact: bool = False) -> dict:
    """Return the types of a product's operands (DOT) and of its sum (ACC).

    The interpreter multiplies bf16 as bit patterns, so there the operands are float32.
    """
    dtype = torch.float32 if launch.INTERPRETED and like.dtype == torch.bfloat16 else like.dtype
    dtypes = {"DOT": TYPES[dtype], "ACC": TYPES[launch.acc_dtype(dtype)]}
    return dtypes | {"EXACT": dtype in (torch.float32, torch.float64)} if exact else dtypes


def aligned(*tensors: Tensor | None) -> bool:
    """Return whether every token's channels begin at an address that is a multiple of 16 bytes.

    Triton looks at strides alone, and asks whether 16 elements divide them: 72 channels of a DiT
    head could begin anywhere for it, and loads would fall apart into single numbers.
    """
    bits = 0
    for tensor in tensors:
        if tensor is not None:
            batch, token, head, _ = tensor.stride()
            bits |= tensor.data_ptr() | (batch | token | head) * tensor.element_size()
    return bits % 16 == 0


@triton.jit
def pointers(base, n, stride, columns, ALIGNED: tl.constexpr):
    """Return pointers within a tile, whose offsets fit 32 bits (see `launch.strides`).

    The caller moves the base to the tile, in 64 bits.
    """
    at = base + (n[:, None] * stride + columns[None, :])
    return tl.multiple_of(at, [1, 16]) if ALIGNED else at


@triton.jit
def load(base, n, stride, columns, live, DIM: tl.constexpr, ALIGNED: tl.constexpr):
    """Load tokens n and channels `columns` in the tensor's own precision, zeros outside."""
    at = pointers(base, n, stride, columns, ALIGNED)
    return tl.load(at, mask=live[:, None] & (columns < DIM)[None, :], other=0.0)


@triton.jit
def store(base, n, stride, columns, live, DIM: tl.constexpr, ALIGNED: tl.constexpr, values):
    at = pointers(base, n, stride, columns, ALIGNED)
    tl.store(at, values, mask=live[:, None] & (columns < DIM)[None, :])


# A head's channels in two parts (`parts`). Where one holds them all, P2 is 0, and the second part
# is the first again, which no code reads.


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
    part1 = load(base, n, stride, tl.arange(0, P1), live, DIM, ALIGNED)
    if P2:
        return part1, load(base, n, stride, P1 + tl.arange(0, P2), live, DIM, ALIGNED)
    else:
        return part1, part1


@triton.jit
def store_parts(
    base, n, stride, live, part1, part2,
    DIM: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    store(base, n, stride, tl.arange(0, P1), live, DIM, ALIGNED, part1)
    if P2:
        store(base, n, stride, P1 + tl.arange(0, P2), live, DIM, ALIGNED, part2)


@triton.jit
def zero_parts(ROWS: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr, ACC: tl.constexpr):
    part1 = tl.zeros((ROWS, P1), ACC)
    if P2:
        return part1, tl.zeros((ROWS, P2), ACC)
    else:
        return part1, part1


@triton.jit
def add_parts(
    acc1, acc2, weights, part1, part2, P2: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr
):
    """Add weights @ both parts to both accumulators."""
    acc1 += dot(weights, part1, DOT, ACC)
    if P2:
        acc2 += dot(weights, part2, DOT, ACC)
    return acc1, acc2


@triton.jit
def product(a1, a2, b1, b2, P2: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr):
    """Compute a b^T from both parts."""
    s = dot(a1, tl.trans(b1), DOT, ACC)
    if P2:
        s += dot(a2, tl.trans(b2), DOT, ACC)
    return s


@triton.jit
def dot(a, b, DOT: tl.constexpr, ACC: tl.constexpr):
    """Compute a @ b of operands rounded to DOT, summed in ACC; float32 never becomes tf32."""
    return tl.dot(a.to(DOT), b.to(DOT), input_precision="ieee", out_dtype=ACC)
