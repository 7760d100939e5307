"""The prompts are 500 different lines of plain text, and no template fills them."""

from collections import Counter

import pytest

from linattn import project

FOLDER = project.ROOT / "data" / "prompts"


@pytest.fixture(scope="module")
def prompts():
    """Read every line of the file, the empty ones too."""
    text = (FOLDER / "prompts.txt").read_bytes().decode("ascii")
    assert text.endswith("\n")
    return text[:-1].split("\n")


def beginnings(prompts):
    """Return the first two words of each, in small letters."""
    return [" ".join(prompt.lower().split()[:2]) for prompt in prompts]


def test_there_are_500_different_prompts(prompts):
    assert len(prompts) == 500
    assert len({prompt.lower() for prompt in prompts}) == 500


def test_every_prompt_has_4_to_40_words(prompts):
    assert [prompt for prompt in prompts if not 4 <= len(prompt.split()) <= 40] == []


def test_prompts_are_printable_ascii_with_single_spaces(prompts):
    assert all(prompt.isascii() and prompt.isprintable() for prompt in prompts)
    assert [prompt for prompt in prompts if prompt != " ".join(prompt.split())] == []


def test_no_more_than_6_prompts_begin_with_the_same_two_words(prompts):
    assert max(Counter(beginnings(prompts)).values()) <= 6


def test_the_first_32_prompts_begin_in_at_least_20_ways(prompts):
    assert len(set(beginnings(prompts[:32]))) >= 20


def test_the_counts_of_the_kinds_add_up_to_all_prompts(prompts):
    rows = (FOLDER / "README.md").read_text().splitlines()
    cells = [row.strip("|").split("|")[-1].strip() for row in rows if row.startswith("|")]
    assert sum(int(cell) for cell in cells if cell.isdigit()) == len(prompts)
