"""Options for memory and speed: what they act on, that replay stays exact, and what they may change and may not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

from mmalign.needs import OLD
from mmalign.policies.diffusers import DiffusersPolicy
from mmalign.policies.exports.pipelines import export
from mmalign.policies.pipelines.loading import memory
from mmalign.policies.twins import pipelines
from mmalign.types import Need, UserError
from tests.helpers.flat import diffusers

LORA = {"rank": 2}
NEEDS = frozenset({OLD, Need("kls")})


def make(kind: str = "StableDiffusion3Pipeline", **more: Any) -> DiffusersPolicy:
    pipe = pipelines.twin(kind)
    arguments = {"steps": 3, "call": pipelines.call_arguments(pipe), "device": "cpu", **more}
    policy = diffusers(pipe, **arguments)
    with torch.no_grad():  # LoRA's B starts at 0: nothing would reach A
        for n, p in enumerate(policy.parameters().values()):
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(n)).to(p)
    return policy


def scored(policy: DiffusersPolicy) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """(outputs, log-probabilities at replay, gradients) of one rollout, whose replay has to be exact."""
    rollout = policy.sample(["three red foxes", "two blue birds"], 1, torch.Generator().manual_seed(0))
    policy.remember(rollout, ["ref"], 2)
    steps = policy.steps(rollout, torch.arange(2), needs=NEEDS)
    assert steps.old is not None and float((steps.log_probs - steps.old).abs().max()) == 0.0
    assert float(steps.kls["ref"].max()) > 0
    (steps.log_probs * torch.tensor([[1.0], [-1.0]])).sum().backward()
    gradients = {name: p.grad for name, p in policy.parameters().items() if p.grad is not None}
    assert gradients and all(bool(g.isfinite().all()) for g in gradients.values())
    return rollout.outputs, steps.log_probs.detach(), gradients


def assert_same(a: Any, b: Any, rtol: float = 0.0) -> None:
    assert torch.equal(a[1], b[1])
    assert a[2].keys() == b[2].keys()
    for name, gradient in a[2].items():
        torch.testing.assert_close(b[2][name], gradient, rtol=rtol, atol=rtol * float(gradient.abs().max()))


@pytest.fixture(scope="module")
def plain() -> Any:
    return scored(make(lora=LORA))


@pytest.mark.parametrize("option", [{"gradient_checkpointing": True}, {"offload": ["frozen", "references"]}, {"slice_vae": True}])
def test_options_that_change_no_number(option: dict[str, Any], plain: Any) -> None:
    policy = make(lora=LORA, **option)
    assert policy.acts_on[next(iter(option))]
    scores = scored(policy)
    assert_same(plain, scores, rtol=1e-6)
    torch.testing.assert_close(scores[0], plain[0], rtol=0, atol=1e-5)


def test_checkpointed_blocks_run_again_in_the_backward_pass() -> None:
    policy, ran = make(lora=LORA, gradient_checkpointing=True), []
    rollout = policy.sample(["three red foxes"], 2, torch.Generator().manual_seed(0))
    policy.denoiser.transformer_blocks[0].register_forward_pre_hook(lambda *_: ran.append(torch.is_grad_enabled()))  # type: ignore[index,union-attr]
    loss = policy.steps(rollout, torch.arange(2), torch.tensor([0])).log_probs.sum()
    before = len(ran)
    loss.backward()
    assert (before, len(ran)) == (1, 2)


def test_what_is_offloaded_comes_for_its_own_work_and_leaves_before_a_denoiser_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, by what is moved: accelerate brings a part, and it is sent back when a denoiser or the end comes."""
    policy, trips = make(lora=LORA, offload="frozen"), []
    assert set(policy.acts_on["offload"]) == {"vae", "text_encoder", "text_encoder_2", "text_encoder_3"}
    away = policy.caller.away
    assert away is not None
    monkeypatch.setattr(away, "put_away", lambda: trips.append("back"))
    for name in away.names:
        part = policy.pipe.components[name]
        part._hf_hook.pre_forward = lambda module, *args, _name=name, **kwargs: (trips.append(_name), (args, kwargs))[1]
    policy.sample(["three red foxes"], 1, torch.Generator().manual_seed(0))
    first = trips.index("back")
    assert set(trips[:first]) == {"text_encoder", "text_encoder_2", "text_encoder_3"}
    assert list(dict.fromkeys(trips[first:])) == ["back", "vae"] and trips[first:].count("back") == 4 and trips[-1] == "back"
    trips.clear()
    policy.pipe.vae.encode(torch.zeros(1, 3, 8, 8))  # also after a call, which has put its own in this place meanwhile
    assert trips.count("vae") == 2  # by accelerate's mark and by ours


def test_what_is_not_on_the_cpu_is_sent_there() -> None:
    layer, sent = nn.Linear(2, 2), []
    away = memory.Offloaded({"part": layer}, [], torch.device("meta"))
    away._hooks[0].offload = lambda: sent.append("back")  # nothing comes back from meta
    away.put_away()
    assert layer.weight.device.type == "cpu" and sent == []
    layer._hf_hook.pre_forward(layer)  # type: ignore[union-attr,operator]
    assert layer.weight.device.type == "meta"
    away.put_away()
    assert sent == ["back"]


# Weights in 8 bits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float8_under_lora_replays_exactly_and_its_gradient_is_that_of_the_rounded_weights(dtype: str) -> None:
    stored, rounded = make(lora=LORA, storage="float8", dtype=dtype), make(lora=LORA, dtype=dtype)
    names = [name.removeprefix("transformer.") for name in stored.acts_on["storage"]]
    assert any(name.endswith("to_q.base_layer") for name in names) and not any("lora_" in name for name in names)
    for name in names:
        kept = stored.denoiser.get_submodule(name)
        assert kept.weight.dtype == torch.float8_e4m3fn
        rounded.denoiser.get_submodule(name).weight.data = memory._full(kept.weight, kept.weight_scale, getattr(torch, dtype))  # type: ignore[arg-type]
    assert all(p.dtype == torch.float32 for p in stored.parameters().values())
    assert_same(scored(rounded), scored(stored), rtol=1e-5 if dtype == "float32" else 0.02)


def test_float8_rounds_by_a_sixteenth_at_most_and_keeps_no_full_weight_for_the_backward_pass() -> None:
    layer = nn.Linear(64, 32)
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-4, 4, 32)[:, None])
    own, bias = layer.weight.detach().clone(), layer.bias
    block = nn.Module()
    block.blocks = nn.ModuleList([layer])
    layer.requires_grad_(False)
    assert memory.store({"net": block}, "float8") == ["net.blocks.0"]
    full = memory._full(layer.weight, layer.weight_scale, torch.float32)  # type: ignore[arg-type]
    large = own.abs() > own.abs().amax(1, keepdim=True) / 14336
    assert bool(large.float().mean() > 0.9) and float(((full - own).abs() / own.abs())[large].max()) <= 1 / 16
    x, saved = torch.randn(5, 64, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
        y = layer(x)
    assert all(t.dtype == torch.float8_e4m3fn or t.numel() == 32 for t in saved)
    torch.testing.assert_close(y, F.linear(x, full, bias))
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], torch.ones(5, 32) @ full)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed: pip install 'mmalign[eight_bit]'")
def test_nf4_under_lora_replays_exactly_and_its_gradient_is_that_of_the_rounded_weights() -> None:
    stored, rounded = make(lora=LORA, storage="nf4"), make(lora=LORA)
    layers = memory.stored_layers(rounded.denoisers, "nf4")
    assert stored.acts_on["storage"] == list(layers) and any(name.endswith("to_q.base_layer") for name in layers)
    for name, layer in layers.items():
        full: Any = stored.denoiser.get_submodule(name.removeprefix("transformer.")).weight
        assert 0 < float((full.get_original_weight() - layer.weight).abs().max()) <= 0.16 * float(layer.weight.abs().max())
        layer.weight.data = full.get_original_weight()
    assert_same(scored(rounded), scored(stored), rtol=1e-5)


# Compiling


@pytest.mark.parametrize("kind", ["StableDiffusion3Pipeline", "StableDiffusionPipeline"])
def test_compiled_denoisers_sample_and_replay(kind: str) -> None:
    """The blocks that are in a list of a class, and those that a class names."""
    ran: list[bool] = []

    def backend(graph: Any, inputs: Any) -> Any:
        def run(*args: Any) -> Any:
            ran.append(torch.is_grad_enabled())
            return graph.forward(*args)

        return run

    policy = make(kind, lora=LORA, compile={"backend": backend})
    compiled = [type(m).__name__ for m in policy.denoiser.modules() if m._compiled_call_impl is not None]
    assert compiled and set(compiled) == {"JointTransformerBlock" if "3" in kind else "BasicTransformerBlock"}
    assert policy.acts_on["compile"] == list(policy.denoisers)
    scores = scored(policy)
    assert {True, False} == set(ran)
    assert_same(scored(make(kind, lora=LORA)), scores, rtol=1e-5)


# Decoding


def test_rows_are_decoded_one_after_the_other_with_what_belongs_to_them() -> None:
    seen = []

    def decode(z: torch.Tensor, scale: torch.Tensor, *, shift: torch.Tensor, return_dict: bool) -> Any:
        seen.append(z.shape[0])
        return {"sample": z * scale + shift} if return_dict else (z * scale + shift,)

    z, scale, shift = torch.randn(3, 2), torch.randn(3, 1), torch.randn(2)
    for return_dict in (True, False):
        result = memory.row_by_row(decode)(z, scale, shift=shift, return_dict=return_dict)
        assert torch.equal(result["sample"] if return_dict else result[0], z * scale + shift)
    assert seen == [1] * 6


def test_tiles_and_slices_are_the_classes_own_where_they_have_them() -> None:
    policy = make(slice_vae=True, tile_vae=True)
    assert policy.pipe.vae.use_slicing and policy.pipe.vae.use_tiling


# Refusals


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"storage": "float8"}, "policy.memory.storage: got 'float8' without lora"),
        ({"storage": "int4", "lora": LORA}, "diffusers.memory.storage: got 'int4', takes 'float8'"),
        ({"offload": ["vae", "transformer"]}, r"policy.memory.offload: got 'transformer', takes frozen, references, .*text_encoder"),
        ({"compile": {"backend": "nope"}}, "policy.memory.compile.backend: got 'nope', takes .*inductor"),
        ({"compile": {"mood": 1}}, "diffusers.memory.compile.mood: unknown key of compile; nearest: mode"),
        ({"dtype": "float64"}, "diffusers.dtype: got 'float64', takes .*float32"),
        ({"device": "cuda:99"}, "policy.device: got 'cuda:99', this machine has cpu"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make(**more)
    assert "\n" not in str(caught.value)


def test_classes_without_the_ability_are_refused() -> None:
    with pytest.raises(UserError, match=r"policy.memory.gradient_checkpointing: got true, and net \(Linear\)"):
        memory.checkpoint({"net": nn.Linear(1, 1)})
    with pytest.raises(UserError, match="no repeated block of net has a frozen linear layer"):
        memory.store({"net": nn.Linear(1, 1)}, "float8")


def test_what_inspection_suggests_is_taken() -> None:
    pipe = pipelines.twin("StableDiffusion3Pipeline")
    config = yaml.safe_load("\n".join(option for option, _ in memory.options(pipe)))
    assert list(config) == ["gradient_checkpointing", "offload", "slice_vae", "storage", "compile"]
    assert "text_encoder, text_encoder_2" in dict(memory.options(pipe))["offload: frozen"]
    policy = diffusers(pipe, lora=LORA, device="cpu", **config)
    assert all(policy.acts_on[name] for name in config)


def test_weights_in_8_bits_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="export: this policy keeps its weights rounded"):
        export(make(lora=LORA, storage="float8"), tmp_path / "out", base=lambda: None)
    assert not list(tmp_path.iterdir())
