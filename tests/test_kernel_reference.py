"""Test the definitions by properties that hold for any numbers, and beside linattn's operators."""

import math

import pytest
import torch
from torch.nn import functional as F

from linattn.attention import LayerShape, create
from linattn.attention.grid import Grid
from linattn_kernels import reference
from linattn_kernels.reference import (
    FEATURE_MAPS,
    linear_attention,
    mediator_attention,
    window_attention,
)

PICTURES = [(1, 1), (1, 7), (5, 3), (4, 4)]


def tensors(batch=2, tokens=6, heads=3, dim=4, count=3, value_dim=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, tokens, heads, dim)] * (count - 1) + [
        (batch, tokens, heads, value_dim or dim)
    ]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def close(first, second):
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


@pytest.mark.parametrize("feature_map", ["elu1", "relu", "relu2"])
@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_linear_weights_sum_to_one(feature_map, tokens):
    q, k, v = tensors(tokens=tokens, value_dim=2)
    v = v[:, :1].expand_as(v)
    close(linear_attention(q, k, v, feature_map=feature_map, shift=1e-6, eps=0), v)


def test_linear_attention_is_linfusions():
    q, k, v = tensors(tokens=9)
    operator = create("linfusion", LayerShape(q.shape[2] * q.shape[3], *q.shape[2:]), eps=0.3)
    wanted = torch.einsum("bhij,bjhd->bihd", operator.attention_map(q, k, Grid(3, 3)), v)
    close(linear_attention(q, k, v, eps=0.3), wanted)


@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_linear_attention_equals_a_loop_over_tokens(feature_map):
    q, k, v = tensors(1, 5, 1, 3, value_dim=2)

    def phi(x):
        return FEATURE_MAPS[feature_map](x) + 0.1

    for i in range(5):
        weights = [(phi(q[0, i, 0]) @ phi(k[0, j, 0])).item() for j in range(5)]
        expected = sum(w * v[0, j, 0] for j, w in enumerate(weights)) / 5
        plain = linear_attention(q, k, v, feature_map=feature_map, shift=0.1, normalise=False)
        close(plain[0, i, 0], expected)
        normalised = linear_attention(q, k, v, feature_map=feature_map, shift=0.1, eps=0.7)
        close(normalised[0, i, 0], expected / (sum(weights) / 5 + 0.7))


def test_the_normaliser_can_have_queries_and_keys_of_its_own():
    q, k, v = tensors()
    other_q, other_k = tensors(seed=1, count=2)
    num = linear_attention(q, k, v, normalise=False)
    ones = torch.ones_like(v[..., :1])
    den = linear_attention(other_q, other_k, ones, normalise=False)
    close(linear_attention(q, k, v, eps=0.2, normaliser=(other_q, other_k)), num / (den + 0.2))


def test_masked_keys_are_ignored():
    q, k, v = tensors(tokens=7)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[:, 4:] = False
    poisoned = v.clone()
    poisoned[:, 4:] = 1e9
    close(linear_attention(q, k, poisoned, key_mask=mask), linear_attention(q, k[:, :4], v[:, :4]))


@pytest.mark.parametrize("eps", [0.0, 1e-4])
def test_without_a_key_or_a_positive_feature_the_output_is_zero(eps):
    q, k, v = tensors()
    nothing = torch.zeros(2, 6, dtype=torch.bool)
    assert not linear_attention(q, k, v, eps=eps, key_mask=nothing).any()
    assert not linear_attention(-q.abs(), k, v, eps=eps, feature_map="relu").any()


@pytest.mark.parametrize("split", [0, 1, 4, 9])
@pytest.mark.parametrize("masked", [False, True], ids=["all keys", "some keys"])
def test_the_states_of_two_parts_merge_to_the_whole(split, masked):
    q, k, v = tensors(tokens=9, value_dim=5)
    mask = torch.rand(2, 9, generator=torch.Generator().manual_seed(3)) > 0.4 if masked else None
    whole, whole_state = linear_attention(q, k, v, key_mask=mask, return_state=True)
    first, second = (
        None if mask is None else mask[:, keys] for keys in (slice(split), slice(split, None))
    )
    _, state = linear_attention(q, k[:, :split], v[:, :split], key_mask=first, return_state=True)
    options = {"key_mask": second, "state": state, "return_state": True}
    out, merged = linear_attention(q, k[:, split:], v[:, split:], **options)
    close(out, whole)
    for tensor, wanted in zip(merged, whole_state, strict=True):
        close(tensor, wanted)


def test_linear_gradients():
    q, k, v = (t.requires_grad_() for t in tensors(1, 3, 2, 2))
    assert torch.autograd.gradcheck(lambda *qkv: linear_attention(*qkv, eps=0.1), (q, k, v))


@pytest.mark.parametrize(("height", "width"), PICTURES)
@pytest.mark.parametrize("text", [0, 2])
@pytest.mark.parametrize("shape", reference.SHAPES)
def test_a_window_that_reaches_everywhere_is_dense(height, width, text, shape):
    q, k, v = tensors(tokens=text + height * width)
    out = window_attention(q, k, v, height=height, width=width, radius=99, text=text, shape=shape)
    dense = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)
    close(out, dense)


@pytest.mark.parametrize(("height", "width"), PICTURES)
def test_the_smallest_window_is_the_token_itself(height, width):
    q, k, v = tensors(tokens=height * width)
    close(window_attention(q, k, v, height=height, width=width, radius=1), v)


@pytest.mark.parametrize("radius", [1, 1.5, 2, 3, 8])
def test_the_disc_is_strict_and_the_same_as_clears(radius):
    mask = reference.window_mask(5, 7, radius)
    clear = create("clear", LayerShape(4, 1, 4), radius=radius)
    assert torch.equal(mask, clear.allowed(Grid(5, 7), radius, mask.device))
    assert mask.sum() <= reference.window_mask(5, 7, radius, "square").sum()


def test_text_sees_all_and_extra_is_for_the_picture():
    q, k, v = tensors(tokens=2 + 9)
    extra = tensors(tokens=2, count=2, seed=5)
    size = {"height": 3, "width": 3, "radius": 1, "text": 2}
    out = window_attention(q, k, v, extra=extra, **size)
    dense = window_attention(q, k, v, **{**size, "radius": 99})
    close(out[:, :2], dense[:, :2])
    keys = [
        torch.cat([k[:, :2], k[:, 6:7], extra[0]], 1),
        torch.cat([v[:, :2], v[:, 6:7], extra[1]], 1),
    ]
    alone = F.scaled_dot_product_attention(
        q[:, 6:7].transpose(1, 2), *(t.transpose(1, 2) for t in keys)
    )
    close(out[:, 6:7], alone.transpose(1, 2))


def test_two_windows_are_joined_by_their_log_sum_exps():
    """Text and picture apart, joined by their weights, are both at once."""
    q, k, v = tensors(tokens=3 + 12)
    size = {"height": 3, "width": 4, "radius": 2}
    both, lse = window_attention(q, k, v, text=3, return_lse=True, **size)
    assert lse.shape == (2, 3, 15)
    near, near_lse = window_attention(q[:, 3:], k[:, 3:], v[:, 3:], return_lse=True, **size)
    scores = torch.einsum("bihd,bjhd->bhij", q[:, 3:], k[:, :3]) / 2
    far = torch.einsum("bhij,bjhe->bihe", scores.softmax(-1), v[:, :3])
    weight = (near_lse - lse[:, :, 3:]).exp().transpose(1, 2).unsqueeze(3)
    close(both[:, 3:], weight * near + (1 - weight) * far)


def test_window_gradients():
    q, k, v = (t.requires_grad_() for t in tensors(1, 1 + 4, 1, 2))
    size = {"height": 2, "width": 2, "radius": 1.2, "text": 1, "return_lse": True}
    assert torch.autograd.gradcheck(lambda *qkv: window_attention(*qkv, **size), (q, k, v))


def test_an_error_names_a_picture_that_does_not_fit():
    q, k, v = tensors(tokens=12)
    with pytest.raises(
        ValueError,
        match=r"15 tokens make 3 of text and a picture of 3 x 4; q, k, v have 12, 12, 12",
    ):
        window_attention(q, k, v, height=3, width=4, radius=2, text=3)
    with pytest.raises(ValueError, match="'ring'.*disc, square"):
        window_attention(q, k, v, height=3, width=4, radius=2, shape="ring")


@pytest.mark.parametrize("count", [1, 4, 6])
def test_mediators_pass_on_a_constant(count):
    q, k, v = tensors()
    v = v[:, :1].expand_as(v)
    close(mediator_attention(q, k, v, q[:, :count]), v)


def test_one_mediator_gives_all_queries_the_same():
    q, k, v = tensors()
    out = mediator_attention(q, k, v, q[:, :1])
    read = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q[:, :1], k, v))).transpose(
        1, 2
    )
    close(out, read.expand_as(out))


def test_biases_of_minus_infinity_hide_mediators_and_keys():
    q, k, v = tensors()
    shut_keys = torch.zeros(6, dtype=torch.float64)
    shut_keys[4:] = -math.inf
    shut_mediators = torch.zeros(4, dtype=torch.float64)
    shut_mediators[3:] = -math.inf
    out = mediator_attention(q, k, v, q[:, :4], bias_in=shut_keys, bias_out=shut_mediators)
    close(out, mediator_attention(q, k[:, :4], v[:, :4], q[:, :3]))


def test_mediator_gradients():
    q, k, v = (t.requires_grad_() for t in tensors(1, 3, 1, 2))
    mediators = tensors(1, 2, 1, 2, count=1)[0].requires_grad_()
    assert torch.autograd.gradcheck(mediator_attention, (q, k, v, mediators))
