"""New weights begin on a line in depth, and are free afterwards."""

import dataclasses

import numpy as np
import pytest
import tiny
import torch
from test_distill import TINY, TinyData, TinyTeacher, differing, tiny_teacher, weights

from linattn import linearize, surgery
from linattn.distillation import depth
from linattn.distillation.distill import distill

LINEAR = dataclasses.replace(
    TINY, start="linear_in_depth", layerwise_steps=0, checkpoint_every=1, optimizer="adamw"
)


def deep_teacher():
    """Return a teacher of four layers."""
    return TinyTeacher(tiny.model(layers=4, side=6), tiny_teacher().diffusion)


def test_the_line_is_that_of_least_squares():
    rng = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, 3, generator=rng) for _ in range(4)]
    depths = (0.25, 0.5, 0.75, 1.0)
    held = [weight.clone() for weight in drawn]
    depth.line(held, depths)
    for row in range(2):
        for column in range(3):
            values = [weight[row, column].item() for weight in drawn]
            slope, start = np.polyfit(depths, values, 1)
            on_line = [start + slope * at for at in depths]
            assert [weight[row, column].item() for weight in held] == pytest.approx(
                on_line, abs=1e-6
            )


def test_a_line_stays_as_it_is():
    weights = [2.0 + 3.0 * torch.full((1,), at) for at in (0.5, 0.75, 1.0)]
    before = [weight.clone() for weight in weights]
    depth.line(weights, (0.5, 0.75, 1.0))
    torch.testing.assert_close(weights, before)


def test_a_role_is_one_new_weight_in_every_layer():
    model = linearize(tiny.model(layers=4), "linfusion", layers=[0, 1, 3])
    listed = depth.roles(model)
    names = [name for role in listed for name in role.names]
    assert sorted(names) == sorted(name for name, _ in surgery.new_parameters(model))
    assert {role.depths for role in listed} == {(0.25, 0.5, 1.0)}
    assert all(len({name.partition(".linattn.")[2] for name in role.names}) == 1 for role in listed)
    assert depth.roles(linearize(tiny.model(layers=2), "linfusion")) == []


def distance_to_line(model):
    """Return the largest distance of the new weights to their line in depth."""
    named, distances = dict(model.named_parameters()), []
    for role in depth.roles(model):
        new = torch.stack([named[name].detach() for name in role.names])
        held = new.clone()
        depth.line(list(held), role.depths)
        distances.append((new - held).abs().max().item())
    return max(distances)


def test_a_fifth_of_the_steps_is_on_the_line_and_the_rest_is_free(monkeypatch):
    seen = []
    hold = depth.hold
    monkeypatch.setattr(depth, "hold", lambda *args: seen.append(1) or hold(*args))
    both = dataclasses.replace(LINEAR, layerwise_steps=4, steps=11)
    free = distill(both, deep_teacher(), TinyData()).model
    assert len(seen) == depth.steps_of("linear_in_depth", 15) == 3
    assert distance_to_line(free) > 1e-4
    assert depth.steps_of("free", 15) == 0


def test_training_on_the_line_differs_from_training_without(monkeypatch):
    config = dataclasses.replace(LINEAR, steps=5)
    free = distill(dataclasses.replace(config, start="free"), deep_teacher(), TinyData())
    held = distill(config, deep_teacher(), TinyData())
    assert not differing(weights(free.model), weights(held.model))  # zeros are on every line
    monkeypatch.setattr(depth, "SHARE", 1.0)
    held = distill(config, deep_teacher(), TinyData())
    assert differing(weights(free.model), weights(held.model))
