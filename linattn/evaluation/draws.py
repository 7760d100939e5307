"""Count the forwards of a whole draw, by which its cost is that of one forward."""

from typing import Any

from linattn import sampling
from linattn.reader import between, checked
from linattn.sampling.guidance import doubles


@checked(steps=between(1))
def forwards(teacher: Any, steps: int) -> int:
    """Count the forwards of one picture in a draw; most guidance takes two a step.

    Args:
        teacher: a teacher or a pipeline.
        steps: the steps of the draw.
    """
    source = sampling.Source.of(teacher)
    plan = sampling.Plan.of(source, None, steps, None, "card")
    visited = len(sampling.noise_levels(source, steps))
    return visited * (2 if doubles(source, plan) else 1)
