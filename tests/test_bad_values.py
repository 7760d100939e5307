"""What no measure can be made of is refused in one sentence, before anything is computed."""

import math

import pytest
import tiny
import torch

from linattn import families, intervals, samples, sampling, world
from linattn.attention.grid import Grid
from linattn.evaluation import costs, density, diagnostics, distance, draws, likeness
from linattn.finite import NotFinite
from linattn.world import judge, marks, pairs

torch.manual_seed(0)
NUMBERS = ("4", 1.5, math.nan, math.inf, -math.inf, -1, True, [], 10**30)
PICTURES, FEATURES = torch.rand(4, 3, 16, 16), torch.rand(8, 16).double()
MAPS = torch.rand(1, 2, 16, 16).softmax(-1)
LATENTS, LABELS = torch.rand(4, 4, 8, 8), torch.arange(4)
SCENES = world.scenes(2, 0, 2)
TENSORS = ("4", None, 1.5, True, [], "no")
PIPE = tiny.pipeline()
JUDGE = judge.Judge().eval()

# Functions with arguments that they take, and for some of these what they do not take.
CASES = {
    distance.distances: (
        {"pictures": PICTURES, "reference": PICTURES},
        {name: (*TENSORS, PICTURES.bool(), PICTURES + 0j) for name in ("pictures", "reference")},
    ),
    distance.predictions: (
        {"teacher": PIPE, "model": PIPE.transformer, "samples": (LATENTS, LABELS)},
        {
            "model": (None, "x"),
            "samples": (None, (), (LATENTS,), (LATENTS, LABELS + 9), (LATENTS[:, :3], LABELS)),
            "levels": (None, 0.5, [], [math.nan], [-1], [2], [True], "x"),
            "count": (None, 0, *NUMBERS),
            "batch": (None, 0, *NUMBERS),
            "seed": ("4", None, 1.5, math.nan, True),
        },
    ),
    distance.level_time: ({"level": 0.5}, {"level": NUMBERS[2:], "steps": (None, 0, *NUMBERS)}),
    distance.level_noise: (
        {"shape": (2, 3), "t": 1, "seed": 0},
        {"shape": ("4", None, (-1, 2), (2, "a")), "t": NUMBERS, "start": NUMBERS},
    ),
    distance.noised: (
        {"teacher": PIPE, "latents": LATENTS, "t": 1},
        {"latents": (None, LATENTS[0], LATENTS.int()), "t": (1000, *NUMBERS)},
    ),
    likeness.eye_distance: (
        {"ours": FEATURES, "theirs": FEATURES},
        {name: (*TENSORS, FEATURES + 0j, FEATURES[0]) for name in ("ours", "theirs")},
    ),
    likeness.unrelated: ({"theirs": FEATURES}, {"theirs": TENSORS, "prompts": (0, *NUMBERS[:-1])}),
    marks.judge_kid: (
        {"features": FEATURES, "reference": FEATURES},
        {
            "features": (*TENSORS, FEATURES + 0j),
            "subsets": (None, 0, *NUMBERS),
            "subset_size": (0, 1, 9, *NUMBERS),
        },
    ),
    marks.judge_fid: ({"features": FEATURES, "reference": FEATURES}, {"resamples": (1, *NUMBERS)}),
    marks.judge_marks: (
        {"judge": JUDGE, "pictures": PICTURES, "labels": LABELS},
        {
            "judge": (None, "x"),
            "pictures": (*TENSORS, PICTURES[:, :1], PICTURES[0], PICTURES[:3]),
            "labels": (*TENSORS, LABELS + 60, LABELS - 1, LABELS.float(), LABELS[None]),
            "batch": (None, 0, *NUMBERS),
        },
    ),
    pairs.marks: (
        {"judge": JUDGE, "pictures": torch.rand(2, 3, 64, 64), "scenes": SCENES},
        {"scenes": (None, SCENES[:1], ["a", "b"], world.scenes(2, 0))},
    ),
    intervals.bootstrap: (
        {"values": FEATURES},
        {
            "values": ("4", None, ["a"], torch.zeros(()), torch.zeros(3, 0)),
            "statistic": (None, 3),
            "resamples": (None, 0, *NUMBERS),
        },
    ),
    intervals.summary: ({"values": FEATURES[:, 0]}, {"values": ("4", None, [], 1.5, ["a"])}),
    intervals.wilson: ({"right": 1, "n": 2}, {"right": NUMBERS, "n": (None, 0, *NUMBERS[:-1])}),
    diagnostics.locality: (
        {"maps": MAPS, "grid": Grid(4, 4)},
        {
            "maps": (*TENSORS, MAPS.int(), MAPS[..., :15]),
            "grid": (None, "4", (4, 4)),
            "radius": ("4", math.nan, math.inf, -1, 0, True, []),
        },
    ),
    diagnostics.row_redundancy: ({"maps": MAPS}, {"max_rows": (None, 1, *NUMBERS)}),
    diagnostics.anatomy: (
        {"teacher": PIPE, "latents": LATENTS, "prompts": LABELS},
        {
            "latents": (None, LATENTS[0], LATENTS[:3]),
            "prompts": (None, "x", ["a"] * 4, LABELS.float(), LABELS + 99),
            "levels": ([], [math.nan], [2], ["a"]),
            "layers": ("4", [], ["a"], [99], [-1], [1.5], [True]),
            "batch": (None, 0, *NUMBERS),
        },
    ),
    density.density: (
        {"model": PIPE.transformer, "grids": [Grid(4, 4)] * len(families.layers(PIPE.transformer))},
        {"grids": (None, [], ["a"], [Grid(4, 4)]), "noise": ("4", None, math.nan, -1, 2, True)},
    ),
    draws.forwards: ({"teacher": PIPE, "steps": 4}, {"steps": (None, 0, *NUMBERS)}),
    costs.interleaved: (
        {"calls": {"nothing": dict}},
        {
            "calls": (None, [], {"a": 3}),
            "repeats": (None, 0, *NUMBERS),
            "limit": ("4", None, math.nan, -1, True),
            "device": ("x", None, []),
        },
    ),
    costs.time_operators: (
        {"operators": {"softmax": ("softmax", {})}, "tokens": [16], "repeats": 1, "memory": False},
        {
            "operators": (None, "x", {"a": "b"}, {"a": ("softmaxx", {})}, {"a": ("softmax", None)}),
            "tokens": ("4", None, 16, [], ["a"], [1.5], [0], [True], [10**30]),
            "heads": (None, 0, *NUMBERS),
            "head_dim": (None, 0, *NUMBERS),
            "noise": ("4", math.nan, -1, 2),
            "dtype": ("x", 3, torch.int32),
        },
    ),
    costs.sides: ({"count": 4}, {"count": (None, 0, *NUMBERS)}),
    world.scene: (
        {"seed": 0, "index": 0},
        {"seed": ("4", None, 1.5, True), "index": NUMBERS, "objects": (0, 3, *NUMBERS)},
    ),
    world.scenes: ({"count": 1, "seed": 0}, {"count": NUMBERS, "start": NUMBERS}),
    world.render: (
        {"scenes": SCENES, "side": 16},
        {"scenes": (None, "4", [None], ["a"]), "side": (None, 0, 17.0, *NUMBERS)},
    ),
    world.label_parts: ({"label": 0}, {"label": (60, *NUMBERS)}),
    samples.balanced_labels: (
        {"numbers": [0, 1], "seed": 0, "classes": 4},
        {
            "numbers": ("4", None, 1.5, [1.5], ["a"], [-1], [True], range(-2, 2)),
            "seed": ("4", None, 1.5, math.nan, True),
            "classes": (None, 0, *NUMBERS),
        },
    ),
    sampling.Source.of(PIPE).conditions.encode: (
        {"prompts": LABELS},
        {"prompts": (None, "x", 3, 1.5, [1.5], [], [[1]], [True], [-1], [60], [10**30], {})},
    ),
}


def _named(value):
    shape = tuple(value.shape) if isinstance(value, torch.Tensor) else repr(value)
    return str(shape)[:40]


LISTED = [
    pytest.param(function, arguments, name, value, id=f"{function.__name__}-{name}-{_named(value)}")
    for function, (arguments, wrong) in CASES.items()
    for name, values in wrong.items()
    for value in values
]


@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_good_values_are_taken(function):
    assert function(**CASES[function][0]) is not None


@pytest.mark.parametrize(("function", "arguments", "name", "value"), LISTED)
def test_a_bad_value_is_one_sentence(function, arguments, name, value):
    with pytest.raises(ValueError, match=r"\w+ \w+") as caught:
        function(**{**arguments, name: value})
    assert "\n" not in str(caught.value)
    assert "linattn" in str(caught.traceback[-1].path)


BROKEN = {
    distance.distance: ("pictures", "reference"),
    distance.predictions: ("samples",),
    likeness.likeness: ("ours", "theirs"),
    marks.judge_kid: ("features", "reference"),
    marks.judge_fid: ("features", "reference"),
    marks.judge_features: ("pictures",),
    marks.judge_accuracy: ("pictures",),
    pairs.shares: ("pictures",),
    intervals.summary: ("values",),
    intervals.bootstrap: ("values",),
    diagnostics.entropy: ("maps",),
    diagnostics.effective_rank: ("maps",),
    diagnostics.head_similarity: ("maps",),
    diagnostics.table: ("maps",),
    diagnostics.anatomy: ("latents",),
    distance.noised: ("latents",),
}
SHARED = {
    distance.distance: CASES[distance.distances][0],
    likeness.likeness: CASES[likeness.eye_distance][0],
    marks.judge_features: {"judge": JUDGE, "pictures": PICTURES},
    marks.judge_accuracy: CASES[marks.judge_marks][0],
    pairs.shares: CASES[pairs.marks][0],
    diagnostics.table: CASES[diagnostics.locality][0],
    diagnostics.entropy: {"maps": MAPS},
    diagnostics.effective_rank: {"maps": MAPS},
    diagnostics.head_similarity: {"maps": MAPS},
}


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("function", BROKEN, ids=lambda function: function.__name__)
def test_one_number_that_is_not_finite_makes_no_result(function, number):
    arguments = SHARED.get(function) or CASES[function][0]
    for name in BROKEN[function]:
        value = arguments[name]
        spoiled = (value[0] if isinstance(value, tuple) else value).clone()
        spoiled.view(-1)[0] = number
        spoiled = (spoiled, value[1]) if isinstance(value, tuple) else spoiled
        with pytest.raises(NotFinite, match="not finite: look"):
            function(**{**arguments, name: spoiled})


def test_a_teachers_kept_predictions_are_finite_too():
    kept = torch.full((1, 4, 4, 8, 8), math.nan)
    with pytest.raises(NotFinite, match="teacher's predictions are not finite"):
        distance.prediction_error(PIPE, PIPE.transformer, (LATENTS, LABELS), (0.5,), theirs=kept)
