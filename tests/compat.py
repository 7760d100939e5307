"""Students of every family by four operators, for the tests of what works after `linearize`."""

import itertools

import kinds
import torch
from torch import nn

import linattn
from linattn import families

OPERATORS = {"linfusion": {}, "clear": {"radius": 2}, "mediator": {"count": 4}, "lit": {}}
PAIRS = list(itertools.product(kinds.KINDS, OPERATORS))


def student(kind, operator, model=None, layers="all"):
    """Convert the model; every weight of its operators is drawn, so that none is silent."""
    model = kinds.model(kind) if model is None else model
    linattn.linearize(model, operator, layers=layers, **OPERATORS[operator])
    return drawn(model)


@torch.no_grad()
def drawn(model):
    """Draw the operators' weights anew, from one seed; those on meta are left."""
    rng = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if f".{families.KEY}." in name and not parameter.is_meta and ".lora_" not in name:
            parameter.normal_(std=0.3, generator=rng)
    return model


@torch.no_grad()
def run(kind, model):
    return kinds.run(model, **kinds.inputs(kind))


def operators(model):
    """List the operators of a model by the names of their layers."""
    return {
        layer.name: layer.operator.name
        for layer in families.layers(model)
        if layer.operator is not None
    }


def linears(model):
    """Name the Linears outside the operators, with their modules."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f".{families.KEY}" not in name
    }
