"""The drawing loop against DiTPipeline and DDPMScheduler, and what its noise may depend on."""

import copy
import threading

import kinds
import pytest
import tiny
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import nn

from linattn import sampling, seeds
from linattn.finite import NotFinite

LABELS = torch.tensor([0, 3, 1])


def stock(pipe, monkeypatch, guidance: float, steps: int, size: int = 8) -> torch.Tensor:
    """Draw with DiTPipeline itself from our noise; with "pt" it returns tensors."""
    noise = sampling.starting_noise(0, range(len(LABELS)), (4, size, size))
    monkeypatch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda **_: noise)
    return pipe(
        LABELS.tolist(), guidance_scale=guidance, num_inference_steps=steps, output_type="pt"
    ).images


@pytest.mark.parametrize("scheduler", ["dpm", "ddim"])
@pytest.mark.parametrize(("guidance", "steps"), [(1.0, 5), (3.5, 4), (4.0, 1)])
def test_draws_what_the_stock_pipeline_draws(scheduler, guidance, steps, monkeypatch):
    pipe = tiny.pipeline(scheduler)
    ours = sampling.draw(pipe, LABELS, steps=steps, guidance=guidance)
    theirs = stock(pipe, monkeypatch, guidance, steps)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert ours.std() > 0.01


def test_draws_what_the_stock_pipeline_draws_at_twice_the_size(monkeypatch):
    pipe = tiny.pipeline()
    ours = sampling.draw(pipe, LABELS, steps=3, guidance=2.0, size=64)
    pipe.transformer.register_to_config(sample_size=16)
    torch.testing.assert_close(ours, stock(pipe, monkeypatch, 2.0, 3, size=16), rtol=0, atol=1e-5)
    assert ours.shape == (3, 3, 64, 64)


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_a_picture_does_not_depend_on_its_batch(sampler):
    pipe = tiny.pipeline()
    options = {"steps": 3, "guidance": 2.0, "sampler": sampler, "seed": 4}
    together = sampling.draw_latents(pipe, LABELS, **options)
    for batch in (1, 2):
        batched = sampling.draw_latents(pipe, LABELS, batch=batch, **options)
        torch.testing.assert_close(batched, together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_drawing_again_repeats_and_another_seed_does_not(sampler):
    pipe = tiny.pipeline()
    first, again, other = (
        sampling.draw(pipe, LABELS, steps=2, sampler=sampler, seed=seed, guidance=1.0)
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_start_numbers_the_pictures_of_a_shard():
    pipe = tiny.pipeline()
    together = sampling.draw_latents(pipe, LABELS, steps=2, sampler="ddpm")
    tail = sampling.draw_latents(pipe, LABELS[1:], steps=2, sampler="ddpm", start=1)
    torch.testing.assert_close(tail, together[1:], rtol=1e-4, atol=1e-4)


def test_noise_differs_by_seed_and_picture():
    # torch's CPU generator drops the upper half of a 64-bit seed: (seed << 32) + i would be the
    # same for every seed.
    streams = {
        (s, i): sampling.starting_noise(s, range(i, i + 1), (4, 4))
        for s in (0, 1, 2**40)
        for i in (0, 1, 500)
    }
    values = list(streams.values())
    for index, noise in enumerate(values):
        assert not any(torch.equal(noise, other) for other in values[index + 1 :])


def test_noise_is_normal_and_independent_between_pictures():
    noise = sampling.starting_noise(3, range(64), (4, 16, 16)).flatten(1).double()
    assert noise.mean().abs() < 0.02
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    correlation = torch.corrcoef(noise) - torch.eye(64, dtype=torch.float64)
    assert correlation.abs().max() < 5 / 32


def test_the_global_stream_is_neither_read_nor_moved():
    pipe = tiny.pipeline()
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = sampling.draw(pipe, LABELS, steps=2, sampler="ddpm")
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first, sampling.draw(pipe, LABELS, steps=2, sampler="ddpm"))


@pytest.mark.parametrize("steps", [2, 7, 10])
@pytest.mark.parametrize("learned", [True, False], ids=["learned", "fixed"])
def test_ancestral_steps_are_those_of_ddpm_scheduler(steps, learned, monkeypatch):
    pipe = tiny.pipeline()
    betas = {"beta_schedule": "linear", "prediction_type": "epsilon", "timestep_spacing": "leading"}
    variance = "learned_range" if learned else "fixed_small"
    pipe.scheduler = DDPMScheduler(**betas, clip_sample=False, variance_type=variance)
    if not learned:
        pipe.transformer = halved(pipe.transformer)
    ours = sampling.draw_latents(pipe, LABELS, steps=steps, guidance=1.0, sampler="ddpm", seed=2)
    torch.testing.assert_close(
        ours, by_ddpm_scheduler(pipe, steps, monkeypatch), rtol=2e-4, atol=2e-4
    )


def halved(model: nn.Module) -> nn.Module:
    """Return a copy of the model whose output lacks the variance half."""

    class Halved(type(model)):
        def forward(self, *args, **kwargs):
            return (super().forward(*args, **kwargs)[0][:, :4],)

    model = copy.deepcopy(model)
    model.__class__ = Halved
    return model


@torch.no_grad()
def by_ddpm_scheduler(pipe, steps: int, monkeypatch) -> torch.Tensor:
    streams = [seeds.of_picture(2, number) for number in range(len(LABELS))]

    def noise(shape, **_):
        return torch.stack([torch.randn(shape[1:], generator=stream) for stream in streams])

    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", noise)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    latents = noise((len(LABELS), 4, 8, 8))
    for t in scheduler.timesteps:
        output = pipe.transformer(
            latents, timestep=t.expand(3), class_labels=LABELS, return_dict=False
        )[0]
        latents = scheduler.step(output, t, latents).prev_sample
    return latents


def test_the_learned_variance_changes_what_ddpm_draws():
    pipe = tiny.pipeline()
    options = {"steps": 4, "guidance": 1.0, "sampler": "ddpm"}
    with_it = sampling.draw_latents(pipe, LABELS, **options)
    pipe.transformer = halved(pipe.transformer)
    assert (with_it - sampling.draw_latents(pipe, LABELS, **options)).abs().max() > 1e-3


def test_a_scheduler_that_draws_noise_draws_it_from_the_pictures_streams():
    pipe = tiny.pipeline("ddim")
    together = sampling.draw_latents(pipe, LABELS, steps=3, guidance=1.0)
    # eta 0 draws nothing; the ancestral config class does, by our own loop
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    ancestral = sampling.draw_latents(pipe, LABELS, steps=3, guidance=1.0)
    assert not torch.allclose(together, ancestral)
    torch.testing.assert_close(
        ancestral, sampling.draw_latents(pipe, LABELS, steps=3, guidance=1.0, sampler="ddpm")
    )


def test_guidance_one_asks_the_model_once_and_more_asks_conditional_then_null():
    pipe, seen = tiny.pipeline(), []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["class_labels"].tolist()), with_kwargs=True
    )
    sampling.draw_latents(pipe, LABELS, steps=1, guidance=1.0)
    sampling.draw_latents(pipe, LABELS, steps=1, guidance=1.5)
    assert seen == [[0, 3, 1], [0, 3, 1, 1000, 1000, 1000]]


def test_a_student_is_drawn_with_its_teachers_scheduler_and_vae():
    pipe, student = tiny.pipeline(), tiny.model(seed=9)
    options = {"steps": 2, "guidance": 1.0}
    drawn = sampling.draw(pipe, LABELS, model=student, **options)
    assert not torch.allclose(drawn, sampling.draw(pipe, LABELS, **options), atol=1e-3)
    pipe.transformer = student
    assert torch.equal(drawn, sampling.draw(pipe, LABELS, **options))


def test_a_source_keeps_its_own_model_unless_another_is_given():
    pipe, student = tiny.pipeline(), tiny.model(seed=9)
    source = sampling.Source.of(pipe)
    assert sampling.Source.of(source).model is pipe.transformer
    assert sampling.Source.of(source, student).model is student


def test_a_card_fills_in_what_is_not_asked():
    class Teacher:
        pipe = tiny.pipeline()
        card = {"steps": 2, "guidance": 1.0, "side": 16, "labels": ["a", "b"]}

    assert sampling.draw(Teacher, torch.tensor([1])).shape[-1] == 16
    with pytest.raises(ValueError, match="0 to 1"):
        sampling.draw(Teacher, torch.tensor([2]))


def test_a_model_in_training_mode_draws_as_in_evaluation_and_stays_in_it():
    pipe = tiny.pipeline()
    options = {"steps": 2, "guidance": 1.0}
    expected = sampling.draw(pipe, LABELS, **options)
    pipe.transformer.train()
    pipe.transformer.transformer_blocks[0].eval()
    modes = [module.training for module in pipe.transformer.modules()]
    assert torch.equal(sampling.draw(pipe, LABELS, **options), expected)
    assert [module.training for module in pipe.transformer.modules()] == modes


def test_the_callback_sees_every_step_and_the_last_estimate_is_the_picture():
    pipe, seen = tiny.pipeline("ddim"), []
    drawn = sampling.draw_latents(
        pipe, LABELS, steps=4, guidance=2.0, batch=2, callback=lambda *step: seen.append(step)
    )
    assert [step for step, _, _ in seen] == [0, 1, 2, 3] * 2
    torch.testing.assert_close(torch.cat([seen[3][1], seen[7][1]]), drawn)
    # DDIM's last step lands on its estimate of the clean latents
    torch.testing.assert_close(torch.cat([seen[3][2], seen[7][2]]), drawn, rtol=1e-4, atol=1e-4)


def test_ddim_on_another_schedulers_config_does_not_clip():
    scheduler = sampling.scheduler_of(tiny.pipeline("dpm").scheduler, "ddim")
    assert isinstance(scheduler, DDIMScheduler)
    assert scheduler.config.clip_sample is False


def test_the_pipelines_own_scheduler_is_left_alone():
    pipe = tiny.pipeline()
    before = copy.deepcopy(vars(pipe.scheduler))
    sampling.draw_latents(pipe, LABELS, steps=3)
    assert vars(pipe.scheduler).keys() == before.keys()
    assert pipe.scheduler.step_index == before["_step_index"]
    assert pipe.scheduler.num_inference_steps == before["num_inference_steps"]


def test_threads_draw_what_one_thread_draws():
    pipe = tiny.pipeline()
    expected = {steps: sampling.draw_latents(pipe, LABELS, steps=steps) for steps in (2, 3, 5)}
    latents_by_steps = {}

    def work(steps):
        latents_by_steps[steps] = sampling.draw_latents(pipe, LABELS, steps=steps)

    threads = [threading.Thread(target=work, args=(steps,)) for steps in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for steps, latents in expected.items():
        torch.testing.assert_close(latents_by_steps[steps], latents)


def test_half_precision_models_step_in_single():
    pipe = tiny.pipeline()
    expected = sampling.draw_latents(pipe, LABELS, steps=2, guidance=1.0)
    pipe.transformer.to(torch.bfloat16)
    drawn = sampling.draw_latents(pipe, LABELS, steps=2, guidance=1.0)
    assert drawn.dtype == torch.float32
    assert (drawn - expected).norm() / expected.norm() < 0.2
    pipe.vae.to(torch.bfloat16)
    assert sampling.decode(pipe, drawn).dtype == torch.float32


def overflowing(force: bool) -> nn.Module:
    """A float16 VAE whose activations pass 65,504 in both directions, as SDXL's own do."""
    vae = tiny.vae()
    with torch.no_grad():
        for end in (vae.encoder, vae.decoder):
            end.conv_in.weight.mul_(1e6).clamp_(-6e4, 6e4)
    vae.register_to_config(force_upcast=force)
    return vae.half()


def test_a_half_vae_that_asks_for_single_precision_gets_it_and_is_given_back():
    pipe = tiny.pipeline()
    latents, pictures = torch.randn(3, 4, 8, 8), torch.rand(3, 3, 32, 32)
    pipe.vae = overflowing(False)
    for code, values in ((sampling.decode, latents), (sampling.encode, pictures)):
        with pytest.raises(NotFinite, match="are not finite: run the VAE in float32"):
            code(pipe, values)
    pipe.vae = overflowing(True)
    before = {name: tensor.clone() for name, tensor in pipe.vae.state_dict().items()}
    decoded, encoded = sampling.decode(pipe, latents), sampling.encode(pipe, pictures)
    after = pipe.vae.state_dict()
    assert all(
        torch.equal(after[name], tensor) and tensor.dtype == torch.float16
        for name, tensor in before.items()
    )
    pipe.vae.float()  # what half precision holds, in single all along
    assert torch.equal(decoded, sampling.decode(pipe, latents))
    assert torch.equal(encoded, sampling.encode(pipe, pictures))


def test_a_vae_is_half_again_after_an_error_and_bfloat16_stays():
    pipe = tiny.pipeline()
    pipe.vae = overflowing(True)
    with pytest.raises(RuntimeError):
        sampling.decode(pipe, torch.randn(1, 5, 8, 8))
    assert pipe.vae.dtype == torch.float16
    for dtype in (torch.float32, torch.bfloat16):
        pipe.vae.to(dtype)
        with sampling.upcast(pipe.vae):
            assert pipe.vae.dtype == dtype


def test_one_picture_one_step_of_the_smallest_size():
    for sampler in sampling.SAMPLERS:
        drawn = sampling.draw(tiny.pipeline(), torch.tensor([2]), size=4, steps=1, sampler=sampler)
        assert drawn.shape == (1, 3, 4, 4)
        assert drawn.isfinite().all()


def test_no_latent_side_is_too_odd():
    assert sampling.draw(tiny.pipeline(), LABELS, size=4 * 7, steps=1).shape == (3, 3, 28, 28)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompts": torch.tensor([4])}, "0 to 3"),
        ({"prompts": torch.tensor([-1])}, "-1"),
        ({"prompts": torch.tensor([0.5])}, "whole number"),
        ({"prompts": torch.tensor([[0]])}, r"\(N,\)"),
        ({"prompts": torch.empty(0, dtype=torch.long)}, r"\(0,\)"),
        ({"steps": 0}, "0 steps"),
        ({"steps": 1001}, "1 to 1000"),
        ({"steps": 2.5}, "2.5"),
        ({"size": 30}, "nearest is 32"),
        ({"size": 0}, "multiple of 4"),
        ({"guidance": 0.5}, "1 means none"),
        ({"guidance": float("nan")}, "nan"),
        ({"sampler": "dpmm"}, "did you mean 'dpm'"),
        ({"batch": 0}, "at least 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_wrong_requests_name_what_is_right(changes, says):
    request = {"prompts": LABELS, "steps": 2, **changes}
    with pytest.raises(ValueError, match=says):
        sampling.draw(tiny.pipeline(), **request)


def test_patches_count_for_the_size():
    pipe = tiny.pipeline(patch=2)
    assert sampling.draw(pipe, LABELS, size=24, steps=1).shape == (3, 3, 24, 24)
    with pytest.raises(ValueError, match="multiple of 8"):
        sampling.draw(pipe, LABELS, size=28, steps=1)


def test_what_is_no_pipeline_is_named():
    with pytest.raises(ValueError, match="Linear has no denoising model"):
        sampling.draw(nn.Linear(1, 1), LABELS)


def test_pictures_are_decoded_batch_by_batch():
    latents, seen = torch.randn(5, 4, 8, 8), []
    pipe = tiny.pipeline()
    pipe.vae.decoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    batches = sampling.decoded(pipe, latents, 2)
    assert next(batches).shape == (2, 3, 32, 32)
    assert seen == [2], "the next batch waits until it is asked for"
    rest = list(batches)
    assert torch.equal(sampling.decode(pipe, latents, 2)[2:], torch.cat(rest))


def test_a_model_of_another_family_does_not_draw():
    with pytest.raises(ValueError, match="pass a student of that pipeline"):
        sampling.draw(tiny.pipeline(), [0], model=kinds.model("flux"))


def test_a_callback_that_is_no_function_is_named():
    with pytest.raises(ValueError, match="callback is 5 .*must be a function"):
        sampling.draw(tiny.pipeline(), [0], callback=5)
