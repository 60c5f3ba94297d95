"""Preferences between single steps, found by search: trees over the lines of an answer, or over turns with an environment."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mmalign.arguments.ranges import Count, NotNegative, Proportion, Seed
from mmalign.commands._answers import SEEDS
from mmalign.commands._lines import Line, refuse_there, written
from mmalign.commands._trees import Node, backed_up, contrasts, leaf
from mmalign.distributed.jobs import in_turn, stopping_together
from mmalign.distributed.team import joined, team_for
from mmalign.training.journal import hashed
from mmalign.training.rollouts.feedback import ask, combined, refuse_columns
from mmalign.types import Policy, UserError, columns_of, contents

__all__ = ["search_steps"]


def search_steps(  # what a command may be told
    policy: Policy,
    prompts: Sequence[Any],
    rewards: Mapping[str, Callable[..., Any]],
    *,
    out: str,
    environment: Callable[..., Any] | None = None,
    critics: Mapping[str, Callable[..., Any]] | None = None,
    share: Proportion = 0.5,
    simulations: Count = 16,
    width: Count = 4,
    depth: Count = 4,
    explore: NotNegative = 1.0,
    separator: str = "\n",
    smooth: bool = True,
    least_gap: NotNegative = 0.0,
    call: dict[str, Any] | None = None,
    prompts_at_once: Count = 8,
    seed: Seed = 0,
) -> dict[str, float]:
    """Writes preference pairs of single steps, found by Monte Carlo tree search, with what stands before them; returns counts.

    From the root a step is taken by ``argmax_a Q(s, a) + explore P sqrt(N(s)) / (1 + N(s, a))`` until a leaf; its ``width`` next steps are
    drawn from the policy, the first of them is played to the end, also by the policy, and the reward of the whole comes back to all steps
    on the way. Q is the mean of what came back, or with critics ``share`` of it and ``1 - share`` of what they say of the step.

    Args:
        policy: what draws steps. call: of its ``generate``. prompts: each has a tree. rewards: name -> reward of a whole answer, as of a
            rollout: a text, or the turns that follow the prompt.
        out: the file, JSON lines of ``prompt, chosen, rejected, strength, score_chosen, score_rejected, id``; whole or not at all.
        environment: what replies to a turn, as of ``policy.turns``; a step is then a turn, and the prompt of a pair the conversation
            before it (the policy has no ``turns`` of its own here). None: a step is a text up to ``separator``, and the prompt of a pair
            the prompt with all steps before it, which are words: a chat model is given turns.
        critics: name -> reward of an answer so far, which judges its last step (a judge, a process reward model, the model itself).
        share: of the search in Q, the rest is the critics'.
        simulations: leaves that are looked at for each prompt. width: steps drawn at each, those of the same words once. depth: steps of an
            answer at most; one that has not ended by then is scored as it is. explore: c of the formula. separator: what ends a step.
        smooth: ``strength = N_w / (N_w + N_l)``, the smoothing of labels by visits; false: 1.
        least_gap: by how much more than this a step's Q has to be ahead.
        prompts_at_once: trees that grow at the same time. seed: of all draws.

    With ``smooth`` and ``method: {use: dpo}``, whose reference is what the run began with, it is MCTS-DPO; with an environment, critics and
    ``smooth: false`` Agent Q, whose reference is the policy that searched. Counts: ``pairs``, ``prompts``, ``steps`` (drawn), ``solved``
    (the best reward that came back, mean over the prompts that have one), ``missing`` (answers without a reward).

    Papers: Monte Carlo Tree Search Boosts Reasoning via Iterative Preference Learning, arXiv 2405.00451; Agent Q, arXiv 2408.07199 (both
    *recalled*).

    Deviations: P is uniform over the steps drawn, which are draws of the policy already; the papers' is the model's likelihood by length,
    or a critic's ranking. An answer is played to its end, where MCTS-DPO asks the model what it thinks of a step, which ``critics`` may.

    Of several processes each grows some of the trees, and the main one writes. Errors: UserError for a file that is there already, a policy
    that does not answer in words, and where no two steps differ.
    """
    refuse_there(out)
    for kind in (rewards, critics or {}):
        refuse_columns(kind, columns_of(prompts), kind="reward")
    if not rewards or width < 2 or not separator:
        raise UserError(
            f"search_steps: got {len(rewards)} rewards, width {width}, separator {separator!r}; takes 1, 2 or more, some letters"
        )
    counts, solved = {"pairs": 0, "prompts": 0, "steps": 0, "missing": 0}, list[float]()
    starts, team = range(0, len(prompts), prompts_at_once), joined()
    world = _Turns(environment) if environment is not None else _Lines(separator)

    def grown(start: int) -> dict[str, Any]:
        some = list(prompts[start : start + prompts_at_once])
        search = _Search(policy, world, some, rewards, critics or {}, width, depth, dict(call or {}), seed * 1_000_003 + start * 997)
        roots = [Node("", world.begin(prompt)) for prompt in contents(some)]
        best, missing = [math.nan] * len(roots), 0
        for _ in range(simulations):
            leaves = [leaf(root, explore=explore, share=share) for root in roots]
            search.expand(leaves)
            firsts = [node.children[0] if node.children else node for node in leaves]
            for place, (node, reward) in enumerate(zip(firsts, search.played(firsts), strict=True)):
                backed_up(node, reward)
                best[place] = reward if math.isnan(best[place]) else max(best[place], reward)
                missing += math.isnan(reward)
        lines = [[_line(world, pair, smooth, share) for pair in contrasts(root, share=share, least_gap=least_gap)] for root in roots]
        return {"lines": lines, "drawn": search.drawn, "missing": missing, "best": best}

    def lines() -> Iterator[Line]:
        for start, made in in_turn(team, starts, grown):
            counts["steps"] += made["drawn"]
            counts["missing"] += made["missing"]
            solved.extend(best for best in made["best"] if not math.isnan(best))
            for number, own in enumerate(made["lines"]):
                counts["prompts"] += 1
                for place, line in enumerate(own):
                    counts["pairs"] += 1
                    yield {**line, "id": f"{start + number}-{place}"}
        if not counts["pairs"]:
            raise UserError(
                f"search_steps: no two steps to {len(prompts)} prompts differ; takes more simulations, a larger width, or others"
            )

    with stopping_together(team):
        team_for(len(starts), f"trees of {prompts_at_once} prompts")
        settings = {"simulations": simulations, "width": width, "depth": depth, "explore": explore, "share": share, "seed": seed}
        team.agree("search_steps", {"prompts": hashed(prompts), "rewards": sorted(rewards), "critics": sorted(critics or {}), **settings})
        written(Path(out), lines(), team)
    return {**counts, "solved": sum(solved) / len(solved)}


class _Lines:
    """Answers as texts, whose steps end in a separator. A state is (prompt, text so far)."""

    def __init__(self, separator: str) -> None:
        self.separator = separator

    def begin(self, prompt: Any) -> Any:
        if not isinstance(prompt, str):
            raise UserError("search_steps: a prompt is a conversation, and steps follow it as text; takes texts, or an environment")
        return prompt, ""

    def asked(self, state: Any) -> Any:
        return state[0] + state[1]

    def output(self, state: Any) -> Any:
        return state[1]

    def after(self, states: Sequence[Any], steps: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, Any, bool]]:
        """(the step as it was, what there is then, whether it is the end)."""
        cut = [step.partition(self.separator) for step in steps]
        return [(first + end, (state[0], state[1] + first + end), not end) for state, (first, end, _) in zip(states, cut, strict=True)]


class _Turns:
    """Conversations with an environment. A state is (turns of the prompt, turns that follow)."""

    def __init__(self, environment: Callable[..., Any]) -> None:
        self.environment, self.seeded = environment, "seeds" in inspect.signature(environment).parameters

    def begin(self, prompt: Any) -> Any:
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt), []

    def asked(self, state: Any) -> Any:
        return [*state[0], *state[1]]

    def output(self, state: Any) -> Any:
        return state[1]

    def after(self, states: Sequence[Any], steps: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, Any, bool]]:
        """As of ``_Lines``; a conversation is over where the environment has nothing to say."""
        said = [(before, [*turns, {"role": "assistant", "content": step}]) for (before, turns), step in zip(states, steps, strict=True)]
        replies = self.environment([[*before, *turns] for before, turns in said], **({"seeds": list(seeds)} if self.seeded else {}))
        if not isinstance(replies, (list, tuple)) or len(replies) != len(said):
            raise UserError(
                f"search_steps.environment: gave a {type(replies).__name__} for {len(said)} conversations, takes a reply to each"
            )
        ended = list[tuple[str, Any, bool]]()
        for step, (before, turns), one in zip(steps, said, replies, strict=True):
            reply = [one] if isinstance(one, Mapping) else one
            heard = [{"role": "user", "content": reply}] if isinstance(reply, str) else list(reply or ())
            ended.append((step, (before, [*turns, *heard]), not heard))
        return ended


class _Search:
    """What trees of some prompts share. drawn: steps so far."""

    def __init__(  # what a command was told
        self, policy: Policy, world: Any, prompts: Sequence[Any], rewards: Mapping[str, Callable[..., Any]],
        critics: Mapping[str, Callable[..., Any]], width: int, depth: int, call: Mapping[str, Any], seed: int,
    ):  # fmt: skip
        self.policy, self.world, self.rewards, self.critics = policy, world, rewards, critics
        self.width, self.depth, self.call, self.seed, self.drawn = width, depth, call, seed, 0
        self.prompts, self.columns = contents(prompts), columns_of(prompts)

    def expand(self, leaves: Sequence[Node]) -> None:
        """Next steps of each node, one for each tree, that is not over."""
        open_ = [(row, node) for row, node in enumerate(leaves) if not node.over and node.depth < self.depth]
        rows = [(row, node) for row, node in open_ for _ in range(self.width)]
        for (_, node), (step, state, over) in zip(rows, self._stepped([node.state for _, node in rows]), strict=True):
            if step.strip() and all(step != child.step for child in node.children):
                node.children.append(Node(step, state, over, node))
        born = [(row, child) for row, node in open_ for child in node.children]
        if self.critics and born:
            for (_, child), said in zip(born, self._scored(self.critics, born), strict=True):
                child.said = said

    def played(self, nodes: Sequence[Node]) -> list[float]:
        """The reward of each node's answer once the policy has brought it to its end; NaN where nothing can be said of it."""
        states, over = [node.state for node in nodes], [node.over for node in nodes]
        for step in range(self.depth):
            going = [row for row, node in enumerate(nodes) if not over[row] and node.depth + step < self.depth]
            if not going:
                break
            for row, (_, state, ended) in zip(going, self._stepped([states[row] for row in going]), strict=True):
                states[row], over[row] = state, ended
        ended_nodes = [(row, Node("", state)) for row, state in enumerate(states)]
        return self._scored(self.rewards, ended_nodes)

    def _stepped(self, states: Sequence[Any]) -> list[tuple[str, Any, bool]]:
        if not states:
            return []
        seeds = [(self.seed + self.drawn + place) % SEEDS for place in range(len(states))]
        self.drawn += len(states)
        steps = self.policy.generate([self.world.asked(state) for state in states], seeds, **self.call)
        if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
            raise UserError("policy: does not answer in words, and steps are words; takes a language model without turns")
        return self.world.after(states, steps, seeds)  # type: ignore[no-any-return]

    def _scored(self, rewards: Mapping[str, Callable[..., Any]], some: Sequence[tuple[int, Node]]) -> list[float]:
        rows = [row for row, _ in some]
        outputs, prompts = [self.world.output(node.state) for _, node in some], [self.prompts[row] for row in rows]
        columns = {name: [values[row] for row in rows] for name, values in self.columns.items()}
        scores = ask(rewards, outputs, prompts, columns, drop=True)
        return combined(scores, torch.arange(len(rows)), prompts, None).tolist()


def _line(world: Any, pair: tuple[Node, Node, Node], smooth: bool, share: float) -> Line:
    before, better, worse = pair
    strength = better.visits / (better.visits + worse.visits) if smooth else 1.0
    return {
        "prompt": world.asked(before.state), "chosen": better.step, "rejected": worse.step, "strength": strength,
        "score_chosen": better.value(share), "score_rejected": worse.value(share),
    }  # fmt: skip
