"""Survey a teacher once: what every layer loses and costs under every candidate."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from linattn import families, sampling
from linattn.attention.grid import Grid
from linattn.attention.mixed import shifts
from linattn.distillation.config import of_params
from linattn.distillation.distill import distill
from linattn.distillation.settings import Settings
from linattn.evaluation.distance import check_latents
from linattn.names import short
from linattn.planning import costs, front, losses, ranges
from linattn.planning.candidates import SOFTMAX, Candidate
from linattn.planning.front import UNITS, Item, Point, units
from linattn.planning.judge import Judge
from linattn.surgery.conversion import converted


@dataclass(frozen=True)
class Survey:
    """Hold what was measured: a plan for any budget follows from it."""

    candidates: dict[str, Candidate]  # by label, softmax among them
    judge: Judge  # measures any choice
    costs: costs.Table  # by label: [layer], as a share of softmax's in all layers
    constant: frozenset[str]  # labels that hold at every noise level of a layer

    @functools.cached_property
    def losses(self) -> losses.Table:
        """Return the losses by label: [layer][range]."""
        return losses.table(self.judge)

    def items(self, layer: int) -> list[Item]:
        """Return the choices of a layer that no other of its choices undercuts."""
        spans = self.judge.ranges
        every = itertools.product(self.candidates, repeat=len(spans))
        points = [
            Point(self._cost(labels, layer), self._loss(labels, layer), (labels,))
            for labels in every
            if len(set(labels)) == 1 or not self.constant.intersection(labels)
        ]
        kept = front.undercut(points)
        return [Item(point.choice[0], point.cost, point.loss) for point in kept]

    def _cost(self, labels: Sequence[str], layer: int) -> int:
        """Return what a choice costs in units, averaged over the noise."""
        pairs = zip(labels, self.judge.ranges, strict=True)
        return units(sum(span.share * self.costs[label][layer] for label, span in pairs))

    def _loss(self, labels: Sequence[str], layer: int) -> float:
        return sum(self.losses[label][layer][number] for number, label in enumerate(labels))

    def front(self) -> list[Point]:
        """Return the choices of least loss, from the cheapest on."""
        return front.front([self.items(layer) for layer in range(len(self.judge.composite.layers))])

    def cost(self, choice: Sequence[Sequence[str]]) -> float:
        """Return what a choice costs as a share of softmax."""
        return self.units(choice) / UNITS

    def units(self, choice: Sequence[Sequence[str]]) -> int:
        """Return what a choice costs in units."""
        return sum(self._cost(labels, layer) for layer, labels in enumerate(choice))

    def loss(self, choice: Sequence[Sequence[str]]) -> float:
        """Return the losses of a choice, added up."""
        return sum(self._loss(labels, layer) for layer, labels in enumerate(choice))


def students(
    teacher: Any,
    samples: Any,
    candidates: Mapping[str, Candidate],
    seed: int,
    training: Settings | None = None,
) -> dict[str, nn.Module]:
    """Convert all layers to each candidate, and run the layerwise stage where it is given."""
    models = {}
    for label, candidate in candidates.items():
        if training is None or label == SOFTMAX:
            models[label] = converted(teacher.model, candidate, seed)
        else:
            models[label] = distill(layerwise(candidate, training, seed), teacher, samples).model
    return models


def layerwise(candidate: Candidate, training: Settings, seed: int) -> Any:
    """Return the training of a candidate, without the steps end to end."""
    return of_params(candidate, dataclasses.replace(training, steps=0), seed)


def survey(
    teacher: Any,
    samples: Any,
    candidates: Mapping[str, Candidate],
    spans: Sequence[ranges.Range],
    *,
    by: str | Mapping[str, Any] = "macs",
    at: tuple[int, int] | None = None,
    budget: float = 1.0,
    training: Settings | None = None,
    seed: int = 0,
    **options: int,
) -> Survey:
    """Measure costs, refuse a budget below all of them, and convert and train the candidates."""
    costs.check(by, list(candidates), len(families.layers(teacher.model)))
    of_grids = grids(teacher, samples, at)
    untrained = students(teacher, samples, candidates, seed)
    of_layers = costs.table(untrained, of_grids, by)
    costs.require(of_layers, budget)
    constant = frozenset(label for label, model in untrained.items() if _shifts(model))
    models = students(teacher, samples, candidates, seed, training) if training else untrained
    judge = Judge(teacher, samples, models, spans, seed=seed, **options)
    return Survey(dict(candidates), judge, of_layers, constant)


def _shifts(model: nn.Module) -> bool:
    """Say whether an operator needs its layer at every noise level, as `mixed` demands."""
    operators = [layer.operator for layer in families.layers(model)]
    return any(operator is not None and shifts(operator) for operator in operators)


@torch.no_grad()
def grids(teacher: Any, samples: Any, at: tuple[int, int] | None) -> list[Grid]:
    """Return every layer's grid at a size in pixels; None: that of the samples."""
    source = sampling.Source.of(teacher)
    latents, prompts = samples.first(1)
    check_latents(latents, source)
    height, width = latents.shape[-2:] if at is None else sides(at, source.factor)
    inputs = source.conditions.example(height, width, source.conditions.check(prompts))
    with sampling.evaluating(source.model):
        return families.grids(source.model, **inputs)


def sides(at: tuple[int, int], factor: int) -> tuple[int, int]:
    """Return the sides of the latents, or raise where pixels are no multiple of their factor."""
    if len(at) != 2:
        raise ValueError(f"at is {short(at)}; it holds height and width in pixels")
    height, width = at
    if height < factor or width < factor or height % factor or width % factor:
        raise ValueError(f"at is {height} x {width} px; both are multiples of {factor} here")
    return height // factor, width // factor
