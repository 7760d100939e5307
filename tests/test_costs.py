"""Costs: the formula against the counter, memory and exponents of known calls, and when a timing
stops.
"""

import json
import math

import pytest
import tiny
import torch
from layers import PLAIN
from torch.nn import functional as F

from linattn import attention, families, surgery
from linattn.attention import LayerShape
from linattn.attention.grid import Grid
from linattn.evaluation import costs
from linattn.evaluation.growth import exponent, exponents, predict

# Those whose fast path multiplies what the formula counts; clear's tiles multiply more (below).
COUNTED = {
    name: form
    for name, form in PLAIN.items()
    if isinstance(form.build().uncounted(Grid(4, 4), form.build().values), int)
}


def converted(label: str, **shape):
    model = tiny.model(**shape)
    surgery.linearize(model, COUNTED[label].operator.name, **COUNTED[label].options)
    return model


# Multiply-accumulates


def test_macs_of_a_dense_model_by_hand():
    width, tokens, layers, patch = 32, 16, 2, 2
    counted = costs.macs(tiny.model(width=width, layers=layers, patch=patch))
    assert counted["tokens"] == tokens
    assert counted["core"] == layers * 2 * tokens**2 * width
    assert counted["projections"] == layers * 4 * tokens * width**2
    embed, mlp, out = (
        4 * patch**2 * width * tokens,
        8 * width**2 * tokens,
        width * patch**2 * 8 * tokens,
    )
    modulation = (layers + 1) * (256 * width + width**2) + layers * 6 * width**2 + 2 * width**2
    assert counted["rest"] == embed + layers * mlp + out + modulation
    assert counted["total"] == counted["core"] + counted["projections"] + counted["rest"]


@pytest.mark.parametrize("side", [2, 8, 11, 16])
def test_the_counter_agrees_with_the_formula_on_a_dense_model(side):
    model = tiny.model()
    assert costs.counted_macs(model, side) == costs.macs(model, side)["total"]


@pytest.mark.parametrize("label", COUNTED)
def test_the_counter_agrees_with_every_formula(label):
    model, grid = converted(label), Grid(16, 16)
    operators = [layer.operator for layer in families.layers(model)]
    uncounted = sum(operator.uncounted(grid, operator.values) for operator in operators)
    counted = costs.counted_macs(model, 16) - uncounted
    assert counted == pytest.approx(costs.macs(model, 16)["total"], rel=1e-3)


def test_a_window_counts_its_tiles_and_its_formula_only_the_disc():
    model = tiny.model()
    surgery.linearize(model, "clear", radius=3)
    formula, dense = costs.macs(model, 32), costs.macs(tiny.model(), 32)
    assert formula["core"] < dense["core"] / 10
    assert formula["total"] < costs.counted_macs(model, 32) < dense["total"]


def test_only_the_core_changes_when_a_model_is_converted():
    dense, ours = costs.macs(tiny.model(), 16), costs.macs(converted("mediator"), 16)
    assert ours["core"] < dense["core"]
    assert [ours[name] for name in ("projections", "rest")] == [
        dense[name] for name in ("projections", "rest")
    ]


def test_macs_follow_a_schedule():
    model = tiny.model()
    surgery.linearize(
        model, "mediator", schedule=[{"until": 0.5, "count": 4}, {"until": 0.0, "count": 16}]
    )
    noisy, clean = (costs.macs(model, 16, noise)["core"] for noise in (0.9, 0.1))
    assert noisy < clean


def test_macs_on_the_meta_device():
    assert costs.macs(tiny.model().to("meta")) == costs.macs(tiny.model())


def test_counting_leaves_no_hook_and_no_changed_mode():
    model = tiny.model().train()
    costs.macs(model)
    costs.counted_macs(model)
    assert all(not module._forward_hooks for module in model.modules())
    assert all(module.training for module in model.modules())


def test_a_side_that_patches_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="patches of 2"):
        costs.macs(tiny.model(patch=2), 7)


def test_fused_attention_is_counted():
    q = torch.randn(1, 2, 8, 4)
    assert costs.count_macs(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * 2 * 8 * 8 * 4


# Parameters


def test_parameters_added_and_trained():
    model = tiny.model()
    total = sum(parameter.numel() for parameter in model.parameters())
    assert costs.parameters(model) == {"total": total, "added": 0, "trained": total}
    surgery.linearize(model, "softmax", conv=3)
    added = 2 * 32 * (9 + 1)  # a kernel and a bias a channel
    assert costs.parameters(model, trained=[]) == {
        "total": total + added,
        "added": added,
        "trained": 0,
    }
    names = [name for name, _ in surgery.new_parameters(model)]
    assert costs.parameters(model, trained=names)["trained"] == added
    with pytest.raises(ValueError, match="no parameter of DiT"):
        costs.parameters(model, trained=["conv.weight"])


# Memory


def test_peak_memory_of_known_allocations():
    mega = 1 << 20

    def call():
        first = torch.empty(3 * mega, dtype=torch.uint8)
        second = torch.empty(2 * mega, dtype=torch.uint8)
        del first
        third = torch.empty(mega, dtype=torch.uint8)
        return second, third

    assert costs.peak_memory(call) == costs.peak_memory(call, warm=True) == 5 * mega
    held = torch.zeros(8 * mega, dtype=torch.uint8)  # there before: not counted
    assert costs.peak_memory(lambda: held[:mega].clone()) == mega
    assert costs.peak_memory(lambda: held.sum) == 0


def test_peak_memory_shows_an_n_by_n_tensor():
    q = torch.randn(1, 1, 512, 8)
    assert costs.peak_memory(lambda: (q @ q.mT).softmax(-1) @ q) >= 2 * 512 * 512 * 4


def test_peak_memory_says_nothing(capfd):
    costs.peak_memory(lambda: torch.empty(10))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", [name for name in attention.OPERATORS if name != "softmax"])
def test_no_operator_holds_an_n_by_n_tensor(name):
    tokens = 4096
    table = costs.time_operators({name: (name, {})}, [tokens], heads=2, head_dim=8, repeats=1)
    assert table[1]["bytes"] < tokens * tokens * 4


def test_forward_memory_grows_with_the_batch():
    model = tiny.model()
    assert costs.forward_memory(model, batch=4) > 3 * costs.forward_memory(model) > 0


# Time


class Clock:
    """A clock that calls move on by known times."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(costs.time, "perf_counter", lambda: self.now)

    def call(self, *seconds: float):
        turns = iter(seconds)
        return lambda: setattr(self, "now", self.now + next(turns))


def test_interleaved_calls_take_turns_after_one_warm_up():
    seen = []
    times = costs.interleaved(
        {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, repeats=3
    )
    assert seen == ["a", "b"] * 4
    assert [len(seconds) for seconds in times.values()] == [3, 3]


def test_a_slow_call_is_not_repeated(monkeypatch):
    clock = Clock(monkeypatch)
    times = costs.interleaved(
        {"slow": clock.call(9.0), "fast": clock.call(3.0, 1.0, 2.0)}, repeats=2, limit=5
    )
    assert times == {"slow": [9.0], "fast": [1.0, 2.0]}


def timings(**operators: dict[int, float]) -> list[dict]:
    return [
        {"operator": name, "tokens": n, "seconds": s}
        for name, by_size in operators.items()
        for n, s in by_size.items()
    ]


def test_the_exponent_of_a_power_law_over_the_larger_half():
    sizes = [64, 256, 1024, 4096]
    table = timings(
        dense={n: 1.0 if n < 1024 else 1e-9 * n**2 for n in sizes},
        linear={n: 1e-6 * n for n in sizes},
    )
    assert exponents(table) == pytest.approx({"dense": 2.0, "linear": 1.0})


def test_the_exponent_of_an_odd_number_of_sizes_by_hand():
    # The larger half of three is two: (2, 4) and (4, 12) -> log 3 / log 2
    assert exponent(timings(one={1: 5.0, 2: 4.0, 4: 12.0})) == pytest.approx(math.log2(3))


@pytest.mark.parametrize(
    "seconds", [{}, {64: 1.0}, {64: 1.0, 128: None}], ids=["none", "one", "one-measured"]
)
def test_no_exponent_from_fewer_than_two_sizes(seconds):
    assert exponent(timings(one=seconds)) is None


def test_prediction_of_the_next_size():
    assert predict([], 64) == 0
    assert predict(timings(one={64: 1.0}), 128) == pytest.approx(4)  # quadratic until known better
    assert predict(timings(one={64: 1.0, 128: 2.0}), 256) == pytest.approx(4)
    assert predict(timings(one={64: 1.0, 128: 0.1}), 256) == pytest.approx(0.2)  # never shrinking
    assert predict(timings(one={64: None}), 128) == math.inf


def test_rows_of_every_operator_beside_the_baseline():
    operators = {"wide": ("clear", {"radius": 3}), "dense": ("softmax", {})}
    table = costs.time_operators(operators, (12, 49), heads=2, head_dim=8, repeats=2)
    assert [(row["operator"], row["tokens"]) for row in table] == [
        (name, tokens) for tokens in (12, 49) for name in (costs.BASELINE, "wide", "dense")
    ]
    assert [row["grid"] for row in table[::3]] == [[3, 4], [7, 7]]
    for row in table:
        assert row["fastest"] <= row["seconds"] <= row["slowest"]
        assert row["ratio"] == row["baseline_seconds"] / row["seconds"]
        assert row["baseline"] == "scaled_dot_product_attention"
        assert row["threads"] == torch.get_num_threads()
        assert row["bytes"] > 0
    json.dumps(table, allow_nan=False)


def test_an_operator_stops_growing_where_the_last_size_predicts_too_long(monkeypatch):
    def interleaved(calls, repeats, limit, device):
        return {name: [1.0 if name == costs.BASELINE else 0.01] for name in calls}

    monkeypatch.setattr(costs, "interleaved", interleaved)
    operators = {"linfusion": ("linfusion", {})}
    table = costs.time_operators(
        operators, (16, 64, 256), heads=2, head_dim=8, limit=10, memory=False
    )
    dense, ours = (
        [row for row in table if row["operator"] == name] for name in (costs.BASELINE, "linfusion")
    )
    assert [row["seconds"] for row in dense] == [1.0, None, None]
    assert "predicts 16 s, more than the limit of 10 s" in dense[1]["skipped"]
    assert "smaller size" in dense[2]["skipped"]
    assert [row["seconds"] for row in ours] == [0.01] * 3
    assert [row["ratio"] for row in ours] == [100, None, None]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(1, (1, 1)), (12, (3, 4)), (17, (1, 17)), (256, (16, 16)), (512, (16, 32))],
)
def test_tokens_lie_as_near_a_square_as_they_can(tokens, expected):
    assert costs.sides(tokens) == expected


def test_no_tokens_no_repeats():
    with pytest.raises(ValueError, match="count is 0; it must be at least 1"):
        costs.sides(0)
    with pytest.raises(ValueError, match="repeats is 0; it must be at least 1"):
        costs.interleaved({}, 0)


def test_the_call_that_is_timed_is_mix():
    tensors = costs._tensors(Grid(3, 5), 2, 8, "cpu", torch.float64)
    call = costs._call(
        "lit", {"lit": ("lit", {"heads": 1, "kernel": 3})}, Grid(3, 5), tensors, None
    )
    torch.manual_seed(0)
    operator = attention.create("lit", LayerShape(16, 2, 8), heads=1, kernel=3).double()
    torch.testing.assert_close(call(), operator.mix(*tensors[:3], Grid(3, 5)))


def test_what_comes_before_the_projections_is_timed_on_a_line_of_its_own():
    operators = {
        "plain": ("linfusion", {"hidden": 0}),
        "mlps": ("linfusion", {}),
        "lit": ("lit", {}),
    }
    assert list(costs.with_inputs(operators)) == ["plain", "mlps", "mlps + inputs", "lit"]
    table = costs.time_operators(operators, [64], 2, 8, 1, memory=False)
    assert [row["operator"] for row in table] == [
        costs.BASELINE,
        "plain",
        "mlps",
        "mlps + inputs",
        "lit",
    ]
    assert all(row["seconds"] > 0 for row in table)
    assert [row.get("backend") for row in table] == [None, "torch", "torch", "torch", "torch"]


def test_forward_memory_follows_a_schedule():
    model = tiny.model()
    surgery.linearize(
        model, "mediator", schedule=[{"until": 0.5, "count": 4}, {"until": 0.0, "count": 1024}]
    )
    assert costs.forward_memory(model, 32, noise=0.1) > costs.forward_memory(model, 32, noise=0.9)


def test_one_picture_is_timed():
    q, k, v, x = costs._tensors(Grid(3, 5), 2, 8, "cpu", torch.float64)
    assert q.shape == k.shape == v.shape == (1, 15, 2, 8)
    assert x.shape == (1, 15, 16)
    assert len({tensor.sum().item() for tensor in (q, k, v, x)}) == 4, "all differ"
