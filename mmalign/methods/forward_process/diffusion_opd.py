"""On-policy distillation of diffusion and flow models, from one teacher or several."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mmalign.arguments.ranges import Positive
from mmalign.needs import kls
from mmalign.objectives import penalties
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.matching import matching
from mmalign.types import Feedback, Method, Steps, UserError


def diffusion_opd(*, teachers: Mapping[str, Positive] | None = None, per_scalar: bool = True) -> Method:
    """The student's own samples, and at each of its steps what the teacher would have done: no reward is maximised.

    With KL_t the exact KL of the student's step to that teacher's, ``|mean - mean_k|^2 / (2 std^2)`` of a random denoising step, and on
    the forward process half of the squared distance of the predictions::

        loss = mean over rows and steps of  sum_k share_k KL_t(student, teacher_k)

    Args:
        teachers: name of a reference -> its share, above 0; ``{teacher: 1.0}`` by default. ``references: {teacher: {from: RUN}}``, or
            ``{policy: ...}`` for another model of the same latents, says who it is.
        per_scalar: divided by the D numbers of a latent; False: nats.

    **Where it goes.** To the teacher, wherever the student goes; with several, for steps of equal std, to the mixture of their means by
    share. Its policy-gradient form does nothing: with the exact KL of a step, which the step's outcome is no part of, as a detached
    advantage, ``E[KL_t grad log pi(x' | x)] = KL_t(x) 0``; a test measures it. (Advantages with the steps that follow in them, or the
    sampled ``log pi - log pi_teacher``, do have a gradient.)

    Paper: DiffusionOPD: A Unified Perspective of On-Policy Distillation in Diffusion Models, arXiv 2605.15055.

    Deviations: their teachers each have prompts of their own; here all teach every row, by share. Rows without a reward are left out, as
    everywhere; any reward serves, and is only watched. Tokens take it too, with the KL over the vocabulary.

    Examples:
        >>> feedback = Feedback(torch.tensor([0.3, torch.nan]).double(), group=torch.tensor([0, 0]))
        >>> mm.methods.diffusion_opd().signal(feedback).tolist()
        [[1.0], [0.0]]
    """
    shares = dict(teachers or {"teacher": 1.0})
    if wrong := [f"{name}: {share}" for name, share in shares.items() if not share > 0]:
        raise UserError(f"teachers: got {', '.join(wrong)}, takes shares above 0")

    def match(steps: Steps, taught: Tensor) -> Tensor:
        total = sum((share * penalties.exact_kl(steps, name) for name, share in shares.items()), torch.zeros_like(steps.log_probs))
        return taught * total / (steps.event_size if per_scalar else 1)

    def score(feedback: Feedback) -> Tensor:
        return (~feedback.rewards.isnan()).double()

    return matching(score=score, match=match, needs=frozenset(kls(name) for name in shares), kinds=ANY)
