"""Everything that has a name can be listed and explained."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmalign as mm
from mmalign.arguments import signatures
from mmalign.arguments.signatures import Record
from mmalign.lookup import catalogue, settings
from mmalign.lookup.catalogue import KINDS, everything, lookup
from mmalign.lookup.docstrings import explanation
from mmalign.types import UserError

FUNCTIONS = [named for kind in KINDS if kind != "configs" for named in everything(kind)]


def test_every_kind_has_names_and_every_room_is_of_a_kind() -> None:
    assert all(everything(kind) for kind in KINDS)
    assert {named.name for named in everything("oracles")} == {
        "judge_pairs",
        "judge_edit_pairs",
        "own_verdicts",
        "served_pairs",
        "trained_pairs",
    }
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
        ("nlpo", ["top_p", "every", "Needs", "old, refs:ref, value, masking"]),
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


# ---- settings


def records() -> set[type]:
    """Every record of settings of the package."""
    for module in pkgutil.walk_packages(mm.__path__, "mmalign."):
        file = Path(mm.__path__[0]).parent / f"{module.name.replace('.', '/')}.py"
        if not module.ispkg and "(Record)" in file.read_text(encoding="utf-8"):
            importlib.import_module(module.name)
    kinds = list(Record.__subclasses__())
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    return {kind for kind in kinds if kind.__module__.startswith("mmalign.")}


def test_every_record_of_settings_is_listed_under_its_key() -> None:
    assert {setting.load() for setting in settings.SETTINGS} == records()
    assert [named.setting for named in everything("settings")] == sorted(settings.SETTINGS)


def taken(function: Any, place: str) -> dict[str, set[type]]:
    """Dotted key -> the records that stand there, of what a function takes, at any depth."""
    held: dict[str, set[type]] = {}
    for name, parameter in signatures.parameters(function)[0].items():
        inside = signatures._records_inside(parameter.annotation)
        for record in filter(None, (signatures.record_of(parameter.annotation), inside and signatures.record_of(inside))):
            held.setdefault(f"{place}.{name}".strip("."), set()).add(record)
            for key, more in taken(record, f"{place}.{name}".strip(".")).items():
                held.setdefault(key, set()).update(more)
    return held


def test_every_record_stands_where_it_is_said_to() -> None:
    makers = [
        (mm.online, ""),
        (mm.offline, ""),
        (mm.policies.diffusers, "policy"),
        (mm.policies.transformers, "policy"),
        (mm.adamw, "optimizer"),
    ]
    makers += [
        (mm.rewards.judge, "rewards.judge"),
        (mm.rewards.served, "rewards.served"),
        (mm.commands.serve_reward, ""),
        (mm.commands.merge, ""),
        (mm.rounds, ""),
    ]
    held: dict[str, set[type]] = {}
    for function, place in makers:
        for key, some in taken(function, place).items():
            held.setdefault(key, set()).update(some)
    for setting in settings.SETTINGS:
        assert setting.load() in held[f"{setting.home}.{setting.key}".strip(".")], setting


@pytest.mark.parametrize("setting", settings.SETTINGS, ids=lambda setting: setting.record)
def test_every_key_of_a_record_is_explained(mmalign: Callable[..., tuple[int, str, str]], setting: settings.Setting) -> None:
    parts = explanation(setting.load())
    assert parts.unexplained == [] and parts.meaning == setting.meaning and parts.meaning[-1] in ".:"
    code, out, _ = mmalign("explain", setting.key)
    assert code == 0 and all(key in out for key in settings.keys(setting)) and "<factory>" not in out and "object at 0x" not in out


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("batch", ["batch, Batch", "batch, RecordBatch", "int, 1 to 1,000,000", "YAML    batch: {prompts: 8, group: 8}"]),
        (
            "references",
            ["shares", "mapping of str to float or list of float or null, 0 to 1", "references: {ref: {from: ...}}", "mm.Reference("],
        ),
        ("lora", ["rank", "32", "policy: {lora: {rank: 32, dropout: 0.0}}", "mm.Lora(rank=32, dropout=0.0)"]),
        ("policy.lora.rank", ["lora, Lora"]),
        ("mm.RecordBatch", ["batch, RecordBatch"]),
        ("evaluation.stop", ["stop, Stop", "patience"]),
        ("schedule", ["of `mmalign list kernels`", "of `mmalign list windows`"]),
        ("server", ["rewards: {judge: {server: {url: ..., model: ..., timeout: 60.0, retries: 3}}}", "0 to 1"]),
        ("online", ["mapping of prompts, group", "{name: online}", "of `mmalign list methods`", "mapping of names to mapping of from"]),
        ("adamw", ["mm.adamw(", "a number from 0 to below 1 or mapping of decay, every"]),
    ],
)
def test_settings_are_explained(mmalign: Callable[..., tuple[int, str, str]], word: str, shown: list[str]) -> None:
    code, out, err = mmalign("explain", word)
    assert (code, err) == (0, "") and [text for text in shown if text not in out] == [], out


def test_a_key_of_a_record_says_whose_it_is(mmalign: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = mmalign("explain", "micro_rows")
    assert code == 2 and err.startswith("micro_rows: nothing has this name, but batch has such a key (`mmalign explain batch`)")
    code, _, err = mmalign("explain", "policy.lora.rnk")
    assert code == 2 and err.count("\n") == 1


@pytest.mark.parametrize("named", FUNCTIONS, ids=lambda named: f"{named.kind}/{named.name}")
def test_what_python_is_said_to_call_it_is_it(named: catalogue.Listing) -> None:
    held: Any = mm
    path = catalogue.python_name(named)
    for name in path.split(".") if path else ():
        held = getattr(held, name)
    assert not path or callable(held)
