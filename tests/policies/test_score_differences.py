"""Differences of scores at noised clean estimates of pipelines: the formulas in straight lines, from single probes."""

from __future__ import annotations

import pytest
import torch

import mmalign as mm
from mmalign.policies.pipelines.rollouts.latents import last_frames, weights_of
from mmalign.policies.twins import pipelines as twins
from mmalign.samplers import kernels
from mmalign.samplers.adjoints import one_of
from mmalign.samplers.windows import everything
from mmalign.types import Level, UserError
from tests.policies.test_diffusers import make, rollout_of

METHODS = {
    "dmd2": (mm.methods.dmd2(weight="kl"), False),
    "dmd2, absolute": (mm.methods.dmd2(guidance=2.0), False),
    "tdm": (mm.methods.tdm(separate=False), True),
}


def policy_with_fake(name: str):
    policy = make(name, kernel=kernels.ode(), window=everything())
    policy.sets.keep("fake")
    rng = torch.Generator().manual_seed(3)
    for value in policy.sets.sets["fake"].values():
        value += 0.05 * torch.randn(value.shape, generator=rng)
    return policy


def by_hand(policy, rollout, column, seed, row, difference, *, trajectory):
    held, levels = rollout.held, policy.errors.schedule.levels
    scheduled = policy.schedule()[1]
    with torch.no_grad():
        x_next, next_level = held.x_next[column][row], Level(*(value[column + 1] for value in scheduled))
        x, level = held.x[column][row], Level(*(value[column] for value in scheduled))
        # Euler's and DDIM's step, solved for the clean estimate: x = a D + b e, x' = a' D + b' e
        ratio = next_level.noise / level.noise
        clean = (x_next - ratio * x) / (next_level.signal - ratio * level.signal)
        rng = torch.Generator().manual_seed(seed)
        uniform, fresh = float(torch.rand((), generator=rng)), torch.randn(x.shape, generator=rng)
        order = sorted(range(len(levels.noise)), key=lambda k: float(levels.noise[k] / (levels.signal[k] + levels.noise[k])))
        count, noising = len(order), difference.noising
        order = order[int(noising.low * count) : -int(-noising.high * count // 1)]
        if trajectory:
            after = float(next_level.noise / (next_level.signal + next_level.noise))
            order = [k for k in order if float(levels.noise[k].double() / (levels.signal[k] + levels.noise[k]).double()) > after]
        place = order[min(int(uniform * len(order)), len(order) - 1)]
        a, b = levels.signal[place], levels.noise[place]
        if trajectory:
            scale = a / next_level.signal
            x_tau = scale * x_next + (b**2 - (scale * next_level.noise) ** 2).clamp(min=0).sqrt() * fresh
        else:
            x_tau = a * clean + b * fresh

        def ask(prompt):
            return policy.probe([prompt], x_tau[None], policy.errors.schedule.timesteps[[place]], Level(a[None], b[None])).clean[0]

        with policy.using("ref"):
            real = ask(rollout.prompts[row])
            real = real if difference.guidance == 1 else ask("") + difference.guidance * (real - ask(""))
        with policy.using("fake"):
            fake = ask(rollout.prompts[row])
    if difference.normaliser == "kl":
        return (a / b) ** 2 * (real - fake)
    return (real - fake) / (clean - real).abs().mean() / clean.numel()


@pytest.mark.parametrize("name", ["digits", "stable_diffusion", "sd3"])
@pytest.mark.parametrize("method", METHODS)
def test_a_pull_is_what_single_probes_say(method, name):
    (method, trajectory), policy = METHODS[method], policy_with_fake(name)
    rollout, column = rollout_of(policy), 2
    how = method.reward_gradient._replace(plan=one_of(column + 1, column + 1))
    seeds = torch.randint(2**62, (len(rollout), 1), generator=torch.Generator().manual_seed(1))
    carried = policy.adjoints(rollout, how, None, torch.Generator(), rows_at_once=3, seeds=seeds)
    (adjoint,) = carried.held.adjoints
    assert adjoint.clean and adjoint.column == column
    for row in range(len(rollout)):
        wanted = by_hand(policy, rollout, column, int(seeds[row, 0]), row, how.differences[0], trajectory=trajectory)
        assert float(wanted.abs().max()) > 0
        # float32: a clean estimate is solved for with a loss of some digits, and batches add in another order
        assert float((adjoint.vector[row] - wanted).norm()) < 2e-3 * float(wanted.norm())


def test_a_student_is_not_pulled_where_both_say_the_same():
    policy = make("digits", kernel=kernels.ode(), window=everything())
    policy.sets.keep("fake")
    how = mm.methods.dmd2().reward_gradient
    rollout = rollout_of(policy)
    seeds = torch.arange(len(rollout))[:, None]
    carried = policy.adjoints(rollout, how, None, torch.Generator().manual_seed(0), rows_at_once=4, seeds=seeds)
    assert float(carried.held.adjoints[0].vector.abs().max()) == 0.0


def test_a_teacher_of_other_latents_is_one_line():
    policy, other = make("digits", kernel=kernels.ode(), window=everything()), make("stable_diffusion", kernel=kernels.ode())
    with pytest.raises(UserError, match=r"^references.teacher.policy"):
        policy.refer("teacher", other, ["a 3"])


def test_echotorrent_pulls_the_last_frames_by_one_teacher_after_the_other():
    """Of a video the first frames are left alone, and the last ones have the pull of the teacher whose turn it is."""
    pipe = twins.twin("WanPipeline")
    schedule = mm.Schedule(steps=3, guidance=1.0, kernel=kernels.ode(), window=everything())
    policy = mm.policies.diffusers(pipe, schedule=schedule, call=twins.call_arguments(pipe), device="cpu", lora=mm.Lora(rank=2))
    rng = torch.Generator().manual_seed(3)
    for name in ("fake", "one", "two"):
        policy.sets.keep(name)
        for value in policy.sets.sets[name].values():
            value += 0.05 * torch.randn(value.shape, generator=rng)
    method = mm.methods.echotorrent(teachers=["one", "two"], turn=3, tail=0.2)
    assert {need.name for need in method.needs if need.kind == "score"} == {"one", "two"}
    rollout, plan = rollout_of(policy), one_of(2, 2)
    seeds = torch.arange(len(rollout))[:, None]

    def pulled(how):
        carried = policy.adjoints(rollout, how._replace(plan=plan), None, torch.Generator(), rows_at_once=2, seeds=seeds)
        return carried.held.adjoints[0].vector

    frames = rollout.outputs.shape[1]
    for step, teacher in ((0, "one"), (1, "one"), (3, "two"), (6, "one")):
        if step != 1:
            tail = pulled(method.reward_gradient.at(step))
            whole = pulled(mm.methods.dmd2(teacher=teacher).reward_gradient)
            counts = last_frames(rollout.outputs, 0.2)
            weight = weights_of(policy, counts, rollout.outputs, whole).to(whole)
            assert float(tail[:, :, 0].abs().max()) == 0 < float(tail[:, :, -1].abs().max()) and frames == 5
            torch.testing.assert_close(tail, weight * whole)
        assert method.reward_gradient.at(step).differences[0].toward == teacher
    with pytest.raises(UserError, match=r"method\.tail: got outputs"):
        last_frames(torch.zeros(2, 3, 8, 8), 0.5)
    for wrong in ([], "ref", ["ref", "ref"]):
        with pytest.raises(UserError, match="teachers"):
            mm.methods.echotorrent(teachers=wrong)
