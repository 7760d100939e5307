import papers
import pytest
import torch
from layers import SHAPE, shaken, tensors

from linattn.attention import create
from linattn.attention.grid import Grid

sizes = pytest.mark.parametrize(
    "grid", [Grid(1, 1), Grid(1, 7, 3), Grid(5, 3), Grid(4, 9, 1)], ids=str
)


def features(x, weight, feature_map):
    mapped = torch.stack([x[:, h] @ weight[h] for h in range(x.shape[1])], 1)
    if feature_map == "relu":
        return mapped * (mapped > 0)
    return torch.cat([mapped.softmax(2), (-mapped).softmax(2)], 2)


@sizes
@pytest.mark.parametrize("feature_map", ["hedgehog", "relu"])
@pytest.mark.parametrize("radius", [0.5, 2, 3])
@torch.no_grad()
def test_is_the_paper_s_formula(grid, feature_map, radius):
    operator = shaken(create("lolcats", SHAPE, radius=radius, feature_map=feature_map))
    q, k, v = tensors(grid, batch=1)
    judge = papers.lolcats(
        *(q[0], k[0], v[0], grid.height, grid.width, grid.text, radius),
        features(q[0], operator.query_map, feature_map),
        features(k[0], operator.key_map, feature_map),
        1 / (1 + (-operator.window_factor).exp()),
    )
    assert (operator.mix(q, k, v, grid)[0] - judge).abs().max() < 1e-9


def test_the_maps_start_as_the_identity_and_the_factor_at_a_tenth():
    operator = create("lolcats", SHAPE)
    for weight in (operator.query_map, operator.key_map):
        assert torch.equal(weight, torch.eye(SHAPE.head_dim).expand(SHAPE.heads, -1, -1))
    assert torch.allclose(operator.window_factor.sigmoid(), torch.full((SHAPE.heads,), 0.1))
    assert operator.new_parameters() == ["query_map", "key_map", "window_factor"]


@sizes
def test_a_radius_beyond_the_picture_is_softmax(grid):
    q, k, v = tensors(grid)
    full = create("softmax", SHAPE).mix(q, k, v, grid)
    operator = shaken(create("lolcats", SHAPE, radius=40))
    assert (operator.mix(q, k, v, grid) - full).abs().max() < 1e-12


def test_large_scores_overflow_nowhere():
    """A window's largest score is taken off, however far below it the others lie."""
    grid = Grid(9, 10, 2)
    q, k, v = (100 * tensor for tensor in tensors(grid, dtype=torch.float32, grad=False))
    inputs = [tensor.requires_grad_() for tensor in (q, k, v)]
    create("lolcats", SHAPE).mix(*inputs, grid).sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in inputs)


@pytest.mark.parametrize(("radius", "pairs"), [(1, 35), (3, 19 * 29), (40, 35**2)])
def test_pairs_are_those_of_the_disc(radius, pairs):
    """The disc of radius 3 is a square of 5 x 5, clipped at the border."""
    operator = create("lolcats", SHAPE, radius=radius)
    assert operator.pairs(Grid(5, 7), operator.values) == pairs


def test_a_wrong_feature_map_is_refused():
    with pytest.raises(ValueError, match="did you mean 'hedgehog'"):
        create("lolcats", SHAPE, feature_map="hedgehg")
