"""Define the schedules of the learning rate: functions of the step, from 1 down to what is left."""

import math
from collections.abc import Callable


def cosine(step: int, steps: int) -> float:
    """Return half a cosine, from 1 at the first step to 0 after the last."""
    return (1 + math.cos(math.pi * step / steps)) / 2


def constant(step: int, steps: int) -> float:
    """Return 1 at every step."""
    return 1.0


SCHEDULES: dict[str, Callable[[int, int], float]] = {"cosine": cosine, "constant": constant}


def learning_rate(step: int, steps: int, peak: float, schedule: str, warmup: int) -> float:
    """Return the learning rate of a step: the schedule's, which rises linearly in the warm-up."""
    rising = min(1.0, (step + 1) / max(1, warmup))
    return peak * rising * SCHEDULES[schedule](step, steps)
