"""What editors and type checkers read of the rooms is what the rooms have."""

from __future__ import annotations

import ast
import runpy
from pathlib import Path

import mmalign as mm

ROOT = Path(__file__).parents[1]
STUBS = runpy.run_path(str(ROOT / "scripts" / "make_stubs.py"))["stubs"]()


def names(text: str) -> set[str]:
    return {alias.asname or "" for node in ast.parse(text).body if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_the_stubs_are_of_today():
    old = [str(path.relative_to(ROOT)) for path, text in STUBS.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    assert old == [], "python scripts/make_stubs.py"


def test_a_stub_names_what_the_package_answers_with():
    assert names(STUBS[ROOT / "mmalign" / "__init__.pyi"]) == set(dir(mm)) - {"__version__"}
    assert {"linear", "prototypes"} <= names(STUBS[ROOT / "mmalign" / "policies" / "scorers" / "heads" / "__init__.pyi"])
    assert {"kto", "flow_grpo"} <= names(STUBS[ROOT / "mmalign" / "methods" / "__init__.pyi"])
