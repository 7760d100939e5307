"""Show what a trace holds: predicted pictures side by side, and attention over them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from linattn.attention.grid import Grid
from linattn.explore.tracing import Trace
from linattn.explore.weights import attention, check, covering, head
from linattn.report import figures
from linattn.report.picture import Picture


def beside(
    teacher: Trace, student: Trace, step: int, names: tuple[str, str] = ("teacher", "student")
) -> Picture:
    """Show the finished picture that each predicts at one step, and the difference.

    Args:
        teacher: how the teacher drew the picture.
        student: how the student drew it from the same noise.
        step: the number of the step.
        names: titles of the two pictures.
    """
    check("step", step, min(teacher.steps, student.steps))
    return figures.difference(teacher.beliefs[step], student.beliefs[step], names)


def looking(
    models: Mapping[str, nn.Module],
    traces: Mapping[str, Trace],
    step: int,
    layer: int,
    token: int,
    number: int | None = None,
) -> Picture:
    """Show the attention of a token in each model, over the first model's picture at `step`.

    Args:
        models: the models by name.
        traces: how each of them drew the picture, by the same names.
        step: the number of the step.
        layer: the number of the layer in forward order.
        token: the number of the picture's token, row by row.
        number: the number of the head; None takes the mean over heads.
    """
    first = next(iter(traces.values()))
    weights = {
        name: head(attention(model, traces[name], step, layer, token), number)
        for name, model in models.items()
    }
    height, width = next(iter(weights.values())).shape  # a UNet's level has a grid of its own
    query = covering(token, first.grid, Grid(height, width))
    panels = {name: panel.numpy() for name, panel in weights.items()}
    return figures.attention_over(first.beliefs[step], panels, query)


def token_colours(picture: Tensor, grid: Grid) -> list[str]:
    """Return the mean colour of each token's patch as #rrggbb, row by row.

    Args:
        picture: (3, side, side) in [0, 1].
        grid: how the tokens lie.
    """
    sides = (grid.height, grid.width)
    patches = torch.nn.functional.adaptive_avg_pool2d(picture[None].float(), sides)[0]
    values = (patches.clamp(0, 1) * 255).round().int().flatten(1).T.tolist()  # (tokens, 3)
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in values]
