"""LinFusion and LiT: one normalised linear attention, two sets of projections, heads and
convolutions.
"""

import papers
import pytest
import torch
from layers import SHAPE, rotation, shaken, tensors
from torch import nn

from linattn.attention import LayerShape, create
from linattn.attention.grid import Grid

sizes = pytest.mark.parametrize(
    "grid", [Grid(1, 1), Grid(1, 7, 3), Grid(5, 3), Grid(4, 6, 2)], ids=str
)


@sizes
@pytest.mark.parametrize("eps", [1e-4, 0.3])
@pytest.mark.parametrize(("name", "phi"), [("elu1", papers.elu1), ("relu", papers.relu)])
def test_linfusion_is_the_paper_s_formula(grid, eps, name, phi):
    q, k, v = tensors(grid, batch=1)
    out = create("linfusion", SHAPE, eps=eps, feature_map=name).mix(q, k, v, grid)
    assert (out[0] - papers.linear(q[0], k[0], v[0], SHAPE.heads, phi, eps)).abs().max() < 1e-9


@sizes
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("heads", [None, 2, 4, 8])
def test_lit_is_the_paper_s_formula(grid, heads, shared):
    operator = shaken(create("lit", SHAPE, heads=heads, kernel=3, shared_conv=shared, eps=0.2))
    few = heads or 1
    weight, bias = (p.detach() for p in operator.convolution.parameters())
    assert weight.shape == (SHAPE.channels // few if shared else SHAPE.channels, 1, 3, 3)
    # Channel c of the merged heads uses the weights of its place within its head.
    channel = torch.arange(SHAPE.channels) % len(weight)
    q, k, v = tensors(grid, batch=1)
    judge = papers.linear(
        q[0].flatten(1), k[0].flatten(1), v[0].flatten(1), few, papers.relu, 0.2
    ).view(v[0].shape)
    judge = judge + papers.convolution(
        v[0], grid.height, grid.width, grid.text, weight[channel, 0], bias[channel]
    )
    assert (operator.mix(q, k, v, grid)[0] - judge).abs().max() < 1e-9


@sizes
@pytest.mark.parametrize(("name", "heads"), [("linfusion", 4), ("lit", 2)])
def test_subtraction_is_lina_s_formula(grid, name, heads):
    few = {"heads": heads, "kernel": 0} if name == "lit" else {}
    operator = create(name, SHAPE, feature_map="elu1", normaliser="subtract", **few)
    q, k, v = tensors(grid, batch=1)
    judge = papers.subtracted(q[0], k[0], v[0], heads, papers.elu1)
    assert (operator.mix(q, k, v, grid)[0] - judge).abs().max() < 1e-9


@sizes
def test_without_a_denominator_the_mean_is_read(grid):
    q, k, v = tensors(grid, batch=1)
    out = create("linfusion", SHAPE, normaliser="none").mix(q, k, v, grid)[0]
    for h in range(SHAPE.heads):
        weights = papers.elu1(q[0, :, h]) @ papers.elu1(k[0, :, h]).T
        assert (out[:, h] - weights @ v[0, :, h] / grid.tokens).abs().max() < 1e-9


@sizes
@pytest.mark.parametrize(("name", "heads"), [("linfusion", 4), ("lit", 2)])
def test_features_are_rotated_as_in_sana_video(grid, name, heads):
    options = {"eps": 0.2, "feature_map": "relu"}
    if name == "lit":
        options |= {"heads": heads, "kernel": 0}
    operator = create(name, SHAPE, rope="after", **options)
    (q, k, v), (cos, sin) = tensors(grid, batch=1), rotation(grid)
    angles = torch.atan2(sin, cos)[:, ::2]
    turns = torch.exp(1j * angles)[None, :, None]
    given = [
        torch.view_as_real(torch.view_as_complex(t.unflatten(3, (-1, 2))) * turns).flatten(3)
        for t in (q, k)
    ]
    judge = papers.rotated_after(q[0], k[0], v[0], heads, papers.relu, 0.2, angles)
    out = operator.mix(*given, v, grid, position=(cos, sin))
    assert (out[0] - judge).abs().max() < 1e-9
    # Where nothing is rotated the values of the option are one.
    plain = create(name, SHAPE, **options)
    assert torch.equal(operator.mix(q, k, v, grid), plain.mix(q, k, v, grid))


@sizes
@pytest.mark.parametrize("text", ["joint", "exact"])
def test_gates_scale_keys_and_values_where_they_lie(grid, text):
    operator = shaken(create("linfusion", SHAPE, eps=0.2, gate=3, text=text))
    joint = text == "joint"
    assert (operator.gate.text is not None) == joint
    q, k, v = tensors(grid, batch=1)
    factors = nn.functional.interpolate(
        operator.gate.picture.detach(), (grid.height, grid.width), mode="bilinear"
    ).flatten(2)
    of_text = operator.gate.text.detach() if joint else torch.ones(2, SHAPE.heads, 1).double()
    factors = torch.cat([of_text.expand(-1, -1, grid.text), factors], 2).mT.unsqueeze(3)
    gated = k[0] * factors[0], v[0] * factors[1]
    if joint or not grid.text:
        judge = papers.linear(q[0], *gated, SHAPE.heads, papers.elu1, 0.2)
    else:
        read = [tensor[grid.text :] for tensor in (q[0], *gated)]
        judge = papers.linear(*read, SHAPE.heads, papers.elu1, 0.2)
        judge = _beside_exact_text(grid, q[0], k[0], v[0], judge)
    assert (operator.mix(q, k, v, grid)[0] - judge).abs().max() < 1e-9


def _beside_exact_text(grid, q, k, v, read):
    """Mix what the picture reads linearly with softmax on the text, and give text softmax."""
    out, scale, text = torch.zeros_like(v), SHAPE.head_dim**-0.5, grid.text
    share = grid.picture / grid.tokens
    for h in range(SHAPE.heads):
        for i in range(grid.tokens):
            seen = slice(None) if i < text else slice(0, text)
            out[i, h] = papers.softmax_read(q[i, h], k[seen, h], v[seen, h], scale)
    out[text:] = (1 - share) * out[text:] + share * read
    return out


def test_gates_start_as_one_and_may_be_of_any_size():
    grid = Grid(5, 4, 2)
    inputs = tensors(grid)
    for name in ("linfusion", "lit"):
        gated, plain = (create(name, SHAPE, gate=gate) for gate in (7, 0))
        assert torch.equal(gated.mix(*inputs, grid), plain.mix(*inputs, grid))
        assert gated.gate.picture.shape == (2, gated.shape.channels // gated.head_dim, 7, 7)


def test_a_row_sums_to_one_under_subtraction_and_may_be_negative():
    grid = Grid(7, 5, 2)
    q, k, _ = tensors(grid)
    weights = create("lit", SHAPE, kernel=0, normaliser="subtract").attention_map(q, k, grid)
    assert (weights.sum(-1) - 1).abs().max() < 1e-12
    assert weights.min() < 0


@pytest.mark.parametrize("name", ["linfusion", "lit"])
@pytest.mark.parametrize("normaliser", ["subtract", "none"])
@pytest.mark.parametrize("rope", ["numerator", "after"])
def test_a_denominator_that_is_not_there_cannot_be_rotated_otherwise(name, normaliser, rope):
    with pytest.raises(ValueError, match=f"{name}: rope='{rope}' .*'{normaliser}' has none"):
        create(name, SHAPE, normaliser=normaliser, rope=rope)


@pytest.mark.parametrize(
    ("width", "heads", "few"),
    [
        (384, 6, 2),
        (768, 12, 3),
        (1024, 16, 4),
        (1152, 16, 4),
        (512, 8, 2),
        (128, 4, 1),
        (64, 2, 1),
        (220, 22, 5),
        (230, 23, 5),
        (69, 23, 3),
        # A quarter would be wider than the kernels take: FLUX and Qwen-Image, SD3.5-L, SD 1.5
        # twice, SDXL, one head.
        (3072, 24, 12),
        (2432, 38, 16),
        (640, 8, 4),
        (1280, 8, 5),
        (640, 10, 4),
        (320, 1, 2),
    ],
)
def test_lit_takes_the_published_heads_or_a_quarter_and_no_more_than_fit(width, heads, few):
    operator = create("lit", LayerShape(width, heads, width // heads))
    assert operator.heads == few
    assert operator.head_dim <= operator.max_head_dim


@pytest.mark.parametrize("name", ["linfusion", "lit"])
def test_rows_sum_to_one_up_to_the_epsilon(name):
    grid = Grid(7, 6)
    q, k, _ = tensors(grid)
    for eps, far in ((0, 1e-12), (1e-4, 1e-3), (10, 1)):
        rows = create(name, SHAPE, eps=eps).attention_map(q, k, grid).sum(-1)
        assert (1 - rows).abs().max() <= far
        assert eps == 0 or (rows < 1).all()


@pytest.mark.parametrize(
    ("name", "options"), [("linfusion", {}), ("lit", {"kernel": 0}), ("softmax", {})], ids=str
)
def test_tokens_may_be_permuted_without_convolution(name, options):
    grid = Grid(6, 5, 2)
    operator, inputs, order = create(name, SHAPE, **options), tensors(grid), torch.randperm(32)
    moved = operator.mix(*(t[:, order] for t in inputs), grid)
    assert torch.allclose(moved, operator.mix(*inputs, grid)[:, order], atol=1e-12)


def test_lit_is_blind_to_the_size_of_keys():
    grid = Grid(6, 5)
    operator = create("lit", SHAPE, kernel=0)
    q, k, v = tensors(grid)
    assert (operator.mix(q, 3 * k, v, grid) - operator.mix(q, k, v, grid)).abs().max() < 1e-4


def test_linfusion_moves_the_inputs_of_query_and_key():
    shape = LayerShape(width=10, heads=2, head_dim=4)
    operator = shaken(create("linfusion", shape, hidden=6))
    x = torch.randn(2, 12, 10, dtype=torch.float64)
    xq, xk, xv = operator.inputs(x, Grid(3, 4))
    assert xv is x
    for given, mlp in ((xq, operator.query), (xk, operator.key)):
        first, norm, last = mlp[0], mlp[1], mlp[3]
        hidden = nn.functional.layer_norm(
            x @ first.weight.T + first.bias, (6,), norm.weight, norm.bias
        )
        hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
        assert (given - (x + hidden @ last.weight.T + last.bias)).abs().max() < 1e-12
    assert not torch.equal(xq, xk)


@pytest.mark.parametrize(
    ("hidden", "parameters"),
    [(None, 2 * (2 * 16 * 16 + 4 * 16)), (4, 2 * (2 * 16 * 4 + 3 * 4 + 16)), (0, 0)],
)
def test_hidden_is_the_width_of_the_functions(hidden, parameters):
    operator = create("linfusion", SHAPE, hidden=hidden)
    assert sum(p.numel() for p in operator.parameters()) == parameters
    x = torch.randn(1, 4, 16)
    # no doubling, and f = 0 at first
    assert all(torch.equal(given, x) for given in operator.inputs(x, Grid(2, 2)))
    assert len(operator.new_parameters()) == (12 if parameters else 0)


def test_half_precision_survives_long_sums():
    grid, shape = Grid(64, 64), LayerShape(8, 2, 4)
    inputs = [20 * t for t in tensors(grid, shape, 1, torch.float16)]
    for name in ("linfusion", "lit"):
        out = create(name, shape).half().mix(*inputs, grid)
        assert out.isfinite().all()
