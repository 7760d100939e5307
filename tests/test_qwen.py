"""Qwen-Image beside what holds for every family: its shapes, its rotation, its mask, its texts of
many lengths; and why Z-Image is refused.
"""

import kinds
import pytest
import torch
from accelerate import Accelerator
from diffusers import ZImageTransformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope, apply_rotary_emb_qwen

import linattn
from linattn import families, sampling, teachers
from linattn.attention import features
from linattn.attention.grid import Grid
from linattn.distillation import distill
from linattn.distillation.config import DistillConfig
from linattn.distillation.lesson import Lesson
from linattn.evaluation import diagnostics
from linattn.evaluation.distance import noised
from linattn.explore import tracing
from linattn.teachers import Teacher

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
    assert families.family(model).grid(model, arguments) == Grid(HEIGHT, WIDTH, TEXT)
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


@torch.no_grad()
def test_an_edit_models_two_pictures_are_served_by_softmax_alone():
    model, arguments = kinds.model("qwen"), inputs(img_shapes=[[(1, 4, 3), (1, 4, 3)]] * 2)
    wanted = kinds.run(model, **arguments)
    linattn.linearize(model, "softmax")
    torch.testing.assert_close(kinds.run(model, **arguments), wanted)
    linattn.linearize(model, "clear", radius=2, layers=[1])
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


# Drawing and what follows from it; test_conditions.py holds the rest beside the other families

CAPTIONS = ["a red ring on plain", "a blue star left of a pink disc", "a large green heart"]


def teacher(**card) -> Teacher:
    pipe = kinds.pipeline("qwen")
    return Teacher(pipe, {"steps": 3, "guidance": 2.5, "side": 32, **card}, "qwen")


def stock(pipe, captions, steps):
    """What the pipeline itself draws from our noise, all texts in one padded batch."""
    noise = sampling.starting_noise(0, range(len(captions)), (4, 8, 8))
    packed = pipe._pack_latents(noise, len(captions), 4, 8, 8)
    kwargs = {"height": 32, "width": 32, "num_inference_steps": steps, "output_type": "pt"}
    negative = {"negative_prompt": [" "] * len(captions), "true_cfg_scale": 2.5}
    return pipe(captions, latents=packed, **negative, **kwargs).images


def test_draws_with_the_models_own_schedule_and_refuses_its_single_step():
    made = teacher()
    made.pipe.scheduler = type(made.scheduler).from_config(
        made.scheduler.config, shift_terminal=0.02
    )
    ours = sampling.draw(made, CAPTIONS)
    torch.testing.assert_close(ours, stock(made.pipe, CAPTIONS, 3), rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match=r"1 step; .*shift_terminal=0.02, which takes 2 steps"):
        sampling.draw(made, CAPTIONS, steps=1)


def test_a_saved_folder_is_a_teacher_that_draws_the_same(tmp_path):
    pipe = kinds.pipeline("qwen")
    pipe.save_pretrained(tmp_path)
    loaded = teachers.load(tmp_path)
    assert (loaded.card["side"], loaded.card["guidance"], loaded.factor) == (512, 4.0, 4)
    options = {"size": 32, "steps": 2, "guidance": 2.5}
    again = sampling.draw(loaded, CAPTIONS, **options)
    torch.testing.assert_close(again, sampling.draw(pipe, CAPTIONS, **options), rtol=0, atol=1e-6)


def test_a_converted_model_draws_texts_of_all_lengths_as_the_stock_pipeline():
    made = teacher()
    wanted = stock(made.pipe, CAPTIONS, 3)
    linattn.linearize(made, "softmax")
    torch.testing.assert_close(sampling.draw(made, CAPTIONS), wanted, rtol=0, atol=2e-5)


def test_no_forward_reads_padding_and_lengths_share_a_forward():
    made, seen = teacher(), []
    made.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    captions = [*CAPTIONS, "a blue ring on plain"]
    sampling.draw_latents(made, captions, steps=1, guidance=1.0)
    assert [tuple(kwargs["encoder_hidden_states"].shape[:2]) for kwargs in seen] == [
        (2, 10),
        (1, 13),
        (1, 9),
    ]
    assert all("encoder_hidden_states_mask" not in kwargs for kwargs in seen)


def test_without_a_card_the_defaults_are_the_calls_own():
    conditioner = sampling.Source.of(kinds.pipeline("qwen")).conditions
    assert conditioner.defaults() == {"steps": 50, "guidance": 4.0}
    assert sampling.Source.of(kinds.pipeline("qwen")).side == 128 * 4
    words = ["a"] + 600 * ["red"]
    mask = conditioner.encode([" ".join(words)])["encoder_hidden_states_mask"]
    assert mask.shape == (1, 512)


def test_the_text_of_a_card_is_cut_as_the_pipeline_cuts_it():
    encoded = teacher(text_length=10).conditions.encode(CAPTIONS)
    assert encoded["encoder_hidden_states_mask"].sum(1).tolist() == [10, 10, 9]


def test_pictures_are_encoded_to_the_latents_that_the_model_knows():
    made, pictures = teacher(), torch.rand(2, 3, 32, 48)
    latents = sampling.encode(made, pictures)
    config = made.vae.config
    mean, deviation = (
        torch.tensor(values).view(-1, 1, 1) for values in (config.latents_mean, config.latents_std)
    )
    posterior = made.vae.encode(pictures.unsqueeze(2) * 2 - 1).latent_dist.mean[:, :, 0]
    torch.testing.assert_close(latents * deviation + mean, posterior)
    assert latents.shape == (2, 4, 8, 12)


def test_one_forward_refuses_texts_of_two_lengths():
    conditioner = teacher().conditions
    with pytest.raises(ValueError, match=r"have \[10, 13, 9\] tokens.*for each of `groups`"):
        conditioner.example(8, 8, CAPTIONS)


def lesson(made, objective, captions, batch=6):
    """A lesson on the same latents every time, with half of the captions dropped."""
    latents = torch.randn(len(captions), 4, 8, 8, generator=torch.Generator().manual_seed(3))

    class Data:
        def __len__(self):
            return len(captions)

        def batch(self, indices):
            return latents[indices], [captions[index] for index in indices]

    config = DistillConfig("linfusion", batch=batch, objective=objective, label_drop=0.5)
    student = distill.convert(distill.frozen(made.model), config)
    models = made.model, student, made.diffusion, made.conditions
    return Lesson(config, *models, Data(), Accelerator(cpu=True))


@torch.no_grad()
def test_a_loss_over_texts_of_all_lengths_is_the_mean_over_pictures():
    teaching = lesson(teacher(), {"task": 1.0, "noise": 0.5, "features": 0.5}, CAPTIONS)
    batch = teaching.batch(0)
    assert batch.dropped.any()
    assert len(teaching.groups(batch)) > 2
    # the stages count their steps through, and both see the batch of step 0
    first = -teaching.config.layerwise_steps
    stages = (
        (teaching.layerwise, 0, "_learn_layers"),
        (teaching.end_to_end, first, "_learn_model"),
    )
    for stage, step, learn in stages:
        terms = getattr(teaching, learn)
        alone = [terms(batch.taken(torch.tensor([number])), 1.0) for number in range(6)]
        for name, value in stage(step).items():
            mean = torch.stack([of_one[name] for of_one in alone]).mean()
            torch.testing.assert_close(value, mean, rtol=1e-4, atol=1e-6)


def test_a_policy_that_starts_from_data_sees_the_largest_group():
    teaching = lesson(teacher(), "protocol", [*CAPTIONS, CAPTIONS[0], CAPTIONS[0]])
    sizes = [len(group.clean) for group in teaching.groups(teaching.batch(0))]
    assert len(teaching.show(teaching.teacher)) == max(sizes) < 6


@torch.no_grad()
def test_anatomy_measures_texts_of_all_lengths_picture_by_picture():
    made, latents = teacher(), torch.randn(3, 4, 8, 8)
    together = diagnostics.anatomy(made, latents, CAPTIONS, (0.5,))
    source = sampling.Source.of(made)
    noisy = noised(made, latents, 500)
    values = []
    for number, caption in enumerate(CAPTIONS):
        maps, grid = diagnostics.layer_maps(made, noisy[[number]], 500, [caption])[1]
        values.append(diagnostics.text_share(maps, grid).double().mean())
    row = next(
        row for row in together if (row["layer"], row["head"], row["measure"]) == (1, None, "text")
    )
    assert row["value"] == pytest.approx(torch.stack(values).mean().item(), rel=1e-5)
    with pytest.raises(ValueError, match="3 prompts have texts of 3 lengths"):
        diagnostics.layer_maps(source, noisy, 500, CAPTIONS)


def test_a_trace_keeps_the_prompts_forward_of_each_step():
    trace = tracing.trace(teacher(), CAPTIONS[1], steps=2)
    assert [kwargs["encoder_hidden_states"].shape[:2] for kwargs in trace.inputs] == [(1, 13)] * 2
    assert trace.grid == Grid(4, 4, 13)
