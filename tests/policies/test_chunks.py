"""A video that a pipeline makes in chunks, each of which goes on from those before, as one rollout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import softplus

import mmalign as mm
from mmalign.data.pairs import listed
from mmalign.needs import REALISM, REALISM_OF_GIVEN
from mmalign.policies.pipelines.denoising import score_differences as score_differences_of
from mmalign.policies.pipelines.denoising.classifying import by_row, features
from mmalign.policies.pipelines.denoising.denoising_errors import Noised
from mmalign.policies.pipelines.rollouts.probing import cut
from mmalign.policies.pipelines.rollouts.replay import decoded, transition, transition_at_once
from mmalign.policies.twins import pipelines as twins
from mmalign.records import Thumb
from mmalign.samplers import kernels, score_differences, windows
from mmalign.samplers.adjoints import RewardGradient, last
from mmalign.samplers.score_differences import Adversary, Noising
from mmalign.types import Level, UserError

STEPS = 3


@pytest.fixture(scope="module", params=["inverted_anti_drifting", "vanilla"])
def policy(request):
    pipe = twins.twin("HunyuanVideoFramepackPipeline")
    call = {**twins.call_arguments(pipe), "latent_window_size": 2, "num_frames": 10, "sampling_type": request.param}
    schedule = mm.Schedule(steps=STEPS, kernel=kernels.flow_sde(noise_level=0.7), window=windows.all_but_last())
    return mm.policies.diffusers(pipe, schedule=schedule, call=call, device="cpu", lora=mm.Lora(rank=2), memory=mm.Memory(rows_at_once=1))


def test_two_chunks_are_one_rollout(policy):
    """Every chunk has the window's steps, is played again to the last bit, and goes on from what the one before became."""
    rollout = policy.sample(["a fox"], 2, torch.Generator().manual_seed(0))
    held = rollout.held
    assert held.chunk.tolist() == [0] * STEPS + [1] * STEPS and held.chunks == 2
    assert rollout.mask.tolist() == [[True, True, False] * 2] * 2
    assert policy.random_steps(["a fox"]).tolist() == [True, True, False] * 2
    whole = policy.steps(rollout, torch.arange(2), needs=frozenset({mm.needs.DT}))
    live = rollout.mask[:, held.columns]
    assert torch.equal(whole.log_probs[live], whole.old[live])
    assert torch.allclose(whole.facts["dt"][:, :2], whole.facts["dt"][:, 2:])
    whole.log_probs[:, -1].sum().backward()
    assert any(p.grad is not None and bool(p.grad.abs().max() > 0) for p in policy.parameters().values())
    other = policy.steps(rollout.take(torch.tensor([1])), torch.arange(1))
    assert torch.equal(other.log_probs[0], whole.log_probs[1])
    held.x_next[STEPS - 1, 0] += 1.0
    moved = policy.steps(rollout, torch.arange(2))
    assert torch.equal(moved.log_probs[0, :2], whole.log_probs[0, :2]) and not torch.equal(moved.log_probs[0, 2:], whole.log_probs[0, 2:])


@pytest.mark.parametrize("policy", ["vanilla"], indirect=True)
def test_policy_gradients_train_it(policy, tmp_path):
    run = mm.online(
        policy, prompts=["a fox", "a hare"], rewards={"bright": lambda outputs, prompts: outputs.flatten(1).mean(1)},
        method=mm.methods.flow_grpo(ratio="per_step"), steps=1, batch={"prompts": 2, "group": 2},
        evaluation={"every": 1, "samples": 1}, run={"folder": str(tmp_path), "name": "chunks", "trackers": ()},
    )  # fmt: skip
    assert run.summary["preflight_difference"] == 0.0 and run.summary["steps"] == 1


def shifted(policy, name: str) -> None:
    """A set of parameters that is another than what is trained now."""
    policy.sets.keep(name)
    rng = torch.Generator().manual_seed(len(name))
    for value in policy.sets.sets[name].values():
        value += 0.1 * torch.randn(value.shape, generator=rng)


def spoken(policy, ask):
    """What the transformer was handed in each call while something was asked."""
    calls, note = [], lambda module, args, kwargs: calls.append(dict(kwargs))
    hook = policy.denoiser.register_forward_pre_hook(note, with_kwargs=True)
    made = ask()
    hook.remove()
    return made, calls


def clean_of(policy, call: dict, **other):
    """The clean estimate ``x - sigma v`` of a call of the transformer itself."""
    call = {**call, **other}
    sigma = call["timestep"].float() / 1000.0
    return call["hidden_states"] - sigma.view(-1, 1, 1, 1, 1) * policy.denoiser(**call)[0].float()


def at_level(policy, clean, seed: int, number: int):
    """A clean estimate noised as differences of scores do, and what the transformer takes for it. number: of its first step."""
    uniform, noise = score_differences.draws(torch.tensor([seed + number]), clean)
    schedule, any_step = policy.errors.schedule, Level(torch.tensor(0.5), torch.tensor(0.5))
    place = int(score_differences.places(uniform, schedule.levels, Noising(), any_step, any_step)[0])
    sigma = schedule.levels.noise[place]
    x = (1 - sigma) * clean + sigma * noise
    return float(sigma), {"hidden_states": x, "timestep": schedule.timesteps[place : place + 1], "guidance": torch.tensor([1000.0])}


def test_distribution_matching_reaches_every_chunk_as_backpropagation_by_hand(policy):
    """Each chunk's clean estimate, noised, is asked of teacher and fake past the chunks that it goes on from, and its pull goes back
    through one step of the student: against calls of the transformer itself with what the pipeline handed it as the video was made."""
    for name in ("teacher", "fake"):
        shifted(policy, name)
    rollout, calls = spoken(policy, lambda: policy.sample(["a fox"], 2, torch.Generator().manual_seed(0)))
    assert len(calls) == 4 * STEPS  # two rows of two chunks
    how = mm.methods.dmd2(teacher="teacher", weight="kl").reward_gradient
    seeds = torch.tensor([[5], [11]])
    carried = policy.adjoints(rollout, how, None, torch.Generator().manual_seed(4), rows_at_once=1, seeds=seeds)
    columns = [one.column for one in carried.held.adjoints]
    assert [column // STEPS for column in columns] == [0, 1]
    for parameter in policy.parameters().values():
        parameter.grad = None
    policy.steps(carried, torch.arange(2), needs=frozenset({mm.needs.ADJOINT})).terms["adjoint"].sum().backward()
    own = {name: parameter.grad.clone() for name, parameter in policy.parameters().items()}
    wanted = torch.zeros(())
    for row in range(2):
        for number, column in enumerate(columns):
            clean = clean_of(policy, calls[2 * STEPS * row + column])
            with torch.no_grad():
                sigma, noised = at_level(policy, clean, int(seeds[row, 0]), number * STEPS)
                answers = []
                for name in ("teacher", "fake"):
                    with policy.using(name):
                        answers.append(clean_of(policy, calls[2 * STEPS * row + column], **noised))
                pull = ((1 - sigma) / sigma) ** 2 * (answers[0] - answers[1])
            torch.testing.assert_close(carried.held.adjoints[number].vector[row], pull[0], rtol=1e-3, atol=1e-4 * float(pull.abs().max()))
            wanted = wanted + (pull * clean).sum()
    for name, gradient in zip(own, torch.autograd.grad(wanted, list(policy.parameters().values())), strict=True):
        torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()) + 1e-9)


def test_a_fake_learns_a_chunk_past_those_before_it(policy):
    rollout, calls = spoken(policy, lambda: policy.sample(["a fox"], 2, torch.Generator().manual_seed(0)))
    column, seeds = STEPS + 1, torch.tensor([5, 11])
    view, rows = policy.noised(rollout, column, Noising(), seeds, rows_at_once=1)
    bound = view.steps(rows.take(torch.tensor([1])), torch.arange(1)).log_probs
    call = calls[2 * STEPS + column]
    with torch.no_grad():
        clean = clean_of(policy, call)
        sigma, noised = at_level(policy, clean, 11, 0)
        target = (noised["hidden_states"] - clean) / sigma
        wanted = -0.5 * (policy.denoiser(**{**call, **noised})[0] - target).double().square().sum()
    torch.testing.assert_close(bound.squeeze().detach(), wanted, rtol=1e-4, atol=0)
    with pytest.raises(UserError, match=r"are \[2, 4, 2, 4, 4\], and those of samples are \[2, 4, 5, 4, 4\]; takes the size"):
        policy.noised(rollout, column, Noising(), seeds, rows_at_once=1, given=(["a"] * 2, torch.zeros(2, 5, 3, 32, 32)))


def real_second_chunk(policy, video, call: dict) -> tuple[torch.Tensor, dict]:
    """The latents of the chunk of a given video ``[1, F, C, H, W]`` that is made second, and what the transformer is handed of the one
    before. The first of its five latent frames is the picture's place; the chunks have two each."""
    vae = policy.pipe.vae
    with torch.no_grad():
        frames = vae.encode((2 * video - 1).transpose(1, 2)).latent_dist.mode() * vae.config.scaling_factor
    picture = call["latents_clean"][:, :, :1]
    if policy.caller.call["sampling_type"] == "vanilla":  # goes on from the first two
        chunk, nearest, next_two = frames[:, :, 3:], frames[:, :, 2:3], torch.cat([picture, frames[:, :, 1:2]], 2)
    else:  # the end is made first
        chunk, nearest, next_two = frames[:, :, 1:3], frames[:, :, 3:4], torch.cat([frames[:, :, 4:], torch.zeros_like(picture)], 2)
    return chunk, {"latents_clean": torch.cat([picture, nearest], 2), "latents_history_2x": next_two}


def told(policy, view, call: dict) -> torch.Tensor:
    """A classifier's logit of one call of the transformer itself."""
    with features(policy.denoisers) as seen:
        policy.denoiser(**call)
    return view.classifier(by_row(seen, 1)[0]).squeeze()


def test_a_classifier_sees_a_real_chunk_past_the_real_ones_before_it(policy):
    """Real videos come whole: they are cut as the pipeline puts its chunks together, and each is shown behind its own; against calls of
    the transformer itself. The pull of a student's chunk is the derivative there, behind the student's."""
    policy.sets.keep("fake")
    rollout, calls = spoken(policy, lambda: policy.sample(["a fox"], 2, torch.Generator().manual_seed(0)))
    videos = torch.rand((2, 17, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    column, seeds, view = STEPS + 1, torch.tensor([5, 11]), policy.errors.classifying("fake")
    _, rows = policy.noised(rollout, column, Noising(), seeds, rows_at_once=1, given=(["a fox"] * 2, videos))
    both = rows.take(torch.tensor([1, 0])).held
    policy.caller._shapes.clear()  # what stands still runs once, for its shape, and has no say
    policy._places.pop(1, None)
    terms = view.steps(replace(rows, held=Noised.join([both])), torch.arange(2), needs=frozenset({REALISM, REALISM_OF_GIVEN})).terms
    one, order = Adversary("fake", 0.3, Noising()), [1, 0]
    (pulled,) = score_differences_of.pulls(
        policy, rollout, torch.arange(2), column, transition(policy, rollout, torch.arange(2), column), seeds[:, None], (one,)
    )
    for place, row in enumerate(order):
        call = {
            name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in calls[2 * STEPS * row + column].items()
        }
        with torch.no_grad():
            clean = clean_of(policy, call)
            chunk, history = real_second_chunk(policy, videos[row : row + 1], call)
            real = {**call, **at_level(policy, chunk, int(seeds[row]), 0)[1]}
            wanted = told(policy, view, {**real, **history})
            assert float((told(policy, view, real) - wanted).abs()) > 1e-4
        torch.testing.assert_close(terms["realism_of_given"][place, 0].float(), wanted, rtol=0, atol=2e-6)
        sigma, noised = at_level(policy, clean, int(seeds[row]), 0)
        leaf = noised["hidden_states"].requires_grad_()
        logit = told(policy, view, {**call, **noised, "hidden_states": leaf})
        torch.testing.assert_close(terms["realism"][place, 0].float(), logit.detach(), rtol=0, atol=2e-6)
        (slope,) = torch.autograd.grad(-one.weight * softplus(-logit), leaf)
        torch.testing.assert_close(pulled[row], (1 - sigma) * slope[0], rtol=1e-3, atol=1e-4 * float(slope.abs().max()))


def test_videos_that_cannot_be_cut_are_one_line(policy):
    class Silent:
        pipe = policy.pipe

        def __call__(self, *args, **call):
            return ((),)

    with pytest.raises(UserError, match=r"method\.gan: HunyuanVideoFramepackPipeline .* does not return their latents"):
        cut(Silent(), "a fox")


@pytest.mark.parametrize("policy", ["vanilla"], indirect=True)
@pytest.mark.parametrize("method", [mm.methods.echotorrent(tail=0.5, updates=1, reward=1.0), mm.methods.dmd2(gan=0.1, updates=1)])
def test_a_streaming_student_is_trained(policy, method, tmp_path):
    """EchoTorrent's pull of what is made last, and a reward, move it, or DMD2's with real videos; the fake learns beside it."""
    before = {name: parameter.detach().clone() for name, parameter in policy.parameters().items()}
    real = {} if method.reward_gradient.utility is not None else {"records": listed([Thumb("a fox", torch.rand(17, 3, 32, 32), 1.0)])}
    run = mm.online(
        policy, prompts=["a fox"], rewards={"bright": lambda outputs, prompts: outputs.flatten(1).mean(1)},
        method=method, steps=1, batch={"prompts": 1, "group": 1}, **real,
        evaluation={"every": 1, "samples": 1}, run={"folder": str(tmp_path), "name": "stream", "trackers": ()},
    )  # fmt: skip
    moved = [name for name, parameter in policy.parameters().items() if not torch.equal(parameter, before[name])]
    assert run.summary["steps"] == 1 and moved and "fake" in policy.sets.tables()


def test_chunks_before_the_tail_are_not_pulled(policy):
    shifted(policy, "fake")
    rollout = policy.sample(["a fox"], 1, torch.Generator().manual_seed(0))
    ask = lambda how: policy.adjoints(rollout, how, None, torch.Generator(), rows_at_once=1, seeds=torch.tensor([[7]])).held.adjoints  # noqa: E731
    whole, tail = (ask(mm.methods.echotorrent(tail=tail).reward_gradient.at(0)) for tail in (None, 0.5))
    assert float(tail[0].vector.abs().max()) == 0 < float(whole[0].vector.abs().max())
    assert torch.equal(tail[1].vector, 2 * whole[1].vector)


def test_a_reward_reaches_every_chunk_with_the_others_as_they_were_made(policy):
    """The derivative by each chunk's last latent, against a difference of two decoded videos."""
    rollout, rng = policy.sample(["a fox"], 1, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    ask = lambda how: policy.adjoints(rollout, how, lambda outputs, rows: outputs.flatten(1).sum(1), rng, rows_at_once=1)  # noqa: E731
    made = ask(RewardGradient(last(1), lambda rewards: rewards)).held.adjoints
    assert [one.column for one in made] == [STEPS - 1, 2 * STEPS - 1]
    for one in made:
        way, here = 1e-2 * torch.randn(one.point.shape, generator=rng), rollout.held.x_next[one.column]
        with torch.no_grad():
            above, below = (decoded(policy, rollout, torch.arange(1), here + sign * way, one.column).double().sum() for sign in (1, -1))
        assert float((above - below) / 2) == pytest.approx(float((one.vector * way).sum()), rel=0.05)
    before = ask(RewardGradient(last(2), lambda rewards: rewards)).held.adjoints[::2]  # through the last step of each chunk
    assert [one.column for one in before] == [STEPS - 2, 2 * STEPS - 2]
    for one in before:
        way, here, after = 1e-2 * torch.randn(one.point.shape, generator=rng), rollout.held.x_next[one.column], one.column + 1
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                became = transition_at_once(policy, rollout, torch.arange(1), after, here + sign * way).mean
                ends.append(float(decoded(policy, rollout, torch.arange(1), became, after).double().sum()))
        assert (ends[0] - ends[1]) / 2 == pytest.approx(float((one.vector * way).sum()), rel=0.05)
    with pytest.raises(UserError, match=f"takes up to the {STEPS} steps"):
        ask(RewardGradient(last(STEPS + 1), lambda rewards: rewards))


def after(policy, rollout, column: int, moved: torch.Tensor, *, across: bool) -> torch.Tensor:
    """The video where a step's outcome was another, and the noise of all steps behind it the same, those of later chunks too; or of which
    later chunks are as they were made."""
    held, rows = rollout.held, torch.arange(len(rollout))
    other = replace(rollout, held=replace(held, x=held.x.clone(), x_next=held.x_next.clone()))
    other.held.x_next[column] = moved
    for step in range(column + 1, len(held.x) if across else (column // STEPS + 1) * STEPS):
        if held.chunk[step] == held.chunk[step - 1]:
            other.held.x[step] = other.held.x_next[step - 1]
        with torch.no_grad():
            was, now = (transition_at_once(policy, one, rows, step).mean for one in (rollout, other))
        other.held.x_next[step] = held.x_next[step] + now - was
    with torch.no_grad():
        return decoded(policy, other, rows, other.held.x_next[-1])


def test_adjoint_matching_has_what_a_chunk_does_to_those_behind_it(policy):
    """The adjoint of each chunk's step, against two videos of which all that is behind the step was made anew."""
    rollout, rng = policy.sample(["a fox"], 1, torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    frames = slice(8) if policy.caller.call["sampling_type"] != "vanilla" else slice(9, 17)  # of the chunk that is made second
    say = lambda outputs, rows: (outputs.double()[:, frames] - 0.5).square().flatten(1).sum(1)  # noqa: E731
    how = mm.methods.adjoint_matching().reward_gradient
    ask = lambda how: policy.adjoints(rollout, how, say, rng, rows_at_once=1).held.adjoints  # noqa: E731
    made, apart = ask(how), ask(how._replace(across=False))
    assert [one.column for one in made] == [0, 1, STEPS, STEPS + 1]

    def slope(one, way, across=True):
        above, below = (float(say(after(policy, rollout, one.column, one.point + s * way, across=across), None)) for s in (1, -1))
        return (above - below) / 2

    for one, alone in zip(made, apart, strict=True):
        crossing = one.vector - alone.vector if one.column < STEPS else one.vector
        way = 0.01 * crossing / crossing.square().mean().sqrt()
        if one.column < STEPS:
            found = slope(one, way) - slope(one, way, across=False)
            assert found == pytest.approx(float((crossing * way).sum()), rel=0.1)
        else:
            assert torch.equal(one.vector, alone.vector) and slope(one, way) == pytest.approx(float((crossing * way).sum()), rel=0.05)
    policy.steps(policy.adjoints(rollout, how, say, rng, rows_at_once=1), torch.arange(1), needs=mm.methods.adjoint_matching().needs)


def test_what_chunks_have_not_is_one_line(policy):
    rollout, rng = policy.sample(["a fox"], 1, torch.Generator().manual_seed(0)), torch.Generator()
    with pytest.raises(UserError, match=r"method\.subjects: .* in 2 chunks"):
        how = mm.methods.adjoint_matching(subjects=1.0).reward_gradient
        policy.adjoints(rollout, how, lambda outputs, rows: outputs.sum(), rng, rows_at_once=1)
    with pytest.raises(UserError, match="each of its own latents"):
        policy.latents(rollout)
