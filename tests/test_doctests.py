"""The examples in docstrings are true: each function's run by itself, in its module's names, with ``mm`` and ``torch`` beside them.

Files are read with ``ast``, and imported only when an example of theirs runs.
"""

from __future__ import annotations

import ast
import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import mmalign as mm

PACKAGE = Path(mm.__file__).parent


def written() -> Iterator[tuple[str, str, int, str]]:
    """(module, name, line, docstring) of every docstring with an example."""
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if ">>>" not in text:
            continue
        module = ".".join(("mmalign", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and ">>>" in (doc := ast.get_docstring(node, clean=False) or ""):
                yield module, node.name, node.body[0].lineno - 1, doc


EXAMPLES = [pytest.param(*example, id=f"{example[0].removeprefix('mmalign.')}.{example[1]}") for example in written()]


def failures(module: str, name: str, line: int, said: str) -> str:
    """What examples give that they do not say; an empty string where all are true."""
    names = {**vars(importlib.import_module(module)), "mm": mm, "torch": torch}
    test = doctest.DocTestParser().get_doctest(said, names, name, module, line)
    wrong: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=wrong.append)
    return "".join(wrong)


@pytest.mark.parametrize(("module", "name", "line", "said"), EXAMPLES)
def test_an_example_is_true(module, name, line, said):
    wrong = failures(module, name, line, said)
    assert not wrong, wrong


def test_there_are_examples_of_what_users_touch_first():
    rooms = {example.id.split(".")[0] for example in EXAMPLES}
    assert {"methods", "rewards", "combinations", "samplers", "objectives", "guidance", "training", "policies", "evaluation"} <= rooms
    assert len(EXAMPLES) >= 40


def test_a_wrong_example_is_seen():
    assert "Expected:\n    4\nGot:\n    5" in failures("mmalign.needs", "five", 1, ">>> 2 + 3\n4\n")
    assert failures("mmalign.needs", "raised", 1, ">>> 1 / 0\n")
