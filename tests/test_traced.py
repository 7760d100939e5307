"""Whole students as one graph: torch.export and torch.compile(fullgraph=True)."""

import kinds
import pytest
import torch

import linattn

SCHEDULE = {"count": 16, "schedule": [{"until": 0.5, "count": 4}]}


def inputs(kind):
    """Return arguments of the forward; FLUX's grid is handed down."""
    arguments = kinds.inputs(kind)
    if kind == "flux":
        arguments["joint_attention_kwargs"] = {"linattn": linattn.Grid(8, 8, 5)}
    return arguments


@torch.no_grad()
def exported(model, arguments):
    program = torch.export.export(model, (), {**arguments, "return_dict": False})
    return program.module()(**arguments, return_dict=False)[0]


@torch.no_grad()
def compiled(model, arguments, **options):
    torch._dynamo.reset()
    return torch.compile(model, **options)(**arguments, return_dict=False)[0]


@pytest.mark.parametrize("kind", ["dit", "unet", "flux", "qwen"])
def test_a_whole_student_is_one_graph(kind):
    model = linattn.linearize(kinds.model(kind), "clear", radius=2)
    with torch.no_grad():
        wanted = kinds.run(model, **inputs(kind))
    whole = compiled(model, inputs(kind), fullgraph=True, backend="eager")
    torch.testing.assert_close(whole, wanted)
    torch.testing.assert_close(exported(model, inputs(kind)), wanted)


@pytest.mark.parametrize("kind", ["dit", "flux"])
def test_a_schedule_is_exported_with_all_entries(kind):
    """The times of the two pictures lie on both sides of the entry, as the assertion sees."""
    model = linattn.linearize(kinds.model(kind), "mediator", **SCHEDULE)
    arguments = inputs(kind)
    steps = 1000 if kind == "dit" else 1
    arguments["timestep"] = torch.tensor([0.9, 0.1]) * steps
    with torch.no_grad():
        wanted = kinds.run(model, **arguments)
        plain = linattn.linearize(kinds.model(kind), "mediator", count=16)
        other = kinds.run(plain, **arguments)
    torch.testing.assert_close(other[1], wanted[1])
    assert not torch.allclose(other[0], wanted[0], atol=1e-3)
    torch.testing.assert_close(exported(model, arguments), wanted)


def test_one_noise_for_all_pictures_is_exported_too():
    model = linattn.linearize(kinds.model("dit"), "mediator", **SCHEDULE)
    arguments = {**inputs("dit"), "timestep": torch.tensor([800, 800])}
    with torch.no_grad():
        torch.testing.assert_close(exported(model, arguments), kinds.run(model, **arguments))


def test_a_schedule_compiles_with_a_break_and_says_what_to_do_without():
    model = linattn.linearize(kinds.model("dit"), "mediator", **SCHEDULE)
    with torch.no_grad():
        wanted = kinds.run(model, **inputs("dit"))
    torch.testing.assert_close(compiled(model, inputs("dit"), backend="eager"), wanted)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="compile without fullgraph=True"):
        compiled(model, inputs("dit"), fullgraph=True, backend="eager")


def test_flux_without_its_grid_compiles_with_a_break_and_says_what_to_do_without():
    model = linattn.linearize(kinds.model("flux"), "clear", radius=2)
    bare = kinds.inputs("flux")
    with torch.no_grad():
        wanted = kinds.run(model, **bare)
    torch.testing.assert_close(compiled(model, bare, backend="eager"), wanted)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"linattn\.Grid\(height, width, text"):
        compiled(model, bare, fullgraph=True, backend="eager")
    with pytest.raises(ValueError, match=r"linattn\.Grid\(height, width, text"):
        exported(model, bare)


def test_a_grid_that_is_handed_down_must_hold_the_tokens():
    model = linattn.linearize(kinds.model("flux"), "clear", radius=2)
    wrong = {**inputs("flux"), "joint_attention_kwargs": {"linattn": linattn.Grid(8, 4, 5)}}
    with pytest.raises(ValueError, match="does not fit Grid"):
        kinds.run(model, **wrong)
