import papers
import pytest
import torch
from layers import SHAPE, shaken, tensors

from linattn.attention import LayerShape, create, routing
from linattn.attention.grid import Grid

sizes = pytest.mark.parametrize(
    "grid", [Grid(1, 1), Grid(1, 7, 3), Grid(5, 4), Grid(4, 9, 1)], ids=str
)


def judged(grid, tile, density, q, k, v):
    count = routing.kept(grid, tile, density)
    inputs = (q[0], k[0], v[0], grid.height, grid.width, grid.text)
    return papers.sla(*inputs, tile, count)


@sizes
@pytest.mark.parametrize("tile", [2, 3])
@torch.no_grad()
def test_a_projection_adds_the_linear_read_of_the_picture(grid, tile):
    operator = shaken(create("sla", SHAPE, density=0.3, tile=tile))
    q, k, v = tensors(grid, batch=1)
    exact, linear, _ = judged(grid, tile, 0.3, q, k, v)
    judge = exact + linear @ operator.projection.weight.T + operator.projection.bias
    assert (operator.mix(q, k, v, grid)[0, grid.text :] - judge).abs().max() < 1e-9


@sizes
@pytest.mark.parametrize("tile", [2, 3])
@torch.no_grad()
def test_a_ratio_mixes_softmax_with_the_rest(grid, tile):
    operator = shaken(create("sla", SHAPE, density=0.3, tile=tile, mix="ratio"))
    q, k, v = tensors(grid, batch=1)
    exact, _, rest = judged(grid, tile, 0.3, q, k, v)
    part = (1 / (1 + (-operator.ratio).exp()))[:, None]
    judge = part * exact + (1 - part) * rest
    assert (operator.mix(q, k, v, grid)[0, grid.text :] - judge).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["pisa", "sla"])
@torch.no_grad()
def test_a_tile_beyond_the_picture_is_the_picture(name):
    grid = Grid(3, 5, 2)
    largest, whole = (create(name, SHAPE, tile=tile) for tile in (2**31 - 1, 5))
    inputs = tensors(grid)
    assert torch.equal(largest.mix(*inputs, grid), whole.mix(*inputs, grid))
    assert largest.macs(grid) == whole.macs(grid)


@pytest.mark.parametrize("mix", ["projection", "ratio"])
def test_text_reads_everything_by_softmax(mix):
    grid = Grid(5, 6, 3)
    q, k, v = tensors(grid)
    full = create("softmax", SHAPE).mix(q, k, v, grid)[:, :3]
    operator = shaken(create("sla", SHAPE, density=0.2, tile=2, mix=mix))
    assert (operator.mix(q, k, v, grid)[:, :3] - full).abs().max() < 1e-12


def test_it_starts_as_its_exact_tiles():
    grid = Grid(7, 6, 2)
    q, k, v = tensors(grid)
    operator = create("sla", SHAPE, density=0.2, tile=2).double()
    out = operator.mix(q, k, v, grid)
    exact = torch.einsum("bhij,bjhd->bihd", operator.dense(q, k, grid, operator.values), v)
    assert (out - exact).abs().max() < 1e-12
    full = create("sla", SHAPE, density=1, tile=2).double().mix(q, k, v, grid)
    assert (full - create("softmax", SHAPE).mix(q, k, v, grid)).abs().max() < 1e-12
    out.square().sum().backward()
    assert operator.projection.weight.grad.any()  # the zero of the start is left


def test_a_ratio_starts_at_88_hundredths():
    operator = create("sla", SHAPE, mix="ratio")
    assert operator.part(torch.float64).flatten().tolist() == pytest.approx([0.8808] * 4, abs=1e-4)
    assert operator.new_parameters() == ["ratio"]


def test_the_mean_key_changes_no_choice():
    """The release takes it off all keys first."""
    grid = Grid(9, 10)
    q, k, _ = tensors(grid)
    operator = create("sla", SHAPE, density=0.3, tile=2)
    kept, smooth = (
        operator.kept(q, keys, grid, operator.values).sort(3).values
        for keys in (k, k - k.mean(1, keepdim=True))
    )
    assert torch.equal(kept, smooth)


def test_a_twentieth_of_the_keys_is_read():
    operator = create("sla", LayerShape(8, 2, 4))
    assert operator.density(Grid(64, 64)) == pytest.approx(0.05, abs=0.001)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"density": 0}, "density is a number above 0, up to 1, not 0"),
        ({"density": 1.5}, "density is a number above 0, up to 1, not 1.5"),
        ({"tile": 0}, "tile is a whole number from 1 on, not 0"),
        ({"mix": "gate"}, "mix is one of projection, ratio"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        create("sla", SHAPE, **options)
