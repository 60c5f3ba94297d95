"""Special tokens: the ids that are trained are those that transformers makes for a user, in twelve families of templates."""

from __future__ import annotations

import warnings

import pytest
import torch

from mmalign.policies.language.prompts.agreement import compared
from mmalign.policies.language.prompts.chat import Chat
from mmalign.policies.twins import visions
from mmalign.types import UserError
from tests.helpers import chat_families, tiny_text
from tests.helpers.chat_families import FAMILIES
from tests.helpers.flat import transformers

ASK = [{"role": "user", "content": "how many"}]
SYSTEM = {"role": "system", "content": "be kind"}
HISTORY = [*ASK, {"role": "assistant", "content": "two"}, {"role": "user", "content": "and now"}]
THOUGHT = "<think>\none and two\n</think>\n\nthree"


def chat_of(name, **more):
    return Chat(chat_families.tokenizer(FAMILIES[name]), **more)


def by_transformers(chat, turns, **more):
    made = chat.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **more)
    return list(made["input_ids"])


def until_its_end(chat, ids):
    """Without what a template writes behind the last end."""
    last = max(place for place, token in enumerate(ids) if token in chat.stops)
    first = last
    while first and ids[first - 1] in (*chat.stops, chat.tokenizer.convert_tokens_to_ids("\n")):
        first -= 1
    return ids[: first + 1]


def words_of(chat, ids):
    return chat.tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("turns", [ASK, [SYSTEM, *ASK], HISTORY], ids=["alone", "system", "history"])
@pytest.mark.parametrize("name", FAMILIES)
def test_trained_ids_are_those_of_the_template(name, turns):
    chat = chat_of(name)
    if turns[0] == SYSTEM and not FAMILIES[name].system:
        with pytest.raises(UserError, match="System role not supported"):
            chat.prompt(turns)
        return
    assert list(chat.prompt(turns).ids) == by_transformers(chat, turns, add_generation_prompt=True)
    row = chat.row(turns, "yes it is")
    whole = by_transformers(chat, [*turns, {"role": "assistant", "content": "yes it is"}])
    assert [*row.prompt.ids, *row.completion] == until_its_end(chat, whole)
    assert all(row.trained[len(row.completion) - len("yes it is") - 1 :]) and row.completion[-1] in chat.stops
    assert compared(chat, turns, "yes it is").place is None and compared(chat, turns).place is None


@pytest.mark.parametrize("name", FAMILIES)
def test_reasoning_is_trained_whole_whatever_a_template_cuts(name):
    chat = chat_of(name)
    row = chat.row(ASK, THOUGHT)
    words = words_of(chat, [*row.prompt.ids, *row.completion])
    assert words.count("<think>") == words.count("</think>") == 1 and "one and two\n</think>\n\nthree" in words_of(chat, row.completion)
    assert row.completion[-1] in chat.stops and sum(token in chat.stops for token in row.completion) == 1
    whole = by_transformers(chat, [*ASK, {"role": "assistant", "content": THOUGHT}])
    if FAMILIES[name].keeps_reasoning:
        assert [*row.prompt.ids, *row.completion] == until_its_end(chat, whole)
        assert compared(chat, ASK, THOUGHT).place is None
    else:  # what the template cuts stands behind the prompt that is sampled from, and the difference is named
        assert list(row.prompt.ids) == by_transformers(chat, ASK, add_generation_prompt=True)
        assert "is '<' here" in str(compared(chat, ASK, THOUGHT))


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_that_carries_its_end_is_ended_once(name):
    chat = chat_of(name)
    plain = chat.row(ASK, "yes")
    for end in chat.ends:
        for tail in (end, f"{end}\n", f" {end}", f"{end}{end}"):
            row = chat.row(ASK, f"yes{tail}")
            assert row.prompt == plain.prompt and sum(token in chat.stops for token in row.completion) == 1
            assert [token for token in row.completion if token in chat.stops] == [plain.completion[-1]]
        assert chat.row(ASK, [{"role": "assistant", "content": f"yes{end}"}]) == plain
        with pytest.raises(UserError, match="holds its end"):
            chat.row(ASK, f"yes{end} and no")
        with pytest.raises(UserError, match="empty"):
            chat.row(ASK, end)
        assert list(chat.prompt([HISTORY[0], {"role": "assistant", "content": f"two{end}"}, HISTORY[2]]).ids) == list(
            chat.prompt(HISTORY).ids
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_that_arrives_rendered_is_not_rendered_again(name):
    chat = chat_of(name)
    text = chat.tokenizer.apply_chat_template(ASK, tokenize=False, add_generation_prompt=True)
    assert chat.prompt(text).ids == chat.prompt(ASK).ids
    bos = FAMILIES[name].bos
    if bos and text.startswith(bos):
        assert chat.prompt(text.removeprefix(bos)).ids == chat.prompt(ASK).ids
    row, other = chat.row(text, THOUGHT), chat.row(ASK, THOUGHT)
    assert (row.prompt.ids, row.completion) == (other.prompt.ids, other.completion)
    with pytest.raises(UserError, match="arrives rendered"):
        chat.prompt(text, system="be kind")
    plain = Chat(chat.tokenizer, template=False)
    assert plain.prompt(text).ids.count(chat.tokenizer.bos_token_id) <= max(1, text.count(bos or "?"))


@pytest.mark.parametrize("name", FAMILIES)
def test_without_a_template_the_tokenizer_opens_a_text_and_does_not_end_it(name):
    chat = chat_of(name, template=False)
    ids = list(chat.prompt("how many").ids)
    made = list(chat.tokenizer("how many")["input_ids"])
    assert ids == (made[:-1] if FAMILIES[name].behind else made)
    row = chat.row("how many", f"two{FAMILIES[name].eos}")
    assert words_of(chat, row.completion) == f"two{FAMILIES[name].eos}"
    words = str(compared(chat, "how many"))
    assert ("token 9 of 9 is no token here, and '</s>'" in words) == FAMILIES[name].behind
    if not FAMILIES[name].behind:
        assert words.startswith("the same")


def test_reasoning_by_a_key_that_the_template_drops_is_refused():
    with pytest.raises(UserError, match="drops the assistant's reasoning_content"):
        chat_of("ChatML").row(ASK, [{"role": "assistant", "content": "three", "reasoning_content": "one and two"}])
    kept = chat_families.CHATML.replace("{{ m['content'] }}", "{{ m['reasoning_content'] }}{{ m['content'] }}")
    chat = Chat(chat_families.tokenizer(FAMILIES["ChatML"]._replace(template=kept)))
    row = chat.row(ASK, [{"role": "assistant", "content": "three", "reasoning_content": "one and two."}])
    assert words_of(chat, row.completion) == "one and two.three<|im_end|>"


def test_an_answer_without_the_thought_that_the_template_opens_stands_where_the_template_puts_it():
    chat = chat_of("DeepSeek-R1")
    row = chat.row(ASK, "three")
    assert words_of(chat, row.prompt.ids).endswith("<|Assistant|>") and words_of(chat, row.completion) == "three<|end|>"
    open_thought = chat.row(ASK, "one and two\n</think>\n\nthree")
    assert words_of(chat, open_thought.prompt.ids).endswith("<think>\n")
    assert words_of(chat, open_thought.completion) == "one and two\n</think>\n\nthree<|end|>"


def test_an_end_that_the_tokenizer_does_not_mark_ends_a_turn():
    words = chat_families.tokenizer(FAMILIES["ChatML"]._replace(special=("<|im_start|>", "</s>"), eos="</s>"))
    words.add_tokens(["<|im_end|>"])
    chat = Chat(words)
    assert words_of(chat, chat.row(ASK, "yes").completion) == "yes<|im_end|>"


# Vision


LLAVA = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}ASSISTANT: {% elif m['role'] == 'user' %}USER: {% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def with_bos(processor, template=None):
    """A processor whose tokenizer puts BOS before a text, as Llama's does."""
    from tokenizers import processors

    words = processor.tokenizer
    words.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    ids = [("<s>", words.bos_token_id)]
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=ids)
    if template is not None:
        processor.chat_template = template
    return processor


def picture(seed=0):
    from PIL import Image

    pixels = torch.randint(0, 256, (32, 40, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def seen(*parts):
    return [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": part} if not isinstance(part, str) else {"type": "text", "text": part} for part in parts
            ],
        }
    ]


def in_parts(turns):
    words = lambda content: [{"type": "text", "text": content}] if isinstance(content, str) else content  # noqa: E731
    return [{**turn, "content": words(turn["content"])} for turn in turns]


def vision_policy(name):
    model, processor = visions.twin(f"{name}ForConditionalGeneration")
    if name == "Llava":
        with_bos(processor, LLAVA)
        model.resize_token_embeddings(len(processor.tokenizer))
    return transformers(model, processor, max_completion=40, template=False if name == "PaliGemma" else None, device="cpu")


@pytest.mark.parametrize("name", [name.removesuffix("ForConditionalGeneration") for name in visions.classes()])
def test_trained_ids_of_pictures_are_those_of_the_processor(name):
    policy = vision_policy(name)
    chat, processor = policy.chat, policy.chat.vision.processor
    asks = [seen(picture(), "what is it"), [{"role": "user", "content": "words alone"}], seen(picture(1), "this or", picture(2), "that")]
    asks = asks[1:2] if name == "Emu3" else asks  # which reads no pictures here
    if not chat.template:  # PaliGemma's
        image = picture()
        made = processor(text=["what is it"], images=[image], return_tensors="pt")["input_ids"][0].tolist()
        talk = seen(image, "what is it")
        assert list(chat.prompt(talk).ids) == made and compared(chat, talk).place is None
        return
    for talk in [*asks, [SYSTEM, *asks[0]]]:
        options = {"tokenize": True, "return_dict": True}
        prompt = processor.apply_chat_template(in_parts(talk), add_generation_prompt=True, **options)["input_ids"][0]
        assert list(chat.prompt(talk).ids) == list(prompt)
        for answer in ("a cat", THOUGHT):
            row = chat.row(talk, answer)
            whole = processor.apply_chat_template(in_parts([*talk, {"role": "assistant", "content": answer}]), **options)["input_ids"][0]
            ours = [*row.prompt.ids, *row.completion]
            assert ours == list(whole)[: len(ours)] and row.completion[-1] in chat.stops
            assert compared(chat, talk, answer).place is None and compared(chat, talk).place is None


def test_a_placeholder_that_the_tokenizer_cuts_into_words_is_refused():
    model, processor = visions.twin("LlavaForConditionalGeneration")
    model.config.image_token_index = model.config.image_token_id = 5
    with pytest.raises(UserError, match=r"reads '<image>' as '<image>', and the model's images are the ids \[5\]"):
        transformers(model, processor, device="cpu")


def test_a_token_of_media_that_the_tokenizer_does_not_mark_is_never_said():
    model, processor = visions.twin("LlavaForConditionalGeneration")
    processor.tokenizer.add_tokens(["<im_patch>", "<image_end>", "imagine"])
    model.resize_token_embeddings(len(processor.tokenizer))
    policy = transformers(model, processor, device="cpu")
    number = processor.tokenizer.convert_tokens_to_ids
    assert number("<image_end>") in policy.chat.never and number("imagine") not in policy.chat.never
    with pytest.raises(UserError, match="holds '<image_end>'"):
        policy.chat.row("hi", "a <image_end> cat")


def test_a_run_says_once_where_its_tokens_are_not_transformers_own():
    policy = transformers(tiny_text.model(), tiny_text.tokenizer(tiny_text.CHATML), max_completion=40, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy.encode([ASK], ["yes"], torch.zeros(1, dtype=torch.int64), torch.Generator())
    assert policy.agree.found.place is None
    words = chat_families.tokenizer(FAMILIES["DeepSeek-R1"])
    policy = transformers(tiny_text.model(), words, max_completion=60, device="cpu")
    policy.model.resize_token_embeddings(len(words))
    with pytest.warns(UserWarning, match="policy.tokenizer: token .* is '<' here, and"):
        policy.encode([ASK], [THOUGHT], torch.zeros(1, dtype=torch.int64), torch.Generator())


def test_marks_that_hold_two_ends_are_trained_up_to_the_first():
    marked = tiny_text.MARKED.replace(
        "m['content'] + '<|im_end|>' }}{% endgeneration", "m['content'] + '<|im_end|><eos>' }}{% endgeneration"
    )
    chat = Chat(tiny_text.tokenizer(marked))
    row = chat.row(
        ASK, [{"role": "assistant", "content": "one"}, {"role": "tool", "content": "2"}, {"role": "assistant", "content": "two"}]
    )
    trained = [token for token, counts in zip(row.completion, row.trained, strict=True) if counts]
    assert words_of(chat, trained) == "one<|im_end|>two<|im_end|>"


@pytest.mark.parametrize("marked", [True, False])
def test_a_template_that_only_cuts_reasoning_keeps_the_answer_whole(marked):
    template = (tiny_text.MARKED if marked else tiny_text.CHATML).replace("m['content'] +", "m['content'].split('</think>')[-1] +")
    chat = Chat(chat_families.tokenizer(FAMILIES["ChatML"]._replace(template=template)))
    row = chat.row(ASK, THOUGHT)
    assert list(row.prompt.ids) == by_transformers(chat, ASK, add_generation_prompt=True)
    assert words_of(chat, row.completion) == f"{THOUGHT}<|im_end|>" and all(row.trained)


def test_an_empty_prompt_is_the_tokenizers_beginning():
    policy = transformers(tiny_text.model(), tiny_text.tokenizer(), max_completion=9, device="cpu")
    with pytest.warns(UserWarning, match="policy.tokenizer: token 0 of 1 is '<bos>' here, and no token by"):
        rollout = policy.sample(["", "ab"], 2, torch.Generator().manual_seed(0))
    assert policy.refusals([""]) == {} and len(rollout) == 4
