"""Three lines on tiny twins of many families of pipelines, images and videos: no code of theirs is here."""

from __future__ import annotations

import warnings

import pytest
import torch

import mmalign as mm
from mmalign.policies.settings import Lora
from mmalign.policies.twins import pipelines

IMAGES = (
    "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "QwenImagePipeline",
    "AuraFlowPipeline", "CogView4Pipeline", "ChromaPipeline", "ZImagePipeline", "HunyuanDiTPipeline", "Krea2Pipeline",
    "OvisImagePipeline", "BriaPipeline", "ErnieImagePipeline", "Flux2Pipeline", "StableDiffusionInpaintPipeline",
)  # fmt: skip
VIDEOS = ("LTXPipeline", "WanPipeline", "WanImageToVideoPipeline", "MochiPipeline", "HunyuanVideoPipeline", "CogVideoXPipeline")
WAYS = (("universal", {"scale": 2.0}), ("fk", {"particles": 2}), ("mpgd", {"scale": 2.0}), ("best_of", {"count": 2}))


def brightness(outputs, prompts, **columns):
    assert outputs.ndim in (4, 5) and outputs.shape[-3] in (1, 3) and len(outputs) == len(prompts)
    return outputs.float().flatten(1).mean(1)


@pytest.mark.parametrize(("number", "name"), enumerate(IMAGES + VIDEOS))
def test_a_family_in_three_lines(number, name):
    pipe = pipelines.twin(name)
    call = {**pipelines.call_arguments(pipe), "num_inference_steps": 3}
    kind, scheduler, (guidance, settings) = type(pipe), pipe.scheduler, WAYS[number % len(WAYS)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mm.guide(pipe, brightness, guidance=guidance, **settings) as guided:
            made = pipe(prompt="a red fox", generator=torch.Generator().manual_seed(0), output_type="pt", **call)
    outputs = torch.as_tensor(next(iter(made.values())))
    assert len(outputs) == 1 and outputs.ndim == (5 if name in VIDEOS else 4) and bool(outputs.isfinite().all())
    assert guided.ledger.evaluations > 0 and guided.ledger.rewards > 0 and guided.ledger.missing == guided.ledger.failed == 0
    assert type(pipe) is kind and pipe.scheduler is scheduler and "encode_prompt" not in pipe.__dict__
    nets = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert not any("_compiled_call_impl" in vars(net) or net._forward_pre_hooks for net in nets)


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusion3Pipeline", "WanPipeline", "FluxPipeline"])
def test_rlg_is_the_base_and_the_aligned_model_to_the_last_bit(name):
    """Adapters off, or at 1, whatever the pipeline's own scheduler, guidance and number of denoisers are."""
    pipe = pipelines.twin(name)
    call = {**pipelines.call_arguments(pipe), "num_inference_steps": 3, "output_type": "pt"}
    made = lambda: torch.as_tensor(next(iter(pipe("a red fox", generator=torch.Generator().manual_seed(0), **call).values())))  # noqa: E731
    base = made()
    policy = mm.policies.diffusers(pipe, lora=Lora(rank=2), device="cpu")
    with torch.no_grad():
        for p in policy.parameters().values():
            p.add_(0.3)
    aligned = made()
    assert not torch.equal(base, aligned)
    for scale, wanted in ((0.0, base), (1.0, aligned)):
        with mm.guide(pipe, guidance="rlg", scale=scale):
            assert torch.equal(made(), wanted)
    with mm.guide(pipe, guidance="rlg", scale=2.0):
        past = made()
    assert not torch.equal(past, aligned) and torch.equal(made(), aligned)
    with mm.guide(pipe, guidance="rlg", scale=2.0, start=0.5), pytest.raises(ZeroDivisionError):
        policy.denoiser.register_forward_hook(lambda *_: 1 / 0) if name != "WanPipeline" else 1 / 0
        made()
    assert "_compiled_call_impl" not in vars(next(iter(policy.denoisers.values())))
