"""The table of families and operators in docs/families.md: a cell is a tested case or a refusal."""

import itertools

import kinds
import pytest
import test_family_kinds

from linattn import families, project
from linattn.attention import OPERATORS
from linattn.families.registry import REFUSED
from linattn.passages import families as families_table

HEADER = ["family", *OPERATORS]


@pytest.fixture(scope="module")
def table():
    """Read the table, whose columns are the operators in their order: {label: cells}."""
    lines = iter((project.ROOT / "docs" / "families.md").read_text().splitlines())
    header = next((line for line in lines if cells(line) == HEADER), None)
    if header is None:
        pytest.fail(f"docs/families.md has no table with the columns | {' | '.join(HEADER)} |")
    next(lines)  # the rule below the header
    labelled = {}
    for line in itertools.takewhile(lambda line: line.startswith("|"), lines):
        label, *operators = cells(line)
        labelled[label] = operators
    return labelled


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_every_row_is_tested_with_every_operator(table):
    assert {name.partition("-")[0] for name in test_family_kinds.OPERATORS} == set(OPERATORS)
    expected = dict.fromkeys(kinds.FAMILIES, ["yes"] * len(OPERATORS))
    expected |= dict.fromkeys(kinds.REFUSED, ["refused"] * len(OPERATORS))
    assert table == expected


def test_the_rows_hold_all_tested_models():
    assert sorted(itertools.chain.from_iterable(kinds.FAMILIES.values())) == sorted(kinds.KINDS)


def test_the_rows_are_those_of_the_tests():
    assert list(kinds.FAMILIES) == families_table.names()
    assert tuple(kinds.REFUSED) == families_table.REFUSED


def test_every_family_of_the_registry_has_a_row():
    classes = {}
    for label, models in kinds.FAMILIES.items():
        (classes[label],) = {type(kinds.model(name)).__name__ for name in models}
    assert sorted(classes.values()) == sorted(families.FAMILIES)


def test_a_family_called_refused_is_refused_by_name_and_tested():
    tested = {name for name, *_ in test_family_kinds.OTHERS}
    assert set(kinds.REFUSED.values()) <= tested & set(REFUSED)
