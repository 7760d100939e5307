import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from linattn.diffusion import Diffusion, split

SHAPE = (3, 4, 5, 2)  # not square on purpose


def process(prediction="v_prediction"):
    return Diffusion.of(DDPMScheduler(beta_schedule="linear", prediction_type=prediction))


def noisy_pair(diffusion, times):
    rng = torch.Generator().manual_seed(0)
    clean, eps = (torch.randn(SHAPE, generator=rng, dtype=torch.float64) for _ in range(2))
    t = torch.tensor(times)
    return clean, eps, t, diffusion.noised(clean, eps, t)


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_a_perfect_prediction_gives_back_noise_and_picture(prediction):
    diffusion = process(prediction)
    clean, eps, t, noisy = noisy_pair(diffusion, [0, 400, 900])
    target = diffusion.target(clean, eps, t)
    torch.testing.assert_close(diffusion.eps(target, noisy, t), eps)
    torch.testing.assert_close(diffusion.clean(target, noisy, t), clean)


def test_noise_is_added_as_diffusers_adds_it():
    scheduler = DDPMScheduler(beta_schedule="linear", prediction_type="v_prediction")
    clean, eps, t, noisy = noisy_pair(Diffusion.of(scheduler), [0, 500, 999])
    torch.testing.assert_close(noisy.float(), scheduler.add_noise(clean.float(), eps.float(), t))
    target = scheduler.get_velocity(clean.float(), eps.float(), t)
    torch.testing.assert_close(Diffusion.of(scheduler).target(clean, eps, t).float(), target)


def test_the_posterior_is_bayes_rule():
    diffusion = process()
    clean, _, t, noisy = noisy_pair(diffusion, [1, 400, 900])
    mean, log_variance = diffusion.posterior(clean, noisy, t)
    for index, time in enumerate(t.tolist()):
        now, before = diffusion.alphas_cumprod[time], diffusion.alphas_cumprod[time - 1]
        ratio = now / before
        # x_{t-1} | x_0 and x_t | x_{t-1} are Gaussians, so their precisions add.
        precision = 1 / (1 - before) + ratio / (1 - ratio)
        expected = (
            before.sqrt() * clean[index] / (1 - before) + ratio.sqrt() * noisy[index] / (1 - ratio)
        ) / precision
        torch.testing.assert_close(mean[index], expected)
        torch.testing.assert_close(log_variance[index].exp().squeeze(), 1 / precision)


def test_the_learned_variance_runs_from_the_posteriors_to_beta():
    diffusion = process()
    t = torch.tensor([1, 400, 999])
    _, smallest = diffusion.posterior(torch.zeros(SHAPE).double(), torch.zeros(SHAPE).double(), t)
    low = diffusion.log_variance(torch.full(SHAPE, -1.0).double(), t)
    high = diffusion.log_variance(torch.full(SHAPE, 1.0).double(), t)
    torch.testing.assert_close(low, smallest.expand(SHAPE))
    beta = 1 - diffusion.alphas_cumprod[t] / diffusion.alphas_cumprod[t - 1]
    torch.testing.assert_close(high[:, 0, 0, 0].exp(), beta)


def test_the_bound_is_zero_for_the_true_posterior_and_positive_otherwise():
    diffusion = process()
    clean, eps, t, noisy = noisy_pair(diffusion, [1, 400, 900])
    target = diffusion.target(clean, eps, t)
    exact = diffusion.variational_bound(target, torch.full(SHAPE, -1.0).double(), clean, noisy, t)
    assert exact.abs().max() < 1e-9
    wrong = diffusion.variational_bound(target, torch.full(SHAPE, 1.0).double(), clean, noisy, t)
    assert wrong.min() > 0


def test_the_bound_equals_the_divergence_of_two_gaussians():
    diffusion = process()
    clean, eps, t, noisy = noisy_pair(diffusion, [2, 500, 999])
    guess = diffusion.target(clean, eps, t) + 0.3
    raw = torch.linspace(-1, 1, clean.numel(), dtype=torch.float64).view(SHAPE)
    mean, log_variance = diffusion.posterior(clean, noisy, t)
    other, _ = diffusion.posterior(diffusion.clean(guess, noisy, t), noisy, t)
    theirs = torch.distributions.Normal(mean, (0.5 * log_variance).exp().expand(SHAPE))
    ours = torch.distributions.Normal(other, (0.5 * diffusion.log_variance(raw, t)).exp())
    expected = torch.distributions.kl_divergence(theirs, ours).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(diffusion.variational_bound(guess, raw, clean, noisy, t), expected)


def test_the_bound_trains_the_variance_alone():
    diffusion = process()
    clean, eps, t, noisy = noisy_pair(diffusion, [0, 400, 900])
    prediction = diffusion.target(clean, eps, t).requires_grad_()
    raw = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    diffusion.variational_bound(prediction, raw, clean, noisy, t).sum().backward()
    assert prediction.grad is None
    assert raw.grad.abs().min() > 0


def test_times_cover_the_path_and_favour_its_middle():
    diffusion = process()
    t = diffusion.draw_times(200_000, torch.Generator().manual_seed(0))
    share = (t * 10 // 1000).bincount(minlength=10) / len(t)
    assert share.min() > 0.01
    noise = (1 - diffusion.alphas_cumprod[t]).sqrt()
    signal = diffusion.alphas_cumprod[t].sqrt()
    assert 0.45 < (noise / (noise + signal)).median() < 0.55


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="'sample'; only 'v_prediction' and 'epsilon'"):
        Diffusion.of(DDIMScheduler(prediction_type="sample"))


def test_split_halves_the_channels():
    prediction, raw = split(torch.arange(8.0).view(1, 8, 1, 1))
    assert prediction.flatten().tolist() == [0, 1, 2, 3]
    assert raw.flatten().tolist() == [4, 5, 6, 7]
