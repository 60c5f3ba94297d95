"""Where a denoiser looks for the words of a prompt: found without knowing the model, and what it costs where subjects share a place."""

from __future__ import annotations

import math

import pytest
import torch

import mmalign as mm
from mmalign.policies.pipelines.calls import attention
from mmalign.policies.pipelines.denoising import adjoints
from mmalign.policies.twins import pipelines as twins
from mmalign.samplers import subjects
from mmalign.samplers.adjoints import RewardGradient, last
from mmalign.types import Level, UserError

PROMPT, NAMED = "a cat and a dog", ["cat", "dog"]


def tiny(name="StableDiffusionPipeline"):
    schedule = mm.Schedule(steps=3, guidance=1.0, kernel=mm.kernels.ddim(eta=1.0))
    return mm.policies.diffusers(twins.twin(name), schedule=schedule, device="cpu", lora=mm.Lora(rank=2))


@pytest.fixture(scope="module")
def policy():
    return tiny()


def asked(policy, column=1):
    first = policy.first()
    level = Level(*(value[column] for value in first.levels))

    def ask(prompts, x):
        return policy.probe(prompts, x, first.timesteps[column].expand(len(x)), Level(*(v.to(x).expand(len(x)) for v in level)))

    return ask, torch.randn((2, *first.shape), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusion3Pipeline"])
def test_words_and_their_cost(name):
    """Across, and jointly with two encoders' columns one behind the other; tokens of twins are letters behind a beginning."""
    policy = tiny(name)
    cat, count = attention.columns(policy.pipe, policy.caller.call, PROMPT, "cat").split([3 if "3" not in name else 6, 1])
    assert cat.tolist()[:3] == [3, 4, 5] and cat.tolist()[3:] == [77 + place for place in (3, 4, 5)][: len(cat) - 3] and int(count) >= 77
    ask, x = asked(policy)
    x = x.requires_grad_()
    costs = policy.errors.subject_cost(ask, [PROMPT, "x"], [NAMED, []], x)
    (gradient,), costs = torch.autograd.grad(costs.sum(), x), costs.detach()
    assert 0 < float(costs[0]) < 1 and float(costs[1]) == 0
    way = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ends = [policy.errors.subject_cost(ask, [PROMPT, "x"], [NAMED, []], x + side * 0.01 * way)[0].double() for side in (1, -1)]
    slope = float(ends[0] - ends[1]) / 0.02
    assert abs(slope) > 1e-6 and float((gradient * way).sum()) == pytest.approx(slope, rel=0.05)
    with pytest.raises(UserError, match="no text encoder reads"):
        attention.columns(policy.pipe, policy.caller.call, PROMPT, "cow")


def test_one_layer_by_hand():
    """The softmax of one head after the other, and of a mask; and which keys are text: those that another latent leaves alone."""
    rng = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 2, 5, 4, generator=rng), torch.randn(1, 2, 5, 4, generator=rng)
    mask = torch.tensor([[[[True, True, True, True, False]]]])
    seen = attention.Attended(query, key, mask, None).to(torch.tensor([3]), torch.tensor([0, 2]))
    for place, got in zip((0, 2), seen[0, 0], strict=True):
        weights = [[math.exp(float(query[0, head, place] @ key[0, head, k]) / 2) for k in range(4)] for head in range(2)]
        assert float(got) == pytest.approx(sum(row[3] / sum(row) for row in weights) / 2, rel=1e-5)
    other = key.clone()
    other[..., :3, :] += 1
    found = attention.text_keys([attention.Attended(query, key, None, None)], [attention.Attended(query, other, None, None)])
    assert {shape: keys.tolist() for shape, keys in found.items()} == {(5, 5): [3, 4]}


def test_the_cost_by_hand():
    one, two = torch.tensor([[0.7, 0.3], [0.5, 0.5]], dtype=torch.float64), torch.tensor([[0.1, 0.9]], dtype=torch.float64)
    entropy = lambda p: -sum(float(v) * math.log(float(v)) for v in p)  # noqa: E731
    within = (entropy([0.6, 0.4]) - (entropy([0.7, 0.3]) + entropy([0.5, 0.5])) / 2) / math.log(2)
    between = (entropy([0.35, 0.65]) - (entropy([0.6, 0.4]) + entropy([0.1, 0.9])) / 2) / math.log(2)
    assert float(subjects.entangled([one, two])) == pytest.approx((within / 2 + 1 - between) / 2, rel=1e-9)


def test_guidance_moves_along_the_gradient(policy):
    """One guided step's clean estimate less the plain one, against the cost's gradient by a probe at the same latent."""
    pipe, latents = policy.pipe, torch.randn((1, *policy.first().shape), generator=torch.Generator().manual_seed(2))
    call = {"latents": latents, "num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent", "height": 16, "width": 16}
    call = {**policy.caller.call, **call, "num_inference_steps": 3}
    plain = pipe(prompt=PROMPT, **call).images
    with mm.guide(pipe, guidance=mm.guidance.focus(subjects=NAMED, scale=0.0)):
        same = pipe(prompt=PROMPT, **call).images
    with mm.guide(pipe, guidance=mm.guidance.focus(subjects=NAMED, scale=300.0, limit=None)):
        moved = pipe(prompt=PROMPT, **call).images
    with mm.guide(pipe, guidance=mm.guidance.focus(scale=300.0, limit=None)):
        named = pipe(prompt=mm.Prompt(PROMPT, {"subjects": NAMED}), **call).images
    torch.testing.assert_close(same, plain, rtol=1e-4, atol=1e-4)
    assert float((moved - plain).abs().max()) > 1e-4 and torch.equal(moved, named)
    ask, _ = asked(policy, 2)
    with torch.no_grad():
        cost = [float(policy.errors.subject_cost(ask, [PROMPT], [NAMED], x)) for x in (plain, moved)]
    assert cost[1] < cost[0]
    with pytest.raises(UserError, match="no column subjects"), mm.guide(pipe, guidance="focus"):
        pipe(prompt=PROMPT, **call)
    with pytest.raises(UserError, match="takes two words"):
        mm.guidance.focus(subjects=["cat"])


def test_the_running_cost_is_in_the_adjoint(policy):
    """Of a reward that is 0: what is left at the first step is what the second one's first latent costs, times its length."""
    rollout = policy.sample([PROMPT], 1, torch.Generator().manual_seed(0))
    rollout.columns["subjects"] = [NAMED]
    how = RewardGradient(last(None), None, under="ref", subjects=2.0)
    made = {
        one.column: one for one in adjoints.adjoints(policy, rollout, how, lambda *_: None, torch.Generator(), rows_at_once=1).held.adjoints
    }
    column = max(made)
    assert float(made[column].vector.abs().max()) == 0
    ask, _ = asked(policy, column)
    leaf = rollout.held.x[column].clone().requires_grad_()
    with policy.using("ref"):
        (gradient,) = torch.autograd.grad(policy.errors.subject_cost(ask, [PROMPT], [NAMED], leaf).sum(), leaf)
    assert float(gradient.abs().max()) > 0
    torch.testing.assert_close(made[column - 1].vector, -2.0 * float(rollout.held.dt[0, column]) * gradient, rtol=1e-3, atol=1e-9)
    del rollout.columns["subjects"]
    with pytest.raises(UserError, match="no column subjects"):
        adjoints.adjoints(policy, rollout, how, lambda *_: None, torch.Generator(), rows_at_once=1)
