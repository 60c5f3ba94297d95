"""A diffusers policy seen through its training objective: given images, noised, and how well they are denoised.

Rows come from a data set, or are the pipeline's own samples, made by whatever sampler it has: no step has to be random. What is said of
them is of ``pipelines.denoising.denoising_errors``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count
from mmalign.policies.diffusers import DiffusersPolicy
from mmalign.policies.pipelines.calls.calling import unguided
from mmalign.policies.pipelines.denoising.denoising_errors import DenoisingErrors, Noised, Target
from mmalign.policies.pipelines.denoising.other_rows import following
from mmalign.policies.pipelines.loading.arguments import all_arguments
from mmalign.policies.pipelines.rollouts import reference_models
from mmalign.policies.pipelines.rollouts.latents import latents, weights_of
from mmalign.policies.pipelines.rollouts.refusals import refuse_beside
from mmalign.types import EVERY, Adapter, Need, Rollout, Steps, UserError

__all__ = ["ForwardPolicy", "forward"]

ADAPTER = Adapter(
    "bound",
    frozenset({"refs", "kls", "absolute", "noise", "contrast", "unguided", "latents"}),
    call=lambda arguments: all_arguments(),
    learns_from="images",
)
Times = Literal["uniform", "logit_normal"]
Noise = Literal["group", "row"]
Edits = Callable[[list[str]], list[str]]
Mask = Callable[[Tensor, list[str]], Tensor]


def forward(
    of: DiffusersPolicy, *, times: Times = "uniform", draws: Count = 1, target: Target = "native", noise: Noise = "group",
    guided: bool = False, edits: Edits | None = None, mask: Mask | None = None,
) -> ForwardPolicy:  # fmt: skip
    """A policy for methods on the denoising error (Diffusion-DPO, DiffusionNFT), around one that ``diffusers`` makes.

    Online, its rows are samples of the pipeline's own scheduler, in as many steps as ``of`` says, and without guidance.

    Args:
        of: the policy whose denoiser is trained, and whose pipeline samples for evaluations.
        times: how places on the scheduler's training schedule (its shift included) are drawn: ``uniform``, as Diffusion-DPO does,
            or ``logit_normal``, the sigmoid of a standard normal number (Esser et al. 2024), as code for flows does.
        draws: noise levels, each with a noise of its own, for every row: the columns of its table.
        target: whose error counts: ``native``, what the model was trained to say, or another parametrisation, which weighs noise
            levels otherwise (``epsilon`` on a flow at level s: ``(1 - s)^2`` times the velocity's). Under EDM's preconditioning
            (Karras et al. 2022) the native one is the raw network's, ``F``, whose error their loss weighs alike at all levels.
        noise: ``group``, the rows of a group (of a pair) share their levels and their noise, so that what differs is theirs; ``row``,
            every row has its own, as online methods for single rows have it.
        guided: whether rows are sampled with the guidance of ``of``. Predictions never have it, so that such rows are another policy's,
            which some methods take (AWM, DGPO, CRD) and others do not (DiffusionNFT, RAM).
        edits: prompts -> prompts that do not fit, what the contrast ``mismatched`` shows rows under (`mmalign list data`: ``edited``); by
            default the next row's prompt that differs.
        mask: (outputs, prompts) -> what each pixel counts, ``[B, 1, H, W]``, of videos ``[B, F, 1, H, W]``, 0 and more (``masked``,
            ``frames``). Errors are then means, or sums, under these weights, which are scaled to the mean 1 over a row's latent.

    Errors: UserError for a scheduler without a training schedule that is known here, an unknown ``times``, ``target`` or ``noise``, or no
    draws; and of rows for a mask of another shape, of numbers below 0, or of nothing.
    """
    return ForwardPolicy(of, times=times, draws=draws, target=target, noise=noise, guided=guided, edits=edits, mask=mask)


class ForwardPolicy:
    """See ``forward``. ``generate``, parameters and their sets are those of the policy inside."""

    kind = ADAPTER.kind
    learns_from = ADAPTER.learns_from

    def __init__(
        self, of: DiffusersPolicy, *, times: Times, draws: int, target: Target, noise: Noise = "group", guided: bool = False,
        edits: Edits | None = None, mask: Mask | None = None,
    ):  # fmt: skip
        if times not in ("uniform", "logit_normal"):
            raise UserError(f"policy.times: got {times!r}, takes 'uniform' or 'logit_normal'")
        if draws < 1:
            raise UserError(f"policy.draws: got {draws}, takes 1 or more")
        self.errors = DenoisingErrors(of, target=target)
        self.of, self.times, self.draws, self.noise, self.guided, self.sets = of, times, draws, noise, guided, of.sets
        self.edits, self.mask = edits, mask
        self.gives = ADAPTER.gives - {"unguided"} if guided else ADAPTER.gives
        self.schedule = self.errors.schedule

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return self.of.parameters()

    def compute_together(self, count: int, world: int, place: int, ring: int = 1) -> None:
        self.of.compute_together(count, world, place, ring)

    def using(self, name: str) -> AbstractContextManager[None]:
        return self.of.using(name)

    def refer(self, name: str, other: Any, examples: Sequence[Any] = ()) -> None:
        """Makes a name stand for another pipeline: how well it denoises the same latents, with the same noise, at the same levels."""
        key = f"references.{name}.policy"
        if not isinstance(other, ForwardPolicy):
            raise UserError(f"{key}: got a {type(other).__name__}, takes one that forward makes, as the policy is")
        theirs, own = (vars(policy) | vars(policy.errors) for policy in (other, self))
        for word in ("times", "draws", "target", "sigma_data"):
            if (there := theirs[word]) != (here := own[word]):
                raise UserError(f"{key}.{word}: is {there!r}, and the policy's {here!r}; takes the same, as both errors are compared")
        reference_models.refuse_times(f"{key}.of", self.schedule[:2], other.schedule[:2])
        self.of.stand_for(name, other.of, self.of.first(examples), reference_models.asked(key, other.of, examples))

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """Place -> why, of prompts that the pipeline's call refuses. Errors: UserError for a call that denoises something besides, a sound
        say, with a denoiser that cannot leave it out."""
        refused = self.of.refusals(prompts)
        taken = [prompt for place, prompt in enumerate(prompts) if place not in refused]
        if taken:
            refuse_beside(self.of.caller, taken[0])
        return refused

    def generate(self, prompts: list[str], seeds: list[int], **call: Any) -> Tensor:
        """Outputs as a user gets them, one seed for each prompt."""
        return self.of.generate(prompts, seeds, **call)

    def generated(self, prompts: list[str], seeds: list[int], **call: Any) -> tuple[Tensor, Tensor]:
        """The same, and their latents."""
        return self.of.generated(prompts, seeds, **call)

    def latents(self, rollout: Rollout) -> Tensor:
        """The clean latents of a rollout, ``[B, ...]``: those of its samples where nothing was decoded, encoded ones elsewhere."""
        return rollout.held.clean  # type: ignore[no-any-return]

    @torch.no_grad()
    def sample(
        self, prompts: list[str], group_size: int, rng: torch.Generator, *, step: int = 0, part: slice = EVERY, decode: bool = True
    ) -> Rollout:
        """The pipeline's own samples, ``group_size`` of each prompt, encoded: what goes through a VAE comes back changed.
        decode: False, where nobody looks at outputs: the latents are taken as they are, and nothing goes through the VAE."""
        rows, group = [prompt for prompt in prompts for _ in range(group_size)], torch.arange(len(prompts)).repeat_interleave(group_size)
        seeds, here = torch.randint(2**62, (len(rows),), generator=rng).tolist(), torch.isin(group, torch.arange(len(prompts))[part])
        places = torch.nonzero(here).flatten().tolist()
        call: dict[str, Any] = {} if self.guided else unguided(self.of.caller.accepts, len(self.of.denoisers))
        asked: Any = ([rows[place] for place in places], [seeds[place] for place in places])
        part = slice(places[0], places[-1] + 1)
        outputs, last = (self.of.generate(*asked, **call), None) if decode else self.of.generated(*asked, decode=False, **call)
        return self._noised(rows, outputs, latents(self.of, outputs, rows) if last is None else last.float(), group, rng, part)

    @torch.no_grad()
    def encode(self, prompts: list[str], outputs: Any, group: Tensor, rng: torch.Generator, *, part: slice = EVERY) -> Rollout:
        """Given images as a rollout; rows of one group share their noise levels and their noise.

        outputs: ``[B, C, H, W]`` in 0..1 (``[B, F, C, H, W]``: videos), in the size that the pipeline's call is set to. group:
        ``[B]`` int64. rng: draws the levels and the noise, here and once, for policy and references alike; the VAE's mode is
        taken, so that nothing else is random. ``log_probs`` are NaN: nobody sampled these rows. part: the rows that are encoded.
        """
        outputs = torch.stack(list(outputs[part]))
        return self._noised(prompts, outputs, latents(self.of, outputs, prompts), group, rng, part)

    def _noised(self, prompts: list[str], outputs: Any, clean: Tensor, group: Tensor, rng: torch.Generator, part: slice) -> Rollout:
        """Rows ``part`` of all ``prompts`` and ``group``, of which ``outputs`` and their latents ``clean`` are."""
        names, which = (group if self.noise == "group" else torch.arange(len(group))).unique(return_inverse=True)
        places = torch.rand((len(names), self.draws), generator=rng)
        if self.times == "logit_normal":
            places = torch.randn((len(names), self.draws), generator=rng).sigmoid()
        count = len(self.schedule.timesteps)
        noise = torch.randn((len(names), self.draws, *clean.shape[1:]), generator=rng)
        shape = (len(clean), self.draws)
        others: list[str | None] = [*(following(prompts) if self.edits is None else self.edits(list(prompts)))][part]
        weight = None if self.mask is None else weights_of(self.of, self.mask(outputs, list(prompts[part])), outputs, clean)
        return Rollout(
            prompts=list(prompts[part]),
            outputs=outputs,
            log_probs=torch.full(shape, float("nan"), dtype=torch.float64),
            mask=torch.ones(shape, dtype=torch.bool),
            group=group[part],
            held=Noised(clean, noise, (places * count).long().clamp(max=count - 1), which[part], others, weight=weight),
        )

    def remember(self, rollout: Rollout, names: Iterable[str], rows_at_once: int) -> None:
        """Bounds and predictions of a rollout under named parameter sets, without gradient, kept in the rollout."""
        self.errors.remember(rollout, names, rows_at_once)

    def steps(self, rollout: Rollout, rows: Tensor, columns: Tensor | None = None, needs: frozenset[Need] = frozenset()) -> Steps:
        """The bounds of some rows, and of some draws (all, by default), with gradient, see ``DenoisingErrors``."""
        return self.errors.steps(rollout, rows, columns, needs)
