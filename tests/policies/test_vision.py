"""Vision-language models as policies: the same log-probabilities as a straight forward, images and their tokens run once per group."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from mmalign.needs import contrast
from mmalign.policies.language.models.logits import Matrix
from mmalign.policies.language.models.members import members_of
from mmalign.policies.language.prompts.ablation import Ablation
from mmalign.policies.twins import visions
from mmalign.types import Need, UserError
from tests.helpers.flat import transformers

CLASSES = [name.removesuffix("ForConditionalGeneration") for name in visions.classes()]
SEEING = [name for name in CLASSES if name != "Emu3"]  # which makes images, and reads none here


@cache
def twin(name):
    """A twin whose distributions are not flat."""
    model, processor = visions.twin(f"{name}ForConditionalGeneration")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for p in model.parameters():
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.1)
    return model, processor


def make(name="Llava", **more):
    bare = {"template": False} if name == "PaliGemma" else {}  # whose processor has no chat template
    return transformers(*twin(name), **{"max_completion": 6, "device": "cpu", **bare, **more})


def picture(height, width, seed=0):
    return {"type": "image", "image": torch.rand((3, height, width), generator=torch.Generator().manual_seed(seed))}


def user(*parts):
    return [{"role": "user", "content": [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]}]


def mixed():
    """One image, words alone, two images of other sizes."""
    return [user(picture(40, 64), "what is it"), "only words", user(picture(32, 32, 1), "this, or", picture(64, 30, 2), "?")]


def straight(policy, rollout):
    """Log-probabilities ``[B, T]`` of each row by itself: its prompt with its pixels and its completion through the model's own forward."""
    held, values = rollout.held, torch.zeros(rollout.mask.shape, dtype=torch.float64)
    answer = 1 if policy.model.config.model_type == "paligemma" else 0
    rows = []
    for row in range(len(rollout.prompts)):
        place, length = int(held.which[row]), int(held.lengths[row])
        prompt, tokens = held.prompts[place], held.tokens[row, :length]
        inputs = dict(held.extras[place]) if len(held.extras) else {}
        for name in [name for name in inputs if name.endswith("token_type_ids")]:
            inputs[name] = torch.cat([inputs[name], torch.full((1, length), answer)], 1)
        logits = policy.model(input_ids=torch.cat([prompt, tokens]).unsqueeze(0), use_cache=False, **inputs).logits[0, len(prompt) - 1 : -1]
        full = logits.double().index_fill(-1, torch.tensor(policy.chat.never), -1e9).log_softmax(-1)
        expected = full.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        rows.append(torch.nn.functional.pad(expected, (0, values.shape[1] - length)))
    return torch.stack(rows)


def gradient(policy, table):
    weights = torch.linspace(-1, 1, table.numel(), dtype=torch.float64).view_as(table)
    some = policy.parameters()
    gradients = torch.autograd.grad((weights * table).sum(), list(some.values()), allow_unused=True, retain_graph=True)
    return {name: torch.zeros(1) if g is None else g.flatten() for name, g in zip(some, gradients, strict=True)}


@pytest.mark.parametrize("name", SEEING)
def test_images_run_once_and_give_what_a_straight_forward_gives(name):
    policy = make(name)
    assert policy.fit.shared and isinstance(policy.fit.head, Matrix) and policy.fit.remarks == ()
    rollout = policy.sample(mixed(), 3, torch.Generator().manual_seed(0))
    assert rollout.metrics["engine_difference_max"] < 1e-5  # what was drawn, with the same places and pixels
    order = torch.tensor([8, 0, 4, 1, 2, 6, 3, 7])
    table = policy.steps(rollout, order).log_probs
    oracle = straight(policy, rollout)[order]
    assert torch.allclose(table, oracle, atol=1e-5, rtol=1e-6)
    assert torch.allclose(rollout.log_probs[order], oracle, atol=1e-5, rtol=1e-6)
    ours, theirs = gradient(policy, table), gradient(policy, oracle)
    apart = torch.cat(list(ours.values())) - torch.cat(list(theirs.values()))
    assert float(apart.norm() / torch.cat(list(theirs.values())).norm()) < 1e-4
    seen = [key for key in ours if "vision" in key or "visual" in key]
    assert seen and any(float(ours[key].abs().sum()) > 0 for key in seen)  # through the picture


def test_rows_that_end_leave_the_others_their_places():
    policy = make("Qwen2VL", max_completion=12)
    policy.drawing = policy.drawing._replace(stops=torch.arange(60))  # about every fourth token ends a row
    rollout = policy.sample(mixed(), 6, torch.Generator().manual_seed(0))
    assert len(set(rollout.held.lengths.tolist())) > 4 and rollout.metrics["engine_difference_max"] < 1e-5


@pytest.mark.parametrize("name", ["Llava", "Qwen2VL", "PaliGemma"])
def test_unshared_prompts_give_the_same(name):
    rollout = make(name).sample(mixed(), 2, torch.Generator().manual_seed(0))
    apart = make(name, shared_prefixes=False).steps(rollout, torch.arange(6)).log_probs - rollout.log_probs
    assert float(apart.abs().max()) < 1e-5


def test_other_pictures_give_other_numbers():
    policy = make("Qwen2VL")
    rollout = policy.sample([user(picture(32, 32, seed), "hi") for seed in (0, 1)], 2, torch.Generator().manual_seed(0))
    assert rollout.held.prompts[0].equal(rollout.held.prompts[1])
    swapped = replace(rollout.held, encoded=rollout.held.encoded[::-1])
    table = policy.steps(replace(rollout, held=swapped), torch.arange(4)).log_probs
    assert float((table - rollout.log_probs).abs().max()) > 1e-3


def test_given_answers_and_samples_have_the_same_prompt():
    policy = make("LlavaOnevision")
    prompts = [prompt for prompt in mixed() for _ in range(2)]
    given = policy.encode(prompts, ["yes", "no"] * 3, torch.arange(6) // 2, torch.Generator())
    sampled = policy.sample(mixed(), 1, torch.Generator())
    assert [prompt.digest for prompt in given.held.encoded] == [prompt.digest for prompt in sampled.held.encoded]
    assert given.held.which.tolist() == [0, 0, 1, 1, 2, 2]


def test_prompts_that_look_alike_and_show_others_are_two():
    policy = make("Llava")
    prompts = [user(picture(32, 32, seed), "hi") for seed in (0, 1, 0)]
    rollout = policy.encode(prompts, ["a", "a", "b"], torch.arange(3), torch.Generator())
    assert rollout.held.which.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("prompt", "match"),
    [
        (user("look at <image> please"), "1 placeholders '<image>' and 0 images"),
        (user(picture(8, 8), "and <image>"), "2 placeholders '<image>' and 1 images"),
        (user({"type": "video", "path": "a.mp4"}), "holds a video, which LlavaProcessor does not take"),
        (user({"type": "audio", "path": "a.wav"}), "part of type 'audio', takes text, image, video"),
        (user({"type": "image"}, "hi"), "0 sources, takes one of image, path"),
        (user({"type": "image", "path": "not/there.png"}, "hi"), "no such file: not/there.png"),
    ],
)
def test_what_a_prompt_may_hold(prompt, match):
    with pytest.raises(UserError, match=f"^prompt 1: .*{match}") as error:
        make().sample(["hi", prompt], 1, torch.Generator())
    assert "\n" not in str(error.value)


def test_ids_around_and_of_pixels_are_never_said():
    expected = {name: make(name).chat for name in ("Qwen2_5_VL", "Idefics3", "InternVL", "Gemma3")}
    for name, words in {
        "Qwen2_5_VL": ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"],
        "InternVL": ["<img>", "</img>"],
        "Idefics3": ["<image>", "<fake_token_around_image>", "<global-img>", "<row_1_col_1>", "<row_6_col_6>"],
        "Gemma3": ["<start_of_image>", "<end_of_image>", "<image_soft_token>"],
    }.items():
        assert set(expected[name].tokenizer.convert_tokens_to_ids(words)) <= set(expected[name].never)
        assert not set(expected[name].stops) & set(expected[name].never)


# Members, contrasts, hidden pictures


def test_images_whose_codes_depend_on_the_images_beside_them_are_refused():
    policy = make("Emu3")
    with pytest.raises(UserError, match="this model's codes of an image depend on the images beside it in a call; takes words alone"):
        policy.chat.prompt(mixed()[0])
    assert policy.chat.prompt("only words").ids[0] == policy.chat.tokenizer.bos_token_id


@pytest.mark.parametrize("name", CLASSES)
def test_members_are_found_by_the_models_own_structure(name):
    members = members_of(twin(name)[0])
    every = [parameter for names in members.values() for parameter in names]
    named = [parameter for parameter, _ in twin(name)[0].named_parameters()]
    assert sorted(every) == sorted(parameter for parameter in named if "vqmodel" not in parameter)
    assert all("language_model" in key or "text_model" in key or "lm_head" in key for key in members["language"])
    assert "lm_head.weight" in members["language"]
    if name != "Emu3":
        assert list(members) == ["vision", "projector", "language"]
        assert any("patch_embed" in key for key in members["vision"]) and not any("merger" in key for key in members["vision"])


def test_what_is_trained_is_said_in_one_line():
    model, processor = visions.twin("Qwen2VLForConditionalGeneration")
    train = {"vision": "freeze", "projector": "full", "language": {"rank": 4, "targets": ["q_proj", "up_proj"]}}
    policy = transformers(model, processor, train=train, max_completion=4)
    trained = policy.parameters()
    full, lora = [key for key in trained if "lora_" not in key], [key for key in trained if "lora_" in key]
    assert full and all("visual.merger" in key for key in full)
    assert lora and all("language_model" in key and ("q_proj" in key or "up_proj" in key) for key in lora)
    prompts = [user(picture(32, 32), "hi")]
    rollout = policy.sample(prompts, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p in trained.values():
            p.add_(0.05)
    policy.remember(rollout, ["ref"], 8)
    table = policy.steps(rollout, torch.arange(2), needs=frozenset({Need("refs")}))
    assert torch.allclose(table.refs["ref"], rollout.log_probs, atol=1e-6)  # ref: before anything moved, LoRA and full members alike
    assert float((table.log_probs - table.refs["ref"]).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("train", "match"),
    [
        ({"vison": "freeze"}, "train.vison: unknown key of train; nearest: vision; takes vision, projector, language"),
        ({"vision": "frozen"}, "train.vision: got 'frozen', takes 'freeze' or 'full', or a mapping of rank"),
        ({"vision": "freeze"}, "train.vision, projector, language: all are frozen, and nothing would be trained"),
        ({"language": {"rank": 4, "targets": ["nope"]}}, "train.language.targets: .* it has .*q_proj"),
        ({"language": {"ranks": 4}}, "train.language.ranks: unknown key of language; nearest: rank"),
    ],
)
def test_train_names_what_there_is(train, match):
    with pytest.raises(UserError, match=match):
        transformers(*visions.twin("LlavaForConditionalGeneration"), train=train, max_completion=4)


@pytest.mark.parametrize("how", ["crop", "blank", "noise", "diffuse"])
def test_ablated_is_the_same_answer_behind_another_picture(how):
    policy = make("Qwen2VL", ablation={"how": how, "share": 0.5})
    rollout = policy.sample(mixed(), 2, torch.Generator().manual_seed(0))
    log_probs = policy.steps(rollout, torch.arange(6), needs=frozenset({contrast("ablated")})).contrasts["ablated"].log_probs
    apart = (log_probs - rollout.log_probs).abs().amax(1)
    assert float(apart[:2].min()) > 1e-4 and float(apart[4:].min()) > 1e-4 and float(apart[2:4].max()) < 1e-6  # words alone stay
    vision, whole = policy.chat.vision, rollout.held.encoded[0]
    changed = vision.changed(whole, Ablation(how=how, share=0.5))
    assert vision.inputs(changed)["pixel_values"].shape == vision.inputs(whole)["pixel_values"].shape
    other = make("Qwen2VL", ablation={"how": how, "share": 0.5})
    again = other.steps(rollout, torch.tensor([5, 0]), needs=frozenset({contrast("ablated")})).contrasts["ablated"].log_probs
    assert torch.allclose(again, log_probs[[5, 0]], atol=1e-6)  # the same each time


def test_mismatched_is_the_next_prompt_with_its_pictures():
    policy = make("Llava")
    prompts = [user(picture(32, 32, seed), "hi") for seed in (0, 1)]
    rollout = policy.sample(prompts, 2, torch.Generator().manual_seed(0))
    log_probs = policy.steps(rollout, torch.arange(4), needs=frozenset({contrast("mismatched")})).contrasts["mismatched"].log_probs
    turned = policy.encode([prompts[1]] * 2 + [prompts[0]] * 2, ["x"] * 4, torch.arange(4), torch.Generator())
    held = replace(rollout.held, encoded=turned.held.encoded, which=torch.tensor([0, 0, 1, 1]))
    oracle = straight(policy, replace(rollout, held=held))
    assert torch.allclose(log_probs, oracle, atol=1e-5)


def test_a_step_that_happens_to_hold_no_picture_stays_as_it_is_and_stops_no_run():
    policy = make("Llava")
    rollout = policy.sample(["hi", "ho"], 1, torch.Generator())
    log_probs = policy.steps(rollout, torch.arange(2), needs=frozenset({contrast("ablated")})).contrasts["ablated"].log_probs
    assert torch.allclose(log_probs, rollout.log_probs, atol=1e-5)


@pytest.mark.parametrize("name", ["Llava", "Qwen2VL", "PaliGemma", "Gemma3"])
def test_hidden_pictures_are_not_seen(name):
    policy = make(name)
    prompts = [user({"type": "image", "image": torch.full((3, 32, 32), value)}, "hi") for value in (0.0, 1.0)]
    call = {"temperature": 1.0, "max_completion": 12}
    one = [policy.generate([prompt], [5], **call)[0] for prompt in prompts]
    blind = policy.generate(prompts, [5, 5], hidden_media=1.0, **call)
    assert one[0] != one[1] and blind[0] == blind[1]
    assert policy.generate(prompts, [5, 5], hidden_media=0.0, **call) == one  # and nothing stays hidden
    with pytest.raises(UserError, match=r"hidden_media: got 2.0, takes 0"):
        policy.generate(prompts, [0, 1], hidden_media=2.0)


@pytest.mark.parametrize("train", [None, {"language": {"rank": 2}}, {"projector": "full", "language": {"rank": 2}}])
def test_a_saved_model_that_sees_is_the_live_one(train, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from mmalign.policies.exports.language import save

    base = lambda: visions.twin("Qwen2VLForConditionalGeneration")[0]  # noqa: E731
    policy = transformers(*visions.twin("Qwen2VLForConditionalGeneration"), train=train, max_completion=4)
    with torch.no_grad():
        for p in policy.parameters().values():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    form = save(policy, tmp_path / "out", base=base, prompt=user(picture(32, 32), "hi"))[0]
    assert form.name == ("peft" if policy.sets.lora else "full")
    if not policy.sets.lora:
        loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out"), AutoProcessor.from_pretrained(tmp_path / "out")
        again, call = transformers(*loaded, max_completion=4), {"temperature": 0}
        assert again.generate(mixed(), [0, 1, 2], **call) == policy.generate(mixed(), [0, 1, 2], **call)
        from_folder = transformers(str(tmp_path / "out"), max_completion=4)
        assert from_folder.generate(mixed(), [0, 1, 2], **call) == policy.generate(mixed(), [0, 1, 2], **call)


@pytest.mark.parametrize("name", ["Qwen2VL", "Qwen3VL", "LlavaOnevision", "InternVL"])
def test_videos_stand_beside_images(name):
    policy = make(name)
    clip = {"type": "video", "video": torch.rand((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))}
    prompts = [user(clip, "what"), user(picture(32, 32), clip, "and"), "words"]
    rollout = policy.sample(prompts, 2, torch.Generator().manual_seed(0))
    assert [[medium.kind for medium in prompt.media] for prompt in rollout.held.encoded] == [["video"], ["image", "video"], []]
    table = policy.steps(rollout, torch.tensor([5, 2, 0, 3])).log_probs
    assert torch.allclose(table, straight(policy, rollout)[[5, 2, 0, 3]], atol=1e-5)
    for prompt in rollout.held.encoded:
        placeholders = [place for place, token in enumerate(prompt.ids) if token in policy.chat.vision.placeholders]
        assert all(any(first <= place < last for first, last in prompt.spans) for place in placeholders)


def test_a_video_without_frames_is_one_line():
    with pytest.raises(UserError, match=r"^prompt 0: .*a video without frames$"):
        make("Qwen2VL").sample([user({"type": "video", "video": []}, "what")], 1, torch.Generator())
