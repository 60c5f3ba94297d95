"""Laws of the one operator: ends, affine composition, and agreement of all parametrisations."""

from __future__ import annotations

import pytest
import torch

from mmalign.guidance.extrapolation import extrapolate
from mmalign.guidance.gradients import shifted
from mmalign.policies.pipelines.calls.scheduler import Moment
from mmalign.samplers.kernels import predict
from mmalign.types import Level, Prediction

A, B = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
X = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))


def test_the_ends_are_exact_to_the_last_bit():
    far = 1e4 * B
    assert torch.equal(extrapolate(A, far, 0.0), A) and torch.equal(extrapolate(A, far, 1.0), far)
    half = A.bfloat16(), B.bfloat16()
    assert torch.equal(extrapolate(*half, 1.0), half[1]) and extrapolate(*half, 2.0).dtype == torch.bfloat16


@pytest.mark.parametrize(("u", "w"), [(0.5, 0.5), (2.0, 1.6), (-1.0, 3.0)])
def test_composition_is_affine(u, w):
    a, b = A.double(), B.double()
    assert torch.allclose(extrapolate(a, extrapolate(a, b, u), w), extrapolate(a, b, u * w))
    assert torch.allclose(extrapolate(extrapolate(a, b, u), b, w), extrapolate(a, b, u + w - u * w))


@pytest.mark.parametrize("form", ["epsilon", "v_prediction", "sample", "flow"])
@pytest.mark.parametrize("level", [(0.6, 0.8), (0.3, 0.7), (1.0, 5.0)])
def test_every_parametrisation_gives_one_answer(form, level):
    """Extrapolating what a model says, in its own words, is extrapolating clean estimates."""
    t = Level(*(torch.tensor(value, dtype=torch.float64) for value in level))
    a, b, x = A.double(), B.double(), X.double()
    mixed = predict(extrapolate(a, b, 1.7), x, t, parametrisation=form)
    one, two = (predict(value, x, t, parametrisation=form) for value in (a, b))
    assert torch.allclose(mixed.clean, extrapolate(one.clean, two.clean, 1.7))
    assert torch.allclose(mixed.noise, extrapolate(one.noise, two.noise, 1.7))


def test_a_shifted_estimate_still_adds_up_to_the_latent():
    t = Level(torch.tensor(0.4, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64))
    moment = Moment(0, 1, t, t, X.double(), predict(A.double(), X.double(), t, parametrisation="flow"))
    prediction = shifted(moment, B.double())
    assert isinstance(prediction, Prediction)
    assert torch.allclose(t.signal * prediction.clean + t.noise * prediction.noise, X.double())
    assert torch.allclose(prediction.clean - moment.prediction.clean, B.double())
