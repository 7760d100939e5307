"""Measure attention maps, to say which operator could replace the attention before anything is
trained.

- Every measure takes maps (batch, heads, tokens, tokens) and returns plain tensors, (batch, heads)
  or (batch,).
- Locality says whether a window suffices. Effective rank says whether linear attention suffices,
  whose rank is at most head_dim. Head similarity says whether fewer heads suffice (LiT). Redundancy
  of rows says whether mediators suffice.
- Measures over rows need distributions. A row that is not a distribution is made one: negative
  entries become zero, the others are divided by their sum, and an empty row becomes uniform.
- `anatomy` measures a whole model, layer by layer and noise level by noise level, and returns a
  table.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn import families, sampling
from linattn.attention.grid import Grid
from linattn.conditions import Prompts
from linattn.evaluation.distance import LEVELS, diffusion_of, level_time, noised

# redundancy compares all pairs of at most this many rows: 256 rows would be four times the work
ROWS = 128


def distributions(maps: Tensor) -> Tensor:
    """Make every row non-negative with a sum of one, in at least float32."""
    _check_maps(maps)
    rows = maps.to(torch.promote_types(maps.dtype, torch.float32)).clamp_min(0)
    total = rows.sum(-1, keepdim=True)
    uniform = torch.full_like(rows, 1 / rows.shape[-1])
    return torch.where(total > 0, rows / total.where(total > 0, 1), uniform)


def locality(maps: Tensor, grid: Grid, radius: float = 3) -> dict[str, Tensor]:
    """Measure where on the picture a token looks: `share` and `distance`, both (batch, heads).

    `share` is the attention inside CLEAR's open disc dy^2 + dx^2 < radius^2. `distance` is the mean
    distance in tokens. Only picture tokens take part; rows are renormalised over them.
    """
    if radius <= 0:
        raise ValueError(f"a radius of {radius}; it must be positive (1 is the token itself)")
    _check_maps(maps)
    if maps.shape[-1] != grid.tokens:
        raise ValueError(
            f"the maps have {maps.shape[-1]} tokens, the {grid} has {grid.tokens}; pass the grid "
            "of the maps"
        )
    rows = distributions(maps[..., grid.text :, grid.text :])
    distances = token_distances(grid).to(rows)
    inside = (distances < radius).to(rows.dtype)
    return {
        "share": (rows * inside).sum(-1).mean(-1),
        "distance": (rows * distances).sum(-1).mean(-1),
    }


def token_distances(grid: Grid) -> Tensor:
    """Return the Euclidean distances between picture tokens: (picture, picture)."""
    y, x = torch.meshgrid(torch.arange(grid.height), torch.arange(grid.width), indexing="ij")
    positions = torch.stack([y.flatten(), x.flatten()], 1).double()
    return torch.linalg.vector_norm(positions[:, None] - positions[None], dim=-1)


def entropy(maps: Tensor) -> Tensor:
    """Average the entropy of the rows over log N.

    The value is 0 where every row looks at one token, and 1 where it looks at all tokens alike. A
    map of a single token counts as 0.
    """
    rows = distributions(maps)
    if rows.shape[-1] == 1:
        return rows.new_zeros(rows.shape[:2])
    return row_entropy(rows).mean(-1) / math.log(rows.shape[-1])


def row_entropy(rows: Tensor) -> Tensor:
    """Return the entropy of distributions along the last dimension, in nats."""
    return -torch.xlogy(rows, rows).sum(-1)


def effective_rank(maps: Tensor) -> Tensor:
    """Return exp(entropy of the singular values divided by their sum), (batch, heads).

    The rank reaches from 1 to N; an empty map has 0.
    """
    _check_maps(maps)
    float_maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    singular_values = torch.linalg.svdvals(float_maps)  # (batch, heads, tokens)
    total = singular_values.sum(-1, keepdim=True)
    rank = row_entropy(singular_values / total.where(total > 0, 1)).exp()
    return rank.where(total.squeeze(-1) > 0, 0)


def head_similarity(maps: Tensor) -> Tensor:
    """Average the cosine of the flattened maps over all pairs of heads, (batch,).

    The value is NaN for a single head, which has no pair.
    """
    _check_maps(maps)
    batch, heads = maps.shape[:2]
    flat = F.normalize(
        maps.flatten(2).to(torch.promote_types(maps.dtype, torch.float32)), dim=-1, eps=1e-30
    )
    if heads == 1:
        return flat.new_full((batch,), math.nan)
    cosines = flat @ flat.mT  # (batch, heads, heads)
    return (cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)) / (heads * (heads - 1))


def row_redundancy(maps: Tensor, rows: int = ROWS, seed: int = 0) -> Tensor:
    """Average the Jensen-Shannon divergence over all pairs of rows in nats, (batch, heads).

    A LOW value means redundant rows; the largest value is log 2. The mean over heads is the
    Mediators' S = 2 / (M N (N-1)) sum_heads sum_{i<j} JSD(A_i, A_j). With more than `rows` tokens,
    the pairs are those of `rows` tokens drawn from the seed, which keeps the mean unbiased.
    """
    if rows < 2:
        raise ValueError(f"{rows} rows; a pair needs 2")
    p = distributions(maps)
    if p.shape[-2] > rows:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(p.shape[-2], generator=generator)[:rows].sort().values
        p = p[..., chosen.to(p.device), :]
    count = p.shape[-2]
    if count == 1:
        return p.new_zeros(p.shape[:2])
    entropies = row_entropy(p)  # (batch, heads, rows)
    total = p.new_zeros(p.shape[:2])
    # one row against all later rows at a time, so that memory stays that of the maps
    for i in range(count - 1):
        mixture_entropies = row_entropy((p[..., i : i + 1, :] + p[..., i + 1 :, :]) / 2)
        total += (
            mixture_entropies - (entropies[..., i : i + 1] + entropies[..., i + 1 :]) / 2
        ).sum(-1)
    return (2 * total / (count * (count - 1))).clamp_min(0)


# A whole model
# ---------------------------------------------------------------------------------------------


def measures(
    grid: Grid, radius: float = 3, rows: int = ROWS
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Map a name to its measure of maps: measures of whole layers return (batch,), the others
    (batch, heads).
    """
    return {
        "share": lambda maps: locality(maps, grid, radius)["share"],
        "distance": lambda maps: locality(maps, grid, radius)["distance"],
        "entropy": entropy,
        "rank": effective_rank,
        "redundancy": lambda maps: row_redundancy(maps, rows),
        "similarity": head_similarity,
    }


def table(
    maps: Tensor, grid: Grid, radius: float = 3, rows: int = ROWS, **keys: Any
) -> list[dict[str, Any]]:
    """Average every measure over the batch and return rows {**keys, head, measure, value}.

    A row with head None is about the layer as a whole. A measure of heads has such a row for the
    mean over heads too; for redundancy that mean is the Mediators' S.
    """
    table_rows = []
    for name, measure in measures(grid, radius, rows).items():
        mean = measure(maps).double().mean(0)
        for head, value in enumerate(mean.tolist() if mean.ndim else []):
            table_rows.append(
                {**keys, "head": head, "measure": name, "value": _finite_or_none(value)}
            )
        layer_value = _finite_or_none(mean.mean().item())
        table_rows.append({**keys, "head": None, "measure": name, "value": layer_value})
    return table_rows


@torch.no_grad()
def anatomy(
    teacher: Any,
    latents: Tensor,
    conditioning: Prompts,
    levels: Iterable[float] = LEVELS,
    *,
    layers: Sequence[int] | None = None,
    model: Any = None,
    radius: float = 3,
    rows: int = ROWS,
    seed: int = 0,
    batch: int = 8,
) -> list[dict[str, Any]]:
    """Measure the attention on noised latents and return a table of {layer, noise, head, measure,
    value}.

    `model` is measured instead of the teacher's model where it is given. `conditioning` holds one
    label or caption a picture. Every layer is measured on its own grid, because a UNet's levels
    differ. Latents are noised as in `distance.prediction_error`: the same picture, level and seed
    give the same noise.
    """
    if len(latents) == 0 or len(latents) != len(conditioning):
        raise ValueError(
            f"{len(latents)} latents and {len(conditioning)} conditions; pass as many of each, at "
            "least 1"
        )
    steps = diffusion_of(teacher).steps
    table_rows = []
    for level in levels:
        t = level_time(level, steps)
        maps: dict[int, list[Tensor]] = {}
        grids: dict[int, Grid] = {}
        for start in range(0, len(latents), batch):
            chunk = slice(start, start + batch)
            noisy = noised(teacher, latents[chunk], t, seed, start)
            chunk_maps = layer_maps(teacher, noisy, t, conditioning[chunk], layers, model=model)
            for layer, (attention_map, grid) in chunk_maps.items():
                maps.setdefault(layer, []).append(attention_map)
                grids[layer] = grid
        for layer, attention_maps in maps.items():
            table_rows += table(
                torch.cat(attention_maps), grids[layer], radius, rows, layer=layer, noise=level
            )
    return table_rows


@torch.no_grad()
def layer_maps(
    teacher: Any,
    noisy: Tensor,
    t: int,
    conditioning: Prompts,
    layers: Sequence[int] | None = None,
    *,
    model: Any = None,
) -> dict[int, tuple[Tensor, Grid]]:
    """Return the attention maps (batch, heads, tokens, tokens) of the numbered layers on the CPU,
    with their grids.

    One forward gives all maps. `layers` None means all layers. `model` runs instead of the
    teacher's model where it is given, and is conditioned as the teacher is.
    """
    source = sampling.Source.of(teacher, None if model is None else families.model_of(model))
    all_layers = families.layers(source.model)
    numbers = range(len(all_layers)) if layers is None else layers
    if wrong := [number for number in numbers if not 0 <= number < len(all_layers)]:
        raise ValueError(
            f"layer {wrong[0]} of a model with {len(all_layers)}; they are 0..{len(all_layers) - 1}"
        )
    weight, conditions = next(source.model.parameters()), source.conditions
    times = torch.full((len(noisy),), t, device=weight.device)
    encoded = conditions.encode(conditions.check(conditioning))
    with sampling.evaluating(source.model), families.capture(source.model, detach=True) as captured:
        conditions.call(source.model, noisy.to(weight.device, weight.dtype), times, encoded)
    maps = {}
    for number in numbers:
        x, grid, noise, more = (
            captured[number][name] for name in ("input", "grid", "noise", "more")
        )
        attention_map = families.attention_map(all_layers[number], x, grid, noise, **more).cpu()
        maps[number] = attention_map, grid
    return maps


def _finite_or_none(value: float) -> float | None:
    """Replace infinity and NaN, which strict JSON cannot hold, by None."""
    return value if math.isfinite(value) else None


def _check_maps(maps: Tensor) -> None:
    """Refuse what is no batch of floating-point attention maps."""
    if maps.ndim != 4 or maps.shape[-1] != maps.shape[-2] or maps.numel() == 0:
        raise ValueError(
            f"maps are {tuple(maps.shape)}; they must be (batch, heads, tokens, tokens), none of "
            "them 0"
        )
    if not maps.is_floating_point():
        raise ValueError(f"maps are {maps.dtype}; pass attention weights as floating-point numbers")
