"""Classifier-free guidance and its kin, in the place of a pipeline's own rule: other scales, intervals, projections, negative models.

Each is a rule ``(negative, positive) -> prediction`` on what the denoiser gives. The pipeline has to ask about both prompts
(``guidance_scale`` above 1, or ``true_cfg_scale``); its own scale is then replaced. Which branch is the negative one is measured
(``_branches``). Cost: that of the pipeline's own guidance, and one step of it for the measurement.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Finite, Positive, Proportion
from mmalign.guidance._branches import BranchOutputs, Rule, measured, ruled
from mmalign.guidance._checks import check_above, check_finite, check_interval
from mmalign.guidance._models import Model, check_model, predictor
from mmalign.guidance._run import Guidance, GuidedRun
from mmalign.guidance.extrapolation import extrapolate
from mmalign.policies.pipelines.calls.scheduler import Moment
from mmalign.types import Prediction, UserError

__all__ = ["apg", "cfg", "cfg_plus_plus", "cfg_zero", "npo"]


def cfg(*, scale: Finite = 7.5, rescale: Proportion = 0.0, start: Proportion = 0.0, stop: Proportion = 1.0) -> Guidance:
    """Classifier-free guidance ``u = u_0 + scale (u_c - u_0)``, with an interval and a rescaling for pipelines that have none.

    Paper: Classifier-Free Diffusion Guidance, https://arxiv.org/abs/2207.12598

    Args:
        scale: 1 is the conditional prediction, 0 the unconditional one (the paper's w is one less).
        rescale: 0 to 1, how much of the conditional prediction's standard deviation is put back (https://arxiv.org/abs/2305.08891, 3.4).
        start, stop: fractions of the schedule between which it guides (https://arxiv.org/abs/2404.07724); outside, scale is 1.

    Errors: UserError for a number out of range, and for a call that asks about one prompt alone.
    """
    check_interval("cfg", start, stop)
    check_finite("cfg", scale=scale)
    if not 0 <= rescale <= 1:
        raise UserError(f"cfg.rescale: got {rescale}, takes 0 to 1")

    def rule(negative: Tensor, positive: Tensor, place: float) -> Tensor:
        if not start <= place < stop:
            return positive
        guided = extrapolate(negative, positive, scale)
        return guided if rescale == 0 else torch.lerp(guided, guided * _std(positive) / _std(guided), rescale)

    return _by_rule("cfg", rule)


def apg(*, scale: Finite = 7.5, eta: Finite = 0.0, norm: Positive | None = None, momentum: Finite = 0.0) -> Guidance:
    """Adaptive projected guidance: of the step from the negative to the positive prediction, what is along the latter counts ``eta`` times.

    Paper: Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models, https://arxiv.org/abs/2410.02416

        d = u_c - u_0 + momentum d_before;  d *= min(1, norm / |d|);  u = u_c + (scale - 1) (d_orthogonal + eta d_parallel)

    Args:
        scale: as in ``cfg``.
        eta: how much counts of what is along the positive prediction; 1, with nothing else, is ``cfg``.
        norm: the largest length of a row's d, in units of what the model predicts; None for any.
        momentum: share of the step before that is added to d; the paper's are below 0, away from where the last step went.

    Deviations: in the model's own parametrisation; the paper works on the clean estimate.

    Errors: UserError for a number out of range, and for a call that asks about one prompt alone.
    """
    check_finite("apg", scale=scale, eta=eta, momentum=momentum)
    check_above("apg", norm=norm)
    before: list[Tensor] = []

    def rule(negative: Tensor, positive: Tensor, place: float) -> Tensor:
        step = positive - negative
        if momentum and before and before[0].shape == step.shape and place > 0:
            step = step + momentum * before[0]
        before[:] = [step]
        if norm is not None:
            step = step * (norm / _norm(step)).clamp(max=1.0)
        unit = positive / _norm(positive)
        along = (step * unit).flatten(1).sum(1).view(_wide(step)) * unit
        return positive + (scale - 1) * (step - along + eta * along)

    return _by_rule("apg", rule)


def cfg_zero(*, scale: Finite = 4.0, zero_steps: Proportion = 0.04) -> Guidance:
    """CFG-Zero*: the negative prediction is scaled to fit the positive one, and the first steps stand still.

    Paper: CFG-Zero*: Improved Classifier-Free Guidance for Flow Matching Models, https://arxiv.org/abs/2503.18886

        alpha = <u_c, u_0> / |u_0|^2;   u = alpha u_0 + scale (u_c - alpha u_0);   u = 0 in the first ``zero_steps`` of the schedule

    For models that predict a flow's velocity, where no velocity means no step.

    Args:
        scale: as in ``cfg``, from the fitted negative prediction.
        zero_steps: fraction of the schedule, from noise, in which nothing moves; 0 for none.

    Errors: UserError for a fraction outside 0..1, and for a call that asks about one prompt alone.
    """
    check_finite("cfg_zero", scale=scale)
    if not 0 <= zero_steps <= 1:
        raise UserError(f"cfg_zero.zero_steps: got {zero_steps}, takes a fraction of the schedule, 0 to 1")

    def rule(negative: Tensor, positive: Tensor, place: float) -> Tensor:
        if place < zero_steps:
            return torch.zeros_like(positive)
        product = (positive * negative).flatten(1).sum(1) / negative.flatten(1).square().sum(1).clamp(min=1e-8)
        return extrapolate(product.view(_wide(negative)) * negative, positive, scale)

    return _by_rule("cfg_zero", rule)


def npo(*, negative: Model, scale: Finite = 5.0) -> Guidance:
    """Guidance whose negative branch is a model of what people do not want: ``u = u_bad(negative) + scale (u - u_bad(negative))``.

    Paper: Diffusion-NPO, https://arxiv.org/abs/2505.11245; Self-NPO, https://arxiv.org/abs/2505.11777

    ``autoguidance(worse=...)`` is the same for pipelines that ask about one prompt.

    Args:
        negative: an adapter's name, a model, or parameters, trained on preferences turned round (``records: {use: turned}``), or on the
            model's own samples (``own_samples``); as ``base`` of ``rlg``. Adapters with factors, ``{good: 1.0, bad: 0.7}``, add up: the
            paper's branch is the aligned model with a part of what people do not want, so that it stays near to it.
        scale: 1 is the pipeline's model alone, as in ``cfg``.

    Errors: UserError for a model that the pipeline lacks, and for a call that asks about one prompt alone.
    """
    check_finite("npo", scale=scale)
    return _by_rule("npo", lambda low, high, place: extrapolate(low, high, scale), negative)


def cfg_plus_plus(*, scale: Proportion = 0.6) -> Guidance:
    """CFG++: the clean estimate is guided, and the noise that is put back is that of the negative prompt.

    Paper: CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models, https://arxiv.org/abs/2406.08070

        x' = a' clean(u_0 + scale (u_c - u_0)) + b' noise(u_0),    scale in 0..1

    Takes deterministic steps of first order in place of the pipeline's own.

    scale: 0 is the negative prompt's sample, 1 has the conditional clean estimate; the paper's lambda.

    Errors: UserError for a scale outside 0..1, and for a call that asks about one prompt alone.
    """
    if not 0 <= scale <= 1:
        raise UserError(f"cfg_plus_plus.scale: got {scale}, takes 0 to 1")
    current: list[BranchOutputs] = []

    @contextmanager
    def about(run: GuidedRun) -> Iterator[None]:
        with ruled(run, measured(run, "cfg_plus_plus"), lambda low, high, place: extrapolate(low, high, scale)) as outputs:
            current[:] = [outputs]
            yield

    def change(run: GuidedRun, moment: Moment, rows: Any) -> Prediction:
        outputs = current[0]
        low, high = outputs.tensors[outputs.branches.negative], outputs.tensors[1 - outputs.branches.negative]
        away = outputs.seen(run.pipe.scheduler, extrapolate(low, high, scale) - low, moment)
        return moment.prediction._replace(noise=moment.prediction.noise - away.noise)

    return Guidance("cfg_plus_plus", about=about, change=change)


# Parts


def _by_rule(name: str, rule: Rule, negative: Model | None = None) -> Guidance:
    def about(run: GuidedRun) -> AbstractContextManager[Any]:
        negative_of = None
        if negative is not None:
            check_model(run.pipe, negative, f"guidance {name}")
            negative_of = lambda net_name, net, own: predictor(net_name, net, own, negative)  # noqa: E731
        return ruled(run, measured(run, name), rule, negative_of)

    return Guidance(name, about=about)


def _wide(like: Tensor) -> tuple[int, ...]:
    return (-1, *(1,) * (like.ndim - 1))


def _norm(value: Tensor) -> Tensor:
    return value.flatten(1).norm(dim=1).clamp(min=1e-12).view(_wide(value))


def _std(value: Tensor) -> Tensor:
    return value.flatten(1).std(1).clamp(min=1e-12).view(_wide(value))
