"""Straight-line oracles of methods that look into the steps of a pair, at other conditions, or at what is known of a pair besides."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.oracles.pairs import _cells, _known, dpo, expected, link_of, ratio, softplus
from tests.oracles.tables import Table


def _lr(table: Table, row: int, step: int) -> Tensor:
    return table.log_probs[row, step] - table.ref[row, step]


def _other(table: Table, name: str, row: int, step: int | None) -> Tensor:
    """The log-ratio of a row under another condition."""
    log_probs, ref = table.others[name]
    return sum((log_probs[row, cell] - ref[row, cell] for cell in (_cells(table, row) if step is None else [step])), torch.tensor(0.0))


def _kl(table: Table, row: int) -> Tensor:
    return sum((table.reverse_kl[row, step] for step in _cells(table, row)), torch.tensor(0.0))


def _hard(table: Table) -> list[tuple[int, int]]:
    """(better, worse) of the pairs in which somebody is ahead."""
    return [(a, b) if p > 0.5 else (b, a) for a, b, p in _known(table) if p != 0.5]


def _live_rows(table: Table) -> int:
    return int(table.mask.any(1).sum())


def aot(table: Table, *, beta: float = 0.1, paired: bool = True, smoothing: float = 0.0) -> Tensor:
    pairs = _hard(table)
    if paired:
        ours = [ratio(table, w, None, "total", None) - ratio(table, r, None, "total", None) for w, r in pairs]
        theirs = [(table.ref[w][table.mask[w]].sum() - table.ref[r][table.mask[r]].sum()) for w, r in pairs]
    else:
        ours, theirs = [ratio(table, w) for w, _ in pairs], [ratio(table, r) for _, r in pairs]
    gaps = torch.stack(ours).sort().values - torch.stack(theirs).sort().values
    costs = [(1 - smoothing) * softplus(-beta * gap) + smoothing * softplus(beta * gap) for gap in gaps]
    return 2 * torch.stack(costs).sum() / _live_rows(table)


def ld_dpo(table: Table, *, beta: float = 0.1, alpha: float = 0.5) -> Tensor:
    def cost(better: int, worse: int, _: int | None) -> Tensor:
        shorter = min(len(_cells(table, better)), len(_cells(table, worse)))
        sides = []
        for row in (better, worse):
            cells = _cells(table, row)
            head = [_lr(table, row, step) for step in cells[:shorter]]
            tail = [alpha * _lr(table, row, step) for step in cells[shorter:]]
            sides.append(torch.stack(head + tail).sum())
        return softplus(-beta * (sides[0] - sides[1]))

    return expected(table, cost)


def wpo(table: Table, *, beta: float = 0.01, cap: bool = True) -> Tensor:
    def cost(better: int, worse: int, _: int | None) -> Tensor:
        a = 0.0
        for row in (better, worse):
            cells = _cells(table, row)
            a += sum(float((table.log_probs[row, step] - table.collision[row, step]).detach()) for step in cells) / len(cells)
        weight = torch.tensor(a, dtype=torch.float64).exp()
        return (weight.clamp(max=1) if cap else weight) * softplus(-beta * (ratio(table, better) - ratio(table, worse)))

    return expected(table, cost)


def tdpo1(table: Table, *, beta: float = 0.1) -> Tensor:
    def cost(better: int, worse: int, _: int | None) -> Tensor:
        margin = ratio(table, better) - ratio(table, worse) - (_kl(table, worse) - _kl(table, better))
        return softplus(-beta * margin)

    return expected(table, cost)


def tdpo2(table: Table, *, beta: float = 0.1, alpha: float = 0.5) -> Tensor:
    def cost(better: int, worse: int, _: int | None) -> Tensor:
        margin = ratio(table, better) - ratio(table, worse) - alpha * (_kl(table, worse) - _kl(table, better).detach())
        return softplus(-beta * margin)

    return expected(table, cost)


def _thought(table: Table, row: int, step: int) -> float:
    """What the reference thinks of a step: how much likelier it is when asked for a good answer, in 0..1."""
    return float(torch.sigmoid(table.others["good"][1][row, step] - table.others["bad"][1][row, step]))


def t_reg(table: Table, *, beta: float = 0.1, weight: float = 0.25) -> Tensor:
    def cost(better: int, worse: int, _: int | None) -> Tensor:
        margin = ratio(table, better) - ratio(table, worse)
        total = margin * 0
        for row in (better, worse):
            for step in _cells(table, row):
                total = total - beta * (_thought(table, row, step) - 0.5) * table.log_probs[row, step]
        return softplus(-beta * margin) + weight * torch.sigmoid(-beta * margin).detach() * total

    return expected(table, cost)


def critical_token_dpo(
    table: Table, *, beta: float = 0.1, both: bool = True, by: str = "prompts", right: str = "right", wrong: str = "wrong"
) -> Tensor:
    def _thought(table: Table, row: int, step: int) -> float:
        """What is thought of a step: by the reference under two prompts, or by two models."""
        first, second = (
            (table.others[name][1] for name in ("good", "bad")) if by == "prompts" else (getattr(table, n) for n in (right, wrong))
        )
        return 1 / (1 + math.exp(float(second[row, step] - first[row, step])))

    def cost(better: int, worse: int, _: int | None) -> Tensor:
        margin = torch.tensor(0.0, dtype=torch.float64)
        for step in _cells(table, better):
            margin = margin + (_thought(table, better, step) if both else 1.0) * _lr(table, better, step)
        for step in _cells(table, worse):
            margin = margin - (1 - _thought(table, worse, step)) * _lr(table, worse, step)
        return softplus(-beta * margin)

    return expected(table, cost)


def dense_dpo(table: Table, *, beta: float = 0.1, gamma: float = 5.0, margin: str = "per_step") -> Tensor:
    def score(row: int) -> Tensor:
        weights = {step: gamma if table.changed[row, step] else 1.0 for step in _cells(table, row)}
        total = torch.stack([weights[step] * _lr(table, row, step) for step in weights]).sum()
        return total / (sum(weights.values()) if margin == "per_step" else 1)

    return expected(table, lambda better, worse, _: softplus(-beta * (score(better) - score(worse))))


def rrpo(table: Table, *, beta: float = 0.1, alpha: float = 0.1) -> Tensor:
    def score(row: int) -> Tensor:
        return sum((_lr(table, row, step) for step in _cells(table, row) if table.phrase[row, step]), torch.tensor(0.0))

    return expected(table, lambda better, worse, _: softplus(-beta * (score(better) - score(worse))) + alpha * _kl(table, better))


def salt(table: Table, *, added: float = 1.0, removed: float = 1.0) -> Tensor:
    def cost(better: int, worse: int, _: int | None) -> Tensor:
        total = torch.tensor(0.0, dtype=torch.float64)
        for step in _cells(table, better):
            total = total - (added if table.changed[better, step] else 1.0) * table.log_probs[better, step]
        for step in _cells(table, worse):
            if table.changed[worse, step]:
                total = total - removed * torch.log(1 - table.log_probs[worse, step].exp())
        return total / len(_cells(table, better))

    return expected(table, cost)


def mdpo(table: Table, *, beta: float = 0.1, anchor: float = 0.0) -> Tensor:
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        good, bad, blind = ratio(table, better, step), ratio(table, worse, step), _other(table, "ablated", better, step)
        return softplus(-beta * (good - bad)) + softplus(-beta * (good - blind)) + softplus(-beta * (good - anchor))

    return expected(table, cost)


def opa_dpo(table: Table, *, beta: float = 0.1, picture: float = 0.2, keep: float = 1.0, anchor: float = 0.0) -> Tensor:
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        good, bad, blind = ratio(table, better, step), ratio(table, worse, step), _other(table, "ablated", better, step)
        seen = picture * softplus(-beta * (good - blind))
        return softplus(-beta * (good - bad)) + seen + keep * softplus(-beta * (good - anchor))

    return expected(table, cost)


def reward_augmented_dpo(table: Table, *, beta: float = 0.1) -> Tensor:
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        high = ratio(table, better, step) - ratio(table, worse, step)
        low = _other(table, "bad", worse, step) - _other(table, "bad", better, step)
        return softplus(-beta * high) + softplus(-beta * low)

    return expected(table, cost)


def sdpo(table: Table, *, taught: str = "taught", rows: str = "worse") -> Tensor:
    def of(row: int) -> Tensor:
        cells = _cells(table, row)
        liked = [float((table.others[taught][0][row, step] - table.log_probs[row, step]).detach()) for step in cells]
        return sum((-gap * table.log_probs[row, step] for gap, step in zip(liked, cells, strict=True)), torch.tensor(0.0)) / len(cells)

    return expected(table, lambda better, worse, _: of(worse) if rows == "worse" else (of(better) + of(worse)) / 2)


def mapl(table: Table, *, beta: float = 0.1, weight: float = 1.0, between: float = 0.0, changed: str = "ablated") -> Tensor:
    def cost(better: int, worse: int, step: int | None) -> Tensor:
        good, bad = ratio(table, better, step), ratio(table, worse, step)
        good_there, bad_there = _other(table, changed, better, step), _other(table, changed, worse, step)
        prompts = (softplus(-beta * (good - good_there)) + softplus(-beta * (bad - bad_there))) / 2
        pairs = softplus(-beta * ((good - bad) - (good_there - bad_there)))
        return softplus(-beta * (good - bad)) + weight * prompts + between * pairs

    return expected(table, cost)


def _rewarded(table: Table, cost: Callable[[int, int, int | None, float], Tensor]) -> Tensor:
    """As ``expected``, for pairs whose rewards are both known."""
    known = torch.tensor([not bool(table.rewards[pair].isnan().any()) for pair in table.pairs])
    strength = torch.where(known, table.strength, torch.nan)
    table = type(table)(**{**vars(table), "strength": strength})
    return expected(table, lambda w, r, step: cost(w, r, step, float(table.rewards[w] - table.rewards[r])))


def mm_dpo(table: Table, *, beta: float = 0.1, weight: float = 0.5, k: float = 0.5) -> Tensor:
    def cost(better: int, worse: int, step: int | None, delta: float) -> Tensor:
        sure = 1 - torch.exp(torch.tensor(-k * max(delta, 0.0), dtype=torch.float64))
        return softplus(-beta * (1 + weight * sure) * (ratio(table, better, step) - ratio(table, worse, step)))

    return _rewarded(table, cost)


def modpo(table: Table, *, beta: float = 0.1, weight: float = 0.5) -> Tensor:
    def cost(better: int, worse: int, step: int | None, delta: float) -> Tensor:
        margin = ratio(table, better, step) - ratio(table, worse, step)
        return softplus(-(beta * margin - (1 - weight) * delta) / weight)

    return _rewarded(table, cost)


def constrained_po(
    table: Table, *, beta: float = 0.1, gamma: float = 0.5, tau: float = 2.0, alpha: float = 1.0, target: str = "soft"
) -> Tensor:
    def cost(better: int, worse: int, _: int | None) -> Tensor:
        gap = ratio(table, better, None, "total", None) - ratio(table, worse, None, "total", None)
        ref = table.ref[better][table.mask[better]].sum() - table.ref[worse][table.mask[worse]].sum()
        margin = ref.clamp(min=0) if target == "clip" else ref + torch.log(1 + torch.exp(tau * (gamma - ref))) / tau / alpha
        return softplus(-beta * (gap - margin))

    return expected(table, cost)


def cpl(table: Table, *, beta: float = 0.1, gamma: float = 1.0, bias: float = 0.5) -> Tensor:
    def score(row: int) -> Tensor:
        return torch.stack([gamma**t * beta * table.log_probs[row, step] for t, step in enumerate(_cells(table, row))]).sum()

    def cost(better: int, worse: int, _: int | None) -> Tensor:
        up, down = torch.exp(score(better)), torch.exp(bias * score(worse))
        return -torch.log(up / (up + down))

    return expected(table, cost)


def rationale_dpo(table: Table, *, beta: float = 0.1, weight: float = 1.0) -> Tensor:
    def cost(better: int, worse: int, _: int | None) -> Tensor:
        sides = [sum((_lr(table, row, s) for s in _cells(table, row) if table.segment[row, s] == 1), 0.0) for row in (better, worse)]
        values = [table.log_probs[better, s] for s in _cells(table, better) if table.segment[better, s] == 2]
        return softplus(-beta * (sides[0] - sides[1])) - (weight * torch.stack(values).mean() if values else 0.0)

    return expected(table, cost)


def osp(table: Table, *, beta: float = 0.1, margin: str = "total", scale: float = 1.0) -> Tensor:
    return dpo(table, beta=beta, margin=margin)  # of given pairs, which have strengths; tests/objectives/test_comparisons.py makes some


def ddro(table: Table, *, beta: float = 0.4) -> Tensor:
    return dpo(table, beta=beta)


def power_dl(table: Table, *, beta: float = 0.1, eta: float = 0.1, gamma: float = 0.1) -> Tensor:
    total = table.log_probs.sum() * 0
    for first, second, strength in _known(table):
        a, n = [ratio(table, row, None, "per_step", None) for row in (first, second)], [len(_cells(table, row)) for row in (first, second)]
        z = beta * (a[0] - a[1] + 1 / n[0] - 1 / n[1])
        label = (1 - gamma) * strength + gamma * torch.sigmoid(z).detach()
        likelihood = strength * a[0] + (1 - strength) * a[1]
        total = total + 2 * (label * softplus(-z) + (1 - label) * softplus(z) - eta * beta * likelihood) / _live_rows(table)
    return total


def _active(table: Table, row: int) -> dict[int, float]:
    """How far each live step's activation lies above the row's mean, in units of its spread, or 0; 1 of a step alone."""
    a = {step: float(table.activation[row, step]) for step in _cells(table, row)}
    spread = statistics.pstdev(a.values())
    return {step: max(0.0, (value - statistics.mean(a.values())) / spread) if len(a) > 1 else 1.0 for step, value in a.items()}


def sparsepo(table: Table, *, beta: float = 0.1, masks: str = "learned", reward_sparsity: float = 0.0, kl_sparsity: float = 0.0) -> Tensor:
    def cost(better: int, worse: int, _: int | None) -> Tensor:
        margin, norm = torch.tensor(0.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
        for row, sign in ((better, 1), (worse, -1)):
            for step in _cells(table, row):
                reward, held = table.reward_mask[row, step], table.kl_mask[row, step]
                if masks == "activations":
                    reward = held = torch.tensor(_active(table, row)[step], dtype=torch.float64)
                margin = margin + sign * (reward * _lr(table, row, step) + held * table.reverse_kl[row, step])
                norm = norm + reward_sparsity * reward + kl_sparsity * held
        return softplus(-beta * margin) + norm

    return expected(table, cost)


def preference_degree(table: Table, *, beta: float = 0.1, weight: float = 0.1) -> Tensor:
    def cost(better: int, worse: int, _: int | None) -> Tensor:
        values = [sum((table.degree[row, step] for step in _cells(table, row)), torch.tensor(0.0)) for row in (better, worse)]
        return softplus(-beta * (ratio(table, better) - ratio(table, worse))) - weight * (values[0] + values[1]) / 2

    return expected(table, cost)


def triple_po(table: Table, *, beta: float = 0.01, likelihood: float = 1.0, margin: str = "total", gamma: float = 0.0) -> Tensor:
    total = table.log_probs.sum() * 0
    for group in set(table.group.tolist()):
        rows = [row for row in range(len(table.group)) if table.group[row] == group and _cells(table, row)]
        rows = sorted((row for row in rows if not table.rewards[row].isnan()), key=lambda row: -float(table.rewards[row]))
        if len(rows) < 3 or len({float(table.rewards[row]) for row in rows}) < len(rows):
            continue
        gold, better, worse = rows[0], rows[1], rows[-1]
        gap = ratio(table, better, None, margin, None) - ratio(table, worse, None, margin, None)
        value = -torch.log(torch.sigmoid(beta * gap - gamma)) - likelihood * ratio(table, gold, None, "per_step", None)
        total = total + 3 * value / _live_rows(table)
    return total


def lcpo(
    table: Table, *, base: str = "dpo", beta: float = 0.1, gamma: float = 0.0, reliability: float = 0.9, momentum: float = 0.1
) -> Tensor:
    """The first update: ``momentum`` is what the next one starts from."""

    def loss(better: int, worse: int, step: int | None) -> Tensor:
        ref, over = (None if base in ("cpo", "simpo") else "ref"), "per_step" if base == "simpo" else "total"
        margin = ratio(table, better, step, over, ref) - ratio(table, worse, step, over, ref) - gamma / beta
        return link_of(margin, "squared" if base == "ipo" else "logistic", beta)

    def cost(better: int, worse: int, step: int | None) -> Tensor:
        sure = loss(worse, better, step) - loss(better, worse, step)
        q = torch.sigmoid(sure).detach()
        c = q * reliability / (q * reliability + (1 - q) * (1 - reliability))
        return c * softplus(-sure) + (1 - c) * softplus(sure)

    return expected(table, cost)


ORACLES: dict[str, list[tuple[dict[str, Any], Callable[..., Tensor]]]] = {
    "aot": [({}, aot), ({"beta": 0.7, "paired": False, "smoothing": 0.1}, aot)],
    "ld_dpo": [({}, ld_dpo), ({"beta": 0.7, "alpha": 0.3}, ld_dpo)],
    "wpo": [({}, wpo), ({"beta": 0.7, "cap": False}, wpo)],
    "tdpo1": [({}, tdpo1), ({"beta": 0.7}, tdpo1)],
    "tdpo2": [({}, tdpo2), ({"beta": 0.7, "alpha": 1.5}, tdpo2)],
    "t_reg": [({}, t_reg), ({"beta": 0.7, "weight": 2.0}, t_reg)],
    "critical_token_dpo": [
        ({}, critical_token_dpo),
        ({"beta": 0.7, "both": False}, critical_token_dpo),
        ({"by": "models", "right": "previous", "wrong": "before"}, critical_token_dpo),
    ],
    "dense_dpo": [({}, dense_dpo), ({"beta": 0.7, "gamma": 0.5, "margin": "total"}, dense_dpo)],
    "salt": [({}, salt), ({"added": 0.5, "removed": 2.0}, salt)],
    "rrpo": [({}, rrpo), ({"beta": 0.7, "alpha": 0.5}, rrpo)],
    "opa_dpo": [({}, opa_dpo), ({"beta": 0.7, "picture": 0.5, "keep": 0.3, "anchor": 0.5}, opa_dpo)],
    "mdpo": [({}, mdpo), ({"beta": 0.7, "anchor": 0.5}, mdpo)],
    "reward_augmented_dpo": [({}, reward_augmented_dpo), ({"beta": 0.7}, reward_augmented_dpo)],
    "sdpo": [({"taught": "bad"}, sdpo), ({"taught": "good", "rows": "both"}, sdpo)],
    "mapl": [({}, mapl), ({"beta": 0.7, "weight": 0.3, "changed": "good"}, mapl), ({"beta": 0.4, "between": 0.6}, mapl)],
    "mm_dpo": [({}, mm_dpo), ({"beta": 0.7, "weight": 2.0, "k": 1.5}, mm_dpo)],
    "modpo": [({}, modpo), ({"beta": 0.7, "weight": 0.3}, modpo)],
    "constrained_po": [
        ({}, constrained_po),
        ({"beta": 0.7, "gamma": 2.0, "tau": 0.5, "alpha": 3.0}, constrained_po),
        ({"target": "clip"}, constrained_po),
    ],
    "osp": [({}, osp), ({"beta": 0.7, "margin": "per_step", "scale": 3.0}, osp)],
    "ddro": [({}, ddro), ({"beta": 0.7}, ddro)],
    "cpl": [({}, cpl), ({"beta": 0.7, "gamma": 0.8, "bias": 1.0}, cpl)],
    "rationale_dpo": [({}, rationale_dpo), ({"beta": 0.7, "weight": 0.3}, rationale_dpo)],
    "power_dl": [({}, power_dl), ({"beta": 2.0, "eta": 0.5, "gamma": 0.6}, power_dl)],
    "sparsepo": [
        ({}, sparsepo),
        ({"beta": 0.7, "reward_sparsity": 0.1, "kl_sparsity": 0.2}, sparsepo),
        ({"masks": "activations"}, sparsepo),
    ],
    "preference_degree": [({}, preference_degree), ({"beta": 0.7, "weight": 1.5}, preference_degree)],
    "triple_po": [
        ({}, triple_po),
        ({"beta": 0.7, "likelihood": 0.3, "margin": "per_step", "gamma": 0.5}, triple_po),
    ],
    "lcpo": [
        ({}, lcpo),
        ({"base": "ipo", "beta": 20.0, "reliability": 0.6, "momentum": 0.5}, lcpo),
        ({"base": "simpo", "beta": 2.0, "gamma": 0.5}, lcpo),
        ({"base": "cpo", "beta": 0.3}, lcpo),
    ],
}

SATURATING: dict[str, str] = {
    "triple_po": "a list of two rows has no triple, and no gradient at any distance",
    "sdpo": "rows go where the taught policy is, whatever their rewards",
}
