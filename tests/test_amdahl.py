"""Whole steps: every model at every size, the dense one's share, and the bound that follows from
it.
"""

import pytest
import tiny

from linattn import families
from linattn.evaluation import amdahl

LABELS = {"few": ("mediator", {"count": 4}), "window": ("clear", {"radius": 2})}


@pytest.fixture(scope="module")
def timings():
    return amdahl.time_steps(tiny.model(), LABELS, [8, 4], repeats=2)


def test_a_row_for_each_model_and_size_the_dense_first(timings):
    wanted = [(name, tokens) for name in (amdahl.DENSE, *LABELS) for tokens in (16, 64)]
    assert [(row["operator"], row["tokens"]) for row in timings] == wanted
    assert all(
        row["fastest"] <= row["seconds"] <= row["slowest"] and row["repeats"] == 2
        for row in timings
    )
    assert all(row["backend"] == ["torch"] for row in timings)


def test_shares_are_the_dense_models(timings):
    assert all(("share" in row) == (row["operator"] == amdahl.DENSE) for row in timings)
    assert all(0 < row["share"] <= 1 and row["ratio"] == 1 for row in timings[:2])


def test_ratio_share_and_bound_follow_from_the_times(monkeypatch):
    """Attention alone takes half of the dense step, so nothing can be more than twice as fast"""

    def interleaved(calls, repeats, limit, device):
        assert list(calls) == [amdahl.DENSE, amdahl.REPLACED]
        return {amdahl.DENSE: [1.0], amdahl.REPLACED: [other]}

    monkeypatch.setattr(amdahl.costs, "interleaved", interleaved)
    other = 0.5
    dense, *others = amdahl.time_steps(tiny.model(), LABELS, [4])
    assert (dense["share"], dense["most"], dense["ratio"]) == (0.5, 2, 1)
    assert [row["ratio"] for row in others] == [2, 2]
    other = 3.0  # a busy machine: attention alone took longer than the step it is part of
    dense, *_ = amdahl.time_steps(tiny.model(), LABELS, [4])
    assert (dense["share"], dense["most"]) == (1, None)


def test_the_model_is_left_as_it_was():
    model = tiny.model().train()
    amdahl.time_steps(model, LABELS, [4], repeats=1)
    assert all(layer.operator is None for layer in families.layers(model))
    assert model.training
