"""Rows of the table: several seeds in one interval, costs that follow a schedule."""

import math
from types import SimpleNamespace

import pytest
import tiny

from linattn import params, samples, sampling, surgery, world
from linattn.evaluation import costs
from linattn.evaluation.bench import Bench
from linattn.evaluation.rows import WITHIN, combine, cost, levels_of


def measure(value, half, n=128):
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def test_combining_one_seed_changes_nothing():
    assert combine([measure(0.5, 0.1)]) == measure(0.5, 0.1)


def test_a_missing_value_stays_missing():
    nothing = {"value": None, "low": None, "high": None, "n": 3}
    assert combine([nothing, measure(0.5, 0.1)])["value"] is None


def test_seeds_that_differ_widen_the_interval_by_students_t():
    combined = combine([measure(value, 0.1) for value in (0.4, 0.5, 0.6)])
    half = math.hypot(0.1, 4.303 * 0.1 / math.sqrt(3))
    assert (combined["value"], combined["low"], combined["high"]) == pytest.approx(
        (0.5, 0.5 - half, 0.5 + half)
    )
    assert combined["seeds"] == [0.4, 0.5, 0.6]


def test_an_interval_of_a_share_ends_at_one():
    combined = combine([measure(value, 0.02) for value in (1.0, 1.0, 0.94)], WITHIN["shape"])
    assert combined["high"] == 1.0
    assert 0 < combined["low"] < 0.94


def bench(pipe, steps):
    """Return what `cost` needs of a bench."""
    return SimpleNamespace(
        teacher=pipe,
        evaluation=SimpleNamespace(steps=steps),
        inputs=lambda level: costs.example(pipe.transformer, noise=level),
    )


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_a_schedule_costs_the_mean_over_a_draw(steps):
    pipe = tiny.pipeline()
    surgery.linearize(
        pipe, "mediator", schedule=[{"until": 0.5, "count": 4}, {"until": 0.0, "count": 16}]
    )
    levels = sampling.noise_levels(pipe, steps)
    assert len(levels) == steps
    assert levels == sorted(levels, reverse=True)
    macs = [costs.macs(pipe.transformer, noise=level)["core"] for level in levels]
    measured = cost(bench(pipe, steps), pipe.transformer)
    assert measured["core_macs"] == round(sum(macs) / steps)
    assert min(macs) <= measured["core_macs"] <= max(macs)


def test_without_a_schedule_one_noise_level_is_enough():
    pipe = tiny.pipeline()
    surgery.linearize(pipe, "mediator", count=4)
    assert levels_of(bench(pipe, 10), pipe.transformer) == [0.5]


CAPTIONED = {"text": True, "class": False}


@pytest.mark.parametrize("role", CAPTIONED)
def test_pictures_are_compared_with_scenes_that_no_model_learned(role):
    """The scenes of a captioned teacher are those of its prompts; else their first thing is."""
    bench = Bench(params.load("nano"), role)
    first = world.HELD_OUT
    if CAPTIONED[role]:
        expected = samples.scenes(range(first, first + 3), bench.evaluation.seed)
        assert [scene.caption for scene in expected] == bench.prompts(3)
        assert bench.scenes(3) == expected
    else:
        labels = bench.prompts(3).tolist()
        assert [scene.label for scene in bench.scenes(3)] == labels
        seed = bench.evaluation.seed
        assert bench.scenes(3)[2] == world.scene(seed, first + 2, label=labels[2])
    assert bench.singles(5) == slice(0, 5, 2 if CAPTIONED[role] else 1)
