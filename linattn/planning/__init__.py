"""Plan which layer gets which operator, and at which noise, under a budget of attention's cost.

    plan = linattn.plan(teacher, samples, budget=0.5, candidates={"disc": ("clear", {"radius": 4})})
    linattn.linearize(pipe, plan.operator, **plan.options)

Every layer's loss and cost is measured under every candidate (`survey.py`); losses add up, and the
choice of least loss under the budget is exact (`front.py`).
"""

from linattn.planning.plan import Plan, plan

__all__ = ["Plan", "plan"]
