"""Every loss term against a computation by hand in float64, and the papers' weights."""

import dataclasses
import math

import pytest
import torch

from linattn.diffusion import Diffusion
from linattn.distillation.objectives import PRESETS, TERMS, Comparison, Objective, create, layerwise

STEPS = 1000
SHAPE = (3, 2, 5, 4)  # odd, not square


def process(prediction: str) -> Diffusion:
    betas = torch.linspace(1e-4, 2e-2, STEPS, dtype=torch.float64)
    return Diffusion((1 - betas).cumprod(0), prediction)


def seen(prediction: str = "v_prediction", learned: bool = True, seed: int = 0) -> Comparison:
    dice = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=dice, dtype=torch.float64)

    batch, channels, height, width = SHAPE
    out = (batch, 2 * channels if learned else channels, height, width)
    return Comparison(
        diffusion=process(prediction),
        clean=normal(*SHAPE),
        eps=normal(*SHAPE),
        t=torch.tensor([0, 371, 999]),
        student=normal(*out),
        teacher=normal(*out),
        student_features=[normal(batch, 7, 6), normal(batch, 9, 6)],
        teacher_features=[normal(batch, 7, 6), 10 * normal(batch, 9, 6)],
    )


def alpha_sigma(each: Comparison) -> tuple[torch.Tensor, torch.Tensor]:
    alpha = each.diffusion.alphas_cumprod[each.t].sqrt().reshape(-1, 1, 1, 1)
    return alpha, (1 - alpha**2).sqrt()


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_task_without_learned_variance_is_the_squared_error(prediction):
    each = seen(prediction, learned=False)
    alpha, sigma = alpha_sigma(each)
    target = each.eps if prediction == "epsilon" else alpha * each.eps - sigma * each.clean
    expected = ((each.student - target) ** 2).mean()
    assert TERMS["task"](each, Objective(task=1)).item() == pytest.approx(
        expected.item(), rel=1e-12
    )


def bound_by_hand(each: Comparison, row: int) -> float:
    """One picture's bound in bits a dimension, from the definition of two Gaussians, element by
    element.
    """
    t = int(each.t[row])
    now = each.diffusion.alphas_cumprod[t].item()
    before = each.diffusion.alphas_cumprod[t - 1].item() if t else 1.0
    beta = 1 - now / before
    first = each.diffusion.alphas_cumprod
    small = (
        beta * (1 - before) / (1 - now)
        if t
        else (1 - first[1] / first[0]).item() * (1 - first[0].item()) / (1 - first[1].item())
    )
    velocity, raw = each.student[row].chunk(2)
    noisy = each.noisy[row]
    total = 0.0
    for x, z, v, r in zip(
        each.clean[row].flatten(), noisy.flatten(), velocity.flatten(), raw.flatten(), strict=True
    ):
        guess = math.sqrt(now) * z - math.sqrt(1 - now) * v
        variance = math.exp(math.log(small) + (r + 1) / 2 * (math.log(beta) - math.log(small)))
        if t == 0:
            total += 0.5 * (math.log(2 * math.pi * variance) + (x - guess) ** 2 / variance)
        else:
            gap = math.sqrt(before) * beta / (1 - now) * (x - guess)
            total += 0.5 * (math.log(variance / small) - 1 + small / variance + gap**2 / variance)
    return total / each.clean[row].numel() / math.log(2)


def test_task_with_learned_variance_adds_the_bound():
    each = seen()
    alpha, sigma = alpha_sigma(each)
    velocity = each.student.chunk(2, dim=1)[0]
    error = ((velocity - (alpha * each.eps - sigma * each.clean)) ** 2).mean().item()
    bound = sum(float(bound_by_hand(each, row)) for row in range(3)) / 3
    assert TERMS["task"](each, Objective(task=1)).item() == pytest.approx(error + bound, rel=1e-9)


def test_bound_trains_the_variance_and_not_the_prediction():
    each = seen()
    output = each.student.clone().requires_grad_(True)
    TERMS["task"](dataclasses.replace(each, student=output), Objective(task=1)).backward()
    velocity = output.detach().chunk(2, dim=1)[0]
    target = each.diffusion.target(each.clean, each.eps, each.t)
    by_error_alone = 2 * (velocity - target) / velocity.numel()
    torch.testing.assert_close(output.grad.chunk(2, dim=1)[0], by_error_alone)
    assert output.grad.chunk(2, dim=1)[1].abs().min() > 0


def test_noise_in_prediction_space():
    each = seen()
    expected = ((each.student[:, :2] - each.teacher[:, :2]) ** 2).mean().item()
    assert TERMS["noise"](each, Objective(noise=1)).item() == pytest.approx(expected, rel=1e-12)


def test_noise_in_noise_space_weighs_a_velocity_by_the_signal():
    each = seen()
    alpha, _ = alpha_sigma(each)
    expected = (alpha**2 * (each.student[:, :2] - each.teacher[:, :2]) ** 2).mean().item()
    assert TERMS["noise"](each, Objective(noise=1, noise_space="noise")).item() == pytest.approx(
        expected, rel=1e-9
    )


def test_the_two_spaces_agree_where_the_teacher_predicts_noise():
    each = seen("epsilon")
    spaces = [
        TERMS["noise"](each, Objective(noise=1, noise_space=space)).item()
        for space in ("prediction", "noise")
    ]
    assert spaces[0] == pytest.approx(spaces[1], rel=1e-12)


def test_variance_compares_the_second_half():
    each = seen()
    expected = ((each.student[:, 2:] - each.teacher[:, 2:]) ** 2).mean().item()
    assert TERMS["variance"](each, Objective(variance=1)).item() == pytest.approx(
        expected, rel=1e-12
    )
    assert TERMS["variance"](seen(learned=False), Objective(variance=1)).item() == 0


@pytest.mark.parametrize("norm", ["mse", "l1", "relative"])
def test_features_average_over_layers(norm):
    each = seen()
    layers = []
    for student, teacher in zip(each.student_features, each.teacher_features, strict=True):
        gap = student - teacher
        of_pictures = [(g**2).sum() / (t**2).sum() for g, t in zip(gap, teacher, strict=True)]
        sizes = {"mse": (gap**2).mean(), "l1": gap.abs().mean(), "relative": sum(of_pictures) / 3}
        layers.append(sizes[norm].item())
    how = Objective(features=1, feature_norm=norm)
    assert TERMS["features"](each, how).item() == pytest.approx(sum(layers) / 2, rel=1e-12)
    assert layerwise(each.student_features, each.teacher_features, norm).tolist() == pytest.approx(
        layers, rel=1e-12
    )


def test_features_of_different_layers_are_refused():
    each = seen()
    fewer = dataclasses.replace(each, student_features=each.student_features[:1])
    with pytest.raises(ValueError, match="1 layers of the student, 2 of the teacher"):
        TERMS["features"](fewer, Objective(features=1))


def test_an_objective_is_the_weighted_sum_and_skips_what_weighs_nothing():
    each = seen()
    how = Objective(task=0.3, noise=2.0, variance=0.05)
    values = how(each)
    assert set(values) == {"task", "noise", "variance", "loss"}
    expected = 0.3 * values["task"] + 2 * values["noise"] + 0.05 * values["variance"]
    assert values["loss"].item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "task", "noise", "variance", "features"),
    [
        ("clear", 1, 0.5, 0, 0.5),
        ("linfusion", 1, 0.5, 0, 0.5),
        ("lit", 1, 0.5, 0.05, 0),
        ("mediator", 1, 0, 0, 0),
    ],
)
def test_presets_carry_the_published_weights(name, task, noise, variance, features):
    assert create(name).weights == {
        "task": task,
        "noise": noise,
        "variance": variance,
        "features": features,
    }
    assert create(name).feature_norm == "mse"


def test_lit_measures_in_noise_space():
    assert PRESETS["lit"].noise_space == "noise"


def test_every_preset_is_zero_or_the_task_for_a_perfect_student():
    each = seen()
    same = dataclasses.replace(each, student=each.teacher, student_features=each.teacher_features)
    for objective in PRESETS.values():
        terms = objective(same)
        assert all(
            terms[name].item() == 0 for name in ("noise", "variance", "features") if name in terms
        )


def test_a_mapping_starts_from_a_preset():
    assert create({"preset": "lit", "task": 0}) == Objective(
        noise=0.5, variance=0.05, noise_space="noise"
    )
    assert create({"noise": 1}) == Objective(noise=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("protocoll", "did you mean 'protocol'"),
        ({"featurs": 1}, "did you mean 'features'"),
        ({"task": -1}, "the weight of task is -1"),
        ({"task": float("nan")}, "the weight of task is nan"),
        ({"task": True}, "the weight of task is True"),
        (
            {"task": 1, "feature_norm": "l3"},
            "feature_norm is 'l3'; choose one of mse, l1, relative",
        ),
        ({}, "every weight is 0"),
    ],
    ids=str,
)
def test_wrong_objectives_say_what_is_right(wrong, message):
    with pytest.raises(ValueError, match=message):
        create(wrong)
