"""Measure attention maps, to say which operator could replace the attention before anything is
trained.

- Every measure takes maps (batch, heads, tokens, tokens) and returns plain tensors, (batch, heads)
  or (batch,).
- Locality says whether a window suffices. Effective rank says whether linear attention suffices,
  whose rank is at most head_dim. Head similarity says whether fewer heads suffice (LiT). Redundancy
  of rows says whether mediators suffice.
- Where text takes part, the share of a picture token's attention that goes to it is measured too.
- Measures over rows need distributions. A row that is not a distribution is made one: negative
  entries become zero, the others are divided by their sum, and an empty row becomes uniform.
- `anatomy` measures a model layer by layer and noise level by noise level, and returns a table.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from linattn import families, sampling
from linattn.attention.grid import Grid
from linattn.conditions import Prompts
from linattn.evaluation.distance import LEVELS, check_latents, diffusion_of, level_time, noised
from linattn.finite import finite
from linattn.reader import between, checked, typed

Measures = Callable[[Grid], Mapping[str, Callable[[Tensor], Tensor]]]
MAPS = {"maps": typed()}
RADIUS = between(0)
RULES: dict[str, Any] = {  # of arguments of this file's functions
    "max_rows": between(2),
    "seed": typed(),
    "radius": RADIUS,
}
MAX_ROWS = 128  # of whose pairs redundancy is the mean: 256 rows would be four times the work


@checked(**MAPS)
def distributions(maps: Tensor) -> Tensor:
    """Make every row non-negative with a sum of one, in at least float32."""
    _check_maps(maps)
    weights = maps.to(torch.promote_types(maps.dtype, torch.float32)).clamp_min(0)
    total = weights.sum(-1, keepdim=True)
    uniform = torch.full_like(weights, 1 / weights.shape[-1])
    return torch.where(total > 0, weights / total.where(total > 0, 1), uniform)


@checked(grid=typed(), radius=RADIUS, **MAPS)
def locality(maps: Tensor, grid: Grid, radius: float = 3) -> dict[str, Tensor]:
    """Measure where on the picture a token looks: `share` and `distance`, both (batch, heads).

    `share` is the attention inside CLEAR's open disc dy^2 + dx^2 < radius^2. `distance` is the mean
    distance in tokens. Only picture tokens take part; rows are renormalised over them.
    """
    if not radius > 0:
        raise ValueError(f"a radius of {radius}; it must be positive (1 is the token itself)")
    _check_maps(maps)
    _check_grid(maps, grid)
    weights = distributions(maps[..., grid.text :, grid.text :])
    distances = token_distances(grid).to(weights)
    inside = (distances < radius).to(weights.dtype)
    return {
        "share": (weights * inside).sum(-1).mean(-1),
        "distance": (weights * distances).sum(-1).mean(-1),
    }


@checked(grid=typed(), **MAPS)
def text_share(maps: Tensor, grid: Grid) -> Tensor:
    """Average the share of its attention that a picture token gives to the text, (batch, heads)."""
    _check_maps(maps)
    _check_grid(maps, grid)
    return distributions(maps)[..., grid.text :, : grid.text].sum(-1).mean(-1)


@checked(grid=typed())
def token_distances(grid: Grid) -> Tensor:
    """Return the Euclidean distances between picture tokens: (picture, picture)."""
    y, x = torch.meshgrid(torch.arange(grid.height), torch.arange(grid.width), indexing="ij")
    positions = torch.stack([y.flatten(), x.flatten()], 1).double()
    return torch.linalg.vector_norm(positions[:, None] - positions[None], dim=-1)


@checked(**MAPS)
def entropy(maps: Tensor) -> Tensor:
    """Average the entropy of the rows over log N.

    The value is 0 where every row looks at one token, and 1 where it looks at all tokens alike. A
    map of a single token counts as 0.
    """
    p = distributions(maps)
    if p.shape[-1] == 1:
        return p.new_zeros(p.shape[:2])
    return row_entropy(p).mean(-1) / math.log(p.shape[-1])


def row_entropy(p: Tensor) -> Tensor:
    """Return the entropy of distributions along the last dimension, in nats."""
    return -torch.xlogy(p, p).sum(-1)


@checked(**MAPS)
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


@checked(**MAPS)
def head_similarity(maps: Tensor) -> Tensor:
    """Average the cosine of the flattened maps over all pairs of heads, (batch,).

    The value is NaN for a single head, which has no pair.
    """
    _check_maps(maps)
    batch, heads = maps.shape[:2]
    float_maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    flat = F.normalize(float_maps.flatten(2), dim=-1, eps=1e-30)
    if heads == 1:
        return flat.new_full((batch,), math.nan)
    cosines = flat @ flat.mT  # (batch, heads, heads)
    return (cosines.sum((1, 2)) - cosines.diagonal(dim1=1, dim2=2).sum(1)) / (heads * (heads - 1))


@checked(**MAPS, max_rows=RULES["max_rows"], seed=RULES["seed"])
def row_redundancy(maps: Tensor, max_rows: int = MAX_ROWS, seed: int = 0) -> Tensor:
    """Average the Jensen-Shannon divergence over all pairs of rows in nats, (batch, heads).

    A LOW value means redundant rows; the largest value is log 2. The mean over heads is the
    Mediators' S = 2 / (M N (N-1)) sum_heads sum_{i<j} JSD(A_i, A_j). With more than
    `max_rows` tokens, the pairs are those of so many tokens drawn from the seed, which keeps the
    mean unbiased.
    """
    p = distributions(maps)
    if p.shape[-2] > max_rows:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(p.shape[-2], generator=generator)[:max_rows].sort().values
        p = p[..., chosen.to(p.device), :]
    count = p.shape[-2]
    if count == 1:
        return p.new_zeros(p.shape[:2])
    entropies = row_entropy(p)  # (batch, heads, rows)
    total = p.new_zeros(p.shape[:2])
    # one row against all later rows at a time, so that memory stays that of the maps
    for i in range(count - 1):
        mixture_entropies = row_entropy((p[..., i : i + 1, :] + p[..., i + 1 :, :]) / 2)
        mean_entropies = (entropies[..., i : i + 1] + entropies[..., i + 1 :]) / 2
        total += (mixture_entropies - mean_entropies).sum(-1)
    return (2 * total / (count * (count - 1))).clamp_min(0)


# A whole model
# ---------------------------------------------------------------------------------------------


def measures(
    grid: Grid, radius: float = 3, max_rows: int = MAX_ROWS
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Map a name to its measure of maps.

    Measures of whole layers return (batch,), the others (batch, heads).
    """
    by_name: dict[str, Callable[[Tensor], Tensor]] = {
        "share": lambda maps: locality(maps, grid, radius)["share"],
        "distance": lambda maps: locality(maps, grid, radius)["distance"],
        "entropy": entropy,
        "rank": effective_rank,
        "redundancy": lambda maps: row_redundancy(maps, max_rows),
        "similarity": head_similarity,
    }
    if grid.text:
        by_name["text"] = lambda maps: text_share(maps, grid)
    return by_name


@checked(grid=typed(), radius=RADIUS, max_rows=RULES["max_rows"], **MAPS)
def table(
    maps: Tensor, grid: Grid, radius: float = 3, max_rows: int = MAX_ROWS, **keys: Any
) -> list[dict[str, Any]]:
    """Average every measure over the batch and return rows {**keys, head, measure, value}.

    A row with head None is about the layer as a whole. A measure of heads has such a row for the
    mean over heads too; for redundancy that mean is the Mediators' S.
    """
    return _rows(maps, measures(grid, radius, max_rows), keys)


def _rows(
    maps: Tensor, by_name: Mapping[str, Callable[[Tensor], Tensor]], keys: Mapping[str, Any]
) -> list[dict[str, Any]]:
    table_rows = []
    for name, measure in by_name.items():
        mean = measure(maps).double().mean(0)
        values: dict[int | None, float] = dict(enumerate(mean.tolist())) if mean.ndim else {}
        values[None] = mean.mean().item()
        for head, value in values.items():
            row = {**keys, "head": head, "measure": name, "value": _finite_or_none(value)}
            table_rows.append(row)
    return table_rows


@checked(latents=typed(), levels=between(0, 1), layers=between(0), batch=between(1), **RULES)
@torch.no_grad()
def anatomy(
    teacher: Any,
    latents: Tensor,
    prompts: Prompts,
    levels: Sequence[float] = LEVELS,
    *,
    layers: Sequence[int] | None = None,
    model: Any = None,
    radius: float = 3,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
    batch: int = 8,
    measured: Measures | None = None,
) -> list[dict[str, Any]]:
    """Measure the attention on noised latents.

    The table has rows of {layer, noise, head, measure, value}. `model` is measured instead of the
    teacher's model where it is given. `prompts` holds a label or caption a picture. Every layer is
    measured on its own grid, because a UNet's levels differ. Latents are noised as in
    `distance.prediction_error`: the same picture, level and seed give the same noise. `measured`
    returns the measures by name for a layer's grid; None takes `measures`.
    """
    by_grid = measured or (lambda grid: measures(grid, radius, max_rows))
    source = sampling.Source.of(teacher)
    prompts = source.conditions.check(prompts)
    check_latents(latents, source)
    if len(latents) == 0 or len(latents) != len(prompts):
        raise ValueError(
            f"{len(latents)} latents and {len(prompts)} prompts; pass as many of each, at least 1"
        )
    steps, groups = diffusion_of(teacher).steps, _of_one_length(teacher, prompts)
    table_rows = []
    for level in levels:
        t = level_time(level, steps)
        noisy = noised(teacher, latents, t, seed)
        tables = []
        for numbers in groups:
            of_group: list[dict[str, Any]] = []
            chunks = _chunk_maps(teacher, noisy, t, prompts, numbers.split(batch), layers, model)
            for layer, (attention_map, grid) in chunks.items():
                keys = {"layer": layer, "noise": level}
                of_group += _rows(attention_map, by_grid(grid), keys)
            tables.append((len(numbers) / len(latents), of_group))
        table_rows += _averaged(tables)
    return table_rows


def _of_one_length(teacher: Any, prompts: Prompts) -> list[Tensor]:
    """Return the numbers of the pictures in groups whose maps have one size."""
    conditions = sampling.Source.of(teacher).conditions
    groups = conditions.groups(conditions.encode(conditions.check(prompts)))
    return [torch.arange(len(prompts))[group] for group in groups]


def _chunk_maps(
    teacher: Any,
    noisy: Tensor,
    t: int,
    prompts: Prompts,
    chunks: Sequence[Tensor],
    layers: Sequence[int] | None,
    model: Any,
) -> dict[int, tuple[Tensor, Grid]]:
    """Return `layer_maps` of the pictures with these numbers, chunk by chunk."""
    maps: dict[int, list[Tensor]] = {}
    grids: dict[int, Grid] = {}
    for chunk in chunks:
        taken = prompts[chunk] if isinstance(prompts, Tensor) else [prompts[i] for i in chunk]
        chunk_maps = layer_maps(teacher, noisy[chunk], t, taken, layers, model=model)
        for layer, (attention_map, grid) in chunk_maps.items():
            maps.setdefault(layer, []).append(attention_map)
            grids[layer] = grid
    return {layer: (torch.cat(maps[layer]), grid) for layer, grid in grids.items()}


def _averaged(tables: Sequence[tuple[float, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """Average tables of the same rows by their shares of the pictures."""
    if len(tables) == 1:
        return tables[0][1]
    shares = [share for share, _ in tables]
    averaged_rows = []
    for alike in zip(*[table_rows for _, table_rows in tables], strict=True):
        values = [row["value"] for row in alike]
        value = None if None in values else sum(map(operator.mul, shares, values))
        averaged_rows.append({**alike[0], "value": value})
    return averaged_rows


@checked(noisy=typed(), t=between(0), layers=between(0))
@torch.no_grad()
def layer_maps(
    teacher: Any,
    noisy: Tensor,
    t: int,
    prompts: Prompts,
    layers: Sequence[int] | None = None,
    *,
    model: Any = None,
) -> dict[int, tuple[Tensor, Grid]]:
    """Return the attention maps of the numbered layers on the CPU, with their grids.

    A map is (batch, heads, tokens, tokens), and one forward gives all of them. `layers` None means
    all layers. `model` runs instead of the teacher's model where it is given, and is conditioned as
    the teacher is.
    """
    source = sampling.Source.of(teacher, None if model is None else families.model_of(model))
    prompts = source.conditions.check(prompts)
    if len(check_latents(noisy, source)) != len(prompts):
        raise ValueError(f"{len(noisy)} latents and {len(prompts)} prompts; pass as many of each")
    if t >= (steps := diffusion_of(teacher).steps):
        raise ValueError(f"a time of {t}; the teacher's process has the steps 0 to {steps - 1}")
    all_layers = families.layers(source.model)
    numbers = range(len(all_layers)) if layers is None else layers
    if wrong := [number for number in numbers if not 0 <= number < len(all_layers)]:
        raise ValueError(
            f"layer {wrong[0]} of a model with {len(all_layers)}; they are 0..{len(all_layers) - 1}"
        )
    for number in numbers:
        families.require_map(all_layers[number])
    weight, conditions = next(source.model.parameters()), source.conditions
    times = torch.full((len(noisy),), t, device=weight.device)
    encoded = conditions.encode(prompts)
    if len(groups := conditions.groups(encoded)) > 1:
        raise ValueError(
            f"these {len(prompts)} prompts have texts of {len(groups)} lengths, and maps of "
            "different sizes are no batch: pass prompts of one length, or one at a time"
        )
    with sampling.evaluating(source.model), families.capture(source.model, detach=True) as captured:
        conditions.call(source.model, noisy.to(weight.device, weight.dtype), times, encoded)
    maps = {}
    for number in numbers:
        entry = captured[number]
        attention_map = families.attention_map(
            all_layers[number], entry["input"], entry["grid"], entry["noise"], **entry["more"]
        )
        maps[number] = attention_map.cpu(), entry["grid"]
    return maps


def _finite_or_none(value: float) -> float | None:
    """Replace infinity and NaN, which strict JSON cannot hold, by None."""
    return value if math.isfinite(value) else None


def _check_grid(maps: Tensor, grid: Grid) -> None:
    """Refuse maps of another number of tokens than the grid's."""
    if maps.shape[-1] != grid.tokens:
        raise ValueError(
            f"the maps have {maps.shape[-1]} tokens, the {grid} has {grid.tokens}; pass the grid "
            "of the maps"
        )


def _check_maps(maps: Tensor) -> None:
    """Refuse what is no batch of floating-point attention maps."""
    if maps.ndim != 4 or maps.shape[-1] != maps.shape[-2] or maps.numel() == 0:
        raise ValueError(
            f"maps are {tuple(maps.shape)}; they must be (batch, heads, tokens, tokens), none of "
            "them 0"
        )
    if not maps.is_floating_point():
        raise ValueError(f"maps are {maps.dtype}; pass attention weights as floating-point numbers")
    finite(maps, "weights of the maps", "look at the weights of the model that they are of")
