"""Distil one student from its teacher: layer by layer, then end to end, on data the teacher drew
itself.

- Layerwise: one forward of the teacher gives every self-attention's input and output. Each student
  layer runs on the teacher's input alone and is regressed onto the teacher's output, so that all
  layers learn at once, independently.
- End to end: the loss is a weighted sum of terms (objectives.py) on the same noisy latents
  (lesson.py).
- `trains` names the parameters that learn: the replaced layers, only the parameters they added, or
  all. The others keep every bit.
- Either stage may have no steps. After a kill at any step, the same call goes on and ends with the
  same weights.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from linattn import families, surgery
from linattn.distillation.config import Data, DistillConfig, Trains
from linattn.distillation.lesson import Lesson
from linattn.distillation.training import History, Named, Stage, fit
from linattn.surgery.conversion import converted
from linattn.teachers import Teacher


@dataclass(frozen=True)
class Result:
    model: nn.Module
    # means between two log steps: stage, step, seconds, loss terms, gradient norm
    history: list[dict[str, Any]]
    seconds: float
    samples_per_second: float
    trained: int  # parameters
    added: int
    before: Any = None  # result of `evaluate` after the conversion
    after: Any = None  # result of `evaluate` after training
    folder: str | None = None  # the saved student


def distill(
    config: DistillConfig,
    teacher: Teacher,
    samples: Data,
    *,
    folder: str | Path | None = None,
    evaluate: Callable[[nn.Module], Any] | None = None,
    accelerator: Accelerator | None = None,
) -> Result:
    """Convert a copy of the teacher, train it, and save the replaced layers into `folder`.

    With `config.scratch`, the same call after a kill goes on from the last checkpoint.
    """
    accelerator = accelerator or Accelerator(cpu=teacher.device.type == "cpu")
    if config.batch % accelerator.num_processes:
        raise ValueError(
            f"batch {config.batch} does not divide among {accelerator.num_processes} processes"
        )
    if hasattr(teacher, "pipe"):
        teacher.pipe.to(accelerator.device)  # moves the text encoders too
    original = frozen(teacher.model, accelerator.device)
    student = convert(original, config)
    before = evaluate(student) if evaluate else None

    history = History(config.log_every, shown=accelerator.is_main_process)
    lesson = Lesson(
        config, original, student, teacher.diffusion, teacher.conditions, samples, accelerator
    )
    recipe = config.recipe(teacher, samples)
    stages = (
        Stage(
            "layerwise", config.layerwise_steps, config.layerwise_learning_rate, lesson.layerwise
        ),
        Stage("end-to-end", config.steps, config.learning_rate, lesson.end_to_end),
    )
    chosen = select(student, config.trains)
    with scratch_folder(config.scratch) as scratch, compiled(config.compile, original, student):
        for stage in stages:
            learning = inside_attention(student, chosen) if stage.name == "layerwise" else chosen
            if stage.steps and learning:
                require(student, learning)
                fit(
                    stage,
                    learning,
                    muon_matrices(student),
                    config.settings(),
                    history,
                    scratch,
                    recipe,
                    accelerator,
                )
    require(student, [])
    student.eval()
    after = evaluate(student) if evaluate else None
    if folder and accelerator.is_main_process:
        surgery.save(student, folder)
    accelerator.wait_for_everyone()
    return Result(
        model=student,
        history=history.rows,
        seconds=round(history.seconds, 3),
        samples_per_second=round(history.samples / max(history.seconds, 1e-9), 2),
        trained=count(chosen),
        added=count(surgery.new_parameters(student)),
        before=before,
        after=after,
        folder=str(folder) if folder else None,
    )


# The student and its trainable parameters
# ----------------------------------------------------------------------------


def frozen(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model on the device, in eval mode and without gradients."""
    # In training mode DiT would drop labels too, independently in every block, on top of the drops
    # of lesson.py.
    return model.to(device).eval().requires_grad_(False)


def convert(model: nn.Module, config: DistillConfig) -> nn.Module:
    return converted(model, config, config.seed)


def select(student: nn.Module, trains: Trains) -> Named:
    """List the parameters that `trains` names, or raise if there are none."""
    if trains == "all":
        return [(name, p) for name, p in student.named_parameters() if p.is_floating_point()]
    chosen = (
        surgery.new_parameters(student)
        if trains == "new"
        else surgery.attention_parameters(student)
    )
    if not chosen:
        raise ValueError(
            f"trains is {trains!r}, but the student has no such parameters; train 'attention' or "
            "'all'"
        )
    return list(chosen)


def inside_attention(student: nn.Module, chosen: Named) -> Named:
    """Keep the chosen parameters that lie inside replaced layers."""
    inside = {id(parameter) for _, parameter in surgery.attention_parameters(student)}
    return [(name, parameter) for name, parameter in chosen if id(parameter) in inside]


def require(student: nn.Module, learning: Named) -> None:
    """Let exactly these parameters of the student receive gradients."""
    student.requires_grad_(False)
    for _, parameter in learning:
        parameter.requires_grad_(True)


def muon_matrices(student: nn.Module) -> set[str]:
    """Name the 2-D weights that Muon trains: linear layers inside attentions and feed-forwards."""
    markers = (".attn", ".ff.")
    linear = [name for name, module in student.named_modules() if isinstance(module, nn.Linear)]
    return {f"{name}.weight" for name in linear if any(marker in f".{name}." for marker in markers)}


def count(parameters: Named) -> int:
    return sum(parameter.numel() for _, parameter in parameters)


@contextlib.contextmanager
def compiled(enabled: bool, *models: nn.Module) -> Iterator[None]:
    """Compile the models' blocks one by one with torch.compile, so that capturing the attentions
    breaks no graph.

    Compilation is off by default, because it takes longer than a short run on a CPU.
    """
    names, blocks = set(), []
    for model in models:
        names.update(layer.name.rpartition(".")[0] for layer in families.layers(model))
    if enabled:
        for model in models:
            blocks.extend(model.get_submodule(name) for name in names)
    try:
        for block in blocks:
            block.compile()
        yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None


@contextlib.contextmanager
def scratch_folder(scratch: str | None) -> Iterator[Path]:
    """Yield the folder of the checkpoints, or a temporary one where there is none."""
    if scratch:
        yield Path(scratch)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
