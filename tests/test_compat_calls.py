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
from diffusers.models.attention_processor import AttnProcessor2_0

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
@pytest.mark.parametrize("name", ["save_pretrained", "push_to_hub", "save_config"])
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


# Processors and adapters
# ---------------------------------------------------------------------------------------------


TAKERS = {
    "enable_attention_slicing": lambda pipe: pipe.enable_attention_slicing(),
    "disable_attention_slicing": lambda pipe: pipe.disable_attention_slicing(),
    "disable_xformers": lambda pipe: pipe.disable_xformers_memory_efficient_attention(),
    "fuse_qkv_projections": lambda pipe: pipe.unet.fuse_qkv_projections(),
    "set_attn_processor": lambda pipe: pipe.unet.set_attn_processor(AttnProcessor2_0()),
}


@pytest.mark.parametrize("name", TAKERS)
def test_a_student_that_lost_its_processors_comes_back(name):
    pipe = kinds.pipeline("unet")
    compat.student("unet", "clear", pipe.unet)
    wanted = compat.run("unet", pipe.unet)
    TAKERS[name](pipe)
    with pytest.raises(RuntimeError, match=r"call linattn\.reattach\(model\)"):
        compat.run("unet", pipe.unet)
    assert linattn.reattach(pipe) is pipe
    # the layers that were not replaced keep what they were given, which rounds otherwise
    torch.testing.assert_close(compat.run("unet", pipe.unet), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["unet", "sd3", "flux", "qwen"])
def test_a_student_is_one_again_after_fusing_and_unfusing(kind):
    model = compat.student(kind, "clear")
    wanted = compat.run(kind, model)
    model.fuse_qkv_projections()
    model.unfuse_qkv_projections()
    assert torch.equal(compat.run(kind, model), wanted)


def test_the_default_processor_is_not_set_on_a_student():
    model = compat.student("unet", "clear")
    wanted = compat.run("unet", model)
    with pytest.raises(ValueError, match="Cannot call `set_default_attn_processor`"):
        model.set_default_attn_processor()
    assert torch.equal(compat.run("unet", model), wanted)


def test_only_students_are_reattached():
    with pytest.raises(ValueError, match=r"has no operator: call linattn\.linearize"):
        linattn.reattach(kinds.model("dit"))


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_an_adapter_that_is_a_joint_attention_is_refused_before_it_is_loaded(kind, tmp_path):
    pipe = linattn.linearize(kinds.pipeline(kind), "clear", radius=2)
    wanted = compat.run(kind, pipe.transformer)
    with pytest.raises(ValueError, match="an IP-Adapter of FLUX or SD3 is a processor"):
        pipe.load_ip_adapter(tmp_path, weight_name="ip.safetensors")
    with pytest.raises(ValueError, match="an IP-Adapter of FLUX or SD3 is a processor"):
        pipe.transformer._load_ip_adapter_weights({})
    assert torch.equal(compat.run(kind, pipe.transformer), wanted)
    linattn.restore(pipe)
    with pytest.raises(KeyError):  # diffusers' own words
        pipe.transformer._load_ip_adapter_weights({})


def adapter(flux):
    """Weights of an IP-Adapter for FLUX's double blocks, of four tokens a picture."""
    width, text = flux.inner_dim, flux.config.joint_attention_dim
    keys = {}
    for number, _ in enumerate(flux.transformer_blocks):
        for name in ("to_k_ip", "to_v_ip"):
            keys[f"{number}.{name}.weight"] = torch.randn(width, text) / text**0.5
            keys[f"{number}.{name}.bias"] = torch.zeros(width)
    projection = {
        "proj.weight": torch.randn(4 * text, 6),
        "proj.bias": torch.zeros(4 * text),
        "norm.weight": torch.ones(text),
        "norm.bias": torch.zeros(text),
    }
    return {"image_proj": projection, "ip_adapter": keys}


def test_an_adapter_that_is_there_is_refused_and_single_blocks_beside_it_are_converted():
    flux = kinds.model("flux")
    flux._load_ip_adapter_weights([adapter(flux)], low_cpu_mem_usage=False)
    with pytest.raises(ValueError, match=r"has an IP-Adapter.*call unload_ip_adapter\(\)"):
        linattn.linearize(flux, "clear", radius=2)
    assert not compat.operators(flux)
    singles = [layer.name for layer in families.layers(flux) if "single" in layer.name]
    linattn.linearize(flux, "clear", radius=2, layers=singles)
    outputs = []
    for _ in range(2):
        seen = {"ip_adapter_image_embeds": [torch.randn(2, 1, 6)]}
        with torch.no_grad():
            outputs.append(kinds.run(flux, **kinds.inputs("flux"), joint_attention_kwargs=seen))
    assert not torch.allclose(*outputs, atol=1e-3)
