"""Tiny language models with random weights, and tokenizers made on the spot."""

from __future__ import annotations

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,!?\n:"
SPECIAL = ["<pad>", "<bos>", "<eos>", "<image>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer(template=None, **more):
    """A token for each letter."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {token: number for number, token in enumerate([*SPECIAL, *LETTERS])}
    inner = Tokenizer(models.WordLevel(words, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", **more}
    tokenizer_of_letters = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        **{key: value for key, value in special.items() if value is not None},
        additional_special_tokens=["<image>", "<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer_of_letters.chat_template = template
    return tokenizer_of_letters


SIZES = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 128}
GROUPED = {**SIZES, **ENDS, "num_key_value_heads": 1}


def config(name):
    """A configuration of a class of transformers."""
    import transformers as library

    sliding = {"sliding_window": 4, "head_dim": 8}
    made = {
        "qwen2": lambda: library.Qwen2Config(**GROUPED, tie_word_embeddings=True),
        "qwen2_sliding": lambda: library.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=4, max_window_layers=1),
        "qwen3": lambda: library.Qwen3Config(**GROUPED, head_dim=8),
        "llama": lambda: library.LlamaConfig(**GROUPED),
        "mistral": lambda: library.MistralConfig(**GROUPED, sliding_window=4),
        "gemma": lambda: library.GemmaConfig(**GROUPED, head_dim=8),
        "gemma2": lambda: library.Gemma2Config(**GROUPED, **sliding, final_logit_softcapping=2.0, query_pre_attn_scalar=8),
        "gemma3": lambda: library.Gemma3TextConfig(**GROUPED, **sliding, query_pre_attn_scalar=8),
        "gpt2": lambda: library.GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=128, bos_token_id=1, eos_token_id=2),
        "gpt2_wide": lambda: library.GPT2Config(
            vocab_size=64, n_embd=64, n_layer=2, n_head=2, n_positions=128, bos_token_id=1, eos_token_id=2
        ),
        "gpt_neox": lambda: library.GPTNeoXConfig(**SIZES, **ENDS),
        "cohere": lambda: library.CohereConfig(**GROUPED, logit_scale=0.25),
        "granite": lambda: library.GraniteConfig(**GROUPED, logits_scaling=3.0),
        "phi3": lambda: library.Phi3Config(**GROUPED),
        "opt": lambda: library.OPTConfig(
            vocab_size=64, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16, **ENDS
        ),
        "bloom": lambda: library.BloomConfig(vocab_size=64, hidden_size=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2),
        "mixtral": lambda: library.MixtralConfig(**GROUPED, num_local_experts=4),
        "mamba": lambda: library.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4, eos_token_id=2),
    }
    return made[name]()


def model(name="qwen2", seed=0, dtype=torch.float32):
    """A causal language model with random weights, wide enough that its distributions are not flat."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(config(name))
        for p in made.parameters():
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.3)
    return made.to(dtype).eval()
