"""DPO with a beta that sets itself."""

from __future__ import annotations

from typing import Annotated

from mmalign.arguments.ranges import Fraction, Positive, within
from mmalign.objectives import scores
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import betas
from mmalign.types import Method, UserError


def auto_beta_dpo(
    *,
    weight: Annotated[float, within(0, 0.5, above=True, below=True)] = 0.2,
    decay: Fraction = 0.99,
    low: Positive = 1e-3,
    high: Positive = 1.0,
) -> Method:
    """DPO whose beta follows the size of the margins, so that it does not depend on the size of the latent, and a run needs no search.

    With m DPO's margin in nats (of denoising errors, half of the difference of summed errors), and a the moving average of ``|m|``::

        loss = mean over pairs of  -log sigmoid(b m),   b = log((1 - weight) / weight) / a,  in low to high

    Args:
        weight: of the gradient of a pair of the usual margin, whose label is right: ``sigmoid(-b a)``.
        decay: of the moving average, over updates.
        low, high: of b, in 1 / nats.

    **Where it goes.** With a fixed beta DPO rests where the margin of a pair with label p is ``log(p / (1 - p)) / beta``. Here beta
    falls as margins grow, and a pair that is always right has ``b m`` of about ``log((1 - weight) / weight)`` whatever its margin is: its
    gradient does not end before b is ``low``, and margins drift outward until then.

    Paper: none; SimpleTuner's automatic beta for preference training, on Direct Preference Optimization, arXiv 2305.18290.

    Deviations: there the average begins at the first batch of a process, and stays its own; here it is that of the whole update, and in the
    checkpoint. Where margins are 0, before the first update, b is ``high``. Errors: UserError for ``low`` above ``high``.

    Dialects:
    - SimpleTuner: weight=0.2, decay=0.99, low=0.001, high=1.0: its beta is of summed errors with the 1/2, as here.
    """
    if low > high:
        raise UserError(f"low, high: got {low} and {high}, takes low at most high")
    return pairwise(betas.automatic(scores.ratio(), weight=weight, decay=decay, low=low, high=high), kinds=frozenset({"bound"}))
