"""Make the parts of a row: a model's pictures, their distance to the teacher and to the truth, and
the model's cost.

- All models share the noise, the labels or captions, and the latents, so picture i of a student
  differs from picture i of its teacher by the attention alone. Pictures are compared in 8 bits, as
  anyone would save them.
- With several training seeds the value is the mean over seeds, and the interval covers the choice
  of both pictures and seeds.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from linattn import families, sampling, world
from linattn.evaluation import costs
from linattn.evaluation.bench import Bench, as_floats, on_device, say
from linattn.evaluation.density import density
from linattn.evaluation.distance import distance as picture_distance, prediction_error, predictions
from linattn.evaluation.draws import forwards
from linattn.evaluation.likeness import eye_distance, likeness
from linattn.intervals import seeds_half_width, shares
from linattn.world import pairs
from linattn.world.marks import judge_fid, judge_kid, label_marks

OF_ONE = ("shape", "colour", "both")
SHARES = (*OF_ONE, *pairs.NAMES, *(f"cross_{name}" for name in (*OF_ONE, *pairs.NAMES)))
# Intervals are cut at these bounds, which no value can pass.
WITHIN = {
    **dict.fromkeys(("error", "mse"), (0.0, math.inf)),
    **dict.fromkeys((*SHARES, "eye_distance", "cross_eye_distance"), (0.0, 1.0)),
    **dict.fromkeys(("cosine", "ssim"), (-1.0, 1.0)),
}

Measures = dict[str, dict[str, Any]]


# Drawing
# ---------------------------------------------------------------------------------------------


def draw(bench: Bench, model: nn.Module | None, count: int, steps: int, scale: int = 1) -> Tensor:
    """Draw pictures (count, 3, side, side) in 8 bits; without a model the teacher's draws."""
    batch = max(1, bench.evaluation.batch // scale**2)
    latents = sampling.draw_latents(
        bench.teacher,
        bench.prompts(count),
        size=bench.side * scale,
        steps=steps,
        seed=bench.evaluation.seed,
        model=model,
        batch=batch,
    )
    return _in_eight_bits(bench, latents, batch)


def _in_eight_bits(bench: Bench, latents: Tensor, batch: int) -> Tensor:
    """Decode latents, and keep every batch in 8 bits: a quarter of what floats take."""
    kept = []
    for pictures in sampling.decoded(bench.teacher, latents, batch):
        broken = int((~pictures.isfinite()).sum())
        if broken:
            raise ArithmeticError(f"{broken} pixels are not finite: the student diverged")
        kept.append(sampling.eight_bits(pictures))
    return torch.cat(kept)


def draw_reference(bench: Bench) -> dict[str, Tensor]:
    """Draw the teacher's pictures and latents, which all rows are compared with."""
    settings, conditioning = bench.evaluation, bench.prompts(bench.evaluation.pictures)
    say(f"teacher: {settings.pictures} pictures of {settings.steps} steps")
    latents = sampling.draw_latents(
        bench.teacher,
        conditioning,
        size=bench.side,
        steps=settings.steps,
        seed=settings.seed,
        batch=settings.batch,
    )
    pictures = _in_eight_bits(bench, latents, settings.batch)
    say(
        f"teacher: {settings.quick_pictures} of {settings.quick_steps} steps, "
        f"{settings.cross_pictures} at {settings.cross} x the side"
    )
    quick = draw(bench, None, settings.quick_pictures, settings.quick_steps)
    cross = draw(bench, None, settings.cross_pictures, settings.quick_steps, settings.cross)
    teacher_predictions = predictions(
        bench.teacher,
        bench.teacher.model,
        (latents, conditioning),
        settings.noise,
        **_error_options(bench),
    )
    return {
        "latents": latents,
        "labels": bench.labels(settings.pictures),
        "predictions": teacher_predictions,
        "pictures": pictures,
        "quick": quick,
        "cross": cross,
    }


# Measures
# ---------------------------------------------------------------------------------------------


def distance(bench: Bench, pictures: Tensor, reference: str) -> Measures:
    """Measure the distance to the teacher's pictures, one by one and as sets of features."""
    seed = bench.evaluation.seed
    measures = picture_distance(pictures, bench.reference[reference], seed)
    measures |= likeness(bench.seen_by_eye(pictures), bench.eyed[reference], seed)
    if not bench.judged:
        return measures
    features = bench.features(pictures)
    measures["kid_teacher"] = judge_kid(features, bench.known[reference], seed)
    measures["kid_world"] = judge_kid(features, bench.known["world"][: len(features)], seed)
    measures["fid_teacher"] = judge_fid(features, bench.known[reference], seed)
    return measures


def cross_distance(bench: Bench, pictures: Tensor) -> Measures:
    """Measure the distance to the teacher's pictures at a multiple of the trained side."""
    features, seed = bench.seen_by_eye(pictures), bench.evaluation.seed
    return {"cross_eye_distance": eye_distance(features, bench.eyed["cross"], seed)}


def marks(bench: Bench, pictures: Tensor) -> dict[str, Tensor]:
    """Say which pictures are right, by mark: those of one thing, then those of two.

    Nothing is marked of a teacher that does not draw the small world.
    """
    if not bench.judged:
        return {}
    count = len(pictures)
    single = bench.singles(count)
    right = label_marks(bench.judge, as_floats(pictures[single]), bench.labels(count)[single])
    if bench.captioned:
        two, scenes = on_device(pictures[1::2]), bench.scenes(count)[1::2]
        right |= pairs.named_marks(bench.judge, two, scenes)
    return right


def truth(bench: Bench, pictures: Tensor, prefix: str = "") -> Measures:
    """Measure how often the judge finds the label or caption in the pictures."""
    return {f"{prefix}{name}": share for name, share in shares(marks(bench, pictures)).items()}


def errors(bench: Bench, model: nn.Module) -> dict[str, Any]:
    """Return the errors of the model's prediction, by noise level and as their mean."""
    settings = bench.evaluation
    samples = (bench.reference["latents"], bench.prompts(settings.pictures))
    theirs = bench.reference["predictions"]
    return prediction_error(
        bench.teacher, model, samples, settings.noise, theirs=theirs, **_error_options(bench)
    )


def _error_options(bench: Bench) -> dict[str, int]:
    """Return the options that the teacher's and the students' predictions share."""
    settings = bench.evaluation
    return {"count": settings.errors, "batch": settings.batch, "seed": settings.seed}


def confusion(bench: Bench, pictures: Tensor) -> list[list[int]]:
    """Count prompted shapes (rows) by the shapes that the judge sees (columns).

    Only pictures of one thing are counted, and none where the judge does not know them.
    """
    if not bench.judged:
        return []
    single = bench.singles(len(pictures))
    batches = pictures[single].split(256)
    seen = torch.cat([bench.judge(on_device(batch)).shape.argmax(1).cpu() for batch in batches])
    expected = bench.labels(len(pictures))[single] // len(world.COLOURS)
    shapes = len(world.SHAPES)
    counts = torch.bincount(expected * shapes + seen, minlength=shapes**2)
    return counts.reshape(shapes, shapes).tolist()


def levels_of(bench: Bench, model: nn.Module) -> list[float]:
    """Return the noise levels that a cost is averaged over.

    Where an operator's options follow a schedule, they are all levels that a draw visits; otherwise
    any one level.
    """
    operators = [
        layer.operator
        for layer in families.layers(families.model_of(model))
        if layer.operator is not None
    ]
    scheduled = any(operator.schedule for operator in operators)
    return sampling.noise_levels(bench.teacher, bench.evaluation.steps) if scheduled else [0.5]


def cost(bench: Bench, model: nn.Module) -> dict[str, Any]:
    """Measure one forward of one picture at the trained side, averaged over a draw's steps."""
    levels = levels_of(bench, model)
    formula, counted = [], []
    for level in levels:
        options = {"noise": level, "inputs": bench.inputs(level)}
        formula.append(costs.macs(model, **options))
        counted.append(costs.counted_macs(model, **options))
    macs = round(statistics.mean(macs["total"] for macs in formula))
    return {
        "macs": macs,
        "draw_macs": macs * forwards(bench.teacher, bench.evaluation.steps),
        "core_macs": round(statistics.mean(macs["core"] for macs in formula)),
        "macs_counted": round(statistics.mean(counted)),
        "density": density_of(bench, model, levels),
        "parameters": costs.parameters(model)["total"],
        "added": costs.parameters(model)["added"],
    }


def density_of(bench: Bench, model: nn.Module, levels: Sequence[float]) -> float | None:
    """Average a model's density over noise levels; None where an operator does not know its own."""
    with torch.no_grad(), sampling.evaluating(model):
        grids = families.grids(model, **bench.inputs(levels[0]))
    shares = [density(families.model_of(model), grids, level) for level in levels]
    known = [share for share in shares if share is not None]
    return statistics.mean(known) if len(known) == len(shares) else None


def plain(measure: Mapping[str, Any]) -> dict[str, Any]:
    """Keep value, interval and number of pictures of a measure."""
    return {key: measure.get(key) for key in ("value", "low", "high", "n")}


def combine(
    measures: Sequence[Mapping[str, Any]], within: tuple[float, float] | None = None
) -> dict[str, Any]:
    """Average a measure over training seeds.

    The interval's half-width is sqrt(half-width of the pictures ^2 + half-width of the seeds ^2),
    the latter by Student's t.
    """
    if len(measures) == 1:
        return plain(measures[0])
    values = [measure["value"] for measure in measures]
    if any(value is None for value in values):
        return plain(measures[0])
    mean, of_seeds = statistics.mean(values), seeds_half_width(values)
    least, most = within or (-math.inf, math.inf)
    bounds: dict[str, float | None] = {"low": None, "high": None}
    for end, sign in (("low", -1), ("high", 1)):
        if any(measure[end] is None for measure in measures):
            continue
        pictures_half_widths = [abs(measure[end] - measure["value"]) for measure in measures]
        half_width = math.hypot(statistics.mean(pictures_half_widths), of_seeds)
        bounds[end] = min(max(mean + sign * half_width, least), most)
    return {"value": mean, **bounds, "n": measures[0]["n"], "seeds": values}


# The settings that a row names
# ---------------------------------------------------------------------------------------


def shown_of(bench: Bench) -> dict[str, Any]:
    """Name the row's teacher, and the captions of its pictures where the teacher reads captions."""
    source = bench.settings.teacher(bench.role).source
    entry: dict[str, Any] = {"teacher": bench.role, "folder": Path(source).name}
    drawn = bench.prompts(bench.evaluation.pictures)
    if bench.captioned:
        entry["captions"] = list(drawn)
    elif not bench.judged:
        entry["classes"] = bench.teacher.conditions.words(drawn)
    return entry


def sizes(bench: Bench) -> dict[str, Any]:
    """Return the sizes of an evaluation: pictures, steps, seed, guidance and side."""
    settings, card = bench.evaluation, bench.teacher.card
    return {
        "pictures": settings.pictures,
        "steps": settings.steps,
        "quick_pictures": settings.quick_pictures,
        "quick_steps": settings.quick_steps,
        "cross": settings.cross,
        "cross_pictures": settings.cross_pictures,
        "errors": min(settings.errors, settings.pictures),
        "seed": settings.seed,
        "guidance": card["guidance"],
        "side": bench.side,
    }
