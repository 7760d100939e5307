"""Result files as the pipeline writes them, with invented numbers, for tests of the report."""

import contextlib
import math

import numpy as np
import pytest
import torch

from linattn import params, project, sealed, world

STUDENTS = {
    "softmax": {"operator": "softmax", "teacher": "class"},
    "softmax-conv": {"operator": "softmax", "teacher": "class", "conv": 3},
    "clear": {"operator": "clear", "teacher": "class", "radius": 4},
    "clear-pool": {"operator": "clear", "teacher": "class", "radius": 3, "pool": 4},
    "linfusion": {"operator": "linfusion", "teacher": "class"},
    "mediator": {"operator": "mediator", "teacher": "class", "count": 16, "conv": 3},
    "mediator-schedule": {
        "operator": "mediator",
        "teacher": "class",
        "conv": 3,
        "schedule": [{"until": 0.5, "count": 16}, {"until": 0.0, "count": 64}],
    },
    "lit": {"operator": "lit", "teacher": "class", "kernel": 5},
}
TEXT = {
    "sd-softmax": {"operator": "softmax", "teacher": "text"},
    "sd-linfusion": {"operator": "linfusion", "teacher": "text"},
    "sd-lit": {"operator": "lit", "teacher": "text", "kernel": 5},
    "sd-clear": {"operator": "clear", "teacher": "text", "radius": 4},
    "flux-clear": {"operator": "clear", "teacher": "text-joint", "radius": 4},
    "flux-clear-pool": {"operator": "clear", "teacher": "text-joint", "radius": 3, "pool": 4},
    "flux-linfusion": {"operator": "linfusion", "teacher": "text-joint"},
}
ALL = {**STUDENTS, **TEXT}
TEACHERS = {
    "class": params.Teacher(source="data/teachers/dit-nano"),
    "text": params.Teacher(source="data/teachers/sd-nano"),
    "text-joint": params.Teacher(source="data/teachers/flux-nano"),
}
MODELS = {
    "class": "DiTTransformer2DModel",
    "text": "UNet2DConditionModel",
    "text-joint": "FluxTransformer2DModel",
}
ERRORS = {  # before distillation, after it
    "softmax": (0.0, 0.001),
    "softmax-conv": (0.0, 0.0012),
    "clear": (0.233, 0.09),
    "clear-pool": (0.21, 0.06),
    "linfusion": (1.37, 0.171),
    "mediator": (0.67, 0.114),
    "mediator-schedule": (0.61, 0.098),
    "lit": (0.73, 0.065),
    "sd-softmax": (0.0, 0.002),
    "sd-linfusion": (0.9, 0.12),
    "sd-lit": (0.6, 0.05),
    "sd-clear": (0.11, 0.07),
    "flux-clear": (0.3, 0.1),
    "flux-clear-pool": (0.27, 0.08),
    "flux-linfusion": (1.6, 0.4),
}
CORE_MACS = {
    "softmax": 100.7e6,
    "softmax-conv": 101.2e6,
    "clear": 17.9e6,
    "clear-pool": 22.1e6,
    "linfusion": 37.2e6,
    "mediator": 13.4e6,
    "mediator-schedule": 40.1e6,
    "lit": 20.9e6,
    "sd-softmax": 60e6,
    "sd-linfusion": 20e6,
    "sd-lit": 14e6,
    "sd-clear": 11e6,
    "flux-clear": 31e6,
    "flux-clear-pool": 35e6,
    "flux-linfusion": 44e6,
}
DENSITIES = {"softmax": 1.0, "clear": 0.15, "linfusion": 0.0, "mediator": 0.13, "lit": 0.0}
EYED = ("eye_distance", "eye_kid", "cross_eye_distance")  # the eye's measures
NOISE = [0.1, 0.3, 0.5, 0.7, 0.9]
FACTS = {
    "commit": "0123456789ab",
    "hardware": {
        "cpu": "A processor of 2020",
        "cores": 2,
        "memory_gb": 15.6,
        "gpu": None,
        "threads": 2,
    },
    "system": "Linux x86_64",
    "python": "3.11.9",
    "versions": {"torch": "2.13.0", "diffusers": "0.42.1", "triton": None},
}


# The keys of an entry that are no options of its operator.
SETTINGS = ("operator", "layers", "initialise", "teacher", "recipe")


def role_of(entry: dict) -> str:
    return entry.get("teacher", "class")


def measure(value: float, spread: float, n: int = 128) -> dict:
    return {"value": value, "low": value - spread, "high": value + spread, "n": n}


def quality(error: float, n: int, role: str = "class") -> dict:
    """Invent the measures of a student with this error."""
    shape = 0.12 + 0.84 * math.exp(-3 * error)
    colour = min(1.0, 0.3 + 0.69 * math.exp(-0.9 * error))
    measures = {
        "shape": measure(shape, 0.04, n),
        "colour": measure(colour, 0.015, n),
        "error": measure(error, 0.1 * error, n),
        "psnr": measure(30 - 22 * error**0.5, 0.4, n),
        "ssim": measure(math.exp(-2 * error), 0.01, n),
        "kid_teacher": measure(0.08 * error, 0.002, n),
        "kid_world": measure(0.01 + 0.08 * error, 0.002, n),
        "eye_distance": measure(1 - math.exp(-4 * error), 0.02, n),
        "eye_kid": measure(0.9 * error, 0.02, n),
        "cross_eye_distance": measure(1 - math.exp(-6 * error), 0.03, n),
        "cross_shape": measure(shape * 0.7, 0.06, n),
    }
    if role != "class":
        measures["two_shapes"] = measure(shape * 0.8, 0.06, n // 2)
        measures["two_colours"] = measure(shape * 0.9, 0.06, n // 2)
        measures["relation"] = measure(shape * 0.85, 0.06, n // 2)
    return measures


def scenes(role: str) -> list[world.Scene]:
    """Return twelve scenes; where the teacher reads captions every second one shows two things."""
    pairs = role != "class"
    return [world.scene(5, index, 1 + index % 2 if pairs else 1) for index in range(12)]


def shown_of(role: str) -> dict:
    """Name a row's teacher and, where it reads captions, its prompts."""
    entry = {"teacher": role, "folder": TEACHERS[role].source.rpartition("/")[2]}
    if role != "class":
        entry["captions"] = [scene.caption for scene in scenes(role)]
    return entry


def result(name: str, entry: dict) -> dict:
    before, after = ERRORS[name]
    role = role_of(entry)
    confusion = np.eye(10, dtype=int) * 12
    confusion[0, 1] = confusion[4, 5] = 2
    return {
        "student": name,
        "operator": entry["operator"],
        "profile": "nano",
        "seeds": [0],
        **shown_of(role),
        "options": {key: value for key, value in entry.items() if key not in SETTINGS},
        **{key: entry[key] for key in params.USUAL if key in entry},
        "control": entry["operator"] == "softmax",
        "quality": quality(after, 128, role),
        "undistilled": quality(before, 64, role),
        "by_noise": _by_noise(before, after),
        "tally": _tally(name, after),
        "confusion": confusion.tolist(),
        "cost": _cost(name),
        "training": {"steps": 90, "batch": 32, "curve": _curve(before, after)},
    }


def _by_noise(before: float, after: float) -> dict:
    return {
        "noise": NOISE,
        "error": [measure(after * (0.4 + level), after * 0.05) for level in NOISE],
        "undistilled": [measure((before + 1e-4) * (0.4 + level), before * 0.05) for level in NOISE],
    }


def _tally(name: str, error: float) -> dict:
    """Invent squares of 64 pictures whose quotient is the error, and right pictures."""
    rng = np.random.default_rng(list(name.encode()))
    difficulty = np.random.default_rng(0).lognormal(0, 0.4, (len(NOISE), 64))
    drawn = difficulty * rng.lognormal(0, 0.7, difficulty.shape)
    squares = error * 500 * drawn / drawn.mean(1, keepdims=True)
    right = np.arange(128) < 128 * min(1, quality(error, 128)["shape"]["value"])
    marks = {"shape": "".join(map(str, right.astype(int)))}
    of_seed = {"error": squares.round(6).tolist(), "marks": marks}
    return {"teacher": [[500.0] * 64] * len(NOISE), "seeds": {"0": of_seed}}


def _cost(name: str) -> dict:
    added = 0 if name == "softmax" else 1234
    operator = ALL.get(name, {}).get("operator")  # none of a contributed row
    macs = 200e6 + CORE_MACS[name]
    return {
        "core_macs": CORE_MACS[name],
        "macs": macs,
        "draw_macs": 40 * macs,
        "density": DENSITIES.get(operator),
        "added": added,
    }


def _curve(before: float, after: float) -> dict:
    steps = list(range(0, 90, 10))
    loss = [after + (before + 0.05 - after) * math.exp(-step / 20) for step in steps]
    return {"step": steps, "stage": ["layerwise"] * 3 + ["end-to-end"] * 6, "loss": loss}


def write_all(students: dict = STUDENTS, failed: str | None = None) -> None:
    """Write all files of these students and of the teachers that they name."""
    for name, entry in students.items():
        if name == failed:
            problem = {"facts": FACTS, "error": "the loss became NaN at step 12"}
            project.write_json(project.run_result(name, write=True), problem)
            continue
        project.write_json(project.result(name, write=True), result(name, entry))
        run = {"facts": FACTS, "seconds": {"distill": 44.0}}
        project.write_json(project.run_result(name, write=True), run)
    for role in TEACHERS:
        _facts(role)
    for role in dict.fromkeys(role_of(entry) for entry in students.values()):
        _teacher(role)
        of_role = [name for name, entry in students.items() if role_of(entry) == role]
        _pictures(role, of_role, failed)
    _benchmark()
    _anatomy(students)
    _plan()


def _facts(role: str) -> None:
    """Write what a teacher's folder says of its prompts."""
    folder = TEACHERS[role].folder
    card = {"gate": {}, "labels": []} if role == "class" else {"gate": {}}
    project.write_json(folder / "card.json", card)
    config = {"num_attention_heads": 4, "attention_head_dim": 32, "_class_name": MODELS[role]}
    if role == "text-joint":
        config["joint_attention_dim"] = 96
    project.write_json(folder / "transformer" / "config.json", config)


def _teacher(role: str) -> None:
    teacher = {"student": f"teacher-{role}", **shown_of(role)}
    to_itself = ("error", "psnr", "ssim", "kid_teacher", *EYED)
    teacher["quality"] = quality(0.0, 128, role) | dict.fromkeys(to_itself)
    macs = 300.7e6
    teacher["cost"] = {"core_macs": 100.7e6, "density": 1.0, "draw_macs": 40 * macs, "added": 0}
    teacher["fewer"] = [_with_steps(steps, macs) for steps in (5, 8, 10)]
    teacher["pictures"] = {
        "pictures": 128,
        "steps": 20,
        "quick_pictures": 64,
        "quick_steps": 8,
        "cross": 2,
        "cross_pictures": 24,
        "errors": 64,
        "seed": 1000,
    }
    teacher["quick"] = {"shape": measure(0.94, 0.04), "colour": measure(0.99, 0.01)}
    project.write_json(project.result(f"teacher-{role}", write=True), teacher)
    _chance(role)


def _with_steps(steps: int, macs: float) -> dict:
    """Invent what the teacher of 20 steps draws with fewer."""
    near = {
        "psnr": measure(2.5 * steps + 10, 1.5, 64),
        "ssim": measure(1 - 0.8 / steps, 0.02, 64),
        "eye_distance": measure(0.9 / steps, 0.02, 64),
    }
    return {"steps": steps, "quality": near, "cost": {"draw_macs": 2 * steps * macs}}


def _chance(role: str) -> None:
    guess = {"shape": 0.1, "colour": 1 / 6}
    guess |= {"two_shapes": 0.02, "two_colours": 0.05, "relation": 0.25} if role != "class" else {}
    values = {name: {"value": value} for name, value in guess.items()}
    values["eye_distance"] = measure(0.6, 0.02)
    chance = {"student": f"chance-{role}", "teacher": role, "quality": values}
    project.write_json(project.result(f"chance-{role}", write=True), chance)


def _benchmark() -> None:
    run = {"facts": FACTS, "rows": _attention_timings(), "steps": _step_timings()}
    project.write_json(project.run_result("benchmark-class", write=True), run)


def _attention_timings() -> list[dict]:
    dense = "scaled_dot_product_attention"
    growth = {  # power of the tokens, factor
        dense: (2.0, 1.0),
        "softmax": (2.0, 1.1),
        "clear": (1.02, 2.0),
        "clear-pool": (1.7, 1.5),
        "linfusion": (1.0, 0.7),
        "mediator": (1.0, 0.9),
        "lit": (1.0, 1.4),
    }
    timings = []
    for name, (power, factor) in growth.items():
        for tokens in (256, 1024, 4096, 16384):
            seconds = 2e-3 * factor * (tokens / 256) ** power
            timing = {"operator": name, "tokens": tokens, "seconds": seconds}
            timings.append({**timing, "baseline": dense})
    skipped = {"operator": "softmax", "tokens": 65536, "seconds": None, "baseline": dense}
    return [*timings, {**skipped, "skipped": "too slow"}]


def _step_timings() -> list[dict]:
    timings = []
    for tokens, share in ((256, 0.25), (1024, 0.5)):
        for name, seconds in (("dense", 4e-3), ("clear", 3.2e-3), ("lit", 5e-3)):
            bounds = {"ratio": 4e-3 / seconds, "share": share, "most": 1 / (1 - share)}
            timings.append({"operator": name, "tokens": tokens, "seconds": seconds, **bounds})
    return timings


def _anatomy(students: dict) -> None:
    sizes = {
        "distance": 3,
        "share": 0.5,
        "entropy": 0.6,
        "rank": 20,
        "similarity": None,
        "redundancy": 0.2,
    }
    tables = {name: _by_layer(size) for name, size in sizes.items()}
    units = {name: f"What {name} means" for name in sizes}
    content = {
        "noise": NOISE,
        "layers": list(range(6)),
        "teacher": tables,
        "units": units,
        "query": 136,
    }
    project.write_json(project.result("anatomy-class", write=True), content)
    y, x = np.mgrid[:16, :16]
    ball = np.exp(-((y - 8) ** 2 + (x - 8) ** 2) / 12)
    of_class = [name for name, entry in students.items() if role_of(entry) == "class"]
    maps = {}
    for index, name in enumerate(("teacher", *of_class)):
        weights = ball ** (1 + index / 3)
        maps[f"map.{name}"] = weights / weights.sum()
    arrays = {"picture": _frames("class")[0], **maps}
    save_arrays(arrays, project.pictures("anatomy-class", write=True))


def _plan() -> None:
    """Invent what the DiT's layers lose, and plans that lose half of what two rules do."""
    stages = {"untrained": _planned(1.0), "layerwise": _planned(0.4)}
    content = {"n": 16, "seed": 3, "noise": NOISE, "until": [], "layerwise_steps": 50}
    content |= {"layers": list(range(6)), "stages": stages, "teacher": "class", "profile": "nano"}
    project.write_json(project.result("plan-class", write=True), content)
    run = {"facts": FACTS, "seconds": {"measure": 60.0}}
    project.write_json(project.run_result("plan-class", write=True), run)


def _planned(scale: float) -> dict:
    losses = {"disc": [0.3, 0.03, 0.02, 0.03, 0.05, 0.2], "disc-pool": [0.1] * 6}
    losses = {name: [[scale * loss] for loss in of_name] for name, of_name in losses.items()}
    plans, choices = [], []
    for budget, error in ((0.25, 0.2), (0.5, 0.08)):
        point = {"budget": budget, "cost": budget - 0.01}
        choice = [["softmax"], *[["disc"]] * 5]
        plans.append({**point, "error": scale * error, "choice": choice})
        for rule in ("interleaved", "first"):
            for label, worse in (("disc", 3), ("disc-pool", 2)):
                row = {"rule": rule, "candidate": label, "error": scale * error * worse}
                choices.append({**point, **row})
    return {"losses": losses, "plans": plans, "choices": choices}


def _by_layer(size: float | None) -> list[list[float | None]]:
    """Vary a measure over layers and noise levels; one that cannot be taken stays None."""
    if size is None:
        return [[None] * len(NOISE)] * 6
    layers = []
    for layer in range(6):
        layers.append([size * (1 + 0.3 * math.sin(layer + 3 * level)) for level in NOISE])
    return layers


def _frames(role: str) -> np.ndarray:
    return (world.render(scenes(role), 64).numpy() * 255).round().astype(np.uint8)


def save_arrays(arrays: dict[str, np.ndarray], path) -> None:
    """Write arrays as a stage does, with the file's own digest."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays}
    sealed.save(tensors, path)


def _pictures(role: str, students: list[str], failed: str | None) -> None:
    frames = _frames(role)
    labels = np.array([scene.label for scene in scenes(role)])
    draw = np.random.default_rng(0)

    def spoilt(amount: float) -> np.ndarray:
        noise = draw.normal(0, 255 * amount, frames.shape)
        return np.clip(frames + noise, 0, 255).round().astype(np.uint8)

    path = project.pictures(f"teacher-{role}", write=True)
    save_arrays({"pictures": frames, "labels": labels}, path)
    for name in students:
        if name != failed:
            before, after = ERRORS[name]
            arrays = {
                "pictures": spoilt(after),
                "undistilled": spoilt(min(before, 0.5)),
                "labels": labels,
            }
            save_arrays(arrays, project.pictures(name, write=True))


torch.set_num_threads(1)


@contextlib.contextmanager
def written(folder, students, **options):
    """Write the results into a folder that stands for the repository meanwhile, and yield it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(project, "ROOT", folder)
        patch.setenv(project.PIPELINE, "1")
        write_all(students, **options)
        yield folder
