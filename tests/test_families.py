"""How grid and noise reach a layer: every way of calling a model that could deliver another
forward's.
"""

import copy
import logging
import threading

import pytest
import tiny
import torch
from torch import nn
from torch.utils import checkpoint

import linattn
from linattn import families
from linattn.attention import LayerShape, Operator
from linattn.attention.grid import Grid
from linattn.testing import registered

WINDOW = {"radius": 3}  # depends on the grid's shape, so a wrong grid shows
# depends on the noise
SCHEDULE = {"conv": 0, "schedule": [{"until": 0.5, "count": 4}, {"until": 0.0, "count": 9}]}


class Probe(Operator):
    """Adds a picture of its grid and noise to the values: any other forward's context changes the
    output.
    """

    name = "probe"

    def __init__(self, shape: LayerShape, **options):
        super().__init__(shape, **options)
        self.scale = nn.Parameter(torch.ones(()))
        self.seen = []

    def mix(self, q, k, v, grid, x=None, noise=None):
        self.seen.append((grid, noise))
        row = torch.arange(grid.picture, device=v.device) // grid.width
        mark = (1 + noise[:, None] * 3) * (1 + row.float() / grid.height)  # (batch, tokens)
        return v * self.scale * mark[..., None, None] + q * k

    def dense(self, q, k, grid, values):
        return torch.eye(grid.tokens).expand(q.shape[0], q.shape[2], -1, -1)

    def core(self, *_):
        raise AssertionError("a probe has a `mix` of its own")

    def cost(self, grid, values):
        return 0


@pytest.fixture(autouse=True)
def _probe():
    with registered(Probe):
        yield


def probed(**shape) -> nn.Module:
    return linattn.linearize(tiny.model(**shape), "probe")


def seen(model: nn.Module) -> list:
    return [layer.operator.seen for layer in families.layers(model)]


def gradients(model: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(
        loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True
    )


def same(first, second, tolerance: float = 0.0) -> bool:
    pairs = list(zip(first, second, strict=True))
    assert any(a is not None for a, _ in pairs)
    return all((a is None and b is None) or (a - b).abs().max() <= tolerance for a, b in pairs)


# Layers
# ---------------------------------------------------------------------------------------------


def test_layers_in_forward_order_with_their_shape():
    layers = families.layers(tiny.pipeline(width=48, heads=6, layers=3, side=16, patch=2))
    assert [layer.name for layer in layers] == [f"transformer_blocks.{i}.attn1" for i in range(3)]
    assert [layer.index for layer in layers] == [0, 1, 2]
    assert layers[1].shape == LayerShape(width=48, heads=6, head_dim=8, index=1, trained=64)


def test_a_subclass_is_of_its_parents_family():
    model = tiny.model()
    model.__class__ = type("Renamed", (type(model),), {})
    assert len(families.layers(model)) == 2


@pytest.mark.parametrize(
    "thing", [nn.Linear(2, 2), tiny.vae(), "dit-nano", None], ids=lambda thing: type(thing).__name__
)
def test_an_unsupported_thing_is_named(thing):
    with pytest.raises(ValueError, match=type(thing).__name__):
        families.layers(thing)


def test_an_unsupported_model_is_told_what_is_supported():
    with pytest.raises(
        ValueError, match="supported are models of the classes DiTTransformer2DModel"
    ):
        families.layers(tiny.vae())


# Grid and noise
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "patch", "grid"), [(8, 1, 8), (5, 1, 5), (12, 2, 6), (1, 1, 1)], ids=str
)
def test_the_grid_is_the_latents_over_the_patch(side, patch, grid):
    model = probed(patch=patch)
    tiny.run(model, **tiny.inputs(side=side))
    assert [calls[-1][0] for calls in seen(model)] == [Grid(grid, grid)] * 2


def test_noise_is_kept_for_every_sample():
    model = probed()
    inputs = {**tiny.inputs(batch=3), "timestep": torch.tensor([0, 250, 999])}
    tiny.run(model, **inputs)
    for calls in seen(model):
        assert torch.equal(calls[-1][1], torch.tensor([0.0, 0.25, 0.999]))


def test_positional_arguments_and_ones_own_attention_arguments_arrive():
    model = probed()
    inputs = tiny.inputs()
    wanted = tiny.run(model, **inputs)
    args = (inputs["hidden_states"], inputs["timestep"], inputs["class_labels"])
    mine = {"ip_adapter_masks": None}
    assert torch.equal(model(*args)[0], wanted)
    assert torch.equal(model(*args, mine, False)[0], wanted)
    assert mine == {"ip_adapter_masks": None}


@pytest.mark.parametrize(("height", "width"), [(8, 18), (16, 4)], ids=["8x18", "16x4"])
def test_dit_refuses_latents_that_it_would_scramble(height, width):
    model = probed()
    inputs = {**tiny.inputs(), "hidden_states": torch.randn(2, 4, height, width)}
    with pytest.raises(ValueError, match=f"squares only: latents of {height} x {width}"):
        model(**inputs)


def test_two_models_two_sizes_take_turns():
    models, sizes = [probed(seed=0), probed(seed=1, width=48, heads=6)], [8, 5, 16, 8]
    alone = [
        [tiny.run(copy.deepcopy(model), **tiny.inputs(side=side)) for side in sizes]
        for model in models
    ]
    for step, side in enumerate(sizes):
        for model, wanted in zip(models, alone, strict=True):
            assert torch.equal(tiny.run(model, **tiny.inputs(side=side)), wanted[step])


def test_a_doubled_batch_is_the_two_halves():
    model = linattn.linearize(tiny.model(), "mediator", **SCHEDULE)
    inputs = {**tiny.inputs(batch=2), "timestep": torch.tensor([900, 100])}
    doubled = {name: torch.cat([value, value]) for name, value in inputs.items()}
    half = tiny.run(model, **inputs)
    torch.testing.assert_close(tiny.run(model, **doubled), torch.cat([half, half]))


def test_a_scheduled_operator_follows_each_samples_noise():
    model = linattn.linearize(tiny.model(), "mediator", **SCHEDULE)
    few, many = (
        linattn.linearize(tiny.model(), "mediator", conv=0, count=count) for count in (4, 9)
    )
    inputs = {**tiny.inputs(batch=2), "timestep": torch.tensor([900, 100])}
    out = tiny.run(model, **inputs)
    torch.testing.assert_close(out[0], tiny.run(few, **inputs)[0])
    torch.testing.assert_close(out[1], tiny.run(many, **inputs)[1])
    assert not torch.allclose(out[1], tiny.run(few, **inputs)[1], atol=1e-4)


# Backward
# ---------------------------------------------------------------------------------------------


def forwards(model: nn.Module, sizes: list[int]) -> torch.Tensor:
    """A loss over several forwards with different sizes and times, before any backward."""
    return sum(
        tiny.run(model, **tiny.inputs(side=side, seed=i)).square().mean()
        for i, side in enumerate(sizes)
    )


@pytest.mark.parametrize("sizes", [[8], [8, 8], [8, 5, 16]], ids=str)
def test_several_forwards_before_one_backward(sizes):
    together = probed()
    total = gradients(together, forwards(together, sizes))
    parts = [
        gradients(together, tiny.run(together, **tiny.inputs(side=side, seed=i)).square().mean())
        for i, side in enumerate(sizes)
    ]
    summed = [None if terms[0] is None else sum(terms) for terms in zip(*parts, strict=True)]
    assert same(total, summed, tolerance=1e-5 * max(g.abs().max() for g in total if g is not None))


def plain(model):
    model.enable_gradient_checkpointing()


def own_function(model):
    model.enable_gradient_checkpointing(
        lambda block, *args: checkpoint.checkpoint(block, *args, use_reentrant=False)
    )


def reentrant(model):
    model.enable_gradient_checkpointing(
        lambda block, *args: checkpoint.checkpoint(block, *args, use_reentrant=True)
    )


@pytest.mark.parametrize("sizes", [[8], [8, 8], [8, 5, 16]], ids=str)
@pytest.mark.parametrize(
    "checkpointed", [plain, own_function, reentrant], ids=lambda function: function.__name__
)
@pytest.mark.parametrize("order", ["before", "after"])
def test_gradient_checkpointing_recomputes_with_its_own_grid_and_noise(checkpointed, sizes, order):
    wanted = probed()
    model = tiny.model()
    if order == "before":
        checkpointed(model)
    linattn.linearize(model, "probe")
    if order == "after":
        checkpointed(model)
    model.train()
    for module in model.modules():
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    if checkpointed is reentrant:  # it needs an input with a gradient, and cannot use autograd.grad
        loss = sum(
            tiny.run(model, **{**inputs, "hidden_states": inputs["hidden_states"].requires_grad_()})
            .square()
            .mean()
            for inputs in (tiny.inputs(side=side, seed=i) for i, side in enumerate(sizes))
        )
        loss.backward()
        layers = [parameter.grad for parameter in model.parameters()]
    else:
        layers = gradients(model, forwards(model, sizes))
    reference = gradients(wanted, forwards(wanted, sizes))
    assert same(
        layers, reference, tolerance=1e-6 * max(g.abs().max() for g in reference if g is not None)
    )


# Copies, threads, compilation
# ----------------------------------------------------------------------------------------


def test_a_deepcopy_lives_apart():
    model = probed()
    twin = copy.deepcopy(model)
    inputs = tiny.inputs()
    wanted = tiny.run(model, **inputs)
    with torch.no_grad():
        for layer in families.layers(twin):
            layer.operator.scale.zero_()
    assert not torch.allclose(
        tiny.run(twin, **tiny.inputs(side=5)), tiny.run(model, **tiny.inputs(side=5))
    )
    assert torch.equal(tiny.run(model, **inputs), wanted)
    del model
    assert tiny.run(twin, **inputs).isfinite().all()


@pytest.mark.parametrize("shared", [True, False], ids=["one model", "two models"])
def test_threads(shared):
    models = [probed()] * 2 if shared else [probed(), probed(seed=1)]
    sizes = [8, 13]
    alone = [
        tiny.run(model, **tiny.inputs(side=side)) for model, side in zip(models, sizes, strict=True)
    ]
    wrong = []

    def work(model, side, wanted):
        for _ in range(30):
            try:
                if not torch.allclose(tiny.run(model, **tiny.inputs(side=side)), wanted, atol=1e-5):
                    wrong.append(side)
            except Exception as error:
                wrong.append(error)

    threads = [
        threading.Thread(target=work, args=work_of)
        for work_of in zip(models, sizes, alone, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_compiled_block_equals_the_eager_one_at_every_size():
    torch._dynamo.reset()
    model = linattn.linearize(tiny.model(layers=1), "clear", radius=3)
    sizes = (8, 5, 6)
    with torch.no_grad():
        wanted = [tiny.run(model, **tiny.inputs(side=side)) for side in sizes]
        graphs = []

        def backend(graph, _):
            graphs.append(graph)
            return graph.forward

        for block in model.transformer_blocks:
            block.compile(backend=backend)
        for side, eager in zip(sizes, wanted, strict=True):
            torch.testing.assert_close(
                tiny.run(model, **tiny.inputs(side=side)), eager, atol=1e-5, rtol=1e-5
            )
    assert graphs


def test_the_grid_does_not_recompile():
    """Integers in the context would cost two graphs a size; the fifth would hit the limit."""
    torch._dynamo.reset()
    model = probed(layers=1)
    for layer in families.layers(model):
        layer.operator.seen = Silent()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    for block in model.transformer_blocks:
        block.compile(backend=backend, fullgraph=True)
    with torch.no_grad():
        for side in (8, 5, 6, 7):
            tiny.run(model, **tiny.inputs(side=side))
    assert len(graphs) <= 2  # one for the first size, one for all others


def test_a_block_compiled_before_conversion_follows_it_and_back():
    torch._dynamo.reset()
    model, eager = tiny.model(), tiny.model()
    for block in model.transformer_blocks:
        block.compile(backend="eager")
    with torch.no_grad():
        wanted = tiny.run(eager)
        torch.testing.assert_close(tiny.run(model), wanted)
        for dense in (model, eager):
            linattn.linearize(dense, "clear", radius=3, layers=[1])  # the other layer stays dense
        torch.testing.assert_close(tiny.run(model), tiny.run(eager))
        assert not torch.allclose(tiny.run(model), wanted, atol=1e-3)
        linattn.restore(model)
        torch.testing.assert_close(tiny.run(model), wanted)


@pytest.mark.parametrize("operator", [None, "clear"])
def test_capture_of_compiled_blocks_compiles_them_anew(operator):
    torch._dynamo.reset()
    model = tiny.model()
    if operator is not None:
        linattn.linearize(model, operator, radius=3)
    with torch.no_grad():
        with families.capture(model) as seen:
            tiny.run(model)
        wanted = [entry["output"] for entry in seen]
        for block in model.transformer_blocks:
            block.compile(backend="eager")
        tiny.run(model)
        with families.capture(model) as seen:
            tiny.run(model)
    torch.testing.assert_close([entry["output"] for entry in seen], wanted)


def test_capture_raises_rather_than_miss_layers():
    model = tiny.model()
    model.transformer_blocks[1].forward = lambda hidden_states, **_: hidden_states
    with pytest.raises(RuntimeError, match="capture saw 1 of 2"), families.capture(model):
        tiny.run(model)


class Silent(list):
    """Keeps nothing: a list that grows would recompile by itself."""

    def append(self, _):
        pass


# Layers left dense, layers lost
# --------------------------------------------------------------------------------------


def test_dense_layers_neither_warn_nor_change(caplog):
    model = tiny.model(layers=3)
    inputs = tiny.inputs()
    with families.capture(model) as before:
        tiny.run(model, **inputs)
    first = before[0]["output"]
    linattn.linearize(model, "probe", layers=[1, 2])
    diffusers_log = logging.getLogger("diffusers")
    diffusers_log.addHandler(caplog.handler)
    try:
        with families.capture(model) as after:
            tiny.run(model, **inputs)
    finally:
        diffusers_log.removeHandler(caplog.handler)
    assert torch.equal(after[0]["output"], first)
    assert not torch.equal(after[2]["output"], before[2]["output"])
    assert not caplog.records


def test_a_lost_processor_raises_instead_of_being_softmax_again():
    model = probed()
    wanted = tiny.run(model)
    for layer in families.layers(model):
        layer.attn.set_attention_slice(None)  # what enable_attention_slicing ends in
    with pytest.raises(RuntimeError, match="lost its processor to AttnProcessor2_0"):
        tiny.run(model)
    linattn.reattach(model)
    assert torch.equal(tiny.run(model), wanted)


def test_processors_can_be_rebuilt_as_ip_adapters_do():
    model = probed()
    wanted = tiny.run(model)
    for layer in families.layers(model):
        layer.attn.set_processor(layer.attn.processor.__class__())
    assert torch.equal(tiny.run(model), wanted)


def test_a_layer_called_without_its_grid_says_how():
    with pytest.raises(ValueError, match=r"families\.apply"):
        families.layers(probed())[0].attn(torch.randn(1, 64, 32))


def test_the_layers_own_norms_residual_and_scale_are_kept():
    """softmax in our processor is diffusers' own, whatever the Attention is configured to do."""
    model = tiny.model()
    attn = model.transformer_blocks[0].attn1
    attn.norm_q, attn.norm_k = nn.LayerNorm(8), nn.LayerNorm(8)
    attn.group_norm = nn.GroupNorm(4, 32)
    attn.residual_connection, attn.rescale_output_factor = True, 2.0
    for norm in (attn.norm_q, attn.norm_k, attn.group_norm):
        nn.init.normal_(norm.weight)
    picture = torch.randn(2, 32, 8, 8)
    x, layer = picture.flatten(2).transpose(1, 2), families.layers(model)[0]
    wanted, of_picture = attn(x), attn(picture)
    linattn.linearize(model, "softmax")
    torch.testing.assert_close(families.apply(layer, x, Grid(8, 8)), wanted)
    torch.testing.assert_close(families.apply(layer, picture, Grid(8, 8)), of_picture)


class LowRank(nn.Module):
    """What peft wraps a projection in."""

    def __init__(self, base_layer: nn.Linear):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base_layer.out_features, bias=False)})

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_lora_on_a_projection_is_honoured(order):
    torch.manual_seed(0)
    plain_model, model = probed(), tiny.model()
    if order == "after":
        linattn.linearize(model, "probe")
    for block in model.transformer_blocks:
        block.attn1.to_q = LowRank(block.attn1.to_q)
    if order == "before":
        linattn.linearize(model, "probe")
    assert not torch.allclose(tiny.run(model), tiny.run(plain_model), atol=1e-3)
    for block in model.transformer_blocks:
        block.attn1.to_q = block.attn1.to_q.base_layer
    assert torch.equal(tiny.run(model), tiny.run(plain_model))


# One layer, and all of them
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", [False, True], ids=["teacher", "student"])
def test_capture_sees_what_apply_repeats(student):
    model = linattn.linearize(tiny.model(), "clear", **WINDOW) if student else tiny.model()
    inputs = tiny.inputs(batch=3, side=7)
    with families.capture(model) as captured:
        tiny.run(model, **tiny.inputs(side=5))
        tiny.run(model, **inputs)  # each forward fills it anew
    assert len(captured) == 2
    for layer, entry in zip(families.layers(model), captured, strict=True):
        assert entry["grid"] == Grid(7, 7)
        assert torch.equal(entry["noise"], inputs["timestep"] / 1000)
        again = families.apply(layer, entry["input"], entry["grid"], entry["noise"])
        torch.testing.assert_close(again, entry["output"])
    tiny.run(model, **tiny.inputs(side=5))
    assert captured[0]["grid"] == Grid(7, 7)  # no hook is left behind


def test_capture_keeps_the_graph_unless_detached():
    model = probed()
    with families.capture(model) as captured:
        tiny.run(model)
    captured[1]["output"].square().mean().backward()
    assert model.transformer_blocks[0].attn1.to_v.weight.grad.abs().max() > 0
    with families.capture(model, detach=True) as captured:
        tiny.run(model)
    assert not captured[1]["output"].requires_grad
    assert not captured[1]["input"].requires_grad


def test_capture_ignores_the_recomputation_of_checkpointing():
    model = probed().train()
    model.enable_gradient_checkpointing()
    with families.capture(model) as captured:
        tiny.run(model).square().mean().backward()
        assert len(captured) == 2


def test_a_half_precision_model_keeps_its_dtype():
    model = probed().to(torch.bfloat16)
    inputs = tiny.inputs(dtype=torch.bfloat16)
    assert tiny.run(model, **inputs).dtype == torch.bfloat16
    assert seen(model)[0][-1][1].dtype == torch.float32  # 999 / 1000 has no bfloat16
