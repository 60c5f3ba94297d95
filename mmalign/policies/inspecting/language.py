"""What a language or vision-language model is to mmalign: its special tokens, token by token, what is trained, whether replay is exact."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mmalign.policies.inspecting.inspection import Inspection, InspectionRow
from mmalign.policies.language.codes.families import FAMILIES
from mmalign.policies.language.codes.image_tokens import image_tokens
from mmalign.policies.language.models.gguf import is_gguf
from mmalign.policies.language.models.loading import has_template, load, parted
from mmalign.policies.language.models.members import members_of
from mmalign.policies.language.prompts.agreement import compared
from mmalign.policies.pipelines.calls.calling import one_line, quiet
from mmalign.policies.settings import Lora
from mmalign.policies.transformers import TransformersPolicy, transformers
from mmalign.policies.twins import texts, visions
from mmalign.types import UserError

ASKED, ANSWER, SYSTEM = "What is red?", "A fox.", "Be brief."
THOUGHT = "<think>\nFoxes are.\n</think>\n\nA fox."
SHOWN = 12  # names of tokens in a row
ENDINGS = (*texts.CAUSAL, "ForConditionalGeneration")


def is_language(model: str) -> bool:
    """Whether a name is that of a language model: a class of transformers, a folder or a GGUF file of one, or a hub id that begins as a
    family's do."""
    if is_gguf(model):
        return True
    if Path(model).is_dir():
        return (Path(model) / "config.json").is_file() and not (Path(model) / "model_index.json").is_file()
    last = model.rpartition("/")[2].lower()
    return model.endswith(ENDINGS) or ("/" in model and any(last.startswith(start) for start in texts.FAMILIES))


def language_model(model: str, *, dtype: str | None = None) -> tuple[Any, Any]:
    """A model and its tokenizer or processor: by hub id, folder, or class, of which a tiny twin is made. Errors: UserError."""
    if model.isidentifier() and not Path(model).exists():
        return visions.twin(model) if model in visions.classes() else texts.twin(model)
    return load(model, dtype=dtype, template=False)  # one without a template is shown as it is


@quiet()
def language_inspection(model: Any, reader: Any, *, node: Any = "", loaded: bool = False, device: str | None = None) -> Inspection:
    """Looks at a model with its tokenizer or processor; it gets a LoRA on the way, and is of no other use afterwards.

    node: how a config names it. loaded: its tensors were compared with those of its files. device: where to try; a GPU if there is one.
    Errors: UserError for a model that is no policy: without an end of text, or that does not answer a tiny batch.
    """
    count = sum(p.numel() for p in model.parameters())
    members = {name: sum(model.get_parameter(one).numel() for one in names) for name, names in members_of(model).items()}
    tensors, there = len(model.state_dict()), ", all of them in its files" if loaded else ""
    words, processor = parted(reader)
    bare = processor is not None and not has_template(words, processor)
    policy = transformers(model, reader, lora=Lora(rank=4), max_completion=8, device=device, template=False if bare else None)
    rows = [
        InspectionRow("model", f"{type(model).__name__}, {count / 1e6:.3g} M parameters, {tensors} tensors{there}"),
        InspectionRow("members", ", ".join(f"{name} ({size / 1e6:.3g} M)" for name, size in members.items())),
        InspectionRow("reads with", f"{type(reader).__name__}, {len(words)} tokens"),
    ]

    def tell(name: str, find: Callable[[], str]) -> None:
        try:
            rows.append(InspectionRow(name, find()))
        except (UserError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            rows.append(InspectionRow(name, one_line(error), failed=True))

    chat = policy.chat
    system = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": ASKED}]
    writer = "tokenizer" if chat.writer is words else "processor"
    tell("template", lambda: f"of the {writer}" if chat.template else "none: prompts are texts")
    tell("ends with", lambda: _names(words, chat.stops))
    tell("never says", lambda: _names(words, chat.never))
    tell("prompt", lambda: _tokens(words, chat.prompt(ASKED).ids))
    tell("answer", lambda: _answer(policy))
    tell("as transformers makes it", lambda: str(compared(chat, ASKED, ANSWER)))
    if chat.template:
        tell("with a system turn", lambda: str(compared(chat, system, ANSWER)))
    tell("with reasoning", lambda: str(compared(chat, ASKED, THOUGHT)))
    if chat.vision is not None and "image" in chat.vision.tokens:
        tell("with a picture", lambda: str(compared(chat, _pictured(policy), ANSWER)))
    tell("fast ways", lambda: "; ".join(policy.fit.remarks) or "prompts shared by their rows, head apart from the rest")
    tell("replay", lambda: _replay(policy))
    if type(model).__name__ in FAMILIES:
        tell("images", lambda: _images(policy))
    tell("gradient", lambda: _gradient(policy))
    return Inspection(type(model).__name__, tuple(rows), starting_yaml(model, node=node, bare=bare))


def _names(words: Any, ids: Sequence[int]) -> str:
    first_names = ", ".join(words.convert_ids_to_tokens(list(ids[:SHOWN])))
    return (first_names + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")) or "nothing"


def _tokens(words: Any, ids: Sequence[int]) -> str:
    return f"{len(ids)}: {' '.join(map(repr, words.convert_ids_to_tokens(list(ids))))}"


def _answer(policy: TransformersPolicy) -> str:
    row = policy.chat.row(ASKED, ANSWER)
    names = policy.chat.tokenizer.convert_ids_to_tokens(row.completion)
    marked_names = (repr(name) if counts else f"({name!r})" for name, counts in zip(names, row.trained, strict=True))
    return f"{sum(row.trained)} trained: {' '.join(marked_names)}"


def _pictured(policy: TransformersPolicy) -> list[dict[str, Any]]:
    """A question about a small picture."""
    vision = policy.chat.vision
    height, width = (48, 40) if vision is None else (vision.height, vision.width)
    picture = torch.linspace(0, 1, 3 * height * width).view(3, height, width)
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": ASKED}]}]


def _replay(policy: TransformersPolicy) -> str:
    rollout = policy.sample([ASKED], 2, torch.Generator().manual_seed(0))
    worst = rollout.metrics["engine_difference_max"]
    return f"what is sampled is scored within {worst:.2g} nats a token (allowed: {policy.tolerance:g})"


def _images(policy: TransformersPolicy) -> str:
    """The smallest that a model makes."""
    step = getattr(policy.model.config.vq_config, "channel_multiplier", ())
    side = 2 ** (len(step) - 1)
    size = None if type(policy.model).__name__ == "JanusForConditionalGeneration" else [side, side]
    images = image_tokens(policy, size=size)
    rollout = images.sample([ASKED], 2, torch.Generator().manual_seed(0))
    worst, shape = rollout.metrics["engine_difference_max"], " x ".join(map(str, images.layout.shape))
    return f"{shape} as {len(images.layout.places)} codes of {images.layout.codes}, scored within {worst:.2g} nats a code"


def _gradient(policy: TransformersPolicy) -> str:
    sees = policy.chat.vision is not None and "image" in policy.chat.vision.tokens
    rollout = policy.encode([_pictured(policy) if sees else ASKED], [ANSWER], torch.zeros(1, dtype=torch.int64), torch.Generator())
    policy.steps(rollout, torch.arange(1)).log_probs.sum().backward()
    live = {name: p.grad for name, p in policy.parameters().items() if "lora_A" not in name}  # B is zero at first, so A has none
    reached = sum(grad is not None and bool(grad.norm() > 0) for grad in live.values())
    if not reached:
        raise UserError("reaches nothing that is trained")
    return f"reaches {reached} of {len(live)} LoRA layers"


def starting_yaml(model: Any, *, node: Any, bare: bool = False) -> str:
    """A config to start from; ``mmalign check`` passes on it. bare: its processor has no chat template."""
    name = "".join(c if c.isalnum() else "-" for c in type(model).__name__.lower())
    lines = [
        f"# A start for {type(model).__name__}, from `mmalign inspect`. Put your prompts and reward in, then check and train.",
        *(["# It makes images too: `policy: {use: image_tokens, of: ...}` around this one."] if type(model).__name__ in FAMILIES else []),
        "use: online",
        "policy:",
        "  use: transformers",
        f"  model: {json.dumps(node)}",
        "  lora: {rank: 16}",
        "  max_completion: 128",
        *(["  template: false   # its processor has none, and prompts go in as they are"] if bare else []),
        "method: {use: grpo, beta: 0.01}",
        "prompts: [Name three red animals., Say why the sky is blue.]",
        "steps: 100",
        "batch: {prompts: 2, group: 8, micro_rows: 4}",
        "optimizer: {use: adamw, rate: 1.0e-5}",
        "rewards:",
        "  short: {use: length, most: 60, soft: 30}   # in place of your own: {use: my_module.my_reward}",
        "evaluation: {every: 10, samples: 4}",
        f"run: {{name: {name}}}",
    ]
    return "\n".join(lines) + "\n"
