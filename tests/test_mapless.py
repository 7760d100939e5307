"""Operators whose output is no matrix times v, and definitions that depend on hidden states."""

import re
import types

import pytest
import tiny
import torch
from torch import nn

import linattn
from linattn import explore, families
from linattn.attention import LayerShape, Operator
from linattn.attention.grid import Grid
from linattn.evaluation import diagnostics
from linattn.testing import CONTRACT, Form, contract, registered, students
from linattn.testing.form import SHAPE, hidden, tensors


class Gated(Operator):
    """The values' mean behind a sigmoid of them and of the hidden states: no matrix times v."""

    name = "gated"
    has_map = False

    def __init__(self, shape: LayerShape, **options):
        super().__init__(shape, **options)
        self.gate = nn.Parameter(torch.zeros(shape.width, 1))

    def core(self, q, k, v, grid, x, values):
        mean = (v * v.sigmoid()).mean(1, keepdim=True).expand_as(v) + 0 * (q + k)
        return mean * self.openings(x, v)

    def openings(self, x, v):
        if x is None:
            return v.new_full((1, 1, 1, 1), 0.5)
        return (x @ self.gate.to(x)).sigmoid().mean(1)[:, :, None, None]

    def defined(self, q, k, v, grid, x, values):
        out = torch.zeros_like(v)
        for token in range(grid.tokens):
            out = out + v[:, token : token + 1] / (1 + (-v[:, token : token + 1]).exp())
        return out / grid.tokens * self.openings(x, v) + 0 * (q + k)

    def cost(self, grid, values):
        return grid.tokens * self.shape.width


@pytest.fixture(autouse=True)
def _gated():
    with registered(Gated):
        yield


@pytest.mark.parametrize("name", CONTRACT)
def test_an_operator_without_a_map_holds(name):
    CONTRACT[name](Form(Gated))


@pytest.mark.parametrize("backbone", ["dit", "flux"])
def test_its_layers_are_its_definition(backbone):
    students.layers_are_the_definition(Form(Gated), backbone)


def test_a_definition_without_the_hidden_states_is_noticed(monkeypatch):
    whole = Gated.defined
    monkeypatch.setattr(
        Gated, "defined", lambda self, q, k, v, grid, x, values: whole(self, q, k, v, grid, None, 0)
    )
    with pytest.raises(AssertionError, match="differs from its definition"):
        contract.mix_is_its_definition(Form(Gated))
    with pytest.raises(AssertionError, match="differs from its definition"):
        students.layers_are_the_definition(Form(Gated), "flux")


def test_a_map_that_should_not_be_there_is_noticed(monkeypatch):
    monkeypatch.setattr(Gated, "attention_map", lambda self, *arguments: 0)
    with pytest.raises(AssertionError, match="gated says has_map = False, and attention_map gives"):
        contract.the_map_is_the_definition(Form(Gated))


def test_a_map_that_is_not_the_definition_is_noticed():
    class Doubled(Gated):
        name = "doubled"
        has_map = True

        def dense(self, q, k, grid, values):
            return q.new_ones(2, 4, grid.tokens, grid.tokens)

    with pytest.raises(AssertionError, match="map @ v on Grid.* differs"):
        contract.the_map_is_the_definition(Form(Doubled))


def test_dense_reads_the_hidden_states_in_the_batchs_order():
    class Weighted(Operator):
        name = "weighted"
        table = {"power": linattn.attention.options.number(1)}

        def dense(self, q, k, grid, values):
            row = values.x.mean(2)[:, None, None] ** values.power
            return row.expand(-1, 4, grid.tokens, -1)

    grid = Grid(2, 3, 1)
    operator = Weighted(SHAPE, schedule=[{"until": 0.5, "power": 2}])
    q, k, _ = tensors(grid)
    x = hidden(grid)
    weights = operator.attention_map(q, k, grid, x, torch.tensor([0.9, 0.1]))
    assert torch.equal(weights[0, 0, 0], x[0].mean(1) ** 2)
    assert torch.equal(weights[1, 0, 0], x[1].mean(1))


SAYS = re.escape("gated has no attention map, since its output is no matrix times v")


@pytest.fixture
def model():
    made = linattn.linearize(tiny.model(), "gated", layers=[1])

    def runs(*_):
        raise AssertionError("the model ran before it was refused")

    made.register_forward_pre_hook(runs)
    return made


def test_who_looks_at_the_map_is_refused_before_the_model_runs(model):
    with pytest.raises(ValueError, match=SAYS):
        linattn.attention_map(model, 1, **tiny.inputs())
    layer = families.layers(model)[1]
    with pytest.raises(ValueError, match=SAYS):
        families.attention_map(layer, torch.zeros(1, 64, 32), Grid(8, 8))
    families.require_map(families.layers(model)[0])


def test_the_explorer_refuses_a_layer_without_a_map(model):
    trace = types.SimpleNamespace(steps=1, grid=Grid(8, 8), inputs=[tiny.inputs()])
    with pytest.raises(ValueError, match=SAYS):
        explore.attention(model, trace, step=0, layer=1, token=0)


def test_an_anatomy_refuses_a_layer_without_a_map(model):
    latents, labels = torch.randn(1, 4, 8, 8), torch.tensor([1])
    with pytest.raises(ValueError, match=SAYS):
        diagnostics.layer_maps(tiny.pipeline(), latents, 3, labels, model=model)
