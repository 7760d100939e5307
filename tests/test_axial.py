import papers
import pytest
import torch
from layers import SHAPE, tensors

from linattn.attention import LayerShape, create
from linattn.attention.grid import Grid

sizes = pytest.mark.parametrize(
    "grid", [Grid(1, 1), Grid(1, 7, 3), Grid(5, 3), Grid(4, 6, 2)], ids=str
)


def judge(q, k, v, grid, reads):
    """Read token by token what `reads` lets two places of the picture read."""
    places, out = papers.positions(grid.height, grid.width, grid.text), torch.zeros_like(v)
    for h in range(q.shape[1]):
        for i, here in enumerate(places):
            seen = [
                j
                for j, there in enumerate(places)
                if here is None or there is None or reads(here, there)
            ]
            keys, values = [k[j, h] for j in seen], [v[j, h] for j in seen]
            out[i, h] = papers.softmax_read(q[i, h], keys, values, q.shape[2] ** -0.5)
    return out


READS = {
    "both": lambda a, b: a[0] == b[0] or a[1] == b[1],
    "rows": lambda a, b: a[0] == b[0],
    "columns": lambda a, b: a[1] == b[1],
}


@sizes
@pytest.mark.parametrize("along", READS)
def test_is_softmax_over_the_row_the_column_or_both(grid, along):
    q, k, v = tensors(grid, batch=1)
    expected = judge(q[0], k[0], v[0], grid, READS[along])
    assert (create("axial", SHAPE, along=along).mix(q, k, v, grid)[0] - expected).abs().max() < 1e-9


def test_the_token_itself_counts_once():
    grid = Grid(5, 3)
    q = torch.zeros(1, 15, 1, 1, dtype=torch.float64)
    v = torch.eye(15, dtype=torch.float64)[:, 7].reshape(1, 15, 1, 1)
    out = create("axial", LayerShape(1, 1, 1)).mix(q, q, v, grid)
    # all scores equal: 5 + 3 - 1 keys, of which the middle token is one
    assert out[0, 7].item() == pytest.approx(1 / 7, rel=1e-12)


@pytest.mark.parametrize(("index", "along"), [(0, "rows"), (1, "columns"), (2, "rows")])
def test_layers_take_turns(index, along):
    grid, shape = Grid(4, 6, 2), LayerShape(16, 4, 4, has_text=True, index=index)
    inputs = tensors(grid)
    turn = create("axial", shape, along="alternate").mix(*inputs, grid)
    assert torch.equal(turn, create("axial", shape, along=along).mix(*inputs, grid))


@pytest.mark.parametrize("offset", [-300.0, 300.0])
def test_large_scores_stay_finite(offset):
    grid = Grid(4, 6)
    q, k, v = tensors(grid, dtype=torch.float32)
    out = create("axial", SHAPE).mix(q + offset, k + offset, v, grid)
    assert out.isfinite().all()


def test_density_is_that_of_the_lines():
    operator = create("axial", LayerShape(64, 1, 64))
    assert operator.pairs(Grid(128, 128), operator.values) == 128 * 128 * 255


def test_an_unknown_line_is_refused():
    with pytest.raises(ValueError, match="axial: along is one of both, rows.*not 'row'"):
        create("axial", SHAPE, along="row")
