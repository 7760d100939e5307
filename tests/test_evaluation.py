"""Rows of the table: several seeds in one interval, costs that follow a schedule."""

import math

import pytest
import tiny

from linattn import sampling, surgery
from linattn.evaluation import costs
from linattn.evaluation.rows import WITHIN, combine, cost, levels_of


def measure(value, half, n=128):
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def test_one_seed_is_itself():
    assert combine([measure(0.5, 0.1)]) == measure(0.5, 0.1)


def test_a_value_that_cannot_be_taken_stays_so():
    nothing = {"value": None, "low": None, "high": None, "n": 3}
    assert combine([nothing, measure(0.5, 0.1)])["value"] is None


def test_seeds_that_differ_widen_the_interval_by_students_t():
    found = combine([measure(value, 0.1) for value in (0.4, 0.5, 0.6)])
    half = math.hypot(0.1, 4.303 * 0.1 / math.sqrt(3))
    assert (found["value"], found["low"], found["high"]) == pytest.approx(
        (0.5, 0.5 - half, 0.5 + half)
    )
    assert found["seeds"] == [0.4, 0.5, 0.6]


def test_no_interval_reaches_where_no_share_can():
    found = combine([measure(value, 0.02) for value in (1.0, 1.0, 0.94)], WITHIN["shape"])
    assert found["high"] == 1.0
    assert 0 < found["low"] < 0.94


def bench(pipe, steps):
    """What `cost` asks of a bench."""

    class Bench:
        teacher = pipe

        class part:
            pass

        @staticmethod
        def inputs(level):
            return costs.example(pipe.transformer, noise=level)

    Bench.part.steps = steps
    return Bench


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_a_schedule_costs_the_mean_over_a_draw(steps):
    pipe = tiny.pipeline()
    surgery.linearize(
        pipe, "mediator", schedule=[{"until": 0.5, "count": 4}, {"until": 0.0, "count": 16}]
    )
    levels = sampling.noise_levels(pipe, steps)
    assert len(levels) == steps
    assert levels == sorted(levels, reverse=True)
    each = [costs.macs(pipe.transformer, noise=level)["core"] for level in levels]
    found = cost(bench(pipe, steps), pipe.transformer)
    assert found["core_macs"] == round(sum(each) / steps)
    assert min(each) <= found["core_macs"] <= max(each)


def test_without_a_schedule_one_level_is_enough():
    pipe = tiny.pipeline()
    surgery.linearize(pipe, "mediator", count=4)
    assert levels_of(bench(pipe, 10), pipe.transformer) == [0.5]
