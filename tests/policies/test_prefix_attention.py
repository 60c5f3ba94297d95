"""Models whose prompts, or pictures, see all of themselves: in conversations too, what is drawn is what is scored, and the model's own."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from mmalign.policies.language.drawing.drawing import Drawn
from mmalign.policies.language.models import fitting
from mmalign.policies.language.models.prefixes import ONE_BLOCK
from mmalign.policies.settings import Turns
from mmalign.policies.twins import visions
from mmalign.types import UserError
from tests.helpers.flat import transformers
from tests.policies.test_shown import looking, rng, straight
from tests.policies.test_vision import SEEING, mixed, picture, twin, user

SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8,
}  # fmt: skip


@cache
def paligemma2() -> tuple[Any, Any]:
    """PaliGemma around Gemma 2, every second layer of which sees through a window."""
    from transformers import Gemma2Config, PaliGemmaConfig, PaliGemmaForConditionalGeneration

    one, processor = twin("PaliGemma")
    words = {name: getattr(one.config.text_config, name) for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
    text = Gemma2Config(**visions.TEXT, **words, sliding_window=8, layer_types=["sliding_attention", "full_attention"])
    sizes = {"projection_dim": visions.WIDTH, "hidden_size": visions.WIDTH, "image_token_index": one.config.image_token_id}
    return noisy(
        PaliGemmaForConditionalGeneration(PaliGemmaConfig(text_config=text, vision_config=one.config.vision_config, **sizes))
    ), processor


def noisy(model: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for p in model.parameters():
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.1)
    return model.eval()


def telling(talks: list[Any], seeds: list[int]) -> list[Any]:
    """Words of their own length to each but a third of the rows."""
    return ["and " + "so " * (seed % 5) if seed % 3 else None for seed in seeds]


def policy(name: str, environment: Any = telling, **settings: Any) -> Any:
    both = paligemma2() if name == "PaliGemma2" else twin(name)
    bare = {"template": False} if name.startswith("PaliGemma") else {}  # whose processor has no chat template
    turns = Turns(environment=environment, limit=3, max_turn=4)
    made = transformers(*both, **{"max_completion": 100, "device": "cpu", "turns": turns, **bare, **settings})
    made.drawing = made.drawing._replace(stops=torch.cat([made.drawing.stops, torch.arange(0, 60)]))  # so that turns come to ends
    return made


@pytest.mark.parametrize("name", [*SEEING, "PaliGemma2"])
def test_later_turns_are_drawn_as_they_are_scored(name: str) -> None:
    """Prompts of several lengths, one of them with two pictures, whose rows go on for one turn, two, or three."""
    made = policy(name)
    rollout = made.sample(mixed(), 3, rng())
    assert 1 < rollout.metrics["turns"] < 3 and rollout.metrics["engine_difference_max"] < 1e-5
    oracle, mask = straight(made, rollout), rollout.mask
    torch.testing.assert_close(rollout.log_probs[mask], oracle[mask], atol=1e-5, rtol=1e-6)
    again = made.steps(rollout, torch.arange(9).flip(0)).log_probs.detach().flip(0)
    torch.testing.assert_close(again[mask], oracle[mask], atol=1e-5, rtol=1e-6)
    alone = policy(name, shared_prefixes=False).steps(rollout, torch.arange(9)).log_probs.detach()
    torch.testing.assert_close(alone[mask], oracle[mask], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("name", SEEING)
def test_a_models_own_generate_draws_from_what_is_scored(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands in where a cache cannot be shared: behind prompts that are filled up on the left, with pictures of several sizes."""
    made, seen = policy(name, turns=None, max_completion=6, shared_prefixes=False), list[Tensor]()
    own = made.model.generate

    def generate(*arguments: Any, **call: Any) -> Tensor:
        answer = own(*arguments, **call, output_logits=True, return_dict_in_generate=True)
        seen.append(torch.stack(answer.logits, 1).double())
        return answer.sequences  # type: ignore[no-any-return]

    monkeypatch.setattr(made.model, "generate", generate)
    rollout = made.sample(mixed(), 2, rng())
    drawn = seen[0].index_fill(-1, torch.tensor(made.chat.never), -1e9).log_softmax(-1)
    drawn = drawn.gather(-1, rollout.held.tokens.unsqueeze(-1)).squeeze(-1)
    assert len(seen) == 1 and int(rollout.mask.sum()) > 6
    torch.testing.assert_close(rollout.log_probs[rollout.mask], drawn[rollout.mask], atol=1e-5, rtol=1e-6)


class Script:
    """Draws lines that it is told, a line a turn."""

    def __init__(self, *lines: list[int]) -> None:
        self.lines = list(lines)

    def by_behaviors(self, ids: Any, of: Tensor, numbers: Tensor, drawing: Any, who: Tensor, behaviors: Any, extras: Any) -> Drawn:
        line = self.lines.pop(0)
        tokens, nothing = torch.tensor([line]), torch.full((1, len(line)), torch.nan).double()
        return Drawn(tokens, torch.tensor([len(line)]), torch.tensor([False]), nothing, torch.zeros((1, len(line), 0), dtype=torch.uint8))


@pytest.mark.parametrize("name", ["PaliGemma", "PaliGemma2"])
def test_a_conversation_is_the_suffix_that_the_processor_makes_of_it(name: str) -> None:
    made = policy(name, lambda talks: ["which?"] if len(talks[0]) < 3 else [None])
    words, end = made.chat.tokenizer, made.chat.end
    made.drawer = Script([*made.chat.ids("a dog"), end], [*made.chat.ids("the left one"), end])
    rollout = made.sample([user(picture(40, 64), "what is it")], 1, rng())
    suffix = f"a dog{words.eos_token}which?the left one"  # behind which it writes an end of its own
    [prompt] = rollout.held.encoded
    features = made.chat.vision.processor(
        text=[prompt.text], images=[[made.chat.vision.picture(prompt.media[0])]], suffix=[suffix], return_tensors="pt"
    )
    assert features["input_ids"][0].tolist() == [*prompt.ids, *rollout.held.tokens[0].tolist()]
    labels = features.pop("labels")[0]
    said = made.model(**features).logits[0, :-1].double().index_fill(-1, torch.tensor(made.chat.never), -1e9).log_softmax(-1)
    counted = labels[1:] >= 0
    oracle = said[counted].gather(-1, labels[1:][counted].unsqueeze(-1)).squeeze(-1)
    mask = rollout.mask[0]
    torch.testing.assert_close(rollout.log_probs[0][mask], oracle.detach()[mask], atol=1e-5, rtol=1e-6)


def test_a_picture_that_what_was_said_would_see_is_refused() -> None:
    model, processor = visions.twin("PaliGemmaForConditionalGeneration")
    processor.chat_template = visions.PICTURE.replace("IMAGE", "<image>").replace("VIDEO", "")
    made = transformers(model, processor, turns=Turns(environment=looking, limit=2, max_turn=4), max_completion=260, device="cpu")
    made.drawing = made.drawing._replace(stops=torch.cat([made.drawing.stops, torch.arange(0, 60)]))
    refused = pytest.raises(UserError, match=r"PaliGemmaProcessor: what stands before a picture sees it .* takes replies in words$")
    with refused:
        made.sample(mixed()[:1], 3, rng())
    says, shows = {"role": "assistant", "content": "this"}, {"role": "user", "content": [picture(32, 32)]}
    with refused:
        made.encode(mixed()[:1], [[says, shows, says]], torch.tensor([0]), rng())
    given = made.encode(mixed()[:1], [[says, {"role": "user", "content": "and?"}, says]], torch.tensor([0]), rng())
    table, oracle = made.steps(given, torch.tensor([0])).log_probs, straight(made, given)
    torch.testing.assert_close(table[given.mask], oracle[given.mask], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "types"), [("Gemma3", "token_type_ids"), ("Gemma4", "mm_token_type_ids"), ("Molmo2", "mm_token_type_ids")]
)
def test_which_pictures_see_those_behind_them_is_what_the_class_itself_says(name: str, types: str) -> None:
    import transformers as library

    kind = getattr(library, f"{name}ForConditionalGeneration")
    config = kind.config_class()
    config.get_text_config().update(
        {"_attn_implementation": "eager"} | ({"use_bidirectional_attention": "vision"} if name == "Gemma4" else {})
    )
    marks = torch.tensor([[1, 1, 0, 1, 1]])  # two pictures, and a word between them
    empty: dict[str, Any] = {"inputs_embeds": torch.zeros(1, 5, 8), "past_key_values": None, "position_ids": torch.arange(5)[None]}
    masks = kind.create_masks_for_generate(
        config, attention_mask=torch.ones(1, 5).long(), is_first_iteration=True, **empty, **{types: marks}
    )
    masks = list(masks.values()) if isinstance(masks, dict) else [masks]
    assert any(bool(mask[0, 0, 0, 1] == 0) for mask in masks)  # a picture sees all of itself
    assert any(bool(mask[0, 0, 0, 4] == 0) for mask in masks) == (config.model_type in ONE_BLOCK)


@pytest.mark.parametrize("name", ["Gemma3", "Bert"])
@pytest.mark.parametrize("ahead", [True, False])
def test_a_model_whose_words_see_those_behind_them_is_refused(name: str, ahead: bool) -> None:
    import transformers as library

    if name == "Gemma3":
        model = library.Gemma3ForCausalLM(library.Gemma3TextConfig(**SIZES, use_bidirectional_attention=ahead))
    else:
        sizes = {key: value for key, value in SIZES.items() if key not in ("num_key_value_heads", "head_dim", "sliding_window")}
        model = library.BertLMHeadModel(library.BertConfig(**sizes, is_decoder=not ahead))
    trained = list(noisy(model).parameters())[:2]
    if not ahead:
        assert fitting.fit(model, shared=True, trained=trained).shared
        return
    with pytest.raises(UserError, match=rf"^policy.model: {type(model).__name__} sees words that follow .* takes a causal model$"):
        fitting.fit(model, shared=True, trained=trained)


def test_a_model_that_reads_prompts_both_ways_when_it_is_told_to_says_that_it_is_not() -> None:
    from transformers import HrmTextConfig, HrmTextForCausalLM

    sizes = {key: value for key, value in SIZES.items() if key != "sliding_window"}
    for told in (True, False):
        model = noisy(HrmTextForCausalLM(HrmTextConfig(**sizes, prefix_lm=told)))
        remarks = fitting.fit(model, shared=False, trained=list(model.parameters())[:2]).remarks
        assert any("(prefix_lm), and reads them word by word" in remark for remark in remarks) == told
