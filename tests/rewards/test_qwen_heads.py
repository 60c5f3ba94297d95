"""HPSv3 and VideoReward: transformers asked directly, adapters merged, numbers normalised, and files that hold something else."""

from __future__ import annotations

import json

import pytest
import torch

import mmalign as mm
from mmalign.rewards._models.qwen_head import QwenHead, fitting, merged
from mmalign.types import UserError
from tests.helpers.tiny_models import NORMS, PROMPTS, READS, images, videos


def hpsv3(models, **more):
    files = {"weights": str(models / "hpsv3.safetensors"), "base": str(models / "qwen"), "instruction": str(models / "hpsv3.txt")}
    return mm.rewards.hpsv3(**{**files, "pixels": 32 * 32, "dtype": "float32", "device": "cpu", **more})


def video(models, **more):
    files = {"weights": str(models / "video_reward.pth"), "config": str(models / "model_config.json"), "base": str(models / "qwen")}
    files["instruction"] = str(models / "video_reward.txt")
    return mm.rewards.video_reward(**{**files, "pixels": (16 * 16, 16 * 24), "dtype": "float32", "device": "cpu", **more})


def backbone(models, state):
    """Qwen2-VL in transformers with these weights, and its tokenizer with the tokens that rewards read."""
    from transformers import AutoConfig, AutoTokenizer, Qwen2VLModel

    model = Qwen2VLModel(AutoConfig.from_pretrained(models / "qwen")).eval()
    own = {name.removeprefix("model."): value for name, value in state.items() if not name.startswith(("lm_head", "rm_head"))}
    model.load_state_dict({name if name.startswith("visual.") else f"language_model.{name}": value for name, value in own.items()})
    return model, AutoTokenizer.from_pretrained(models / "qwen")


def test_patches_are_those_of_qwen2_vl():
    from transformers import Qwen2VLImageProcessor

    size = {"shortest_edge": 16 * 24, "longest_edge": 16 * 24}
    process = Qwen2VLImageProcessor(patch_size=4, merge_size=2, temporal_patch_size=2, size=size)
    head = QwenHead(None, None, [], [], "", 4, 2, 2)
    exact = images(16, 24)[1]
    theirs = process(images=[(exact * 255).round().byte().permute(1, 2, 0).numpy()], return_tensors="pt", do_convert_rgb=False)
    ours, grid = head.patches(exact[None], (16 * 24, 16 * 24))
    assert grid.tolist() == theirs["image_grid_thw"][0].tolist() == [1, 4, 6]
    assert torch.allclose(ours, theirs["pixel_values"], atol=1e-5)


@pytest.mark.parametrize("shape", [(48, 40), (7, 200), (500, 30), (28, 28), (1000, 1000)])
def test_sizes_are_those_of_qwen2_vl(shape):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    for least, most in ((32 * 32, 32 * 32), (56 * 56, 100 * 100), (1, 10**6)):
        assert fitting(*shape, unit=8, least=least, most=most) == tuple(smart_resize(*shape, factor=8, min_pixels=least, max_pixels=most))


def test_hpsv3_is_its_head_on_the_state_of_its_token(models):
    from safetensors.torch import load_file

    state = load_file(models / "hpsv3.safetensors")
    model, words = backbone(models, state)
    words.add_tokens(READS["hpsv3"], special_tokens=True)
    picture = images(32, 32)[1]
    patches, grid = QwenHead(None, None, [], [], "", 4, 2, 2).patches(picture[None], (1024, 1024))
    text = f"user <|vision_start|>{'<|image_pad|>' * 16}<|vision_end|> rate a red fox {{}} fox <|Reward|>"
    ids = words(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        hidden = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=patches, image_grid_thw=grid[None],
            mm_token_type_ids=(ids == 1).long(),
        ).last_hidden_state[0, -1]  # fmt: skip
        for place in (0, 3, 5):
            hidden = state[f"rm_head.{place}.weight"] @ (hidden.relu() if place else hidden) + state[f"rm_head.{place}.bias"]
    assert hpsv3(models)(picture[None], ["a red fox"]).item() == pytest.approx(hidden[0].item(), abs=1e-4)
    parts = hpsv3(models, apart=True)(picture[None], ["a red fox"])
    assert {name: values.item() for name, values in parts.items()} == pytest.approx(
        {"mu": hidden[0].item(), "sigma": hidden[1].item()}, abs=1e-4
    )
    half = hpsv3(models, dtype="bfloat16")(picture[None], ["a red fox"])
    assert half.dtype == torch.float32 and half.item() == pytest.approx(hidden[0].item(), abs=0.3)


def test_newer_names_of_the_same_tensors_are_understood(models, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(models / "hpsv3.safetensors")
    assert any(value.data_ptr() % 64 for value in state.values())  # where a file is mapped, tensors lie where its header lets them
    renamed = {}
    for name, value in state.items():
        body = name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name
        renamed[f"model.{body}" if name.startswith("visual.") else body] = value
    for length in (0, 8, 24):  # of the header, by which tensors are moved
        save_file(renamed, tmp_path / "new.safetensors", metadata={"about": "-" * length})
        assert torch.equal(hpsv3(models, weights=str(tmp_path / "new.safetensors"))(images(), PROMPTS), hpsv3(models)(images(), PROMPTS))


def test_video_reward_is_the_sum_of_three_normalised_numbers(models):
    apart = video(models, apart=True)(videos(), PROMPTS[:2])
    raw = video(models, apart=True, normalise=False)(videos(), PROMPTS[:2])
    for part in ("VQ", "MQ", "TA"):
        assert apart[part].tolist() == pytest.approx(((raw[part] - NORMS[f"{part}_mean"]) / NORMS[f"{part}_std"]).tolist(), abs=1e-5)
    assert video(models)(videos(), PROMPTS[:2]).tolist() == pytest.approx(sum(apart.values()).tolist(), abs=1e-5)
    assert len({round(float(values[0]), 4) for values in raw.values()}) == 3
    other = video(models, stride=2, normalise=False)(videos(), PROMPTS[:2])
    assert other.tolist() == pytest.approx(video(models, normalise=False)(videos()[:, ::2], PROMPTS[:2]).tolist(), abs=1e-5)


def test_adapters_are_merged_as_peft_does(models):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    for stabilised in (False, True):
        net = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Linear(5, 1))
        net = get_peft_model(net, LoraConfig(target_modules=["0"], modules_to_save=["1"], r=4, lora_alpha=8, use_rslora=stabilised))
        for name, value in net.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                torch.nn.init.normal_(value)
        state = merged("x", net.state_dict(), alpha=8, stabilised=stabilised)
        assert sorted(state) == ["0.bias", "0.weight", "1.bias", "1.weight"]
        x = torch.rand(3, 6)
        wanted = net(x)
        assert torch.allclose((x @ state["0.weight"].T + state["0.bias"]) @ state["1.weight"].T + state["1.bias"], wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"instruction": "nowhere.txt"}, r"hpsv3\.instruction: no such file: nowhere\.txt"),
        ({"base": "./nowhere"}, r"hpsv3\.base: got '\./nowhere'"),
        ({"dtype": "float16"}, r"hpsv3\.dtype: got 'float16'"),
        ({"weights": "head.pth"}, r"hpsv3\.weights: weights of another model: language_model\.embed_tokens\.weight is missing"),
        ({"base": "clip"}, r"hpsv3\.base: got a clip, takes a Qwen2-VL"),
        ({"instruction": "model_config.json"}, r"hpsv3\.instruction: .*takes \{prompt\} and <\|Reward\|>, each once"),
        ({"sha256": "0" * 64}, "takes 0000"),
    ],
)
def test_other_files_are_refused(models, change, says):
    change = {key: str(models / value) if (models / value).exists() else value for key, value in change.items()}
    with pytest.raises(UserError, match=says) as caught:
        hpsv3(models, **change)
    assert "\n" not in str(caught.value)


def test_a_prompt_that_holds_the_token_is_refused(models):
    with pytest.raises(UserError, match="the prompt has 2 of the 1 tokens that the head reads"):
        hpsv3(models)(images()[:1], ["a <|Reward|> fox"])


def test_video_settings_are_checked(models, tmp_path):
    file = tmp_path / "model_config.json"
    file.write_text(json.dumps({"inference_config": {**NORMS, "MQ_std": 0.0}}))
    with pytest.raises(UserError, match=r"video_reward\.config: .*takes inference_config with VQ_mean"):
        video(models, config=str(file))
    file.write_text(json.dumps({"inference_config": NORMS}))
    with pytest.raises(UserError, match=r"video_reward: got stride=1, pixels=\(100352, 0\)"):
        video(models, config=str(file), pixels=None)
