"""LoRA, IP-Adapter and ControlNet work beside a linearised UNet, in any order, and are removed."""

import itertools

import kinds
import pytest
import tiny
import torch
from diffusers import (
    ControlNetModel,
    DPMSolverMultistepScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline as SD,
)
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import linattn
from linattn import families
from linattn.world import language

CALL = {"num_inference_steps": 2, "output_type": "np", "guidance_scale": 3.0}


def pipeline():
    text = language.clip_encoder(kinds.TEXT, 1, 2)
    parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    scheduler = DPMSolverMultistepScheduler(timestep_spacing="trailing", steps_offset=1)
    torch.manual_seed(1)
    for parameter in text.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    pipe = SD(
        vae=tiny.vae(),
        text_encoder=text.eval(),
        tokenizer=language.clip_tokenizer(),
        unet=kinds.model("unet"),
        scheduler=scheduler,
        **parts,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe, **more):
    rng = torch.Generator().manual_seed(0)
    return torch.from_numpy(pipe("a red ring on sand dots", generator=rng, **CALL, **more).images)


def linearize(pipe):
    torch.manual_seed(0)
    linattn.linearize(pipe, "linfusion", hidden=8)
    for layer in families.layers(pipe):
        for parameter in layer.operator.parameters():
            torch.nn.init.normal_(parameter, std=0.3)


def lora(folder, targets):
    unet = kinds.model("unet")
    torch.manual_seed(2)
    unet.add_adapter(LoraConfig(r=2, target_modules=targets))
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    SD.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
    return folder


def ip_adapter(folder):
    torch.manual_seed(3)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=24)
    )
    encoder.save_pretrained(folder / "models" / "image_encoder")
    state = {
        "image_proj.proj.weight": torch.randn(4 * kinds.TEXT, 24),
        "image_proj.proj.bias": torch.randn(4 * kinds.TEXT),
        "image_proj.norm.weight": torch.ones(kinds.TEXT),
        "image_proj.norm.bias": torch.zeros(kinds.TEXT),
    }
    # attn2 has the widths of attn1
    widths = [layer.shape.width for layer in families.layers(kinds.model("unet"))]
    order = [*widths[:2], *widths[3:], widths[2]]  # down, up, mid
    for number, width in enumerate(order):
        for name in ("to_k_ip", "to_v_ip"):
            state[f"ip_adapter.{2 * number + 1}.{name}.weight"] = torch.randn(width, kinds.TEXT)
    save_file(state, folder / "models" / "ip.safetensors")
    return folder


@pytest.mark.parametrize("targets", ["attn1", "attn2"])
def test_a_lora_is_loaded_before_or_after_conversion_and_removed(targets, tmp_path):
    folder = lora(tmp_path, rf".*{targets}\.(to_q|to_v)")
    first, second = pipeline(), pipeline()
    linearize(first)
    alone = drawn(first)
    first.load_lora_weights(folder)
    second.load_lora_weights(folder)
    linearize(second)
    assert torch.equal(drawn(first), drawn(second))
    assert not torch.allclose(drawn(first), alone, atol=1e-3)
    for pipe in (first, second):
        pipe.unload_lora_weights()
        assert torch.equal(drawn(pipe), alone)
        linattn.restore(pipe)
        assert torch.equal(drawn(pipe), drawn(pipeline()))


def test_an_ip_adapter_is_loaded_before_or_after_conversion_and_removed(tmp_path):
    ip_adapter(tmp_path)
    picture = Image.new("RGB", (32, 32), (200, 30, 30))
    pictures, alone = [], pipeline()
    linearize(alone)
    for steps in (("convert", "load"), ("load", "convert")):
        pipe = pipeline()
        for step in steps:
            if step == "convert":
                linearize(pipe)
            else:
                pipe.load_ip_adapter(tmp_path, subfolder="models", weight_name="ip.safetensors")
        pictures.append(drawn(pipe, ip_adapter_image=picture))
        pipe.unload_ip_adapter()
        assert torch.equal(drawn(pipe), drawn(alone))
    assert torch.equal(*pictures)
    assert not torch.allclose(pictures[0], drawn(alone), atol=1e-3)


@pytest.mark.parametrize("plugin", ["lora", "ip"])
def test_a_student_is_loaded_and_saved_beside_a_plugin(plugin, tmp_path):
    """A student's base does not include the weights of a plug-in."""
    load = {
        "lora": lambda pipe: pipe.load_lora_weights(lora(tmp_path / "lora", r".*attn1\.to_q")),
        "ip": lambda pipe: pipe.load_ip_adapter(
            ip_adapter(tmp_path), subfolder="models", weight_name="ip.safetensors"
        ),
    }[plugin]
    plain, beside = pipeline(), pipeline()
    load(beside)
    for name, pipe in (("plain", plain), ("beside", beside)):
        linearize(pipe)
        linattn.save(pipe, tmp_path / name)
    assert (tmp_path / "plain" / "linattn.json").read_text() == (
        tmp_path / "beside" / "linattn.json"
    ).read_text()
    again = pipeline()
    load(again)
    linattn.load(again, tmp_path / "beside")
    more = {"ip_adapter_image": Image.new("RGB", (32, 32), (200, 30, 30))} if plugin == "ip" else {}
    assert torch.equal(drawn(again, **more), drawn(beside, **more))


def test_a_controlnet_works_beside_a_converted_unet():
    pipe = pipeline()
    control = ControlNetModel.from_unet(
        pipe.unet, conditioning_embedding_out_channels=(8, 8, 16)
    ).eval()
    torch.manual_seed(4)
    for name, parameter in control.named_parameters():
        if "controlnet_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    linearize(pipe)
    alone, picture = drawn(pipe), Image.new("RGB", (32, 32), (30, 30, 200))
    more = {"controlnet": control, "requires_safety_checker": False}
    guided = StableDiffusionControlNetPipeline(**pipe.components, **more)
    guided.set_progress_bar_config(disable=True)
    assert not any(hasattr(module, families.KEY) for module in control.modules())
    assert not torch.allclose(drawn(guided, image=picture), alone, atol=1e-3)
    assert torch.equal(drawn(guided, image=picture, controlnet_conditioning_scale=0.0), alone)
    linattn.restore(pipe)
    assert torch.equal(
        drawn(guided, image=picture, controlnet_conditioning_scale=0.0), drawn(pipeline())
    )


@pytest.mark.parametrize(
    "order", list(itertools.permutations(["convert", "lora", "ip"])), ids="-".join
)
def test_all_orders_of_mounting_draw_the_same_picture(order, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugins")
    lora(folder / "lora", r".*attn1\.to_q")
    ip_adapter(folder)
    load = {
        "convert": linearize,
        "lora": lambda pipe: pipe.load_lora_weights(folder / "lora"),
        "ip": lambda pipe: pipe.load_ip_adapter(
            folder, subfolder="models", weight_name="ip.safetensors"
        ),
    }
    picture, pictures = Image.new("RGB", (32, 32), (200, 30, 30)), []
    for steps in (order, ("convert", "lora", "ip")):
        pipe = pipeline()
        for step in steps:
            load[step](pipe)
        pictures.append(drawn(pipe, ip_adapter_image=picture))
    assert torch.equal(*pictures)
