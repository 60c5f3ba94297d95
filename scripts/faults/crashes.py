"""Kinds 8 to 11: what is handed over, foreign exceptions, one record that stops a run, commands that fail after their work."""

from __future__ import annotations

import json
import struct
from typing import Any

import torch
from readings import png
from safetensors.torch import load_file
from user import OFFLINE, ONLINE, PAIRS, PIPELINE, User, fault

import mmalign as mm

LORA = {"policy.lora": {"rank": 2, "alpha": 4}, "optimizer": {"rate": 0.01}}


# ---- 8


@fault(8, "LoRA alpha is only in the header: bare tensors give half of the delta", "^0 wrong of [1-9]")
def bare(user: User) -> str:
    from mmalign.runs import weights

    user.train(PIPELINE, LORA)
    user.mmalign("export", "runs/r")
    file = load_file("runs/r/export/peft/transformer/adapter_model.safetensors")
    stored = weights.read(user.folder / "runs/r", "run")
    layers = {key.partition(".lora_")[0].removeprefix("base_model.model.") for key in file}

    def wrong(layer: str) -> bool:
        a, b = (file[f"base_model.model.{layer}.lora_{half}.weight"] for half in "AB")
        own_a, own_b = (stored.tensors[f"{layer}.lora_{half}.default.weight"] for half in "AB")
        return not bool((b @ a).any()) or not torch.allclose(b @ a, stored.scales[layer] * own_b @ own_a, atol=1e-6)

    return user.python("B @ A of the file against the run's own", lambda: f"{sum(map(wrong, layers))} wrong of {len(layers)} layers")


@fault(8, "all-linear puts LoRA on lm_head", "^0 of ")
def output(user: User) -> str:
    policy = mm.policies.transformers(mm.worlds.text(model="small"), max_completion=8, lora=mm.Lora(rank=2, targets="all-linear"))
    names = list(policy.parameters())
    return user.python("policy.parameters()", lambda: f"{sum('lm_head' in name for name in names)} of {len(names)} are of lm_head")


@fault(8, "pairs writes cut completions, and train fails on its own file", "finished after 1 steps")
def own_pairs(user: User) -> str:
    node = {
        "use": "make_pairs", "policy": OFFLINE["policy"], "prompts": ["the name of", "if the value", "return the"],
        "rewards": {"plain": {"use": "text_plain"}}, "group": 4, "out": "pairs.jsonl",
    }  # fmt: skip
    made = user.mmalign("pairs", user.config(node, name="pairs.yaml"))
    return made + user.train(OFFLINE, {"steps": 1, "batch.records": 1})


@fault(8, "a language model's card gives advice for pipelines; its adapter config lacks base and task", '"model" CAUSAL_LM|model CAUSAL_LM')
def language(user: User) -> str:
    user.train(OFFLINE, {"policy.model": user.model(), **LORA})
    printed = user.mmalign("export", "runs/r")
    config = json.loads((user.folder / "runs/r/export/adapter_config.json").read_text())
    return f"{printed}\n{config['base_model_name_or_path'].rpartition('/')[2]} {config['task_type']}"


# ---- 9


@fault(9, "a judge that is NaN in every evaluation", "gold missing -> missing(.|\n)*exit 0")
def nan_judge(user: User) -> str:
    return user.train(ONLINE, {"evaluation.judges": {"gold": {"use": "own.unknown"}}})


ONE_ROW = (
    "AltDiffusionImg2ImgPipeline", "AnimateDiffControlNetPipeline", "KandinskyImg2ImgPipeline", "KandinskyInpaintPipeline",
    "KandinskyPipeline", "PIAPipeline", "StableDiffusionAdapterPipeline", "StableDiffusionUpscalePipeline", "VideoToVideoSDPipeline",
)  # fmt: skip
"""Classes whose call takes one prompt with small arguments of one picture or one embedding, with a negative prompt or without."""
NEGATIVE = (
    *ONE_ROW, "AltDiffusionPipeline", "AnimateDiffPAGPipeline", "AnimateDiffPipeline", "AnimateDiffSparseControlNetPipeline",
    "AudioLDMPipeline", "HunyuanDiTControlNetPipeline", "HunyuanDiTPAGPipeline", "HunyuanDiTPipeline", "IFPipeline",
    "Kandinsky3Img2ImgPipeline", "Kandinsky3Pipeline", "SemanticStableDiffusionPipeline", "StableAudioPipeline",
    "StableDiffusionControlNetImg2ImgPipeline", "StableDiffusionControlNetInpaintPipeline", "StableDiffusionControlNetPAGInpaintPipeline",
    "StableDiffusionControlNetPAGPipeline", "StableDiffusionControlNetPipeline", "StableDiffusionDepth2ImgPipeline",
    "StableDiffusionGLIGENPipeline", "StableDiffusionGLIGENTextImagePipeline", "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline", "StableDiffusionInstructPix2PixPipeline", "StableDiffusionModelEditingPipeline",
    "StableDiffusionPAGImg2ImgPipeline", "StableDiffusionPAGInpaintPipeline", "StableDiffusionPAGPipeline",
    "StableDiffusionPanoramaPipeline", "StableDiffusionPipeline", "StableDiffusionXLInstructPix2PixPipeline", "StableUnCLIPImg2ImgPipeline",
    "StableUnCLIPPipeline", "TextToVideoSDPipeline",
)  # fmt: skip


def negative(name: str) -> None:
    rows = 1 if name in ONE_ROW else 2

    @fault(9, f"negative_prompt in {name}, {rows} rows", f"^finished: {rows} rows")
    def act(user: User) -> str:
        import diffusers

        from mmalign.policies.twins import pipelines

        def call() -> Any:
            diffusers.logging.set_verbosity_error()
            pipe = pipelines.twin(name)
            call = {**pipelines.call_arguments(pipe), "negative_prompt": "ugly"}
            policy = mm.policies.diffusers(pipe, call=call, schedule=mm.Schedule(steps=6), device="cpu")
            rollout = policy.sample(["a red fox", "two blue birds"][:rows], 1, torch.Generator().manual_seed(0))
            return f"finished: {len(rollout)} rows"

        return user.python(f"mm.policies.diffusers({name}, call={{'negative_prompt': 'ugly'}}).sample([...], ...)", call)


for _name in NEGATIVE:
    negative(_name)


def together(name: str) -> None:
    @fault(9, f"two prompts in {name}, which takes one", f"rows_at_once: got 64, and {name} goes .*; takes 1")
    def act(user: User) -> str:
        from mmalign.policies.twins import pipelines

        def call() -> Any:
            pipe = pipelines.twin(name)
            policy = mm.policies.diffusers(pipe, call=pipelines.call_arguments(pipe), schedule=mm.Schedule(steps=6), device="cpu")
            return policy.refusals(["a red fox", "two blue birds"])

        return user.python(f"mm.policies.diffusers({name}).refusals([...])  # what a run asks before it samples", call)


for _name in ONE_ROW:
    together(_name)


@fault(9, "no random step", "exit 2")
def no_random(user: User) -> str:
    return user.train(PIPELINE, {"policy.schedule": {"steps": 3, "kernel": {"use": "ode"}}})


@fault(9, "a CSV in cp1252", "rows.csv.*UTF-8")
def cp1252(user: User) -> str:
    (user.folder / "rows.csv").write_bytes("prompt,chosen,rejected\nHäuser?,grün,x\n".encode("cp1252"))
    return user.python("mm.data.texts('rows.csv')", lambda: mm.data.texts("rows.csv").first(1))


@fault(9, "a CSV with a long field", "prompt='What.'")
def long_field(user: User) -> str:
    user.write("rows.csv", "prompt,chosen,rejected\nWhat?," + "a" * 200_000 + ",x\n")
    return user.python("mm.data.texts('rows.csv')", lambda: str(mm.data.texts("rows.csv").first(1))[:60])


def damaged(kind: str, name: str, **more: Any) -> None:
    @fault(9, f"{kind}, cut at every length", "^{'Broken': ")
    def act(user: User) -> str:
        from mmalign.media import Broken, Limits, picture

        data, ends = png((24, 24), kind, **more), dict[str, int]()
        for length in range(1, len(data), 7):
            (user.folder / name).write_bytes(data[:length])
            try:
                picture(name, Limits())
            except Broken:
                ends["Broken"] = ends.get("Broken", 0) + 1
            except (IndexError, struct.error, TypeError, KeyError, AttributeError, RuntimeError) as error:
                ends[type(error).__name__] = ends.get(type(error).__name__, 0) + 1
        return user.python(f"media.picture({name}[:n]) for n in range(1, {len(data)}, 7)", lambda: ends)


damaged("GIF", "a.gif")
damaged("TIFF", "a.tiff")
damaged("AVIF", "a.avif")
damaged("PNG", "a.png")
damaged("WEBP", "a.webp")


@fault(9, "JSONL cut at U+2028, U+2029 and NEL", "first='a.u2028b.u2029c.x85d'")
def separators(user: User) -> str:
    user.write("rows.jsonl", json.dumps({"prompt": "p", "chosen": "a\u2028b\u2029c\x85d", "rejected": "x"}, ensure_ascii=False) + "\n")
    return user.python("mm.data.texts('rows.jsonl').first(1)", lambda: mm.data.texts("rows.jsonl").first(1))


def guided(name: str) -> None:
    @fault(9, f"image-to-video under {name}: mmalign sample moving_digits", "exit 0")
    def act(user: User) -> str:
        return user.mmalign(
            "sample", "moving_digits", "--prompt", "a seven moving left", "--guidance", name, "--reward", "moving_digits_proxy",
            "--call", "num_inference_steps=2",
        )  # fmt: skip


guided("fk")
guided("best_of")


@fault(9, "mmalign sample moving_digits", "exit 0")
def moving(user: User) -> str:
    return user.mmalign("sample", "moving_digits", "--prompt", "a seven moving left")


@fault(9, "truncated safetensors", "policy.model: got .model..*file not fully covered")
def truncated(user: User) -> str:
    place = user.folder / user.model() / "model.safetensors"
    place.write_bytes(place.read_bytes()[:-1000])
    return user.train(OFFLINE, {"policy.model": "model"})


@fault(9, "a tensor missing from a diffusers folder", "tensors of .* are there; missing")
def pipeline_tensor(user: User) -> str:
    from safetensors.torch import save_file

    mm.worlds.digits().save_pretrained("digits")
    place = next((user.folder / "digits").glob("*/*.safetensors"))
    tensors = load_file(str(place))
    del tensors[next(iter(tensors))]
    save_file(tensors, str(place), metadata={"format": "pt"})
    return user.train(PIPELINE, {"policy.pipeline": "digits"})


@fault(9, "a path that does not exist", "policy.model: .*/nowhere/model")
def nowhere(user: User) -> str:
    return user.train(OFFLINE, {"policy.model": "/nowhere/model"})


# ---- 10


def odd(what: str, row: dict[str, Any]) -> None:
    @fault(10, what, "finished after 2 steps(.|\n)*left out|left out(.|\n)*finished after 2 steps")
    def act(user: User) -> str:
        user.write("pairs.jsonl", [*PAIRS, {**row, "id": "odd-1"}, *PAIRS])
        printed = user.train(OFFLINE, {"batch.records": 4})
        return printed + "\n" + "".join(place.read_text() for place in (user.folder / "runs/r").glob("broken.jsonl"))


odd("an empty completion stops the run", {"prompt": "the name of", "chosen": "", "rejected": "a ."})
odd("an answer longer than max_completion stops the run", {"prompt": "the name of", "chosen": "a " * 60, "rejected": "a ."})


@fault(10, "a prompt that the tokenizer refuses stops an online run", "left out: has .* tokens(.|\n)*finished")
def long_prompt(user: User) -> str:
    return user.train(ONLINE, {"prompts": ["the name of", "a " * 400, "if the value"], "batch.prompts": 3})


# ---- 11

ASKED = {"policy": OFFLINE["policy"], "prompts": ["the name of", "if the value"], "rewards": {"plain": {"use": "text_plain"}}}


@fault(11, "mmalign train on a make_pairs config ends with rc 1", "exit 0")
def make_pairs(user: User) -> str:
    return user.mmalign("train", user.config({**ASKED, "use": "make_pairs", "group": 4, "out": "made.jsonl"}))


@fault(11, "mmalign train on a calibrate config ends with rc 1", "exit 0")
def calibrate(user: User) -> str:
    return user.mmalign("train", user.config({**ASKED, "use": "calibrate", "samples": 4, "out": "scores.jsonl"}))
