"""Everything that has a name can be listed and explained."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmalign.lookup import catalogue
from mmalign.lookup.catalogue import KINDS, everything, lookup
from mmalign.lookup.docstrings import explanation
from mmalign.types import UserError

FUNCTIONS = [named for kind in KINDS if kind != "configs" for named in everything(kind)]


def test_every_kind_has_names_and_every_room_is_of_a_kind() -> None:
    assert all(everything(kind) for kind in KINDS)
    assert {named.name for named in everything("oracles")} == {"judge_pairs", "judge_edit_pairs"}
    assert {"jpeg", "digits_proxy", "judge"} <= {named.name for named in everything("rewards")}
    assert not {"judge_pairs", "digit_prompts", "worst", "digits_spread"} & {named.name for named in everything("rewards")}
    assert {"worst", "fairest"} <= {named.name for named in everything("combinations")}


@pytest.mark.parametrize("named", FUNCTIONS, ids=lambda named: f"{named.kind}/{named.name}")
def test_every_name_leads_to_what_it_names(named: catalogue.Listing) -> None:
    made_by: Any = catalogue.function(named)
    parts = explanation(made_by)
    assert parts.meaning and parts.meaning == named.meaning
    assert Path(named.place).is_file()


def test_a_name_of_several_kinds_and_of_one() -> None:
    assert [named.kind for named in lookup("rlg")] == ["guidance"]
    assert [named.kind for named in lookup("digits_gold")] == ["rewards"]  # and not as a part of its world as well
    assert [named.kind for named in lookup("rewards/jpeg")] == ["rewards"]
    assert [named.kind for named in lookup("digits/demo")] == ["configs"]
    with pytest.raises(UserError, match=r"jpg: nothing has this name; nearest: jpeg"):
        lookup("jpg")
    with pytest.raises(UserError, match=r"reward: no such kind; nearest: rewards"):
        everything("reward")


def test_list(mmalign: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = mmalign("list")
    assert code == 0 and all(kind in out for kind in KINDS)
    for kind in ("methods", "windows", "configs"):
        code, out, _ = mmalign("list", kind)
        assert code == 0 and all(named.name in out for named in everything(kind))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("kto", ["loss = mean over rows", "desirable, undesirable", "arXiv 2402.01306", "TRL 1.16", "like: TRL", "Needs", "refs:ref"]),
        ("rlg", ["guidance: {use: rlg, scale: 1.6", "arxiv.org/abs/2508.21016", "mm.guidance.rlg("]),
        ("flow_sde", ["kernel: {use: flow_sde", "noise_level", "mm.kernels.flow_sde("]),
        ("digits/demo", ["Flow-GRPO on real 8x8 digits", "use: online", "mmalign train digits/demo"]),
        ("worlds.digits.judges.digits_proxy", ["digits_proxy"]),
    ],
)
def test_explain(mmalign: Callable[..., tuple[int, str, str]], name: str, shown: list[str]) -> None:
    code, out, err = mmalign("explain", name)
    assert (code, err) == (0, "") and [word for word in shown if word not in out] == []


def test_a_mistyped_name_is_one_line(mmalign: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = mmalign("explain", "kt")
    assert (code, out) == (2, "") and err.startswith("kt: nothing has this name; nearest: kto") and err.count("\n") == 1


def test_lists_import_no_torch() -> None:
    code = "import sys; from mmalign.lookup.catalogue import KINDS, everything; [everything(kind) for kind in KINDS]\n"
    code += "print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
