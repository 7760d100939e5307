"""PISA beside its formula, token by token, and what its choice of tiles must not depend on."""

import papers
import pytest
import torch
from layers import SHAPE, error, tensors

from linattn.attention import create, routing
from linattn.attention.grid import Grid

sizes = pytest.mark.parametrize(
    "grid", [Grid(1, 1), Grid(1, 7, 3), Grid(5, 3), Grid(4, 6, 2), Grid(9, 5, 1)], ids=str
)
FORMS = {
    "first order": {"density": 0.3, "tile": 2},
    "means": {"density": 0.3, "tile": 2, "order": 0},
    "threshold": {"density": 0.3, "tile": 2, "threshold": 0.4},
    "whole picture": {"density": 0.1, "tile": 16},
    "tokens": {"density": 0.2, "tile": 1},
}


@sizes
@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_is_the_paper_s_formula(grid, options):
    q, k, v = tensors(grid, batch=1)
    judge = papers.pisa(q[0], k[0], v[0], grid.height, grid.width, grid.text, **options)
    assert (create("pisa", SHAPE, **options).mix(q, k, v, grid)[0] - judge).abs().max() < 1e-9


@sizes
def test_all_tiles_read_exactly_are_softmax(grid):
    q, k, v = tensors(grid)
    full = create("softmax", SHAPE).mix(q, k, v, grid)
    assert (create("pisa", SHAPE, density=1.0).mix(q, k, v, grid) - full).abs().max() < 1e-12


def test_text_is_softmax_over_everything():
    grid = Grid(9, 5, 4)
    q, k, v = tensors(grid)
    full = create("softmax", SHAPE).mix(q, k, v, grid)
    out = create("pisa", SHAPE, density=0.1, threshold=0.9).mix(q, k, v, grid)
    assert (out[:, :4] - full[:, :4]).abs().max() < 1e-12
    assert error(out[:, 4:], full[:, 4:]) > 1e-3


def test_keys_alike_within_tiles_need_no_term_of_first_order():
    """Where all keys of a tile are equal, means are exact, whatever is kept."""
    grid = Grid(8, 8)
    q, k, v = tensors(grid)
    corners = grid.rows(k)[:, ::4, ::4]
    k = corners.repeat_interleave(4, 1).repeat_interleave(4, 2).flatten(1, 2)
    full = create("softmax", SHAPE).mix(q, k, v, grid)
    for order in (0, 1):
        out = create("pisa", SHAPE, order=order).mix(q, k, v, grid)
        assert (out - full).abs().max() < 1e-12


@pytest.mark.parametrize("fill", [0.0, 1.0, -0.1], ids=["zeros", "ones", "negative"])
def test_tiles_that_tie_are_taken_in_their_order(fill):
    """Float32 and float64 sum equal tiles to different last bits, which must not choose."""
    grid = Grid(9, 13)
    q, k, v = (torch.full_like(x, fill).float() for x in tensors(grid))
    v = tensors(grid)[2].float()
    operator = create("pisa", SHAPE)
    exact = operator.definition(q.double(), k.double(), v.double(), grid)
    assert error(operator.mix(q, k, v, grid), exact) < 1e-6
    between = routing.score(q, k, grid, 4, 0.5)
    assert (routing.largest(between, 3).sort().values == torch.arange(3)).all()


def test_the_largest_are_those_of_a_stable_sort():
    scores = torch.randint(-3, 3, (2, 5, 40), generator=torch.Generator().manual_seed(0)).double()
    wanted = scores.argsort(descending=True, stable=True)[..., :7].sort().values
    assert torch.equal(routing.largest(scores, 7).sort().values, wanted)


@pytest.mark.parametrize(
    ("density", "grid", "count"),
    [(0.25, Grid(16, 16), 4), (0.1, Grid(24, 20), 3), (0.01, Grid(4, 4), 1), (1, Grid(9, 9), 9)],
)
def test_a_share_of_the_tiles_is_kept_rounded_up(density, grid, count):
    assert routing.kept(grid, 4, density) == count


def test_the_cost_is_what_is_multiplied_where_tiles_are_whole():
    from torch.utils.flop_counter import FlopCounterMode

    from linattn_kernels import flops  # noqa: F401 (teaches the counter the kernels' operations)

    grid, operator = Grid(8, 12, 3), create("pisa", SHAPE)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        operator.mix(*tensors(grid, batch=1), grid)
    means = 2 * grid.picture * routing.kept(grid, 4, 0.25) * SHAPE.channels  # of kept tiles
    assert counter.get_total_flops() // 2 == operator.macs(grid) + means


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"density": 0}, "density is a number above 0, up to 1, not 0"),
        ({"density": 1.5}, "density is a number above 0, up to 1, not 1.5"),
        ({"tile": 0}, "tile is a whole number from 1 on, not 0"),
        ({"order": 2}, r"order is 0 \(means alone\) or 1 .*, not 2"),
        ({"order": True}, "order is 0"),
        ({"threshold": 0}, "threshold is a number above 0, up to 1 or None, not 0"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        create("pisa", SHAPE, **options)
