"""The README's table of families and operators: every cell is a case of test_family_kinds.py or a
refusal.
"""

import kinds
import pytest
import test_family_kinds

from linattn import families, project
from linattn.attention import OPERATORS
from linattn.families.registry import REFUSED

HEADER = ["family", *OPERATORS]


@pytest.fixture(scope="module")
def table():
    """Label -> cells."""
    lines = iter((project.ROOT / "README.md").read_text().splitlines())
    header = next((line for line in lines if cells(line) == HEADER), None)
    if header is None:
        pytest.fail(
            f"README.md has no table with the columns | {' | '.join(HEADER)} |, the operators in "
            "their order"
        )
    next(lines)  # the rule below the header
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append(cells(line))
    return {label: found for label, *found in rows}


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_every_row_is_tested_with_every_operator(table):
    assert {name.partition("-")[0] for name in test_family_kinds.OPERATORS} == set(OPERATORS)
    assert table == {
        **{label: ["yes"] * len(OPERATORS) for label in kinds.FAMILIES},
        **{label: ["refused"] * len(OPERATORS) for label in kinds.REFUSED},
    }


def test_the_rows_kinds_are_all_that_are_tested():
    assert sorted(kind for row in kinds.FAMILIES.values() for kind in row) == sorted(kinds.KINDS)


def test_every_family_of_the_registry_has_a_row():
    made = {
        label: {type(kinds.model(kind)).__name__ for kind in row}
        for label, row in kinds.FAMILIES.items()
    }
    assert all(len(names) == 1 for names in made.values()), made
    assert sorted(name for names in made.values() for name in names) == sorted(families.FAMILIES)


def test_what_a_row_calls_refused_is_refused_by_name_and_tested():
    tested = {name for name, *_ in test_family_kinds.OTHERS}
    assert set(kinds.REFUSED.values()) <= tested & set(REFUSED)
