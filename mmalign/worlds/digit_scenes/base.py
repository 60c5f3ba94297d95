"""The bases: a tiny LLaVA and a tiny Qwen2-VL that learned to describe scenes from captions with inventions in them.

Their captioners name a digit that they expect beside another one without looking (``scenes.EXPECTED``), and so do the models: a one
follows a zero, whether it is there or not. Of questions they learned the form alone: sampled they answer by a coin, greedily yes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmalign.rooms import resource
from mmalign.types import UserError
from mmalign.worlds._fitting import fit
from mmalign.worlds._loading import quietly
from mmalign.worlds.digit_scenes.scenes import CELL, CELLS, EMPTY, REQUEST, SIDE, WORDS, Scenes, caption, expecting, question, scenes

__all__ = ["digit_scenes"]

Model = Literal["llava", "qwen2_vl"]
CONTEXT = 64
ANSWER = 24  # tokens of an answer at most: the longest caption of five digits, and its end
WIDTH = 96
SPECIAL = ["<pad>", "<bos>", "<unk>", "<eos>", "<image>", "<video>", "<vision>", "</vision>"]
PICTURE = {"llava": "<image>", "qwen2_vl": "<vision> <image> </vision>"}
TEMPLATE = (
    "{% for turn in messages %}{{ turn['role'] }} : {% if turn['content'] is string %}{{ turn['content'] }}"
    "{% else %}{% for part in turn['content'] %}{% if part['type'] == 'image' %}PICTURE{% else %}{{ part['text'] }}{% endif %}"
    "{% if not loop.last %} {% endif %}{% endfor %}{% endif %}"
    "{% if turn['role'] == 'assistant' %} <eos>{% endif %}{% if not loop.last %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %} assistant : {% endif %}"
)


def digit_scenes(*, model: Model = "qwen2_vl", path: str | None = None, device: str = "cpu") -> tuple[Any, Any]:
    """(model, processor): a vision-language model of transformers and its processor, trained on scenes of known scans.

    model: ``llava``, LlavaForConditionalGeneration; ``qwen2_vl``, Qwen2VLForConditionalGeneration; from assets/digit_scenes.
    path: the folder of another one.

    Errors: UserError where there is none.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = resource(f"assets/digit_scenes/{model}") if path is None else Path(path)
    if not (folder / "config.json").is_file():
        raise UserError(f"digit_scenes: no model in {folder}; takes {', '.join(PICTURE)}, which scripts/make_assets.py makes")
    network = quietly(lambda: AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32))
    return network.to(device).eval(), AutoProcessor.from_pretrained(folder)


def tokenizer(model: Model, *, more: Sequence[str] = (), context: int = CONTEXT) -> Any:
    """A word a token: all that captions, questions and answers say, and ``more`` behind it. context: tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [
        *SPECIAL,
        "user",
        "assistant",
        "system",
        ":",
        *REQUEST.split(),
        "there",
        "a",
        "an",
        "and",
        ",",
        ".",
        "yes",
        "no",
        *WORDS,
        *more,
    ]
    words_to_ids = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    words_to_ids.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=words_to_ids, pad_token="<pad>", bos_token="<bos>", unk_token="<unk>", eos_token="<eos>", model_max_length=context,
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
    )  # fmt: skip
    wrapped.chat_template = TEMPLATE.replace("PICTURE", PICTURE[model])
    return wrapped


def untrained(model: Model, *, seed: int = 0) -> tuple[Any, Any]:
    """The same with random weights.

    model: as in ``digit_scenes``. seed: of the weights.

    Errors: UserError for another model.
    """
    if model not in PICTURE:
        raise UserError(f"digit_scenes: got model={model!r}, takes {', '.join(PICTURE)}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _llava() if model == "llava" else _qwen2_vl()


def _llava() -> tuple[Any, Any]:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    words = tokenizer("llava")
    vision = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2, num_attention_heads=4, image_size=SIDE, patch_size=CELL
    )
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=CONTEXT, tie_word_embeddings=False, **_ids(words),
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=words.image_token_id, vision_feature_layer=-1, image_seq_length=CELLS
    )
    size = {"height": SIDE, "width": SIDE}
    looks = CLIPImageProcessor(do_center_crop=False, size=size, crop_size=size)
    processor = LlavaProcessor(
        looks, words, patch_size=CELL, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=words.chat_template,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config), processor


def _qwen2_vl() -> tuple[Any, Any]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    words = tokenizer("qwen2_vl")
    vision = {
        "depth": 2, "embed_dim": 64, "hidden_size": WIDTH, "num_heads": 4, "mlp_ratio": 4, "patch_size": CELL // 2,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
    }  # fmt: skip
    text = {
        "vocab_size": len(words), "hidden_size": WIDTH, "intermediate_size": 3 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": CONTEXT, "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 4, 4]}, **_ids(words),
    }  # fmt: skip
    start, end = words.convert_tokens_to_ids(["<vision>", "</vision>"])
    config = Qwen2VLConfig(
        vision_config=vision, text_config=text, image_token_id=words.image_token_id, video_token_id=words.video_token_id,
        vision_start_token_id=start, vision_end_token_id=end, tie_word_embeddings=False,
    )  # fmt: skip
    sizes = {
        "patch_size": CELL // 2,
        "merge_size": 2,
        "temporal_patch_size": 2,
        "size": {"shortest_edge": SIDE**2, "longest_edge": SIDE**2},
    }
    processor = Qwen2VLProcessor(Qwen2VLImageProcessor(**sizes), words, Qwen2VLVideoProcessor(**sizes), chat_template=words.chat_template)
    return Qwen2VLForConditionalGeneration(config), processor


def _ids(words: Any) -> dict[str, int]:
    return {"pad_token_id": words.pad_token_id, "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}


# Training


def train_base(
    model: Model, *, iterations: int = 1000, batch: int = 64, learning_rate: float = 3e-3, questions: float = 0.25, seed: int = 0
) -> tuple[Any, Any]:
    """Trains a base from scratch on training scenes, a new batch each time: some minutes on one core.

    Two losses: of the words that captioners say, and answer; and of a linear layer on the picture's tokens that says what is in each
    cell, so that it learns to see first, as the towers of larger models did. That layer is dropped afterwards.

    Args:
        model: as in ``digit_scenes``.
        iterations: updates. batch: scenes of each. learning_rate: the highest of a one-cycle schedule.
        questions: part of the rows that are questions. seed: of weights, scenes and questions.

    Errors: UserError for another model.
    """
    network, processor = untrained(model, seed=seed)
    reader = nn.Linear(WIDTH, EMPTY + 1)
    rng = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        some = scenes("train", batch, rng, shaken=True)
        inputs = _rows(some, processor, questions, rng)
        seen = torch.stack(list(network.get_image_features(**_pictures(inputs)).pooler_output))
        read = nn.functional.cross_entropy(reader(seen).flatten(0, 1), some.cells.flatten())
        return network(**inputs).loss + read  # type: ignore[no-any-return]

    fit(
        nn.ModuleList([network, reader]), loss, name=f"{model} base", iterations=iterations, learning_rate=learning_rate, weight_decay=0.05,
        betas=(0.9, 0.98), max_grad_norm=1.0,
    )  # fmt: skip
    return network, processor


def _pictures(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: batch[key] for key in ("pixel_values", "image_grid_thw") if key in batch}


def _rows(some: Scenes, processor: Any, questions: float, rng: torch.Generator) -> dict[str, Tensor]:
    """A batch as the model takes it: what a captioner says of each scene, or answers; only that is learned."""
    prompts, answers = [], []
    for digits in some.digits():
        mentioned = expecting(digits, rng)
        if float(torch.rand((), generator=rng)) < questions:
            digit = _wondered(digits, rng)
            prompts.append(question(digit))
            answers.append("yes ." if digit in mentioned else "no .")
        else:
            prompts.append(REQUEST)
            answers.append(caption(mentioned))
    words, picture = processor.tokenizer, processor.image_processor(images=list(some.pictures), return_tensors="pt", do_convert_rgb=False)
    image = processor.image_token
    turns = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}] for prompt in prompts]
    before = [str(words.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)) for turn in turns]
    whole = [f"{text.replace(image, image * CELLS)}{answer} <eos>" for text, answer in zip(before, answers, strict=True)]
    ids, mask = (words(whole, padding=True, return_tensors="pt", padding_side="right")[key] for key in ("input_ids", "attention_mask"))
    lengths = torch.tensor([len(answer.split()) + 1 for answer in answers])
    place, end = torch.arange(ids.shape[1]), mask.sum(1, keepdim=True)
    learned = (place >= end - lengths[:, None]) & (place < end)
    types = {"mm_token_type_ids": (ids == words.image_token_id).long()} if "image_grid_thw" in picture else {}
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(~learned, -100), **types, **picture}


def _wondered(digits: tuple[int, ...], rng: torch.Generator) -> int:
    """A digit to ask for: one of the scene half of the time, else any absent one."""
    there = float(torch.rand((), generator=rng)) < 0.5
    some = [digit for digit in range(10) if (digit in digits) == there]
    return some[int(torch.randint(len(some), (), generator=rng))]
