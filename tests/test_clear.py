import math

import papers
import pytest
import torch
from layers import FORMS, GRIDS, SHAPE, form, shaken, tensors

from linattn.attention import LayerShape, create
from linattn.attention.grid import Grid

sizes = pytest.mark.parametrize(
    "grid", [Grid(1, 1), Grid(1, 7, 3), Grid(5, 3), Grid(4, 6, 2), Grid(9, 5, 1)], ids=str
)


@sizes
@pytest.mark.parametrize("radius", [0.5, 1, math.sqrt(2), 2, 2.5, 5])
def test_is_the_paper_s_formula(grid, radius):
    q, k, v = tensors(grid, batch=1)
    judge = papers.clear(q[0], k[0], v[0], grid.height, grid.width, grid.text, radius)
    assert (create("clear", SHAPE, radius=radius).mix(q, k, v, grid)[0] - judge).abs().max() < 1e-9


@sizes
@pytest.mark.parametrize("pool", [2, 3, 4])
def test_pooled_keys_are_the_paper_s_with_partial_cells(grid, pool):
    operator = shaken(create("clear", SHAPE, radius=2, pool=pool))
    (kernel,) = operator.parameters()
    assert kernel.shape == (pool, pool)
    q, k, v = tensors(grid, batch=1)
    judge = papers.clear(q[0], k[0], v[0], grid.height, grid.width, grid.text, 2, kernel.detach())
    assert (operator.mix(q, k, v, grid)[0] - judge).abs().max() < 1e-9


@sizes
@pytest.mark.parametrize("pool", [2, 3, 4])
def test_a_cell_may_count_as_the_tokens_that_it_has(grid, pool):
    operator = shaken(create("clear", SHAPE, radius=2, pool=pool, weight="tokens"))
    (kernel,) = (parameter.detach() for parameter in operator.parameters())
    q, k, v = tensors(grid, batch=1)
    size = grid.height, grid.width, grid.text
    judge = papers.clear(q[0], k[0], v[0], *size, 2, kernel, weight="tokens")
    assert (operator.mix(q, k, v, grid)[0] - judge).abs().max() < 1e-9


def test_cells_that_count_their_tokens_start_as_means_of_equal_keys():
    """Keys alike: a query reads the mean of its window and of all cells, partial ones too."""
    grid = Grid(5, 7)
    operator = create("clear", SHAPE, radius=1, pool=4, weight="tokens").double()
    q, k, v = tensors(grid)
    k = k[:, :1].expand_as(k)
    judge = (v + v.sum(1, keepdim=True)) / (1 + grid.picture)  # itself, and every token by its cell
    assert (operator.mix(q, k, v, grid) - judge).abs().max() < 1e-12


def test_the_count_of_a_cell_is_as_exact_as_its_keys():
    """log 16 alone, rounded to bfloat16, would be off by .5 % of a weight."""
    grid = Grid(8, 8)
    operator = create("clear", SHAPE, radius=1, pool=4, weight="tokens")
    zeros = torch.zeros(1, 64, 4, 4, dtype=torch.bfloat16)
    values = torch.eye(64, dtype=torch.bfloat16)[:, :1].reshape(1, 64, 1, 1).expand(1, 64, 4, 4)
    out = operator.mix(zeros, zeros, values, grid)[0, :, 0, 0]
    # All scores are equal: the window's own token is one of 65, and the first one of a cell's 16.
    assert out[0].item() == pytest.approx(2 / 65, rel=4e-3)
    assert out[1].item() == pytest.approx(1 / 65, rel=4e-3)


def test_the_weight_is_of_pooled_keys():
    with pytest.raises(ValueError, match="weight='tokens' is about pooled keys, and pool=1"):
        create("clear", SHAPE, weight="tokens")
    schedule = [{"until": 0.5, "pool": 2}]
    assert create("clear", SHAPE, weight="tokens", schedule=schedule).possible("pool") == [1, 2]


def test_the_pooling_kernel_starts_as_the_mean():
    (kernel,) = create("clear", SHAPE, pool=4).parameters()
    assert torch.equal(kernel, torch.full((4, 4), 1 / 16))
    assert create("clear", SHAPE, pool=4).new_parameters() == ["pooling.4"]
    assert not list(create("clear", SHAPE).parameters())


@pytest.mark.parametrize(("radius", "keys"), [(8, 193), (16, 793), (32, 3205)])
def test_interior_queries_read_the_published_number_of_keys(radius, keys):
    grid = Grid(2 * radius + 1, 2 * radius + 1)
    place = torch.arange(grid.picture)
    query = torch.tensor([grid.picture // 2])
    y, x = (place // grid.width)[:, None], (place % grid.width)[:, None]
    near = (y[query] - y.T) ** 2 + (x[query] - x.T) ** 2 < radius**2
    assert near.sum() == keys
    operator = create("clear", LayerShape(1, 1, 1), radius=radius)
    q = torch.zeros(1, grid.picture, 1, 1, dtype=torch.float64)
    v = torch.eye(grid.picture, dtype=torch.float64)[:, grid.picture // 2].reshape(1, -1, 1, 1)
    # With all scores equal, each of the keys within reach of the centre reads it with weight 1 /
    # keys.
    assert operator.mix(q, q, v, grid)[0, grid.picture // 2].item() == pytest.approx(
        1 / keys, rel=1e-12
    )


@pytest.mark.parametrize(
    ("side", "radius", "giga"),
    [
        (64, 8, 63.5),
        (64, 32, 154.1),
        (128, 8, 246.2),
        (128, 16, 352.6),
        (128, 32, 724.3),
        (256, 8, 979.3),
    ],
)
def test_macs_reproduce_the_published_gflops(side, radius, giga):
    flux = create("clear", LayerShape(3072, 24, 128, has_text=True), radius=radius)
    assert 2 * flux.macs(Grid(side, side, 512)) / 1e9 == pytest.approx(giga, abs=0.051)


@sizes
def test_a_radius_beyond_the_picture_is_softmax(grid):
    q, k, v = tensors(grid)
    full = create("softmax", SHAPE).mix(q, k, v, grid)
    assert (create("clear", SHAPE, radius=40).mix(q, k, v, grid) - full).abs().max() < 1e-12


def test_the_smallest_radius_reads_itself_and_text():
    grid = Grid(6, 5)
    q, k, v = tensors(grid)
    assert torch.allclose(create("clear", SHAPE, radius=1).mix(q, k, v, grid), v)


def test_text_reads_everything_but_pooled_keys():
    grid = Grid(6, 5, 3)
    q, k, v = tensors(grid)
    full = create("softmax", SHAPE).mix(q, k, v, grid)
    for pool in (1, 2):
        out = create("clear", SHAPE, radius=2, pool=pool).mix(q, k, v, grid)
        assert torch.allclose(out[:, :3], full[:, :3])
        assert not torch.allclose(out[:, 3:], full[:, 3:])


@pytest.mark.parametrize(
    ("grid", "options", "multiplier"),
    [
        (Grid(64, 64, 512), {}, 1.000),
        (Grid(128, 128, 512), {}, 1.074),
        (Grid(128, 256, 512), {}, 1.111),
        (Grid(256, 256, 512), {}, 1.147),
        (Grid(64, 64, 512), {"pool": 4}, 1.128),
        (Grid(128, 256, 512), {"pool": 4}, 1.228),
        (Grid(16, 16), {"trained": 256}, 1.000),
    ],
    ids=str,
)
def test_the_proportional_scale_is_the_published_one(grid, options, multiplier):
    operator = create(
        "clear", LayerShape(8, 2, 4), proportional=True, **{"trained": 4608, **options}
    )
    assert operator.scale(grid, operator.values) * 4**0.5 == pytest.approx(multiplier, abs=6e-4)


def test_the_training_length_comes_from_the_option_then_the_model():
    shape, grid = LayerShape(8, 2, 4, trained=256), Grid(16, 16)
    at = create("clear", shape, proportional=True)
    assert at.scale(grid, at.values) == 0.5
    own = create("clear", shape, proportional=True, trained=16)
    assert own.scale(grid, own.values) == pytest.approx(0.5 * 2**0.5)
    with pytest.raises(ValueError, match="pass trained"):
        create("clear", LayerShape(8, 2, 4), proportional=True)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", [name for name in FORMS if name.startswith("clear")])
def test_the_cost_is_of_the_pairs_of_the_mask(name, grid):
    operator = form(name)
    pool, channels = operator.values.pool, SHAPE.channels
    pairs = int(operator.allowed(grid, operator.values.radius, torch.device("cpu")).sum())
    cells, pooling = 0, 0
    if pool > 1:
        cells = len({(y // pool, x // pool) for y in range(grid.height) for x in range(grid.width)})
        pooling = 2 * grid.picture * channels
    assert operator.macs(grid) == 2 * channels * (pairs + cells * grid.picture) + pooling
