"""Where preferences through denoising errors come to rest, and where they drift: in the closed-form world, and on tables of numbers."""

from __future__ import annotations

import math

import pytest
import torch

import mmalign as mm
from mmalign.needs import refs
from mmalign.samplers import kernels
from mmalign.types import Feedback, Steps
from mmalign.worlds import gaussian, gaussian_forward
from mmalign.worlds.gaussian import QuadraticReward

WORLD = gaussian.one_gaussian([0.7], [0.8])
BETTER = gaussian.tilt(WORLD, QuadraticReward(torch.tensor([1.0]).double()), beta=1.0)
LEVELS = gaussian.flow_levels(5)
ROWS = 12_288


def policy():
    inside = gaussian.GaussianPolicy(WORLD, LEVELS, kernel=kernels.ode())
    gaussian_forward.set_to(inside, WORLD)
    return gaussian_forward.GaussianForward(inside)


def rows(*mixtures):
    """Rows of these Gaussians in turn, ``[ROWS, 1]``."""
    rng = torch.Generator().manual_seed(0)
    return torch.stack([gaussian_forward.tilted_sampler(each)(ROWS // len(mixtures), rng) for each in mixtures], 1).flatten(0, 1)


def gradient(method, outputs, feedback):
    """Of ``shift`` and ``log_scale`` at the policy's start, ``[2, T]``."""
    trained = policy()
    rollout = trained.encode(["a"] * ROWS, outputs, torch.arange(ROWS), torch.Generator().manual_seed(1))
    for name in {need.name for need in method.needs if need.kind == "refs"}:
        if name != "ref":
            trained.sets.keep(name)
        trained.remember(rollout, [name])
    signal = method.signal(feedback)
    steps = trained.steps(rollout, torch.arange(ROWS), needs=method.needs | {refs("ref")} if refs("ref") in method.needs else method.needs)
    signal = signal if method.survey is None else method.survey(steps.each(torch.Tensor.detach), signal)
    (method.weigh(steps.mask) * method.loss(steps, signal).values).sum().backward()
    return torch.stack([trained.parameters()[name].grad[:, 0] for name in ("shift", "log_scale")])


def thumbs(labels):
    return Feedback(torch.full((ROWS,), math.nan).double(), torch.arange(ROWS), labels=labels)


@pytest.mark.parametrize("utility", ["kahneman_tversky", "loss_averse", "risk_seeking"])
def test_thumbs_that_say_nothing_of_the_image_leave_the_reference_where_it_is(utility):
    method = mm.methods.diffusion_kto(utility=utility, beta=2.0)
    outputs = rows(WORLD)
    chance = (torch.rand(ROWS, generator=torch.Generator().manual_seed(2)) > 0.5).double()
    told = gradient(method, outputs, thumbs((outputs[:, 0] > 0.7).double()))
    assert told[0, 1:].lt(0).all()  # a step against it shifts towards what is liked
    assert gradient(method, outputs, thumbs(chance)).norm() < 0.1 * told.norm()


@pytest.mark.parametrize(
    ("utility", "weights"), [("kahneman_tversky", (0.0, 0.0)), ("loss_averse", (0.0, 1.0)), ("risk_seeking", (1.0, 0.0))]
)
def test_where_a_utility_lets_go(utility, weights):
    """The weight of a bad row whose error has grown by 30, and of one whose error has shrunk by 30."""
    method = mm.methods.diffusion_kto(utility=utility, beta=1.0, baseline="zero", error="sum")
    bounds = torch.tensor([[-15.0], [15.0]]).double().requires_grad_()
    steps = Steps(bounds, torch.ones(2, 1).bool(), refs={"ref": torch.zeros(2, 1).double()}, kind="bound")
    feedback = Feedback(torch.zeros(2).double(), torch.arange(2), labels=torch.zeros(2).double())
    method.loss(steps, method.survey(steps, method.signal(feedback))).values.sum().backward()
    assert bounds.grad[:, 0].tolist() == pytest.approx([2 * weight for weight in weights], abs=1e-9)


def pairs_of(better, worse, method):
    feedback = Feedback(torch.full((ROWS,), math.nan).double(), torch.arange(ROWS) // 2, pairs=torch.arange(ROWS).view(-1, 2))
    return gradient(method, rows(better, worse), feedback)


@pytest.mark.parametrize("anchor", [True, False])
def test_seppo_rests_where_the_earlier_checkpoint_draws_what_the_data_hold(anchor):
    method = mm.methods.seppo(beta=2.0, anchor=anchor)
    apart = pairs_of(BETTER, WORLD, method)
    assert apart[0, 1:].lt(0).all()
    assert pairs_of(WORLD, WORLD, method).norm() < 0.1 * apart.norm()


def test_seppo_learns_from_the_sample_where_the_earlier_checkpoint_knows_the_good_image_better():
    method = mm.methods.seppo(beta=1.0, error="sum")
    feedback = Feedback(torch.zeros(2).double(), torch.zeros(2).long(), pairs=torch.tensor([[0, 1]]))
    slopes = {}
    for ahead in (0.5, -0.5):
        bounds = torch.tensor([[ahead], [0.2]]).double().requires_grad_()
        steps = Steps(bounds, torch.ones(2, 1).bool(), refs={"previous": torch.zeros(2, 1).double()}, kind="bound")
        (method.weigh(steps.mask) * method.loss(steps, method.signal(feedback)).values).sum().backward()
        slopes[ahead] = bounds.grad[:, 0].sign().tolist()
    assert slopes == {0.5: [-1.0, 1.0], -0.5: [-1.0, -1.0]}


def test_a_random_checkpoint_is_any_of_those_before_alike():
    counts = torch.zeros(6)
    for offset in range(3000):  # as many runs whose numbering begins elsewhere
        held = 0
        for number in range(1, 6):
            chance = torch.rand((), generator=torch.Generator().manual_seed(7 * offset + number), dtype=torch.float64)
            held = number if float(chance) < 1 / (number + 1) else held
        counts[held] += 1
    assert float((counts / 3000 - 1 / 6).abs().max()) < 0.03
    moves = mm.methods.seppo(every=10).moves
    assert [moves[0].decay(step) for step in (0, 10)] == [0.0, 0.0] and moves[0].every == 10
    assert {mm.methods.seppo(opponent="first").moves[0].decay(step) for step in (50, 100)} == {1.0}
    assert {mm.methods.seppo(opponent="latest").moves[0].decay(step) for step in (0, 50)} == {0.0}


def test_text_dpo_s_minimum_is_guidance_between_the_prompts():
    """Three images, two prompts: the gain under each is a number of its own, and images come as often as their prompts make them."""
    beta, chances = 0.5, torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]]).double()
    method, gains = mm.methods.text_dpo(beta=beta, error="sum"), torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    mask, zero = torch.ones(6, 1).bool(), torch.zeros(6, 1).double()
    feedback = Feedback(torch.zeros(6).double(), torch.arange(6), labels=torch.ones(6).double())
    optimizer = torch.optim.LBFGS([gains], max_iter=100, tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        own, other = gains.flatten()[:, None], gains.flip(0).flatten()[:, None]
        steps = Steps(
            own, mask, refs={"ref": zero}, kind="bound", contrasts={"mismatched": Steps(other, mask, refs={"ref": zero}, kind="bound")}
        )
        loss = (chances.flatten()[:, None] * method.loss(steps, method.signal(feedback)).values).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    apart = (gains[0] - gains[1]).detach()
    torch.testing.assert_close(apart, (chances[0] / chances[1]).log() / beta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight", [0.1, 0.4])
def test_a_beta_that_sets_itself_gives_the_usual_margin_its_weight(weight):
    method = mm.methods.auto_beta_dpo(weight=weight, low=1e-6, high=1e6)
    bounds = torch.tensor([[3.0], [0.0], [3.0], [0.0]]).double().requires_grad_()
    steps = Steps(bounds, torch.ones(4, 1).bool(), refs={"ref": torch.zeros(4, 1).double()}, kind="bound")
    feedback = Feedback(torch.zeros(4).double(), torch.arange(4) // 2, pairs=torch.tensor([[0, 1], [2, 3]]))
    signal = method.survey(steps, method.signal(feedback))
    method.loss(steps, signal).values.sum().backward()
    beta = math.log(1 / weight - 1) / 3
    assert bounds.grad[0].item() == pytest.approx(-2 * weight * beta)  # the value stands in both rows


def test_a_soft_label_rests_at_its_log_odds():
    method = mm.methods.subject_rpo(beta=2.0, similarity=0.0, error="sum")
    gap = math.log(0.8 / 0.2) / 2.0 / 2.0  # of errors, which are twice the bounds
    bounds = torch.tensor([[gap], [0.0]], dtype=torch.float64, requires_grad=True)
    steps = Steps(bounds, torch.ones(2, 1).bool(), refs={"ref": torch.zeros(2, 1).double()}, kind="bound")
    feedback = Feedback(
        torch.zeros(2).double(), torch.zeros(2).long(), pairs=torch.tensor([[0, 1]]), strength=torch.tensor([0.8], dtype=torch.float64)
    )
    method.loss(steps, method.signal(feedback)).values.sum().backward()
    assert float(bounds.grad.abs().max()) < 1e-12
