import math

import papers
import pytest
import torch
from layers import SHAPE, tensors

from linattn.attention import LayerShape, create
from linattn.attention.cells import Cells
from linattn.attention.grid import Grid

RADII = (1, math.sqrt(2), 3, 4.5)
sizes = pytest.mark.parametrize(
    "grid", [Grid(1, 1), Grid(1, 11, 3), Grid(9, 5), Grid(7, 13, 2)], ids=str
)


def gap(a, b):
    """Return how far the closest tokens of two neighbouring pairs are apart."""
    return min(abs(i - j) for i in (2 * a, 2 * a + 1) for j in (2 * b, 2 * b + 1))


def cell_of(here, there, radius):
    """Return (level, row, column) of the cell through which one token reads another."""
    for level in reversed(range(1, 12)):
        (y, x), (row, column) = ([side >> level for side in place] for place in (here, there))
        if gap(y, row) ** 2 + gap(x, column) ** 2 >= radius * radius:
            return level, row, column
    return 0, *there


def read_by(here, places, radius):
    """List the tokens of every cell that a token reads."""
    cells = {}
    for place in places:
        cells.setdefault(cell_of(here, place, radius), []).append(place)
    return list(cells.values())


def judge(q, k, v, grid, radius):
    places, out = papers.positions(grid.height, grid.width, grid.text), torch.zeros_like(v)
    index = {place: i for i, place in enumerate(places)}
    for h in range(q.shape[1]):
        for i, here in enumerate(places):
            cells = [[j] for j in range(len(places) if here is None else grid.text)]
            if here is not None:
                read = read_by(here, places[grid.text :], radius)
                cells += [[index[place] for place in cell] for cell in read]
            scale = q.shape[2] ** -0.5
            weight = torch.stack([q[i, h] @ k[cell, h].mean(0) * scale for cell in cells])
            weight = (weight + torch.tensor(list(map(len, cells)), dtype=v.dtype).log()).softmax(0)
            means = torch.stack([v[cell, h].mean(0) for cell in cells])
            out[i, h] = weight @ means
    return out


@sizes
@pytest.mark.parametrize("radius", RADII)
def test_reads_tokens_and_means_as_its_rule_says(grid, radius):
    q, k, v = tensors(grid, LayerShape(4, 1, 4), batch=1)
    out = create("pyramid", LayerShape(4, 1, 4, has_text=True), radius=radius).mix(q, k, v, grid)
    assert (out[0] - judge(q[0], k[0], v[0], grid, radius)).abs().max() < 1e-9


@sizes
@pytest.mark.parametrize("radius", RADII)
def test_keys_are_counted_as_they_are_read(grid, radius):
    operator = create("pyramid", SHAPE, radius=radius)
    picture = papers.positions(grid.height, grid.width, 0)
    read = sum(len(read_by(here, picture, radius)) for here in picture)
    assert operator.pairs(grid, operator.values) == read + grid.text * (grid.tokens + grid.picture)


@sizes
@pytest.mark.parametrize("radius", RADII)
def test_tokens_inside_the_radius_are_read_exactly(grid, radius):
    places = papers.positions(grid.height, grid.width, 0)
    for here in places:
        near = [p for p in places if math.dist(here, p) ** 2 < radius * radius]
        assert all([place] in read_by(here, places, radius) for place in near)


@sizes
def test_equal_scores_give_the_mean_of_all_tokens(grid):
    _, _, v = tensors(grid)
    out = create("pyramid", SHAPE).mix(torch.zeros_like(v), torch.zeros_like(v), v, grid)
    # every token counts once: with a cell's tokens lost or doubled the mean would move
    assert (out - v.mean(1, keepdim=True)).abs().max() < 1e-12


def test_a_radius_beyond_the_picture_is_softmax():
    grid = Grid(9, 5, 2)
    inputs = tensors(grid)
    full = create("softmax", SHAPE).mix(*inputs, grid)
    for radius in (20, 10**30):
        assert (
            create("pyramid", SHAPE, radius=radius).mix(*inputs, grid) - full
        ).abs().max() < 1e-12


def test_text_reads_everything_exactly():
    grid = Grid(9, 13, 3)
    inputs = tensors(grid)
    full = create("softmax", SHAPE).mix(*inputs, grid)
    out = create("pyramid", SHAPE).mix(*inputs, grid)
    assert torch.allclose(out[:, :3], full[:, :3])
    assert not torch.allclose(out[:, 3:], full[:, 3:])


def test_padding_of_a_block_leaves_gradients_finite():
    inputs = tensors(Grid(1, 1), grad=True)
    create("pyramid", SHAPE).mix(*inputs, Grid(1, 1)).sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in inputs)


def test_keys_grow_with_the_logarithm_of_the_tokens():
    operator = create("pyramid", LayerShape(64, 1, 64))
    keys = [operator.pairs(Grid(side, side), operator.values) / side**2 for side in (64, 128, 256)]
    assert keys == pytest.approx([108.12, 134.56, 161.28], abs=0.01)


def test_a_block_s_list_is_as_long_as_the_docstring_says():
    cells, q = Cells(Grid(128, 128), 3), torch.zeros(1, 128 * 128, 1, 1)
    rows, columns, _ = next(iter(cells.blocks(q)))
    index, added = cells.lists(rows, columns, q)
    assert index.shape == (16, 352)
    assert added.shape == (16, 64, 352)


@pytest.mark.parametrize("radius", [0, -1, "3"])
def test_a_radius_that_is_none_is_refused(radius):
    with pytest.raises(ValueError, match="pyramid: radius is a number above 0, not"):
        create("pyramid", SHAPE, radius=radius)
