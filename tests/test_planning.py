"""A plan: the knapsack against every choice, its parts against the model that was measured."""

import itertools
import random

import pytest
import tiny
import torch

import linattn
from linattn import families, teachers
from linattn.attention.clear import Clear
from linattn.attention.grid import Grid
from linattn.distillation.settings import Settings
from linattn.evaluation.distance import predictions
from linattn.planning import (
    candidates,
    costs,
    exchange,
    front,
    losses,
    plan,
    ranges,
    survey,
)
from linattn.planning.front import Item
from linattn.planning.plan import of_survey, parts, spans_of
from linattn.surgery.conversion import converted

CANDIDATES = {
    "disc": ("clear", {"radius": 2}),
    "lit": ("lit", {}),
    "linear": ("linfusion", {"hidden": 8}),
}
LEVELS = (0.2, 0.5, 0.8)
COUNT = {"count": 2, "batch": 2}


class Drawn:
    """Hold random latents with labels, as `Samples` does."""

    def __init__(self, count=4, side=8):
        self.latents = torch.randn(count, 4, side, side, generator=torch.Generator().manual_seed(0))
        self.labels = torch.arange(count)

    def __len__(self):
        return len(self.labels)

    def batch(self, indices):
        return self.latents[indices], self.labels[indices]

    def first(self, count):
        return self.latents[:count], self.labels[:count]


@pytest.fixture(scope="module")
def teacher():
    return teachers.Teacher(tiny.pipeline(layers=3), {}, "tiny")


@pytest.fixture(scope="module")
def measured(teacher):
    """Return the survey of a tiny teacher with two ranges of noise."""
    entries = candidates.read(CANDIDATES)
    return survey.survey(teacher, Drawn(), entries, ranges.split((0.5,), LEVELS), **COUNT)


# The front


def drawn_layers(seed, layers=4, items=3):
    rng = random.Random(seed)
    return [
        [Item((str(n),), rng.randrange(6), rng.randrange(9) / 8) for n in range(items)]
        for _ in range(layers)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_that_of_every_choice(seed):
    layers = drawn_layers(seed)
    every = list(itertools.product(*layers))
    points = front.front(layers)
    for budget in range(25):
        affordable = [sum(i.loss for i in c) for c in every if sum(i.cost for i in c) <= budget]
        if not affordable:
            assert budget < points[0].cost
            continue
        point = front.best(points, budget)
        assert point.loss == min(affordable)
        labels = {item.labels: item for item in layers[0]}
        assert point.choice[0] in labels
        assert point.cost <= budget


def test_a_point_of_the_front_is_what_its_labels_cost_and_lose():
    layers = drawn_layers(7)
    for point in front.front(layers):
        items = [
            next(item for item in items if item.labels == labels)
            for items, labels in zip(layers, point.choice, strict=True)
        ]
        assert point.cost == sum(item.cost for item in items)
        assert point.loss == pytest.approx(sum(item.loss for item in items))


def test_no_layers_cost_nothing():
    assert front.front([]) == [front.Point(0, 0.0)]


@pytest.mark.parametrize("layers", [3, 6, 7, 28, 57])
@pytest.mark.parametrize("share", [1, 0.57, 0.5])
def test_layers_that_cost_the_whole_budget_keep_it(layers, share):
    of_layers = [share / layers] * layers
    costs.require({"mean": of_layers}, share)
    items = [Item(("mean",), front.units(cost), 0.0) for cost in of_layers]
    point = front.best(front.front([[item] for item in items]), front.limit(share))
    assert point.choice == (("mean",),) * layers
    assert point.cost / front.UNITS == pytest.approx(share)


# Ranges and candidates


@pytest.mark.parametrize(
    ("until", "levels"), [((), [LEVELS]), ((0.5,), [(0.5, 0.8), (0.2,)]), ((0.6, 0.3), None)]
)
def test_ranges_share_the_levels_from_noise_to_picture(until, levels):
    spans = ranges.split(until, LEVELS)
    assert [span.until for span in spans] == [*until, 0.0]
    assert sum(span.share for span in spans) == pytest.approx(1)
    assert levels is None or [span.levels for span in spans] == levels


@pytest.mark.parametrize(
    ("until", "says"),
    [
        ((0.3, 0.6), "falling noise levels"),
        ((0.5, 0.5), "falling"),
        ((0.0,), "falling"),
        ((1.0,), "falling"),
        ((0.1,), "no noise level of .* lies from 0.0 up to 0.1"),
        ((0.9,), "no noise level of .* lies from 0.9 up to 1"),
    ],
)
def test_wrong_ranges_are_refused(until, says):
    with pytest.raises(ValueError, match=says):
        ranges.split(until, LEVELS)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({}, "pass a mapping like"),
        (["clear"], "pass a mapping like"),
        ({"disc": "clear"}, "candidate 'disc' is 'clear'; pass"),
        ({"disc": ("cleer", {})}, "operator of candidate 'disc' 'cleer': did you mean 'clear'"),
        ({"disc": (["clear"], {})}, r"unknown operator of candidate 'disc' \['clear'\]"),
        ({"all": ("mixed", {})}, "candidate 'all' is 'mixed', which is what a plan is"),
        ({1: ("clear", {})}, "label is 1; it must be a text"),
        ({"disc": ("clear", {"raduis": 2})}, "'raduis': did you mean 'radius'"),
        ({"softmax": ("clear", {})}, "is always a candidate"),
    ],
)
def test_wrong_candidates_are_refused(entries, says):
    with pytest.raises(ValueError, match=says):
        candidates.read(entries)


# Costs


def test_costs_are_shares_of_softmax_by_formula(measured):
    assert sum(measured.costs["softmax"]) == pytest.approx(1)
    dense, disc = 2 * 64**2 * 32, linattn.OPERATORS["clear"]
    shape = families.layers(measured.judge.composite.model)[0].shape
    expected = disc(shape, radius=2).macs(Grid(8, 8)) / dense / 3
    assert measured.costs["disc"] == pytest.approx([expected] * 3)


@pytest.mark.parametrize(
    ("times", "says"),
    [
        ({"softmax": 2.0}, "lacks 'disc'"),
        ({"softmax": 2.0, "disc": [1.0, 1.0]}, "one for each of the 3 layers"),
        ({"softmax": 2.0, "disc": 0}, "a positive number of milliseconds"),
        ("mac", "measure of cost 'mac': did you mean 'macs'"),
    ],
)
def test_wrong_tables_of_times_are_refused(measured, times, says):
    models = dict.fromkeys(("softmax", "disc"), measured.judge.composite.model)
    with pytest.raises(ValueError, match=says):
        costs.table(models, [Grid(8, 8)] * 3, times)


def test_times_are_shares_of_softmax():
    times = {"softmax": 2.0, "disc": [1.0, 0.5]}
    table = costs.table(dict.fromkeys(times), [Grid(1, 1)] * 2, times)
    assert table == {"softmax": [0.5, 0.5], "disc": [0.25, 0.125]}


def test_bytes_are_those_of_the_allocator(teacher):
    entries = candidates.read({"disc": CANDIDATES["disc"]})
    models = survey.students(teacher, Drawn(), entries, 0)
    table = costs.table(models, survey.grids(teacher, Drawn(), None), "bytes")
    assert sum(table["softmax"]) == pytest.approx(1)
    assert all(cost > 0 for cost in table["disc"])


def test_bytes_are_of_the_precision_that_the_layer_has(teacher, monkeypatch):
    softmax = candidates.read({"lit": CANDIDATES["lit"]})["softmax"]
    layer = families.layers(converted(teacher.model, softmax, 0).bfloat16())[0]
    monkeypatch.setattr(costs, "peak_memory", lambda call, _: call().dtype)
    state = torch.random.get_rng_state()
    assert costs.COUNTS["bytes"](layer, Grid(8, 8)) == torch.bfloat16
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("at", "grid"), [(None, Grid(8, 8)), ((12, 12), Grid(3, 3)), ((4, 4), Grid(1, 1))], ids=str
)
def test_costs_are_counted_at_a_size_in_pixels(teacher, at, grid):
    assert survey.grids(teacher, Drawn(), at) == [grid] * 3


def test_a_plan_leaves_its_teacher_and_the_random_state_alone(teacher, monkeypatch):
    teacher.model.train()
    before = {name: tensor.clone() for name, tensor in teacher.model.state_dict().items()}
    state, hooks = torch.random.get_rng_state(), hooks_of(teacher.model)
    monkeypatch.setattr(Clear, "core", lambda *_: 1 / 0)
    entries = {"disc": CANDIDATES["disc"], "linear": CANDIDATES["linear"]}
    with pytest.raises(ZeroDivisionError):
        plan(teacher, Drawn(), budget=1, candidates=entries, noise=(0.5,), pictures=2)
    assert all(module.training for module in teacher.model.modules())
    teacher.model.eval()
    after = teacher.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert hooks_of(teacher.model) == hooks
    assert torch.equal(torch.random.get_rng_state(), state)


def hooks_of(model):
    return [[*m._forward_hooks, *m._forward_pre_hooks] for m in model.modules()]


@pytest.mark.parametrize("at", [(0, 8), (8, 3), (30, 32)])
def test_a_size_that_the_latents_cannot_have_is_refused(teacher, at):
    with pytest.raises(ValueError, match="px; both are multiples of 4 here"):
        survey.grids(teacher, Drawn(), at)


def test_samples_of_another_teacher_are_refused(teacher):
    drawn = Drawn()
    drawn.latents = drawn.latents[:, :3]
    with pytest.raises(ValueError, match="latents are .*DiTTransformer2DModel takes .* 4, height"):
        survey.grids(teacher, drawn, None)


# Losses


def test_a_loss_is_the_mean_of_what_a_layer_takes_alone_and_gives_back(measured):
    judge, labels = measured.judge, ["softmax"] * 3
    assert judge.error(labels, 0) == pytest.approx(0, abs=1e-9)
    alone = judge.error(["softmax", "lit", "softmax"], 0)
    back = judge.error(["lit"] * 3, 0) - judge.error(["lit", "softmax", "lit"], 0)
    expected = 2 / 3 * max(alone * back, 0) ** 0.5
    assert measured.losses["lit"][1][0] == pytest.approx(expected)
    assert measured.losses["softmax"] == [[0.0, 0.0]] * 3


def test_a_budget_below_every_plan_is_refused_before_anything_is_measured(teacher, monkeypatch):
    monkeypatch.setattr(survey, "Judge", None)
    with pytest.raises(ValueError, match=r"the cheapest plan costs 0.\d+ .* the budget is 0.010"):
        plan(teacher, Drawn(), budget=0.01, candidates=CANDIDATES, pictures=2)


def test_a_survey_has_no_plan_below_its_cheapest(measured):
    with pytest.raises(ValueError, match=r"the cheapest plan costs 0.\d+ .* the budget is 0.010"):
        of_survey(measured, 0.01)


def test_what_makes_a_model_better_loses_nothing(measured, monkeypatch):
    monkeypatch.setattr(losses, "returned", lambda *_: -1.0)
    assert losses.loss(measured.judge, "lit", 1, 0) == 0.0


# Plans


def test_an_operator_that_shifts_inputs_has_its_layer_at_every_noise(measured):
    assert measured.constant == {"linear"}
    for layer in range(3):
        for item in measured.items(layer):
            assert item.labels == ("linear",) * 2 or "linear" not in item.labels


@pytest.mark.parametrize(
    "choice",
    [
        (("disc", "lit"), ("lit", "lit"), ("softmax", "softmax")),
        (("lit", "softmax"), ("softmax", "disc"), ("linear", "linear")),
        (("softmax", "softmax"),) * 3,
    ],
)
def test_the_parts_of_a_plan_are_the_model_that_was_measured(teacher, measured, choice):
    written = parts(measured.candidates, choice, [0.5, 0.0])
    student = candidates.Candidate("plan", "mixed", {"parts": written})
    model = converted(teacher.model, student, 0)
    for number, span in enumerate(measured.judge.ranges):
        composite = measured.judge.composite.of([labels[number] for labels in choice])
        ours, theirs = (
            predictions(teacher, each, Drawn(), span.levels, count=2) for each in (model, composite)
        )
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "spans"),
    [
        (("a", "a"), [("a", 0.0)]),
        (("a", "b"), [("a", 0.5), ("b", 0.0)]),
        (("a", "softmax"), [("a", 0.5)]),
        (("softmax", "a"), [("softmax", 0.5), ("a", 0.0)]),
        (("softmax", "softmax"), []),
    ],
)
def test_neighbouring_ranges_of_one_label_are_one_part(labels, spans):
    assert spans_of(labels, [0.5, 0.0]) == spans


def test_a_plan_keeps_its_budget_and_is_taken_whole(teacher, tmp_path):
    training = Settings(layerwise_steps=1, batch=2, warmup=1)
    planned = plan(
        teacher,
        Drawn(),
        budget=0.8,
        candidates={"disc": CANDIDATES["disc"]},
        noise=(0.5,),
        until=(),
        pictures=2,
        training=training,
    )
    assert 0 < planned.cost <= 0.8
    assert planned.error > 0
    model = tiny.model(layers=3)
    linattn.linearize(model, planned.operator, **planned.options)
    operators = [layer.operator.operators[0].name for layer in families.layers(model)]
    names = {"softmax": "softmax", "disc": "clear"}
    assert operators == [names[label] for (label,) in planned.choice]
    linattn.save(model, tmp_path)
    linattn.load(linattn.restore(model), tmp_path)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"budget": 0}, "budget is 0.0; it is a share"),
        ({"budget": 1.5}, "budget is 1.5"),
        ({"noise": (2.0,)}, r"noise.* is 2.0"),
        ({"budget": float("nan")}, "budget is nan"),
        ({"budget": "half"}, "budget is 'half'"),
        ({"pictures": 0}, "pictures is 0"),
        ({"pictures": 5}, "pictures is 5 and there are 4 samples: lower it"),
        ({"until": 0.5}, "until is 0.5"),
        ({"until": (1.5,)}, r"until\[0\] is 1.5"),
        ({"until": (0.7,)}, "no noise level"),
        ({"at": 8}, "at is 8; it must be a list"),
        ({"at": (8,)}, "at is .8.*; it holds height and width in pixels"),
        ({"at": (8, 8, 8)}, "it holds height and width in pixels"),
        ({"at": (8.0, 8)}, r"at\[0\] is 8.0 .float.; it must be a whole number"),
        ({"at": (0, 3)}, r"at\[0\] is 0; it must be at least 1"),
        ({"by": "mac"}, "measure of cost 'mac': did you mean 'macs'"),
        ({"by": {"softmax": 1.0}}, "lacks 'disc'"),
        ({"training": Settings(layerwise_steps=0)}, "training has 0 layerwise steps"),
        ({"training": {"layerwise_steps": 2}}, "it must be Settings"),
        ({"samples": 3}, "samples are 3; pass linattn.samples.Samples"),
        ({"teacher": 3}, "teacher is 3; it must be a Teacher"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_converted(
    teacher, monkeypatch, wrong, says
):
    monkeypatch.setattr(survey, "converted", None)
    given = {"teacher": teacher, "samples": Drawn(), "pictures": 2, "noise": (0.5,)}
    given |= {"budget": 0.5, "candidates": {"disc": CANDIDATES["disc"]}}
    with pytest.raises(ValueError, match=says):
        plan(**{**given, **wrong})


def test_a_linearised_teacher_is_refused():
    linearised = teachers.Teacher(tiny.pipeline(layers=3), {}, "tiny")
    linattn.linearize(linearised, "lit", layers=[1])
    with pytest.raises(ValueError, match=r"layer 1 of the teacher has lit.*linattn.restore"):
        plan(linearised, Drawn(), budget=0.5, candidates=CANDIDATES, pictures=2)


class Table:
    """Stands for a survey whose error is any function of the choice."""

    def __init__(self, error, costs):
        self.judge, self.total, self.costs = self, error, costs

    def units(self, choice):
        return sum(front.units(self.costs[label][layer]) for layer, (label,) in enumerate(choice))


def of_pairs(pair):
    return tuple(("disc",) if layer in pair else ("softmax",) for layer in range(5))


def test_exchanges_end_at_the_best_pair():
    order = [of_pairs(pair) for pair in itertools.combinations(range(5), 2)]
    costs_of = {"disc": [0.1] * 5, "softmax": [0.2] * 5}
    table = Table(order.index, costs_of)
    assert exchange.improved(table, order[4], 1.0) == order[0]


def test_an_exchange_keeps_the_budget():
    costs_of = {"disc": [0.1, 0.1, 0.1, 0.1, 0.2], "softmax": [0.1, 0.3, 0.1, 0.1, 0.2]}
    better, cheaper = of_pairs((2, 3)), of_pairs((1, 2))  # 0.8 and 0.6
    table = Table(lambda choice: {better: 0, cheaper: 1}.get(choice, 9), costs_of)
    assert exchange.improved(table, cheaper, 0.8) == better
    assert exchange.improved(table, cheaper, 0.7) == cheaper
