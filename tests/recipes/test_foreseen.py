"""What data say of a policy before its weights are there: a config is refused then, and a run from Python before its first step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mmalign as mm
from mmalign.config import build
from mmalign.policies.language.models import loading
from mmalign.policies.twins import visions
from mmalign.records import Pair
from mmalign.rooms import resource
from mmalign.types import UserError
from tests.helpers import tiny_text

PLACE = Path(str(resource("assets/pictures")))
PICTURES = str(PLACE / "pairs.jsonl")
UNPICTURED = "none of the first 256 prompts shows an image or a video, and the method compares answers with"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a model of words, one of a model that sees, and data; whoever would read weights fails."""
    tiny_text.model("llama").save_pretrained(tmp_path / "words")
    tiny_text.tokenizer(tiny_text.CHATML).save_pretrained(tmp_path / "words")
    model, processor = visions.twin("LlavaForConditionalGeneration")
    model.save_pretrained(tmp_path / "sees")
    processor.save_pretrained(tmp_path / "sees")
    pairs = [{"prompt": f"what is {number}?", "chosen": "a", "rejected": "b"} for number in range(4)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

    def never(*_: Any, **__: Any) -> None:
        raise UserError("weights are read")

    for kind in ("AutoModelForCausalLM", "AutoModelForImageTextToText"):
        monkeypatch.setattr(f"transformers.{kind}.from_pretrained", never)
    return tmp_path


def pairs(where: Path, **more: Any) -> dict[str, Any]:
    policy = {"use": "transformers", "model": str(where / "words"), "lora": {"rank": 2}, "max_completion": 8, "device": "cpu"}
    records = {"use": "texts", "path": str(where / "pairs.jsonl")}
    run = {"name": "r", "folder": str(where / "runs")}
    return {"use": "offline", "policy": policy, "records": records, "method": {"use": "dpo"}, "steps": 1, "run": run, **more}


def questions(where: Path, **more: Any) -> dict[str, Any]:
    of_pairs = pairs(where)
    prompts = {"use": "picture_prompts", "path": PICTURES}
    rewards = {"short": {"use": "length", "most": 4, "soft": 2}}
    return {**{key: of_pairs[key] for key in ("policy", "steps", "run")}, "use": "online", "prompts": prompts, "rewards": rewards,
            "method": {"use": "grpo"}, **more}  # fmt: skip


def seeing(where: Path) -> dict[str, Any]:
    return {**pairs(where)["policy"], "model": str(where / "sees")}


def test_data_that_a_model_can_do_nothing_with_are_refused_before_its_weights_are_read(folders: Path) -> None:
    pictures, texts = {"use": "picture_texts", "path": PICTURES}, pairs(folders)["records"]
    asked = {"use": "prompts", "path": str(folders / "words.txt")}
    (folders / "words.txt").write_text("what is it?\nwho?\n")
    drawn = [{"prompt": "a disc", "chosen": str(PLACE / f"0{n}.png"), "rejected": str(PLACE / f"0{n + 1}.png")} for n in range(4)]
    (folders / "drawn.jsonl").write_text("".join(json.dumps(row) + "\n" for row in drawn))
    refused = [
        ("records: all of the first 4 prompts show images or videos, and policy.model", pairs(folders, records=pictures)),
        (f"records: {UNPICTURED}", pairs(folders, policy=seeing(folders), method={"use": "mdpo"})),
        (f"records: {UNPICTURED}", pairs(folders, method={"use": "opa_dpo"}, records=texts)),
        ("prompts: all of the first", questions(folders)),
        (f"prompts: {UNPICTURED}", questions(folders, policy=seeing(folders), prompts=asked, method={"use": "mdpo"})),
        (
            "records.use: pairs reads images or videos, and the policy transformers learns from texts; takes texts, or picture_texts",
            pairs(folders, records={"use": "pairs", "path": str(folders / "drawn.jsonl")}),
        ),
    ]
    for line, config in refused:
        with pytest.raises(UserError) as error:
            build({**config, "batch": {**({"records": 4} if "records" in config else {"prompts": 2, "group": 2})}})
        assert line in str(error.value) and "\n" not in str(error.value)
        assert not (folders / "runs").exists()


def test_what_a_model_can_be_asked_goes_on_to_its_weights(folders: Path) -> None:
    pictures = {"use": "picture_texts", "path": PICTURES}
    rows = [{"prompt": "who?", "chosen": "a", "rejected": "b"}, *map(json.loads, Path(PICTURES).read_text().splitlines())]
    (folders / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows).replace('["', f'["{PLACE}/'))
    mixed = {"use": "picture_texts", "path": str(folders / "mixed.jsonl")}
    for config in (
        pairs(folders),
        pairs(folders, policy=seeing(folders), records=pictures),
        pairs(folders, policy=seeing(folders), records=pictures, method={"use": "mdpo"}),
        pairs(folders, policy=seeing(folders), records=mixed, method={"use": "mdpo"}),
        pairs(folders, records=mixed, batch={"records": len(rows)}),  # those with pictures are put aside, one by one
        questions(folders, policy=seeing(folders)),
    ):
        with pytest.raises(UserError, match=r"^policy: weights are read"):
            build(config)


def test_a_processor_without_a_template_is_refused_unless_prompts_are_to_be_bare(folders: Path) -> None:
    """Before the weights are read; transformers keeps the template in a file of its own, which is what gets lost."""
    (folders / "sees" / "chat_template.jinja").unlink()
    config = pairs(folders, policy=seeing(folders), records={"use": "picture_texts", "path": PICTURES})
    with pytest.raises(
        UserError, match=r"policy\.template: LlavaProcessor has no chat template .*; takes false for a model that is asked so"
    ):
        build(config)
    with pytest.raises(UserError, match=r"^policy: weights are read"):
        build({**config, "policy": {**seeing(folders), "template": False}})
    model, processor = visions.twin("PaliGemmaForConditionalGeneration")
    with pytest.raises(UserError, match=r"policy\.template: PaliGemmaProcessor has no chat template"):
        mm.policies.transformers(model, processor)
    assert not mm.policies.transformers(model, processor, template=False, device="cpu").chat.template
    processor.tokenizer.chat_template = tiny_text.CHATML
    assert mm.policies.transformers(model, processor, device="cpu").chat.template  # the tokenizer's will do


def test_whether_a_model_sees_is_told_by_its_config_alone(folders: Path) -> None:
    told = {name: loading.foresees({"model": str(folders / name)}) for name in ("words", "sees", "nowhere")}
    assert told == {"words": False, "sees": True, "nowhere": None}
    assert loading.foresees({"model": "x.gguf"}) is False and loading.foresees({"model": object()}) is None
    assert loading.foresees({"model": str(folders / "sees"), "trust_remote_code": True}) is None


def test_a_run_from_python_is_refused_before_its_first_step(tmp_path: Path) -> None:
    policy = mm.policies.transformers(*visions.twin("LlavaForConditionalGeneration"), device="cpu", max_completion=4)
    run = mm.RunSettings(name="r", folder=str(tmp_path))
    with pytest.raises(UserError, match=f"records: {UNPICTURED}"):
        mm.offline(policy, [Pair("who?", "a", "b")], mm.methods.mdpo(), steps=1, run=run)
    with pytest.raises(UserError, match=f"prompts: {UNPICTURED}"):
        mm.online(policy, ["who?"], {"short": lambda outputs, prompts: [0.0] * len(prompts)}, mm.methods.mdpo(), steps=1, run=run)
    assert list(tmp_path.iterdir()) == []
