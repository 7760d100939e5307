"""Checks of an operator inside models of every family: its layers, its folder, its training."""

import contextlib
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from linattn import families, surgery
from linattn.conditions import Labels
from linattn.diffusion import Diffusion
from linattn.distillation.config import DistillConfig
from linattn.distillation.distill import distill
from linattn.testing import models
from linattn.testing.form import Form

CLOSE = {"rtol": 1e-8, "atol": 1e-9}
CPU = torch.device("cpu")


def backbones(form: Form) -> list[str]:
    """List the backbones on which this form means something.

    A form whose options are about text or rotary positions runs where the layers have them.
    """
    needs = {form.operator.table[name].needs for name in form.options}
    if "rotation" in needs:
        return list(models.ROTARY)
    return list(models.JOINT) if "text" in needs else list(models.BACKBONES)


def converted(form: Form, backbone: str) -> Any:
    """Build a tiny model and convert it."""
    return convert(models.model(backbone), form)


def convert(model: Any, form: Form) -> Any:
    """Convert a model in place; every new parameter is drawn, so that none is silent."""
    torch.manual_seed(0)
    surgery.linearize(model, form.operator.name, **form.options)
    for name, parameter in model.named_parameters():
        if f".{families.KEY}." in name:
            nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def layers_are_the_definition(form: Form, backbone: str) -> None:
    """Compare every layer's output with its projections and the dense definition, in float64."""
    for height, width in models.sizes(backbone):
        model = converted(form, backbone).double()
        kwargs = models.in_double(models.inputs(backbone, height, width))
        with families.capture(model) as records:
            models.run(model, **kwargs)
        for layer, record in zip(families.layers(model), records, strict=True):
            expected = by_definition(layer, record)
            worst = (record["output"] - expected).abs().max().item()
            if not torch.allclose(record["output"], expected, **CLOSE):
                raise AssertionError(
                    f"layer {layer.name} of {height} x {width} tokens differs from its definition "
                    f"by {worst:.2g}"
                )


def by_definition(layer: Any, record: dict[str, Any]) -> Tensor:
    """Compute a layer's output from its projections and the operator's definition."""
    attn, grid = layer.attn, record["grid"]
    text = record["more"].get("encoder_hidden_states")
    rope = record["more"].get("image_rotary_emb")
    q, k, v = families.projections(attn, record["input"], grid, text, rope)
    position = families.position(rope)
    x, noise = record["input"], record["noise"]
    out = layer.operator.definition(q, k, v, grid, x, noise, position).flatten(2)
    if getattr(attn, "to_out", None) is None:
        return out
    if text is None:
        return attn.to_out[0](out)
    of_text = out[:, : grid.text]
    of_text = of_text if attn.context_pre_only else attn.to_add_out(of_text)
    return torch.cat([of_text, attn.to_out[0](out[:, grid.text :])], 1)


@torch.no_grad()
def it_saves_restores_and_loads(form: Form, backbone: str) -> None:
    """Save a student, restore its teacher bit for bit, and load the student into it again."""
    model, kwargs = models.model(backbone), models.inputs(backbone)
    teacher = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    convert(model, form)
    out = models.run(model, **kwargs)
    if not out.isfinite().all():
        raise AssertionError("the converted model gives values that are not finite")
    options = _options(model)
    with tempfile.TemporaryDirectory() as folder:
        surgery.save(model, folder)
        surgery.restore(model)
        _equal_states(model.state_dict(), teacher)
        surgery.load(model, folder)
    for (layer, before), after in zip(options.items(), _options(model).values(), strict=True):
        lost = [name for name in before if before[name] != after.get(name)]
        if lost:
            raise AssertionError(
                f"option {lost[0]}={before[lost[0]]!r} of layer {layer} is lost on save: it comes "
                f"back as {after.get(lost[0])!r}"
            )
    if not torch.equal(models.run(model, **kwargs), out):
        raise AssertionError("a saved and loaded student gives something else")


def _options(model: Any) -> dict[str, dict[str, Any]]:
    """Return by layer what its operator works with, which its `options` must bring back.

    Options about text mean nothing in a layer without text and are not saved there.
    """
    by_layer = {}
    for layer in families.layers(model):
        operator: Any = layer.operator
        values, table = operator.values.by_name, operator.table
        idle = {name for name in values if table[name].needs and not layer.shape.has_text}
        by_layer[layer.name] = {name: values[name] for name in values if name not in idle}
    return by_layer


def _equal_states(state: dict[str, Tensor], teacher: dict[str, Tensor]) -> None:
    more = [name for name in state if name not in teacher]
    differing = [n for n in teacher if n not in state or not torch.equal(teacher[n], state[n])]
    if more or differing:
        raise AssertionError(
            f"restore does not bring the teacher back: {(more + differing)[:3]} differ"
        )


# Training
# ---------------------------------------------------------------------------------------------


@dataclass
class Teacher:
    """Hold what distillation needs of a teacher."""

    model: Any
    diffusion: Diffusion
    device: torch.device = CPU

    @property
    def conditions(self) -> Labels:
        return Labels(SimpleNamespace(transformer=self.model), {})

    def to(self, device: torch.device) -> None:
        """Move the model."""
        self.model.to(device)


class Pictures:
    """Hold random latents with labels; the batch numbered `stop` raises Interrupted."""

    def __init__(self, stop: int | None = None):
        rng = torch.Generator().manual_seed(3)
        self.latents = torch.randn(8, 4, 6, 6, generator=rng)
        self.labels = torch.randint(10, (8,), generator=rng)
        self.batches, self.stop = 0, stop

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        self.batches += 1
        if self.batches == self.stop:
            raise Interrupted
        return self.latents[indices], self.labels[indices]


class Interrupted(Exception):
    """Stands for a run that is killed."""


def a_training_resumes(form: Form) -> None:
    """Interrupt a training in each stage: it must end with the weights of an undisturbed one."""
    undisturbed = _trained(form, Pictures(), None)
    with tempfile.TemporaryDirectory() as folder:
        for stop in (3, 3):
            try:
                _trained(form, Pictures(stop), folder)
            except Interrupted:
                continue
            raise AssertionError("the training ended before it was interrupted")
        resumed = _trained(form, Pictures(), folder)
    differing = [name for name in undisturbed if not torch.equal(undisturbed[name], resumed[name])]
    if differing:
        raise AssertionError(
            f"interrupted and resumed, a training ends with other weights: {differing[:3]}"
        )


def _trained(form: Form, pictures: Pictures, scratch: str | None) -> dict[str, Tensor]:
    config = DistillConfig(
        form.operator.name,
        dict(form.options),
        layerwise_steps=3,
        steps=3,
        batch=2,
        checkpoint_every=1,
        layerwise_learning_rate=1e-3,
        learning_rate=1e-3,
        warmup=1,
        scratch=scratch and str(Path(scratch)),
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        result = distill(config, teacher(), pictures)
    return {name: tensor.detach().clone() for name, tensor in result.model.state_dict().items()}


def teacher() -> Any:
    """Build a tiny DiT as a teacher; its data are `Pictures`."""
    model = models.seeded(lambda: models.dit(side=6))
    betas = torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    return Teacher(model, Diffusion((1 - betas).cumprod(0)))
