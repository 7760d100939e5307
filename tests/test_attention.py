"""The contract, for every operator: fast path, definition, gradients, options, schedule, cost."""

import copy
import dataclasses
import json
import pickle

import pytest
import torch
from layers import FORMS, GRIDS, SHAPE, error, form, rotation, shaken, tensors
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from linattn.attention import OPERATORS, POLICIES, LayerShape, create
from linattn.attention.grid import Grid
from linattn.attention.mediator import partition
from linattn.attention.resample import averages, interpolation
from linattn_kernels import flops  # noqa: F401 (the counter must know the operations, whichever test runs first)

forms = pytest.mark.parametrize("name", FORMS)
grids = pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g.height}x{g.width}+{g.text}")
SUBQUADRATIC = [name for name in FORMS if not name.startswith(("softmax", "clear-pool"))]


@forms
@grids
def test_mix_is_its_definition(name, grid):
    operator, (q, k, v), position = form(name), tensors(grid), rotation(grid)
    out = operator.mix(q, k, v, grid, position=position)
    assert out.shape == v.shape
    assert out.dtype == torch.float64
    assert (out - operator.definition(q, k, v, grid, position=position)).abs().max() < 1e-9


@forms
@pytest.mark.parametrize("grid", [Grid(1, 1), Grid(1, 7, 3), Grid(9, 13, 3), Grid(17, 8)], ids=str)
def test_gradients_are_those_of_the_definition(name, grid):
    operator, inputs = form(name), tensors(grid, grad=True)
    wanted = [*inputs, *(p for p in operator.parameters())]
    weight = torch.randn_like(inputs[0])
    fast, slow = (
        torch.autograd.grad(
            (f(*inputs, grid, position=rotation(grid)) * weight).sum(), wanted, allow_unused=True
        )
        for f in (operator.mix, operator.definition)
    )
    for ours, judge in zip(fast, slow, strict=True):
        assert (ours is None) == (judge is None)
        assert ours is None or (ours - judge).abs().max() < 1e-9 * max(1, judge.abs().max())


@forms
def test_gradcheck(name):
    grid, shape = Grid(3, 2, 1), LayerShape(4, 2, 2)
    name_, options = FORMS[name]
    operator = shaken(
        create(name_, shape, **{**options, **({"heads": 1} if name_ == "lit" else {})})
    )
    # those act in inputs
    names = [n for n, _ in operator.named_parameters() if not n.startswith(("query.", "key."))]

    def run(q, k, v, *parameters):
        given = {f"operator.{n}": p for n, p in zip(names, parameters, strict=True)}
        return torch.func.functional_call(
            _Mix(operator, rotation(grid, shape)), given, (q, k, v, grid)
        )

    q, k, v = tensors(grid, shape, batch=1, grad=True)
    parameters = [p.detach().requires_grad_() for n, p in operator.named_parameters() if n in names]
    sizes = sum(p.numel() for p in parameters)
    if sizes > 400:  # the tables at 7 x 7 and 16 are covered by the gradients above
        names.clear()
        parameters = []
    assert torch.autograd.gradcheck(run, (q, k, v, *parameters))


class _Mix(nn.Module):
    def __init__(self, operator, position=None):
        super().__init__()
        self.operator, self.position = operator, position

    def forward(self, *arguments):
        return self.operator.mix(*arguments, position=self.position)


@forms
@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)],
    ids=["fp32", "fp16", "bf16"],
)
def test_precision(name, dtype, bound):
    grid = Grid(9, 13, 3)
    inputs, position = tensors(grid, dtype=dtype), rotation(grid)
    operator = form(name).to(dtype)
    out = operator.mix(*inputs, grid, position=position)
    assert out.dtype == dtype
    # The judge has the same rounded inputs and parameters in float64.
    judge = operator.double().definition(*(t.double() for t in inputs), grid, position=position)
    assert error(out, judge) < bound


@forms
def test_autocast_does_not_reach_the_core(name):
    grid = Grid(6, 5, 2)
    operator, inputs = form(name).float(), tensors(grid, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = operator.mix(*inputs, grid)
        dense = operator.attention_map(*inputs[:2], grid)
    assert torch.equal(inside, operator.mix(*inputs, grid))
    assert torch.equal(dense, operator.attention_map(*inputs[:2], grid))


@forms
def test_what_is_added_starts_at_zero(name):
    kind, options = FORMS[name]
    bare = (
        {"conv": 0} if "conv" in OPERATORS[kind].table else {"kernel": 0} if kind == "lit" else {}
    )
    bare |= {"bias": "none"} if kind == "mediator" else {}
    torch.manual_seed(1)
    full = create(kind, SHAPE, **options).double()
    torch.manual_seed(1)
    plain = create(kind, SHAPE, **{**options, **bare}).double()
    grid = Grid(9, 6, 2)
    inputs, x = tensors(grid), torch.randn(2, grid.tokens, SHAPE.width, dtype=torch.float64)
    # To the last bit but for biases, with which PyTorch takes another path through the same
    # softmax.
    bound = 1e-12 if options.get("bias", "none") != "none" else 0
    assert (full.mix(*inputs, grid) - plain.mix(*inputs, grid)).abs().max() <= bound
    assert all(torch.equal(given, x) for given in full.inputs(x, grid))
    assert not full.local(inputs[2], grid).any()


@forms
def test_rows_are_weights(name):
    grid = Grid(7, 5, 2)
    q, k, _ = tensors(grid)
    rows = form(
        name, **({"eps": 0} if "eps" in OPERATORS[FORMS[name][0]].table else {})
    ).attention_map(q, k, grid)
    if name.startswith("clear-pool"):  # the pooling kernel is not normalised
        return
    assert rows.min() >= 0
    assert (rows.sum(-1) - 1).abs().max() < 1e-12


class Largest(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                # Views (expand, as_strided) are as large as what they look at.
                self.numel = max(
                    self.numel, tensor.untyped_storage().nbytes() // tensor.element_size()
                )
        return out


@pytest.mark.parametrize("name", SUBQUADRATIC)
def test_no_tensor_is_as_large_as_the_map(name):
    grid = Grid(64, 64)  # the map has 16.8 million numbers a head
    shape = LayerShape(8, 2, 4)
    operator, inputs = form(name, shape).float(), tensors(grid, shape, 1, torch.float32, grad=True)
    with Largest() as largest:
        operator.mix(*inputs, grid).sum().backward()
    assert largest.numel < grid.tokens**2 / 2


def test_the_largest_tensor_would_be_seen():
    grid = Grid(64, 64)
    q, k, _ = tensors(grid, LayerShape(1, 1, 1), 1, torch.float32)
    with Largest() as largest:
        create("linfusion", LayerShape(1, 1, 1)).attention_map(q, k, grid)
    assert largest.numel >= grid.tokens**2


@forms
def test_two_sizes_in_turn_before_one_backward(name):
    operator = form(name)
    sizes = [Grid(4, 6), Grid(6, 4), Grid(4, 6, 2), Grid(4, 6)]
    inputs = [tensors(grid, grad=True) for grid in sizes]
    outs = [operator.mix(*given, grid) for given, grid in zip(inputs, sizes, strict=True)]
    sum(out.square().sum() for out in outs).backward()
    for given, grid, out in zip(inputs, sizes, outs, strict=True):
        assert torch.equal(out, operator.mix(*given, grid))
        alone = [t.detach().requires_grad_() for t in given]
        operator.mix(*alone, grid).square().sum().backward()
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(alone, given, strict=True))


@forms
@pytest.mark.parametrize(
    "twin",
    [copy.deepcopy, lambda operator: pickle.loads(pickle.dumps(operator))],
    ids=["deepcopy", "pickle"],
)
def test_copies_are_independent(name, twin):
    operator, grid = form(name), Grid(5, 4)
    other, inputs = twin(operator), tensors(grid)
    before = operator.mix(*inputs, grid)
    assert torch.equal(other.mix(*inputs, grid), before)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(operator.mix(*inputs, grid), before)


@pytest.mark.parametrize("name", ["clear", "linfusion", "mediator-full", "lit"])
def test_compiles_whole_with_sizes_left_open(name):
    operator = form(name)
    torch._dynamo.reset()
    compiled = torch.compile(_Mix(operator), fullgraph=True, backend="aot_eager", dynamic=True)
    for grid in (Grid(4, 6, 2), Grid(7, 5, 2)):
        inputs = tensors(grid, grad=True)
        twins = [t.detach().clone().requires_grad_() for t in inputs]
        out, judge = compiled(*inputs, grid), operator.mix(*twins, grid)
        assert (out - judge).abs().max() < 1e-12
        out.square().sum().backward()
        judge.square().sum().backward()
        assert all(
            (a.grad - b.grad).abs().max() < 1e-10 for a, b in zip(inputs, twins, strict=True)
        )


# Options


@forms
def test_options_are_json_and_build_the_same_operator(name):
    operator = form(name)
    options = json.loads(json.dumps(operator.options))
    again = create(operator.name, SHAPE, **options).double()
    assert again.options == options
    again.load_state_dict(operator.state_dict())
    grid = Grid(5, 6, 1)
    inputs = tensors(grid)
    assert torch.equal(again.mix(*inputs, grid), operator.mix(*inputs, grid))


def test_defaults_are_the_published_ones():
    alone = dataclasses.replace(SHAPE, has_text=False)
    made = {name: create(name, alone).options for name in OPERATORS}
    assert made == {
        "softmax": {"conv": 0},
        "clear": {"radius": 8, "pool": 1, "proportional": False, "trained": None},
        "linfusion": {"feature_map": "elu1", "hidden": None, "eps": 1e-4},
        "mediator": {"count": 64, "bias": "none", "conv": 3, "source": "query"},
        "lit": {
            "heads": None,
            "kernel": 5,
            "feature_map": "relu",
            "eps": 1e-6,
            "shared_conv": True,
        },
    }
    for name in ("linfusion", "lit"):
        assert create(name, SHAPE).options == {**made[name], "text": "joint", "rope": "map"}


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("claer", {}, "did you mean 'clear'.*softmax, clear, linfusion, mediator, lit"),
        (
            "clear",
            {"raduis": 3},
            "option of clear 'raduis': did you mean 'radius'.*pool, proportional",
        ),
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
    assert (together - operator.definition(*inputs, grid, noise)).abs().max() < 1e-9
    for i, level in enumerate(noise.tolist()):
        alone = operator.mix(*(t[i : i + 1] for t in inputs), grid, noise=noise[i : i + 1])
        assert (alone - together[i]).abs().max() < 1e-12
        with operator.pin(**_entry(operator, level)):
            assert (operator.mix(*(t[i : i + 1] for t in inputs), grid) - alone).abs().max() < 1e-12
    together.square().sum().backward()
    slow = torch.autograd.grad(operator.definition(*inputs, grid, noise).square().sum(), inputs)
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
        assert operator._positions(level) == [0]
    assert operator._positions(torch.tensor([0.699])) == [1]


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


def counted(operator, grid):
    q, k, v = tensors(grid, batch=1, dtype=torch.float32)
    x = torch.randn(1, grid.tokens, operator.shape.width)
    # The CPU's fused attention has no formula in the counter; its plain twin is two matrix
    # products.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        operator.inputs(x, grid)
        operator.mix(q, k, v, grid)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("grid", [Grid(8, 8), Grid(9, 13, 3)], ids=str)
@pytest.mark.parametrize("name", [name for name in FORMS if not name.startswith("clear")])
def test_macs_are_what_the_counter_sees(name, grid):
    operator = form(name).float()
    seen = counted(operator, grid)
    channels, formula = SHAPE.channels, operator.macs(grid)
    if operator.name in ("linfusion", "lit"):
        # The normaliser, a matrix product here, counts nothing in the papers.
        formula += (grid.picture if operator.values.text == "exact" else grid.tokens) * channels
    if operator.name == "mediator":
        seen -= _resampling(operator, grid)
    assert seen == formula


def _resampling(operator, grid):
    """Averages and interpolation are matrix products here; the papers count averages as free."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        rows, columns = partition(operator.values.count, grid)
        operator.mediators(tensors(grid, batch=1, dtype=torch.float32)[0], grid, rows, columns)
        operator.biases(grid, rows, columns, torch.float32)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", [name for name in FORMS if name.startswith("clear")])
@grids
def test_macs_of_clear_are_the_pairs_of_its_mask(name, grid):
    operator = form(name)
    pool, channels = operator.values.pool, SHAPE.channels
    pairs = int(operator.allowed(grid, operator.values.radius, torch.device("cpu")).sum())
    cells = (
        len({(y // pool, x // pool) for y in range(grid.height) for x in range(grid.width)})
        if pool > 1
        else 0
    )
    pooling = 2 * grid.picture * channels if pool > 1 else 0
    assert operator.macs(grid) == 2 * channels * (pairs + cells * grid.picture) + pooling


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
    assert set(POLICIES) == {"mlp_only", "out", "v", "all"}


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
