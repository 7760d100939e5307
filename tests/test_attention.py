"""Operators by themselves, beside what linattn.testing holds each of them to."""

import copy
import json
import pickle

import pytest
import torch
from layers import FORMS, SHAPE, Mix, form, rotation, shaken, tensors
from torch import nn

from linattn.attention import OPERATORS, POLICIES, LayerShape, create, schedule as schedules
from linattn.attention.grid import Grid
from linattn.attention.resample import averages, interpolation

forms = pytest.mark.parametrize("name", FORMS)


@forms
def test_gradcheck(name):
    grid, shape = Grid(3, 2, 1), LayerShape(4, 2, 2)
    operator = form(name, shape)
    # The networks on the input act in `inputs`, which `mix` does not call.
    names = [n for n, _ in operator.named_parameters() if not n.startswith(("query.", "key."))]

    def run(q, k, v, *parameters):
        replaced = {f"operator.{n}": p for n, p in zip(names, parameters, strict=True)}
        module = Mix(operator, rotation(grid, shape))
        return torch.func.functional_call(module, replaced, (q, k, v, grid))

    q, k, v = tensors(grid, shape, batch=1, grad=True)
    parameters = [p.detach().requires_grad_() for n, p in operator.named_parameters() if n in names]
    # Tables of 7 x 7 and 16 are covered by the comparison with the definition's gradients.
    if sum(p.numel() for p in parameters) > 400:
        names.clear()
        parameters = []
    assert torch.autograd.gradcheck(run, (q, k, v, *parameters))


@forms
def test_what_is_added_starts_at_zero(name):
    operator, options = FORMS[name].operator, FORMS[name].options
    nothing = {"conv": 0, "kernel": 0, "bias": "none", "gate": 0}
    bare = {option: value for option, value in nothing.items() if option in operator.table}
    torch.manual_seed(1)
    full = operator(SHAPE, **options).double()
    torch.manual_seed(1)
    plain = operator(SHAPE, **{**options, **bare}).double()
    grid = Grid(9, 6, 2)
    inputs, x = tensors(grid), torch.randn(2, grid.tokens, SHAPE.width, dtype=torch.float64)
    # To the last bit but for biases, with which PyTorch takes another path through the same
    # softmax.
    bound = 1e-12 if options.get("bias", "none") != "none" else 0
    assert (full.mix(*inputs, grid) - plain.mix(*inputs, grid)).abs().max() <= bound
    assert all(torch.equal(projected, x) for projected in full.inputs(x, grid))
    assert not full.local(inputs[2], grid).any()


# Whose weights need not sum to one, nor be of one sign: pooling kernels and gates are not
# normalised, a regression corrects, DeltaNet takes away what it has written, a mixture is what its
# parts are, and some have no denominator, as sigmoids.
FREE = [
    name
    for name, form in FORMS.items()
    if {"pool", "gate", "normaliser"} & form.options.keys()
    or form.operator.name in ("edit", "ridge", "delta", "mixed")
    or str(form) == "control-sigmoid"
    or not form.operator.has_map
]


@pytest.mark.parametrize("name", [name for name in FORMS if name not in FREE])
def test_the_map_of_a_token_is_weights_that_sum_to_one(name):
    grid = Grid(7, 5, 2)
    q, k, _ = tensors(grid)
    no_eps = {"eps": 0} if "eps" in FORMS[name].operator.table else {}
    weights = form(name, **no_eps).attention_map(q, k, grid)
    signed = form(name).name == "pisa"  # its first-order term is
    assert signed or weights.min() >= 0
    # neither the pooling kernel nor the sigmoid is normalised
    if name.startswith(("clear-pool", "control-sigmoid")):
        return
    if FORMS[name].build().options.get("order") != 1:  # PISA's first-order term is signed
        assert weights.min() >= 0
    assert (weights.sum(-1) - 1).abs().max() < 1e-12


@forms
def test_a_pickled_operator_is_the_same(name):
    operator, grid = form(name), Grid(5, 4)
    twin, inputs = pickle.loads(pickle.dumps(operator)), tensors(grid)
    assert torch.equal(twin.mix(*inputs, grid), operator.mix(*inputs, grid))


@forms
@pytest.mark.parametrize("grid", [Grid(1, 1), Grid(3, 5, 2)], ids=str)
def test_an_empty_batch_stays_empty(name, grid):
    inputs = tensors(grid, batch=0, grad=True)
    out = form(name).mix(*inputs, grid)
    assert out.shape == inputs[2].shape
    out.sum().backward()
    assert inputs[2].grad.shape == out.shape


# With open sizes AOT traces what many operations make up for minutes (pyramid 85 s, PISA 46 s): it
# is left to those of the four papers, which call all kernels but the tiles'.
TRACED = ("softmax", "clear", "linfusion", "mediator", "lit", "mediator-full")


@pytest.mark.parametrize("name", [*OPERATORS, "mediator-full"])
def test_compiles_whole_with_sizes_left_open(name):
    operator, backend = form(name), "aot_eager" if name in TRACED else "eager"
    torch._dynamo.reset()
    compiled = torch.compile(Mix(operator), fullgraph=True, backend=backend, dynamic=True)
    for grid in (Grid(4, 6, 2), Grid(7, 5, 2)):
        inputs = tensors(grid, grad=True)
        twins = [t.detach().clone().requires_grad_() for t in inputs]
        out, judge = compiled(*inputs, grid), operator.mix(*twins, grid)
        assert (out - judge).abs().max() < 1e-12
        out.square().sum().backward()
        judge.square().sum().backward()
        for ours, twin in zip(inputs, twins, strict=True):
            assert (ours.grad - twin.grad).abs().max() < 1e-10


# Options
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
def test_the_defaults_are_the_papers(name):
    options = create(name, SHAPE).options
    published = OPERATORS[name].published
    assert {option: options[option] for option in published} == published


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("claer", {}, "did you mean 'clear'.*softmax, clear, linfusion, mediator, lit"),
        (
            "clear",
            {"raduis": 3},
            "option of clear 'raduis': did you mean 'radius'.*pool, weight, proportional",
        ),
        ("CLEAR", {}, "did you mean 'clear'"),
        ("Clear", {}, "did you mean 'clear'"),
        ("linear", {}, "did you mean 'linfusion' or 'lit'"),
        ("clear", {"window_size": 8}, "'window_size': here it is called 'radius'"),
        ("clear", {"down_factor": 4}, "'down_factor': here it is called 'pool'"),
        ("mediator", {"mediator_num": 4}, "'mediator_num': here it is called 'count'"),
        ("linfusion", {"projection_mid_dim": 4}, "'projection_mid_dim': .* called 'hidden'"),
        ("clear", {"radius": 0}, "radius is a number above 0, not 0"),
        ("clear", {"radius": float("nan")}, "radius"),
        ("clear", {"radius": float("inf")}, "radius"),
        ("clear", {"radius": True}, "radius"),
        ("clear", {"radius": "8"}, "radius"),
        ("clear", {"pool": 0}, "pool is a whole number from 1 on"),
        ("clear", {"pool": 2.0}, "pool"),
        ("clear", {"proportional": 1}, "proportional is true or false"),
        ("clear", {"trained": 1}, "trained"),
        ("linfusion", {"feature_map": "elu+1"}, "did you mean 'elu1'"),
        ("linfusion", {"hidden": -1}, "hidden is a whole number from 0 on or None"),
        ("linfusion", {"eps": -1e-4}, "eps is a number from 0 on"),
        ("mediator", {"count": 0}, "count is a whole number from 1 on or"),
        ("mediator", {"count": (2, 3, 4)}, "count"),
        ("mediator", {"count": (2, 0)}, "count"),
        ("mediator", {"count": [4]}, "count"),
        ("mediator", {"count": 2.5}, "count"),
        ("mediator", {"bias": "factorized"}, "did you mean 'factorised'"),
        ("mediator", {"conv": 4}, "conv is 0 .* odd number, not 4"),
        ("mediator", {"source": None}, "source is one of query, learned"),
        ("clear", {"weight": 16}, "weight is one of one, tokens"),
        ("lit", {"gate": True}, "gate is a whole number from 0 on"),
        ("linfusion", {"normalise": False}, "'normalise': here it is called 'normaliser'"),
        ("lit", {"heads": 3}, "heads=3 does not divide the layer's 16 channels"),
        ("lit", {"heads": 0}, "heads"),
        ("lit", {"kernel": -3}, "kernel"),
        ("lit", {"shared_conv": "yes"}, "shared_conv"),
        ("softmax", {"conv": None}, "conv"),
    ],
    ids=str,
)
def test_wrong_names_and_values_are_refused(name, options, says):
    with pytest.raises(ValueError, match=says):
        create(name, SHAPE, **options)


def test_tensors_that_do_not_fit_the_grid_are_refused():
    operator, grid = create("linfusion", SHAPE), Grid(3, 4)
    q, k, v = tensors(grid)
    with pytest.raises(
        ValueError, match=r"\(2, 12, 4, 4\) does not fit Grid\(height=4, width=4, text=0\)"
    ):
        operator.mix(q, k, v, Grid(4, 4))
    with pytest.raises(ValueError, match="4 heads of 4"):
        operator.mix(q, k, v[..., :3], grid)


# Schedule

SCHEDULED = {
    "clear-radius": (
        "clear",
        {},
        [{"until": 0.8, "radius": 2, "pool": 4}, {"until": 0.3, "radius": 4}],
    ),
    "linfusion-eps": ("linfusion", {}, [{"until": 0.8, "eps": 0.5}, {"until": 0.3, "eps": 0.1}]),
    "mediator-count": (
        "mediator",
        {"bias": "full"},
        [{"until": 0.8, "count": 4}, {"until": 0.3, "count": [2, 3]}],
    ),
    "mediator-conv": (
        "mediator",
        {"count": 4},
        [{"until": 0.8, "conv": 0}, {"until": 0.3, "conv": 5}],
    ),
    "lit-kernel": (
        "lit",
        {},
        [{"until": 0.8, "kernel": 1}, {"until": 0.3, "kernel": 3, "eps": 0.1}],
    ),
    "softmax-conv": (
        "softmax",
        {"conv": 5},
        [{"until": 0.8, "conv": 0}, {"until": 0.3, "conv": 3}],
    ),
}
scheduled = pytest.mark.parametrize("name", SCHEDULED)


def scheduled_operator(name):
    kind, options, schedule = SCHEDULED[name]
    return shaken(create(kind, SHAPE, **options, schedule=schedule))


@scheduled
def test_a_mixed_batch_is_each_picture_alone(name):
    operator, grid = scheduled_operator(name), Grid(6, 7, 2)
    noise = torch.tensor([0.1, 0.9, 0.5, 0.8, 0.0, 1.0, 0.3])
    inputs = tensors(grid, batch=len(noise), grad=True)
    together = operator.mix(*inputs, grid, noise=noise)
    assert (together - operator.definition(*inputs, grid, noise=noise)).abs().max() < 1e-9
    for i, level in enumerate(noise.tolist()):
        alone = operator.mix(*(t[i : i + 1] for t in inputs), grid, noise=noise[i : i + 1])
        assert (alone - together[i]).abs().max() < 1e-12
        with operator.pin(**_entry(operator, level)):
            assert (operator.mix(*(t[i : i + 1] for t in inputs), grid) - alone).abs().max() < 1e-12
    together.square().sum().backward()
    judge = operator.definition(*inputs, grid, noise=noise)
    slow = torch.autograd.grad(judge.square().sum(), inputs)
    assert all((t.grad - g).abs().max() < 1e-9 for t, g in zip(inputs, slow, strict=True))


def _entry(operator, level):
    """By the letter: the first entry whose `until` the noise reaches."""
    for until, changes in operator.schedule:
        if torch.tensor(level) >= torch.tensor(until):
            return changes
    return {}


@scheduled
def test_the_schedule_matters_and_round_trips(name):
    operator, grid = scheduled_operator(name), Grid(6, 7, 2)
    inputs = tensors(grid, batch=1)
    outs = [operator.mix(*inputs, grid, noise=torch.tensor([level])) for level in (0.9, 0.5, 0.1)]
    assert not torch.allclose(outs[0], outs[1])
    assert not torch.allclose(outs[1], outs[2])
    # Without a noise level and below the last `until`, the operator's own options hold.
    assert torch.equal(outs[2], operator.mix(*inputs, grid))
    again = create(operator.name, SHAPE, **json.loads(json.dumps(operator.options))).double()
    again.load_state_dict(operator.state_dict())
    assert torch.equal(again.mix(*inputs, grid, noise=torch.tensor([0.5])), outs[1])


def test_an_until_is_reached_in_the_noise_s_own_precision():
    operator = create("clear", SHAPE, schedule=[{"until": 0.7, "radius": 2}])
    for level in (
        torch.tensor([0.7]),
        torch.tensor([700]) / 1000,
        torch.tensor([0.7], dtype=torch.float64),
    ):
        assert schedules.positions(operator.schedule, level) == [0]
    assert schedules.positions(operator.schedule, torch.tensor([0.699])) == [1]


def test_one_level_serves_a_whole_batch_and_other_numbers_are_refused():
    operator, grid = scheduled_operator("mediator-count"), Grid(4, 4)
    inputs = tensors(grid, batch=3)
    one = operator.mix(*inputs, grid, noise=torch.tensor([0.9]))
    assert torch.equal(one, operator.mix(*inputs, grid, noise=torch.full((3,), 0.9)))
    with pytest.raises(ValueError, match="noise has 2 levels for a batch of 3"):
        operator.mix(*inputs, grid, noise=torch.tensor([0.9, 0.1]))


def test_pinned_values_hold_whatever_the_noise():
    operator, grid = scheduled_operator("mediator-count"), Grid(6, 6)
    inputs, noise = tensors(grid), torch.tensor([0.9, 0.1])
    assert operator.choices == [{"count": 4}, {"count": (2, 3)}]
    with operator.pin(count=64):
        pinned = operator.mix(*inputs, grid, noise=noise)
        assert operator.pinned == {"count": 64}
    assert operator.pinned is None
    assert torch.equal(pinned, operator.mix(*inputs, grid, noise=torch.tensor([0.0])))
    with pytest.raises(ValueError, match="did you mean 'count'"):
        operator.pinned = {"counts": 3}


@pytest.mark.parametrize(
    ("name", "schedule", "says"),
    [
        (
            "clear",
            [{"until": 0.2, "radius": 3}, {"until": 0.8, "radius": 4}],
            "until 0.8 follows 0.2",
        ),
        (
            "clear",
            [{"until": 0.2, "radius": 3}, {"until": 0.2, "radius": 4}],
            "until 0.2 follows 0.2",
        ),
        ("clear", [{"radius": 3}], r"noise level in \[0, 1\], not None"),
        ("clear", [{"until": 800, "radius": 3}], "not 800"),
        ("clear", [{"until": 0.5, "radius": -3}], "radius is a number above 0, not -3"),
        ("clear", [{"until": 0.5, "radus": 3}], "did you mean 'radius'"),
        ("clear", {"until": 0.5, "radius": 3}, "schedule is a list"),
        ("clear", ["radius"], "schedule is a list"),
        (
            "lit",
            [{"until": 0.5, "heads": 2}],
            "heads cannot follow the noise; what can: kernel, eps",
        ),
        ("linfusion", [{"until": 0.5, "hidden": 2}], "hidden cannot follow the noise"),
        ("mediator", [{"until": 0.5, "bias": "none"}], "bias cannot follow the noise"),
    ],
    ids=str,
)
def test_wrong_schedules_are_refused(name, schedule, says):
    with pytest.raises(ValueError, match=says):
        create(name, SHAPE, schedule=schedule)


# Cost, parameters, initialisation


def test_macs_follow_the_schedule():
    operator = create("mediator", SHAPE, conv=0, schedule=[{"until": 0.5, "count": 4}])
    assert operator.macs(Grid(8, 8)) == 16 * operator.macs(Grid(8, 8), 0.9) == 4 * 64 * 64 * 16


@forms
def test_new_parameters_are_all_of_the_operator_s(name):
    operator = form(name)
    assert operator.new_parameters() == list(dict(operator.named_parameters()))
    assert not list(operator.buffers())


class Attention(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(16, 16, bias=bias) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(16, 16), nn.Dropout(0.0)])


@pytest.mark.parametrize(
    ("policy", "kept"), [("mlp_only", ""), ("out", "o"), ("v", "vo"), ("all", "qkvo")]
)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_initialise_keeps_what_the_policy_names(policy, kept, bias):
    attn = Attention(bias)
    before = copy.deepcopy(attn.state_dict())
    create("lit", SHAPE).initialise(attn, policy)
    for name, tensor in attn.state_dict().items():
        same = torch.equal(tensor, before[name])
        assert same == (name.split("_")[1][0] in kept), name
        if not same and tensor.ndim == 2:
            assert tensor.abs().max() <= (6 / 32) ** 0.5  # Xavier's bound for 16 + 16


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="did you mean 'mlp_only'"):
        create("lit", SHAPE).initialise(Attention(), "mlponly")
    dataless = {name for name, policy in POLICIES.items() if policy.fit is None}
    assert dataless == {"mlp_only", "out", "v", "all"}
    assert set(POLICIES) - dataless == {"heads_alike", "heads_important", "least_squares"}


# Resampling


@pytest.mark.parametrize("size", [1, 2, 7, 16])
@pytest.mark.parametrize("target", [1, 3, 7, 16, 33])
def test_resampling_is_pytorch_s(size, target):
    line = torch.randn(1, 2, size, dtype=torch.float64)
    functional = nn.functional
    pairs = [
        (averages(size, target, line), functional.adaptive_avg_pool1d(line, target)),
        (interpolation(size, target, line), functional.interpolate(line, target, mode="linear")),
        (
            interpolation(size, target, line, True),
            functional.interpolate(line, target, mode="linear", align_corners=True),
        ),
    ]
    for matrix, judge in pairs:
        assert (line @ matrix.T - judge).abs().max() < 1e-12
