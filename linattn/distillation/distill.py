"""Distil one student from its teacher, on data that the teacher drew itself.

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
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn

from linattn import families, files, surgery
from linattn.distillation import alignment, depth
from linattn.distillation.config import Data, DistillConfig
from linattn.distillation.conflict import Conflict
from linattn.distillation.encoding import Kept, leaving
from linattn.distillation.history import History
from linattn.distillation.lesson import Lesson
from linattn.distillation.parameters import (
    count,
    inside_attention,
    linears,
    muon_matrices,
    require,
    select,
)
from linattn.distillation.training import Stage, fit
from linattn.names import short
from linattn.surgery.card import require_place
from linattn.surgery.conversion import converted
from linattn.teachers import Teacher


@dataclass(frozen=True)
class Result:
    """Hold a trained student, and how its training went."""

    model: nn.Module  # the trained student
    # means between two log steps: stage, step, seconds, loss terms, gradient norm
    history: list[dict[str, Any]]
    seconds: float  # time of the training
    samples_per_second: float  # pictures that the training saw in a second
    trained: int  # parameters
    added: int  # parameters that the teacher does not have
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

    With `config.scratch`, the same call after a kill goes on from the last checkpoint. Whether the
    device has room, `linattn.memory.check` says beforehand.

    Args:
        config: the student: its operator with options, and how it is trained.
        teacher: the teacher; its model does not change.
        samples: latents with prompts, as `linattn.samples` reads them.
        folder: where the student is saved; None saves nothing.
        evaluate: called with the student after the conversion and after the training; the results
            are in `before` and `after`.
        accelerator: an accelerator of the caller's; None makes one for the teacher's device.
    """
    _check(config, teacher, samples, evaluate, accelerator)
    accelerator = accelerator or Accelerator(cpu=teacher.device.type == "cpu")
    if config.batch % accelerator.num_processes:
        raise ValueError(
            f"batch {config.batch} does not divide among {accelerator.num_processes} processes"
        )
    _refuse_float16(teacher.model)
    device = accelerator.device
    kept = Kept(teacher.conditions) if config.encoders == "leave" else None
    history = History(config.log_every, shown=accelerator.is_main_process)
    with leaving(kept) if kept else contextlib.nullcontext():
        teacher.model.to(device) if kept else teacher.to(device)
        original = frozen(teacher.model)
        diffusion, conditions = teacher.diffusion, teacher.conditions
        data = (diffusion, conditions, samples, accelerator, kept)
        teaching = Lesson(config, original, original, *data)
        student = convert(original, config, teaching.show)
        if folder is not None and accelerator.is_main_process:
            require_place(folder, _bytes_on_disk(student, config.trains))
        before = measured(evaluate, student, kept)
        lesson = dataclasses.replace(
            teaching,
            student=student,
            alignment=alignment.create(config, student, conditions.pipe, device),
            linears=linears(student) if config.terms.orthogonal else (),
            conflict=Conflict(config.conflict_every) if config.until == "conflict" else None,
        )
        trained = train(lesson, config.recipe(teacher, samples), history)
        if folder is not None and accelerator.is_main_process:
            surgery.save(student, folder)  # before a failure of `evaluate` could lose it
        after = measured(evaluate, student, kept)
    accelerator.wait_for_everyone()
    return Result(
        model=student,
        history=history.rows,
        seconds=round(history.seconds, 3),
        samples_per_second=round(history.samples / max(history.seconds, 1e-9), 2),
        trained=trained,
        added=count(surgery.new_parameters(student)),
        before=before,
        after=after,
        folder=None if folder is None else str(folder),
    )


def _check(
    config: DistillConfig,
    teacher: Teacher,
    samples: Data,
    evaluate: Callable[[nn.Module], Any] | None,
    accelerator: Accelerator | None,
) -> None:
    """Raise ValueError where an argument is not what its name says, before anything is computed."""
    if not isinstance(config, DistillConfig):
        raise ValueError(f"config is {short(config)}; it must be a DistillConfig")
    if not hasattr(teacher, "conditions"):
        raise ValueError(
            f"teacher is {short(teacher)}; it must be a Teacher, as linattn.teachers.load returns"
        )
    if not hasattr(samples, "batch") or not hasattr(samples, "__len__"):
        raise ValueError(
            f"samples are {short(samples)}; pass linattn.samples.Samples, or an object with "
            "batch(indices) and a length"
        )
    if evaluate is not None and not callable(evaluate):
        raise ValueError(f"evaluate is {short(evaluate)}; it must be a function of the model")
    if accelerator is not None and not hasattr(accelerator, "num_processes"):
        raise ValueError(f"accelerator is {short(accelerator)}; it must be accelerate's")
    _check_samples(samples, config.batch, teacher.conditions.channels)


def _check_samples(samples: Data, batch: int, channels: int) -> None:
    if len(samples) < batch:
        raise ValueError(
            f"batch is {batch} and there are {len(samples)} samples, of which a step would learn "
            "some several times: lower the batch, or write more samples"
        )
    clean, _ = samples.batch(torch.tensor([0]))
    if clean.ndim != 4 or clean.shape[1] != channels:
        raise ValueError(
            f"the samples' latents are {tuple(clean.shape)}, and the teacher draws (batch, "
            f"{channels}, height, width): take samples of this teacher"
        )


def _bytes_on_disk(student: nn.Module, trains: str) -> int:
    """Return the bytes that `surgery.save` will write: those of the replaced layers, or all."""
    layers = [layer.attn for layer in families.layers(student) if layer.operator]
    modules: list[nn.Module] = [student] if trains == "all" else layers
    return sum(weight.nbytes for module in modules for weight in module.parameters())


def _refuse_float16(model: nn.Module) -> None:
    """Refuse a model whose gradients would underflow: float16 ends at 6e-8."""
    weight = next(model.parameters())
    if weight.dtype == torch.float16:
        raise ValueError(
            f"the teacher's weights are {weight.dtype}, in which small gradients are 0; load it in "
            "bfloat16 or float32 (torch_dtype of linattn.teachers.load)"
        )


def measured(
    evaluate: Callable[[nn.Module], Any] | None, student: nn.Module, kept: Kept | None
) -> Any:
    """Call `evaluate` with encoders and VAE on the device, where it is given."""
    if evaluate is None:
        return None
    with kept.present() if kept else contextlib.nullcontext():
        return evaluate(student)


def train(lesson: Lesson, recipe: dict[str, Any], history: History) -> int:
    """Train the student in both stages, and return how many parameters were trained."""
    config, student, accelerator = lesson.config, lesson.student, lesson.accelerator
    selected, matrices = select(student, config.trains), muon_matrices(student)
    inside = inside_attention(student, selected)
    layerwise, end_to_end = stages_of(lesson)
    projector = [] if lesson.alignment is None else lesson.alignment.named
    with (
        scratch_folder(config.scratch) as scratch,
        compiled(config.compile, lesson.teacher, student),
        recomputing(config.checkpointing, student),
    ):
        for stage, learning in ((layerwise, inside), (end_to_end, [*selected, *projector])):
            if stage.steps and learning:
                require(student, learning)
                fit(stage, learning, matrices, config, history, scratch, recipe, accelerator)
    require(student, [])
    student.eval()
    return count(selected)


def stages_of(lesson: Lesson) -> tuple[Stage, Stage]:
    """Return the layerwise stage and the one on the whole model."""
    config = lesson.config
    line = depth.steps_of(config.start, config.layerwise_steps + config.steps)
    roles = depth.roles(lesson.student) if line else []
    layerwise = Stage(
        "layerwise",
        config.layerwise_steps,
        config.layerwise_learning_rate,
        lesson.layerwise,
        line,
        roles,
    )
    end_to_end = Stage(
        "end-to-end",
        config.steps,
        config.learning_rate,
        lesson.end_to_end,
        line - config.layerwise_steps,
        roles,
        {"conflict": lesson.conflict} if lesson.conflict else {},
    )
    return layerwise, end_to_end


def frozen(model: nn.Module) -> nn.Module:
    """Return the model in eval mode and without gradients."""
    # In training mode DiT would drop labels too, independently in every block, on top of the drops
    # of lesson.py.
    return model.eval().requires_grad_(False)


def convert(
    model: nn.Module, config: DistillConfig, data: Callable[[nn.Module], Any] | None = None
) -> nn.Module:
    """Return a copy of the model with the student's operator in its layers.

    `data` runs the model once, for an initialise policy that starts from activations. What does not
    learn is shared with the model, and no copy of the replaced weights is kept for `restore`: the
    teacher has them (10 GB for FLUX.1 in float32).
    """
    shares = config.trains != "all"
    return converted(model, config, config.seed, data, shares=shares, keep_original=False)


@contextlib.contextmanager
def compiled(enabled: bool, *models: nn.Module) -> Iterator[None]:
    """Compile the models' blocks one by one, so that capturing the attentions breaks no graph.

    Compilation is off by default, because it takes longer than a short run on a CPU.
    """
    names: set[str] = set()
    blocks: list[nn.Module] = []
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
def recomputing(enabled: bool, student: nn.Module) -> Iterator[None]:
    """Let the backward compute each of the student's blocks again, by diffusers' own switch.

    Of a block, its input alone is held then. Nothing is recomputed where no gradient flows, so it
    makes no difference to the layerwise steps, which call the self-attentions alone.
    """
    model = cast(Any, student)  # torch takes every attribute of a module for a tensor or a module
    switched = enabled and not model.is_gradient_checkpointing
    if switched:
        model.enable_gradient_checkpointing()
    try:
        yield
    finally:
        if switched:
            model.disable_gradient_checkpointing()


@contextlib.contextmanager
def scratch_folder(scratch: str | None) -> Iterator[Path]:
    """Yield the folder of the checkpoints, or a temporary one where there is none."""
    if scratch is not None:
        yield files.path_of(scratch, "scratch")
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
