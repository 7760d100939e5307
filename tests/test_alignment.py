"""REPA's two sides: which hidden states are read, and what of the clean picture they meet."""

import dataclasses

import pytest
import test_distill
import tiny
import torch
from test_distill import TINY, TinyData, lesson_of, tiny_teacher
from torch.nn import functional as F

from linattn import families, teachers
from linattn.distillation import alignment
from linattn.distillation.distill import convert, distill, frozen
from linattn.eye import Eye

CPU = torch.device("cpu")
REPA = dataclasses.replace(TINY, objective={"repa": 1.0}, layerwise_steps=0)


@pytest.fixture
def teacher():
    return tiny_teacher()


def aligned_lesson(teacher, config=REPA):
    one = lesson_of(teacher, config)
    made = alignment.create(config, one.student, teacher.conditions.pipe, CPU)
    return dataclasses.replace(one, alignment=made)


def test_the_teachers_states_of_the_clean_picture_are_the_target(teacher):
    one = aligned_lesson(teacher)
    batch = one.batch(0)
    read = {}
    for name, model in (("teacher", one.teacher), ("student", one.student)):
        block = model.transformer_blocks[1]
        block.register_forward_pre_hook(lambda _, args, name=name: read.update({name: args[0]}))
    with torch.no_grad(), one.comparing(batch) as comparison:
        hidden, clean = comparison.aligned
    assert torch.equal(hidden, read["student"])
    start = torch.zeros_like(batch.t)
    noisy = teacher.diffusion.noised(batch.clean, batch.eps, start)
    with torch.no_grad():
        one.teacher(noisy, timestep=start, **batch.conditioning)
    assert torch.equal(clean, read["teacher"])


def test_repa_reaches_the_layers_before_the_block_and_no_later_one(teacher):
    one = aligned_lesson(teacher)
    first, second = (layer.attn for layer in families.layers(one.student))
    one.student.requires_grad_(True)
    one.end_to_end(0)
    assert first.to_v.weight.grad.abs().sum() > 0
    assert second.to_v.weight.grad is None


@pytest.fixture(scope="module")
def piped():
    pipe = tiny.pipeline(side=6)
    return teachers.Teacher(pipe, {"labels": list(tiny.LABELS)}, "")


class Labelled(TinyData):
    """Sixteen latents with the labels of the tiny pipeline."""

    def batch(self, indices):
        latents, labels = super().batch(indices)
        return latents, labels % len(tiny.LABELS)


def test_the_eyes_target_is_its_patches_of_the_decoded_picture(piped):
    config = dataclasses.replace(REPA, objective="repa")
    student = convert(frozen(piped.model), config)
    made = alignment.create(config, student, piped.pipe, CPU)
    clean, _ = Labelled().batch(torch.arange(2))
    patches = made.eye.patches(piped.decode(clean))
    assert patches.shape == (2, Eye.patch_channels, 8, 8)
    by_hand = F.interpolate(patches, (6, 6), mode="bilinear").permute(0, 2, 3, 1).flatten(1, 2)
    assert torch.equal(made.seen(clean, 36), by_hand)
    assert made.project(torch.randn(2, 36, 32)).shape == by_hand.shape


def test_a_projector_learns_beside_the_student_and_is_not_saved(piped, tmp_path):
    config = dataclasses.replace(REPA, objective="repa", steps=2, scratch=str(tmp_path / "scratch"))
    result = distill(config, piped, Labelled(), folder=tmp_path / "student")
    assert {"task", "repa"} <= result.history[-1].keys()
    kept = test_distill.checkpoint.load(tmp_path / "scratch" / "end-to-end.safetensors")
    names = kept["parts"]["trained"]["values"]
    assert [name for name in names if name.startswith("projector.")]
    assert not [name for name, _ in result.model.named_parameters() if "projector" in name]


@pytest.mark.parametrize("sides", [(6, 6), (5, 9), (1, 1)], ids=str)
def test_tokens_lie_on_the_grid_of_their_patches(sides):
    for patch in (1, 2):
        clean = torch.zeros(1, 4, patch * sides[0], patch * sides[1])
        assert alignment.picture_sides(clean, sides[0] * sides[1]) == sides
    with pytest.raises(ValueError, match="7 hidden states do not lie over latents of 6 x 6"):
        alignment.picture_sides(torch.zeros(1, 4, 6, 6), 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [1]}, r"self-attention 1 of 2 is given, and the replaced ones are \[1\]"),
        ({"compile": True}, "torch.compile ignores: set compile to false"),
        ({"objective": "repa"}, "SimpleNamespace has no VAE: choose 'teacher'"),
    ],
    ids=["late", "compiled", "blind"],
)
def test_an_alignment_that_cannot_be_is_refused_before_the_first_step(teacher, changes, message):
    with pytest.raises(ValueError, match=message):
        distill(dataclasses.replace(REPA, **changes), teacher, TinyData())
