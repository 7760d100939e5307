"""The memory of a training is known beforehand, and what cannot fit is refused with a remedy."""

import dataclasses
from types import SimpleNamespace

import pytest
import test_one_gpu as small
import tiny
import torch

from linattn import memory, project
from linattn.distillation.config import DistillConfig
from linattn.distillation.distill import convert, frozen, recomputing
from linattn.distillation.optimizers import OPTIMIZERS
from linattn.distillation.parameters import muon_matrices, require, select
from linattn.distillation.training import Trained
from linattn.evaluation.memory import peak_memory
from linattn.memory import __main__ as table, device, need, step
from linattn.memory.models import MODELS, linear
from linattn.memory.need import Need

CONFIG = DistillConfig("linfusion", optimizer="adamw", trains="attention", encoders="leave")
MOST = {  # GB, before the first picture
    "SD 1.5": 3,
    "PixArt-Sigma 512": 5,
    "PixArt-Sigma 1024": 5,
    "SD3.5-M": 18,
    "FLUX.1-dev": 80,
}


@pytest.mark.parametrize("name", MODELS)
def test_published_models_take_no_more_than_one_gpu_has(name):
    config = dataclasses.replace(CONFIG, operator="clear", options={"radius": 8})
    assert need.fixed(MODELS[name].shapes(), config).fixed < MOST[name] * need.GB


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("trains", ["attention", "all"])
def test_what_learning_takes_is_what_the_loop_holds(dtype, optimizer, trains):
    """Masters, averages and optimizer states are counted after a step."""
    model = frozen(tiny.model(width=64).to(dtype))
    config = dataclasses.replace(CONFIG, optimizer=optimizer, trains=trains)
    student = convert(model, config)
    selected = select(student, trains)
    require(student, selected)
    trained = Trained(selected)
    optimizers = OPTIMIZERS[optimizer](trained.named, muon_matrices(student), 0.0)
    for master in trained.masters:
        master.grad = torch.zeros_like(master)
    for one in optimizers.values():
        one.step()
    tensors = [*trained.average, *(master.grad for master in trained.masters)]
    tensors += [master for _, master in trained.copies]
    for one in optimizers.values():
        for state in one.state.values():
            tensors += [value for value in state.values() if value.ndim]
    theirs = {p.untyped_storage().data_ptr(): p.nbytes for p in model.parameters()}
    ours = {p.untyped_storage().data_ptr(): p.nbytes for p in student.parameters()}
    estimate = need.fixed(step.Shapes(model, linear(), 8, 0), config)
    assert estimate.learning == sum(tensor.nbytes for tensor in tensors)
    assert estimate.weights == need.bytes_of(model)
    added = sum(size for place, size in ours.items() if place not in theirs)
    assert estimate.own == pytest.approx(added, rel=0.05)


SIDE = {"flux": 32, "sd3": 32, "sd35": 32}


def measured_step(teacher, config, shapes, pictures):
    """Return the peak that PyTorch's allocator hands out in a step of training on the CPU."""
    lesson = small.lesson_of(teacher, config)
    batch = step.batch_of(lesson, shapes, pictures)
    encoded = {
        name: torch.zeros(value.shape, dtype=value.dtype)
        for name, value in batch.conditioning.items()
    }
    clean, eps = torch.randn(batch.clean.shape), torch.randn(batch.eps.shape)
    batch = dataclasses.replace(batch, clean=clean, eps=eps, conditioning=encoded)

    def learn():
        lesson.student.zero_grad()
        with torch.enable_grad():
            lesson._learn_model(batch, 1.0)

    with recomputing(config.checkpointing, lesson.student):
        return peak_memory(learn)


# Of these operators every operation is PyTorch's own. The linear ones are single operations of
# ours, whose code for a CPU holds float32 copies inside that their GPU kernels do not (1.2 to 1.6
# times the bytes measured here).
@pytest.mark.parametrize("kind", ["dit", "pixart", "sd3", "sd35", "flux"])
@pytest.mark.parametrize("operator", ["softmax", "mediator"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_takes_what_was_said_within_a_tenth(kind, operator, checkpointing, dtype):
    teacher = small.teacher_of(kind)
    config = dataclasses.replace(
        CONFIG, operator=operator, checkpointing=checkpointing, layerwise_steps=0
    )
    model = teacher.model.to(dtype)
    shapes = step.Shapes(model, teacher.diffusion, SIDE.get(kind, 16), 16)
    grows = step.growth(shapes, config)
    measured = measured_step(teacher, config, shapes, 8)
    assert grows.fixed + 8 * grows.picture == pytest.approx(measured, rel=0.1)


# Before a training
# ---------------------------------------------------------------------------------------------

NEED = Need(weights=10, own=2, learning=8, encoders=4, step=1, picture=5)


def test_what_fits_is_counted():
    assert NEED.fixed == 24
    assert NEED.total(3) == 40
    assert NEED.fits(40) == 3
    assert NEED.fits(20) == 0


def test_a_small_device_is_refused_with_the_settings_that_help():
    assert device.remedies(NEED, CONFIG, 8, 40) == ["set micro to 3"]
    helping = device.remedies(NEED, CONFIG, 8, 20)
    assert helping[:3] == [
        "set checkpointing to true",
        "set micro to 1",
        "set encoders to 'leave' (-0.0 GB)",
    ]
    with pytest.raises(ValueError, match=r"needs 0.0 GB.*tiny card has 0.0 GB; set micro to 3"):
        device._require(NEED, CONFIG, 8, 40, "tiny card")
    device._require(NEED, CONFIG, 3, 40, "tiny card")


def test_a_cpu_refuses_what_is_beyond_its_memory(monkeypatch):
    teacher, cpu = small.teacher_of("dit"), torch.device("cpu")
    teacher.card["side"] = 32
    assert memory.check(CONFIG, teacher, cpu).fixed > 0
    monkeypatch.setattr(device.psutil, "virtual_memory", lambda: SimpleNamespace(total=1000))
    with pytest.raises(ValueError, match=r"this machine has 0.0 GB; set checkpointing to true"):
        memory.check(CONFIG, teacher, cpu)


def test_a_folder_has_a_line_and_a_folder_without_pipeline_is_refused(tmp_path):
    folder = project.ROOT / "data" / "teachers" / "dit-nano"
    shapes = table.of_folder(folder, torch.bfloat16)
    name, fixed, *numbers = table.line("dit-nano", memory.needed(shapes, CONFIG))
    assert (name, len(numbers)) == ("dit-nano", len(table.HEAD) - 2)
    assert float(fixed) < 1
    with pytest.raises(SystemExit, match="neither a pipeline's folder nor one of the roles"):
        table.folder_of(str(tmp_path))
