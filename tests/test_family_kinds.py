"""Every operator on every family: the same model where it is softmax, the definition where it is
not.
"""

import copy
import importlib

import diffusers
import kinds
import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb

import linattn
from linattn import families
from linattn.attention import features
from linattn.attention.grid import Grid
from linattn.families import passing
from linattn.testing import models

each_kind = pytest.mark.parametrize("kind", kinds.KINDS)
OPERATORS = {
    "clear": {"radius": 2.5},
    "clear-pool": {"radius": 2, "pool": 2},
    "linfusion": {"hidden": 8},
    "linfusion-exact": {"hidden": 0, "text": "exact", "rope": "after", "gate": 3},
    "lit": {"heads": 2, "kernel": 3},
    "lit-exact": {"heads": 2, "kernel": 0, "text": "exact", "normaliser": "subtract"},
    "lit-numerator": {"heads": 1, "kernel": 0, "rope": "numerator"},
    "lolcats": {"radius": 2},
    "mediator": {"count": 4, "bias": "factorised"},
    "edit": {"stride": 3},
    "edit-joint": {"text": "joint"},
    "mhla": {"tiles": (2, 3)},
    "ridge": {"strength": 0.1},
    "mixed": {
        "parts": [
            {"operator": "lit", "options": {"heads": 2, "kernel": 3}, "until": 0.5},
            {"operator": "clear", "options": {"radius": 2.5}},
        ]
    },
    "sla": {"density": 0.3, "tile": 2},
    "sla-ratio": {"density": 0.3, "tile": 2, "mix": "ratio"},
    "pisa": {"density": 0.3, "tile": 2},
    "softmax-conv": {"conv": 3},
    "delta": {"scans": 4, "chunk": 7},
    "axial-alternate": {"along": "alternate"},
    "pyramid": {"radius": 0.5},
    "control": {"side": 2},
    "momentum": {"beta": 0.8},
    "ttt": {"window": 3},
}
each_operator = pytest.mark.parametrize("operator", OPERATORS)


def converted(kind, operator, model=None):
    model = kinds.model(kind) if model is None else model
    torch.manual_seed(0)
    options = dict(OPERATORS.get(operator, {}))
    idle = (
        ("text", "rope")
        if kind not in kinds.JOINT
        else ()
        if families.family(model).rotates
        else ("rope",)
    )
    options = {name: value for name, value in options.items() if name not in idle}
    linattn.linearize(model, operator.partition("-")[0], **options)
    for name, parameter in model.named_parameters():
        if f".{families.KEY}." in name:  # what starts at zero would be silent
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_layers_have_their_names():
    outcome = {
        kind: [layer.name for layer in families.layers(kinds.model(kind))] for kind in kinds.KINDS
    }
    assert outcome["pixart"] == ["transformer_blocks.0.attn1", "transformer_blocks.1.attn1"]
    assert outcome["sd35"] == [
        "transformer_blocks.0.attn",
        "transformer_blocks.0.attn2",
        "transformer_blocks.1.attn",
    ]
    assert outcome["flux"] == ["transformer_blocks.0.attn"] + [
        f"single_transformer_blocks.{n}.attn" for n in (0, 1)
    ]
    assert outcome["qwen"] == ["transformer_blocks.0.attn", "transformer_blocks.1.attn"]
    places = (
        "down_blocks.0",
        "down_blocks.1",
        "mid_block",
        "up_blocks.0",
        "up_blocks.0",
        "up_blocks.1",
        "up_blocks.1",
    )
    assert [name.partition(".attentions")[0] for name in outcome["unet"]] == list(places)


@each_kind
def test_layers_are_numbered_in_the_order_of_the_forward(kind):
    model, met = kinds.model(kind), []
    for layer in families.layers(model):
        layer.attn.register_forward_hook(lambda *_, index=layer.index: met.append(index))
    kinds.run(model, **kinds.inputs(kind))
    assert met == sorted(met)
    assert len(met) == len(families.layers(model))


@each_kind
@torch.no_grad()
def test_softmax_is_the_model_itself(kind):
    for height, width in kinds.sizes(kind):
        model, inputs = kinds.model(kind).double(), wide(kinds.inputs(kind, height, width))
        wanted = kinds.run(model, **inputs)
        linattn.linearize(model, "softmax")
        torch.testing.assert_close(kinds.run(model, **inputs), wanted, rtol=1e-9, atol=1e-10)


def wide(inputs):
    if isinstance(inputs, dict):
        return {name: wide(value) for name, value in inputs.items()}
    return (
        inputs.double()
        if isinstance(inputs, torch.Tensor) and inputs.is_floating_point()
        else inputs
    )


@each_kind
@each_operator
@torch.no_grad()
def test_every_layer_is_the_operators_definition_on_its_own_grid(kind, operator):
    for height, width in kinds.sizes(kind):
        model, inputs = converted(kind, operator).double(), wide(kinds.inputs(kind, height, width))
        assert not torch.allclose(
            kinds.run(model, **inputs), kinds.run(kinds.model(kind).double(), **inputs), atol=1e-3
        )
        with families.capture(model) as seen:
            kinds.run(model, **inputs)
        assert len(seen) == len(families.layers(model))
        for layer, entry in zip(families.layers(model), seen, strict=True):
            assert (entry["grid"].text > 0) == layer.shape.has_text
            torch.testing.assert_close(
                entry["output"], by_definition(layer, entry), rtol=1e-8, atol=1e-9
            )
            again = families.apply(
                layer, entry["input"], entry["grid"], entry["noise"], **entry["more"]
            )
            assert torch.equal(again, entry["output"])


def by_definition(layer, entry):
    """The layer's output from its projections and the dense definition."""
    attn, more, grid = layer.attn, entry["more"], entry["grid"]
    text, rope = more.get("encoder_hidden_states"), more.get("image_rotary_emb")
    q, k, v = families.projections(attn, entry["input"], grid, text, rope)
    x, noise, position = entry["input"], entry["noise"], families.position(rope)
    out = layer.operator.definition(q, k, v, grid, x, noise, position).flatten(2)
    if not hasattr(attn, "to_out") or attn.to_out is None:
        return out
    if text is None:
        return attn.to_out[0](out)
    words = out[:, : grid.text] if attn.context_pre_only else attn.to_add_out(out[:, : grid.text])
    return torch.cat([words, attn.to_out[0](out[:, grid.text :])], 1)


@pytest.mark.parametrize("kind", ["unet", "sdxl"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10), (5, 7)])
@torch.no_grad()
def test_each_level_of_a_unet_has_its_own_grid(kind, height, width):
    model = kinds.model(kind)
    grids = families.grids(model, **kinds.inputs(kind, height, width))
    low = Grid(-(-height // 2), -(-width // 2))
    levels = [Grid(height, width), low, low, low, low] if kind == "unet" else [low] * 7
    assert grids[: len(levels)] == levels
    assert set(grids) == {Grid(height, width), low} if kind == "unet" else {low}


@torch.no_grad()
def test_the_blocks_of_the_latent_upscaler_have_their_own_grid():
    """sd-x2-latent-upscaler keeps attn1 in K blocks, at its lowest level."""
    down, up = (
        ("KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3),
        (*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"),
    )
    more = {"block_out_channels": (32, 32, 64, 64), "layers_per_block": 2, "mid_block_type": None}
    more |= {"time_embedding_type": "fourier", "resnet_time_scale_shift": "scale_shift"}
    model = models.unet(down_block_types=down, up_block_types=up, **more).double().eval()
    inputs = wide(kinds.inputs("unet", 24, 40))
    assert families.grids(model, **inputs) == [Grid(3, 5)] * 4
    wanted = kinds.run(model, **inputs)
    linattn.linearize(model, "softmax")
    torch.testing.assert_close(kinds.run(model, **inputs), wanted, rtol=1e-9, atol=1e-10)


def grid_of(kind, layer, height, width, text):
    """A layer's grid from the picture's sides and the layer's name alone."""
    if kind in kinds.JOINT and not layer.name.endswith("attn2"):
        return Grid(height, width, text)
    halved = kind in ("unet", "sdxl") and not layer.name.startswith(
        ("down_blocks.0.", "up_blocks.1.")
    )
    return Grid(-(-height // 2), -(-width // 2)) if halved else Grid(height, width)


@each_kind
@torch.no_grad()
def test_every_layer_is_told_the_grid_and_the_noise_of_the_call(kind):
    model, (height, width) = kinds.model(kind), kinds.sizes(kind)[-1]
    inputs, level = kinds.inputs(kind, height, width, text=4), torch.tensor([0.25, 0.75])
    steps = 1 if kind in kinds.ROTARY else 1000  # a flow's time itself, or one of a thousand
    inputs["timestep"] = (level * steps).to(inputs["timestep"].dtype)
    with families.capture(model) as seen:
        kinds.run(model, **inputs)
    for layer, entry in zip(families.layers(model), seen, strict=True):
        assert entry["grid"] == grid_of(kind, layer, height, width, 4)
        assert torch.equal(entry["noise"], level)


@pytest.mark.parametrize("kind", [kind for kind in kinds.KINDS if kind != "dit"])
@torch.no_grad()
def test_a_stock_pipelines_layers_get_its_pixels_and_its_schedulers_times(kind):
    """diffusers itself hands over grid and noise at each of three steps and 48 x 80 px."""
    pipe, outcome = kinds.pipeline(kind), []
    model = families.model_of(pipe)
    model.register_forward_hook(lambda *_: outcome.append(list(seen)))
    kwargs = {"use_resolution_binning": False, "clean_caption": False} if kind == "pixart" else {}
    kwargs |= {"max_sequence_length": 6} if kind in ("pixart", *kinds.JOINT) else {}
    with families.capture(model) as seen:
        pipe(
            "a red ring",
            height=48,
            width=80,
            num_inference_steps=3,
            guidance_scale=1.0,
            output_type="latent",
            **kwargs,
        )
    text = {"flux": 6, "qwen": 6, "sd3": 16 + 6, "sd35": 16 + 6}.get(
        kind, 0
    )  # T5's, after CLIP's 16 in SD3
    scale = (
        8 if kind in kinds.JOINT else 4
    )  # pixels of a token: the VAE's factor, and patches of 2 x 2
    assert len(outcome) == 3
    for step, time in zip(outcome, pipe.scheduler.timesteps, strict=True):
        for layer, entry in zip(families.layers(model), step, strict=True):
            assert entry["grid"] == grid_of(kind, layer, 48 // scale, 80 // scale, text)
            torch.testing.assert_close(entry["noise"], (time / 1000).expand(1).float())


@each_kind
@torch.no_grad()
def test_restored_bit_for_bit_and_saved_and_loaded(kind, tmp_path):
    model, inputs = kinds.model(kind), kinds.inputs(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    converted(kind, "linfusion", model)
    wanted = kinds.run(model, **inputs)
    linattn.save(model, tmp_path / "student")
    linattn.restore(model)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    again = linattn.load(kinds.model(kind), tmp_path / "student")
    assert torch.equal(kinds.run(again, **inputs), wanted)


@each_kind
def test_two_sizes_before_one_backward_under_checkpointing(kind):
    """Gradients are those of one forward at a time."""
    model = converted(kind, "clear").requires_grad_(True)
    calls = [
        kinds.inputs(kind, *kinds.sizes(kind)[-1], seed=seed, text=4 + seed) for seed in (0, 1)
    ]
    calls[1] = kinds.inputs(kind, 4, 4, text=7, seed=1)
    slopes = {}
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            model.enable_gradient_checkpointing()
            model.train()  # nothing drops out but DiT's labels
        for module in model.modules():
            if hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0
        sum(kinds.run(model, **inputs).square().mean() for inputs in calls).backward()
        slopes[checkpointing] = {
            name: parameter.grad.clone()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }
    assert slopes[False].keys() == slopes[True].keys()
    for name, slope in slopes[False].items():
        torch.testing.assert_close(slopes[True][name], slope, rtol=1e-4, atol=1e-6)


@each_kind
@torch.no_grad()
def test_a_deepcopy_is_a_student_of_its_own(kind):
    model = converted(kind, "linfusion")
    twin, inputs = copy.deepcopy(model), kinds.inputs(kind)
    wanted = kinds.run(model, **inputs)
    linattn.restore(model)
    assert torch.equal(kinds.run(twin, **inputs), wanted)
    assert not torch.allclose(kinds.run(model, **inputs), wanted)


@each_kind
@torch.no_grad()
def test_costs_know_every_family(kind):
    from linattn.evaluation import costs

    dense, model = kinds.model(kind), converted(kind, "clear")
    assert costs.counted_macs(dense, 8) == costs.macs(dense, 8)["total"]
    assert costs.macs(model, 8)["core"] < costs.macs(dense, 8)["core"]
    assert costs.forward_memory(model, 8) > 0


@torch.no_grad()
def test_the_costs_of_pixart_alpha_know_its_sizes():
    """Its 1,024 px models are told resolution and aspect ratio, and fail without."""
    from linattn.evaluation import costs

    more = {"num_attention_heads": 6, "cross_attention_dim": 48, "use_additional_conditions": True}
    model = models.pixart(**more).eval()
    assert (
        families.grids(model, **families.family(model).example(model, 6, 2, 0.5))
        == [Grid(6, 6)] * 2
    )
    assert costs.counted_macs(model, 6) == costs.macs(model, 6)["total"]


@pytest.mark.parametrize("rope", ["numerator", "after"])
@pytest.mark.parametrize("kind", ["sd3", "sd35"])
def test_another_denominator_is_refused_where_nothing_is_rotated(kind, rope):
    model = kinds.model(kind)
    with pytest.raises(
        ValueError, match=f"lit: rope='{rope}'.*SD3Transformer2DModel are not rotated"
    ):
        linattn.linearize(model, "lit", heads=2, kernel=0, rope=rope)
    assert all(layer.operator is None for layer in families.layers(model))
    linattn.linearize(model, "lit", heads=2, kernel=0, rope="map")


@pytest.mark.parametrize("kind", [kind for kind in kinds.KINDS if kind not in kinds.JOINT])
def test_options_of_text_are_refused_where_no_text_attends(kind):
    model = kinds.model(kind)
    with pytest.raises(ValueError, match="linfusion: text says how text takes part"):
        linattn.linearize(model, "linfusion", text="exact")
    assert not any(layer.operator for layer in families.layers(model))


@pytest.mark.parametrize("kind", kinds.ROTARY)
@torch.no_grad()
def test_a_denominator_of_unrotated_queries_and_keys_is_another(kind):
    inputs, outcome = kinds.inputs(kind), []
    for rope in ("map", "numerator"):
        model = linattn.linearize(kinds.model(kind), "linfusion", hidden=0, rope=rope)
        outcome.append(kinds.run(model, **inputs))
        sums = linattn.attention_map(model, 0, **inputs).sum(-1)
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-2) == (rope == "map")
    assert not torch.allclose(*outcome, atol=1e-3)


def test_unrotated_is_before_the_rotation():
    angles = torch.randn(7, 4, dtype=torch.float64).repeat_interleave(2, 1)
    x, rope = torch.randn(2, 7, 3, 8, dtype=torch.float64), (angles.cos(), angles.sin())
    torch.testing.assert_close(
        features.unrotated(apply_rotary_emb(x, rope, sequence_dim=1), rope), x
    )


@pytest.mark.parametrize("name", ["linfusion", "lit"])
@torch.no_grad()
def test_exact_text_is_softmax_and_the_picture_mixes_by_its_share(name):
    """Token by token: what a text token reads, and how much of a picture token's weight the text
    has.
    """
    model, inputs = kinds.model("flux").double(), wide(kinds.inputs("flux", 3, 5, text=4))
    more = {"heads": 2, "kernel": 0} if name == "lit" else {"hidden": 0}
    before = linattn.attention_map(model, 0, **inputs)
    linattn.linearize(model, name, text="exact", eps=0, **more)
    outcome = linattn.attention_map(model, 0, **inputs)  # 4 of text, 15 of picture
    torch.testing.assert_close(outcome[:, :, :4], before[:, :, :4])
    torch.testing.assert_close(
        outcome[:, :, 4:, :4].sum(-1), torch.full_like(outcome[:, :, 4:, 0], 4 / 19)
    )
    torch.testing.assert_close(
        outcome[:, :, 4:, 4:].sum(-1),
        torch.full_like(outcome[:, :, 4:, 0], 15 / 19),
        rtol=1e-4,
        atol=0,
    )
    share = before[:, :, 4:, :4] / before[:, :, 4:, :4].sum(-1, keepdim=True)
    torch.testing.assert_close(outcome[:, :, 4:, :4], share * 4 / 19)


@pytest.mark.parametrize("kind", kinds.ROTARY)
@pytest.mark.parametrize("text", [3, 11])
@pytest.mark.parametrize(("height", "width"), [(5, 9), (8, 6)])
@torch.no_grad()
def test_clear_is_dense_attention_with_a_disc_and_a_text_prefix(
    kind, height, width, text, monkeypatch
):
    """Against a processor that knows nothing of linattn."""
    inputs = wide(kinds.inputs(kind, height, width, text))
    model, dense = (kinds.model(kind).double() for _ in range(2))
    linattn.linearize(model, "clear", radius=3)
    seen = torch.ones(text + height * width, text + height * width, dtype=torch.bool)
    seen[text:, text:] = disc(height, width)
    source = importlib.import_module(type(dense).__module__)
    attend = source.dispatch_attention_fn
    monkeypatch.setattr(
        source,
        "dispatch_attention_fn",
        lambda *qkv, **kwargs: attend(*qkv, **{**kwargs, "attn_mask": seen}),
    )
    torch.testing.assert_close(
        kinds.run(model, **inputs), kinds.run(dense, **inputs), rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("kind", [kind for kind in kinds.KINDS if kind not in kinds.ROTARY])
@torch.no_grad()
def test_clear_is_dense_attention_with_a_disc_at_every_level(kind, monkeypatch):
    """Against diffusers' own processors, whose self-attention is told by its as many keys as
    queries; text is last.
    """
    (height, width), text = kinds.sizes(kind)[-1], 4
    inputs = wide(kinds.inputs(kind, height, width, text))
    model, dense = (kinds.model(kind).double() for _ in range(2))
    before = kinds.run(dense, **inputs)
    linattn.linearize(model, "clear", radius=3)
    wanted = kinds.run(model, **inputs)
    discs = [disc(height, width), disc(-(-height // 2), -(-width // 2))]
    if kind in kinds.JOINT:
        discs.append(torch.ones(text + height * width, text + height * width, dtype=torch.bool))
        discs[-1][:-text, :-text] = discs[0]
    masks, attend = (
        {len(mask): mask for mask in discs},
        torch.nn.functional.scaled_dot_product_attention,
    )

    def masked(q, k, v, attn_mask=None, **kwargs):  # (batch, heads, tokens, head_dim)
        return attend(
            q, k, v, attn_mask=masks[len(q[0, 0])] if q.shape == k.shape else attn_mask, **kwargs
        )

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", masked)
    outcome = kinds.run(dense, **inputs)
    torch.testing.assert_close(outcome, wanted, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(outcome, before, atol=1e-3)


def disc(height, width, radius=3):
    """(tokens, tokens): who lies less than the radius away."""
    y, x = (
        axis.flatten()
        for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    )
    return (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2 < radius**2


def test_a_flux_grid_is_read_in_half_precision_and_refuses_reference_pictures():
    model = converted("flux", "clear")
    inputs = kinds.inputs("flux", 3, 300)
    ids = inputs["img_ids"].bfloat16()  # rows above 256 merge
    assert families.family(model).grid(model, {**inputs, "img_ids": ids}) == Grid(3, 300, 5)
    assert families.family(model).grid(model, {**inputs, "img_ids": ids[None]}) == Grid(3, 300, 5)
    says = "1800 picture tokens, but img_ids tell of a picture of 3 x 300.*FLUX.1 Kontext.*softmax"
    with pytest.raises(ValueError, match=says):
        kinds.run(model, **kontext(inputs))


def kontext(inputs):
    """Return FLUX's arguments with a reference picture after the picture, as Kontext has it."""
    ids, states = inputs["img_ids"], inputs["hidden_states"]
    more = torch.cat([ids, ids + torch.tensor([1.0, 0, 0])])
    return {**inputs, "img_ids": more, "hidden_states": states.repeat(1, 2, 1)}


@torch.no_grad()
def test_a_reference_picture_is_served_where_no_operator_reads_the_grid():
    model, inputs = kinds.model("flux"), kontext(kinds.inputs("flux", 4, 6))
    wanted = kinds.run(model, **inputs)
    linattn.linearize(model, "softmax")
    torch.testing.assert_close(kinds.run(model, **inputs), wanted)
    linattn.linearize(model, "softmax", conv=3)
    with pytest.raises(ValueError, match="FLUX.1 Kontext"):
        kinds.run(model, **inputs)


@pytest.mark.parametrize("kind", kinds.ROTARY)
def test_who_knows_the_grid_hands_it_down(kind):
    model, inputs = converted(kind, "clear"), kinds.inputs(kind, 4, 6)
    wanted = kinds.run(model, **inputs)
    context = families.Context.of(Grid(4, 6, 5), inputs["timestep"], inputs["hidden_states"])
    extras = {families.family(model).handed_down: {families.KEY: context}}
    assert torch.equal(kinds.run(model, **inputs, **extras), wanted)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("flux", "img_ids"),
        ("flux", "encoder_hidden_states"),
        ("sd3", "encoder_hidden_states"),
        ("dit", "hidden_states"),
        ("unet", "sample"),
    ],
)
def test_a_call_that_lacks_what_the_grid_is_read_from_says_so(kind, name):
    model, inputs = converted(kind, "clear"), {**kinds.inputs(kind), name: None}
    with pytest.raises(ValueError, match=f"called without {name}, from which its operators"):
        model(**inputs)
    del inputs[name]
    with pytest.raises(ValueError, match=f"called without {name}, from which its operators"):
        model(**inputs)


@pytest.mark.parametrize("kind", kinds.ROTARY)
def test_the_grid_alone_is_handed_down(kind):
    model, inputs = converted(kind, "clear"), kinds.inputs(kind, 4, 6)
    wanted = kinds.run(model, **inputs)
    extras = {families.family(model).handed_down: {families.KEY: Grid(4, 6, 5)}}
    assert torch.equal(kinds.run(model, **inputs, **extras), wanted)


# What is refused
# ---------------------------------------------------------------------------------------------

HANDS_NOTHING = ", and its forward takes no dictionary that it would hand down"
OTHERS = [
    ("SanaTransformer2DModel", {"num_layers": 1}, "is linear already"),
    ("ZImageTransformer2DModel", {"n_layers": 1}, "its forward hands nothing down"),
    ("ControlNetModel", {}, "follows the UNet it was made for"),
    ("UNetMotionModel", {}, "attend over time"),
    ("Flux2Transformer2DModel", {"num_layers": 1}, "as img_ids says.*CONTRIBUTING"),
    ("QwenImage21Transformer2DModel", {"num_layers": 1}, "as img_shapes says.*CONTRIBUTING"),
    (
        "AuraFlowTransformer2DModel",
        {"num_mmdit_layers": 1},
        "not known here: a family of its own tells that",
    ),
    (
        "HunyuanDiT2DModel",
        {"num_layers": 2, "in_channels": 4, "patch_size": 2},
        f"not known here{HANDS_NOTHING}",
    ),
    ("VQModel", {}, "how its tokens lie on the picture is not known"),
    ("AutoencoderTiny", {}, "none of diffusers' attention layers"),
]


@pytest.mark.parametrize(("name", "less", "says"), OTHERS, ids=[name for name, *_ in OTHERS])
def test_other_models_are_refused_with_a_reason(name, less, says):
    with torch.device("meta"):
        model = getattr(diffusers, name)(**less)
    with pytest.raises(
        ValueError, match=f"{name} is not supported: .*{says}.*FluxTransformer2DModel"
    ):
        linattn.linearize(model, "clear")


LIKE_FLUX = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": kinds.TEXT,
}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("Flux2Transformer2DModel", {"axes_dims_rope": (2, 2, 2, 2), "guidance_embeds": False}),
        ("OvisImageTransformer2DModel", {"axes_dims_rope": (2, 2, 4), "out_channels": 16}),
        (
            "LongCatImageTransformer2DModel",
            {"axes_dims_rope": [2, 2, 4], "pooled_projection_dim": kinds.TEXT},
        ),
    ],
)
@torch.no_grad()
def test_the_reason_is_true_of_models_like_flux(name, more):
    """Their tokens do lie as img_ids says, and nothing reaches the attentions of those of which the
    reason says so.
    """
    model, handed_kwargs = getattr(diffusers, name)(**LIKE_FLUX, **more).eval(), []
    with pytest.raises(
        ValueError, match=f"{name} is not supported: its tokens lie on the picture as img_ids"
    ) as error:
        linattn.linearize(model, "clear")
    for module in model.modules():
        if hasattr(module, "set_processor"):
            module.register_forward_pre_hook(
                lambda _, args, kwargs: handed_kwargs.append("anything" in kwargs), with_kwargs=True
            )
    inputs = kinds.inputs("flux", 3, 5)
    del inputs["pooled_projections"]
    if len(more["axes_dims_rope"]) == 4:  # FLUX.2's ids end with a fourth, of the text
        inputs |= {
            ids: torch.nn.functional.pad(inputs[ids], (0, 1)) for ids in ("img_ids", "txt_ids")
        }
    if handed := "joint_attention_kwargs" in passing.arguments_of(model):
        inputs["joint_attention_kwargs"] = {"anything": 1}
    plain = kinds.run(model, **inputs)
    assert len(handed_kwargs) == 2
    assert handed == all(handed_kwargs) == (HANDS_NOTHING not in str(error.value))
    if handed:
        del inputs["joint_attention_kwargs"]
    # the same tokens in rows of 3
    inputs["img_ids"] = inputs["img_ids"].view(3, 5, -1).transpose(0, 1).flatten(0, 1)
    assert not torch.allclose(kinds.run(model, **inputs), plain, atol=1e-4)


@pytest.mark.parametrize("only", [False, True], ids=["text beside the picture", "text alone"])
def test_a_unet_without_attn1_is_refused_with_a_reason(only):
    """DeepFloyd IF and Kandinsky 2.x."""
    down, up = ("SimpleCrossAttnDownBlock2D",) * 2, ("SimpleCrossAttnUpBlock2D",) * 2
    middle = {
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "mid_block_only_cross_attention": only,
    }
    model = models.unet(
        down_block_types=down, up_block_types=up, only_cross_attention=only, **middle
    )
    blocks = "SimpleCrossAttnDownBlock2D, SimpleCrossAttnUpBlock2D"
    says = f"UNet2DConditionModel is not supported: .*attn1.* {blocks}, have"
    for call in (linattn.describe, lambda unet: linattn.linearize(unet, "clear")):
        with pytest.raises(ValueError, match=says):
            call(model)
