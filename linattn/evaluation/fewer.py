"""Ask what the teacher does with fewer steps, which costs less without any change of the model.

It is what a student has to be held against at equal cost.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from linattn import params
from linattn.evaluation.bench import Bench, say
from linattn.evaluation.distance import distance
from linattn.evaluation.draws import forwards
from linattn.evaluation.likeness import eye_distance
from linattn.evaluation.rows import draw, plain

COMPARED = ("psnr", "ssim")  # of the pictures themselves, beside the eye's distance


def fewer_steps(settings: params.Evaluate, least: int = 1) -> list[int]:
    """Return the step counts below the full draw's: its half, its quarter, the quick rows'.

    Args:
        settings: how the students are measured.
        least: the fewest steps that the teacher's scheduler can take.
    """
    counts = {settings.steps // 2, settings.steps // 4, settings.quick_steps}
    return sorted(count for count in counts if least <= count < settings.steps)


def fewer(bench: Bench, reference: Mapping[str, Tensor], macs: int) -> list[dict[str, Any]]:
    """Compare the teacher's pictures of fewer steps with its full draw from the same noise.

    Args:
        bench: what the teacher's rows share.
        reference: the teacher's pictures, full and quick.
        macs: multiply-accumulates of one forward.
    """
    settings = bench.evaluation
    count = min(settings.quick_pictures, settings.pictures)
    full, seed = reference["pictures"][:count], settings.seed
    entries = []
    teacher = bench.teacher
    least = teacher.conditions.least_steps(teacher.scheduler.config)
    for steps in fewer_steps(settings, least):
        if steps == settings.quick_steps:
            pictures = reference["quick"][:count]
        else:
            say(f"teacher: {count} pictures of {steps} steps")
            pictures = draw(bench, None, count, steps)
        near = distance(pictures, full, seed)
        seen = eye_distance(bench.seen_by_eye(pictures), bench.eyed["pictures"][:count], seed)
        quality = {name: plain(near[name]) for name in COMPARED} | {"eye_distance": plain(seen)}
        cost = {"draw_macs": macs * forwards(teacher, steps)}
        entries.append({"steps": steps, "quality": quality, "cost": cost})
    return entries
