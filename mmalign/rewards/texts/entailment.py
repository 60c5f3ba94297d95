"""Whether a completion follows from a text, contradicts it, or neither: a classifier of natural language inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.columns import Column
from mmalign.arguments.ranges import Count
from mmalign.conversations import question
from mmalign.matching import reading, refuse_length
from mmalign.rewards._models.weights import device_of, pretrained
from mmalign.rewards._shared.completions import as_text, texts
from mmalign.rewards._shared.scorer import Scorer, column_of
from mmalign.types import UserError

PARTS = ("entailment", "neutral", "contradiction")


def entailment(
    *, weights: str = "FacebookAI/roberta-large-mnli", column: Column | None = None, device: str | None = None, rows_at_once: Count = 32,
) -> Scorer:  # fmt: skip
    """Parts ``entailment``, ``neutral``, ``contradiction``: probabilities that a completion follows from a premise, or contradicts it.

    The premise is the prompt's question, or what a column says of it, such as a source that the completion has to keep to.

    weights: hub id or folder of a sequence classifier of transformers whose labels are these three words. column: of the prompts, that
    holds the premise. device, rows_at_once: as of other rewards.

    Source: factual consistency by entailment, as in SummaC, https://arxiv.org/abs/2111.09525; ``text_diversity`` compares texts with it.

    Errors: UserError for weights that cannot be read, and a classifier of other labels.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = pretrained("entailment.weights", AutoModelForSequenceClassification, weights, "a classifier of natural language inference")
    with reading("entailment.weights", weights, "a folder or a hub id of a classifier"):
        tokenizer = AutoTokenizer.from_pretrained(weights)
        refuse_length("entailment.weights", tokenizer)
    named = {str(name).lower(): number for number, name in model.config.id2label.items()}
    if set(PARTS) - named.keys():
        raise UserError(f"entailment.weights: {weights} tells {', '.join(named)} apart, takes a classifier of {', '.join(PARTS)}")
    place = device_of(device)
    model = model.to(place).eval().requires_grad_(False)
    order = [named[part] for part in PARTS]

    @torch.no_grad()
    def score(outputs: Any, prompts: list[Any], **columns: Any) -> dict[str, Tensor]:
        hypotheses = texts("entailment", outputs, prompts)
        known = [question(prompt) for prompt in prompts] if column is None else column_of("entailment", column, columns)
        premises, chances = [as_text(premise) for premise in known], list[Tensor]()
        for start in range(0, len(hypotheses), rows_at_once):
            some = slice(start, start + rows_at_once)
            tokens = tokenizer(premises[some], hypotheses[some], padding=True, truncation=True, return_tensors="pt").to(place)
            chances.append(model(**tokens).logits.double().softmax(-1).cpu()[:, order])
        table = torch.cat(chances) if chances else torch.zeros((0, 3), dtype=torch.float64)
        return {part: table[:, number] for number, part in enumerate(PARTS)}

    return Scorer("entailment", score, low=0.0, high=1.0, reads=frozenset(() if column is None else {column}))
