from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mmalign as mm
from mmalign.needs import NOISE, contrast, kls
from mmalign.policies.forward import latents
from mmalign.policies.pipelines.calls import calling
from mmalign.policies.pipelines.calls.trained_levels import training_schedule
from mmalign.policies.pipelines.rollouts.replay import transition
from mmalign.policies.settings import Schedule
from mmalign.policies.twins import pipelines
from mmalign.training.updates.units import refuse_mismatch
from mmalign.types import Level, Need, UserError

FAMILIES = (
    "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "QwenImagePipeline", "SanaPipeline",
    "PixArtSigmaPipeline", "AuraFlowPipeline", "Flux2Pipeline",
)  # fmt: skip
VIDEOS = ("LTXPipeline", "WanPipeline", "HunyuanVideoPipeline", "CogVideoXPipeline")


def wrapped(pipe, call=None, **settings):
    return mm.policies.forward(mm.policies.diffusers(pipe, device="cpu", call=call, schedule=Schedule(steps=2)), **settings)


def twin(name):
    pipe = pipelines.twin(name)
    call = pipelines.call_arguments(pipe)
    call.pop("num_inference_steps", None)
    return pipe, call


def digits(**settings):
    from mmalign.worlds.digits.base import untrained

    return wrapped(untrained(), **settings)


def images(count, size=8, channels=1):
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def rollout(policy, outputs, prompts=None, seed=0):
    count = len(outputs)
    return policy.encode(
        prompts or ["a 3", "a 3", "a 5", "a 5"][:count], outputs, torch.arange(count) // 2, torch.Generator().manual_seed(seed)
    )


def test_the_bound_is_half_of_the_squared_error_of_the_velocity():
    """Against the denoiser called directly."""
    policy = digits(draws=3)
    table = rollout(policy, images(4))
    pipe, held = policy.of.pipe, table.held
    steps = policy.steps(table, torch.arange(4), needs=frozenset({NOISE}))
    assert steps.kind == "bound" and steps.event_size == 64 and steps.log_probs.dtype == torch.float64
    for row in range(4):
        for draw in range(3):
            place = held.places[row // 2, draw]
            sigma, noise, clean = (place.item() * -1 + 1000) / 1000, held.noise[row // 2, draw], 2 * images(4)[row] - 1
            condition = pipe.text_encoder(torch.tensor([3 if row < 2 else 5]))
            x = ((1 - sigma) * clean + sigma * noise)[None]
            prediction = pipe.transformer(hidden_states=x, timestep=torch.tensor([sigma * 1000]), encoder_hidden_states=condition[:, None],
                                    pooled_projections=condition, return_dict=False)[0]  # fmt: skip
            wanted = -0.5 * ((prediction - (noise - clean)) ** 2).sum()
            assert steps.log_probs[row, draw].item() == pytest.approx(wanted.item(), rel=1e-5)
            assert steps.facts["noise"][row, draw].item() == pytest.approx(sigma, rel=1e-6)


def test_rows_of_a_group_share_noise_and_levels_and_groups_do_not():
    policy = digits(draws=2)
    same = images(1).expand(4, -1, -1, -1).contiguous()
    table = policy.steps(rollout(policy, same, ["a 3"] * 4), torch.arange(4)).log_probs.detach()
    assert torch.equal(table[0], table[1]) and torch.equal(table[2], table[3])
    assert not torch.isclose(table[0], table[2]).any() and not torch.isclose(table[:, 0], table[:, 1]).any()


def test_the_reference_sees_what_the_policy_sees_and_margins_begin_at_zero():
    policy = digits()
    table = rollout(policy, images(4))
    policy.remember(table, ["ref"], rows_at_once=4)
    needs = frozenset({Need("refs")})
    before = policy.steps(table, torch.arange(4), needs=needs)
    assert torch.equal(before.log_probs.detach(), before.refs["ref"])
    with torch.no_grad():
        policy.parameters()["patch_out.bias"].add_(0.1)
    after = policy.steps(table, torch.arange(4), needs=needs)
    assert torch.equal(after.refs["ref"], before.refs["ref"]) and not torch.isclose(after.log_probs, before.log_probs).any()
    after.log_probs.sum().backward()
    assert policy.parameters()["patch_out.bias"].grad.abs().sum() > 0


def test_the_distance_to_a_reference_is_that_of_the_predictions():
    """By the parallelogram: with errors e and e', |e - e'|^2 = 2 |e|^2 + 2 |e'|^2 - |e + e'|^2; and it moves with the policy."""
    policy = digits(draws=2)
    table = rollout(policy, images(4))
    policy.remember(table, ["ref"], rows_at_once=4)
    needs = frozenset({kls("ref")})
    assert not policy.steps(table, torch.arange(4), needs=needs).kls["ref"].any()
    bias = policy.parameters()["patch_out.bias"]
    with torch.no_grad():
        bias.add_(0.1)  # of every number of the velocity
    steps = policy.steps(table, torch.arange(4)[1:3], torch.tensor([1]), needs=needs)
    torch.testing.assert_close(steps.kls["ref"], torch.full((2, 1), 64 * 0.1**2 / 2, dtype=torch.float64), rtol=1e-4, atol=0)
    steps.kls["ref"].sum().backward()
    torch.testing.assert_close(bias.grad, torch.full_like(bias, 2 * 64 / len(bias) * 0.1), rtol=1e-4, atol=0)
    taken, both = table.take(torch.tensor([2, 1])), type(table).join([table, table])
    assert torch.equal(
        policy.steps(taken, torch.tensor([1]), needs=needs).kls["ref"], policy.steps(table, torch.tensor([1]), needs=needs).kls["ref"]
    )
    assert torch.equal(
        policy.steps(both, torch.tensor([5]), needs=needs).kls["ref"], policy.steps(table, torch.tensor([1]), needs=needs).kls["ref"]
    )


def test_rows_may_have_noise_of_their_own():
    policy = digits(draws=2, noise="row")
    same = images(1).expand(4, -1, -1, -1).contiguous()
    table = rollout(policy, same, ["a 3"] * 4)
    bounds = policy.steps(table, torch.arange(4)).log_probs.detach()
    assert len(bounds.flatten().unique()) == 8
    part = policy.encode(["a 3"] * 4, same, torch.arange(4) // 2, torch.Generator().manual_seed(0), part=slice(2, 4))
    assert torch.allclose(policy.steps(part, torch.arange(2)).log_probs, bounds[2:], rtol=1e-5)
    with pytest.raises(UserError, match="noise: got 'none', takes 'group' or 'row'"):
        digits(noise="none")


def test_another_target_weighs_noise_levels_otherwise():
    table = rollout(digits(), images(4))
    velocity = digits().steps(table, torch.arange(4), needs=frozenset({NOISE}))
    noise = digits(target="epsilon").steps(table, torch.arange(4))
    torch.testing.assert_close(noise.log_probs, velocity.log_probs * (1 - velocity.facts["noise"]) ** 2, rtol=1e-4, atol=1e-6)


def test_times_are_spread_over_the_training_schedule():
    group = torch.arange(4000)
    counts = {}
    for times in ("uniform", "logit_normal"):
        table = digits(times=times).encode(["3"] * 4000, images(4000), group, torch.Generator().manual_seed(0))
        levels = table.held.places.flatten().double() / 1000
        counts[times] = ((levels < 0.1).double().mean().item(), (levels > 0.9).double().mean().item(), levels.mean().item())
    assert counts["uniform"] == pytest.approx((0.1, 0.1, 0.5), abs=0.02)
    assert counts["logit_normal"] == pytest.approx((0.014, 0.014, 0.5), abs=0.01)  # the normal beyond 2.2 standard deviations


@pytest.mark.parametrize("name", FAMILIES + VIDEOS)
def test_given_outputs_through_the_pipelines_own_autoencoder(name):
    """Latents of the shape that the pipeline makes, a reference equal to the policy, and a gradient."""
    pipe, call = twin(name)
    policy = wrapped(pipe, call)
    shape = (call["num_frames"], 3) if name in VIDEOS else (3,)
    outputs = torch.rand((2, *shape, call.get("height", 32), call.get("width", 32)), generator=torch.Generator().manual_seed(1))
    table = rollout(policy, outputs, ["a cat", "a cat"])
    policy.remember(table, ["ref"], rows_at_once=2)
    steps = policy.steps(table, torch.arange(2), needs=frozenset({Need("refs")}))
    assert torch.equal(steps.log_probs.detach(), steps.refs["ref"]) and bool((steps.log_probs < 0).all())
    steps.log_probs.sum().backward()
    assert sum(p.grad.abs().sum() for p in policy.parameters().values() if p.grad is not None) > 0


DECODED = (
    "StableDiffusionPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "QwenImagePipeline", "Flux2Pipeline", "WanPipeline",
    "LTXPipeline", "CogVideoXPipeline",
)  # fmt: skip


@pytest.mark.parametrize("name", DECODED)
def test_latents_are_what_the_pipeline_decodes(name, monkeypatch):
    """A run that ends in these latents decodes to the autoencoder's own round trip: packing, scale and shift are the pipeline's."""
    pipe, call = twin(name)
    if "shift_factor" in pipe.vae.config:  # Stable Diffusion 1 and 2 have none; tiny twins share one autoencoder
        pipe.vae.register_to_config(shift_factor=0.3 if name in ("StableDiffusion3Pipeline", "FluxPipeline") else None)
    if name == "Flux2Pipeline":
        pipe.vae.bn.running_mean.uniform_(-1, 1)
        pipe.vae.bn.running_var.uniform_(0.5, 2)
    policy = wrapped(pipe, call)
    shape = (call["num_frames"], 3) if name in VIDEOS else (3,)
    outputs = torch.rand((1, *shape, call.get("height", 32), call.get("width", 32)), generator=torch.Generator().manual_seed(1))
    wanted = latents(policy.of, outputs)
    seen = []
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda z, *args, **kwargs: (seen.append(z), decode(z, *args, **kwargs))[1])
    scheduler = type(pipe.scheduler)
    monkeypatch.setattr(scheduler, "step", lambda self, *args, **kwargs: (wanted,))
    with torch.no_grad():
        policy.generate(["a cat"], [0])
        pixels = 2 * outputs - 1
        video = any(isinstance(part, torch.nn.Conv3d) for part in pipe.vae.modules())
        pixels = (pixels.transpose(1, 2) if pixels.ndim == 5 else pixels[:, :, None]) if video else pixels
        straight = pipe.vae.encode(pixels).latent_dist.mode()
    torch.testing.assert_close(seen[0].reshape(straight.shape), straight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_under_edm_preconditioning_the_raw_network_is_compared_with_its_own_target(kind, monkeypatch):
    """Karras et al. 2022, eq. 8, written out: the target of F is (x_0 - c_skip * x) / c_out."""
    import diffusers

    pipe = pipelines.twin("StableDiffusionXLPipeline", scheduler=getattr(diffusers, kind)(sigma_data=0.5))
    policy = wrapped(pipe, {"height": 32, "width": 32})
    table = rollout(policy, torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)), ["a cat", "a cat"])
    seen, forward = [], pipe.unet.forward
    monkeypatch.setattr(
        pipe.unet, "forward", lambda *args, **kwargs: seen.append((args, prediction := forward(*args, **kwargs))) or prediction
    )
    log_probs = policy.steps(table, torch.arange(2)).log_probs
    (given, time), prediction = seen[-1][0][:2], seen[-1][1][0]
    sigma = policy.schedule.levels.noise[table.held.places[table.held.which]].view(2, 1, 1, 1)
    clean, noise = table.held.clean, table.held.noise[table.held.which, 0]
    x, wide = clean + sigma * noise, (sigma**2 + 0.5**2).sqrt()
    torch.testing.assert_close(given, x / wide)
    torch.testing.assert_close(time, 0.25 * sigma.flatten().log())
    wanted = (clean - 0.5**2 / wide**2 * x) / (sigma * 0.5 / wide)
    torch.testing.assert_close(log_probs, -0.5 * (prediction - wanted).double().square().sum((1, 2, 3)).view(2, 1), rtol=1e-4, atol=1e-6)
    assert policy.schedule.levels.noise[0] == pytest.approx(80) and policy.schedule.levels.noise[-1] == pytest.approx(0.002)


def test_training_schedules():
    from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    shifted = FlowMatchEulerDiscreteScheduler(shift=3.0)
    shifted.set_timesteps(7)  # what a pipeline did before is no matter
    times, levels = training_schedule(shifted)
    assert (
        len(times) == 1000
        and levels.noise[500].item() == pytest.approx(3 * 0.5 / (1 + 2 * 0.5))
        and times[500].item() == pytest.approx(750)
    )
    times, levels = training_schedule(DDIMScheduler())
    assert times.tolist() == list(range(1000)) and torch.allclose(levels.signal**2 + levels.noise**2, torch.ones(1000))
    _, exploding = training_schedule(EulerDiscreteScheduler())
    assert torch.allclose(exploding.noise, levels.noise / levels.signal) and bool((exploding.signal == 1).all())
    wan = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    assert training_schedule(wan).levels.noise[500].item() == pytest.approx(0.75)


def test_mistakes():
    from diffusers import SCMScheduler

    with pytest.raises(UserError, match="SCMScheduler is not known"):
        training_schedule(SCMScheduler())
    for settings, message in (({"times": "cosine"}, "times: got"), ({"draws": 0}, "draws: got 0"), ({"target": "x"}, "target: got")):
        with pytest.raises(UserError, match=message):
            digits(**settings)
    with pytest.raises(UserError, match="takes images"):
        rollout(digits(), torch.rand(4, 8, 8))
    policy = digits()
    with pytest.raises(UserError, match=r"records\.size: got images of \[16, 16\] pixels, DigitsPipeline takes \[8, 8\]: records\.size: 8"):
        policy.steps(rollout(policy, images(2, 16)), torch.arange(2))
    with pytest.raises(UserError, match="records: got images of 3 colours, DigitsPipeline takes 1"):
        policy.steps(rollout(policy, torch.rand(2, 3, 8, 8)), torch.arange(2))


def test_grey_pictures_of_files_are_for_a_model_of_one_channel():
    policy = digits()
    tables = [policy.steps(rollout(policy, rows), torch.arange(2)).log_probs for rows in (images(2, 8), images(2, 8).expand(2, 3, 8, 8))]
    assert torch.equal(*tables)


def test_a_contrast_is_the_same_rows_under_another_prompt():
    policy = digits(draws=2)
    with torch.no_grad():
        for parameter in policy.parameters().values():  # what starts at zero would hide the prompt
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    policy.sets.keep("ref")
    table = rollout(policy, images(4))  # prompts a 3, a 3, a 5, a 5
    swapped = replace(table, prompts=["a 5", "a 5", "a 3", "a 3"])
    rows = torch.tensor([1, 2])
    steps = policy.steps(table, rows, torch.tensor([1]), frozenset({contrast("mismatched")}))
    other = policy.steps(swapped, rows, torch.tensor([1])).log_probs.detach()
    contrasted = steps.contrasts["mismatched"]
    assert (
        torch.equal(contrasted.log_probs.detach(), other)
        and torch.equal(contrasted.refs["ref"], other)
        and not contrasted.refs["ref"].requires_grad
    )
    assert not torch.isclose(steps.log_probs, contrasted.log_probs).any() and contrasted.kind == "bound"
    with torch.no_grad():
        for parameter in policy.parameters().values():
            parameter.add_(0.05)
    moved = policy.steps(table, rows, torch.tensor([1]), frozenset({contrast("mismatched")})).contrasts["mismatched"]
    assert torch.equal(moved.refs["ref"], other) and not torch.isclose(moved.log_probs.detach(), other).any()


def test_contrasts_that_cannot_be_are_refused():
    policy = digits()
    with pytest.raises(UserError, match="all rows of the update have one prompt"):
        policy.steps(rollout(policy, images(2), ["a 3", "a 3"]), torch.arange(2), needs=frozenset({contrast("mismatched")}))
    with pytest.raises(UserError, match="contrast: got 'good', this policy takes 'mismatched' or 'ablated'"):
        policy.steps(rollout(policy, images(2)), torch.arange(2), needs=frozenset({contrast("good")}))


def test_samples_are_made_as_they_are_predicted_unless_told_otherwise():
    """Guidance on one side only is another policy's rows: DiffusionNFT is refused, AWM's kin are not."""
    pipe, call = twin("StableDiffusion3Pipeline")
    seen = []

    def watch(policy):
        policy.of.caller.images, images = (lambda *args, **given: (seen.append(given), images(*args, **given))[1]), policy.of.caller.images
        policy.sample(["a cat"], 1, torch.Generator().manual_seed(0))

    plain, guided = wrapped(pipe, call), wrapped(pipe, call, guided=True)
    watch(plain)
    watch(guided)
    assert seen[0]["guidance_scale"] == 1.0 and "guidance_scale" not in seen[1]
    refuse_mismatch(plain, mm.methods.diffusion_nft())
    refuse_mismatch(guided, mm.methods.raft())
    with pytest.raises(UserError, match=r"^policy\.guided: rows are sampled with guidance and predicted without"):
        refuse_mismatch(guided, mm.methods.diffusion_nft())


def test_under_a_mask_only_its_pixels_count():
    """Of pixels: an error outside changes nothing, and one that is everywhere alike is what it is without a mask."""
    half = torch.zeros(2, 1, 8, 8)
    half[..., :4] = 1
    masked, whole = digits(mask=lambda outputs, prompts: half), digits()
    pictures = images(2)
    for policy, count in ((masked, 2.0), (whole, 1.0)):
        table = rollout(policy, pictures)
        seen = policy.errors._seen(table, torch.arange(2), 0)
        square = (seen.predicted - seen.target).double().square()
        wanted = -0.5 * count * (square[..., :4].flatten(1).sum(1) if policy is masked else square.flatten(1).sum(1))
        torch.testing.assert_close(seen.bound, wanted)
    everywhere = digits(mask=lambda outputs, prompts: torch.full((2, 1, 8, 8), 0.3))
    tables = [policy.steps(rollout(policy, pictures), torch.arange(2)).log_probs for policy in (everywhere, whole)]
    torch.testing.assert_close(*tables)
    taken = rollout(masked, pictures).take(torch.tensor([1]))
    assert taken.held.weight.shape == (1, 1, 8, 8) and taken.held.weight.mean() == 1


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "FluxPipeline", "Flux2Pipeline", "LTXPipeline"])
def test_a_mask_of_pixels_lies_where_they_are_in_the_latent(name, monkeypatch):
    """What an autoencoder that only pools makes of a change in one half of the picture is where the mask of that half is."""
    pipe, call = twin(name)
    frames = (call["num_frames"],) if name in VIDEOS else ()
    shape = (1, *frames, 3, call["height"], call["width"])
    half = torch.zeros(*shape[:-3], 1, *shape[-2:])
    half[..., : call["height"] // 2, :] = 1
    policy = wrapped(pipe, call, mask=lambda outputs, prompts: half)
    real = pipe.vae.encode(torch.zeros(1, 3, *frames, *shape[-2:])).latent_dist.mode().shape
    pooled = lambda x: torch.nn.functional.interpolate(x.mean(1, keepdim=True), size=real[2:], mode="area").expand(-1, *real[1:])  # noqa: E731
    monkeypatch.setattr(pipe.vae, "encode", lambda x: {"latent": pooled(x)})
    blank = torch.full(shape, 0.5)
    weight = policy.encode(["a fox"], blank, torch.zeros(1).long(), torch.Generator().manual_seed(0)).held.weight
    change = (latents(policy.of, blank + 0.4 * half) - latents(policy.of, blank)).abs()
    assert weight.shape == change.shape and torch.equal(weight > 0.5, change > 1e-6) and float(weight.mean()) == pytest.approx(1)
    assert 0.4 < float((weight > 0.5).double().mean()) < 0.6


@pytest.mark.parametrize(("mask", "why"), [
    (torch.ones(2, 8, 8), r"got \[2, 8, 8\], takes \[2, 1, 8, 8\]"),
    (-torch.ones(2, 1, 8, 8), "numbers below 0"),
    (torch.zeros(2, 1, 8, 8), "nothing counts"),
])  # fmt: skip
def test_masks_that_cannot_be_are_refused(mask, why):
    with pytest.raises(UserError, match=why):
        rollout(digits(mask=lambda outputs, prompts: mask), images(2))


def test_an_edited_prompt_is_the_one_that_does_not_fit():
    policy = digits(edits=lambda prompts: ["a 7"] * len(prompts))
    with torch.no_grad():
        for parameter in policy.parameters().values():  # an untrained one does not hear its prompt
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    table = rollout(policy, images(4), ["a 3"] * 4)
    steps = policy.steps(table, torch.arange(4), needs=frozenset({contrast("mismatched")}))
    other = replace(table, prompts=["a 7"] * 4)
    torch.testing.assert_close(steps.contrasts["mismatched"].log_probs, policy.steps(other, torch.arange(4)).log_probs)
    assert bool(((steps.contrasts["mismatched"].log_probs - steps.log_probs).abs() > 1e-4).all())


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.bfloat16, 2.0**-7)])
def test_a_first_frame_that_is_given_is_no_part_of_the_latent(dtype, rounding):
    """LTX's scheduler is shown the frames behind the image, unpacked, and its denoiser sees the packed frames with it: which numbers
    these are is found, and a probe there is the pipeline's own step."""
    pipe, call = twin("LTXImageToVideoPipeline")
    one = mm.Memory(rows_at_once=1)  # the twin's call has one image
    inner = mm.policies.diffusers(pipe.to(dtype), device="cpu", call=call, schedule=Schedule(steps=2, guidance=1.0), memory=one)
    policy = mm.policies.forward(inner, draws=2)
    rows = inner.sample(["a fox"], 2, torch.Generator().manual_seed(0))
    times, levels = inner.schedule()
    for column in range(2):
        level = Level(*(value[column].expand(2) for value in levels))
        with torch.no_grad():
            said = inner.probe(rows.prompts, rows.held.x[column], times[column].expand(2), level).clean
            step = transition(inner, rows, torch.arange(2), column).clean
        torch.testing.assert_close(said, step, rtol=0, atol=rounding * float(step.abs().max()))
    outputs = torch.rand((2, call["num_frames"], 3, call["height"], call["width"]), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        straight = pipe.vae.encode((2 * outputs - 1).transpose(1, 2).to(dtype)).latent_dist.mode().float()
    mean, std = (value.float().view(1, -1, 1, 1, 1) for value in (pipe.vae.latents_mean, pipe.vae.latents_std))
    wanted = ((straight - mean) * pipe.vae.config.scaling_factor / std)[:, :, 1:]
    table = rollout(policy, outputs, ["a cat", "a cat"])
    torch.testing.assert_close(table.held.clean.float(), wanted)
    policy.steps(table, torch.arange(2)).log_probs.sum().backward()
    assert sum(p.grad.abs().sum() for p in policy.parameters().values() if p.grad is not None) > 0
    own = policy.sample(["a fox"], 2, torch.Generator().manual_seed(0), decode=False)
    assert own.held.clean.shape == rows.held.x[0].shape == wanted.shape


@pytest.mark.parametrize("name", ["LTX2Pipeline", "LTX2ImageToVideoPipeline"])
def test_a_video_that_is_made_with_a_sound_is_asked_about_without_it(name, monkeypatch):
    """Of given videos there is no sound, least of all one of their noise level: each is denoised by itself, and nothing guides it. Against
    the transformer, beside another sound."""
    pipe, call = twin(name)
    inner = mm.policies.diffusers(pipe, device="cpu", call=call, schedule=Schedule(steps=2), memory=mm.Memory(rows_at_once=1))
    policy, calls = mm.policies.forward(inner, draws=2), []
    shape, refused = inner.first().shape, policy.refusals(["a fox"])
    note = lambda module, args, kwargs: calls.append(dict(kwargs))  # noqa: E731
    pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    own = policy.sample(["a fox"], 1, torch.Generator().manual_seed(0))
    assert len(calls) == 2 and own.held.clean.shape[1:] == shape and not refused
    outputs = torch.rand((2, call["num_frames"], 3, call["height"], call["width"]), generator=torch.Generator().manual_seed(1))
    table = rollout(policy, outputs, ["a cat", "a cat"])
    held, start = table.held, len(calls)
    steps = policy.steps(table, torch.arange(2))
    assert len(calls) == start + 4
    for number, asked in enumerate(calls[start:]):
        draw, row = divmod(number, 2)
        sound = torch.randn_like(asked["audio_hidden_states"])
        with torch.no_grad():
            velocity = pipe.transformer(**{**asked, "isolate_modalities": True, "audio_hidden_states": sound})[0]
        if name == "LTX2ImageToVideoPipeline":
            assert asked["timestep"].unique().numel() == 2 and float(asked["timestep"].min()) == 0
            velocity = pipe._unpack_latents(velocity, asked["num_frames"], asked["height"], asked["width"])[:, :, 1:]
        wanted = -0.5 * (velocity - (held.noise[0, draw] - held.clean[row])).double().square().sum()
        assert steps.log_probs[row, draw].item() == pytest.approx(wanted.item(), rel=1e-4)
    steps.log_probs.sum().backward()
    monkeypatch.setattr(calling, "ALONE", "no_such_argument")
    for ask in (lambda: policy.refusals(["a fox"]), lambda: policy.steps(table, torch.arange(2))):
        with pytest.raises(UserError, match=f"{name} denoises something beside the latent, a sound say"):
            ask()
