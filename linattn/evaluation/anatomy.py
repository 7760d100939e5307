"""Measure the teacher's attention, and draw every operator's map of one token beside the teacher's
map.

- The numbers are means over pictures and heads, one for each layer and noise level. diagnostics.py
  says what they mean.
- The maps come from converted, untrained operators on the teacher's queries and keys. They show
  what the form of an operator can express before anything is learned. params.yaml lists these
  operators apart from the students.
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
    """Return the numbers of `wanted` of `count` layers, evenly spread, with the first and the last
    among them.
    """
    if wanted is None or wanted >= count:
        return list(range(count))
    if wanted == 1:
        return [count // 2]
    return [round(index * (count - 1) / (wanted - 1)) for index in range(wanted)]


def of_teacher(teacher: Teacher, samples: Samples, settings: params.Anatomy) -> dict[str, Any]:
    """Measure the teacher's attention on the first samples.

    The result is {n, noise, layers, heads, units, teacher: {measure: [layer][noise]}, by_head:
    {measure: [head][layer][noise]}}.
    """
    latents, conditioning = samples.first(min(settings.pictures, len(samples)))
    total = len(families.layers(teacher.model))
    layers = chosen_layers(total, settings.layers)
    rows = diagnostics.anatomy(
        teacher, latents, conditioning, settings.noise, layers=layers, seed=settings.seed
    )
    values = {
        (row["measure"], row["layer"], row["noise"], row["head"]): row["value"] for row in rows
    }
    heads = 1 + max(row["head"] for row in rows if row["head"] is not None)

    def table(measure: str, head: int | None) -> list[list[float | None]]:
        layer_rows = []
        for layer in layers:
            layer_rows.append(
                [values.get((measure, layer, noise, head)) for noise in settings.noise]
            )
        return layer_rows

    by_head = {}
    for measure in NAMES:
        if measure != "similarity":
            by_head[measure] = [table(measure, head) for head in range(heads)]
    return {
        "n": len(latents),
        "noise": list(settings.noise),
        "layers": layers,
        "heads": heads,
        "units": NAMES,
        "teacher": {measure: table(measure, None) for measure in NAMES},
        "by_head": by_head,
    }


@torch.no_grad()
def maps(
    teacher: Teacher,
    samples: Samples,
    operators: dict[str, params.Student],
    settings: params.Anatomy,
    query: int,
) -> dict[str, Tensor]:
    """Return one picture, and the attention map of token `query` for the teacher and each operator.

    A map is (height, width), the mean over heads in the middle layer at the middle noise level.
    """
    latents, conditioning = samples.first(1)
    layer = len(families.layers(teacher.model)) // 2
    t = level_time(middle(settings.noise), teacher.diffusion.steps)
    noisy = noised(teacher, latents, t, settings.seed)
    tensors = {"picture": teacher.decode(latents).cpu()}
    models = {"teacher": teacher.model}
    for name, operator in operators.items():
        one_layer = dataclasses.replace(operator, layers=(layer,))
        models[name] = converted(teacher.model, one_layer, settings.seed)
    for name, model in models.items():
        attention_map, grid = diagnostics.layer_maps(
            teacher, noisy, t, conditioning, [layer], model=model
        )[layer]
        token = grid.text + min(query, grid.picture - 1)
        row = attention_map[0, :, token, grid.text :].mean(0)  # (picture tokens,)
        tensors[f"map.{name}"] = row.float().reshape(grid.height, grid.width).contiguous()
    return tensors


def middle(levels: Sequence[float]) -> float:
    """Return the median noise level, the higher one of an even number."""
    return sorted(levels)[len(levels) // 2]


def run(profile: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Run the whole stage: write the numbers into the results and the maps beside the pictures."""
    from linattn import teachers

    settings = params.load(profile)
    entry = settings.teacher("class")
    teacher = teachers.load(entry.place, device=project.device(), **entry.hub)
    samples = Samples(project.samples())
    query = settings.report.query
    operators = settings.operators["anatomy"]
    result = of_teacher(teacher, samples, settings.anatomy)
    result |= {"query": query, "order": ["teacher", *operators], "profile": settings.profile}
    tensors = maps(teacher, samples, operators, settings.anatomy, query)
    project.write_json(project.result("anatomy", write=True), result)
    save_file(tensors, project.pictures("anatomy", write=True))
    return result, tensors
