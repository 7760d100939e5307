import pytest
import torch

from linattn.attention.grid import Grid


@pytest.mark.parametrize(
    ("grid", "picture", "tokens"),
    [(Grid(1, 1), 1, 1), (Grid(3, 5), 15, 15), (Grid(2, 8, 7), 16, 23)],
)
def test_counts(grid, picture, tokens):
    assert (grid.picture, grid.tokens) == (picture, tokens)


@pytest.mark.parametrize(
    "sides",
    [(0, 4), (4, 0), (-1, 4), (4, 4, -1), (4.0, 4), (True, 4), ("4", 4), (4, None)],
    ids=str,
)
def test_impossible_grids_are_refused_by_name_and_value(sides):
    with pytest.raises(ValueError, match="a grid's (height|width|text) is a whole number") as error:
        Grid(*sides)
    assert any(repr(side) in str(error.value) for side in sides)


def test_is_a_value():
    assert Grid(3, 4) == Grid(3, 4, 0)
    assert len({Grid(3, 4), Grid(4, 3), Grid(3, 4, 1), Grid(3, 4)}) == 3
    with pytest.raises(AttributeError):
        Grid(3, 4).height = 5


def test_rows_leave_the_text_out_and_copy_nothing():
    tokens = torch.arange(2 * 17 * 3).reshape(2, 17, 3)
    rows = Grid(3, 5, 2).rows(tokens)
    assert rows.shape == (2, 3, 5, 3)
    assert torch.equal(rows[1, 2, 4], tokens[1, 2 + 2 * 5 + 4])
    assert rows.untyped_storage().data_ptr() == tokens.untyped_storage().data_ptr()
