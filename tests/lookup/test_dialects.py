"""What docstrings say of methods, and the keywords of other libraries."""

from __future__ import annotations

import os

import pytest

import mmalign as mm
from mmalign.config import check
from mmalign.config.instantiate import Review, plan
from mmalign.lookup.dialects import dialects, like, settings
from mmalign.lookup.docstrings import explanation
from mmalign.needs import refs
from mmalign.rooms import find, index
from mmalign.types import Method, UserError

WIDE = {**os.environ, "COLUMNS": "200"}
METHODS = sorted(index("mmalign.methods"))


def made_up(*, beta: float = 0.1, mix: dict[str, float] | None = None, link: str = "logistic") -> dict[str, object]:
    """A method that is none.

    Some words, and a formula::

        loss = beta * mix

    Args:
        beta, link: two keywords
            on two lines: of text.
        mix: another.

    A remark.

    Paper: None, arXiv 0000.00000.

    Deviations: all.

    Dialects:
    - One 1.0: beta=0.5, mix={"a": 1.0, "b": 2.0}: does so: and so,
      on two lines.
    - Two: : as the paper has it.
    """
    return {"beta": beta, "mix": mix, "link": link}


def test_what_others_do() -> None:
    first, second = dialects(made_up)
    assert first == ("One 1.0", {"beta": 0.5, "mix": {"a": 1.0, "b": 2.0}}, "does so: and so, on two lines.")
    assert second.settings == {} and second.note == "as the paper has it."


def test_like_another_library() -> None:
    assert like("one", made_up) == {"beta": 0.5, "mix": {"a": 1.0, "b": 2.0}, "link": "logistic"}
    assert like("ONE 1", made_up, beta=2.0)["beta"] == 2.0 and like("Two", made_up)["beta"] == 0.1
    with pytest.raises(UserError, match=r"like: got 'three', made_up has the dialects One 1\.0, Two"):
        like("three", made_up)


def test_a_dialect_that_cannot_be_read_is_refused() -> None:
    def wrong() -> None:
        """No.

        Dialects:
        - One: beta equals one: no.
        """

    with pytest.raises(UserError, match="wrong: the dialect 'One' has no keywords"):
        dialects(wrong)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_explains_itself(name: str) -> None:
    function = find("mmalign.methods", name)
    parts = explanation(function)
    assert parts.meaning and "loss =" in parts.formula and parts.paper and parts.deviations
    for dialect in dialects(function):
        assert dialect.note and isinstance(like(dialect.who, function), Method)
        assert settings(dialect.who, function) == dialect.settings, "no name is the beginning of an earlier one's"


def test_a_config_may_say_like() -> None:
    node = {"use": "offline", "policy": {"use": "gaussian"}, "records": {"use": "digits_pairs"}, "method": {"use": "kto", "like": "TRL"}}
    call = plan(node, Review(trust=False))
    assert call is not None and call.arguments["method"].arguments == {"beta": 0.1, "baseline": "mismatched"}
    call = plan({**node, "method": {"use": "kto", "like": "TRL", "beta": 0.7}}, Review(trust=False))
    assert call is not None and call.arguments["method"].arguments["beta"] == 0.7
    assert any(
        "method.like: got 'verl', kto has the dialects TRL" in line for line in check({**node, "method": {"use": "kto", "like": "verl"}})
    )
    assert mm.like("TRL", mm.methods.kto).needs == {refs("ref")}
