from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mmalign as mm
import mmalign.methods.pairs

NAMES = sorted(path.stem for path in Path(next(iter(mmalign.methods.pairs.__path__))).glob("*.py") if path.stem != "__init__")


def dialects(text):
    """(library, keywords) of the lines below ``Dialects:`` in a docstring."""
    lines = [line.strip() for line in text.partition("Dialects:\n")[2].splitlines()]
    return [line.removeprefix("- ").split(": ")[:2] for line in lines if line.startswith("- ")]


@pytest.mark.parametrize("name", NAMES)
def test_every_dialect_can_be_called(name):
    method = getattr(mm.methods, name)
    for library, keywords in dialects(method.__doc__):
        call = ast.parse(f"f({keywords})", mode="eval").body
        assert call.keywords and not call.args, f"{name}: {library}: {keywords}"
        method(**{keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords})


def test_trl_is_named_where_it_has_the_method():
    with_trl = {name for name in NAMES if any("TRL" in library for library, _ in dialects(getattr(mm.methods, name).__doc__))}
    assert {
        "dpo",
        "ipo",
        "hinge",
        "exo",
        "nca",
        "rdpo",
        "bco_pair",
        "sppo",
        "aot",
        "apo_zero",
        "apo_down",
        "discopop",
        "rpo",
        "wpo",
    } <= with_trl
