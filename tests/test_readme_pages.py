"""README.md and docs/ as a reader has them: short, their code runs, their links lead somewhere."""

import re
import subprocess
import sys

import pytest
from test_readme_numbers import PAGES

from linattn import pipeline, project, reader
from linattn.passages import readme

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")
MARKDOWN = [path for path in pipeline.files() if path.endswith(".md") and "/" not in path]
MARKDOWN += [path for path in pipeline.files() if re.fullmatch(r"docs/.*\.md", path)]


def text(path):
    return (project.ROOT / path).read_text()


def blocks(path, language):
    return [code for name, code in FENCE.findall(text(path)) if name == language]


# The first screen


def test_the_readme_is_short():
    words = re.sub(r"<!--.*?-->", "", text("README.md")).split()
    assert 600 < len(words) <= 950


def test_the_claim_the_picture_and_the_table_come_first():
    lines = [line for line in text("README.md").splitlines() if line.strip()]
    shown = [line for line in lines if not line.startswith("<!--")]
    assert shown[0] == "# linattn"
    picture = next(number for number, line in enumerate(shown) if line.startswith("!["))
    table = next(number for number, line in enumerate(shown) if line.startswith("|"))
    assert picture < 7
    assert table == picture + 1
    assert shown[table].count("|") - 1 == 6


def test_the_first_picture_is_small_and_has_words_for_who_cannot_see_it():
    alt, path = re.search(r"!\[(.*?)\]\((.*?)\)", text("README.md")).groups()
    assert len(alt) > 60
    assert (project.ROOT / path).stat().st_size < 300_000


# Code


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    """It runs from top to bottom, in a folder that has only data and reports beside it."""
    for name in ("data", "reports"):
        (tmp_path / name).symlink_to(project.ROOT / name)
    monkeypatch.chdir(tmp_path)
    scope = {}
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), scope)
    for name, held in EXPECTED.get(page, {}).items():
        assert held(scope[name], tmp_path), name


EXPECTED = {
    "README.md": {"pictures": lambda pictures, folder: len(pictures) == 2},
    "docs/library.md": {
        "pictures": lambda pictures, folder: len(pictures) == 2,
        "layers": lambda layers, folder: (
            {layer["operator"] for layer in layers} == {"lit", "clear"}
        ),
        "student": lambda student, folder: (folder / "my-student" / "linattn.json").is_file(),
    },
    "docs/upscaling.md": {"large": lambda large, folder: large.shape == (2, 3, 128, 128)},
    "docs/my-student-does-not-learn.md": {"levels": lambda levels, folder: len(levels) == 5},
}


def test_what_is_expected_of_a_page_is_of_one_that_has_code():
    assert set(EXPECTED) <= {page for page in PAGES if blocks(page, "python")}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_names_only_targets_and_variables_that_make_has(page):
    """`make help` lists them all."""
    offered = subprocess.run(
        ["make", "help"], cwd=project.ROOT, capture_output=True, text=True, check=True
    ).stdout
    commands = re.findall(r"(?:^|`)make( [a-z-]+| [A-Z_]+=)((?: [A-Z_]+=)?)", text(page), re.M)
    for words in commands:
        for word in filter(None, map(str.strip, words)):
            assert re.search(rf"(make |  |\s){re.escape(word)}", offered), word


@pytest.mark.parametrize("page", PAGES)
def test_other_commands_of_a_page_are_there(page):
    """They are make and Python's; a module or file that a page names exists."""
    for code in blocks(page, "sh"):
        assert all(line.startswith("make ") for line in code.splitlines()), code
    for module in re.findall(r"`python -m (linattn[\w.]*)", text(page)):
        path = project.ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()
    for path in re.findall(r"`(?:python )?((?:kernels|tests|notebooks)/[\w/]+\.\w+)`", text(page)):
        assert (project.ROOT / path).is_file(), path


def test_the_citation_is_that_of_citation_cff():
    (entry,) = blocks("README.md", "bibtex")
    assert entry.startswith("@software{linattn,")
    assert entry.count("{") == entry.count("}")
    fields = dict(re.findall(r"(\w+) = \{+(.*?)\}", entry))
    cited = reader.read_yaml(project.ROOT / "CITATION.cff")
    assert fields == {
        "author": cited["authors"][0]["name"],
        "title": cited["title"],
        "version": str(cited["version"]),
        "year": cited["date-released"][:4],
    }


# Links


def anchors(path):
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text(path)), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}


def broken(path, link):
    """Say what is wrong with a link of a page, or return nothing."""
    if link.startswith(("http://", "https://", "mailto:")):
        return ""
    name, _, anchor = link.partition("#")
    target = (project.ROOT / path).parent / name if name else project.ROOT / path
    if not target.resolve().exists():
        return f"{path}: {link} leads nowhere"
    relative = target.resolve().relative_to(project.ROOT.resolve()).as_posix()
    if anchor and anchor not in anchors(relative):
        return f"{path}: {relative} has no heading #{anchor}"
    return ""


@pytest.mark.parametrize("path", MARKDOWN)
def test_every_link_of_a_page_leads_somewhere(path):
    links = LINK.findall(re.sub(r"`[^`]*`", "", FENCE.sub("", text(path))))
    assert not [wrong for wrong in (broken(path, link) for link in links) if wrong]


def test_a_broken_link_or_anchor_is_named():
    assert "leads nowhere" in broken("README.md", "docs/no-such-page.md")
    assert "no heading #nothing" in broken("docs/results.md", "kernels.md#nothing")
    assert broken("docs/results.md", "../README.md#use-it") == ""


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = set(), ["README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for link in LINK.findall(text(page)):
            name = link.partition("#")[0]
            target = ((project.ROOT / page).parent / name).resolve()
            if name.endswith(".md") and target.is_file():
                relative = target.relative_to(project.ROOT.resolve()).as_posix()
                waiting += [] if relative in reached else [relative]
    assert set(PAGES) | {"docs/LOG.md", "CONTRIBUTING.md"} <= reached


# What is where


def test_every_module_is_in_the_layout():
    layout = text("docs/layout.md")
    folders = ("linattn", "linattn/world", "linattn/surgery", "linattn/distillation")
    folders += ("linattn/evaluation", "kernels")
    missing = []
    for folder in folders:
        files = [path.name for path in (project.ROOT / folder).glob("*.py")]
        missing += [name for name in files if name != "__init__.py" and name not in layout]
    rooms = [path.name for path in (project.ROOT / "linattn").iterdir() if path.is_dir()]
    missing += [room for room in rooms if room != "__pycache__" and f"`{room}/`" not in layout]
    assert not missing, f"{missing} have no phrase in docs/layout.md"


def test_every_top_folder_is_in_the_layout():
    layout = text("docs/layout.md")
    folders = {path.partition("/")[0] for path in pipeline.files() if "/" in path}
    hidden = {name for name in folders if name.startswith(".")}
    assert not [name for name in folders - hidden if f"`{name}/`" not in layout]


# Generated passages


def test_every_mark_of_a_page_belongs_to_a_block():
    marks = {(block.path, block.mark) for block in readme.BLOCKS} | set(readme.PICTURES)
    for path in MARKDOWN:
        for mark in re.findall(r"<!-- (.+?): written by python -m linattn.readme -->", text(path)):
            assert (path, mark) in marks


def test_the_pages_are_in_step_with_the_committed_results(committed, monkeypatch, capsys):
    monkeypatch.setattr(project, "ROOT", committed)
    assert readme.main(["--check"]) == 0, capsys.readouterr().err


def test_the_short_name_of_the_command_works():
    command = [sys.executable, "-m", "linattn.readme", "--help"]
    shown = subprocess.run(command, cwd=project.ROOT, capture_output=True, text=True, check=True)
    assert "--check" in shown.stdout
