"""Checks of an operator by itself: definition, gradients, precision, options, schedule, cost."""

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from linattn.attention import LayerShape, Operator
from linattn.attention.grid import Grid
from linattn.attention.registry import check_class
from linattn.testing.form import GRIDS, SHAPE, Form, forms, hidden, relative, rotation, tensors
from linattn_kernels import flops  # noqa: F401 (teaches the counter the kernels' operations)

EXACT = 1e-9  # float64 against float64
PRECISION = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
LEVELS = torch.tensor([0.1, 0.9, 0.5, 0.0, 1.0])

__all__ = ["check_class"]


def mix_is_its_definition(form: Form) -> None:
    """Compare `mix` with the definition at every grid, in float64."""
    operator = form.build()
    for grid in GRIDS:
        (q, k, v), x, position = tensors(grid), hidden(grid), rotation(grid)
        out = operator.mix(q, k, v, grid, x, position=position)
        if out.shape != v.shape or out.dtype != v.dtype:
            raise AssertionError(
                f"on {grid} mix gives {tuple(out.shape)} of {out.dtype}; "
                f"it must be like v, {tuple(v.shape)} of {v.dtype}"
            )
        _equal(out, operator.definition(q, k, v, grid, x, position=position), f"mix on {grid}")


def the_map_is_the_definition(form: Form) -> None:
    """Compare map @ v + local with the definition; without a map whoever asks must be refused."""
    operator, grid = form.build(), Grid(5, 3, 2)
    (q, k, v), x, position = tensors(grid), hidden(grid), rotation(grid)
    if not operator.has_map:
        _has_no_map(operator, q, k, grid)
        return
    weights = operator.attention_map(q, k, grid, x, position=position)
    value = v.flatten(2).unflatten(2, (weights.shape[1], -1))
    read = torch.einsum("bhij,bjhd->bihd", weights, value).reshape(v.shape)
    definition = operator.definition(q, k, v, grid, x, position=position)
    _equal(read + operator.local(v, grid), definition, f"map @ v on {grid}")


def _has_no_map(operator: Operator, q: Tensor, k: Tensor, grid: Grid) -> None:
    try:
        operator.attention_map(q, k, grid)
    except ValueError:
        return
    raise AssertionError(f"{operator.name} says has_map = False, and attention_map gives one")


def gradients_are_those_of_the_definition(form: Form) -> None:
    """Compare the gradients of inputs and parameters with those of the definition."""
    operator = form.build()
    names = ["q", "k", "v", *(name for name, _ in operator.named_parameters())]
    for grid in (Grid(1, 1), Grid(1, 7, 3), Grid(9, 13, 3), Grid(17, 8)):
        fast, slow = (_gradients(operator, f, grid) for f in (operator.mix, operator.definition))
        for name, ours, judge in zip(names, fast, slow, strict=True):
            if (ours is None) != (judge is None):
                lacking = "mix" if ours is None else "the definition"
                raise AssertionError(f"on {grid} {name} has no gradient from {lacking}")
            if ours is not None and judge is not None:
                _equal(ours, judge, f"the gradient of {name} on {grid}")


def _gradients(
    operator: Operator, function: Callable[..., Tensor], grid: Grid
) -> Sequence[Tensor | None]:
    inputs = tensors(grid, grad=True)
    out = function(*inputs, grid, hidden(grid), position=rotation(grid))
    loss = (out * tensors(grid, seed=2)[0]).sum()
    return torch.autograd.grad(loss, [*inputs, *operator.parameters()], allow_unused=True)


def half_precision_is_close(form: Form) -> None:
    """Compare every precision with the definition of the same rounded inputs in float64."""
    grid = Grid(9, 13, 3)
    position = rotation(grid)
    for dtype, bound in PRECISION.items():
        inputs, operator = tensors(grid, dtype=dtype), form.build().to(dtype)
        x = hidden(grid, dtype=dtype)
        out = operator.mix(*inputs, grid, x, position=position)
        if out.dtype != dtype:
            raise AssertionError(f"mix of {dtype} gives {out.dtype}")
        q, k, v, x = (tensor.double() for tensor in (*inputs, x))
        error = relative(out, operator.double().definition(q, k, v, grid, x, position=position))
        if not error < bound:
            raise AssertionError(
                f"mix in {dtype} errs by {error:.2g}; at most {bound:g} is allowed"
            )


def autocast_does_not_reach_the_core(form: Form) -> None:
    """Compare the results inside and outside of autocast, bit for bit."""
    grid = Grid(6, 5, 2)
    operator, inputs = form.build().float(), tensors(grid, dtype=torch.float32)
    x = hidden(grid, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = operator.mix(*inputs, grid, x)
        judge = operator.definition(*inputs, grid, x)
    if not torch.equal(inside, operator.mix(*inputs, grid, x)):
        raise AssertionError("autocast changes mix: its core must not depend on it")
    if not torch.equal(judge, operator.definition(*inputs, grid, x)):
        raise AssertionError("autocast changes the definition")


def sizes_may_alternate(form: Form) -> None:
    """Run several grids before one backward: an operator keeps parameters only."""
    operator = form.build()
    grids = [Grid(4, 6), Grid(6, 4), Grid(4, 6, 2), Grid(4, 6)]
    inputs = [tensors(grid, grad=True, seed=seed) for seed, grid in enumerate(grids)]
    outs = [operator.mix(*qkv, grid) for qkv, grid in zip(inputs, grids, strict=True)]
    torch.stack([out.square().sum() for out in outs]).sum().backward()
    for qkv, grid in zip(inputs, grids, strict=True):
        q, k, v = (tensor.detach().requires_grad_() for tensor in qkv)
        operator.mix(q, k, v, grid).square().sum().backward()
        for tensor, twin in zip(qkv, (q, k, v), strict=True):
            _equal(_grad(tensor), _grad(twin), f"a gradient after other sizes, on {grid},")


def _grad(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def options_build_the_same_operator(form: Form) -> None:
    """Take the options through JSON and back: nothing of them may be lost."""
    operator = form.build()
    saved = json.loads(json.dumps(operator.options))
    for name, value in operator.values.by_name.items():
        if name not in saved:
            raise AssertionError(
                f"option {name}={value!r} is lost on save: options holds {sorted(saved)}"
            )
        if saved[name] != json.loads(json.dumps(value)):
            raise AssertionError(f"option {name}={value!r} is saved as {saved[name]!r}")
    again = form.operator(SHAPE, **saved).double()
    if again.options != saved:
        raise AssertionError(f"options {saved} come back as {again.options}")
    again.load_state_dict(operator.state_dict())
    grid = Grid(5, 6, 1)
    inputs = tensors(grid)
    if not torch.equal(again.mix(*inputs, grid), operator.mix(*inputs, grid)):
        raise AssertionError(f"built again from {saved} and its weights, mix gives something else")


def options_have_an_effect(form: Form) -> None:
    """Take each option out of the forms that set it: one of them at least must notice."""
    forms_of: dict[str, list[Form]] = {}  # by the option that they set
    for named in forms(form.operator):
        for name in named.options:
            forms_of.setdefault(name, []).append(named)
    for name, setting in forms_of.items():
        if all(_is_idle(name, named) for named in setting):
            values = ", ".join(f"{name}={named.options[name]!r}" for named in setting)
            raise AssertionError(
                f"option {values} changes nothing: without it mix, cost and parameters are the same"
            )


def _is_idle(name: str, form: Form) -> bool:
    rest = {option: value for option, value in form.options.items() if option != name}
    try:
        without = Form(form.operator, form.label, rest).build()
    except ValueError:
        return False  # the other options need this one
    operator = form.build()
    if _shapes(operator) != _shapes(without):
        return False
    grid = Grid(9, 13, 3)
    inputs, position = tensors(grid), rotation(grid)
    x = torch.linspace(-1, 1, 2 * grid.tokens * SHAPE.width, dtype=torch.float64)
    x = x.sin().reshape(2, grid.tokens, SHAPE.width)
    projected, others = operator.inputs(x, grid), without.inputs(x, grid)
    if not all(map(torch.equal, projected, others)) or operator.macs(grid) != without.macs(grid):
        return False
    out = operator.mix(*inputs, grid, x, position=position)
    return torch.equal(out, without.mix(*inputs, grid, x, position=position))


def _shapes(operator: Operator) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in operator.state_dict().items()}


def copies_are_independent(form: Form) -> None:
    """Change a deep copy: the operator must not notice."""
    operator, grid = form.build(), Grid(5, 4)
    twin, inputs = copy.deepcopy(operator), tensors(grid)
    before = operator.mix(*inputs, grid)
    if not torch.equal(twin.mix(*inputs, grid), before):
        raise AssertionError("a deep copy gives something else")
    for parameter in twin.parameters():
        torch.nn.init.zeros_(parameter)
    if not torch.equal(operator.mix(*inputs, grid), before):
        raise AssertionError("a deep copy shares parameters with the operator")


def a_scheduled_batch_is_each_picture_alone(form: Form) -> None:
    """Let this form's options follow the noise, in a batch of several noise levels."""
    free = [name for name, option in form.operator.table.items() if option.scheduled]
    changes = {name: value for name, value in form.options.items() if name in free}
    fixed = {name: value for name, value in form.options.items() if name not in free}
    if not changes:
        return
    schedule = [{"until": 0.5, **changes}]
    try:
        operator = Form(form.operator, form.label, fixed).build(schedule=schedule)
    except ValueError:
        return  # these options need one another
    grid = Grid(6, 7, 2)
    inputs = *tensors(grid, batch=len(LEVELS)), grid, hidden(grid, len(LEVELS))
    together = operator.mix(*inputs, noise=LEVELS)
    _equal(together, operator.definition(*inputs, noise=LEVELS), f"mix with schedule {schedule}")
    for i in range(len(LEVELS)):
        q, k, v, x = (tensor[i : i + 1] for tensor in (*inputs[:3], inputs[4]))
        alone = operator.mix(q, k, v, grid, x, LEVELS[i : i + 1])
        _equal(together[i : i + 1], alone, f"picture {i} of a batch with schedule {schedule}")
    _schedule_is_followed(form, operator, schedule)


def _schedule_is_followed(form: Form, scheduled: Operator, schedule: list[dict[str, Any]]) -> None:
    """Compare noise above `until` with the operator that has these options whatever the noise."""
    constant, grid = form.build(), Grid(6, 7, 2)
    if _shapes(constant) != _shapes(scheduled):
        return  # the schedule keeps weights for all of its entries
    constant.load_state_dict(scheduled.state_dict())
    inputs = tensors(grid, batch=1)
    out = scheduled.mix(*inputs, grid, noise=torch.tensor([0.9]))
    if not torch.allclose(out, constant.mix(*inputs, grid), rtol=0, atol=EXACT):
        raise AssertionError(
            f"schedule {schedule} is ignored: at noise 0.9 mix differs from {form.options}; core "
            "and dense read the options in `values`, not in self.values"
        )


def cost_is_what_is_multiplied(form: Form) -> None:
    """Compare `cost` with what PyTorch's counter sees, or with the entries of a sparse map."""
    for grid in (Grid(8, 8), Grid(9, 13, 3)):
        operator = form.build().float()
        counted = operator.cost(grid, operator.values)
        if not isinstance(counted, int):
            raise AssertionError(f"on {grid} cost is {counted!r}; it must be a whole number")
        cost, seen = operator.macs(grid), _counted(operator, grid)
        uncounted = operator.uncounted(grid, operator.values)
        if uncounted == "pairs":
            _cost_is_of_the_map(operator, grid, cost)
        elif uncounted is None:
            _cost_is_possible(grid, cost, seen)
        elif cost + uncounted != seen:
            raise AssertionError(
                f"on {grid} cost and convolution are {cost} multiply-accumulates, and PyTorch's "
                f"counter sees {seen}, of which {uncounted} do not count: they differ by "
                f"{cost + uncounted - seen:+d}"
            )


def _counted(operator: Operator, grid: Grid) -> int:
    shape = operator.shape
    q, k, v = tensors(grid, shape, batch=1, dtype=torch.float32)
    x = torch.randn(1, grid.tokens, shape.width)
    # The CPU's fused attention has no formula in the counter; its plain twin is two products.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        operator.inputs(x, grid)
        operator.mix(q, k, v, grid, x)
    return counter.get_total_flops() // 2


def _cost_is_of_the_map(operator: Operator, grid: Grid, cost: int) -> None:
    pairs = _entries_of_the_map(operator, grid)
    expected = 2 * pairs * operator.shape.channels
    if cost != expected:
        raise AssertionError(
            f"on {grid} cost is {cost} multiply-accumulates, and the {pairs} pairs of the map make "
            f"{expected}: they differ by {cost - expected:+d}"
        )


def density_is_of_the_map(form: Form) -> None:
    """Compare `pairs` with the entries of a sparse map, or at least with `cost`.

    A softmax weight is two products a channel, one with its key and one with its value.
    """
    for grid in (Grid(8, 8), Grid(9, 13, 3)):
        operator = form.build()
        values = operator.at()
        pairs, cost = operator.pairs(grid, values), operator.cost(grid, values)
        if pairs is None:
            continue
        products = 2 * pairs * operator.shape.channels
        if not isinstance(pairs, int) or not 0 <= products <= cost:
            raise AssertionError(
                f"on {grid} pairs is {pairs!r}, which makes {products} multiply-accumulates, and "
                f"cost is {cost}; pairs must be a whole number of softmax weights that cost counts"
            )
        if operator.uncounted(grid, values) == "pairs":
            entries = _entries_of_the_map(operator, grid)
            if pairs != entries:
                raise AssertionError(f"on {grid} pairs is {pairs}, and the map has {entries}")


def _entries_of_the_map(operator: Operator, grid: Grid) -> int:
    q, k, _ = tensors(grid, operator.shape, batch=1)
    weights = operator.double().attention_map(q, k, grid)
    return int((weights[0, 0] > 0).sum())


def _cost_is_possible(grid: Grid, cost: int, seen: int) -> None:
    if not 0 < cost <= seen:
        raise AssertionError(f"on {grid} cost is {cost}, and PyTorch's counter sees {seen}")


class LargestTensor(TorchDispatchMode):
    """Note the largest tensor that is made; a view is as large as what it looks at."""

    numel = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                size = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.numel = max(self.numel, size)
        return out


def no_tensor_is_as_large_as_the_map(form: Form) -> None:
    """Look at every tensor of a forward and backward, where the cost grows less than N^2."""
    grid, shape = Grid(64, 64), LayerShape(8, 2, 4)
    operator = form.build(shape).float()
    if operator.macs(grid) > 8 * operator.macs(Grid(32, 32)):
        return  # it says itself that it is quadratic
    inputs = tensors(grid, shape, 1, torch.float32, grad=True)
    with LargestTensor() as largest:
        operator.mix(*inputs, grid).sum().backward()
    if largest.numel >= grid.tokens**2 / 2:
        raise AssertionError(
            f"mix of {grid.tokens} tokens makes a tensor of {largest.numel} numbers; the N x N map "
            f"has {grid.tokens**2}"
        )


def _equal(out: Tensor, reference: Tensor, what: str) -> None:
    worst = (out - reference).abs().max().item()
    bound = EXACT * max(1.0, reference.abs().max().item())
    if not worst < bound:
        raise AssertionError(
            f"{what} differs from its definition by {worst:.2g}, "
            f"{relative(out, reference):.2g} of its size; at most {bound:.0e} is allowed"
        )
