"""Compare plans with layers that were chosen without measuring, each under the same budgets."""

from collections.abc import Iterator, Sequence
from typing import Any

from linattn.planning.bets import Rankings
from linattn.planning.candidates import SOFTMAX
from linattn.planning.choices import Rule, rules
from linattn.planning.exchange import Choice
from linattn.planning.front import limit
from linattn.planning.plan import of_survey
from linattn.planning.survey import Survey


def compared(measured: Survey, budgets: Sequence[float], ranked: Rankings) -> dict[str, Any]:
    """Return losses, plans and the choices beside them, as JSON has them.

    Args:
        measured: the teacher under every candidate.
        budgets: shares of softmax's cost.
        ranked: the order of the layers by diagnostics.
    """
    losses = {label: rows for label, rows in measured.losses.items() if label != SOFTMAX}
    return {
        "losses": losses,
        "plans": [planned(measured, budget) for budget in budgets],
        "choices": [row for budget in budgets for row in unmeasured(measured, budget, ranked)],
    }


def planned(measured: Survey, budget: float) -> dict[str, Any]:
    """Return the plan of a budget."""
    plan = of_survey(measured, budget)
    choice = [list(labels) for labels in plan.choice]
    numbers = {"cost": plan.cost, "error": plan.error, "loss": plan.loss}
    return {"budget": budget, **numbers, "choice": choice, "parts": plan.parts}


def unmeasured(measured: Survey, budget: float, ranked: Rankings) -> Iterator[dict[str, Any]]:
    """Yield what each rule gives for each candidate under a budget, where it can keep it."""
    layers = len(measured.judge.composite.layers)
    for label in (label for label in measured.candidates if label != SOFTMAX):
        for name, rule in rules(layers, ranked.get(label, [])).items():
            if chosen := fewest(measured, label, rule, budget):
                choice = replacing(measured, label, chosen)
                numbers = {"cost": measured.cost(choice), "error": measured.judge.total(choice)}
                yield {
                    "rule": name,
                    "candidate": label,
                    "budget": budget,
                    "layers": chosen,
                } | numbers


def fewest(measured: Survey, label: str, rule: Rule, budget: float) -> list[int]:
    """Return the fewest layers of a rule that keep the budget; none where all cost more."""
    for count in range(1, len(measured.judge.composite.layers) + 1):
        if measured.units(replacing(measured, label, rule(count))) <= limit(budget):
            return rule(count)
    return []


def replacing(measured: Survey, label: str, layers: Sequence[int]) -> Choice:
    """Return the choice of one candidate in these layers at every noise, and softmax elsewhere."""
    labels = [
        label if layer in layers else SOFTMAX
        for layer in range(len(measured.judge.composite.layers))
    ]
    return tuple((label,) * len(measured.judge.ranges) for label in labels)
