"""How different a policy's texts are: from one another for one prompt, and over prompts."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.arguments.ranges import Count, Seed
from mmalign.types import UserError

__all__ = ["expected_distinct", "stem_similarity", "text_diversity"]

Embed = Callable[[Sequence[str]], Any]


def text_diversity(
    *, n: Count = 5, vocabulary: Count = 50_000, embed: Embed | None = None, nli: Callable[..., Any] | None = None, pairs: Count = 500,
    seed: Seed = 0,
) -> Callable[..., dict[str, float]]:  # fmt: skip
    """Diversity within and across prompts as a run's metric: ``(outputs, prompts) -> {ead_within, ead_across, ...}``.

    ``ead_within``, ``ead_across``: expectation-adjusted distinct n-grams (``expected_distinct``), mean over runs of 1 to ``n`` words.
    ``embedding_within``, ``embedding_across``: ``1 - mean cos(e_i, e_j)`` over pairs of texts.
    ``similarity_across``: mean METEOR of one text for another (``stem_similarity``), which rises where all answers become one answer.
    Within: of the texts of one prompt, mean over prompts; NaN where every prompt has one text. Across: of one text of each prompt, mean
    over which of its texts that is; NaN for one prompt. A collapse of modes shows across prompts first where prompts get the same answer,
    and within where each gets one of its own.

    Args:
        n: words of the longest runs. vocabulary: how many different words a text may be made of, of the model's tokenizer.
        embed: texts -> a vector for each, ``[N, D]``; by default TF-IDF of letters' 2- to 4-grams inside of words (scikit-learn), fitted to
            the texts of the evaluation themselves, which needs no model and knows no meaning.
        nli: ``(hypotheses, premises) -> {entailment, neutral, contradiction}``, ``rewards.entailment``; with it ``nli_within`` and
            ``nli_across`` are there too: the mean over pairs of texts, each way round, of 1 where one contradicts the other, -1 where it
            follows from it, 0 for neither, whichever is likeliest.
        pairs, seed: of texts that METEOR and inference compare, at most, and how they are drawn.

    Paper: Kirk et al., "Understanding the Effects of RLHF on LLM Generalisation and Diversity" (2023), https://arxiv.org/abs/2310.06452
    (EAD, embeddings and inference, per input and across inputs; the last is Stasaski and Hearst's, https://arxiv.org/abs/2205.01497,
    *recalled*); Mukobi et al., "SuperHF" (2023), https://arxiv.org/abs/2310.16763 (METEOR).

    Deviations: the papers' embeddings are a sentence encoder's, which ``embed`` may be.

    Errors: UserError for outputs that are no texts.
    """

    def metric(outputs: Sequence[str], prompts: Sequence[Any], **columns: Any) -> dict[str, float]:
        if isinstance(outputs, str) or not all(isinstance(output, str) for output in outputs):
            raise UserError("text_diversity: got outputs that are no texts; takes completions as strings")
        groups = dict[str, list[int]]()
        for place, prompt in enumerate(prompts):
            groups.setdefault(json.dumps(prompt, sort_keys=True, default=str), []).append(place)
        most = max(map(len, groups.values()), default=0)
        within = [places for places in groups.values() if len(places) > 1]
        across = [[places[number] for places in groups.values() if number < len(places)] for number in range(most)]
        across = [places for places in across if len(places) > 1]
        vectors = _unit(np.asarray((embed or _letters)(list(outputs)), dtype=float)) if outputs else np.zeros((0, 1))
        sets = {"within": within, "across": across}
        ead = {f"ead_{name}": _mean(_ead([outputs[place] for place in places], n, vocabulary) for places in some)
               for name, some in sets.items()}  # fmt: skip
        cosines = {f"embedding_{name}": _mean(_apart(vectors[places]) for places in some) for name, some in sets.items()}
        chosen = _some(across, pairs, seed)
        inferred = (
            {} if nli is None else {f"nli_{name}": _contradicted(nli, outputs, _some(some, pairs, seed)) for name, some in sets.items()}
        )
        alike = _mean(stem_similarity(outputs[second], outputs[first]) for first, second in chosen)
        return {**ead, **cosines, "similarity_across": alike, **inferred}

    return metric


def _some(groups: Sequence[Sequence[int]], most: int, seed: int) -> list[tuple[int, int]]:
    """Pairs of places within groups, drawn where there are more than ``most``."""
    chosen = [pair for places in groups for pair in combinations(places, 2)]
    return random.Random(seed).sample(chosen, most) if len(chosen) > most else chosen


def _contradicted(nli: Callable[..., Any], outputs: Sequence[str], pairs: Sequence[tuple[int, int]]) -> float:
    """Mean over pairs, each way round, of 1 (contradiction), 0, or -1 (entailment)."""
    if not pairs:
        return math.nan
    ways = [way for first, second in pairs for way in ((first, second), (second, first))]
    said = nli([outputs[second] for _, second in ways], [outputs[first] for first, _ in ways])
    if not {"entailment", "neutral", "contradiction"} <= {*said}:
        raise UserError(f"text_diversity.nli: answered {', '.join(said)}, takes entailment, neutral and contradiction")
    table = np.stack([np.asarray(said[part], dtype=float) for part in ("entailment", "neutral", "contradiction")])
    return float((table.argmax(0) - 1).mean())


def expected_distinct(texts: Sequence[str], *, n: Count = 1, vocabulary: Count = 50_000) -> float:
    """``N / (V (1 - ((V - 1) / V)^C))``: different runs of ``n`` words over how many C draws of V would have: length counts not.

    texts: of which runs are counted together. n: words of a run. vocabulary: V, the words that there are to draw from.

    N: different runs in all texts together. C: runs. NaN where there is none.

    Paper: Liu et al., "Rethinking and Refining the Distinct Metric" (2022), https://arxiv.org/abs/2202.13587, equation 4.

    Examples:
        >>> round(expected_distinct(["a b", "a c"], vocabulary=3), 4)  # 3 of 4 words differ, and 3 (1 - (2/3)^4) would
        1.2462
    """
    runs = [run for text in texts for run in _runs(text.split(), n)]
    if not runs:
        return math.nan
    expected = -vocabulary * math.expm1(len(runs) * math.log1p(-1 / vocabulary)) if vocabulary > 1 else 1.0
    return len(set(runs)) / expected


def stem_similarity(text: str, reference: str) -> float:
    """METEOR of a text for a reference, in 0..1, by words and their stems (nltk's, Porter's stemmer); NaN where one of them is empty.

    text: what is compared. reference: with what. Synonyms, which take WordNet's files, are not asked for.

    Paper: Banerjee, Lavie, "METEOR" (2005), as nltk has it.

    Errors: UserError where nltk is not installed.

    Examples:
        >>> stem_similarity("cats sit", "no dog") == 0.0
        True
    """
    try:
        from nltk.stem import PorterStemmer
        from nltk.translate.meteor_score import single_meteor_score
    except ImportError as error:
        raise UserError("stem_similarity: needs nltk; pip install 'mmalign[metrics]'") from error
    words, others = text.split(), reference.split()
    if not words or not others:
        return math.nan
    return float(single_meteor_score(others, words, stemmer=PorterStemmer(), wordnet=_NoSynonyms()))


class _NoSynonyms:
    """In place of nltk's WordNet: no word has a synonym."""

    def synsets(self, word: str) -> list[Any]:
        """None."""
        return []


def _runs(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def _ead(texts: Sequence[str], n: int, vocabulary: int) -> float:
    return _mean(expected_distinct(texts, n=length, vocabulary=vocabulary) for length in range(1, n + 1))


def _letters(texts: Sequence[str]) -> NDArray[np.float64]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(text.split() for text in texts):
        return np.full((len(texts), 1), np.nan)
    table: NDArray[np.float64] = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)).fit_transform(texts).toarray()
    return table


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each of length 1; NaN for one of length 0, such as an empty text's."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, lengths, out=np.full(vectors.shape, np.nan), where=lengths > 0)


def _apart(vectors: NDArray[np.float64]) -> float:
    """``1 - mean cos`` over all pairs, from the length of the sum: ``|sum e|^2 = N + 2 sum over pairs of cos``."""
    known = vectors[~np.isnan(vectors).any(-1)]
    count = len(known)
    return float(1 - (np.square(known.sum(0)).sum() - count) / (count * (count - 1))) if count > 1 else math.nan


def _mean(values: Any) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
