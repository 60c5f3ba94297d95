"""Models of transformers made ready: by folder or hub id, with recomputation, ids that nobody says, what reads for them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from mmalign.matching import reading, refuse_length, refuse_nowhere, refuse_unfinished, refuse_unlike
from mmalign.policies.language.models import gguf
from mmalign.policies.settings import type_of
from mmalign.types import UserError

ABOUT = ("image", "video", "audio", "vision", "boi", "eoi")
FRAMES = re.compile(r"image|img|video|vision|visual|audio|^<row_\d+_col_\d+>$", re.IGNORECASE)
BRACKETS = re.compile(r"<.+>|\[.+\]")

SEEING = ("vision_config", "vq_config")
"""Parts of a configuration that only models have which see, by features or by codes."""


def load(
    name: str | Mapping[str, Any], reader: Any = None, *, dtype: str | None = None, template: bool | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """A model and what reads for it: a causal language model and its tokenizer, or, where its configuration has a part that sees, a
    vision-language model and its processor. name: a folder, a hub id, or what ``gguf.is_gguf`` knows. dtype: as it was saved, by default.

    template: as in ``reader_of``. What reads is there before the weights are. Errors: UserError for what is neither, a place that does not
    exist, damaged files, tensors that are missing, left over or of another shape, and for code of the model's own that the user did not
    allow.
    """
    if gguf.is_gguf(name):
        return _of_gguf(gguf.place_of(name), reader, dtype=dtype)
    if not isinstance(name, str):
        raise UserError(f"policy.model: got {dict(name)}, takes a folder, a hub id, or {{gguf: FILE}}")
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    floating = type_of(dtype)
    what = "a causal language model or a vision-language model"
    refuse_nowhere("policy.model", name, what)
    refuse_unfinished("policy.model", name)
    options = {"trust_remote_code": trust_remote_code}
    kind: Any = AutoModelForCausalLM
    with reading("policy.model", name, f"{what}, a folder or a hub id"):
        config = AutoConfig.from_pretrained(name, **options)
        if sees(config):
            kind = AutoModelForImageTextToText
    key, reader = ("policy.model", name) if reader is None else ("policy.tokenizer", reader)
    reader = reader_of(config, reader, key=key, template=template, **options)
    with reading("policy.model", name, f"{what}, a folder or a hub id"):
        settings = {"dtype": floating or "auto", "output_loading_info": True, "ignore_mismatched_sizes": True}
        with quiet_report():
            model, info = kind.from_pretrained(name, **settings, **options)
    refuse_unlike("policy.model", name, model, info)
    refuse_length("policy.model", parted(reader)[0])
    return model, reader


def handed_over(model: Any, reader: Any) -> tuple[Any, Any]:
    """A model, or its name, and what reads for it, which may stand beside it in a tuple. Errors: UserError for anything else."""
    pair = model if isinstance(model, tuple) else (model, reader)
    found = pair[0] if len(pair) == 2 else pair
    if not isinstance(found, (str, Mapping)) and not (isinstance(found, nn.Module) and getattr(found, "config", None) is not None):
        what = f"got a {type(found).__name__}"
        raise UserError(f"policy.model: {what}, takes a model of transformers and what reads for it, or the folder or hub id of both")
    return pair[0], pair[1]


def _of_gguf(place: gguf.Place, reader: Any, *, dtype: str | None) -> tuple[Any, Any]:
    """A causal language model in a GGUF file, and its tokenizer, which is in the file too; in float32, or the type of its matrices."""
    from transformers import AutoModelForCausalLM

    floating, options, name = type_of(dtype), gguf.options(place), str(place)
    config = gguf.config_of(place)
    with reading("policy.model", name, gguf.TAKES):
        settings = {"dtype": floating or "auto", "output_loading_info": True, "ignore_mismatched_sizes": True}
        with quiet_report():
            model, info = AutoModelForCausalLM.from_pretrained(place.home, config=config, **settings, **options)
        if reader is None or isinstance(reader, str):
            reader = _tokenizer(place.home, gguf_file=place.file) if reader is None else _tokenizer(reader)
    refuse_unlike("policy.model", name, model, info)
    refuse_length("policy.model", parted(reader)[0])
    return model, reader


def sees(config: Any) -> bool:
    """Whether a model of this configuration has a part that sees."""
    return any(getattr(config, part, None) is not None for part in SEEING)


def reader_of(config: Any, reader: Any, *, key: str, template: bool | None = None, **options: Any) -> Any:
    """The tokenizer of a model, or the processor of one that sees: as it is, or the folder or hub id of one.

    template: False where prompts go in bare. Errors: UserError for what is neither, for files that cannot be read, and for a processor
    without a chat template where nobody said that: a model that sees and talks would be asked, and trained, as nobody asks it.
    """
    from transformers import AutoProcessor

    what = "a processor" if sees(config) else "a tokenizer"
    if isinstance(reader, str):
        refuse_nowhere(key, reader, what)
        with reading(key, reader, f"{what}, a folder or a hub id"):
            reader = AutoProcessor.from_pretrained(reader, **options) if sees(config) else _tokenizer(reader, **options)
    if reader is None or isinstance(reader, (Mapping, Sequence, int, float)):
        raise UserError(f"{key}: got {reader!r}, takes {what}, or the folder or hub id of one")
    tokenizer, processor = parted(reader)
    if processor is not None and template is None and not has_template(tokenizer, processor):
        raise UserError(
            f"policy.template: {type(processor).__name__} has no chat template (chat_template.jinja beside it), so that prompts would go "
            f"in bare; takes false for a model that is asked so, or a processor with a template"
        )
    return reader


def has_template(tokenizer: Any, processor: Any = None) -> bool:
    """Whether what reads for a model has a chat template, its own or its tokenizer's."""
    return bool(getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None))


def foresees(policy: Mapping[str, Any]) -> bool | None:
    """Whether the model that a policy's node names sees, by its configuration alone; None where that cannot be told, or is not there."""
    from transformers import AutoConfig

    model = policy.get("model")
    if gguf.is_gguf(model):
        return False
    if not isinstance(model, str) or policy.get("trust_remote_code"):
        return None
    try:
        with reading("policy.model", model, "a model"):
            return sees(AutoConfig.from_pretrained(model))
    except UserError:  # which is said when the model is loaded
        return None


@contextmanager
def quiet_report() -> Iterator[None]:
    """Without the table of missing tensors that transformers prints: ``refuse_unlike`` says it in a line, or there are none; and without
    the layers that it would not cut, which several processes are told although nobody asked it to."""
    loggers = [logging.getLogger(f"transformers.{name}") for name in ("modeling_utils", "distributed.tensor_parallel")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _tokenizer(name: str, **options: Any) -> Any:
    """A tokenizer in the class that it was saved in: AutoTokenizer goes by the model beside it, and may make another one of it."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    generic = get_tokenizer_config(name, **options).get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
    return (PreTrainedTokenizerFast if generic else AutoTokenizer).from_pretrained(name, **options)


def stops_of(model: Any) -> list[int]:
    """The ids that a model's generation config ends with. Errors: UserError for what are no ids."""
    config = getattr(model, "generation_config", None)
    stops = None if config is None else config.eos_token_id
    if not all(isinstance(stop, int) for stop in (stops if isinstance(stops, (list, tuple)) else [stops]) if stops is not None):
        raise UserError(f"policy.model: its generation config says eos_token_id {stops!r}, takes ids of its vocabulary")
    if stops is None:
        return []
    return [int(stop) for stop in stops] if isinstance(stops, (list, tuple)) else [int(stops)]


def never_said(model: Any, tokenizer: Any, processor: Any = None) -> list[int]:
    """Ids of pad, bos and unk, of images, videos and sounds and of what frames them, as the tokenizer, the processor and the model's
    configuration name them; for a model that sees, also the tokens that were added to its tokenizer, marked as special or only in brackets,
    whose own name says so (``<row_1_col_2>``)."""
    ids = [getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "bos", "unk", "image", "video", "audio")]
    ids += [value for name, value in model.config.to_dict().items() if _about_media(name)]
    if processor is not None:
        ids += [value for name, value in vars(processor).items() if _about_media(name)]
        added = tokenizer.added_tokens_decoder.items()
        ids += [n for n, token in added if FRAMES.search(token.content) and (token.special or BRACKETS.fullmatch(token.content))]
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    return sorted({int(token) for token in ids if isinstance(token, int) and 0 <= token < vocabulary})


def _about_media(name: str) -> bool:
    """``image_token_id``, ``vision_start_token_id``, ``boi_token_index``, ``fake_image_token_id``, ..."""
    return name.endswith(("_token_id", "_token_index")) and any(word in name for word in ABOUT)


def parted(reader: Any) -> tuple[Any, Any]:
    """(tokenizer, processor): of a processor, itself and its tokenizer; of a tokenizer, itself and None."""
    tokenizer = getattr(reader, "tokenizer", None)  # a processor's; a tokenizer has none
    return (reader, None) if tokenizer is None else (tokenizer, reader)


def checkpoint_layers(model: Any) -> list[nn.Module]:
    """The layers that can compute their activations again in the backward pass, told to do so while they are in training mode."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def context_of(model: Any) -> int | None:
    """Tokens that a prompt and its completion may have together, None where the model does not say."""
    length: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length


def refuse_numbers(temperature: float, top_p: float, top_k: int) -> None:
    """UserError for settings out of their range."""
    if not temperature > 0:
        raise UserError(f"policy.temperature: got {temperature}, takes a number above 0 (evaluation.call.temperature may be 0)")
    if not 0 < top_p <= 1 or top_k < 0:
        raise UserError(f"policy.top_p, top_k: got {top_p} and {top_k}, take a number above 0 up to 1, and 0 (all) or more")
