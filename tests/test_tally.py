"""What a result keeps of each picture: its error comes back, and the file stays small."""

import json

import pytest
import torch

from linattn import contrasts
from linattn.evaluation.tally import tally

SEEDS = (0, 1)


def squares(levels, pictures, seed):
    drawn = torch.Generator().manual_seed(seed)
    numbers = torch.rand(2, levels, pictures, generator=drawn, dtype=torch.float64) * 900
    return dict(zip(("error", "teacher"), numbers.tolist(), strict=True))


def kept(levels=5, pictures=64):
    shape = torch.arange(2 * pictures) % 3 == 0
    return tally({seed: (squares(levels, pictures, seed), {"shape": shape}) for seed in SEEDS})


def test_squares_and_marks_come_back_as_sums():
    content = json.loads(json.dumps({"tally": kept(2, 3)}))
    sums = contrasts.error_sums(content)
    assert sums.seeds == SEEDS
    for seed, levels in sums.numerators:
        torch.testing.assert_close(torch.tensor(levels), torch.tensor(squares(2, 3, seed)["error"]))
    marks = contrasts.mark_sums(content, "shape")
    assert marks.numerators[0] == (0, ((1, 0, 0, 1, 0, 0),))


def test_a_float32_comes_back_as_it_was():
    """Nine digits tell any two of them apart."""
    values = torch.rand(1, 1000, generator=torch.Generator().manual_seed(0)) * 1e-3
    rounded = tally({0: ({"error": values.tolist(), "teacher": values.tolist()}, {})})
    assert torch.equal(torch.tensor(rounded["seeds"]["0"]["error"]), values)


def test_two_seeds_of_the_nano_profile_take_some_kilobytes():
    """5 levels of 64 pictures: the rest of a row takes 8 KB, and a file stays below 60."""
    assert len(json.dumps(kept(), indent=2)) < 30_000


@pytest.mark.parametrize("levels", [1, 3])
def test_a_teacher_without_a_judge_has_no_marks(levels):
    assert tally({0: (squares(levels, 1, 0), {})})["seeds"]["0"]["marks"] == {}
