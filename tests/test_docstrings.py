"""Docstrings in parts: keywords in a list, in prose, and those that mean the same everywhere."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import mmalign
from mmalign import objectives
from mmalign.lookup import catalogue
from mmalign.lookup.docstrings import explanation
from mmalign.objectives import links

EXPLAINED = [
    named
    for kind in ("methods", "guidance", "kernels", "windows", "worlds", "data", "rewards", "oracles", "combinations", "transforms")
    for named in catalogue.everything(kind)
]


def made_up(*, beta: float = 0.1, mix: Any = None, link: str = "logistic") -> dict[str, Any]:
    """A method that is none.

    A sentence, and::

        loss = beta * mix

    Args:
        beta, link: two keywords
            on two lines: of text.
        mix: another.

    A remark.

    Paper: None, arXiv 0000.00000.

    Deviations: all.

    Errors: UserError for nothing.

    Examples:
        >>> for one in [1]:
        ...     one
        1
    """
    return {"beta": beta, "mix": mix, "link": link}


def in_prose(first: int, *, low: float = 0.0, high: float = 1.0, seed: int = 0, other: int = 1) -> None:
    """What it is.

    first: a number that is said: of it. low, high: the ends, in nats.

    Prose that stays, with low: in the middle of a sentence.

    Errors: UserError for a wrong one.
    """


def several_in_an_entry(*, clip: float = 0.2, dual: float = 3.0, gamma: float = 1.0, eps: float = 1e-8) -> None:
    """What it is.

    Paper: First, arXiv 0000.00000;
    second, arXiv 0000.00001.

    A formula that follows the paper::

        loss = clip

    Deviations: none.

    Args:
        clip: how far, both ways. dual: above 1, of a value: -dual; None is off.
            gamma, eps:
            two that begin a line.
    """


def test_a_list_of_keywords() -> None:
    parts = explanation(made_up)
    assert parts.meaning == "A method that is none." and parts.formula.endswith("    loss = beta * mix") and "::" not in parts.formula
    assert parts.keywords == [("beta, link", "two keywords on two lines: of text."), ("mix", "another.")] and parts.remarks == "A remark."
    assert parts.paper == "None, arXiv 0000.00000." and parts.deviations == "all." and parts.defaults["link"] == "logistic"
    assert parts.errors == "UserError for nothing." and parts.unexplained == []
    assert parts.examples == ">>> for one in [1]:\n...     one\n1"


def test_keywords_in_prose_and_those_that_mean_the_same_everywhere() -> None:
    parts = explanation(in_prose)
    assert parts.keywords[:2] == [("first", "a number that is said: of it."), ("low, high", "the ends, in nats.")]
    assert parts.keywords[2][0] == "seed" and parts.unexplained == ["other"]
    assert parts.formula == "Prose that stays, with low: in the middle of a sentence."
    assert parts.defaults["first"] is inspect.Parameter.empty


def test_an_entry_goes_on_with_other_keywords_and_prose_after_a_paper_is_not_the_papers() -> None:
    parts = explanation(several_in_an_entry)
    assert parts.keywords == [
        ("clip", "how far, both ways."),
        ("dual", "above 1, of a value: -dual; None is off."),
        ("gamma, eps", "two that begin a line."),
    ]
    assert parts.paper == "First, arXiv 0000.00000; second, arXiv 0000.00001." and parts.deviations == "none."
    assert parts.formula == "A formula that follows the paper:\n\n    loss = clip"


@pytest.mark.parametrize("named", EXPLAINED, ids=lambda named: f"{named.kind}/{named.name}")
def test_every_keyword_has_a_meaning(named: catalogue.Listing) -> None:
    assert explanation(catalogue.function(named)).unexplained == []


@pytest.mark.parametrize("module", [raising.name for raising in pkgutil.walk_packages(objectives.__path__, "mmalign.objectives.")])
def test_every_keyword_of_an_objective_has_a_meaning(module: str) -> None:
    public = [value for name, value in vars(importlib.import_module(module)).items() if not name.startswith("_")]
    own = [value for value in public if inspect.isfunction(value) and value.__module__ == module]
    assert {function.__name__: explanation(function).unexplained for function in own if explanation(function).unexplained} == {}


def test_what_objectives_share_is_said_of_nothing_else() -> None:
    shared = [("margin", "of the better score over the worse one, nats."), ("beta", "how much a nat counts.")]
    assert explanation(links.logistic).keywords == shared

    def elsewhere(margin: float, *, beta: float) -> None:
        """What it is."""

    assert explanation(elsewhere).unexplained == ["margin", "beta"]


# ---- the docstrings of the package


def unexplained(functions: dict[str, Any]) -> dict[str, list[str]]:
    parts = {name: explanation(function) for name, function in functions.items()}
    return {name: explained.unexplained for name, explained in parts.items() if explained.unexplained}


def saying_raises(module: ast.Module) -> list[str]:
    """What of a file says which errors it raises in another form than the house's: a line that begins with it, or a sentence."""
    owners = [module, *(node for node in ast.walk(module) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)))]
    texts = {getattr(owner, "name", "the file"): ast.get_docstring(owner) or "" for owner in owners}
    return [name for name, text in texts.items() if re.search(r"(^|\.\s+|;\s)Raises\b", text, re.MULTILINE)]


def test_every_keyword_of_everything_that_is_listed_has_a_line() -> None:
    listed = {
        named.name: catalogue.function(named) for kind in catalogue.KINDS if kind != "configs" for named in catalogue.everything(kind)
    }
    assert len(listed) > 250
    assert unexplained(listed) == {}
    assert unexplained({"a": in_prose}) == {"a": ["other"]}  # which is seen


def test_errors_are_said_in_one_form() -> None:
    package = Path(mmalign.__file__).parent
    text = {str(path.relative_to(package)): saying_raises(ast.parse(path.read_text(encoding="utf-8"))) for path in package.rglob("*.py")}
    assert {path: names for path, names in text.items() if names} == {}
    seeded = (
        'def f():\n    """What it is. Raises UserError for x."""\n\n\ndef g():\n    """What it does where a driver raises an error."""\n'
    )
    assert saying_raises(ast.parse(seeded)) == ["f"]
