"""Rows that grow on trunks, in any pipeline: what they share, what is their own, and what they cost."""

from __future__ import annotations

import pytest
import torch

import mmalign as mm
from mmalign.rewards._shared.scorer import Scorer
from mmalign.samplers import branches, kernels
from mmalign.samplers.windows import everything, growing_window
from mmalign.training.rollouts.feedback import scores_on
from mmalign.types import Level, Rollout, UserError
from tests.policies.test_diffusers import KERNELS, make

TREES = {
    "at_each_step": (branches.at_each_step(children=2), 6, {}),
    "candidates": (branches.candidates(children=2), 6, {"random": everything()}),
    "fork": (branches.fork(children=2), 4, {"window": growing_window(smallest=3, largest=3), "random": everything()}),
    "one_step": (branches.one_step(), 2, {}),
    "shared_step": (branches.one_step(shared=True), 3, {}),
}
PROMPTS = ["a 1", "a 2", "a 3"]


def grown(name, pipeline="digits_sd3", **more):
    structure, size, schedule = TREES[name]
    policy = make(pipeline, kernel=KERNELS["flow"], branches=structure, **schedule, **more)
    return policy, size


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("pipeline", ["digits_sd3", "stable_diffusion", "flux"])
def test_replay_equals_record_and_siblings_share_what_came_before(name, pipeline):
    policy, size = grown(name, pipeline)
    rollout = policy.sample(PROMPTS[:2], size, torch.Generator().manual_seed(0))
    with torch.no_grad():
        replayed = policy.steps(rollout, torch.arange(len(rollout)), torch.arange(4))
    torch.testing.assert_close(replayed.log_probs, rollout.log_probs, rtol=0, atol=1e-3)  # calls of other sizes: 1e-6 for each number
    assert bool((replayed.log_probs != 0)[rollout.mask].all()) and not bool(replayed.log_probs[~rollout.mask].any())
    held, (structure, _, _) = rollout.held, TREES[name]
    random, trained = policy._window(4, 0, torch.Generator().get_state())
    for group in range(2) if name not in ("one_step", "shared_step") else ():
        tree = structure(trained, random, size, torch.Generator())
        assert torch.equal(rollout.mask[rollout.group == group], tree.trained & (torch.arange(4) < 3))
        for row, other in [(0, 1), (size - 2, size - 1)]:
            leaves = int(tree.leaves[row])
            one, two = held.x[:, group * size + row], held.x[:, group * size + other]
            assert torch.equal(one[: leaves + 1], two[: leaves + 1])
            ends = [held.x_next[leaves, group * size + at] for at in (row, other)]
            assert not torch.equal(*ends)
    assert (rollout.branch is not None) and len(rollout.branch.unique()) == 2 * {6: 3, 4: 2, 2: 1, 3: 1}[size]


@pytest.mark.parametrize("name", TREES)
def test_the_denoiser_sees_as_many_rows_as_the_tree_says_and_no_more(name):
    policy, size = grown(name, rows_at_once=4)
    rng = torch.Generator()
    policy.sample(PROMPTS, size, rng.manual_seed(0))  # learns shapes, by running once for each
    rows = list[int]()
    policy.denoiser.register_forward_hook(lambda module, args, kwargs, output: rows.append(len(output[0])), with_kwargs=True)
    rollout = policy.sample(PROMPTS, size, rng.manual_seed(0))
    random, trained = policy._window(4, 0, torch.Generator().get_state())
    passes = [TREES[name][0](trained, random, size, torch.Generator()).passes for _ in PROMPTS]
    if name == "shared_step":  # each group leaves at its own step
        passes = [4 + size * (3 - int(step)) for step in rollout.mask[::size].int().argmax(1)]
    assert sum(rows) == sum(passes)


def test_candidates_are_the_clean_estimates_at_their_own_next_latents():
    policy, size = grown("candidates")
    rollout = policy.sample(PROMPTS[:1], size, torch.Generator().manual_seed(0))
    x = rollout.held.x[:, 2]  # leaves at step 1, so that step 2 begins at its own latent
    assert torch.equal(x[2], rollout.held.x_next[1, 2])
    from mmalign.policies.pipelines.rollouts.replay import decoded, transition

    with torch.no_grad():
        clean = transition(policy, rollout, torch.tensor([2]), 2).clean
        assert torch.allclose(decoded(policy, rollout, torch.tensor([2]), clean), rollout.outputs[2:3], atol=1e-5)


def test_judges_of_candidates_are_told_the_level_and_shown_the_latents_that_the_estimates_are_made_of():
    policy, size = grown("candidates")
    seen, steps = list[tuple[torch.Tensor, Level]](), policy.schedule()

    def of_noisy(latents, prompts, level, columns):
        seen.append((latents, level))
        return latents.flatten(1).mean(1)

    judge = mm.rewards.on_latents(of=Scorer("judge", lambda outputs, prompts: None, latents=of_noisy))
    rollout = policy.sample(PROMPTS[:2], size, torch.Generator().manual_seed(0))
    told = lambda outputs, prompts, level=None: torch.tensor([noise for _, noise in level])  # noqa: E731
    scores = scores_on({"judge": judge, "told": told}, rollout, policy=policy).named
    (x, level), ends = seen[0], torch.tensor([1, 1, 2, 2, 3, 3] * 2)  # a row leaves the step before
    assert torch.equal(scores["told"].float(), steps[1].noise[ends]) and torch.equal(scores["judge"], x.flatten(1).mean(1).double())
    with torch.no_grad():
        clean = policy.probe(rollout.prompts, x, steps[0][ends], Level(*(value.float() for value in level))).clean
    torch.testing.assert_close(policy.latents(rollout), clean, atol=1e-4, rtol=0)
    some = rollout.take(torch.tensor([4, 0]))
    assert torch.equal(some.columns["noisy"][1], x[0]) and some.columns["level"][0] == rollout.columns["level"][4]
    assert "noisy" not in grown("fork")[0].sample(PROMPTS[:1], 4, torch.Generator()).columns


@pytest.mark.parametrize("name", TREES)
def test_a_part_of_the_prompts_is_the_rows_that_take_would_give(name):
    policy, size = grown(name)
    whole: Rollout = policy.sample(PROMPTS, size, torch.Generator().manual_seed(0))
    part = policy.sample(PROMPTS, size, torch.Generator().manual_seed(0), part=slice(1, 3))
    same = whole.take(torch.arange(size, 3 * size))
    assert torch.equal(part.branch, same.branch) and torch.equal(part.mask, same.mask)
    torch.testing.assert_close(part.outputs, same.outputs, atol=1e-4, rtol=0)
    parts = [policy.sample(PROMPTS, size, torch.Generator().manual_seed(0), part=slice(at, at + 1)) for at in range(3)]
    joined = Rollout.join(parts)
    assert len(joined.branch.unique()) == len(whole.branch.unique()) and torch.equal(joined.facts["std"], whole.facts["std"])
    with torch.no_grad():
        torch.testing.assert_close(
            policy.steps(joined, torch.arange(len(joined)), torch.arange(4)).log_probs, whole.log_probs, rtol=0, atol=1e-3
        )


def test_a_group_that_branches_do_not_divide_is_refused():
    policy, _ = grown("at_each_step")
    with pytest.raises(UserError, match=r"batch\.group: got 5, takes a multiple of 6 for branches\.at_each_step"):
        policy.sample(PROMPTS, 5, torch.Generator())


def test_random_steps_that_are_not_trained_have_noise_and_no_place_in_the_table():
    policy = make("digits", kernel=kernels.flow_sde(noise_level=0.7), window=growing_window(smallest=2, largest=2), random=everything())
    rollout = policy.sample(["a 1"], 2, torch.Generator().manual_seed(0))
    assert rollout.mask.tolist() == [[False, False, True, False]] * 2 and rollout.held.random.tolist() == [True, True, True, False]
    assert rollout.held.columns.tolist() == [2] and policy.steps(rollout, torch.arange(2)).log_probs.shape == (2, 1)
    still = make("digits", kernel=kernels.flow_sde(noise_level=0.7), window=growing_window(smallest=2, largest=2))
    assert not torch.equal(still.sample(["a 1"], 2, torch.Generator().manual_seed(0)).held.x[1], rollout.held.x[1])


def test_a_window_is_one_for_a_group_and_groups_have_their_own():
    policy = make("digits", kernel=KERNELS["flow"], branches=branches.one_step())
    masks = policy.sample([f"a {digit}" for digit in range(6)], 3, torch.Generator().manual_seed(0)).mask.unflatten(0, (6, 3))
    assert bool((masks == masks[:, :1]).all()) and masks.sum(2).eq(1).all() and len(masks[:, 0].unique(dim=0)) > 1


@pytest.mark.parametrize(
    ("schedule", "group", "line"),
    [
        ({"branches": branches.at_each_step(children=4)}, 10, r"batch\.group: got 10, takes a multiple of 12"),
        ({"branches": branches.fork(children=4)}, 6, r"batch\.group: got 6, takes a multiple of 4"),
        (
            {"branches": branches.fork(children=2), "window": growing_window(smallest=5, largest=5)},
            4,
            r"largest: got 5, takes at most the 4",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_is_sampled(schedule, group, line):
    policy = make("digits", kernel=KERNELS["flow"], **schedule)
    policy.denoiser.register_forward_pre_hook(lambda module, args: pytest.fail("the denoiser ran"))
    with pytest.raises(UserError, match=line):
        policy.refuse_structure(mm.methods.tempflow_grpo(), group, 3)
    with pytest.raises(UserError, match="carries the gradient of rewards"):
        policy.refuse_structure(mm.methods.draft(), group, 3)
