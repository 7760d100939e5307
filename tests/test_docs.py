"""The site that `make docs` builds: every public name with its arguments, every link leading
somewhere, no script.
"""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from extension import pages, public

from linattn import project

ROOT = project.ROOT
MODULES = public.modules()


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Build the site once, as the Makefile does."""
    folder = tmp_path_factory.mktemp("site")
    command = ["-E", "-W", "--keep-going", "-q", "-c", "docs", "-d"]
    assert " ".join(command) in (ROOT / "Makefile").read_text()
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *command, f"{folder}/doctrees", ".", f"{folder}/html"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr[-1500:]
    return folder / "html"


# Docstrings


def undescribed(value):
    return [name for name in public.arguments(value) if name not in public.documented(value)]


@pytest.mark.parametrize("module", MODULES)
def test_every_argument_of_a_public_name_is_described(module):
    missing = {}
    for name, value in public.objects(module).items():
        if name not in public.constants(module) and undescribed(value):
            missing[name] = undescribed(value)
    assert not missing


@pytest.mark.parametrize("module", MODULES)
def test_no_argument_is_described_that_does_not_exist(module):
    for name, value in public.objects(module).items():
        if name not in public.constants(module):
            assert public.documented(value) <= set(public.arguments(value)), name


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_sentence(module):
    for name, value in public.objects(module).items():
        if name not in public.constants(module):
            first = (value.__doc__ or "").partition("\n")[0]
            assert re.match(r"[A-Z]\w+ .*[.:;,\w]$", first), f"{name}: {first!r}"


def test_an_argument_without_a_line_is_named():
    def scale(x, factor):
        """Scale a tensor.

        Args:
            x: a tensor of any shape.

        Returns:
            factor: is no argument here.
        """

    assert undescribed(scale) == ["factor"]


def test_every_room_with_public_names_has_a_page():
    rooms = {"linattn", "linattn_kernels"}
    for path in (ROOT / "linattn").glob("*/__init__.py"):
        if "__all__" in path.read_text():
            rooms.add(f"linattn.{path.parent.name}")
    assert rooms <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_page_has_every_public_name_with_its_arguments(module, site):
    html = (site / "docs" / "api" / f"{module}.html").read_text()
    for name, value in public.objects(module).items():
        start = html.find(f'id="{module}.{name}"')
        assert start > 0, name
        if name not in public.constants(module):
            entry = html[start:].split(f'id="{module}.')[1]
            described = set(re.findall(r"<strong>\**(\w+)</strong>", entry))
            assert set(public.arguments(value)) <= described, name


# Pages


def test_the_contents_name_files_that_exist():
    index = (ROOT / "docs" / "index.md").read_text()
    targets = [match["target"] for match in pages.ENTRY.finditer(index)]
    assert len(targets) == index.count("\n- ")
    assert not [target for target in targets if not (ROOT / "docs" / target).is_file()]


def test_every_document_has_a_page(site):
    sources = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    sources += [*ROOT.glob("studies/*/*.ipynb"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    assert len(sources) > 30
    for source in sources:
        assert (site / source.relative_to(ROOT)).with_suffix(".html").is_file()


def test_the_report_is_inside_and_every_page_links_it(site):
    assert "<table" in (site / "report" / "index.html").read_text()
    home = (site / "index.html").read_text().partition("<article")[2]
    assert 'href="report/index.html"' in home
    for path, link in (("index.html", ""), ("docs/index.html", "../"), ("genindex.html", "")):
        assert f"{link}report/index.html" in Page.read(site / path).targets["href"]


def test_a_source_notebook_leads_to_its_file(site):
    html = (site / "notebooks" / "00_tour.html").read_text()
    (link,) = set(re.findall(r'href="([^"]+/00_tour\.ipynb)"', html))
    assert (site / "notebooks" / link).resolve().is_file()


# Links and scripts


class Page(HTMLParser):
    """Collect what a page refers to, what may be referred to in it, and what it must not have."""

    def __init__(self):
        super().__init__()
        self.anchors, self.scripts, self.frames, self.unframed = set(), [], 0, []
        self.targets = {"href": set(), "src": set()}
        self.depth = []

    @classmethod
    def read(cls, path):
        page = cls()
        page.feed(path.read_text())
        return page

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            if name in self.targets and value:
                self.targets[name].add(value)
            if name.startswith("on"):
                self.scripts.append(f"{tag} {name}")
        if tag == "script":
            self.scripts.append(tag)
        if tag == "div":
            self.depth.append(is_frame(dict(attributes)))
        if tag == "table" and not any(self.depth):
            self.unframed.append(attributes)

    def handle_endtag(self, tag):
        if tag == "div":
            self.depth.pop()


def is_frame(attributes):
    """Say whether a div scrolls by itself."""
    return bool({"table-wrapper", "output"} & set((attributes.get("class") or "").split()))


def broken(folder):
    """Name every link of the pages in a folder that leads nowhere."""
    read = {path.resolve(): Page.read(path) for path in folder.rglob("*.html")}
    wrong = []
    for path, page in read.items():
        for target in page.targets["href"] | page.targets["src"]:
            if problem := reason(path, target, read):
                wrong.append(f"{path.relative_to(folder.resolve())}: {target}: {problem}")
    return sorted(wrong)


def reason(path, target, read):
    """Return why a link of a page leads nowhere, or nothing."""
    scheme, host, inner, _, anchor = urlsplit(target)
    if scheme == "data":
        return ""
    if scheme or host:
        return "" if scheme == "https" and re.fullmatch(r"[\w-]+(\.[\w-]+)+", host) else "no https"
    file = (path.parent / unquote(inner)).resolve() if inner else path
    if not file.is_file():
        return "no such file"
    if anchor and file in read and unquote(anchor) not in read[file].anchors:
        return "no such anchor"
    return ""


def test_every_link_leads_somewhere(site):
    assert not broken(site)


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("other.html", ""),
        ("other.html#there", ""),
        ("https://arxiv.org/abs/2412.16112", ""),
        ("other.html#gone", "no such anchor"),
        ("gone.html", "no such file"),
        ("http://arxiv.org", "no https"),
        ("https://arxiv", "no https"),
        ("mailto:somebody", "no https"),
    ],
)
def test_a_link_that_leads_nowhere_is_named(target, problem, tmp_path):
    (tmp_path / "page.html").write_text(f'<a href="{target}">x</a>')
    (tmp_path / "other.html").write_text('<p id="there">x</p>')
    assert broken(tmp_path) == ([f"page.html: {target}: {problem}"] if problem else [])


def test_no_page_fetches_from_the_network(site):
    fetched = set()
    for path in site.rglob("*.html"):
        fetched |= {urlsplit(target).scheme for target in Page.read(path).targets["src"]}
    assert fetched <= {"", "data"}


def test_no_page_but_the_search_has_a_script(site):
    found = {path for path in site.rglob("*.html") if Page.read(path).scripts}
    assert found == {site / "search.html"}


def test_a_wide_table_scrolls_in_its_own_frame(site):
    """Those of the report have frames of its own; indexes are as narrow as their names."""
    read = [*site.glob("*.html"), *site.glob("docs/**/*.html"), *site.glob("notebooks/*.html")]
    framed = [path for path in read if "index" not in path.name]
    assert len(framed) > 30
    for path in framed:
        assert not Page.read(path).unframed, path


def test_what_needs_a_script_is_hidden(site):
    style = (site / "_static" / "site.css").read_text()
    assert re.search(r"\.theme-toggle-container \{ display: none", style)
    assert 'for="__navigation"' in (site / "index.html").read_text()


# Parts of the extension


def test_markup_of_another_language_stays_text():
    from extension.docstrings import escaped

    assert escaped("`a * b` and a * b, x_ of to_q") == r"`a * b` and a \* b, x\_ of to_q"
    assert escaped("a *measure* of **kwargs") == r"a *measure* of \*\*kwargs"


def test_a_notebook_is_marked_as_run_or_not(tmp_path):
    from extension import notebooks

    path = ROOT / "notebooks" / "00_tour.ipynb"
    source = notebooks.markdown(path.read_text(), Path("notebooks/00_tour.ipynb"), None)
    assert source.startswith("# ")
    assert "without outputs" in source
    assert "as it ran for `clear`" in notebooks.markdown(
        path.read_text(), path, Path("clear.ipynb")
    )


def test_stages_are_shown_as_they_ran():
    from extension import notebooks

    shown = {path.stem for path in ROOT.glob("notebooks/*.ipynb") if notebooks.ran(path)}
    assert shown == {path.name for path in (ROOT / "reports" / "executed").iterdir()}
    assert shown


def test_links_to_folders_become_text_and_others_stay():
    from extension.pages import LINK, _without_folder

    line = "[a](api) [b](LOG.md)"
    there = LINK.sub(lambda match: _without_folder(ROOT / "docs", match), line)
    assert there == "a [b](LOG.md)"
