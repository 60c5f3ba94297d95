"""Text preference optimisation, DPO's form (TDPO)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mmalign.arguments.ranges import Positive
from mmalign.needs import contrast
from mmalign.objectives import links, scores
from mmalign.objectives.feedback import comparisons
from mmalign.objectives.parts import under
from mmalign.objectives.sentences.matching import BOUND, matching
from mmalign.types import Feedback, Method, Steps


def text_dpo(*, beta: Positive = 5000.0, error: Literal["mean", "sum"] = "mean", half: bool = True) -> Method:
    """One image, two prompts: it shall be denoised better under its own prompt than under one that does not fit; no pairs of images.

    With ``d(c) = l(c) - l^ref(c)``, l the error of one row at one noise level under a prompt, its own c and another one c', with the same
    noise::

        loss = mean over good rows and noise draws of  -log sigmoid(-1/2 beta [d(c) - d(c')])

    Args:
        beta: for a mean over the latent of size D; a sum takes one D times smaller.
        error: ``mean`` or ``sum`` over the D numbers of a latent.
        half: the 1/2 of the formula.

    Good rows are those with thumbs up, the better ones of pairs, or those above their group's mean. The other prompt is the policy's
    contrast ``mismatched``: an edited one where the policy has ``edits``, otherwise that of the next row that has another.

    **Where it goes.** With log-likelihoods in place of errors, and prompts that are as often one as the other, the minimum is
    ``d(x, c) - d(x, c') = log [p(x | c) / p(x | c')] / beta``, p the images of the data: what tells prompts apart is sharpened by a power
    of ``1 + 1 / beta``, which is what guidance between the two prompts does. What they share is not learned: adding one number to d under
    both prompts changes no loss.

    Paper: Free Lunch Alignment of Text-to-Image Diffusion Models without Preference Image Pairs, arXiv 2509.25771 (TDPO).

    Deviations: their code clips gradients of the part under the other prompt for stability; here there is ``optimizer.max_norm`` alone. A
    row that is not good says nothing.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> mask, zero = torch.tensor([[True]]), torch.tensor([[0.0]]).double()
        >>> other = Steps(torch.tensor([[-1.0]]).double(), mask, refs={"ref": zero}, kind="bound")
        >>> steps = Steps(zero, mask, refs={"ref": zero}, kind="bound", contrasts={"mismatched": other})
        >>> method = mm.methods.text_dpo(beta=1.0, error="sum")
        >>> feedback = Feedback(torch.zeros(1).double(), torch.tensor([0]), labels=torch.tensor([1.0]).double())
        >>> method.loss(steps, method.signal(feedback)).values  # a nat worse under the other prompt: -log sigmoid(1)
        tensor([[0.3133]], dtype=torch.float64)
    """
    score, link = scores.errors(error=error, half=half), links.named("logistic", beta=beta)

    def good(feedback: Feedback) -> Tensor:
        return (comparisons.labels(feedback) > 0.5).double()

    def match(steps: Steps, good: Tensor) -> Tensor:
        return good * link(score.of(steps) - score.of(under(steps, "mismatched")))

    needs = score.needs | {contrast("mismatched")}
    return matching(score=good, match=match, needs=needs, unit="row", kinds=BOUND, keep=lambda feedback: good(feedback) > 0)
