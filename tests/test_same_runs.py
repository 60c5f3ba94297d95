"""Two names for one run: a method that is another one, as its config has it or by default, says so in its docstring."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

import mmalign as mm
from mmalign.arguments import signatures
from mmalign.needs import refs, reverse_kls
from mmalign.rooms import find, index
from mmalign.types import Method
from tests.oracles.tables import Table, table

CONFIGS = Path(__file__).parents[1] / "configs" / "text"
APART = (
    "unit",
    "behaviors",
    "moves",
    "sampled_by",
    "unguided",
    "masking",
    "reward_gradient",
    "companions",
)  # what a run depends on beside the loss

ELSEWHERE = {
    "diffusion_opd": "a teacher", "opd": "a teacher", "srpo": "a system turn", "sdpo": "a contrast", "cgpo": "judges",
    "gardo": "a reward of diversity",
    "bradley_terry_mixture": "two scores", "peer_review": "two scores", "bradley_terry_contrastive": "two views",
}  # fmt: skip
"""What they read, and no table of these has."""


class Told(NamedTuple):
    """What sets a run apart: its name, what its method says of tables and around them, and the rest of its config."""

    name: str
    method: Method
    said: list[Tensor]
    rest: dict[str, Any]


def _says(method: Method, at: Table) -> Tensor:
    """Loss and gradient of a table, which rows are worth an update, and which are paired, as one vector."""
    steps, feedback = at.steps(method.needs | method.survey_needs), at.feedback()
    tables, own = {**feedback.tables, refs("dpo"): at.before, refs("teacher"): at.before}, feedback.parts
    parts = {**own, "told/difference": own["hardness"], "told/gap": own["second"]}  # that grpo_s reads
    parts |= {"ends": own["second"], "varied": own["hardness"]}  # the judges of text/cgpo
    feedback = replace(feedback, tables=tables, parts=parts)
    signal = method.signal(feedback)
    if method.survey is not None:
        with torch.no_grad():
            signal = method.survey(steps.each(Tensor.detach), signal)
    loss = (method.weigh(steps.mask) * method.loss(steps, signal).values).sum()
    (gradient,) = torch.autograd.grad(loss, at.leaf)
    kept = torch.ones(0) if method.keep is None else method.keep(feedback).double()
    made = None if method.pairs is None else method.pairs(replace(feedback, pairs=None, strength=None))
    pairs = torch.ones(0) if made is None or made.pairs is None else made.pairs.double().flatten()
    return torch.cat([loss.detach().flatten(), gradient.flatten(), torch.tensor([len(kept), len(pairs)]), kept, pairs])


def _told(name: str, method: Method, kind: Any, rest: dict[str, Any]) -> Told:
    return Told(name, method, [_says(method, table(kind, seed)) for seed in range(2)], rest)


def _same(one: Told, two: Told) -> bool:
    if one.rest != two.rest or any(getattr(one.method, word) != getattr(two.method, word) for word in APART):
        return False
    return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(one.said, two.said, strict=True))


def _unsaid(runs: list[Told]) -> Iterator[str]:
    """Pairs of equal runs of which neither docstring names the other."""
    for one, two in combinations(runs, 2):
        if _same(one, two) and not any(_names(here, there) for here, there in ((one.name, two.name), (two.name, one.name))):
            yield f"{one.name} and {two.name}"


def _names(method: str, other: str) -> bool:
    words = " ".join((inspect.getdoc(find("mmalign.methods", method)) or "").split())
    return f"the same run as ``{other}``" in words


def test_no_two_text_configs_are_one_run() -> None:
    runs = []
    for path in sorted(CONFIGS.glob("*.yaml")):
        config: Any = OmegaConf.to_container(OmegaConf.load(path))
        settings = dict(config.pop("method"))
        config.pop("run")
        name = settings.pop("use")
        runs.append(_told(name, find("mmalign.methods", name)(**settings), "token", config))
    assert len(runs) > 90 and list(_unsaid(runs)) == []


@pytest.mark.parametrize("kind", ["token", "transition", "bound", "score"])
def test_no_two_methods_are_one_as_they_come(kind: Any) -> None:
    runs = []
    for name, (entry, *_) in index("mmalign.methods").items():
        made_by = find("mmalign.methods", name)
        if not entry.function or any(parameter.required for parameter in signatures.parameters(made_by)[0].values()):
            continue
        method = made_by()
        told = name not in ELSEWHERE and not (kind == "transition" and reverse_kls("ref") in method.needs)  # of transitions there is none
        if kind in method.kinds and told:
            runs.append(_told(name, method, kind, {}))
    assert len(runs) > 5
    assert list(_unsaid(runs)) == []


def test_two_of_one_are_found_and_may_say_so() -> None:
    like = [_told(name, method, "token", {}) for name, method in (("simpo", mm.methods.dpo()), ("dpo", mm.methods.dpo()))]
    assert list(_unsaid(like)) == ["simpo and dpo"]
    said = [_told("f_dpo", mm.methods.f_dpo(divergence="reverse_kl"), "token", {}), like[1]]
    assert _same(*said) and list(_unsaid(said)) == []
    moved = [like[1], _told("inpo", replace(mm.methods.dpo(), moves=mm.methods.mnpo().moves), "token", {})]
    assert not _same(*moved)
