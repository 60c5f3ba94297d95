"""What a guidance has spent: the same account for every one of them."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Ledger"]


@dataclass
class Ledger:
    """Counts of one row each: a denoiser's call on a batch of 8 (4 rows under classifier-free guidance) is 8 evaluations.

    evaluations: forward passes of a denoiser. gradients: backward passes through one. reward_gradients: backward passes through a
    reward and, where it reads outputs, the decoder. decodes: latents made into outputs. rewards: outputs scored. missing: of those,
    scores that were not finite. seconds: of wall-clock time. failed: gradients that were not finite, and left out.
    """

    evaluations: int = 0
    gradients: int = 0
    reward_gradients: int = 0
    decodes: int = 0
    rewards: int = 0
    missing: int = 0
    failed: int = 0
    seconds: float = 0.0

    def cost(self, *, gradient: float = 2.0) -> float:
        """Evaluations of the denoiser that were as much work, a backward pass counted as ``gradient`` forward ones."""
        return self.evaluations + gradient * self.gradients

    def since(self, before: Ledger) -> Ledger:
        """What was spent after ``before``, a copy that was taken earlier."""
        return Ledger(**{field.name: getattr(self, field.name) - getattr(before, field.name) for field in fields(self)})

    def __str__(self) -> str:
        return ", ".join(
            f"{value:.1f} seconds" if field.name == "seconds" else f"{value} {field.name.replace('_', ' ')}"
            for field in fields(self)
            if (value := getattr(self, field.name))
        )
