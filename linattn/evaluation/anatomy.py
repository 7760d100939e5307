"""The teacher's attention in numbers, and every operator's map of one token beside the teacher's own.

- Numbers are means over pictures and heads, one for each layer and noise level (diagnostics.py says what they mean).
- The maps are of converted, untrained operators on the teacher's own queries and keys: what the form of an operator can
  show, before anything is learned. They come from a list of their own in params.yaml, not from the students.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from linattn import families, params, project
from linattn.evaluation import diagnostics
from linattn.evaluation.distance import level_time, noised
from linattn.samples import Samples
from linattn.surgery.conversion import converted
from linattn.teachers import Teacher

NAMES = {
    "distance": "Mean distance a token looks, in tokens",
    "share": "Share of attention within 3 tokens",
    "entropy": "Entropy of a row, over log N",
    "rank": "Effective rank of a map",
    "similarity": "Similarity of heads, cosine",
    "redundancy": "Divergence of rows, Jensen-Shannon, nats",
}


def chosen_layers(count: int, wanted: int | None) -> list[int]:
    """`wanted` of `count` layers, evenly spread, the first and the last among them."""
    if wanted is None or wanted >= count:
        return list(range(count))
    if wanted == 1:
        return [count // 2]
    return [round(place * (count - 1) / (wanted - 1)) for place in range(wanted)]


def of_teacher(teacher: Teacher, samples: Samples, part: params.Anatomy) -> dict[str, Any]:
    """{noise, layers, heads, teacher: {measure: [layer][noise]}, by_head: {measure: [layer][noise][head]}, units}."""
    latents, asked = samples.first(min(part.pictures, len(samples)))
    total = len(families.layers(teacher.model))
    layers = chosen_layers(total, part.layers)
    rows = diagnostics.anatomy(teacher, latents, asked, part.noise, layers=layers, seed=part.seed)
    found = {(row["measure"], row["layer"], row["noise"], row["head"]): row["value"] for row in rows}
    heads = 1 + max(row["head"] for row in rows if row["head"] is not None)

    def table(measure: str, head: int | None) -> list[list[float | None]]:
        return [[found.get((measure, layer, noise, head)) for noise in part.noise] for layer in layers]

    return {
        "n": len(latents),
        "noise": list(part.noise),
        "layers": layers,
        "heads": heads,
        "units": NAMES,
        "teacher": {measure: table(measure, None) for measure in NAMES},
        "by_head": {
            measure: [table(measure, head) for head in range(heads)] for measure in NAMES if measure != "similarity"
        },
    }


@torch.no_grad()
def maps(
    teacher: Teacher, samples: Samples, operators: dict[str, params.Student], part: params.Anatomy, query: int
) -> dict[str, Tensor]:
    """One picture, and for the teacher and each operator whom token `query` attends to, mean over heads: (h, w)."""
    latents, asked = samples.first(1)
    layer = len(families.layers(teacher.model)) // 2
    t = level_time(middle(part.noise), teacher.diffusion.steps)
    noisy = noised(teacher, latents, t, part.seed)
    found = {"picture": teacher.decode(latents).cpu()}
    models = {"teacher": teacher.model}
    for name, operator in operators.items():
        there = dataclasses.replace(operator, layers=(layer,))
        models[name] = converted(teacher.model, there, part.seed)
    for name, model in models.items():
        seen, grid = diagnostics.layer_maps(teacher, noisy, t, asked, [layer], model=model)[layer]
        row = seen[0, :, grid.text + min(query, grid.picture - 1), grid.text :].mean(0)  # (picture tokens,)
        found[f"map.{name}"] = row.float().reshape(grid.height, grid.width).contiguous()
    return found


def middle(levels: Sequence[float]) -> float:
    return sorted(levels)[len(levels) // 2]


def run(profile: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The whole stage: the numbers into results, the maps beside the pictures."""
    from linattn import teachers

    settings = params.load(profile)
    entry = settings.teacher("class")
    teacher = teachers.load(entry.place, device=project.device(), **entry.hub)
    samples = Samples(project.samples())
    query = settings.report.query
    operators = settings.operators["anatomy"]
    result = of_teacher(teacher, samples, settings.anatomy)
    result |= {"query": query, "order": ["teacher", *operators], "profile": settings.profile}
    shown = maps(teacher, samples, operators, settings.anatomy, query)
    project.write_json(project.result("anatomy", write=True), result)
    save_file(shown, project.pictures("anatomy", write=True))
    return result, shown
