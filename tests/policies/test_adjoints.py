"""A reward's gradient carried back step by step is that of one backward pass through the whole call."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch.utils._pytree import tree_map

import mmalign as mm
from mmalign.policies.pipelines.calls.scheduler import Player
from mmalign.samplers import kernels
from mmalign.samplers.windows import first_fraction
from mmalign.types import Feedback
from tests.policies.test_diffusers import make, rollout_of

METHODS = {
    "draft_1": mm.methods.draft(last_steps=1),
    "draft_3": mm.methods.draft(last_steps=3),
    "draft": mm.methods.draft(last_steps=None),
    "refl": mm.methods.refl(low=3, high=3, most=9.0),
    "alignprop": mm.methods.alignprop(low=2, high=2),
    "drtune": mm.methods.drtune(count=2, early=1),
    "drtune_early": mm.methods.drtune(count=4, early=3),
}


def utility(outputs, rows):
    """Of rows in 0..1, near nothing that is flat."""
    weight = torch.linspace(0.2, 1.0, outputs[0].numel()).reshape(outputs[0].shape)
    return (weight * torch.sin(3 * outputs.double())).flatten(1).mean(1) * (1 + rows)


def gradient_of(policy, loss):
    grads = torch.autograd.grad(loss, list(policy.parameters().values()), allow_unused=True)
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


def by_the_method(policy, rollout, method, *, rows_at_once=2, micro=3):
    how = method.reward_gradient
    carried = policy.adjoints(
        rollout, how, lambda *args: how.utility(utility(*args)), torch.Generator().manual_seed(1), rows_at_once=rows_at_once
    )
    signal = method.signal(Feedback(torch.zeros(len(rollout)).double(), rollout.group))
    weights, total = method.weigh(carried.mask), 0.0
    for rows in torch.arange(len(rollout)).split(micro):
        columns = torch.nonzero(carried.mask[rows].any(0)).flatten()
        steps = policy.steps(carried, rows, columns, needs=method.needs)
        total = total + gradient_of(policy, (weights[rows][:, columns] * method.loss(steps, signal[rows]).values).sum())
    return total, carried


def by_one_pass(policy, rollout, method, plan):
    """One call with its graph, in which steps before the first trained one have none, as papers do it."""
    held, rows, how = rollout.held, torch.arange(len(rollout)), method.reward_gradient
    first = int(torch.nonzero(plan.trained).min())
    now = {"column": 0}

    def stopped(module, args, kwargs):  # what a step without gradient, or one along the latents alone, is given
        bare = now["column"] < first or not how.through
        return tree_map(lambda v: v.detach() if bare and isinstance(v, torch.Tensor) else v, (args, kwargs))

    def silenced(module, args, output):
        keep = bool(plan.trained[now["column"]])
        return (
            output
            if keep or (how.through and now["column"] > first)
            else tree_map(lambda v: v.detach() if isinstance(v, torch.Tensor) else v, output)
        )

    def answer(moment):
        column = moment.column
        kernel = policy.kernel if bool(held.random[column]) else kernels.ode()
        mean, _ = kernel(moment.prediction, moment.x, moment.t, moment.t_next)
        noise = (held.x_next[column] - mean).detach()
        out = moment.prediction.clean if column == plan.end else mean + noise
        if plan.end is not None and column >= plan.end:
            sample.append(out if column == plan.end else sample[-1])
            out = sample[-1]
        now["column"] = min(column + 1, len(plan.trained) - 1)
        return (out if column >= first else out.detach()).clone()

    sample, prompts = [], [rollout.prompts[row] for row in rows]
    with ExitStack() as stack:
        for denoiser in policy.denoisers.values():
            stack.callback(denoiser.register_forward_pre_hook(stopped, with_kwargs=True).remove)
            stack.callback(denoiser.register_forward_hook(silenced).remove)
        outputs = policy.caller.images(prompts, held.starts.tolist(), Player(answer), list(held.together[0]))
    return gradient_of(policy, -how.utility(utility(outputs, rows)).mean())


KERNELS = {
    "ode": {"kernel": kernels.ode()},
    "sde": {"kernel": kernels.flow_sde(noise_level=0.7)},
    "window": {"kernel": kernels.flow_sde(noise_level=0.7), "window": first_fraction(fraction=0.5)},
}


@pytest.mark.parametrize(("name", "kernel"), [*(("digits", kernel) for kernel in KERNELS), ("stable_diffusion", "sde"), ("sd3", "window")])
@pytest.mark.parametrize("method", METHODS)
def test_steps_gone_back_one_by_one_give_the_gradient_of_one_pass(method, name, kernel):
    policy, method = make(name, **KERNELS[kernel]), METHODS[method]
    rollout = rollout_of(policy)
    ours, carried = by_the_method(policy, rollout, method)
    plan = method.reward_gradient.plan(rollout.held.random, torch.Generator().manual_seed(1))
    theirs = by_one_pass(policy, rollout, method, plan)
    assert bool((carried.mask == plan.trained).all())
    assert float(theirs.norm()) > 0
    # float32 passes of some 1e3 layers' sums each way: 1e-4 of the whole gradient
    assert float((ours - theirs).norm()) < 1e-4 * float(theirs.norm())


def test_the_lean_adjoint_goes_back_through_the_reference():
    """At the start it is the gradient itself; once the policy has moved, that of the reference still, on the same samples."""
    policy = make("digits", kernel=kernels.flow_sde(noise_level=2**0.5))
    rollout = rollout_of(policy)

    def vectors(how):
        carried = policy.adjoints(rollout, how, utility, torch.Generator(), rows_at_once=4)
        return torch.stack([adjoint.vector for adjoint in carried.held.adjoints])

    lean, own = mm.methods.adjoint_matching().reward_gradient, mm.methods.draft(last_steps=None, beta=1.0).reward_gradient
    before = vectors(lean)
    torch.testing.assert_close(vectors(own), before, rtol=1e-4, atol=1e-9)
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.mul_(1.1)
    torch.testing.assert_close(vectors(lean), before, rtol=1e-4, atol=1e-9)
    assert float((vectors(own) - before).norm()) > 1e-2 * float(before.norm())
    carried = policy.adjoints(rollout, lean, utility, torch.Generator(), rows_at_once=3)
    for adjoint in carried.held.adjoints:
        torch.testing.assert_close(carried.facts["adjoint_size"][:, adjoint.column], adjoint.vector.double().flatten(1).norm(dim=1))


def test_copies_are_averaged_over_their_own_last_steps():
    """Of K copies each counts 1/K: the term of a moved policy is the mean of what each of them says alone."""
    policy = make("digits", kernel=kernels.ode())
    rollout = rollout_of(policy)
    how = mm.methods.draft(copies=3).reward_gradient
    carried = policy.adjoints(rollout, how, utility, torch.Generator().manual_seed(0), rows_at_once=4)
    first, *others = carried.held.adjoints
    assert len(others) == 2 and all(other.x is not None and other.column == first.column == 3 for other in others)
    alone = policy.adjoints(rollout, mm.methods.draft().reward_gradient, utility, torch.Generator(), rows_at_once=4).held.adjoints[0]
    torch.testing.assert_close(3 * first.vector, alone.vector)
    assert float((others[0].x - others[1].x).abs().max()) > 1e-4
    (gradient,) = [policy.steps(carried, torch.arange(4), torch.tensor([3]), needs=mm.methods.draft().needs).terms["adjoint"]]
    assert float(gradient.abs().max()) < 1e-9  # nothing has moved: each copy's outcome is what it was taken at
