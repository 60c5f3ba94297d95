"""Whether a completion is about what was asked, by a retriever; and the mixture of rewards that keeps that from being hacked."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.columns import Column
from mmalign.arguments.ranges import Count, Finite
from mmalign.conversations import question
from mmalign.matching import reading, refuse_length
from mmalign.rewards._models.weights import device_of, pretrained
from mmalign.rewards._shared.completions import as_text, texts
from mmalign.rewards._shared.scorer import Scorer
from mmalign.rewards.texts.repetition import distinct_part
from mmalign.types import UserError


def relevance(
    *, weights: str = "facebook/contriever", closed: tuple[Finite, Finite] = (0.0, 2.0), words: Count = 100,
    column: Column = "reference", device: str | None = None, rows_at_once: Count = 32,
) -> Scorer:  # fmt: skip
    """Relevance of a completion y to its prompt x, mixed by kind of prompt; 0 or more for a retriever whose products are::

        open:    (M(x) . M(y)) * (words of y / 100) * (different trigrams of y / all trigrams of y)
        closed:  F(M(a) . M(y)) * (different trigrams of y / all trigrams of y)       a: the prompt's reference answer

    M is the mean over tokens of a retriever's last layer; F is the line that takes ``closed`` to 0..1, cut at its ends. The factors keep
    one another in check: the first alone is won by repeating the question, the second by length, the third by silence. A completion
    without three words has no trigram, and 0.

    Args:
        column: of the prompts, that holds a closed question's answer; a prompt with an empty one, none, or no such column is open.
        weights: hub id or folder of an encoder of transformers. closed: products of the reference that count 0 and 1.
        words: that make the length 1; more than that is more. device, rows_at_once: as of other rewards.

    Paper: Regularized Relevance Reward (R3), https://arxiv.org/abs/2402.03469. Deviations: which prompts are closed comes from the data
    (the paper asks a language model), and F's two ends are the user's. Checksum of the weights not known here.

    Errors: UserError for weights that cannot be read, and settings out of range.
    """
    from transformers import AutoModel, AutoTokenizer

    if closed[0] >= closed[1] or words < 1 or rows_at_once < 1:
        raise UserError(f"relevance: got closed={closed}, words={words}, rows_at_once={rows_at_once}, takes a range, 1 or more, 1 or more")
    model = pretrained("relevance.weights", AutoModel, weights, "an encoder", optional=("pooler.",))
    with reading("relevance.weights", weights, "a folder or a hub id of an encoder"):
        tokenizer = AutoTokenizer.from_pretrained(weights)
        refuse_length("relevance.weights", tokenizer)
    place = device_of(device)
    model = model.to(place).eval().requires_grad_(False)

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Tensor:
        completions = texts("relevance", outputs, prompts)
        references = ["" if answer is None else as_text(answer) for answer in columns.get(column, [None] * len(completions))]
        others = [answer or question(prompt) for answer, prompt in zip(references, prompts, strict=True)]
        both = embedded(model, tokenizer, [*completions, *others], place, rows_at_once)
        near = (both[: len(completions)] * both[len(completions) :]).sum(1)
        scores = []
        for text, answer, product in zip(completions, references, near.tolist(), strict=True):
            fresh = distinct_part(text.casefold(), 3) if len(text.split()) > 2 else 0.0
            level = min(1.0, max(0.0, (product - closed[0]) / (closed[1] - closed[0])))
            scores.append(fresh * (level if answer else product * len(text.split()) / words))
        return torch.tensor(scores, dtype=torch.float64)

    return Scorer("relevance", score)


@torch.no_grad()
def embedded(
    model: Any, tokenizer: Any, sentences: list[str], place: torch.device, rows_at_once: int, *, pool: Literal["mean"] = "mean"
) -> Tensor:
    """Means of the last layer over each text's tokens, ``[n, D]`` float64 on the CPU; each text is read once."""
    different = list(dict.fromkeys(sentences))
    means = []
    for start in range(0, len(different), rows_at_once):
        tokens = tokenizer(different[start : start + rows_at_once], padding=True, truncation=True, return_tensors="pt").to(place)
        states, mask = model(**tokens).last_hidden_state.double(), tokens["attention_mask"][..., None].double()
        means.append(((states * mask).sum(1) / mask.sum(1).clamp(min=1)).cpu())
    rows = {text: row for row, text in enumerate(different)}
    return torch.cat(means)[[rows[text] for text in sentences]]
