"""The settings of a merge as records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmalign.arguments.ranges import Count, Positive, Seed
from mmalign.arguments.signatures import Record
from mmalign.types import Policy, UserError


@dataclass(frozen=True)
class Part(Record):
    """One of the models that are merged.

    from_: a run (its best parameters), an adapter of peft's or diffusers', or the folder of a model or a pipeline; in YAML ``from``.
    policy: in place of it, a policy around a model that is loaded by its own library, such as one of a hub.

    Examples:
        >>> mm.Part(from_="runs/before")
        Part(from_='runs/before', policy=None)
        >>> mm.Part()
        Traceback (most recent call last):
        mmalign.types.UserError: from: missing; takes from (a folder or a run), or policy, a model that is loaded by name
    """

    from_: str | None = None
    policy: Policy | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.from_ is None) == (self.policy is None):
            got = "missing" if self.from_ is None else "given beside policy"
            raise UserError(f"from: {got}; takes from (a folder or a run), or policy, a model that is loaded by name")


@dataclass(frozen=True)
class Search(Record):
    """A search without gradients, by the rewards of what a policy generates: CMA-ES (Hansen, arXiv 1604.00772).

    prompts: that are asked. rewards: name -> reward; the mean over outputs is what grows. combine: how several become one number, their
    sum by default. kept: name -> reward of what may not be lost: candidates whose mean is below that of the start are worse than all
    others, so that the search compares at no more tax. samples: outputs of each prompt, from the same seeds for all candidates. call: of
    the policy's ``generate``. evaluations: candidates that are asked, the start among them. spread: of the first candidates around the
    start, in units of the numbers. rows_at_once: outputs that are made at once. seed: of the candidates and of the outputs.
    """

    prompts: Sequence[Any]
    rewards: Mapping[str, Callable[..., Any]]
    combine: Callable[..., Any] | None = None
    kept: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    samples: Count = 1
    call: dict[str, Any] = field(default_factory=dict)
    evaluations: Count = 100
    spread: Positive = 0.2
    rows_at_once: Count = 256
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rewards:
            raise UserError("rewards: got none, takes one or more")
