"""What a run's summary says, and which evaluation is its best; the journal at work is in tests/recipes/test_online.py."""

from __future__ import annotations

from math import nan

from mmalign.training.evaluations.evaluation import EvaluationPlan
from mmalign.training.evaluations.summary import best_of, summarise


def test_the_first_of_the_highest_is_best_and_nan_is_lowest() -> None:
    assert best_of([0.1, 0.4, 0.4, 0.2]) == 1
    assert best_of([nan, -5.0, nan]) == 1 and best_of([0.3, nan, 0.2]) == 0 and best_of([nan, nan]) == 0


def state(**more: object) -> dict[str, object]:
    evaluations = [
        {"step": 0, "r": 0.1, "r_se": 0.01, "spread_ratio": 1.0, "kl": 0.0},
        {"step": 5, "r": 0.7, "r_se": 0.02, "spread_ratio": 0.9, "kl": 2.0},
        {"step": 10, "r": 0.6, "r_se": 0.03, "spread_ratio": 0.8, "kl": 3.0},
    ]
    return {"step": 12, "train_seconds": 1.234, "kl": 3.5, "evaluations": evaluations, "facts": {"preflight_difference": 0.0}, **more}


def test_a_summary_is_before_and_after_and_what_it_cost() -> None:
    summary = summarise(state(), seed=3, status="interrupted", plan=EvaluationPlan(["a"], {"r": len}, {"j": len}))
    assert summary == {
        "seed": 3, "status": "interrupted", "steps": 12, "rewards": ["r"], "judges": ["j"],
        "r_before": 0.1, "r_se_before": 0.01, "spread_ratio_before": 1.0, "r_after": 0.6, "r_se_after": 0.03, "spread_ratio_after": 0.8,
        "kl": 3.0, "train_seconds": 1.23, "preflight_difference": 0.0, "spread_ratio": 0.8,
    }  # fmt: skip


def test_a_run_that_kept_its_best_reports_that() -> None:
    summary = summarise(state(best_step=5), seed=3, status="stopped early", plan=EvaluationPlan(["a"], {"r": len}))
    assert (summary["r_after"], summary["kl"], summary["spread_ratio"], summary["best_step"]) == (0.7, 2.0, 0.9, 5)


def test_pixels_are_told_where_they_moved_by_the_evaluation_that_counts() -> None:
    held = state()
    for row, brightness in zip(held["evaluations"], (0.5, 0.35, 0.1), strict=True):  # type: ignore[call-overload]
        row |= {"pixels/brightness": brightness, "pixels/brightness_se": 0.01, "pixels/samples": 100.0}
    plan = EvaluationPlan(["a"], {"r": len})
    summary = summarise(held, seed=3, status="finished", plan=plan)
    assert summary["pixels_moved"] == ["brightness since step 10"] and not any(name.startswith("pixels/") for name in summary)
    assert "pixels_moved" not in summarise({**held, "best_step": 5}, seed=3, status="stopped early", plan=plan)
