"""How Sphinx builds the site (`make docs`): the repository is its source, so that every relative
link of a Markdown file leads to the same file here and on a page of a Git host.
"""

import sys
from pathlib import Path

import linattn

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

project = "linattn"
author = "The linattn authors"
copyright = author
language = "en"
release = linattn.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "extension.docstrings",
    "extension.notebooks",
    "extension.pages",
]

# Sources. docs/index.md lists all pages; the sidebar follows it.
root_doc = "README"
source_suffix = {".md": "markdown", ".ipynb": "notebook"}
include_patterns = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *("docs/*.md", "docs/api/*.md", "examples/README.md"),
    *("notebooks/*.ipynb", "studies/*/*.ipynb"),
]
# Folders without a page are not walked through: .venv alone has tens of thousands of files.
WALKED = {"docs", "examples", "notebooks", "studies"}
folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
exclude_patterns = sorted(folders - WALKED)
templates_path = ["templates"]

# Every reference must lead somewhere; extension/docstrings.py lets other projects' names pass.
nitpicky = True
myst_heading_anchors = 4
myst_enable_extensions = ["html_image"]
default_role = "code"
highlight_language = "none"

autodoc_default_options = {"members": True, "undoc-members": True, "no-value": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 72
add_module_names = False
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "linattn"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
# The report's dress: its fonts and colours.
SERIF = 'Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, "DejaVu Serif", serif'
MONO = 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace'
FONTS = {
    "font-stack": SERIF,
    "font-stack--headings": SERIF,
    "font-stack--monospace": MONO,
}
LIGHT = {"color-brand-primary": "#1f2328", "color-brand-content": "#005a92"}
DARK = {"color-brand-primary": "#e4e6e9", "color-brand-content": "#7dbdf0"}
html_theme_options = {
    "top_of_page_buttons": [],
    "light_css_variables": {**FONTS, **LIGHT, "color-brand-visited": "#005a92"},
    "dark_css_variables": {**DARK, "color-brand-visited": "#7dbdf0"},
}
pygments_style = "default"
pygments_dark_style = "monokai"
html_sidebars = {
    "**": [
        *("sidebar/brand.html", "sidebar/search.html", "sidebar/scroll-start.html"),
        *("sidebar/report.html", "sidebar/navigation.html", "sidebar/scroll-end.html"),
    ]
}
