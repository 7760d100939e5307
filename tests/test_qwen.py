"""Qwen-Image beside what holds for every family: its shapes, its rotation, its mask; and why
Z-Image is refused.
"""

import kinds
import pytest
import torch
from diffusers import ZImageTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope, apply_rotary_emb_qwen

import linattn
from linattn import families
from linattn.attention import features
from linattn.attention.grid import Grid

TEXT, HEIGHT, WIDTH = 5, 4, 6


def student(operator="clear", **options):
    return linattn.linearize(kinds.model("qwen"), operator, **options or {"radius": 2.5})


def inputs(**more):
    return {**kinds.inputs("qwen", HEIGHT, WIDTH, TEXT), **more}


def mask(*lengths):
    return torch.arange(TEXT) < torch.tensor(lengths)[:, None]


# The grid


@pytest.mark.parametrize(
    "shapes",
    [[[(1, 4, 6)]] * 2, [(1, 4, 6)] * 2, [[(1, 4, 6)]], (1, 4, 6), [[[1, 4, 6]], [(1, 4, 6)]]],
    ids=str,
)
@torch.no_grad()
def test_the_grid_is_read_from_every_form_of_shapes_that_diffusers_takes(shapes):
    model, arguments = student(), inputs(img_shapes=shapes)
    assert families.family(model).read(model, arguments)[0] == Grid(HEIGHT, WIDTH, TEXT)
    assert families.grids(model, **inputs()) == [Grid(HEIGHT, WIDTH, TEXT)] * 2


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (None, r"img_shapes is None.*pass \[\[\(1, height, width\)\]\]"),
        ([[]], "the grid is not known"),
        (
            [[(1, 4, 6)], [(1, 6, 4)]],
            r"different sizes, .*\(1, 4, 6\).*\(1, 6, 4\).*once for each size",
        ),
        ([[(1, 4, 3), (1, 4, 3)]] * 2, "2 pictures a sample.*reference pictures"),
        ([[(2, 4, 3)]] * 2, r"one picture of one frame.*frames"),
        ([[(1, 4, 5)]] * 2, "24 picture tokens, but img_shapes tell of a picture of 4 x 5"),
    ],
)
def test_shapes_that_are_no_grid_are_refused(shapes, says):
    with pytest.raises(ValueError, match=says):
        kinds.run(student(), **inputs(img_shapes=shapes))


def test_an_edit_model_runs_dense_on_two_pictures_and_is_refused_converted():
    model, arguments = kinds.model("qwen"), inputs(img_shapes=[[(1, 4, 3), (1, 4, 3)]] * 2)
    kinds.run(model, **arguments)
    linattn.linearize(model, "softmax")
    with pytest.raises(ValueError, match="reference pictures, layers and frames"):
        kinds.run(model, **arguments)


@torch.no_grad()
def test_noise_is_the_time_itself():
    model, arguments = student(), inputs()
    with families.capture(model) as seen:
        kinds.run(model, **arguments)
    assert all(torch.equal(entry["noise"], arguments["timestep"]) for entry in seen)


# The mask


@torch.no_grad()
def test_a_mask_that_hides_nothing_changes_nothing():
    model = student()
    wanted = kinds.run(model, **inputs())
    for full_mask in (mask(5, 5), mask(5, 5).float()):
        assert torch.equal(kinds.run(model, **inputs(encoder_hidden_states_mask=full_mask)), wanted)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_padded_texts_are_refused_with_a_remedy(dtype):
    padded = inputs(encoder_hidden_states_mask=mask(3, 5).to(dtype))
    with pytest.raises(ValueError, match=r"have \[3, 5\] tokens of 5.*one prompt a call"):
        kinds.run(student(), **padded)


def test_no_way_round_the_model_reads_padding():
    """A caller who hands the grid down, a capture of the dense model, and one layer alone."""
    arguments, model = inputs(encoder_hidden_states_mask=mask(3, 5)), student()
    context = families.Context.of(
        Grid(HEIGHT, WIDTH, TEXT), arguments["timestep"], arguments["hidden_states"]
    )
    with pytest.raises(ValueError, match="hides padding"):
        kinds.run(model, **arguments, attention_kwargs={families.KEY: context})
    with pytest.raises(ValueError, match="hides padding"), families.capture(kinds.model("qwen")):
        kinds.run(model, **arguments)
    with families.capture(model) as seen:
        kinds.run(model, **inputs())
    layer, entry = families.layers(model)[0], seen[0]
    alone = {**entry["more"], "encoder_hidden_states_mask": mask(3, 5)}
    with pytest.raises(ValueError, match="hides padding"):
        families.apply(layer, entry["input"], entry["grid"], entry["noise"], **alone)


@torch.no_grad()
def test_padding_cut_off_is_what_the_mask_hides():
    """The error's remedy keeps the texts' positions, so the dense model draws the same."""
    model, arguments = kinds.model("qwen").double(), inputs()
    arguments = {
        name: value.double() if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }
    wanted = kinds.run(model, **arguments, encoder_hidden_states_mask=mask(3, 3))
    arguments["encoder_hidden_states"] = arguments["encoder_hidden_states"][:, :3]
    linattn.linearize(model, "softmax")
    torch.testing.assert_close(kinds.run(model, **arguments), wanted, rtol=1e-9, atol=1e-10)


# The rotation


def rope():
    return QwenEmbedRope(10000, [2, 2, 4], scale_rope=True)(
        [[(1, HEIGHT, WIDTH)]], max_txt_seq_len=TEXT
    )


def test_rotated_is_the_familys_own_function_text_first():
    picture, text = rope()
    x = torch.randn(2, TEXT + HEIGHT * WIDTH, 3, 8)
    parts = zip(x.split([TEXT, HEIGHT * WIDTH], 1), (text, picture), strict=True)
    wanted = torch.cat(
        [apply_rotary_emb_qwen(tokens, factors, use_real=False) for tokens, factors in parts], 1
    )
    assert torch.equal(families.rotated(x, (picture, text)), wanted)


def test_an_operator_is_told_the_same_rotation_as_cosines_and_sines():
    x = torch.randn(2, TEXT + HEIGHT * WIDTH, 3, 8)
    arguments = families.position(rope())
    torch.testing.assert_close(families.rotated(x, arguments), families.rotated(x, rope()))
    torch.testing.assert_close(features.unrotated(families.rotated(x, rope()), arguments), x)
    assert families.position(arguments) is arguments
    assert families.position(None) is None


# Z-Image


def test_z_image_is_refused_because_nothing_reaches_its_attentions():
    """If diffusers begins to hand arguments down, the reason is no longer true."""
    model = ZImageTransformer2DModel(
        in_channels=4, dim=16, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=8, axes_dims=[4, 2, 2], axes_lens=[128, 16, 16],
    ).eval()  # fmt: skip
    with pytest.raises(
        ValueError,
        match="ZImageTransformer2DModel is not supported: its forward hands nothing down",
    ):
        linattn.linearize(model, "clear")
    calls = []
    for layer in (*model.noise_refiner, *model.context_refiner, *model.layers):
        layer.attention.register_forward_pre_hook(
            lambda _, args, kwargs: calls.append({"tokens": args[0].shape[1], **kwargs}),
            with_kwargs=True,
        )
    with torch.no_grad():
        arguments = {
            "x": [torch.randn(4, 1, 6, 10)],
            "t": torch.tensor([0.5]),
            "cap_feats": [torch.randn(5, 8)],
        }
        model(**arguments, joint_attention_kwargs={"anything": 1})
    assert [call.keys() for call in calls] == [{"tokens", "attention_mask", "freqs_cis"}] * 3
    # 15 of picture and 5 of text, each with pads
    assert [call["tokens"] for call in calls] == [32, 32, 64]
    assert all(call["attention_mask"] is None for call in calls)  # which are attended to
