"""An evaluation: the same rows at the same seeds, means with their errors, and the grid."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmalign.training.evaluations.evaluation import SEED, EvaluationPlan, evaluate
from mmalign.types import UserError


class Painter:
    """Generates one-pixel images whose grey is their seed's number, and remembers how it was asked."""

    sets = SimpleNamespace(shards=None, others={})

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def using(self, name: str) -> Any:
        self.asked.append(name)
        return nullcontext()

    def generate(self, prompts: list[str], seeds: list[int], **call: Any) -> torch.Tensor:
        self.asked.append((prompts, seeds, call))
        return torch.tensor([(seed - SEED) / 5 for seed in seeds]).view(-1, 1, 1, 1)


def grey(outputs: torch.Tensor, prompts: list[str], **columns: Any) -> torch.Tensor:
    return outputs.flatten()


def test_rows_seeds_means_errors_and_grid() -> None:
    policy = Painter()
    plan = EvaluationPlan(
        ["a", "b"], {"grey": grey}, {"some": lambda o, p: torch.where(o.flatten() > 0.7, o.flatten(), torch.nan)},
        {"m": lambda o, p: {"count": len(o)}}, samples=3, columns=2, call={"num_inference_steps": 7},
    )  # fmt: skip
    results = evaluate(policy, plan, using="ema")  # type: ignore[arg-type]
    assert policy.asked == ["ema", (["a"] * 3 + ["b"] * 3, [SEED + n for n in range(6)], {"num_inference_steps": 7})]
    deviation = float(torch.tensor([0, 0.2, 0.4, 0.6, 0.8, 1.0]).std())
    known = {name: value for name, value in results.metrics.items() if not name.startswith("pixels/")}
    assert known == pytest.approx({"grey": 0.5, "grey_se": deviation / 6**0.5, "some": 0.9, "some_se": 0.1, "some_missing": 4, "count": 6})
    assert results.grid is not None and results.grid.shape == (2, 2, 1, 1, 1)
    torch.testing.assert_close(results.grid.flatten(), torch.tensor([0.0, 0.2, 0.6, 0.8]))
    of_pixels = {name: value for name, value in results.metrics.items() if name.startswith(("pixels/brightness", "pixels/samples"))}
    assert of_pixels == pytest.approx({"pixels/brightness": 0.5, "pixels/brightness_se": deviation / 6**0.5, "pixels/samples": 6})
    assert {name: scores.shape for name, scores in results.scores.items()} == {"grey": (2, 2), "some": (2, 2)}
    torch.testing.assert_close(results.scores["grey"].float(), torch.tensor([[0.0, 0.2], [0.6, 0.8]]))  # of those that are shown


def test_videos_have_a_grid_too() -> None:
    policy = Painter()
    policy.generate = lambda prompts, seeds, **call: torch.zeros(len(prompts), 4, 3, 2, 2)  # type: ignore[method-assign]
    results = evaluate(policy, EvaluationPlan(["a", "b"], {"sum": lambda o, p: o.flatten(1).sum(1)}, samples=3, columns=2))  # type: ignore[arg-type]
    assert results.grid is not None and results.grid.shape == (2, 2, 4, 3, 2, 2)
    assert results.metrics["pixels/motion"] == 0 and results.metrics["pixels/saturation"] == 0


def test_outputs_that_are_no_images_have_no_grid() -> None:
    policy = Painter()
    policy.generate = lambda prompts, seeds, **call: torch.zeros(len(prompts), 2)  # type: ignore[method-assign]
    plan = EvaluationPlan(["a"], {"sum": lambda o, p: o.sum(1)}, samples=1)
    results = evaluate(policy, plan)  # type: ignore[arg-type]
    assert not any(name.startswith("pixels/") for name in results.metrics)
    assert results.grid is None and results.metrics["sum"] == 0 and results.metrics["sum_se"] != results.metrics["sum_se"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"prompts": []}, "evaluation.prompts: got none"),
        ({"judges": {"grey": grey}}, "judges.grey: a reward has that name too"),
    ],
)
def test_bad_input_is_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        EvaluationPlan(**{"prompts": ["a"], "rewards": {"grey": grey}, **changes})
