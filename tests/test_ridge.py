"""Ridge regression: the linear map from keys to values that errs least."""

import math

import pytest
import torch
from layers import SHAPE, shaken, tensors

from linattn.attention import create
from linattn.attention.grid import Grid
from linattn.attention.ridge import LEAST

sizes = pytest.mark.parametrize(
    "grid", [Grid(1, 1), Grid(1, 7, 3), Grid(5, 3), Grid(4, 6, 2)], ids=str
)


def direction(x):
    silu = x / (1 + (-x).exp())
    return silu / (silu @ silu) ** 0.5


def formula(q, k, v, lambdas):
    """Compute ridge regression key by key: q, k, v (tokens, heads, head_dim) of one picture."""
    tokens, heads, dim = q.shape
    out = torch.zeros_like(v)
    for h in range(heads):
        system = lambdas[h] * tokens * torch.eye(dim, dtype=q.dtype)
        moment = torch.zeros(dim, dim, dtype=q.dtype)
        for key, value in zip(k[:, h], v[:, h], strict=True):
            system += torch.outer(direction(key), direction(key))
            moment += torch.outer(direction(key), value)
        for i in range(tokens):
            out[i, h] = direction(q[i, h]) @ torch.linalg.lstsq(system, moment).solution
    return out


@sizes
@pytest.mark.parametrize("strength", [0.001, 0.5])
def test_is_the_formula(grid, strength):
    operator = shaken(create("ridge", SHAPE, strength=strength))
    # softplus(offset + its inverse of what strength is above LEAST)
    odds = operator.offset.detach().exp() * math.expm1(strength - LEAST)
    q, k, v = tensors(grid, batch=1)
    judge = formula(q[0], k[0], v[0], LEAST + odds.log1p())
    assert (operator.mix(q, k, v, grid)[0] - judge).abs().max() < 1e-9


@pytest.mark.parametrize("strength", [0.001, 0.01, 3, 1e4])
def test_every_head_starts_at_the_strength(strength):
    operator = create("ridge", SHAPE, strength=strength).double()
    torch.testing.assert_close(
        operator.lambdas(operator.values, torch.float64).detach(),
        torch.full((SHAPE.heads,), strength, dtype=torch.float64),
    )


def test_tokens_may_be_permuted_and_doubled():
    """Neither order nor number matters: lambda grows with the tokens."""
    grid, operator = Grid(5, 6, 2), shaken(create("ridge", SHAPE))
    inputs, order = tensors(grid), torch.randperm(32)
    out = operator.mix(*inputs, grid)
    moved = operator.mix(*(tensor[:, order] for tensor in inputs), grid)
    twice = operator.mix(*(tensor.repeat(1, 2, 1, 1) for tensor in inputs), Grid(8, 8))
    assert (moved - out[:, order]).abs().max() < 1e-12
    assert (twice[:, : grid.tokens] - out).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_equal_keys_under_the_least_lambda_stay_finite_and_give_the_mean(dtype):
    """The system is then as near to singular as it can be."""
    grid, operator = Grid(16, 16), create("ridge", SHAPE)
    with torch.no_grad():
        operator.offset.fill_(-50)
    q, _, v = tensors(grid, dtype=dtype)
    q = k = q[:, :1].expand_as(q)
    out = operator.to(dtype).mix(q, k, v, grid).float()
    assert (out - v.float().mean(1, keepdim=True)).abs().max() < 2e-3


def test_a_token_of_zeros_reads_nothing():
    grid, operator = Grid(3, 3), create("ridge", SHAPE)
    q, k, v = tensors(grid)
    q[:, 0] = k[:, 4] = 0
    assert not operator.mix(q, k, v, grid)[:, 0].any()
    assert (operator.mix(q, k, v, grid) - operator.definition(q, k, v, grid)).abs().max() < 1e-12


@pytest.mark.parametrize("strength", [0, LEAST, -0.1, float("nan"), True, "0.01"], ids=str)
def test_a_strength_that_float32_cannot_resolve_is_refused(strength):
    with pytest.raises(ValueError, match=r"ridge: strength is a number above 0\.0001, not"):
        create("ridge", SHAPE, strength=strength)
