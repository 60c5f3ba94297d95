"""What methods ask for, as records."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mmalign as mm
from mmalign.needs import MASK, OLD, REWARDS, VALUE, contrast, kinds, kls, lacking, named, refs
from mmalign.objectives.parts import read
from mmalign.types import Feedback, Need, UserError

ASKED = frozenset({OLD, refs("ref"), refs("ema"), kls("ref"), contrast("bad")})


def test_a_need_is_written_as_it_is_in_tables() -> None:
    assert [str(need) for need in sorted(ASKED)] == ["contrast:bad", "kls:ref", "old", "refs:ema", "refs:ref"]
    assert Need("refs", "ref") == refs("ref") != Need("refs") and str(Need("refs")) == "refs"


def test_kinds_and_names() -> None:
    assert kinds(ASKED) == {"old", "refs", "kls", "contrast"}
    assert named("refs", ASKED | {Need("refs")}) == ["ema", "ref"] and named("reverse_kls", ASKED) == []


def test_what_a_policy_does_not_give() -> None:
    method = replace(mm.methods.dpo(), needs=ASKED, survey_needs=frozenset({VALUE}), reads=frozenset({MASK, REWARDS, OLD}))
    assert lacking(method, frozenset({"refs", "contrast", "value"})) == ["kls:ref", "old"]
    assert lacking(method, frozenset({"refs", "contrast", "kls", "old"})) == ["value"]
    assert lacking(replace(method, needs=frozenset(), survey_needs=frozenset()), frozenset()) == []


@pytest.mark.parametrize("field", ["needs", "survey_needs", "reads"])
def test_words_are_no_needs(field: str) -> None:
    with pytest.raises(UserError, match=rf"Method\.{field}: got 'refs:ref', takes records of mmalign.needs"):
        replace(mm.methods.dpo(), **{field: frozenset({"refs:ref"})})


def test_a_table_that_is_not_there() -> None:
    table = torch.ones(1, 2).double()
    feedback = Feedback(torch.zeros(1).double(), torch.zeros(1, dtype=torch.int64), tables={refs("ref"): table, OLD: table})
    assert torch.equal(read(feedback, OLD), table)
    with pytest.raises(UserError, match="got old, refs:ref, this method reads value"):
        read(feedback, VALUE)
