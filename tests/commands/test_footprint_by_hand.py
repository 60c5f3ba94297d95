"""Memory by counting beside memory by hand: bytes of each part, when it is there, and what rows, settings and cards make of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mmalign.commands.footprint import Footprint, _during, states
from mmalign.commands.footprint import footprint as count
from mmalign.needs import ENTROPY, kls
from mmalign.policies.adapters import in_four_bits
from mmalign.policies.inspecting import footprint, footprint_language
from mmalign.policies.inspecting.footprint import ALWAYS, DECODE, DENOISE, ENCODE, SAMPLE, UPDATE, Part, Rows
from mmalign.policies.inspecting.ledger import Fake, size_of
from mmalign.policies.pipelines.loading import memory as fitting
from mmalign.policies.settings import Lora, Memory, Schedule, TextMemory
from mmalign.policies.twins import texts
from mmalign.policies.twins.pipelines import call_arguments, twin
from mmalign.samplers.windows import first_fraction
from mmalign.training.optimizers import adamw
from mmalign.types import Need

GIB = 2**30
KIND = "StableDiffusion3Pipeline"
CALL = {"height": 32, "width": 32, "max_sequence_length": 8}
LATENT = 4 * 16 * 16  # numbers of an image's latents: 4 channels, half of 32 pixels each way
LAYERS, HIDDEN, HEADS, KEYS, WIDTH, WORDS = 2, 32, 4, 2, 8, 259  # of the small Llama


def of_pictures(kind: str = KIND, *, draws: int = 0, rows: Rows = Rows(8, 4, 4), **more: Any) -> dict[str, Part]:  # noqa: B008
    settings = {"lora": Lora(rank=4), "schedule": Schedule(steps=4, guidance=4.5), "call": CALL, **more}
    shape = footprint.diffusers(twin(kind), **settings)
    shape.__dict__["draws"] = draws
    return {part.name: part for part in shape.measure(rows).parts}


def of_words(rows: Rows = Rows(8, 4, 4), **more: Any) -> dict[str, Part]:  # noqa: B008
    settings = {"lora": Lora(rank=4), "max_prompt": 16, "max_completion": 8, **more}
    shape = footprint_language.transformers(texts.twin("LlamaForCausalLM"), **settings)
    return {part.name: part for part in shape.measure(rows).parts}


def begins(parts: dict[str, Part], words: str) -> Part:
    (part,) = (part for name, part in parts.items() if name.startswith(words))
    return part


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass keeps 1,000 bytes and takes 1,500 at its highest, that of the second denoiser ten times as many."""
    known: list[footprint.Pass] = []

    def fake(*_: Any) -> footprint.Pass:
        known.append(footprint.Pass(1000 * 10 ** len(known), 1500 * 10 ** len(known)))
        return known[-1]

    monkeypatch.setattr(footprint, "backward_pass", fake)


# ---- language models


def test_weights_adapters_keys_and_values() -> None:
    parts = of_words(lora=Lora(rank=4, targets=["q_proj"]))
    model, _ = texts.twin("LlamaForCausalLM")
    assert begins(parts, "weights").size == size_of([*model.parameters(), *model.buffers()])
    assert parts["LoRA"].size == 4 * LAYERS * 4 * (HIDDEN + HEADS * WIDTH)  # A and B of one layer, in float32
    cached = parts["keys and values of 8 rows of 16 + 8 tokens"]
    assert cached == (cached.name, 4 * 8 * (16 + 8) * LAYERS * 2 * KEYS * WIDTH, (SAMPLE,))
    assert begins(of_words(memory=TextMemory(rows_at_once=2)), "keys and values of 2 rows").size == cached.size // 4


def test_sampling_works_with_logits_or_with_its_prompts_whichever_is_more() -> None:
    logits = 8 * WORDS * 4 * 4  # float32: as they are, sorted, summed and drawn from
    assert of_words(max_prompt=2)["working memory of sampling"] == ("working memory of sampling", logits, (SAMPLE,))
    shared, each = (of_words(Rows(8, group, 4), max_prompt=64)["working memory of sampling"].size for group in (8, 1))
    assert logits < shared < 0.3 * each  # one prompt is run, or eight


def test_an_update_keeps_what_it_has_rows_completions_and_prompts_for() -> None:
    def kept(rows: Rows, **more: Any) -> Part:
        return begins(of_words(rows, **more), "activations")

    one, two = (kept(Rows(8, 4, micro)).size for micro in (4, 8))
    assert 1.9 < two / one <= 2.0 and kept(Rows(2, 2, 64)) == kept(Rows(2, 2, 2))
    assert kept(Rows(8, 8, 8)).size < kept(Rows(8, 2, 8)).size  # prompts that rows share
    long = kept(Rows(8, 4, 4), max_completion=32)
    assert long.name.endswith("4 rows of 16 + 32 tokens, prompts shared") and long.size > 2 * one
    checkpointed = kept(Rows(8, 4, 4), memory=TextMemory(gradient_checkpointing=True))
    assert checkpointed.name.endswith("each with its prompt") and checkpointed.size < one
    apart = kept(Rows(8, 4, 4), memory=TextMemory(shared_prefixes=False))
    assert apart.size > 1.2 * one and kept(Rows(8, 4, 4), max_prompt=64, memory=TextMemory(shared_prefixes=False)).size > 2 * apart.size


def test_logits_are_there_for_a_few_words_at_once_and_of_a_reference_too() -> None:
    def work(at_once: int = 2**26, references: tuple[str, ...] = (), numbers: frozenset[Need] = frozenset()) -> int:
        rows = Rows(8, 4, 4, references=references, numbers=numbers)
        parts = of_words(rows, memory=TextMemory(logits_at_once=at_once))
        return begins(parts, "activations").size + begins(parts, "working memory of a backward").size

    assert work(at_once=WORDS) < work()
    assert work() < work(numbers=frozenset({ENTROPY})) < work(references=("ref",), numbers=frozenset({ENTROPY, kls("ref")}))


def test_a_layer_is_made_again_from_4_bits_while_it_works() -> None:
    parts = of_words(memory=TextMemory(storage="nf4"))
    name = "a layer's weights made again from 4 bits"
    assert parts[name] == (name, 4 * HIDDEN * 64, (SAMPLE, UPDATE))  # the largest: up, gate or down

    small = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=HIDDEN, intermediate_size=16, num_hidden_layers=1, num_attention_heads=4, head_dim=WIDTH)
    )
    shape = footprint_language.transformers(
        (small, None), lora=Lora(rank=2), max_prompt=4, max_completion=2, memory=TextMemory(storage="nf4")
    )
    (made,) = (part for part in shape.measure(Rows(2, 2, 2)).parts if part.name == name)
    assert made.size == 4 * HIDDEN * HIDDEN  # that of attention, and the block's last is smaller


def test_a_backward_pass_works_with_what_it_does_not_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint_language, "backward_pass", lambda *_: footprint.Pass(1000, 1500))
    parts = of_words()
    assert begins(parts, "activations").size == 1000 and begins(parts, "working memory of a backward").size == 500


# ---- pipelines


def test_a_part_works_with_the_most_that_a_call_of_it_takes() -> None:
    part = torch.nn.Linear(4, 4)
    calls = footprint.Calls(SimpleNamespace(components={"part": part}), Fake(), {})
    taken = []
    for rows in (8, 64, 2):
        part(torch.zeros(rows, 4))
        taken.append(calls.phases()["part"][ENCODE])  # no denoiser was called
    assert taken[0] >= 8 * 4 * 4 and taken[1] == taken[2] == 8 * taken[0]


@pytest.mark.usefixtures("passes")
def test_parts_of_a_pipeline_and_when_they_are_there() -> None:
    pipe, parts = twin(KIND), of_pictures()
    for name in ("vae", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer"):
        part = getattr(pipe, name)
        assert parts[f"weights: {name} (float32)"][1:] == (size_of([*part.parameters(), *part.buffers()]), (ALWAYS,))
    assert parts["LoRA: transformer"].phases == (ALWAYS,)
    phases = {name: parts[f"working memory: {name}"].phases for name in ("vae", "text_encoder", "transformer")}
    assert phases == {"vae": (DECODE,), "text_encoder": (ENCODE,), "transformer": (DENOISE,)}
    waiting = of_pictures(memory=Memory(offload="frozen"))
    assert [waiting[f"weights: {name} (float32)"].phases for name in ("vae", "text_encoder", "transformer")] == [
        (DECODE,),
        (ENCODE,),
        (ALWAYS,),
    ]
    waiting = of_pictures(memory=Memory(offload=["text_encoder_3"]))
    assert [waiting[f"weights: {name} (float32)"].phases for name in ("vae", "text_encoder_3")] == [(ALWAYS,), (ENCODE,)]


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize(
    ("kind", "phases"),
    [
        ("KandinskyV22Pipeline", {"movq": [(DECODE,)]}),
        ("AudioLDMPipeline", {"text_encoder": [(ENCODE,)], "vae": [(DECODE,)], "vocoder": [(DECODE,)]}),
        ("StableDiffusionControlNetPipeline", {"controlnet": [(DENOISE,)], "vae": [(DECODE,)]}),
        ("StableDiffusionXLImg2ImgPipeline", {"vae": [(ENCODE,), (DECODE,)], "text_encoder_2": [(ENCODE,)]}),
    ],
)
def test_a_part_is_there_when_the_pipeline_calls_it(kind: str, phases: dict[str, list[tuple[str, ...]]]) -> None:
    """Whatever it is called: before the first denoiser, between them, or behind the last. One that is offloaded is nowhere else."""
    pipe = twin(kind)
    shape = footprint.diffusers(
        pipe, lora=Lora(rank=2), schedule=Schedule(steps=2), call=call_arguments(pipe), memory=Memory(offload="frozen")
    )
    parts = shape.measure(Rows(2, 2, 2)).parts
    for name, expected in phases.items():
        assert [part.phases for part in parts if part.name == f"working memory: {name}"] == expected
        there = tuple(phase for (phase,) in expected) + ((UPDATE,) if expected == [(DENOISE,)] else ())
        assert begins({part.name: part for part in parts}, f"weights: {name} (").phases == there


def test_a_part_that_no_call_asks_for_waits_on_the_cpu() -> None:
    part = torch.nn.Linear(4, 4)
    pipe = SimpleNamespace(components={"part": part, "net": torch.nn.Linear(4, 4)})
    calls = footprint.Calls(pipe, Fake(), {"net": pipe.components["net"]})
    shape = footprint.diffusers(pipe, memory=Memory(offload="frozen"))
    (weights,) = (part for part in shape._weights(pipe, calls.denoisers, calls) if part.name.startswith("weights: part"))
    assert weights.phases == () and _during(weights) == " (waits on the CPU)"
    assert _during(weights._replace(phases=(ENCODE, DECODE))) == " (in encoding prompts and decoding)"


@pytest.mark.usefixtures("passes")
def test_weights_in_fewer_bits() -> None:
    whole = of_pictures()["weights: transformer (float32)"].size
    net = twin(KIND).transformer.requires_grad_(False)
    eight, four = (list(fitting.stored_layers({"transformer": net}, storage).values()) for storage in ("float8", "nf4"))
    saved = sum(3 * layer.weight.numel() - 4 * layer.out_features for layer in eight)  # a byte for four, and a scale for each output
    assert eight and of_pictures(memory=Memory(storage="float8"))["weights: transformer (float32)"].size == whole - saved
    saved = sum(4 * layer.weight.numel() - in_four_bits(layer) for layer in four)
    assert four and of_pictures(memory=Memory(storage="nf4"))["weights: transformer (float32)"].size == whole - saved


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize(
    ("rows", "most", "count", "each", "columns"),
    [
        (Rows(8, 4, 4), 64, 3, 4, 3),  # of four steps the last is not random
        (Rows(8, 4, 4), 3, 6, 3, 3),  # 3 rows and 1, of each of three steps
        (Rows(8, 4, 4, micro_steps=1), 64, 1, 4, 1),
        (Rows(8, 4, 4, micro_steps=9), 64, 3, 4, 3),
        (Rows(2, 2, 64), 64, 3, 2, 3),
    ],
)
def test_passes_of_an_update(rows: Rows, most: int, count: int, each: int, columns: int) -> None:
    parts = of_pictures(rows=rows, memory=Memory(rows_at_once=most))
    name = f"activations kept for the backward pass: {count} passes of {each} rows"
    errors = 4 * 8 * LATENT * min(rows.micro_rows, rows.rows) * columns  # means and errors, in float64
    assert parts[name] == (name, 1000 * count + errors, (UPDATE,))
    assert parts["working memory of a backward pass"][1:] == (500, (UPDATE,))


@pytest.mark.usefixtures("passes")
def test_steps_that_a_window_leaves_out_are_no_passes() -> None:
    parts = of_pictures(schedule=Schedule(steps=4, guidance=4.5, window=first_fraction(fraction=0.5)))
    assert begins(parts, "activations").name.endswith(": 2 passes of 4 rows")


@pytest.mark.usefixtures("passes")
def test_of_two_denoisers_the_larger_pass_counts() -> None:
    call = {"height": 16, "width": 16, "num_frames": 5, "max_sequence_length": 8}
    parts = of_pictures("WanPipeline", call=call, rows=Rows(8, 4, 4, micro_steps=1))
    names = {name for name in parts if name.startswith("LoRA")}
    assert names == {"LoRA: transformer", "LoRA: transformer_2"}
    assert begins(parts, "working memory of a backward").size == 5000


def test_guidance_asks_twice_and_given_images_are_not_guided() -> None:
    def passes(**more: Any) -> tuple[int, int]:
        parts = of_pictures(rows=Rows(8, 4, 4, micro_steps=1), **more)
        return parts["working memory: transformer"].size, begins(parts, "activations").size - 4 * 8 * LATENT * 4

    alone, guided = passes(schedule=Schedule(steps=4, guidance=1.0)), passes()
    assert 1.9 < guided[0] / alone[0] < 2.1 and 1.8 < guided[1] / alone[1] < 2.1
    assert passes(draws=1)[1] == alone[1]


@pytest.mark.usefixtures("passes")
def test_given_images_are_held_with_their_noise() -> None:
    parts = of_pictures(draws=2, rows=Rows(6, 2, 4))
    name = "rollout: latents of 6 rows"
    assert parts[name] == (name, 6 * 4 * LATENT * (1 + 2), (ALWAYS,))
    assert begins(parts, "activations").name.endswith(": 2 passes of 4 rows")  # a pass for each draw


@pytest.mark.usefixtures("passes")
def test_a_decoder_in_slices_and_tiles_takes_less() -> None:
    whole = of_pictures()["working memory: vae"].size
    assert of_pictures(memory=Memory(slice_vae=True))["working memory: vae"].size < 0.3 * whole
    large = {**CALL, "height": 96, "width": 96}
    whole = of_pictures(call=large)["working memory: vae"].size
    assert of_pictures(call=large, memory=Memory(tile_vae=True))["working memory: vae"].size < 0.5 * whole


# ---- configs

WORDY: dict[str, Any] = {
    "use": "online",
    "policy": {
        "use": "transformers", "model": {"use": "policies.twins.texts.twin", "kind": "LlamaForCausalLM"}, "max_prompt": 16,
        "max_completion": 8,
    },
    "method": {"use": "grpo", "beta": 0.0},
    "batch": {"prompts": 2, "group": 4, "micro_rows": 4},
}  # fmt: skip
PICTURED: dict[str, Any] = {
    **WORDY,
    "policy": {
        "use": "diffusers", "pipeline": {"use": "policies.twins.pipelines.twin", "pipeline": KIND}, "lora": {"rank": 4},
        "schedule": {"steps": 4, "guidance": 4.5}, "call": CALL,
    },
    "method": {"use": "flow_grpo", "beta": 0.0},
}  # fmt: skip


def config(base: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A config with changes; ``policy_memory`` and the like change what is in its policy."""
    inner = {name.removeprefix("policy_"): value for name, value in more.items() if name.startswith("policy_")}
    return {**base, **{name: value for name, value in more.items() if name not in inner and not name.startswith("policy_")},
            "policy": {**base["policy"], **inner}}  # fmt: skip


def sizes(made: dict[str, Any]) -> dict[str, int]:
    return {part.name: part.size for part in count(made).parts}


def test_a_phase_takes_what_is_always_there_and_what_is_there_for_it() -> None:
    for base, phases in ((WORDY, [SAMPLE, UPDATE]), (PICTURED, [ENCODE, DENOISE, DECODE, UPDATE])):
        counted = count(base)
        assert list(counted.peaks) == phases
        for phase, size in counted.peaks.items():
            assert size == sum(part.size for part in counted.parts if phase in part.phases or ALWAYS in part.phases)
        assert next(part.phases for part in counted.parts if part.name == "gradients") == (UPDATE,)
        assert next(part.phases for part in counted.parts if part.name == "states of adamw") == (ALWAYS,)


def test_what_a_card_has_room_for() -> None:
    """0.8 GiB are the driver's, and 5 % of the rest are lost; GB are 10^9 bytes."""
    assert count(WORDY, card="24GB").room == pytest.approx((24e9 / GIB - 0.8) * 0.95 * GIB, abs=1)
    assert count(WORDY, card="4090").room == pytest.approx((23.5 - 0.8) * 0.95 * GIB, abs=1)
    table = Footprint([], {SAMPLE: 3, UPDATE: 5}, "mine", 5, [])
    assert table.peak == (UPDATE, 5) and table.fits and not table._replace(room=4).fits and table._replace(room=None).fits


def test_steps_of_a_pass_are_those_that_the_method_needs_together() -> None:
    def named(**batch: int) -> str:
        return next(
            name for name in sizes(config(PICTURED, batch={"prompts": 2, "group": 4, "micro_rows": 4, **batch})) if name.startswith("act")
        )

    assert named().endswith(": 1 passes of 4 rows") and named(micro_steps=2).endswith(": 2 passes of 4 rows")


def test_records_are_two_rows_each_and_draws_are_passes() -> None:
    pairs = {"use": "texts", "path": "pairs.jsonl"}
    made = config(WORDY, use="offline", method={"use": "dpo"}, records=pairs, batch={"records": 3, "micro_rows": 8})
    assert any(name.startswith("keys and values of 6 rows") for name in sizes(made))
    given = {**PICTURED, "use": "offline", "method": {"use": "flow_dpo"}, "records": pairs, "batch": {"records": 3, "micro_rows": 4}}
    counted = sizes({**given, "policy": {"use": "forward", "of": PICTURED["policy"], "draws": 2}})
    assert counted["rollout: latents of 6 rows"] == 6 * 4 * LATENT * 3
    assert any(name.endswith(": 2 passes of 4 rows") for name in counted)


def test_sets_of_parameters_are_those_that_are_kept() -> None:
    def made(**more: Any) -> set[str]:
        return {name.partition(": ")[2] for name in sizes(config(WORDY, **more)) if name.startswith("set of")}

    adapter = {"policy_lora": {"rank": 4}}
    assert made() == {"ref"} and made(**adapter) == set()  # under a LoRA the reference is the model without it
    assert made(**adapter, method={"use": "grpo", "beta": 0.1}) == set()
    stop = {"every": 2, "judges": {"it": {"use": "length"}}, "stop": {"judge": "it"}}
    assert made(**adapter, evaluation=stop) == {"best"}
    assert made(**adapter, references={"old": {"every": 2}}) == {"old"}
    assert made(**adapter, references={"ref": {"every": 2}}) == {"ref"}
    counted = sizes(config(WORDY, optimizer={"rate": 1e-3, "ema": 0.9}, policy_dtype="bfloat16"))
    assert counted["EMA"] == 2 * counted["gradients"] == 2 * counted["set of parameters: ref"]  # it is kept in float32
    away = sizes(config(PICTURED, optimizer={"rate": 1e-3, "ema": 0.9}, policy_lora=None, policy_memory={"offload": "references"}))
    assert away["EMA"] == away["set of parameters: ref"] == 0


def test_states_of_optimisers_by_hand() -> None:
    fake = Fake()
    with fake:
        shapes = ((64, 128), (100,), (2, 3, 5))
        trained = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16)) for shape in shapes]
    measured = footprint.Measured([], trained, False, fake)
    assert states(adamw(), "adamw", measured) == sum(2 * 2 * p.numel() + 4 for p in trained)  # two means, and a count of steps
    scales = 4 * 64 * 128 // 256  # in float32; what is small keeps its type
    assert states(None, "adamw_8bit", measured) == 2 * (64 * 128 + scales) + 2 * 2 * (100 + 30)
    squares = 4 * ((64 + 128) + 100 + (2 * 3 + 2 * 5))  # a row and a column of each matrix, in float32
    assert states(None, "adafactor", measured) == squares
    assert states(None, "adafactor", measured, mean=True) == squares + 4 * (64 * 128 + 100 + 30)


def test_what_to_change_is_what_the_peak_is_of() -> None:
    def changes(base: dict[str, Any], **more: Any) -> list[str]:
        counted = count(config(base, **more), card="0.9GB")
        return counted.changes

    assert changes(WORDY, policy_max_completion=64)[:2] == ["policy.memory.gradient_checkpointing: true", "batch.micro_rows below 4"]
    assert changes(WORDY)[-2:] == ["policy.lora", "optimizer: {use: adamw_8bit}"]
    assert "policy.memory.rows_at_once below 64" in changes(WORDY, policy_lora={"rank": 4}, policy_max_completion=1, policy_max_prompt=400)
    pictured = changes(PICTURED)
    assert pictured[-2:] == ["policy.memory.offload: frozen", "policy.memory.storage: float8"]
    assert "policy.memory.offload: frozen" not in changes(PICTURED, policy_memory={"offload": "frozen"})
