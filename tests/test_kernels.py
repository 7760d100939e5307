"""Hold the four kernels, on every path of this machine, to their definitions in float64.

Triton runs in its interpreter where there is no GPU, with tiles of 16. What only hardware can show
(speed, bf16 products, registers) is in tests/test_kernel_builds.py and `make gpu-check`.
"""

import math
import os
import subprocess
import sys
import threading
import warnings
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

import linattn_kernels
from linattn_kernels import (
    launch,
    linear_attention,
    mediator_attention,
    reference,
    small_torch,
    tile_attention,
    tile_torch,
    use_backend,
    window_attention,
)
from linattn_kernels.launch import INTERPRETED, obstacle
from linattn_kernels.reference import State

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RUNS = obstacle(DEVICE) is None and (DEVICE.type == "cuda" or INTERPRETED)
NEEDS_TRITON = pytest.mark.skipif(not RUNS, reason="Triton cannot run here")
# "small" is the PyTorch path for small tensors, "torch" the one for large tensors.
PATHS = ["small", "torch", pytest.param("triton", marks=NEEDS_TRITON)]
BOUND = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2 if INTERPRETED else 8e-3}
LINEAR, WINDOW, TILE, MEDIATOR = (
    reference.linear_attention,
    reference.window_attention,
    reference.tile_attention,
    reference.mediator_attention,
)


@contextmanager
def taking(path):
    with pytest.MonkeyPatch.context() as patch, use_backend("torch" if path == "small" else path):
        if path == "torch":
            patch.setattr(small_torch, "is_eager", lambda q: False)
        yield


def tensors(*shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)
        for shape in shapes
    ]


def qkv(batch, queries, keys, heads, dim, value_dim, **more):
    return tensors(
        (batch, queries, heads, dim),
        (batch, keys, heads, dim),
        (batch, keys, heads, value_dim),
        **more,
    )


def results(function, inputs, seed=7):
    """Return ([output ..], [gradient of each input ..]) for random gradients of all outputs."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    outs = function(*inputs)
    outs = [tensor for tensor in (outs if isinstance(outs, tuple) else (outs,)) if tensor.numel()]
    generator = torch.Generator().manual_seed(seed)
    grad_outs = [
        torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
        for tensor in outs
    ]
    torch.autograd.backward(outs, grad_outs)
    return [tensor.detach() for tensor in outs], [tensor.grad for tensor in inputs]


def judge(function, definition, inputs, path):
    """Hold outputs and gradients to the definition in float64.

    The bound is relative to the tensor. A larger error is allowed where the definition itself has
    two thirds of it in the same precision: one key's gradient is what is left of two numbers that
    cancel.
    """
    with taking(path):
        outs, grads = results(function, inputs)
    exact, exact_grads = results(definition, [tensor.double() for tensor in inputs])
    plain, plain_grads = results(definition, inputs)
    bound = BOUND[inputs[0].dtype]
    for result, wanted, usual_result in zip(
        outs + grads, exact + exact_grads, plain + plain_grads, strict=True
    ):
        assert result.shape == wanted.shape
        # Where all of a tensor cancels, the error is relative to inputs of size 1.
        size = wanted.norm() if wanted.square().mean() > 1e-6 else wanted.numel() ** 0.5
        error, usual = (
            (tensor.double() - wanted).norm() / size for tensor in (result, usual_result)
        )
        assert error < max(bound, 1.5 * usual), (
            f"{error:.1e}, where {bound:g} is allowed and {usual:.1e} usual"
        )
    assert all(tensor.dtype == inputs[0].dtype for tensor in (outs[0], *grads))


# Linear attention
# ---------------------------------------------------------------------------------------------

SIZES = [
    (1, 1, 1, 1, 8, 8),
    (2, 5, 7, 3, 16, 16),
    (1, 33, 50, 2, 24, 16),
    (1, 17, 64, 2, 40, 40),
    (1, 65, 15, 1, 72, 30),
    (2, 16, 19, 1, 24, 130),
    (1, 20, 20, 1, 160, 144),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
def test_linear_sizes(size, path):
    options = {"eps": 0.1}
    judge(
        lambda *t: linear_attention(*t, **options),
        lambda *t: LINEAR(*t, **options),
        qkv(*size),
        path,
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("feature_map", reference.FEATURE_MAPS)
@pytest.mark.parametrize("normalise", [True, False], ids=["normalised", "plain"])
def test_linear_feature_maps(feature_map, normalise, path):
    inputs = qkv(2, 19, 21, 2, 24, 16)
    if feature_map == "identity":  # a denominator that crosses zero has no gradient to compare
        inputs = [inputs[0].abs(), inputs[1].abs(), inputs[2]]
    options = {"feature_map": feature_map, "shift": 0.05, "eps": 0.1, "normalise": normalise}
    judge(
        lambda *t: linear_attention(*t, **options), lambda *t: LINEAR(*t, **options), inputs, path
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dim", [16, 40, 130])
def test_linear_with_a_normaliser_of_its_own(dim, path):
    inputs = qkv(2, 17, 20, 2, dim, 24) + tensors((2, 17, 2, dim), (2, 20, 2, dim), seed=1)

    def with_normaliser(function):
        return lambda q, k, v, a, b: function(q, k, v, eps=0.1, normaliser=(a, b))

    judge(with_normaliser(linear_attention), with_normaliser(LINEAR), inputs, path)


@NEEDS_TRITON
@pytest.mark.parametrize(("dim", "passes"), [(64, 1), (72, 2)])
def test_the_backward_reads_queries_once_where_a_head_is_narrow(dim, passes, monkeypatch):
    from linattn_kernels import linear_triton

    if DEVICE.type == "cuda":
        pytest.skip(
            "float32, which a GPU takes in two passes: the table of what ships is held below"
        )
    accumulate, second_passes = linear_triton._accumulate, []
    monkeypatch.setattr(
        linear_triton,
        "_accumulate",
        lambda *inputs: second_passes.append(inputs) or accumulate(*inputs),
    )
    q, _, v = qkv(1, 20, 20, 1, dim, dim)
    state = torch.zeros(1, 1, dim, dim), torch.ones(1, 1, dim)
    linear_triton.read_backward(v, q, None, *state, "elu1", 0.0, 1e-4, True)
    assert 1 + len(second_passes) == passes
    shipped = launch._config("linear_read_backward", (9, 0), ("bfloat16", "half", "any"), dim, 16)
    assert shipped.get("TOGETHER", False) == (passes == 1)


@pytest.mark.parametrize("path", PATHS)
def test_linear_key_mask(path):
    mask = torch.rand(3, 37, generator=torch.Generator().manual_seed(2)).to(DEVICE) > 0.4
    mask[1] = False  # no key counts: the denominator is eps alone
    mask[2, 20:] = False
    mask = mask.T.contiguous().T  # of any strides
    options = {"key_mask": mask, "eps": 0.1}
    judge(
        lambda *t: linear_attention(*t, **options),
        lambda *t: LINEAR(*t, **options),
        qkv(3, 5, 37, 2, 16, 16),
        path,
    )


@pytest.mark.parametrize("path", [*PATHS, "reference"])
def test_masked_keys_may_hold_nan(path):
    """Padding may never have been written: NaN there reaches no result and no gradient."""
    mask = torch.rand(2, 37, generator=torch.Generator().manual_seed(2)).to(DEVICE) > 0.4
    clean = [*qkv(2, 9, 37, 2, 16, 24), *tensors((2, 9, 2, 16), (2, 37, 2, 16), seed=1)]
    dirty = [tensor.clone() for tensor in clean]
    for tensor in (dirty[1], dirty[2], dirty[4]):
        tensor[~mask] = torch.nan

    def call(q, k, v, a, b):
        out, state = linear_attention(
            q, k, v, normaliser=(a, b), key_mask=mask, eps=20.0, return_state=True
        )
        return out, state.values, state.keys

    with taking(path):
        (outs, grads), (wanted_outs, wanted_grads) = results(call, dirty), results(call, clean)
    for one, two in zip(outs + grads, wanted_outs + wanted_grads, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("path", PATHS)
def test_values_wider_than_a_tile_with_a_mask_and_a_normaliser(path):
    inputs = qkv(2, 17, 40, 1, 16, 144) + tensors((2, 17, 1, 16), (2, 40, 1, 16), seed=1)
    mask = torch.arange(40, device=DEVICE).expand(2, 40) < torch.tensor([[23], [0]], device=DEVICE)
    options = {"key_mask": mask, "eps": 0.1}

    def with_both(function):
        return lambda q, k, v, a, b: function(q, k, v, normaliser=(a, b), **options)

    judge(with_both(linear_attention), with_both(LINEAR), inputs, path)
    judge(
        lambda *t: linear_attention(*t, **options),
        lambda *t: LINEAR(*t, **options),
        inputs[:3],
        path,
    )


@pytest.mark.parametrize("path", PATHS)
def test_a_sequence_of_several_splits(path):
    """A split has four tiles of 16 at least."""
    judge(
        lambda *t: linear_attention(*t, eps=0.1),
        lambda *t: LINEAR(*t, eps=0.1),
        qkv(1, 150, 150, 1, 16, 16),
        path,
    )
    inputs = qkv(1, 150, 150, 1, 16, 16) + tensors((1, 9, 1, 16), seed=1)
    judge(mediator_attention, MEDIATOR, inputs, path)


@NEEDS_TRITON
@pytest.mark.parametrize("programs", [1, 10, 16, 24, 264, 300])
@pytest.mark.parametrize("tokens", [0, 1, 100, 65536])
def test_programs_are_no_more_than_a_gpu_holds_at_once(programs, tokens, monkeypatch):
    monkeypatch.setattr(launch, "processors", lambda device: 132)
    splits, chunk = launch.splits(tokens, programs, 64, DEVICE)
    assert splits == 1 or splits * programs <= 264
    assert splits * chunk >= tokens > (splits - 1) * chunk or (splits, tokens) == (1, 0)
    assert splits == 1 or chunk >= 4 * 64
    if tokens == 65536 and programs <= 24:
        assert splits * programs > 0.8 * 264


@pytest.mark.parametrize("path", PATHS)
def test_states_of_two_parts_of_a_sequence_can_be_merged(path):
    """The state of one part merged with that of another is the whole's, gradients included."""

    def joined(function):
        def call(q, k, v, more_k, more_v, mask):
            _, first = function(q[:, :1], k, v, eps=0.1, return_state=True)
            out, merged = function(
                q, more_k, more_v, eps=0.1, state=first, key_mask=mask, return_state=True
            )
            return out, merged.values, merged.keys

        return call

    q, k, v = qkv(2, 6, 40, 2, 16, 24)
    more_k, more_v = tensors((2, 9, 2, 16), (2, 9, 2, 24), seed=3)
    mask = torch.arange(9, device=DEVICE) < torch.tensor([[9], [4]], device=DEVICE)
    inputs = [q, k, v, more_k, more_v]
    judge(
        lambda *t: joined(linear_attention)(*t, mask),
        lambda *t: joined(LINEAR)(*t, mask),
        inputs,
        path,
    )
    with taking(path):
        merged = joined(linear_attention)(*inputs, torch.ones_like(mask))[0]
        whole_sequence = linear_attention(
            q, torch.cat([k, more_k], 1), torch.cat([v, more_v], 1), eps=0.1
        )
    torch.testing.assert_close(merged, whole_sequence, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_linear_attention_without_keys_or_queries(path):
    q, k, v = qkv(2, 5, 0, 2, 16, 16)
    with taking(path):
        assert not linear_attention(q, k, v).any()
        assert linear_attention(k, q, q).shape == (2, 0, 2, 16)
        _, grads = results(lambda q, k, v: linear_attention(q, k, v, eps=0.1), [q, k, v])
    assert not grads[0].any()
    assert grads[1].shape == k.shape


@pytest.mark.parametrize("path", PATHS)
def test_a_query_whose_denominator_is_zero_reads_zero(path):
    q, k, v = qkv(1, 20, 20, 1, 16, 16)
    q[:, 3] = -1.0
    with taking(path):
        outs, grads = results(
            lambda *t: linear_attention(*t, feature_map="relu", eps=0.0), [q, k, v]
        )
    assert not outs[0][:, 3].any()
    assert not grads[0][:, 3].any()
    assert all(tensor.isfinite().all() for tensor in grads)


@pytest.mark.parametrize("path", PATHS)
def test_linear_attention_passes_on_a_constant(path):
    q, k, v = qkv(1, 40, 40, 2, 24, 24)
    with taking(path):
        out = linear_attention(q, k, v[:, :1].expand_as(v), eps=0.0)
        order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
        shuffled = linear_attention(q, k[:, order], v[:, order])
        straight = linear_attention(q, k, v)
    torch.testing.assert_close(out, v[:, :1].expand_as(v), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(shuffled, straight, rtol=1e-5, atol=1e-6)


# Windows
# ---------------------------------------------------------------------------------------------

PICTURES = [(1, 1, 1), (5, 7, 2), (4, 4, 1), (9, 6, 3), (3, 17, 2.5), (8, 8, 20)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", reference.SHAPES)
@pytest.mark.parametrize("text", [0, 3])
@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: "x".join(map(str, picture)))
def test_window_sizes(picture, text, shape, path):
    height, width, radius = picture
    tokens = text + height * width
    options = {"height": height, "width": width, "radius": radius, "text": text, "shape": shape}
    inputs = qkv(1, tokens, tokens, 2, 16, 16)
    judge(
        lambda *t: window_attention(*t, **options), lambda *t: WINDOW(*t, **options), inputs, path
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("dim", "value_dim"), [(8, 8), (24, 40), (40, 24), (72, 72)])
def test_window_head_dims_extra_keys_and_log_sum_exp(dim, value_dim, path):
    options = {"height": 5, "width": 6, "radius": 2, "text": 2, "scale": 0.3, "return_lse": True}
    inputs = qkv(2, 32, 32, 1, dim, value_dim) + tensors(
        (2, 5, 1, dim), (2, 5, 1, value_dim), seed=4
    )

    def with_extra(function):
        return lambda q, k, v, a, b: function(q, k, v, extra=(a, b), **options)

    judge(with_extra(window_attention), with_extra(WINDOW), inputs, path)


@pytest.mark.parametrize("path", PATHS)
def test_the_gradient_of_lse_may_have_any_strides(path):
    """The gradient of a sum has strides of 0."""
    options = {"height": 4, "width": 5, "radius": 2, "return_lse": True}
    q, k, v = qkv(2, 20, 20, 2, 16, 16)

    def summed(function):
        return lambda q, k: function(q, k, v.to(q), **options)[1].sum()

    judge(summed(window_attention), summed(WINDOW), [q, k], path)


@pytest.mark.parametrize("path", PATHS)
def test_a_window_over_everything_is_dense(path):
    q, k, v = qkv(2, 3 + 30, 33, 2, 16, 16)
    with taking(path):
        out = window_attention(q, k, v, height=5, width=6, radius=9, text=3)
    dense = F.scaled_dot_product_attention(
        *(tensor.transpose(1, 2) for tensor in (q, k, v))
    ).transpose(1, 2)
    torch.testing.assert_close(out, dense, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
def test_one_huge_key_wins(path):
    q, k, v = qkv(1, 36, 36, 1, 16, 16)
    k[:, 14] = 300 * q[:, 14]
    with taking(path):
        out = window_attention(q, k, v, height=6, width=6, radius=3)
    torch.testing.assert_close(out[:, 14], v[:, 14])
    assert out.isfinite().all()


# Mediators
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("count", [1, 4, 9, 16, 49])
@pytest.mark.parametrize(("dim", "value_dim"), [(16, 16), (40, 24)])
def test_mediator_sizes(count, dim, value_dim, path):
    inputs = qkv(2, 37, 50, 2, dim, value_dim) + tensors((2, count, 2, dim), seed=5)
    judge(mediator_attention, MEDIATOR, inputs, path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "bias",
    [((2, 3, 5, 70), (2, 3, 20, 5)), ((3, 1, 70), (5,)), ((1, 1, 5, 70), (3, 1, 5))],
    ids=str,
)
def test_mediators_with_biases(bias, path):
    inputs = qkv(2, 20, 70, 3, 16, 16) + tensors((2, 5, 3, 16), *bias, seed=6)

    def with_biases(function):
        return lambda q, k, v, m, one, two: function(
            q, k, v, m, scale=0.4, bias_in=one, bias_out=two
        )

    judge(with_biases(mediator_attention), with_biases(MEDIATOR), inputs, path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("count", [5, 130], ids=["one tile", "several"])
def test_a_row_of_minus_infinity_reads_zero(count, path):
    """A mediator may be closed to all keys, or a query to all mediators."""
    inputs = qkv(2, 40, 70, 3, 16, 16) + tensors((2, count, 3, 16), seed=6)
    bias_in, bias_out = tensors((2, 1, count, 70), (1, 3, 40, count), seed=1)
    bias_in[1, :, 2], bias_out[:, 1, ::4] = -torch.inf, -torch.inf

    def call(function):
        return lambda *t: function(*t, bias_in=bias_in.to(t[0]), bias_out=bias_out.to(t[0]))

    judge(call(mediator_attention), call(MEDIATOR), inputs, path)
    with taking(path):
        assert not call(mediator_attention)(*inputs)[:, ::4, 1].any()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [-0.3, 0.0, 1e-46])
def test_a_scale_below_or_at_zero(scale, path):
    """The kernels take the maxima of unscaled scores, so they must make the scale positive."""
    inputs = qkv(1, 3 + 5 * 6, 3 + 5 * 6, 2, 8, 8)
    options = {"height": 5, "width": 6, "radius": 2, "text": 3, "scale": scale}
    judge(
        lambda *t: window_attention(*t, **options), lambda *t: WINDOW(*t, **options), inputs, path
    )
    inputs += tensors((1, 4, 2, 8), seed=1)
    judge(
        lambda *t: mediator_attention(*t, scale=scale),
        lambda *t: MEDIATOR(*t, scale=scale),
        inputs,
        path,
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("radius", [1e9, 1e300], ids=["far", "farther than float32"])
def test_a_radius_beyond_any_picture(radius, path):
    inputs, options = qkv(1, 30, 30, 1, 8, 8), {"height": 5, "width": 6, "radius": radius}
    judge(
        lambda *t: window_attention(*t, **options), lambda *t: WINDOW(*t, **options), inputs, path
    )


@NEEDS_TRITON
def test_token_strides_beyond_32_bits_are_refused():
    from linattn_kernels.launch import strides

    far = torch.empty((1, 300, 1, 8), device="meta").as_strided((1, 300, 1, 8), (0, 1 << 23, 8, 1))
    assert strides(far[:, :3])[1] == 1 << 23  # as far as there are tokens
    assert strides(far, reach=255)[1] == 1 << 23
    with pytest.raises(
        ValueError, match=r"8388608 numbers apart, 256 of them in a tile.*backend=\"torch\""
    ):
        strides(far, reach=256)


@pytest.mark.parametrize(
    ("dim", "sizes"),
    [
        (1, (16, 0)),
        (40, (64, 0)),
        (64, (64, 0)),
        (72, (64, 16)),
        (96, (128, 0)),
        (160, (128, 32)),
        (288, (256, 32)),
    ],
    ids=str,
)
@NEEDS_TRITON
def test_a_head_is_split_in_two_parts_where_that_halves_the_products(dim, sizes):
    from linattn_kernels.tiles import parts

    assert parts(dim) == sizes


@pytest.mark.parametrize("path", PATHS)
def test_mediators_pooled_from_queries_get_both_gradients(path):
    def pooled(function):
        return lambda q, k, v: function(q, k, v, q.unflatten(1, (4, -1)).mean(2))

    judge(pooled(mediator_attention), pooled(MEDIATOR), qkv(1, 32, 40, 2, 16, 16), path)


# Tiles
# ---------------------------------------------------------------------------------------------


def kept_tiles(batch, heads, tiles, count, seed=3):
    """Draw `count` distinct tiles of keys for each tile of queries."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(batch, heads, tiles, tiles, generator=generator)
    return drawn.topk(min(count, tiles)).indices.to(DEVICE)


LARGE = ["torch", pytest.param("triton", marks=NEEDS_TRITON)]  # tiles have no path for small calls
# (height, width, tile, count, text); few, since the interpreter takes seconds for each
TILES = [(1, 1, 4, 1, 3), (3, 5, 2, 2, 2), (4, 6, 3, 1, 0)]
READINGS = {
    "kept": {"return_lse": True},
    "means": {"means": True, "return_lse": True, "return_share": True},
    "threshold": {"means": True, "threshold": 0.3, "return_share": True},
}


@pytest.mark.parametrize("path", LARGE)
@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)
@pytest.mark.parametrize("picture", TILES, ids=lambda picture: "x".join(map(str, picture)))
def test_tile_sizes(picture, reading, path):
    height, width, tile, count, text = picture
    tokens, tiles = text + height * width, -(-height // tile) * -(-width // tile)
    options = {"height": height, "width": width, "tile": tile, "text": text, **reading}
    kept = kept_tiles(1, 1, tiles, count)
    judge(
        lambda *t: tile_attention(*t, kept, **options),
        lambda *t: TILE(*t, kept, **options),
        qkv(1, tokens, tokens, 1, 16, 16),
        path,
    )


@pytest.mark.parametrize("path", LARGE)
def test_tiles_of_several_heads_and_wider_values(path):
    options = {"height": 2, "width": 4, "tile": 2, "text": 2, "scale": -0.3, "means": True}
    kept = kept_tiles(2, 2, 2, 1)
    judge(
        lambda *t: tile_attention(*t, kept, **options),
        lambda *t: TILE(*t, kept, **options),
        qkv(2, 10, 10, 2, 8, 24),
        path,
    )


@pytest.mark.parametrize("gathered", [1, 600, 1 << 18], ids=["tile", "tiles", "heads"])
def test_pieces_of_tiles_of_any_size_are_the_same(gathered, monkeypatch):
    monkeypatch.setattr(tile_torch, "GATHERED", gathered)
    options = {"height": 5, "width": 6, "tile": 2, "text": 1, "means": True}
    kept = kept_tiles(2, 3, 9, 4)
    judge(
        lambda *t: tile_attention(*t, kept, **options),
        lambda *t: TILE(*t, kept, **options),
        qkv(2, 31, 31, 3, 8, 8),
        "torch",
    )


@pytest.mark.parametrize("path", [*LARGE, "reference"])
def test_all_tiles_kept_are_dense(path):
    q, k, v = qkv(1, 2 + 20, 22, 2, 16, 16)
    kept = torch.arange(6, device=DEVICE).expand(1, 2, 6, 6)
    with taking(path):
        out, share = tile_attention(
            q, k, v, kept, height=5, width=4, tile=2, text=2, means=True, return_share=True
        )
    dense = F.scaled_dot_product_attention(*(tensor.transpose(1, 2) for tensor in (q, k, v)))
    torch.testing.assert_close(out, dense.transpose(1, 2), rtol=1e-5, atol=1e-6)
    assert not share.any()


def test_a_tile_beyond_the_picture_is_the_picture():
    q, k, v = qkv(1, 2 + 15, 17, 2, 8, 8)
    kept = torch.zeros(1, 2, 1, 1, dtype=torch.int64, device=DEVICE)
    options = {"height": 3, "width": 5, "text": 2, "means": True, "backend": "torch"}
    largest = tile_attention(q, k, v, kept, tile=2**31 - 1, **options)
    assert torch.equal(largest, tile_attention(q, k, v, kept, tile=5, **options))


# All four
# ---------------------------------------------------------------------------------------------

PICTURE = {"height": 5, "width": 4, "radius": 2, "text": 2}


def in_tiles(q):
    kept = torch.tensor([4, 1], device=q.device).expand(q.shape[0], q.shape[2], 6, 2)
    return {"kept": kept, "height": 5, "width": 4, "tile": 2, "text": 2, "means": True}


CALLS = {
    "linear": lambda q, k, v: linear_attention(q, k, v, eps=0.1),
    "window": lambda q, k, v: window_attention(q, k, v, **PICTURE),
    "tile": lambda q, k, v: tile_attention(q, k, v, **in_tiles(q)),
    "mediator": lambda q, k, v: mediator_attention(q, k, v, q[:, :4]),
}
DEFINITIONS = {
    "linear": lambda q, k, v: LINEAR(q, k, v, eps=0.1),
    "window": lambda q, k, v: WINDOW(q, k, v, **PICTURE),
    "tile": lambda q, k, v: TILE(q, k, v, **in_tiles(q)),
    "mediator": lambda q, k, v: MEDIATOR(q, k, v, q[:, :4]),
}
for_every_kernel = pytest.mark.parametrize("kernel", CALLS)


def layouts():
    """Yield the same numbers in every layout that callers have."""
    q, k, v = qkv(2, 22, 22, 3, 16, 16)
    fused = torch.stack([q, k, v], 2).flatten(3).contiguous()  # (batch, tokens, 3, channels)
    yield "slices of one projection", [tensor.unflatten(2, (3, 16)) for tensor in fused.unbind(2)]
    yield (
        "heads first",
        [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (q, k, v)],
    )
    yield (
        "channels not last",
        [tensor.transpose(1, 3).contiguous().transpose(1, 3) for tensor in (q, k, v)],
    )
    # begins 4 bytes off an address that divides by 16
    padded = [F.pad(tensor, (1, 0)) for tensor in (q, k, v)]
    yield "unaligned", [tensor[..., 1:] for tensor in padded]
    yield "one example expanded", [tensor[:1].expand(2, -1, -1, -1) for tensor in (q, k, v)]


@for_every_kernel
def test_an_empty_batch_has_gradients(kernel):
    inputs = [tensor[:0].requires_grad_() for tensor in qkv(1, 22, 22, 3, 16, 16)]
    with taking("torch"):
        CALLS[kernel](*inputs).sum().backward()
    assert all(tensor.grad.shape == tensor.shape for tensor in inputs)


@for_every_kernel
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", range(5), ids=[name for name, _ in layouts()])
def test_layouts(kernel, path, layout):
    inputs = list(layouts())[layout][1]
    with taking(path):
        out = CALLS[kernel](*inputs)
    torch.testing.assert_close(out, DEFINITIONS[kernel](*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dim", [16, 160], ids=["narrow", "wide"])
def test_fp16_holds_a_channel_that_no_key_has(path, dim):
    """phi(q) / den is 5e5 there, and the state's row a millionth of the others."""
    q, k, v = qkv(1, 24, 24, 1, dim, dim, dtype=torch.float16)
    q[..., 0], q[..., 1:], k[..., 0] = 8, -1, -1
    options = {"feature_map": "relu", "shift": 1e-6, "eps": 1e-6}
    with taking(path):
        outs, grads = results(lambda *g: linear_attention(*g, **options), [q, k, v])
    exact, exact_grads = results(
        lambda *g: LINEAR(*g, **options), [tensor.double() for tensor in (q, k, v)]
    )
    for result, wanted in zip(outs + grads, exact + exact_grads, strict=True):
        assert (result.double() - wanted).norm() < 5e-3 * wanted.norm()


@for_every_kernel
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(kernel, path, dtype):
    judge(CALLS[kernel], DEFINITIONS[kernel], qkv(1, 22, 22, 2, 24, 24, dtype=dtype), path)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
def test_half_precision_where_all_mediators_hold_nearly_the_same(path, dtype, biased):
    """The bound is fixed: the definition's own gradients in half precision are off by a tenth."""
    q, k, v, m = tensors(
        (1, 150, 2, 24), (1, 150, 2, 24), (1, 150, 2, 24), (1, 9, 2, 24), dtype=dtype
    )
    biases = tensors((2, 9, 150), (2, 150, 9)) if biased else (None, None)

    def call(function):
        return lambda q, k, v, m: function(q, k, v, m, bias_in=biases[0], bias_out=biases[1])

    with taking(path):
        outs, grads = results(call(mediator_attention), [q, k, v + 3, m])
    biases = [None if tensor is None else tensor.double() for tensor in biases]
    exact, exact_grads = results(call(MEDIATOR), [tensor.double() for tensor in (q, k, v + 3, m)])
    for result, wanted in zip(outs + grads, exact + exact_grads, strict=True):
        assert (result.double() - wanted).norm() < 1.5e-2 * wanted.norm()


def fp16_error(inputs, options, path):
    with taking(path):
        out = linear_attention(*inputs, **options).double()
    exact = LINEAR(*(tensor.double() for tensor in inputs), **options)
    return (out - exact).norm() / exact.norm()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("normalise", [True, False], ids=["normalised", "plain"])
def test_fp16_holds_sums_of_keys_beyond_its_range(normalise, path):
    q, k, v = qkv(1, 9, 20, 1, 8, 8, dtype=torch.float16)
    inputs = q.abs() * 1e-3, k.abs() * 300, v + 2  # squared: 90000 and more
    assert fp16_error(inputs, {"feature_map": "relu2", "normalise": normalise}, path) < 2e-3


@pytest.mark.parametrize("path", PATHS)
def test_fp16_divides_by_a_sum_that_cancels(path):
    """The sum is taken in float32."""
    inputs = qkv(1, 64, 64, 1, 16, 16, dtype=torch.float16)
    assert fp16_error(inputs, {"feature_map": "identity", "eps": 1e-4}, path) < 1e-3


@pytest.mark.parametrize("path", PATHS)
def test_fp16_holds_large_and_small_features(path):
    """relu2 leaves fp16's range: 300 squared is above it, .003 squared below its normal numbers."""
    for size in (300, 3e-3):
        q, k, v = qkv(1, 20, 20, 1, 16, 16, dtype=torch.float16)
        inputs = [size * q, k, v]
        judge(
            lambda *g: linear_attention(*g, feature_map="relu2", eps=1e-6),
            lambda *g: LINEAR(*g, feature_map="relu2", eps=1e-6),
            inputs,
            path,
        )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("feature_map", reference.FEATURE_MAPS)
def test_half_precision_with_a_mask_and_a_normaliser_of_its_own(feature_map, path):
    inputs = qkv(1, 20, 20, 2, 16, 16, dtype=torch.bfloat16) + tensors(
        *[(1, 20, 2, 16)] * 2, dtype=torch.bfloat16, seed=1
    )
    mask = torch.arange(20, device=DEVICE)[None] < 13

    def call(function):
        return lambda q, k, v, a, b: function(
            q, k, v, feature_map=feature_map, shift=0.5, eps=8.0, normaliser=(a, b), key_mask=mask
        )

    judge(call(linear_attention), call(LINEAR), inputs, path)


@for_every_kernel
@pytest.mark.parametrize(
    "path",
    [
        "small",
        "torch",
        pytest.param("triton", marks=pytest.mark.skipif(not INTERPRETED, reason="float64")),
    ],
)
def test_gradcheck(kernel, path):
    inputs = [tensor.requires_grad_() for tensor in qkv(1, 22, 22, 1, 3, 3, dtype=torch.float64)]
    with taking(path):
        assert torch.autograd.gradcheck(CALLS[kernel], inputs, fast_mode=True)


@for_every_kernel
@pytest.mark.parametrize("path", PATHS)
def test_the_bits_are_the_same_twice_and_without_gradients(kernel, path):
    inputs = qkv(2, 22, 22, 2, 16, 16)
    with taking(path):
        (one,), grads = results(CALLS[kernel], inputs)
        (two,), again = results(CALLS[kernel], inputs)
        with torch.no_grad():
            three = CALLS[kernel](*inputs)
    assert torch.equal(one, two)
    assert torch.equal(one, three)
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))


@for_every_kernel
@pytest.mark.parametrize("path", PATHS)
def test_one_tensor_may_be_queries_keys_and_values(kernel, path):
    inputs = [qkv(1, 22, 22, 2, 16, 16)[0]]
    judge(lambda x: CALLS[kernel](x, x, x), lambda x: DEFINITIONS[kernel](x, x, x), inputs, path)


@for_every_kernel
@pytest.mark.parametrize(
    ("path", "other"),
    [
        ("small", "reference"),
        ("torch", "reference"),
        pytest.param("triton", "torch", marks=NEEDS_TRITON),
    ],
)
def test_the_backward_takes_the_path_of_its_forward(kernel, path, other, monkeypatch):
    """The thread of the backward and the backend requested by then do not matter."""
    inputs = [tensor.requires_grad_() for tensor in qkv(1, 22, 22, 1, 16, 16)]
    with taking(path):
        out = CALLS[kernel](*inputs)
    if path == "triton":
        for name in (
            "linear_torch.state_backward",
            "window_torch.window_backward",
            "mediator_torch._attend",
        ):
            monkeypatch.delattr(f"linattn_kernels.{name}")
    with use_backend(other):
        thread = threading.Thread(target=lambda: out.sum().backward())
        thread.start()
        thread.join()
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    DEFINITIONS[kernel](*exact).sum().backward()
    for tensor, wanted in zip(inputs, exact, strict=True):
        torch.testing.assert_close(tensor.grad.double(), wanted.grad, rtol=1e-4, atol=1e-6)


@for_every_kernel
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value_dim", [16, 24])
@pytest.mark.parametrize("call", ["grad", "backward"])
def test_double_backward_is_refused(kernel, path, value_dim, call):
    """Autograd must not find a way around the refusal, from any input to any other."""
    inputs = [tensor.requires_grad_() for tensor in qkv(1, 22, 22, 1, 16, value_dim)]
    with taking(path):
        out = CALLS[kernel](*inputs)
    grads = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
    calls = {
        "grad": lambda loss, **options: torch.autograd.grad(loss, inputs, **options),
        "backward": torch.Tensor.backward,
    }
    for grad in grads:
        with pytest.raises(RuntimeError, match="no autograd formula|is not implemented"):
            calls[call](grad.square().sum(), retain_graph=True)


@pytest.mark.parametrize("path", PATHS)
def test_double_backward_through_a_state_is_refused(path):
    q, k, v = (tensor.requires_grad_() for tensor in qkv(1, 22, 22, 1, 16, 16))
    with taking(path):
        _, state = linear_attention(q, k, v, return_state=True)
    grad = torch.autograd.grad(state.values.square().sum(), k, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no autograd formula"):
        torch.autograd.grad(grad.square().sum(), v)


def test_inputs_without_gradients_may_change_before_the_backward():
    """Small calls save neither keys made in inference mode nor buffers that are overwritten."""
    q, k, v = qkv(1, 22, 22, 1, 16, 16)
    wanted = results(lambda q: linear_attention(q, k, v), [q])[1][0]
    with torch.inference_mode():
        remembered = k.clone(), v.clone()
    buffers = k.clone(), v.clone()
    for keys, values in (remembered, buffers):
        inputs = q.clone().requires_grad_()
        out = linear_attention(inputs, keys, values)
        buffers[0].zero_()
        grad_out = torch.randn(
            out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64
        ).to(out)
        assert torch.equal(torch.autograd.grad(out, inputs, grad_out)[0], wanted)
        buffers[0].copy_(k)


@pytest.mark.parametrize("path", PATHS)
def test_a_linear_result_may_be_added_to_in_place(path):
    """Linear attention does not save its output; softmax attentions do, as PyTorch's own does."""
    inputs = [tensor.requires_grad_() for tensor in qkv(1, 22, 22, 1, 16, 16)]
    with taking(path):
        out = linear_attention(*inputs)
    out += 1.0
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), inputs))


def test_torch_func_grad_gives_the_same_gradients():
    q, k, v = qkv(1, 22, 22, 1, 16, 16)
    grad = torch.func.grad(lambda q: linear_attention(q, k, v).square().sum())(q)
    inputs = q.requires_grad_()
    torch.testing.assert_close(
        grad, torch.autograd.grad(linear_attention(inputs, k, v).square().sum(), inputs)[0]
    )


@for_every_kernel
@pytest.mark.parametrize("path", [*PATHS, "reference"])
def test_results_are_contiguous(kernel, path):
    """The fake kernels promise that to compiled graphs, for every path and input layout."""
    inputs = [
        tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in qkv(2, 22, 22, 3, 16, 24)
    ]
    with taking(path):
        assert CALLS[kernel](*inputs).is_contiguous()


@for_every_kernel
def test_shapes_are_inferred_on_the_meta_device(kernel):
    inputs = [tensor.to("meta") for tensor in qkv(1, 22, 22, 1, 16, 24)]
    assert CALLS[kernel](*inputs).shape == (1, 22, 1, 24)


@for_every_kernel
def test_compiles_without_a_graph_break(kernel):
    inputs = [tensor.requires_grad_() for tensor in qkv(1, 22, 22, 1, 16, 16)]
    compiled = torch.compile(CALLS[kernel], fullgraph=True, backend="aot_eager")
    outs, grads = results(compiled, inputs)
    plain, plain_grads = results(CALLS[kernel], inputs)
    for result, wanted in zip(outs + grads, plain + plain_grads, strict=True):
        torch.testing.assert_close(result, wanted)


@for_every_kernel
def test_autocast(kernel):
    inputs = qkv(1, 22, 22, 1, 16, 16)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        out = CALLS[kernel](*inputs)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, CALLS[kernel](*(tensor.bfloat16() for tensor in inputs)))


@pytest.mark.parametrize("path", PATHS[1:])
def test_operations_pass_opcheck(path):
    from linattn_kernels import linear, mediator, tile, window

    q, k, v = (tensor.requires_grad_() for tensor in qkv(1, 22, 22, 1, 16, 16))
    values, keys = tensors((1, 1, 16, 16), (1, 1, 16))
    kept = kept_tiles(1, 1, 6, 2)
    calls = [
        (linear._state, (k, v, None, None, "elu1", 0.0, path)),
        (
            linear._state,
            (k, v, q, torch.ones(1, 22, dtype=torch.bool, device=DEVICE), "relu", 0.1, path),
        ),
        (linear._read, (q, None, values, keys.abs(), "elu1", 0.0, 0.1, True, path)),
        (window._window, (q, k, v, None, None, 5, 4, 2.0, 2, "disc", 0.25, True, path)),
        (window._window, (q, k, v, k[:, :3], v[:, :3], 11, 2, 2.0, 0, "square", 0.25, False, path)),
        (tile._tile, (q, k, v, k[:, :6], v[:, :6], kept, 5, 4, 2, 2, 0.25, -1.0, True, path)),
        (tile._tile, (q, k, v, None, None, kept, 5, 4, 2, 2, 0.25, -math.inf, False, path)),
    ]
    if path == "triton":
        calls.append((mediator._gather, (q[:, :4], k, v, None, 0.25)))
        calls.append((mediator._spread, (q, k[:, :4], v[:, :4], None, 0.25)))
    for operation, arguments in calls:
        torch.library.opcheck(operation, arguments)


# Which path
# ---------------------------------------------------------------------------------------------


def test_large_or_traced_calls_run_as_operations():
    small, large = torch.empty(1, 256, 4, 32), torch.empty(1, 2048, 8, 64)
    assert small_torch.fits_linear(small, small, small)
    assert small_torch.fits_window(small, None, 16, 16, 2.0, False)
    assert not small_torch.fits_linear(small, large, large)
    assert not small_torch.fits_window(large, None, 32, 64, 1e300, False)
    # attention with a mask returns no log-sum-exp
    assert not small_torch.fits_window(small, None, 16, 16, 2.0, True)
    with torch._subclasses.FakeTensorMode():
        assert not small_torch.is_eager(torch.empty(1))


@pytest.mark.parametrize(
    ("radius", "dense"), [(2, False), (4, False), (8, False), (9, True), (1e300, True)]
)
def test_a_small_window_is_dense_where_a_tile_reads_half_the_picture(radius, dense):
    assert (
        small_torch.fits_window(torch.empty(1, 1024, 4, 32), None, 32, 32, radius, False) == dense
    )


def test_text_counts_as_keys_that_tiles_read_too():
    """512 text tokens before 16 x 16 took 53 ms dense and 65 in tiles."""
    assert small_torch.fits_window(torch.empty(1, 768, 8, 64), None, 16, 16, 4.0, False)


def test_a_mask_cached_in_inference_mode_serves_with_gradients():
    q = torch.randn(1, 15, 1, 8)
    small_torch._mask.cache_clear()
    with torch.inference_mode():
        first = window_attention(q, q, q, height=3, width=5, radius=2)
    inputs = q.clone().requires_grad_()
    window_attention(inputs, q, q, height=3, width=5, radius=2).sum().backward()
    assert torch.equal(first, window_attention(q, q, q, height=3, width=5, radius=2))
    assert inputs.grad.isfinite().all()


def test_the_cpu_takes_pytorch_and_says_so():
    chosen = linattn_kernels.backend(torch.zeros(1))
    assert chosen.path == "torch"
    assert "CPU" in chosen.reason


def test_a_backend_holds_inside_its_block():
    with use_backend("reference"):
        assert linattn_kernels.backend(torch.zeros(1)).path == "reference"
        with use_backend("torch"):
            assert linattn_kernels.backend(torch.zeros(1)).path == "torch"
        assert linattn_kernels.backend(torch.zeros(1)).path == "reference"
    assert linattn_kernels.backend(torch.zeros(1)).path == "torch"
    with (
        pytest.raises(ValueError, match="'trition'.*triton, torch, reference"),
        use_backend("trition"),
    ):
        pass


def test_blocks_may_end_in_any_order():
    """Blocks of two threads do."""
    with ExitStack() as second:
        with ExitStack() as first:
            first.enter_context(use_backend("torch"))
            second.enter_context(use_backend("reference"))
        assert linattn_kernels.backend(torch.zeros(1)).path == "reference"
    assert linattn_kernels.backend(torch.zeros(1)).reason != "asked for"


def test_use_backend_works_inside_compiled_code():
    def call(q):
        with use_backend("reference"):
            return linear_attention(q, q, q)

    (q,) = tensors((1, 6, 2, 16))
    out = torch.compile(call, fullgraph=True, backend="aot_eager")(q)
    torch.testing.assert_close(out, call(q))


def test_a_triton_that_cannot_be_imported_counts_as_missing(tmp_path):
    """The call takes PyTorch's path, with one warning."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text(
        "raise ImportError('libtriton.so: wrong ELF class')"
    )
    code = """
import torch, warnings
from linattn_kernels import launch
gpu = torch.device("cuda")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        assert launch.choose(gpu, torch.float32).path == "torch"
print(len(caught), caught[0].message)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(tmp_path), str(Path(linattn_kernels.__file__).parents[1])]
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith("1 linattn_kernels takes its PyTorch paths"), done.stderr
    assert "libtriton.so: wrong ELF class" in done.stdout


def test_a_call_has_its_own_backend():
    q = torch.randn(1, 6, 2, 16)
    with use_backend("torch"):
        assert linattn_kernels.backend(q, asked="reference").path == "reference"
    asked = window_attention(q, q, q, height=2, width=3, radius=2, backend="reference")
    assert torch.equal(asked, reference.window_attention(q, q, q, height=2, width=3, radius=2))


def test_heads_wider_than_the_kernels_run_in_pytorch(monkeypatch):
    """LiT can have one head of 1,152 channels. A call that requests Triton there raises."""
    wide = qkv(1, 4, 4, 1, 289, 289)
    torch.testing.assert_close(linear_attention(*wide), reference.linear_attention(*wide))
    with pytest.raises(RuntimeError, match="heads of 289 are wider than the kernels' 288"):
        linear_attention(*wide, backend="triton")
    monkeypatch.setattr(launch, "obstacle", lambda device: None)
    for dim, path in ((288, "triton"), (289, "torch")):
        assert launch.choose(torch.device("cuda"), torch.float32, dim, None, 288).path == path
    on_a_gpu = SimpleNamespace(
        device=torch.device("cuda"), dtype=torch.bfloat16, shape=(1, 4, 1, 192), ndim=4
    )
    assert linattn_kernels.backend(on_a_gpu).path == "triton"
    chosen = linattn_kernels.backend(on_a_gpu, "window")
    assert chosen.path == "torch"
    assert "heads of 192 are wider than the kernels' 160" in chosen.reason
    with pytest.raises(ValueError, match=r"'windows'.*linear, window, tile, mediator"):
        linattn_kernels.backend(on_a_gpu, "windows")


def test_float64_runs_in_pytorch_on_a_gpu(monkeypatch):
    monkeypatch.setattr(launch, "obstacle", lambda device: None)
    monkeypatch.setattr(launch, "INTERPRETED", False)
    assert launch.choose(torch.device("cuda"), torch.float64).path == "torch"
    assert launch.choose(torch.device("cuda"), torch.bfloat16).path == "triton"


@for_every_kernel
def test_the_reference_backend_is_the_definition(kernel):
    inputs = qkv(1, 22, 22, 1, 16, 16)
    with use_backend("reference"):
        assert torch.equal(CALLS[kernel](*inputs), DEFINITIONS[kernel](*inputs))


# Mistakes
# ---------------------------------------------------------------------------------------------


def state_of(value_dim=16, count=None, dtype=torch.float32, device="cpu"):
    """Return a state that fits (1, 6, 2, 16), or has one thing wrong."""
    count = torch.ones(1, dtype=dtype, device=device) if count is None else count
    like = {"dtype": dtype, "device": device}
    return State(torch.zeros(1, 2, 16, value_dim, **like), torch.zeros(1, 2, 16, **like), count)


def in_one_tile(q, kept, **changes):
    """Read a picture of one tile, with one thing wrong."""
    kept = torch.tensor(kept).expand(1, 2, -1, -1)
    options = {"height": 2, "width": 3, "tile": 4, **changes}
    return tile_attention(q, q, q, kept, **options)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda q: linear_attention(q, q, q, feature_map="elu"), "'elu'.*did you mean"),
        (lambda q: linear_attention(q[0], q, q), r"q is \(6, 2, 16\)"),
        (lambda q: linear_attention(q, q[:, :5], q), "v has 6 keys, k has 5"),
        (lambda q: linear_attention(q, q.double(), q), "k is torch.float64, q torch.float32"),
        (
            lambda q: linear_attention(q, q[:, :, :1], q),
            "k has batch 1 and 1 heads, q has batch 1 and 2",
        ),
        (lambda q: linear_attention(q.long(), q, q), "q is torch.int64"),
        (lambda q: linear_attention(*[torch.zeros(1, 2, 1, 0)] * 3), "q has a head_dim of 0"),
        (lambda q: linear_attention(q, q, q, backend="cuda"), "'cuda'.*triton, torch, reference"),
        (lambda q: linear_attention(q, q, q, backend=""), "backend ''"),
        (lambda q: linear_attention(q, q, q, eps=float("nan")), "eps is nan"),
        (
            lambda q: linear_attention(q, q, q, normaliser=(q, q, q)),
            "normaliser is 3; it must be two",
        ),
        (lambda q: linear_attention(q, q, q, key_mask=[True] * 6), "key_mask is list"),
        (
            lambda q: linear_attention(q, q, q, key_mask=torch.ones(1, 6)),
            "key_mask is torch.float32.*mask != 0",
        ),
        (
            lambda q: linear_attention(q, q, q, key_mask=torch.ones(1, 5, dtype=torch.bool)),
            r"key_mask is \(1, 5\); .* is \(1, 6\)",
        ),
        (
            lambda q: linear_attention(q, q, q, state=state_of(value_dim=8)),
            r"values are \(1, 2, 16, 8\)",
        ),
        (lambda q: linear_attention(q, q, q, state=tuple(state_of())), "state is a tuple"),
        (
            lambda q: linear_attention(q, q, q, state=state_of(count=torch.ones(3))),
            r"count are \(3,\).*\(1,\)",
        ),
        (lambda q: linear_attention(q, q, q, state=state_of(count=6)), "count are int"),
        (
            lambda q: linear_attention(q, q, q, state=state_of(dtype=torch.float64)),
            "values are torch.float64.*float32",
        ),
        (
            lambda q: linear_attention(q, q, q, state=state_of(device="meta")),
            "values are on meta, k on cpu",
        ),
        (lambda q: linear_attention(q.to(torch.float8_e4m3fn), q, q), "q is torch.float8_e4m3fn"),
        (lambda q: linear_attention(q, q, [0.0]), "v is a list"),
        (
            lambda q: window_attention(q, q, q, height=2, width=2, radius=2),
            "6 tokens; 0 of text .* make 4",
        ),
        (lambda q: window_attention(q, q, q, height=2, width=3, radius=0), "a radius of 0"),
        (
            lambda q: window_attention(q, q, q, height=2, width=3, radius="3"),
            "radius is '3'; .* finite number",
        ),
        (
            lambda q: window_attention(q, q, q, height=2.0, width=3, radius=2),
            "height is 2.0; .* whole number",
        ),
        (
            lambda q: window_attention(q, q, q, height=2, width=3, radius=2, scale=float("nan")),
            "scale is nan",
        ),
        (
            lambda q: window_attention(q, q, q, height=2, width=3, radius=2, extra=q),
            "extra is Tensor; .* two tensors",
        ),
        (
            lambda q: window_attention(q, q, q, height=2, width=3, radius=2, shape="disk"),
            "did you mean 'disc'",
        ),
        (lambda q: in_one_tile(q, [[0]], tile=0), "tile is 0; .* 1 token"),
        (lambda q: in_one_tile(q, [[0]], height=2.0), "height is 2.0"),
        (lambda q: in_one_tile(q, [[0.0]]), "kept is torch.float32; .*torch.int64"),
        (lambda q: in_one_tile(q, [[0], [0]]), r"kept is \(1, 2, 2, 1\); .*\(1, 2, 1, count\)"),
        (lambda q: in_one_tile(q, [[0, 0]]), "kept has 2 tiles .*; from 1 to 1"),
        (lambda q: in_one_tile(q, [[-1]]), "numbers from -1 to -1; tiles are 0 to 0"),
        (lambda q: in_one_tile(q, [[0]], threshold=0), "threshold is 0; .*above 0, up to 1"),
        (lambda q: in_one_tile(q, [[0]], return_share=True), "return_share .* pass means=True"),
        (lambda q: mediator_attention(q, q, q, q[:, :0]), "0 mediators read 6 keys"),
        (
            lambda q: mediator_attention(q, q, q, q[:, :3], bias_in=torch.zeros(4, 6)),
            r"bias_in is \(4, 6\); .*\(1, 2, 3, 6\)",
        ),
        (
            lambda q: mediator_attention(
                q, q, q, q[:, :3], bias_in=torch.ones(3, 6, dtype=torch.bool)
            ),
            "bias_in is torch.bool; .*-inf where nothing may be read",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_the_mistake(call, says):
    with pytest.raises(ValueError, match=says):
        call(torch.zeros(1, 6, 2, 16))


def test_a_windows_memory_grows_with_tokens():
    """Four times as many tokens take about four times the memory, not sixteen times."""
    from linattn.evaluation import costs

    def peak(side):
        q, k, v = qkv(1, side * side, side * side, 1, 16, 16)
        return costs.peak_memory(
            lambda: window_attention(q, k, v, height=side, width=side, radius=4)
        )

    assert peak(64) < 6 * peak(32)
    assert peak(64) < 64**4 * 4 / 4


# Tiles hold the scores of a few at a time.
@pytest.mark.parametrize("kernel", ["linear", "window", "mediator"])
def test_no_scores_are_written_where_values_and_heads_differ_in_width(kernel):
    """PyTorch's own attention writes them out there."""
    from linattn.evaluation import costs

    calls = {
        "linear": linear_attention,
        "window": lambda q, k, v: window_attention(q, k, v, height=16, width=16, radius=9),
        "mediator": lambda q, k, v: mediator_attention(q, k, v, q[:, :200]),
    }

    def peak(value_dim):
        inputs = qkv(16, 256, 256, 4, 16, value_dim)
        with torch.no_grad():
            return costs.peak_memory(lambda: calls[kernel](*inputs))

    for value_dim in (8, 24):
        assert peak(value_dim) < 16 * 4 * 256 * 200 * 4 / 2  # half of the scores' bytes


# Heads first
# ---------------------------------------------------------------------------------------------


def test_heads_first_tensors_are_noticed_where_shapes_tell():
    """PyTorch's scaled_dot_product_attention takes (batch, heads, tokens, head_dim)."""
    q, k = torch.rand(1, 4, 256, 8), torch.rand(1, 4, 200, 8)
    with pytest.warns(UserWarning, match=r"4 tokens of 256 heads.*transpose\(1, 2\)"):
        linear_attention(q, q, q)
    with pytest.raises(ValueError, match=r"200 heads, q has.*or transpose\(1, 2\) them"):
        linear_attention(q, k, k)
    with (
        pytest.warns(UserWarning, match="4 tokens of 256 heads"),
        pytest.raises(ValueError, match=r"make 256; it seems that heads come first: transpose"),
    ):
        window_attention(q, q, q, height=16, width=16, radius=2)


def test_few_tokens_of_many_heads_are_no_mistake():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for shape in ((1, 4, 128, 8), (1, 300, 256, 8)):
            assert linear_attention(*torch.rand(3, *shape)).shape == shape
