"""Whatever is mixed, cut and put in batches, every placeholder that is left meets its own pixels."""

from __future__ import annotations

import random
import warnings
from dataclasses import replace
from functools import cache

import pytest
import torch

from mmalign.policies.language.scoring.contrasts import sequences
from mmalign.policies.language.scoring.scorer import batches, picked
from mmalign.policies.twins import visions
from mmalign.types import UserError
from tests.helpers.flat import transformers

FAMILIES = ["Llava", "Qwen2VL", "Idefics3", "InternVL", "LlavaOnevision"]


@cache
def twin(name):
    return visions.twin(f"{name}ForConditionalGeneration")


def policy_of(name, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers(*twin(name), **{"max_completion": 3, "device": "cpu", **more})


def colour(number):
    """A picture of one grey of its own."""
    return {"type": "image", "image": torch.full((3, 32, 32 + 32 * (number % 2)), (number % 23 + 1) / 24)}


def conversation(rng, first):
    """Texts and pictures in any order, and the numbers of those pictures."""
    parts, shown = [], []
    for _ in range(rng.randint(1, 4)):
        if rng.random() < 0.5:
            parts.append({"type": "text", "text": " ".join(rng.choice(["a", "bb", "ccc"]) for _ in range(rng.randint(1, 9)))})
        else:
            shown.append(first + len(shown))
            parts.append(colour(shown[-1]))
    return [{"role": "user", "content": parts or "hi"}], shown


def agrees(policy, rollout, rows):
    """Errors: AssertionError where a row's placeholders and pixels are not those of its own media."""
    held = rollout.held
    some = sequences(rollout.held, rows)
    for part in batches(some):
        run = picked(some, part, 2, torch.device("cpu"))
        for place, row in zip(run.which.tolist(), rows[part].tolist(), strict=True):
            prompt = held.encoded[int(held.which[row])]
            assert run.prompts[place].tolist() == list(prompt.ids)
            placeholders = [token in policy.chat.vision.placeholders for token in prompt.ids]
            inside = [any(first <= at < last for first, last in prompt.spans) for at in range(len(prompt.ids))]
            assert all(within or not stands for stands, within in zip(placeholders, inside, strict=True))
            assert all(any(placeholders[first:last]) for first, last in prompt.spans) and len(prompt.spans) == len(prompt.media)
            given = run.extras[place] if run.extras else {}
            alone = policy.chat.vision.process(prompt.text, prompt.media) if prompt.media else {}
            for name in [name for name in alone if "pixel" in name]:
                assert torch.equal(given[name], torch.as_tensor(alone[name]))
            assert bool(prompt.media) == any("pixel" in name for name in given)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("truncate", ["left", "right"])
def test_every_placeholder_meets_its_own_pixels(name, truncate):
    rng = random.Random(f"{name} {truncate}")
    policy = policy_of(name, truncate=truncate, max_prompt=60)
    made = [conversation(rng, 3 * number) for number in range(12)]
    prompts = [prompt for prompt, _ in made]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rollout = policy.encode([prompts[number // 2] for number in range(24)], ["a", "b"] * 12, torch.arange(24) // 2, torch.Generator())
    order = list(range(24))
    rng.shuffle(order)
    agrees(policy, rollout, torch.tensor(order))
    left = 0
    greys = {number: (number % 23 + 1) / 24 for _, shown in made for number in shown}
    for prompt, (_, shown) in zip([rollout.held.encoded[int(rollout.held.which[2 * n])] for n in range(12)], made, strict=True):
        kept = [round(float(medium.source.mean()), 4) for medium in prompt.media]
        own = [round(greys[number], 4) for number in shown]
        assert kept == [grey for grey in own if grey in kept] and len(prompt) <= 60  # some of its own, in their order
        if name == "Llava" and prompt.media:  # by the grey that the tower is shown
            pixels = policy.chat.vision.inputs(prompt)["pixel_values"]
            looks = policy.chat.vision.processor.image_processor
            seen = pixels * torch.tensor(looks.image_std).view(3, 1, 1) + torch.tensor(looks.image_mean).view(3, 1, 1)
            assert seen.mean((1, 2, 3)).tolist() == pytest.approx(kept, abs=0.01)
        left += len(prompt.media)
    assert policy.cut.get("images", 0) == 2 * (sum(len(shown) for _, shown in made) - left)  # of the two rows of each prompt


def test_swapped_pixels_are_caught():
    policy = policy_of("Llava")
    prompts = [[{"role": "user", "content": [colour(number), {"type": "text", "text": "hi"}]}] for number in (0, 2)]
    rollout = policy.encode(prompts, ["a", "b"], torch.arange(2), torch.Generator())
    agrees(policy, rollout, torch.arange(2))
    first, second = rollout.held.extras
    vars(rollout.held)["extras"] = [second, first]
    with pytest.raises(AssertionError):
        agrees(policy, rollout, torch.arange(2))


@pytest.mark.parametrize("truncate", ["left", "right"])
def test_an_image_that_is_cut_through_leaves_with_all_of_its_tokens(truncate):
    policy = policy_of("Qwen2VL", truncate=truncate, max_prompt=34)
    words = {"type": "text", "text": "abcdefgh"}
    prompt = [{"role": "user", "content": [colour(0), words, colour(2)]}]
    with pytest.warns(UserWarning, match="images do not fit and are left out, with their tokens"):
        rollout = policy.encode([prompt], ["a"], torch.zeros(1, dtype=torch.int64), torch.Generator())
    given = rollout.held.encoded[0]
    kept = colour(2 if truncate == "left" else 0)["image"]
    assert len(given.media) == 1 and torch.equal(given.media[0].source, kept) and policy.cut["images"] == 1
    first, last = given.spans[0]
    words = policy.chat.tokenizer.convert_ids_to_tokens(given.ids[first:last])
    assert words == ["<|vision_start|>", *["<|image_pad|>"] * 4, "<|vision_end|>"]
    assert set(policy.chat.vision.placeholders) & set(given.ids[:first] + given.ids[last:]) == set()


def test_windows_that_cut_a_medium_cannot_be_made():
    policy = policy_of("Llava")
    prompt = policy.chat.prompt([{"role": "user", "content": [colour(0)]}])
    with pytest.raises(ValueError, match="cut"):
        prompt.window(prompt.spans[0][0] + 1, len(prompt))


def test_a_file_that_changes_between_rollout_and_update_stops_the_run(tmp_path):
    from PIL import Image

    policy, path = policy_of("Llava"), tmp_path / "a.png"
    Image.new("RGB", (32, 32), "red").save(path)
    prompt = [{"role": "user", "content": [{"type": "image", "path": str(path)}, {"type": "text", "text": "hi"}]}]
    rollout = policy.sample([prompt], 2, torch.Generator().manual_seed(0))
    policy.steps(rollout, torch.arange(2))
    Image.new("RGB", (32, 32), "blue").save(path)
    with pytest.raises(UserError, match=r"media: .*a\.png changed since a rollout read it") as error:
        policy.steps(rollout, torch.arange(2))
    assert "\n" not in str(error.value)


def test_pixels_are_made_again_and_are_the_same():
    policy = policy_of("LlavaOnevision")
    prompts = [[{"role": "user", "content": [colour(0), colour(1), {"type": "text", "text": "hi"}]}]]
    rollout = policy.sample(prompts, 2, torch.Generator().manual_seed(0))
    policy.chat.vision.kept.clear()
    table = policy.steps(rollout, torch.arange(2)).log_probs
    assert torch.allclose(table, rollout.log_probs, atol=1e-6)
    wrong = [replace(prompt, digest="0") for prompt in rollout.held.encoded]
    policy.chat.vision.kept.clear()
    with pytest.raises(UserError, match="image in memory, image in memory changed"):
        policy.chat.vision.inputs(wrong[0])


def test_kept_pixels_are_bounded(monkeypatch):
    from mmalign.policies.language.prompts import vision

    policy = policy_of("Llava")
    one = 3 * 32 * 32 * 4
    monkeypatch.setattr(vision, "KEPT", 3 * one)
    for number in range(6):
        policy.chat.prompt([{"role": "user", "content": [{"type": "image", "image": torch.full((3, 32, 32), number / 8)}]}])
    assert len(policy.chat.vision.kept) == 3
