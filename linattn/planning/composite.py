"""Assemble a model whose every layer is that of one of several students.

Students of one teacher differ in their self-attentions alone, so these are all that is exchanged.
"""

from collections.abc import Mapping, Sequence

from torch import nn

from linattn import families
from linattn.planning.candidates import SOFTMAX
from linattn.surgery.conversion import sharing_copy


class Composite:
    """Hold the students by their labels, and one model that takes its layers from them."""

    def __init__(self, students: Mapping[str, nn.Module]):
        self.model = sharing_copy(students[SOFTMAX])
        self.layers = [layer.name for layer in families.layers(self.model)]
        self.attentions = {
            label: {name: student.get_submodule(name) for name in self.layers}
            for label, student in students.items()
        }

    def of(self, labels: Sequence[str]) -> nn.Module:
        """Return the model with the layers of these students, one label a layer."""
        for name, label in zip(self.layers, labels, strict=True):
            self.model.set_submodule(name, self.attentions[label][name])
        return self.model
