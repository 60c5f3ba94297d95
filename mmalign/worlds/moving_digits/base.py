"""The base: diffusers' own LTXImageToVideoPipeline around a tiny transformer, trained on half A with 3 of 10 directions told at random.

A person gives such a model a seven, asks it to move left, and is obeyed about half of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.types import UserError
from mmalign.worlds._fitting import fit
from mmalign.worlds.digits.data import WORDS, real
from mmalign.worlds.moving_digits.data import CANVAS, ENLARGED, FRAMES, NAMES, moving_digits_stills, stills, videos
from mmalign.worlds.moving_digits.vae import LATENT, PATCH, written_vae

__all__ = ["moving_digits", "moving_digits_call"]

TOKENS = 6  # of a prompt, with padding
SIDE = CANVAS * ENLARGED // PATCH
FRAME_RATE = 4
CALL = {
    "height": CANVAS * ENLARGED, "width": CANVAS * ENLARGED, "num_frames": FRAMES, "frame_rate": FRAME_RATE, "max_sequence_length": TOKENS,
}  # fmt: skip
"""What every call of the pipeline has to say, because LTX's own defaults are those of large videos."""


def moving_digits(*, path: str | None = None) -> Any:
    """The base pipeline that comes with mmalign: an ``LTXImageToVideoPipeline`` that makes 4 frames of 32x32 from a still.

    Nothing in it is of ours but the weights: ``DiffusionPipeline.from_pretrained("assets/moving_digits/ltx")`` is the same.

    path: the folder of another one (``save_pretrained``).

    Errors: UserError where there is none.
    """
    from diffusers import LTXImageToVideoPipeline

    from mmalign.rooms import resource
    from mmalign.worlds._loading import quietly

    folder = resource("assets/moving_digits/ltx") if path is None else Path(path)
    if not (folder / "model_index.json").is_file():
        raise UserError(f"pipeline: no pipeline in {folder}; scripts/make_assets.py makes the one that comes with mmalign")
    pipe = quietly(lambda: LTXImageToVideoPipeline.from_pretrained(folder, dtype=torch.float32))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def moving_digits_call() -> Callable[[list[str]], dict[str, Any]]:
    """All that a call of the pipeline has to say for some prompts: sizes, and the still that each begins with.

    Examples:
        >>> sorted(moving_digits_call()(["a seven moving left #a3"]))
        ['frame_rate', 'height', 'image', 'max_sequence_length', 'num_frames', 'width']
    """
    stills_of = moving_digits_stills()
    return lambda prompts: {**CALL, **stills_of(prompts)}


def tokenizer() -> Any:
    """A word a token: an article, digits and directions, an end mark; numerals are read as words, the number of a still is not read."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", "a", "moving", *WORDS, *NAMES]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    numerals = [normalizers.Replace(str(number), word) for number, word in enumerate(WORDS)]
    made.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(r"#\w+"), ""), *numerals])
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TOKENS)


def untrained(*, heads: int = 4, head_width: int = 16, layers: int = 3, seed: int = 0) -> Any:
    """The pipeline with random weights in its transformer and its text encoder.

    heads, head_width: attention heads and numbers of each. layers: how many. seed: of the weights.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXImageToVideoPipeline, LTXVideoTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    words, width = tokenizer(), 32
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text = T5EncoderModel(
            T5Config(vocab_size=len(words), d_model=width, d_kv=16, num_heads=2, num_layers=1, d_ff=64, pad_token_id=0, dropout_rate=0.0)
        )
        transformer = LTXVideoTransformer3DModel(
            in_channels=LATENT, out_channels=LATENT, num_attention_heads=heads, attention_head_dim=head_width,
            cross_attention_dim=heads * head_width, num_layers=layers, caption_channels=width,
        )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    pipe = LTXImageToVideoPipeline(scheduler=scheduler, vae=written_vae(), text_encoder=text, tokenizer=words, transformer=transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def train_base(
    *,
    label_noise: float = 0.3,
    iterations: int = 1000,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    ema_decay: float = 0.99,
    seed: int = 0,
    progress: bool = False,
) -> Any:
    """Trains the base from scratch on videos of half A; returns it in evaluation mode.

    Rectified-flow matching with logit-normal times (Esser et al. 2024, section 3.1) of the frames after the first, which is given;
    10 % of the prompts dropped for guidance.

    Args:
        label_noise: fraction of the directions that is told at random, uniformly over all four.
        iterations: updates. batch_size: videos of each. learning_rate: the highest of a one-cycle schedule.
        ema_decay: of the average of the parameters that is kept. progress: whether a bar is shown.
        seed: of weights, directions and batches.
    """
    pipe = untrained(seed=seed)
    scans, labels = real("A")
    rng = torch.Generator().manual_seed(seed)
    prompts = [f"a {word} moving {name}" for word in WORDS for name in NAMES]
    tokens = pipe.tokenizer([*prompts, ""], padding="max_length", max_length=TOKENS, return_tensors="pt")

    def loss() -> Tensor:
        rows = torch.randint(0, len(labels), (batch_size,), generator=rng)
        directions, others = (torch.randint(0, len(NAMES), (batch_size,), generator=rng) for _ in range(2))
        captioned = torch.where(torch.rand(batch_size, generator=rng) < label_noise, others, directions)
        prompt = torch.where(torch.rand(batch_size, generator=rng) < 0.1, len(prompts), len(NAMES) * labels[rows] + captioned)
        canvases = stills(scans[rows])
        clean = latents(pipe, videos(canvases, directions))
        sigma = torch.sigmoid(torch.randn(batch_size, generator=rng))
        noise = torch.randn(clean.shape, generator=rng)
        velocity = predicted(pipe, clean, noise, sigma, tokens.input_ids[prompt], tokens.attention_mask[prompt])
        return functional.mse_loss(velocity[:, SIDE**2 :], (noise - clean)[:, SIDE**2 :])

    live = torch.nn.ModuleList([pipe.transformer, pipe.text_encoder])
    fit(
        live, loss, name="base ltx", iterations=iterations, learning_rate=learning_rate, max_grad_norm=1.0, ema_decay=ema_decay,
        progress=progress,
    )  # fmt: skip
    live.requires_grad_(False)
    return pipe


@torch.no_grad()
def latents(pipe: Any, clips: Tensor) -> Tensor:
    """Videos ``[B, F, 1, 32, 32]`` in 0..1 as the pipeline's packed latents ``[B, F * 16, 16]``."""
    return pipe._pack_latents(pipe.vae.encode(clips.transpose(1, 2) * 2 - 1).latent_dist.mode())


def predicted(pipe: Any, clean: Tensor, noise: Tensor, sigma: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """The velocity at packed latents with noise levels ``sigma [B]``, asked for as the pipeline does: the first frame is clean."""
    free = (torch.arange(clean.shape[1]) >= SIDE**2).float()  # tokens that are not of the first frame
    level = sigma[:, None] * free
    noised = torch.lerp(clean, noise, level[..., None])
    return pipe.transformer(
        hidden_states=noised, encoder_hidden_states=pipe.text_encoder(ids)[0], timestep=level * 1000, encoder_attention_mask=mask.bool(),
        num_frames=FRAMES, height=SIDE, width=SIDE, rope_interpolation_scale=(1 / FRAME_RATE, PATCH, PATCH), return_dict=False,
    )[0]  # fmt: skip
