"""How near a completion is to its prompt's reference, in letters or in words: chrF and BLEU, by sacrebleu."""

from __future__ import annotations

import json
from typing import Any, Literal

from mmalign.arguments.columns import Column
from mmalign.rewards._shared.completions import against_answers
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError


def text_overlap(
    *, metric: Literal["chrf", "chrf++", "bleu"] = "chrf", case: bool = True, tokenize: str | None = None,
    column: Column = "answer",
) -> Scorer:  # fmt: skip
    """Reward in 0..1: sacrebleu's sentence score of a completion against its prompt's references, over 100.

    metric: ``chrf`` (letters), ``chrf++`` (letters, words and pairs of them), or ``bleu`` (words, with effective order, as single
    sentences need). case: whether it counts. tokenize: of BLEU, in sacrebleu's words (``13a`` by default; ``zh``, ``ja-mecab``, ...);
    texts are to be detokenised. column: as of ``exact_match``; an answer may be a list of references.

    Needs the package sacrebleu (the group ``metrics``). Source: chrF, https://aclanthology.org/W15-3049; BLEU,
    https://aclanthology.org/P02-1040; sacrebleu, https://aclanthology.org/W18-6319.

    Errors: UserError for settings that the metric has not, and without sacrebleu.
    """
    if metric not in ("chrf", "chrf++", "bleu"):
        raise UserError(f"text_overlap.metric: got {metric!r}, takes chrf, chrf++ or bleu")
    if tokenize is not None and metric != "bleu":
        raise UserError(f"text_overlap.tokenize: got {tokenize!r} with {metric}, which has no words; takes null")
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError as error:
        raise UserError(f"text_overlap: needs the package sacrebleu, which cannot be imported ({error}); pip install sacrebleu") from error
    try:
        scorer: Any = CHRF(lowercase=not case, word_order=2 if metric == "chrf++" else 0)
        if metric == "bleu":
            scorer = BLEU(effective_order=True, lowercase=not case, tokenize=tokenize)
    except (KeyError, ValueError, RuntimeError, ImportError) as error:
        raise UserError(f"text_overlap.tokenize: got {tokenize!r}: {' '.join(str(error).split())}") from error

    def score(text: str, answer: str) -> float:
        return float(scorer.sentence_score(text, _references(answer)).score) / 100

    return against_answers("text_overlap", score, column)


def _references(answer: str) -> list[str]:
    try:
        value = json.loads(answer)
    except ValueError:
        return [answer]  # a text, as most are
    return [str(reference) for reference in value] if isinstance(value, list) and value else [answer]
