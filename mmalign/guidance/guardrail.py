"""Guardrails: what a reward calls unsafe is drawn again, and in the end not handed over; both are counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Finite, Seed
from mmalign.guidance._calls import fields, merged
from mmalign.guidance._run import Guidance, GuidedRun, Samples
from mmalign.guidance.guide import run_particles, sampled
from mmalign.types import UserError

__all__ = ["Guarded", "guarded", "guarded_answers"]

REFUSAL = "I can't help with that."


def guarded(*, least: Finite, tries: Count = 3, otherwise: Literal["blank", "best"] = "blank") -> Guidance:
    """Samples that the reward scores below ``least`` are drawn again, up to ``tries`` times in all; what is then still below is withheld.

    A sample without a score counts as below. The target is the model's distribution, cut off below ``least``, but for what is withheld.

    Args:
        least: of the reward, such as the safety of an image.
        tries: 1 draws nothing again.
        otherwise: what is handed over in place of a sample that stays below: ``blank``, zeros, or the ``best`` of those drawn.

    The trace says of each round how many were ``drawn`` and how many ``below``, and in the end how many are ``withheld`` (of ``best``: are
    handed over below). Scores are of what was drawn, a withheld one's too.

    Cost: at most ``tries`` times the pipeline's own, and as many rewards.

    Errors: UserError for tries below 1.
    """
    if tries < 1 or otherwise not in ("blank", "best"):
        raise UserError(f"guarded: got tries {tries} and otherwise {otherwise!r}, takes 1 or more, and blank or best")

    def search(run: GuidedRun) -> Samples:
        wanted, every = len(run.call.prompts), run_particles(run)
        seeds, rows = run.seeds(tries * every), list(range(wanted))
        parts, at, best = [], [(0, 0)] * wanted, torch.full((wanted,), -torch.inf, dtype=torch.float64)
        for number in range(tries):
            own = [seeds[(row * tries + number) * every + copy] for row in rows for copy in range(every)]
            part = sampled(run, own, rows=rows)
            parts.append(part)
            for place, (row, score) in enumerate(zip(rows, part.scores.tolist(), strict=True)):
                if number == 0 or score > float(best[row]):
                    at[row] = (number, place)
                    best[row] = score if score == score else -torch.inf
            below = [row for row in rows if not float(best[row]) >= least]
            run.trace.append({"round": number, "drawn": len(rows), "below": len(below)})
            rows = below
            if not rows:
                break
        run.trace.append({"withheld": len(rows)})
        samples = _placed(parts, at)
        if otherwise == "blank" and rows:
            samples.outputs[rows] = 0.0
        return samples

    return Guidance("guarded", frozenset({"reward"}), search=search)


def _placed(parts: Sequence[Samples], at: Sequence[tuple[int, int]]) -> Samples:
    """Of each row what stands at a place of one of the parts."""
    sizes = [len(next(iter(fields(part.result).values()))) for part in parts]
    places = [parts[number].places[place] + sum(sizes[:number]) for number, place in at]
    outputs = torch.stack([parts[number].outputs[place] for number, place in at])
    scores = torch.stack([parts[number].scores[place] for number, place in at])
    return Samples(merged([part.result for part in parts]), outputs, scores, places, parts[0].kind)


@dataclass(frozen=True)
class Guarded:
    """outputs: of each prompt, a refusal in place of what was withheld. scores: ``[B]`` of what was drawn last, NaN where nothing was.

    counts: ``prompts``, ``refused`` (prompts that nothing was drawn for), ``drawn`` (answers), ``withheld`` (prompts whose answers all were
    below), ``missing`` (answers without a score).
    """

    outputs: list[Any]
    scores: Tensor
    counts: dict[str, int] = field(default_factory=dict)


def guarded_answers(  # what a guardrail is made of
    generate: Callable[..., Any], prompts: Sequence[Any], *, answer: Callable[..., Any], prompt: Callable[..., Any] | None = None,
    least: Finite = 0.5, tries: Count = 3, refusal: Any = REFUSAL, seed: Seed = 0,
) -> Guarded:  # fmt: skip
    """Answers of any policy behind a guardrail: unsafe prompts are refused, unsafe answers drawn again, and refused in the end.

    Args:
        generate: ``(prompts, seeds) -> outputs``, such as ``policy.generate``.
        prompts: strings or conversations.
        answer: a reward of an answer to its prompt, such as ``rewards.guard(policy=...)``. prompt: of the prompt alone, asked first with
            empty answers, such as ``rewards.guard(policy=..., of="prompt")``; None lets every prompt through.
        least: what both have to score, at least. Without a score nothing passes.
        tries: answers drawn for a prompt, at most. refusal: what is handed over in place of an answer.
        seed: of the answers; each prompt and try has its own.

    Errors: UserError for tries below 1.

    Examples:
        >>> words = lambda prompts, seeds: [f"{prompt} {seed % 2}" for prompt, seed in zip(prompts, seeds)]
        >>> safe = lambda outputs, prompts: torch.tensor([float(text.endswith("1")) for text in outputs])
        >>> mm.guidance.guarded_answers(words, ["a"], answer=safe, tries=2, refusal="no").counts
        {'prompts': 1, 'refused': 0, 'drawn': 2, 'withheld': 0, 'missing': 0}
    """
    if tries < 1:
        raise UserError(f"guarded_answers.tries: got {tries}, takes 1 or more")
    outputs, scores = [refusal] * len(prompts), torch.full((len(prompts),), torch.nan, dtype=torch.float64)
    counts = {"prompts": len(prompts), "refused": 0, "drawn": 0, "withheld": 0, "missing": 0}
    waiting = list(range(len(prompts)))
    if prompt is not None and waiting:
        passed = torch.as_tensor(prompt([""] * len(prompts), list(prompts))).double() >= least
        waiting = passed.nonzero()[:, 0].tolist()
        counts["refused"] = len(prompts) - len(waiting)
    for number in range(tries):
        if not waiting:
            break
        asked = [prompts[row] for row in waiting]
        drawn = generate(asked, [seed + row * tries + number for row in waiting])
        said = torch.as_tensor(answer(drawn, asked)).double().cpu()
        counts["drawn"] += len(waiting)
        counts["missing"] += int((~said.isfinite()).sum())
        below = []
        for place, row in enumerate(waiting):
            scores[row] = said[place]
            if bool(said[place] >= least):
                outputs[row] = drawn[place]
            else:
                below.append(row)
        waiting = below
    counts["withheld"] = len(waiting)
    return Guarded(outputs, scores, counts)
