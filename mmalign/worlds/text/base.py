"""The base: a tiny Llama that writes sentences like those of Python's documentation, a word a token."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.rooms import resource
from mmalign.types import UserError
from mmalign.worlds._fitting import fit
from mmalign.worlds._loading import quietly
from mmalign.worlds.text.data import frequencies, sentences

__all__ = ["text"]

Model = Literal["llama", "small"]
CONTEXT = 32


def text(*, model: Model = "llama", device: str = "cpu") -> tuple[Any, Any]:
    """(model, tokenizer): a causal language model of transformers and its tokenizer, trained on nine of ten sentences.

    model: ``llama``, 0.4 M parameters, from assets/text; or ``small``, a Llama of 0.1 M that learned less and writes worse, with the same
    tokenizer. Prompts are strings of words in lower case.

    Errors: UserError for another model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resource(f"assets/text/{model}")
    if not folder.is_dir():
        raise UserError(f"text: got model={model!r}, takes llama or small")
    network = quietly(lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    return network.to(device), AutoTokenizer.from_pretrained(folder)


def tokenizer() -> Any:
    """A word a token: every word of the sentences, the frequent ones first."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<unk>", "<eos>", *(word for word, _ in frequencies().most_common())]
    words_to_ids = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    words_to_ids.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words_to_ids, pad_token="<pad>", bos_token="<bos>", unk_token="<unk>", eos_token="<eos>", model_max_length=CONTEXT
    )


def untrained(*, width: int = 96, layers: int = 2, seed: int = 0) -> tuple[Any, Any]:
    """The same with random weights.

    width: of the hidden states, a multiple of 8. layers: how many. seed: of the weights.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=CONTEXT, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1,
        eos_token_id=words.eos_token_id, attention_dropout=0.1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config), words


def train_base(
    *, iterations: int = 500, batch: int = 64, learning_rate: float = 3e-3, seed: int = 0, width: int = 96, layers: int = 2
) -> tuple[Any, Any]:
    """Trains the base on its sentences, from the first word on; half a minute on two cores.

    ``small`` is of ``iterations=150, width=32, layers=1``. iterations: updates. width, layers: of the model.
    batch: sentences of each. learning_rate: the highest of a one-cycle schedule. seed: of weights, batches, dropout.
    """
    model, words = untrained(width=width, layers=layers, seed=seed)
    rows = words([f"{line} <eos>" for line in sentences("base")], padding=True, return_tensors="pt", add_special_tokens=False)
    ids, mask = rows["input_ids"], rows["attention_mask"]
    labels = ids.masked_fill(mask == 0, -100)
    rng = torch.Generator().manual_seed(seed)

    def loss() -> Tensor:
        pick = torch.randint(len(ids), (batch,), generator=rng)
        return model(input_ids=ids[pick], attention_mask=mask[pick], labels=labels[pick]).loss  # type: ignore[no-any-return]

    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of dropout
        fit(
            model, loss, name="text base", iterations=iterations, learning_rate=learning_rate, weight_decay=0.1, betas=(0.9, 0.98),
            warmup=0.05, max_grad_norm=1.0,
        )  # fmt: skip
    return model, words
