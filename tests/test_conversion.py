"""One student and one seed are one model, whoever asks for it."""

import copy
import dataclasses

import kinds
import pytest
import tiny
import torch

import linattn
from linattn import attention, families, surgery
from linattn.attention.policies import PROJECTIONS, Policy
from linattn.distillation import distill
from linattn.distillation.config import DistillConfig
from linattn.params import Student
from linattn.surgery.conversion import converted, loaded
from linattn.testing import students

ENTRY = Student(operator="lit", layers=("first:1",), initialise="mlp_only", options={"kernel": 3})


def same(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def test_fresh_weights_are_the_seeds_and_no_other_draw_is_disturbed():
    model = tiny.model()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    made = converted(model, ENTRY, 1)
    assert torch.equal(torch.rand(3), wanted)
    assert same(made, converted(model, ENTRY, 1))
    assert not same(made, converted(model, ENTRY, 2))


def test_it_is_what_linearize_makes_under_that_seed():
    torch.manual_seed(1)
    wanted = surgery.linearize(
        tiny.model(), "lit", layers="first:1", initialise="mlp_only", kernel=3
    )
    assert same(converted(tiny.model(), ENTRY, 1), wanted)


def test_distillation_begins_with_it():
    config = DistillConfig("lit", {"kernel": 3}, layers=["first:1"], initialise="mlp_only", seed=1)
    assert same(distill.convert(tiny.model(), config), converted(tiny.model(), ENTRY, 1))


def test_the_model_is_left_as_it_was_and_nothing_of_the_copy_learns():
    model = tiny.model().train()
    made = converted(model, ENTRY, 0)
    assert not any(layer.operator for layer in families.layers(model))
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in made.parameters())
    assert not any(module.training for module in made.modules())


def test_layers_that_do_not_exist_are_refused_by_name():
    with pytest.raises(ValueError, match="first:9"):
        converted(tiny.model(), dataclasses.replace(ENTRY, layers="first:9"), 0)


@pytest.fixture
def copying(monkeypatch):
    """A policy that writes the mean of what a layer saw into the bias of its output."""
    seen = {}

    def fit(operator, attn, activations):
        seen[operator.shape.index] = activations
        attn.to_out[0].bias.data.copy_(activations.x.mean((0, 1)))

    monkeypatch.setitem(attention.POLICIES, "copying", Policy(PROJECTIONS, fit))
    return seen


def run(model):
    return model(**tiny.inputs())


def test_a_policy_that_starts_from_data_sees_the_layer_that_is_replaced(copying):
    teacher = tiny.model()
    with torch.no_grad(), families.capture(teacher) as calls:
        run(teacher)
    wanted = [(call["input"], call["output"]) for call in calls]
    student = linattn.linearize(copy.deepcopy(teacher), "lit", initialise="copying", data=run)
    for index, (x, output) in enumerate(wanted):
        assert torch.equal(copying[index].x, x)
        assert torch.equal(copying[index].output, output)
    bias = families.layers(student)[0].attn.to_out[0].bias
    assert torch.allclose(bias, wanted[0][0].mean((0, 1)))


def test_a_second_conversion_starts_from_the_teachers_activations_too(copying):
    student = linattn.linearize(tiny.model(), "clear", radius=1)
    linattn.linearize(student, "lit", layers=[1], initialise="copying", data=run)
    again = copying[1].x
    linattn.linearize(tiny.model(), "lit", layers=[1], initialise="copying", data=run)
    assert torch.equal(again, copying[1].x)


def test_a_policy_keeps_projections_that_there_are():
    with pytest.raises(ValueError, match="policy keeps: 'to_kk': did you mean 'to_k'"):
        Policy(("to_kk",))


def test_without_data_such_a_policy_is_refused_and_nothing_changes(copying):
    model = tiny.model()
    with pytest.raises(ValueError, match="pass data=lambda model"):
        linattn.linearize(model, "lit", initialise="copying")
    with pytest.raises(ValueError, match="ran no forward"):
        linattn.linearize(model, "lit", initialise="copying", data=lambda model: None)
    assert all(layer.operator is None for layer in families.layers(model))


def test_a_training_with_such_a_policy_starts_from_its_first_batch(copying):
    config = DistillConfig(
        "lit", {"kernel": 3}, initialise="copying", layerwise_steps=0, steps=0, batch=4
    )
    teacher = students.teacher()
    result = distill.distill(config, teacher, students.Pictures())
    assert copying[0].x.shape[0] == config.batch
    bias = families.layers(result.model)[0].attn.to_out[0].bias
    assert torch.equal(bias, copying[0].x.mean((0, 1)))


# Memory of a copy
# ---------------------------------------------------------------------------------------------


def stored(model):
    """Return where every tensor of a model lies, by name."""
    state = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.untyped_storage().data_ptr() for name, tensor in state}


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_student_shares_all_that_lies_outside_its_self_attentions(kind):
    model = kinds.model(kind)
    entry = Student(operator="linfusion", layers=("first:1",))
    ours, theirs = stored(converted(model, entry, 0)), stored(model)
    inside = tuple(f"{layer.name}." for layer in families.layers(model))
    for name, place in theirs.items():
        assert (ours[name] == place) == (not name.startswith(inside)), name


def test_a_copy_that_trains_every_weight_shares_nothing():
    model = tiny.model()
    ours = stored(converted(model, ENTRY, 0, shares=False))
    assert not set(stored(model).values()) & set(ours.values())


def test_a_shared_student_converts_and_restores_without_a_change_of_its_teacher():
    model = tiny.model()
    before = copy.deepcopy(model)
    made = converted(model, ENTRY, 0)
    linattn.linearize(made, "linfusion", layers=[1])
    linattn.restore(made)
    assert same(made, before)
    assert same(model, before)


@pytest.mark.parametrize("trains", ["attention", "all"])
def test_a_student_of_a_folder_shares_what_the_folder_does_not_hold(trains, tmp_path):
    teacher = students.teacher()
    config = DistillConfig("linfusion", layerwise_steps=1, steps=2, batch=4, trains=trains)
    trained = distill.distill(config, teacher, students.Pictures(), folder=tmp_path)
    before = copy.deepcopy(teacher.model)
    student = loaded(teacher.model, tmp_path)
    assert same(student, trained.model)
    assert same(teacher.model, before)
    shared = set(stored(student).values()) & set(stored(teacher.model).values())
    of_parameters = {p.untyped_storage().data_ptr() for p in teacher.model.parameters()}
    assert bool(shared & of_parameters) == (trains == "attention")
