"""docs/related-systems.md: every system has its row, and what a row names exists."""

import dataclasses
import importlib
import re

import pytest

from linattn import project
from linattn.attention import OPERATORS, POLICIES
from linattn.distillation.objectives import PRESETS, TERMS
from linattn.distillation.settings import Settings

PAGE = (project.ROOT / "docs" / "related-systems.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("| ").split(" | ")]
    for line in PAGE.splitlines()
    if line.startswith("| [")
]
NAME = re.compile(
    r"(operator|option|term|preset|setting|policy|diagnostic) `(.+?)`(?: of `(.+?)`)?"
)


def is_diagnostic(name):
    module, _, function = name.partition(".")
    return callable(getattr(importlib.import_module(f"linattn.evaluation.{module}"), function))


EXISTS = {
    "operator": lambda name: name in OPERATORS,
    "term": lambda name: name in TERMS,
    "preset": lambda name: name in PRESETS,
    "setting": lambda name: name in {field.name for field in dataclasses.fields(Settings)},
    "policy": lambda name: name in POLICIES,
    "diagnostic": is_diagnostic,
}


def named(cell):
    """Yield (what it is, name, operator of an option) of a cell."""
    yield from NAME.findall(cell)


def exists(sort, name, operator):
    if sort == "option":
        return operator in OPERATORS and name in OPERATORS[operator].table
    return EXISTS[sort](name)


def test_there_are_seventeen_systems_and_no_empty_cell():
    assert len(ROWS) == 17
    assert all(len(row) == 4 and all(row) for row in ROWS)
    assert len({row[0] for row in ROWS}) == 17


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][1:].partition("]")[0])
def test_a_row_names_what_exists_or_is_a_sentence(row):
    names = list(named(row[2]))
    assert names or row[2] == "sentence"
    for sort, name, operator in names:
        assert exists(sort, name, operator), f"{sort} {name} of {row[0]} does not exist"


@pytest.mark.parametrize(
    "cell", ["operator `lti`", "term `repaa`", "option `gates` of `lit`", "policy `heads`"]
)
def test_a_name_that_does_not_exist_is_seen(cell):
    ((sort, name, operator),) = named(cell)
    assert not exists(sort, name, operator)
