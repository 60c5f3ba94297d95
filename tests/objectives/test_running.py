"""Numbers that methods keep."""

from __future__ import annotations

import json

import pytest
import torch

from mmalign.objectives.state.running import RunningMean


def test_a_mean_of_everything_is_the_mean_whatever_the_batches() -> None:
    values = torch.randn(7, dtype=torch.float64)
    whole, parts = RunningMean(), RunningMean()
    for part in values.split([2, 4, 1]):
        mean = parts.update(part)
    assert float(mean) == pytest.approx(float(values.mean())) == float(whole.update(values))
    assert float(parts.update(values[:0])) == float(mean) and float(RunningMean().update(values[:0])) == 0.0


def test_a_decay_forgets() -> None:
    mean = RunningMean(decay=0.9)
    assert [float(mean.update(torch.tensor([value, value]))) for value in (1.0, 2.0, 0.0)] == pytest.approx([1.0, 1.1, 0.99])


def test_state_goes_through_json_and_back() -> None:
    mean, other = RunningMean(), RunningMean()
    other.load(json.loads(json.dumps(mean.dump())))
    assert other.dump() == mean.dump() == {"mean": None, "count": 0}
    mean.update(torch.tensor([1 / 3, 5.0]))
    other.load(json.loads(json.dumps(mean.dump())))
    assert float(other.update(torch.tensor([2.0]))) == float(mean.update(torch.tensor([2.0])))
