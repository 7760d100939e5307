"""Conversion and back, a student's folder, and everything that must be refused before anything is
changed.
"""

import copy
import json
import pickle

import accelerate
import kinds
import pytest
import tiny
import torch
from layers import FORMS, richest
from safetensors.torch import load_file, save_file
from torch import nn

import linattn
from linattn import families, surgery, teachers
from linattn.attention import OPERATORS, POLICIES
from linattn.digests import of_file
from linattn.surgery.select import select

EVERY = list(OPERATORS)
MAPPED = [name for name, operator in OPERATORS.items() if operator.has_map]
# the richest form of mixed names layers, which some tests do not choose
OPTIONS = {name: richest(name) for name in EVERY} | {"mixed": FORMS["mixed-noise"].options}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


@torch.no_grad()
def train(model: nn.Module, *parts: str, seed: int = 1) -> None:
    """Stand-in for training: moves every parameter whose name holds one of the parts."""
    dice = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if any(fragment in name for fragment in parts):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=dice))


def untouched(model: nn.Module) -> bool:
    """Nothing of linattn is left on it."""
    return (
        not any("linattn" in name for name in [*vars(model), *model.state_dict()])
        and not any(module._forward_pre_hooks for module in model.modules())
        and "save_pretrained" not in vars(model)
        and {type(layer.attn.processor).__name__ for layer in families.layers(model)}
        == {"AttnProcessor2_0"}
    )


def operators(model) -> list[str]:
    return [row["operator"].split()[0] for row in linattn.describe(model)]


# The first step
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("softmax", {}),
        ("softmax", {"conv": 3}),
        ("clear", {"radius": 100}),
        ("clear", {"radius": 1e6}),
    ],
    ids=["softmax", "softmax-conv", "clear-100", "clear-1e6"],
)
@pytest.mark.parametrize(("side", "patch"), [(8, 1), (5, 1), (12, 2)], ids=str)
def test_a_student_that_loses_nothing_begins_as_its_teacher(name, options, side, patch):
    model = tiny.model(patch=patch)
    inputs = tiny.inputs(batch=3, side=side)
    wanted = tiny.run(model, **inputs)
    linattn.linearize(model, name, **options)
    torch.testing.assert_close(tiny.run(model, **inputs), wanted, atol=1e-5, rtol=1e-5)


def test_in_double_precision_to_the_last_digits():
    model, inputs = tiny.model().double(), tiny.inputs(dtype=torch.float64)
    wanted = tiny.run(model, **inputs)
    for options in ({"name": "softmax", "conv": 5}, {"name": "clear", "radius": 99}):
        student = linattn.linearize(copy.deepcopy(model), **options)
        torch.testing.assert_close(tiny.run(student, **inputs), wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_a_student_in_half_precision_is_close_to_float32(name, dtype):
    model, inputs = tiny.model(), tiny.inputs()
    torch.manual_seed(0)
    wanted = tiny.run(linattn.linearize(copy.deepcopy(model), name, **OPTIONS[name]), **inputs)
    torch.manual_seed(0)  # the same fresh weights
    half = linattn.linearize(model.to(dtype), name, **OPTIONS[name])
    assert {tensor.dtype for tensor in half.parameters()} == {dtype}
    out = tiny.run(half, **tiny.inputs(dtype=dtype))
    assert (out.float() - wanted).norm() / wanted.norm() < 0.1


@pytest.mark.parametrize("name", EVERY)
def test_the_stock_pipeline_draws_with_a_student(name):
    pipe = tiny.pipeline()
    assert linattn.linearize(pipe, name, **OPTIONS[name]) is pipe
    draw = {"class_labels": [0, 3], "num_inference_steps": 3, "output_type": "np"}
    pictures = pipe(**draw, generator=torch.Generator().manual_seed(0)).images
    assert pictures.shape == (2, 32, 32, 3)
    again = pipe(**draw, generator=torch.Generator().manual_seed(0)).images
    assert (pictures == again).all()


def test_a_scheduler_that_steps_once_draws_twice_the_side():
    pipe = linattn.linearize(tiny.pipeline("ddim"), "clear", radius=3)
    pipe.transformer.register_to_config(sample_size=16)
    pictures = pipe(
        class_labels=[0], num_inference_steps=1, guidance_scale=1.0, output_type="np"
    ).images
    assert pictures.shape == (1, 64, 64, 3)


# Choosing layers
# ---------------------------------------------------------------------------------------------


def every_third(layer) -> bool:
    return layer.index % 3 == 0


def second_block(layer) -> bool:
    return layer.name.startswith("transformer_blocks.1.")


def no_layer(layer) -> bool:
    return False


def named(value) -> str:
    """An id that is the same in every process: a function's is not."""
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(
    ("which", "chosen"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("every:2", [0, 2, 4]),
        ("every:1", [0, 1, 2, 3, 4]),
        ("first:2", [0, 1]),
        ("last:2", [3, 4]),
        ("except:first:2", [2, 3, 4]),
        ("except:every:2", [1, 3]),
        ("except:transformer_blocks.1.attn1", [0, 2, 3, 4]),
        ([3, 1, 1], [1, 3]),
        ((-1,), [4]),
        (2, [2]),
        ("transformer_blocks.3.attn1", [3]),
        (["transformer_blocks.3.attn1", 0, "last:1"], [0, 3, 4]),
        (every_third, [0, 3]),
        (second_block, [1]),
    ],
    ids=named,
)
def test_a_selection_chooses_these_layers(which, chosen):
    layers = families.layers(tiny.model(layers=5))
    assert [layer.index for layer in select(layers, which)] == chosen


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("evry:2", "did you mean 'every:2'"),
        ("every:0", "a number from 1 to 2"),
        ("first:3", "a number from 1 to 2"),
        ("first", "unknown layer 'first'"),
        ("except:", "unknown layer 'except:'"),
        ("transformer_blocks.1.attn", "did you mean 'transformer_blocks.1.attn1'"),
        ([0, 2], "no layer 2: this model has 2"),
        ([True], "unknown layer True"),
        ([0.5], "unknown layer 0.5"),
        ([], "selects none of the 2"),
        ("except:all", "selects none"),
        (no_layer, "selects none"),
    ],
    ids=named,
)
def test_a_wrong_selection_changes_nothing(which, message):
    model = tiny.model()
    with pytest.raises(ValueError, match=message):
        linattn.linearize(model, "softmax", layers=which)
    assert untouched(model)


def test_operators_mix_and_a_layer_is_converted_from_its_original():
    model = tiny.model(layers=4)
    before = state(model)
    linattn.linearize(model, "clear", layers="first:2", radius=3)
    linattn.linearize(model, "lit", layers=[3], initialise="mlp_only")
    assert operators(model) == ["clear", "clear", "softmax", "lit"]
    train(model, "attn1")
    linattn.linearize(model, "mediator", layers=[1, 3], count=4)
    assert operators(model) == ["clear", "mediator", "softmax", "mediator"]
    after = state(model)
    for index, moved in enumerate([True, False, True, False]):
        name = f"transformer_blocks.{index}.attn1.to_q.weight"
        assert torch.equal(before[name], after[name]) != moved
    # nothing left of lit
    assert not any("attn1.linattn.kernel" in name for name in after if ".3." in name)
    fresh = linattn.linearize(tiny.model(layers=4), "mediator", layers=[1, 3], count=4)
    assert after.keys() >= fresh.state_dict().keys()


# What is refused
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cleer"}, "did you mean 'clear'"),
        ({"name": "clear", "radios": 3}, "radius"),
        ({"name": "clear", "radius": -1}, "radius"),
        ({"name": "softmax", "conv": 2}, "conv"),
        ({"name": "lit", "heads": 3}, "heads"),
        ({"name": "softmax", "initialise": "al"}, "did you mean 'all'"),
    ],
    ids=str,
)
def test_a_wrong_option_changes_nothing(arguments, message):
    model = linattn.linearize(tiny.model(), "clear", layers=[0], radius=3)
    before, layers = state(model), linattn.describe(model)
    with pytest.raises(ValueError, match=message):
        linattn.linearize(model, **arguments)
    assert equal(state(model), before)
    assert linattn.describe(model) == layers


@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_a_conversion_that_fails_half_way_is_undone(monkeypatch, again):
    model = linattn.linearize(tiny.model(), "clear", radius=3) if again else tiny.model()
    train(model, "attn1")
    before, wanted = state(model), tiny.run(model)
    calls = []

    def initialise(self, attn, policy="all"):
        nn.init.zeros_(attn.to_q.weight)
        calls.append(policy)
        if len(calls) == 2:
            raise MemoryError("no room")

    monkeypatch.setattr(OPERATORS["softmax"], "initialise", initialise)
    with pytest.raises(MemoryError):
        linattn.linearize(model, "softmax", conv=3)
    assert equal(state(model), before)
    assert torch.equal(tiny.run(model), wanted)
    assert again or untouched(model)


@pytest.mark.parametrize("kind", ["dit", "unet", "flux", "sd3"])
def test_a_teacher_is_taken_as_its_pipeline(kind, tmp_path):
    pipe = tiny.pipeline() if kind == "dit" else kinds.pipeline(kind)
    made = teachers.Teacher(pipe, {"side": 32}, kind)
    assert linattn.linearize(made, "linfusion") is made
    linattn.save(made, tmp_path)
    linattn.restore(made)
    assert linattn.load(made, tmp_path) is made
    assert linattn.describe(made) == linattn.describe(pipe)
    assert {row["operator"] for row in linattn.describe(made)} == {"linfusion"}


def test_an_unsupported_model_is_named():
    reason = "it has none of diffusers' attention layers"
    says = f"AutoencoderKL is not supported: {reason}; .*DiTTransformer2DModel"
    with pytest.raises(ValueError, match=says):
        linattn.linearize(tiny.vae(), "softmax")


def test_a_plain_model_has_nothing_to_restore_or_save(tmp_path):
    with pytest.raises(ValueError, match="not linearised"):
        linattn.restore(tiny.model())
    with pytest.raises(ValueError, match="not linearised"):
        linattn.save(tiny.model(), tmp_path / "student")
    assert not (tmp_path / "student").exists()


# And back
# ---------------------------------------------------------------------------------------------


DATALESS = [policy for policy in POLICIES if POLICIES[policy].fit is None]


@pytest.mark.parametrize("policy", DATALESS)
@pytest.mark.parametrize("name", EVERY)
def test_restore_bit_for_bit(name, policy):
    pipe = tiny.pipeline()
    model = pipe.transformer
    before, wanted = state(model), tiny.run(model)
    processors = [layer.attn.processor for layer in families.layers(model)]
    linattn.linearize(pipe, name, initialise=policy, **OPTIONS[name])
    train(model, "attn1")
    assert not torch.allclose(tiny.run(model), wanted, atol=1e-3)
    assert linattn.restore(pipe) is pipe
    assert equal(state(model), before)
    assert torch.equal(tiny.run(model), wanted)
    assert untouched(model)
    assert [layer.attn.processor for layer in families.layers(model)] == processors


def test_restore_keeps_the_parameters_that_an_optimiser_holds():
    model = tiny.model()
    held = dict(model.named_parameters())
    linattn.linearize(model, "lit", initialise="mlp_only")
    linattn.restore(model)
    assert all(parameter is held[name] for name, parameter in model.named_parameters())


def test_restore_after_mixing_and_repeating():
    model = tiny.model(layers=3)
    before = state(model)
    for name, layers in [
        ("clear", "all"),
        ("lit", [1]),
        ("linfusion", "first:2"),
        ("softmax", [0]),
    ]:
        linattn.linearize(model, name, layers=layers, initialise="mlp_only")
        train(model, "attn1")
    linattn.restore(model)
    assert equal(state(model), before)


def test_restore_names_what_else_was_trained():
    model = linattn.linearize(tiny.model(), "clear")
    train(model, "proj_out_1.bias", "transformer_blocks.1.ff")
    before = state(model)
    with pytest.raises(
        ValueError, match=r"5 tensors outside .*transformer_blocks\.1\.ff\.net\.0\.proj\.weight"
    ):
        linattn.restore(model)
    assert equal(state(model), before)
    linattn.restore(model, strict=False)
    assert untouched(model)
    for layer, original in zip(families.layers(model), families.layers(tiny.model()), strict=True):
        assert equal(state(layer.attn), state(original.attn))


def test_an_original_that_was_not_kept_is_not_restored():
    model = linattn.linearize(tiny.model(), "clear", layers=[0], keep_original=False)
    linattn.linearize(model, "clear", layers=[1])
    with pytest.raises(ValueError, match=r"transformer_blocks\.0\.attn1 were not kept"):
        linattn.restore(model)
    with pytest.raises(ValueError, match=r"transformer_blocks\.0\.attn1 were not kept"):
        linattn.linearize(model, "lit")
    assert operators(model) == ["clear", "clear"]


def test_restore_after_a_cast_is_the_cast_original():
    model = linattn.linearize(tiny.model(), "lit", initialise="mlp_only").to(torch.float16)
    linattn.restore(model)
    assert equal(state(model), state(tiny.model().to(torch.float16)))
    wide = linattn.linearize(tiny.model().to(torch.bfloat16), "lit").to(torch.float32)
    linattn.restore(wide)
    assert equal(state(wide), state(tiny.model().to(torch.bfloat16).float()))


def test_deepcopies_are_students_of_their_own():
    model = linattn.linearize(tiny.model(), "clear", radius=3)
    before, wanted = state(model), tiny.run(model)
    twin = copy.deepcopy(model)
    train(twin, "attn1")
    linattn.linearize(twin, "lit", layers=[0])
    assert equal(state(model), before)
    linattn.restore(model)
    assert operators(twin) == ["lit", "clear"]
    assert tiny.run(twin).isfinite().all()
    linattn.restore(twin)
    assert equal(state(twin), state(model))
    assert torch.equal(tiny.run(linattn.linearize(twin, "clear", radius=3)), wanted)


def test_a_student_can_be_pickled():
    model = linattn.linearize(tiny.model(), "mediator", count=4)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(tiny.run(again), tiny.run(model))
    linattn.restore(again)
    assert untouched(again)


def test_save_pretrained_refuses_until_restored(tmp_path):
    pipe = linattn.linearize(tiny.pipeline(), "softmax")
    for saver in (pipe, pipe.transformer, copy.deepcopy(pipe.transformer)):
        with pytest.raises(ValueError, match=r"linattn\.save"):
            saver.save_pretrained(tmp_path / "refused")
    assert not (tmp_path / "refused" / "transformer").exists()
    linattn.restore(pipe).save_pretrained(tmp_path / "base")
    again = type(pipe).from_pretrained(tmp_path / "base")
    assert torch.equal(tiny.run(again.transformer), tiny.run(pipe.transformer))


def test_a_model_on_the_meta_device_converts():
    with torch.device("meta"):
        model = tiny.model()
    linattn.linearize(model, "mediator")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


# Looking
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["flux", "unet", "sd3", "pixart"])
def test_fused_projections_are_refused_until_they_are_unfused(kind):
    """FLUX's fused weight is a copy: after `restore` it was still the student's."""
    model, inputs = kinds.model(kind), kinds.inputs(kind, 3, 4)
    with torch.no_grad():
        wanted = kinds.run(model, **inputs)
    linattn.linearize(model, "clear", radius=2)
    for layer in families.layers(model):
        nn.init.normal_(layer.attn.to_q.weight)
    model.fuse_qkv_projections()
    for call in (linattn.restore, lambda model: linattn.linearize(model, "lit")):
        with pytest.raises(ValueError, match="are fused: call unfuse_qkv_projections"):
            call(model)
    model.unfuse_qkv_projections()
    with torch.no_grad():
        assert torch.equal(kinds.run(linattn.restore(model), **inputs), wanted)


@pytest.mark.parametrize("name", EVERY)
def test_a_student_may_be_offloaded_after_it_was_made(name):
    model = linattn.linearize(tiny.model(), name, **OPTIONS[name])
    wanted = tiny.run(model, **tiny.inputs())
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    torch.testing.assert_close(tiny.run(model, **tiny.inputs()), wanted, atol=0, rtol=0)


def test_describe_says_operator_options_and_backend():
    descriptions = linattn.describe(
        linattn.linearize(tiny.pipeline(), "clear", layers=[1], radius=3)
    )
    assert descriptions[0] == {
        "index": 0,
        "name": "transformer_blocks.0.attn1",
        "operator": "softmax (dense)",
        "options": {},
        "parameters": 4 * (32 * 32 + 32),
        "backend": "torch",
        "because": "not linearised",
    }
    assert (descriptions[1]["backend"], descriptions[1]["because"]) == (
        "torch",
        "the tensors are on the CPU",
    )
    assert (descriptions[1]["operator"], descriptions[1]["options"]["radius"]) == ("clear", 3)


def test_parameters_are_listed_by_name():
    model = linattn.linearize(tiny.model(), "lit", layers=[1], kernel=3)
    named = dict(model.named_parameters())
    new, inside = dict(surgery.new_parameters(model)), dict(surgery.attention_parameters(model))
    assert all(named[name] is parameter for name, parameter in {**new, **inside}.items())
    assert new
    assert all(name.startswith("transformer_blocks.1.attn1.linattn.") for name in new)
    assert inside.keys() == new.keys() | {
        name for name in named if name.startswith("transformer_blocks.1.attn1.to_")
    }


@pytest.mark.parametrize("side", [8, 5], ids=str)
@pytest.mark.parametrize("name", [None, *MAPPED], ids=str)
def test_the_map_times_the_values_is_the_layer(name, side):
    """attention_map, local and the layer's own output say the same, in the teacher and in every
    student.
    """
    model, inputs = tiny.model().double(), tiny.inputs(side=side, dtype=torch.float64)
    if name:
        linattn.linearize(model, name, **OPTIONS[name])
        train(model, "attn1")
    weights = linattn.attention_map(model, 1, **inputs)
    heads = weights.shape[1]  # an operator may regroup them
    assert weights.shape == (2, heads, side**2, side**2)
    assert name is not None or heads == 4
    assert weights.dtype == torch.float64
    layer = families.layers(model)[1]
    with torch.no_grad(), families.capture(model) as seen:
        tiny.run(model, **inputs)
        x, grid = seen[1]["input"], seen[1]["grid"]
        _, _, v = families.projections(layer.attn, x, grid)
        read = torch.einsum(
            "bhij,bjhd->bihd", weights, v.flatten(2).unflatten(2, (heads, -1))
        ).reshape(v.shape)
        read = read if name is None else read + layer.operator.local(v, grid, seen[1]["noise"])
        out = layer.attn.to_out[0](read.flatten(2))
    torch.testing.assert_close(out, seen[1]["output"], atol=1e-9, rtol=1e-9)


def test_a_map_is_of_one_layer():
    with pytest.raises(ValueError, match="layer='all' names 2 layers, and a map is of one"):
        linattn.attention_map(tiny.model(), "all", **tiny.inputs())


def test_a_map_by_name_in_half_precision():
    model = tiny.model().to(torch.bfloat16)
    weights = linattn.attention_map(
        model, "transformer_blocks.0.attn1", **tiny.inputs(dtype=torch.bfloat16)
    )
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 64))


# A student's folder
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path):
    tiny.pipeline().save_pretrained(tmp_path / "dit-tiny")
    return lambda: type(tiny.pipeline()).from_pretrained(tmp_path / "dit-tiny")


@pytest.fixture
def student(base, tmp_path):
    pipe = linattn.linearize(base(), "clear", radius=3, pool=2)
    train(pipe.transformer, "attn1")
    linattn.save(pipe, tmp_path / "student")
    return pipe


@pytest.mark.parametrize("name", EVERY)
def test_save_and_load_into_a_fresh_pipeline(base, tmp_path, name):
    pipe = linattn.linearize(base(), name, layers="last:1", initialise="v", **OPTIONS[name])
    train(pipe.transformer, "blocks.1.attn1")
    assert linattn.save(pipe, tmp_path / "student") == tmp_path / "student"
    fresh = base()
    assert linattn.load(fresh, tmp_path / "student") is fresh
    assert equal(state(fresh.transformer), state(pipe.transformer))
    assert torch.equal(tiny.run(fresh.transformer), tiny.run(pipe.transformer))
    assert linattn.describe(fresh) == linattn.describe(pipe)
    linattn.restore(fresh)
    assert equal(state(fresh.transformer), state(base().transformer))


def test_a_mixed_student_with_a_schedule_comes_back(base, tmp_path):
    pipe = linattn.linearize(base(), "lit", layers=[0])
    schedule = [{"until": 0.5, "count": 4}, {"until": 0.0, "count": [2, 4]}]
    linattn.linearize(pipe, "mediator", layers=[1], schedule=schedule)
    linattn.save(pipe, tmp_path / "student")
    fresh = linattn.load(base(), str(tmp_path / "student"))
    assert torch.equal(tiny.run(fresh.transformer), tiny.run(pipe.transformer))
    assert linattn.describe(fresh) == linattn.describe(pipe)


def test_the_folder_holds_the_delta_alone(base, tmp_path):
    pipe = linattn.linearize(base(), "softmax", layers=[0], conv=3)
    train(pipe.transformer, "norm1.emb.class_embedder", "blocks.0.attn1")
    linattn.save(pipe, tmp_path / "student")
    tensors = load_file(tmp_path / "student" / "linattn.safetensors")
    inside = {name for name, _ in surgery.attention_parameters(pipe)}
    tables = {
        f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight" for i in (0, 1)
    }
    assert tensors.keys() == inside | tables
    fresh = linattn.load(base(), tmp_path / "student")
    assert equal(state(fresh.transformer), state(pipe.transformer))
    linattn.save(fresh, tmp_path / "again")
    for name in ("linattn.safetensors", "linattn.json"):
        assert (tmp_path / "again" / name).read_bytes() == (
            tmp_path / "student" / name
        ).read_bytes()
    linattn.restore(fresh)  # loading kept what it overwrote, inside the attentions and outside
    assert equal(state(fresh.transformer), state(base().transformer))


def test_the_card_names_the_base_and_no_path_of_this_machine(student, tmp_path):
    text = (tmp_path / "student" / "linattn.json").read_text()
    card = json.loads(text)
    assert str(tmp_path) not in text
    assert card["format"] == 2
    assert card["layers"][1] == {
        "index": 1,
        "name": "transformer_blocks.1.attn1",
        "operator": "clear",
        "options": student.transformer.transformer_blocks[1].attn1.linattn.options,
        "initialise": "all",
    }
    assert (card["base"]["class"], card["base"]["name"]) == ("DiTTransformer2DModel", "dit-tiny")
    assert card["base"]["config"]["num_layers"] == 2


def test_loading_another_student_replaces_the_first(base, tmp_path, student):
    other = linattn.linearize(base(), "lit", layers=[0])
    linattn.save(other, tmp_path / "other")
    linattn.load(student, tmp_path / "other")
    assert operators(student) == ["lit", "softmax"]
    assert equal(state(student.transformer), state(other.transformer))


def test_a_load_that_fails_half_way_leaves_the_student_that_was_there(
    base, tmp_path, student, monkeypatch
):
    other = linattn.linearize(base(), "lit", layers=[0])
    linattn.save(other, tmp_path / "other")
    before, wanted = state(student.transformer), tiny.run(student.transformer, **tiny.inputs())
    monkeypatch.setattr(OPERATORS["lit"], "load_state_dict", lambda self, state: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        linattn.load(student, tmp_path / "other")
    assert equal(state(student.transformer), before)
    assert torch.equal(tiny.run(student.transformer, **tiny.inputs()), wanted)
    linattn.save(student, tmp_path / "again")
    assert (tmp_path / "again" / "linattn.safetensors").read_bytes() == (
        tmp_path / "student" / "linattn.safetensors"
    ).read_bytes()
    assert equal(
        state(linattn.restore(student, strict=False).transformer),
        state(linattn.restore(other).transformer),
    )


OTHERS = {
    "width": ({"width": 48}, r"attention_head_dim 8 there, 12 here"),
    "layers": ({"layers": 3}, r"num_layers 2 there, 3 here"),
    "size": ({"side": 16}, r"sample_size 8 there, 16 here"),
    "weights": ({"seed": 5}, r"the weights"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_base_is_refused_and_both_are_named(student, tmp_path, other):
    shape, difference = OTHERS[other]
    tiny.pipeline(**shape).save_pretrained(tmp_path / "dit-other")
    wrong = type(student).from_pretrained(tmp_path / "dit-other")
    before = state(wrong.transformer)
    with pytest.raises(
        ValueError, match=rf"'dit-tiny' .*this is DiTTransformer2DModel 'dit-other' .*{difference}"
    ):
        linattn.load(wrong, tmp_path / "student")
    assert equal(state(wrong.transformer), before)
    assert untouched(wrong.transformer)


def test_another_class_is_refused_strict_or_not(student, tmp_path):
    model = tiny.model()
    model.__class__ = type("OtherTransformer", (type(model),), {})
    for strict in (True, False):
        with pytest.raises(
            ValueError, match="class DiTTransformer2DModel there, OtherTransformer here"
        ):
            linattn.load(model, tmp_path / "student", strict=strict)
    assert untouched(model)


def test_a_fine_tune_of_the_base_takes_a_student_if_not_strict(student, tmp_path):
    tuned = tiny.model()
    train(tuned, "ff")
    with pytest.warns(UserWarning, match="they differ in the weights"):
        linattn.load(tuned, tmp_path / "student", strict=False)
    assert operators(tuned) == ["clear", "clear"]
    inside = "transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(tuned.state_dict()[inside], student.transformer.state_dict()[inside])
    assert not torch.equal(tiny.run(tuned), tiny.run(student.transformer))


def test_shapes_are_checked_even_when_not_strict(student, tmp_path):
    wide = tiny.model(width=48)
    fits_not = pytest.raises(
        ValueError, match=r"does not fit .*is \(32, 32\) there, \(48, 48\) here"
    )
    with fits_not, pytest.warns(UserWarning, match="attention_head_dim"):
        linattn.load(wide, tmp_path / "student", strict=False)
    assert untouched(wide)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_base_may_be_cast(student, tmp_path, dtype):
    model = linattn.load(tiny.model().to(dtype), tmp_path / "student")
    wanted = tiny.run(student.transformer)
    out = tiny.run(model, **tiny.inputs(dtype=dtype))
    assert (out - wanted).norm() / wanted.norm() < 0.1


def test_a_half_precision_student_on_the_base_widened(tmp_path):
    half = linattn.linearize(tiny.model().to(torch.float16), "lit")
    linattn.save(half, tmp_path / "student")
    wide = linattn.load(tiny.model().to(torch.float16).float(), tmp_path / "student")
    assert equal({n: t.half() for n, t in state(wide).items()}, state(half))


def damage_weights(folder):
    raw = bytearray((folder / "linattn.safetensors").read_bytes())
    raw[-5] ^= 1
    (folder / "linattn.safetensors").write_bytes(raw)


def truncate_weights(folder):
    raw = (folder / "linattn.safetensors").read_bytes()
    (folder / "linattn.safetensors").write_bytes(raw[: len(raw) // 2])


def truncate_card(folder):
    text = (folder / "linattn.json").read_text()
    (folder / "linattn.json").write_text(text[: len(text) // 2])


def edit(sealed=True, **changes):
    """Change a card; sealed again, it is one that was written so, and otherwise a damaged one."""

    def changed(folder):
        card = json.loads((folder / "linattn.json").read_text())
        for path, value in changes.items():
            *parents, last = (int(key) if key.isdecimal() else key for key in path.split("__"))
            inner = card
            for parent in parents:
                inner = inner[parent]
            if value is ...:
                inner.pop(last)
            else:
                inner[last] = value
        if sealed:
            card["digest"] = surgery.card._digest(card)
        (folder / "linattn.json").write_text(json.dumps(card))

    return changed


def tensors(change):
    def changed(folder):
        state = load_file(folder / "linattn.safetensors")
        change(state)
        save_file(state, folder / "linattn.safetensors")
        edit(weights__sha256=of_file(folder / "linattn.safetensors"))(folder)

    return changed


QUERY = "transformer_blocks.0.attn1.to_q.weight"
DAMAGE = {
    "a flipped bit": (damage_weights, r"linattn\.safetensors is damaged"),
    "half the weights": (truncate_weights, r"linattn\.safetensors is damaged"),
    "half the card": (truncate_card, r"linattn\.json is damaged"),
    "an empty card": (
        lambda folder: (folder / "linattn.json").write_text("[]"),
        r"linattn\.json is damaged",
    ),
    "a binary card": (
        lambda folder: (folder / "linattn.json").write_bytes(b"\xff\xfe"),
        r"linattn\.json is damaged",
    ),
    "no weights": (
        lambda folder: (folder / "linattn.safetensors").unlink(),
        r"linattn\.safetensors is missing",
    ),
    "no card": (lambda folder: (folder / "linattn.json").unlink(), r"linattn\.json is missing"),
    "a later format": (edit(format=3), r"has format 3; this linattn reads 2"),
    "an edited option": (
        edit(sealed=False, layers__0__options={"radius": 2}),
        r"linattn\.json is damaged .*its digest is another: it was edited",
    ),
    "a layer less": (edit(sealed=False, layers__0=...), r"its digest is another"),
    "no layer": (edit(layers=[]), r"it replaces no layer"),
    "another initialisation": (edit(layers__0__initialise="evil"), r"unknown initialise 'evil'"),
    "a number for an initialisation": (edit(layers__0__initialise=3), r"unknown initialise 3"),
    "weights that are no number": (
        tensors(lambda state: state[QUERY].view(-1)[:1].fill_(float("nan"))),
        rf"1 of [\d,]+ weights of {QUERY} are not finite",
    ),
    "whole weights": (
        tensors(lambda state: state.update({QUERY: state[QUERY].to(torch.int8)})),
        r"is torch\.int8 and no weight",
    ),
    "no base": (edit(base=...), r"linattn\.json is damaged"),
    "a deep card": (
        lambda folder: (folder / "linattn.json").write_text("[" * 200_000),
        r"linattn\.json is damaged",
    ),
    "a list for an operator": (edit(layers__0__operator=["clear"]), r"linattn\.json is damaged"),
    "an option that is an argument": (
        edit(layers__0__options={"self": 1}),
        r"unknown option of clear 'self'",
    ),
    "weights beyond the model's dtype": (
        tensors(lambda state: state.update({QUERY: state[QUERY].double() + 1e300})),
        rf"weights of {QUERY} in torch\.float32 are not finite: load a wider base",
    ),
    "an unknown operator": (
        edit(layers__0__operator="cleer"),
        r"unknown operator 'cleer': did you mean 'clear'.*joins by linattn.register\(Operator\)",
    ),
    "an unknown option": (edit(layers__0__options={"radios": 3}), r"radius"),
    "an unknown layer": (
        edit(layers__1__name="blocks.7.attn"),
        r"blocks\.7\.attn, which this DiT.* does not have",
    ),
    "another option": (
        edit(layers__0__options={"radius": 3, "pool": 4}),
        r"does not fit .*0\.attn1\.linattn",
    ),
    "a tensor less": (
        tensors(lambda state: state.pop(QUERY)),
        r"missing .*0\.attn1\.to_q\.weight, unknown nothing",
    ),
    "a tensor more": (tensors(lambda state: state.update(extra=torch.ones(1))), "unknown extra"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_refused_and_changes_nothing(student, base, tmp_path, kind):
    change, message = DAMAGE[kind]
    change(tmp_path / "student")
    fresh = base()
    with pytest.raises(ValueError, match=message):
        linattn.load(fresh, tmp_path / "student")
    assert equal(state(fresh.transformer), state(base().transformer))
    assert untouched(fresh.transformer)


def test_a_hub_id_is_downloaded_card_first(base, tmp_path, student, monkeypatch):
    downloads = []

    def snapshot_download(repo_id, revision=None, allow_patterns=None, ignore_patterns=None):
        downloads.append((repo_id, revision, allow_patterns, ignore_patterns))
        if repo_id == "nobody/offline":
            raise ConnectionError("no network")
        return str(tmp_path / repo_id.partition("/")[2])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    fresh = linattn.load(base(), "somebody/student", revision="v1")
    assert equal(state(fresh.transformer), state(student.transformer))
    cards = ["linattn.json", "config.json"]
    weights = ("somebody/student", "v1", [*cards, "*.safetensors"], ["*/*"])  # of the root alone
    assert downloads == [("somebody/student", "v1", cards, None), weights]
    with pytest.raises(
        ValueError, match=r"no folder 'nobody/offline', and the Hugging Face hub .*no network"
    ):
        linattn.load(base(), "nobody/offline")


def test_only_the_cards_of_a_base_are_downloaded(base, tmp_path, monkeypatch):
    downloads = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda repo_id, allow_patterns, **more: downloads.append(allow_patterns) or str(tmp_path),
    )
    with pytest.raises(
        ValueError, match=r"big/base on the Hugging Face hub is no student.* the base's id"
    ):
        linattn.load(base(), "big/base")
    assert downloads == [["linattn.json", "config.json"]]


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/at/all", "./student/x", "a/b/c"], ids=str)
def test_what_cannot_be_a_hub_id_is_not_downloaded(name):
    with pytest.raises(ValueError, match="there is no folder"):
        linattn.load(tiny.model(), name)


def test_a_file_is_no_student(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        linattn.load(tiny.model(), tmp_path / "file")


def test_with_a_lora_loaded_the_base_is_still_known(student, base, tmp_path):
    from test_families import LowRank

    torch.manual_seed(0)
    pipe = base()
    for block in pipe.transformer.transformer_blocks:
        block.attn1.to_q = LowRank(block.attn1.to_q)
    linattn.load(pipe, tmp_path / "student")
    linattn.save(pipe, tmp_path / "again")
    for block in pipe.transformer.transformer_blocks:
        block.attn1.to_q = block.attn1.to_q.base_layer
    assert equal(state(pipe.transformer), state(student.transformer))
    assert (tmp_path / "again" / "linattn.safetensors").read_bytes() == (
        tmp_path / "student" / "linattn.safetensors"
    ).read_bytes()


def test_importing_the_package_loads_neither_torch_nor_diffusers():
    import subprocess
    import sys

    loaded = "sorted({'torch', 'diffusers'} & set(sys.modules))"
    code = f"import sys, linattn; print({loaded}, 'load' in dir(linattn))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "[] True"
    with pytest.raises(AttributeError, match="linearise"):
        _ = linattn.linearise


@pytest.mark.parametrize("flag", ["no", None, 0])
def test_a_flag_that_is_no_truth_value_is_named(student, tmp_path, flag):
    for name in ("strict", "keep_original"):
        with pytest.raises(ValueError, match=f"{name} is .*; it must be true or false"):
            linattn.load(tiny.model(), tmp_path / "student", **{name: flag})
    with pytest.raises(ValueError, match="keep_original is .*; it must be true or false"):
        linattn.linearize(tiny.model(), "lit", keep_original=flag)


@pytest.mark.parametrize("path", [None, 5, b"x", [], "", "a\0b", "a" * 5000])
def test_what_can_be_no_students_path_is_named(student, path):
    with pytest.raises(ValueError, match="must be a path|too long for a path"):
        linattn.load(tiny.model(), path)
    if path != "a" * 5000:
        with pytest.raises(ValueError, match="folder is .*; it must be a path"):
            linattn.save(student, path)


def test_a_policy_a_function_and_a_number_of_layers_are_what_they_are():
    wrong = {
        "unknown initialise policy": {"initialise": []},
        "data is 5; it must be a function": {"data": 5},
        "unknown layer 'every:9": {"layers": "every:" + "9" * 50},
        "kernel is 0 .* up to 1,023": {"kernel": 10**30 + 1},
        "heads is a whole number up to 2,147,483,647": {"heads": 10**30},
    }
    for message, option in wrong.items():
        with pytest.raises(ValueError, match=message):
            linattn.linearize(tiny.model(), "lit", **option)
