"""What a row is made of: what a model draws, how far that is from the teacher and from the truth, and what it costs.

- Same noise, same labels or captions, same latents for all: picture i of a student differs from picture i of its
  teacher by the attention alone. Pictures are compared as 8-bit pictures, which is what anyone would save.
- Several training seeds: the value is their mean, the interval holds both the choice of pictures and of seeds.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from linattn import families, sampling, world
from linattn.evaluation import costs
from linattn.evaluation.bench import Bench, eight_bits, on_device, say, unit
from linattn.evaluation.distance import distance as picture_distance, prediction_error, predictions
from linattn.world import pairs
from linattn.world.marks import judge_accuracy, judge_fid, judge_kid

# 97.5 % of Student's t by degrees of freedom: a handful of training seeds says little about their own spread.
STUDENT_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
# No interval reaches where no value can.
OF_ONE = ("shape", "colour", "both")
SHARES = (*OF_ONE, *pairs.NAMES, *(f"cross_{name}" for name in (*OF_ONE, *pairs.NAMES)))
WITHIN = {
    **dict.fromkeys(("error", "mse"), (0.0, math.inf)),
    **dict.fromkeys(SHARES, (0.0, 1.0)),
    **dict.fromkeys(("cosine", "ssim"), (-1.0, 1.0)),
}

Measures = dict[str, dict[str, Any]]


# Drawing -------------------------------------------------------------------------------------------------------------


def draw(bench: Bench, model: nn.Module | None, count: int, steps: int, scale: int = 1) -> Tensor:
    """(count, 3, side, side) in 8 bits; the teacher's own without a model."""
    pictures = sampling.draw(
        bench.teacher,
        bench.asked(count),
        size=bench.side * scale,
        steps=steps,
        seed=bench.part.seed,
        model=model,
        batch=max(1, bench.part.batch // scale**2),
    )
    if not pictures.isfinite().all():
        raise ArithmeticError(f"{(~pictures.isfinite()).sum()} pixels are not finite: the student diverged")
    return eight_bits(pictures)


def draw_reference(bench: Bench) -> dict[str, Tensor]:
    """What the teacher draws for the whole table, and the latents that predictions are compared on."""
    part, asked = bench.part, bench.asked(bench.part.pictures)
    say(f"teacher: {part.pictures} pictures of {part.steps} steps")
    latents = sampling.draw_latents(
        bench.teacher, asked, size=bench.side, steps=part.steps, seed=part.seed, batch=part.batch
    )
    pictures = eight_bits(sampling.decode(bench.teacher, latents, part.batch))
    say(f"teacher: {part.quick_pictures} of {part.quick_steps} steps, {part.cross_pictures} at {part.cross} x the side")
    quick = draw(bench, None, part.quick_pictures, part.quick_steps)
    cross = draw(bench, None, part.cross_pictures, part.quick_steps, part.cross)
    how = {"count": part.errors, "batch": part.batch, "seed": part.seed}
    said = predictions(bench.teacher, bench.teacher.model, (latents, asked), part.noise, **how)
    drawn = {"pictures": pictures, "quick": quick, "cross": cross}
    return {"latents": latents, "labels": bench.labels(part.pictures), "predictions": said, **drawn}


# Measures ------------------------------------------------------------------------------------------------------------


def distance(bench: Bench, pictures: Tensor, reference: str) -> Measures:
    """To the teacher's pictures from the same noise, and of the two sets in the judge's features."""
    seed, features = bench.part.seed, bench.features(pictures)
    found = picture_distance(unit(pictures), unit(bench.reference[reference]), seed)
    found["kid_teacher"] = judge_kid(features, bench.known[reference], seed)
    found["kid_world"] = judge_kid(features, bench.known["world"][: len(features)], seed)
    found["fid_teacher"] = judge_fid(features, bench.known[reference], seed)
    return found


def truth(bench: Bench, pictures: Tensor, prefix: str = "") -> Measures:
    count = len(pictures)
    single = bench.singles(count)
    marks = judge_accuracy(bench.judge, unit(pictures[single]), bench.labels(count)[single])
    if bench.reads:
        marks |= pairs.shares(bench.judge, on_device(pictures[1::2]), bench.scenes(count)[1::2])
    return {f"{prefix}{name}": value for name, value in marks.items()}


def errors(bench: Bench, model: nn.Module) -> dict[str, Any]:
    """Of the prediction, by noise level and on the whole."""
    part = bench.part
    given = (bench.reference["latents"], bench.asked(part.pictures))
    asked = {"count": part.errors, "batch": part.batch, "seed": part.seed}
    theirs = bench.reference["predictions"]
    return prediction_error(bench.teacher, model, given, part.noise, theirs=theirs, **asked)


def confusion(bench: Bench, pictures: Tensor) -> list[list[int]]:
    """Asked shapes by seen shapes, where one thing was asked for."""
    single = bench.singles(len(pictures))
    seen = torch.cat([bench.judge(on_device(part)).shape.argmax(1).cpu() for part in pictures[single].split(256)])
    asked = bench.labels(len(pictures))[single] // len(world.COLOURS)
    shapes = len(world.SHAPES)
    return torch.bincount(asked * shapes + seen, minlength=shapes**2).reshape(shapes, shapes).tolist()


def levels_of(bench: Bench, model: nn.Module) -> list[float]:
    """Noise levels that a cost is the mean of: all that a draw visits where options follow them, else any one."""
    operators = [layer.operator for layer in families.layers(families.model_of(model)) if layer.operator is not None]
    scheduled = any(operator.schedule for operator in operators)
    return sampling.noise_levels(bench.teacher, bench.part.steps) if scheduled else [0.5]


def cost(bench: Bench, model: nn.Module) -> dict[str, int]:
    """One forward of one picture at the side it was trained at, the mean over a draw's steps."""
    levels = levels_of(bench, model)
    formula = [costs.macs(model, noise=level, inputs=bench.inputs(level)) for level in levels]
    counted = [costs.counted_macs(model, noise=level, inputs=bench.inputs(level)) for level in levels]
    return {
        "macs": round(statistics.mean(each["total"] for each in formula)),
        "core_macs": round(statistics.mean(each["core"] for each in formula)),
        "macs_counted": round(statistics.mean(counted)),
        "parameters": costs.parameters(model)["total"],
        "added": costs.parameters(model)["added"],
    }


def plain(measure: Mapping[str, Any]) -> dict[str, Any]:
    return {key: measure.get(key) for key in ("value", "low", "high", "n")}


def combine(measures: Sequence[Mapping[str, Any]], within: tuple[float, float] | None = None) -> dict[str, Any]:
    """Average over training seeds.

    The interval's half-width is sqrt(that of the pictures ^2 + that of the seeds ^2), the latter by Student's t.
    """
    if len(measures) == 1:
        return plain(measures[0])
    values = [measure["value"] for measure in measures]
    if any(value is None for value in values):
        return plain(measures[0])
    mean, spread = statistics.mean(values), statistics.stdev(values)
    of_seeds = STUDENT_T.get(len(values) - 1, 2.2) * spread / math.sqrt(len(values))
    bounds: dict[str, float | None] = {}
    for side, sign in (("low", -1), ("high", 1)):
        own = [None if m[side] is None else abs(m[side] - m["value"]) for m in measures]
        known = None if None in own else math.hypot(statistics.mean(own), of_seeds)
        least, most = within or (-math.inf, math.inf)
        bounds[side] = None if known is None else min(max(mean + sign * known, least), most)
    return {"value": mean, **bounds, "n": measures[0]["n"], "seeds": values}


# What a row says of itself -------------------------------------------------------------------------------------------


def shown_of(bench: Bench) -> dict[str, Any]:
    """Which teacher a row is of, and what its pictures were asked to show where no label says it."""
    said = {"teacher": bench.role, "folder": bench.settings.teacher(bench.role).source.rpartition("/")[2]}
    return said | ({"captions": list(bench.asked(bench.part.pictures))} if bench.reads else {})


def sizes(bench: Bench) -> dict[str, Any]:
    part, card = bench.part, bench.teacher.card
    return {
        "pictures": part.pictures,
        "steps": part.steps,
        "quick_pictures": part.quick_pictures,
        "quick_steps": part.quick_steps,
        "cross": part.cross,
        "cross_pictures": part.cross_pictures,
        "errors": min(part.errors, part.pictures),
        "seed": part.seed,
        "guidance": card["guidance"],
        "side": bench.side,
    }
