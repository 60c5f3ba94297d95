"""The base: a tiny Llama that has seen others work out sums with a calculator, and does it as badly as they did."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.rooms import resource
from mmalign.worlds._fitting import fit
from mmalign.worlds._loading import quietly
from mmalign.worlds.calculator.data import CALL, END_CALL, LARGEST, conversation

__all__ = ["calculator"]

CONTEXT = 64
END, ROLES = "<|end|>", ("user", "assistant", "tool")
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|> ' + message['content'] + ' <|end|> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)


def calculator(*, device: str = "cpu") -> tuple[Any, Any]:
    """(model, tokenizer): a causal language model of transformers with a chat template that has tools' turns, from assets/calculator.

    It knows how a calculator is asked (``<calculate> 13 * 14 </calculate>``), and gets about one sum in five right with it; it cannot
    multiply. A number is a token.

    device: where it is put.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resource("assets/calculator")
    network = quietly(lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    return network.to(device), AutoTokenizer.from_pretrained(folder)


def tokenizer() -> Any:
    """A word a token: numbers up to the largest sum, signs, the tags of a call, and where turns begin and end."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    roles = [f"<|{role}|>" for role in ROLES]
    words = ["<pad>", "<unk>", END, *roles, CALL, END_CALL, *"+-*/()", "error", *map(str, range(LARGEST + 1))]
    words_to_ids = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    words_to_ids.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words_to_ids, pad_token="<pad>", unk_token="<unk>", eos_token=END, additional_special_tokens=roles,
        chat_template=TEMPLATE, model_max_length=CONTEXT,
    )  # fmt: skip


def untrained(*, width: int = 64, layers: int = 2, seed: int = 0) -> tuple[Any, Any]:
    """The same with random weights.

    width: of the hidden states, a multiple of 8. layers: how many. seed: of the weights.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=CONTEXT, tie_word_embeddings=True, pad_token_id=0, bos_token_id=None,
        eos_token_id=words.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config), words


def train_base(
    *, iterations: int = 1200, batch: int = 128, learning_rate: float = 5e-3, seed: int = 0, width: int = 64, layers: int = 2
) -> tuple[Any, Any]:
    """Trains the base on conversations about sums, on what the assistant says in them; minutes on two cores.

    iterations: updates. batch: conversations of each. learning_rate: the highest of a one-cycle schedule. seed: of weights and
    conversations. width, layers: of the model.
    """
    model, words = untrained(width=width, layers=layers, seed=seed)
    ids, own = rows(words, 30_000, seed)
    rng = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        pick = torch.randint(len(ids), (batch,), generator=rng)
        states = model.model(input_ids=ids[pick]).last_hidden_state[:, :-1]
        said = own[pick, 1:]
        return nn.functional.cross_entropy(model.lm_head(states[said]), ids[pick, 1:][said])

    fit(
        model, loss, name="calculator base", iterations=iterations, learning_rate=learning_rate, weight_decay=0.05, betas=(0.9, 0.98),
        warmup=0.1, max_grad_norm=1.0,
    )  # fmt: skip
    return model, words


def rows(words: Any, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens of conversations ``[count, T]``, filled up on the right, and which of them the assistant says, the ends of its turns too."""
    rng = random.Random(seed)
    pieces = [[(turn["role"], f"<|{turn['role']}|> {turn['content']} {END}") for turn in conversation(rng)] for _ in range(count)]
    ids, own = torch.zeros((count, CONTEXT), dtype=torch.int64), torch.zeros((count, CONTEXT), dtype=torch.bool)
    for row, some in enumerate(pieces):
        start = 0
        for role, text in some:
            piece = words.convert_tokens_to_ids(text.split())
            ids[row, start : start + len(piece)] = torch.tensor(piece)
            own[row, start + 1 : start + len(piece)] = role == "assistant"
            start += len(piece)
    width = int((ids != 0).sum(1).max())
    return ids[:, :width], own[:, :width]
