"""Define the loss terms, all functions of one `Comparison`, and the papers' weights for them.

- A term never runs a model. It compares what teacher and student return for the same noisy latents,
  times and labels.
- LiT measures noise distillation in noise space. For a teacher that predicts velocities, the error
  in noise space is the error of the prediction times alpha^2, hence 0 at pure noise. `protocol`
  measures the prediction itself. Where the teacher predicts noise, as in LiT, SD and DiT-XL, the
  two errors are the same number.
- Variances are compared as the raw output in [-1, 1] that interpolates the log-variance, not as
  Sigma. Sigma runs from about 1e-4 to 2e-2, and a squared error of Sigma would measure the noisiest
  steps alone.
- Features are the outputs of the self-attentions after their output projection, as in LinFusion.
- `repa` compares a hidden state with features of the clean picture (alignment.py); `orthogonal`
  compares nothing, and reads the weights alone.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from linattn import reader
from linattn.diffusion import Diffusion, Process, split
from linattn.names import known
from linattn.reader import between, choice

SPACES = ("prediction", "noise")
TARGETS = ("teacher", "eye")  # whose features of the clean picture `repa` aligns with
HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Comparison:
    """Hold one batch with the outputs of both models.

    An output is the prediction and, where it is learned, the raw variance.
    """

    diffusion: Process
    clean: Tensor  # (batch, channels, height, width)
    eps: Tensor
    t: Tensor  # (batch,)
    student: Tensor  # (batch, channels or 2 x channels, height, width)
    teacher: Tensor
    student_features: Sequence[Tensor] = ()  # one tensor a layer, (batch, tokens, width)
    teacher_features: Sequence[Tensor] = ()
    # projected hidden states and features of the clean picture, (batch, tokens, channels) both
    aligned: tuple[Tensor, Tensor] | None = None
    linears: Sequence[Tensor] = ()  # weights (out, in) of the Linears that the operators added

    @property
    def noisy(self) -> Tensor:
        return self.diffusion.noised(self.clean, self.eps, self.t)

    @property
    def learns_variance(self) -> bool:
        return self.student.shape[1] == 2 * self.clean.shape[1]

    def halves(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Split an output into prediction and raw variance, which is empty if none is learned."""
        return split(output) if self.learns_variance else (output, output[:, :0])


# Norms of features: functions that return one error for each layer
# ---------------------------------------------------------------------------------------------


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error in memory of its own.

    PyTorch's result keeps the memory of all squared errors: 57 MB for each layer of FLUX.1 at
    1024 px, and as long as the loss lives.
    """
    return F.mse_loss(student, teacher).clone()


def l1(student: Tensor, teacher: Tensor) -> Tensor:
    return F.l1_loss(student, teacher)


def relative(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the squared error over the teacher's square.

    It gives layers with small outputs a say. Errors are divided picture by picture, so that the
    mean over slices of a batch is the mean over the batch.
    """
    error = (student - teacher).square().flatten(1).mean(1)
    scale = teacher.square().flatten(1).mean(1)
    return (error / scale.clamp_min(1e-12)).mean()


NORMS = {"mse": mse, "l1": l1, "relative": relative}


def layerwise(students: Sequence[Tensor], teachers: Sequence[Tensor], norm: str = "l1") -> Tensor:
    """Return the distance of every layer's output, (layers,).

    L1 is the default, because the Grafting paper found it the best for attentions: 2.51, against
    2.58 with L2.
    """
    pairs = zip(students, teachers, strict=True)
    return torch.stack([layer_distance(student, teacher, norm) for student, teacher in pairs])


def layer_distance(student: Tensor, teacher: Tensor, norm: str) -> Tensor:
    """Return the distance of one layer's output, in float32 or wider.

    The backward casts half precision again, because the casts of all layers would stay until then:
    6.5 GB a picture of FLUX.1 at 1024 px.
    """
    if student.dtype not in HALVES and teacher.dtype not in HALVES:
        return NORMS[norm](student, teacher)
    return cast(Tensor, checkpoint(_cast_distance, student, teacher, norm, use_reentrant=False))


def _cast_distance(student: Tensor, teacher: Tensor, norm: str) -> Tensor:
    return NORMS[norm](student.float(), teacher.float())


@dataclass(frozen=True)
class Objective:
    """Weigh the terms; a term of weight 0 is not computed."""

    task: float = between(0, default=0.0)
    noise: float = between(0, default=0.0)
    variance: float = between(0, default=0.0)
    features: float = between(0, default=0.0)
    repa: float = between(0, default=0.0)  # REPA has 0.5
    orthogonal: float = between(0, default=0.0)  # AuxT has 0.1
    feature_norm: str = choice(NORMS, default="mse")
    noise_space: str = choice(SPACES, default="prediction")
    repa_target: str = choice(TARGETS, default="teacher")

    def __post_init__(self) -> None:
        reader.check(self)
        if not any(self.weights.values()):
            raise ValueError(
                f"every weight is 0: nothing to learn; give one of {', '.join(TERMS)} a weight"
            )

    @property
    def weights(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in TERMS}

    @property
    def distils(self) -> bool:
        """Say whether any term follows the teacher or a picture's features."""
        return any(self.weights[name] for name in DISTILLING)

    def only(self, names: Collection[str]) -> "Objective":
        """Return the objective with all other terms at weight 0."""
        return replace(self, **{name: 0.0 for name in TERMS if name not in names})

    def __call__(self, comparison: Comparison) -> dict[str, Tensor]:
        """Return every term of positive weight, unweighted, and their weighted sum as `loss`."""
        weights = {name: weight for name, weight in self.weights.items() if weight}
        terms = {name: TERMS[name](comparison, self) for name in weights}
        loss = sum(weights[name] * value for name, value in terms.items())
        return {**terms, "loss": cast(Tensor, loss)}


# Terms: functions of one signature that return a scalar
# --------------------------------------------------------------


def task(comparison: Comparison, objective: Objective) -> Tensor:
    """Return the teacher's own training loss.

    It is the squared error, plus DiT's bound for a learned variance, which trains that alone.
    """
    diffusion, clean, t = comparison.diffusion, comparison.clean, comparison.t
    prediction, raw = comparison.halves(comparison.student)
    error = mse(prediction, diffusion.target(clean, comparison.eps, t))
    if not comparison.learns_variance:
        return error
    if not isinstance(diffusion, Diffusion):
        raise TypeError(f"a learned variance needs a Diffusion, not a {type(diffusion).__name__}")
    bound = diffusion.variational_bound(prediction, raw, clean, comparison.noisy, t)
    return error + bound.mean()


def noise(comparison: Comparison, objective: Objective) -> Tensor:
    """Return the squared distance to the teacher's prediction."""
    student, _ = comparison.halves(comparison.student)
    teacher, _ = comparison.halves(comparison.teacher)
    if objective.noise_space == "noise":
        student = comparison.diffusion.eps(student, comparison.noisy, comparison.t)
        teacher = comparison.diffusion.eps(teacher, comparison.noisy, comparison.t)
    return mse(student, teacher)


def variance(comparison: Comparison, objective: Objective) -> Tensor:
    """Return the squared distance to the teacher's raw variance, or 0 where none is learned."""
    if not comparison.learns_variance:
        return comparison.student.new_zeros(())
    _, student = comparison.halves(comparison.student)
    _, teacher = comparison.halves(comparison.teacher)
    return mse(student, teacher)


def features(comparison: Comparison, objective: Objective) -> Tensor:
    """Return the distance of the attentions' outputs, averaged over the layers.

    Every model is fed its own activations.
    """
    student, teacher = comparison.student_features, comparison.teacher_features
    if not teacher or len(student) != len(teacher):
        raise ValueError(
            f"{len(student)} layers of the student, {len(teacher)} of the teacher: "
            "capture the same self-attentions in both"
        )
    return layerwise(student, teacher, objective.feature_norm).mean()


def repa(comparison: Comparison, objective: Objective) -> Tensor:
    """Return REPA's alignment (arXiv 2410.06940), averaged over the tokens.

    REPA's loss is -cos; 1 is added, so that a perfect student has 0 here as in every other term.
    """
    if comparison.aligned is None:
        raise ValueError(
            "repa has a weight, but no hidden states were captured: train by linattn.distill, or "
            "give it weight 0"
        )
    hidden, clean = comparison.aligned
    return 1 - F.cosine_similarity(hidden.float(), clean.float(), dim=-1).mean()


def orthogonal(comparison: Comparison, objective: Objective) -> Tensor:
    """Return AuxT's penalty (arXiv 2501.13751) on the Linears that the operators added.

    It is |W W^T - I|^2 over the number of rows, the smaller of W's two sides, so that a weight
    means the same at every width.
    """
    if not comparison.linears:
        raise ValueError(
            "orthogonal has a weight, but the student's operators added no Linear that starts "
            "away from 0: choose linfusion, or give it weight 0"
        )
    return torch.stack([_skew(weight.float()) for weight in comparison.linears]).mean()


def _skew(weight: Tensor) -> Tensor:
    rows = weight if weight.shape[0] <= weight.shape[1] else weight.T  # (rows, longer side)
    identity = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    return (rows @ rows.T - identity).square().sum() / len(rows)


TERMS = {
    "task": task,
    "noise": noise,
    "variance": variance,
    "features": features,
    "repa": repa,
    "orthogonal": orthogonal,
}
DISTILLING = ("noise", "variance", "features", "repa")  # what `until: conflict` drops
LASTING = tuple(name for name in TERMS if name not in DISTILLING)

PRESETS = {
    # CLEAR's distill.py: flow matching + 0.5 prediction + 0.5 attention outputs, all MSE. CLEAR
    # compares ten of the 38 single blocks before the output projection; this library compares every
    # replaced layer after the projection.
    "clear": Objective(task=1.0, noise=0.5, features=0.5),
    # LinFusion's trainer: noise + 0.5 distillation + 0.5 features of all self-attentions.
    "linfusion": Objective(task=1.0, noise=0.5, features=0.5),
    # LiT, guideline 5, class-to-image: lambda1 0.5 on the noise, lambda2 0.05 on the variance.
    "lit": Objective(task=1.0, noise=0.5, variance=0.05, noise_space="noise"),
    # Attention Mediators does not distil; it trains with the model's own loss.
    "mediator": Objective(task=1.0),
    # REPA and its weight; its features are DINOv2's, here those of the eye.
    "repa": Objective(task=1.0, repa=0.5, repa_target="eye"),
    # One recipe for all operators, so that they compare. It weighs the teacher's outputs most,
    # because the evaluation measures the distance to them. It also weighs the task a little, since
    # all three papers that distil include the task. Without the task a control has nothing to learn
    # (docs/LOG.md).
    "protocol": Objective(
        task=0.1, noise=1.0, variance=0.05, features=0.1, feature_norm="relative"
    ),
}


def create(objective: str | Mapping[str, Any] | Objective) -> Objective:
    """Create an objective from a preset's name or from weights.

    A mapping may start from a preset: {"preset": "lit", "task": 0}.
    """
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, str):
        return PRESETS[known(objective, PRESETS, "objective")]
    weights: dict[str, Any] = dict(objective)
    preset = weights.pop("preset", None)
    for name in weights:
        known(name, reader.keys_of(Objective), "term")
    return Objective(**weights) if preset is None else replace(create(preset), **weights)
