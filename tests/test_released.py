"""Files in the layout of the papers' authors give the papers' formulas on the same tensors."""

import json
import pickle

import kinds
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import linattn
from linattn import families


def linfusion(folder, model, middle=None, seed=5):
    """config.json and one file, tensors keyed by the layer's place."""
    dice, tensors, modules = torch.Generator().manual_seed(seed), {}, []
    for number, layer in enumerate(families.layers(model)):
        width, hidden = layer.shape.width, middle or layer.shape.width

        def put(name, *shape, number=number):
            tensors[f"{number}.{name}"] = (
                torch.randn(shape, generator=dice).to(torch.float16) / shape[-1] ** 0.5
            )

        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            put(f"{name}.weight", width, width)
        put("to_out.0.bias", width)
        for name in ("to_q_", "to_k_") if middle != -1 else ():
            put(f"{name}.0.weight", hidden, width)
            put(f"{name}.3.weight", width, hidden)
            for suffix, size in (
                ("0.bias", hidden),
                ("1.weight", hidden),
                ("1.bias", hidden),
                ("3.bias", width),
            ):
                put(f"{name}.{suffix}", size)
        modules.append(
            {
                "module_name": layer.name,
                "dim_n": width,
                "heads": layer.shape.heads,
                "projection_mid_dim": middle,
            }
        )
    folder.mkdir()
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({"_class_name": "LinFusion", "modules_list": modules})
    )
    return {name: tensor.double() for name, tensor in tensors.items()}


def published(tensors, number, x, heads):
    """LinFusion's layer, token by token sums written out."""
    weights = {
        name.split(".", 1)[1]: tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{number}.")
    }

    def inner(name):
        if f"{name}.0.weight" not in weights:
            return x
        y = F.linear(x, weights[f"{name}.0.weight"], weights[f"{name}.0.bias"])
        y = F.leaky_relu(
            F.layer_norm(y, y.shape[-1:], weights[f"{name}.1.weight"], weights[f"{name}.1.bias"]),
            0.01,
        )
        return F.linear(y, weights[f"{name}.3.weight"], weights[f"{name}.3.bias"])

    q, k = (
        F.elu((x + inner(f"{name}_")) @ weights[f"{name}.weight"].T) + 1
        for name in ("to_q", "to_k")
    )
    q, k, v = (tensor.unflatten(2, (heads, -1)) for tensor in (q, k, x @ weights["to_v.weight"].T))
    tokens = x.shape[1]
    top = torch.einsum("bihd,bjhd,bjhe->bihe", q, k, v) / tokens
    bottom = torch.einsum("bihd,bjhd->bih", q, k) / tokens + 1e-4
    return F.linear(
        (top / bottom.unsqueeze(3)).flatten(2), weights["to_out.0.weight"], weights["to_out.0.bias"]
    )


@pytest.mark.parametrize("middle", [None, 4, -1])
@torch.no_grad()
def test_linfusions_weights_give_linfusions_layer(middle, tmp_path):
    model = kinds.model("unet")
    tensors = linfusion(tmp_path / "released", model, middle)
    linattn.load(model, tmp_path / "released")
    model = model.double()
    inputs = kinds.inputs("unet", 6, 10)
    inputs = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in inputs.items()
    }
    with families.capture(model) as seen:
        kinds.run(model, **inputs)
    for layer, entry in zip(families.layers(model), seen, strict=True):
        wanted = published(tensors, layer.index, entry["input"], layer.shape.heads)
        torch.testing.assert_close(entry["output"], wanted, rtol=1e-6, atol=1e-7)


def test_linfusion_restores_and_saves_as_any_student(tmp_path):
    model, before = kinds.model("unet"), kinds.model("unet")
    linfusion(tmp_path / "released", model)
    linattn.load(model, tmp_path / "released")
    linattn.save(model, tmp_path / "ours")
    again, inputs = linattn.load(kinds.model("unet"), tmp_path / "ours"), kinds.inputs("unet")
    with torch.no_grad():
        assert torch.equal(kinds.run(again, **inputs), kinds.run(model, **inputs))
        linattn.restore(model)
        assert torch.equal(kinds.run(model, **inputs), kinds.run(before, **inputs))


def clear(path, model, factor=1, seed=6):
    dice, tensors = torch.Generator().manual_seed(seed), {}
    for layer in families.layers(model):
        for name, tensor in layer.attn.state_dict().items():
            if name.startswith(("to_q", "to_k", "to_v", "to_out")):
                tensors[f"{layer.name}.{name}"] = (
                    torch.randn(tensor.shape, generator=dice) / tensor.shape[-1] ** 0.5
                )
        if factor > 1:
            tensors[f"{layer.name}.processor.spatial_weight"] = torch.rand(
                1, 1, factor, factor, generator=dice
            )
    save_file(tensors, path)
    return tensors


def by_hand(tensors, order, height, width, text, radius, factor):
    """FLUX's attention as CLEAR published it, layer after layer: a strict disc, and keys pooled
    after norm and RoPE.
    """
    y, x = (
        tensor.flatten()
        for tensor in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    picture, cells = height * width, (height // factor) * (width // factor) if factor > 1 else 0
    seen = torch.ones(text + picture, text + picture + cells, dtype=torch.bool)
    seen[text:, text : text + picture] = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2 < radius**2
    seen[:text, text + picture :] = False
    layer = iter(order)

    def attend(q, k, v, **unused):
        name = f"{next(layer)}.processor.spatial_weight"

        def extended(tensor):
            if factor == 1:
                return tensor
            grid = tensor[:, text:].unflatten(
                1, (height // factor, factor, width // factor, factor)
            )
            pooled = torch.einsum(
                "byaxchd,ac->byxhd", grid, tensors[name].double().reshape(factor, factor)
            )
            return torch.cat([tensor, pooled.flatten(1, 2)], 1)

        scores = torch.einsum("bihd,bjhd->bhij", q, extended(k)) / q.shape[-1] ** 0.5
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.einsum("bhij,bjhd->bihd", weights, extended(v))

    return attend


@pytest.mark.parametrize("factor", [1, 2])
@torch.no_grad()
def test_clears_weights_are_flux_with_them_and_the_published_attention(
    factor, tmp_path, monkeypatch
):
    path, model, base = (
        tmp_path / "clear_local_3.safetensors",
        kinds.model("flux"),
        kinds.model("flux"),
    )
    tensors, inputs = clear(path, model, factor), kinds.inputs("flux", 4, 6, 5)
    inputs = {
        name: tensor.double() if tensor.is_floating_point() else tensor
        for name, tensor in inputs.items()
    }
    with pytest.warns(UserWarning, match="does not hold .*norm.*the base's stay"):
        linattn.load(model, path, radius=3)
    assert {row["options"]["pool"] for row in linattn.describe(model)} == {factor}
    output = kinds.run(model.double(), **inputs)
    base.load_state_dict(
        {name: tensor for name, tensor in tensors.items() if "spatial" not in name}, strict=False
    )
    order = [layer.name for layer in families.layers(base)]  # as the forward meets them
    attend = by_hand(tensors, order, 4, 6, 5, radius=3, factor=factor)
    monkeypatch.setattr(
        "diffusers.models.transformers.transformer_flux.dispatch_attention_fn", attend
    )
    torch.testing.assert_close(output, kinds.run(base.double(), **inputs), rtol=1e-9, atol=1e-10)


def test_other_heads_are_another_base(tmp_path):
    """SD 1.5 and 2.1 differ in nothing else that a file shows."""
    model = kinds.model("unet")
    linfusion(tmp_path / "released", model)
    card = json.loads((tmp_path / "released" / "config.json").read_text())
    card["modules_list"][1]["heads"] *= 2
    (tmp_path / "released" / "config.json").write_text(json.dumps(card))
    with pytest.raises(
        ValueError,
        match=r"trained with \d+ heads in .*which has \d+ here: it belongs to another base",
    ):
        linattn.load(model, tmp_path / "released")
    assert not any(layer.operator for layer in families.layers(model))


def test_a_warning_names_layers_that_a_file_does_not_name(tmp_path):
    unet, flux = kinds.model("unet"), kinds.model("flux")
    linfusion(tmp_path / "released", unet)
    folder = tmp_path / "released"
    card, weights = (
        json.loads((folder / "config.json").read_text()),
        folder / "diffusion_pytorch_model.safetensors",
    )
    last = card["modules_list"].pop()["module_name"]
    count = len(card["modules_list"])
    save_file(
        {
            name: tensor
            for name, tensor in load_file(weights).items()
            if int(name.split(".")[0]) < count
        },
        weights,
    )
    (folder / "config.json").write_text(json.dumps(card))
    with pytest.warns(UserWarning, match=rf"does not name {last}: they stay"):
        linattn.load(unet, folder)
    tensors = clear(tmp_path / "clear.safetensors", flux)
    gone = families.layers(flux)[0].name
    save_file(
        {n: tensor for n, tensor in tensors.items() if not n.startswith(gone)},
        tmp_path / "clear.safetensors",
    )
    with pytest.warns(UserWarning, match=rf"does not name {gone}: they stay"):
        linattn.load(flux, tmp_path / "clear.safetensors", radius=3)


def test_an_incomplete_file_of_clears_is_refused(tmp_path):
    flux, path = kinds.model("flux"), tmp_path / "clear.safetensors"
    tensors = clear(path, flux, factor=2)
    first = families.layers(flux)[0].name
    for lost, says in [
        (
            f"{first}.processor.spatial_weight",
            "pools by 2 and holds no spatial_weight for " + first,
        ),
        (f"{first}.to_k.weight", rf"lacks {first}\.to_k\.weight"),
    ]:
        save_file({name: tensor for name, tensor in tensors.items() if name != lost}, path)
        with pytest.raises(ValueError, match=says):
            linattn.load(flux, path, radius=3)
    assert not any(layer.operator for layer in families.layers(flux))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", r"config\.json is damaged"),
        ('["modules_list"]', r"config\.json is damaged \(it is \['modules_list'\]\)"),
        ('{"modules_list": 5}', r"config\.json is damaged \(modules_list is 5\)"),
        ("[" * 200_000, r"config\.json is damaged"),
        ('{"modules_list": [{}]}', r"config\.json: module 0 .*'module_name'"),
    ],
    ids=["cut", "list", "number", "deep", "empty module"],
)
def test_a_damaged_config_is_named(text, says, tmp_path):
    model = kinds.model("unet")
    linfusion(tmp_path / "released", model)
    (tmp_path / "released" / "config.json").write_text(text)
    with pytest.raises(ValueError, match=says):
        linattn.load(model, tmp_path / "released")


def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(tmp_path):
    unet, flux = kinds.model("unet"), kinds.model("flux")
    linfusion(tmp_path / "released", unet)
    clear(tmp_path / "clear.safetensors", flux)
    for model, path, options, says in [
        (flux, tmp_path / "released", {}, "replaces down_blocks.0.*does not have"),
        (unet, tmp_path / "released", {"radius": 3}, "leave out radius"),
        (flux, tmp_path / "clear.safetensors", {}, "radius.*pass it"),
        (flux, tmp_path / "clear.safetensors", {"raduis": 3}, "did you mean 'radius'"),
        (
            unet,
            tmp_path / "clear.safetensors",
            {"radius": 3},
            "replaces single_transformer_blocks.0",
        ),
    ]:
        with pytest.raises(ValueError, match=says):
            linattn.load(model, path, **options)
        assert not any(layer.operator for layer in families.layers(model))
    weights = tmp_path / "released" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(ValueError, match="is damaged"):
        linattn.load(unet, tmp_path / "released")


class Bomb:
    """Unpickling it would raise."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize("config", [True, False])
def test_weights_that_are_pickles_are_named_and_not_opened(config, tmp_path):
    model, folder = kinds.model("unet"), tmp_path / "weights"
    linfusion(folder, model)
    next(folder.glob("*.safetensors")).unlink()
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    if not config:
        (folder / "config.json").unlink()
    says = r"diffusion_pytorch_model\.bin is a pickle.*not opened.*safetensors\.torch\.save_file"
    with pytest.raises(ValueError, match=says):
        linattn.load(model, folder)


def test_the_scale_of_clears_weights_takes_the_trained_tokens(tmp_path):
    """The config of a small FLUX does not say how many tokens it was trained with."""
    clear(tmp_path / "clear.safetensors", kinds.model("flux"))
    options = {"radius": 3, "proportional": True}
    with pytest.raises(ValueError, match="pass trained, text included"):
        linattn.load(kinds.model("flux"), tmp_path / "clear.safetensors", **options)
    scaled = [
        linattn.load(kinds.model("flux"), tmp_path / "clear.safetensors", **options, trained=tokens)
        for tokens in (21, 40)
    ]
    (operator, *_), (other, *_) = (
        [layer.operator for layer in families.layers(model)] for model in scaled
    )
    assert (operator.values.trained, other.values.trained) == (21, 40)
    first, second = (kinds.run(model, **kinds.inputs("flux", 4, 4)) for model in scaled)
    assert not torch.allclose(first, second, atol=1e-4)
