"""Density: the weights that softmax computes, as a share of dense attention's."""

import pytest
import tiny
import torch

from linattn import attention, families, surgery
from linattn.attention.base import LayerShape
from linattn.attention.grid import Grid
from linattn.evaluation import costs
from linattn.evaluation.density import density
from linattn.testing import models
from linattn.testing.contract import density_is_of_the_map
from linattn.testing.form import Form

GRIDS = [Grid(8, 8), Grid(9, 13, 3), Grid(1, 1)]


def operator(name, **options):
    return attention.create(name, LayerShape(16, 2, 8, has_text=True), **options)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("softmax", {}),
        ("softmax", {"conv": 3}),
        ("clear", {"radius": 3}),
        ("clear", {"radius": 0.5}),
    ],
)
def test_a_softmax_over_tokens_is_as_dense_as_its_map(name, options, grid):
    replacement = operator(name, **options)
    q, k = (torch.randn(1, grid.tokens, 2, 8) for _ in range(2))
    entries = int((replacement.attention_map(q, k, grid)[0, 0] > 0).sum())
    assert replacement.density(grid) == entries / grid.tokens**2


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_what_computes_no_softmax_has_density_zero(grid):
    assert operator("linfusion").density(grid) == 0
    assert operator("lit", heads=1).density(grid) == 0


def test_exact_text_is_what_linear_attention_reads_by_softmax():
    grid = Grid(9, 13, 3)
    read = 3 * 120 + 117 * 3  # the text's queries on all tokens, the picture's on the text
    for replacement in (operator("linfusion", text="exact"), operator("lit", text="exact")):
        assert replacement.density(grid) == read / 120**2


def test_both_softmaxes_of_the_mediators_count():
    assert operator("mediator", count=9).density(Grid(8, 8)) == 2 * 9 / 64


def test_pooled_keys_count_as_keys():
    near, pooled = operator("clear", radius=2), operator("clear", radius=2, pool=4)
    assert pooled.density(Grid(8, 8)) - near.density(Grid(8, 8)) == pytest.approx(4 / 64)


def test_a_density_follows_the_noise():
    scheduled = operator("mediator", schedule=[{"until": 0.5, "count": 4}], count=16)
    assert scheduled.density(Grid(8, 8), 0.9) == 2 * 4 / 64
    assert scheduled.density(Grid(8, 8), 0.1) == 2 * 16 / 64


def model_and_grids(name=None, **options):
    pipe = tiny.pipeline()
    if name:
        surgery.linearize(pipe, name, **options)
    model = pipe.transformer
    with torch.no_grad():
        return model, families.grids(model, **costs.example(model))


def test_a_dense_model_has_density_one():
    assert density(*model_and_grids()) == 1


def test_a_models_density_is_the_mean_over_its_equal_layers():
    model, grids = model_and_grids("clear", radius=2, layers=[0])
    replaced = families.layers(model)[0].operator.density(grids[0])
    assert 0 < replaced < 1
    assert density(model, grids) == pytest.approx((replaced + len(grids) - 1) / len(grids))


def test_layers_weigh_by_their_heads_and_the_square_of_their_tokens():
    model = models.unet(attention_head_dim=(2, 8))  # as UNets call the number of heads
    surgery.linearize(model, "linfusion", layers=[0])
    with torch.no_grad():
        grids = families.grids(model, **costs.example(model))
    heads = [layer.shape.heads for layer in families.layers(model)]
    weights = [count * grid.tokens**2 for count, grid in zip(heads, grids, strict=True)]
    assert set(heads) == {2, 8}
    assert density(model, grids) == pytest.approx(1 - weights[0] / sum(weights))


def test_a_models_density_is_that_of_a_noise_level():
    schedule = [{"until": 0.5, "count": 4}]
    model, grids = model_and_grids("mediator", schedule=schedule, count=16)
    for noise, count in ((0.9, 4), (0.1, 16)):
        assert density(model, grids, noise) == pytest.approx(2 * count / grids[0].tokens)


def test_a_model_of_an_operator_that_does_not_know_its_pairs_has_none(monkeypatch):
    model, grids = model_and_grids("linfusion")
    monkeypatch.setattr(attention.OPERATORS["linfusion"], "pairs", attention.Operator.pairs)
    assert density(model, grids) is None


def pairs_of(count):
    """Return CLEAR with another count of pairs, whose cost is still right."""
    clear = attention.OPERATORS["clear"]

    class Miscounted(clear):
        def cost(self, grid, values):
            return 2 * clear.pairs(self, grid, values) * self.shape.channels

        def pairs(self, grid, values):
            return count(clear.pairs(self, grid, values))

    return Form(Miscounted, "", {"radius": 3})


@pytest.mark.parametrize(
    ("count", "says"),
    [
        (lambda pairs: pairs - 1, r"pairs is \d+, and the map has \d+"),
        (lambda pairs: pairs + 1, "softmax weights that cost counts"),
        (lambda pairs: float(pairs), "must be a whole number"),
    ],
)
def test_a_miscounted_density_is_named(count, says):
    density_is_of_the_map(pairs_of(lambda pairs: pairs))
    with pytest.raises(AssertionError, match=says):
        density_is_of_the_map(pairs_of(count))
