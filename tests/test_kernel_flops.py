"""Hold the flop counter's formulas to the products that each path makes."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count

from linattn_kernels import (
    flops,
    launch,
    linear_attention,
    mediator_attention,
    window_attention,
    window_torch,
)
from linattn_kernels.launch import INTERPRETED


def count_flops(call):
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
    extra_kv = tuple(tensors(extra, 2)) if extra else (None, None)
    options = {"height": height, "width": width, "radius": radius, "text": text}
    formula = count_flops(
        lambda: window_attention(q, k, v, **options, extra=extra_kv if extra else None)
    )
    products_made = count_flops(
        lambda: window_torch.window(
            q, k, v, *extra_kv, height, width, radius, text, "disc", 0.5, False
        )
    )
    assert formula == products_made
    assert flops.useful_pairs(height, width, radius, text) <= products_made // (4 * 2 * 3 * 4)


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_linear_attention_counts_its_two_products_and_the_normalisers(tokens):
    q, k, v = tensors(tokens)
    products = 2 * (2 * 2 * tokens * 3 * 4 * 4)
    assert count_flops(lambda: linear_attention(q, k, v)) == products + 2 * 2 * tokens * 3 * 4
    assert count_flops(lambda: linear_attention(q, k, v, normalise=False)) == products


@pytest.mark.parametrize("count", [1, 5])
def test_mediators_count_four_products(count):
    (q, k, v), (mediators,) = tensors(9), tensors(count, 1)
    assert count_flops(lambda: mediator_attention(q, k, v, mediators)) == 4 * (
        2 * 2 * 9 * count * 3 * 4
    )


@pytest.mark.skipif(
    not INTERPRETED, reason="counts calls of a device function, as the interpreter makes them"
)
@pytest.mark.parametrize(
    ("height", "width", "radius"), [(1, 1, 1), (9, 5, 2.5), (9, 5, 40), (17, 20, 5)]
)
@pytest.mark.parametrize(("text", "extra"), [(0, 0), (20, 0), (3, 18)])
def test_a_window_counts_the_tiles_that_triton_makes(
    height, width, radius, text, extra, monkeypatch
):
    from linattn_kernels import window_triton

    # the text's queries call that of another module
    tiles, step = [], window_triton.attend_step
    monkeypatch.setattr(
        window_triton, "attend_step", lambda *inputs: tiles.append(1) or step(*inputs)
    )
    q, k, v = tensors(text + height * width, batch=1, heads=1, dim=8)
    extra_kv = tuple(tensors(extra, 2, batch=1, heads=1, dim=8)) if extra else None
    options = {"height": height, "width": width, "radius": radius, "text": text}
    window_attention(q, k, v, **options, extra=extra_kv, backend="triton")
    config = launch.config("window_forward", q, 8, q.shape[1])
    picture_pairs = len(tiles) * config["QY"] * config["QX"] * config["KY"] * config["KX"]
    assert (
        flops.tiled_pairs("triton", height, width, radius, text, extra, config)
        == picture_pairs + text * q.shape[1]
    )


def backward_of(call, *inputs):
    """Return the operations of the backward alone."""
    inputs = [tensor.requires_grad_(True) for tensor in inputs]
    with FlopCounterMode(display=False) as counter:
        out = call(*inputs)
        forward = counter.get_total_flops()
        out.backward(torch.ones_like(out))
    return counter.get_total_flops() - forward


def products(q, k, v):
    """Compute linear attention as three products; autograd makes two of each."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (q, k, v))
    return (q @ (k.transpose(2, 3) @ v) / (q @ k.mean(2).unsqueeze(3))).transpose(1, 2)


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_linear_attentions_backward_counts_as_autograds_products(tokens):
    q, k, v = (tensor.abs() + 1 for tensor in tensors(tokens))
    assert backward_of(linear_attention, q, k, v) == backward_of(products, q, k, v)


@pytest.mark.parametrize("count", [1, 5])
def test_mediators_backward_counts_as_two_fused_attentions(count):
    (q, k, v), (mediators,) = tensors(9), tensors(count, 1)
    long, few = (2, 3, 9, 4), (2, 3, count, 4)
    fused = sdpa_backward_flop_count(few, few, long, long) + sdpa_backward_flop_count(
        long, long, few, few
    )
    assert backward_of(mediator_attention, q, k, v, mediators) == fused


@pytest.mark.parametrize("side", [8, 16])
def test_a_windows_backward_over_everything_counts_as_fused_attentions(side):
    q, k, v = tensors(side * side)
    shape = (2, 3, side * side, 4)
    flops_counted = backward_of(
        lambda *inputs: window_attention(*inputs, height=side, width=side, radius=99), q, k, v
    )
    assert flops_counted == sdpa_backward_flop_count(shape, shape, shape, shape)
