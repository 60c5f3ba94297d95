"""The guider of adapters in a modular pipeline of diffusers, made of the parts of a tiny twin."""

from __future__ import annotations

import pytest
import torch

import mmalign as mm
from mmalign.policies.adapters import add_lora
from mmalign.policies.settings import Lora
from mmalign.policies.twins import pipelines
from mmalign.types import UserError


@pytest.fixture(scope="module")
def pipe():
    from diffusers.modular_pipelines.stable_diffusion_3.modular_blocks_stable_diffusion_3 import StableDiffusion3AutoBlocks

    parts = pipelines.twin("StableDiffusion3Pipeline").components
    add_lora(parts["transformer"], Lora(rank=2))
    with torch.no_grad():
        for name, p in parts["transformer"].named_parameters():
            if "lora_B" in name:
                p.add_(0.5)
    modular = StableDiffusion3AutoBlocks().init_pipeline()
    wanted = set(modular.component_names)
    modular.update_components(**{name: part for name, part in parts.items() if name in wanted})
    modular.set_progress_bar_config(disable=True)
    return modular


def image(pipe, guider, denoised=None):
    calls = []
    pipe.update_components(guider=guider)
    handle = pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        array = pipe(
            prompt="a fox",
            height=32,
            width=32,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            output="images",
        )
    finally:
        handle.remove()
    return torch.as_tensor(array), len(calls)


def plain(**settings):
    from diffusers.guiders import ClassifierFreeGuidance

    return ClassifierFreeGuidance(**settings)


def test_at_1_it_is_the_aligned_model_at_0_the_base_and_past_it_neither(pipe):
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in pipe.transformer.modules() if isinstance(layer, BaseTunerLayer)]
    aligned, _ = image(pipe, plain(guidance_scale=3.0))
    for layer in layers:
        layer.enable_adapters(False)
    base, _ = image(pipe, plain(guidance_scale=3.0))
    for layer in layers:
        layer.enable_adapters(True)
    settings = {"guidance_scale": 3.0}
    one, calls = image(pipe, mm.guidance.adapter_guidance(scale=1.0, **settings))
    assert calls == 4 and torch.allclose(one, aligned, atol=1e-5)
    none, calls = image(pipe, mm.guidance.adapter_guidance(scale=0.0, **settings))
    assert calls == 4 and torch.allclose(none, base, atol=1e-5)
    past, calls = image(pipe, mm.guidance.adapter_guidance(scale=1.6, **settings))
    assert calls == 8 and not torch.allclose(past, aligned, atol=1e-4)
    late, calls = image(pipe, mm.guidance.adapter_guidance(scale=1.6, start=0.5, **settings))
    assert calls == 6 and not torch.allclose(late, past, atol=1e-5)
    _, calls = image(pipe, mm.guidance.adapter_guidance(scale=1.6, guidance_scale=1.0))
    assert calls == 4
    again, _ = image(pipe, plain(guidance_scale=3.0))
    assert torch.equal(again, aligned) and not any(layer.disable_adapters for layer in layers)


def test_after_an_error_the_next_call_is_right(pipe):
    guider = mm.guidance.adapter_guidance(scale=1.6, guidance_scale=3.0)
    wanted, _ = image(pipe, guider)
    calls = iter([1, 1, 0])  # the third is the base's, whose adapter is off
    handle = pipe.transformer.register_forward_hook(lambda *_: 1 / next(calls) and None)
    with pytest.raises(ZeroDivisionError):
        image(pipe, guider)
    handle.remove()
    again, _ = image(pipe, guider)
    assert torch.equal(again, wanted)


def test_it_is_saved_and_loaded_as_diffusers_does(tmp_path):
    guider = mm.guidance.adapter_guidance(scale=2.5, base="base")
    guider.save_pretrained(tmp_path)
    assert type(guider).from_pretrained(tmp_path).scale == 2.5
    assert guider.new(scale=3.0).scale == 3.0
    with pytest.raises(UserError, match="the name of an adapter"):
        mm.guidance.adapter_guidance(base=torch.nn.Linear(1, 1))
