import papers
import pytest
import torch
from layers import SHAPE, error, shaken, tensors
from torch.nn import functional as F

from linattn.attention import create
from linattn.attention.grid import Grid
from linattn.attention.mediator import partition

sizes = pytest.mark.parametrize(
    "grid", [Grid(1, 1), Grid(1, 7, 3), Grid(5, 3), Grid(4, 6, 2)], ids=str
)


@sizes
@pytest.mark.parametrize("sides", [(1, 1), (2, 2), (2, 3), (4, 4)])
def test_is_the_paper_s_formula(grid, sides):
    operator = shaken(create("mediator", SHAPE, count=sides))
    weight, bias = (p.detach() for p in operator.convolution.parameters())
    assert weight.shape == (16, 1, 3, 3)
    q, k, v = tensors(grid, batch=1)
    judge = papers.mediator(q[0], k[0], v[0], grid.height, grid.width, grid.text, *sides)
    judge = judge + papers.convolution(v[0], grid.height, grid.width, grid.text, weight[:, 0], bias)
    assert (operator.mix(q, k, v, grid)[0] - judge).abs().max() < 1e-9


@sizes
@pytest.mark.parametrize("kind", ["factorised", "full"])
@pytest.mark.parametrize("sides", [(2, 3), (3, 2)], ids=["stored", "resized"])
def test_biases_are_the_paper_s_resized(grid, kind, sides):
    """Stored at 2 x 3 mediators, 16 rows, 16 columns and 7 x 7 cells; used at another grid and
    another count.
    """
    operator = shaken(create("mediator", SHAPE, count=(2, 3), bias=kind, conv=0))
    picture = (grid.height, grid.width)

    def judge_of(bias):
        rows, columns = (
            F.interpolate(table.flatten(0, 2)[:, None], size, mode="linear", align_corners=True)[
                :, 0
            ]
            for table, size in zip((bias.rows, bias.columns), picture, strict=True)
        )
        total = rows[:, :, None] + columns[:, None]  # (heads x mediators, height, width)
        if kind == "full":
            total = (
                total
                + F.interpolate(bias.cells.flatten(0, 2)[:, None], picture, mode="bilinear")[:, 0]
            )
        by_mediator = total.flatten(1).view(SHAPE.heads, 2, 3, grid.picture).permute(0, 3, 1, 2)
        # (heads, picture, mediators)
        return F.interpolate(by_mediator, sides, mode="bilinear").flatten(2).detach()

    reading, query = judge_of(operator.reading_bias).mT, judge_of(operator.query_bias)
    q, k, v = tensors(grid, batch=1)
    judge = papers.mediator(
        q[0], k[0], v[0], *picture, grid.text, *sides, reading=reading, query=query
    )
    with operator.pin(count=sides):
        assert (operator.mix(q, k, v, grid)[0] - judge).abs().max() < 1e-9


@sizes
@pytest.mark.parametrize("sides", [(2, 2), (3, 2)], ids=["stored", "resized"])
def test_learned_mediators_are_dba_s(grid, sides):
    operator = shaken(create("mediator", SHAPE, count=4, source="learned", conv=0))
    q, k, v = tensors(grid, batch=1)
    tokens = operator.tokens.detach()  # (2, rows, columns, channels)
    tokens = F.interpolate(tokens.permute(0, 3, 1, 2), sides, mode="bilinear").permute(0, 2, 3, 1)
    readers, answers = tokens.reshape(2, -1, SHAPE.heads, SHAPE.head_dim)
    size = grid.height, grid.width, grid.text
    judge = papers.mediator(q[0], k[0], v[0], *size, *sides, tokens=readers, answers=answers)
    with operator.pin(count=sides):
        assert (operator.mix(q, k, v, grid)[0] - judge).abs().max() < 1e-9


def test_learned_mediators_start_small_and_apart():
    torch.manual_seed(0)
    tokens = create("mediator", SHAPE, source="learned").tokens
    assert tokens.shape == (2, 8, 8, 16)
    assert tokens.std().item() == pytest.approx(0.02, rel=0.05)
    assert tokens.flatten(1, 2).std(1).min() > 0.01


def test_learned_mediators_take_no_biases():
    with pytest.raises(ValueError, match="bias='full' is of pooled queries.*source='learned'"):
        create("mediator", SHAPE, source="learned", bias="full")


def test_a_schedule_counts_learned_mediators_in_one_checkpoint():
    schedule = [{"until": 0.5, "count": 4}]
    operator = shaken(create("mediator", SHAPE, source="learned", count=9, schedule=schedule))
    assert operator.tokens.shape == (2, 3, 3, 16)
    grid = Grid(6, 6)
    inputs = tensors(grid)
    few = operator.mix(*inputs, grid, noise=torch.tensor([0.9]))
    with operator.pin(count=4):
        assert torch.equal(few, operator.mix(*inputs, grid))
    assert not torch.allclose(few, operator.mix(*inputs, grid))


@pytest.mark.parametrize(
    ("count", "grid", "sides"),
    [
        (64, Grid(16, 16), (8, 8)),
        (64, Grid(8, 32), (8, 8)),
        (1, Grid(3, 9), (1, 1)),
        (8, Grid(16, 16), (2, 4)),
        (8, Grid(32, 16), (4, 2)),
        (12, Grid(10, 30), (2, 6)),
        (7, Grid(9, 13), (1, 7)),
        (7, Grid(13, 9), (7, 1)),
        (24, Grid(16, 16), (4, 6)),
        ((3, 5), Grid(50, 2), (3, 5)),
        ([3, 5], Grid(50, 2), (3, 5)),
    ],
    ids=str,
)
def test_a_count_becomes_rows_and_columns(count, grid, sides):
    operator = create("mediator", SHAPE, count=count)
    assert partition(operator.values.count, grid) == sides


def test_one_mediator_gives_every_token_the_same():
    grid = Grid(5, 7, 2)
    out = create("mediator", SHAPE, count=1).double().mix(*tensors(grid), grid)
    assert (out - out[:, :1]).abs().max() < 1e-12


def test_equal_keys_give_the_mean_value():
    grid = Grid(5, 7, 2)
    q, k, v = tensors(grid)
    out = create("mediator", SHAPE, count=9).mix(q, k[:, :1].expand_as(k), v, grid)
    assert (out - v.mean(1, keepdim=True)).abs().max() < 1e-12


def test_a_constant_value_stays():
    grid = Grid(5, 7, 2)
    q, k, v = tensors(grid)
    v = v[:, :1].expand_as(v)
    assert (create("mediator", SHAPE, count=9).mix(q, k, v, grid) - v).abs().max() < 1e-12


def test_as_many_mediators_as_tokens_is_still_not_softmax():
    grid = Grid(4, 4)
    q, k, v = tensors(grid)
    out = create("mediator", SHAPE, count=16).mix(q, k, v, grid)
    scale = SHAPE.head_dim**-0.5
    first = (torch.einsum("bihd,bjhd->bhij", q, k) * scale).softmax(-1)
    second = (torch.einsum("bihd,bjhd->bhij", q, q) * scale).softmax(-1)
    assert (out - torch.einsum("bhij,bjhd->bihd", second @ first, v)).abs().max() < 1e-12
    assert error(out, create("softmax", SHAPE).mix(q, k, v, grid)) > 0.1


def test_the_map_has_at_most_the_mediators_rank():
    grid = Grid(6, 6)
    rows = create("mediator", SHAPE, count=4).attention_map(*tensors(grid)[:2], grid)
    assert (torch.linalg.matrix_rank(rows, atol=1e-10) <= 4).all()


def test_one_checkpoint_serves_every_count():
    grid = Grid(6, 6)
    operator = shaken(
        create(
            "mediator",
            SHAPE,
            count=64,
            schedule=[{"until": 0.8, "count": 4}, {"until": 0.5, "count": 16}],
        )
    )
    fixed = create("mediator", SHAPE, count=16).double()
    fixed.load_state_dict(operator.state_dict())
    inputs = tensors(grid)
    assert torch.equal(
        operator.mix(*inputs, grid, noise=torch.tensor([0.6])), fixed.mix(*inputs, grid)
    )
    stored = create("mediator", SHAPE, count=4, bias="full", schedule=[{"until": 0.5, "count": 16}])
    assert stored.reading_bias.rows.shape == (4, 4, 4, 16)  # at the largest count


def test_parameters_of_the_full_bias_are_the_published_number():
    operator = create("mediator", SHAPE, count=16, bias="full", conv=0)
    assert sum(p.numel() for p in operator.parameters()) == SHAPE.heads * 16 * (98 + 2 * (16 + 16))
