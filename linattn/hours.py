"""Estimate how long a teacher of a published shape takes on one GPU, from samples to evaluation.

It is arithmetic: the multiply-accumulates of one forward, counted on the meta device, times the
forwards that the settings ask for, over the operations a second that a device does in bfloat16. A
step of training is one forward of the teacher and three of the student, four with checkpointing.
Decoding, encoding of prompts and reading are not in it.
"""

from dataclasses import dataclass

from linattn import params, shapes
from linattn.evaluation.macs import counted_macs
from linattn.families.registry import family

# Assumed operations a second in bfloat16 of devices by their memory in GB: some 45 % of what the
# vendors state for an RTX 4090, an A100 and an H200. Nobody has measured a whole step there.
RATES = {24: 7.0e13, 80: 1.4e14, 141: 3.5e14}


@dataclass(frozen=True)
class Operations:
    """Hold the floating-point operations of a teacher's stages."""

    samples: float  # what the teacher draws for its students
    reference: float  # what it draws to be compared with
    students: dict[str, float]  # training and evaluation, by student

    @property
    def total(self) -> float:
        return self.samples + self.reference + sum(self.students.values())


def operations(settings: params.Params, role: str) -> Operations | None:
    """Return the operations of a teacher, or None where its shape is not a published one.

    Args:
        settings: the parameters of a profile.
        role: a role of that profile; its name is that of the shape.
    """
    if role not in shapes.SHAPES:
        return None
    numbers = settings.of(role)
    picture = _picture(settings, role)
    drawn = picture * _forwards_of_guidance(settings, role)
    sample, evaluate = numbers.sample, numbers.evaluate
    full = evaluate.pictures * evaluate.steps
    quick = evaluate.quick_pictures * evaluate.quick_steps
    enlarged = evaluate.cross_pictures * evaluate.quick_steps * evaluate.cross**2
    errors = evaluate.errors * len(evaluate.noise) * picture
    row = (full + quick + enlarged) * drawn + errors
    students = {}
    for name in settings.of_teacher(role):
        recipe = settings.recipe(name)
        backward = 4 if recipe.checkpointing else 3
        trained = recipe.layerwise_steps * 2 + recipe.steps * (1 + backward)
        seeds = len(recipe.seeds)
        students[name] = seeds * (trained * recipe.batch * picture + row) + errors
    return Operations(sample.pictures * sample.steps * drawn, row, students)


def _picture(settings: params.Params, role: str) -> float:
    """Return the operations of one forward of one picture."""
    shape = shapes.shape(role)
    model = shapes.on_meta(shape.build)
    side = settings.teacher(role).side or shape.side
    latents = side // shape.factor
    size = latents // 2 if family(model).packs else latents
    return 2.0 * counted_macs(model, inputs=family(model).example(model, size, 1, 0.5))


def _forwards_of_guidance(settings: params.Params, role: str) -> int:
    """Return 2 where guidance needs a second forward, else 1."""
    guidance = settings.teacher(role).guidance or 1
    embeds = shapes.shape(role).config.get("guidance_embeds", False)
    return 2 if guidance > 1 and not embeds else 1


def expected(settings: params.Params, role: str) -> dict[int, float]:
    """Return the hours of all stages of a teacher by a device's memory in GB; {} where unknown."""
    counted = operations(settings, role)
    return {size: counted.total / rate / 3600 for size, rate in RATES.items()} if counted else {}
