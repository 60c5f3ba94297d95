"""Search trees over steps: which leaf is looked at next, what comes back from it, and which steps are then known to differ."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Node:
    """What has been said so far. step: the last of it. state: all of it, as who asks for more keeps it. over: nothing follows.

    visits: how often it was passed. known, total: how many rewards came back, and their sum; one that is missing is a visit alone.
    said: what a critic says of its step, NaN for nothing.
    """

    step: str
    state: Any
    over: bool = False
    parent: Node | None = None
    said: float = math.nan
    visits: int = 0
    known: int = 0
    total: float = 0.0
    children: list[Node] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Of what came back, 0 before anything has."""
        return self.total / self.known if self.known else 0.0

    @property
    def depth(self) -> int:
        """Steps to the root."""
        return 0 if self.parent is None else 1 + self.parent.depth

    def value(self, share: float) -> float:
        """``Q = share mean + (1 - share) said``, the search's own where no critic said anything."""
        return self.mean if math.isnan(self.said) else share * self.mean + (1 - share) * self.said


def leaf(root: Node, *, explore: float, share: float) -> Node:
    """Down from the root by ``argmax_a Q(s, a) + explore P sqrt(N(s)) / (1 + N(s, a))`` to a node without children (PUCT).

    P is 1 over the number of steps that were drawn, since they are draws of the policy. Of equal ones the first is taken.
    """
    node = root
    while node.children:
        node = max(node.children, key=lambda child: bound(child, explore=explore, share=share))
    return node


def bound(node: Node, *, explore: float, share: float) -> float:
    """What a child promises; see ``leaf``."""
    parent = node.parent
    assert parent is not None
    return node.value(share) + explore / len(parent.children) * math.sqrt(parent.visits) / (1 + node.visits)


def backed_up(node: Node, reward: float) -> None:
    """A reward reaches a node and all before it; of a missing one (NaN) they learn that it was looked for."""
    way: Node | None = node
    while way is not None:
        way.visits += 1
        if not math.isnan(reward):
            way.known += 1
            way.total += reward
        way = way.parent


def contrasts(root: Node, *, share: float, least_gap: float) -> Iterator[tuple[Node, Node, Node]]:
    """(before, better, worse) wherever rewards came back from two steps: the best and the worst by Q, further apart than least_gap."""
    waiting = [root]
    while waiting:
        node = waiting.pop(0)
        waiting += node.children
        seen = [child for child in node.children if child.known]
        if len(seen) < 2:
            continue
        better, worse = (pick(seen, key=lambda child: child.value(share)) for pick in (max, min))
        if better.value(share) - worse.value(share) > least_gap:
            yield node, better, worse
