"""Vision-language models made tiny: the real class with random weights, and its own processor around a tokenizer of bytes.

A class's own configuration is shrunk by the words that configurations share (``hidden_size``, ``num_hidden_layers``, ``patch_size``); what
has to fit together (patches, tokens of an image, sections of rotary positions) and what a processor is called with stands in one row
for each family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mmalign.policies.pipelines.calls.calling import quiet
from mmalign.types import UserError

SIDE, PATCH, WIDTH = 32, 8, 32  # pixels of an image's side and of a patch's; numbers in a hidden state
TOKENS = (SIDE // PATCH) ** 2  # patches of an image
TEXT = {
    "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 4096,
}  # fmt: skip
VISION = {
    "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": SIDE,
    "patch_size": PATCH,
}  # fmt: skip
QWEN = {"depth": 2, "hidden_size": WIDTH, "num_heads": 4, "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2}
QWEN_READER = {
    "patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2, "size": {"shortest_edge": SIDE**2, "longest_edge": 4 * SIDE**2},
}  # fmt: skip
MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
PICTURE = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{% if turn['content'] is string %}{{ turn['content'] }}{% else %}"
    "{% for part in turn['content'] %}{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'video' %}VIDEO{% else %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Family(NamedTuple):
    """What a twin needs to know of a family. special: names of the processor's tokens -> their text. ids: attributes of the
    configuration -> text of the token whose id they hold. picture, clip: what a chat template writes for an image and a video.

    text, vision, codebook: of the configuration's parts, and ``whole`` of itself; empty: it has no such part. processor: made of
    the tokenizer.
    """

    special: Mapping[str, str]
    ids: Mapping[str, str]
    picture: str
    clip: str
    processor: Callable[[Any, Any], Any]
    text: Mapping[str, Any] = {}
    vision: Mapping[str, Any] = VISION
    whole: Mapping[str, Any] = {}
    codebook: Mapping[str, Any] = {}


def classes() -> tuple[str, ...]:
    """Classes that a twin can be made of."""
    return tuple(f"{name}ForConditionalGeneration" for name in FAMILIES)


@quiet()
def twin(kind: str, ends: bool = False) -> tuple[Any, Any]:
    """(model, processor): a vision-language class of transformers with random weights of width 32, always the same. ends: as of texts'."""
    import torch
    import transformers as library

    from mmalign.policies.twins.texts import ending

    family, home = FAMILIES.get(kind.removesuffix("ForConditionalGeneration")), getattr(library, kind, None)
    if family is None or home is None:
        raise UserError(f"policy.model: got {kind!r}, of which no tiny twin is known; takes {', '.join(classes())}")
    words = _tokenizer(family)
    numbers = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("pad", "bos", "eos")} | {"vocab_size": len(words)}
    config = home.config_class()
    text = {**TEXT, **numbers, **family.text}
    sizes = {"text_config": text, "vision_config": family.vision, "vq_config": family.codebook}
    parts = {part: type(getattr(config, part))(**settings) for part, settings in sizes.items() if settings}
    ids = {key: words.convert_tokens_to_ids(token) for key, token in family.ids.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        more = {"vocabulary_map": words.get_vocab()} if "vocabulary_map" in config.to_dict() else {}
        model = home(home.config_class(**parts, **ids, **family.whole, **more, tie_word_embeddings=False))
    processor = family.processor(library, words)
    if processor.chat_template is None and family.picture:
        processor.chat_template = PICTURE.replace("IMAGE", family.picture).replace("VIDEO", family.clip)
    return (ending(model, words.eos_token_id) if ends else model).eval(), processor


def _tokenizer(family: Family) -> Any:
    """Bytes, and the family's special tokens."""
    from mmalign.policies.twins.texts import bytes_tokenizer

    words = bytes_tokenizer(extra=dict(family.special))
    words.chat_template = None
    return words


def _llava(library: Any, words: Any) -> Any:
    size = {"height": SIDE, "width": SIDE}
    looks = library.CLIPImageProcessor(size=size, crop_size=size)
    return library.LlavaProcessor(looks, words, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1)


def _llava_next(library: Any, words: Any) -> Any:
    size = {"height": SIDE, "width": SIDE}
    looks = library.LlavaNextImageProcessor(size={"shortest_edge": SIDE}, crop_size=size, image_grid_pinpoints=PINPOINTS)
    return library.LlavaNextProcessor(
        looks, words, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )


def _llava_onevision(library: Any, words: Any) -> Any:
    size = {"height": SIDE, "width": SIDE}
    looks = library.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=PINPOINTS)
    clips = library.LlavaOnevisionVideoProcessor(size=size)
    return library.LlavaOnevisionProcessor(looks, words, clips, num_image_tokens=TOKENS, vision_feature_select_strategy="full")


def _qwen2_vl(library: Any, words: Any) -> Any:
    return library.Qwen2VLProcessor(library.Qwen2VLImageProcessor(**QWEN_READER), words, library.Qwen2VLVideoProcessor(**QWEN_READER))


def _qwen2_5_vl(library: Any, words: Any) -> Any:
    other = _qwen2_vl(library, words)
    return library.Qwen2_5_VLProcessor(other.image_processor, words, other.video_processor)


def _qwen3_vl(library: Any, words: Any) -> Any:
    clips = library.Qwen3VLVideoProcessor(**QWEN_READER, do_sample_frames=False)
    return library.Qwen3VLProcessor(library.Qwen2VLImageProcessor(**QWEN_READER), words, clips)


def _idefics3(library: Any, words: Any) -> Any:
    looks = library.Idefics3ImageProcessor(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
    return library.Idefics3Processor(looks, words, image_seq_len=TOKENS // 4)


def _internvl(library: Any, words: Any) -> Any:
    size = {"height": SIDE, "width": SIDE}
    looks = library.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=2)
    return library.InternVLProcessor(looks, words, library.InternVLVideoProcessor(size=size), image_seq_length=TOKENS // 4)


def _paligemma(library: Any, words: Any) -> Any:
    looks = library.SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    looks.image_seq_length = TOKENS
    return library.PaliGemmaProcessor(looks, words)


def _gemma3(library: Any, words: Any) -> Any:
    looks = library.Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE})
    return library.Gemma3Processor(looks, words, image_seq_length=4)


def _janus(library: Any, words: Any) -> Any:
    looks = library.JanusImageProcessor(size={"height": SIDE, "width": SIDE}, min_size=PATCH, image_mean=HALF, image_std=HALF)
    return library.JanusProcessor(looks, words, num_image_tokens=TOKENS)


def _emu3(library: Any, words: Any) -> Any:
    looks = library.Emu3ImageProcessor(min_pixels=SIDE**2, max_pixels=SIDE**2, spatial_factor=2, image_mean=HALF, image_std=HALF)
    return library.Emu3Processor(looks, words)


HALF = [0.5, 0.5, 0.5]
CODES = 16
CODEBOOK = {"base_channels": 32, "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1, "embed_dim": 4}
IMAGE = {"image_token": "<image>"}
QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
QWEN_IDS = {f"{name}_id": token for name, token in QWEN_TOKENS.items()}
QWEN_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
ROWS = {f"row_{row}_col_{column}": f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)}
IDEFICS = {
    **IMAGE, "fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>", **ROWS,
}  # fmt: skip
INTERN = {
    "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>",
}  # fmt: skip
GEMMA = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
FAMILIES: dict[str, Family] = {
    "Llava": Family(IMAGE, {"image_token_index": "<image>"}, "<image>\n", "", _llava, whole={"image_seq_length": TOKENS}),
    "LlavaNext": Family(
        IMAGE, {"image_token_index": "<image>"}, "<image>\n", "", _llava_next, whole={"image_grid_pinpoints": PINPOINTS}
    ),
    "LlavaOnevision": Family(
        {**IMAGE, "video_token": "<video>"}, {"image_token_index": "<image>", "video_token_index": "<video>"}, "<image>\n", "<video>\n",
        _llava_onevision, vision={**VISION, "vision_use_head": False}, whole={"image_grid_pinpoints": PINPOINTS},
    ),
    "Qwen2VL": Family(QWEN_TOKENS, QWEN_IDS, *QWEN_PICTURE, _qwen2_vl, text=MROPE, vision={**QWEN, "embed_dim": WIDTH}),
    "Qwen2_5_VL": Family(
        QWEN_TOKENS, QWEN_IDS, *QWEN_PICTURE, _qwen2_5_vl, text=MROPE,
        vision={**QWEN, "intermediate_size": 64, "out_hidden_size": WIDTH, "window_size": 2 * PATCH, "fullatt_block_indexes": [1]},
    ),
    "Qwen3VL": Family(
        QWEN_TOKENS, QWEN_IDS, *QWEN_PICTURE, _qwen3_vl, text=MROPE,
        vision={
            **QWEN, "intermediate_size": 64, "out_hidden_size": WIDTH, "num_position_embeddings": TOKENS,
            "deepstack_visual_indexes": [0, 1],
        },
    ),
    "SmolVLM": Family(IDEFICS, {"image_token_id": "<image>"}, "<image>", "", _idefics3, whole={"scale_factor": 2}),
    "Idefics3": Family(IDEFICS, {"image_token_id": "<image>"}, "<image>", "", _idefics3, whole={"scale_factor": 2}),
    "InternVL": Family(
        INTERN, {"image_token_id": "<IMG_CONTEXT>"}, "<IMG_CONTEXT>\n", "<video>\n", _internvl,
        vision={**VISION, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}, whole={"image_seq_length": TOKENS // 4},
    ),
    "PaliGemma": Family(
        {**IMAGE, "bos_token": "<bos>"}, {"image_token_index": "<image>"}, "", "", _paligemma, vision={**VISION, "vision_use_head": False},
        whole={"projection_dim": WIDTH, "hidden_size": WIDTH},
    ),
    "Gemma3": Family(
        GEMMA, {"boi_token_index": "<start_of_image>", "eoi_token_index": "<end_of_image>", "image_token_index": "<image_soft_token>"},
        "<start_of_image>", "", _gemma3,
        text={"sliding_window": 8, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]},
        vision={**VISION, "vision_use_head": False}, whole={"mm_tokens_per_image": 4},
    ),
    "Janus": Family(
        {**IMAGE, "bos_token": "<bos>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}, {"image_token_id": "<image>"},
        "<image>\n", "", _janus, vision={**VISION, "projection_dim": WIDTH, "num_image_tokens": TOKENS},
        codebook={
            **CODEBOOK, "num_embeddings": CODES, "latent_channels": 32, "num_patches": SIDE // PATCH, "projection_dim": WIDTH,
            "image_token_embed_dim": WIDTH,
        },
    ),
    "Emu3": Family(
        {
            **IMAGE, "bos_token": "<bos>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>", "eol_token": "<|extra_200|>",
            "image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>",
            **{f"code_{code}": f"<|visual token {code:06d}|>" for code in range(CODES)},
        },
        {}, "<image>", "", _emu3, vision={},
        codebook={**CODEBOOK, "codebook_size": CODES, "attn_resolutions": [3], "hidden_size": 32, "temporal_downsample_factor": 2},
    ),
}  # fmt: skip
