"""Images as tokens: what is sampled is what the model's own generate samples, and what is scored and trained; codes and pixels."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.config import check, load
from mmalign.needs import ENTROPY, contrast
from mmalign.policies.language.codes.image_tokens import ImageTokensPolicy, image_tokens
from mmalign.policies.language.codes.thinking_images import ThinkingImagesPolicy, thinking_images
from mmalign.policies.parameters import replaced
from mmalign.policies.transformers import transformers
from mmalign.policies.twins import texts, visions
from mmalign.records import Pair, RefusedRow
from mmalign.rooms import resource
from mmalign.types import Behavior, Need, UserError
from tests.helpers.small_run import rows

PROMPTS = ["a cat", "a somewhat larger dog"]
KINDS = ("Janus", "Emu3")


def policy(kind: str, **settings: Any) -> ImageTokensPolicy:
    model, processor = visions.twin(f"{kind}ForConditionalGeneration")
    sized: dict[str, Any] = {"size": [32, 24]} if kind == "Emu3" else {}
    return image_tokens(transformers(model, processor, max_completion=8), **sized, **settings)


def sampled(some: ImageTokensPolicy, group: int = 2, **more: Any) -> Any:
    return some.sample(PROMPTS, group, torch.Generator().manual_seed(0), **more)


class Told:
    """Stands in for ``torch.multinomial``: notes the distributions that a model's own code draws from, and draws what it is told."""

    def __init__(self, tokens: Tensor):
        self.tokens, self.probs = list(tokens.T), list[Tensor]()

    def __call__(self, probs: Tensor, num_samples: int, **more: Any) -> Tensor:
        self.probs.append(probs)
        return self.tokens[len(self.probs) - 1].unsqueeze(1)


def own_janus(some: ImageTokensPolicy, ids: list[int], codes: Tensor, scale: float, monkeypatch: Any) -> Tensor:
    model, words = some.of.model, some.of.chat.tokenizer
    settings = model.generation_config
    settings.pad_token_id, settings.bos_token_id, settings.eos_token_id = words.pad_token_id, words.bos_token_id, words.eos_token_id
    settings.generation_kwargs = {"boi_token_id": words.boi_token_id}
    told = Told(codes)
    monkeypatch.setattr(torch, "multinomial", told)
    rows = torch.tensor([ids] * len(codes))
    model.generate(
        rows, attention_mask=torch.ones_like(rows), generation_mode="image", do_sample=True, guidance_scale=scale, top_k=0, max_length=200
    )
    return torch.stack(told.probs, dim=1).log()


def own_emu3(some: ImageTokensPolicy, ids: list[int], codes: Tensor, scale: float, monkeypatch: Any) -> Tensor:
    layout: Any = some.layout
    tokens, places = layout.written(codes), layout.places
    theirs = some.of.model.vocabulary_mapping.convert_img2bpe(codes[0].view(layout.height, layout.width)).flatten()
    assert torch.equal(tokens[0], theirs[:-1].long())  # but the last end of a line, behind which nothing is drawn

    def allowed(row: int, so_far: Tensor) -> list[int]:
        return layout.words.tolist() if len(so_far) - len(ids) in places.tolist() else [layout.end]

    told = Told(tokens)
    monkeypatch.setattr(torch, "multinomial", told)
    rows = torch.tensor([ids] * len(codes))
    some.of.model.generate(
        rows, attention_mask=torch.ones_like(rows), do_sample=True, top_k=0, guidance_scale=scale, max_new_tokens=tokens.shape[1],
        negative_prompt_ids=torch.tensor([layout.unprompted([])] * len(codes)), prefix_allowed_tokens_fn=allowed, pad_token_id=0,
        eos_token_id=None,
    )  # fmt: skip
    return torch.stack(told.probs, dim=1)[:, places][:, :, layout.words].log()


@pytest.mark.parametrize("kind", KINDS)
def test_the_distribution_is_that_of_the_models_own_generate(kind: str, monkeypatch: Any) -> None:
    """With guidance; the model's own code is told to draw our codes, so that every step has the same past."""
    some = policy(kind, guidance=4.0)
    rollout = sampled(some)
    rows = rollout.held.tokens[:2]  # of the first prompt
    own = {"Janus": own_janus, "Emu3": own_emu3}[kind](some, list(rollout.held.encoded[0].ids), rows, 4.0, monkeypatch)
    theirs = own.gather(2, rows.unsqueeze(2)).squeeze(2).double()
    assert torch.allclose(rollout.log_probs[:2], theirs, atol=4 * 4e-6)  # guidance multiplies what 20 roundings of float32 do
    free = policy(kind)
    assert not torch.allclose(free.log_probs(rollout, 4)[:2], theirs, atol=0.01)  # and guidance counts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("guidance", "trained"), [(1.0, "guided"), (3.0, "guided"), (3.0, "conditional")])
def test_what_is_scored_again_is_what_was_sampled(kind: str, guidance: float, trained: str) -> None:
    some = policy(kind, guidance=guidance, trained=trained)
    rollout = sampled(some, 3)
    steps = some.steps(rollout, torch.arange(6))
    assert torch.allclose(steps.log_probs.detach(), rollout.log_probs, atol=1e-6)
    drawn = some._drawn(rollout.held.encoded, rollout.held.which, torch.rand(6, 12 if kind == "Emu3" else 16).double(), torch.zeros(6), [])
    rescored = some._table(rollout.held.encoded, PROMPTS, rollout.held.which, drawn.codes, rollout.group)
    apart = float((some.log_probs(rescored, 6) - drawn.log_probs).abs().max())
    assert (apart < 2e-5) if trained == "guided" else (apart > 1e-3)  # what was drawn with guidance is another distribution's
    assert ("engine_difference" in rollout.metrics) == (trained == "guided")


def test_rows_and_columns_of_a_table_are_those_of_the_whole() -> None:
    some = policy("Emu3", guidance=2.0)
    rollout = sampled(some, 3)
    whole = some.steps(rollout, torch.arange(6), needs=frozenset({ENTROPY}))
    rows, columns = torch.tensor([4, 1]), torch.tensor([0, 7])
    part = some.steps(rollout, rows, columns, frozenset({ENTROPY}))
    entropy = part.terms["entropy"].detach()
    assert torch.allclose(part.log_probs, whole.log_probs[rows][:, columns], atol=1e-6)
    assert torch.allclose(entropy, whole.terms["entropy"][rows][:, columns], atol=1e-6)
    assert float(entropy.min()) > 0 and float(entropy.max()) <= torch.tensor(16.0).log() + 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_guided_distribution(kind: str) -> None:
    """Along one direction, against a difference of two values in float64; norms are computed in float32, so that the step is not tiny."""
    model, processor = visions.twin(f"{kind}ForConditionalGeneration")
    sized: dict[str, Any] = {"size": [16, 16]} if kind == "Emu3" else {}
    some = image_tokens(transformers(model.double(), processor, max_completion=8), guidance=3.0, **sized)
    rollout = sampled(some)
    parameters = some.parameters()
    words = "model.layers.0.mlp.up_proj", "language_model.layers.0.mlp.up_proj", "generation_head"
    names = [name for name in parameters if "vision" not in name and any(word in name for word in words)]
    total = some.steps(rollout, torch.arange(4)).log_probs.sum()
    gradient = torch.autograd.grad(total, [parameters[name] for name in names])
    step = {name: torch.randn(p.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for name, p in parameters.items()}
    slope = sum(float((part * step[name]).sum()) for name, part in zip(names, gradient, strict=True))
    ends = []
    for side in (1e-3, -1e-3):
        moved = {name: parameters[name].detach() + side * step[name] for name in names}
        with replaced(some.of.model, parameters, moved), torch.no_grad():
            ends.append(float(some.steps(rollout, torch.arange(4)).log_probs.sum()))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-3, rel=0.01)


def test_a_codebook_is_never_trained() -> None:
    for kind in KINDS:
        some = policy(kind)
        assert not [name for name in some.parameters() if "vqmodel" in name]
        assert [name for name in some.parameters() if "layers.0" in name]


def test_images_are_decoded_codes_and_a_row_does_not_depend_on_its_batch() -> None:
    some = policy("Janus", guidance=2.0)
    rollout = sampled(some, 3)
    assert rollout.outputs.shape == (6, 3, 32, 32) and rollout.outputs.min() >= 0 and rollout.outputs.max() <= 1
    own = (some.of.model.model.vqmodel.decode(rollout.held.tokens) / 2 + 0.5).clamp(0, 1)
    assert torch.equal(rollout.outputs, own.detach())
    some.rows_at_once = 2
    assert torch.equal(sampled(some, 3).held.tokens, rollout.held.tokens)
    late = some.sample(PROMPTS, 3, torch.Generator().manual_seed(0), part=slice(1, 2))
    assert torch.equal(late.held.tokens, rollout.held.tokens[3:]) and late.group.tolist() == [1, 1, 1]


def test_given_images_are_read_by_the_codebook_and_what_it_loses_is_said() -> None:
    some = policy("Janus")
    rollout = sampled(some)
    given = some.encode(rollout.prompts, list(rollout.outputs), rollout.group, torch.Generator())
    own = some.of.model.model.vqmodel.encode(rollout.outputs * 2 - 1, return_dict=True).image_tokens.view(4, -1)
    assert torch.equal(given.held.tokens, own) and bool(given.log_probs.isnan().all()) and torch.equal(given.outputs, rollout.outputs)
    error = (some.pixels.decode(own) - rollout.outputs).square().mean().sqrt()
    assert given.metrics["codebook_error"] == pytest.approx(float(error)) and float(error) > 0.01  # random weights keep little
    assert some.steps(given, torch.arange(4)).old is None
    part = some.encode(rollout.prompts, list(rollout.outputs), rollout.group, torch.Generator(), part=slice(1, 3))
    assert torch.equal(part.held.tokens, own[1:3])
    gray = some.encode(["a cat"], [rollout.outputs[0, :1]], torch.zeros(1).long(), torch.Generator())
    assert gray.outputs.shape == (1, 3, 32, 32)


def test_references_contrasts_and_other_voices() -> None:
    model, processor = visions.twin("JanusForConditionalGeneration")
    some = image_tokens(transformers(model, processor, max_completion=8), guidance=2.0)
    with torch.no_grad():
        for p in some.parameters().values():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    rollout = sampled(some, 3, behaviors=[Behavior("other", {"ref": 1.0}, part=0.34), Behavior("likeliest", {"current": 1.0}, 0.0, True)])
    assert len(rollout) == 8 and rollout.drawn["other"].tolist() == [False, False, True, False] * 2
    assert not rollout.mask[3].any() and rollout.mask[2].all()
    some.remember(rollout, ["ref"], 8)
    with some.using("ref"):
        assert torch.allclose(rollout.held.refs["ref"], some.log_probs(rollout, 8), atol=1e-6)
    needs = frozenset({Need("refs"), Need("kls"), Need("contrast", "mismatched")})
    steps = some.steps(rollout, torch.arange(8), needs=needs)
    assert torch.equal(steps.refs["ref"], rollout.held.refs["ref"])
    live = rollout.mask
    assert bool((steps.kls["ref"][live] > 0).all()) and bool((steps.log_probs.detach() - steps.refs["ref"])[live].abs().max() > 0.1)
    swapped = some._table(rollout.held.encoded, PROMPTS, 1 - rollout.held.which, rollout.held.tokens, rollout.group)
    behind_the_other = some.log_probs(swapped, 8)
    assert torch.allclose(steps.contrasts["mismatched"].log_probs.detach()[live], behind_the_other[live], atol=1e-5)
    assert torch.allclose(some.steps(rollout.take(torch.tensor([5, 2])), torch.arange(2)).log_probs, steps.log_probs[[5, 2]], atol=1e-5)


def test_a_user_gets_images_by_seed_and_by_another_guidance() -> None:
    some = policy("Emu3", guidance=3.0)
    one, two = some.generate(["a cat"], [5]), some.generate(["a dog", "a cat"], [4, 5])
    assert torch.equal(one[0], two[1]) and one.shape == (1, 3, 32, 24)
    assert torch.equal(one, some.generate(["a cat"], [5], guidance=3.0)) and not torch.equal(one, some.generate(["a cat"], [5], guidance=1))
    assert torch.equal(some.generate(["a cat"], [1], temperature=0), some.generate(["a cat"], [2], temperature=0))
    with pytest.raises(UserError, match=r"call\.max_completion: takes temperature"):
        some.generate(["a cat"], [5], max_completion=3)


def test_refusals_are_one_line_each() -> None:
    words = transformers(*texts.twin("LlamaForCausalLM"), max_completion=4)
    with pytest.raises(UserError, match=r"LlamaForCausalLM makes no images; takes a model that writes them as codes: Janus or Emu3"):
        image_tokens(words)
    with pytest.raises(UserError, match=r"policy.size: got none, takes .height, width. of an image, multiples of 8"):
        image_tokens(policy("Emu3").of)
    with pytest.raises(UserError, match=r"policy.size: got \[30, 32\]"):
        image_tokens(policy("Emu3").of, size=[30, 32])
    janus = policy("Janus")
    with pytest.raises(UserError, match=r"policy.size: got \[64, 64\], and JanusForConditionalGeneration makes images of 32 x 32"):
        image_tokens(janus.of, size=[64, 64])
    with pytest.raises(UserError, match="prompt 0: holds an image or a video"):
        janus.sample([[{"role": "user", "content": [{"type": "image", "image": torch.zeros(3, 8, 8)}]}]], 1, torch.Generator())
    with pytest.raises(RefusedRow, match=r"image: got \[3, 16, 16\], and this model makes \[3, 32, 32\]") as refused:
        janus.encode(PROMPTS, [torch.zeros(3, 32, 32), torch.zeros(3, 16, 16)], torch.arange(2), torch.Generator())
    assert refused.value.row == 1
    with pytest.raises(RefusedRow, match="image: got a str"):
        janus.encode(PROMPTS[:1], ["a text"], torch.arange(1), torch.Generator())
    janus.of.chat.tokenizer.pad_token = None
    with pytest.raises(UserError, match=r"policy.guidance: the tokenizer has no pad_token"):
        image_tokens(janus.of, guidance=5.0)
    assert image_tokens(janus.of).guidance == 1


def test_models_that_see_codes_and_cannot_show_them_say_so() -> None:
    from types import SimpleNamespace

    from mmalign.policies.language.codes.families import layout_of

    for kind, why in {"chameleon": "no decoder of its codes", "glm_image": "a pipeline of diffusers"}.items():
        model: Any = SimpleNamespace(config=SimpleNamespace(model_type=kind))
        with pytest.raises(UserError, match=why):
            layout_of(model, None, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [f"{file.parent.name}/{file.stem}" for file in sorted(resource("configs").glob("janus_*/*.yaml"))])
def test_configs_of_real_models_have_no_mistakes_and_a_source(name: str) -> None:
    node = load(name)
    assert check(node) == [] and node["run"]["name"] == name.replace("/", "-")
    text = (resource("configs") / f"{name}.yaml").read_text(encoding="utf-8")
    assert "Values: " in text and "https://" in text and f"`{name}`" in (resource("configs") / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_online_and_offline_runs_need_no_code_of_their_own(kind: str, tmp_path: Path) -> None:
    """GRPO with a reward of pixels, and DPO on pairs of images."""
    some = policy(kind, guidance=2.0)
    settings: dict[str, Any] = {"steps": 1, "evaluation": {"every": 1, "prompts": ["a cat"], "samples": 2, "columns": 2}}
    bright = lambda outputs, prompts, **more: outputs.flatten(1).mean(1)  # noqa: E731
    first = mm.online(
        some, PROMPTS, {"bright": bright}, mm.methods.grpo(beta=0.01), batch={"prompts": 2, "group": 3},
        run={"name": "grpo", "folder": str(tmp_path), "trackers": []}, **settings,
    )  # fmt: skip
    (row,) = [row for row in rows(first.path) if "loss" in row]
    assert row["engine_difference_max"] < 2e-5 and row["grad_norm"] > 0
    images = some.generate(PROMPTS * 2, [1, 2, 3, 4])
    pairs = [Pair(prompt, images[n], images[n + 2], 1.0, prompt) for n, prompt in enumerate(PROMPTS)]
    with pytest.warns(UserWarning, match="given images come back from its codes .* apart"):
        second = mm.offline(
            policy(kind), pairs, mm.methods.dpo(), batch={"records": 2},
            run={"name": "dpo", "folder": str(tmp_path), "trackers": []}, **settings,
        )  # fmt: skip
    (row,) = [row for row in rows(second.path) if "loss" in row]
    assert row["loss"] == pytest.approx(math.log(2)) and row["grad_norm"] > 0
    assert [name for line in rows(second.path) for name in line if "brightness" in name]  # what the alarm of pixels reads


def shown(image: Tensor, words: str = "a cat") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": words}, {"type": "image", "image": image}]}]


@pytest.mark.parametrize(("kind", "guidance"), [("Janus", 1.0), ("Emu3", 3.0)])
def test_teacher_forcing_draws_each_code_behind_the_true_ones(kind: str, guidance: float) -> None:
    """VA-pi: what is read is the image's codes, whatever was drawn; without noise rows of one prompt read the same."""
    some = policy(kind, guidance=guidance, teacher_forcing=0.0)
    images = torch.rand(2, *some.layout.shape, generator=torch.Generator().manual_seed(2))
    prompts = [shown(images[0]), shown(images[1], "a dog")]
    rollout = some.sample(prompts, 3, torch.Generator().manual_seed(0))
    true = some.pixels.encode(images)
    assert torch.equal(rollout.held.read, true.repeat_interleave(3, 0)) and rollout.metrics["engine_difference_max"] < 2e-5
    assert rollout.metrics["same_codes"] == pytest.approx(float((rollout.held.tokens == rollout.held.read).double().mean()))
    with pytest.warns(UserWarning, match="come back from its codes"):
        given = policy(kind, guidance=guidance).encode(["a cat", "a dog"], list(images), torch.arange(2), torch.Generator())
    plain = policy(kind, guidance=guidance).log_probs(given, 2)  # of the true codes behind each other
    same = rollout.held.tokens == rollout.held.read
    assert same.any() and torch.allclose(rollout.log_probs[same], plain.repeat_interleave(3, 0)[same], atol=2e-5)
    steps = some.steps(rollout, torch.tensor([4, 0]))
    assert torch.allclose(steps.log_probs.detach(), rollout.log_probs[[4, 0]], atol=1e-5)
    assert torch.allclose(some.log_probs(rollout.take(torch.tensor([5, 1])), 2), rollout.log_probs[[5, 1]], atol=1e-5)
    truth = frozenset({contrast("true")})
    told = some.steps(rollout, torch.tensor([4, 0]), torch.tensor([1, 3]), truth).contrasts["true"].log_probs
    assert told.requires_grad and torch.allclose(told.detach(), plain[[1, 0]][:, [1, 3]], atol=2e-5)
    with pytest.raises(UserError, match="contrast true: rows are drawn freely"):
        policy(kind).steps(given, torch.arange(1), None, truth)
    late = some.sample(prompts, 3, torch.Generator().manual_seed(0), part=slice(1, 2))
    assert torch.equal(late.held.tokens, rollout.held.tokens[3:])
    assert torch.allclose(some.log_probs(type(rollout).join([rollout, late]), 9)[6:], rollout.log_probs[3:], atol=1e-5)
    rewards = mm.rewards.reconstruction()(rollout.outputs, rollout.prompts)
    assert torch.allclose(rewards, -(rollout.outputs - images.repeat_interleave(3, 0)).square().flatten(1).mean(1))


def test_noise_replaces_a_share_of_what_is_read_and_bad_lessons_are_refused() -> None:
    some = policy("Janus", teacher_forcing=0.5)
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(2))
    rollout = some.sample([shown(image)], 40, torch.Generator().manual_seed(0))
    kept = float((rollout.held.read == some.pixels.encode(image.unsqueeze(0))).double().mean())
    assert kept == pytest.approx(0.5 + 0.5 / 16, abs=0.06)  # 640 draws, and one in 16 is replaced by itself
    assert len(set(some.digests(rollout))) == 40
    with pytest.raises(UserError, match=r"prompt 0: got 0 media, and policy.teacher_forcing makes one image again"):
        some.sample(["a cat"], 2, torch.Generator())
    assert some.refusals(["a cat", shown(image), shown(image[:, :8])]).keys() == {2}  # evaluations ask with words alone
    with pytest.raises(UserError, match="takes one that lets nobody else"):
        some.sample([shown(image)], 2, torch.Generator(), behaviors=[Behavior("other", {"ref": 1.0})])
    with pytest.raises(UserError, match=r"policy.teacher_forcing: got trained: conditional too"):
        policy("Janus", teacher_forcing=0.5, guidance=2.0, trained="conditional")
    reward, two = mm.rewards.reconstruction(), [{"role": "user", "content": [{"type": "image", "image": image}] * 2}]
    assert reward(rollout.outputs[:2], ["a cat", shown(image)]).isnan().tolist() == [True, False]
    with pytest.raises(UserError, match="reconstruction: got a prompt with 2 images or videos"):
        reward(rollout.outputs[:1], [two])
    assert torch.equal(some.generate([shown(image)], [3]), policy("Janus").generate(["a cat"], [3]))  # a user's images are drawn freely


def thinking(kind: str, **settings: Any) -> ThinkingImagesPolicy:
    return thinking_images(policy(kind, **settings), thoughts=5)


@pytest.mark.parametrize(("kind", "guidance"), [("Janus", 3.0), ("Emu3", 1.0)])
def test_rows_that_think_are_words_and_codes_in_one_table(kind: str, guidance: float) -> None:
    """T2I-R1: the words are scored as the language model has them, the codes behind prompt and words as image_tokens has them."""
    some = thinking(kind, guidance=guidance)
    rollout = some.sample(PROMPTS, 3, torch.Generator().manual_seed(1))
    held, codes = rollout.held, some.of.drawing.most
    assert rollout.mask.shape == (6, 5 + codes) and rollout.mask[:, 5:].all() and rollout.mask[:, 0].all()
    assert rollout.mask[:, :5].sum(1).tolist() == held.words.lengths.tolist()
    steps = some.steps(rollout, torch.arange(6))
    assert torch.allclose(steps.log_probs.detach(), torch.where(rollout.mask, rollout.log_probs, 0.0), atol=1e-5)
    words = some.writer.table(held.words.encoded, held.words.which, held.words.tokens, held.words.lengths, rollout.mask[:, :5])
    assert torch.allclose(some.writer.log_probs(words, 6), rollout.log_probs[:, :5], atol=1e-5)
    ends = set(some.writing.stops.tolist())
    said = [token for token in held.words.tokens[4, : held.words.lengths[4]].tolist() if token not in ends]
    ids = some.of.layout.behind([*held.words.encoded[1].ids, *said])
    assert list(held.images.encoded[4].ids) == ids
    alone = some.of._table([replace(held.images.encoded[4])], ["x"], torch.zeros(1).long(), held.images.tokens[4:5], torch.zeros(1).long())
    assert torch.allclose(some.of.log_probs(alone, 1)[0], rollout.log_probs[4, 5:], atol=1e-5)
    assert torch.equal(rollout.outputs, some.of.pixels.decode(held.images.tokens))
    both = type(rollout).join([rollout.take(torch.tensor([4, 0])), rollout.take(torch.tensor([2]))])
    assert torch.allclose(some.log_probs(both, 3), rollout.log_probs[[4, 0, 2]], atol=1e-5)
    columns = torch.tensor([1, 5 + 3])
    part = some.steps(rollout, torch.tensor([2]), columns).log_probs
    assert torch.allclose(part, steps.log_probs[[2]][:, columns], atol=1e-5)
    texts, images = some.drawn(["a cat"], [7])
    assert torch.allclose(some.generate(["a dog", "a cat"], [1, 7])[1:], images, atol=1e-5) and isinstance(texts[0], str)


def test_one_advantage_trains_words_and_codes(tmp_path: Path) -> None:
    some = thinking("Janus")
    bright = lambda outputs, prompts, **more: outputs.flatten(1).mean(1)  # noqa: E731
    run = mm.online(
        some, PROMPTS, {"bright": bright}, mm.methods.grpo(beta=0.01, kl="exact"), steps=1, batch={"prompts": 2, "group": 3},
        evaluation={"every": 1, "samples": 1, "columns": 1}, run={"name": "think", "folder": str(tmp_path), "trackers": []},
    )  # fmt: skip
    (row,) = [row for row in rows(run.path) if "loss" in row]
    assert row["grad_norm"] > 0 and row["length"] > 0
    rollout = some.sample(PROMPTS, 2, torch.Generator().manual_seed(0))
    for column in (0, 5 + 3):
        table = some.steps(rollout, torch.arange(4), torch.tensor([column]))
        gradient = torch.autograd.grad(table.log_probs.sum(), [some.of.of.model.get_input_embeddings().weight])[0]
        assert float(gradient.norm()) > 0
    with pytest.raises(UserError, match=r"policy.of.teacher_forcing: rows that think draw freely"):
        thinking("Janus", teacher_forcing=0.5)
    with pytest.raises(UserError, match=r"policy.of: got a TransformersPolicy, takes one that image_tokens makes"):
        thinking_images(some.writer)  # type: ignore[arg-type]
