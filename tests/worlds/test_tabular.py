"""The tabular world: its exact numbers against enumeration, the policy on it, and what trained policies come to."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.needs import COLLISION, ENTROPY, OLD, kls, refs, reverse_kls
from mmalign.objectives.feedback.shaping import potential_shaping
from mmalign.records import RefusedRow
from mmalign.training.evaluations.own_samples import own_samples
from mmalign.types import Behavior, UserError
from mmalign.worlds.tabular import behavior, bilevel, mdp, pairs
from mmalign.worlds.tabular.mdp import Mdp
from mmalign.worlds.tabular.policy import TabularPolicy, tabular

DOUBLE = torch.float64


def small(seed: int = 0, *, states: int = 3, horizon: int = 3, sure: bool = False) -> Mdp:
    """A world of random numbers with two actions, whose last state is an end."""
    rng = torch.Generator().manual_seed(seed)
    shape = states, 2, states
    chances = torch.rand(shape, generator=rng, dtype=DOUBLE)
    if sure:
        chances = torch.nn.functional.one_hot(chances.argmax(-1), states).double()
    paid = {name: torch.randn(shape, generator=rng, dtype=DOUBLE) for name in ("first", "second")}
    ends = torch.tensor([False] * (states - 1) + [True])
    names = tuple("abcdef"[:states])
    return Mdp(names, ("x", "y"), chances / chances.sum(-1, keepdim=True), paid, ends, (0, 1), discount=0.8, horizon=horizon)


def returns(world: Mdp, reward: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Every episode, and its return, step by step."""
    states, actions, live, chance = bilevel.episodes(world)
    totals = []
    for where, done, alive in zip(states.tolist(), actions.tolist(), live.tolist(), strict=True):
        steps = (t for t in range(world.horizon) if alive[t])
        totals.append(sum(world.discount**t * float(reward[where[t], done[t], where[t + 1]]) for t in steps))
    return states, actions, live, chance, torch.tensor(totals, dtype=DOUBLE)


def test_what_policies_are_worth_is_the_mean_over_all_episodes() -> None:
    world, rng = small(), torch.Generator().manual_seed(1)
    reward, logits = world.reward({"first": 1.0, "second": -0.5}), torch.randn(3, 2, generator=rng, dtype=DOUBLE).requires_grad_()
    states, actions, live, chance, totals = returns(world, reward)
    said = (logits.log_softmax(-1)[states[:, :-1], actions] * live).sum(1)
    probability = chance * said.exp()
    assert float(probability.detach().sum()) == pytest.approx(1, abs=1e-12)
    exact, counted = mdp.worth(world, logits.softmax(-1), reward), (probability * totals).sum()
    assert float(exact.detach()) == pytest.approx(float(counted.detach()), abs=1e-12)
    (slope,) = torch.autograd.grad(exact, logits)
    (score,) = torch.autograd.grad((probability.detach() * totals * said).sum(), logits)  # E[R grad log pi]
    torch.testing.assert_close(slope, score, rtol=0, atol=1e-12)


def test_the_optimum_is_the_best_of_all_plans() -> None:
    world = small(horizon=2)
    reward = world.reward({"first": 1.0})
    best, choices = mdp.optimum(world, reward)
    plans = []
    for plan in itertools.product((0, 1), repeat=4):  # an action for each time and each state that is no end
        value = torch.zeros(3, dtype=DOUBLE)
        for time in (1, 0):
            done = [*plan[2 * time : 2 * time + 2], 0]
            value = torch.stack([
                torch.zeros((), dtype=DOUBLE) if world.ends[s]
                else (world.transitions[s, done[s]] * (reward[s, done[s]] + world.discount * value)).sum()
                for s in range(3)
            ])  # fmt: skip
        plans.append(value)
    torch.testing.assert_close(best[0], torch.stack(plans).amax(0))
    torch.testing.assert_close(choices.amax(-1)[:, :2], best[:-1, :2])


def test_a_grid_is_what_its_map_says() -> None:
    world = mm.worlds.grid(rows=["S#", ".G"], rewards={"goal": {"G": 2.0}}, slip=0.4, discount=0.5, horizon=3)
    assert world.states == ("0,0", "1,0", "1,1") and world.starts == (0,) and world.ends.tolist() == [False, False, True]
    south = world.transitions[0, world.actions.index("south")]
    assert south.tolist() == pytest.approx([0.6 * 0 + 0.4 * 3 / 4, 0.6 + 0.4 / 4, 0.0])
    assert world.rewards["goal"][1, 0].tolist() == [0, 0, 2]
    assert mdp.distances(world).tolist() == [2, 1, 0]
    for odd, line in (({"rows": ["S.", "G"]}, "one length"), ({"ends": "Z"}, "letters of the map"), ({"rewards": {"a": {"q": 1}}}, "'q'")):
        with pytest.raises(UserError, match=line):
            mm.worlds.grid(**odd)


def test_rows_are_scored_as_they_were_drawn() -> None:
    world = mm.worlds.grid(slip=0.3)
    policy = tabular(world=world, start=torch.randn(11, 4, generator=torch.Generator().manual_seed(3), dtype=DOUBLE).tolist())
    greedy = Behavior("greedy", {"current": 1.0}, part=0.0, greedy=True)
    rollout = policy.sample(["0,0", "1,3"], 3, torch.Generator().manual_seed(0), behaviors=[greedy])
    policy.remember(rollout, ["ref"])
    with torch.no_grad():
        policy.parameters()["logits"] += torch.randn(11, 4, generator=torch.Generator().manual_seed(4), dtype=DOUBLE)
    needs = frozenset({OLD, refs("ref"), kls("ref"), reverse_kls("ref"), ENTROPY, COLLISION})
    rows = torch.arange(len(rollout))
    steps, moved = policy.steps(rollout, rows, needs=needs), policy.log_probs()
    with policy.using("ref"):
        base = policy.log_probs()
    assert not bool(rollout.mask[[3, 7]].any()) and bool(rollout.mask[:3].any())  # a greedy row decides nothing
    for row, output in enumerate(rollout.outputs):
        words, here, spans = output.split(), world.states.index(rollout.prompts[row]), rollout.spans()[row]
        for at, (action, led) in enumerate(zip(words[::2], words[1::2], strict=True)):
            assert output[slice(*spans[at])] == f"{action} {led}"
            done = world.actions.index(action)
            if rollout.mask[row, at]:
                p, q = moved[here].exp(), base[here].exp()
                assert float(steps.log_probs[row, at]) == pytest.approx(float(moved[here, done]))
                assert float(steps.refs["ref"][row, at]) == pytest.approx(float(base[here, done]))
                assert float(rollout.log_probs[row, at]) == pytest.approx(float(base[here, done]))
                assert float(steps.kls["ref"][row, at]) == pytest.approx(float((p * (p / q).log()).sum()))
                assert float(steps.reverse_kls["ref"][row, at]) == pytest.approx(float((q * (q / p).log()).sum()))
                assert float(steps.terms["entropy"][row, at]) == pytest.approx(float(-(p * p.log()).sum()))
                assert float(steps.terms["collision"][row, at]) == pytest.approx(float((p**2).sum().log()))
            here = world.states.index(led)
        assert bool(world.ends[here]) or len(words) == 2 * world.horizon
    given = policy.encode(rollout.prompts, rollout.outputs, rollout.group, torch.Generator())
    assert torch.equal(policy.steps(given, rows[:3]).log_probs, steps.log_probs[:3])
    drawn = lambda part: policy.sample(["0,0", "1,3"], 3, torch.Generator().manual_seed(5), part=part).outputs  # noqa: E731
    assert drawn(slice(0, 1)) + drawn(slice(1, 2)) == drawn(slice(None))


def test_what_is_no_episode_is_refused() -> None:
    policy = TabularPolicy(mm.worlds.grid())
    assert policy.refusals(["0,0", "2,3", "home"]).keys() == {1, 2}
    for odd, line in (("east", "1 words"), ("fly 0,1", "takes one of east"), ("east 2,2", "cannot be"), ("", "0 words")):
        with pytest.raises(RefusedRow, match=line):
            policy.encode(["0,0"], [odd], torch.tensor([0]), torch.Generator())
    with pytest.raises(UserError, match=r"policy\.start"):
        tabular(start=[[0.0]])


def test_a_potential_changes_no_order_and_progress_does() -> None:
    """Q* of the shaped world is ``Q* - Phi``; over an episode the help comes to minus the potential of its start, wherever it ends."""
    world = mm.worlds.grid(slip=0.2, discount=0.9, horizon=40)
    potential = -mdp.distances(world)
    plain, help_ = world.reward({"goal": 1.0}), world.discount * potential[None, None, :] - potential[:, None, None]
    q, shaped = (mdp.optimum(world, reward)[1][0] for reward in (plain, plain + help_))
    open_states = ~world.ends
    torch.testing.assert_close(shaped[open_states], (q - potential[:, None])[open_states], rtol=0, atol=6 * 0.9**40 * 10)
    rollout = tabular(world=world).sample(["0,0"], 8, torch.Generator().manual_seed(0))
    states, mask = rollout.held.states, rollout.mask
    paid = (potential_shaping(potential[states], mask, discount=0.9) * 0.9 ** torch.arange(40).double()).sum(1)
    torch.testing.assert_close(paid, -potential[states[:, 0]])
    ways = {shaping: mm.worlds.tabular_return(world=world, shaping=shaping) for shaping in (None, "potential", "progress")}
    bare, sound, odd = (way(rollout.outputs, rollout.prompts) for way in ways.values())
    torch.testing.assert_close(sound - bare, -potential[states[:, 0]])
    assert float((odd - bare).std()) > 0.1
    dense = mm.worlds.tabular_return(world=world, shaping="potential", dense=True)(rollout.outputs, rollout.prompts)
    torch.testing.assert_close(torch.tensor([sum(part[2] for part in row) for row in dense], dtype=DOUBLE), sound)


def trained(folder: Path, rewards: dict[str, Any], method: Any, *, steps: int = 25, **more: Any) -> float:
    """What a trained table is worth by ``goal``, relative to the optimum; exact."""
    policy, world = tabular(), mm.worlds.grid()
    settings = {"batch": {"prompts": 1, "group": 32}, "evaluation": {"every": 1000, "samples": 1}}
    optimizer, run = mm.adamw(rate=0.4), {"folder": str(folder), "name": str(len([*folder.iterdir()])), "trackers": ()}
    mm.online(policy, ["0,0"], rewards, method, steps=steps, optimizer=optimizer, run=run, **settings, **more)
    reward = world.reward({"goal": 1.0})
    return float(mdp.worth(world, policy.log_probs().exp(), reward) / mdp.optimum(world, reward)[0][0, 0])


def test_the_optimum_is_reached_with_a_potential_and_missed_with_progress(tmp_path: Path) -> None:
    shaped = lambda kind: {"helped": mm.worlds.tabular_return(shaping=kind, scale=0.5)}  # noqa: E731
    assert trained(tmp_path, shaped("potential"), mm.methods.grpo()) > 0.98
    assert trained(tmp_path, shaped("progress"), mm.methods.grpo()) < 0.5


def test_a_table_starts_as_a_run_left_it(tmp_path: Path) -> None:
    trained(tmp_path, {"goal": mm.worlds.tabular_return()}, mm.methods.grpo(), steps=2)
    policy = tabular(start=str(tmp_path / "0"))
    assert float(policy.log_probs().std()) > 0.01
    with policy.using("ref"):
        ref = policy.log_probs()
    assert torch.equal(ref, policy.log_probs())


def test_weights_that_are_learned_reach_the_optimum_that_fixed_ones_miss(tmp_path: Path) -> None:
    """BARFI's case: an auxiliary reward that pays for standing still. The only difference is that weights follow the score term."""
    both = {"goal": mm.worlds.tabular_return(), "tokens": mm.worlds.tabular_return(reward="tokens")}
    learned = mm.combinations.bilevel_weights(weights={"goal": 1.0, "tokens": 1.0}, target="goal", rate=1000.0)
    method = mm.methods.dr_grpo(length=16)
    assert trained(tmp_path, both, method, combine=learned, steps=30) > 0.95
    assert learned.gradients.values["tokens"] < 0 and learned.gradients.values["goal"] == 1
    assert trained(tmp_path, both, method, steps=30) < 0.05


# ---- the score term, exactly


def levels(world: Mdp, *, beta: float = 0.3) -> tuple[bilevel.Level, bilevel.Level]:
    """PARL's two levels: the return of the learned reward less an entropy price, and how well that reward foretells the preferences between
    episodes that its own policy draws; all by enumeration."""
    states, actions, live, chance = bilevel.episodes(world)
    paid = {name: (table[states[:, :-1], actions, states[:, 1:]] * live).sum(1) for name, table in world.rewards.items()}
    ahead = paid["second"][:, None] - paid["second"]

    def said(theta: Tensor) -> Tensor:
        return (theta.view(len(world.states), -1).log_softmax(-1)[states[:, :-1], actions] * live).sum(1)

    def lower(theta: Tensor, nu: Tensor) -> Tensor:
        return (chance * said(theta).exp() * (nu[0] * paid["first"] - beta * said(theta))).sum()

    def upper(theta: Tensor, nu: Tensor) -> Tensor:
        p, logit = chance * said(theta).exp(), nu[0] * (paid["first"][:, None] - paid["first"])
        agree = torch.sigmoid(ahead) * torch.nn.functional.logsigmoid(logit)
        return (p[:, None] * p * (agree + torch.sigmoid(-ahead) * torch.nn.functional.logsigmoid(-logit))).sum()

    return lower, upper


def test_the_upper_optimum_is_reached_and_missed_without_the_score_term() -> None:
    world = small(6, horizon=3, sure=True)
    lower, upper = levels(world)
    start = torch.zeros(6, dtype=DOUBLE)
    worth = lambda nu: upper(bilevel.best_response(lower, nu, start), nu)  # noqa: E731
    nu, step = torch.tensor([0.4], dtype=DOUBLE), 1e-4
    slope = bilevel.hypergradient(lower, upper, bilevel.best_response(lower, nu, start), nu)
    assert float(slope) == pytest.approx(float(worth(nu + step) - worth(nu - step)) / (2 * step), rel=1e-5)

    def climbed(*, score_term: bool) -> float:
        nu = torch.zeros(1, dtype=DOUBLE)
        for _ in range(12):
            nu = nu + 1.0 * bilevel.hypergradient(lower, upper, bilevel.best_response(lower, nu, start), nu, score_term=score_term)
        return float(worth(nu))

    best = max(float(worth(torch.tensor([nu], dtype=DOUBLE))) for nu in torch.linspace(-1.5, 1, 26).tolist())
    with_term, without = climbed(score_term=True), climbed(score_term=False)
    assert with_term > best - 1e-3
    assert without < best - 1e-2


def test_behavior_alignment_follows_the_gradient_through_its_lower_level() -> None:
    """BARFI's hypergradient against finite differences of the retrained policy's worth, by every weight of a state and by the discount."""
    world = small(2)
    first, second = world.rewards["first"], world.rewards["second"]
    lower, upper = behavior.levels(world, first, second, ridge=0.05, price=0.1, weight_price=0.2)
    nu, start = behavior.beginning(world, 0.6) + 0.3 * torch.arange(10).double().cos(), torch.zeros(6, dtype=DOUBLE)
    best = bilevel.best_response(lower, nu, start)
    table, away = best.view(3, 2).softmax(-1), nu[:9] - torch.tensor([0.0] * 3 + [1.0] * 6, dtype=DOUBLE)
    by_hand = mdp.worth(world, table, first) - 0.1 * nu[9].sigmoid() - 0.1 * (away**2).sum()
    torch.testing.assert_close(upper(best, nu), by_hand)
    alone, of_first, of_second = (nu[3 * k : 3 * k + 3, None, None] for k in range(3))
    other = replace(world, discount=float(nu[9].sigmoid()))
    paid = mdp.worth(other, table, alone + of_first * first + of_second * second)
    torch.testing.assert_close(lower(best, nu), paid - 0.025 * (best**2).sum())
    slope, step = bilevel.hypergradient(lower, upper, best, nu), 1e-3
    ways = torch.randn(2, 10, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    for way in (*ways, torch.eye(10, dtype=DOUBLE)[9]):  # some weights together, and the discount alone
        above, below = (float(upper(bilevel.best_response(lower, moved, best), moved)) for moved in (nu + step * way, nu - step * way))
        assert float(slope @ way) == pytest.approx((above - below) / (2 * step), rel=1e-3)


def test_behavior_alignment_pays_for_getting_there_and_not_for_staying() -> None:
    world = mm.worlds.grid(rows=["St", "..", ".G"], horizon=8)
    learned = behavior.behavior_alignment(world, world.rewards["goal"], world.rewards["tokens"], rounds=2, price=0.02)
    best = float(mdp.optimum(world, world.rewards["goal"])[0][0, 0])
    assert learned.worth[0] < 0.2 * best and learned.worth[-1] > 0.95 * best
    stays = world.states.index("0,1")
    assert float(learned.weights[2, stays]) < float(learned.weights[2, world.states.index("0,0")])
    assert learned.discount != pytest.approx(0.5, abs=1e-3)


def test_a_return_by_state_is_the_return_apart() -> None:
    rollout = tabular().sample(["0,0"], 16, torch.Generator().manual_seed(0))
    whole = mm.worlds.tabular_return(reward="tokens")(rollout.outputs, rollout.prompts)
    parts = mm.worlds.tabular_return(reward="tokens", by_state=True)(rollout.outputs, rollout.prompts)
    assert list(parts) == ["0,2", "0,3", "1,3"] and all(bool(part.any()) for part in parts.values())
    torch.testing.assert_close(torch.stack([*parts.values()]).sum(0), whole)
    stayed = [sum(0.3 * 0.95**t for t, (a, b) in enumerate(itertools.pairwise(["0,0", *line.split()[1::2]])) if a == b == "0,3")
              for line in rollout.outputs]  # fmt: skip
    torch.testing.assert_close(parts["0,3"], torch.tensor(stayed, dtype=DOUBLE))
    with pytest.raises(UserError, match="dense and by_state"):
        mm.worlds.tabular_return(dense=True, by_state=True)


def test_pairs_by_regret_and_by_return(tmp_path: Path) -> None:
    world = mm.worlds.grid(slip=0.2)
    reward = world.reward({"goal": 1.0})
    policy = tabular(world=world)
    rollout = policy.sample(["0,0"], 4000, torch.Generator().manual_seed(0))
    given = world, reward, rollout.held.states, rollout.held.actions, rollout.mask
    paid, regret = (pairs.utilities(*given, by) for by in ("return", "regret"))
    v, _ = mdp.optimum(world, reward)
    assert float(regret.max()) <= 1e-12
    # luck is what is between them: over all chance, E[return] = V*(s_0) - E[regret]
    assert float((paid - regret - v[0, 0]).mean()) == pytest.approx(0, abs=4 * float((paid - regret).std()) / 4000**0.5)
    records = mm.worlds.tabular_pairs(world=world, by="regret", count=200)
    ahead = [record.scores[0] > record.scores[1] for record in records if record.scores[0] != record.scores[1]]
    assert sum(ahead) > 0.7 * len(ahead)


def test_a_critic_learns_what_a_policy_is_worth(tmp_path: Path) -> None:
    """PPO with its critic on the table: what it holds of the start is what the policy is worth from there."""
    policy, world = tabular(heads=["value"]), mm.worlds.grid()
    settings: dict[str, Any] = {"batch": {"prompts": 1, "group": 32, "epochs": 2}, "evaluation": {"every": 1000, "samples": 1}}
    run = {"folder": str(tmp_path), "name": "ppo", "trackers": ()}
    rewards = {"goal": mm.worlds.tabular_return()}
    mm.online(policy, ["0,0"], rewards, mm.methods.ppo(), steps=25, optimizer=mm.adamw(rate=0.2), run=run, **settings)
    v, _ = mdp.values(world, policy.log_probs().detach().exp(), world.reward({"goal": 1.0}))
    assert float(v[0, 0]) > 0.75
    assert float(policy.parameters()["value"][0].detach()) == pytest.approx(float(v[0, 0]), abs=0.15)  # it follows


@pytest.mark.parametrize(("pays", "tips"), [({"G": 0.5, "v": 1.0}, True), ({"G": 1.0, "v": 0.5}, False)])
def test_an_aligned_policy_tips_where_what_is_forbidden_pays_more_and_nowhere_else(tmp_path: Path, pays: Any, tips: bool) -> None:
    """Alignment tipping: the chance of a violation is exact, 1 of 50 in the policy that begins; group-relative rewards do the rest."""
    rewards = {"pays": pays, "rule": {"v": -1.0}}
    world = mm.worlds.grid(rows=["G.S.v"], rewards=rewards, ends="Gv", discount=1.0, horizon=8)
    ahead = [1.9 if name == "west" else 0.0 for name in world.actions]
    policy = tabular(world=world, start=[ahead] * 5)
    chance = lambda: -float(mdp.worth(world, policy.log_probs().detach().exp(), world.reward({"rule": 1.0})))  # noqa: E731
    before = chance()
    rule = mm.rewards.below(mm.worlds.tabular_return(world=world, reward="rule"), least=0.0)
    rows = policy.sample(["0,2"], 2000, torch.Generator().manual_seed(0))
    assert float(rule(rows.outputs, rows.prompts).mean()) == pytest.approx(before, abs=4 * (before / 2000) ** 0.5)
    reward = {"pays": mm.worlds.tabular_return(world=world, reward="pays")}
    settings: dict[str, Any] = {"batch": {"prompts": 1, "group": 128}, "evaluation": {"every": 1000, "samples": 1}}
    run = {"folder": str(tmp_path), "trackers": ()}
    mm.online(policy, ["0,2"], reward, mm.methods.dr_grpo(length=8), steps=25, optimizer=mm.adamw(rate=0.15), run=run, **settings)
    assert 0.005 < before < 0.05 and (chance() > 0.5 if tips else chance() < before / 2)


def test_the_kl_of_own_episodes_is_that_of_the_tables():
    policy = mm.worlds.tabular()
    with torch.no_grad():
        policy.parameters()["logits"].copy_(torch.randn(policy.parameters()["logits"].shape, generator=torch.Generator().manual_seed(0)))
    now = policy.log_probs().detach()
    with policy.using("ref"):
        base = policy.log_probs().detach()
    of_state, likeliest = (now.exp() * (now - base)).sum(-1), now.argmax(-1)
    rollout = policy.traced(["0,0"] * 8, list(range(8)))
    assert rollout.outputs == policy.generate(["0,0"] * 8, list(range(8)))
    found = own_samples(policy, rollout, "ref")
    for row in range(8):
        states = rollout.held.states[row, :-1][rollout.mask[row]]
        assert found["kl"][row] == pytest.approx(float(of_state[states].sum()), rel=1e-9)
        assert found["tokens/topk_mass"][row] == pytest.approx(1.0)  # there are four actions
        entropy = -(now.exp() * now).sum(-1)[states].mean()
        assert found["tokens/topk_entropy"][row] == pytest.approx(float(entropy), rel=1e-9)
        above = (base[states] > base[states].gather(-1, likeliest[states][:, None])).sum(-1)
        assert found["tokens/unshifted"][row] == pytest.approx(float((above == 0).double().mean()))
