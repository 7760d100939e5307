"""What the flop counter says of an operation is what its path multiplies."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from linattn_kernels import flops, linear_attention, mediator_attention, window_attention, window_torch


def counted(call):
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        call()
    return counter.get_total_flops()


def tensors(tokens, count=3, batch=2, heads=3, dim=4):
    return [torch.randn(batch, tokens, heads, dim) for _ in range(count)]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (9, 5), (16, 16), (20, 33)])
@pytest.mark.parametrize("radius", [1, 2.5, 4, 40])
@pytest.mark.parametrize(("text", "extra"), [(0, 0), (3, 0), (2, 5)])
def test_a_window_counts_the_tiles_it_makes(height, width, radius, text, extra):
    q, k, v = tensors(text + height * width)
    more = tuple(tensors(extra, 2)) if extra else (None, None)
    place = {"height": height, "width": width, "radius": radius, "text": text}
    seen = counted(lambda: window_attention(q, k, v, **place, extra=more if extra else None))
    done = counted(lambda: window_torch.window(q, k, v, *more, height, width, radius, text, "disc", 0.5, False))
    assert seen == done
    assert flops.useful_pairs(height, width, radius, text) <= done // (4 * 2 * 3 * 4)


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_linear_attention_counts_its_two_products_and_the_normalisers(tokens):
    q, k, v = tensors(tokens)
    products = 2 * (2 * 2 * tokens * 3 * 4 * 4)
    assert counted(lambda: linear_attention(q, k, v)) == products + 2 * 2 * tokens * 3 * 4
    assert counted(lambda: linear_attention(q, k, v, normalise=False)) == products


@pytest.mark.parametrize("count", [1, 5])
def test_mediators_count_four_products(count):
    (q, k, v), (mediators,) = tensors(9), tensors(count, 1)
    assert counted(lambda: mediator_attention(q, k, v, mediators)) == 4 * (2 * 2 * 9 * count * 3 * 4)


@pytest.mark.parametrize(
    ("call", "factor"),
    [
        (linear_attention, 2),
        (lambda q, k, v: mediator_attention(q, k, v, q[:, :2]), 2.5),
        (lambda q, k, v: window_attention(q, k, v, height=3, width=3, radius=2), 2.5),
    ],
    ids=["linear", "mediator", "window"],
)
def test_a_backward_counts_as_its_products(call, factor):
    q, k, v = (each.requires_grad_(True) for each in tensors(9))
    forward = counted(lambda: call(q, k, v))
    counter = FlopCounterMode(display=False)
    with counter:
        call(q, k, v).sum().backward()
    assert counter.get_total_flops() == forward * (1 + factor)
