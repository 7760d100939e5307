"""The Momentum Transformer: the recurrence there and back, its normaliser, and its two limits."""

import papers
import pytest
import torch
from layers import SHAPE, tensors

from linattn.attention import LayerShape, create
from linattn.attention.base import scores
from linattn.attention.grid import Grid

sizes = pytest.mark.parametrize(
    "grid", [Grid(1, 1), Grid(1, 7, 3), Grid(5, 3), Grid(9, 8, 1)], ids=str
)


def pulled(q, k, v, beta, step):
    """By the letter, for one head: p_i = beta p_{i-1} + k_i v_i^T, s_i = s_{i-1} + step p_i."""
    momentum = total = torch.zeros(q.shape[1], v.shape[1], dtype=q.dtype)
    rows = []
    for query, key, value in zip(q, k, v, strict=True):
        momentum = beta * momentum + torch.outer(key, value)
        total = total + step * momentum
        rows.append(query @ total)
    return torch.stack(rows)


def both(q, k, v, beta, step):
    """There and back, and a token's own value once."""
    there = pulled(q, k, v, beta, step)
    back = pulled(q.flip(0), k.flip(0), v.flip(0), beta, step).flip(0)
    return there + back - step * (q * k).sum(1, keepdim=True) * v


def picture_of(q, k, v, beta, step, eps):
    heads = []
    for head in range(q.shape[1]):
        query, key = (papers.elu1(tensor[:, head]) for tensor in (q, k))
        num = both(query, key, v[:, head], beta, step) / len(q)
        den = both(query, key, torch.ones_like(v[:, head]), beta, step) / len(q)
        heads.append(num / (den + eps))
    return torch.stack(heads, 1)


@sizes
@pytest.mark.parametrize(("beta", "step"), [(0.9, 1.0), (0.3, 0.2), (1, 1.0), (0, 1.0)])
def test_momentum_is_the_papers_recurrence_there_and_back(grid, beta, step):
    operator = create("momentum", SHAPE, beta=beta, step=step, eps=0.05).double()
    q, k, v = tensors(grid, batch=1)
    picture = picture_of(*(t[0, grid.text :] for t in (q, k, v)), beta, step, 0.05)
    full = scores(q, k, SHAPE.head_dim**-0.5)[0]
    of_text = torch.einsum("hij,jhd->ihd", full[:, : grid.text].softmax(-1), v[0])
    on_text = full[:, grid.text :, : grid.text].softmax(-1)
    words = torch.einsum("hij,jhd->ihd", on_text, v[0, : grid.text])
    picture = (grid.picture * picture + grid.text * words) / grid.tokens
    out = operator.mix(q, k, v, grid)[0]
    assert (out - torch.cat([of_text, picture])).abs().max() < 1e-9


def test_without_momentum_it_is_linear_attention():
    grid = Grid(9, 13)
    inputs = tensors(grid)
    linear = create("linfusion", SHAPE, hidden=0, eps=1e-6).mix(*inputs, grid)
    out = create("momentum", SHAPE, beta=0).mix(*inputs, grid)
    assert (out - linear).abs().max() < 1e-12


def test_what_is_far_has_more_weight():
    grid = Grid(1, 100)
    q = torch.ones(1, 100, 4, 4, dtype=torch.float64)
    row = create("momentum", SHAPE, eps=0).attention_map(q, q, grid)[0, 0, 50]
    assert row[50] == row.min()
    assert (row[0] / row[50]).item() == pytest.approx(10, rel=1e-2)  # 1 / (1 - 0.9)


@pytest.mark.parametrize("beta", [0.999, 1], ids=str)
def test_a_long_momentum_stays_exact_in_single_precision(beta):
    """s - beta p would lose three digits to the difference of two sums."""
    grid, shape = Grid(64, 48), LayerShape(8, 2, 4)
    operator, inputs = create("momentum", shape, beta=beta), tensors(grid, shape, 1)
    judge = operator.mix(*inputs, grid)
    out = operator.mix(*(tensor.float() for tensor in inputs), grid)
    assert (out - judge).norm() < 1e-6 * judge.norm()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beta": 1.1}, "beta is a number from 0 to 1, not 1.1"),
        ({"beta": -0.1}, "beta is a number from 0 to 1"),
        ({"step": 0}, "step is a number above 0"),
        ({"eps": -1}, "eps is a number from 0 on"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        create("momentum", SHAPE, **options)
