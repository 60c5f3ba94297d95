"""GRPO updates of small vision-language models, side by side with TRL: tokens per second and peak memory.

    pip install trl==1.16.0                         # the peer; no part of mmalign needs it
    python scripts/bench/vlm.py                     # both models
    python scripts/bench/vlm.py qwen2_vl --steps 3

All sides train the same LLaVA or Qwen2-VL (language model of 6 layers, vision tower of 4, both of width 256, float32, random weights) on
the same images, token ids and advantages, all rows of a step in one micro-batch: 2 prompts of an image of 256 tokens and 16 words, 8
completions of 48 tokens of each. A step is the update alone, with beta 0; tokens count every row with its prompt, shared or not. How sides
are timed: ``turns.py``. ``TRL, kept``: as it comes it recomputes activations in the backward pass (gradient_checkpointing), which costs
time; here it does not, and neither does mmalign. Its trainer gets the rows by replacing ``_generate_and_score_completions``, with pixels
and all that the processor gives, of every row, as it makes them.
"""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any, NamedTuple

import torch
from text import tokenizer
from turns import OURS, Clock, Side, main

PROMPTS, ROWS = 2, 8  # of a step, and of each prompt
QUESTION, COMPLETION, IMAGE = 16, 48, 256  # tokens; a completion's end included
WORDS, WIDTH, HEADS, LAYERS, LOOKS = 4_000, 256, 4, 6, 4  # LOOKS: layers of the vision tower
PATCH = 8  # pixels
TEMPLATE = (
    "{% for turn in messages %}{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE {% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
TEXT: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS, "max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


class Case(NamedTuple):
    """model, and what is asked of speed."""

    model: str
    faster: float
    memory: float | None = None

    @property
    def tokens(self) -> int:
        """Of a step, every row with its prompt."""
        return PROMPTS * ROWS * (IMAGE + QUESTION + COMPLETION)


CASES = {"llava": Case("llava", 4.0), "qwen2_vl": Case("qwen2_vl", 4.0)}


def made(case: Case) -> tuple[Any, Any]:
    """The model that all sides train, and its processor."""
    torch.manual_seed(0)
    return {"llava": llava, "qwen2_vl": qwen2_vl}[case.model]()


def llava() -> tuple[Any, Any]:
    """CLIP's tower, a square of patches each of which is a token, and Llama."""
    import transformers as library

    image, side = f"w{WORDS - 1}", 16 * PATCH
    words = tokenizer(WORDS, image_token=image)
    vision = library.CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LOOKS,
        num_attention_heads=HEADS,
        image_size=side,
        patch_size=PATCH,
    )
    config = library.LlavaConfig(
        vision_config=vision, text_config=library.LlamaConfig(**TEXT), image_token_index=WORDS - 1, vision_feature_layer=-1,
        image_seq_length=IMAGE, tie_word_embeddings=False,
    )  # fmt: skip
    size = {"height": side, "width": side}
    processor = library.LlavaProcessor(
        library.CLIPImageProcessor(size=size, crop_size=size), words, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, image_token=image, chat_template=TEMPLATE.replace("IMAGE", image),
    )  # fmt: skip
    return library.LlavaForConditionalGeneration(config), processor


def qwen2_vl() -> tuple[Any, Any]:
    """A tower that merges four patches into a token, and a language model with positions of three axes."""
    import transformers as library

    side = 32 * PATCH
    image, video, start, end = (f"w{WORDS - number}" for number in range(1, 5))
    words = tokenizer(WORDS, image_token=image, video_token=video)
    vision = {
        "depth": LOOKS, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": HEADS, "mlp_ratio": 4, "patch_size": PATCH,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
    }  # fmt: skip
    text = {**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e4}}
    config = library.Qwen2VLConfig(
        vision_config=vision, text_config=text, image_token_id=WORDS - 1, video_token_id=WORDS - 2, vision_start_token_id=WORDS - 3,
        vision_end_token_id=WORDS - 4, tie_word_embeddings=False,
    )  # fmt: skip
    sizes = {"patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2, "size": {"shortest_edge": side**2, "longest_edge": side**2}}
    template = TEMPLATE.replace("IMAGE", f"{start} {image} {end}")
    processor = library.Qwen2VLProcessor(
        library.Qwen2VLImageProcessor(**sizes), words, library.Qwen2VLVideoProcessor(**sizes), chat_template=template
    )
    return library.Qwen2VLForConditionalGeneration(config), processor


def data(steps: int) -> tuple[list[list[dict[str, Any]]], list[list[str]]]:
    """Conversations with an image each, and the completions of each, one end short, for some steps."""
    from PIL import Image

    rng = torch.Generator().manual_seed(1)

    def words(count: int) -> str:
        return " ".join(f"w{number}" for number in torch.randint(3, WORDS - 4, (count,), generator=rng).tolist())

    shape = (16 * PATCH, 16 * PATCH, 3)
    pictures = [Image.fromarray(torch.randint(256, shape, generator=rng).byte().numpy()) for _ in range(PROMPTS * steps)]
    parts = [[{"type": "image", "image": picture}, {"type": "text", "text": words(QUESTION)}] for picture in pictures]
    requests: list[list[dict[str, Any]]] = [[{"role": "user", "content": some}] for some in parts]
    return requests, [[" " + words(COMPLETION - 1) for _ in range(ROWS)] for _ in requests]


def ours(case: Case, steps: int, clock: Clock) -> None:
    """mmalign, as its recipes do a step."""
    import mmalign as mm
    from mmalign.training.updates.experience import Experience
    from mmalign.training.updates.learner import Learner
    from mmalign.types import Feedback

    model, processor = made(case)
    policy, method = mm.policies.transformers(model, processor, max_completion=COMPLETION, device="cpu"), mm.methods.grpo(beta=0.0)
    learner = Learner(policy, method, mm.adamw(rate=1e-5), steps=steps)
    requests, completions = data(steps)
    group, rng = torch.arange(PROMPTS).repeat_interleave(ROWS), torch.Generator().manual_seed(0)
    feedback = Feedback(torch.randn(len(group), generator=rng).double(), group)
    for step in range(steps):
        rows = [(requests[place], row) for place in range(step * PROMPTS, (step + 1) * PROMPTS) for row in completions[place]]
        rollout = policy.encode([prompt for prompt, _ in rows], [row for _, row in rows], group, rng)
        refuse_odd(len(rollout.held.prompts[0]) - extra(case), rollout.mask.shape[1])
        rollout.log_probs = torch.full_like(rollout.log_probs, -5.0)
        clock.start()
        learner.update([Experience(rollout, method.signal(feedback), torch.arange(len(group)))], micro_rows=len(group), step=step)
        clock.tick()


def extra(case: Case) -> int:
    """Tokens that stand around an image."""
    return 2 if case.model == "qwen2_vl" else 0


def refuse_odd(prompt: int, completion: int) -> None:
    """SystemExit where rows are not as long as the table says."""
    if (prompt, completion) != (IMAGE + QUESTION, COMPLETION):
        raise SystemExit(f"rows of {prompt} + {completion} tokens, not of {IMAGE + QUESTION} + {COMPLETION}")


def theirs(case: Case, steps: int, clock: Clock, **more: Any) -> None:
    """TRL's trainer. more: settings that are not as they come."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Times(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.start()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    model, processor = made(case)
    requests, completions = data(steps)
    table = Dataset.from_list([{"prompt": str(number)} for number in range(len(requests))])
    args = GRPOConfig(
        use_cpu=True, bf16=False, max_steps=steps, learning_rate=1e-5, report_to=[], logging_strategy="no", save_strategy="no",
        disable_tqdm=True, output_dir=tempfile.mkdtemp(), per_device_train_batch_size=PROMPTS * ROWS, num_generations=ROWS, beta=0.0,
        max_completion_length=COMPLETION, shuffle_dataset=False, **more,
    )  # fmt: skip
    reward = lambda completions, **columns: [0.0] * len(completions)  # noqa: E731
    trainer: Any = GRPOTrainer(
        model=model, processing_class=processor, args=args, train_dataset=table, reward_funcs=reward, callbacks=[Times()]
    )
    trainer._generate_and_score_completions = lambda inputs: inputs_of(
        case, processor, requests, completions, [int(item["prompt"]) for item in inputs]
    )
    trainer.train()


def inputs_of(
    case: Case, processor: Any, requests: list[list[dict[str, Any]]], completions: list[list[str]], places: list[int]
) -> dict[str, torch.Tensor | list[int]]:
    """What TRL's trainer would have sampled and scored, for rows of some prompts."""
    text = [processor.apply_chat_template(requests[place], add_generation_prompt=True, tokenize=False) for place in places]
    pictures = [[requests[place][0]["content"][0]["image"]] for place in places]
    inputs = processor(text=text, images=pictures, return_tensors="pt", add_special_tokens=False)
    prompt = inputs.pop("input_ids")
    completion = torch.tensor([[*processor.tokenizer(completions[place][row % ROWS])["input_ids"], 2] for row, place in enumerate(places)])
    refuse_odd(prompt.shape[1] - extra(case), completion.shape[1])
    kinds = {name: torch.cat([value, torch.zeros_like(completion)], 1) for name, value in inputs.items() if name.endswith("token_type_ids")}
    return {
        **inputs, **kinds, "prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt), "completion_ids": completion,
        "completion_mask": torch.ones_like(completion), "advantages": torch.randn(len(places), generator=torch.Generator().manual_seed(0)),
        "num_items_in_batch": torch.tensor(completion.numel()), "num_images": [1] * len(places),
    }  # fmt: skip


SIDES: dict[str, Side] = {"TRL": theirs, "TRL, kept": partial(theirs, gradient_checkpointing=False), OURS: ours}


if __name__ == "__main__":
    main(__doc__, __file__, CASES, SIDES)
