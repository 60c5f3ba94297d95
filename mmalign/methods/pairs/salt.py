"""Sequence alignment (un)likelihood training, on an answer and its edited form."""

from __future__ import annotations

from mmalign.arguments.ranges import NotNegative
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import token_level
from mmalign.types import Method


def salt(*, added: NotNegative = 1.0, removed: NotNegative = 1.0) -> Method:
    """What an edit keeps and adds becomes likelier, and what it takes out less likely, word by word; no reference.

    Of a pair the better row w is the edited text and the worse row l what was edited; a step is kept where both have it, added where only w
    has it, removed where only l has it (the fact ``changed``; of pairs with marks, removed where l is marked as wrong, and all of w is
    kept but what is marked)::

        loss = mean over pairs of  1 / |w| (-sum_{t of w kept} log pi_t - added sum_{t of w added} log pi_t
                                            - removed sum_{t of l removed} log(1 - pi_t))

    Args:
        added: weight of words that the edit puts in. removed: of the unlikelihood of those that it takes out; 0 with ``added: 0`` is SFT on
            kept words, 0 with ``added: 1`` SFT on the edited text.

    Paper: Improving Summarization with Human Edits, arXiv 2310.05857, sec. 4 (SALT); SYNFAC-EDIT, arXiv 2402.13919, makes such edits with
    a model (`records` whose better answer is the edited one).

    Deviations: the authors also train on the words of l that are kept, with a weight of their own; they are those of w, which are trained
    on once here. Sums are over the length of w, so that long texts count as short ones do. A word that is certain up to 2e-9 is pulled
    along the tangent there, as the logarithm has no end. Soft labels are ours.
    """
    return pairwise(token_level.edited(added=added, removed=removed), kinds=token_level.TOKENS)
