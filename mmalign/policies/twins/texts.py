"""Language models made tiny for a rehearsal: the real class with random weights, and a tokenizer of bytes with a chat template."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmalign.arguments.ranges import Seed
from mmalign.policies.language.models import gguf
from mmalign.policies.pipelines.calls.calling import quiet
from mmalign.types import UserError

FAMILIES = {
    **{
        start: f"{name}ForConditionalGeneration"
        for start, name in {
            "llava-onevision": "LlavaOnevision", "llava-v1.6": "LlavaNext", "llava-1.5": "Llava", "qwen2.5-vl": "Qwen2_5_VL",
            "qwen2-vl": "Qwen2VL", "qwen3-vl": "Qwen3VL", "smolvlm": "SmolVLM", "idefics3": "Idefics3", "internvl": "InternVL",
            "paligemma": "PaliGemma", "gemma-3": "Gemma3", "janus": "Janus", "emu3": "Emu3",
        }.items()
    },
    "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM", "smollm2": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM", "gemma-2": "Gemma2ForCausalLM", "phi-3": "Phi3ForCausalLM", "olmo-2": "Olmo2ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}  # fmt: skip
"""How a hub id's last part begins, in small letters -> its class, where neither its folder nor ``--kind`` tells it."""
CONTEXT, COMPLETION, RANK, ROWS = 4096, 16, 4, 4  # at most
CONVERSATION, TURNS, TURN = 256, 3, 16  # bytes of a whole conversation, which a template's words are most of; turns, and bytes of one
CAUSAL = ("ForCausalLM", "LMHeadModel")  # how transformers' classes of causal language models end
TEMPLATE = (
    "{% for turn in messages %}<|im_start|>{{ turn['role'] }}\n{{ turn['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def small(node: Mapping[str, Any], *, kind: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """The node of ``policies.transformers`` with a twin in place of its model, and what to tell; a model of a world is kept.

    kind: the model's class, where nothing else tells it. Errors: UserError by the config's key.
    """
    memory = {key: value for key, value in (node.get("memory") or {}).items() if key != "storage"}  # a twin's blocks are too small
    twin = {**node, "device": "cpu"}
    remarks = []
    for key in ("dtype", "engine"):  # what a CPU has none of
        if twin.pop(key, None) is not None:
            remarks.append(f"policy.{key} is left out")
    if isinstance(node["model"], Mapping) and not gguf.is_gguf(node["model"]):
        return twin, [f"the real model: {node['model'].get('use')}", *remarks]
    name, source = _kind(node["model"], kind)
    twin.pop("tokenizer", None)
    twin["memory"] = {**memory, "rows_at_once": min(memory.get("rows_at_once", 64), ROWS)}
    most = min(node.get("max_completion", 256), COMPLETION)
    home = "visions" if name.endswith("ForConditionalGeneration") else "texts"
    model: dict[str, Any] = {"use": f"policies.twins.{home}.twin", "kind": name}
    if isinstance(turns := node.get("turns"), Mapping):  # of several turns, that a conversation has room for, and that come to ends
        most, model = CONVERSATION, {**model, "ends": True}
        few = {"limit": min(turns.get("limit", 4), TURNS), "max_turn": min(turns.get("max_turn") or TURN, TURN)}
        twin["turns"] = {**turns, **few}
    twin.update(model=model, max_completion=most, truncate=node.get("truncate") or "right")
    if isinstance(node.get("lora"), Mapping):
        rank = node["lora"].get("rank", 32)
        twin["lora"] = {**node["lora"], "rank": min(rank, RANK)}
    return twin, [f"a twin of {name} (known from {source}) that reads bytes; completions are cut at {most} of them", *remarks]


@quiet()
def twin(kind: str, other: Seed = 0, ends: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer): a class of transformers with random weights of width 32, always the same of one number ``other``, and a tokenizer
    of bytes. ends: whether it comes to ends, after a few bytes, as trained models do; else once in some hundred."""
    import torch
    import transformers as library

    home = getattr(library, kind, None)
    if home is None or not kind.endswith(CAUSAL):
        raise UserError(f"policy.model: got {kind!r}, which transformers {library.__version__} does not have as a causal language model")
    words = bytes_tokenizer()
    sizes = {
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": CONTEXT,
    }  # fmt: skip
    ids = {"pad_token_id": words.pad_token_id, "bos_token_id": None, "eos_token_id": words.eos_token_id}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(other)
        model = home(home.config_class(**sizes, **ids))
    return (ending(model, words.eos_token_id) if ends else model), words


def ending(model: Any, end: int) -> Any:
    """A model of random weights, made to say an end about every sixth time: whatever it read, one number of its last states is large."""
    import torch

    read, said = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        read[:, 0] = 10 * float(read.std())
        said[end] = 0.0
        said[end, 0] = 1.0 if said is not read else float(read[0, 0])
        state = model.base_model(input_ids=torch.tensor([[0, 1, 2]])).last_hidden_state[0]
        others = [token for token in range(len(said)) if token != end]
        wanted = (state @ said[others].T).logsumexp(-1).mean() - math.log(5)
        said[end] *= wanted / (state @ said[end]).mean()
    return model


def bytes_tokenizer(extra: Mapping[str, str] | None = None) -> Any:
    """A token for each byte, with a chat template. extra: further special tokens by name (``image_token``: ``<image>``)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bos = {key: (extra or {})[key] for key in ("bos_token",) if key in (extra or {})}
    more = {key: token for key, token in (extra or {}).items() if key not in bos}
    words = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=["<|im_start|>"],
        **bos, **({"extra_special_tokens": more} if more else {}),
    )  # fmt: skip
    words.chat_template = TEMPLATE
    return words


def _kind(model: Any, kind: str | None) -> tuple[str, str]:
    if kind is not None:
        return kind, "--kind"
    if gguf.is_gguf(model):
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[gguf.config_of(gguf.place_of(model)).model_type]), "its GGUF file"
    config = Path(model) / "config.json"
    if config.is_file():
        return str((json.loads(config.read_text(encoding="utf-8")).get("architectures") or ["?"])[0]), "its config.json"
    last = model.rpartition("/")[2].lower()
    for start, name in FAMILIES.items():
        if last.startswith(start):
            return name, "its name"
    raise UserError(f"policy.model: the class of {model!r} is not known here; takes --kind CLASS, as in --kind LlamaForCausalLM")
