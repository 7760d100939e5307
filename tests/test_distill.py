"""Distillation trains what it says, on the same inputs, and goes on after a kill."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from linattn import (
    checkpoint,
    families,
    files,
    params,
    project,
    sampling,
    students,
    surgery,
    teachers,
)
from linattn.attention import OPERATORS
from linattn.conditions import NULL_CLASS, Labels
from linattn.diffusion import Diffusion
from linattn.distillation import lesson, parameters, training
from linattn.distillation.config import DistillConfig, of_params
from linattn.distillation.distill import convert, distill, frozen
from linattn.distillation.lesson import Lesson, draw
from linattn.distillation.optimizers import OPTIMIZERS
from linattn.distillation.parameters import select
from linattn.distillation.settings import Settings
from linattn.evaluation.distance import prediction_error
from linattn.finite import NotFinite

HERE = Path(__file__).parent


@dataclasses.dataclass
class TinyTeacher:
    """Stand in for a teacher, as far as distillation uses it."""

    model: nn.Module
    diffusion: Diffusion
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    @property
    def conditions(self) -> Labels:
        return Labels(SimpleNamespace(transformer=self.model), {})

    def to(self, device: torch.device) -> None:
        self.model.to(device)


class TinyData:
    """Sixteen random pictures of 6 x 6 latents."""

    def __init__(self, count: int = 16):
        rng = torch.Generator().manual_seed(3)
        self.latents = torch.randn(count, 4, 6, 6, generator=rng)
        self.labels = torch.randint(10, (count,), generator=rng)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, inrngs):
        return self.latents[inrngs], self.labels[inrngs]


def tiny_teacher(seed: int = 0) -> TinyTeacher:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            sample_size=6,
            patch_size=1,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=NULL_CLASS,
            norm_elementwise_affine=False,
        )
    return TinyTeacher(
        model, Diffusion((1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)).cumprod(0))
    )


TINY = DistillConfig(
    "lit",
    {"kernel": 3, "heads": 2},
    layerwise_steps=4,
    steps=5,
    batch=4,
    log_every=2,
    checkpoint_every=2,
    layerwise_learning_rate=2e-3,
    learning_rate=1e-3,
)


@pytest.fixture
def teacher() -> TinyTeacher:
    return tiny_teacher()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    assert a.keys() == b.keys()
    return {name for name in a if not torch.equal(a[name], b[name])}


class Alone:
    """Stand in for the accelerator of process `index` of `of`, without other processes."""

    num_processes, process_index, is_main_process, device = 1, 0, True, torch.device("cpu")

    def __init__(self, index: int = 0, of: int = 1):
        self.process_index, self.num_processes = index, of

    def reduce(self, tensor, reduction):
        return tensor


def lesson_of(teacher: TinyTeacher, config: DistillConfig, accelerator=None) -> Lesson:
    original = frozen(teacher.model)
    student = convert(original, config)
    return Lesson(
        config,
        original,
        student,
        teacher.diffusion,
        teacher.conditions,
        TinyData(),
        accelerator or Alone(),
    )


@torch.no_grad()
def terms_of(one: Lesson, stage: str, step: int) -> dict[str, torch.Tensor]:
    """Return the terms of a step without its gradients."""
    return getattr(one, stage)(step)


# What learns
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trains", ["attention", "new", "all"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_parameters_that_do_not_train_keep_every_bit(teacher, trains, optimizer):
    config = dataclasses.replace(TINY, trains=trains, optimizer=optimizer, weight_decay=0.1)
    start = weights(convert(frozen(teacher.model), config))
    result = distill(config, teacher, TinyData())
    changed = differing(start, weights(result.model))
    chosen = {name for name, _ in select(result.model, trains)}
    assert changed, "nothing learned"
    assert changed <= chosen
    inside = {name for name, _ in surgery.attention_parameters(result.model)}
    if trains == "all":
        assert changed - inside, "nothing outside the attentions learned"
    else:
        added = {name for name, _ in surgery.new_parameters(result.model)}
        assert chosen == {"attention": inside, "new": added}[trains]
    assert result.trained == sum(
        p.numel() for name, p in result.model.named_parameters() if name in chosen
    )


def test_the_teacher_is_left_alone(teacher):
    before = weights(teacher.model)
    distill(dataclasses.replace(TINY, trains="all"), teacher, TinyData())
    assert not differing(before, weights(teacher.model))
    assert not any(layer.operator for layer in families.layers(teacher.model))


def test_a_student_without_parameters_to_train_is_refused(teacher):
    config = dataclasses.replace(TINY, operator="softmax", options={}, trains="new")
    with pytest.raises(ValueError, match="trains is 'new', but the student has no such parameters"):
        distill(config, teacher, TinyData())


def test_a_stage_may_have_no_steps(teacher):
    none = distill(dataclasses.replace(TINY, layerwise_steps=0, steps=0), teacher, TinyData())
    start = weights(convert(teacher.model, TINY))
    assert not differing(start, weights(none.model))
    assert none.history == []
    only = distill(dataclasses.replace(TINY, steps=0), teacher, TinyData())
    assert {row["stage"] for row in only.history} == {"layerwise"}
    assert differing(start, weights(only.model))


# What the models are shown
# ---------------------------------------------------------------------------------------------


def test_both_models_see_the_same_dropped_labels(teacher):
    config = dataclasses.replace(TINY, label_drop=0.5, batch=16)
    one = lesson_of(teacher, config)
    shown = {"teacher": [], "student": []}
    for name, model in (("teacher", one.teacher), ("student", one.student)):
        model.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: shown[name].append(kwargs["class_labels"].clone()),
            with_kwargs=True,
        )
    for step in range(4):
        terms_of(one, "end_to_end", step)
    labels = torch.stack(shown["teacher"])
    assert torch.equal(labels, torch.stack(shown["student"]))
    dropped = labels == NULL_CLASS
    assert 0.2 < dropped.float().mean() < 0.8
    assert not torch.equal(dropped[0], dropped[1])
    # In training mode DiT's blocks would each drop 10 % more.
    for model in (one.teacher, one.student):
        assert not any(module.training for module in model.modules())


def test_a_step_depends_on_seed_and_number_alone(teacher):
    first, again = (draw(TINY, teacher.diffusion, TinyData(), 7) for _ in range(2))
    assert all(
        torch.equal(getattr(first, name), getattr(again, name))
        for name in ("clean", "prompts", "eps", "t")
    )
    assert first.choice == again.choice
    for config, step in ((TINY, 8), (dataclasses.replace(TINY, seed=1), 7)):
        other = draw(config, teacher.diffusion, TinyData(), step)
        assert not torch.equal(first.eps, other.eps)
        assert first.choice != other.choice


def test_stages_never_share_a_batch(teacher, monkeypatch):
    steps = []
    monkeypatch.setattr(lesson, "draw", lambda *args: steps.append(args[-1]) or draw(*args))
    distill(TINY, teacher, TinyData())
    assert steps == list(range(9))


def test_processes_take_slices_of_one_batch(teacher):
    batch = lesson_of(teacher, TINY).batch(3)
    first, second = (lesson_of(teacher, TINY, Alone(index, 2)).batch(3) for index in range(2))
    for name in ("clean", "prompts", "dropped", "eps", "t"):
        joined = torch.cat([getattr(first, name), getattr(second, name)])
        assert torch.equal(getattr(batch, name), joined)


@pytest.mark.parametrize(
    "objective", ["protocol", "clear", "lit", {"features": 1, "feature_norm": "l1"}], ids=str
)
def test_losses_of_slices_average_to_the_loss_of_the_batch(teacher, objective):
    config = dataclasses.replace(TINY, objective=objective)
    for stage in ("layerwise", "end_to_end"):
        terms = terms_of(lesson_of(teacher, config), stage, 2)
        first, second = (
            terms_of(lesson_of(teacher, config, Alone(index, 2)), stage, 2) for index in range(2)
        )
        for name, value in terms.items():
            mean = (first[name].item() + second[name].item()) / 2
            assert mean == pytest.approx(value.item(), rel=1e-5)


def test_an_indivisible_batch_is_refused(teacher):
    with pytest.raises(ValueError, match="batch 4 does not divide among 3 processes"):
        distill(TINY, teacher, TinyData(), accelerator=Alone(0, 3))


# The stages
# ---------------------------------------------------------------------------------------------


def test_layerwise_feeds_every_layer_the_teachers_input(teacher):
    one = lesson_of(teacher, TINY)
    parameters.require(one.student, surgery.attention_parameters(one.student))
    loss = one.layerwise(0)["loss"]
    batch = one.batch(0)
    noisy = teacher.diffusion.noised(batch.clean, batch.eps, batch.t)
    with torch.no_grad(), families.capture(one.teacher) as seen:
        one.teacher(noisy, timestep=batch.t, **batch.conditioning)
    errors = []
    for layer, at in zip(families.layers(one.student), seen, strict=True):
        output = families.apply(layer, at["input"], at["grid"], at["noise"])
        errors.append((output - at["output"]).abs().mean().item())
    assert loss.item() == pytest.approx(sum(errors) / 2, rel=1e-6)
    # Layers learn apart: with the first layer's weights spoilt, the second's gradient is the same.
    second = families.layers(one.student)[1].attn.to_q.weight
    kept = second.grad.clone()
    one.student.zero_grad()
    with torch.no_grad():
        families.layers(one.student)[0].attn.to_v.weight.mul_(3)
    one.layerwise(0)
    assert torch.equal(second.grad, kept)


@pytest.mark.parametrize(
    ("operator", "options"),
    [("lit", {"kernel": 3}), ("linfusion", {}), ("mediator", {"count": 4})],
    ids=["lit", "linfusion", "mediator"],
)
def test_layerwise_stage_brings_the_layers_closer(teacher, operator, options):
    for layer in families.layers(teacher.model):
        layer.attn.to_q.weight.data.mul_(4)  # a teacher that attends to something
        layer.attn.to_v.weight.data.mul_(4)
    config = dataclasses.replace(
        TINY, operator=operator, options=options, layerwise_steps=60, steps=0, batch=8
    )
    config = dataclasses.replace(config, layerwise_learning_rate=1e-2)
    unseen = 1000
    before = terms_of(lesson_of(teacher, config), "layerwise", unseen)["loss"].item()
    student = distill(config, teacher, TinyData()).model
    trained = Lesson(
        config, teacher.model, student, teacher.diffusion, teacher.conditions, TinyData(), Alone()
    )
    after = terms_of(trained, "layerwise", unseen)["loss"].item()
    assert after < 0.8 * before


def test_end_to_end_brings_the_prediction_closer(teacher):
    # Without the task, because the pictures here are noise that the teacher did not draw.
    objective = {"preset": "protocol", "task": 0.0}
    config = dataclasses.replace(
        TINY, layerwise_steps=0, steps=60, log_every=10, batch=8, learning_rate=3e-3
    )
    config = dataclasses.replace(config, objective=objective)
    nn.init.normal_(teacher.model.proj_out_2.weight, std=0.3)
    first, *_, last = distill(config, teacher, TinyData()).history
    assert last["noise"] < 0.7 * first["noise"]


@pytest.fixture(scope="module")
def nano():
    """Return the committed teacher and sixteen latents that it draws in few steps."""
    loaded = teachers.load(project.ROOT / "data" / "teachers" / "dit-nano")
    labels = torch.arange(0, 48, 3)
    return loaded, Drawn(sampling.draw_latents(loaded, labels, steps=6, seed=5), labels)


class Drawn(TinyData):
    def __init__(self, latents, labels):
        self.latents, self.labels = latents, labels


# softmax is the teacher itself: it has nothing to learn
CONTROLS = ("softmax", "mixed")  # which lose nothing untrained: softmax is what mixed starts from
# What 16 steps bring less near; SLA's projection starts at zero.
SLOW = {"delta": 0.9, "momentum": 0.9, "sla": 0.97}


def distilled(nano, operator):
    """Return the result of 16 steps by the protocol, with the error before and after."""
    options = {"clear": {"radius": 3}, "mediator": {"count": 16}}.get(operator, {})
    config = DistillConfig(operator, options, layerwise_steps=8, steps=8, batch=4, warmup=2)

    def error(student):
        errors = prediction_error(
            nano[0], student, nano[1].batch(slice(None)), (0.3, 0.7), count=8, seed=9
        )
        return errors["mean"]["value"]

    return distill(config, *nano, evaluate=error)


@pytest.mark.parametrize(
    "operator", [name for name in OPERATORS if name not in (*CONTROLS, "pisa")]
)
def test_the_protocol_brings_every_method_closer_to_a_real_teacher(nano, operator):
    result = distilled(nano, operator)
    assert result.after < SLOW.get(operator, 0.75) * result.before


def test_so_few_steps_do_not_ruin_what_begins_near(nano):
    """PISA begins with 2 %, which 16 steps at the protocol's rate disturb more than they mend."""
    result = distilled(nano, "pisa")
    assert result.before < 0.03
    assert result.after < 1.5 * result.before


def test_only_replaced_layers_are_regressed(teacher):
    one = lesson_of(teacher, dataclasses.replace(TINY, layers=[1]))
    parameters.require(one.student, select(one.student, "all"))
    one.layerwise(0)
    first, second = families.layers(one.student)
    assert first.attn.to_q.weight.grad is None
    assert second.attn.to_q.weight.grad.abs().max() > 0


# A schedule
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "counts"),
    [
        (
            [{"until": 0.6, "count": 1}, {"until": 0.3, "count": 4}, {"until": 0.0, "count": 9}],
            {1, 4, 9},
        ),
        # below the last entry, the operator's own options hold
        ([{"until": 0.6, "count": 1}, {"until": 0.3, "count": 4}], {1, 4, 16}),
    ],
    ids=["to the end", "own count at the end"],
)
def test_every_entry_of_a_schedule_is_trained(teacher, monkeypatch, schedule, counts):
    config = dataclasses.replace(
        TINY, operator="mediator", options={"count": 16, "schedule": schedule}
    )
    one = lesson_of(teacher, config)
    used: list[set] = []
    operator = type(families.layers(one.student)[0].operator)
    core = operator.core

    def watched(self, *args):
        used[-1].add(
            args[-1].count
            if isinstance(args[-1].count, int)
            else args[-1].count[0] * args[-1].count[1]
        )
        return core(self, *args)

    monkeypatch.setattr(operator, "core", watched)
    for step in range(24):
        used.append(set())
        terms_of(one, "layerwise" if step % 2 else "end_to_end", step)
    assert all(len(counts_used) == 1 for counts_used in used), (
        "one count for the batch and for all layers"
    )
    assert set.union(*used) == counts
    assert all(layer.operator.pinned is None for layer in families.layers(one.student))


# The loop
# ---------------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_and_falls():
    settings = Settings(warmup=4)
    rates = [training.rate(step, 20, 1.0, settings) for step in range(20)]
    assert rates[:2] == sorted(rates[:2])
    assert rates[0] == pytest.approx(0.25)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.01
    constant = dataclasses.replace(settings, schedule="constant")
    assert training.rate(19, 20, 1.0, constant) == 1.0


def test_the_average_follows_the_parameters_and_is_kept():
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    trained = training.Trained([("p", parameter)])
    expected = torch.zeros(3, dtype=torch.float64)
    for step in range(30):
        with torch.no_grad():
            parameter.add_(1.0)
        trained.update_average(step, 0.6)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * parameter.detach()
    trained.use_average()
    torch.testing.assert_close(parameter.detach(), expected)
    assert 26 < parameter[0] < 30


def test_muon_takes_the_matrices_inside_the_blocks(teacher):
    student = convert(teacher.model, TINY)
    selected = select(student, "all")
    made = OPTIMIZERS["muon"](selected, parameters.muon_matrices(student), 0.0)
    names = {id(parameter): name for name, parameter in selected}
    muon = {names[id(p)] for group in made["muon"].param_groups for p in group["params"]}
    adamw = {names[id(p)] for group in made["adamw"].param_groups for p in group["params"]}
    assert muon | adamw == {name for name, _ in selected}
    assert not muon & adamw
    assert "transformer_blocks.0.attn1.to_q.weight" in muon
    assert "transformer_blocks.1.ff.net.2.weight" in muon
    assert not any("emb" in name or "proj_out" in name or name.endswith("bias") for name in muon)


def test_clipping_bounds_the_gradient():
    parameter = nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), 3.0)
    assert training.average_gradients([parameter], 1.5, Alone()) == pytest.approx(6.0)
    assert parameter.grad.norm().item() == pytest.approx(1.5, rel=1e-4)
    parameter.grad = torch.full((4,), 3.0)
    training.average_gradients([parameter], None, Alone())
    assert parameter.grad.norm().item() == 6.0


def test_history_has_a_row_every_few_steps(teacher, capsys):
    result = distill(TINY, teacher, TinyData())
    assert [(row["stage"], row["step"]) for row in result.history] == [
        ("layerwise", 2),
        ("layerwise", 4),
        ("end-to-end", 2),
        ("end-to-end", 4),
        ("end-to-end", 5),
    ]
    assert {"loss", "noise", "variance", "gradient", "learning_rate", "seconds"} <= result.history[
        -1
    ].keys()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith("end-to-end 5/5 task")
    assert "samples/s, 0 s left" in lines[-1]
    assert result.seconds > 0
    assert result.samples_per_second == pytest.approx(9 * 4 / result.seconds, rel=0.01)


def test_a_student_is_evaluated_before_and_after_training(teacher):
    start = weights(convert(teacher.model, TINY))
    result = distill(TINY, teacher, TinyData(), evaluate=weights)
    assert not differing(result.before, start)
    assert not differing(result.after, weights(result.model))
    assert differing(result.before, result.after)


def test_the_student_is_saved(teacher, tmp_path):
    result = distill(TINY, teacher, TinyData(), folder=tmp_path / "student")
    again = surgery.load(tiny_teacher().model, tmp_path / "student")
    assert result.folder == str(tmp_path / "student")
    assert not differing(weights(result.model), weights(again))


@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_half_precision_keeps_float32_weights(teacher, dtype):
    result = distill(dataclasses.replace(TINY, dtype=dtype), teacher, TinyData())
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}
    assert all(torch.isfinite(p).all() for p in result.model.parameters())


def test_compiled_blocks_compute_the_same_and_are_uncompiled_at_the_end(teacher, monkeypatch):
    compile_block, seen = nn.Module.compile, []

    def eager(block):  # the graph without the code generator: a test machine needs no compiler
        seen.append(block)
        compile_block(block, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", eager)
    config = dataclasses.replace(TINY, layerwise_steps=0, steps=2)
    plain = distill(config, teacher, TinyData())
    assert not seen
    compiled = distill(dataclasses.replace(config, compile=True), teacher, TinyData())
    assert len(seen) == 4, "two blocks of the teacher, two of the student"
    assert all(block._compiled_call_impl is None for block in seen)
    assert compiled.history[-1]["loss"] == pytest.approx(plain.history[-1]["loss"], rel=1e-4)


def test_a_config_takes_every_training_setting_by_name():
    student = SimpleNamespace(
        operator="clear", options={"radius": 3}, layers=(0, 1), initialise="all", name="small"
    )
    settings = Settings(steps=7, layerwise_steps=3, objective="lit", trains="new")
    config = of_params(student, settings, seed=1)
    assert (config.operator, config.options, config.layers, config.seed) == (
        "clear",
        {"radius": 3},
        (0, 1),
        1,
    )
    assert (config.steps, config.layerwise_steps, config.objective, config.trains) == (
        7,
        3,
        "lit",
        "new",
    )
    for field in dataclasses.fields(Settings):
        assert getattr(config, field.name) == getattr(settings, field.name)


def test_the_run_file_holds_every_training_setting(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(project, "run_result", lambda name, **_: tmp_path / "run.json")
    settings = params.load("tiny").distill
    students._write_run("tiny", [distill(TINY, teacher, TinyData())], settings)
    written = project.read_json(tmp_path / "run.json")["settings"]
    assert written.keys() == {field.name for field in dataclasses.fields(settings)}
    assert written["learning_rate"] == settings.learning_rate


# Trouble
# ---------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
    teacher, tmp_path, monkeypatch
):
    config = dataclasses.replace(TINY, scratch=str(tmp_path))
    path = tmp_path / "end-to-end.safetensors"
    original = Lesson.end_to_end

    def broken(self, step):
        terms = original(self, step)
        return {name: value * float("nan") if step == 3 else value for name, value in terms.items()}

    monkeypatch.setattr(Lesson, "end_to_end", broken)
    with pytest.raises(
        training.NotFinite, match=r"step 4 of 5 of stage end-to-end: .*loss is nan.*holds step 2"
    ):
        distill(config, teacher, TinyData())
    assert checkpoint.load(path)["step"] == 2
    monkeypatch.setattr(Lesson, "end_to_end", original)
    resumed = distill(config, teacher, TinyData())
    undisturbed = distill(dataclasses.replace(config, scratch=None), teacher, TinyData())
    assert not differing(weights(resumed.model), weights(undisturbed.model))


def test_a_full_disk_loses_nothing(teacher, tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, scratch=str(tmp_path), steps=0)
    written = []
    save_file = safetensors.torch.save_file

    def full(tensors, path, **more):
        written.append(path)
        if len(written) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save_file(tensors, path, **more)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        distill(config, teacher, TinyData())
    assert checkpoint.load(tmp_path / "layerwise.safetensors")["step"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["layerwise.safetensors"]


def test_a_checkpoint_of_another_recipe_is_refused(teacher, tmp_path):
    config = dataclasses.replace(TINY, scratch=str(tmp_path))
    distill(config, teacher, TinyData())
    for other in (
        dataclasses.replace(config, learning_rate=2e-3),
        dataclasses.replace(config, options={"kernel": 5}),
    ):
        with pytest.raises(ValueError, match="made by another recipe"):
            distill(other, teacher, TinyData())
    with pytest.raises(ValueError, match="made by another recipe"):
        distill(config, tiny_teacher(seed=1), TinyData())
    with pytest.raises(ValueError, match="made by another recipe"):
        distill(config, teacher, TinyData(15))
    distill(dataclasses.replace(config, log_every=1), teacher, TinyData())  # changes no result


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "clera"}, "did you mean 'clear'"),
        ({"trains": "some"}, "trains is 'some'; it is one of attention, new, all"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"batch": 0}, "batch is 0"),
        ({"steps": -1}, "steps is -1; it must be at least 0"),
        ({"ema": 1.0}, "ema is 1.0; it must be at least 0 and at most 0.999999"),
        ({"optimizer": "moun"}, "did you mean 'muon'"),
        ({"warmup": 1.5}, "warmup is 1.5 .*a whole number"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize("steps", [1, 3])
def test_weights_that_are_not_finite_after_an_update_are_never_kept(teacher, tmp_path, steps):
    """The gradients are finite until the learning rate has made the weights infinite."""
    config = dataclasses.replace(
        TINY,
        layerwise_steps=0,
        steps=steps,
        learning_rate=1e38,
        clip=None,
        warmup=0,
        optimizer="adamw",
        weight_decay=10.0,
        scratch=str(tmp_path / "scratch"),
    )
    folder = tmp_path / "student"
    with pytest.raises(NotFinite, match="No checkpoint was written yet|is good"):
        distill(config, teacher, TinyData(), folder=folder)
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("place", ["a file", "below a file", "no room"])
def test_a_place_that_takes_no_student_is_refused_before_the_first_step(
    teacher, tmp_path, monkeypatch, place
):
    (tmp_path / "file").write_text("mine")
    folder = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "deep"}.get(
        place, tmp_path / "student"
    )
    if place == "no room":
        monkeypatch.setattr(files.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(Lesson, "layerwise", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(OSError, match="the student could not be saved in .*name another folder"):
        distill(TINY, teacher, TinyData(), folder=folder)
    assert (tmp_path / "file").read_text() == "mine"


# Processes
# ---------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_distill as tests
from linattn import files
from linattn.distillation.lesson import Lesson
torch = tests.torch
torch.set_num_threads({threads})
def dies(self, step, original=getattr(Lesson, {stage!r})):
    if step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, step)
if {step} < 0:  # while a checkpoint is written
    files.os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
else:
    setattr(Lesson, {stage!r}, dies)
config = tests.dataclasses.replace(tests.TINY, scratch={scratch!r})
tests.distill(config, tests.tiny_teacher(), tests.TinyData())
"""


def python(*words: str) -> subprocess.CompletedProcess:
    paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=180
    )


def test_a_run_killed_twice_ends_like_an_undisturbed_one(teacher, tmp_path):
    for stage, step in (("layerwise", 3), ("end_to_end", 3)):
        code = KILLED.format(
            tests=str(HERE),
            threads=torch.get_num_threads(),
            stage=stage,
            step=step,
            scratch=str(tmp_path),
        )
        done = python("-c", code)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert checkpoint.load(tmp_path / "end-to-end.safetensors")["step"] == 2
    resumed = distill(dataclasses.replace(TINY, scratch=str(tmp_path)), teacher, TinyData())
    undisturbed = distill(TINY, teacher, TinyData())
    assert not differing(weights(resumed.model), weights(undisturbed.model))
    for ours, theirs in zip(resumed.history, undisturbed.history, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


def test_a_run_killed_while_writing_a_checkpoint_goes_on(teacher, tmp_path):
    distill(dataclasses.replace(TINY, scratch=str(tmp_path / "a"), steps=0), teacher, TinyData())
    code = KILLED.format(
        tests=str(HERE),
        threads=torch.get_num_threads(),
        stage="layerwise",
        step=-1,
        scratch=str(tmp_path / "b"),
    )
    done = python("-c", code)
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = distill(dataclasses.replace(TINY, scratch=str(tmp_path / "b")), teacher, TinyData())
    undisturbed = distill(TINY, teacher, TinyData())
    assert not differing(weights(resumed.model), weights(undisturbed.model))


ADAMW = dataclasses.replace(TINY, optimizer="adamw")  # Muon magnifies float noise of gradients
TWO = """
import os, sys
sys.path.insert(0, {tests!r})
import test_distill as tests
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
gradients = tests.first_gradients(accelerator)
result = tests.distill(
    tests.ADAMW, tests.tiny_teacher(), tests.TinyData(), folder={folder!r}, accelerator=accelerator
)
note = dict(processes=accelerator.num_processes, trained=result.trained, gradients=gradients)
note["losses"] = [row["loss"] for row in result.history]
(tests.Path({folder!r}).parent / f"rank-{{accelerator.process_index}}").write_text(repr(note))
"""


def first_gradients(accelerator=None) -> dict[str, list[float]]:
    """The gradients of the first step, averaged over the processes."""
    accelerator = accelerator or Alone(0, 1)
    one = lesson_of(tiny_teacher(), ADAMW, accelerator)
    chosen = select(one.student, "attention")
    parameters.require(one.student, chosen)
    one.end_to_end(0)
    training.average_gradients([weight for _, weight in chosen], None, accelerator)
    return {name: weight.grad.flatten()[:5].tolist() for name, weight in chosen}


def test_two_processes_do_what_one_does(teacher, tmp_path):
    """torchrun starts them; each has half of every batch, and one of them writes."""
    script, folder = tmp_path / "two.py", tmp_path / "student"
    script.write_text(TWO.format(tests=str(HERE), folder=str(folder)))
    options = ("--standalone", "--nproc_per_node", "2")
    done = python("-m", "torch.distributed.run", *options, str(script))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("end-to-end 5/5") == 1, "only the main process prints"
    ranks = [eval((tmp_path / f"rank-{rank}").read_text()) for rank in (0, 1)]
    assert [rank["processes"] for rank in ranks] == [2, 2]
    assert ranks[0] == ranks[1]
    for name, expected in first_gradients().items():
        assert ranks[0]["gradients"][name] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    alone = distill(ADAMW, teacher, TinyData())
    assert ranks[0]["losses"] == pytest.approx([row["loss"] for row in alone.history], rel=1e-4)
    two = weights(surgery.load(tiny_teacher().model, folder))
    one, start = weights(alone.model), weights(convert(tiny_teacher().model, ADAMW))
    moved = sum((one[name] - start[name]).double().square().sum() for name in one) ** 0.5
    apart = sum((one[name] - two[name]).double().square().sum() for name in one) ** 0.5
    assert apart < 1e-3 * moved


@pytest.mark.parametrize(
    "words", [["--student", "claer"], ["--student", "../x"], ["--student", "clear", "--profile=no"]]
)
def test_a_misspelt_name_of_the_command_is_one_line(capsys, words):
    assert students.main(words) == 1
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith("linattn: unknown ")


# What a caller passes
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linattn.json", "linattn.safetensors", "link"])
def test_a_place_that_something_else_takes_is_refused_before_the_first_step(
    teacher, tmp_path, monkeypatch, name
):
    folder = tmp_path / "student"
    if name == "link":
        folder.symlink_to(tmp_path / "nowhere")
    else:
        (folder / name).mkdir(parents=True)
    monkeypatch.setattr(Lesson, "layerwise", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(OSError, match="is a folder|is a link to nothing"):
        distill(TINY, teacher, TinyData(), folder=folder)


@pytest.mark.parametrize("name", ["/proc/x", "file"])
def test_a_scratch_that_takes_no_checkpoint_is_refused_before_the_first_step(
    teacher, tmp_path, monkeypatch, name
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(Lesson, "layerwise", lambda *_: pytest.fail("a step was taken"))
    config = dataclasses.replace(TINY, scratch=str(tmp_path / name))
    with pytest.raises(OSError, match="no checkpoint can be written .*name another scratch"):
        distill(config, teacher, TinyData())


def test_a_student_is_saved_before_its_last_evaluation_may_fail(teacher, tmp_path):
    calls = []

    def evaluate(model):
        calls.append(model)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        distill(TINY, teacher, TinyData(), folder=tmp_path, evaluate=evaluate)
    assert surgery.load(tiny_teacher().model, tmp_path) is not None


ARGUMENTS = {
    "config": ("config", {"operator": "lit"}, "must be a DistillConfig"),
    "a pipeline": ("teacher", object(), "must be a Teacher"),
    "no samples": ("samples", None, "pass linattn.samples.Samples"),
    "a path of samples": ("samples", "data/samples", "pass linattn.samples.Samples"),
    "no pictures": ("samples", TinyData(0), "batch is 4 and there are 0 samples"),
    "few pictures": ("samples", TinyData(3), "batch is 4 and there are 3 samples"),
    "evaluate": ("evaluate", 5, "evaluate is 5; it must be a function"),
    "accelerator": ("accelerator", "cpu", "accelerator is 'cpu'"),
    "an empty folder": ("folder", "", "folder is ''; it must be a path"),
    "a number as a folder": ("folder", 5, "folder is 5; it must be a path"),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_an_argument_that_is_something_else_is_one_sentence(teacher, monkeypatch, case):
    name, value, message = ARGUMENTS[case]
    monkeypatch.setattr(Lesson, "layerwise", lambda *_: pytest.fail("a step was taken"))
    arguments = {"config": TINY, "teacher": teacher, "samples": TinyData(), name: value}
    with pytest.raises(ValueError, match=message):
        distill(**arguments)


def test_latents_of_another_teacher_are_named(teacher):
    data = TinyData()
    data.latents = data.latents[:, :3]
    with pytest.raises(ValueError, match=r"latents are \(1, 3, 6, 6\), and the teacher draws"):
        distill(TINY, teacher, data)


@pytest.mark.parametrize("changes", [{"learning_rate": 1e300}, {"learning_rate": 10**400}])
def test_a_rate_beyond_every_float_is_refused(changes):
    with pytest.raises(ValueError, match="learning_rate .*must be"):
        dataclasses.replace(TINY, **changes)


def test_an_options_name_is_a_text():
    with pytest.raises(ValueError, match="a key of options is 1; it must be a text"):
        dataclasses.replace(TINY, options={1: 2})
