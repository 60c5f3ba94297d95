"""RLG with weights that take its error away: particles whose target really is ``p_base^(1 - w) p_aligned^w`` at every level.

The path of geometric means q_t ~ p_t^(1-w) r_t^w is not that of any one diffusion: its score is ``s_p + w (s_r - s_p)``, but samples
that follow it drift off by a rate of ``w (w - 1) sigma_t^2 / 2 * |s_r - s_p|^2``, sigma_t being the diffusion of the noising process.
Weights that grow at this rate put it right (Feynman-Kac correctors, Skreta et al. 2025). On a rectified flow sigma^2 = 2 s / (1 - s) and
``s_r - s_p = - (1 - s) / s (v_r - v_p)``, so that a step from s to s' adds

    ln weight += w (w - 1) (1 - s) / s * |v_r - v_p|^2 * (s - s')

whatever noise the sampler adds beside. Other Gaussian paths are a rectified flow of ``x / (a + b)`` at ``s = b / (a + b)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Finite, Proportion
from mmalign.guidance import _smc
from mmalign.guidance._branches import BranchOutputs, measured, tensor_of
from mmalign.guidance._checks import check_finite
from mmalign.guidance._models import Model, blended, check_model, intercepted, predictor
from mmalign.guidance._run import Guidance, GuidedRun
from mmalign.policies.pipelines.calls.scheduler import Moment
from mmalign.samplers import kernels
from mmalign.types import Kernel, Level, Prediction, UserError

__all__ = ["corrected_rlg", "rlg_log_weight"]


def rlg_log_weight(difference: Prediction, t: Level, t_next: Level, *, scale: Finite) -> Tensor:
    """What a step adds to a particle's log-weight under RLG, ``[B]`` float64.

    Paper: Feynman-Kac Correctors in Diffusion, https://arxiv.org/abs/2503.02819

    ``v = noise - clean``. 0 at scale 0 and 1, where nothing is mixed.

    difference: aligned minus base, of both estimates ``[B, ...]``. t, t_next: levels before and after the step. scale: as in ``rlg``.
    """
    s, s_next = kernels.flow_time(t).double(), kernels.flow_time(t_next).double()
    apart = (difference.noise - difference.clean).flatten(1).double().square().sum(1)
    rate = torch.where(s > 0, (1 - s) / torch.where(s > 0, s, 1.0), 0.0) * (s - s_next)
    return scale * (scale - 1) * rate.reshape(-1).to(apart) * apart


def corrected_rlg(
    *, scale: Finite = 1.6, particles: Count = 8, base: Model = "base", aligned: Model = "current", ess: Proportion = 0.5,
    kernel: Kernel | None = None,
) -> Guidance:  # fmt: skip
    """RLG as a proposal, its particles weighed and resampled so that they stand for ``p_base^(1 - scale) p_aligned^scale``.

    Paper: RLG, https://arxiv.org/abs/2508.21016; weights of Feynman-Kac correctors, https://arxiv.org/abs/2503.02819

    Exact as steps and particles become many; in the thousands of dimensions of an image's latent the weights of few particles may
    well be those of one (``trace`` has their effective number at each step). What is handed over is drawn by weight.

    Args:
        scale, base, aligned: as in ``rlg``; a number alone.
        particles, ess, kernel: as in ``fk``.

    Cost: two evaluations a step for each particle; no decodes, no rewards.

    Errors: UserError for fewer than one particle, an ``ess`` outside 0..1, and a model that the pipeline lacks.
    """
    if particles < 1 or not 0 <= ess <= 1:
        raise UserError(f"corrected_rlg: got particles {particles} and ess {ess}, takes 1 or more, and 0 to 1")
    check_finite("corrected_rlg", scale=scale)
    current: list[BranchOutputs] = []

    @contextmanager
    def about(run: GuidedRun) -> Iterator[None]:
        check_model(run.pipe, base, "guidance corrected_rlg")
        check_model(run.pipe, aligned, "guidance corrected_rlg")
        outputs = BranchOutputs(measured(run, "corrected_rlg", needs_both=False))
        current[:] = [outputs]

        def make(name: str, net: Any, own: Any) -> Any:
            predict_base, predict_aligned = predictor(name, net, own, base), predictor(name, net, own, aligned)

            def call(*args: Any, **kwargs: Any) -> Any:
                low, high = predict_base(*args, **kwargs), predict_aligned(*args, **kwargs)
                outputs.add(tensor_of(high) - tensor_of(low))
                return blended(low, high, scale)

            return call

        with intercepted(run.pipe, make):
            yield

    return Guidance(
        "corrected_rlg", about=about, particles=particles, kernel=kernel or kernels.ddim(eta=1.0),
        filter=lambda run, rows, count: Corrected(run, rows, count, scale, ess, current[0]),
    )  # fmt: skip


class Corrected:
    """The particles of one call of ``corrected_rlg``."""

    def __init__(self, run: GuidedRun, rows: Sequence[int], count: int, scale: float, ess: float, outputs: BranchOutputs):
        self.run, self.count, self.scale, self.ess, self.outputs = run, count, scale, ess, outputs
        self.groups = len(rows) // count
        self.rng = torch.Generator().manual_seed(run.seed or 0)
        self.log_weights = torch.zeros((self.groups, count), dtype=torch.float64)

    def weigh(self, moment: Moment, prediction: Prediction) -> Tensor | None:
        branches = self.outputs.branches
        apart = self.outputs.seen(self.run.pipe.scheduler, branches.combined(self.outputs.tensors), moment)
        added = rlg_log_weight(apart, moment.t, moment.t_next, scale=self.scale)
        self.log_weights = self.log_weights + added.cpu().view(self.groups, self.count)
        size = _smc.effective_size(self.log_weights)
        self.run.trace.append({"left": moment.left, "effective": size})
        needed = size <= self.ess * self.count + 1e-9
        if not bool(needed.any()):
            return None
        parents = torch.where(needed[:, None], _smc.systematic(self.log_weights, self.rng), torch.arange(self.count))
        self.log_weights = torch.where(needed[:, None], 0.0, self.log_weights)
        return (torch.arange(self.groups)[:, None] * self.count + parents).flatten()

    def proposed(self, log_ratio: Tensor) -> None:
        self.log_weights = self.log_weights + log_ratio.double().cpu().view(self.groups, self.count)

    def chosen(self, scores: Tensor) -> Tensor:
        return _smc.one_of_each(self.log_weights, self.rng)
