"""The policy that is trained as the judge of its own answers: win probabilities for ``oracle``, by how sure it is of its verdicts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count
from mmalign.conversations import COMPARED, compares, said_after, shown_in
from mmalign.rewards._shared.completions import texts
from mmalign.types import Oracle, UserError


def own_verdicts(*, words: str = COMPARED, say: Sequence[str] = ("A", "B"), by: str = "current", at_once: Count = 32) -> Oracle:
    """An oracle that asks the run's own policy which of its answers is better: ``P(i over j)`` by its log-odds l of two sayings.

    With ``l(q) = log pi(say[0] | q) - log pi(say[1] | q)``, of a question q about two answers, in both orders, or about one::

        P_ij = (sigmoid(l(x, y_i, y_j)) + 1 - sigmoid(l(x, y_j, y_i))) / 2        or        P_ij = sigmoid(l(x, y_i) - l(x, y_j))

    Args:
        words: the question, behind the last thing that the prompt's user says: with ``{first}`` and ``{second}`` in it, or with
            ``{answer}``. A group of G is ``G (G - 1)`` questions or G of them.
        say: what is said of the first of two, or of one, that is better, and of one that is worse. All of a saying counts, and its end.
        by: the set of parameters that judges: ``current``, or one that holds still or follows (``ref``, a reference of the run).
        at_once: questions in one pass of the model.

    A model that judges no better than chance makes pairs that say nothing. It is taught by ``mix``, records ``verdicts`` with the same
    words. A question that is too long is not asked, and what it compares is missing (NaN).

    For methods that learn from win probabilities or pairs, of language and vision-language models. Judging in both orders:
    https://arxiv.org/abs/2306.05685. That strengths are the policy's own: Online Self-Preferring Language Models, arXiv 2405.14103
    (recalled; its words and how it reads them were not at hand).

    Errors: UserError for words that show no answer, sayings that are not two texts, a policy that does not answer in words, one that no
    question fits, and for a set that is not there.
    """
    both = compares("own_verdicts", words, say)
    return OwnVerdicts(words, (say[0], say[1]), by, at_once, both)


@dataclass(frozen=True)
class OwnVerdicts:
    """See ``own_verdicts``; called like any oracle, and with the policy (``arguments.facts.OfPolicy``)."""

    words: str
    say: tuple[str, str]
    by: str
    at_once: int
    both: bool
    of_policy: bool = True

    def __call__(self, outputs: Any, prompts: Any, group: Tensor, *, policy: Any = None, **columns: Any) -> Tensor:
        if policy is None:
            raise UserError("asks the policy that is trained, and nothing is trained here; takes a judge with a model of its own")
        answers, rows = texts("own_verdicts", outputs, prompts), range(len(prompts))
        wins = torch.full((len(prompts), len(prompts)), math.nan, dtype=torch.float64)
        pairs = [(i, j) for i in rows for j in rows if i != j and group[i] == group[j]]
        if not pairs:
            return wins
        first, second = torch.tensor(pairs).T
        if self.both:
            asked = [self._question(prompts[i], first=answers[i], second=answers[j]) for i, j in pairs]
            wins[first, second] = self._log_odds(policy, asked).sigmoid()
            return (wins + 1 - wins.T) / 2
        odds = self._log_odds(policy, [self._question(prompts[i], answer=answers[i]) for i in rows])
        wins[first, second] = (odds[first] - odds[second]).sigmoid()
        return wins

    def _question(self, prompt: Any, **shown: str) -> Any:
        return said_after(prompt, shown_in(self.words, shown))

    def _log_odds(self, policy: Any, asked: list[Any]) -> Tensor:
        """``log pi(say[0]) - log pi(say[1])`` behind each question, ``[N]`` float64; NaN where it cannot be asked."""
        odds = torch.full((len(asked),), math.nan, dtype=torch.float64)
        refused = policy.refusals(asked)
        fit = [number for number in range(len(asked)) if number not in refused]
        if not fit:
            raise UserError(f"none of {len(asked)} questions fits the policy: {next(iter(refused.values()))}")
        if refused:
            warnings.warn("own_verdicts: a question does not fit the policy, and what it compares is missing", stacklevel=2)
        with torch.no_grad(), policy.using(self.by):
            for start in range(0, len(fit), self.at_once):
                some = fit[start : start + self.at_once]
                rows = [asked[number] for number in some for _ in self.say]
                known = torch.arange(len(some)).repeat_interleave(2)
                rollout = policy.encode(rows, [*self.say] * len(some), known, torch.Generator())
                said = policy.steps(rollout, torch.arange(len(rows))).log_probs.sum(1)
                odds[some] = said[0::2] - said[1::2]
        return odds
