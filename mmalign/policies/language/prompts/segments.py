"""Where a text is cut into segments, besides at the ends of sentences, clauses and turns: by its parse, or by a function of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mmalign.arguments.ranges import Count
from mmalign.policies.language.prompts.reading import WORD, Span, refuse_spans
from mmalign.types import UserError

__all__ = ["constituents"]

BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}", "``": '"', "''": '"'}
"""What the Penn Treebank writes in place of brackets and quotation marks."""


def constituents(
    *, spacy: str | None = None, parser: Callable[[str], Any] | None = None, most: Count = 5
) -> Callable[[str], list[Span]]:  # fmt: skip
    """Segments by parse: the largest constituents of at most ``most`` words, and every word that is in none of those by itself.

    Args:
        spacy: a pipeline of spaCy that parses (``en_core_web_sm``): what depends on a word, and the word, are a constituent.
        parser: in place of it a function of your own, text -> its constituents as ``(start, end)`` in characters, in any order, or its tree
            in the brackets of the Penn Treebank, ``(S (NP the cat) (VP sat))``, as benepar, Stanza and CoreNLP write it (needs nltk).
        most: words of a segment; punctuation that stands at a word is part of it.

    Paper: MA-RLHF: Reinforcement Learning from Human Feedback with Macro Actions, arXiv 2410.02743 (its parsing-based termination: subtrees
    of a constituency parse with fewer leaves than a bound; recalled). Of a dependency parse, the subtrees are constituents where no
    edges cross, and others are passed over.

    Errors: UserError for neither or both, and where spaCy or its pipeline is not installed.

    Examples:
        >>> tree = "(S (NP (DT the) (JJ old) (NN cat)) (VP (VBD sat) (PP (IN on) (NP (DT the) (NN mat)))))"
        >>> cut = constituents(parser=lambda text: tree, most=3)
        >>> [text[start:end] for text in ["the old cat sat on the mat"] for start, end in cut(text)]
        ['the old cat', 'sat', 'on the mat']
    """
    if (spacy is None) == (parser is None):
        raise UserError(f"segments.parser: got {'neither' if spacy is None else 'both'} of spacy and parser, takes one of them")
    parse = _of_spacy(spacy) if spacy is not None else parser

    def cut(text: str) -> list[Span]:
        found = parse(text)  # type: ignore[misc]
        return largest(text, of_brackets(text, found) if isinstance(found, str) else refuse_spans("segments.parser", found, text), most)

    return cut


def largest(text: str, nested: Sequence[Span], most: int) -> list[Span]:
    """Of nested spans the largest of at most ``most`` words, and the words of the text outside of these, in their order.

    A span that ends inside of a word, as at the full stop behind it, goes to its end.
    """
    words, taken = [match.span() for match in WORD.finditer(text)], list[tuple[int, int]]()  # by words
    inside = [[place for place, (first, last) in enumerate(words) if first < end and start < last] for start, end in nested]
    whole = {(places[0], places[-1] + 1) for places in inside if places} | {(place, place + 1) for place in range(len(words))}
    for start, end in sorted(whole, key=lambda span: (span[0] - span[1], span[0])):  # the longest first
        if end - start <= most and not any(start < after and before < end for before, after in taken):
            taken.append((start, end))
    return [(words[start][0], words[end - 1][1]) for start, end in sorted(taken)]


def of_brackets(text: str, brackets: str) -> list[Span]:
    """The constituents of a tree in brackets as characters of its text. Errors: UserError for no tree, and for that of another text."""
    try:
        from nltk.tree import Tree
    except ModuleNotFoundError as error:
        raise UserError("segments.parser: trees in brackets need nltk; pip install 'mmalign[metrics]'") from error
    try:
        tree = Tree.fromstring(brackets)
    except ValueError as error:
        raise UserError(f"segments.parser: returned {brackets[:80]!r}, which is no tree in brackets") from error
    leaves, at = list[Span](), 0
    for leaf in tree.leaves():
        at += len(text[at:]) - len(text[at:].lstrip())
        word = next((one for one in (leaf, BRACKETS.get(leaf, leaf)) if text.startswith(one, at)), None)
        if word is None:
            raise UserError(f"segments.parser: its tree says {leaf!r}, which does not come next in {text[at:][:80]!r}")
        leaves.append((at, at + len(word)))
        at += len(word)
    return _spans(tree, iter(leaves))


def _spans(tree: Any, leaves: Any) -> list[Span]:
    """Of a tree, its own span first; of an empty one nothing. leaves: what is left of the spans of all leaves."""
    below = [_spans(child, leaves) if not isinstance(child, str) else [next(leaves)] for child in tree]
    inside = [span for spans in below for span in spans]
    return [(inside[0][0], max(end for _, end in inside)), *inside] if inside else []


def _of_spacy(name: str) -> Callable[[str], list[Span]]:
    try:
        import spacy
    except ModuleNotFoundError as error:
        raise UserError("segments.spacy: spaCy is not installed; pip install spacy, and its pipeline") from error
    try:
        pipeline = spacy.load(name, disable=["ner", "lemmatizer", "attribute_ruler"])
    except OSError as error:
        raise UserError(
            f"segments.spacy: got {name!r}, which is not installed; takes a pipeline: python -m spacy download {name}"
        ) from error
    if "parser" not in pipeline.pipe_names:
        raise UserError(f"segments.spacy: got {name!r}, which does not parse; takes a pipeline with a parser, such as en_core_web_sm")

    def parse(text: str) -> list[Span]:
        return [(word.left_edge.idx, word.right_edge.idx + len(word.right_edge)) for word in pipeline(text)]

    return parse
