"""Measure a teacher's attention, and draw every operator's map of one token beside its own.

- The numbers are means over pictures and heads, one for each layer and noise level. diagnostics.py
  says what they mean.
- The maps come from converted, untrained operators on the teacher's queries and keys. They show
  what the form of an operator can express before anything is learned. params.yaml lists these
  operators apart from the students.
- Only self-attention is measured, since no operator replaces another. Where a model reads captions,
  the result says in words how its picture tokens read them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from linattn import families, params, project, sealed
from linattn.attention.grid import Grid
from linattn.conditions import Prompts
from linattn.evaluation import diagnostics
from linattn.evaluation.distance import level_time, noised
from linattn.families import Layer
from linattn.samples import Samples
from linattn.surgery.conversion import converted
from linattn.teachers import Teacher

UNITS = {
    "distance": "Mean distance a token looks, in tokens",
    "share": "Share of attention within 3 tokens",
    "entropy": "Entropy of a row, over log N",
    "rank": "Effective rank of a map",
    "similarity": "Similarity of heads, cosine",
    "redundancy": "Divergence of rows, Jensen-Shannon, nats",
    "text": "Share of a picture token's attention on the text",
}
LAYER_MEASURES = ("similarity",)  # measures of all heads of a layer together
JOINT = (
    "Text and picture are one sequence here, so a picture token shares its attention between them: "
    "one of the figures says how much goes to the text. Distances are those among picture tokens; "
    "the other measures are of whole rows, text included."
)
CROSS = (
    "This model reads its captions by cross-attention, in layers of their own that no operator "
    "replaces. A picture token's self-attention, which is measured here, holds no text."
)


def chosen_layers(count: int, wanted: int | None) -> list[int]:
    """Return the numbers of `wanted` of `count` layers, evenly spread from first to last."""
    if wanted is None or wanted >= count:
        return list(range(count))
    if wanted == 1:
        return [count // 2]
    return [round(index * (count - 1) / (wanted - 1)) for index in range(wanted)]


def of_teacher(teacher: Teacher, samples: Samples, settings: params.Anatomy) -> dict[str, Any]:
    """Measure the teacher's attention on the first samples.

    The result is {n, noise, layers, heads, units, teacher: {measure: [layer][noise]}, by_head:
    {measure: [head][layer][noise]}}. It also has {layer_names: [layer]} where the layers' grids
    differ, and {text: a sentence on how captions are read} where the model reads any.
    """
    latents, prompts = samples.first(min(settings.pictures, len(samples)))
    layers = families.layers(teacher.model)
    numbers = chosen_layers(len(layers), settings.layers)
    rows = diagnostics.anatomy(
        teacher, latents, prompts, settings.noise, layers=numbers, seed=settings.seed
    )
    tables = Tables(rows, numbers, settings.noise)
    return {
        "n": len(latents),
        "noise": list(settings.noise),
        "layers": numbers,
        "heads": tables.heads,
        "units": {measure: UNITS[measure] for measure in UNITS if measure in tables.measures},
        "teacher": tables.means(),
        "by_head": tables.by_head(),
        **layer_names(_grids(teacher, latents, prompts), numbers),
        **_text_sentence(teacher.model, layers),
    }


class Tables:
    """Arrange the rows of diagnostics.anatomy by measure, layer and noise level."""

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], layers: Sequence[int], levels: Sequence[float]
    ):
        self.layers, self.levels = layers, levels
        self.values = {
            (row["measure"], row["layer"], row["noise"], row["head"]): row["value"] for row in rows
        }
        self.measures = {row["measure"] for row in rows}
        self.heads = 1 + max(row["head"] for row in rows if row["head"] is not None)

    def table(self, measure: str, head: int | None) -> list[list[float | None]]:
        """Return [layer][noise] of one head, or of the mean over heads for None."""
        layer_rows = []
        for layer in self.layers:
            keys = [(measure, layer, level, head) for level in self.levels]
            layer_rows.append([self.values.get(key) for key in keys])
        return layer_rows

    def means(self) -> dict[str, Any]:
        return {measure: self.table(measure, None) for measure in self.measures}

    def by_head(self) -> dict[str, Any]:
        tables = {}
        for measure in self.measures.difference(LAYER_MEASURES):
            tables[measure] = [self.table(measure, head) for head in range(self.heads)]
        return tables


def layer_names(grids: Sequence[Grid], numbers: Sequence[int]) -> dict[str, list[str]]:
    """Name the numbered layers by their grids, or return nothing where all grids are the same."""
    chosen = [grids[number] for number in numbers]
    if all(grid == chosen[0] for grid in chosen):
        return {}
    pairs = zip(numbers, chosen, strict=True)
    return {"layer_names": [f"{number}: {grid.height} x {grid.width}" for number, grid in pairs]}


def _grids(teacher: Teacher, latents: Tensor, prompts: Prompts) -> list[Grid]:
    """Return every layer's grid for latents of this size."""
    height, width = latents.shape[-2:]
    inputs = teacher.conditions.example(height, width, prompts[:1])
    with torch.no_grad():
        return families.grids(teacher.model, **inputs)


def _text_sentence(model: nn.Module, layers: Sequence[Layer]) -> dict[str, str]:
    """Return the sentence on how picture tokens read captions, or nothing where they read none."""
    if any(layer.processor.has_text for layer in layers):
        return {"text": JOINT}
    has_cross_attention = len(families.attentions(model)) > len(layers)
    return {"text": CROSS} if has_cross_attention else {}


@torch.no_grad()
def maps(
    teacher: Teacher,
    samples: Samples,
    operators: Mapping[str, params.Student],
    settings: params.Anatomy,
    query: int,
) -> dict[str, Tensor]:
    """Return one picture, and the attention map of token `query` for the teacher and each operator.

    A map is (height, width), the mean over heads at the middle noise level, in the middle one of
    the layers with the finest grid.
    """
    latents, prompts = samples.first(1)
    layer = middle(finest(_grids(teacher, latents, prompts)))
    t = level_time(middle(settings.noise), teacher.diffusion.steps)
    noisy = noised(teacher, latents, t, settings.seed)
    tensors = {"picture": teacher.decode(latents).cpu()}
    models = {"teacher": teacher.model}
    for name, operator in operators.items():
        one_layer = dataclasses.replace(operator, layers=(layer,))
        models[name] = converted(teacher.model, one_layer, settings.seed)
    for name, model in models.items():
        attention_map, grid = diagnostics.layer_maps(
            teacher, noisy, t, prompts, [layer], model=model
        )[layer]
        token = grid.text + min(query, grid.picture - 1)
        row = attention_map[0, :, token, grid.text :].mean(0)  # (picture tokens,)
        tensors[f"map.{name}"] = row.float().reshape(grid.height, grid.width).contiguous()
    return tensors


def finest(grids: Sequence[Grid]) -> list[int]:
    """Return the numbers of the layers whose grid has most picture tokens."""
    most = max(grid.picture for grid in grids)
    return [number for number, grid in enumerate(grids) if grid.picture == most]


def middle(values: Sequence[Any]) -> Any:
    """Return the median, the higher one of an even number."""
    return sorted(values)[len(values) // 2]


def run(role: str, profile: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Run the whole stage of one teacher: write its numbers and its maps."""
    from linattn import roles

    settings = params.load(profile)
    teacher = roles.load(settings, role)
    samples = Samples(project.samples(role))
    query = settings.report.query
    operators = settings.operators["anatomy"]
    result = of_teacher(teacher, samples, settings.anatomy)
    result |= {"query": query, "order": ["teacher", *operators], "profile": settings.profile}
    tensors = maps(teacher, samples, operators, settings.anatomy, query)
    name = project.anatomy_row(role)
    project.write_json(project.result(name, write=True), result)
    sealed.save(tensors, project.pictures(name, write=True))
    return result, tensors
