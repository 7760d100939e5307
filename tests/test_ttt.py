"""T5: the inner model against autograd's gradient, its start, and the neighbourhood beside it."""

import pytest
import torch
from layers import SHAPE, shaken, tensors
from torch.nn import functional as F

from linattn.attention import LayerShape, create, neighbourhood
from linattn.attention.base import scores
from linattn.attention.grid import Grid

SCALE = SHAPE.head_dim**-0.5
sizes = pytest.mark.parametrize(
    "grid", [Grid(1, 1), Grid(1, 7, 3), Grid(6, 5), Grid(9, 11, 2)], ids=str
)


def trained(operator, keys, v):
    """The inner model's weights after one step, by autograd: (heads, head_dim, head_dim) each."""
    first, second = (p.detach().clone().requires_grad_() for p in (operator.first, operator.second))
    given = torch.einsum("nhd,hde->nhe", F.silu(torch.einsum("nhd,hde->nhe", keys, first)), second)
    loss = SCALE / 2 * (given - v).square().sum() / len(v)
    slopes = torch.autograd.grad(loss, (first, second))
    return [weight - slope for weight, slope in zip((first, second), slopes, strict=True)]


def prepared(part, tokens, grid, normalises):
    tokens = tokens * part.gain + part.shift
    if normalises:
        flat = tokens.flatten(1).T[None]  # (1, channels, tokens)
        tokens = (
            F.instance_norm(flat, eps=1.0)[0].T.view_as(tokens) if len(tokens) > 1 else 0 * tokens
        )
    picture = tokens[grid.text :].flatten(1).T.view(1, -1, grid.height, grid.width)
    weight, bias = part.convolution.weight, part.convolution.bias
    added = F.conv2d(picture, weight, bias, padding=1, groups=len(weight))
    added = added[0].flatten(1).T.view(grid.picture, *tokens.shape[1:])
    return tokens + torch.cat([torch.zeros_like(tokens[: grid.text]), added])


@sizes
@torch.no_grad()
def test_the_inner_model_is_one_step_of_gradient_descent(grid):
    operator = shaken(create("ttt", SHAPE, share=0))
    q, k, v = tensors(grid, batch=1)
    keys = prepared(operator.keys, k[0], grid, normalises=True)
    queries = prepared(operator.queries, q[0], grid, normalises=False)
    with torch.enable_grad():
        first, second = trained(operator, keys, v[0])
    hidden = F.silu(torch.einsum("nhd,hde->nhe", queries, first))
    picture = torch.einsum("nhd,hde->nhe", hidden, second)[grid.text :]
    of_text = create("softmax", SHAPE).mix(q, k, v, grid)[0, : grid.text]
    out = operator.mix(q, k, v, grid)[0]
    assert (out - torch.cat([of_text, picture])).abs().max() < 1e-9


def square(grid, side):
    """Which tokens read which, (tokens, tokens), place by place."""
    reads = torch.ones(grid.tokens, grid.tokens, dtype=torch.bool)
    for y in range(grid.height):
        for x in range(grid.width):
            cells = torch.zeros(grid.height, grid.width, dtype=torch.bool)
            rows, columns = (
                kept(place, size, side) for place, size in ((y, grid.height), (x, grid.width))
            )
            cells[rows[:, None], columns] = True
            reads[grid.text + y * grid.width + x, grid.text :] = cells.flatten()
    return reads


def kept(place, size, side):
    """The `side` nearest places, or all: those of a square that never leaves the picture."""
    first = sorted(range(max(size - side, 0) + 1), key=lambda start: abs(start + side // 2 - place))
    return torch.arange(size)[first[0] : first[0] + side]


@pytest.mark.parametrize("side", [1, 3, 5, 21])
@pytest.mark.parametrize(
    "grid", [Grid(1, 1), Grid(1, 7, 3), Grid(4, 3), Grid(9, 17, 2), Grid(16, 8)], ids=str
)
def test_a_neighbourhood_is_softmax_with_a_mask(grid, side):
    q, k, v = tensors(grid)
    reads = square(grid, side)
    weight = scores(q, k, SCALE).masked_fill(~reads, -torch.inf).softmax(-1)
    judge = torch.einsum("bhij,bjhd->bihd", weight, v)[:, grid.text :]
    out = neighbourhood.near(q, k, v, grid, side, SCALE)
    assert (out - judge).abs().max() < 1e-12
    assert neighbourhood.pairs(grid, side) == reads[grid.text :, grid.text :].sum()


def test_half_of_the_output_is_the_neighbourhood():
    grid, inputs = Grid(7, 6, 2), tensors(Grid(7, 6, 2))
    whole, inner, near = (create("ttt", SHAPE, share=share).double() for share in (0.5, 0, 1))
    for operator in (inner, near):
        operator.load_state_dict(whole.state_dict())
    both = (inner.mix(*inputs, grid) + near.mix(*inputs, grid)) / 2
    assert (whole.mix(*inputs, grid) - both).abs().max() < 1e-12
    judge = neighbourhood.near(*inputs, grid, 5, SCALE)
    assert (near.mix(*inputs, grid)[:, grid.text :] - judge).abs().max() < 1e-12


def test_it_starts_as_released():
    """Scale one, shift zero, convolutions drawn as any, weights of .02."""
    torch.manual_seed(0)
    operator = create("ttt", LayerShape(128, 2, 64))
    for part in (operator.queries, operator.keys):
        assert (part.gain == 1).all()
        assert not part.shift.any()
        assert 0.3 < part.convolution.weight.abs().max() <= 1 / 3
    for weight in (operator.first, operator.second):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_keys_that_hardly_differ_stay_small():
    """The norm's epsilon is 1: what varies little is not blown up."""
    operator, grid = create("ttt", SHAPE).double(), Grid(3, 4)
    torch.nn.init.zeros_(operator.keys.convolution.weight)
    torch.nn.init.zeros_(operator.keys.convolution.bias)
    k = 1e-3 * tensors(grid)[1]
    centred = k - k.mean(1, keepdim=True)
    torch.testing.assert_close(operator.keys(k, grid), centred, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"window": 4}, "window is an odd number, not 4"),
        ({"window": 0}, "window is a whole number from 1 on, not 0"),
        ({"share": 1.5}, "share is a number from 0 to 1, not 1.5"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        create("ttt", SHAPE, **options)
