"""LoRA by ComfyUI's names: diffusers' own readers of such files give it back."""

from __future__ import annotations

import diffusers as library
import pytest
import torch
from diffusers.loaders import lora_conversion_utils as readers
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file

from mmalign.policies.adapters import adapter
from mmalign.policies.exports import comfyui
from mmalign.policies.exports.pipelines import export
from mmalign.policies.twins import pipelines
from mmalign.types import UserError
from tests.policies.test_export import base_of, outputs, policy_of

READERS = {
    "FluxTransformer2DModel": readers._convert_kohya_flux_lora_to_diffusers,
    "Flux2Transformer2DModel": readers._convert_kohya_flux2_lora_to_diffusers,
    "QwenImageTransformer2DModel": readers._convert_non_diffusers_qwen_lora_to_diffusers,
    "WanTransformer3DModel": readers._convert_non_diffusers_wan_lora_to_diffusers,
}
WIDE = {  # one block of each kind at the widths of the real ones, which readers know; on no device
    "FluxTransformer2DModel": {"num_layers": 1, "num_single_layers": 1},
    "Flux2Transformer2DModel": {"num_layers": 1, "num_single_layers": 1},
    "QwenImageTransformer2DModel": {"num_layers": 1},
    "WanTransformer3DModel": {"num_layers": 1, "added_kv_proj_dim": 5120, "image_dim": 1280},
}


def with_lora(kind, targets=None, ranks=(2, 3)):
    """A denoiser without weights of its own, and LoRA of random numbers in the layers of its blocks, of two ranks by turns."""
    with torch.device("meta"):
        module = getattr(library, kind)(**WIDE[kind])
    linear = [name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear) and "blocks." in name]
    names = [name for name in linear if targets is None or name.endswith(targets)]
    pattern = {name: ranks[place % len(ranks)] for place, name in enumerate(names)}
    inject_adapter_in_model(LoraConfig(r=ranks[0], target_modules=names, rank_pattern=pattern, alpha_pattern=dict(pattern)), module)
    rng = torch.Generator().manual_seed(0)
    for name, layer in module.named_modules():
        if name in pattern:
            for half in (layer.lora_A["default"], layer.lora_B["default"]):
                half.weight = torch.nn.Parameter(torch.randn(half.weight.shape, generator=rng))
    return module


def deltas(weights, prefix=""):
    names = {key.removesuffix(".lora_A.weight") for key in weights if key.endswith(".lora_A.weight")}
    products = {name: (weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"]) for name in names}
    return {name.removeprefix(prefix): pair for name, pair in products.items()}


def same_map(one, other):
    """Whether two pairs are one matrix, asked by what it does to a few vectors."""
    x = torch.randn(one[0].shape[1], 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a, b = (up.double() @ (down.double() @ x) for down, up in (one, other))
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) < 1e-5


@pytest.mark.parametrize(("kind", "ranks"), [*((kind, (2, 3)) for kind in READERS), ("FluxTransformer2DModel", (2,))])
def test_diffusers_reads_the_layers_of_all_blocks_back(kind, ranks):
    module = with_lora(kind, ranks=ranks)
    stored = comfyui.keyed(module, "transformer")
    alphas = {key: value for key, value in stored.items() if key.endswith(".alpha")}
    assert 3 * len(alphas) == len(stored) and all(value.shape == () for value in alphas.values())
    assert all(value == len(stored[key.replace(".alpha", ".lora_down.weight")]) for key, value in alphas.items())
    here, there = deltas(adapter(module)[0]), deltas(READERS[kind](dict(stored)), "transformer.")
    assert here.keys() == there.keys() and len(here) > 7
    assert all(same_map(there[name], here[name]) for name in here)


def test_layers_without_lora_in_a_matrix_of_several_stay_as_they_were():
    module = with_lora("FluxTransformer2DModel", targets=("to_q", "to_v"), ranks=(2, 3))
    here, there = (
        deltas(adapter(module)[0]),
        deltas(READERS["FluxTransformer2DModel"](comfyui.keyed(module, "transformer")), "transformer."),
    )
    assert all(same_map(there[name], here[name]) for name in here) and there.keys() > here.keys()
    assert not any(there[name][1].any() for name in there.keys() - here.keys())


TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("StableDiffusionPipeline", [*TARGETS, "ff.net.0.proj", "ff.net.2"]),
        ("StableDiffusionXLPipeline", TARGETS),
        ("QwenImagePipeline", TARGETS),
        ("WanPipeline", TARGETS),
        ("FluxPipeline", ["add_q_proj", "add_k_proj", "ff.net.2", "attn.to_out.0"]),
    ],
)
def test_a_file_beside_the_others_gives_the_same_outputs(name, targets, tmp_path):
    policy = policy_of(name, lora={"rank": 3, "alpha": 12, "targets": targets})
    forms = export(policy, tmp_path / "out", base=lambda: base_of(name), form="comfyui")
    assert [form.name for form in forms] == ["diffusers", "peft", "comfyui"]
    fresh, call = base_of(name), pipelines.call_arguments(policy.pipe)
    for part in policy.denoisers:
        more = {"load_into_transformer_2": True} if part == "transformer_2" else {}
        fresh.load_lora_weights(str(tmp_path / "out" / "comfyui"), weight_name=f"{part}.safetensors", **more)
        keys = load_file(tmp_path / "out" / "comfyui" / f"{part}.safetensors").keys()
        assert all(key.startswith(("lora_unet_", "diffusion_model.blocks.")) for key in keys)
    live = outputs(policy.pipe, call)
    torch.testing.assert_close(outputs(fresh, call), live, atol=1e-5, rtol=1e-5)
    assert float((live - outputs(base_of(name), call)).abs().max()) > 1e-3


def test_a_wrong_matrix_in_the_file_leaves_nothing_behind(tmp_path, monkeypatch):
    from importlib import import_module

    files = import_module("mmalign.policies.exports.pipelines")

    def swapped(module, what):
        stored = comfyui.keyed(module, what)
        keys = [key for key in stored if key.endswith("lora_up.weight")]
        return {**stored, keys[0]: stored[keys[0]].flip(0)}

    monkeypatch.setattr(files, "keyed", swapped)
    policy = policy_of("FluxPipeline", lora={"rank": 2, "targets": ["add_q_proj"]})
    with pytest.raises(UserError, match="the comfyui form of transformer, loaded again, differs from the live model in transformer_blocks"):
        export(policy, tmp_path / "out", base=lambda: base_of("FluxPipeline"), form="comfyui")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "lora", "line"),
    [
        ("StableDiffusion3Pipeline", {"rank": 2}, "got SD3Transformer2DModel .transformer., takes UNet2DConditionModel"),
        ("FluxPipeline", {"rank": 2, "targets": "all-linear"}, "is 32 wide|have no key there"),
        ("FluxPipeline", {"rank": 2, "targets": ["x_embedder"]}, "1 layers of transformer have no key there, such as x_embedder"),
        ("StableDiffusionPipeline", None, "trained all weights"),
    ],
)  # fmt: skip
def test_what_has_no_such_file_is_a_line(name, lora, line, tmp_path):
    with pytest.raises(UserError, match=line):
        export(policy_of(name, lora=lora), tmp_path / "out", base=lambda: base_of(name), form="comfyui")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "digits"])
def test_merged_is_the_whole_pipeline_with_lora_in_its_weights(name, tmp_path):
    policy = policy_of(name, lora={"rank": 2, "alpha": 6, "targets": ["to_q", "to_v"]})
    (form,) = export(policy, tmp_path / "out", base=lambda: None, prompt="a 3", form="merged")
    call = {} if name == "digits" else pipelines.call_arguments(policy.pipe)
    whole = type(policy.pipe).from_pretrained(tmp_path / "out")
    assert form.name == "full" and not any("lora" in key for key in whole.transformer.state_dict())
    torch.testing.assert_close(outputs(whole, call), outputs(policy.pipe, call), atol=1e-5, rtol=1e-4)
