"""docs/when-it-fails.md quotes sentences that the code has."""

import ast
import re

import pytest

from linattn import project

PAGE = (project.ROOT / "docs" / "when-it-fails.md").read_text()
LINES = [line for line in PAGE.splitlines() if re.match(r"\| (?!what you see)\S", line)]


def quoted(line):
    """Return what a line of the page quotes in its first column."""
    return re.findall(r"`([^`]+)`", line.split(" | ")[0])


def sentences():
    """Return the texts of all code that a user's command runs."""
    texts = [(project.ROOT / ".ci" / "setup").read_text()]
    for path in (project.ROOT / "linattn").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


@pytest.fixture(scope="module")
def code():
    return sentences()


@pytest.mark.parametrize("line", LINES, ids=lambda line: (quoted(line) or ["killed"])[0])
def test_what_a_line_quotes_is_a_sentence_of_the_code(line, code):
    assert not [text for text in quoted(line) if text not in code]


def test_all_lines_but_one_quote_a_sentence():
    assert len(LINES) > 20
    assert len([line for line in LINES if not quoted(line)]) == 1  # a kill says nothing
    assert all(line.count(" | ") == 2 for line in LINES)
