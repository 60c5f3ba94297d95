"""Diversity of texts: numbers by hand, and which of them tells which collapse."""

from __future__ import annotations

import math
import random
import sys

import numpy as np
import pytest

from mmalign.evaluation import expected_distinct, stem_similarity, text_diversity
from mmalign.types import UserError

WORDS = [f"w{number}" for number in range(200)]


def said(rng, length=12):
    return " ".join(rng.choice(WORDS) for _ in range(length))


def test_draws_from_the_vocabulary_have_as_many_different_words_as_is_expected():
    rng = random.Random(0)
    assert np.mean([expected_distinct([said(rng, 80)], vocabulary=200) for _ in range(50)]) == pytest.approx(1.0, abs=0.02)
    one, many = (expected_distinct([said(rng, 20) for _ in range(count)], vocabulary=200) for count in (1, 40))
    assert one == pytest.approx(many, abs=0.2)  # plain distinct falls from 1 to 1 / 4
    assert math.isnan(expected_distinct(["", "a"], n=2)) and expected_distinct(["a a"], vocabulary=1) == 1.0


def test_pairs_of_vectors_by_hand():
    vectors = {"x": [1.0, 0.0], "y": [0.0, 2.0], "z": [1.0, 1.0], "": [0.0, 0.0]}
    metric = text_diversity(n=1, embed=lambda texts: [vectors[text] for text in texts])
    got = metric(["x", "y", "z", "x", "", "x"], ["p"] * 3 + ["q"] * 3)
    cosines = (0.0 + 2 * math.sqrt(0.5)) / 3
    assert got["embedding_within"] == pytest.approx(((1 - cosines) + 0.0) / 2)  # p: three pairs; q: the two that say something
    assert got["embedding_across"] == pytest.approx((0.0 + (1 - math.sqrt(0.5))) / 2)  # (x, x), (y, nothing), (z, x)


def test_each_collapse_is_told_by_its_own_numbers():
    rng = random.Random(1)
    prompts = [f"q{number}" for number in range(12) for _ in range(4)]
    free = [said(rng) for _ in prompts]
    per_prompt = [text for text in [said(rng) for _ in range(12)] for _ in range(4)]
    one = [free[0]] * len(prompts)
    metric = text_diversity(vocabulary=200)
    a, b, c = (metric(texts, prompts) for texts in (free, per_prompt, one))
    assert a["embedding_within"] > 0.5 and b["embedding_within"] == pytest.approx(0.0, abs=1e-9) == c["embedding_within"]
    assert a["embedding_across"] == pytest.approx(b["embedding_across"], abs=0.1) and c["embedding_across"] == pytest.approx(0.0, abs=1e-9)
    assert b["ead_within"] < 0.6 * a["ead_within"] and c["ead_across"] < 0.3 * a["ead_across"]
    assert c["similarity_across"] > 0.99 > 0.3 > a["similarity_across"]


def test_one_text_each_and_nothing_said_are_missing():
    metric = text_diversity()
    alone = metric(["a b", "c d"], ["p", "q"])
    assert math.isnan(alone["ead_within"]) and math.isnan(alone["embedding_within"]) and not math.isnan(alone["ead_across"])
    assert all(math.isnan(value) for value in metric(["", " "], ["p", "q"]).values())
    assert all(math.isnan(value) for value in metric(["a", "b"], ["p", "p"]).values()) is False
    with pytest.raises(UserError, match="got outputs that are no texts"):
        metric([3], ["p"])


def test_meteor_takes_stems_and_order():
    assert stem_similarity("the cats sat down", "the cat sit down") > stem_similarity("the dogs ran off", "the cat sit down")
    assert stem_similarity("down sat the cats", "the cats sat down") < stem_similarity("the cats sat down", "the cats sat down")
    assert math.isnan(stem_similarity("", "a")) and stem_similarity("a b", "c d") == 0.0


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk.stem", None)
    with pytest.raises(UserError, match=r"needs nltk; pip install 'mmalign\[metrics\]'"):
        stem_similarity("a", "b")


def test_inference_tells_texts_apart_that_share_their_words():
    seen = []

    def nli(hypotheses, premises):  # a text contradicts one of other words, follows from itself, and says nothing to one that has "maybe"
        seen.extend(zip(premises, hypotheses, strict=True))
        kinds = [1 if "maybe" in one + other else 0 if one == other else 2 for one, other in zip(hypotheses, premises, strict=True)]
        return {
            part: [0.9 if kind == number else 0.05 for kind in kinds]
            for number, part in enumerate(("entailment", "neutral", "contradiction"))
        }

    texts, prompts = ["yes", "yes", "no", "maybe"], ["a", "a", "b", "b"]
    told = text_diversity(nli=nli)(texts, prompts)
    assert told["nli_within"] == -0.5  # yes and yes follow from each other, no and maybe say nothing of each other
    assert told["nli_across"] == 0.5 and {("yes", "no"), ("no", "yes")} <= set(
        seen
    )  # yes and no contradict each other, yes and maybe do not
    assert math.isnan(text_diversity(nli=nli)(["x"], ["a"])["nli_within"])
    with pytest.raises(UserError, match=r"text_diversity\.nli: answered score, takes entailment"):
        text_diversity(nli=lambda hypotheses, premises: {"score": [0.0] * len(hypotheses)})(texts, prompts)
