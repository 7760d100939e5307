"""MHLA: tiles have states of their own, and every tile reads a mixture of them."""

import pytest
import torch
from layers import SHAPE, shaken, tensors

from linattn.attention import create
from linattn.attention.grid import Grid
from linattn.attention.mhla import FARTHEST

sizes = pytest.mark.parametrize(
    "grid", [Grid(1, 1), Grid(1, 7, 3), Grid(5, 3), Grid(4, 6, 2)], ids=str
)


def phi(x):
    return x * (x > 0) + 1e-6


def tiles_of(grid, rows, columns):
    """Return the tile of every picture token by its place."""
    return [
        (y * rows // grid.height) * columns + x * columns // grid.width
        for y in range(grid.height)
        for x in range(grid.width)
    ]


def softmax_read(query, keys, values):
    weights = torch.stack([query @ key for key in keys]) * len(query) ** -0.5
    return weights.softmax(0) @ values


def formula(q, k, v, grid, sides, mixing):
    """Compute MHLA token by token: q, k, v (tokens, heads, head_dim) of one picture."""
    tile, text, out = tiles_of(grid, *sides), grid.text, torch.zeros_like(v)
    share = grid.picture / grid.tokens
    for h in range(q.shape[1]):
        for i in range(grid.tokens):
            if i < text:
                out[i, h] = softmax_read(q[i, h], k[:, h], v[:, h])
                continue
            numerator, denominator = torch.zeros_like(v[0, 0]), 0.0
            for j in range(grid.picture):
                weight = mixing[tile[i - text], tile[j]] * (phi(q[i, h]) @ phi(k[text + j, h]))
                numerator, denominator = numerator + weight * v[text + j, h], denominator + weight
            out[i, h] = share * numerator / denominator
            if text:
                out[i, h] += (1 - share) * softmax_read(q[i, h], k[:text, h], v[:text, h])
    return out


@sizes
@pytest.mark.parametrize("sides", [(1, 1), (2, 3), (4, 4)], ids=str)
def test_is_the_papers_formula(grid, sides):
    operator = shaken(create("mhla", SHAPE, tiles=sides, conv=0))
    powers = operator.nearness.detach().exp()
    q, k, v = tensors(grid, batch=1)
    judge = formula(q[0], k[0], v[0], grid, sides, powers / powers.sum(0))
    assert (operator.mix(q, k, v, grid)[0] - judge).abs().max() < 1e-9


@pytest.mark.parametrize("sides", [(1, 1), (1, 3), (4, 4)], ids=str)
def test_the_mixing_starts_by_distance(sides):
    mixing = create("mhla", SHAPE, tiles=sides).mixing(torch.float64)
    place = [(row, column) for row in range(sides[0]) for column in range(sides[1])]
    distance = torch.tensor(
        [[((a - c) ** 2 + (b - d) ** 2) ** 0.5 for c, d in place] for a, b in place]
    )
    linear = (1 - distance / max(distance.max(), 1)).clamp_min(FARTHEST).double()
    assert (mixing - linear / linear.sum(0)).abs().max() < 1e-6


def test_a_row_is_divided_by_its_own_query_alone():
    """The released denominator is made of other tiles' queries at the same place."""
    grid, operator = Grid(4, 4), shaken(create("mhla", SHAPE, tiles=(2, 2), conv=0))
    q, k, v = tensors(grid)
    before = operator.mix(q, k, v, grid)
    others = q.clone()
    others[:, 1:] *= 3
    assert torch.equal(operator.mix(others, k, v, grid)[:, 0], before[:, 0])


def test_one_tile_is_linear_attention():
    grid, inputs = Grid(5, 6), tensors(Grid(5, 6))
    linear = create("lit", SHAPE, heads=SHAPE.heads, kernel=0, eps=0)
    one = create("mhla", SHAPE, tiles=(1, 1))
    assert (one.mix(*inputs, grid) - linear.mix(*inputs, grid)).abs().max() < 1e-12


def test_tiles_grow_with_the_picture():
    """Every token four times over, where tiles divide it: each reads what the one had read."""
    operator, small, large = shaken(create("mhla", SHAPE, conv=0)), Grid(4, 8), Grid(8, 16)
    inputs = tensors(small)

    def enlarged(tensor):
        picture = small.rows(tensor).repeat_interleave(2, 1).repeat_interleave(2, 2)
        return picture.flatten(1, 2)

    out = operator.mix(*map(enlarged, inputs), large)
    assert (out - enlarged(operator.mix(*inputs, small))).abs().max() < 1e-12


@pytest.mark.parametrize("tiles", [4, (4,), (2, 2, 2), (0, 2), (True, 2), (2.0, 2), "44"], ids=str)
def test_tiles_that_are_no_pair_are_refused(tiles):
    with pytest.raises(ValueError, match=r"mhla: tiles is \(rows, columns\), whole numbers from 1"):
        create("mhla", SHAPE, tiles=tiles)


def test_more_tiles_than_a_mixing_should_have_are_refused():
    with pytest.raises(ValueError, match=r"at most 1,024 tiles, not \(64, 64\)"):
        create("mhla", SHAPE, tiles=(64, 64))
    with pytest.raises(ValueError, match="tiles cannot follow the noise; what can: conv"):
        create("mhla", SHAPE, schedule=[{"until": 0.5, "tiles": (2, 2)}])
