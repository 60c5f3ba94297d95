"""How alike the syntax trees of a completion's code and of the prompt's reference are, whatever things are called in it."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmalign.arguments.columns import Column
from mmalign.rewards._shared.completions import against_answers
from mmalign.rewards._shared.scorer import Scorer
from mmalign.rewards.texts.code_tests import code_of
from mmalign.types import UserError


def code_structure(*, language: str = "verilog", fences: Sequence[str] | None = None, column: Column = "reference") -> Scorer:
    """``2 |A and B| / (|A| + |B|)``, A and B all subtrees of the two syntax trees, with their multiplicity: 1 for the same structure.

    A subtree is the kinds of its nodes, with the punctuation and without names, numbers and comments: code with other names is the same.
    What does not parse is a node of its own, so that broken code is like the reference where it is whole. 0 without any code.
    Works in time that grows with the code's length.

    Args:
        language: of the code; tree-sitter's package of that name is asked: ``verilog`` needs ``tree-sitter-verilog`` (the group
            ``code``), ``python`` ``tree-sitter-python``, and so on.
        fences: names of the fence that holds the code, the last one of which is taken, or else all of the completion; by
            default the language's own, ``v``, and one without a name.
        column: of the prompts, that holds the reference code.

    Source: the structure term of VeriReason, https://arxiv.org/abs/2505.11849, beside ``testbench`` and ``format``; its formula is not
    known here. Shared subtrees are the syntax term of CodeBLEU, https://arxiv.org/abs/2009.10297, which counts them over the reference's
    alone: code that is longer than it loses nothing there.

    Errors: UserError for a language whose package is not installed, and for a reference without code.

    Examples:
        >>> near = mm.rewards.code_structure()
        >>> same = "module inv(input x, output y); assign y = ~x; endmodule"
        >>> near([same, "none"], ["an inverter"] * 2, reference=["module inv(input a, output b); assign b = ~a; endmodule"] * 2)[0]
        tensor(1., dtype=torch.float64)
    """
    parser = _parser(language)
    inside = (language, "v", "") if fences is None else tuple(fences)

    def score(text: str, reference: str) -> float:
        true, own = subtrees(parser, reference), subtrees(parser, code_of(text, inside))
        if not true:
            raise UserError(f"code_structure.column: got {reference[:80]!r}, takes code in {language}")
        return 2 * (true & own).total() / (true.total() + own.total())

    return against_answers("code_structure", score, column)


def subtrees(parser: Any, code: str) -> Counter[int]:
    """How often each subtree is in the code, by a number that equal ones share within this process; empty for code of nothing."""
    counted: Counter[int] = Counter()
    root = parser.parse(code.encode()).root_node
    open_nodes: list[tuple[Any, list[int]]] = [(root, [])]  # no recursion: a model writes what is nested
    places = [iter(root.children)]
    while open_nodes:
        child = next(places[-1], None)
        if child is not None:
            if not child.is_extra:  # comments
                open_nodes.append((child, []))
                places.append(iter(child.children))
            continue
        places.pop()
        node, below = open_nodes.pop()
        shape = hash((node.type, *below))
        if node.child_count:
            counted[shape] += 1
        if open_nodes:
            open_nodes[-1][1].append(shape)
    return counted


def _parser(language: str) -> Any:
    if not language.isidentifier():
        raise UserError(f"code_structure.language: got {language!r}, takes a name such as verilog or python")
    try:
        from tree_sitter import Language, Parser

        grammar = importlib.import_module(f"tree_sitter_{language}")
    except ImportError as error:
        needs = f"tree-sitter-{language.replace('_', '-')}"
        raise UserError(f"code_structure: {language} needs the packages tree-sitter and {needs} ({error}); pip install {needs}") from error
    return Parser(Language(grammar.language()))
