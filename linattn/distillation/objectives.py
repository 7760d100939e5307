"""What a student is asked for: loss terms, each a function of one `Comparison`, and the papers' weights for them.

- A term never runs a model: it sees what teacher and student said of the same noisy latents, times and labels.
- LiT measures noise distillation in noise space. For a teacher that predicts velocities this is alpha^2 times the
  error of the prediction, hence nothing at pure noise; `protocol` measures the prediction itself. Where the teacher
  predicts noise, as in LiT, SD and DiT-XL, the two are the same number.
- Variances are compared as the raw output in [-1, 1] that interpolates the log-variance, not as Sigma: that runs
  from about 1e-4 to 2e-2, and its square would see the noisiest steps alone.
- Features are the outputs of the self-attentions after their output projection, as LinFusion takes them.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn.diffusion import Process, split

Space = Literal["prediction", "noise"]
FeatureNorm = Literal["mse", "l1", "relative"]


@dataclass(frozen=True)
class Comparison:
    """One batch as both models saw it; the outputs hold prediction and, where it is learned, raw variance."""

    diffusion: Process
    clean: Tensor  # (batch, channels, height, width)
    eps: Tensor
    t: Tensor  # (batch,)
    student: Tensor  # (batch, channels or 2 x channels, height, width)
    teacher: Tensor
    student_features: Sequence[Tensor] = ()  # a layer each, (batch, tokens, width)
    teacher_features: Sequence[Tensor] = ()

    @property
    def noisy(self) -> Tensor:
        return self.diffusion.noised(self.clean, self.eps, self.t)

    @property
    def learns_variance(self) -> bool:
        return self.student.shape[1] == 2 * self.clean.shape[1]

    def halves(self, output: Tensor) -> tuple[Tensor, Tensor]:
        return split(output) if self.learns_variance else (output, output[:, :0])


@dataclass(frozen=True)
class Objective:
    """Weights of the terms; a term of weight 0 is not computed."""

    task: float = 0.0
    noise: float = 0.0
    variance: float = 0.0
    features: float = 0.0
    feature_norm: FeatureNorm = "mse"
    noise_space: Space = "prediction"

    def __post_init__(self):
        for name in TERMS:
            weight = getattr(self, name)
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
                raise ValueError(f"the weight of {name} is {weight!r}; give a finite number, 0 or more")
        for name, choices in (("feature_norm", get_args(FeatureNorm)), ("noise_space", get_args(Space))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(choices)}")
        if not any(self.weights.values()):
            raise ValueError(f"every weight is 0: nothing to learn; give one of {', '.join(TERMS)} a weight")

    @property
    def weights(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in TERMS}

    def __call__(self, seen: Comparison) -> dict[str, Tensor]:
        """Every weighed term, before its weight, and their weighted sum under the name `loss`."""
        terms = {name: TERMS[name](seen, self) for name, weight in self.weights.items() if weight}
        return terms | {"loss": sum(self.weights[name] * value for name, value in terms.items())}


# Terms: siblings of one signature, each a scalar ---------------------------------------------------------------------


def task(seen: Comparison, how: Objective) -> Tensor:
    """The teacher's own training loss (DiT): squared error, plus the bound that trains the variance alone."""
    prediction, raw = seen.halves(seen.student)
    error = F.mse_loss(prediction, seen.diffusion.target(seen.clean, seen.eps, seen.t))
    if not seen.learns_variance:
        return error
    return error + seen.diffusion.variational_bound(prediction, raw, seen.clean, seen.noisy, seen.t).mean()


def noise(seen: Comparison, how: Objective) -> Tensor:
    """Squared distance to the teacher's prediction."""
    student, teacher = seen.halves(seen.student)[0], seen.halves(seen.teacher)[0]
    if how.noise_space == "noise":
        student, teacher = (seen.diffusion.eps(each, seen.noisy, seen.t) for each in (student, teacher))
    return F.mse_loss(student, teacher)


def variance(seen: Comparison, how: Objective) -> Tensor:
    """Squared distance to the teacher's raw variance; 0 where the model learns none."""
    if not seen.learns_variance:
        return seen.student.new_zeros(())
    return F.mse_loss(seen.halves(seen.student)[1], seen.halves(seen.teacher)[1])


def features(seen: Comparison, how: Objective) -> Tensor:
    """Distance of the attentions' outputs, each model fed its own activations, averaged over the layers."""
    if not seen.teacher_features or len(seen.student_features) != len(seen.teacher_features):
        raise ValueError(
            f"{len(seen.student_features)} layers of the student, {len(seen.teacher_features)} of the teacher: "
            "capture the same self-attentions in both"
        )
    return layerwise(seen.student_features, seen.teacher_features, how.feature_norm).mean()


def layerwise(students: Sequence[Tensor], teachers: Sequence[Tensor], norm: FeatureNorm = "l1") -> Tensor:
    """The distance of every layer's output, (layers,). Grafting found L1 the best for attentions (2.51, L2 2.58)."""
    pairs = list(zip(students, teachers, strict=True))
    if norm == "l1":
        return torch.stack([F.l1_loss(student, teacher) for student, teacher in pairs])
    if norm == "mse":
        return torch.stack([F.mse_loss(student, teacher) for student, teacher in pairs])
    # `relative` lets layers of small outputs speak. Divided picture by picture, so that the mean over slices of a
    # batch is the mean over the batch.
    gaps = [(student - teacher).square().flatten(1).mean(1) for student, teacher in pairs]
    sizes = [teacher.square().flatten(1).mean(1) for _, teacher in pairs]
    return torch.stack([(gap / size.clamp_min(1e-12)).mean() for gap, size in zip(gaps, sizes, strict=True)])


TERMS = {"task": task, "noise": noise, "variance": variance, "features": features}

PRESETS = {
    # distill.py of CLEAR: flow matching + 0.5 prediction + 0.5 attention outputs, all MSE (there ten of the 38 single
    # blocks, before the output projection; here every replaced layer, after it).
    "clear": Objective(task=1.0, noise=0.5, features=0.5),
    # LinFusion's trainer: noise + 0.5 distillation + 0.5 features of all self-attentions.
    "linfusion": Objective(task=1.0, noise=0.5, features=0.5),
    # LiT, guideline 5, class-to-image: lambda1 0.5 on the noise, lambda2 0.05 on the variance.
    "lit": Objective(task=1.0, noise=0.5, variance=0.05, noise_space="noise"),
    # Attention Mediators distils nothing: the model's own loss.
    "mediator": Objective(task=1.0),
    # One recipe for all, so that operators compare: the teacher's answers, since they are what is judged, and a little
    # of the task, as in all three papers that distil. Without it a control has nothing to learn (docs/LOG.md).
    "protocol": Objective(task=0.1, noise=1.0, variance=0.05, features=0.1, feature_norm="relative"),
}


def create(objective: str | Mapping[str, float | str] | Objective) -> Objective:
    """An objective from a preset's name or from weights; a mapping may start from one: {"preset": "lit", "task": 0}."""
    if isinstance(objective, Objective):
        return objective
    if isinstance(objective, str):
        return PRESETS[_known(objective, PRESETS, "objective")]
    given = dict(objective)
    base = asdict(create(given.pop("preset"))) if "preset" in given else {}
    valid = [each.name for each in fields(Objective)]
    return Objective(**base | {_known(name, valid, "term"): value for name, value in given.items()})


def _known(name: str, valid: Sequence[str] | Mapping[str, object], what: str) -> str:
    if name in valid:
        return name
    near = difflib.get_close_matches(str(name), list(valid), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown {what} {name!r}: choose from {', '.join(valid)}{hint}")
