"""Rows that are taken out of a rollout, or put beside those of another one, score as before: for every kind of policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.needs import CHANGED, DRIFT, DT, ENTROPY, NOISE, OLD, PHRASE, SEGMENT, STD, contrast
from mmalign.policies.settings import Schedule
from mmalign.policies.twins import pipelines, visions
from mmalign.samplers import kernels
from mmalign.samplers.windows import random_window
from mmalign.training.updates.experience import Experience
from mmalign.types import Behavior, Need, Rollout, Steps, UserError
from mmalign.worlds import gaussian
from mmalign.worlds.digits.base import untrained
from mmalign.worlds.gaussian import GaussianPolicy
from tests.helpers import tiny_text
from tests.helpers.flat import diffusers, transformers

REFS = frozenset({OLD, Need("refs"), Need("kls")})
TAIL = Behavior("reference", {"ref": 1.0})
PICTURES = [
    [{"role": "user", "content": [{"type": "image", "image": torch.full((3, side, 40), side / 90)}, {"type": "text", "text": "what"}]}]
    for side in (32, 48, 64)
]


def shaken(policy: Any) -> Any:
    """A policy that has left its reference."""
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters().values()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
            parameter += 0.05 * noise.to(parameter)
    return policy


def on_a_line() -> Any:
    world, levels = gaussian.one_gaussian([0.7], [0.5]), gaussian.flow_levels(5)
    return GaussianPolicy(world, levels, kernel=kernels.flow_sde(), window=random_window(size=2, within=(0.0, 1.0)))


def of_pipeline(name: str) -> Any:
    pipe, window = pipelines.twin(name), random_window(size=1, within=(0.0, 1.0))
    return diffusers(pipe, steps=4, call=pipelines.call_arguments(pipe), kernel=kernels.flow_sde(), window=window, device="cpu")


def forward() -> Any:
    return mm.policies.forward(mm.policies.diffusers(untrained(), device="cpu", schedule=Schedule(steps=2)), draws=3)


def of_words() -> Any:
    return transformers(
        tiny_text.model("qwen2"), tiny_text.tokenizer(), max_completion=9, contrasts={"good": "be good"}, segments="sentence"
    )


def of_pictures() -> Any:
    return transformers(*visions.twin("Qwen2VLForConditionalGeneration"), max_completion=6, device="cpu")


POLICIES: dict[str, tuple[Any, list[Any], frozenset[Need], float]] = {
    "gaussian": (on_a_line, ["a", "b", "c"], REFS | {STD, DT, DRIFT}, 1e-12),
    "diffusers": (
        lambda: of_pipeline("StableDiffusion3Pipeline"),
        ["a fox", "two foxes in the snow", "one"],
        REFS | {STD, DT, DRIFT},
        1e-3,
    ),
    "forward": (forward, ["a 3", "a 5", "a 7"], REFS | {NOISE, contrast("mismatched"), contrast("ablated")}, 1e-4),
    "transformers": (
        of_words,
        ["hello there, you", "abc", "why"],
        REFS | {ENTROPY, SEGMENT, CHANGED, PHRASE, contrast("mismatched"), contrast("good")},
        1e-5,
    ),
    "vision": (of_pictures, PICTURES, REFS | {contrast("mismatched"), contrast("ablated")}, 1e-5),
}
NAMES = list(POLICIES)


def made(policy: Any, prompts: list[Any], seed: int) -> Rollout:
    """Groups of two rows, or of three where others draw too, and references remembered."""
    drawing = {"behaviors": (TAIL,)} if "behaviors" in policy.gives else {}
    drift = {"drift": True} if "drift" in policy.gives else {}
    rollout: Rollout = policy.sample(prompts, 4, torch.Generator().manual_seed(seed), step=seed, **drawing, **drift)
    policy.remember(rollout, ["ref"], 16)
    return rollout


def scored(policy: Any, rollout: Rollout, rows: list[int], needs: frozenset[Need]) -> Steps:
    with torch.no_grad():
        steps: Steps = policy.steps(rollout, torch.tensor(rows), torch.nonzero(rollout.mask.any(0)).flatten(), needs=needs)
    return steps


def same(first: Steps, second: Steps, within: float) -> None:
    """All numbers of the steps that count, row by row."""
    assert torch.equal(first.mask.sum(1), second.mask.sum(1)) and bool(first.mask.any())
    torch.testing.assert_close(first.log_probs[first.mask], second.log_probs[second.mask], rtol=1e-5, atol=within)
    assert (first.old is None) == (second.old is None)
    if first.old is not None and second.old is not None:
        assert torch.equal(first.old[first.mask], second.old[second.mask])
    for tables in ("refs", "kls", "facts", "terms"):
        ours, theirs = getattr(first, tables), getattr(second, tables)
        assert ours.keys() == theirs.keys()
        for name, table in ours.items():
            torch.testing.assert_close(table[first.mask], theirs[name][second.mask], rtol=1e-5, atol=within)
    assert first.contrasts.keys() == second.contrasts.keys()
    for name, steps in first.contrasts.items():
        same(steps, second.contrasts[name], within)


def beside(rollout: Rollout) -> list[list[bool]]:
    return (rollout.group[:, None] == rollout.group[None, :]).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_taken_rows_score_as_before(name: str) -> None:
    make, prompts, needs, within = POLICIES[name]
    policy = make()
    rollout = made(shaken(policy), prompts, 0)
    rows = [len(rollout) - 1, len(rollout) - 2, 1, 0]
    taken = rollout.take(torch.tensor(rows))
    same(scored(policy, taken, [0, 1, 2, 3], needs), scored(policy, rollout, rows, needs), within)
    assert taken.prompts == [rollout.prompts[row] for row in rows] and taken.group.tolist() == rollout.group[rows].tolist()
    assert all(torch.equal(torch.as_tensor(taken.drawn[key]), theirs[rows]) for key, theirs in rollout.drawn.items())
    if rollout.spans is not None and taken.spans is not None:
        assert taken.spans() == [rollout.spans()[row] for row in rows]


@pytest.mark.parametrize("name", NAMES)
def test_what_was_taken_apart_is_whole_again(name: str) -> None:
    make, prompts, needs, within = POLICIES[name]
    policy = make()
    rollout = made(shaken(policy), prompts, 0)
    size = len(rollout) // len(prompts)
    whole = Rollout.join([rollout.take(torch.arange(size)), rollout.take(torch.arange(size, len(rollout)))])
    rows = list(range(len(rollout)))
    same(scored(policy, whole, rows, needs), scored(policy, rollout, rows, needs), within)
    assert whole.prompts == rollout.prompts and beside(whole) == beside(rollout)
    assert all(
        torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
        for ours, theirs in zip(whole.outputs, rollout.outputs, strict=True)
    )
    assert whole.metrics == pytest.approx(rollout.metrics) and whole.drawn.keys() == rollout.drawn.keys()


@pytest.mark.parametrize("name", NAMES)
def test_rollouts_side_by_side_score_as_each_alone(name: str) -> None:
    """With other prompts, windows, lengths of prompts and of answers, and a reference that one of them forgot."""
    make, prompts, needs, within = POLICIES[name]
    policy = make()
    shaken(policy)
    parts = [made(policy, prompts[:2], 0), made(policy, prompts[1:], 2)]
    assert name not in ("gaussian", "diffusers") or not torch.equal(parts[0].mask[0], parts[1].mask[0]), "windows differ"
    joined = Rollout.join(parts)
    policy.remember(joined, ["ref"], 16)
    count = len(parts[0])
    for part, rows in zip(parts, (list(range(count)), list(range(count, len(joined)))), strict=True):
        same(scored(policy, joined, rows, needs), scored(policy, part, list(range(len(part))), needs), within)
    inside = torch.tensor(beside(joined))
    assert not bool(inside[:count, count:].any()) and beside(parts[1]) == inside[count:, count:].tolist()


def test_only_references_that_all_remember_stay() -> None:
    policy = on_a_line()
    first, second = (policy.sample(["a"], 2, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    policy.remember(first, ["ref"], 8)
    joined = Rollout.join([first, second])
    assert joined.held.refs == {}
    policy.remember(joined, ["ref"], 8)
    assert set(joined.held.refs) == {"ref"}


def test_metrics_are_means_over_rows() -> None:
    rollout = on_a_line().sample(["a"], 2, torch.Generator().manual_seed(0))
    one, two = replace(rollout, metrics={"length": 2.0, "far_max": 1.0, "own": 1.0}), replace(rollout.take(torch.tensor([0])))
    two.metrics = {"length": 5.0, "far_max": 3.0}
    assert Rollout.join([one, two]).metrics == {"length": 3.0, "far_max": 3.0}


def test_what_does_not_fit_is_refused() -> None:
    rollout = on_a_line().sample(["a"], 2, torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=r"Rollout\.join: got no part"):
        Rollout.join([])
    with pytest.raises(UserError, match=r"Rollout\.join: got outputs of sizes"):
        Rollout.join([rollout, replace(rollout, outputs=["a", "b"])])
    rows = torch.arange(2)
    with pytest.raises(UserError, match=r"Experience\.signal: got shape \[2\], takes \[2, 1 or 5, \.\.\.\]"):
        Experience(rollout, torch.zeros(2), rows)
    with pytest.raises(UserError, match=r"Experience\.signal: got shape \[2, 4\]"):
        Experience(rollout, torch.zeros(2, 4), rows)
    with pytest.raises(UserError, match=r"Experience\.rows: got row numbers outside 0\.\.1"):
        Experience(rollout, torch.zeros(2, 1), rows + 1)
    with pytest.raises(UserError, match=r"Experience\.rows: got torch\.bool \[2\]"):
        Experience(rollout, torch.zeros(2, 1), rows > 0)
