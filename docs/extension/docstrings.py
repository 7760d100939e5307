"""Docstrings as this repository writes them, made what autodoc and napoleon read.

- Names stand in single backticks, and a word may be *emphasised*; all else is text, whatever it
  would mean in reStructuredText.
- In a module's docstring an indented block is code.
- The arguments of a dataclass are its fields, described by their comments.
- A type is linked if it has a page. Types of other packages are not, since nothing here may ask the
  network where their pages are.
"""

import inspect
import re
import sys
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from extension import public

OURS = ("linattn", "linattn_kernels")
KEPT = re.compile(r"(``?[^`]+``?|(?<![\w*])\*\w+\*(?![\w*]))")
MARKUP = re.compile(r"[*|\\]|(?<=\w)_(?!\w)")
SHORT = 80  # characters of a constant that is shown


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", describe, priority=400)  # napoleon comes at 500
    app.connect("autodoc-process-signature", readable)
    app.connect("autodoc-skip-member", skip)
    app.connect("source-read", with_constants)
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def with_constants(app: Sphinx, docname: str, content: list[str]) -> None:
    """Add a module's constants to its page: autodoc passes over those of other modules."""
    if docname.startswith("docs/api/"):
        module = docname.removeprefix("docs/api/")
        for name in public.constants(module):
            content[0] += f"\n```{{eval-rst}}\n.. autodata:: {module}.{name}\n   :no-value:\n```\n"


def describe(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Complete a docstring, and turn it into reStructuredText."""
    if what == "data":
        lines[:] = _constant(name, value)
        return
    if what == "module":
        lines[:] = _with_code(lines)
        return
    lines[:] = [escaped(line) for line in lines]
    comments = public.comments(value) if what == "class" else {}
    if comments and "Args:" not in lines:
        lines += ["", "Args:"]
        lines += [f"    {field}: {escaped(text)}" for field, text in comments.items()]


def readable(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str | None, result: Any
) -> tuple[str | None, Any]:
    """Write `...` for a default that a factory makes, since `<factory>` is no Python."""
    return signature and signature.replace("<factory>", "..."), result


def escaped(line: str) -> str:
    """Escape what reStructuredText would read as markup, outside backticks and emphasis."""
    pieces = KEPT.split(line)  # every second one is kept
    pieces[::2] = [MARKUP.sub(r"\\\g<0>", piece) for piece in pieces[::2]]
    return "".join(pieces)


def _constant(name: str, value: Any) -> list[str]:
    module, _, short = name.rpartition(".")
    comment = public.comment_of(sys.modules[module], short)
    lines = [escaped(comment)] if comment else []
    if isinstance(value, (str, tuple)) and len(repr(value)) < SHORT:
        lines += ["", f"``{value!r}``"]
    return lines


def _with_code(lines: list[str]) -> list[str]:
    """Mark the indented blocks of a docstring as code."""
    marked: list[str] = []
    in_code = in_list = False
    for line in lines:
        indented = line.startswith(" ")
        if line.startswith("- "):
            in_list = True
        elif line and not indented:
            in_list = False
        if indented and not in_list and not in_code:
            marked += ["", "::", ""]
            in_code = True
        elif line and not indented and in_code:
            marked.append("")
            in_code = False
        marked.append(line if in_code else escaped(line))
    return marked


def skip(app: Sphinx, what: str, name: str, value: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out what a class has without a docstring of its own: its fields are arguments.

    Constants of a module are left out too: `with_constants` names them.
    """
    if what != "class":
        return None if inspect.isroutine(value) or inspect.isclass(value) else True
    if isinstance(value, (property, classmethod, staticmethod)) or inspect.isroutine(value):
        return None if inspect.getdoc(value) and not name.startswith("__") else True
    return True


def resolve(app: Sphinx, env: Any, node: Any, content: nodes.TextElement) -> Any:
    """Link a type to its page. A name of another package, or a private one, stays text."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    home = public.pages().get(target)
    if home is not None:
        domain = env.get_domain("py")
        return domain.resolve_xref(
            env, node["refdoc"], app.builder, node["reftype"], home, node, content
        )
    return content if not _is_public(target) else None


def _is_public(target: str) -> bool:
    module, _, name = target.rpartition(".")
    return module in public.modules() and not name.startswith("_")
