"""Files as the papers' authors released them, made here in that layout, against their formulas on the same tensors."""

import json

import kinds
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import linattn
from linattn import families


def linfusion(folder, model, middle=None, seed=5):
    """config.json and one file, tensors keyed by the layer's place."""
    dice, tensors, modules = torch.Generator().manual_seed(seed), {}, []
    for number, layer in enumerate(families.layers(model)):
        width, hidden = layer.shape.width, middle or layer.shape.width

        def put(name, *shape, number=number):
            tensors[f"{number}.{name}"] = torch.randn(shape, generator=dice).to(torch.float16) / shape[-1] ** 0.5

        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            put(f"{name}.weight", width, width)
        put("to_out.0.bias", width)
        for name in ("to_q_", "to_k_") if middle != -1 else ():
            put(f"{name}.0.weight", hidden, width)
            put(f"{name}.3.weight", width, hidden)
            for part, size in (("0.bias", hidden), ("1.weight", hidden), ("1.bias", hidden), ("3.bias", width)):
                put(f"{name}.{part}", size)
        modules.append(
            {"module_name": layer.name, "dim_n": width, "heads": layer.shape.heads, "projection_mid_dim": middle}
        )
    folder.mkdir()
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "LinFusion", "modules_list": modules}))
    return {name: tensor.double() for name, tensor in tensors.items()}


def published(tensors, number, x, heads):
    """LinFusion's layer, token by token sums written out."""
    own = {name.split(".", 1)[1]: each for name, each in tensors.items() if name.startswith(f"{number}.")}

    def inner(name):
        if f"{name}.0.weight" not in own:
            return x
        y = F.linear(x, own[f"{name}.0.weight"], own[f"{name}.0.bias"])
        y = F.leaky_relu(F.layer_norm(y, y.shape[-1:], own[f"{name}.1.weight"], own[f"{name}.1.bias"]), 0.01)
        return F.linear(y, own[f"{name}.3.weight"], own[f"{name}.3.bias"])

    q, k = (F.elu((x + inner(f"{each}_")) @ own[f"{each}.weight"].T) + 1 for each in ("to_q", "to_k"))
    q, k, v = (each.unflatten(2, (heads, -1)) for each in (q, k, x @ own["to_v.weight"].T))
    tokens = x.shape[1]
    top = torch.einsum("bihd,bjhd,bjhe->bihe", q, k, v) / tokens
    bottom = torch.einsum("bihd,bjhd->bih", q, k) / tokens + 1e-4
    return F.linear((top / bottom.unsqueeze(3)).flatten(2), own["to_out.0.weight"], own["to_out.0.bias"])


@pytest.mark.parametrize("middle", [None, 4, -1])
@torch.no_grad()
def test_linfusions_weights_give_linfusions_layer(middle, tmp_path):
    model = kinds.model("unet")
    tensors = linfusion(tmp_path / "released", model, middle)
    linattn.load(model, tmp_path / "released")
    model = model.double()
    given = kinds.inputs("unet", 6, 10)
    given = {name: each.double() if each.is_floating_point() else each for name, each in given.items()}
    with families.capture(model) as seen:
        kinds.run(model, **given)
    for layer, entry in zip(families.layers(model), seen, strict=True):
        wanted = published(tensors, layer.index, entry["input"], layer.shape.heads)
        torch.testing.assert_close(entry["output"], wanted, rtol=1e-6, atol=1e-7)


def test_linfusion_restores_and_saves_as_any_student(tmp_path):
    model, before = kinds.model("unet"), kinds.model("unet")
    linfusion(tmp_path / "released", model)
    linattn.load(model, tmp_path / "released")
    linattn.save(model, tmp_path / "ours")
    again, given = linattn.load(kinds.model("unet"), tmp_path / "ours"), kinds.inputs("unet")
    with torch.no_grad():
        assert torch.equal(kinds.run(again, **given), kinds.run(model, **given))
        linattn.restore(model)
        assert torch.equal(kinds.run(model, **given), kinds.run(before, **given))


def clear(path, model, factor=1, seed=6):
    dice, tensors = torch.Generator().manual_seed(seed), {}
    for layer in families.layers(model):
        for name, tensor in layer.attn.state_dict().items():
            if name.startswith(("to_q", "to_k", "to_v", "to_out")):
                tensors[f"{layer.name}.{name}"] = torch.randn(tensor.shape, generator=dice) / tensor.shape[-1] ** 0.5
        if factor > 1:
            tensors[f"{layer.name}.processor.spatial_weight"] = torch.rand(1, 1, factor, factor, generator=dice)
    save_file(tensors, path)
    return tensors


@pytest.mark.parametrize("factor", [1, 2])
@torch.no_grad()
def test_clears_weights_are_flux_with_them_and_a_mask(factor, tmp_path):
    path, model, base = tmp_path / "clear_local_3.safetensors", kinds.model("flux"), kinds.model("flux")
    tensors, given = clear(path, model, factor), kinds.inputs("flux", 4, 6)
    with pytest.warns(UserWarning, match="does not hold .*norm.*the base's stay"):
        linattn.load(model, path, radius=3)
    assert {row["options"]["pool"] for row in linattn.describe(model)} == {factor}
    linattn.linearize(base, "clear", radius=3, pool=factor)
    own = {f"{layer.name}.{families.KEY}.pooling.{factor}": layer for layer in families.layers(base)}
    for name, layer in own.items() if factor > 1 else ():
        weight = tensors[f"{layer.name}.processor.spatial_weight"].reshape(factor, factor)
        base.get_parameter(name).copy_(weight)
    base.load_state_dict({name: each for name, each in tensors.items() if "spatial" not in name}, strict=False)
    assert torch.equal(kinds.run(model, **given), kinds.run(base, **given))


def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path):
    unet, flux = kinds.model("unet"), kinds.model("flux")
    linfusion(tmp_path / "released", unet)
    clear(tmp_path / "clear.safetensors", flux)
    for model, place, options, says in [
        (flux, tmp_path / "released", {}, "replaces down_blocks.0.*does not have"),
        (unet, tmp_path / "released", {"radius": 3}, "leave out radius"),
        (flux, tmp_path / "clear.safetensors", {}, "radius.*pass it"),
        (flux, tmp_path / "clear.safetensors", {"raduis": 3}, "did you mean 'radius'"),
        (unet, tmp_path / "clear.safetensors", {"radius": 3}, "replaces single_transformer_blocks.0"),
    ]:
        with pytest.raises(ValueError, match=says):
            linattn.load(model, place, **options)
        assert not any(layer.operator for layer in families.layers(model))
    weights = tmp_path / "released" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(ValueError, match="is damaged"):
        linattn.load(unet, tmp_path / "released")
