"""Episodes as text: the prompt is the state that one begins in, the output what was done and where it led, ``east 0,1 south 1,1``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmalign.stacking import stacked_by_name
from mmalign.types import UserError
from mmalign.worlds.tabular.mdp import Mdp


@dataclass(frozen=True)
class Walks:
    """Episodes, as they are scored again. states: ``[B, H + 1]``, actions: ``[B, H]`` int64, 0 behind the end. refs: name -> ``[B, H, A]``
    log-probabilities of all actions."""

    states: Tensor
    actions: Tensor
    refs: dict[str, Tensor] = field(default_factory=dict)

    def take(self, rows: Tensor) -> Walks:
        return Walks(self.states[rows], self.actions[rows], {name: table[rows] for name, table in self.refs.items()})

    @staticmethod
    def join(parts: Sequence[Walks]) -> Walks:
        refs = stacked_by_name([part.refs for part in parts])
        return Walks(torch.cat([part.states for part in parts]), torch.cat([part.actions for part in parts]), refs)


def start_of(mdp: Mdp, prompt: object) -> int:
    """The number of a prompt's state. Errors: UserError for another word, and for a state that is an end."""
    if prompt not in mdp.states or bool(mdp.ends[mdp.states.index(str(prompt))]):
        open_states = [name for name, end in zip(mdp.states, mdp.ends.tolist(), strict=True) if not end]
        raise UserError(f"prompts: got {prompt!r}, takes a state that is no end: {', '.join(open_states)}")
    return mdp.states.index(str(prompt))


def read(mdp: Mdp, prompt: object, output: object) -> tuple[list[int], list[int]]:
    """States ``T + 1`` and actions ``T`` of an episode. Errors: UserError for what is no episode of this world."""
    words = str(output).split()
    states, actions = [start_of(mdp, prompt)], list[int]()
    if not words or len(words) % 2 or len(words) > 2 * mdp.horizon:
        raise UserError(f"got {len(words)} words, takes 1 to {mdp.horizon} times an action and the state that it led to")
    for action, state in zip(words[::2], words[1::2], strict=True):
        if action not in mdp.actions or state not in mdp.states:
            raise UserError(f"got {action} {state}, takes one of {', '.join(mdp.actions)} and a state")
        step = states[-1], mdp.actions.index(action), mdp.states.index(state)
        if bool(mdp.ends[step[0]]) or float(mdp.transitions[step]) == 0:
            raise UserError(f"got {action} {state} from {mdp.states[step[0]]}, which cannot be")
        actions.append(step[1])
        states.append(step[2])
    return states, actions


def said(mdp: Mdp, states: Sequence[int], actions: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of an episode's states ``T + 1`` and actions ``T``, and of each step its characters in it."""
    spans, text = list[tuple[int, int]](), ""
    for action, state in zip(actions, states[1:], strict=True):
        text += " " if text else ""
        step = f"{mdp.actions[action]} {mdp.states[state]}"
        spans.append((len(text), len(text) + len(step)))
        text += step
    return text, spans
