from __future__ import annotations

import pytest

from mmalign.runs.overoptimisation import Point, begun, curve, in_words, noise, overoptimised, roughness

UP = [0.5, 0.7, 0.8, 0.9, 0.95, 0.97]


def evals(**columns):
    length = max(len(values) for values in columns.values())
    rows = [{"step": 10 * i, **{name: values[i] for name, values in columns.items() if values[i] is not None}} for i in range(length)]
    return rows


def find(**columns):
    return overoptimised(evals(**columns), rewards=["proxy"], judges=["gold"])


def test_gold_rises_with_proxy():
    assert find(proxy=UP, gold=[0.5, 0.65, 0.75, 0.85, 0.9, 0.92]) == []


def test_gold_turns_down_while_proxy_rises():
    (finding,) = find(proxy=UP, gold=[0.5, 0.65, 0.8, 0.79, 0.7, 0.6])
    assert (finding.name, finding.reward, finding.began, finding.seen, finding.best, finding.last) == ("gold", "proxy", 20, 40, 0.8, 0.6)


def test_a_fall_is_news_once():
    rows = evals(proxy=UP, gold=[0.5, 0.65, 0.8, 0.79, 0.7, 0.6], gold_se=[0.01] * 6)
    news = [begun(rows[:known], rewards=["proxy"], judges=["gold"]) for known in range(1, 7)]
    assert [len(found) for found in news] == [0, 0, 0, 0, 1, 0]
    assert in_words(news[4][0]) == "gold fell from 0.8 at step 20 to 0.7 while the reward proxy rose"


def test_a_dip_that_heals_is_no_finding():
    assert find(proxy=UP, gold=[0.5, 0.7, 0.8, 0.5, 0.8, 0.85]) == []
    assert find(proxy=UP, gold=[0.5, 0.7, 0.85, 0.5, 0.84, 0.84], gold_se=[0.02] * 6) == []


def test_a_fall_within_the_noise_is_no_finding():
    gold = [0.5, 0.65, 0.8, 0.79, 0.76, 0.75]
    assert find(proxy=UP, gold=gold, gold_se=[0.03] * 6) == []  # 2 sqrt(2) .03 = .085 > .05
    assert [f.seen for f in find(proxy=UP, gold=gold, gold_se=[0.015] * 6)] == [50]  # 2 sqrt(2) .015 = .042


def test_a_rough_curve_needs_a_larger_fall():
    rough = [0.5, 0.7, 0.5, 0.75, 0.5, 0.72, 0.55]
    assert find(proxy=[*UP, 0.98], gold=rough) == []


def test_when_the_proxy_falls_too_it_is_another_trouble():
    assert find(proxy=[0.5, 0.7, 0.8, 0.7, 0.6, 0.55], gold=[0.5, 0.65, 0.8, 0.7, 0.6, 0.5]) == []
    turned = [0.3, 0.9, 0.95, 0.8, 0.7, 0.65]  # above its start, but below where gold was best
    assert find(proxy=turned, proxy_se=[0.01] * 6, gold=[0.5, 0.65, 0.8, 0.7, 0.6, 0.5]) == []
    assert find(proxy=[0.5] * 6, gold=[0.8, 0.75, 0.7, 0.6, 0.5, 0.4]) == []


def test_a_saturated_proxy_still_counts():
    (finding,) = find(proxy=[0.5, 0.9, 0.99, 0.99, 0.985, 0.985], proxy_se=[0.01] * 6, gold=[0.5, 0.7, 0.8, 0.7, 0.6, 0.5])
    assert finding.began == 20


@pytest.mark.parametrize(("last", "found"), [(0.90, []), (0.86, []), (0.80, ["spread_ratio"])])
def test_spread_has_its_line_at_85_percent(last, found):
    ratio = [1.0, 0.98, 0.96, 0.94, 0.92, last]
    assert [f.name for f in find(proxy=UP, gold=UP, spread_ratio=ratio)] == found


def test_more_spread_than_real_data_is_nothing_to_lose():
    assert find(proxy=UP, gold=UP, spread_ratio=[1.4, 1.2, 1.1, 1.0, 0.95, 0.9]) == []


def test_spread_without_a_ratio_is_compared_with_its_own_best():
    (finding,) = find(proxy=UP, gold=UP, spread=[3.0, 2.9, 2.5, 2.2, 2.0, 1.8])
    assert (finding.name, finding.began, finding.best) == ("spread", 0, 3.0)


def test_missing_values_and_short_runs():
    nothing = [None] * 6
    assert find(proxy=UP, gold=nothing) == [] and find(proxy=nothing, gold=UP[::-1]) == [] and find(proxy=[0.5], gold=[0.5]) == []
    assert overoptimised([], rewards=["proxy"], judges=["gold"]) == []
    gappy = [0.5, None, 0.8, float("nan"), None, 0.5]
    (finding,) = find(proxy=UP, gold=gappy, gold_se=[0.01, None, 0.01, None, None, 0.01])
    assert (finding.began, finding.seen) == (20, 50)


def test_what_was_trained_on_is_no_judge():
    rows = evals(proxy=UP, gold=UP[::-1])
    assert overoptimised(rows, rewards=["proxy", "gold"], judges=["gold"]) == []


def test_roughness_of_a_straight_line_is_nothing_and_of_noise_its_deviation():
    import numpy as np

    assert roughness([Point(i, 0.1 * i) for i in range(9)]) == pytest.approx(0.0, abs=1e-12)
    values = np.random.default_rng(0).normal(0, 0.3, 4000)
    assert roughness([Point(i, float(v)) for i, v in enumerate(values)]) == pytest.approx(0.3, rel=0.06)


def test_noise_is_two_standard_errors_of_a_difference():
    points = [Point(0, 1.0, 0.3), Point(1, 2.0, 0.4)]
    assert noise(points, *points) == pytest.approx(1.0)
    bare = curve([{"step": 0, "x": 1.0}, {"step": 1, "x": 2.0}], "x")
    assert noise(bare, *bare) == pytest.approx(0.05)


def test_few_evaluations_without_errors_decide_nothing():
    short = {"proxy": [0.5, 0.6, 0.7], "gold": [0.27, 0.26, 0.25]}
    assert find(**short) == []
    assert [f.name for f in find(**short, gold_se=[0.001] * 3)] == ["gold"]
    assert [f.name for f in find(**short, spread=[3.0, 2.0, 1.0])] == ["spread"]


def test_a_steady_fall_counts_on_any_scale():
    for scale, shift in ((1.0, 0.0), (0.01, 21.0), (1e3, -5.0)):
        gold = [shift + scale * value for value in (0.8, 0.75, 0.7, 0.6, 0.5, 0.4)]
        assert [f.name for f in find(proxy=UP, gold=gold)] == ["gold"], scale
