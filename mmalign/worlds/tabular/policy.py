"""A table of preferences for actions as a policy: every method for tokens runs on it, and what it comes to is known exactly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Finite
from mmalign.needs import OLD, rank
from mmalign.policies.language.models.logits import TOP_K
from mmalign.policies.parameters import ParameterSets
from mmalign.records import RefusedRow
from mmalign.samplers.assignment import assignment, drawn_by
from mmalign.types import EVERY, Adapter, Behavior, Kind, Need, Rollout, Steps, UserError
from mmalign.worlds._paths import references_of
from mmalign.worlds.tabular.mdp import Mdp, grid
from mmalign.worlds.tabular.walks import Walks, read, said, start_of

__all__ = ["TabularPolicy", "tabular"]

GIVES = frozenset({"old", "refs", "kls", "reverse_kls", "entropy", "collision", "topk_entropy", "topk_mass", "rank", "behaviors", "traced"})
HEADS = frozenset({"value"})
ADAPTER = Adapter("token", GIVES, gives_with={"heads": HEADS}, call=lambda arguments: ())


def tabular(
    *, world: Mdp | None = None, start: str | Sequence[Sequence[Finite]] | None = None, heads: Sequence[Literal["value"]] = ()
) -> TabularPolicy:
    """A policy on a decision process: ``pi(a | s) = softmax(logits[s])``, a table that is trained, as any other model is.

    world: ``{use: grid, ...}``, or an ``Mdp`` of your own; the standard grid by default. start: ``[S, A]`` logits to begin with, and so
    those of ``ref``, or a run on this world; 0 by default, every action as likely. heads: ``value``: a critic, a number for each state.

    Errors: UserError for a table of another shape, and another head.
    """
    return TabularPolicy(grid() if world is None else world, start, heads)


class TabularPolicy:
    """A ``types.Policy`` whose prompts are states, whose steps are actions, and whose outputs are episodes (``walks``).

    Parameters: ``logits [S, A]``, and with that head ``value [S]``, what a critic expects of a state (0 at first). All in float64.
    """

    kind: Kind = "token"

    def __init__(self, world: Mdp, start: str | Sequence[Sequence[float]] | None = None, heads: Sequence[str] = ()) -> None:
        if isinstance(heads, str) or not set(heads) <= HEADS:
            raise UserError(f"policy.heads: got {heads!r}, takes a list of {', '.join(HEADS)}")
        self.world, self.gives = world, GIVES | set(heads)
        shape = len(world.states), len(world.actions)
        logits = torch.zeros(shape, dtype=torch.float64)
        if start is not None and not isinstance(start, str):
            logits = torch.tensor([list(row) for row in start], dtype=torch.float64)
        if tuple(logits.shape) != shape:
            raise UserError(f"policy.start: got {list(logits.shape)}, takes {list(shape)}, a number for each action of each state")
        tables = {"logits": logits, **{head: torch.zeros(shape[0], dtype=torch.float64) for head in heads}}
        self.sets = ParameterSets(torch.nn.ParameterDict(tables), start=start if isinstance(start, str) else None)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return self.sets.trained

    def using(self, name: str) -> AbstractContextManager[None]:
        return self.sets.using(name)

    def refer(self, name: str, other: Any, examples: Sequence[Any] = ()) -> None:
        """Errors: UserError, always: a table is small enough to be ``start``."""
        raise UserError(f"references.{name}.policy: a policy on this world takes sets of its own parameters alone")

    def log_probs(self) -> Tensor:
        """``[S, A]``: what it says of every action, with gradient."""
        return self.sets.trained["logits"].log_softmax(-1)

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """Prompts that are no state, or an end."""
        odd = dict[int, str]()
        for place, prompt in enumerate(prompts):
            try:
                start_of(self.world, prompt)
            except UserError as error:
                odd[place] = str(error)
        return odd

    @torch.no_grad()
    def sample(
        self, prompts: list[str], group_size: int, rng: torch.Generator, *, step: int = 0, behaviors: Sequence[Behavior] = (),
        part: slice = EVERY,
    ) -> Rollout:  # fmt: skip
        """Every row has two numbers for each step, one for what is done and one for where it leads, whoever makes it."""
        who = assignment(group_size, behaviors)
        chance = torch.rand(len(prompts), len(who), self.world.horizon, 2, generator=rng, dtype=torch.float64)[part].flatten(0, 1)
        group = torch.arange(len(prompts))[part].repeat_interleave(len(who))
        who = who.repeat(len(prompts[part]))
        tables = torch.stack([self.log_probs(), *(self._mixed(behavior) for behavior in behaviors)])
        starts = torch.tensor([start_of(self.world, prompts[place]) for place in group.tolist()])
        rows = self._walked(starts, tables.exp()[who], chance)
        rollout = self._rollout([prompts[place] for place in group.tolist()], rows, group)
        greedy = torch.tensor([False, *(behavior.greedy for behavior in behaviors)])[who]
        rollout.mask &= ~greedy[:, None]
        rollout.log_probs, rollout.drawn = self._of_actions(rollout.held) * rollout.mask, drawn_by(who, behaviors)
        return rollout

    @torch.no_grad()
    def generate(self, prompts: list[str], seeds: list[int], **call: Any) -> list[str]:
        """An episode for each prompt, of one seed each. Errors: UserError on any argument in ``call``: there are none."""
        return self.traced(prompts, seeds, **call).outputs  # type: ignore[no-any-return]

    @torch.no_grad()
    def traced(self, prompts: list[str], seeds: list[int], **call: Any) -> Rollout:
        """What ``generate`` gives, as rows that nobody has scored yet; see there."""
        if call:
            raise UserError(f"call: got {', '.join(call)}, takes nothing in this world")
        seeded = [torch.Generator().manual_seed(seed) for seed in seeds]
        chance = torch.stack([torch.rand(self.world.horizon, 2, generator=rng, dtype=torch.float64) for rng in seeded])
        starts = torch.tensor([start_of(self.world, prompt) for prompt in prompts])
        rows = self._walked(starts, self.log_probs().exp().expand(len(prompts), -1, -1), chance)
        return self._rollout(list(prompts), rows, torch.arange(len(prompts)))

    def encode(self, prompts: list[str], outputs: Any, group: Tensor, rng: torch.Generator, *, part: slice = EVERY) -> Rollout:
        """Given episodes. Errors: RefusedRow for the first that is none of this world."""
        rows = []
        for number in range(len(prompts))[part]:
            try:
                rows.append(read(self.world, prompts[number], outputs[number]))
            except UserError as error:
                raise RefusedRow(number, str(error)) from error
        return self._rollout(list(prompts[part]), rows, group[part])

    @torch.no_grad()
    def remember(self, rollout: Rollout, names: Iterable[str], rows_at_once: int = 0) -> None:
        """``rows_at_once`` is accepted and not needed: this world is small."""
        for name in names:
            with self.using(name):
                rollout.held.refs[name] = self.log_probs()[rollout.held.states[:, :-1]]

    def steps(self, rollout: Rollout, rows: Tensor, columns: Tensor | None = None, needs: frozenset[Need] = frozenset()) -> Steps:
        columns = torch.arange(self.world.horizon) if columns is None else columns
        cells, walks = (rows[:, None], columns), rollout.held
        states, done, mask = walks.states[cells], walks.actions[cells][..., None], rollout.mask[cells]
        now = self.log_probs()[states]
        refs = {name: table[cells] for name, table in walks.refs.items()}
        terms = {"entropy": -(now.exp() * now).sum(-1), "collision": (2 * now).logsumexp(-1)}
        likely = now.topk(min(TOP_K, now.shape[-1])).values
        terms |= {"topk_entropy": -(likely.exp() * likely).sum(-1), "topk_mass": likely.exp().sum(-1)}
        terms |= {head: self.sets.trained[head][states] for head in HEADS & self.gives}
        live = lambda table: torch.where(mask, table, 0.0)  # noqa: E731
        return Steps(
            log_probs=live(now.gather(-1, done)[..., 0]),
            mask=mask,
            old=None if OLD not in needs or bool(rollout.log_probs.isnan().any()) else rollout.log_probs[cells],
            refs={name: live(refs[name].gather(-1, done)[..., 0]) for name in references_of("refs", needs, refs)},
            kls={name: live(_kl(now, refs[name])) for name in references_of("kls", needs, refs)},
            reverse_kls={name: live(_kl(refs[name], now)) for name in references_of("reverse_kls", needs, refs)},
            terms={name: live(value) for name, value in terms.items() if Need(name) in needs},
            facts={str(rank(name)): _rank(now, refs[name]) for name in references_of("rank", needs, refs)},
            kind=self.kind,
        )

    def _mixed(self, behavior: Behavior) -> Tensor:
        """``[S, A]`` log-probabilities of a geometric mixture; of a greedy one, of its likeliest action alone."""
        mixed = torch.zeros_like(self.sets.trained["logits"])
        for name, share in behavior.shares.items():
            with self.using(name):
                mixed = mixed + share * self.log_probs()
        if behavior.greedy:
            mixed = torch.nn.functional.one_hot(mixed.argmax(-1), mixed.shape[-1]).double().log()
        return mixed.log_softmax(-1)

    def _walked(self, starts: Tensor, tables: Tensor, chance: Tensor) -> list[tuple[list[int], list[int]]]:
        """Episodes from ``starts [B]`` under probabilities ``tables [B, S, A]``; chance: ``[B, H, 2]`` uniform in 0..1."""
        rows, states, over = torch.arange(len(starts)), [starts], [self.world.ends[starts]]
        actions = list[Tensor]()
        for at in range(self.world.horizon):
            actions.append(_drawn(tables[rows, states[-1]], chance[:, at, 0]))
            states.append(_drawn(self.world.transitions[states[-1], actions[-1]], chance[:, at, 1]))
            over.append(over[-1] | self.world.ends[states[-1]])
        lengths = (self.world.horizon - torch.stack(over[1:], 1).sum(1) + 1).clamp(max=self.world.horizon)
        lines = zip(torch.stack(states, 1).tolist(), torch.stack(actions, 1).tolist(), lengths.tolist(), strict=True)
        return [(where[: length + 1], done[:length]) for where, done, length in lines]

    def _rollout(self, prompts: list[str], rows: Sequence[tuple[list[int], list[int]]], group: Tensor) -> Rollout:
        """Episodes as a rollout; nobody has scored them yet, so that ``log_probs`` are NaN."""
        shape = len(rows), self.world.horizon
        states, actions = (torch.zeros(len(rows), width, dtype=torch.int64) for width in (shape[1] + 1, shape[1]))
        mask, texts, spans = torch.zeros(shape, dtype=torch.bool), list[str](), list[list[tuple[int, int]]]()
        for place, (where, done) in enumerate(rows):
            states[place, : len(where)], actions[place, : len(done)] = torch.tensor(where), torch.tensor(done)
            mask[place, : len(done)] = True
            text, span = said(self.world, where, done)
            texts.append(text)
            spans.append(span)
        log_probs = torch.full(shape, torch.nan, dtype=torch.float64)
        return Rollout(prompts, texts, log_probs, mask, group, held=Walks(states, actions), spans=lambda: spans)

    def _of_actions(self, walks: Walks) -> Tensor:
        return self.log_probs()[walks.states[:, :-1]].gather(-1, walks.actions[..., None])[..., 0]


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """``KL(p || q)`` of log-probabilities ``[..., A]``, nats."""
    return (p.exp() * (p - q)).sum(-1)


def _rank(p: Tensor, q: Tensor) -> Tensor:
    """Which place, 1 for the likeliest, p's likeliest action has in q; of log-probabilities ``[..., A]``."""
    return 1 + (q > q.gather(-1, p.argmax(-1, keepdim=True))).sum(-1)


def _drawn(probabilities: Tensor, chance: Tensor) -> Tensor:
    """The outcome ``[B]`` of each row of ``[B, K]`` at a number in 0..1: the first at which the sum of probabilities is above it."""
    return (probabilities.cumsum(-1) <= chance[:, None]).sum(-1).clamp(max=probabilities.shape[-1] - 1)
