"""Measure how far a composite's prediction is from the teacher's, range by range of the noise."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from linattn import sampling
from linattn.evaluation.distance import prediction_error, predictions
from linattn.planning.composite import Composite
from linattn.planning.ranges import Range


class Judge:
    """Measure composites of these students on the same noised samples; no composite twice.

    Args:
        teacher: the teacher whose predictions are copied.
        samples: latents with prompts that it drew.
        students: conversions of all layers, by label.
        ranges: the noise.
        options: count, batch and seed of `prediction_error`.
    """

    def __init__(
        self,
        teacher: Any,
        samples: Any,
        students: Mapping[str, nn.Module],
        ranges: Sequence[Range],
        **options: int,
    ):
        self.teacher, self.samples, self.options = teacher, samples, options
        self.composite, self.ranges = Composite(students), ranges
        self.targets = [self._target(span) for span in ranges]
        self._errors: dict[tuple[tuple[str, ...], int], float] = {}

    def _target(self, span: Range) -> Tensor:
        model = sampling.Source.of(self.teacher).model
        return predictions(self.teacher, model, self.samples, span.levels, **self.options)

    def error(self, labels: Sequence[str], number: int) -> float:
        """Return the relative error of one range, by its number, with one label a layer."""
        key = tuple(labels), number
        if key not in self._errors:
            self._errors[key] = self._measured(labels, number)
        return self._errors[key]

    def _measured(self, labels: Sequence[str], number: int) -> float:
        errors = prediction_error(
            self.teacher,
            self.composite.of(labels),
            self.samples,
            self.ranges[number].levels,
            theirs=self.targets[number],
            **self.options,
        )
        return errors["mean"]["value"]

    def total(self, choice: Sequence[Sequence[str]]) -> float:
        """Return the error over all ranges; `choice` has a label for each range of each layer."""
        return sum(
            span.share * self.error([labels[number] for labels in choice], number)
            for number, span in enumerate(self.ranges)
        )
