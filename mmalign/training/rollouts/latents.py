"""Rewards of latents: who has any, and whether anybody looks at what they are decoded to."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmalign.arguments.facts import of_latents
from mmalign.distributed.shards import held
from mmalign.training.rollouts.feedback import Functions
from mmalign.types import Oracle, Policy, Rollout, UserError


def refuse_without_latents(policy: Policy, *functions: Functions) -> None:
    """Errors: UserError for a reward or judge of latents where the policy has none."""
    for name in (name for some in functions for name, function in some.items() if of_latents(function)):
        if "latents" not in policy.gives:
            raise UserError(f"reward {name}: scores latents, and {type(policy).__name__} has none; takes a policy of diffusers")


def looked_at(rewards: Functions, oracle: Oracle | None) -> bool:
    """Whether a rollout has to be decoded: some reward, or an oracle, looks at outputs."""
    return oracle is not None or not all(map(of_latents, rewards.values()))


def shown(rewards: Functions) -> dict[str, bool]:
    """Keywords of a policy's ``adjoints``: what rewards want to see of what they are asked about."""
    return {"latents": True, "decode": looked_at(rewards, None)} if any(map(of_latents, rewards.values())) else {}


def latents_of(policy: Any, rollout: Rollout, rewards: Functions) -> Tensor | None:
    """The latents of a rollout's outputs, where some reward scores them."""
    return policy.latents(rollout) if any(map(of_latents, rewards.values())) else None


def generated(policy: Any, prompts: list[Any], seeds: list[int], call: dict[str, Any], *functions: Functions) -> tuple[Any, Tensor | None]:
    """Outputs as users get them, and their latents where somebody scores these."""
    with held(policy):
        if any(of_latents(function) for some in functions for function in some.values()):
            return policy.generated(prompts, seeds, **call)  # type: ignore[no-any-return]
        return policy.generate(prompts, seeds, **call), None
