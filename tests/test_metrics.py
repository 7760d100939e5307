"""Metrics against closed forms and independent computations, and what their intervals promise."""

import json
import math

import pytest
import tiny
import torch
from torch import nn
from torchmetrics.image.kid import KernelInceptionDistance

from linattn import intervals, world
from linattn.evaluation import distance
from linattn.evaluation.distance import (
    LEVELS,
    PSNR_MOST,
    distances,
    level_noise,
    prediction_error,
    predictions,
)
from linattn.world import marks
from linattn.world.judge import Marks
from linattn.world.marks import judge_accuracy, judge_features, judge_fid, judge_kid


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pictures(count: int = 3, side: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


# Intervals


def test_bootstrap_of_a_mean_is_about_its_standard_error():
    values = normal(400)
    low, high = intervals.bootstrap(values)
    half = intervals.NORMAL * values.std().item() / 20
    assert low == pytest.approx(values.mean().item() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean().item() + half, abs=0.15 * half)


def test_bootstrap_repeats_by_its_seed():
    values = normal(20)
    assert intervals.bootstrap(values, 3) == intervals.bootstrap(values, 3)
    assert intervals.bootstrap(values, 3) != intervals.bootstrap(values, 4)


def test_bootstrap_in_pieces_is_the_same(monkeypatch):
    together = intervals.bootstrap(normal(50))
    monkeypatch.setattr(intervals, "DRAWN", 128)
    assert intervals.bootstrap(normal(50)) == pytest.approx(together)


def test_one_picture_has_a_value_and_no_interval():
    assert intervals.summary(torch.tensor([0.25])) == {
        "value": 0.25,
        "low": None,
        "high": None,
        "n": 1,
    }
    with pytest.raises(ValueError, match="at least 1"):
        intervals.summary(torch.empty(0))


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    # Newcombe 1998, table I: the published limits of the score method
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_limits(right, n, low, high):
    result = intervals.wilson(right, n)
    assert result["low"] == pytest.approx(low, abs=6e-5)
    assert result["high"] == pytest.approx(high, abs=6e-5)
    assert result["value"] == right / n


def test_wilson_of_one_picture_stays_inside():
    assert intervals.wilson(1, 1)["high"] == 1.0
    assert 0 < intervals.wilson(1, 1)["low"] < 1
    assert intervals.wilson(0, 1)["low"] == 0.0
    with pytest.raises(ValueError, match="3 right of 2"):
        intervals.wilson(3, 2)


# Distance


def test_the_same_pictures_are_at_no_distance():
    result = distance.distance(pictures(), pictures())
    assert {name: measure["value"] for name, measure in result.items()} == pytest.approx(
        {"mse": 0, "cosine": 1, "psnr": PSNR_MOST, "ssim": 1}
    )
    json.dumps(result, allow_nan=False)


def test_distances_by_hand():
    black, grey = torch.zeros(2, 3, 12, 12), torch.full((2, 3, 12, 12), 0.1)
    result = distances(grey, black)
    assert result["mse"].tolist() == pytest.approx([0.01, 0.01])
    assert result["psnr"].tolist() == pytest.approx([20, 20])
    assert result["cosine"].tolist() == pytest.approx(
        [1, 1]
    )  # both are darker than grey everywhere
    assert distances(1 - black, black)["cosine"].tolist() == pytest.approx([-1, -1])
    # Without contrast SSIM is its luminance term alone: C1 / (mean^2 + C1)
    assert result["ssim"].tolist() == pytest.approx([1e-4 / (0.01 + 1e-4)] * 2, rel=1e-3)


@pytest.mark.parametrize("piece", [1, 3, 8])
def test_distances_are_a_pictures_own(piece, monkeypatch):
    monkeypatch.setattr(distance, "PIECE", piece)
    ours, theirs = pictures(4, seed=1), pictures(4, seed=2)
    together = distances(ours, theirs)
    alone = [distances(ours[i : i + 1], theirs[i : i + 1]) for i in range(4)]
    for name, values in together.items():
        torch.testing.assert_close(
            values, torch.cat([distances_alone[name] for distances_alone in alone])
        )


def test_pictures_in_eight_bits_are_at_the_distance_of_their_floats():
    torch.manual_seed(3)
    ours, theirs = torch.randint(0, 256, (2, 5, 3, 16, 16), dtype=torch.uint8)
    floats = distances(ours.float() / 255, theirs.float() / 255)
    for name, values in distances(ours, theirs).items():
        assert torch.equal(values, floats[name])


def test_distance_refuses_other_shapes_and_tiny_pictures():
    with pytest.raises(ValueError, match="reference"):
        distance.distance(pictures(3), pictures(2))
    with pytest.raises(ValueError, match="11 x 11"):
        distance.distance(pictures(side=8), pictures(side=8))


# Prediction error


class Scaled(nn.Module):
    """A student whose prediction is a multiple of another model's."""

    def __init__(self, model: nn.Module, factor: float):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, *args, **kwargs):
        return (self.factor * self.model(*args, **kwargs)[0],)


def latents_and_labels(count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(count, 4, 8, 8).float(), torch.arange(count) % 4


def test_prediction_error_of_a_scaled_teacher_is_known():
    pipe = tiny.pipeline()
    result = prediction_error(pipe, Scaled(pipe.transformer, 1.5), latents_and_labels())
    assert [row["noise"] for row in result["levels"]] == list(LEVELS)
    assert [row["value"] for row in result["levels"]] == pytest.approx([0.25] * 5, rel=1e-5)
    assert result["mean"]["value"] == pytest.approx(0.25, rel=1e-5)
    assert result["mean"]["high"] == pytest.approx(0.25, rel=1e-5)
    assert prediction_error(pipe, pipe.transformer, latents_and_labels())["mean"]["value"] == 0


def test_the_error_is_that_of_the_squares_of_its_pictures():
    result = prediction_error(tiny.pipeline(), other(), latents_and_labels(), (0.2, 0.8))
    error, size = (torch.tensor(result["squares"][name]) for name in ("error", "teacher"))
    assert error.shape == size.shape == (2, 5)  # levels x pictures
    by_level = error.sum(1) / size.sum(1)
    assert by_level.tolist() == pytest.approx([row["value"] for row in result["levels"]])
    assert by_level.mean().item() == pytest.approx(result["mean"]["value"])


def other() -> nn.Module:
    return tiny.pipeline(seed=5).transformer


def test_prediction_error_does_not_depend_on_its_batch():
    pipe, student = tiny.pipeline(), other()
    together = prediction_error(pipe, student, latents_and_labels(), batch=32)
    assert together["mean"]["value"] > 0.01
    assert together["mean"]["low"] < together["mean"]["value"] < together["mean"]["high"]
    for batch in (1, 3):
        batched = prediction_error(pipe, student, latents_and_labels(), batch=batch)
        assert batched["mean"] == pytest.approx(together["mean"], rel=1e-4)


def test_prediction_error_of_one_picture_and_one_level():
    result = prediction_error(tiny.pipeline(), other(), latents_and_labels(1), levels=(1.0,))
    assert result["levels"][0]["time"] == 999
    assert result["mean"]["low"] is None
    assert result["mean"]["n"] == 1


def test_prediction_error_refuses_a_level_outside():
    with pytest.raises(ValueError, match="500"):
        prediction_error(tiny.pipeline(), other(), latents_and_labels(1), levels=(500,))


def test_the_teachers_predictions_may_be_kept():
    pipe, student = tiny.pipeline(), other()
    levels = (0.2, 0.8)
    kept = predictions(pipe, pipe.transformer, latents_and_labels(), levels, count=3)
    assert kept.shape == (2, 3, 4, 8, 8)
    assert kept.is_contiguous()  # safetensors takes nothing else
    result = prediction_error(pipe, student, latents_and_labels(), levels, theirs=kept, count=3)
    assert result == prediction_error(pipe, student, latents_and_labels(), levels, count=3)
    with pytest.raises(ValueError, match="same levels and pictures"):
        prediction_error(pipe, student, latents_and_labels(), theirs=kept)


def test_level_noise_is_a_pictures_own():
    noise = level_noise((4, 2, 3), 100, seed=0)
    torch.testing.assert_close(
        noise[2:], level_noise((2, 2, 3), 100, seed=0, start=2), rtol=0, atol=0
    )
    assert not torch.equal(noise, level_noise((4, 2, 3), 300, seed=0))
    assert not torch.equal(noise, level_noise((4, 2, 3), 100, seed=1))


# The judge


class Oracle(nn.Module):
    """Reads the answer from two pixels, so that what it should find is known."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, pictures: torch.Tensor) -> Marks:
        shape = nn.functional.one_hot(
            pictures[:, 0, 0, 0].round().long(), len(world.SHAPES)
        ).float()
        colour = nn.functional.one_hot(
            pictures[:, 1, 0, 0].round().long(), len(world.COLOURS)
        ).float()
        return Marks(shape, colour, features=pictures.flatten(1))


def drawn(labels: torch.Tensor) -> torch.Tensor:
    marked = torch.zeros(len(labels), 3, 2, 2)
    marked[:, 0, 0, 0], marked[:, 1, 0, 0] = (
        labels // len(world.COLOURS),
        labels % len(world.COLOURS),
    )
    return marked


def test_judge_accuracy_counts_shape_colour_and_both():
    labels = torch.arange(len(world.LABELS))
    colours = len(world.COLOURS)
    wrong_colour, wrong_shape = labels.clone(), labels.clone()
    wrong_colour[:6] = labels[:6] // colours * colours + (labels[:6] + 1) % colours
    wrong_shape[3:15] = (labels[3:15] + colours) % len(labels)
    mixed = torch.stack([wrong_shape // colours, wrong_colour % colours])
    result = judge_accuracy(Oracle(), drawn(mixed[0] * colours + mixed[1]), labels, batch=7)
    count = len(labels)
    values = {name: measure["value"] for name, measure in result.items()}
    assert values == pytest.approx(
        {"shape": 1 - 12 / count, "colour": 1 - 6 / count, "both": 1 - 15 / count}
    )
    assert result["both"]["n"] == count


def test_chance_is_what_a_constant_gets():
    labels = torch.arange(len(world.LABELS))
    result = judge_accuracy(Oracle(), drawn(torch.zeros_like(labels)), labels)
    assert {name: measure["value"] for name, measure in result.items()} == pytest.approx(
        marks.chance()
    )


def test_judge_features_do_not_depend_on_the_batch():
    images = pictures(5)
    torch.testing.assert_close(judge_features(Oracle(), images, 2), images.flatten(1).double())


def kernel_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """The estimate over pairs of different rows, written from its definition."""
    x, y = (features / y.square().mean().sqrt() for features in (x, y))

    def kernel(a, b):
        return (a @ b / a.numel() + 1) ** 3

    n = len(x)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    return sum(
        kernel(x[i], x[j]) + kernel(y[i], y[j]) - kernel(x[i], y[j]) - kernel(x[j], y[i])
        for i, j in pairs
    ).item() / (n * (n - 1))


def test_kid_of_whole_sets_is_its_definition():
    x, y = normal(6, 5), normal(6, 5, seed=1) + 1
    result = judge_kid(x, y, subset_size=6, subsets=2)
    assert result["value"] == pytest.approx(kernel_distance(x, y), rel=1e-9)
    assert result["low"] is None  # all subsets are the whole set: no spread to read an error from


def test_kid_of_a_set_and_itself_is_zero():
    result = judge_kid(normal(20, 4) * 7, normal(20, 4) * 7)
    assert [result[key] for key in ("value", "low", "high")] == pytest.approx([0, 0, 0], abs=1e-12)


def test_kid_does_not_depend_on_the_scale_of_the_features():
    x, y = normal(20, 4), normal(20, 4, seed=1) + 1
    assert judge_kid(9 * x, 9 * y)["value"] == pytest.approx(judge_kid(x, y)["value"])


def strangers_kid(x: torch.Tensor, y: torch.Tensor) -> float:
    metric = KernelInceptionDistance(
        feature=marks._PrecomputedFeatures(x.shape[1]), subsets=1, subset_size=len(x)
    )
    metric.set_dtype(torch.float64)
    scale = y.square().mean().sqrt()
    metric.update(y / scale, real=True)
    metric.update(x / scale, real=False)
    return metric.compute()[0].item()


def pairs_kid(x: torch.Tensor, y: torch.Tensor) -> float:
    return judge_kid(x, y, subset_size=len(x), subsets=1)["value"]


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kid_of_strangers_is_torchmetrics():
    sets = [(normal(80, 8, seed=i) + 0.5, normal(80, 8, seed=100 + i)) for i in range(40)]
    ours, theirs = (sum(kid(x, y) for x, y in sets) for kid in (pairs_kid, strangers_kid))
    assert ours == pytest.approx(theirs, rel=0.01)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kid_of_partners_is_unbiased_where_torchmetrics_is_not():
    """Two sets of one distribution whose rows are nearly equal: the distance is zero."""
    sets = [
        (normal(80, 8, seed=i), normal(80, 8, seed=i) + 0.01 * normal(80, 8, seed=i + 50))
        for i in range(20)
    ]
    ours = torch.tensor([judge_kid(x, y)["value"] for x, y in sets])
    assert ours.abs().max() < 1e-3
    assert max(strangers_kid(x, y) for x, y in sets) < -0.02


def test_kid_interval_covers_the_spread_of_fresh_sets():
    fresh = [
        judge_kid(normal(80, 8, seed=i) + 0.5, normal(80, 8, seed=100 + i))["value"]
        for i in range(40)
    ]
    result = judge_kid(normal(80, 8, seed=7) + 0.5, normal(80, 8, seed=107))
    half = (result["high"] - result["low"]) / 2
    assert half == pytest.approx(intervals.NORMAL * torch.tensor(fresh).std().item(), rel=0.5)


def test_kid_repeats_and_leaves_the_global_stream_alone():
    x, y = normal(20, 4), normal(20, 4, seed=1)
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first = judge_kid(x, y, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert judge_kid(x, y, seed=3) == first
    assert judge_kid(x, y, seed=4) != first
    assert first["n"] == 20


def test_kid_of_too_few_pictures_says_so():
    result = judge_kid(normal(3, 4), normal(3, 4))
    assert result["value"] is None
    assert "3 pictures" in result["reason"]
    with pytest.raises(ValueError, match="subsets of 9"):
        judge_kid(normal(8, 4), normal(8, 4), subset_size=9)


def test_kid_of_sets_that_are_no_pairs_is_refused():
    with pytest.raises(ValueError, match="8 pictures and a reference of 9"):
        judge_kid(normal(8, 4), normal(9, 4))


def test_fid_below_2048_pictures_is_none_with_the_reason():
    result = judge_fid(normal(2047, 2), normal(4000, 2))
    assert result["value"] is None
    assert "2047" in result["reason"]
    assert "2048" in result["reason"]


def test_fid_of_two_gaussians_is_known():
    # means 2 apart in one direction, deviations 1 and 3 in another: 2^2 + (3 - 1)^2
    x, y = normal(6000, 3), normal(6000, 3, seed=1)
    y[:, 0] += 2
    y[:, 1] *= 3
    result = judge_fid(x, y, resamples=10)
    assert result["value"] == pytest.approx(8, rel=0.06)
    assert result["low"] < 8 < result["high"]
    assert result["high"] - result["low"] < 1.5


def test_features_of_two_judges_are_not_compared():
    with pytest.raises(ValueError, match="one judge"):
        judge_kid(normal(8, 4), normal(8, 5))


def test_results_are_strict_json():
    x, y = normal(20, 4), normal(20, 4, seed=1)
    results = [
        judge_kid(x, y),
        judge_fid(x, y),
        intervals.wilson(2, 3),
        intervals.summary(normal(3)),
    ]
    assert not math.isnan(json.loads(json.dumps(results, allow_nan=False))[0]["value"])
