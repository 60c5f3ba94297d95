"""The algebra of rewards: closed forms of every combination, and what a missing score does to each."""

from __future__ import annotations

import json
import math

import pytest
import torch

import mmalign as mm
from mmalign.combinations import algebra, balancing, by_gradient, transforms
from mmalign.combinations._parts import Combination, Rows
from mmalign.evaluation.fronts import hypervolume
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError

NAN = math.nan
GROUP = torch.tensor([0, 0, 0, 1, 1])
PROMPTS = ["p", "p", "p", "q", "q"]
PARTS = {"a": [1.0, 2.0, 4.0, 0.5, 0.5], "b": [3.0, 1.0, 2.0, 6.0, 2.0], "c": [2.0, 2.0, 8.0, 1.0, 0.0]}


def parts(**change):
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in {**PARTS, **change}.items()}


def asked(by, given=None, **more):
    return by(given or parts(), GROUP, PROMPTS, **more).tolist()


def near(values):
    return pytest.approx(values, nan_ok=True, abs=1e-12)


ALL = {
    "weighted_sum": lambda **kw: algebra.weighted_sum(**kw),
    "normalised_sum": lambda **kw: algebra.normalised_sum(**kw),
    "harmonic": lambda **kw: algebra.harmonic(**kw),
    "worst": lambda **kw: algebra.worst(**kw),
    "lower_bound": lambda **kw: algebra.lower_bound(**kw),
    "pessimistic": lambda **kw: algebra.pessimistic(beta=2.0, **kw),
    "bayesian": lambda **kw: algebra.bayesian(heads={"a": "b", "c": "b"}, k=1.0, share=0.5, **kw),
}
FIXED = {
    "nominal_and_worst": lambda: algebra.nominal_and_worst(nominal="a", share=0.25),
    "gated": lambda: algebra.gated(gates={"b": 2.0}, otherwise=-1.0),
    "lexicographic": lambda: algebra.lexicographic(order={"a": 0.5, "b": 0.0}),
    "mixture_of_judges": lambda: algebra.mixture_of_judges(reward="a", judges=["c"], least=1.0),
    "constrained": lambda: balancing.constrained(limits={"c": 1.0}),
    "log_barrier": lambda: balancing.log_barrier(objective="a", floors={"b": 1.0}),
    "fairest": lambda: balancing.fairest(),
    "gradient_weights": lambda: by_gradient.gradient_weights(weights={"a": 1.0, "b": 2.0}),
    "min_norm_weights": lambda: by_gradient.min_norm_weights(of=["a", "b"]),
    "bilevel_weights": lambda: by_gradient.bilevel_weights(weights={"a": 1.0, "b": 2.0}, target="a"),
    "hypervolume_weights": lambda: balancing.hypervolume_weights(weights={"a": 1.0, "b": 2.0}, worst={"a": 0.0, "b": 0.0}),
}


# ---- closed forms


@pytest.mark.parametrize(
    ("by", "wanted"),
    [
        (algebra.weighted_sum(), [6, 5, 14, 7.5, 2.5]),
        (algebra.weighted_sum(weights={"a": 2, "b": -1}), [-1, 3, 6, -5, -1]),
        (algebra.weighted_sum(weights={"a": 1}, transforms={"a": transforms.clip(high=2.0)}), [1, 2, 2, 0.5, 0.5]),
        (
            algebra.weighted_sum(weights={"a": 1}, transforms={"a": [transforms.affine(scale=-1.0), transforms.clip(low=-2.0)]}),
            [-1, -2, -2, -0.5, -0.5],
        ),
        (
            algebra.harmonic(weights={"a": 0.25, "b": 0.75}),
            [1 / (0.25 / x + 0.75 / y) for x, y in zip(PARTS["a"], PARTS["b"], strict=True)],
        ),
        (algebra.harmonic(weights={"a": 1, "c": 1}), [2 / (1 + 1 / 2), 2, 2 / (1 / 4 + 1 / 8), 2 / (2 + 1), 0]),
        (algebra.worst(), [1, 1, 2, 0.5, 0]),
        (algebra.worst(of=["a", "b"]), [1, 1, 2, 0.5, 0.5]),
        (algebra.lower_bound(k=2.0, of=["a", "b"]), [2 - 2, 1.5 - 1, 3 - 2, 3.25 - 5.5, 1.25 - 1.5]),
        (
            algebra.lower_bound(k=0.5, of=["a", "b"], spread="variance", unbiased=True),
            [2 - 1, 1.5 - 0.25, 3 - 1, 3.25 - 7.5625, 1.25 - 0.5625],
        ),
        (
            algebra.pessimistic(beta=2.0, of=["a", "b"]),
            [-2 * math.log((math.exp(-x / 2) + math.exp(-y / 2)) / 2) for x, y in zip(PARTS["a"], PARTS["b"], strict=True)],
        ),
        (algebra.nominal_and_worst(nominal="c", share=0.75), [1.75, 1.75, 6.5, 0.875, 0]),
        (algebra.gated(gates={"b": 2.0}, otherwise=-9.0), [3, -9, 12, 1.5, 0.5]),
        (algebra.gated(gates={"b": 2.0}, otherwise=-9.0, weights={"a": 2.0}), [2, -9, 8, 1, 1]),
        (algebra.lexicographic(order={"a": 1.5, "b": 0.0}), [0.5, 0, 1, 1, 0]),
        (algebra.lexicographic(order={"a": 0.0}), [0, 0.5, 1, 0.5, 0.5]),
        (algebra.mixture_of_judges(reward="a", judges=["c"], least=2.0, violated=-1.0), [1, 2, 4, -1, -1]),
        (
            algebra.mixture_of_judges(reward="a", tasks={"second": {"prompts": "q", "judges": ["b"], "reward": "b"}}, least=3.0),
            [1, 2, 4, 6, 0],
        ),
        (algebra.bayesian(heads={"a": "b", "b": "c"}), [3, 2, 4, 6, 2]),
        (algebra.bayesian(heads={"a": "b", "b": "c"}, k=1.0), [3 - 2, 2 - 1, 4 - 2, 6 - 1, 2 - 0]),
        (algebra.bayesian(heads={"a": "b"}, nominal="mean", k=0.5), [1 - 1.5, 2 - 0.5, 4 - 1, 0.5 - 3, 0.5 - 1]),
        (
            algebra.bayesian(heads={"a": "b", "b": "a"}, share=0.5, k=1.0),
            [(3 + min(-2, 2)) / 2, (2 + min(1, -1)) / 2, (4 + min(2, -2)) / 2, (6 + min(-5.5, 5.5)) / 2, (2 + min(-1.5, 1.5)) / 2],
        ),
    ],
)
def test_closed_forms(by, wanted):
    assert asked(by) == near(wanted)


def test_precision_weighted_heads():
    combined = asked(algebra.bayesian(heads={"a": "b", "b": "a"}, nominal="mean"))
    assert combined == near([(a / b**2 + b / a**2) / (1 / a**2 + 1 / b**2) for a, b in zip(PARTS["a"], PARTS["b"], strict=True)])


def test_pessimistic_lies_between_the_worst_and_the_mean():
    mean, worst = asked(algebra.weighted_sum(weights=dict.fromkeys(PARTS, 1 / 3))), asked(algebra.worst())
    assert asked(algebra.pessimistic(beta=1e6)) == pytest.approx(mean, abs=1e-4)
    assert asked(algebra.pessimistic(beta=1e-3)) == pytest.approx(worst, abs=2e-3)


def test_normalised_sum_is_that_of_a_loop():
    wanted = [0.0] * 5
    for name, weight in {"a": 1.0, "b": 2.0}.items():
        for rows in ([0, 1, 2], [3, 4]):
            values = [PARTS[name][row] for row in rows]
            mean = sum(values) / len(values)
            std = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
            for row, value in zip(rows, values, strict=True):
                wanted[row] += weight * ((value - mean) / (std + 1e-6) if std else 0.0)
    assert asked(algebra.normalised_sum(weights={"a": 1.0, "b": 2.0})) == near(wanted)


# ---- what is missing


@pytest.mark.parametrize(
    "name", [*ALL, *(name for name in FIXED if name not in ("lexicographic", "fairest", "gated", "mixture_of_judges"))]
)
def test_a_missing_score_leaves_its_row_without_a_reward_and_no_other(name):
    build = ALL.get(name) or FIXED[name]
    whole, holed = asked(build()), asked(build(), parts(a=[NAN, *PARTS["a"][1:]], c=[1.0, *PARTS["c"][1:]]))
    assert math.isnan(holed[0])
    if name != "normalised_sum":  # its group has other statistics without the row
        assert holed[1:] == near(whole[1:])
    assert not any(math.isnan(value) for value in holed[1:])


@pytest.mark.parametrize("name", ALL)
def test_the_rest_stands_for_what_is_missing_and_is_no_zero(name):
    build = ALL[name]
    given = parts(a=[NAN, *PARTS["a"][1:]])
    combined = asked(build(missing="rest"), given)
    assert not any(math.isnan(value) for value in combined) and (name == "normalised_sum" or combined[1:] == near(asked(build())[1:]))
    alone = {"weighted_sum": (3 + 2) * 3 / 2, "harmonic": 2 / (1 / 3 + 1 / 2), "worst": 2, "lower_bound": 2.5 - 0.5}
    if name in alone:
        assert combined[0] == near(alone[name])
    none = asked(build(missing="rest"), {key: values * NAN for key, values in parts().items()})
    assert all(math.isnan(value) for value in none)


def test_required_rewards_gates_and_judges():
    given = parts(a=[NAN, 2.0, 4.0, 0.5, 0.5], b=[3.0, NAN, 1.0, 6.0, 2.0])
    rest = algebra.weighted_sum(weights={"a": 1, "b": 1, "c": 1}, missing="rest", required=["a"])
    assert asked(rest, given) == near([NAN, (2 + 2) * 3 / 2, 13, 7.5, 2.5])
    assert asked(algebra.gated(gates={"b": 2.0}, otherwise=-1.0), given) == near([NAN, NAN, -1, 1.5, 0.5])
    both = algebra.gated(gates={"b": 2.0, "c": 5.0}, otherwise=-1.0)
    assert asked(both, given) == near([-1, -1, -1, -1, -1])  # a gate that is known to be shut is enough
    judged = algebra.mixture_of_judges(reward="a", judges=["b", "c"], least=2.0)
    assert asked(judged, given) == near([NAN, NAN, 0, 0, 0])


def test_pairs_that_get_to_a_missing_score_say_nothing():
    order = algebra.lexicographic(order={"a": 1.5, "b": 0.0})
    given = parts(b=[NAN, *PARTS["b"][1:]])
    assert asked(order, given) == near([0, 0, 1, 1, 0])  # row 0 loses to row 2 by a; its pair with row 1 would need b
    assert asked(order, parts(a=[NAN] * 5)) == near([NAN] * 5)


@pytest.mark.parametrize("build", [*ALL.values(), *FIXED.values()])
def test_rows_may_come_in_any_order_and_rewards_of_any_number(build):
    order = torch.tensor([3, 0, 4, 2, 1])
    combined = build()(parts(), GROUP, PROMPTS)
    moved = build()({name: values[order] for name, values in parts().items()}, GROUP[order], [PROMPTS[row] for row in order])
    assert moved.tolist() == near(combined[order].tolist())
    assert combined.dtype == torch.float64 and combined.shape == (5,)


@pytest.mark.parametrize("name", [name for name in ALL if name != "bayesian"])
def test_gradients_arrive(name):
    given = {key: values.clone().requires_grad_() for key, values in parts(a=[NAN, *PARTS["a"][1:]]).items()}
    total = ALL[name](missing="rest")(given, GROUP, PROMPTS)
    total[~total.isnan()].sum().backward()
    assert all(bool(values.grad.isfinite().all()) for values in given.values())
    assert any(bool((values.grad != 0).any()) for values in given.values())


# ---- transforms


def changed(step, values, state=None):
    return step.of(torch.tensor(values, dtype=torch.float64), Rows(GROUP, PROMPTS), state).tolist()


def test_z_scores():
    assert changed(transforms.z_score(eps=0.0), [1.0, 2.0, 3.0, 5.0, NAN]) == near([-1, 0, 1, 0, NAN])
    assert changed(transforms.z_score(over="batch", eps=0.0), [1.0, NAN, 3.0, 3.0, 1.0]) == near(
        [-(0.75**0.5), NAN, *[0.75**0.5] * 2, -(0.75**0.5)]
    )
    assert changed(transforms.z_score(eps=0.0), [0.1] * 5) == [0.0] * 5  # whose standard deviation is not exactly 0


def test_running_moments_are_those_of_all_that_was_seen():
    by = algebra.weighted_sum(weights={"a": 1}, transforms={"a": transforms.z_score(over="running", eps=0.0)})
    seen = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        scores = torch.randn(5, generator=generator, dtype=torch.float64) * 3 + 100
        scores[1] = NAN
        seen += scores[~scores.isnan()].tolist()
        combined = by({"a": scores}, GROUP, PROMPTS, learn=True)
    every = torch.tensor(seen, dtype=torch.float64)
    assert combined.tolist() == near(((scores - every.mean()) / every.std()).tolist())
    assert by({"a": scores}, GROUP, PROMPTS).tolist() == near(combined.tolist())  # asked without learning, nothing moves
    fresh = algebra.weighted_sum(weights={"a": 1}, transforms={"a": transforms.z_score(over="running", eps=0.0)})
    fresh.state.load(json.loads(json.dumps(by.state.dump())))
    assert torch.equal(fresh({"a": scores}, GROUP, PROMPTS)[2:], combined[2:])


def test_ranks():
    assert changed(transforms.rank(), [5.0, 1.0, 1.0, 2.0, NAN]) == near([1, 0.25, 0.25, 0.5, NAN])
    assert changed(transforms.rank(over="batch"), [5.0, 1.0, 1000.0, 2.0, 3.0]) == near([0.75, 0, 1, 0.25, 0.5])


@pytest.fixture
def reference(tmp_path):
    file = tmp_path / "reference.jsonl"
    rows = [{"prompt": "p", "rewards": {"a": [0, 1, 2, None, 4], "b": [1]}}, {"prompt": "r", "rewards": {"a": [1.0], "b": []}}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_calibration_is_the_part_of_the_reference_samples_below(reference):
    level = [0.125 + 0.25, 0.5 + 0.125, 1.0, NAN, NAN]
    assert changed(transforms.calibrated(reference=reference, reward="a"), [1.0, 2.0, 9.0, 1.0, NAN]) == near(level)
    best = transforms.calibrated(reference=reference, reward="a", then="best_of_n", t=3.0)
    assert changed(best, [1.0, 2.0, 9.0, 1.0, NAN]) == near([math.exp(3 * value) for value in level])
    worst = transforms.calibrated(reference=reference, reward="a", then="worst_of_n", t=3.0)
    assert changed(worst, [1.0, 2.0, 9.0, 1.0, NAN]) == near([-math.exp(-3 * value) for value in level])
    with pytest.raises(UserError, match=r"calibrated\.reward: got None, takes a reward of .*: a, b"):
        transforms.calibrated(reference=reference)


def test_a_calibrated_reward_of_reference_samples_is_uniform(tmp_path):
    samples = torch.randn(400, generator=torch.Generator().manual_seed(0)).exp().tolist()
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps({"prompt": "p", "rewards": {"a": samples}}))
    step = transforms.calibrated(reference=str(file))
    combined = step.of(torch.tensor(samples, dtype=torch.float64), Rows(torch.zeros(400), ["p"] * 400), None)
    assert sorted(combined.tolist()) == near([(place + 0.5) / 400 for place in range(400)])


def test_log_sigmoid_centring(reference):
    log_s = lambda x: -math.log1p(math.exp(-x))  # noqa: E731
    assert changed(transforms.log_sigmoid(center=1.0), [1.0, 2.0, -3.0, NAN, 0.0]) == near([log_s(0), log_s(1), log_s(-4), NAN, log_s(-1)])
    step = transforms.log_sigmoid(reference=reference, reward="a", quantile=0.5)  # the middle of 0, 1, 2, 4 is 1.5
    assert changed(step, [1.0, 2.0, -3.0, 5.0, NAN]) == near([log_s(-0.5), log_s(0.5), log_s(-4.5), NAN, NAN])
    assert changed(transforms.log_sigmoid(center=0.0), [-1000.0, 1000.0, 0.0, 0.0, 0.0])[:2] == near([-1000.0, 0.0])


def test_isotonic_calibration(tmp_path):
    file = tmp_path / "labels.jsonl"
    file.write_text("".join(json.dumps({"score": score, "label": label}) + "\n" for score, label in [(1, 0), (2, 1), (3, 0), (4, 1)]))
    step = transforms.isotonic(path=str(file))
    assert changed(step, [0.0, 1.0, 2.5, 9.0, NAN]) == near([0, 0, 0.5, 1, NAN])
    file.write_text('{"score": 1, "label": 1}\n{"score": "x", "label": 1}\n')
    with pytest.raises(UserError, match=r"isotonic\.path: .*, line 2: takes an object with the numbers score, label"):
        transforms.isotonic(path=str(file))


# ---- what changes as training goes


def restored(build, by):
    """A fresh combination with the state of another, through JSON."""
    fresh = build()
    fresh.state.load(json.loads(json.dumps(by.state.dump())))
    return fresh


def test_multipliers_rise_over_the_limit_and_fall_below_it():
    def build():
        return balancing.constrained(limits={"c": 2.0}, rate=0.5, start=0.5, window=2)

    by, lam, costs = build(), 0.5, []
    for cost in ([4.0] * 5, [NAN, 3.0, 3.0, 3.0, 3.0], [0.0] * 5, [0.0] * 5, [NAN] * 5):
        given = parts(c=cost)
        combined = asked(by, given, learn=True)
        if not math.isnan(
            sum(value for value in cost if not math.isnan(value)) / max(1, sum(not math.isnan(value) for value in cost))
        ) and not all(math.isnan(value) for value in cost):
            known = [value for value in cost if not math.isnan(value)]
            costs = [*costs, sum(known) / len(known)][-2:]
            lam *= math.exp(0.5 * lam * (sum(costs) / len(costs) - 2))
        wanted = [(a + b - lam * c) / (1 + lam) for a, b, c in zip(PARTS["a"], PARTS["b"], cost, strict=True)]
        assert combined == near(wanted)
        assert asked(restored(build, by), given) == near(wanted)
    high = balancing.constrained(limits={"c": -1e9}, most=7.0)
    asked(high, learn=True)
    assert high.state.own.values == {"c": 7.0}


def test_the_fairest_is_the_reward_with_the_smallest_mean():
    assert asked(balancing.fairest(of=["a", "b"])) == near(PARTS["a"])
    by = balancing.fairest(of=["a", "b"], decay=0.5)
    asked(by, learn=True)  # means 1.6 and 2.8
    given = parts(a=[3.0] * 5, b=[1.0] * 5)
    assert asked(by, given, learn=True) == near([1.0] * 5)  # 2.3 and 1.9
    given = parts(a=[3.0] * 5, b=[NAN, 5.0, 5.0, 5.0, 5.0])
    assert asked(by, given, learn=True) == near([3.0] * 5)  # 2.65 and 3.45
    assert asked(restored(lambda: balancing.fairest(of=["a", "b"], decay=0.5), by), given) == near([3.0] * 5)
    assert asked(balancing.fairest(), parts(a=[NAN] * 5, b=[NAN] * 5, c=[NAN] * 5)) == near([NAN] * 5)


def test_weights_move_to_rewards_that_agree():
    def build():
        return by_gradient.gradient_weights(weights={"a": 1.0, "b": 1.0, "c": 2.0}, rate=0.1)

    by = build()
    given = parts(a=[1.0, 0.0, -1.0, 1.0, -1.0], b=[1.0, 0.0, -1.0, 2.0, -2.0], c=[-1.0, 0.0, 1.0, 0.0, 0.0])
    asked(by, given, learn=True)
    gram = [[(1 + 1 + 1 + 1) / 5, (2 + 4) / 5, -2 / 5], [6 / 5, (2 + 8) / 5, -2 / 5], [-2 / 5, -2 / 5, 2 / 5]]
    raised = [weight * math.exp(0.1 * sum(row)) for weight, row in zip([1.0, 1.0, 2.0], gram, strict=True)]
    wanted = [4 * value / sum(raised) for value in raised]
    assert list(by.state.own.values.values()) == near(wanted)
    assert asked(by, given) == near([sum(w * given[name][row].item() for w, name in zip(wanted, "abc", strict=True)) for row in range(5)])
    assert restored(build, by).state.own.values == by.state.own.values


def test_hypervolumes():
    assert hypervolume([(2, 1), (1, 2), (0.5, 0.5)], (0, 0)) == near(3)
    assert hypervolume([(1, 1, 1), (2, 1, 0.5), (0.5, 3, 0.2)], (0, 0, 0)) == near(1 + 0.5 + 0.2 * (0.5 * 3 - 0.5))
    assert hypervolume([(3, -1)], (0, 0)) == 0
    points = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).tolist()
    grid = (torch.arange(40) + 0.5) / 40
    cells = torch.cartesian_prod(grid, grid, grid)
    inside = torch.stack([(cells <= torch.tensor(point)).all(1) for point in points]).any(0)
    assert hypervolume(points, (0, 0, 0)) == pytest.approx(float(inside.double().mean()), abs=0.02)


def test_a_rollout_that_pushes_the_front_out_counts_more():
    def build():
        return balancing.hypervolume_weights(weights={"a": 1.0, "b": 0.0}, worst={"a": 0.0, "b": 0.0}, strength=2.0)

    by = build()
    first = parts(a=[2.0] * 5, b=[1.0] * 5)
    assert asked(by, first, learn=True) == near([6.0] * 5)  # the first of all: gain 1
    assert asked(by, first, learn=True) == near([2.0] * 5)  # nothing new
    second = parts(a=[1.0] * 5, b=[2.0] * 5)
    assert asked(by, second, learn=True) == near([1 + 2 * 0.5] * 5)
    assert asked(restored(build, by), second) == near([2.0] * 5)
    third = parts(a=[3.0] * 5, b=[3.0] * 5)
    asked(by, third, learn=True)
    assert by.state.own.points == [[3.0, 3.0]]


def test_a_held_out_front_counts_evaluations_and_no_rollouts():
    def build():
        return balancing.hypervolume_weights(weights={"a": 1.0, "b": 0.0}, worst={"a": 0.0, "b": 0.0}, strength=2.0, held_out=True)

    by, rollout = build(), parts(a=[2.0] * 5, b=[9.0] * 5)
    with pytest.raises(UserError, match=r"held_out: got no evaluation, takes a recipe that evaluates"):
        asked(by, rollout, learn=True)
    rows = [{"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 2.0}, {"a": None, "b": 9.0}, {"a": 1.0, "b": 1.0}]
    factors = []
    for count in range(1, 5):
        by.hears(rows[:count])
        by.hears(rows[:count])  # heard before: nothing is new, and the gain stays
        factors.append(asked(by, rollout, learn=True)[0] / 2)
    assert factors == near([1 + 2 * 1, 1 + 2 * 0.5, 1, 1])  # 2 at first, then 1 more; one that is missing, and one that is beaten
    assert by.state.own.points == [[2.0, 1.0], [1.0, 2.0]] and restored(build, by).state.own.heard == 4
    with pytest.raises(UserError, match="got no evaluation of b, takes weights of rewards that are evaluated"):
        build().hears([{"step": 0, "a": 1.0}])


# ---- mistakes


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: algebra.weighted_sum(missing="zero"), r"weighted_sum\.missing: got 'zero', takes row or rest"),
        (lambda: asked(algebra.weighted_sum(weights={"d": 1})), r"weighted_sum\.weights: got 'd', takes rewards that are there: a, b, c"),
        (lambda: asked(algebra.weighted_sum(transforms={"d": transforms.clip(low=0)})), r"weighted_sum\.transforms\.d: no such reward"),
        (lambda: algebra.weighted_sum(weights={"a": 0.0, "b": 0}), r"got \{'a': 0.0, 'b': 0\}, of which nothing can be learned"),
        (lambda: algebra.weighted_sum(transforms={"a": "z_score"}), r"weighted_sum\.transforms\.a: got 'z_score'"),
        (lambda: asked(algebra.harmonic(), parts(a=[-1.0, 1, 1, 1, 1])), "harmonic: a has scores below 0"),
        (lambda: algebra.gated(gates={}, otherwise=0.0), "gated: got gates="),
        (lambda: algebra.lexicographic(order={"a": -1.0}), r"lexicographic\.order"),
        (lambda: algebra.mixture_of_judges(reward="a"), "takes judges, or tasks"),
        (lambda: algebra.mixture_of_judges(reward="a", tasks={"t": {"prompts": "("}}), r"tasks\.t\.prompts: '\(' is no regular expression"),
        (lambda: algebra.nominal_and_worst(nominal="a", share=2.0), r"nominal_and_worst\.share: got 2\.0"),
        (lambda: algebra.pessimistic(beta=0.0), r"pessimistic\.beta"),
        (lambda: transforms.clip(), "clip: got low=None, high=None"),
        (lambda: transforms.z_score(over="prompt"), r"z_score\.over: got 'prompt', takes group, batch, running"),
        (lambda: transforms.log_sigmoid(), "takes either center or reference"),
        (lambda: transforms.calibrated(reference="nowhere.jsonl"), r"calibrated\.reference: no such file"),
        (lambda: balancing.constrained(limits={}), "constrained: got limits="),
        (lambda: balancing.hypervolume_weights(weights={"a": 1}, worst={}), "takes a corner for every weight"),
        (lambda: mm.rewards.combined(rewards={}), r"combined\.rewards"),
        (lambda: mm.rewards.combined(rewards={"a": len}, combine=len), r"combined\.combine: got builtin_function_or_method"),
    ],
)
def test_mistakes_are_one_line(build, says):
    with pytest.raises(UserError, match=says) as caught:
        build()
    assert "\n" not in str(caught.value)


# ---- in use


def test_combined_is_one_reward_with_a_gradient():
    def scorer(change):
        return Scorer("x", lambda outputs, prompts, **_: change(outputs).flatten(1).mean(1), differentiable=True)

    reward = mm.rewards.combined(
        rewards={"bright": scorer(lambda x: x), "dark": scorer(lambda x: 1 - x)}, combine=algebra.harmonic(weights={"bright": 1, "dark": 3})
    )
    outputs = torch.full((2, 3, 4, 4), 0.25).requires_grad_()
    scores = reward(outputs, ["p", "q"])
    assert scores.tolist() == pytest.approx([4 / (1 / 0.25 + 3 / 0.75)] * 2) and reward.differentiable
    scores.sum().backward()
    assert bool((outputs.grad != 0).all())
    assert not mm.rewards.combined(rewards={"a": lambda outputs, prompts: torch.zeros(len(prompts))}).differentiable


def test_every_combination_is_known_to_yaml():
    from mmalign.config.nodes import ROOMS
    from mmalign.rooms import index

    rooms = {name for room in ROOMS["combine"] for name in index(f"mmalign.{room}")}
    assert rooms >= {*ALL, *FIXED} and not any(isinstance(getattr(mm.combinations, name), Combination) for name in rooms)


def test_a_barrier_weighs_what_comes_near_its_floor() -> None:
    def build() -> Combination:
        return balancing.log_barrier(objective="a", floors={"b": 1.0, "c": 2.0}, strength=0.5, most=4.0, window=2)

    by = build()
    asked(by, parts(b=[9.0] * 5, c=[9.0] * 5), learn=True)
    asked(by, parts(b=[1.0, 2.0, 3.0, 4.0, 5.0], c=[2.5] * 5), learn=True)
    given = parts(b=[2.0] * 5, c=[1.5] * 5)
    weight = 0.5 / ((3.0 + 2.0) / 2 - 1)  # c: (2.5 + 1.5) / 2 is its floor, and no further above it
    assert asked(by, given, learn=True) == near([a + weight * 2.0 + 4.0 * 1.5 for a in PARTS["a"]])
    assert asked(restored(build, by), given) == asked(by, given)
    with pytest.raises(UserError, match="of other rewards than the objective"):
        balancing.log_barrier(objective="a", floors={"a": 1.0})
