"""EDiT: linear attention with convolved queries and pooled keys and values."""

import pytest
import torch
from layers import SHAPE, shaken, tensors
from torch.nn import functional as F

from linattn.attention import LayerShape, create
from linattn.attention.grid import Grid

sizes = pytest.mark.parametrize(
    "grid", [Grid(1, 1), Grid(1, 7, 3), Grid(5, 3), Grid(4, 5, 2)], ids=str
)


def cells(tokens, grid, stride, kernel):
    """Pool (picture, channels) cell by cell; kernel (channels, 3, 3)."""
    pooled = []
    for top in range(0, grid.height, stride):
        for left in range(0, grid.width, stride):
            total = torch.zeros_like(tokens[0])
            for y in range(max(top - 1, 0), min(top + 2, grid.height)):
                for x in range(max(left - 1, 0), min(left + 2, grid.width)):
                    total += kernel[:, y - top + 1, x - left + 1] * tokens[y * grid.width + x]
            pooled.append(total)
    return torch.stack(pooled)


def linear_read(query, keys, values, eps):
    weights = torch.stack([query.relu() @ key.relu() for key in keys]) / len(keys)
    return weights @ values / (weights.sum() + eps)


def softmax_read(query, keys, values):
    weights = torch.stack([query @ key for key in keys]) * len(query) ** -0.5
    return weights.softmax(0) @ values


def formula(q, k, v, grid, stride, eps, exact, kernels):
    """Compute EDiT token by token: q, k, v (tokens, heads, head_dim) of one picture."""
    text, share, out = grid.text, grid.picture / grid.tokens, torch.zeros_like(v)
    keys, values = (
        cells(tensor[text:].flatten(1), grid, stride, kernel).unflatten(1, tensor.shape[1:])
        for tensor, kernel in zip((k, v), kernels, strict=True)
    )
    if not exact:
        keys, values = torch.cat([k[:text], keys]), torch.cat([v[:text], values])
    for h in range(q.shape[1]):
        for i in range(grid.tokens):
            if exact and i < text:
                out[i, h] = softmax_read(q[i, h], k[:, h], v[:, h])
                continue
            out[i, h] = linear_read(q[i, h], keys[:, h], values[:, h], eps)
            if exact and text:
                words = softmax_read(q[i, h], k[:text, h], v[:text, h])
                out[i, h] = share * out[i, h] + (1 - share) * words
    return out


@sizes
@pytest.mark.parametrize("text", ["exact", "joint"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_is_the_papers_formula(grid, stride, text):
    operator = shaken(create("edit", SHAPE, stride=stride, eps=0.2, text=text))
    kernels = [p.weight.detach()[:, 0] for p in (operator.key_pooling, operator.value_pooling)]
    q, k, v = tensors(grid, batch=1)
    judge = formula(q[0], k[0], v[0], grid, stride, 0.2, text == "exact", kernels)
    assert (operator.mix(q, k, v, grid)[0] - judge).abs().max() < 1e-9


def test_keys_and_values_start_as_means_of_nine():
    grid, operator = Grid(5, 7), create("edit", SHAPE).double()
    tokens = torch.ones(1, grid.tokens, SHAPE.heads, SHAPE.head_dim, dtype=torch.float64)
    for pooling in (operator.key_pooling, operator.value_pooling):
        pooled = pooling(tokens, grid, 2).unflatten(1, (3, 4))
        # Zeros beyond the border count: 4 of 9 tokens at a corner, 6 at a side.
        assert (pooled[:, 1, 1:3] - 1).abs().max() < 1e-6
        assert (pooled[:, 0, 0] - 4 / 9).abs().max() < 1e-6
        assert (pooled[:, 1, 0] - 6 / 9).abs().max() < 1e-6


@pytest.mark.parametrize("text", [0, 3])
def test_the_query_sees_the_convolved_picture(text):
    shape, grid = LayerShape(width=48, heads=2, head_dim=4, has_text=True), Grid(4, 3, 3)
    operator = shaken(create("edit", shape))
    x = torch.randn(2, text + grid.picture, 48, dtype=torch.float64)
    of_query, of_key, of_value = operator.inputs(x, grid)
    assert of_key is x
    assert of_value is x
    assert torch.equal(of_query[:, :text], x[:, :text])
    first, norm, last = operator.query.first, operator.query.norm, operator.query.last
    assert first.weight.shape == (12, 48, 3, 3)
    hidden = F.conv2d(x[:, text:].mT.unflatten(2, (4, 3)), first.weight, first.bias, padding=1)
    groups = hidden.unflatten(1, (6, 2)).flatten(2)  # 8 groups do not divide 12 channels
    deviation = (groups.var(2, correction=0, keepdim=True) + 1e-5) ** 0.5
    groups = ((groups - groups.mean(2, keepdim=True)) / deviation).view_as(hidden)
    hidden = groups * norm.weight[:, None, None] + norm.bias[:, None, None]
    hidden = torch.where(hidden > 0, hidden, 0.01 * hidden).flatten(2)
    judge = (last.weight[:, :, 0, 0] @ hidden + last.bias[:, None]).mT
    assert (of_query[:, text:] - x[:, text:] - judge).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("width", "squeeze", "hidden", "groups"),
    [
        (1152, 4, 288, 8),
        (128, 4, 32, 8),
        (96, 4, 24, 8),
        (40, 4, 10, 5),
        (32, 4, 8, 4),
        (4, 8, 2, 1),
    ],
)
def test_a_group_has_two_channels_at_least(width, squeeze, hidden, groups):
    operator = create("edit", LayerShape(width, 1, 4), squeeze=squeeze)
    assert (operator.hidden, operator.query.norm.num_groups) == (hidden, groups)
    x = torch.randn(1, 1, width)
    assert torch.equal(operator.train().inputs(x, Grid(1, 1))[0], x)


def test_the_convolutions_of_a_dit_cost_more_than_its_attention():
    """As zero weights do not show: at 256 tokens of DiT-XL's 1,152 channels."""
    operator, grid = create("edit", LayerShape(1152, 16, 72)), Grid(16, 16)
    block = 256 * 1152 * 288 * 10
    assert block < operator.macs(grid) < 1.05 * block


def test_a_query_without_a_positive_entry_reads_nothing():
    grid, operator = Grid(4, 4), create("edit", SHAPE, eps=0)
    q, k, v = tensors(grid)
    q[:, 5] = -1
    out = operator.mix(q, k, v, grid)
    assert not out[:, 5].any()
    assert (out - operator.definition(q, k, v, grid)).abs().max() < 1e-12


@pytest.mark.parametrize("stride", [0, 4, True, 2.0, "2"], ids=str)
def test_strides_that_leave_tokens_unread_are_refused(stride):
    with pytest.raises(ValueError, match="edit: stride is a whole number from 1 to 3.*unread, not"):
        create("edit", SHAPE, stride=stride)
