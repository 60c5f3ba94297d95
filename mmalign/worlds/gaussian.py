"""A world in closed form: data from a Gaussian mixture, for which denoiser, marginals, tilted optimum and KL are known exactly.

Every kernel is tested against it, and ``GaussianPolicy`` lets a whole recipe be tested against a known optimum in seconds.
Numbers are float64 throughout. Letters: K components, D dimensions, T steps; ``...`` any leading dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Finite, Interior, Positive
from mmalign.needs import ADJOINT, DRIFT, OLD
from mmalign.policies.parameters import ParameterSets
from mmalign.samplers import kernels, structure
from mmalign.samplers.adjoints import RewardGradient
from mmalign.samplers.assignment import assignment, drawn_by
from mmalign.samplers.branches import Branches, Tree
from mmalign.samplers.score_differences import Noising
from mmalign.samplers.windows import Window, all_but_last
from mmalign.types import EVERY, Behavior, Kernel, Kind, Level, Method, Need, Prediction, Rollout, Steps, UserError
from mmalign.worlds._gaussian_rows import GaussianErrors, gone_back, noised
from mmalign.worlds._paths import Paths, cells_of, references_of, with_shared

__all__ = ["GaussianPolicy", "Mixture", "QuadraticReward", "flow_levels", "one_gaussian", "tilt", "ve_levels", "vp_levels"]


@dataclass(frozen=True)
class Mixture:
    """``sum_k weights[k] N(means[k], diag(variances[k]))``: weights ``[K]`` (they sum to 1), means and variances ``[K, D]``."""

    weights: Tensor
    means: Tensor
    variances: Tensor

    def __post_init__(self) -> None:
        if self.means.ndim != 2 or self.means.shape != self.variances.shape or self.weights.shape != self.means.shape[:1]:
            got = f"{list(self.weights.shape)}, {list(self.means.shape)}, {list(self.variances.shape)}"
            raise UserError(f"Mixture: got weights, means, variances of shapes {got}, takes [K], [K, D], [K, D]")
        if not bool((self.variances >= 0).all() and (self.weights >= 0).all()) or abs(float(self.weights.sum()) - 1) > 1e-9:
            raise UserError("Mixture: takes weights that sum to 1, and variances of 0 or more")


@dataclass(frozen=True)
class QuadraticReward:
    """``r(x) = linear . x - 1/2 sum(curvature * x^2)``, a reward with a closed-form optimum; ``linear``, ``curvature``: ``[D]``."""

    linear: Tensor
    curvature: Tensor | float = 0.0

    def __call__(self, outputs: Tensor, prompts: list[str] | None = None, **columns: Any) -> Tensor:
        """Outputs ``[B, D]`` -> rewards ``[B]``."""
        return (self.linear * outputs - 0.5 * self.curvature * outputs**2).sum(-1)

    def mean(self, mixture: Mixture) -> Tensor:
        """``E[r]`` under a mixture, a 0-d tensor."""
        second = mixture.means**2 + mixture.variances
        return mixture.weights @ (self.linear * mixture.means - 0.5 * self.curvature * second).sum(-1)


def one_gaussian(mean: Iterable[Finite], variance: Iterable[Positive]) -> Mixture:
    """One Gaussian: the simplest world.

    mean, variance: a number for each of its D dimensions.
    """
    return Mixture(_row([1.0])[0], _row(mean), _row(variance))


# What is known of it


def sample(mixture: Mixture, count: int, rng: torch.Generator) -> Tensor:
    """``[count, D]`` draws."""
    component = torch.multinomial(mixture.weights, count, replacement=True, generator=rng)
    noise = torch.randn(count, mixture.means.shape[1], generator=rng, dtype=torch.float64)
    return mixture.means[component] + mixture.variances[component].sqrt() * noise


def log_density(mixture: Mixture, x: Tensor) -> Tensor:
    """``ln p(x)`` in nats: x ``[..., D]`` -> ``[...]``."""
    return torch.logsumexp(_joint_log_density(mixture.weights, x.unsqueeze(-2), mixture.means, mixture.variances), dim=-1)


def marginal(mixture: Mixture, t: Level) -> Mixture:
    """The distribution of ``a x_0 + b eps``: the same mixture with means ``a m`` and variances ``a^2 v + b^2``; 0-d levels."""
    return Mixture(mixture.weights, t.signal * mixture.means, t.signal**2 * mixture.variances + t.noise**2)


def predict(mixture: Mixture, x: Tensor, t: Level) -> Prediction:
    """The perfect denoiser: ``E[x_0 | x_t]`` and ``E[eps | x_t]``, both ``[..., D]``, at any level, a = 0 and b = 0 included.

    In component k: ``E[x_0] = m + a v (x - a m) / (a^2 v + b^2)`` and ``E[eps] = b (x - a m) / (a^2 v + b^2)``, weighted by
    each component's posterior probability.
    """
    a, b = t.signal.expand_as(x).unsqueeze(-2), t.noise.expand_as(x).unsqueeze(-2)
    x, means, variances = x.unsqueeze(-2), mixture.means, mixture.variances
    total = a**2 * variances + b**2
    posterior = torch.softmax(_joint_log_density(mixture.weights, x, a * means, total), dim=-1).unsqueeze(-1)
    residual = (x - a * means) / total
    return Prediction((posterior * (means + a * variances * residual)).sum(-2), (posterior * b * residual).sum(-2))


def tilt(mixture: Mixture, reward: QuadraticReward, *, beta: Positive) -> Mixture:
    """The optimum of ``E[r] - beta KL(q || p)``: ``q(x) = p(x) exp(r(x) / beta) / Z``, again a mixture.

    mixture: p. reward: r. beta: reward that a nat of KL costs.
    """
    precision, linear, log_weights = _tilted(mixture, reward, beta)
    return Mixture(torch.softmax(log_weights, 0), linear / precision, 1 / precision)


def log_normaliser(mixture: Mixture, reward: QuadraticReward, *, beta: float) -> Tensor:
    """``ln Z = ln E[exp(r / beta)]``; ``beta ln Z`` is the optimal value of ``E[r] - beta KL``."""
    return torch.logsumexp(_tilted(mixture, reward, beta)[2], 0)


def kl(p: Mixture, q: Mixture) -> Tensor:
    """``KL(p || q)`` in nats over components and values together, component k of p against component k of q.

    Exact for single Gaussians, and for a mixture and its own tilt in either order (given x, both say the same of the
    component). An upper bound for other mixtures.
    """
    ratio = p.variances / q.variances
    each = 0.5 * (ratio - 1 - ratio.log() + (p.means - q.means) ** 2 / q.variances).sum(-1)
    return p.weights @ (p.weights.log() - q.weights.log() + each)


# Schedules: levels ``[T + 1]``, from noise to data


def flow_levels(num_steps: Count, *, shift: Positive = 1.0) -> Level:
    """Rectified flow: ``s`` even from 1 to 0, then ``shift s / (1 + (shift - 1) s)`` (DanceGRPO; SD3 has shift 3).

    num_steps: levels but one. shift: above 1, more of the steps are at high noise.
    """
    s = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    s = shift * s / (1 + (shift - 1) * s)
    return Level(1 - s, s)


def vp_levels(num_steps: Count, *, start: Interior = 0.99) -> Level:
    """Variance preserving: ``(cos, sin)`` of angles from ``start`` of a right angle down to 0.

    num_steps: levels but one. start: below 1, so that some signal is left.
    """
    angle = torch.linspace(start, 0, num_steps + 1, dtype=torch.float64) * math.pi / 2
    return Level(angle.cos(), angle.sin())


def ve_levels(num_steps: Count, *, highest: Positive = 20.0, rho: Positive = 3.0) -> Level:
    """Variance exploding: ``(1, sigma)``, sigma from ``highest`` to 0 along a power law (Karras et al. 2022, eq. 5).

    num_steps: levels but one. highest: the first sigma. rho: the power; the higher, the more steps are at low noise.
    """
    sigma = highest * torch.linspace(1, 0, num_steps + 1, dtype=torch.float64) ** rho
    return Level(torch.ones_like(sigma), sigma)


# A policy on it


class GaussianPolicy:
    """A ``types.Policy`` on this world: the perfect denoiser, plus a correction of the clean estimate that is trained.

        clean = scale[i] * clean_exact + shift[i],  scale = exp(log_scale),  at step i, and noise = (x - a clean) / b

    Parameters: ``shift`` and ``log_scale``, ``[T, D]``, zero at first, and so in the set ``ref``. With one Gaussian, a linear
    reward and no scale, ``chains.path_optimum`` gives the best shifts. All prompts mean the same. A trajectory starts at ``b eps``, as
    pipelines do, though only a = 0 makes that the marginal.

    levels: ``[T + 1]`` each, b > 0 but for the last. window: the random, trained steps; others take ``ode``. random, branches: as in
    ``Schedule``. Errors: UserError on a name of parameters or references that is not known.
    """

    kind: Kind = "transition"
    gives = frozenset({"old", "refs", "kls", "std", "slope", "dt", "drift", "adjoint", "adjoint_size", "score", "behaviors"})

    def __init__(
        self, mixture: Mixture, levels: Level, *, kernel: Kernel, window: Window | None = None, random: Window | None = None,
        branches: Branches | None = None,
    ) -> None:  # fmt: skip
        self.mixture, self.levels, self.kernel, self.window = mixture, levels, kernel, window or all_but_last()
        self.random, self.branches = random, branches
        self.num_steps, self.size = len(levels.signal) - 1, mixture.means.shape[1]
        zeros = torch.zeros(self.num_steps, self.size, dtype=torch.float64)
        self.sets = ParameterSets(torch.nn.ParameterDict({"shift": zeros, "log_scale": zeros.clone()}))

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return self.sets.trained

    def using(self, name: str) -> AbstractContextManager[None]:
        return self.sets.using(name)

    def refer(self, name: str, other: Any, examples: Sequence[Any] = ()) -> None:
        """Errors: UserError, always: a world's mixture is the truth that policies are measured by, and there is one."""
        raise UserError(f"references.{name}.policy: a policy on this world takes sets of its own parameters alone")

    def between(self, columns: Tensor) -> tuple[Level, Level]:
        """The levels before and after the steps ``columns``, ``[C, 1]`` each."""
        signal, noise = self.levels.signal.unsqueeze(-1), self.levels.noise.unsqueeze(-1)
        return Level(signal[columns], noise[columns]), Level(signal[columns + 1], noise[columns + 1])

    def clean(self, x: Tensor, columns: Tensor) -> Tensor:
        """The policy's clean estimate ``[B, C, D]`` of states ``x`` ``[B, C, D]`` at the steps ``columns`` ``[C]``."""
        exact = predict(self.mixture, x, self.between(columns)[0]).clean
        return self.sets.trained["log_scale"][columns].exp() * exact + self.sets.trained["shift"][columns]

    def transition(self, x: Tensor, columns: Tensor, stochastic: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and std, ``[B, C, D]`` each, of the steps ``columns`` ``[C]`` from their states ``x`` ``[B, C, D]``.

        stochastic: ``[T]`` bool, or ``[B, T]``: those that take the kernel; others are the ODE's. seen: what the denoiser is shown of x.
        """
        t, t_next = self.between(columns)
        clean = self.clean(x if seen is None else seen, columns)
        prediction = Prediction(clean, (x - t.signal * clean) / t.noise)
        mean, std = self.kernel(prediction, x, t, t_next)
        still, _ = kernels.ode()(prediction, x, t, t_next)
        chosen = stochastic[..., columns].unsqueeze(-1)
        return torch.where(chosen, mean, still), torch.where(chosen, std, 0.0).expand_as(x)

    @torch.no_grad()
    def sample(
        self, prompts: list[str], group_size: int, rng: torch.Generator, *, step: int = 0, behaviors: Sequence[Behavior] = (),
        part: slice = EVERY, drift: bool = True,
    ) -> Rollout:  # fmt: skip
        """A mixture of Gaussians with one std and shares that add up to 1 is the Gaussian at the mixture of their means. Rows that share a
        beginning share its noise; ``drift`` costs nothing here."""
        stochastic, trained = structure.masks(self.window, self.random, self.num_steps, step, rng)
        trees = [self.branches(trained, stochastic, group_size, rng) for _ in prompts] if self.branches is not None else []
        who = assignment(group_size, behaviors)
        whole = (self.num_steps + 1, len(prompts), len(who), self.size)
        noise = torch.randn(whole, generator=rng, dtype=torch.float64)
        group = torch.arange(len(prompts))[part].repeat_interleave(len(who))
        who, tree = who.repeat(len(prompts[part])), None
        noise, stochastic, trained = noise[:, part].flatten(1, 2), stochastic.expand(len(who), -1), trained.expand(len(who), -1)
        if trees:
            tree = Tree.of_groups(trees[part], list(range(len(prompts)))[part])
            noise = with_shared(noise, tree, torch.randn(whole, generator=rng, dtype=torch.float64)[:, part].flatten(1, 2))
            stochastic, trained = tree.random, tree.trained
        states = [self.levels.noise[0] * noise[0]]
        for i in range(self.num_steps):
            mean, std = self.transition(states[-1].unsqueeze(1), torch.tensor([i]), stochastic)
            for number, behavior in enumerate(behaviors, start=1):
                mean[who == number] = self._mixed(
                    behavior, states[-1][who == number].unsqueeze(1), torch.tensor([i]), stochastic[who == number]
                )
                std = torch.where((who == number)[:, None, None] & behavior.greedy, 0.0, std)  # and so the step is the ODE's
            states.append(kernels.sample(mean, std, noise[i + 1].unsqueeze(1)).squeeze(1))
        record = torch.stack(states, 1)
        mean, std = self.transition(record[:, :-1], torch.arange(self.num_steps), stochastic)
        random = ~torch.tensor([False, *(behavior.greedy for behavior in behaviors)])[who]
        return Rollout(
            prompts=[prompts[place] for place in group.tolist()],
            outputs=states[-1] if tree is None else self._ends(record, tree),
            log_probs=cells_of(kernels.log_prob, record[:, 1:], mean, std) * trained,
            mask=(std > 0).all(-1) & random[:, None] & trained,
            group=group,
            held=Paths(record, stochastic, mean),
            drawn=drawn_by(who, behaviors),
            branch=None if tree is None else tree.branch,
            facts=self._facts(len(who)),
        )

    def _ends(self, states: Tensor, tree: Tree) -> Tensor:
        """``[B, D]``: the last of states ``[B, T + 1, D]``, or the clean estimate of a row that ends before."""
        rows = torch.nonzero(tree.ends < self.num_steps).flatten()
        clean = self.clean(states[:, :-1], torch.arange(self.num_steps))
        return states[:, -1].index_put((rows,), clean[rows, tree.ends[rows]])

    def _facts(self, rows: int) -> dict[str, Tensor]:
        """What is known of the kernel at every step, ``[rows, T]`` each."""
        t, t_next = self.between(torch.arange(self.num_steps))
        return {
            name: fact[:, 0].expand(rows, -1) for name, fact in zip(("std", "slope"), kernels.of_step(self.kernel, t, t_next), strict=True)
        }

    def _mixed(self, behavior: Behavior, x: Tensor, columns: Tensor, stochastic: Tensor) -> Tensor:
        means, stochastic = [], stochastic & (not behavior.greedy)
        for name, share in behavior.shares.items():
            with self.using(name):
                means.append(share * self.transition(x, columns, stochastic)[0])
        return torch.stack(means).sum(0)

    def refuse_structure(self, method: Method, group_size: int, steps: int) -> None:
        """See ``arguments.facts.Structured``."""
        of_rows = {"num_steps": self.num_steps, "group_size": group_size, "steps": steps}
        structure.refuse(method, self.window, self.random, self.branches, **of_rows)

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """None: prompts only tell groups apart here."""
        return {}

    @torch.no_grad()
    def generate(self, prompts: list[str], seeds: list[int], **call: Any) -> Tensor:
        """Outputs ``[B, D]`` of the ODE, one seed for each prompt. Errors: UserError on any argument in ``call``: there are none."""
        if call:
            raise UserError(f"call: got {', '.join(call)}, takes nothing in this world")
        start = [torch.randn(self.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
        x = self.levels.noise[0] * torch.stack(start)
        for i in range(self.num_steps):
            mean, _ = self.transition(x.unsqueeze(1), torch.tensor([i]), torch.zeros(self.num_steps, dtype=torch.bool))
            x = mean.squeeze(1)
        return x

    @torch.no_grad()
    def remember(self, rollout: Rollout, names: Iterable[str], rows_at_once: int = 0) -> None:
        """``rows_at_once`` is accepted and not needed: this world is small."""
        paths: Paths = rollout.held
        for name in names:
            with self.using(name):
                paths.refs[name] = self.transition(paths.states[:, :-1], torch.arange(self.num_steps), paths.stochastic)

    def adjoints(
        self, rollout: Rollout, how: RewardGradient, utility: Callable[[Tensor, Tensor], Tensor], rng: torch.Generator,
        *, rows_at_once: int = 0, seeds: Tensor | None = None,
    ) -> Rollout:  # fmt: skip
        """See ``abilities.Differentiable``; all rows are gone back through at once. Errors: UserError for copies."""
        return gone_back(self, rollout, how, utility, rng, seeds)

    @property
    def errors(self) -> GaussianErrors:
        """How well it denoises given points, at the levels of its own steps."""
        return GaussianErrors(self)

    def noised(
        self, rollout: Rollout, column: int, noising: Noising, seeds: Tensor, *, rows_at_once: int = 0
    ) -> tuple[GaussianErrors, Rollout]:  # fmt: skip
        """See ``abilities.Differentiable``."""
        return self.errors, noised(self, rollout, column, noising, seeds)

    def outcome(self, x: Tensor, columns: Tensor, stochastic: Tensor, end: int | None, seen: Tensor) -> Tensor:
        """The means of steps, and of the step ``end`` the clean estimate, ``[B, C, D]``."""
        mean = self.transition(x, columns, stochastic, seen)[0]
        return mean if end is None else torch.where((columns == end)[:, None], self.clean(seen, columns), mean)

    def steps(self, rollout: Rollout, rows: Tensor, columns: Tensor | None = None, needs: frozenset[Need] = frozenset()) -> Steps:
        columns = torch.arange(self.num_steps) if columns is None else columns
        cells = (rows[:, None], columns)
        paths: Paths = rollout.held
        time, x_next = kernels.flow_time(self.levels), paths.states[rows[:, None], columns + 1]
        mean, std = self.transition(paths.states[cells], columns, paths.stochastic[rows])
        refs = {name: (m[cells], s[cells]) for name, (m, s) in paths.refs.items()}
        terms = {"drift": cells_of(kernels.kl, mean, std, paths.means[cells], std)} if DRIFT in needs else {}
        if ADJOINT in needs and paths.adjoints is not None:
            outcome = self.outcome(paths.states[cells], columns, paths.stochastic[rows], paths.end, paths.states[cells])
            terms["adjoint"] = (paths.adjoints[cells] * (outcome - x_next)).sum(-1)
        facts = {"dt": (time[columns + 1] - time[columns]).expand(len(rows), -1)}
        facts |= {name: table[cells] for name, table in rollout.facts.items()}
        return Steps(
            log_probs=torch.where(rollout.mask[cells], cells_of(kernels.log_prob, x_next, mean, std), 0.0),
            mask=rollout.mask[cells],
            old=rollout.log_probs[cells] if OLD in needs else None,
            refs={name: cells_of(kernels.log_prob, x_next, *refs[name]) for name in references_of("refs", needs, refs)},
            kls={name: cells_of(kernels.kl, mean, std, *refs[name]) for name in references_of("kls", needs, refs)},
            facts={name: value for name, value in facts.items() if Need(name) in needs},
            terms=terms,
            event_size=self.size,
            kind=self.kind,
        )


# Parts


def _row(values: Iterable[float]) -> Tensor:
    return torch.as_tensor(list(values), dtype=torch.float64).reshape(1, -1)


def _joint_log_density(weights: Tensor, x: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """``ln(weight_k N(x; mean_k, variance_k))``: x ``[..., 1, D]`` -> ``[..., K]``."""
    return weights.log() - 0.5 * ((x - means) ** 2 / variances + variances.log() + math.log(2 * math.pi)).sum(-1)


def _tilted(mixture: Mixture, reward: QuadraticReward, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Precisions and linear terms ``[K, D]`` of the tilted components, and their log-weights ``[K]`` before normalising."""
    means, variances = mixture.means, mixture.variances
    gain = 1 + variances * reward.curvature / beta
    if beta <= 0 or not bool((gain > 0).all()):
        raise UserError(f"tilt.beta: got {beta}, takes a number above 0 for which exp(r / beta) can be normalised")
    linear = means / variances + reward.linear / beta
    precision = gain / variances
    log_weights = mixture.weights.log() + 0.5 * (linear**2 / precision - means**2 / variances - gain.log()).sum(-1)
    return precision, linear, log_weights
