"""What a visitor meets beside the README: version, citation, changelog, templates, workflow."""

import json
import re
import shlex
import subprocess
import sys
from datetime import date

import pytest
from ruamel.yaml import YAML

import linattn
from linattn import project
from linattn.attention import OPERATORS

ROOT = project.ROOT
ISSUES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
ARXIV = re.compile(r"\d{4}\.\d{5}")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text(path):
    return (ROOT / path).read_text()


def read(path):
    return YAML(typ="safe").load(ROOT / path)


# The version


def test_the_version_is_readable_from_a_clone_without_any_package():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import linattn; print(linattn.__version__)"
    )
    command = [sys.executable, "-I", "-S", "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == linattn.__version__


def test_the_version_is_written_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", linattn.__version__)
    assert 'dynamic = ["version"]' in text("pyproject.toml")
    assert f'"{linattn.__version__}"' not in text("pyproject.toml")


def releases():
    """Return the version and date of each heading of the changelog, the newest first."""
    return re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\S+)$", text("CHANGELOG.md"), re.MULTILINE)


def test_the_changelog_begins_with_what_is_not_released_and_then_this_version():
    headings = re.findall(r"^## (.+)$", text("CHANGELOG.md"), re.MULTILINE)
    version, day = releases()[0]
    assert headings[:2] == ["[Unreleased]", f"[{version}] - {day}"]
    assert version == linattn.__version__


def test_the_changelogs_dates_are_dates_that_go_back():
    days = [date.fromisoformat(day) for _, day in releases()]
    assert days == sorted(days, reverse=True)
    assert days[0] <= date.today()


def test_the_changelog_uses_the_known_groups():
    groups = re.findall(r"^### (.+)$", text("CHANGELOG.md"), re.MULTILINE)
    assert groups
    assert set(groups) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


# The citation


def test_the_citation_has_what_the_format_requires():
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "type"} <= set(citation)
    assert citation["authors"] == [{"name": "The linattn authors"}]
    assert citation["license"] == "Apache-2.0"
    for reference in citation["references"]:
        assert {"type", "title", "authors", "year", "url"} <= set(reference)
        for author in reference["authors"]:
            assert set(author) == {"given-names", "family-names"}


def test_the_citation_names_this_version_and_its_date():
    citation = read("CITATION.cff")
    assert (citation["version"], citation["date-released"]) == releases()[0]


def test_the_citation_refers_to_the_paper_of_each_operator():
    expected = set(ARXIV.findall(" ".join(OPERATORS[name].paper for name in OPERATORS)))
    cited = set()
    for reference in read("CITATION.cff")["references"]:
        (identifier,) = reference["identifiers"]
        number = identifier["value"].removeprefix("arXiv:")
        assert reference["url"] == f"https://arxiv.org/abs/{number}"
        cited.add(number)
    assert len(cited) >= 5
    assert cited == expected


# The workflow and the templates


def test_the_workflow_runs_what_ci_runs_and_nothing_else():
    workflow = read(".github/workflows/ci.yml")
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
    assert "3.11" in job["strategy"]["matrix"]["python"]


def test_the_workflow_asks_for_the_torch_without_cuda_that_make_help_names():
    (job,) = read(".github/workflows/ci.yml")["jobs"].values()
    assert f"TORCH={job['env']['TORCH']} " in text("Makefile")


@pytest.mark.parametrize("path", ISSUES, ids=lambda path: path.stem)
def test_an_issue_template_is_a_form(path):
    form = read(path)
    assert {"name", "description", "body"} <= set(form)
    identifiers = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(identifiers) == len(set(identifiers)) > 0
    for field in form["body"]:
        assert field["type"] in {"markdown", "input", "textarea", "checkboxes"}
        assert ("value" if field["type"] == "markdown" else "label") in field["attributes"]
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_there_is_a_form_for_a_bug_an_operator_and_a_number():
    assert {path.stem for path in ISSUES} == {"bug", "claim", "operator"}


def test_the_command_of_the_bug_form_prints_the_facts():
    command = re.search(r"`(python -c .+)`", text(".github/ISSUE_TEMPLATE/bug.yml")).group(1)
    _, *arguments = shlex.split(command)
    environment = {"PYTHONPATH": project.python_path(), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    version, _, facts = done.stdout.partition(" ")
    assert version == linattn.__version__
    assert set(json.loads(facts)) == set(project.facts())


@pytest.mark.parametrize(
    "path",
    [".github/PULL_REQUEST_TEMPLATE.md", *(f".github/ISSUE_TEMPLATE/{p.name}" for p in ISSUES)],
)
def test_files_and_commands_that_a_template_names_exist(path):
    named = re.findall(r"`([^`]+)`", text(path))
    for name in named:
        if re.fullmatch(r"[\w./-]+\.(md|py|lock)", name):
            assert (ROOT / name).is_file(), name
        if match := re.fullmatch(r"make ([a-z]+)", name):
            assert f"\n{match.group(1)}: " in text("Makefile"), name


def test_the_pull_request_asks_for_what_contributing_asks_for():
    checklist = text(".github/PULL_REQUEST_TEMPLATE.md")
    contributing = text("CONTRIBUTING.md")
    for phrase in ("make test", "make lint", "docs/LOG.md", "pipeline --accept", "CHANGELOG.md"):
        assert phrase in checklist
        assert phrase in contributing


# Operators worth adding


def sections():
    """Return the text of each operator's section by its heading."""
    pieces = re.split(r"^## \d+\. ", text("docs/good-first-operators.md"), flags=re.MULTILINE)[1:]
    return dict(piece.split("\n", 1) for piece in pieces)


def table():
    """Return the cells of each line of the table."""
    lines = text("docs/good-first-operators.md").splitlines()
    return [line.strip("| ").split(" | ") for line in lines if re.match(r"\| \d+ \|", line)]


def test_there_are_eight_to_twelve_operators_in_the_tables_order():
    names = [cells[1] for cells in table()]
    assert 8 <= len(names) <= 12
    assert [int(cells[0]) for cells in table()] == list(range(1, len(names) + 1))
    assert [name.lower() for name in names] == [heading.lower() for heading in sections()]


@pytest.mark.parametrize("heading", sections())
def test_an_operators_section_says_what_is_easy_what_traps_what_text_does_and_whose_code(heading):
    body = sections()[heading]
    starts = re.findall(r"^- (\w+):", body, re.MULTILINE)
    assert starts == ["Easy", "Trap", "Text", "Licence"]
    assert re.search(r"(Not s|S)ub-quadratic", body)


def test_every_arxiv_number_is_one_and_no_operator_here_has_it():
    papers = " ".join(OPERATORS[name].paper for name in OPERATORS)
    for cells in table():
        number, address = re.fullmatch(r"\[(.+)\]\((.+)\)", cells[2]).groups()
        assert ARXIV.fullmatch(number)
        assert address == f"https://arxiv.org/abs/{number}"
        assert number not in papers


@pytest.mark.parametrize(
    "path", ["CHANGELOG.md", "docs/good-first-operators.md", "examples/README.md"]
)
def test_relative_links_lead_to_files(path):
    links = [link for link in LINK.findall(text(path)) if "://" not in link]
    assert links
    for link in links:
        assert ((ROOT / path).parent / link.partition("#")[0]).exists(), link
