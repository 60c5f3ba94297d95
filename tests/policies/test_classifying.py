"""A classifier on a denoiser's features: whose they are, what it learns, and where it pulls a sample."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from torch.nn.functional import softplus

import mmalign as mm
from mmalign.data.pairs import listed
from mmalign.objectives.terms import matching
from mmalign.policies.pipelines.denoising import score_differences
from mmalign.policies.twins import pipelines as twins
from mmalign.records import Pair, Ranking, Thumb
from mmalign.samplers.score_differences import Adversary, Noising
from mmalign.training.rollouts.given import Given, refuse_given
from mmalign.types import Steps, UserError
from mmalign.worlds.digits.data import digit_prompts, digits_scans

SEEDS = torch.arange(4)


def policy(**pipeline):
    return mm.policies.diffusers(mm.worlds.digits(**pipeline), schedule=mm.Schedule(steps=3, kernel=mm.kernels.ode()), device="cpu")


def given(rows):
    chosen = digits_scans()[:rows]
    return [one.prompt for one in chosen], torch.stack([one.output for one in chosen])


@pytest.mark.parametrize("denoiser", [{}, {"denoiser": "dit"}])
def test_the_pull_is_the_derivative_of_what_the_classifier_says(denoiser):
    """Along a random direction, by central differences of the whole chain from the clean estimate on, on two kinds of denoiser."""
    student = policy(**denoiser)
    student.sets.keep("fake")
    rollout = student.sample(digit_prompts(count=2), 2, torch.Generator().manual_seed(0))
    rows, one = torch.arange(4), Adversary("fake", 0.3, Noising(0.2, 0.6))
    with torch.no_grad():
        step = score_differences.transition_at_once(student, rollout, rows, 1)
        (pull,) = score_differences.pulls(student, rollout, rows, 1, step, SEEDS[:, None], (one,))
    view, prompts = student.errors.classifying("fake"), list(rollout.prompts)
    held = score_differences._noised(student, rollout, rows, 1, step, one.noising, SEEDS)

    @torch.no_grad()
    def said(clean):
        x, *at = view.at_level(held, rows, 0, clean)
        return -one.weight * softplus(-view.logits(prompts, x, *at)).double()

    way = torch.randn(held.clean.shape, generator=torch.Generator().manual_seed(1))
    slope = (said(held.clean + 0.02 * way) - said(held.clean - 0.02 * way)) / 0.04
    assert float(slope.abs().min()) > 1e-5
    torch.testing.assert_close((pull * way).flatten(1).sum(1).double(), slope, rtol=0.02, atol=1e-6)


def test_what_it_learns_is_the_cross_entropy_of_both():
    student = policy()
    student.sets.keep("fake")
    view, rollout = student.errors.classifying("fake"), student.sample(digit_prompts(count=2), 2, torch.Generator().manual_seed(0))
    _, rows = student.noised(rollout, 1, Noising(), SEEDS, rows_at_once=3, given=given(4))
    method = mm.methods.dmd2(gan=0.5, classify=0.25).companions[0].method
    assert view.classifier is student.errors.classifying("fake").classifier
    steps = view.steps(rows, torch.arange(4), needs=method.needs)
    plain = student.errors.steps(rows, torch.arange(4))
    values, _, _, _ = method.loss(steps, torch.ones(4, 1).double())
    own, real = steps.terms["realism"], steps.terms["realism_of_given"]
    wanted = cross_entropy(own, torch.zeros_like(own), reduction="none") + cross_entropy(real, torch.ones_like(real), reduction="none")
    torch.testing.assert_close(values, -2 * plain.log_probs / 64 + 0.25 * wanted, rtol=1e-5, atol=1e-6)
    values.sum().backward()
    features = [name for name, p in view.parameters().items() if p.grad is not None and bool(p.grad.abs().max() > 0)]
    assert any(name.startswith("classifier.") for name in features) and any(not name.startswith("classifier.") for name in features)
    some = view.steps(rows.take(torch.tensor([2])), torch.arange(1), needs=method.needs)
    torch.testing.assert_close(some.terms["realism_of_given"][0], real[2].detach(), rtol=1e-4, atol=1e-5, check_dtype=False)
    with pytest.raises(UserError, match="records: missing"):
        view.steps(student.noised(rollout, 1, Noising(), SEEDS, rows_at_once=4)[1], torch.arange(4), needs=method.needs)
    with pytest.raises(UserError, match="takes the size of the samples"):
        student.noised(rollout, 1, Noising(), SEEDS, rows_at_once=4, given=(["a"] * 4, torch.zeros(3, 1, 8, 8)))


def test_the_sign_is_that_of_data():
    table = torch.zeros(1, 1).double()
    sure = lambda own, real: Steps(  # noqa: E731
        table, table == 0, kind="bound", terms={"realism": table + own, "realism_of_given": table + real}
    )
    assert float(matching.classified(sure(-9.0, 9.0))) < 1e-3 < 15 < float(matching.classified(sure(9.0, -9.0)))
    assert float(matching.classified(sure(0.0, 0.0))) == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize(("name", "streams"), [("FluxPipeline", 2), ("StableDiffusionPipeline", 1), ("WanPipeline", 1)])
def test_any_denoiser_has_features(name, streams):
    """Joint blocks have a stream of text besides; each row's features are its own."""
    pipe, schedule = twins.twin(name), mm.Schedule(steps=2, guidance=1.0)
    tiny = mm.policies.diffusers(pipe, schedule=schedule, call=twins.call_arguments(pipe), device="cpu", lora=mm.Lora(rank=2))
    view = tiny.errors.classifying("fake")
    assert len(view.classifier.streams) == streams
    prompts, x, times, levels = view._any_rows(3)
    x = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = view.logits(prompts, x, times, levels)
    (gradient,) = torch.autograd.grad(logits[1], x)
    apart = gradient.flatten(1).abs().amax(1)
    assert logits.shape == (3,) and float(apart[1]) > 0 and float(apart[[0, 2]].max()) == 0


def test_records_in_turn():
    image = torch.zeros(1, 2, 2)
    records = listed([Pair("a", image, image + 1, 0.2), Thumb("b", image + 2, 0.0), Thumb("c", image + 3, 1.0),
                              Ranking("d", (image, image + 4, image), (0.1, 0.5, math.nan))])  # fmt: skip
    best = {"a": 1.0, "c": 3.0, "d": 4.0}
    one, own = Given(records, seed=0), torch.tensor([True, False, True, True])
    first = one.rows(4, own)
    assert [float(output.mean()) for output in first[1]] == [best[prompt] for prompt in first[0]] and len(first[0]) == 3
    kept, after = one.dump(), one.rows(4, own)
    again = Given(records, seed=0)
    again.load(kept)
    assert again.rows(4, own)[0] == after[0] and torch.equal(again.rows(4, own)[1], one.rows(4, own)[1])
    with pytest.raises(UserError, match="of one size"):
        Given(listed([Thumb("a", image, 1.0), Thumb("b", torch.zeros(1, 3, 3), 1.0)]), seed=0).rows(2, own[:2])
    with pytest.raises(UserError, match="of no output that it is good"):
        Given(listed([Thumb("a", image, 0.0)]), seed=0).rows(1, own[:1])


def test_records_and_a_classifier_come_together():
    with pytest.raises(UserError, match="records: missing"):
        refuse_given(mm.methods.flash_dmd(gan=0.1), None)
    with pytest.raises(UserError, match="records: nothing in this method reads them"):
        refuse_given(mm.methods.dmd2(), [1])
    assert mm.methods.dmd2(gan=0.1, gan_high=0.4).reward_gradient.differences[1] == Adversary("fake", 0.1, Noising(0.0, 0.4))
