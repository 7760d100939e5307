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
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn.diffusion import Process, split
from linattn.names import known

Space = Literal["prediction", "noise"]
FeatureNorm = Literal["mse", "l1", "relative"]


@dataclass(frozen=True)
class Comparison:
    """Hold one batch with the outputs of both models: the prediction and, where it is learned, the
    raw variance.
    """

    diffusion: Process
    clean: Tensor  # (batch, channels, height, width)
    eps: Tensor
    t: Tensor  # (batch,)
    student: Tensor  # (batch, channels or 2 x channels, height, width)
    teacher: Tensor
    student_features: Sequence[Tensor] = ()  # one tensor a layer, (batch, tokens, width)
    teacher_features: Sequence[Tensor] = ()

    @property
    def noisy(self) -> Tensor:
        return self.diffusion.noised(self.clean, self.eps, self.t)

    @property
    def learns_variance(self) -> bool:
        return self.student.shape[1] == 2 * self.clean.shape[1]

    def halves(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Split an output into prediction and raw variance; the variance is empty where the model
        learns none.
        """
        return split(output) if self.learns_variance else (output, output[:, :0])


@dataclass(frozen=True)
class Objective:
    """Weigh the terms; a term of weight 0 is not computed."""

    task: float = 0.0
    noise: float = 0.0
    variance: float = 0.0
    features: float = 0.0
    feature_norm: FeatureNorm = "mse"
    noise_space: Space = "prediction"

    def __post_init__(self):
        for name in TERMS:
            weight = getattr(self, name)
            if (
                isinstance(weight, bool)
                or not isinstance(weight, (int, float))
                or not 0 <= weight < float("inf")
            ):
                raise ValueError(
                    f"the weight of {name} is {weight!r}; give a finite number, 0 or more"
                )
        for name, choices in (
            ("feature_norm", get_args(FeatureNorm)),
            ("noise_space", get_args(Space)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}"
                )
        if not any(self.weights.values()):
            raise ValueError(
                f"every weight is 0: nothing to learn; give one of {', '.join(TERMS)} a weight"
            )

    @property
    def weights(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in TERMS}

    def __call__(self, comparison: Comparison) -> dict[str, Tensor]:
        """Return every term of positive weight, unweighted, and their weighted sum under the name
        `loss`.
        """
        terms = {
            name: TERMS[name](comparison, self) for name, weight in self.weights.items() if weight
        }
        return terms | {"loss": sum(self.weights[name] * value for name, value in terms.items())}


# Terms: functions of one signature that return a scalar
# --------------------------------------------------------------


def task(comparison: Comparison, objective: Objective) -> Tensor:
    """Return the teacher's own training loss (DiT): squared error, plus the bound that trains the
    variance alone.
    """
    prediction, raw = comparison.halves(comparison.student)
    error = F.mse_loss(
        prediction, comparison.diffusion.target(comparison.clean, comparison.eps, comparison.t)
    )
    if not comparison.learns_variance:
        return error
    bound = comparison.diffusion.variational_bound(
        prediction, raw, comparison.clean, comparison.noisy, comparison.t
    )
    return error + bound.mean()


def noise(comparison: Comparison, objective: Objective) -> Tensor:
    """Return the squared distance to the teacher's prediction."""
    student, teacher = (
        comparison.halves(comparison.student)[0],
        comparison.halves(comparison.teacher)[0],
    )
    if objective.noise_space == "noise":
        student = comparison.diffusion.eps(student, comparison.noisy, comparison.t)
        teacher = comparison.diffusion.eps(teacher, comparison.noisy, comparison.t)
    return F.mse_loss(student, teacher)


def variance(comparison: Comparison, objective: Objective) -> Tensor:
    """Return the squared distance to the teacher's raw variance, or 0 where the model learns no
    variance.
    """
    if not comparison.learns_variance:
        return comparison.student.new_zeros(())
    return F.mse_loss(
        comparison.halves(comparison.student)[1], comparison.halves(comparison.teacher)[1]
    )


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


def layerwise(
    students: Sequence[Tensor], teachers: Sequence[Tensor], norm: FeatureNorm = "l1"
) -> Tensor:
    """Return the distance of every layer's output, (layers,).

    L1 is the default, because the Grafting paper found it the best for attentions: 2.51, against
    2.58 with L2.
    """
    pairs = list(zip(students, teachers, strict=True))
    if norm == "l1":
        return torch.stack([F.l1_loss(student, teacher) for student, teacher in pairs])
    if norm == "mse":
        return torch.stack([F.mse_loss(student, teacher) for student, teacher in pairs])
    # `relative` gives layers with small outputs a say. Errors are divided picture by picture, so
    # that the mean over slices of a batch is the mean over the batch.
    errors = [(student - teacher).square().flatten(1).mean(1) for student, teacher in pairs]
    scales = [teacher.square().flatten(1).mean(1) for _, teacher in pairs]
    return torch.stack(
        [
            (error / scale.clamp_min(1e-12)).mean()
            for error, scale in zip(errors, scales, strict=True)
        ]
    )


TERMS = {"task": task, "noise": noise, "variance": variance, "features": features}

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
    # One recipe for all operators, so that they compare. It weighs the teacher's outputs most,
    # because the evaluation measures the distance to them. It also weighs the task a little, since
    # all three papers that distil include the task. Without the task a control has nothing to learn
    # (docs/LOG.md).
    "protocol": Objective(
        task=0.1, noise=1.0, variance=0.05, features=0.1, feature_norm="relative"
    ),
}


def create(objective: str | Mapping[str, float | str] | Objective) -> Objective:
    """Create an objective from a preset's name or from weights.

    A mapping may start from a preset: {"preset": "lit", "task": 0}.
    """
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, str):
        return PRESETS[known(objective, PRESETS, "objective")]
    changes = dict(objective)
    settings = asdict(create(changes.pop("preset"))) if "preset" in changes else {}
    valid = [setting.name for setting in fields(Objective)]
    for name, value in changes.items():
        settings[known(name, valid, "term")] = value
    return Objective(**settings)
