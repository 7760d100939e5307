import math

import papers
import pytest
from layers import SHAPE, tensors

from linattn.attention import LayerShape, create
from linattn.attention.grid import Grid

GRIDS = [Grid(1, 1), Grid(1, 7, 3), Grid(9, 5), Grid(4, 6, 2)]
sizes = pytest.mark.parametrize("grid", GRIDS, ids=str)
ONE = LayerShape(4, 1, 4, has_text=True)


def shape_of(index):
    return LayerShape(4, 1, 4, has_text=True, index=index)


def keys_of(operator, grid):
    """List for each token of the picture which tokens of the picture it reads."""
    q, k, _ = tensors(grid, ONE, batch=1)
    weights = operator.attention_map(q, k, grid)[0, 0, grid.text :, grid.text :]
    return [row.nonzero().flatten().tolist() for row in weights]


@sizes
@pytest.mark.parametrize("index", [0, 1])
def test_windows_are_shifted_by_half_a_side_in_odd_layers(grid, index):
    operator = create("control", shape_of(index), side=4)
    places = papers.positions(grid.height, grid.width, 0)
    starts = [0, 4, 8] if index == 0 else [-2, 2, 6]
    window = [tuple(max(s for s in starts if s <= side) for side in place) for place in places]
    expected = [[j for j, there in enumerate(window) if there == here] for here in window]
    assert keys_of(operator, grid) == expected


@sizes
def test_strides_spread_side_by_side_tokens_over_the_picture(grid):
    operator = create("control", ONE, kind="strided", side=3)
    steps = [math.ceil(size / 3) for size in (grid.height, grid.width)]
    places = papers.positions(grid.height, grid.width, 0)
    group = [tuple(s % step for s, step in zip(place, steps, strict=True)) for place in places]
    expected = [[j for j, there in enumerate(group) if there == here] for here in group]
    assert keys_of(operator, grid) == expected


@sizes
def test_random_sets_have_their_number_of_keys(grid):
    operator = create("control", ONE, kind="random", side=2, seed=3)
    keys = keys_of(operator, grid)
    assert {len(row) for row in keys} == {min(4, grid.picture)}
    assert keys == keys_of(create("control", ONE, kind="random", side=2, seed=3), grid)


def test_random_sets_follow_seed_and_layer():
    grid = Grid(9, 5)
    sets = [
        keys_of(create("control", shape_of(index), kind="random", side=2, seed=seed), grid)
        for seed, index in ((0, 0), (0, 1), (1, 0))
    ]
    assert sets[0] != sets[1] != sets[2] != sets[0]


@pytest.mark.parametrize("kind", ["shifted", "strided", "random"])
def test_a_side_beyond_the_picture_is_softmax(kind):
    grid = Grid(9, 5, 2)
    inputs = tensors(grid)
    full = create("softmax", SHAPE).mix(*inputs, grid)
    for index in (0, 1):
        shape = LayerShape(16, 4, 4, has_text=True, index=index)
        out = create("control", shape, kind=kind, side=2**30).mix(*inputs, grid)
        assert (out - full).abs().max() < 1e-12


@sizes
def test_pooled_keys_are_means_of_2_x_2_cells(grid):
    q, k, v = tensors(grid, ONE, batch=1)
    operator = create("control", ONE, kind="pooled")
    q, k, v = (tensor[0, :, 0] for tensor in (q, k, v))
    places = papers.positions(grid.height, grid.width, grid.text)
    cells = {}
    for j, place in enumerate(places):
        cells.setdefault(
            ("text", j) if place is None else (place[0] // 2, place[1] // 2), []
        ).append(j)
    means = [[t[cell].mean(0) for cell in cells.values()] for t in (k, v)]
    for i, here in enumerate(places):
        keys, values = (k, v) if here is None else means
        judged = papers.softmax_read(q[i], list(keys), list(values), 0.5)
        out = operator.mix(*(t[None, :, None] for t in (q, k, v)), grid)
        assert (out[0, i, 0] - judged).abs().max() < 1e-9


@sizes
def test_pooled_is_its_definition_and_counts_its_keys(grid):
    operator, inputs = create("control", ONE, kind="pooled"), tensors(grid, ONE)
    definition = operator.definition(*inputs, grid)
    assert (operator.mix(*inputs, grid) - definition).abs().max() < 1e-9
    cells = math.ceil(grid.height / 2) * math.ceil(grid.width / 2)
    picture = grid.picture * (cells + grid.text)
    assert operator.pairs(grid, operator.values) == picture + grid.text * grid.tokens


@sizes
def test_the_sigmoid_s_bias_is_minus_log_n(grid):
    q, k, v = tensors(grid, ONE, batch=1)
    out = create("control", ONE, kind="sigmoid").mix(q, k, v, grid)[0, :, 0]
    q, k, v = (tensor[0, :, 0] for tensor in (q, k, v))
    for i in range(grid.tokens):
        odds = [math.exp(q[i].dot(k[j]).item() / 2) / grid.tokens for j in range(grid.tokens)]
        judged = sum(odd / (1 + odd) * value for odd, value in zip(odds, v, strict=True))
        assert (out[i] - judged).abs().max() < 1e-9


def test_the_sigmoid_takes_queries_in_turns(monkeypatch):
    grid = Grid(9, 5, 2)
    inputs, operator = tensors(grid), create("control", SHAPE, kind="sigmoid")
    whole = operator.mix(*inputs, grid)
    monkeypatch.setattr("linattn.attention.control.SCORES", 1000)
    assert (operator.mix(*inputs, grid) - whole).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "window"}, "control: kind is one of shifted, strided.*not 'window'"),
        ({"side": 0}, "control: side is a whole number from 1 on, not 0"),
        ({"seed": -1}, "control: seed is a whole number from 0 on, not -1"),
    ],
    ids=["kind", "side", "seed"],
)
def test_what_no_control_is_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        create("control", SHAPE, **options)
