"""The base: a Janus of 0.2 M parameters that writes a digit as 16 codes, one for each 2 x 2 pixels, from captions half of which are wrong.

Its codebook is the class's own, brought to the 32 patches that are nearest to those of half A (k-means): the encoder learns which of them
a patch is, the decoder what the pixels behind 16 of them were. It draws the digit that it is asked for about a third of the time, with
guidance of 3 two thirds; as in ``digits``, half B is the judges'.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.arguments.ranges import Count, Positive, Proportion, Seed
from mmalign.rooms import resource
from mmalign.types import UserError
from mmalign.worlds._fitting import fit
from mmalign.worlds._loading import quietly
from mmalign.worlds.digits.data import PROMPTS, WORDS, real

__all__ = ["token_digits"]

CODES, SIDE = 32, 4  # of the codebook, and of a picture
WIDTH, CONTEXT = 64, 32
SPECIAL = {"boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image>"}


def token_digits(*, path: str | None = None, device: str = "cpu") -> tuple[Any, Any]:
    """(model, tokenizer): a Janus that writes 8 x 8 digits as 16 codes, for ``image_tokens``, from assets/token_digits.

    Prompts are those of ``digit_prompts``. path: the folder of another one.

    Errors: UserError where there is none.
    """
    from transformers import AutoTokenizer, JanusForConditionalGeneration

    folder = resource("assets/token_digits") if path is None else Path(path)
    if not (folder / "config.json").is_file():
        raise UserError(f"token_digits: no model in {folder}; takes a folder of one, or none: scripts/make_assets.py token_digits makes it")
    model = quietly(lambda: JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32))
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder)


def tokenizer() -> Any:
    """A word a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<bos>", "<unk>", "<eos>", *SPECIAL.values(), "a", "handwritten", *WORDS]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", unk_token="<unk>", eos_token="<eos>", model_max_length=CONTEXT,
        extra_special_tokens=SPECIAL,
    )  # fmt: skip


def untrained(*, seed: Seed = 0) -> tuple[Any, Any]:
    """The same with random weights.

    seed: of the weights.
    """
    from transformers import JanusConfig, JanusForConditionalGeneration, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig

    words = tokenizer()
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=CONTEXT, pad_token_id=words.pad_token_id, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )  # fmt: skip
    seeing = JanusVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=2, projection_dim=WIDTH, mlp_ratio=1.0,
        num_image_tokens=SIDE**2, num_channels=1,
    )  # fmt: skip
    codebook = JanusVQVAEConfig(
        embed_dim=8, num_embeddings=CODES, latent_channels=32, in_channels=1, out_channels=1, base_channels=32, channel_multiplier=[1, 1],
        num_res_blocks=1, projection_dim=WIDTH, image_token_embed_dim=WIDTH,
    )  # fmt: skip
    config = JanusConfig(
        text_config=text, vision_config=seeing, vq_config=codebook, image_token_id=words.image_token_id, tie_word_embeddings=False
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return JanusForConditionalGeneration(config), words


def patches(images: Tensor) -> Tensor:
    """``[N, 1, 8, 8]`` -> ``[N, 16, 4]``, line by line."""
    return nn.functional.unfold(images, 2, stride=2).transpose(1, 2)


def centres(points: Tensor, count: int, *, rounds: int = 30) -> Tensor:
    """k-means (Lloyd 1982) of ``[N, D]`` from every N / count-th of the sorted points: ``[count, D]``."""
    order = points[points.sum(1).argsort()]
    means = order[torch.linspace(0, len(order) - 1, count).long()]
    for _ in range(rounds):
        near = torch.cdist(points, means).argmin(1)
        means = torch.stack([points[near == number].mean(0) if bool((near == number).any()) else means[number] for number in range(count)])
    return means


def train_codebook(model: Any, *, iterations: int, rng: torch.Generator, progress: bool = False) -> Tensor:
    """Trains a model's codebook on half A; returns the codes of its images, ``[N, 16]``."""
    vq, (images, _) = model.model.vqmodel, real("A")
    flat = patches(images)
    codes = torch.cdist(flat, centres(flat.flatten(0, 1), CODES).expand(len(flat), -1, -1)).argmin(2)
    with torch.no_grad():
        nn.init.orthogonal_(vq.quantize.embedding.weight)
        vq.quantize.embedding.weight.copy_(nn.functional.normalize(vq.quantize.embedding.weight, dim=-1))
    vq.quantize.embedding.requires_grad_(False)

    def loss() -> Tensor:
        rows = torch.randint(len(images), (32,), generator=rng)
        pixels, wanted = images[rows] * 2 - 1, codes[rows]
        seen = vq.quant_conv(vq.encoder(pixels)).permute(0, 2, 3, 1).flatten(1, 2)
        apart = torch.cdist(seen, vq.quantize.embedding.weight.expand(len(rows), -1, -1)).square()
        read = nn.functional.cross_entropy(-4 * apart.flatten(0, 1), wanted.flatten())
        return read + nn.functional.mse_loss(vq.decode(wanted), pixels)

    parts = nn.ModuleList([vq.encoder, vq.quant_conv, vq.post_quant_conv, vq.decoder])
    fit(parts, loss, name="codebook", iterations=iterations, learning_rate=3e-3, progress=progress)
    return codes


def train_base(
    *, label_noise: Proportion = 0.5, iterations: Count = 900, learning_rate: Positive = 3e-3, seed: Seed = 0, progress: bool = False
) -> tuple[Any, Any]:
    """Trains the base from scratch on half A, a minute or two on a core: its codebook, and then the likelihood of codes.

    label_noise: fraction of the labels that is redrawn once, uniformly over all ten digits. iterations: updates of each of both.
    learning_rate: the highest of a one-cycle schedule. seed: of weights, labels and batches. progress: whether a bar is shown. One prompt
    of ten is taken away, for guidance.
    """
    model, words = untrained(seed=seed)
    rng = torch.Generator().manual_seed(seed)
    codes, (_, labels) = train_codebook(model, iterations=iterations * 2 // 3, rng=rng, progress=progress), real("A")
    noisy = torch.rand(len(labels), generator=rng) < label_noise
    labels = torch.where(noisy, torch.randint(0, 10, labels.shape, generator=rng), labels)
    prompts = torch.tensor([[*words(prompt)["input_ids"], words.boi_token_id] for prompt in PROMPTS])
    parts = model.model

    def loss() -> Tensor:
        rows = torch.randint(len(codes), (64,), generator=rng)
        ids = prompts[labels[rows]]
        free = torch.rand(len(rows), 1, generator=rng) < 0.1
        ids = torch.where(free & (ids != words.boi_token_id), words.pad_token_id, ids)
        inputs = [parts.get_input_embeddings()(ids), model.prepare_embeddings_for_image_generation(codes[rows, :-1])]
        states = parts.language_model(inputs_embeds=torch.cat(inputs, dim=1)).last_hidden_state[:, -codes.shape[1] :]
        return nn.functional.cross_entropy(parts.generation_head(states).flatten(0, 1), codes[rows].flatten())

    live = [parts.language_model, parts.generation_embeddings, parts.generation_aligner, parts.generation_head]
    fit(
        nn.ModuleList(live), loss, name="token_digits base", iterations=iterations, learning_rate=learning_rate, weight_decay=0.05,
        betas=(0.9, 0.98), max_grad_norm=1.0, ema_decay=0.99, progress=progress,
    )  # fmt: skip
    return model.eval(), words
