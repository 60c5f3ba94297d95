"""Writes mmalign/methods/ROLES.md: for each method, which function of which role an update calls, and its cost, from ``Method`` itself.

python scripts/make_roles.py            # writes the page
python scripts/make_roles.py --check    # exits with 1 where it is not what this would write
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import mmalign as mm
from mmalign.rooms import index
from mmalign.types import Method

PAGE = Path(__file__).parents[1] / "mmalign" / "methods" / "ROLES.md"
UPDATE, SCORE = 3, 1  # passes: forward and backward, which is two; forward alone
KNOWN = {"mask", "old", "rewards"}  # what a rollout holds by itself
REQUIRED: dict[str, dict[str, Any]] = {"dr_grpo": {"length": 256}, "cgpo": {"judges": {"judge": 0.5}}}  # keywords without a default
CRITICS = ("value", "q1", "q2", "v1", "v2")
HEADS = (*CRITICS, "degree", "reward_mask", "kl_mask")
OF_REFERENCES = {"refs": "score", "kls": "compare", "reverse_kls": "compare", "rank": "compare", "absolute": "predict", "score": "predict"}

HEAD = f"""# Who computes what

An alignment method is a graph of a few functions of a few models: an actor that samples and is updated, references that score, a critic,
rewards or people who judge (the dataflow that HybridFlow, https://arxiv.org/abs/2409.19256, and ReaLHF,
https://arxiv.org/abs/2406.14088, schedule over machines). Here the graph is not written down for each method: a recipe reads it off
`Method.needs`, `reads`, `survey`, `behaviors`, `moves` and `companions`, and so does this page, which `python scripts/make_roles.py`
writes.

| function | what it is | passes of a row through the model |
|---|---|---|
| `actor.sample` | online: rows are drawn, and scored once more for `old` | a step for each token, and {SCORE} |
| `actor.update` | log-probabilities with their gradient | {UPDATE} in each epoch: the backward pass is two |
| `actor.score` | without gradient: a survey of the update's rows, or tables that the signal reads | {SCORE} |
| `actor.update NAME` | the same rows under another condition (`contrast`), also by references | {UPDATE}, and {SCORE} for each reference |
| `NAME.score` | log-probabilities of a named reference, once for a rollout; records' are remembered | {SCORE} |
| `NAME.compare` | the reference's whole distributions beside the actor's | {SCORE} in each epoch |
| `NAME.predict` | of denoising: the reference's prediction beside the actor's | {SCORE} in each epoch |
| `critic.value` | a head on the actor's hidden states, trained with it (`heads: [value]`) | 0 |
| `NAME.sample` | rows that somebody else draws for the group | a step for each token |
| `NAME.update` | a companion that is trained beside the actor | {UPDATE} |
| `reward.score` | rewards, judges or records: what they cost is theirs | none of this model |
| `reward.gradient` | a differentiable reward, through the decoder and the last steps | {UPDATE} or more, see `explain` |

`passes` below is their sum for one row in one epoch, of the model itself, sampling aside; with LoRA the reference is the same weights with
the adapter off, so that it costs the pass and no memory. A set that moves (`moves`) is a copy that is renewed, which costs no pass. What
has to be in one micro-batch is the unit.

| method | unit | actor | references | others | moves | passes |
|---|---|---|---|---|---|---:|
"""


class Roles(NamedTuple):
    """Functions by role, and passes of a row through the model in one epoch, sampling aside."""

    actor: list[str]
    references: list[str]
    others: list[str]
    passes: int


def roles(method: Method) -> Roles:
    """What an update of a method calls. A table is counted once, whatever else asks for it."""
    needs = method.needs | method.survey_needs | method.reads
    named = {(need.name or "ref", OF_REFERENCES[need.kind]) for need in needs if need.kind in OF_REFERENCES}
    names = {name for name, _ in named}
    scored = {(name, "score") for name, does in named if does == "compare"} | named  # a comparison is of references that scored the rows
    contrasts = sorted(need.name for need in needs if need.kind == "contrast")
    of_terms = {need.kind for need in method.reads if need.kind not in {*KNOWN, *OF_REFERENCES}}
    scores = int(method.survey is not None) + int(bool(of_terms))
    actor = ["sample"] if method.sampled_by == "current" else []
    actor += ["update", *(f"update {name}" for name in contrasts), *(["score"] if scores else [])]
    heads = sorted({need.kind for need in needs} & set(HEADS))
    others = [f"{'critic' if head in CRITICS else 'head'}.{head}" for head in heads]
    others += [f"{behavior.name}.sample" for behavior in method.behaviors]
    others += [f"{method.sampled_by}.sample"] if method.sampled_by != "current" else []
    others += [f"{companion.name}.update" for companion in method.companions]
    others += ["reward.gradient" if method.reward_gradient is not None else "reward.score"]
    passes = UPDATE + scores * SCORE + len(scored) * SCORE
    passes += len(contrasts) * (UPDATE + len(names) * SCORE) + len(method.companions) * UPDATE
    return Roles(actor, [f"{name}.{does}" for name, does in sorted(scored)], others, passes)


def page() -> str:
    """The whole page; one row for each method with its defaults."""
    rows = []
    for name in sorted(index("mmalign.methods")):
        method = getattr(mm.methods, name)(**REQUIRED.get(name, {}))
        found, moves = roles(method), ", ".join(dict.fromkeys(move.name for move in method.moves))
        cells = [", ".join(some) or "–" for some in (found.actor, found.references, found.others)]
        rows.append(f"| `{name}` | {method.unit} | {' | '.join(cells)} | {moves or '–'} | {found.passes} |")
    return HEAD + "\n".join(rows) + "\n"


def main() -> int:
    """Writes the page, or checks it."""
    made = page()
    if "--check" in sys.argv[1:]:
        return int(PAGE.read_text(encoding="utf-8") != made)
    PAGE.write_text(made, encoding="utf-8")
    print(f"{PAGE}: {made.count(chr(10))} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
