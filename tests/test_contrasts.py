"""Contrasts against brute force and known cases, and what their intervals promise."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from linattn import contrasts, intervals
from linattn.contrasts import Sums, compared, differing, holm


def nested(array):
    return tuple(map(tuple, array.tolist()))


def sums(*by_seed, sizes, seeds=None):
    """Make sums of one array (levels, pictures) a seed."""
    numbered = zip(seeds or range(len(by_seed)), map(nested, by_seed), strict=True)
    return Sums(tuple(numbered), nested(sizes))


def errors(pictures=64, levels=5, seeds=1, seed=0):
    """Draw errors that a picture's own difficulty dominates, and the teacher's squares."""
    draw = np.random.default_rng(seed)
    difficulty = draw.lognormal(0, 0.5, (levels, pictures))
    arms = difficulty * draw.lognormal(0, 0.1, (seeds, levels, pictures))
    return list(arms), draw.lognormal(3, 0.2, (levels, pictures))


def ratio(first, second, sizes):
    """Return the ratio of two errors by the letter of the definition."""
    above, below = (np.mean(one.sum(1) / sizes.sum(1)) for one in (first, second))
    return above / below


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_row_is_not_apart_from_itself(seeds):
    arms, sizes = errors(seeds=seeds)
    contrast = compared(sums(*arms, sizes=sizes), sums(*arms, sizes=sizes))
    assert (contrast.value, contrast.low, contrast.high, contrast.p) == (1, 1, 1, 1)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_a_constant_factor_is_the_ratio_without_doubt(seeds):
    arms, sizes = errors(seeds=seeds)
    scaled = sums(*(arm * 0.75 for arm in arms), sizes=sizes)
    contrast = compared(scaled, sums(*arms, sizes=sizes))
    ends = (contrast.value, contrast.low, contrast.high)
    assert ends == pytest.approx((0.75, 0.75, 0.75), rel=1e-12)
    assert contrast.p < 1e-3
    assert contrast.seeds == tuple(range(seeds))


@pytest.mark.parametrize("seeds", [1, 3])
def test_swapping_the_rows_inverts_the_ratio(seeds):
    arms, sizes = errors(seeds=2 * seeds)
    first, second = sums(*arms[:seeds], sizes=sizes), sums(*arms[seeds:], sizes=sizes)
    there, back = compared(first, second), compared(second, first)
    assert 1 / back.value == pytest.approx(there.value)
    assert (1 / back.high, 1 / back.low) == pytest.approx((there.low, there.high))
    assert there.p == pytest.approx(back.p)
    difference, opposite = differing(first, second), differing(second, first)
    assert (-opposite.high, -opposite.low) == pytest.approx((difference.low, difference.high))


def test_the_order_of_the_pictures_does_not_matter():
    (first, second), sizes = errors(seeds=2)
    order = np.random.default_rng(1).permutation(64)
    here = compared(sums(first, sizes=sizes), sums(second, sizes=sizes))
    sizes = sizes[:, order]
    there = compared(sums(first[:, order], sizes=sizes), sums(second[:, order], sizes=sizes))
    assert there.value == pytest.approx(here.value)
    width = here.high - here.low
    assert (there.low, there.high) == pytest.approx((here.low, here.high), abs=0.05 * width)


def test_the_interval_is_that_of_all_resamples_of_four_pictures():
    """By brute force: 4^4 resamples have known quantiles; measured deviations stay below 1 %."""
    (first, second), sizes = errors(pictures=4, seeds=2)
    resamples = itertools.product(range(4), repeat=4)
    values = [ratio(*(one[:, list(i)] for one in (first, second, sizes))) for i in resamples]
    low, high = np.quantile(values, [0.025, 0.975])
    contrast = compared(sums(first, sizes=sizes), sums(second, sizes=sizes))
    assert contrast.value == pytest.approx(ratio(first, second, sizes))
    assert (contrast.low, contrast.high) == pytest.approx((low, high), rel=0.01)


def test_a_pair_is_told_apart_where_two_intervals_overlap():
    (first, second), sizes = errors(seeds=2)
    second = second * 1.1
    one, other = sums(first, sizes=sizes), sums(second, sizes=sizes)
    contrast = compared(one, other)
    assert contrast.high < 1
    draws = contrasts._measures(one)[1:, 0], contrasts._measures(other)[1:, 0]
    assert np.quantile(draws[0], 0.975) > np.quantile(draws[1], 0.025)


def test_intervals_cover_no_difference_as_often_as_they_say():
    """200 pairs without a difference: 190 intervals hold 1, give or take 3 each way."""
    covered = 0
    for seed in range(200):
        (first, second), sizes = errors(levels=1, seeds=2, seed=seed)
        contrast = compared(sums(first, sizes=sizes), sums(second, sizes=sizes))
        covered += contrast.low <= 1 <= contrast.high
    assert 180 <= covered <= 199


def test_seeds_that_differ_widen_the_interval_by_students_t():
    (arm, *_), sizes = errors()
    first = sums(arm, arm * 1.1, arm * 0.9, sizes=sizes)
    contrast = compared(first, sums(arm, arm, arm, sizes=sizes))
    logs = [0, math.log(1.1), math.log(0.9)]
    half = 4.303 * np.std(logs, ddof=1) / math.sqrt(3)
    assert math.log(contrast.value) == pytest.approx(np.mean(logs))
    assert math.log(contrast.low) == pytest.approx(np.mean(logs) - half)
    assert contrast.p > 0.05


def test_the_bootstrap_is_taken_where_it_is_wider_than_students_t():
    (arm, other), sizes = errors(seeds=2)
    single = compared(sums(arm, sizes=sizes), sums(other, sizes=sizes))
    twice = compared(sums(arm, arm, sizes=sizes), sums(other, other, sizes=sizes))
    assert dataclasses.replace(twice, seeds=(0,)) == single  # nothing differs between the seeds


def test_rows_are_compared_over_the_seeds_of_both():
    (first, second, third), sizes = errors(seeds=3)
    one = sums(first, second, sizes=sizes, seeds=(0, 1))
    contrast = compared(one, sums(third, sizes=sizes, seeds=(1,)))
    assert contrast.seeds == (1,)
    assert contrast.value == pytest.approx(ratio(second, third, sizes))


def test_an_error_of_zero_has_a_finite_ratio():
    (arm, *_), sizes = errors()
    zero = sums(0 * arm, sizes=sizes)
    assert compared(zero, zero).value == 1
    assert 0 < compared(zero, sums(arm, sizes=sizes)).high < 1e-20


ARMS, SIZES = errors(pictures=8, levels=2)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (sums(ARMS[0][:, :7], sizes=SIZES[:, :7]), r"\(2, 8\) and \(2, 7\) levels and pictures"),
        (sums(ARMS[0], sizes=SIZES * 1.02), "teacher's predictions differ"),
        (sums(ARMS[0], sizes=SIZES, seeds=(3,)), r"seeds \(0,\) and \(3,\)"),
    ],
    ids=["fewer pictures", "another teacher", "no common seed"],
)
def test_rows_that_are_no_pair_are_refused_with_both_values(other, says):
    with pytest.raises(ValueError, match=says):
        compared(sums(ARMS[0], sizes=SIZES), other)


def test_one_picture_is_refused():
    one = sums(ARMS[0][:, :1], sizes=SIZES[:, :1])
    with pytest.raises(ValueError, match="1 picture; evaluate at least 2"):
        compared(one, one)


def test_the_sums_of_two_machines_are_a_pair():
    one, other = (sums(ARMS[0], sizes=SIZES * factor) for factor in (1, 1 + 1e-5))
    assert compared(one, other).value == pytest.approx(1, abs=1e-4)


# What a result keeps

KEPT = {
    "tally": {
        "teacher": [[2.0, 4.0], [1.0, 1.0]],
        "seeds": {
            "3": {"error": [[1.0, 0.5], [0.1, 0.3]], "marks": {"shape": "01"}},
            "4": {"error": [[1.0, 1.5], [0.1, 0.1]], "marks": {"shape": "11"}},
        },
    }
}


def test_sums_of_a_result_are_its_error():
    kept = contrasts.error_sums(KEPT)
    assert kept.seeds == (3, 4)
    assert contrasts._measures(kept)[0].tolist() == pytest.approx([0.225, 0.5 * (2.5 / 6 + 0.1)])
    marks = contrasts.mark_sums(KEPT, "shape")
    assert contrasts._measures(marks)[0].tolist() == [0.5, 1]
    assert differing(marks, marks).value == 0


@pytest.mark.parametrize("result", [{}, {"tally": None}], ids=["absent", "null"])
def test_a_result_of_before_keeps_no_sums(result):
    assert contrasts.error_sums(result) is None
    assert contrasts.mark_sums(result, "shape") is None
    assert contrasts.mark_sums(KEPT, "two_shapes") is None


# Student's t, and Holm


@pytest.mark.parametrize("freedom", intervals.STUDENT_T)
def test_students_t_is_beyond_its_quantile_in_one_case_of_twenty(freedom):
    assert intervals.beyond(intervals.STUDENT_T[freedom], freedom) == pytest.approx(0.05, abs=3e-5)
    assert intervals.beyond(-intervals.STUDENT_T[freedom], freedom) == pytest.approx(0.05, abs=3e-5)
    assert intervals.beyond(0, freedom) == 1


def test_holm_by_hand():
    """The example of Holm 1979's procedure: .01 x 4, .013 x 3, .02 x 2, and no step back."""
    p = {"a": 0.02, "b": 0.01, "c": 0.6, "d": 0.013}
    assert holm(p) == pytest.approx({"b": 0.04, "d": 0.04, "a": 0.04, "c": 0.6})
    assert holm({}) == {}
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
