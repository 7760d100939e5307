"""Whole steps: every model at every size, the dense one's share, and the bound that follows from it."""

import pytest
import tiny

from linattn import amdahl, families

LABELS = {"few": ("mediator", {"count": 4}), "window": ("clear", {"radius": 2})}


@pytest.fixture(scope="module")
def rows():
    return amdahl.time_steps(tiny.model(), LABELS, [8, 4], repeats=2)


def test_a_row_for_each_model_and_size_the_smaller_first(rows):
    wanted = [(name, tokens) for tokens in (16, 64) for name in (amdahl.DENSE, *LABELS)]
    assert [(row["operator"], row["tokens"]) for row in rows] == wanted
    assert all(row["fastest"] <= row["seconds"] <= row["slowest"] and row["repeats"] == 2 for row in rows)


def test_ratios_are_to_the_dense_step_of_that_size(rows):
    for start in (0, 3):
        dense, *others = rows[start : start + 3]
        assert dense["ratio"] == 1
        assert all(row["ratio"] == pytest.approx(dense["seconds"] / row["seconds"]) for row in others)


def test_the_bound_follows_from_the_share(rows):
    for row in rows:
        assert 0 < row["share"] < 1
        assert row["most"] == pytest.approx(1 / (1 - row["share"]))
        assert row["backend"] == ["torch"]


def test_the_share_is_that_of_the_attention(monkeypatch):
    """Where attention alone takes half of the dense step's time, nothing can be more than twice as fast."""

    def interleaved(calls, repeats, limit, device):
        assert list(calls) == [amdahl.DENSE, *LABELS, amdahl.ALONE]
        return {name: [0.5 if name == amdahl.ALONE else 1.0] for name in calls}

    monkeypatch.setattr(amdahl.costs, "interleaved", interleaved)
    assert all((row["share"], row["most"]) == (0.5, 2) for row in amdahl.time_steps(tiny.model(), LABELS, [4]))
    interleaved_before = interleaved
    monkeypatch.setattr(amdahl.costs, "interleaved", lambda *given: interleaved_before(*given) | {amdahl.ALONE: [3.0]})
    assert all((row["share"], row["most"]) == (1, None) for row in amdahl.time_steps(tiny.model(), LABELS, [4]))


def test_the_model_is_left_as_it_was():
    model = tiny.model().train()
    amdahl.time_steps(model, LABELS, [4], repeats=1)
    assert all(layer.operator is None for layer in families.layers(model))
    assert model.training
