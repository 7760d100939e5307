"""Likeness by the eye, and the teacher with fewer steps: small sets, real features, real draws."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import tiny
import torch

from linattn import eye, params, sampling, world
from linattn.evaluation import fewer, likeness, rows
from linattn.evaluation.bench import Bench
from linattn.evaluation.draws import forwards
from linattn.sampling import eight_bits
from linattn.world.marks import FID_PICTURES


@pytest.fixture(scope="module")
def network():
    return eye.load()


@pytest.fixture(scope="module")
def pictures():
    return eight_bits(world.render(world.scenes(8, seed=3), 64))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Features and their distances


def test_features_of_8_bit_pictures_are_those_of_floats(network, pictures, monkeypatch):
    together = likeness.features(network, pictures)
    torch.testing.assert_close(together, eye.features(network, pictures.float() / 255))
    monkeypatch.setattr(likeness, "BATCH", 3)
    torch.testing.assert_close(likeness.features(network, pictures), together, rtol=0, atol=1e-4)


def test_the_same_pictures_are_alike_and_noisy_ones_less(network, pictures):
    noise = torch.randint(0, 60, pictures.shape, generator=torch.Generator().manual_seed(0))
    noisy = (pictures.int() + noise).clamp(max=255).byte()
    theirs = likeness.features(network, pictures)
    same, far = (
        likeness.likeness(likeness.features(network, drawn), theirs) for drawn in (pictures, noisy)
    )
    assert same["eye_distance"]["value"] == pytest.approx(0, abs=1e-12)
    assert same["eye_kid"]["value"] == pytest.approx(0, abs=1e-9)
    assert far["eye_distance"]["low"] > 0.1
    assert far["eye_kid"]["value"] > same["eye_kid"]["value"]
    json.dumps([same, far], allow_nan=False)


def test_a_distance_is_one_minus_the_cosine_of_a_pair():
    ours = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    theirs = torch.tensor([[0.0, 2.0], [3.0, 3.0]], dtype=torch.float64)
    measured = likeness.eye_distance(ours, theirs)
    assert measured["value"] == pytest.approx(0.5)
    assert measured["n"] == 2


def test_features_of_other_pictures_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 8\), the reference \(4, 8\); compare pictures of"):
        likeness.eye_distance(normal(3, 8), normal(4, 8))


@pytest.mark.parametrize("count", [FID_PICTURES - 1, FID_PICTURES])
def test_fid_is_there_from_2048_pictures_on(count):
    ours, theirs = normal(count, 4), normal(count, 4, seed=1)
    measured = likeness.likeness(ours, theirs)
    assert ("eye_fid" in measured) == (count == 2048)


def test_no_picture_is_nearer_than_itself():
    """Rounding takes the cosine of a vector with itself above 1 by some 1e-16."""
    values = [likeness.eye_distance(one, one)["value"] for one in normal(200, 5).split(1)]
    assert min(values) >= 0


def test_unrelated_pictures_are_half_the_set_apart():
    features = torch.eye(4, dtype=torch.float64)
    features[2] = features[0]  # the two that are half the set apart, like each other
    assert likeness.unrelated(features)["value"] == pytest.approx(0.5)
    assert likeness.unrelated(features[:1]) is None


@pytest.mark.parametrize(("count", "prompts"), [(8, 4), (200, 100), (9, 4), (10, 5), (4, 2)])
def test_unrelated_pictures_have_another_prompt(count, prompts):
    features = torch.eye(prompts, dtype=torch.float64)[torch.arange(count) % prompts]
    assert likeness.unrelated(features, prompts=prompts)["low"] == pytest.approx(1)


def test_pictures_of_one_prompt_are_compared_with_one_another():
    features = torch.ones(6, 3, dtype=torch.float64)
    assert likeness.unrelated(features, prompts=1)["value"] == pytest.approx(0)


# A draw's cost


@pytest.mark.parametrize(("guidance", "factor"), [(1, 1), (4, 2)])
def test_a_draw_runs_its_guidances_second_forward_too(guidance, factor):
    pipe, steps = tiny.pipeline(), 6
    source = replace(sampling.Source.of(pipe), card={"steps": 6, "guidance": guidance})
    assert forwards(source, steps) == factor * steps


def test_a_draw_runs_as_many_forwards_as_are_counted(monkeypatch):
    pipe, seen = tiny.pipeline(), []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len((args or [kwargs["hidden_states"]])[0])),
        with_kwargs=True,
    )
    sampling.draw(pipe, torch.tensor([1]), steps=5)
    handle.remove()
    assert sum(seen) == forwards(pipe, 5)


# The teacher with fewer steps


@pytest.mark.parametrize(
    ("steps", "quick", "least", "counts"),
    [
        (20, 8, 1, [5, 8, 10]),
        (50, 50, 1, [12, 25]),
        (2, 2, 1, [1]),
        (28, 14, 1, [7, 14]),
        (1, 1, 1, []),
        (2, 2, 2, []),
        (7, 2, 2, [2, 3]),
    ],
)
def test_fewer_steps_are_a_half_a_quarter_and_the_quick_rows(steps, quick, least, counts):
    assert fewer.fewer_steps(SimpleNamespace(steps=steps, quick_steps=quick), least) == counts


@pytest.fixture(scope="module")
def bench():
    """The bench of the small teacher of classes, with a reference of a few short draws."""
    settings = params.load("tiny")
    short = replace(
        settings.evaluate, pictures=6, steps=4, quick_pictures=4, quick_steps=2, cross_pictures=2
    )
    bench = Bench(replace(settings, evaluate=short), "class")
    reference = {
        "pictures": rows.draw(bench, None, 6, 4),
        "quick": rows.draw(bench, None, 4, 2),
        "cross": rows.draw(bench, None, 2, 2, 2),
    }
    bench.__dict__["reference"] = reference  # what the property reads from the pipeline's file
    return bench


def test_the_teacher_with_fewer_steps_comes_nearer_with_each(bench):
    one, two = fewer.fewer(bench, bench.reference, macs=100)
    assert (one["steps"], two["steps"]) == (1, 2)
    assert two["cost"]["draw_macs"] == 100 * forwards(bench.teacher, 2)
    values = [entry["quality"]["eye_distance"]["value"] for entry in (one, two)]
    assert values[0] > values[1] > 0
    assert one["quality"]["psnr"]["value"] < two["quality"]["psnr"]["value"]
    assert two["quality"]["eye_distance"]["n"] == 4


def test_what_the_eye_measures_needs_no_judge(bench, monkeypatch):
    monkeypatch.setattr(Bench, "judge", property(lambda _: pytest.fail("the judge was asked")))
    measured = rows.cross_distance(bench, bench.reference["cross"])
    assert measured["cross_eye_distance"]["value"] == pytest.approx(0, abs=1e-9)
    fewer.fewer(bench, bench.reference, macs=1)


def test_a_row_costs_a_draw_and_says_its_density(bench):
    cost = rows.cost(bench, bench.teacher.model)
    assert cost["density"] == 1
    assert cost["draw_macs"] == cost["macs"] * forwards(bench.teacher, 4)
