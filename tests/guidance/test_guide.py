from __future__ import annotations

import numpy
import pytest
import torch
from PIL import Image

import mmalign as mm
from mmalign.guidance._run import Guidance
from mmalign.policies.adapters import add_lora
from mmalign.policies.settings import Lora
from mmalign.rewards.pictures.jpeg import jpeg
from mmalign.types import UserError
from mmalign.worlds.digits.data import PROMPTS

STEPPED = {"dps": {"scale": 50.0}, "mpgd": {"scale": 50.0}, "universal": {"scale": 50.0}, "freedom": {"scale": 50.0, "start": 0.0}}
CHOSEN = {
    "fk": {"particles": 3}, "svdd": {"particles": 3}, "das": {"particles": 3, "scale": 100.0}, "best_of": {"count": 3},
    "noise_search": {"rounds": 3, "count": 4, "radius": 0.7}, "reno": {"iterations": 4}, "dno": {"iterations": 4, "rate": 0.2},
}  # fmt: skip


def brightness(outputs, prompts, **columns):
    return outputs.flatten(1).mean(1)


def images(pipe, prompts=PROMPTS[:3], seed=0, **call):
    rng = [torch.Generator().manual_seed(seed + row) for row in range(len(prompts))]
    return pipe(list(prompts), generator=rng, output_type="pt", num_inference_steps=4, **call).images


@pytest.mark.parametrize("name", [*STEPPED, *CHOSEN])
def test_every_sampler_raises_the_reward_comes_again_and_leaves_nothing_behind(pipe, name):
    settings, kind, scheduler = {**STEPPED, **CHOSEN}[name], type(pipe), pipe.scheduler
    plain = images(pipe)
    state = dict(pipe.__dict__)
    drawn = []
    for _ in range(2):
        with mm.guide(pipe, brightness, guidance=name, **settings) as guided:
            drawn.append(images(pipe))
    assert float(brightness(drawn[0], []).mean()) > float(brightness(plain, []).mean()) + 0.01
    assert torch.equal(*drawn)
    assert type(pipe) is kind and pipe.scheduler is scheduler and pipe.__dict__ == state
    assert "_compiled_call_impl" not in pipe.transformer.__dict__ and not pipe.transformer._forward_pre_hooks
    assert torch.equal(images(pipe), plain)
    assert guided.ledger.evaluations > 0 and guided.ledger.rewards > 0 and guided.ledger.decodes > 0 and guided.ledger.seconds > 0


def test_the_ledger_counts_rows(pipe):
    with mm.guide(pipe, brightness, guidance="best_of", count=5, rows_at_once=4) as guided:
        images(pipe)
    assert (guided.ledger.evaluations, guided.ledger.rewards, guided.ledger.decodes) == (3 * 5 * 4, 15, 15)
    with mm.guide(pipe, brightness, guidance="dps", scale=1.0) as guided:
        images(pipe, guidance_scale=2.0)
    learnt = 6  # once, the shape of what the denoiser answers
    assert guided.ledger.evaluations == 2 * 3 * 4 + learnt
    assert guided.ledger.gradients == guided.ledger.reward_gradients == 3 * 3  # the step of pure noise is not guided
    assert guided.ledger.cost() == guided.ledger.evaluations + 18


def test_an_exception_in_the_block_or_in_the_reward_leaves_nothing_behind(pipe):
    def broken(outputs, prompts):
        raise ZeroDivisionError

    kind, scheduler = type(pipe), pipe.scheduler
    for name in ("dps", "fk", "best_of"):
        with pytest.raises(ZeroDivisionError), mm.guide(pipe, broken, guidance=name):
            images(pipe)
        assert type(pipe) is kind and pipe.scheduler is scheduler and "encode_prompt" not in pipe.__dict__
        assert "_compiled_call_impl" not in pipe.transformer.__dict__ and not pipe.transformer._forward_pre_hooks
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["dps", "mpgd", "universal"])
def test_gradients_at_scale_0_are_the_pipelines_own_steps(pipe, name):
    with mm.guide(pipe, brightness, guidance=name, scale=0.0) as guided:
        same = images(pipe)
    assert torch.allclose(same, images(pipe), atol=1e-5)  # the same Euler step, rounded otherwise
    assert guided.ledger.rewards == guided.ledger.gradients == 0


def test_best_of_one_is_the_model_to_the_last_bit(pipe):
    with mm.guide(pipe, brightness, guidance="best_of", count=1):
        assert torch.equal(images(pipe), images(pipe))
        guided = images(pipe)
    assert torch.equal(guided, images(pipe))


@pytest.mark.parametrize("name", ["dps", "fk", "best_of"])
def test_outputs_come_in_the_form_that_was_asked_for(pipe, name):
    with mm.guide(pipe, brightness, guidance=name):
        one = pipe("a handwritten seven", num_inference_steps=3)
        several = pipe(PROMPTS[:2], num_inference_steps=3, num_images_per_prompt=2, output_type="np").images
        bare = pipe("a handwritten seven", num_inference_steps=3, return_dict=False)
    assert type(one).__name__ == "ImagePipelineOutput" and len(one.images) == 1 and isinstance(one.images[0], Image.Image)
    assert isinstance(several, numpy.ndarray) and several.shape == (4, 8, 8, 1)
    assert isinstance(bare, tuple) and isinstance(bare[0][0], Image.Image)


def test_a_rows_sample_does_not_depend_on_what_is_beside_it(pipe):
    with mm.guide(pipe, brightness, guidance="dps", scale=20.0):
        together = images(pipe)
        alone = pipe(PROMPTS[1], generator=torch.Generator().manual_seed(1), output_type="pt", num_inference_steps=4).images
    assert torch.allclose(together[1], alone[0], atol=1e-4)


def test_what_is_random_comes_from_the_users_generator_alone(pipe):
    with mm.guide(pipe, brightness, guidance="fk", particles=3, every=1, start=0.0):
        torch.manual_seed(0)
        first = images(pipe)
        torch.manual_seed(1)
        state = torch.random.get_rng_state()
        assert torch.equal(images(pipe), first)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert not torch.equal(images(pipe, seed=9), first)


def test_rewards_are_weighed_by_name(pipe):
    rewards = {"bright": brightness, "dark": lambda outputs, prompts: -outputs.flatten(1).mean(1)}
    with mm.guide(pipe, rewards, guidance="dps", scale=50.0, weights={"dark": 2.0}):
        dark = images(pipe)
    assert float(dark.mean()) < float(images(pipe).mean())


def test_blocks_nest_what_is_inside_is_searched(pipe):
    with mm.guide(pipe, brightness, guidance="dps", scale=20.0) as inner, mm.guide(pipe, brightness, guidance="best_of", count=2) as outer:
        both = images(pipe)
    with mm.guide(pipe, brightness, guidance="best_of", count=2):
        one = images(pipe)
    assert float(both.mean()) > float(one.mean())
    assert inner.ledger.gradients == outer.ledger.gradients == 2 * 3 * 3
    with mm.guide(pipe, brightness, guidance="dps", scale=20.0), mm.guide(pipe, brightness, guidance="fk", particles=2):
        assert images(pipe).shape == both.shape


def test_a_reward_for_the_default_guidance(pipe):
    class Smooth:
        differentiable = True

        def __call__(self, outputs, prompts):
            return outputs.flatten(1).mean(1)

    with mm.guide(pipe, Smooth(), scale=2.0) as guided:
        images(pipe)
    assert guided.guidance.name == "universal"
    with mm.guide(pipe, brightness, scale=2.0) as guided:
        images(pipe)
    assert guided.guidance.name == "fk"


@pytest.mark.parametrize(
    ("reward", "settings", "words"),
    [
        (jpeg(), {"guidance": "dps"}, "jpeg is not differentiable"),
        (lambda o, p: (o.flatten(1).mean(1) > 0.5).float(), {"guidance": "dps"}, "no gradient arrives"),
        (None, {"guidance": "fk"}, "takes a reward, got none"),
        (None, {}, "neither a reward nor a guidance"),
        (brightness, {"guidance": "dsp"}, "nearest: dps"),
        (brightness, {"guidance": "dps", "scal": 1}, "scal"),
        (brightness, {"guidance": "fk", "particles": 0}, "fk.particles: got 0"),
        (brightness, {"guidance": "fk", "potential": "median"}, "takes 'difference' or 'max' or 'sum' or 'mean'"),
        (brightness, {"guidance": "dps", "start": 0.9, "stop": 0.1}, "0 <= start <= stop <= 1"),
        (brightness, {"guidance": "dps", "weights": {"other": 1.0}}, "guide.weights: got other"),
        (lambda o, p: o.mean(), {"guidance": "fk"}, r"got \[\] for 12 outputs"),
        (lambda o, p: [1.0], {"guidance": "best_of"}, r"got \[1\] for 12 outputs"),
        (brightness, {"guidance": "rlg"}, "no adapter to switch off"),
    ],
)
def test_bad_input_is_one_line(pipe, reward, settings, words):
    with pytest.raises(UserError, match=words) as error, mm.guide(pipe, reward, **settings):
        images(pipe)
    assert "\n" not in str(error.value)


def test_what_is_no_pipeline_is_refused():
    with pytest.raises(UserError, match="takes a diffusers pipeline"), mm.guide(torch.nn.Linear(1, 1), brightness):
        pass


def test_missing_scores_are_counted_and_never_win(pipe):
    def half(outputs, prompts):
        scores = outputs.flatten(1).mean(1)
        return torch.where(torch.arange(len(scores)) % 2 == 0, scores, float("nan"))

    for name in ("fk", "best_of"):
        with mm.guide(pipe, half, guidance=name) as guided:
            images(pipe)
        assert guided.ledger.missing > 0 and bool(guided.scores.isfinite().all())


def test_a_guidance_of_ones_own_is_a_record(pipe):
    darker = Guidance("darker", change=lambda run, moment, rows: moment.prediction._replace(clean=moment.prediction.clean - 0.5))
    plain = images(pipe)
    with mm.guide(pipe, guidance=darker):
        assert float(images(pipe).mean()) < float(plain.mean())


def test_rlg_at_0_and_1_is_the_base_and_the_aligned_model_to_the_last_bit(pipe):
    base = images(pipe)
    add_lora(pipe.transformer, Lora(rank=4))
    with torch.no_grad():
        for p in pipe.transformer.parameters():
            p.add_(0.05 * torch.ones_like(p)) if p.requires_grad else None
    flags = {name: p.requires_grad for name, p in pipe.transformer.named_parameters()}
    aligned = images(pipe)
    for scale, wanted in ((0.0, base), (1.0, aligned)):
        with mm.guide(pipe, guidance="rlg", scale=scale):
            assert torch.equal(images(pipe), wanted)
    with mm.guide(pipe, guidance="rlg", scale=1.5) as guided:
        past = images(pipe)
    assert guided.ledger.evaluations == 2 * 3 * 4
    assert not torch.allclose(past, aligned)
    assert flags == {name: p.requires_grad for name, p in pipe.transformer.named_parameters()}
    assert torch.equal(images(pipe), aligned)


def test_noise_is_optimised_within_reach_of_noise_by_default(pipe):
    """With the regulariser the noise keeps its length; without it, it may leave."""
    lengths = []
    for regulariser in (0.01, 0.0):
        with mm.guide(pipe, brightness, guidance="reno", iterations=12, rate=0.1, regulariser=regulariser) as guided:
            images(pipe)
        lengths.append(float((guided.trace[-1]["length"] - 1).abs().mean()))
        assert float(guided.scores.min()) >= float(guided.trace[0]["scores"].min())
    assert lengths[0] < 0.3 and lengths[0] < lengths[1] / 2


def test_the_length_of_noise_is_likeliest_where_noise_is():
    from mmalign.guidance.noise import noise_log_prob

    z = torch.randn(1, 400, generator=torch.Generator().manual_seed(0))
    z = (z / z.norm() * 399**0.5).requires_grad_()
    assert float(noise_log_prob(z)) > max(float(noise_log_prob(0.9 * z)), float(noise_log_prob(1.1 * z)), float(noise_log_prob(0.01 * z)))
    (slope,) = torch.autograd.grad(noise_log_prob(z).sum(), z)
    assert float(slope.norm()) < 1e-3


def test_rules_of_guidance_are_each_others_special_cases(pipe):
    call = {"guidance_scale": 3.0}
    plain = images(pipe, **call)
    for name, settings in (
        ("cfg", {"scale": 3.0}),
        ("apg", {"scale": 3.0, "eta": 1.0}),
        ("npo", {"scale": 3.0, "negative": "current"}),
    ):
        with mm.guide(pipe, guidance=name, **settings):
            assert torch.allclose(images(pipe, **call), plain, atol=1e-5)
            assert torch.allclose(images(pipe, guidance_scale=7.0), plain, atol=1e-5)  # the pipeline's own scale is replaced
    alone = images(pipe, guidance_scale=1.0)
    for settings in ({"scale": 1.0}, {"scale": 9.0, "start": 0.5, "stop": 0.5}):
        with mm.guide(pipe, guidance="cfg", **settings):
            assert torch.allclose(images(pipe, **call), alone, atol=1e-5)
    with mm.guide(pipe, guidance="cfg_plus_plus", scale=0.0):
        empty = images(pipe, **call)
    with mm.guide(pipe, guidance="cfg", scale=0.0):
        assert torch.allclose(images(pipe, **call), empty, atol=1e-5)
    for name in ("cfg_zero", "apg", "cfg_plus_plus"):
        with mm.guide(pipe, guidance=name):
            assert not torch.allclose(images(pipe, **call), plain, atol=1e-3)
    with pytest.raises(UserError, match="asks about one prompt alone"), mm.guide(pipe, guidance="cfg"):
        images(pipe)


def test_extrapolation_particles_and_a_search_work_together(pipe):
    add_lora(pipe.transformer, Lora(rank=2))
    with torch.no_grad():
        for p in pipe.transformer.parameters():
            p.add_(0.05) if p.requires_grad else None
    with mm.guide(pipe, guidance="rlg", scale=2.0), mm.guide(pipe, brightness, guidance="fk", particles=2) as inner:
        steered = images(pipe)
        with mm.guide(pipe, brightness, guidance="best_of", count=2) as outer:
            searched = images(pipe)
    assert steered.shape == searched.shape and torch.allclose(outer.scores.float(), brightness(searched, []))
    assert outer.ledger.evaluations >= 2 * 2 * 2 * 3 * 4 and inner.ledger.evaluations > outer.ledger.evaluations


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"weight": 2.0},
            "guide.weight: unknown key; nearest: weights; guide takes reward, guidance, weights, and fk, which guides",
        ),
        ({"scal": 2.0}, "guide.scal: unknown key; nearest: scale; guide takes"),
        (
            {"guidance": "best_of", "scale": 2.0},
            "guide.scale: unknown key; guide takes reward, guidance, weights, and best_of",
        ),
    ],
)
def test_a_wrong_keyword_is_told_those_of_guide_and_of_what_guides(settings, line):
    with pytest.raises(UserError) as error, mm.guide(mm.worlds.digits(), lambda outputs, prompts: outputs.mean((1, 2, 3)), **settings):
        pass
    assert str(error.value).startswith(line)


def test_a_negative_branch_of_several_adapters_adds_them_up(pipe):
    """Against the same branch as weights: ``W + 1 B_good A_good + 0.5 B_bad A_bad``."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    net = pipe.transformer
    for number, name in enumerate(("good", "bad")):
        inject_adapter_in_model(LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False), net, name)
        with torch.no_grad():
            for key, p in net.named_parameters():
                if f".{name}." in key:
                    p.copy_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number + len(key))))
    layers = [layer for layer in net.modules() if isinstance(layer, LoraLayer)]
    for layer in layers:
        layer.set_adapter(["good"])
    scales = [dict(layer.scaling) for layer in layers]
    call = {"guidance_scale": 3.0}
    with mm.guide(pipe, guidance="npo", negative={"good": 1.0, "bad": 0.5}, scale=3.0):
        summed = images(pipe, **call)
    assert [dict(layer.scaling) for layer in layers] == scales and all(layer.active_adapters == ["good"] for layer in layers)
    merged = {}
    for path, layer in net.named_modules():
        if isinstance(layer, LoraLayer):
            moved = sum(share * layer.get_delta_weight(name) for name, share in (("bad", 0.5),))  # on top of good, which is on
            merged[f"{path}.base_layer.weight"] = (layer.base_layer.weight + moved).detach()
    with mm.guide(pipe, guidance="npo", negative=merged, scale=3.0):
        assert torch.allclose(images(pipe, **call), summed, atol=1e-4)
    with mm.guide(pipe, guidance="npo", negative="good", scale=3.0):
        assert not torch.allclose(images(pipe, **call), summed, atol=1e-3)
    for negative, why in (({"good": "a"}, "a finite factor"), ({"worst": 1.0}, "got 'worst'"), ({}, "got no adapter")):
        with pytest.raises(UserError, match=why), mm.guide(pipe, guidance="npo", negative=negative):
            images(pipe, **call)


def test_the_best_in_stages_asks_the_dear_reward_about_few(pipe):
    """Two rows with five candidates each, drawn in parts that cut across rows; of each row the darkest of its two brightest."""
    drawn, asked = [], {"bright": 0, "dark": 0}

    def bright(outputs, prompts):
        drawn.append(outputs)
        asked["bright"] += len(outputs)
        return brightness(outputs, prompts)

    def dark(outputs, prompts):
        asked["dark"] += len(outputs)
        return -brightness(outputs, prompts)

    way = {"guidance": "best_of", "count": 5, "rows_at_once": 4}
    with mm.guide(pipe, {"bright": bright, "dark": dark}, keep={"bright": 2}, **way) as guided:
        chosen = images(pipe, [PROMPTS[0]] * 2)
    assert asked == {"bright": 10, "dark": 4} and guided.ledger.rewards == 14
    assert guided.trace == [{"stage": "bright", "asked": 10, "missing": 0}, {"stage": "dark", "asked": 4, "missing": 0}]
    every = torch.cat(drawn).unflatten(0, (2, 5))
    second = brightness(every.flatten(0, 1), []).view(2, 5).topk(2).indices[:, 1]
    assert torch.equal(chosen, every[torch.arange(2), second])
    torch.testing.assert_close(guided.scores, -brightness(chosen, []).double())
    with mm.guide(pipe, {"bright": bright, "dark": dark}, keep={"light": 2}, **way), pytest.raises(UserError, match="keep: got 'light'"):
        images(pipe)
    with pytest.raises(UserError, match=r"best_of\.keep: got {'bright': 5}, takes fewer than count, 5"):
        mm.guidance.best_of(count=5, keep={"bright": 5})
