"""Kinds 4 to 6, 12 and 23 as people meet them who edit a config of a vision-language model: one line, before its weights are loaded."""

from __future__ import annotations

from typing import Any

from readings import png
from user import User, fault

from mmalign.config import load
from mmalign.policies.twins import texts, visions

MODELS = {
    "qwen25_vl_7b": "Qwen2_5_VLForConditionalGeneration", "llava15_7b": "LlavaForConditionalGeneration",
    "llava_onevision_7b": "LlavaOnevisionForConditionalGeneration",
}  # fmt: skip
PAIR = {"prompt": "What is it?", "image": "a.png", "chosen": "a red square", "rejected": "a cat"}
ASKED = {"prompt": "How many?", "image": "a.png", "answer": "1"}
DPO, GRPO = "qwen25_vl_7b/dpo", "qwen25_vl_7b/grpo"


def config(name: str) -> dict[str, Any]:
    """A config of a vision-language model, its model a folder of random weights, its data files beside it, one step long."""
    node = load(name)
    node["policy"] |= {"model": name.split("/")[0], "dtype": "float32", "max_prompt": 600, "max_completion": 16}
    node["policy"].pop("memory", None)
    if "train" in node["policy"]:
        node["policy"]["train"] = {"language": {"rank": 2, "targets": ["q_proj"]}}
    if node["use"] == "offline":
        node |= {"records": {"use": "picture_texts", "path": "rows.jsonl"}, "batch": {"records": 2, "micro_rows": 2}}
    else:
        node |= {"prompts": {"use": "picture_prompts", "path": "rows.jsonl"}, "batch": {"prompts": 2, "group": 2, "micro_rows": 2}}
    return {**node, "steps": 1, "evaluation": {"every": 9, "samples": 1}, "run": {"name": "r", "folder": "runs", "trackers": []}}


def sees(kind: int, what: str, name: str, shows: str, change: dict[str, Any] | None = None, row: dict[str, Any] | None = None) -> None:
    """row: each of four in the data file, by default one of the config's kind. shows: what the one line says."""

    @fault(kind, f"{name}: {what}", shows)
    def act(user: User) -> str:
        folder = name.split("/")[0]
        for reader in visions.twin(MODELS[folder]):
            reader.save_pretrained(folder)
        for reader in texts.twin("LlamaForCausalLM"):
            reader.save_pretrained("words")
        (user.folder / "a.png").write_bytes(png((48, 40)))
        user.write("rows.jsonl", [row or (ASKED if "grpo" in name else PAIR)] * 4)
        return user.train(config(name), change)


for _name in (DPO, "llava15_7b/dpo", "llava15_7b/mdpo", "llava15_7b/dense_dpo", "qwen25_vl_7b/mdpo"):
    sees(12, "as it is", _name, "finished after 1 steps(.|\n)*exit 0")
sees(4, "a column that is not there", DPO, "no column 'photo'.*has chosen, image(.|\n)*exit 2", {"records.columns": {"image": "photo"}})
sees(4, "a column that we do not have", DPO, "records.columns.imge: unknown(.|\n)*exit 2", {"records.columns": {"imge": "photo"}})
sees(4, "records of pictures", DPO, "no such file: .*a red square(.|\n)*exit 2", {"records": {"use": "pairs", "path": "rows.jsonl"}})
sees(4, "records of texts", DPO, "holds an image .*picture_texts reads them(.|\n)*exit 2", {"records.use": "texts"})
sees(4, "no answer to compare with", GRPO, "reads the column 'answer' of the prompts; they have solution(.|\n)*exit 2",
     row={"prompt": "How many?", "image": "a.png", "solution": "1"})  # fmt: skip
sees(5, "a template that is not there", DPO, "policy.template: got 'q.jinja', takes bool(.|\n)*exit 2", {"policy.template": "q.jinja"})
sees(6, "a picture under a key that nobody knows", DPO, "holds a medium under 'art', which nobody reads(.|\n)*exit 2",
     row={**{key: value for key, value in PAIR.items() if key != "image"}, "art": "a.png"})  # fmt: skip
sees(6, "two places and one picture", "llava15_7b/dpo", "2 places for media in the prompt and 1 media(.|\n)*exit 2",
     row={**PAIR, "prompt": "<image><image> which?"})  # fmt: skip
sees(6, "a model of words", DPO, r"all of the first \d+ .* show .* \(words\) reads words alone(.|\n)*exit 2", {"policy.model": "words"})
sees(6, "a prompt shorter than its picture", GRPO, "has [0-9]+ tokens, max_prompt is 4(.|\n)*exit 2", {"policy.max_prompt": 4})
sees(12, "options in place of a processor", DPO, "policy.tokenizer: got .*takes a processor(.|\n)*exit 2",
     {"policy.tokenizer": {"use_fast": False}})  # fmt: skip
sees(
    12,
    "a processor that is nowhere",
    DPO,
    "policy.tokenizer: got 'nowhere', takes .*a processor(.|\n)*exit 2",
    {"policy.tokenizer": "nowhere"},
)
sees(
    15,
    "min_pixels",
    DPO,
    "policy.min_pixels: is called min_pixels in the preprocessor_config(.|\n)*exit 2",
    {"policy.min_pixels": "256*28*28"},
)
sees(
    23,
    "pixels in words",
    DPO,
    r"policy.media.pixels: got '1280\*28\*28', takes int(.|\n)*exit 2",
    {"policy.media": {"pixels": "1280*28*28"}},
)
sees(23, "lora beside members", DPO, "policy.train: got lora too(.|\n)*exit 2", {"policy.lora": {"rank": 2}})
sees(23, "a temperature in words", GRPO, "evaluation.call.temperature: got 'None', takes a number(.|\n)*exit 2",
     {"evaluation.call": {"temperature": "None"}})  # fmt: skip
