"""One operator, ``a + w(t) (b - a)``, on what two models predict: RLG, auto-guidance, interpolation between adapters.

It is applied to what the denoiser gives, in the model's own parametrisation. For one latent and level, epsilon, v, x_0 and the flow
velocity are affine in each other, and the operator commutes with affine maps: all forms agree. So does classifier-free guidance, which
is the same operator between two prompts: doing it before or after comes to the same (but for a pipeline's own rescaling).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from mmalign.arguments.ranges import Finite, Proportion
from mmalign.guidance._checks import check_interval
from mmalign.guidance._models import Model, Progress, blended, check_model, intercepted, predictor
from mmalign.guidance._run import Guidance
from mmalign.types import UserError

__all__ = ["autoguidance", "extrapolate", "interpolate", "rlg"]

Scale = Finite | Callable[[float], float]


def extrapolate(a: Tensor, b: Tensor, scale: Finite) -> Tensor:
    """``a + scale (b - a)``: exactly a at 0 and b at 1; between them below 1, past b above it.

    Affine composition: ``extrapolate(a, extrapolate(a, b, u), w) = extrapolate(a, b, u w)``. Exact to rounding elsewhere.

    a, b: predictions of one shape. scale: how far from a to b.
    """
    prediction: Tensor = blended(a, b, scale)
    return prediction


def rlg(
    *, scale: Scale = 1.6, base: Model = "base", aligned: Model = "current", start: Proportion = 0.0, stop: Proportion = 1.0
) -> Guidance:
    """Past the aligned model: ``u = u_base + scale (u_aligned - u_base)`` in every step.

    Paper: Reinforcement Learning Guidance, https://arxiv.org/abs/2508.21016

    With ``p_aligned ~ p_base exp(r / beta)`` the target is ``p_base exp(scale r / beta)``: a KL coefficient of beta / scale. That holds
    for the data; in between, noising does not commute with the geometric mean, and only Gaussians with a linear reward come out
    exactly. README.md has measured errors, and ``corrected_rlg`` weights that take them away.

    Args:
        scale: 0 is the base model and 1 the aligned one, to the last bit; the paper recommends 1 to 3. A function of how far the
            schedule has gone (0 to 1) makes it w(t).
        base, aligned: who they are: ``base`` (adapters off), ``current``, an adapter's name, a model, or tensors by parameter name.
        start, stop: fractions of the schedule between which it acts; outside, the aligned model speaks alone.

    Cost: two evaluations where scale is neither 0 nor 1.

    Deviations: with classifier-free guidance each branch is extrapolated, the paper's code the result: equal without rescaling.

    Errors: UserError for an interval outside 0..1, for a scale that is no number, and for a model that the pipeline lacks.
    """
    return _between_models("rlg", base, aligned, scale, start, stop)


def autoguidance(*, worse: Model, scale: Scale = 2.0, start: Proportion = 0.0, stop: Proportion = 1.0) -> Guidance:
    """Away from a worse version of the same model: ``u = u_worse + scale (u - u_worse)``.

    Paper: Guiding a Diffusion Model with a Bad Version of Itself, https://arxiv.org/abs/2406.02507

    Args:
        worse: a smaller or less trained model with the same call, an adapter, or parameters (an early checkpoint).
        scale: 1 is the model itself. start, stop: as in ``rlg``.

    Errors: as in ``rlg``.
    """
    return _between_models("autoguidance", worse, "current", scale, start, stop)


def interpolate(*, a: Model, b: Model, scale: Scale = 0.5, start: Proportion = 0.0, stop: Proportion = 1.0) -> Guidance:
    """Between two adapters (or models): ``u = u_a + scale (u_b - u_a)``; a dial between 0 and 1, as in ``rlg``.

    Between predictions, and not between weights: two adapters of different ranks or places can be mixed.

    Args:
        a, b: the ends, each as ``base`` and ``aligned`` of ``rlg``.
        scale: 0 is a and 1 is b. start, stop: as in ``rlg``; outside, b speaks alone.

    Errors: as in ``rlg``.
    """
    return _between_models("interpolate", a, b, scale, start, stop)


def _between_models(name: str, a: Model, b: Model, scale: Scale, start: float, stop: float) -> Guidance:
    check_interval(name, start, stop)
    if not callable(scale) and (isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale)):
        raise UserError(f"{name}.scale: got {scale!r}, takes a finite number, or a function of the fraction of the schedule")

    def around(pipe: Any) -> AbstractContextManager[None]:
        check_model(pipe, a, f"guidance {name}")
        check_model(pipe, b, f"guidance {name}")
        progress = Progress(pipe)

        def make(net_name: str, net: Any, own: Any) -> Any:
            predict_a, predict_b = predictor(net_name, net, own, a), predictor(net_name, net, own, b)

            def call(*args: Any, **kwargs: Any) -> Any:
                place = progress(args, kwargs)
                weight = 1.0
                if start <= place < stop:
                    weight = float(scale(place) if callable(scale) else scale)
                if weight == 0:
                    return predict_a(*args, **kwargs)
                if weight == 1:
                    return predict_b(*args, **kwargs)
                return blended(predict_a(*args, **kwargs), predict_b(*args, **kwargs), weight)

            return call

        return intercepted(pipe, make)

    return Guidance(name, around=around)
