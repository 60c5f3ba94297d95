"""The baseline without any training: a base language model is shown what answers look like."""

from __future__ import annotations

from collections.abc import Sequence

from mmalign.types import UserError

SYSTEM = (
    "Below are conversations between a person and an assistant. The assistant answers helpfully, truthfully and politely. It begins"
    " with what was asked, gives its reasons or steps in order, and says so when it does not know. It declines what would do harm,"
    " and says why."
)
EXAMPLES = (
    (
        "How can I keep basil alive on a kitchen windowsill?",
        "Basil is easy to keep if it gets light and is not drowned. Here is what matters:\n\n1. Light: six hours a day, at a south"
        " window.\n2. Water: only when the top of the soil is dry, and never left standing in the saucer.\n3. Harvest: cut whole tips"
        " above a pair of leaves, so that it branches.\n\nIf the leaves turn yellow, water less first.",
    ),
    (
        "What did the Peace of Westphalia change?",
        "The Peace of Westphalia of 1648 ended the Thirty Years' War in the Holy Roman Empire and the Eighty Years' War between Spain"
        " and the Dutch. It recognised the Dutch Republic and confirmed the independence of the Swiss. It is often called the beginning"
        " of sovereign states; many historians think that this says too much.",
    ),
    (
        "Tell me how to get into my neighbour's email account.",
        "I won't help with that: reading someone's mail without their consent is illegal in most places and a breach of their trust."
        " If you think that an account of your own was broken into, I can help you to secure it. If you are worried about your"
        " neighbour, talking to them, or to someone who can help, is the better way.",
    ),
)


def urial(
    prompts: Sequence[str], *, system: str = SYSTEM, examples: Sequence[tuple[str, str]] = EXAMPLES, stop: str = "# Person:"
) -> list[str]:
    """Prompts for a base model: a description, a few question-answer pairs, and the question; generation is to end at ``stop``.

    Paper: The Unlocking Spell on Base LLMs (URIAL), https://arxiv.org/abs/2312.01552

    Three fixed examples, as there: two answers and a refusal; these are our own words and not the paper's.

    Args:
        prompts: questions. system: the description. examples: (question, answer) each.
        stop: what a question begins with, at which generation is to end.

    Cost: about 250 words more in each prompt, shared by all.

    Errors: UserError for a prompt that holds ``stop``.
    """
    for prompt in prompts:
        if stop in prompt:
            raise UserError(f"urial: got a prompt that holds {stop!r}, which would end it; takes others, or another stop")
    shown = "\n\n".join(f"{stop}\n{question}\n\n# Assistant:\n{answer}" for question, answer in examples)
    return [f"{system}\n\n{shown}\n\n{stop}\n{prompt}\n\n# Assistant:\n" for prompt in prompts]
