"""A model of this package as a reward: a reward model that a run trained, or how likely a language model finds an answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Seed, Share
from mmalign.records import RefusedRow
from mmalign.rewards._shared.scorer import Scorer
from mmalign.runs import trained as runs
from mmalign.types import Level, Oracle, UserError

__all__ = ["log_likelihoods", "self_log_prob", "trained", "trained_pairs"]

Score = Callable[[list[Any], Any, Mapping[str, list[Any]]], Tensor]


def trained(  # what a reward is told of a run
    run: str, *, part: str | None = None, spread: bool = False, trust: bool = False, passes: Count = 1, dropout: Share = 0.1,
    seed: Seed = 0, comparisons: Any = None,
) -> Scorer:  # fmt: skip
    """What a finished run says of an output: the scores of a reward model, or DPO's implicit reward.

    Of a policy of ``scorer`` its scores, by the parameters that its evaluations found best (``best``), or else their moving average. Of a
    language model that was trained with a reference the log-ratio ``log pi - log ref`` of the whole answer, in nats (times beta it is the
    reward that DPO has learned, arXiv 2305.18290, eq. 5).

    run: its folder. part: of several scores the one that counts; all dimensions by name where it is not said. trust: the run's
    config may name code outside of mmalign. spread: beside each mean of ``bradley_terry_gaussian`` its standard deviation, under the name
    that ``policy.scores`` has for it, for ``combine: {use: bayesian}``. passes: of a reward model with one score (or one ``part``), its
    scores in so many draws of dropout, ``pass_1``, ``pass_2``, ... (Gal and Ghahramani, arXiv 1506.02142), an ensemble of one model: each
    draw leaves the same inputs of linear layers out for all outputs. 1: no dropout. dropout: the share of inputs that a draw leaves out.
    seed: of the draws. comparisons: of a run whose reader is ``with_comparisons``, labelled pairs of people whom it need not know, who are
    then served without training; in place of what was known of them.

    A reward model whose reader is differentiable (`mmalign list readers`) hands its gradient to the outputs; what a language or
    vision-language model reads goes through a tokenizer or processor, and has none. Under ``on_latents`` one that reads
    ``noisy_latents`` is shown the latents themselves. NaN for an output that the model cannot read.

    Errors: UserError for a folder without such a run, one whose method only compares (see ``trained_pairs``), and another part.
    """
    kept = runs.trained(run, trust=trust, builds=("policy", "method"))
    policy: Any = kept.policy()
    if comparisons is not None:
        learn = getattr(getattr(policy, "reader", None), "learn", None)
        if learn is None:
            raise UserError(f"trained.comparisons: {run} reads none; takes a run whose policy.of is with_comparisons")
        learn(comparisons)
    using, reads, differentiable, numbers = _best(kept), frozenset[str](), False, 1
    if policy.kind == "score":
        names, reads, differentiable, score = list(policy.scores), policy.reads, policy.reader.differentiable, _of_scorer(policy, using)
        numbers = kept.method().numbers
    elif policy.kind == "token":
        names, score = ["log_ratio"], lambda prompts, outputs, _: _log_ratio(policy, using, prompts, outputs)
    else:
        raise UserError(f"trained.run: {run} trained a policy of kind {policy.kind}, takes one of scorer, or of a language model")
    if not numbers:
        takes = f"takes oracle: {{use: trained_pairs, run: {run}}}"
        raise UserError(f"trained.run: {run} compares outputs, none has a score by itself; {takes}")
    if part is not None and part not in names:
        raise UserError(f"trained.part: got {part!r}, {run} scores {', '.join(names)}")
    if spread and (numbers != 2 or part is not None):
        raise UserError(f"trained.spread: of a run of bradley_terry_gaussian, without part; {run} has {numbers} number of each dimension")
    every = 1 if spread else numbers
    wanted = names[::every] if part is None else [part]
    if passes > 1 and (policy.kind != "score" or len(wanted) > 1):
        got = f"{len(wanted)} scores" if policy.kind == "score" else f"a policy of kind {policy.kind}"
        raise UserError(f"trained.passes: got {passes} of {got}, takes a reward model and one of its scores (part)")

    def parts(table: Tensor) -> Any:
        scores = {name: table[:, names.index(name)] for name in wanted}
        if spread:
            scores.update({name: (scores[name] / 2).exp() for name in names[1::2]})
        return scores if len(wanted) > 1 else scores[wanted[0]]

    def of(outputs: Any, prompts: list[Any], **columns: Any) -> Any:
        return parts(_readable(score, prompts, outputs, columns, len(names)))

    def of_passes(outputs: Any, prompts: list[Any], **columns: Any) -> dict[str, Tensor]:
        said = dict[str, Tensor]()
        for number in range(passes):
            with policy.thinned(dropout, seed * 1_000_003 + number):
                said[f"pass_{number + 1}"] = of(outputs, prompts, **columns)
        return said

    def latents(x: Tensor, prompts: list[Any], level: Level | None, columns: Mapping[str, Any]) -> Any:
        return parts(policy.score_latents(prompts, x, level, columns))

    if passes > 1:
        return Scorer("trained", of_passes, reads=reads)
    known = latents if policy.kind == "score" and policy.reads_latents else None
    return Scorer("trained", of, differentiable=differentiable, reads=reads, latents=known)


def trained_pairs(run: str, *, part: str | None = None, trust: bool = False) -> Oracle:
    """An oracle of pairs: how probably a reward model of a finished run says that a row is better than another of its group.

    As its method says: ``sigmoid(v' R u)`` of ``general_preference``, ``sigmoid(s - s')`` of Bradley and Terry's, and so on.

    run, trust: as of ``trained``. part: of several dimensions the one that counts. NaN for an output that the model cannot read.

    Errors: UserError for a folder without such a run, one whose method compares nothing, and a part that it does not score, or that is
    missing.
    """
    kept = runs.trained(run, trust=trust, builds=("policy", "method"))
    policy: Any = kept.policy()
    if policy.kind != "score":
        raise UserError(f"trained_pairs.run: {run} trained a policy of kind {policy.kind}, takes one of scorer")
    method, names, score = kept.method(), list(policy.scores), _of_scorer(policy, _best(kept))
    wins = method.wins
    if wins is None:
        raise UserError(f"trained_pairs.run: the method of {run} compares nothing; takes a run of bradley_terry, general_preference, ...")
    dimensions = names[:: method.numbers] if method.numbers else [""]
    if (part or "") not in dimensions and not (part is None and len(dimensions) == 1):
        takes = ", ".join(dimensions) if method.numbers else "none: its scores are compared together"
        raise UserError(f"trained_pairs.part: got {part!r}, takes {takes}")

    def oracle(outputs: Any, prompts: list[Any], group: Tensor, **columns: Any) -> Tensor:
        with torch.no_grad():
            table = _readable(score, prompts, outputs, columns, len(names))
        chances = torch.full((len(prompts), len(prompts)), torch.nan, dtype=torch.float64)
        rows, others = torch.nonzero((group[:, None] == group[None, :]).fill_diagonal_(False), as_tuple=True)
        chances[rows, others] = wins(table[rows], table[others])[:, dimensions.index(part or dimensions[0])]
        return chances

    return oracle


def _best(kept: runs.Trained) -> str:
    return "current" if kept.best == "trained" else kept.best


def _of_scorer(policy: Any, using: str) -> Score:
    """A reward model's scores by one of its sets, which it then has for good: what a graph was recorded with stays in place."""
    policy.sets.mix("current", {using: 1.0})
    for parameter in policy.parameters().values():
        parameter.requires_grad_(False)
    return lambda prompts, outputs, columns: policy.score(prompts, outputs, columns, gradient=torch.is_grad_enabled())  # type: ignore[no-any-return]


def _readable(
    score: Score, prompts: Sequence[Any], outputs: Any,
    columns: Mapping[str, Sequence[Any]], width: int, who: str = "trained",
) -> Tensor:  # fmt: skip
    """``[B, width]``: scores of the rows that can be read, NaN for others; warns of the first of them, and why."""
    rows, table = list(range(len(prompts))), torch.full((len(prompts), width), torch.nan, dtype=torch.float64)
    while rows:
        try:
            own = {name: [column[row] for row in rows] for name, column in columns.items()}
            table[rows] = score([prompts[row] for row in rows], [outputs[row] for row in rows], own)
            return table
        except RefusedRow as error:
            if len(rows) == len(prompts):
                warnings.warn(f"{who}: cannot read an output, which has no score then: {error.why}", stacklevel=3)
            rows.pop(error.row)
    return table


def log_likelihoods(run: str, *, trust: bool = False) -> Scorer:
    """How likely a finished run's language model and its reference find a whole answer: parts ``policy`` and ``reference``, in nats.

    What preferences did to likelihoods themselves, and not to their ratio: the accuracy of ``policy`` on pairs is the raw ranking accuracy,
    that of ``reference`` where it began (`evaluate_ranking`, arXiv 2405.19534).

    run: its folder. trust: the run's config may name code outside of mmalign.

    NaN for an output that the model cannot read. Errors: UserError for a folder without such a run.
    """
    kept = runs.trained(run, trust=trust, builds=("policy", "method"))
    policy: Any = kept.policy()
    if policy.kind != "token":
        raise UserError(f"log_likelihoods.run: {run} trained a policy of kind {policy.kind}, takes one of a language model")
    using = _best(kept)

    def of(outputs: Any, prompts: list[Any], **columns: Any) -> dict[str, Tensor]:
        table = _readable(lambda asked, answers, _: _totals(policy, (using, "ref"), asked, answers), prompts, outputs, columns, 2)
        return {"policy": table[:, 0], "reference": table[:, 1]}

    return Scorer("log_likelihoods", of)


def self_log_prob(policy: Any) -> Scorer:
    """``r_self(y | x) = log pi_base(y | x)``: how likely a language model finds a whole answer, its end included, in nats.

    The model's own likelihood as what it is trained on (sharpening): with ``raft`` the likeliest of its samples are learned, and with a
    method that maximises ``E[r] - beta KL`` (``dr_grpo``, ``rloo``) the optimum is ``pi_base^(1 + 1 / beta)``, normalised. Nothing is asked
    but the model itself.

    Args:
        policy: of kind ``token``; in a config a node of its own, the same model as the run's. Its parameter set ``ref`` is what counts, so
            that the policy which is trained may be given too, in Python: the reward then stays that of the model it began with, unless the
            run's ``references`` move it.

    No gradient. NaN for an output that the model cannot read, an empty one included (``batch: {missing: drop}`` trains without those).
    Longer answers are less likely: this is a reward of brevity where nothing else holds the length.

    Paper: Huang et al., "Self-Improvement in Language Models: The Sharpening Mechanism" (2024), https://arxiv.org/abs/2412.01951, section
    2: SFT-Sharpening (``raft``) and RLHF-Sharpening (a method with beta).

    Deviations: their SFT-Sharpening draws all its best of N from the base model before it trains; ``raft`` draws from the policy as it is,
    again and again.

    Errors: UserError for what is no policy of a language model.
    """
    if getattr(policy, "kind", None) != "token":
        got = getattr(policy, "kind", None) or type(policy).__name__
        raise UserError(f"self_log_prob.policy: got {got}, takes a policy of a language model (kind token)")

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Tensor:
        def of(asked: list[Any], answers: Any, _: Mapping[str, list[Any]]) -> Tensor:
            return _totals(policy, ("ref",), asked, answers)

        return _readable(of, prompts, outputs, columns, 1, "self_log_prob")[:, 0]

    return Scorer("self_log_prob", score)


def _log_ratio(policy: Any, using: str, prompts: list[Any], outputs: list[Any]) -> Tensor:
    """``[B, 1]``: of the whole answer, nats. using: the set that is compared with ``ref``."""
    totals = _totals(policy, (using, "ref"), prompts, outputs)
    return (totals[:, 0] - totals[:, 1])[:, None]


@torch.no_grad()
def _totals(policy: Any, sets: Sequence[str], prompts: list[Any], outputs: list[Any]) -> Tensor:
    """``[B, sets]``: the log-likelihood of the whole answer under each of some sets."""
    rollout = policy.encode(prompts, outputs, torch.arange(len(prompts)), torch.Generator())
    totals = []
    for name in sets:
        with policy.using(name):
            parts = torch.arange(len(prompts)).split(policy.rows_at_once)
            totals.append(torch.cat([policy.steps(rollout, rows).log_probs.where(rollout.mask[rows], 0.0).sum(1) for rows in parts]))
    return torch.stack(totals, dim=1)
