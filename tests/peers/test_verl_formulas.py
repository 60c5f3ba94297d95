"""verl 0.7's losses as its code writes them (it is not installed here), against our dialects of it: value and gradient on fixed numbers.

Each function below is one of its estimators or policy losses, re-derived in a straight line with its own clamps and its own means.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign import needs
from mmalign.types import Feedback, Steps

GROUP = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
LENGTHS = torch.tensor([6, 2, 5, 3, 6, 6, 1, 4])
MASK = torch.arange(6) < LENGTHS[:, None]
REWARDS = torch.tensor([1.0, 0.0, -0.5, 0.4, 2.0, 1.0, 0.0, 0.7], dtype=torch.float64)


def numbers() -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities now, at sampling, and of the reference; some ratios leave every clip."""
    rng = torch.Generator().manual_seed(1)
    now, old, ref = (-torch.rand(8, 6, generator=rng, dtype=torch.float64) * 3 for _ in range(3))
    return now.requires_grad_(), old, ref


def token_mean(values: Tensor) -> Tensor:
    return values[MASK].sum() / MASK.sum()


def row_mean(values: Tensor) -> Tensor:
    return ((values * MASK).sum(1) / MASK.sum(1)).mean()


def grouped(eps: float = 1e-6, std: bool = True) -> Tensor:
    table = REWARDS.view(2, 4)
    ahead = table - table.mean(1, keepdim=True)
    return (ahead / (table.std(1, keepdim=True) + eps) if std else ahead).flatten()[:, None]


def whitened(values: Tensor) -> Tensor:
    inside = values[MASK]
    return (values - inside.mean()) * (inside.var() + 1e-8).rsqrt()


def vanilla(now: Tensor, old: Tensor, advantage: Tensor) -> Tensor:
    ratio = (now - old).clamp(-20, 20).exp()
    clipped = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
    return torch.where(advantage < 0, torch.minimum(-advantage * 3.0, clipped), clipped)


def low_variance_kl(now: Tensor, ref: Tensor) -> Tensor:
    gap = (ref - now).clamp(-20, 20)
    return (gap.exp() - gap - 1).clamp(-10, 10)


def grpo_tokens(now, old, ref):
    return token_mean(vanilla(now, old, grouped()))


def grpo_rows(now, old, ref):
    return row_mean(vanilla(now, old, grouped()) + 0.001 * low_variance_kl(now, ref))


def gspo(now, old, ref):
    mean = ((now - old) * MASK).sum(1) / MASK.sum(1)
    ratio = (now - now.detach() + mean.detach()[:, None]).clamp(max=10).exp()
    return row_mean(torch.maximum(-grouped() * ratio, -grouped() * ratio.clamp(0.8, 1.2)))


def cispo(now, old, ref):
    return token_mean(-(now - old).exp().clamp(0.8, 1.2).detach() * grouped() * now)


def sapo(now, old, ref):
    tau = torch.where(grouped() > 0, grouped().new_tensor(1.0), grouped().new_tensor(1.05))
    return row_mean(-torch.sigmoid(tau * ((now - old).exp() - 1)) * 4 / tau * grouped())


def geo_mean(now, old, ref):
    gap, sign = now - old, grouped().sign()
    kept = sign * torch.minimum(sign * gap, sign * gap.clamp(-0.2, 0.2))
    return (-grouped()[:, 0] * ((kept * MASK).sum(1) / MASK.sum(1)).exp()).mean()


def gpg(now, old, ref):
    return token_mean(-now * grouped(std=False))  # its alpha is rows over rows whose reward is not 0, and multiplies this


def kl_cov(now, old, ref):
    advantage = grouped().expand_as(now)
    inside, logs = advantage[MASK], now[MASK].detach()
    count = max(1, int(len(logs) * 0.0002))
    chosen = ((inside - inside.mean()) * (logs - logs.mean())).topk(count).indices
    values = -(now - old).exp() * advantage
    values = values[MASK] + torch.zeros(len(logs)).double().index_fill(0, chosen, 1.0) * (now - old)[MASK].abs()
    return values.mean()


def reinforce_plus_plus(now, old, ref):
    return token_mean(vanilla(now, old, whitened(REWARDS[:, None].expand_as(now))))


def reinforce_plus_plus_baseline(now, old, ref):
    return token_mean(vanilla(now, old, whitened(grouped(std=False).expand_as(now))))


def opo(now, old, ref):
    lengths, rewards = LENGTHS.double().view(2, 4), REWARDS.view(2, 4)
    baseline = (lengths * rewards).sum(1, keepdim=True) / lengths.sum(1, keepdim=True)
    ratio, advantage = (now - old).exp(), (rewards - baseline).flatten()[:, None]
    return token_mean(torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)))


def pass_at_k(now, old, ref):
    best, place = REWARDS.view(2, 4).topk(2)
    advantage = torch.zeros(2, 4, dtype=torch.float64)
    ahead = (best[:, 0] - best[:, 1]) / (REWARDS.view(2, 4).std(1) + 1e-6)
    advantage.scatter_(1, place[:, :1], ahead[:, None])
    ratio, advantage = (now - old).exp(), advantage.flatten()[:, None]
    return token_mean(torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)))


CASES = [
    ("dapo", grpo_tokens), ("grpo", grpo_rows), ("gspo", gspo), ("cispo", cispo), ("sapo", sapo), ("gmpo", geo_mean), ("gpg", gpg),
    ("kl_cov", kl_cov), ("reinforce_plus_plus", reinforce_plus_plus), ("reinforce_plus_plus_baseline", reinforce_plus_plus_baseline),
    ("opo", opo), ("pass_at_k", pass_at_k),
]  # fmt: skip


@pytest.mark.parametrize("name, formula", CASES, ids=[name for name, _ in CASES])
def test_value_and_gradient(name, formula):
    now, old, ref = numbers()
    method = mm.like("verl", getattr(mm.methods, name))
    steps = Steps(now, MASK, old, {"ref": ref})
    signal = method.signal(Feedback(REWARDS, GROUP, tables={needs.MASK: MASK, needs.OLD: old, needs.refs("ref"): ref}))
    if method.survey is not None:
        signal = method.survey(steps.each(Tensor.detach), signal)
    loss = (method.weigh(MASK) * method.loss(steps, signal).values).sum()
    wanted = formula(now, old, ref)
    gradients = [torch.autograd.grad(value, now, retain_graph=True)[0] for value in (loss, wanted)]
    torch.testing.assert_close(loss, wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
    assert gradients[0].abs().max() > 1e-3


def test_the_clamp_of_verl_s_kl_takes_the_gradient_away_and_k3_keeps_it():
    """A reference 4 nats above: k3 is 49.6, and its gradient is what brings the policy back."""
    for kl, alive in (("k3_clamped", False), ("k3", True), ("k3_straight", True)):
        now = torch.full((1, 1), -5.0, dtype=torch.float64, requires_grad=True)
        steps = Steps(now, torch.ones(1, 1, dtype=torch.bool), now.detach(), {"ref": now.detach() + 4})
        loss = mm.methods.grpo(beta=1.0, kl=kl).loss(steps, torch.zeros(1, 1, dtype=torch.float64)).values.sum()
        assert (torch.autograd.grad(loss, now)[0].abs().item() > 0) is alive
