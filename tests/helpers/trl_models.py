"""What the trainers of TRL are given: a word-level tokenizer of a few letters and tiny Llamas in float64."""

from __future__ import annotations

import tempfile
from typing import Any

import torch


def kept_quiet(**more: Any) -> dict[str, Any]:
    """Keywords of a trainer's config that write nothing to keep and change nothing of the numbers."""
    return {"output_dir": tempfile.mkdtemp(), "report_to": [], "use_cpu": True, "bf16": False, "gradient_checkpointing": False, **more}


def tokenizer_and_models(*seeds: int) -> tuple[Any, list[Any]]:
    """The tokenizer, and a model of each seed whose head is large enough for distributions that are far from uniform."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *"abcdef"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(words), max_position_embeddings=32, pad_token_id=0, eos_token_id=1, bos_token_id=None, **size)
    built = []
    for seed in seeds:
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).double()
        model.lm_head.weight.data.mul_(20)
        built.append(model)
    return tokenizer, built
