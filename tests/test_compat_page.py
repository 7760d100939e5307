"""docs/fits.md says what works after `linearize`, each line by the test that tried it."""

import re

from linattn import project


def test_every_line_of_the_page_is_held_by_a_test():
    page = (project.ROOT / "docs" / "fits.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| ") and "`test_" in line]
    assert len(lines) == page.count("\n| ") - 1  # its head has no test
    sources = "".join(path.read_text() for path in (project.ROOT / "tests").glob("test_*.py"))
    names = re.findall(r"`(test_\w+)` \|\n", page)
    assert len(names) == len(lines)
    assert not [name for name in names if f"def {name}(" not in sources]
