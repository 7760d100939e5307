"""Plan a conversion: which layer gets which operator, at which noise, under a budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from linattn.attention.mixed import Mixed
from linattn.distillation.settings import Settings
from linattn.evaluation.distance import LEVELS
from linattn.planning import arguments, costs, ranges
from linattn.planning.candidates import SOFTMAX, Candidate, read
from linattn.planning.exchange import Choice, improved
from linattn.planning.front import best, limit
from linattn.planning.survey import Survey, survey
from linattn.reader import between, checked


@dataclass(frozen=True)
class Plan:
    """Hold a mixed conversion, as `linearize(pipe, plan.operator, **plan.options)` takes it."""

    parts: list[dict[str, Any]]  # those of the operator `mixed`
    choice: Choice  # the label of each layer in each range of the noise
    cost: float  # of softmax's in all layers
    loss: float  # the layers' losses, added up
    error: float  # of the prediction, measured with these layers
    # as an entry of params.yaml has them, so that `converted` takes a plan for a student
    operator: str = Mixed.name
    layers: str = "all"  # which are converted: `mixed` keeps softmax in some
    initialise: str = "all"  # every projection stays the teacher's

    @property
    def options(self) -> dict[str, Any]:
        """Return the options of the operator."""
        return {"parts": self.parts}


@checked(
    budget=between(0, 1),
    at=between(1),
    until=between(0, 1, empty=True),
    noise=between(0, 1),
    pictures=between(1),
    batch=between(1),
    seed=between(0),
)
def plan(
    teacher: Any,
    samples: Any,
    *,
    budget: float,
    candidates: Mapping[str, tuple[str, Mapping[str, Any]]],
    at: tuple[int, int] | None = None,
    by: str | Mapping[str, Any] = "macs",
    until: Sequence[float] = (),
    noise: Sequence[float] = LEVELS,
    training: Settings | None = None,
    pictures: int = 16,
    batch: int = 16,
    seed: int = 0,
) -> Plan:
    """Choose an operator for every layer, so that the model loses least under a budget.

    Args:
        teacher: a Teacher, as `linattn.teachers.load` returns; it does not change.
        samples: `linattn.samples.Samples` that it drew.
        budget: the most that attention may cost, as a share of what softmax costs in all layers.
        candidates: (operator's name, options) by a label; softmax is always among them.
        at: height and width in pixels at which costs are counted; None: those of the samples.
        by: "macs" (multiply-accumulates), "bytes" (of the allocator, at the peak of each layer), or
            measured milliseconds by label, for all layers alike or a list of them.
        until: noise levels at which a layer may change its operator, falling.
        noise: noise levels at which predictions are compared.
        training: settings whose layerwise stage each candidate has before it is measured; None
            measures untrained conversions.
        pictures: how many of the samples predictions are compared on.
        batch: pictures of one forward.
        seed: of new weights, batches and noise.
    """
    arguments.check(teacher, samples, budget, pictures, training)
    entries, spans = read(candidates), ranges.split(until, noise)
    measured = survey(
        teacher,
        samples,
        entries,
        spans,
        by=by,
        at=at,
        budget=budget,
        training=training,
        seed=seed,
        count=pictures,
        batch=batch,
    )
    return of_survey(measured, budget)


def of_survey(measured: Survey, budget: float) -> Plan:
    """Return the plan of least loss under a budget, with what exchanges make better."""
    costs.require(measured.costs, budget)
    point = best(measured.front(), limit(budget))
    choice = improved(measured, point.choice, budget)
    untils = [span.until for span in measured.judge.ranges]
    return Plan(
        parts(measured.candidates, choice, untils),
        choice,
        measured.cost(choice),
        measured.loss(choice),
        measured.judge.total(choice),
    )


def parts(
    candidates: Mapping[str, Candidate], choice: Choice, untils: Sequence[float]
) -> list[dict[str, Any]]:
    """Write a choice as parts of `mixed`: layers that are alike share theirs."""
    layers: dict[tuple[str, ...], list[int]] = {}
    for number, labels in enumerate(choice):
        layers.setdefault(labels, []).append(number)
    return [
        {
            "operator": candidates[label].operator,
            "options": candidates[label].options,
            "layers": numbers,
            "until": until,
        }
        for labels, numbers in layers.items()
        for label, until in spans_of(labels, untils)
    ]


def spans_of(labels: Sequence[str], untils: Sequence[float]) -> list[tuple[str, float]]:
    """Join neighbouring ranges of one label; softmax at the end is what `mixed` has anyway."""
    spans: list[tuple[str, float]] = []
    for label, until in zip(labels, untils, strict=True):
        if spans and spans[-1][0] == label:
            spans.pop()
        spans.append((label, until))
    return spans[:-1] if spans[-1][0] == SOFTMAX else spans
