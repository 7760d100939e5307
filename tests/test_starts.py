"""Starts from data: which heads are merged, and the output projection by least squares."""

import copy
import functools

import kinds
import numpy as np
import pytest
import tiny
import torch

import linattn
from linattn import attention, families
from linattn.attention import heads, regression
from linattn.attention.grid import Grid
from linattn.attention.projections import reorder, writable
from linattn.testing import models

MERGING = ("heads_alike", "heads_important")
FITTED = (*MERGING, "least_squares")
SIZES = {"dit": (5, 5), "sd3": (5, 3), "unet": (6, 8)}  # of the latents' tokens


def made(backbone):
    """Return a tiny model of a family, and its inputs."""
    return models.model(backbone), models.inputs(backbone, *SIZES[backbone])


@pytest.mark.parametrize("backbone", ["dit", "sd3", "unet"])
def test_heads_in_another_order_are_the_same_teacher(backbone):
    model, inputs = made(backbone)
    before = models.run(model, **inputs)
    for layer in families.layers(model):
        order = list(range(layer.shape.heads))[::-1]
        reorder(layer.attn, Grid(1, 1), order)
    torch.testing.assert_close(models.run(model, **inputs), before, rtol=1e-4, atol=1e-4)


def similar_pairs(model):
    """Let heads 0 and 2, and heads 1 and 3, look at the same tokens in every layer."""
    for layer in families.layers(model):
        for name in ("to_q", "to_k"):
            linear = getattr(layer.attn, name)
            width = layer.shape.head_dim
            with torch.no_grad():
                for tensor in (linear.weight, linear.bias):
                    tensor[2 * width :] = tensor[: 2 * width]
    return model


def test_heads_that_look_alike_are_merged():
    teacher = similar_pairs(tiny.model())
    student = linattn.linearize(
        copy.deepcopy(teacher), "lit", heads=2, initialise="heads_alike", data=tiny.run
    )
    ours, theirs = families.layers(student)[0].attn, families.layers(teacher)[0].attn
    rows = theirs.to_v.weight.unflatten(0, (4, -1))[[0, 2, 1, 3]].flatten(0, 1)
    assert torch.equal(ours.to_v.weight, rows)
    columns = theirs.to_out[0].weight.unflatten(1, (4, -1))[:, [0, 2, 1, 3]].flatten(1)
    assert torch.equal(ours.to_out[0].weight, columns)


@pytest.mark.parametrize("tokens", [1, 7, 300], ids=str)
def test_likeness_is_the_cosine_of_the_maps(tokens):
    q, k = (torch.randn(2, tokens, 3, 4) for _ in range(2))
    maps = torch.stack(
        [(4**-0.5 * q[:, :, h] @ k[:, :, h].mT).softmax(-1).flatten() for h in range(3)]
    )
    by_hand = torch.nn.functional.normalize(maps.double(), dim=1)
    torch.testing.assert_close(heads.likeness(q, k), by_hand @ by_hand.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backbone", ["dit", "sd3"])
def test_importance_is_the_change_of_the_output_without_a_head(backbone):
    model, inputs = made(backbone)
    with torch.no_grad(), families.capture(model) as calls:
        models.run(model, **inputs)
    layer, call = families.layers(model)[0], calls[0]
    x, output, grid, more = (call[name] for name in ("input", "output", "grid", "more"))
    project = functools.partial(families.qkv, layer, x, grid, **more)
    seen = attention.Activations(x, output, grid, None, more, project)
    for head, value in enumerate(heads.importance(layer.attn, seen).tolist()):
        silent = copy.deepcopy(layer.attn)
        channels = slice(head * layer.shape.head_dim, (head + 1) * layer.shape.head_dim)
        for name in ("to_out", "to_add_out"):
            linear = getattr(silent, name, None)
            if linear is not None:
                linear = linear[0] if name == "to_out" else linear
                linear.weight.data[:, channels] = 0
        muted = families.Layer(layer.name, silent, layer.shape, layer.processor)
        muted_output = families.apply(muted, x, grid, **more)
        by_hand = (muted_output - output).abs().sum(-1).mean().item()
        assert value == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize(("count", "size"), [(1, 4), (2, 2), (4, 1), (3, 5)], ids=str)
def test_every_head_has_one_place(count, size):
    cosines = torch.rand(count * size, count * size)
    for order in (heads.grouped(cosines, count), heads.dealt(cosines[0], count)):
        assert sorted(order) == list(range(count * size))


def test_the_most_important_heads_are_in_different_groups():
    importances = torch.tensor([0.1, 5.0, 0.3, 4.0, 0.2, 3.0])
    order = heads.dealt(importances, 3)
    groups = [set(order[start : start + 2]) for start in range(0, 6, 2)]
    assert groups == [{1, 0}, {3, 4}, {5, 2}]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linfusion", {}, "linfusion has 4 heads where the layer has 4"),
        ("lit", {"heads": 8}, "lit has 8 heads where the layer has 4"),
    ],
    ids=["as many", "more"],
)
def test_a_start_that_merges_nothing_is_refused(name, options, message):
    model = tiny.model()
    with pytest.raises(ValueError, match=message):
        linattn.linearize(model, name, initialise="heads_alike", data=tiny.run, **options)
    assert all(layer.operator is None for layer in families.layers(model))


@pytest.mark.parametrize("policy", FITTED)
def test_a_block_that_projects_for_its_attention_is_refused_with_the_remedy(policy):
    model = kinds.model("flux")
    with pytest.raises(ValueError, match="whose block projects for it has none: leave such"):
        linattn.linearize(
            model,
            "lit",
            heads=1,
            initialise=policy,
            data=lambda model: model(**kinds.inputs("flux")),
        )


# Least squares
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
def test_the_regression_is_numpys(has_bias):
    rng = np.random.default_rng(0)
    inputs, targets = rng.normal(size=(50, 3)), rng.normal(size=(50, 2))
    weight, bias = regression.solution(
        *(torch.from_numpy(values)[None] for values in (inputs, targets)), has_bias, 0.01
    )
    centre = inputs.mean(0) * has_bias
    ridge = 0.01 * (inputs**2).sum() / 3
    rows = np.concatenate([inputs - centre, np.sqrt(ridge) * np.eye(3)])
    padded = np.concatenate([targets - targets.mean(0) * has_bias, np.zeros((3, 2))])
    expected = np.linalg.lstsq(rows, padded)[0].T
    np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-9, atol=1e-12)
    offset = (targets - inputs @ expected.T).mean(0) * has_bias
    np.testing.assert_allclose(bias.numpy(), offset, rtol=1e-9, atol=1e-12)


def test_inputs_of_zeros_leave_the_weights_alone():
    weight, bias = regression.solution(torch.zeros(1, 5, 3), torch.ones(1, 5, 2), True, 0.01)
    assert weight.abs().max() == 0
    assert bias.tolist() == [1, 1]


def test_the_ridge_is_small_where_pictures_agree_and_large_where_they_do_not():
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 9, 3, generator=rng)
    agreeing = inputs @ torch.randn(3, 2, generator=rng)
    assert regression.best_ridge(inputs, agreeing, True) == min(regression.RIDGES)
    turned = agreeing * torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None, None]
    assert regression.best_ridge(inputs, turned, True) == max(regression.RIDGES)
    assert regression.best_ridge(inputs[:1], agreeing[:1], True) == max(regression.RIDGES)


def layer_errors(student, calls):
    """Return every layer's squared error on what the teacher saw."""
    errors = []
    for layer in families.layers(student):
        call = calls[layer.index]
        output = families.apply(layer, call["input"], call["grid"], call["noise"], **call["more"])
        errors.append((output - call["output"]).square().mean().item())
    return errors


@pytest.mark.parametrize("backbone", ["dit", "sd3", "unet"])
@pytest.mark.parametrize("name", ["linfusion", "lit"])
def test_least_squares_brings_every_layer_nearer(backbone, name):
    teacher, inputs = made(backbone)
    with torch.no_grad(), families.capture(teacher) as calls:
        models.run(teacher, **inputs)
    calls = list(calls)
    errors = {}
    for policy in ("all", "least_squares"):
        student = copy.deepcopy(teacher)
        linattn.linearize(
            student, name, initialise=policy, data=lambda model: models.run(model, **inputs)
        )
        with torch.no_grad():
            errors[policy] = layer_errors(student, calls)
    for before, after in zip(errors["all"], errors["least_squares"], strict=True):
        assert after < before


@pytest.mark.parametrize("policy", FITTED)
def test_the_teacher_comes_back(policy):
    model = tiny.model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    linattn.linearize(model, "lit", heads=2, initialise=policy, data=tiny.run)
    linattn.restore(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_activations_without_projections_name_the_remedy():
    bare = attention.Activations(torch.zeros(1, 1, 8), torch.zeros(1, 1, 8), Grid(1, 1))
    with pytest.raises(ValueError, match="pass data to linearize"):
        bare.qkv()


def test_weights_that_are_no_numbers_are_left_to_their_owner():
    model = tiny.model()
    layer = families.layers(model)[0]
    weight = torch.nn.Parameter(layer.attn.to_out[0].weight.to(torch.int8), requires_grad=False)
    layer.attn.to_out[0].weight = weight
    with pytest.raises(ValueError, match="those of Linear are torch.int8: quantise after"):
        writable(layer.attn.to_out[0])
