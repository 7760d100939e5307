"""The published models' own widths, heads and depths without their weights: on the meta device, and
less deep.
"""

import itertools
import json

import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope
from layers import richest
from safetensors.torch import save_file

import linattn
from linattn import families
from linattn.attention import OPERATORS
from linattn.shapes import SHAPES

# Class, config, layers, the first one's (width, heads, head_dim), what makes it less deep, to fit
# into memory.
MODELS = {
    shape.name: (shape.model, shape.config, shape.layers, shape.first, shape.shallow)
    for shape in SHAPES.values()
}
each_model = pytest.mark.parametrize("name", MODELS)


def made(name, **more):
    kind, config, *_ = MODELS[name]
    with torch.device("meta"):
        return kind(**{**config, **more})


# every model with softmax, and every other operator on one model after the other
PAIRS = [(name, "softmax") for name in MODELS] + list(
    zip(itertools.cycle(MODELS), [name for name in OPERATORS if name != "softmax"], strict=False)
)


@pytest.mark.parametrize(("name", "operator"), PAIRS)
def test_a_whole_model_converts_and_comes_back_on_the_meta_device(name, operator):
    _, _, count, shape, _ = MODELS[name]
    model = made(name)
    names = list(model.state_dict())
    layers = families.layers(model)
    assert len(layers) == count
    assert (layers[0].shape.width, layers[0].shape.heads, layers[0].shape.head_dim) == shape
    linattn.linearize(model, operator, **richest(operator))
    assert {row["operator"] for row in linattn.describe(model)} == {operator}
    linattn.restore(model)
    assert list(model.state_dict()) == names


def short(name):
    """Of every width, level and kind of block, with weights that keep bfloat16 finite and attention
    far from a mean.
    """
    *_, less = MODELS[name]
    model = made(name, **less).to(torch.bfloat16).to_empty(device="cpu").eval()
    # drawn once: a thousand million normal numbers take half a minute
    dice = torch.randn(2**20).bfloat16()
    for number, (place, tensor) in enumerate([*model.named_parameters(), *model.named_buffers()]):
        size = (tensor.numel() / len(tensor)) ** -0.5 if tensor.ndim > 1 else 0.1
        size *= 3 if any(part in place for part in ("to_q.", "to_k.", "add_q", "add_k")) else 1
        for part in tensor.flatten().split(len(dice)):
            part.copy_(dice.roll(number)[: len(part)] * size)
        if "norm" in place and tensor.ndim == 1 and place.endswith("weight"):
            tensor.add_(1)
    if name == "Qwen-Image":  # its rotary factors are neither
        model.pos_embed = QwenEmbedRope(10000, [16, 56, 56], scale_rope=True)
    return model


def run(model, given):
    out = model(**given, return_dict=False)[0]
    assert out.isfinite().all()
    return out


def apart(model, seen):
    """How far each layer alone is from what the dense one gave, of the norm of that."""
    for layer, entry in zip(families.layers(model), seen, strict=True):
        found = families.apply(
            layer, entry["input"], entry["grid"], entry["noise"], **entry["more"]
        )
        yield ((found - entry["output"]).norm() / entry["output"].norm()).item()


@each_model
@torch.no_grad()
def test_a_copy_of_true_width_runs_is_saved_restored_and_loaded(name, tmp_path):
    model = short(name)
    family = families.family(model)
    given = family.example(
        model, side=8 if family.rotates else 16, batch=1, noise=0.5
    )  # in tokens, or in latents
    sample = "sample" if "sample" in given else "hidden_states"
    given[sample] = torch.randn(given[sample].shape).bfloat16()
    with families.capture(model) as seen:
        before = run(model, given)

    linattn.linearize(model, "clear", radius=64)  # a disc as wide as the picture is no window
    run(model, given)
    assert max(apart(model, seen)) < 0.01  # measured: 0.003
    linattn.restore(model)

    linattn.linearize(model, "linfusion")
    families.layers(model)[1].attn.to_q.weight.mul_(-1)
    student = run(model, given)
    assert min(apart(model, seen)) > 0.1  # measured: 0.39
    linattn.save(model, tmp_path)
    linattn.restore(model)
    assert torch.equal(run(model, given), before)
    linattn.load(model, tmp_path)  # which compares every tensor of the base with what was converted
    assert torch.equal(run(model, given), student)


@pytest.mark.parametrize("middle", [None, 20])
def test_linfusions_release_fits_the_whole_of_sd15(middle, tmp_path):
    model, tensors, modules = made("SD 1.5"), {}, []
    for number, layer in enumerate(families.layers(model)):
        width, inner = layer.shape.width, middle or layer.shape.width
        shapes = {f"{name}.weight": (width, width) for name in ("to_q", "to_k", "to_v", "to_out.0")}
        shapes["to_out.0.bias"] = (width,)
        for name in ("to_q_", "to_k_"):
            shapes |= {f"{name}.0.weight": (inner, width), f"{name}.3.weight": (width, inner)}
            shapes |= {f"{name}.{part}": (inner,) for part in ("0.bias", "1.weight", "1.bias")}
            shapes[f"{name}.3.bias"] = (width,)
        tensors |= {
            f"{number}.{name}": torch.zeros(shape, dtype=torch.float16)
            for name, shape in shapes.items()
        }
        entry = {
            "module_name": layer.name,
            "dim_n": width,
            "heads": layer.shape.heads,
            "projection_mid_dim": middle,
        }
        modules.append(entry)
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"modules_list": modules}))
    linattn.load(model, tmp_path)
    assert {row["options"]["hidden"] for row in linattn.describe(model)} == {middle}
    if middle is None:
        # as published
        assert sum(tensor.numel() for tensor in tensors.values()) == pytest.approx(99.2e6, rel=0.01)


@pytest.mark.parametrize("factor", [1, 4])
def test_clears_release_fits_two_layers_of_flux(factor, tmp_path):
    model, tensors = made("FLUX.1-dev", num_layers=1, num_single_layers=1), {}
    for layer in families.layers(model):
        for name, tensor in layer.attn.state_dict().items():
            if name.startswith(("to_q", "to_k", "to_v", "to_out")):
                tensors[f"{layer.name}.{name}"] = torch.zeros(tensor.shape, dtype=torch.bfloat16)
        if factor > 1:
            tensors[f"{layer.name}.processor.spatial_weight"] = torch.zeros(1, 1, factor, factor)
    save_file(tensors, tmp_path / "clear.safetensors")
    with pytest.warns(UserWarning, match="the base's stay"):
        linattn.load(model, tmp_path / "clear.safetensors", radius=8)
    assert [row["options"]["pool"] for row in linattn.describe(model)] == [factor] * 2


def test_flux_1_is_known_to_have_seen_4608_tokens():
    """CLEAR's proportional scale needs it, and no config holds it; of a smaller FLUX nothing is
    assumed.
    """
    shapes = {layer.shape.trained for layer in families.layers(made("FLUX.1-dev"))}
    assert shapes == {4608}
    assert {
        layer.shape.trained for layer in families.layers(made("FLUX.1-dev", num_attention_heads=4))
    } == {None}


@pytest.mark.parametrize("short", SHAPES)
def test_a_latent_is_eight_pixels_wide(short):
    """Of every published autoencoder here, that of Qwen-Image with its own words included."""
    assert SHAPES[short].factor == 8


# what the models' authors and diffusers' own pages say of their size
PARAMETERS = {
    "sd15": 859_520_964,
    "sd21": 865_910_724,
    "sdxl": 2_567_463_684,
    "flux": 11_901_408_320,
    "qwen": 20_430_401_088,
    "bk-sdm-tiny": 323_384_964,
}
SIDES = {"dit": 256, "sd21": 768, "sdxl": 1024, "sd35": 1024, "flux": 1024, "qwen": 1024}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_published_model_has_its_number_of_weights(name):
    with torch.device("meta"):
        model = SHAPES[name].build()
    assert sum(weight.numel() for weight in model.parameters()) == PARAMETERS[name]


def test_published_models_draw_at_the_side_that_they_were_trained_at():
    assert {name: SHAPES[name].side for name in SIDES} == SIDES
