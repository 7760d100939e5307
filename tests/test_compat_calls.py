"""Calls of diffusers that must not turn a student back, nor write it as what it is not."""

import copy

import compat
import kinds
import pytest
import torch
from compat import PAIRS
from diffusers import ContextParallelConfig, StableDiffusionImg2ImgPipeline
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry as Registry,
)

import linattn
from linattn import families

MATH = AttentionBackendName("_native_math")
# the families whose layers ask for a backend; those of DiT, PixArt, UNets and SD3 call PyTorch's
ASKING = ("flux", "qwen")


@pytest.fixture
def calls(monkeypatch):
    """Count the calls of one backend, and give the process its default back."""
    counted, backend = [], Registry._backends[MATH]

    def counting(*args, **kwargs):
        counted.append(args)
        return backend(*args, **kwargs)

    monkeypatch.setitem(Registry._backends, MATH, counting)
    monkeypatch.setattr(Registry, "_active_backend", Registry._active_backend)
    return counted


@pytest.mark.parametrize(("kind", "operator"), PAIRS)
def test_a_backend_is_chosen_for_the_layers_that_stay_and_for_them_alone(kind, operator, calls):
    model = compat.student(kind, operator, layers="every:2")
    operators, wanted = compat.operators(model), compat.run(kind, model)
    model.set_attention_backend(MATH.value)
    out = compat.run(kind, model)
    torch.testing.assert_close(out, wanted)
    stay = len(families.layers(model)) - len(operators)
    assert len(calls) == (stay if kind in ASKING else 0)
    assert compat.operators(model) == operators
    model.reset_attention_backend()
    assert compat.operators(model) == operators


@pytest.mark.parametrize(("kind", "operator"), PAIRS)
def test_no_backend_turns_a_student_back(kind, operator, calls):
    model = compat.student(kind, operator)
    operators, wanted = compat.operators(model), compat.run(kind, model)
    model.set_attention_backend(MATH.value)
    for layer in families.layers(model):
        if hasattr(layer.attn, "set_attention_backend"):
            layer.attn.set_attention_backend(MATH.value)
    assert torch.equal(compat.run(kind, model), wanted)
    assert not calls
    assert compat.operators(model) == operators


def test_a_backend_that_was_chosen_before_stays_where_softmax_stays(calls):
    model = kinds.model("flux")
    model.set_attention_backend(MATH.value)
    compat.student("flux", "clear", model, layers=[0])
    compat.run("flux", model)
    assert len(calls) == len(families.layers(model)) - 1
    calls.clear()
    compat.run("flux", linattn.restore(model))
    assert len(calls) == len(families.layers(model))


@pytest.mark.parametrize(("kind", "operator"), PAIRS)
def test_parallelism_is_refused_by_name_before_anything_changes(kind, operator):
    """It split the tokens, and a layer met a grid that they do not fill."""
    model = compat.student(kind, operator)
    wanted = compat.run(kind, model)
    for student in (model, copy.deepcopy(model)):
        with pytest.raises(ValueError, match=r"enable_parallelism is not supported.*restore"):
            student.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    assert torch.equal(compat.run(kind, model), wanted)
    linattn.restore(model)
    with pytest.raises(RuntimeError, match=r"torch\.distributed"):  # the class has its own again
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))


def test_a_model_that_is_split_among_gpus_is_refused():
    model = kinds.model("flux")
    model._parallel_config = ContextParallelConfig(ulysses_degree=2)  # as enable_parallelism does
    with pytest.raises(ValueError, match="load the model without parallel_config"):
        linattn.linearize(model, "lit")
    assert not compat.operators(model)


def converted(holder):
    """Return a pipeline that holds a student, and what was converted."""
    pipe = kinds.pipeline("unet")
    linattn.linearize(pipe if holder == "pipeline" else pipe.unet, "lit")
    if holder == "another":
        parts = {**pipe.components, "requires_safety_checker": False}
        return StableDiffusionImg2ImgPipeline(**parts)
    if holder == "copy":
        pipe.unet = copy.deepcopy(pipe.unet)
    return pipe


@pytest.mark.parametrize("holder", ["pipeline", "model", "another", "copy"])
@pytest.mark.parametrize("name", ["save_pretrained", "push_to_hub"])
def test_a_pipeline_that_holds_a_student_refuses_before_it_writes(name, holder, tmp_path):
    """Its VAE and text encoder were written before its UNet refused."""
    pipe = converted(holder)
    folder = tmp_path / "folder"
    with pytest.raises(ValueError, match=r"linattn\.save"):
        getattr(pipe, name)(str(folder))
    with pytest.raises(ValueError, match=r"linattn\.save"):
        getattr(pipe.unet, name)(str(folder))
    assert not folder.exists()


def test_a_student_travels_beside_its_base(tmp_path):
    pipe = converted("pipeline")
    wanted = compat.run("unet", compat.drawn(pipe.unet))
    linattn.save(pipe, tmp_path / "student")
    linattn.restore(pipe)
    pipe.save_pretrained(tmp_path / "base")
    again = type(pipe).from_pretrained(tmp_path / "base")
    assert torch.equal(compat.run("unet", linattn.load(again, tmp_path / "student").unet), wanted)


def test_pipelines_without_a_student_are_saved_as_ever(tmp_path):
    converted("pipeline")
    kinds.pipeline("unet").save_pretrained(tmp_path / "base")
    assert {path.name for path in (tmp_path / "base").iterdir()} >= {"unet", "vae"}
