"""Segments by parse: the rule, trees in brackets, spaCy's edges, and tokens of a policy."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.config import check, load
from mmalign.needs import SEGMENT
from mmalign.policies.language.prompts import segments
from mmalign.types import UserError
from tests.helpers import tiny_text

TEXT = "the old cat sat on the mat (today)."
TREE = "(S (NP (DT the) (JJ old) (NN cat)) (VP (VBD sat) (PP (IN on) (NP (DT the) (NN mat))) (-LRB- -LRB-) (NN today) (-RRB- -RRB-)) (. .))"


def brackets() -> Any:
    """A maker of a parser, as a config names it."""
    return lambda text: TREE


def cut(text: str, found: Any, most: int) -> list[str]:
    spans = segments.constituents(parser=lambda _: found, most=most)(text)
    assert all(one[1] <= other[0] for one, other in pairwise(spans))
    return [text[start:end] for start, end in spans]


def test_the_largest_constituents_of_at_most_so_many_words() -> None:
    assert cut(TEXT, TREE, 1) == ["the", "old", "cat", "sat", "on", "the", "mat", "(today)."]
    assert cut(TEXT, TREE, 2) == ["the", "old", "cat", "sat", "on", "the mat", "(today)."]
    assert cut(TEXT, TREE, 3) == ["the old cat", "sat", "on the mat", "(today)."]
    assert cut(TEXT, TREE, 5)[0] == "the old cat" and cut(TEXT, TREE, 5)[1].startswith("sat on the mat")
    assert cut(TEXT, TREE, 8) == [TEXT]


def test_of_spans_that_overlap_the_longer_one_is_taken() -> None:
    assert cut("a b c d", [(0, 5), (4, 7), (2, 3)], 3) == ["a b c", "d"]
    assert cut("a bc. d", [(0, 3)], 3) == ["a bc.", "d"]
    assert cut("a b c d", [], 2) == ["a", "b", "c", "d"] and cut("", [], 2) == []


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ("(S (NP the", "segments.parser: returned '(S (NP the', which is no tree in brackets"),
        ("(S (NP the dog))", "segments.parser: its tree says 'dog', which does not come next in 'cat'"),
        ([(3, 1)], "segments.parser: returned (3, 1) of a text of 7 characters"),
        (3, "segments.parser: returned 3, takes a list of (start, end) in characters"),
    ],
)
def test_what_is_no_parse_is_refused(found: Any, line: str) -> None:
    with pytest.raises(UserError) as error:
        cut("the cat", found, 2)
    assert str(error.value).startswith(line)


def test_what_depends_on_a_word_is_a_constituent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the form of spaCy's words: ``cat`` has ``the`` before it, ``sat`` has all."""
    words = [SimpleNamespace(idx=0, size=3), SimpleNamespace(idx=4, size=3), SimpleNamespace(idx=8, size=3)]

    class Word:
        def __init__(self, left: int, right: int):
            self.left_edge, self.right_edge = words[left], Edge(words[right])

    class Edge(SimpleNamespace):
        def __init__(self, word: Any):
            super().__init__(idx=word.idx, size=word.size)

        def __len__(self) -> int:
            return int(self.size)

    class Pipeline:
        pipe_names = ("parser",)

        def __call__(self, text: str) -> list[Word]:
            return [Word(0, 0), Word(0, 1), Word(0, 2)]

    def loaded(name: str, **_: Any) -> Pipeline:
        if name != "small":
            raise OSError("no such package")
        return Pipeline()

    spacy = ModuleType("spacy")
    vars(spacy)["load"] = loaded
    monkeypatch.setitem(sys.modules, "spacy", spacy)
    assert segments.constituents(spacy="small", most=2)("the cat sat") == [(0, 7), (8, 11)]
    with pytest.raises(UserError, match=r"segments.spacy: got 'large', which is not installed; takes a pipeline"):
        segments.constituents(spacy="large")
    Pipeline.pipe_names = ("tagger",)
    with pytest.raises(UserError, match=r"segments.spacy: got 'small', which does not parse"):
        segments.constituents(spacy="small")
    with pytest.raises(UserError, match=r"segments.parser: got both of spacy and parser"):
        segments.constituents(spacy="small", parser=str)


def test_tokens_of_a_policy_have_the_numbers_of_its_segments() -> None:
    halves = lambda text: [(0, len(text) // 2), (len(text) // 2, len(text))]  # noqa: E731
    policy = mm.policies.transformers(tiny_text.model(), tiny_text.tokenizer(), max_completion=9, segments=halves, device="cpu")
    rollout = policy.encode(["ab"], ["abcdef"], torch.tensor([0]), torch.Generator())
    steps = policy.steps(rollout, torch.tensor([0]), needs=frozenset({SEGMENT}))
    live, spans = int(rollout.mask.sum()), rollout.spans()[0]
    assert steps.facts["segment"][0, :live].tolist() == [1.0 if end <= 3 else 2.0 for _, end in spans[:live]] and live > 5


def test_a_config_names_a_word_or_a_node() -> None:
    def lines(value: Any) -> list[str]:
        node = load("text/ma_rlhf")
        return check({**node, "policy": {**node["policy"], "segments": value}, "method": {"use": "ma_rlhf", "macro": "segment"}})

    assert lines("clause") == [] == lines({"use": "constituents", "spacy": "en_core_web_sm", "most": 3})
    assert lines({"use": "constituents", "parser": {"use": "tests.policies.test_segments.brackets"}}) == []
    (line,) = lines("phrase")
    assert line.startswith("policy.segments: got 'phrase', takes sentence, clause, turn, or a node {use: NAME, ...} with a name of")
    (line,) = lines({"use": "constituents", "spacy": "en_core_web_sm", "most": 0})
    assert line.startswith("policy.segments.most: got 0")
