"""Define the forward process, which training, sampling and the distillation losses share.

- Predictions convert into one another (velocity, noise, clean latents), so that a loss can be
  written in a paper's own terms.
- `Diffusion` is a table over 1,000 time steps: t is (batch,) and integer, and 0 is nearly clean.
  The learned variance is DiT's: the second half of the model's output interpolates, in log space,
  between the posterior's variance and beta.
- `Flow` is the straight path of SD3 and FLUX. It has the same methods; its t goes up to 1,000 and
  need not be a whole number.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Prediction = Literal["v_prediction", "epsilon"]


@dataclass(frozen=True)
class Diffusion:
    """Add noise by a table: noisy = sqrt(alphas_cumprod) clean + sqrt(1 - alphas_cumprod) eps."""

    alphas_cumprod: Tensor  # (steps,), from nearly 1 to nearly 0
    prediction: Prediction = "v_prediction"

    @staticmethod
    def of(scheduler: Any) -> "Diffusion | Flow":
        """Return the process that a diffusers scheduler runs backwards."""
        if not hasattr(scheduler, "alphas_cumprod"):
            return Flow(scheduler.config.num_train_timesteps)
        prediction = scheduler.config.prediction_type
        if prediction not in ("v_prediction", "epsilon"):
            raise ValueError(
                f"prediction_type is {prediction!r}; only 'v_prediction' and 'epsilon' are "
                "supported"
            )
        return Diffusion(scheduler.alphas_cumprod.double(), prediction)

    @property
    def steps(self) -> int:
        return len(self.alphas_cumprod)

    def _at(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        values = table.to(like.device)[t.long()].to(like.dtype)
        return values.reshape(-1, *[1] * (like.ndim - 1))

    def signal(self, t: Tensor, like: Tensor) -> Tensor:
        """Return the factor of the clean latents at the times `t`, in the shape of `like`."""
        return self._at(self.alphas_cumprod.sqrt(), t, like)

    def noise(self, t: Tensor, like: Tensor) -> Tensor:
        """Return the factor of the noise at the times `t`, in the shape of `like`."""
        return self._at((1 - self.alphas_cumprod).sqrt(), t, like)

    def noised(self, clean: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return self.signal(t, clean) * clean + self.noise(t, clean) * eps

    def target(self, clean: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return what the model is trained to predict."""
        if self.prediction == "epsilon":
            return eps
        return self.signal(t, clean) * eps - self.noise(t, clean) * clean

    def eps(self, prediction: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """Return the noise that a prediction implies."""
        if self.prediction == "epsilon":
            return prediction
        return self.noise(t, noisy) * noisy + self.signal(t, noisy) * prediction

    def clean(self, prediction: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """Return the clean latents that a prediction implies."""
        if self.prediction == "epsilon":
            return (noisy - self.noise(t, noisy) * prediction) / self.signal(t, noisy)
        return self.signal(t, noisy) * noisy - self.noise(t, noisy) * prediction

    def draw_times(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw times whose noise share, sigma / (alpha + sigma), is logit-normal.

        A small model learns most in the middle of the path. One time in ten is uniform, so that
        both ends and the variance of every step are trained too.
        """
        log_ratio = 0.5 * (1 / self.alphas_cumprod - 1).log()  # log(sigma / alpha), rising
        density = (-0.5 * log_ratio**2).exp() * torch.gradient(log_ratio)[0]
        weights = 0.9 * density / density.sum() + 0.1 / self.steps
        return torch.multinomial(weights, count, replacement=True, generator=generator)

    def uniform_times(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randint(self.steps, (count,), generator=generator)

    def posterior(self, clean: Tensor, noisy: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of q(x_{t-1} | x_t, x_0)."""
        now, before, beta, log_variance = self._steps_tables()
        weight_clean = before.sqrt() * beta / (1 - now)
        weight_noisy = (1 - beta).sqrt() * (1 - before) / (1 - now)
        mean = self._at(weight_clean, t, noisy) * clean + self._at(weight_noisy, t, noisy) * noisy
        return mean, self._at(log_variance, t, noisy)

    def log_variance(self, raw: Tensor, t: Tensor) -> Tensor:
        """Return the learned log-variance: raw in [-1, 1] runs from the posterior's to log beta."""
        _, _, beta, smallest = self._steps_tables()
        low, high = self._at(smallest, t, raw), self._at(beta.log(), t, raw)
        return low + (raw + 1) / 2 * (high - low)

    def _steps_tables(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        now = self.alphas_cumprod
        before = torch.cat([now.new_ones(1), now[:-1]])
        beta = 1 - now / before
        variance = beta * (1 - before) / (1 - now)
        variance[0] = variance[1]  # the first is zero and has no logarithm
        return now, before, beta, variance.log()

    def variational_bound(
        self, prediction: Tensor, raw: Tensor, clean: Tensor, noisy: Tensor, t: Tensor
    ) -> Tensor:
        """Return the bound of one step in bits a dimension, (batch,).

        It trains the variance alone: no gradient flows into the prediction.
        """
        mean, log_variance = self.posterior(clean, noisy, t)
        guess, _ = self.posterior(self.clean(prediction.detach(), noisy, t), noisy, t)
        learned = self.log_variance(raw, t)
        squared = (mean - guess) ** 2
        divergence = (
            learned - log_variance - 1 + (log_variance - learned).exp() + squared * (-learned).exp()
        )
        likelihood = math.log(2 * math.pi) + learned + (clean - guess) ** 2 * (-learned).exp()
        is_first = (t == 0).reshape(-1, *[1] * (clean.ndim - 1))
        bound = torch.where(is_first, likelihood, divergence)
        return 0.5 * bound.flatten(1).mean(1) / math.log(2)


@dataclass(frozen=True)
class Flow:
    """Add noise along a straight line: noisy = (1 - sigma) clean + sigma eps, sigma = t / steps.

    The model predicts eps - clean.
    """

    steps: int = 1000
    prediction: Literal["flow"] = "flow"

    def noise(self, t: Tensor, like: Tensor) -> Tensor:
        return (t.to(like.device, like.dtype) / self.steps).reshape(-1, *[1] * (like.ndim - 1))

    def signal(self, t: Tensor, like: Tensor) -> Tensor:
        return 1 - self.noise(t, like)

    def noised(self, clean: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return self.signal(t, clean) * clean + self.noise(t, clean) * eps

    def target(self, clean: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return eps - clean

    def eps(self, prediction: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        return noisy + self.signal(t, noisy) * prediction

    def clean(self, prediction: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        return noisy - self.noise(t, noisy) * prediction

    def draw_times(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw logit-normal times, as in the trials for SD3."""
        return torch.randn(count, generator=generator).sigmoid() * self.steps

    def uniform_times(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.rand(count, generator=generator) * self.steps


Process = Diffusion | Flow


def split(output: Tensor) -> tuple[Tensor, Tensor]:
    """Split the output of a model with learned variance into (prediction, raw variance)."""
    prediction, raw = output.chunk(2, dim=1)
    return prediction, raw
