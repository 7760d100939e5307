"""What the flop counter says of an operation is what its path multiplies."""

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
    done = counted(
        lambda: window_torch.window(q, k, v, *more, height, width, radius, text, "disc", 0.5, False)
    )
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
    assert counted(lambda: mediator_attention(q, k, v, mediators)) == 4 * (
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

    # the text's own rows take theirs from another module
    made, step = [], window_triton.attend_step
    monkeypatch.setattr(window_triton, "attend_step", lambda *given: made.append(1) or step(*given))
    q, k, v = tensors(text + height * width, batch=1, heads=1, dim=8)
    more = tuple(tensors(extra, 2, batch=1, heads=1, dim=8)) if extra else None
    place = {"height": height, "width": width, "radius": radius, "text": text}
    window_attention(q, k, v, **place, extra=more, backend="triton")
    how = launch.config("window_forward", q, 8, q.shape[1])
    near = len(made) * how["QY"] * how["QX"] * how["KY"] * how["KX"]
    assert (
        flops.tiled_pairs("triton", height, width, radius, text, extra, how)
        == near + text * q.shape[1]
    )


def backward_of(call, *given):
    """Counted of the backward alone."""
    given = [each.requires_grad_(True) for each in given]
    with FlopCounterMode(display=False) as counter:
        out = call(*given)
        forward = counter.get_total_flops()
        out.backward(torch.ones_like(out))
    return counter.get_total_flops() - forward


def products(q, k, v):
    """Linear attention as three products; autograd makes two of each."""
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    return (q @ (k.transpose(2, 3) @ v) / (q @ k.mean(2).unsqueeze(3))).transpose(1, 2)


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_linear_attentions_backward_counts_as_autograds_products(tokens):
    q, k, v = (each.abs() + 1 for each in tensors(tokens))
    assert backward_of(linear_attention, q, k, v) == backward_of(products, q, k, v)


@pytest.mark.parametrize("count", [1, 5])
def test_mediators_backward_counts_as_two_fused_attentions(count):
    (q, k, v), (mediators,) = tensors(9), tensors(count, 1)
    rows, few = (2, 3, 9, 4), (2, 3, count, 4)
    fused = sdpa_backward_flop_count(few, few, rows, rows) + sdpa_backward_flop_count(
        rows, rows, few, few
    )
    assert backward_of(mediator_attention, q, k, v, mediators) == fused


@pytest.mark.parametrize("side", [8, 16])
def test_a_windows_backward_over_everything_counts_as_fused_attentions(side):
    q, k, v = tensors(side * side)
    rows = (2, 3, side * side, 4)
    found = backward_of(
        lambda *given: window_attention(*given, height=side, width=side, radius=99), q, k, v
    )
    assert found == sdpa_backward_flop_count(rows, rows, rows, rows)
