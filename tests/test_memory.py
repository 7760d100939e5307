"""The memory of a training is known beforehand, and what cannot fit is refused with a remedy."""

import dataclasses
import itertools
from types import SimpleNamespace

import kinds
import pytest
import test_one_gpu as small
import tiny
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from linattn import memory, project
from linattn.distillation import objectives
from linattn.distillation.config import DistillConfig
from linattn.distillation.distill import convert, frozen, recomputing
from linattn.distillation.optimizers import OPTIMIZERS
from linattn.distillation.parameters import muon_matrices, require, select
from linattn.distillation.training import Trained
from linattn.evaluation.memory import peak_memory
from linattn.memory import __main__ as table, device, live, need, paths, step
from linattn.memory.models import MODELS, linear
from linattn.memory.need import Need
from linattn_kernels import launch, small_torch, window_attention

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


# A step
# ---------------------------------------------------------------------------------------------

PICTURES = 8
# The latents' sides. Of the smallest SDXL, what oneDNN takes inside a convolution in bfloat16 is
# another seventh of a step (1.4 MB at once), so that its pictures are larger.
SIDE = {kind: 32 for kind in ("sdxl", "sd3", "sd35", "flux", "qwen")}
OPERATORS = {
    "softmax": {},
    "clear": {"radius": 3, "pool": 2},
    "linfusion": {},
    "mediator": {"count": 4, "bias": "full"},
    "lit": {},
    "lolcats": {},
    "sla": {},
}
SETTINGS = list(itertools.product([torch.float32, torch.bfloat16], [False, True]))
OBJECTIVES = ("protocol", "clear", "lit")


def cells():
    """Yield every other cell of the table of operators by kinds, and a setting for each.

    Every operator has all four settings of dtype and checkpointing on four kinds, every kind two or
    three operators, and objectives take turns: 20 of 480 combinations, which take half a minute.
    """
    for row, operator in enumerate(OPERATORS):
        for column in range(row % 2, len(kinds.KINDS), 2):
            number = (row + column) // 2
            dtype, checkpointing = SETTINGS[number % 4]
            yield kinds.KINDS[column], operator, dtype, checkpointing, OBJECTIVES[number % 3]


def measured_step(teacher, config, shapes, stage):
    """Return the peak that PyTorch's allocator hands out in a step of training on the CPU.

    oneDNN is off for bfloat16 but where a UNet convolves: on processors with AVX-512 it packs the
    weights of products, 655 kB in a step of 4.8 MB, and no other device does.
    """
    products = teacher.model.dtype == torch.bfloat16 and not hasattr(teacher.model, "conv_in")
    lesson = small.lesson_of(teacher, config)
    batch = step.batch_of(lesson, shapes, PICTURES)
    encoded = {
        name: torch.ones(value.shape, dtype=value.dtype)
        for name, value in batch.conditioning.items()
    }
    clean, eps = torch.randn(batch.clean.shape), torch.randn(batch.eps.shape)
    batch = dataclasses.replace(batch, clean=clean, eps=eps, conditioning=encoded)

    def learn():
        lesson.student.zero_grad()
        with torch.enable_grad():
            getattr(lesson, stage)(batch, 1.0)

    with (
        recomputing(config.checkpointing, lesson.student),
        torch.backends.mkldnn.flags(not products),
    ):
        return peak_memory(learn)


def estimate_and_measurement(kind, config, dtype=torch.float32, stage="_learn_model"):
    teacher = small.teacher_of(kind)
    model = teacher.model.to(dtype)
    shapes = step.Shapes(model, teacher.diffusion, SIDE.get(kind, 16), 16)
    grows = step.growth(shapes, config, "cpu")
    estimate = grows.fixed + PICTURES * grows.picture
    return estimate, measured_step(teacher, config, shapes, stage)


@pytest.mark.parametrize(("kind", "operator", "dtype", "checkpointing", "objective"), list(cells()))
def test_a_step_takes_what_was_said_within_a_tenth(kind, operator, dtype, checkpointing, objective):
    config = dataclasses.replace(
        CONFIG,
        operator=operator,
        options=OPERATORS[operator],
        objective=objective,
        checkpointing=checkpointing,
        layerwise_steps=0,
    )
    estimate, measured = estimate_and_measurement(kind, config, dtype)
    assert estimate == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("trains", ["new", "all"])
def test_it_does_so_whatever_learns(trains):
    config = dataclasses.replace(CONFIG, trains=trains, layerwise_steps=0)
    estimate, measured = estimate_and_measurement("pixart", config)
    assert estimate == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize(("kind", "operator"), [("dit", "linfusion"), ("flux", "clear")])
def test_a_layerwise_step_takes_what_was_said_within_a_tenth(kind, operator):
    config = dataclasses.replace(CONFIG, operator=operator, steps=0, layerwise_steps=1)
    estimate, measured = estimate_and_measurement(kind, config, stage="_learn_layers")
    assert estimate == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("operator", ["linfusion", "lit", "clear"])
def test_a_triton_kernel_holds_no_float32_copies(operator):
    """On a CPU these operators' code does, which the estimate for a GPU leaves out."""
    teacher = small.teacher_of("dit")
    shapes = step.Shapes(teacher.model.to(torch.bfloat16), teacher.diffusion, 16, 0)
    config = dataclasses.replace(CONFIG, operator=operator, layerwise_steps=0)
    assert step.growth(shapes, config).picture < 0.9 * step.growth(shapes, config, "cpu").picture


def test_a_triton_kernel_keeps_what_its_backward_reads():
    """The window's output and a log-sum-exp for each query and head, beside q, k and v."""
    q = k = v = torch.zeros(1, 64, 2, 8, requires_grad=True)
    saved = []
    hooks = saved_tensors_hooks(lambda tensor: saved.append(tensor.shape), lambda _: None)
    with FakeTensorMode(allow_non_fake_inputs=True), paths.taken("cuda"), live.Live(), hooks:
        window_attention(q, k, v, height=8, width=8, radius=3)
    assert saved == [*4 * [q.shape], torch.Size([1, 2, 64])]


def test_a_start_from_data_and_an_alignment_are_counted_without_running_them():
    teacher = small.teacher_of("dit")
    shapes = step.Shapes(teacher.model, teacher.diffusion, 16, 0)
    more = dataclasses.replace(
        CONFIG,
        objective={"preset": "protocol", "repa": 0.5, "orthogonal": 0.1},
        initialise="least_squares",
        until="conflict",
    )
    assert step.growth(shapes, more, "cpu") == step.growth(shapes, CONFIG, "cpu")


def test_an_estimate_leaves_the_kernels_as_they_were():
    teacher = small.teacher_of("dit")
    shapes = step.Shapes(teacher.model, teacher.diffusion, 16, 0)
    config = dataclasses.replace(CONFIG, operator="clear", options={"radius": 5})
    small_torch._mask.cache_clear()
    for device_type in ("cpu", "cuda"):
        step.growth(shapes, config, device_type)
    q = torch.randn(1, 64, 2, 8)
    assert launch.backend(q).path == "torch"
    assert not isinstance(small_torch._mask(8, 8, 5.0, 0, 0, "disc", q.dtype), FakeTensor)


@pytest.mark.parametrize("norm", ["mse", "l1", "relative"])
def test_a_distance_keeps_one_number(norm):
    """PyTorch's squared error keeps the memory of all its numbers: a layer's output in float32."""
    student, teacher = torch.randn(2, 100), torch.randn(2, 100)
    assert objectives.NORMS[norm](student, teacher).untyped_storage().nbytes() == 4


def test_a_comparison_of_features_holds_outputs_alone():
    lesson = small.lesson_of(small.teacher_of("flux"), CONFIG)
    with torch.no_grad(), lesson.captured(lesson.teacher) as records:
        lesson.show(lesson.teacher)
    assert len(records) == 3
    assert {name for record in records for name in record} == {"output"}


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
    with pytest.raises(ValueError, match="neither a pipeline's folder nor one of the roles"):
        table.folder_of(str(tmp_path))


@pytest.mark.parametrize(
    "words",
    [
        ["--teacher", "x" * 300],
        ["--operator", "claer"],
        ["--trains", "some"],
        ["--objective", "none"],
        ["--json", "nowhere/table.json"],
        ["--json", "."],
    ],
    ids=" ".join,
)
def test_a_wrong_word_is_one_line_and_writes_nothing(capsys, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    assert table.main(words) == 1
    out, error = capsys.readouterr()
    assert (out, error.count("\n"), list(tmp_path.iterdir())) == ("", 1, [])
    assert error.startswith("linattn: ")
