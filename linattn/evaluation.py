"""What every row of the report is made of: the teacher once, then each student beside it.

- Same noise, same labels or captions, same latents for all: picture i of a student differs from picture i of its
  teacher by the attention alone. Pictures are compared as 8-bit pictures, which is what anyone would save.
- The rows that only bound the others (undistilled, twice the side) take fewer pictures and steps; their reference is
  the teacher drawn with those.
- A teacher that reads captions is asked for one thing and for two in turn: shape and colour are marked where one was
  asked for; where it was two, both shapes, both colours and how they lie.
- Nothing here was trained on: labels, noise and world pictures come from a seed and an index of their own.
- Several training seeds: the value is their mean, the interval holds both the choice of pictures and of seeds.
- Quality holds no time and no machine, so the same code gives the same bytes; those go to the run file.
"""

import copy
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from linattn import costs, families, metrics, params, project, samples, sampling, surgery, teachers, world
from linattn.conditions import Asked, Labels
from linattn.surgery.conversion import converted
from linattn.world import judge, marks, pairs
from linattn.world.marks import judge_accuracy, judge_features, judge_fid, judge_kid

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


@dataclass(frozen=True)
class Bench:
    """What all rows share: settings, teacher, judge, and what the teacher drew."""

    settings: params.Params
    role: str = "class"

    @property
    def part(self) -> params.Evaluate:
        return self.settings.evaluate

    @cached_property
    def teacher(self) -> teachers.Teacher:
        entry = self.settings.teacher(self.role)
        return teachers.load(entry.place, device=project.device(), **entry.hub)

    @cached_property
    def judge(self) -> nn.Module:
        return judge.load(project.ROOT / "data" / "judge").to(project.device())

    @cached_property
    def reference(self) -> dict[str, Tensor]:
        return load_file(project.reference(self.role))

    @property
    def side(self) -> int:
        return self.teacher.card["side"]

    @property
    def name(self) -> str:
        """Of the teacher's own row."""
        return project.teacher_row(self.role)

    @property
    def reads(self) -> bool:
        """Whether it is told captions; else labels."""
        return not isinstance(self.teacher.conditions, Labels)

    def asked(self, count: int) -> Asked:
        """What the first `count` pictures are asked to show."""
        start = world.HELD_OUT if self.reads else 0
        return samples.asked(self.teacher.conditions, range(start, start + count), self.part.seed)

    def scenes(self, count: int) -> list[world.Scene]:
        """Pictures of the world of the same content, as it would have drawn them."""
        if self.reads:
            return samples.scenes(range(world.HELD_OUT, world.HELD_OUT + count), self.part.seed)
        labels = enumerate(self.asked(count).tolist(), start=world.HELD_OUT)
        return [world.scene(self.part.seed, number, label=label) for number, label in labels]

    def labels(self, count: int) -> Tensor:
        """The class of the first thing of each picture."""
        return torch.tensor([scene.label for scene in self.scenes(count)]) if self.reads else self.asked(count)

    def singles(self, count: int) -> slice:
        """Which of `count` pictures show one thing."""
        return slice(0, count, 2 if self.reads else 1)

    def inputs(self, level: float) -> dict[str, Any]:
        """Arguments of one forward of one picture at the side it was trained at."""
        sides = sampling.latent_sides(sampling.Source.of(self.teacher), self.side)
        return self.teacher.conditions.example(*sides, self.asked(1), level)

    def features(self, pictures: Tensor) -> Tensor:
        return judge_features(self.judge, unit(pictures))

    @cached_property
    def known(self) -> dict[str, Tensor]:
        """Features of what students are compared with."""
        scenes = self.scenes(max(self.part.pictures, self.part.quick_pictures))
        found = {name: self.features(self.reference[name]) for name in ("pictures", "quick")}
        return found | {"world": self.features(eight_bits(world.render(scenes, self.side)))}


def say(words: str) -> None:
    print(words, flush=True)


def eight_bits(pictures: Tensor) -> Tensor:
    """Pictures in [0, 1] as they would be saved."""
    return pictures.clamp(0, 1).mul(255).round().to(torch.uint8).cpu()


def unit(pictures: Tensor) -> Tensor:
    return pictures.float() / 255


def on_device(pictures: Tensor) -> Tensor:
    return unit(pictures).to(project.device())


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
    said = metrics.predictions(bench.teacher, bench.teacher.model, (latents, asked), part.noise, **how)
    drawn = {"pictures": pictures, "quick": quick, "cross": cross}
    return {"latents": latents, "labels": bench.labels(part.pictures), "predictions": said, **drawn}


# Rows ----------------------------------------------------------------------------------------------------------------


def distance(bench: Bench, pictures: Tensor, reference: str) -> Measures:
    """To the teacher's pictures from the same noise, and of the two sets in the judge's features."""
    seed, features = bench.part.seed, bench.features(pictures)
    found = metrics.distance(unit(pictures), unit(bench.reference[reference]), seed)
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
    return metrics.prediction_error(bench.teacher, model, given, part.noise, theirs=theirs, **asked)


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


# The teacher, and chance ---------------------------------------------------------------------------------------------


def evaluate_teacher(bench: Bench) -> dict[str, Any]:
    """Draw the reference, mark it, and write what the students need."""
    began = time.monotonic()
    drawn = draw_reference(bench)
    save_file(drawn, project.reference(bench.role, write=True))
    drew = time.monotonic() - began
    pictures = {"pictures": drawn["pictures"], "labels": drawn["labels"], "cross": drawn["cross"]}
    save_file(pictures, project.pictures(bench.name, write=True))
    part = bench.part
    world_kid = judge_kid(bench.known["pictures"], bench.known["world"][: part.pictures], part.seed)
    quality = truth(bench, drawn["pictures"]) | truth(bench, drawn["cross"], "cross_") | {"kid_world": world_kid}
    quick = truth(bench, drawn["quick"])
    result = {
        "student": bench.name,
        **shown_of(bench),
        "operator": "softmax",
        "options": {},
        "control": False,
        "profile": bench.settings.profile,
        "seeds": [],
        "pictures": sizes(bench),
        "quality": {name: plain(value) for name, value in quality.items()},
        "quick": {name: plain(value) for name, value in quick.items()},
        "cost": cost(bench, bench.teacher.model) | {"trained": 0},
        "confusion": confusion(bench, drawn["pictures"]),
    }
    project.write_json(project.result(bench.name, write=True), result)
    project.write_json(project.result(project.chance_row(bench.role), write=True), chance(bench, drawn["pictures"]))
    seconds = {"draw": drew, "evaluate": time.monotonic() - began}
    write_run(bench, bench.name, bench.teacher.model, seconds)
    return result


def shown_of(bench: Bench) -> dict[str, Any]:
    """Which teacher a row is of, and what its pictures were asked to show where no label says it."""
    said = {"teacher": bench.role, "folder": bench.settings.teacher(bench.role).source.rpartition("/")[2]}
    return said | ({"captions": list(bench.asked(bench.part.pictures))} if bench.reads else {})


def chance(bench: Bench, pictures: Tensor) -> dict[str, Any]:
    """What a model that ignores what it is asked for gets; of two things, what captions of other pictures get."""
    values = marks.chance()
    if bench.reads:
        values |= pairs.chance(bench.judge, on_device(pictures[1::2]), bench.scenes(len(pictures))[1::2])
    quality = {name: {"value": value, "low": None, "high": None, "n": None} for name, value in values.items()}
    quality |= {f"cross_{name}": value for name, value in quality.items()}
    row = {"student": project.chance_row(bench.role), "teacher": bench.role, "profile": bench.settings.profile}
    return row | {"quality": quality}


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


def write_run(bench: Bench, name: str, model: nn.Module, seconds: Mapping[str, float]) -> None:
    distilled = project.run_result(f"{name}.distill")
    before = project.read_json(distilled)["seconds"] if distilled.exists() else {}
    run = {
        "facts": project.facts(),
        "seconds": {key: round(value, 2) for key, value in {**before, **seconds}.items()},
        "backend": surgery.backends(model),
        "memory": max(
            costs.forward_memory(model, noise=level, inputs=bench.inputs(level)) for level in levels_of(bench, model)
        ),
    }
    project.write_json(project.run_result(name, write=True), run)


# Students ------------------------------------------------------------------------------------------------------------


def distilled(bench: Bench, folder: Path) -> nn.Module:
    """A copy of the teacher's model with the layers that `folder` holds."""
    return surgery.load(copy.deepcopy(bench.teacher.model), folder).eval()


def evaluate_student(bench: Bench, name: str) -> dict[str, Any]:
    """One student: distilled for every seed, and converted only."""
    began, drew = time.monotonic(), 0.0
    student, recipe = bench.settings.student(name), bench.settings.recipe(name)
    part, first = bench.part, recipe.seeds[0]
    rows, levels = [], []
    for seed in recipe.seeds:
        model = distilled(bench, project.student(name, None if seed == first else seed))
        say(f"{name} (seed {seed}): {part.pictures} pictures, then {part.cross_pictures} at {part.cross} x the side")
        start = time.monotonic()
        pictures = draw(bench, model, part.pictures, part.steps)
        drew += time.monotonic() - start
        cross = draw(bench, model, part.cross_pictures, part.quick_steps, part.cross)
        error = errors(bench, model)
        levels.append(error["levels"])
        marks = truth(bench, pictures) | truth(bench, cross, "cross_") | distance(bench, pictures, "pictures")
        rows.append({"error": error["mean"], **marks})
        if seed == first:
            shown, kept = (pictures, cross), model
    say(f"{name}, converted and not distilled: {part.quick_pictures} pictures of {part.quick_steps} steps")
    untrained = converted(bench.teacher.model, student, first)
    raw = draw(bench, untrained, part.quick_pictures, part.quick_steps)
    before = errors(bench, untrained)
    bounds = truth(bench, raw) | distance(bench, raw, "quick") | {"error": before["mean"]}
    training = project.read_json(project.student(name) / "training.json")
    result = {
        "student": name,
        **shown_of(bench),
        **settings_of(student),
        "profile": bench.settings.profile,
        "seeds": list(recipe.seeds),
        "pictures": sizes(bench),
        "quality": {key: combine([row[key] for row in rows], WITHIN.get(key)) for key in rows[0]},
        "undistilled": {key: plain(value) for key, value in bounds.items()},
        "by_noise": {
            "noise": list(part.noise),
            "error": [combine(list(each), WITHIN["error"]) for each in zip(*levels, strict=True)],
            "undistilled": [plain(each) for each in before["levels"]],
        },
        "cost": cost(bench, kept) | {"trained": training["trained"]},
        "confusion": confusion(bench, shown[0]),
        "training": training,
    }
    pictures = {"pictures": shown[0], "cross": shown[1], "undistilled": raw, "labels": bench.labels(part.pictures)}
    save_file(pictures, project.pictures(name, write=True))
    project.write_json(project.result(name, write=True), result)
    write_run(bench, name, kept, {"draw": drew, "evaluate": time.monotonic() - began})
    return result


def settings_of(student: params.Student) -> dict[str, Any]:
    """By which the report knows a result of other settings; those that params.yaml leaves out are left out here."""
    made = {"operator": student.operator, "options": student.options, **student.settings}
    return made | {"control": student.operator == "softmax"}


def combine(measures: Sequence[Mapping[str, Any]], within: tuple[float, float] | None = None) -> dict[str, Any]:
    """Over training seeds: their mean; half-widths of pictures and of seeds add as independent errors do."""
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


def evaluate(name: str, profile: str | None = None) -> dict[str, Any]:
    """The row of a student, or of a teacher under the name teacher-ROLE."""
    settings = params.load(profile)
    for role in settings.teachers:
        if name == project.teacher_row(role):
            return evaluate_teacher(Bench(settings, role))
    return evaluate_student(Bench(settings, settings.student(name).teacher), name)


LINES = {
    "error": ("squared error of the prediction, % of the teacher's square", 100, 2),
    "shape": ("asked shape found, %", 100, 1),
    "colour": ("asked colour found, %", 100, 1),
    "two_shapes": ("both shapes found where two were asked for, %", 100, 1),
    "two_colours": ("both colours found, %", 100, 1),
    "relation": ("the relation as asked, %", 100, 1),
    "psnr": ("PSNR to the teacher's pictures, dB", 1, 1),
    "ssim": ("SSIM to the teacher's pictures", 1, 3),
    "kid_teacher": ("KID to the teacher's pictures, judge's features, x 1000", 1000, 2),
    "kid_world": ("KID to the world, judge's features, x 1000", 1000, 2),
    "cross_shape": ("asked shape found at twice the side, %", 100, 1),
    "cross_colour": ("asked colour found at twice the side, %", 100, 1),
}


def told(result: Mapping[str, Any]) -> str:
    """The row as a Markdown table, the undistilled one beside it where there is one."""
    columns = [name for name in ("quality", "undistilled") if name in result]
    titles = {"quality": result["student"], "undistilled": "converted, not distilled"}
    lines = ["| | " + " | ".join(titles[name] for name in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for key, (words, scale, digits) in LINES.items():
        cells = [_cell(result[name].get(key), scale, digits) for name in columns]
        if any(cells):
            lines.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(measure: Mapping[str, Any] | None, scale: float, digits: int) -> str:
    if not measure or measure["value"] is None:
        return ""
    text = f"{measure['value'] * scale:.{digits}f}"
    if measure["low"] is not None:
        text += f" ({measure['low'] * scale:.{digits}f} to {measure['high'] * scale:.{digits}f})"
    return text + (f", n {measure['n']}" if measure["n"] else "")
