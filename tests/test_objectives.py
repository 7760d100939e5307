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


def drawn(prediction: str = "v_prediction", learned: bool = True, seed: int = 0) -> Comparison:
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

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
        aligned=(normal(batch, 7, 5), normal(batch, 7, 5)),
        linears=[normal(3, 5), normal(6, 4)],
    )


def alpha_sigma(comparison: Comparison) -> tuple[torch.Tensor, torch.Tensor]:
    alpha = comparison.diffusion.alphas_cumprod[comparison.t].sqrt().reshape(-1, 1, 1, 1)
    return alpha, (1 - alpha**2).sqrt()


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon"])
def test_task_without_learned_variance_is_the_squared_error(prediction):
    comparison = drawn(prediction, learned=False)
    alpha, sigma = alpha_sigma(comparison)
    target = (
        comparison.eps
        if prediction == "epsilon"
        else alpha * comparison.eps - sigma * comparison.clean
    )
    expected = ((comparison.student - target) ** 2).mean()
    assert TERMS["task"](comparison, Objective(task=1)).item() == pytest.approx(
        expected.item(), rel=1e-12
    )


def bound_by_hand(comparison: Comparison, index: int) -> float:
    """Compute one picture's bound in bits a dimension, element by element, from two Gaussians."""
    t = int(comparison.t[index])
    now = comparison.diffusion.alphas_cumprod[t].item()
    before = comparison.diffusion.alphas_cumprod[t - 1].item() if t else 1.0
    beta = 1 - now / before
    first = comparison.diffusion.alphas_cumprod
    small = (
        beta * (1 - before) / (1 - now)
        if t
        else (1 - first[1] / first[0]).item() * (1 - first[0].item()) / (1 - first[1].item())
    )
    velocity, raw = comparison.student[index].chunk(2)
    noisy = comparison.noisy[index]
    total = 0.0
    for x, z, v, r in zip(
        comparison.clean[index].flatten(),
        noisy.flatten(),
        velocity.flatten(),
        raw.flatten(),
        strict=True,
    ):
        guess = math.sqrt(now) * z - math.sqrt(1 - now) * v
        variance = math.exp(math.log(small) + (r + 1) / 2 * (math.log(beta) - math.log(small)))
        if t == 0:
            total += 0.5 * (math.log(2 * math.pi * variance) + (x - guess) ** 2 / variance)
        else:
            gap = math.sqrt(before) * beta / (1 - now) * (x - guess)
            total += 0.5 * (math.log(variance / small) - 1 + small / variance + gap**2 / variance)
    return total / comparison.clean[index].numel() / math.log(2)


def test_task_with_learned_variance_adds_the_bound():
    comparison = drawn()
    alpha, sigma = alpha_sigma(comparison)
    velocity = comparison.student.chunk(2, dim=1)[0]
    error = ((velocity - (alpha * comparison.eps - sigma * comparison.clean)) ** 2).mean().item()
    bound = sum(float(bound_by_hand(comparison, index)) for index in range(3)) / 3
    assert TERMS["task"](comparison, Objective(task=1)).item() == pytest.approx(
        error + bound, rel=1e-9
    )


def test_bound_trains_the_variance_and_not_the_prediction():
    comparison = drawn()
    output = comparison.student.clone().requires_grad_(True)
    TERMS["task"](dataclasses.replace(comparison, student=output), Objective(task=1)).backward()
    velocity = output.detach().chunk(2, dim=1)[0]
    target = comparison.diffusion.target(comparison.clean, comparison.eps, comparison.t)
    by_error_alone = 2 * (velocity - target) / velocity.numel()
    torch.testing.assert_close(output.grad.chunk(2, dim=1)[0], by_error_alone)
    assert output.grad.chunk(2, dim=1)[1].abs().min() > 0


def test_noise_in_prediction_space():
    comparison = drawn()
    expected = ((comparison.student[:, :2] - comparison.teacher[:, :2]) ** 2).mean().item()
    assert TERMS["noise"](comparison, Objective(noise=1)).item() == pytest.approx(
        expected, rel=1e-12
    )


def test_noise_in_noise_space_weighs_a_velocity_by_the_signal():
    comparison = drawn()
    alpha, _ = alpha_sigma(comparison)
    expected = (
        (alpha**2 * (comparison.student[:, :2] - comparison.teacher[:, :2]) ** 2).mean().item()
    )
    assert TERMS["noise"](
        comparison, Objective(noise=1, noise_space="noise")
    ).item() == pytest.approx(expected, rel=1e-9)


def test_the_two_spaces_agree_where_the_teacher_predicts_noise():
    comparison = drawn("epsilon")
    spaces = [
        TERMS["noise"](comparison, Objective(noise=1, noise_space=space)).item()
        for space in ("prediction", "noise")
    ]
    assert spaces[0] == pytest.approx(spaces[1], rel=1e-12)


def test_variance_compares_the_second_half():
    comparison = drawn()
    expected = ((comparison.student[:, 2:] - comparison.teacher[:, 2:]) ** 2).mean().item()
    assert TERMS["variance"](comparison, Objective(variance=1)).item() == pytest.approx(
        expected, rel=1e-12
    )
    assert TERMS["variance"](drawn(learned=False), Objective(variance=1)).item() == 0


@pytest.mark.parametrize("norm", ["mse", "l1", "relative"])
def test_features_average_over_layers(norm):
    comparison = drawn()
    layers = []
    for student, teacher in zip(
        comparison.student_features, comparison.teacher_features, strict=True
    ):
        gap = student - teacher
        of_pictures = [(g**2).sum() / (t**2).sum() for g, t in zip(gap, teacher, strict=True)]
        sizes = {"mse": (gap**2).mean(), "l1": gap.abs().mean(), "relative": sum(of_pictures) / 3}
        layers.append(sizes[norm].item())
    objective = Objective(features=1, feature_norm=norm)
    assert TERMS["features"](comparison, objective).item() == pytest.approx(
        sum(layers) / 2, rel=1e-12
    )
    assert layerwise(
        comparison.student_features, comparison.teacher_features, norm
    ).tolist() == pytest.approx(layers, rel=1e-12)


def test_features_of_different_layers_are_refused():
    comparison = drawn()
    fewer = dataclasses.replace(comparison, student_features=comparison.student_features[:1])
    with pytest.raises(ValueError, match="1 layers of the student, 2 of the teacher"):
        TERMS["features"](fewer, Objective(features=1))


def test_repa_is_one_minus_the_mean_cosine_of_the_tokens():
    comparison = drawn()
    cosines = []
    for hidden, clean in zip(*comparison.aligned, strict=True):
        for ours, theirs in zip(hidden, clean, strict=True):
            cosines.append(float(ours @ theirs / (ours.norm() * theirs.norm())))
    value = TERMS["repa"](comparison, Objective(repa=1)).item()
    assert value == pytest.approx(1 - sum(cosines) / len(cosines), rel=1e-5)


def test_orthogonal_is_the_distance_of_the_smaller_gram_matrix_to_the_identity():
    comparison = drawn()
    wide, tall = comparison.linears
    by_hand = []
    for rows in (wide.tolist(), tall.T.tolist()):
        total = 0.0
        for i, first in enumerate(rows):
            for j, second in enumerate(rows):
                product = sum(a * b for a, b in zip(first, second, strict=True))
                total += (product - (i == j)) ** 2
        by_hand.append(total / len(rows))
    value = TERMS["orthogonal"](comparison, Objective(orthogonal=1)).item()
    assert value == pytest.approx(sum(by_hand) / 2, rel=1e-5)
    turned = dataclasses.replace(comparison, linears=[torch.eye(4)[[2, 0, 3, 1]]])
    assert TERMS["orthogonal"](turned, Objective(orthogonal=1)).item() == 0


@pytest.mark.parametrize("term", ["repa", "orthogonal"])
def test_a_term_without_its_tensors_is_refused_with_the_remedy(term):
    bare = dataclasses.replace(drawn(), aligned=None, linears=())
    with pytest.raises(ValueError, match=f"{term} has a weight, but .* or give it weight 0"):
        TERMS[term](bare, Objective(**{term: 1}))


def test_an_objective_is_the_weighted_sum_and_skips_terms_of_weight_0():
    comparison = drawn()
    objective = Objective(task=0.3, noise=2.0, variance=0.05)
    values = objective(comparison)
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
        ("repa", 1, 0, 0, 0),
    ],
)
def test_presets_carry_the_published_weights(name, task, noise, variance, features):
    assert create(name).weights == {
        "task": task,
        "noise": noise,
        "variance": variance,
        "features": features,
        "repa": 0.5 if name == "repa" else 0,
        "orthogonal": 0,
    }
    assert create(name).feature_norm == "mse"


def test_lit_measures_in_noise_space():
    assert PRESETS["lit"].noise_space == "noise"


def test_every_preset_is_zero_or_the_task_for_a_perfect_student():
    comparison = drawn()
    same = dataclasses.replace(
        comparison,
        student=comparison.teacher,
        student_features=comparison.teacher_features,
        aligned=(3 * comparison.aligned[1], comparison.aligned[1]),
    )
    for objective in PRESETS.values():
        terms = objective(same)
        assert all(
            terms[name].item() == pytest.approx(0, abs=1e-6)
            for name in ("noise", "variance", "features", "repa")
            if name in terms
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
        ({"task": -1}, "task is -1; it must be at least 0"),
        ({"task": float("nan")}, "task is nan; it must be a finite number"),
        ({"task": True}, "task is True .*it must be a number"),
        (
            {"task": 1, "feature_norm": "l3"},
            "feature_norm is 'l3'; it is one of mse, l1, relative",
        ),
        ({}, "every weight is 0"),
    ],
    ids=str,
)
def test_a_wrong_objective_is_refused_with_the_valid_choices(wrong, message):
    with pytest.raises(ValueError, match=message):
        create(wrong)
