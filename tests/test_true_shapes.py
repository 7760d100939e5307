"""The published models' own widths, heads and depths without their weights: on the meta device, and two layers deep."""

import pytest
import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)

import linattn
from linattn import families

SD = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}
SDXL = {
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
DIT = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 1000,
}
PIXART = {**DIT, "sample_size": 128, "caption_channels": 4096, "use_additional_conditions": False}
del PIXART["num_embeds_ada_norm"]
SD35 = {
    "sample_size": 128,
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
# Class, config, layers, the first one's (width, heads, head_dim), what makes it two layers deep.
MODELS = {
    "DiT-XL/2": (DiTTransformer2DModel, {**DIT, "sample_size": 32}, 28, (1152, 16, 72), {"num_layers": 2}),
    "PixArt-Sigma": (PixArtTransformer2DModel, PIXART, 28, (1152, 16, 72), {"num_layers": 2}),
    "SD 1.5": (UNet2DConditionModel, SD, 16, (320, 8, 40), None),
    "SDXL": (UNet2DConditionModel, SDXL, 70, (640, 10, 64), None),
    "SD3.5-M": (SD3Transformer2DModel, SD35, 37, (1536, 24, 64), {"num_layers": 2, "dual_attention_layers": (0,)}),
    "FLUX.1-dev": (
        FluxTransformer2DModel,
        {"guidance_embeds": True},
        57,
        (3072, 24, 128),
        {"num_layers": 1, "num_single_layers": 1},
    ),
}
OPERATORS = {"clear": {"radius": 8, "pool": 4}, "linfusion": {}, "lit": {}, "mediator": {"count": 64, "bias": "full"}}
each_model = pytest.mark.parametrize("name", MODELS)


def made(name, **more):
    kind, config, *_ = MODELS[name]
    with torch.device("meta"):
        return kind(**{**config, **more})


@each_model
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_whole_model_converts_and_comes_back_on_the_meta_device(name, operator):
    _, _, count, shape, _ = MODELS[name]
    model = made(name)
    names = list(model.state_dict())
    layers = families.layers(model)
    assert len(layers) == count
    assert (layers[0].shape.width, layers[0].shape.heads, layers[0].shape.head_dim) == shape
    linattn.linearize(model, operator, **OPERATORS[operator])
    assert {row["operator"] for row in linattn.describe(model)} == {operator}
    linattn.restore(model)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("name", [name for name, (*_, less) in MODELS.items() if less])
def test_two_layers_are_saved_and_loaded(name, tmp_path):
    *_, less = MODELS[name]

    def short():
        model = made(name, **less).to(torch.bfloat16).to_empty(device="cpu")
        for number, tensor in enumerate([*model.parameters(), *model.buffers()]):
            torch.nn.init.constant_(tensor, 1 / (number + 1))
        return model

    model = linattn.linearize(short(), "linfusion", hidden=8)
    torch.nn.init.constant_(families.layers(model)[1].attn.to_q.weight, 3)
    linattn.save(model, tmp_path)
    again = linattn.load(short(), tmp_path)
    for (one, two), (other, three) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert one == other
        assert torch.equal(two, three), one
