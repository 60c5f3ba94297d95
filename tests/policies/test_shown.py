"""Pictures that an environment shows in a conversation: seen from then on, scored as they were drawn, and nobody's to learn."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.needs import contrast
from mmalign.policies.language.drawing.drawing import Drawn
from mmalign.policies.language.drawing.replies import read_reply
from mmalign.policies.settings import Turns
from mmalign.types import UserError
from tests.policies.test_vision import make, mixed, picture, user

CLASSES = ["Llava", "LlavaNext", "Qwen2VL", "SmolVLM", "InternVL", "Gemma3"]
"""Pixels side by side, in tiles, in a row of patches, in a second dimension, cut by their shape, and seen both ways."""


def looking(talks: list[Any], seeds: list[int]) -> list[Any]:
    """Shows a picture of its own size to each but the third of all rows, once or twice."""
    replies: list[Any] = []
    for talk, seed in zip(talks, seeds, strict=True):
        turns = sum(turn["role"] == "assistant" for turn in talk)
        shown = [{"type": "text", "text": "see "}, picture(32 if turns == 1 else 40, 48, seed), {"type": "text", "text": "!"}]
        replies.append({"role": "tool", "content": shown} if seed % 3 else None)
    return replies


def policy(name: str = "Llava", environment: Any = looking, **settings: Any) -> Any:
    turns = Turns(environment=environment, limit=3, max_turn=4, parting=settings.pop("parting", False))
    made = make(name, **{"max_completion": 260, "turns": turns} | settings)
    made.drawing = made.drawing._replace(stops=torch.cat([made.drawing.stops, torch.arange(0, 60)]))  # so that turns come to ends
    return made


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def straight(made: Any, rollout: Any) -> Tensor:
    """Log-probabilities ``[B, T]``: each row by itself through the model's own forward, its pixels by one call of the processor."""
    held, model, tables = rollout.held, made.model, []
    for row, which in enumerate(held.which.tolist()):
        parts = [held.encoded[which], *(reply for _, reply in held.shown[row])]
        media = [made.chat.vision.picture(medium) for part in parts for medium in part.media]
        text = "".join(part.text for part in parts)
        features = made.chat.vision.processor(text=[text], images=[media], return_tensors="pt") if media else {}
        ids = torch.cat([held.prompts[which], held.tokens[row, : held.lengths[row]]])[None]
        seen = torch.isin(ids, torch.tensor(sorted(made.chat.vision.placeholders))).long()
        if model.config.model_type == "paligemma":
            seen = (torch.arange(ids.shape[1]) >= len(held.prompts[which])).long()[None]  # its prompt is a prefix, all else is an answer
        inputs = {name: value for name, value in features.items() if name in made.chat.vision.takes - {"input_ids", "attention_mask"}}
        for name in ("mm_token_type_ids", "token_type_ids"):
            inputs = {key: value for key, value in inputs.items() if key != name}
            inputs |= {name: seen} if name in made.chat.vision.takes and (media or name == "token_type_ids") else {}
        logits = model(input_ids=ids, use_cache=False, **inputs).logits[0, len(held.prompts[which]) - 1 : -1].double()
        said = logits.index_fill(-1, torch.tensor(made.chat.never), -1e9).log_softmax(-1)
        table = said.gather(-1, held.tokens[row, : held.lengths[row], None])[:, 0]
        tables.append(torch.nn.functional.pad(table, (0, rollout.mask.shape[1] - len(table))))
    return torch.stack(tables)


def gradient(made: Any, table: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, table.numel(), dtype=torch.float64).view_as(table)
    some = list(made.parameters().values())
    parts = torch.autograd.grad((weights * table).sum(), some, allow_unused=True, retain_graph=True)
    return torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(some, parts, strict=True)])


@pytest.mark.parametrize("name", CLASSES)
def test_what_is_drawn_behind_a_picture_is_scored_behind_it_and_the_picture_is_nobody_s(name: str) -> None:
    made = policy(name)
    rollout = made.sample(mixed()[:2], 3, rng())
    counts = [len(shown) for shown in rollout.held.shown]
    assert min(counts) == 0 and max(counts) == 2 and rollout.metrics["pictures"] == sum(counts) / 6
    assert rollout.metrics["engine_difference_max"] < 1e-5
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    table, oracle = made.steps(rollout, order).log_probs, straight(made, rollout)[order]
    mask = rollout.mask[order]
    assert torch.allclose(table[mask], oracle[mask], atol=1e-5, rtol=1e-6) and not bool(table[~mask].any())
    ours, theirs = gradient(made, table), gradient(made, oracle * mask)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-4
    placeholders = torch.isin(rollout.held.tokens, torch.tensor(sorted(made.chat.vision.placeholders)))
    assert bool(placeholders.any()) and not bool((placeholders & rollout.mask).any())
    some = made.steps(rollout, order, columns=torch.arange(3)).log_probs  # before any picture: none of it is cut
    torch.testing.assert_close(some, table[:, :3], atol=1e-6, rtol=0)


def test_another_picture_changes_what_follows_and_nothing_before_it() -> None:
    made = policy("Qwen2VL")
    rollout = made.sample(mixed()[:2], 2, rng())
    row = max(range(4), key=lambda row: len(rollout.held.shown[row]))
    (place, reply), *later = rollout.held.shown[row]
    words = [{"type": "text", "text": "see "}, picture(32, 48, 99), {"type": "text", "text": "!"}]
    other, _ = read_reply(made.chat, [{"role": "tool", "content": words}])
    assert other.ids == reply.ids and other.digest != reply.digest
    shown = tuple(((place, other), *later) if number == row else each for number, each in enumerate(rollout.held.shown))
    changed = replace(rollout, held=replace(rollout.held, shown=shown))
    apart = (made.steps(changed, torch.arange(4)).log_probs.detach() - rollout.log_probs).abs()
    assert float(apart[row, :place].max()) < 1e-6 and float(apart[row, place:].max()) > 1e-3
    assert float(torch.cat([apart[:row], apart[row + 1 :]]).max()) < 1e-6
    told = [ours != theirs for ours, theirs in zip(made.digests(changed), made.digests(rollout), strict=True)]
    assert told == [number == row for number in range(4)]


class Script:
    """Draws what it is told to, a line for each turn."""

    def __init__(self, chat: Any, *lines: str) -> None:
        self.lines, self.turn = [[*chat.ids(line), chat.stops[0]] for line in lines], 0

    def by_behaviors(self, ids: Any, of: Tensor, numbers: Tensor, drawing: Any, who: Tensor, behaviors: Any, extras: Any) -> Drawn:
        assert [extras[place]["mm_token_type_ids"].shape[1] for place in range(len(ids))] == [len(prompt) for prompt in ids]
        line = self.lines[self.turn]
        self.turn += 1
        nothing, none = torch.full((len(of), len(line)), torch.nan).double(), torch.zeros((len(of), len(line), 0), dtype=torch.uint8)
        tokens, lengths = torch.tensor([line] * len(of)), torch.full((len(of),), len(line))
        return Drawn(tokens, lengths, torch.zeros(len(of), dtype=torch.bool), nothing, none)


@pytest.mark.parametrize("name", ["Qwen2VL", "Qwen3VL"])
def test_a_conversation_that_is_given_is_the_one_that_was_sampled(name: str) -> None:
    """And the ids are those that transformers' own processor makes of all of it: nothing is said of a difference."""
    environment = mm.environments.tools({"zoom": mm.environments.zoom(units="pixels", smallest=48)})
    made = policy(name, environment)
    made.drawer = Script(made.chat, "<zoom>0 0 30 30</zoom>", "<zoom>9</zoom>", "a dog")
    prompt = user(picture(40, 64), "what is it")
    sampled = made.sample([prompt], 1, rng())
    [turns] = sampled.outputs
    assert [turn["role"] for turn in turns] == ["assistant", "tool", "assistant", "tool", "assistant"]
    assert turns[1]["content"][0]["url"].startswith("data:image/png;base64,") and turns[3]["error"] and sampled.metrics["pictures"] == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = make(name, max_completion=260).encode([prompt], [turns], torch.tensor([0]), rng())
    assert torch.equal(given.held.tokens, sampled.held.tokens) and torch.equal(given.mask, sampled.mask)
    assert made.digests(given) == made.digests(sampled)
    torch.testing.assert_close(made.steps(given, torch.tensor([0])).log_probs.detach(), sampled.log_probs, rtol=0, atol=1e-6)
    shorter = make(name, max_completion=30, truncate="right").encode([prompt], [turns], torch.tensor([0]), rng())
    assert shorter.held.shown == ((),) and int(shorter.held.lengths) == given.held.shown[0][0][0]  # no picture is cut in two


def test_rows_with_pictures_are_taken_joined_parted_and_compared() -> None:
    made = policy("SmolVLM")
    prompts = mixed()[:1] + mixed()[2:]
    rollout = made.sample(prompts, 2, rng(1))
    some = [rollout.take(torch.tensor([3, 1])), make("SmolVLM", max_completion=6).sample(["hi"], 2, rng())]
    both = type(rollout).join(some)
    table = made.steps(both, torch.arange(4)).log_probs
    torch.testing.assert_close(table.detach(), both.log_probs, rtol=0, atol=1e-5)
    ablated = made.steps(rollout, torch.arange(4), needs=frozenset({contrast("ablated")})).contrasts["ablated"].log_probs
    assert float((ablated.detach() - rollout.log_probs)[rollout.mask].abs().max()) > 1e-4
    always = lambda talks, seeds: looking(talks, [3 * seed + 1 for seed in seeds])  # noqa: E731
    parted = policy("SmolVLM", always, parting=True).sample(prompts, 3, rng(2))
    assert any(shown and not bool(parted.mask[row, : shown[0][0]].any()) for row, shown in enumerate(parted.held.shown))
    torch.testing.assert_close(made.steps(parted, torch.arange(6)).log_probs.detach(), parted.log_probs, rtol=0, atol=1e-5)


def test_who_cannot_be_shown_pictures() -> None:
    from mmalign.worlds.calculator import base

    blind: dict[str, Any] = {"max_completion": 40, "device": "cpu"}
    looks = mm.environments.tools({"zoom": mm.environments.zoom()})
    with pytest.raises(UserError, match="zoom looks at pictures, and the policy is a language model without eyes; takes a vision-language"):
        mm.policies.transformers(base.untrained(width=32, layers=1), turns=Turns(environment=looks), **blind)
    for environment, line in [
        (lambda talks: [{"role": "user", "content": [picture(8, 8)]}] * len(talks), "replied with an image, and the policy is a language"),
        (lambda talks: [{"role": "user", "content": [{"type": "video", "path": "x.mp4"}]}] * len(talks), "replied with a video"),
        (
            lambda talks: [{"role": "user", "content": [{"type": "image", "image": torch.zeros(2, 3)}]}],
            "replied with a picture: got a tensor",
        ),
    ]:
        made = mm.policies.transformers(base.untrained(width=32, layers=1), turns=Turns(environment=environment), **blind)
        made.drawing = made.drawing._replace(stops=torch.arange(400))
        with pytest.raises(UserError, match=rf"policy\.turns\.environment: {line}"):
            made.sample(["1 + 1"], 1, rng())
    with pytest.raises(UserError, match="LlavaOnevisionProcessor: reads a picture otherwise once another stands behind it"):
        policy("LlavaOnevision").sample(mixed()[:1], 3, rng())
