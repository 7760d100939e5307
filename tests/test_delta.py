"""DeltaNet: the recurrence token by token, what begins a scan, and the package that may run it."""

import importlib.util
import types

import pytest
import tiny
import torch
from layers import SHAPE, shaken, tensors

import linattn
from linattn.attention import LayerShape, create, delta
from linattn.attention.grid import Grid
from linattn.testing.form import hidden
from linattn_kernels.launch import Backend

sizes = pytest.mark.parametrize(
    "grid", [Grid(1, 1), Grid(1, 7, 3), Grid(3, 5), Grid(2, 3, 1)], ids=str
)


def silu(x):
    return x / (1 + (-x).exp())


def scanned(q, k, v, step, order):
    """By the letter: S_t = S_{t-1} + b_t k_t (v_t - S_{t-1}^T k_t)^T and o_t = S_t^T q_t."""
    out = torch.zeros_like(v)
    for head in range(q.shape[1]):
        state = torch.zeros(q.shape[2], q.shape[2], dtype=q.dtype)
        for token in order:
            key, query = (silu(t[token, head]) for t in (k, q))
            key, query = key / key.square().sum().sqrt(), query / query.square().sum().sqrt()
            wrong = v[token, head] - state.T @ key
            state = state + step[token, head] * torch.outer(key, wrong)
            out[token, head] = state.T @ query
    return out


def paths(grid, scans):
    """Yield the picture's tokens there and back, by rows and by columns, after the text."""
    text = list(range(grid.text))
    rows = [(y, x) for y in range(grid.height) for x in range(grid.width)]
    columns = [(y, x) for x in range(grid.width) for y in range(grid.height)]
    for cells in (rows, columns)[: scans // 2]:
        for path in (cells, cells[::-1]):
            yield text + [grid.text + y * grid.width + x for y, x in path]


def test_a_chunk_has_no_more_tokens_than_there_are():
    grid, longest = Grid(3, 5, 2), create("delta", SHAPE, chunk=2**31 - 1)
    inputs = tensors(grid)
    assert torch.equal(
        longest.mix(*inputs, grid), create("delta", SHAPE, chunk=17).mix(*inputs, grid)
    )
    assert longest.macs(grid) == create("delta", SHAPE, chunk=17).macs(grid)


@sizes
@pytest.mark.parametrize("scans", [2, 4])
def test_delta_is_the_papers_recurrence(grid, scans):
    operator = shaken(create("delta", SHAPE, scans=scans, chunk=4))
    (q, k, v), x = tensors(grid, batch=1), hidden(grid, batch=1)
    logits = x[0] @ operator.step.weight.T + operator.step.bias
    step = 1 / (1 + (-logits).exp())
    parts = [scanned(q[0], k[0], v[0], step, path) for path in paths(grid, scans)]
    judge = sum(parts) / scans
    full = create("softmax", SHAPE).mix(q, k, v, grid)[0]
    judge = torch.cat([full[: grid.text], judge[grid.text :]])
    assert (operator.mix(q, k, v, grid, x)[0] - judge).abs().max() < 1e-9


def test_any_chunk_gives_the_same():
    grid = Grid(7, 5, 2)
    inputs = tensors(grid)
    whole = create("delta", SHAPE).mix(*inputs, grid)
    for chunk in (1, 3, 36, 37, 1000):
        out = create("delta", SHAPE, chunk=chunk).mix(*inputs, grid)
        assert (out - whole).abs().max() < 1e-12


def test_a_whole_step_replaces_the_value_of_a_key_that_comes_again():
    """Tell the delta rule from a sum, which would give the mean: the newest value alone is read."""
    operator, grid = create("delta", SHAPE).double(), Grid(2, 3)
    torch.nn.init.constant_(operator.step.bias, 50)
    q, _, v = tensors(grid)
    q = q[:, :1].expand_as(q)
    assert (operator.mix(q, q, v, grid) - v).abs().max() < 1e-12


def test_text_without_hidden_states_has_the_step_of_the_bias():
    grid = Grid(2, 3, 4)
    operator, k, x = shaken(create("delta", SHAPE)), tensors(grid)[1], hidden(grid)
    step = operator.step(x[:, grid.text :], k)
    torch.testing.assert_close(step[:, : grid.text], operator.step(None, k)[:, : grid.text])
    torch.testing.assert_close(step[:, grid.text :], operator.step(x, k)[:, grid.text :])
    assert operator.step(None, k).shape == (2, grid.tokens, SHAPE.heads)


def test_the_step_is_a_half_at_first():
    grid = Grid(3, 3)
    _, k, _ = tensors(grid)
    operator = create("delta", SHAPE)
    assert (operator.step(hidden(grid), k) == 0.5).all()


def test_long_scans_of_like_keys_stay_finite():
    """A chunk's triangle is far from the identity where all keys are alike."""
    grid, shape = Grid(32, 32), LayerShape(8, 2, 4)
    q, k, v = tensors(grid, shape, 1, torch.float32)
    operator, k = create("delta", shape), k[:, :1].expand_as(k)
    judge = create("delta", shape).double()
    out = operator.mix(q, k, v, grid)
    assert (out - judge.mix(q.double(), k.double(), v.double(), grid)).abs().max() < 1e-5


@pytest.mark.parametrize("scans", [1, 3, True, "2", None], ids=str)
def test_other_numbers_of_scans_are_refused(scans):
    with pytest.raises(ValueError, match=r"scans is 2 \(rows there and back\) or 4"):
        create("delta", SHAPE, scans=scans)


# The kernel of flash-linear-attention, which is for GPUs: a stand-in has its signature
# ---------------------------------------------------------------------------------------------


def chunk_delta_rule(q, k, v, beta, scale=None, **more):
    """Scan as the package does: q, k, v (batch, tokens, heads, head_dim), beta without the last."""
    assert q.dtype == k.dtype == v.dtype != torch.float32
    q, k, v = q.float(), k.float(), v.float()
    state, outs = k.new_zeros(*k.shape[:1], *k.shape[2:], k.shape[3]), []
    for token in range(q.shape[1]):
        key, query, step = k[:, token], q[:, token], beta[:, token, :, None].float()
        error = v[:, token] - torch.einsum("bhde,bhd->bhe", state, key)
        state = state + torch.einsum("bhd,bhe->bhde", key, step * error)
        outs.append(scale * torch.einsum("bhde,bhd->bhe", state, query))
    return torch.stack(outs, 1).to(v.dtype), None


def test_the_package_scans_what_pytorch_scans(monkeypatch):
    grid = Grid(4, 5, 2)
    inputs, operator = tensors(grid, dtype=torch.bfloat16), create("delta", SHAPE)
    own = operator.mix(*inputs, grid)
    calls = []

    def load(name):
        calls.append(name)
        return types.SimpleNamespace(chunk_delta_rule=chunk_delta_rule)

    monkeypatch.setattr(delta.importlib, "import_module", load)
    monkeypatch.setattr(delta, "kernel", lambda *_: Backend("fla", "a stand-in"))
    out = operator.mix(*inputs, grid)
    assert calls == ["fla.ops.delta_rule"]
    assert out.dtype == torch.bfloat16
    assert (out - own).norm() < 1e-2 * own.norm()


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "installed", "path"),
    [
        ("cuda", torch.bfloat16, 64, True, "fla"),
        ("cuda", torch.float16, 256, True, "fla"),
        ("cuda", torch.float32, 64, True, "torch"),
        ("cuda", torch.bfloat16, 264, True, "torch"),
        ("cuda", torch.bfloat16, 64, False, "torch"),
        ("cpu", torch.bfloat16, 64, True, "torch"),
    ],
)
def test_the_package_runs_half_precision_on_a_gpu_where_it_is_installed(
    device, dtype, head_dim, installed, path, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed or None)
    operator = create("delta", LayerShape(2 * head_dim, 2, head_dim))
    assert operator.runs(torch.device(device), dtype).path == path


def test_a_description_says_that_the_package_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    backend = create("delta", SHAPE).runs(torch.device("cuda"), torch.bfloat16)
    assert backend.reason.endswith("flash-linear-attention is not installed")
    row = linattn.describe(linattn.linearize(tiny.model(), "delta"))[0]
    assert (row["backend"], row["because"]) == ("torch", "PyTorch's own operations")
