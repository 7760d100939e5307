"""Operators call the kernels' package: each by every path, asked for by name, told of in every
description.
"""

import copy
import importlib

import pytest
import tiny
import torch
from layers import richest

import linattn
from linattn import surgery
from linattn.attention import OPERATORS, LayerShape, create
from linattn_kernels.launch import obstacle

# Operators with kernels, as they are and with most parameters.
KERNELS = [name for name, operator in OPERATORS.items() if operator.max_head_dim is not None]
SMALL = {"mhla": {"tiles": (2, 1)}}  # the interpreter takes 30 s for the default's 16
FORMS = {
    **{name: (name, SMALL.get(name, {})) for name in KERNELS},
    **{f"{name}-richest": (name, richest(name)) for name in KERNELS if richest(name)},
}
# What a path of these operators begins with.
RUNS = {
    "triton": {
        "clear": "window_triton.window",
        "linfusion": "linear_triton.state",
        "mediator": "mediator_triton.gather",
        "lit": "linear_triton.state",
        "sla": "tile_triton.tile",
        "pisa": "tile_triton.tile",
        "edit": "linear_triton.state",
        "mhla": "linear_triton.state",
    },
    "torch": {
        "clear": "small_torch.window_attention",
        "linfusion": "small_torch.linear_attention",
        "mediator": "mediator_torch.mediator_attention",
        "lit": "small_torch.linear_attention",
        "sla": "tile_torch.tile",
        "pisa": "tile_torch.tile",
        "edit": "small_torch.linear_attention",
        "mhla": "small_torch.linear_attention",
    },
}
TRITON = pytest.param(
    "triton",
    marks=pytest.mark.skipif(obstacle(torch.device("cpu")) is not None, reason="interpreter"),
)
each_form = pytest.mark.parametrize("form", FORMS)


def student(form, **more):
    name, options = FORMS[form]
    torch.manual_seed(0)
    return linattn.linearize(tiny.model(layers=1), name, **options, **more)


def slopes(model):
    model.requires_grad_(True)
    tiny.run(model, **tiny.inputs(side=4)).square().sum().backward()
    return {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@each_form
@pytest.mark.parametrize("path", [TRITON, "torch", "reference"])
def test_every_path_gives_the_same_and_the_same_gradients(form, path):
    asked, own = student(form, backend=path), student(form)
    inputs = tiny.inputs(side=4)
    torch.testing.assert_close(
        tiny.run(asked, **inputs), tiny.run(own, **inputs), rtol=1e-4, atol=1e-5
    )
    wanted, found = slopes(own), slopes(asked)
    assert wanted.keys() == found.keys()
    largest = max(
        gradient.abs().max().item() for gradient in wanted.values()
    )  # that of a key's bias is 0 but for noise
    for name in wanted:
        torch.testing.assert_close(
            found[name], wanted[name], rtol=1e-3, atol=1e-6 * largest, msg=name
        )


@pytest.mark.parametrize("form", [form for form in FORMS if FORMS[form][0] in RUNS["torch"]])
@pytest.mark.parametrize("path", [TRITON, "torch"])
def test_the_path_that_is_asked_for_is_the_one_that_runs(form, path, monkeypatch):
    model, ran = student(form, backend=path), set()
    for place in (place for places in RUNS.values() for place in places.values()):
        module, name = place.split(".")
        whole = getattr(importlib.import_module(f"linattn_kernels.{module}"), name)
        monkeypatch.setattr(
            f"linattn_kernels.{place}",
            lambda *given, whole=whole, place=place: (ran.add(place), whole(*given))[1],
        )
    with torch.no_grad():
        tiny.run(model, **tiny.inputs(side=4))
    assert RUNS[path][FORMS[form][0]] in ran
    assert ran <= set(RUNS[path].values())  # sla reads tiles, and linearly
    assert linattn.describe(model)[0]["backend"] == path


@pytest.mark.parametrize("path", [TRITON, "torch", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_form
def test_half_precision_by_every_path(form, path, dtype):
    wanted = tiny.run(student(form), **tiny.inputs(side=4))
    found = tiny.run(student(form, backend=path).to(dtype), **tiny.inputs(side=4, dtype=dtype))
    assert found.dtype == dtype
    assert (found.float() - wanted).norm() < 5e-2 * wanted.norm()


def test_an_operator_without_kernels_has_no_path_to_choose():
    with pytest.raises(ValueError, match="softmax has no kernels to choose among"):
        linattn.linearize(tiny.model(), "softmax", backend="torch")


def test_a_path_that_cannot_run_is_described_and_raises_when_called(monkeypatch):
    model = linattn.linearize(tiny.model(), "lit", backend="triton")
    monkeypatch.setattr("linattn_kernels.launch.obstacle", lambda device: "the tensors are on cpu")
    row = linattn.describe(model)[0]
    assert row["backend"] == "none"
    assert "asked for, but the tensors are on cpu" in row["because"]
    with pytest.raises(RuntimeError, match="the tensors are on cpu"):
        tiny.run(model)


def test_an_unknown_path_is_refused_before_anything_changes():
    model = tiny.model()
    with pytest.raises(ValueError, match="unknown backend 'trition': did you mean 'triton'"):
        linattn.linearize(model, "clear", backend="trition")
    assert all(row["operator"].startswith("softmax") for row in linattn.describe(model))


def test_a_description_says_which_path_and_why():
    model = linattn.linearize(tiny.model(), "linfusion", layers=[0], backend="reference")
    assert surgery.backends(model) == {
        "transformer_blocks.0.attn1": "reference: asked for",
        "transformer_blocks.1.attn1": "torch: not linearised",
    }
    linattn.linearize(model, "softmax", layers=[1])
    assert (
        surgery.backends(model)["transformer_blocks.1.attn1"] == "torch: PyTorch's own operations"
    )


def test_a_folder_holds_no_path_and_load_takes_one(tmp_path):
    linattn.save(linattn.linearize(tiny.model(), "lit", backend="reference"), tmp_path)
    assert "reference" not in (tmp_path / "linattn.json").read_text()
    assert linattn.describe(linattn.load(tiny.model(), tmp_path))[0]["backend"] == "torch"
    assert (
        linattn.describe(linattn.load(tiny.model(), tmp_path, backend="reference"))[0]["backend"]
        == "reference"
    )
    with pytest.raises(ValueError, match="unknown backend"):
        linattn.load(tiny.model(), tmp_path, backend="cuda")


def test_a_copy_keeps_what_was_asked_for():
    assert (
        linattn.describe(copy.deepcopy(student("lit", backend="reference")))[0]["backend"]
        == "reference"
    )


@pytest.mark.parametrize(
    ("name", "dim"), [("linfusion", 289), ("lit", 73), ("clear", 161), ("mediator", 161)]
)
def test_heads_too_wide_for_the_kernels_are_named(name, dim, monkeypatch):
    """LiT is asked for one head of 292 channels here."""
    operator = create(name, LayerShape(4 * dim, 4, dim), **({"heads": 1} if name == "lit" else {}))
    assert operator.runs(torch.device("cpu"), torch.float32).path == "torch"
    monkeypatch.setattr("linattn_kernels.launch.obstacle", lambda device: None)
    runs = operator.runs(torch.device("cuda"), torch.bfloat16)
    assert runs.path == "torch"
    assert "wider than the kernels'" in runs.reason
    narrow = create(name, LayerShape(4 * 64, 4, 64))
    assert narrow.runs(torch.device("cuda"), torch.bfloat16).path == "triton"
