"""Step by step: the player that answers for a guided pipeline's scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mmalign.guidance._run import Filter, Guidance, GuidedRun
from mmalign.policies.pipelines.calls.scheduler import Moment, Player
from mmalign.samplers import kernels
from mmalign.types import Kernel, Level, Prediction, UserError


class Stepper:
    """Answers every question of a call: predictions are changed, particles weighed, and a step is taken.

    rows: of the user's call, one for each row that is sampled (``particles`` of each side by side). seeds: one for each; they give
    the noise of its steps, whatever else is in the batch. ``last``: the latents at the end.
    """

    def __init__(self, run: GuidedRun, guides: Sequence[Guidance], rows: Sequence[int], seeds: Sequence[int]):
        self.run, self.rows = run, rows
        self.changes = [guide.change for guide in guides if guide.change is not None]
        self.graph = any("denoiser" in guide.needs for guide in guides)
        self.repeats = max([1, *(guide.repeats for guide in guides)])
        self.kernel = _kernel(guides)
        device = run.pipe._execution_device
        self.noises = [torch.Generator(device).manual_seed(seed ^ 0x5DEECE66D) for seed in seeds]
        run.seed = run.rng(seeds).initial_seed()  # of what particles decide: another for each batch of a search
        self.filter: Filter | None = next((g.filter(run, rows, g.particles) for g in guides if g.filter is not None), None)
        self.last: Tensor | None = None
        self._left, self._visit = -1, 1
        self._inputs = list[Tensor]()  # what the denoiser has heard in this step
        self._given: Tensor | None = None  # what was answered before it

    def player(self) -> Player:
        return Player(self.answer, repeats=self.repeats)

    def answer(self, moment: Moment) -> Tensor:
        self._visit = self._visit + 1 if moment.left == self._left else 1
        self._left = moment.left
        guided = moment._replace(x=self._origin(moment)) if self.graph else moment
        for change in self.changes:
            guided = guided._replace(prediction=change(self.run, guided, self.rows))
        with torch.no_grad():
            x_next = self._step(moment, guided.prediction).to(moment.x.dtype)
        self.last = x_next
        over = moment.left == 1 and self._visit == self.repeats
        if over:
            torch.set_grad_enabled(False)  # what comes after the last step has no use for a graph; the block around puts it back
        self._inputs.clear()
        if not self.graph or over:
            return x_next
        self._given = x_next.requires_grad_().clone()
        return self._given

    def hear(self, module: Any, args: Any, kwargs: Any) -> None:
        """Before each call of a denoiser, where its graph is asked for."""
        self._inputs += [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.requires_grad]

    def _origin(self, moment: Moment) -> Tensor:
        """What the denoiser's answer hangs on: the latent that the scheduler is shown, or, where that is a part of what the denoiser sees,
        or arranged otherwise, what was answered before; the first one has no gradient then."""
        if _hangs_on(self._inputs, moment.x):
            return moment.x
        return moment.x.detach() if self._given is None else self._given

    def _step(self, moment: Moment, guided: Prediction) -> Tensor:
        plain, again = moment.prediction, self._visit < self.repeats
        changed = guided is not plain
        if self.filter is not None and not again:
            parents = self.filter.weigh(moment, guided)
            if parents is not None:
                parents = parents.to(moment.x.device)
                moment = moment._replace(x=moment.x[parents])
                plain, guided = (Prediction(*(value[parents] for value in prediction)) for prediction in (plain, guided))
        mean, std = self.kernel(guided, moment.x, moment.t, moment.t_next)
        noise = self._noise(mean)
        x_next = kernels.sample(mean, std, noise)
        if self.filter is not None and changed and not again:
            other, _ = self.kernel(plain, moment.x, moment.t, moment.t_next)
            self.filter.proposed(kernels.log_prob(x_next, other, std) - kernels.log_prob(x_next, mean, std))
        return renoised(x_next, self._noise(mean), moment.t_next, moment.t) if again else x_next

    def _noise(self, like: Tensor) -> Tensor:
        return torch.stack([torch.randn(like.shape[1:], generator=g, device=g.device) for g in self.noises]).to(like)


def _hangs_on(made: Sequence[Tensor], x: Tensor) -> bool:
    """Whether some of what was made has a graph that goes back to ``x``.

    Examples:
        >>> x = torch.ones(4, requires_grad=True).clone()
        >>> _hangs_on([torch.cat([x, x]) * 2], x), _hangs_on([torch.cat([x, x]) * 2], x[1:])
        (True, False)
    """
    waiting, seen = [one.grad_fn for one in made], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [more for more, _ in node.next_functions]
    return any(one is x for one in made) or (x.grad_fn is not None and x.grad_fn in seen)


def renoised(x: Tensor, noise: Tensor, t: Level, t_back: Level) -> Tensor:
    """A latent at ``t`` taken back to the noisier level ``t_back`` of the same path: ``(a/a') x + sqrt(b^2 - (a b'/a')^2) noise``.

    a, b are those of ``t_back`` and a', b' those of ``t``: the marginal of ``t_back`` follows from that of ``t``.
    """
    keep = t_back.signal / t.signal.clamp(min=1e-12)
    return (keep * x + (t_back.noise**2 - (keep * t.noise) ** 2).clamp(min=0).sqrt() * noise).to(x)


def _kernel(guides: Sequence[Guidance]) -> Kernel:
    own = {guide.name: guide.kernel for guide in guides if guide.kernel is not None}
    if len(own) > 1:
        raise UserError(f"guide: {' and '.join(own)} each say how steps are made random; one of them may")
    return next(iter(own.values()), kernels.ode())
