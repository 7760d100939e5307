"""Streams of random numbers keep their values, because all results depend on them."""

import pytest
import torch

from linattn import checkpoint, sampling, seeds

# the state that torch is seeded with, and the first two normal numbers
PICTURES = {
    (0, 0): (613549620, [2.3757257, -0.1132228]),
    (7, 3): (973742611, [-0.9692989, 0.7451026]),
    (0, -1): (613549619, [0.0037978, -0.0037919]),
}
STEPS = {
    (0, 0): (2467523943, [0.2258222, 0.4572930]),
    (7, 3): (708825980, [-0.3004270, 0.0004618]),
}


@pytest.mark.parametrize("stream", PICTURES)
def test_the_stream_of_a_picture_keeps_its_values(stream):
    check(seeds.of_picture(*stream), *PICTURES[stream])


@pytest.mark.parametrize("stream", STEPS)
def test_the_stream_of_a_step_keeps_its_values(stream):
    check(seeds.of_step(*stream), *STEPS[stream])


def check(generator, state, first):
    assert generator.initial_seed() == state
    assert torch.randn(2, generator=generator).tolist() == pytest.approx(first, abs=1e-6)


def test_the_names_that_scripts_have_used_still_work():
    assert checkpoint.generator is seeds.of_step
    assert sampling.generator is seeds.of_picture


def test_seed_and_step_both_change_the_stream():
    states = [seeds.of_step(seed, step).initial_seed() for seed in range(20) for step in range(20)]
    assert len(set(states)) == 400


def test_the_high_bits_of_a_seed_count():
    for of_stream in (seeds.of_step, seeds.of_picture):
        states = {of_stream(seed, 0).initial_seed() for seed in (0, 1, 1 << 32, 1 << 40)}
        assert len(states) == 4
