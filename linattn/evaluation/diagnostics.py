"""What an attention map looks like: which operator could stand in for it, asked before anything is trained.

- Every measure takes maps (batch, heads, tokens, tokens) and returns plain tensors, (batch, heads) or (batch,).
- Locality says whether a window would do, effective rank whether a linear map would (its rank is at most head_dim),
  head similarity whether fewer heads would (LiT), redundancy of rows whether mediators would.
- Measures over rows need distributions. A row that is none is made one: negative entries become zero, the rest is
  divided by its sum, an empty row becomes uniform.
- `anatomy` asks a whole model, layer by layer and noise level by noise level, and returns a table.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn import families, sampling
from linattn.attention.grid import Grid
from linattn.conditions import Asked
from linattn.evaluation.distance import LEVELS, diffusion_of, level_time, noised

ROWS = 128  # redundancy compares all pairs of this many rows at most: 256 rows would be four times the work


def distributions(maps: Tensor) -> Tensor:
    """Rows that are non-negative and sum to one, in at least float32."""
    _check_maps(maps)
    rows = maps.to(torch.promote_types(maps.dtype, torch.float32)).clamp_min(0)
    total = rows.sum(-1, keepdim=True)
    uniform = torch.full_like(rows, 1 / rows.shape[-1])
    return torch.where(total > 0, rows / total.where(total > 0, 1), uniform)


def locality(maps: Tensor, grid: Grid, radius: float = 3) -> dict[str, Tensor]:
    """Where on the picture a token looks, each (batch, heads).

    `share`: attention inside CLEAR's open disc dy^2 + dx^2 < radius^2; `distance`: the mean distance in tokens. Only
    picture tokens take part, rows renormalised over them.
    """
    if radius <= 0:
        raise ValueError(f"a radius of {radius}; it must be positive (1 is the token itself)")
    _check_maps(maps)
    if maps.shape[-1] != grid.tokens:
        raise ValueError(
            f"the maps have {maps.shape[-1]} tokens, the {grid} has {grid.tokens}; pass the map's own grid"
        )
    rows = distributions(maps[..., grid.text :, grid.text :])
    apart = token_distances(grid).to(rows)
    inside = (apart < radius).to(rows.dtype)
    return {"share": (rows * inside).sum(-1).mean(-1), "distance": (rows * apart).sum(-1).mean(-1)}


def token_distances(grid: Grid) -> Tensor:
    """Euclidean distances between picture tokens: (picture, picture)."""
    y, x = torch.meshgrid(torch.arange(grid.height), torch.arange(grid.width), indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], 1).double()
    return torch.linalg.vector_norm(places[:, None] - places[None], dim=-1)


def entropy(maps: Tensor) -> Tensor:
    """Mean entropy of the rows over log N: 0 looks at one token, 1 at all alike (and a lone token counts as 0)."""
    rows = distributions(maps)
    if rows.shape[-1] == 1:
        return rows.new_zeros(rows.shape[:2])
    return row_entropy(rows).mean(-1) / math.log(rows.shape[-1])


def row_entropy(rows: Tensor) -> Tensor:
    """Of distributions along the last dimension, in nats."""
    return -torch.xlogy(rows, rows).sum(-1)


def effective_rank(maps: Tensor) -> Tensor:
    """exp(entropy of the singular values, divided by their sum), (batch, heads): from 1 to N; 0 for an empty map."""
    _check_maps(maps)
    values = torch.linalg.svdvals(maps.to(torch.promote_types(maps.dtype, torch.float32)))  # (batch, heads, tokens)
    total = values.sum(-1, keepdim=True)
    rank = row_entropy(values / total.where(total > 0, 1)).exp()
    return rank.where(total.squeeze(-1) > 0, 0)


def head_similarity(maps: Tensor) -> Tensor:
    """Mean cosine over all pairs of heads of the flattened maps, (batch,); NaN for a single head, which has no pair."""
    _check_maps(maps)
    batch, heads = maps.shape[:2]
    flat = F.normalize(maps.flatten(2).to(torch.promote_types(maps.dtype, torch.float32)), dim=-1, eps=1e-30)
    if heads == 1:
        return flat.new_full((batch,), math.nan)
    cosines = flat @ flat.mT  # (batch, heads, heads)
    return (cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)) / (heads * (heads - 1))


def row_redundancy(maps: Tensor, rows: int = ROWS, seed: int = 0) -> Tensor:
    """Mean Jensen-Shannon divergence over all pairs of rows in nats, (batch, heads): LOW is redundant, log 2 the most.

    The mean over heads is the Mediators' S = 2 / (M N (N-1)) sum_heads sum_{i<j} JSD(A_i, A_j). With more than `rows`
    tokens, the pairs are those of `rows` tokens drawn from the seed: still an unbiased mean.
    """
    if rows < 2:
        raise ValueError(f"{rows} rows; a pair needs 2")
    each = distributions(maps)
    if each.shape[-2] > rows:
        chosen = torch.randperm(each.shape[-2], generator=torch.Generator().manual_seed(seed))[:rows].sort().values
        each = each[..., chosen.to(each.device), :]
    count = each.shape[-2]
    if count == 1:
        return each.new_zeros(each.shape[:2])
    own = row_entropy(each)  # (batch, heads, rows)
    total = each.new_zeros(each.shape[:2])
    for i in range(count - 1):  # one row against all later ones: memory stays that of the maps
        middle = row_entropy((each[..., i : i + 1, :] + each[..., i + 1 :, :]) / 2)
        total += (middle - (own[..., i : i + 1] + own[..., i + 1 :]) / 2).sum(-1)
    return (2 * total / (count * (count - 1))).clamp_min(0)


# A whole model -------------------------------------------------------------------------------------------------------


def measures(grid: Grid, radius: float = 3, rows: int = ROWS) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name -> measure of maps; those of whole layers return (batch,), the others (batch, heads)."""
    return {
        "share": lambda maps: locality(maps, grid, radius)["share"],
        "distance": lambda maps: locality(maps, grid, radius)["distance"],
        "entropy": entropy,
        "rank": effective_rank,
        "redundancy": lambda maps: row_redundancy(maps, rows),
        "similarity": head_similarity,
    }


def table(maps: Tensor, grid: Grid, radius: float = 3, rows: int = ROWS, **place: Any) -> list[dict[str, Any]]:
    """Rows {**place, head, measure, value}: means over the batch; head None: the layer as a whole.

    A measure of heads has a row for their mean too (head None): for redundancy that mean is the Mediators' S.
    """
    found = []
    for name, measure in measures(grid, radius, rows).items():
        value = measure(maps).double().mean(0)
        for head, each in enumerate(value.tolist() if value.ndim else []):
            found.append({**place, "head": head, "measure": name, "value": _plain(each)})
        found.append({**place, "head": None, "measure": name, "value": _plain(value.mean().item())})
    return found


@torch.no_grad()
def anatomy(
    teacher: Any,
    latents: Tensor,
    asked: Asked,
    levels: Iterable[float] = LEVELS,
    *,
    layers: Sequence[int] | None = None,
    model: Any = None,
    radius: float = 3,
    rows: int = ROWS,
    seed: int = 0,
    batch: int = 8,
) -> list[dict[str, Any]]:
    """A table of {layer, noise, head, measure, value} over noised latents; `model` asks a student instead.

    `asked` is a label or a caption a picture, and every layer is measured on its own grid: a UNet's levels differ.
    Latents are noised as in `distance.prediction_error`: the same picture, level and seed give the same noise.
    """
    if len(latents) == 0 or len(latents) != len(asked):
        raise ValueError(f"{len(latents)} latents and {len(asked)} conditions; pass as many of each, at least 1")
    steps = diffusion_of(teacher).steps
    found = []
    for level in levels:
        t = level_time(level, steps)
        maps: dict[int, list[Tensor]] = {}
        grids: dict[int, Grid] = {}
        for start in range(0, len(latents), batch):
            part = slice(start, start + batch)
            noisy = noised(teacher, latents[part], t, seed, start)
            for layer, (each, grid) in layer_maps(teacher, noisy, t, asked[part], layers, model=model).items():
                maps.setdefault(layer, []).append(each)
                grids[layer] = grid
        for layer, parts in maps.items():
            found += table(torch.cat(parts), grids[layer], radius, rows, layer=layer, noise=level)
    return found


@torch.no_grad()
def layer_maps(
    teacher: Any, noisy: Tensor, t: int, asked: Asked, layers: Sequence[int] | None = None, *, model: Any = None
) -> dict[int, tuple[Tensor, Grid]]:
    """Of the numbered layers (None: all) from one forward: map (batch, heads, tokens, tokens) on the CPU, and grid.

    `model` is asked instead of the teacher's own; how it is told what to draw is the teacher's.
    """
    source = sampling.Source.of(teacher, None if model is None else families.model_of(model))
    every = families.layers(source.model)
    numbers = range(len(every)) if layers is None else layers
    if wrong := [number for number in numbers if not 0 <= number < len(every)]:
        raise ValueError(f"layer {wrong[0]} of a model with {len(every)}; they are 0..{len(every) - 1}")
    weight, told = next(source.model.parameters()), source.conditions
    times = torch.full((len(noisy),), t, device=weight.device)
    rows = told.rows(told.check(asked))
    with sampling.evaluating(source.model), families.capture(source.model, detach=True) as seen:
        told.call(source.model, noisy.to(weight.device, weight.dtype), times, rows)
    found = {}
    for number in numbers:
        x, grid, noise, more = (seen[number][name] for name in ("input", "grid", "noise", "more"))
        found[number] = families.attention_map(every[number], x, grid, noise, **more).cpu(), grid
    return found


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _check_maps(maps: Tensor) -> None:
    if maps.ndim != 4 or maps.shape[-1] != maps.shape[-2] or maps.numel() == 0:
        raise ValueError(f"maps are {tuple(maps.shape)}; they must be (batch, heads, tokens, tokens), none of them 0")
    if not maps.is_floating_point():
        raise ValueError(f"maps are {maps.dtype}; pass attention weights as floating-point numbers")
