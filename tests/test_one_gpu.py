"""What makes a training fit one GPU changes where numbers lie, and results by rounding alone."""

import dataclasses

import kinds
import pytest
import tiny
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from linattn import checkpoint, families, surgery
from linattn.distillation import encoding, objectives, training
from linattn.distillation.config import DistillConfig
from linattn.distillation.distill import convert, distill, frozen, recomputing
from linattn.distillation.encoding import Kept
from linattn.distillation.lesson import Lesson
from linattn.distillation.parameters import require, select
from linattn.teachers import Teacher

CONFIG = DistillConfig(
    "linfusion", layerwise_steps=2, steps=3, batch=4, label_drop=0.4, log_every=1, warmup=0
)
CLOSE = {"rtol": 2e-4, "atol": 2e-6}
CPU = torch.device("cpu")


class Pictures:
    """Eight random pictures with labels, or with three captions in turn."""

    def __init__(self, kind):
        dice = torch.Generator().manual_seed(3)
        side = 16 if kind in kinds.JOINT else 8
        channels = 4
        self.latents = torch.randn(8, channels, side, side, generator=dice)
        self.labels = torch.arange(8) % 4
        self.captions = [f"a red disc {number % 3}" for number in range(8)]
        self.labelled = kind == "dit"

    def __len__(self):
        return 8

    def batch(self, indices):
        prompts = [self.captions[index] for index in torch.as_tensor(indices).tolist()]
        return self.latents[indices], self.labels[indices] if self.labelled else prompts


each_kind = pytest.mark.parametrize("kind", kinds.KINDS)


def teacher_of(kind):
    if kind == "dit":
        return Teacher(tiny.pipeline(), {"guidance": 1.0}, kind)
    card = {"guidance": 1.0} | ({} if kind in ("unet", "sdxl") else {"text_length": 16})
    return Teacher(kinds.pipeline(kind), card, kind)


class Alone:
    num_processes, process_index, is_main_process, device = 1, 0, True, CPU

    def reduce(self, tensor, reduction):
        return tensor


def lesson_of(teacher, config, kept=None):
    original = frozen(teacher.model)
    student = convert(original, config)
    require(student, select(student, config.trains))
    data = (teacher.diffusion, teacher.conditions, Pictures(teacher.folder), Alone(), kept)
    return Lesson(config, original, student, *data)


def learned(lesson, stage, step=1):
    """Return the terms of a step, and all gradients by name."""
    terms = getattr(lesson, stage)(step)
    of_student = lesson.student.named_parameters()
    return terms, {name: value.grad for name, value in of_student if value.grad is not None}


def the_same(first, second):
    (terms, gradients), (other_terms, other_gradients) = first, second
    assert terms.keys() == other_terms.keys()
    assert gradients.keys() == other_gradients.keys()
    assert gradients
    for name, value in terms.items():
        torch.testing.assert_close(other_terms[name], value, **CLOSE)
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for name, gradient in gradients.items():
        apart = (other_gradients[name] - gradient).abs().max().item()
        assert apart < 1e-4 * largest, name


def moved(result, other):
    """Return how far two students are apart, of the way that the first has moved."""
    ours, theirs = result.model.state_dict(), other.model.state_dict()
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


# Micro-batches
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["layerwise", "end_to_end"])
@pytest.mark.parametrize("objective", ["protocol", "clear", "lit"])
@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_add_up_to_the_batch(stage, objective, micro):
    config = dataclasses.replace(CONFIG, objective=objective)
    if objective == "lit":
        config = dataclasses.replace(config, objective={"preset": "lit", "task": 0.0})
    cut = dataclasses.replace(config, micro=micro)
    the_same(
        learned(lesson_of(teacher_of("dit"), config), stage),
        learned(lesson_of(teacher_of("dit"), cut), stage),
    )


@each_kind
def test_a_model_never_sees_more_than_a_micro_batch(kind):
    lesson = lesson_of(teacher_of(kind), dataclasses.replace(CONFIG, micro=3))
    counts = []
    for model in (lesson.teacher, lesson.student):
        model.register_forward_pre_hook(
            lambda _, args, kwargs: counts.append(len(args[0])), with_kwargs=True
        )
    lesson.end_to_end(0)
    # each model sees every picture once; Qwen-Image, texts of one length at a time
    assert sum(counts) == 2 * 4
    assert max(counts) <= 3


# Checkpointing
# ---------------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("objective", ["protocol", {"noise": 1.0}], ids=str)
def test_a_block_computed_again_gives_the_same_gradients(kind, objective):
    config = dataclasses.replace(CONFIG, objective=objective)
    plain = lesson_of(teacher_of(kind), config)
    again = lesson_of(teacher_of(kind), config)
    calls = {}
    for layer in families.layers(again.student):
        layer.attn.register_forward_hook(
            lambda *_, index=layer.index: calls.update({index: calls.get(index, 0) + 1})
        )
    wanted = learned(plain, "end_to_end")
    with recomputing(True, again.student):
        the_same(wanted, learned(again, "end_to_end"))
    assert not again.student.is_gradient_checkpointing
    forwards = len(list(again.shares(1 + config.layerwise_steps)))
    assert set(calls.values()) == {2 * forwards}, "every layer is computed once more"


def test_a_schedule_stays_pinned_while_blocks_are_computed_again():
    schedule = [{"until": 0.6, "count": 1}, {"until": 0.0, "count": 4}]
    options = {"count": 4, "schedule": schedule}
    config = dataclasses.replace(CONFIG, operator="mediator", options=options)
    plain, again = (lesson_of(teacher_of("dit"), config) for _ in range(2))
    for step in range(4):  # both entries are drawn in them
        wanted = learned(plain, "end_to_end", step)
        with recomputing(True, again.student):
            the_same(wanted, learned(again, "end_to_end", step))


def held(lesson):
    """Return the bytes that the forward of a step keeps for its backward, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in lesson.student.parameters()}
    sizes = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        lesson.end_to_end(0)
    return sum(sizes.values())


def test_checkpointing_holds_less():
    config = dataclasses.replace(CONFIG, objective={"noise": 1.0})
    plain = held(lesson_of(teacher_of("pixart"), config))
    lesson = lesson_of(teacher_of("pixart"), config)
    student = lesson.student
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with recomputing(True, student), saved_tensors_hooks(pack, lambda tensor: tensor):
        batch = lesson.batch(0)
        noisy = lesson.diffusion.noised(batch.clean, batch.eps, batch.t)
        lesson.run(student, noisy, batch)
    of_forward = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    weights = {p.untyped_storage().data_ptr() for p in student.parameters()}
    again = sum(size for place, size in of_forward.items() if place not in weights)
    assert again < plain / 2


# bfloat16
# ---------------------------------------------------------------------------------------------


def in_bfloat16(kind="dit"):
    teacher = teacher_of(kind)
    teacher.pipe.to(torch.bfloat16)
    return teacher


def test_a_bfloat16_weight_learns_what_is_smaller_than_its_last_bit():
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    trained = training.Trained([("weight", weight)])
    (master,) = trained.masters
    with trained.receiving():
        for _ in range(8):
            weight.float().sum().backward()
            weight.float().sum().backward()  # of the next micro-batch
            assert weight.grad is None
            assert master.grad.eq(2).all()
            with torch.no_grad():
                master.sub_(master.grad * 2**-11)  # a quarter of the weight's last bit
            master.grad = None
            trained.update_copies()
    assert master.eq(1 - 2**-7).all()
    assert weight.eq(1 - 2**-7).all()
    weight.float().sum().backward()
    assert weight.grad is not None, "the hooks are gone"


def test_a_float32_parameter_is_its_own_master():
    weight = nn.Parameter(torch.ones(4))
    trained = training.Trained([("weight", weight)])
    assert trained.masters[0] is weight
    assert not trained.copies


@each_kind
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_bfloat16_teacher_trains_a_bfloat16_student(kind, optimizer, tmp_path):
    config = dataclasses.replace(CONFIG, optimizer=optimizer, micro=3, checkpointing=True)
    result = distill(config, in_bfloat16(kind), Pictures(kind), folder=tmp_path / "student")
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}
    losses = [row["loss"] for row in result.history]
    wide = distill(dataclasses.replace(config, micro=None), teacher_of(kind), Pictures(kind))
    for loss, row in zip(losses, wide.history, strict=True):
        assert loss == pytest.approx(row["loss"], rel=0.05)
    again = surgery.load(in_bfloat16(kind).model, tmp_path / "student")
    ours, theirs = result.model.state_dict(), again.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_bfloat16_weight_ends_at_the_average_of_its_master():
    weight = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    trained = training.Trained([("weight", weight)])
    for step in range(30):
        with torch.no_grad():
            trained.masters[0].add_(1)
        trained.update_copies()
        trained.update_average(step, 0.6)
    assert torch.equal(weight, torch.full_like(weight, 30))
    trained.use_average()
    assert torch.equal(weight, trained.average[0].bfloat16())
    assert (weight < 30).all()


def test_a_bfloat16_training_goes_on_from_its_masters(tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, checkpoint_every=1, scratch=str(tmp_path))
    original = Lesson.end_to_end

    def dies(self, step):
        if step == 2:
            raise KeyboardInterrupt
        return original(self, step)

    monkeypatch.setattr(Lesson, "end_to_end", dies)
    with pytest.raises(KeyboardInterrupt):
        distill(config, in_bfloat16(), Pictures("dit"))
    state = checkpoint.load(tmp_path / "end-to-end.safetensors")["parts"]["trained"]
    assert {value.dtype for value in state["values"].values()} == {torch.float32}
    monkeypatch.setattr(Lesson, "end_to_end", original)
    resumed = distill(config, in_bfloat16(), Pictures("dit"))
    undisturbed = distill(dataclasses.replace(config, scratch=None), in_bfloat16(), Pictures("dit"))
    assert moved(resumed, undisturbed) == 0


def test_a_float16_teacher_is_refused_before_anything_is_computed():
    teacher = teacher_of("dit")
    teacher.pipe.to(torch.float16)
    with pytest.raises(ValueError, match=r"weights are torch.float16.*bfloat16 or float32"):
        distill(CONFIG, teacher, Pictures("dit"))


@pytest.mark.parametrize("norm", objectives.NORMS)
def test_no_float32_copy_of_a_bfloat16_feature_waits_for_the_backward(norm):
    dice = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 9, 8, generator=dice).bfloat16()
    student.requires_grad_()
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = objectives.layerwise([student], [teacher], norm).mean()
    assert all(tensor.numel() < 9 for tensor in kept if tensor.dtype == torch.float32)
    loss.backward()
    wide = student.detach().float().requires_grad_()
    objectives.layerwise([wide], [teacher.float()], norm).mean().backward()
    torch.testing.assert_close(student.grad, wide.grad.bfloat16())


# Encoders
# ---------------------------------------------------------------------------------------------


@each_kind
def test_a_training_whose_encoders_leave_sees_the_same_text(kind):
    config = dataclasses.replace(CONFIG, optimizer="adamw")
    plain = distill(config, teacher_of(kind), Pictures(kind))
    config = dataclasses.replace(config, encoders="leave", micro=3)
    left = distill(config, teacher_of(kind), Pictures(kind))
    for ours, theirs in zip(left.history, plain.history, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


def test_every_caption_is_encoded_once(monkeypatch):
    teacher = teacher_of("flux")
    read, encode = [], teacher.pipe.encode_prompt
    monkeypatch.setattr(
        teacher.pipe,
        "encode_prompt",
        lambda texts, *a, **k: read.extend(texts) or encode(texts, *a, **k),
    )
    config = dataclasses.replace(CONFIG, encoders="leave", steps=12, micro=1)
    distill(config, teacher, Pictures("flux"))
    assert sorted(read) == ["", "a red disc 0", "a red disc 1", "a red disc 2"]


def test_captions_beyond_the_bytes_are_forgotten_and_read_again():
    kept = Kept(teacher_of("unet").conditions, most=0)
    kept.prepare(["one", "two", "one"])
    assert set(kept.encoded) == {"one", "two"}, "a step's own are kept whatever they take"
    kept.prepare(["one", "three"])
    assert set(kept.encoded) == {"one", "three"}, "the one that was read long ago is needed again"
    kept.prepare(["four"])
    assert set(kept.encoded) == {"four"}


def test_encoders_visit_the_device_and_leave_without_a_copy(monkeypatch):
    kept = Kept(teacher_of("flux").conditions)
    homes = {tensor.data_ptr() for tensor in encoding.tensors_of(kept.modules)}
    # Another memory of the same device stands in for a GPU's.
    monkeypatch.setattr(encoding, "brought", lambda tensor, device: tensor.clone())
    with kept.present():
        visiting = {tensor.data_ptr() for tensor in encoding.tensors_of(kept.modules)}
        assert not visiting & homes
    assert {tensor.data_ptr() for tensor in encoding.tensors_of(kept.modules)} == homes
    assert len(kept.modules) == 3, "two encoders and the VAE"


def test_settings_of_memory_change_no_recipe():
    teacher, data = teacher_of("dit"), Pictures("dit")
    config = dataclasses.replace(CONFIG, micro=2, checkpointing=True, encoders="leave")
    assert config.recipe(teacher, data) == CONFIG.recipe(teacher, data)


@pytest.mark.parametrize("index", [0, -1])
def test_another_first_or_last_picture_is_another_recipe(index):
    """The two stand for the samples: a folder that was drawn anew differs in both."""
    teacher, data, other = teacher_of("dit"), Pictures("dit"), Pictures("dit")
    other.latents[index] += 1
    recipes = (CONFIG.recipe(teacher, samples)["samples"] for samples in (data, other))
    assert len(set(map(tuple, recipes))) == 2
