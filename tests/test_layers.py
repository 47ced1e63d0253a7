# SPDX-License-Identifier: BSD-3-Clause
"""Layers of docs/architecture.md: no import of a layer above, no circle, and no name of a method below methods/."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

FASTSEG = Path(__file__).parents[1] / "python" / "fastseg"

# Folders and modules of fastseg, the lowest layer first; a layer imports itself and what stands before it.
LAYERS = (
    ("_C", "errors", "triton", "tuning"),
    ("ops",),
    ("nn",),
    ("nets", "data", "metrics", "morphology", "objects", "shapes", "surfaces"),
    ("train", "predict"),
    ("methods",),
    ("report",),
    ("commands",),
    ("cli", "__main__"),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
METHODS = {path.parent.name for path in FASTSEG.glob("methods/*/method.py")}

Imports = dict[str, set[str]]


def modules(root: Path) -> dict[str, ast.Module]:
    """By dotted name; the package itself, which gathers names of all layers, is left out."""
    paths = (path for path in sorted(root.rglob("*.py")) if path != root / "__init__.py")
    return {dotted(path.relative_to(root)): ast.parse(path.read_text()) for path in paths}


def dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imported(tree: ast.AST, known: set[str], *, later: bool) -> set[str]:
    """The modules of fastseg that a module imports, with those that its functions import when they run (``later``)."""
    found: set[str] = set()
    for node in walk(tree, later=later):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports say whence, from fastseg on"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in (n.removeprefix("fastseg.") for n in names if n.startswith("fastseg.")):
            found.add(name if name in known else name.rpartition(".")[0] or name)
    return found


def walk(tree: ast.AST, *, later: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        is_later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        )
        if later or not is_later:
            yield node
            yield from walk(node, later=later)


def imports(trees: dict[str, ast.Module], *, later: bool) -> Imports:
    return {name: imported(tree, set(trees), later=later) for name, tree in trees.items()}


def upwards(found: Imports) -> list[str]:
    level = {name: LEVEL[name.partition(".")[0]] for name in found}
    return [
        f"{name} imports {other}"
        for name, others in found.items()
        for other in sorted(others)
        if LEVEL[other.partition(".")[0]] > level[name]
    ]


def circle(found: Imports) -> list[str]:
    try:
        TopologicalSorter(found).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def named(trees: dict[str, ast.Module], names: set[str], layers: set[str]) -> list[str]:
    """Modules of some layers that say the name of a method, in code or in text that is no docstring."""
    return [
        f"{name}, line {node.lineno}: {word}"
        for name, tree in trees.items()
        if name.partition(".")[0] in layers
        for node, word in words(tree)
        if word in names
    ]


def words(tree: ast.AST) -> Iterator[tuple[ast.expr, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node, node.attr
        elif isinstance(node, ast.Name):
            yield node, node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node, node.value


TREES = modules(FASTSEG)
BELOW = {"train", "predict", "nets", "data"}


def test_no_module_imports_a_layer_above() -> None:
    assert upwards(imports(TREES, later=True)) == []


def test_no_circle() -> None:
    assert circle(imports(TREES, later=False)) == []


def test_below_methods_none_is_named() -> None:
    assert len(METHODS) >= 5
    assert named(TREES, METHODS, BELOW | {"report"}) == []


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("from fastseg.methods.registry import train", "train.log imports methods.registry"),
        ("def run():\n    from fastseg import methods", "train.log imports methods"),
        ("import fastseg.cli", "train.log imports cli"),
    ],
)
def test_an_import_that_goes_up_is_seen(line: str, told: str) -> None:
    planted = {**TREES, "train.log": ast.parse(line)}
    assert upwards(imports(planted, later=True)) == [told]


def test_a_circle_and_a_name_are_seen() -> None:
    planted = {**TREES, "errors": ast.parse("from fastseg.train import config")}
    assert {"errors", "train.config"} <= set(circle(imports(planted, later=False)))
    planted = {
        **TREES,
        "train.log": ast.parse('if config.method == "sparse_2d3d":\n    config.patch_contrast'),
    }
    assert len(named(planted, METHODS, BELOW)) == 2
