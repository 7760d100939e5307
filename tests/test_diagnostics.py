"""Diagnostics against maps whose measures are known by hand, and against the papers' formulas term
by term.
"""

import copy
import functools
import itertools
import math
from types import SimpleNamespace

import kinds
import pytest
import tiny
import torch

from linattn import conditions, families, surgery
from linattn.attention.grid import Grid
from linattn.evaluation import anatomy, diagnostics
from linattn.evaluation.distance import level_time, noised
from linattn.params import Student
from linattn.teachers import Teacher


def maps(*shape: int, seed: int = 0, sharp: float = 2.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(*shape, shape[-1], generator=draw, dtype=torch.float64)).softmax(-1)


def identity(tokens: int) -> torch.Tensor:
    return torch.eye(tokens, dtype=torch.float64)[None, None]


def uniform(tokens: int) -> torch.Tensor:
    return torch.full((1, 1, tokens, tokens), 1 / tokens, dtype=torch.float64)


def test_locality_of_a_token_that_looks_at_itself():
    measured = diagnostics.locality(identity(15), Grid(3, 5), radius=1)
    assert measured["share"].item() == 1
    assert measured["distance"].item() == 0


def test_locality_of_a_row_of_three_by_hand():
    # Distances 0 1 2 / 1 0 1 / 2 1 0: their mean is 8 / 9, and radius 2 keeps 2 + 3 + 2 of 9.
    measured = diagnostics.locality(uniform(3), Grid(1, 3), radius=2)
    assert measured["distance"].item() == pytest.approx(8 / 9)
    assert measured["share"].item() == pytest.approx(7 / 9)


def test_the_disc_is_open_as_in_clear():
    # (1, 1) is sqrt 2 away: outside radius 1.4, inside 1.5; (0, 1) is not inside radius 1.
    shares = [
        diagnostics.locality(uniform(4), Grid(2, 2), radius)["share"].item()
        for radius in (1, 1.4, 1.5)
    ]
    assert shares == pytest.approx([1 / 4, 3 / 4, 1])


def test_locality_knows_rows_from_columns():
    tall, wide = (
        diagnostics.locality(uniform(12), Grid(*sides), 2)["share"].item()
        for sides in ((1, 12), (3, 4))
    )
    assert tall == pytest.approx((2 * 2 + 10 * 3) / 144)
    assert wide > tall


def test_text_tokens_are_left_out_of_locality():
    grid = Grid(3, 5, text=4)
    joint = torch.zeros(1, 2, 19, 19, dtype=torch.float64)
    picture = maps(1, 2, 15)
    joint[..., :4] = 0.1
    joint[..., 4:, 4:] = 0.6 * picture
    measured = diagnostics.locality(joint, grid, 2)
    expected = diagnostics.locality(picture, Grid(3, 5), 2)
    torch.testing.assert_close(measured, expected)


def test_locality_refuses_the_grid_of_another_map():
    with pytest.raises(ValueError, match="15 tokens"):
        diagnostics.locality(maps(1, 1, 15), Grid(4, 4))


def test_entropy_of_known_rows():
    assert diagnostics.entropy(uniform(7)).item() == pytest.approx(1)
    assert diagnostics.entropy(identity(7)).item() == 0
    half = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    half[..., :2] = 0.5  # two of four tokens alike: log 2 / log 4
    assert diagnostics.entropy(half).item() == pytest.approx(0.5)


def test_effective_rank_of_known_maps():
    assert diagnostics.effective_rank(identity(9)).item() == pytest.approx(9)
    assert diagnostics.effective_rank(uniform(9)).item() == pytest.approx(1)
    two = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    two[..., :3, :3] = two[..., 3:, 3:] = 1 / 3  # two blocks of equal size
    assert diagnostics.effective_rank(two).item() == pytest.approx(2)
    assert diagnostics.effective_rank(torch.zeros(1, 1, 6, 6)).item() == 0
    assert diagnostics.effective_rank(7 * identity(9)).item() == pytest.approx(9)


def test_similarity_of_heads_is_the_mean_over_pairs():
    attention_map = maps(2, 3, 5)
    flat = attention_map.flatten(2)
    pairs = [
        torch.cosine_similarity(flat[:, a], flat[:, b], dim=-1)
        for a, b in itertools.combinations(range(3), 2)
    ]
    torch.testing.assert_close(
        diagnostics.head_similarity(attention_map), torch.stack(pairs).mean(0)
    )


def test_similarity_of_extreme_heads():
    assert diagnostics.head_similarity(identity(5).expand(2, 4, 5, 5)).tolist() == pytest.approx(
        [1, 1]
    )
    apart = torch.stack([torch.eye(4), torch.eye(4).roll(1, 1)])[None]
    assert diagnostics.head_similarity(apart).item() == 0
    assert diagnostics.head_similarity(identity(5)).isnan().all()


def divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """JSD by its other definition: the mean divergence from the middle."""
    middle = (p + q) / 2
    return ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()) / 2


def test_redundancy_is_the_mediators_formula():
    attention_map = maps(1, 2, 6)
    pairs = itertools.combinations(range(6), 2)
    total = sum(
        divergence(attention_map[0, head, i], attention_map[0, head, j])
        for i, j in pairs
        for head in range(2)
    )
    score = 2 * total / (2 * 6 * 5)
    torch.testing.assert_close(diagnostics.row_redundancy(attention_map).mean(), score)


def test_redundancy_of_extreme_rows():
    assert diagnostics.row_redundancy(uniform(6)).item() == pytest.approx(0, abs=1e-12)
    assert diagnostics.row_redundancy(identity(6)).item() == pytest.approx(math.log(2))


def test_redundancy_of_many_rows_is_estimated_from_a_seeded_part():
    attention_map = maps(2, 2, 60, sharp=3)
    exact = diagnostics.row_redundancy(attention_map)
    sample = diagnostics.row_redundancy(attention_map, max_rows=24)
    assert not torch.equal(exact, sample)
    torch.testing.assert_close(sample, exact, rtol=0.05, atol=0)
    assert torch.equal(sample, diagnostics.row_redundancy(attention_map, max_rows=24))


def test_rows_that_are_no_distributions_are_made_some():
    attention_map = torch.tensor([[2.0, 2.0, 0.0], [-1.0, 3.0, 1.0], [0.0, 0.0, 0.0]])[None, None]
    expected = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.75, 0.25], [1 / 3, 1 / 3, 1 / 3]])[None, None]
    torch.testing.assert_close(diagnostics.distributions(attention_map), expected)


@pytest.mark.parametrize("scale", [0.25, 40.0])
def test_measures_of_rows_do_not_see_a_common_factor(scale):
    attention_map = maps(2, 3, 15)
    for measure in diagnostics.measures(Grid(3, 5)).values():
        torch.testing.assert_close(measure(scale * attention_map), measure(attention_map))


def test_a_lone_token():
    measured = diagnostics.table(torch.ones(1, 1, 1, 1), Grid(1, 1), layer=0)
    values = {row["measure"]: row["value"] for row in measured if row["head"] is None}
    assert values == {
        "share": 1,
        "distance": 0,
        "entropy": 0,
        "rank": 1,
        "redundancy": 0,
        "similarity": None,
    }


def test_half_precision_maps_are_measured_in_single():
    attention_map = maps(1, 2, 9)
    for measure in diagnostics.measures(Grid(3, 3)).values():
        torch.testing.assert_close(
            measure(attention_map.half()).double(), measure(attention_map), rtol=5e-3, atol=1e-3
        )


@pytest.mark.parametrize(
    "wrong",
    [
        torch.ones(3, 3),
        torch.ones(1, 1, 3, 4),
        torch.ones(1, 1, 0, 0),
        torch.ones(1, 1, 3, 3, dtype=torch.long),
    ],
    ids=["two-dimensional", "not-square", "empty", "whole-numbers"],
)
def test_what_is_no_map_is_refused(wrong):
    with pytest.raises(ValueError, match="maps are"):
        diagnostics.entropy(wrong)


# A whole model


def samples_of(pictures: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(pictures, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(
        pictures
    )


def test_anatomy_has_a_row_for_every_layer_head_noise_and_measure():
    pipe = tiny.pipeline()
    layers = families.layers(pipe)
    heads = layers[0].shape.heads
    measured = diagnostics.anatomy(pipe, *samples_of(), levels=(0.2, 0.9))
    places = {(row["layer"], row["head"], row["noise"], row["measure"]) for row in measured}
    assert len(places) == len(measured) == len(layers) * 2 * (5 * (heads + 1) + 1)
    assert {row["layer"] for row in measured} == set(range(len(layers)))


def test_anatomy_does_not_depend_on_its_batch():
    pipe = tiny.pipeline()
    together, single = (
        diagnostics.anatomy(pipe, *samples_of(), levels=(0.5,), batch=batch) for batch in (8, 1)
    )
    assert [row["value"] for row in together] == pytest.approx(
        [row["value"] for row in single], rel=1e-4
    )


def test_anatomy_of_chosen_layers_only():
    measured = diagnostics.anatomy(tiny.pipeline(), *samples_of(1), levels=(0.5,), layers=[1])
    assert {row["layer"] for row in measured} == {1}
    with pytest.raises(ValueError, match="layer 7"):
        diagnostics.anatomy(tiny.pipeline(), *samples_of(1), levels=(0.5,), layers=[7])


CAPTIONS = ["a red ring above a blue disc on white", "a yellow moon on black"]
FAMILIES = {"dit": (tiny.pipeline, torch.tensor([0, 3]))}
FAMILIES |= {kind: (functools.partial(kinds.pipeline, kind), CAPTIONS) for kind in ("unet", "flux")}
each_family = pytest.mark.parametrize("kind", FAMILIES)


@each_family
def test_a_layers_map_is_softmax_of_its_projections_on_its_own_grid(kind):
    """Against one call of the model, told by hand what the pipeline would tell it."""
    make, prompts = FAMILIES[kind]
    pipe, noisy = make(), samples_of(2)[0]
    known = conditions.of(pipe)
    arguments = known.arguments(noisy, torch.full((2,), 300), known.encode(prompts))
    model = families.model_of(pipe)
    measured = diagnostics.layer_maps(pipe, noisy, 300, prompts)
    with torch.no_grad():
        grids = families.grids(model, **arguments)
    assert list(measured) == list(range(len(grids)))
    for layer, (attention_map, grid) in measured.items():
        assert grid == grids[layer]
        assert attention_map.shape[-2:] == (grid.tokens, grid.tokens)
        torch.testing.assert_close(attention_map.sum(-1), torch.ones(attention_map.shape[:-1]))
        torch.testing.assert_close(attention_map, surgery.attention_map(model, layer, **arguments))
    assert len({grid.picture for grid in grids}) == (
        2 if kind == "unet" else 1
    )  # its levels differ
    assert all(bool(grid.text) == (kind == "flux") for grid in grids)


@each_family
def test_anatomy_of_every_family(kind):
    """Each number is of the layer's own map: a deeper level is measured on its smaller grid."""
    make, prompts = FAMILIES[kind]
    pipe, latents = make(), samples_of(2)[0]
    t = level_time(0.7)
    measured = diagnostics.anatomy(pipe, latents, prompts, levels=(0.7,), radius=2, batch=1)
    maps = diagnostics.layer_maps(pipe, noised(pipe, latents, t), t, prompts)
    wanted = [
        row
        for n, (attention_map, grid) in maps.items()
        for row in diagnostics.table(attention_map, grid, 2, layer=n, noise=0.7)
    ]
    assert [row["value"] for row in measured] == pytest.approx(
        [row["value"] for row in wanted], rel=1e-3
    )
    assert [row["layer"] for row in measured] == [row["layer"] for row in wanted]
    deepest = max(grid.picture for _, grid in maps.values()) ** 0.5 * 2**0.5
    assert all(0 < row["value"] < deepest for row in measured if row["measure"] == "distance")


@each_family
def test_a_student_is_conditioned_as_its_teacher_is(kind):
    make, prompts = FAMILIES[kind]
    pipe = make()
    student = surgery.linearize(copy.deepcopy(families.model_of(pipe)), "clear", radius=2)
    attention_map, grid = diagnostics.layer_maps(
        pipe, samples_of(2)[0], 300, prompts, [0], model=student
    )[0]
    far = diagnostics.token_distances(grid) >= 2
    assert attention_map[..., grid.text :, grid.text :][..., far].abs().max() == 0
    with pytest.raises(ValueError, match="2 latents and 1 prompts"):
        diagnostics.anatomy(pipe, samples_of(2)[0], prompts[:1])


@pytest.mark.parametrize("kind", ["dit", "flux"])
def test_the_maps_of_operators_are_of_the_pictures_tokens(kind):
    make, prompts = FAMILIES[kind]
    teacher = Teacher(make(), {"side": 32, "labels": list(tiny.LABELS)}, kind)
    drawn = SimpleNamespace(first=lambda count: (samples_of(count)[0], prompts[:count]))
    settings = SimpleNamespace(noise=(0.2, 0.5, 0.8), seed=3)
    operators = {
        "near": Student(operator="clear", options={"radius": 2}),
        "fresh": Student(operator="linfusion"),
    }
    measured = anatomy.maps(teacher, drawn, operators, settings, query=0)
    side = measured["map.teacher"].shape[0]
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    assert measured["map.near"][y**2 + x**2 >= 4].abs().max() == 0
    # after other draws: fresh weights are seeded
    again = anatomy.maps(teacher, drawn, operators, settings, query=0)
    assert all(torch.equal(measured[name], again[name]) for name in measured)
    assert not any(layer.operator for layer in families.layers(teacher.model))
