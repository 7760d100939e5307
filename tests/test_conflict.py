"""The distilling terms end after three cosines below 0 in a row, also over a kill."""

import dataclasses

import pytest
import torch
from test_distill import TINY, TinyData, differing, lesson_of, tiny_teacher, weights

from linattn import surgery
from linattn.distillation import lesson
from linattn.distillation.conflict import Conflict, gradient
from linattn.distillation.distill import distill
from linattn.distillation.parameters import require
from linattn.distillation.settings import Settings

RULED = dataclasses.replace(
    TINY, until="conflict", conflict_every=1, layerwise_steps=0, steps=6, log_every=1
)


def with_cosines(monkeypatch, cosines):
    """Let the readings of a training be these."""
    waiting = list(cosines)
    monkeypatch.setattr(lesson.Lesson, "agreement", lambda self, step: waiting.pop(0))


def test_three_readings_below_0_in_a_row_end_it():
    rule = Conflict(every=5)
    assert [step for step in range(11) if rule.due(step)] == [0, 5, 10]
    ends = []
    for cosine in (-0.1, -0.2, 0.0, -0.1, -0.1, -0.1):
        assert not rule.ended
        rule.cosines.append(cosine)
        ends.append(rule.ended)
    assert ends == [False] * 5 + [True]
    assert not rule.due(15)


def test_after_the_conflict_the_task_goes_on_alone(monkeypatch):
    with_cosines(monkeypatch, [-1.0, -1.0, -1.0])
    history = distill(RULED, tiny_teacher(), TinyData()).history
    terms = [row.keys() & {"task", "noise", "variance", "features"} for row in history]
    assert terms == [{"task", "noise", "variance", "features"}] * 2 + [{"task"}] * 4


def test_without_a_conflict_the_weights_are_those_without_the_rule():
    plain = distill(dataclasses.replace(RULED, until="end"), tiny_teacher(), TinyData())
    ruled = distill(dataclasses.replace(RULED, steps=6), tiny_teacher(), TinyData())
    assert not differing(weights(plain.model), weights(ruled.model))


def test_a_kill_forgets_no_reading(monkeypatch, tmp_path):
    config = dataclasses.replace(RULED, scratch=str(tmp_path), checkpoint_every=1)
    with_cosines(monkeypatch, [-1.0, -1.0])
    with pytest.raises(IndexError):  # of the third reading
        distill(config, tiny_teacher(), TinyData())
    with_cosines(monkeypatch, [-1.0])
    history = distill(config, tiny_teacher(), TinyData()).history
    assert [("noise" in row) for row in history] == [True, True, False, False, False, False]


def test_the_cosine_is_of_both_sides_gradients_over_the_attentions():
    one = lesson_of(tiny_teacher(), RULED)
    selected = list(surgery.attention_parameters(one.student))
    require(one.student, selected)
    batch = one.batch(3)
    sides = []
    for names in ({"task": 0.1}, {"noise": 1.0, "variance": 0.05, "features": 0.1}):
        objective = dataclasses.replace(
            RULED, objective={"feature_norm": "relative", **names}, until="end"
        )
        alone = dataclasses.replace(one, config=objective)
        alone._learn_model(batch, 1.0)
        sides.append(torch.cat([p.grad.flatten().double() for _, p in selected]))
        one.student.zero_grad()
    cosine = sides[0] @ sides[1] / (sides[0].norm() * sides[1].norm())
    assert one.agreement(3) == pytest.approx(cosine.item(), rel=1e-4)
    assert all(p.grad is None for _, p in selected)


def test_a_parameter_that_a_loss_does_not_reach_has_a_gradient_of_0():
    near, far = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    assert gradient((2 * near).sum(), [near, far]).tolist() == [2, 2, 0, 0, 0]


@pytest.mark.parametrize("objective", ["mediator", {"noise": 1.0}], ids=["task", "noise"])
def test_a_rule_without_two_sides_is_refused(objective):
    with pytest.raises(ValueError, match="give both sides a weight, or choose 'end'"):
        Settings(objective=objective, until="conflict")
