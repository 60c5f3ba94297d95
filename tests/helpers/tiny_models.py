"""Tiny random models in the formats in which rewards are published, and the images and prompts of their golden scores.

python tests/helpers/tiny_models.py      # writes golden.json anew; look at the difference before you keep it
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor

GOLDEN = Path(__file__).with_name("golden.json")
SIDE, MEAN, STD = 32, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
PROMPTS = ["a red fox", "two blue birds on a wire", 'a sign that says "open"', "a red fox"]
OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def images(height: int = 48, width: int = 40) -> Tensor:
    """Four pictures ``[4, 3, height, width]`` of whole 8-bit numbers in 0..1: ramps, stripes, a disc, squares."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    disc = ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.08).float()
    squares = ((x * 8).floor() + (y * 8).floor()) % 2
    pictures = [
        torch.stack([x, y, 1 - x]),
        torch.stack([(torch.sin(20 * x) + 1) / 2, (torch.cos(15 * y) + 1) / 2, x * y]),
        torch.stack([disc, 0.3 + 0 * x, 1 - disc]),
        torch.stack([squares, squares * x, 1 - squares]),
    ]
    return (torch.stack(pictures) * 255).round() / 255


def build(folder: Path) -> None:
    """Writes every model below ``folder``."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _transformers_clip(folder / "clip")
        _open_clip(folder)
        _head(folder / "head.pth")
        _bert(folder / "bert")
        _blip(folder / "image_reward.pt")
        _dino(folder / "dino")
        _jepa(folder / "jepa")
        _owl(folder / "owl", folder / "clip")
        _encoder(folder / "encoder")
        _qwen(folder)


READS = {"hpsv3": ["<|Reward|>"], "video_reward": ["<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"]}
NORMS = {"VQ_mean": 1.0, "VQ_std": 2.0, "MQ_mean": -0.5, "MQ_std": 4.0, "TA_mean": 0.25, "TA_std": 0.5}


def _qwen(folder: Path) -> None:
    """A Qwen2-VL's configuration and tokenizer, and the files of two reward models on it, by their published names."""
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLModel

    plain = ["<|endoftext|>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "user", "a", "red", "fox", "rate"]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(plain)}, unk_token="<|endoftext|>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<|endoftext|>", unk_token="<|endoftext|>", additional_special_tokens=plain[1:5]
    )
    words.chat_template = (
        "{% for turn in messages %}user {% for part in turn['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}"
        "<|vision_start|><|{{ part['type'] }}_pad|><|vision_end|> {% endif %}{% endfor %}{% endfor %}"
    )
    words.save_pretrained(folder / "qwen")
    text = {
        "vocab_size": 16, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 256, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4, "spatial_merge_size": 2}
    ids = {"image_token_id": 1, "video_token_id": 2, "vision_start_token_id": 3, "vision_end_token_id": 4}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
    config.save_pretrained(folder / "qwen")
    state = {name.replace("language_model.", "model."): value for name, value in _loud(Qwen2VLModel(config)).state_dict().items()}
    state["lm_head.weight"] = torch.zeros(16, 32)
    head = {f"rm_head.{place}.{kind}": torch.randn(shape) * 0.3 for place, wide, deep in ((0, 32, 8), (3, 8, 4), (5, 4, 2))
            for kind, shape in (("weight", (deep, wide)), ("bias", (deep,)))}  # fmt: skip
    save_file({name: value.contiguous() for name, value in {**state, **head}.items()}, folder / "hpsv3.safetensors")
    adapted = {f"base_model.model.{name}": value for name, value in state.items()}
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    adapted[f"{stem}.base_layer.weight"] = adapted.pop(f"{stem}.weight")
    adapted[f"{stem}.base_layer.bias"] = adapted.pop(f"{stem}.bias")
    adapted |= {f"{stem}.lora_A.default.weight": torch.randn(4, 32), f"{stem}.lora_B.default.weight": torch.randn(32, 4) * 0.3}
    heads = {"modules_to_save.default": torch.randn(1, 32), "original_module": torch.zeros(1, 32)}
    adapted |= {f"base_model.model.rm_head.{name}.weight": value for name, value in heads.items()}
    torch.save(adapted, folder / "video_reward.pth")
    facts = {"inference_config": NORMS, "peft_lora_config": {"lora_alpha": 8}, "data_config": {"max_frame_pixels": 128 * 28 * 28}}
    (folder / "model_config.json").write_text(json.dumps(facts))
    for name, tokens in READS.items():
        (folder / f"{name}.txt").write_text(f"rate {{text_prompt}} {{}} fox {' a '.join(tokens)}")


def _dino(folder: Path) -> None:
    from transformers import ViTConfig, ViTModel

    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    _loud(ViTModel(ViTConfig(**size, image_size=SIDE, patch_size=8), add_pooling_layer=False)).save_pretrained(folder)
    facts = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": SIDE, "width": SIDE}, "do_resize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps({**facts, "image_processor_type": "ViTImageProcessor"}))


def _jepa(folder: Path) -> None:
    from transformers import VJEPA2Config, VJEPA2Model

    config = VJEPA2Config(
        patch_size=8, crop_size=16, frames_per_clip=8, tubelet_size=2, hidden_size=24, num_attention_heads=2, num_hidden_layers=1,
        pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1, pred_num_mask_tokens=2,
    )  # fmt: skip
    _loud(VJEPA2Model(config)).save_pretrained(folder)


def _owl(folder: Path, clip: Path) -> None:
    from transformers import CLIPTokenizer, OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor, OwlViTProcessor

    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = CLIPTokenizer.from_pretrained(clip, model_max_length=40)
    text = {**size, "vocab_size": len(words), "max_position_embeddings": 40, "pad_token_id": words.pad_token_id}
    vision = {**size, "image_size": SIDE, "patch_size": 8}
    _loud(OwlViTForObjectDetection(OwlViTConfig(text_config=text, vision_config=vision, projection_dim=32))).save_pretrained(folder)
    pictures = OwlViTImageProcessor(size={"height": SIDE, "width": SIDE})
    OwlViTProcessor(image_processor=pictures, tokenizer=words).save_pretrained(folder)


def _encoder(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    _bert(folder)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    _loud(BertModel(BertConfig(**size, vocab_size=40, max_position_embeddings=64), add_pooling_layer=False)).save_pretrained(folder)


def _loud(model: torch.nn.Module) -> torch.nn.Module:
    """The same with weights large enough that scores differ: the usual initial ones make every score nearly the same."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def _transformers_clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    end = len(words) - 1
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"vocab_size": len(words), "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    text = {**size, **tokens, "max_position_embeddings": 77}
    vision = {**size, "image_size": SIDE, "patch_size": 8}
    _loud(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))).save_pretrained(folder)
    CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[]).save_pretrained(folder)
    facts = {
        "crop_size": {"height": SIDE, "width": SIDE}, "size": {"shortest_edge": SIDE}, "image_mean": MEAN, "image_std": STD,
        "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255,
        "do_convert_rgb": True, "image_processor_type": "CLIPImageProcessor",
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))


def _open_clip(folder: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    (folder / "tiny-hps.json").write_text(json.dumps(OPEN_CLIP))
    open_clip.add_model_config(folder / "tiny-hps.json")
    state = open_clip.create_model("tiny-hps").state_dict()
    (folder / "open_clip").mkdir()
    facts = {"model_cfg": OPEN_CLIP, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (folder / "open_clip" / "open_clip_config.json").write_text(json.dumps(facts))
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "open_clip" / "open_clip_model.safetensors")
    torch.save({"epoch": 1, "state_dict": state}, folder / "hps.pt")  # as HPSv2 is published


def _head(path: Path) -> None:
    widths = {0: (16, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
    state = {}
    for number, (inside, outside) in widths.items():
        state[f"layers.{number}.weight"] = torch.randn(outside, inside) * inside**-0.5
        state[f"layers.{number}.bias"] = torch.randn(outside) * 0.1
    torch.save(state, path)


def _bert(folder: Path) -> None:
    from transformers import BertTokenizer

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *sorted({word for prompt in PROMPTS for word in prompt.replace('"', " ").split()}),
    ]
    BertTokenizer(vocab={word: number for number, word in enumerate(words)}).save_pretrained(folder)


def _blip(path: Path, width: int = 128, hidden: int = 64) -> None:
    """ImageReward's parameters by their published names: two blocks that see, one layer that reads, five that score."""
    eye, text, shapes = "blip.visual_encoder", "blip.text_encoder", {}

    def layer(name: str, outside: int, inside: int) -> None:
        shapes.update({f"{name}.weight": (outside, inside), f"{name}.bias": (outside,)})

    def norm(name: str, size: int) -> None:
        shapes.update({f"{name}.weight": (size,), f"{name}.bias": (size,)})

    shapes.update({f"{eye}.cls_token": (1, 1, width), f"{eye}.pos_embed": (1, 17, width)})
    shapes.update({f"{eye}.patch_embed.proj.weight": (width, 3, 8, 8), f"{eye}.patch_embed.proj.bias": (width,)})
    for block in (f"{eye}.blocks.0", f"{eye}.blocks.1"):
        layer(f"{block}.attn.qkv", 3 * width, width), layer(f"{block}.attn.proj", width, width)
        layer(f"{block}.mlp.fc1", 2 * width, width), layer(f"{block}.mlp.fc2", width, 2 * width)
        norm(f"{block}.norm1", width), norm(f"{block}.norm2", width)
    norm(f"{eye}.norm", width)
    shapes.update(
        {f"{text}.embeddings.word_embeddings.weight": (30, hidden), f"{text}.embeddings.position_embeddings.weight": (40, hidden)}
    )
    norm(f"{text}.embeddings.LayerNorm", hidden)
    for kind, source in (("attention", hidden), ("crossattention", width)):
        name = f"{text}.encoder.layer.0.{kind}"
        layer(f"{name}.self.query", hidden, hidden), layer(f"{name}.self.key", hidden, source), layer(f"{name}.self.value", hidden, source)
        layer(f"{name}.output.dense", hidden, hidden), norm(f"{name}.output.LayerNorm", hidden)
    layer(f"{text}.encoder.layer.0.intermediate.dense", 2 * hidden, hidden)
    layer(f"{text}.encoder.layer.0.output.dense", hidden, 2 * hidden), norm(f"{text}.encoder.layer.0.output.LayerNorm", hidden)
    layer("blip.vision_proj", 8, width), layer("blip.text_proj", 8, hidden)  # in the file, and of no use
    for number, (inside, outside) in {0: (hidden, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}.items():
        layer(f"mlp.layers.{number}", outside, inside)
    state = {name: torch.randn(shape) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.3) for name, shape in shapes.items()}
    state |= {name: 1 + value for name, value in state.items() if "orm" in name and name.endswith("weight")}
    state[f"{text}.embeddings.word_embeddings.weight"] *= 5  # so that prompts differ
    state[f"{text}.embeddings.position_ids"] = torch.arange(40)[None]
    torch.save(state, path)


def videos() -> Tensor:
    """Two videos ``[2, 8, 3, 24, 20]`` in 0..1: a disc that crosses stripes, and a ramp that fades."""
    t = torch.linspace(0, 1, 8)[:, None, None]
    y, x = torch.meshgrid(torch.linspace(0, 1, 24), torch.linspace(0, 1, 20), indexing="ij")
    disc = ((x - t) ** 2 + (y - 0.5) ** 2 < 0.05).float()
    stripes = (torch.sin(25 * y) + 1).expand(8, -1, -1) / 2
    ramp = x * (1 - 0.7 * t)
    made = [torch.stack([disc, stripes, 1 - disc], dim=1), torch.stack([ramp, ramp * y, 1 - ramp], dim=1)]
    return (torch.stack(made) * 255).round() / 255


def video_rewards(folder: Path) -> dict[str, object]:
    """Every reward on videos."""
    import mmalign as mm

    return {
        "motion": mm.rewards.motion(wanted=0.5),
        "frame_consistency": mm.rewards.frame_consistency(weights=str(folder / "dino"), device="cpu"),
        "feature_prediction": mm.rewards.feature_prediction(weights=str(folder / "jepa"), device="cpu"),
        "video_reward": mm.rewards.video_reward(
            weights=str(folder / "video_reward.pth"), config=str(folder / "model_config.json"), base=str(folder / "qwen"),
            instruction=str(folder / "video_reward.txt"), pixels=(16 * 16, 16 * 24), dtype="float32", device="cpu",
        ),
    }  # fmt: skip


def text_rewards(folder: Path) -> dict[str, object]:
    """Rewards on texts that have weights."""
    import mmalign as mm

    return {"relevance": mm.rewards.relevance(weights=str(folder / "encoder"), closed=(-5.0, 20.0), device="cpu")}


ANSWERS = ["a red fox", "two blue birds on a wire two blue birds on a wire", 'says "open"', ""]
"""Completions of PROMPTS."""


def rewards(folder: Path) -> dict[str, object]:
    """Every reward with weights, loaded as users do from a folder that ``build`` has filled."""
    import mmalign as mm

    return {
        "clip_score": mm.rewards.clip_score(model=f"local-dir:{folder / 'open_clip'}", device="cpu"),
        "hps": mm.rewards.hps(model="tiny-hps", weights=str(folder / "hps.pt"), device="cpu"),
        "pickscore": mm.rewards.pickscore(weights=str(folder / "clip"), processor=str(folder / "clip"), device="cpu"),
        "aesthetic": mm.rewards.aesthetic(weights=str(folder / "clip"), head=str(folder / "head.pth"), device="cpu"),
        "image_reward": mm.rewards.image_reward(weights=str(folder / "image_reward.pt"), tokenizer=str(folder / "bert"), device="cpu"),
        "jpeg": mm.rewards.jpeg(),
        "hpsv3": mm.rewards.hpsv3(
            weights=str(folder / "hpsv3.safetensors"), base=str(folder / "qwen"), instruction=str(folder / "hpsv3.txt"), pixels=32 * 32,
            dtype="float32", device="cpu",
        ),
    }  # fmt: skip


def golden(folder: Path) -> dict[str, list[float]]:
    """Every reward's scores, from a folder that ``build`` has filled."""
    scores_of = {name: reward(images(), PROMPTS) for name, reward in rewards(folder).items()}
    scores_of |= {name: reward(videos(), PROMPTS[:2]) for name, reward in video_rewards(folder).items()}
    scores_of |= {name: reward(ANSWERS, PROMPTS) for name, reward in text_rewards(folder).items()}
    return {name: [round(float(value), 6) for value in scores] for name, scores in scores_of.items()}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        build(Path(place))
        GOLDEN.write_text(json.dumps(golden(Path(place)), indent=1) + "\n")
    print(GOLDEN.read_text())
