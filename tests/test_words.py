"""Names say what they hold: words that could mean anything name few bindings."""

import ast

import pytest

from linattn import project

VAGUE = {
    *("asked", "each", "found", "given", "how", "kind", "own"),
    *("part", "place", "rows", "said", "told", "whole"),
}
MOST = 0.01  # of all bindings; 9.2 % on 2026-11-26, .4 % on 2026-11-28


def bindings(source: str) -> list[str]:
    """Names of functions, classes, arguments, variables and attributes that a source binds."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, ast.arg):
            names.append(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.append(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.append(node.attr)
    return names


def is_vague(name: str) -> bool:
    return name.strip("_").lower() in VAGUE


@pytest.mark.parametrize("room", ["linattn", "kernels"])
def test_vague_words_name_few_bindings(room):
    names = []
    for path in (project.ROOT / room).rglob("*.py"):
        names += bindings(path.read_text())
    vague = [name for name in names if is_vague(name)]
    assert len(names) > 3000
    assert len(vague) < MOST * len(names), f"{len(vague)} of {len(names)}: {sorted(set(vague))}"


def test_every_way_to_bind_a_name_is_counted():
    source = """
def told(found, *own):
    self.part = 1
    for each in own:
        rows = [how for how in each]
"""
    vague = [name for name in bindings(source) if is_vague(name)]
    assert sorted(vague) == ["each", "found", "how", "own", "part", "rows", "told"]
