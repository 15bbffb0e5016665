"""The tree of files: tests stand alone, and one name stands for one thing."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def test_no_test_file_imports_another() -> None:
    assert len(TESTS) > 100
    imports = [
        (path.name, node.module)
        for path in TESTS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[-1].startswith("test_")
    ]
    assert imports == []


def test_no_two_modules_define_a_public_class_of_one_name() -> None:
    assert len(CODE) > 300
    places = defaultdict(list)
    for path in CODE:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_public_functions_say_what_their_arguments_are() -> None:
    """Of three arguments or more at least one is named. Commands have `Annotated` help, overrides name the method they override."""
    silent, checked = [], 0
    for path in CODE:
        if path.is_relative_to(ROOT / "src" / "qpeft" / "cli"):
            continue
        scopes: list[tuple[ast.Module | ast.ClassDef, bool]] = [(ast.parse(path.read_text()), False)]
        for scope, hooks in scopes:
            for node in scope.body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    scopes.append((node, any(ast.unparse(base) == "TrainerCallback" for base in node.bases)))
                elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_") and not hooks:
                    told = ast.get_docstring(node) or ""
                    names = [argument.arg for argument in node.args.args + node.args.kwonlyargs]
                    names = [name for name in names if name not in ("self", "cls")]
                    if len(names) >= 3 and f".{node.name}`" not in told:
                        checked += 1
                        if not any(re.search(rf"\b{name}\b", told) for name in names):
                            silent.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}({', '.join(names)})")
    assert checked > 200
    assert silent == []
