"""Models that read captions: what they draw, against their stock pipelines, and what is stored and
learned of it.
"""

import kinds
import pytest
import tiny
import torch
from diffusers import FluxPipeline

from linattn import conditions, families, project, samples, sampling, surgery, world
from linattn.diffusion import Diffusion, Flow
from linattn.distillation import distill
from linattn.distillation.config import DistillConfig
from linattn.evaluation import costs
from linattn.evaluation.distance import prediction_error
from linattn.teachers import Teacher

CAPTIONS = ["a red ring on plain", "a blue star left of a pink disc", "a large green heart"]
READERS = ("unet", "sdxl", "pixart", "sd3", "flux", "qwen")


def teacher(kind: str, **card) -> Teacher:
    pipe = kinds.pipeline(kind)
    return Teacher(pipe, {"steps": 3, "guidance": 2.5, "side": 32, "text_length": 16, **card}, kind)


def stock(pipe, kind: str, size: tuple[int, int], guidance: float, steps: int) -> torch.Tensor:
    """What the pipeline itself draws from our noise."""
    height, width = size
    noise = sampling.starting_noise(0, range(len(CAPTIONS)), (4, height // 4, width // 4))
    kwargs = {"height": height, "width": width, "num_inference_steps": steps, "output_type": "pt"}
    if kind == "pixart":
        kwargs |= {"use_resolution_binning": False, "clean_caption": False}
    if kind in ("pixart", "sd3"):
        kwargs["max_sequence_length"] = 16
    if kind not in ("flux", "qwen"):
        return pipe(CAPTIONS, latents=noise, guidance_scale=guidance, **kwargs).images
    packed = FluxPipeline._pack_latents(noise, len(CAPTIONS), 4, height // 4, width // 4)
    negative = {
        "negative_prompt": [" " if kind == "qwen" else ""] * len(CAPTIONS),
        "true_cfg_scale": guidance,
        "max_sequence_length": 16,
    }
    return pipe(CAPTIONS, latents=packed, **negative, **kwargs).images


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    ("size", "guidance", "steps"), [((32, 32), 3.0, 4), ((32, 48), 1.0, 3), ((64, 32), 2.0, 1)]
)
def test_draws_what_the_stock_pipeline_draws(kind, size, guidance, steps):
    made = teacher(kind)
    ours = sampling.draw(made, CAPTIONS, size=size, guidance=guidance, steps=steps)
    torch.testing.assert_close(
        ours, stock(made.pipe, kind, size, guidance, steps), rtol=0, atol=2e-5
    )
    assert ours.shape == (3, 3, *size)
    assert ours.std() > 0.01


def test_a_half_vae_that_asks_for_single_precision_decodes_as_stock_sdxls():
    made = teacher("sdxl")
    made.pipe.vae.register_to_config(force_upcast=True)
    made.pipe.vae.half()
    ours = sampling.draw(made, CAPTIONS, guidance=2.0, steps=2)
    torch.testing.assert_close(ours, stock(made.pipe, "sdxl", (32, 32), 2.0, 2), rtol=0, atol=2e-5)
    assert made.vae.dtype == torch.float16


@pytest.mark.parametrize("kind", READERS)
def test_captions_change_what_is_drawn_and_the_batch_does_not(kind):
    made = teacher(kind)
    together = sampling.draw_latents(made, CAPTIONS)
    batched = sampling.draw_latents(made, CAPTIONS, batch=2)
    torch.testing.assert_close(batched, together, rtol=1e-3, atol=5e-4)
    others = sampling.draw_latents(made, CAPTIONS[::-1])
    assert (others[0] - together[0]).abs().max() > 1e-3


def test_a_model_with_embedded_guidance_runs_once_a_step():
    pipe, seen = kinds.pipeline("flux", guided=True), []
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["guidance"].tolist()), with_kwargs=True
    )
    sampling.draw_latents(pipe, CAPTIONS, size=32, steps=1, guidance=2.5)
    assert seen == [[2.5] * 3]


def test_dynamic_shifting_is_the_pipelines_own():
    pipe = kinds.pipeline("flux")
    pipe.scheduler = type(pipe.scheduler)(shift=3.0, use_dynamic_shifting=True)
    ours = sampling.draw(pipe, CAPTIONS, size=(32, 48), guidance=1.0, steps=3)
    # The card is missing: the pipeline's own text length holds.
    noise = FluxPipeline._pack_latents(
        sampling.starting_noise(0, range(3), (4, 8, 12)), 3, 4, 8, 12
    )
    theirs = pipe(
        CAPTIONS, latents=noise, height=32, width=48, num_inference_steps=3, output_type="pt"
    ).images
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_a_flow_is_its_own_definition():
    flow, dice = Diffusion.of(kinds.pipeline("flux").scheduler), torch.Generator().manual_seed(0)
    assert isinstance(flow, Flow)
    clean, eps = (torch.randn(3, 4, 5, 5, generator=dice, dtype=torch.float64) for _ in range(2))
    t = torch.tensor([1.0, 250.5, 999.0])
    noisy, target = flow.noised(clean, eps, t), flow.target(clean, eps, t)
    sigma = t.double().view(-1, 1, 1, 1) / 1000
    torch.testing.assert_close(noisy, (1 - sigma) * clean + sigma * eps)
    torch.testing.assert_close(flow.clean(target, noisy, t), clean)
    torch.testing.assert_close(flow.eps(target, noisy, t), eps)
    times = flow.draw_times(20000, dice)
    assert times.median().item() == pytest.approx(500, abs=10)
    assert times.min() > 0
    assert times.max() < 1000


@pytest.mark.parametrize("kind", READERS)
def test_samples_keep_their_captions(kind, tmp_path):
    made = teacher(kind)
    drawn = samples.write(made, tmp_path, 5, seed=4, shard=2, steps=2)
    latents, captions = drawn.batch([4, 0, 3])
    wanted = [world.scene(4, number, 1 + number % 2).caption for number in (4, 0, 3)]
    assert captions == wanted
    again = sampling.draw_latents(made, wanted[:1], steps=2, seed=4, start=4)
    assert torch.equal(latents[0], again[0].half().float())
    assert drawn.recipe["captions"] == "linattn.world"


@pytest.mark.parametrize("kind", READERS)
def test_a_dropped_caption_is_the_empty_one_whole(kind):
    conditioner = conditions.of(kinds.pipeline(kind), {"text_length": 16})
    conditioning, empty = conditioner.encode(CAPTIONS), conditioner.nothing()
    replaced = conditions.dropped(conditioning, empty, torch.tensor([False, True, False]))
    for name, tensor in replaced.items():
        whole, _ = conditions.as_long(empty[name], tensor)
        assert torch.equal(tensor[1], whole[0])
        assert torch.equal(tensor[[0, 2]], conditioning[name][[0, 2]])
        assert not torch.equal(conditioning[name][1], whole[0])


@pytest.mark.parametrize(
    ("kind", "operator"),
    [("unet", "linfusion"), ("unet", "lit"), ("flux", "clear"), ("qwen", "linfusion")],
)
def test_a_student_of_a_model_that_reads_comes_closer_to_its_teacher(kind, operator, tmp_path):
    made = teacher(kind)
    data = samples.write(made, tmp_path, 8, seed=1, shard=8, steps=2)
    options = {"clear": {"radius": 2}, "lit": {"kernel": 3}}.get(operator, {})
    objective = {"preset": "protocol", "task": 0.0}  # the data are noise
    config = DistillConfig(
        operator,
        options,
        layerwise_steps=0,
        steps=40,
        batch=4,
        objective=objective,
        learning_rate=3e-3,
    )
    start = distill.convert(distill.frozen(made.model), config)
    before = prediction_error(made, start, data, (0.3, 0.7), count=4)["mean"]["value"]
    student = distill.distill(config, made, data).model
    after = prediction_error(made, student, data, (0.3, 0.7), count=4)["mean"]["value"]
    assert 0 < after < 0.95 * before


@pytest.mark.parametrize("kind", READERS)
def test_softmax_has_no_error_and_costs_are_those_of_the_text_that_is_read(kind, tmp_path):
    made = teacher(kind)
    model = made.model
    inputs = made.conditions.example(8, 8, CAPTIONS[:1])
    dense = costs.macs(model, inputs=inputs)
    own = {"flux": (16, 16), "sd3": (16, 32), "sdxl": (16, 0), "qwen": (16, 10)}
    picture, text = own.get(kind, (64, 0))
    assert dense["tokens"] == picture + text
    student = surgery.linearize(kinds.pipeline(kind), "softmax")
    latents = torch.randn(3, 4, 8, 8)
    error = prediction_error(made, families.model_of(student), (latents, CAPTIONS), (0.5,), count=3)
    assert error["mean"]["value"] < 1e-9
    assert costs.macs(families.model_of(student), inputs=inputs)["core"] == dense["core"]


WRONG = {
    "one text": ("a red ring", "list of texts"),
    "labels": (torch.tensor([1]), "list of texts"),
    "nothing": ([], "no captions"),
    "numbers": ([1, 2], "list of texts"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_list_of_captions_is_refused(name):
    prompts, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        sampling.draw(teacher("unet"), prompts)


def test_sizes_and_samplers_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="20 px is no multiple of 8"):
        sampling.draw(teacher("flux"), CAPTIONS, size=20)
    with pytest.raises(ValueError, match="squares"):
        sampling.draw(tiny.pipeline(), torch.tensor([0]), size=(32, 64))
    with pytest.raises(ValueError, match="'ddpm' is for noise and velocities"):
        sampling.draw(teacher("flux"), CAPTIONS, sampler="ddpm")
    with pytest.raises(ValueError, match="no denoising model and VAE"):
        sampling.draw(torch.nn.Linear(1, 1), CAPTIONS)
    pipe = kinds.pipeline("unet")
    pipe.unet.register_to_config(time_cond_proj_dim=8)
    with pytest.raises(ValueError, match="by timestep_cond, as latent consistency models are"):
        sampling.draw(pipe, CAPTIONS)


def test_a_pipeline_by_itself_has_the_card_of_its_folder():
    """A FluxPipeline reads captions as 512 tokens unless it is told otherwise, and flux-nano
    learned from 16.
    """
    pipe = FluxPipeline.from_pretrained(project.ROOT / "data" / "teachers" / "flux-nano")
    source = sampling.Source.of(pipe)
    assert source.card["text_length"] == 16
    assert source.conditions.encode(CAPTIONS[:1])["encoder_hidden_states"].shape[1] == 16
    assert sampling.Source.of(kinds.pipeline("flux")).card == {}
