"""DPO and GRPO updates of a small language model, side by side with TRL: tokens per second and peak memory.

    pip install trl==1.16.0                         # the peer; no part of mmalign needs it
    python scripts/bench/text.py                    # all cases, some minutes on two cores
    python scripts/bench/text.py dpo_long --steps 3

All sides train the same Qwen2 (6 layers, width 256, tied embeddings, float32, random weights) on the same token ids, all rows of a
step in one micro-batch: 4 pairs for DPO, 2 groups of 8 for GRPO. A step of DPO is the reference's forward, the policy's forward and
backward, and AdamW; one of GRPO is the update alone, given completions and rewards (nobody has a reference: beta 0). Tokens count every
row with its prompt on every side, shared or not. How sides are timed: ``turns.py``.

TRL as it comes recomputes activations in the backward pass (gradient_checkpointing), which saves memory and costs time; ``TRL, kept``
does not, which is what mmalign does, and is the faster one. Set for both: use_cpu, bf16 off, no logging or saving. Its GRPO trainer gets
the completions by replacing ``_generate_and_score_completions``. No row is filled up: all are of one length.
"""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any, NamedTuple

import torch
from turns import OURS, Clock, Side, main


class Case(NamedTuple):
    """method, tokens of a prompt and of a completion (its end included), words, and what is asked of speed and memory."""

    method: str
    prompt: int
    completion: int
    words: int
    faster: float
    memory: float | None = None

    @property
    def tokens(self) -> int:
        """Of a step, every row with its prompt."""
        prompts, rows = ROWS[self.method]
        return prompts * rows * (self.prompt + self.completion)


CASES = {
    "dpo_long": Case("dpo", 512, 128, 50_000, 6.0, 0.35),
    "dpo_short": Case("dpo", 32, 256, 50_000, 3.0),
    "dpo_few_words": Case("dpo", 512, 128, 4_000, 3.0),
    "grpo": Case("grpo", 512, 64, 50_000, 3.0),
}
ROWS = {"dpo": (4, 2), "grpo": (2, 8)}  # prompts of a step, rows of each


def network(words: int, *, longest: int = 1024) -> Any:
    """The model that both sides train. longest: positions."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=words, hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=longest, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def tokenizer(words: int, **special: str) -> Any:
    """Words ``w3`` to ``w{words - 1}``, an id each. special: names of some that are tokens of their own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {"<pad>": 0, "<bos>": 1, "<eos>": 2, **{f"w{number}": number for number in range(3, words)}}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", extra_special_tokens=special
    )


def texts(case: Case, steps: int) -> list[tuple[str, list[str]]]:
    """Prompts and their completions, one end short, for some steps."""
    rng = torch.Generator().manual_seed(1)
    prompts, rows = ROWS[case.method]

    def words(count: int) -> str:
        return " ".join(f"w{number}" for number in torch.randint(3, case.words, (count,), generator=rng).tolist())

    return [(words(case.prompt), [" " + words(case.completion - 1) for _ in range(rows)]) for _ in range(prompts * steps)]


def ours(case: Case, steps: int, clock: Clock) -> None:
    """mmalign, as its recipes do a step."""
    import mmalign as mm
    from mmalign.training.updates.experience import Experience
    from mmalign.training.updates.learner import Learner
    from mmalign.types import Feedback

    policy = mm.policies.transformers(network(case.words), tokenizer(case.words), max_completion=case.completion, device="cpu")
    method = mm.methods.dpo() if case.method == "dpo" else mm.methods.grpo(beta=0.0)
    learner = Learner(policy, method, mm.adamw(rate=1e-5), steps=steps)
    prompts, rows = ROWS[case.method]
    data, rng = texts(case, steps), torch.Generator().manual_seed(0)
    group = torch.arange(prompts).repeat_interleave(rows)
    pairs = torch.arange(prompts * rows).view(-1, 2) if case.method == "dpo" else None
    strength = torch.ones(prompts, dtype=torch.float64) if case.method == "dpo" else None
    feedback = Feedback(torch.randn(len(group), generator=rng).double(), group, pairs=pairs, strength=strength)
    for step in range(steps):
        if case.method == "dpo":
            clock.start()
        part = data[step * prompts : (step + 1) * prompts]
        rollout = policy.encode([text for text, _ in part for _ in range(rows)], [row for _, some in part for row in some], group, rng)
        if case.method == "grpo":
            rollout.log_probs = torch.full_like(rollout.log_probs, -5.0)
            clock.start()
        policy.remember(rollout, learner.references, len(group))
        learner.update([Experience(rollout, method.signal(feedback), torch.arange(len(group)))], micro_rows=len(group), step=step)
        clock.tick()


def theirs(case: Case, steps: int, clock: Clock, **more: Any) -> None:
    """TRL's trainers. more: settings that are not as they come."""
    from datasets import Dataset
    from transformers import TrainerCallback

    class Times(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.start()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    prompts, rows = ROWS[case.method]
    data = texts(case, steps)
    settings: dict[str, Any] = {
        "use_cpu": True, "bf16": False, "max_steps": steps, "learning_rate": 1e-5, "report_to": [],
        "logging_strategy": "no", "save_strategy": "no", "disable_tqdm": True, "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": prompts if case.method == "dpo" else prompts * rows, **more,
    }  # fmt: skip
    common = {"model": network(case.words), "processing_class": tokenizer(case.words), "callbacks": [Times()]}
    if case.method == "dpo":
        from trl import DPOConfig, DPOTrainer

        table = Dataset.from_list([{"prompt": text, "chosen": some[0], "rejected": some[1]} for text, some in data])
        trainer: Any = DPOTrainer(args=DPOConfig(**settings), train_dataset=table, ref_model=network(case.words), **common)
    else:
        from trl import GRPOConfig, GRPOTrainer

        table = Dataset.from_list([{"prompt": text} for text, _ in data])
        settings |= {"num_generations": rows, "beta": 0.0, "max_completion_length": case.completion}
        reward = lambda completions, **columns: [0.0] * len(completions)  # noqa: E731
        trainer = GRPOTrainer(args=GRPOConfig(**settings), train_dataset=table, reward_funcs=reward, **common)
        trainer._generate_and_score_completions = lambda inputs: inputs_of(case, trainer.processing_class, data, inputs)
    trainer.train()


def inputs_of(case: Case, words: Any, data: list[tuple[str, list[str]]], inputs: list[dict[str, Any]]) -> dict[str, Any]:
    """What TRL's GRPO trainer would have sampled and scored."""
    some = dict(data)
    rows = [some[text][number % ROWS["grpo"][1]] for number, text in enumerate(item["prompt"] for item in inputs)]
    prompt = torch.tensor(words([item["prompt"] for item in inputs])["input_ids"])
    completion = torch.tensor([[*words(row)["input_ids"], 2] for row in rows])
    advantages = torch.randn(len(rows), generator=torch.Generator().manual_seed(0))
    return {
        "prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt), "completion_ids": completion,
        "completion_mask": torch.ones_like(completion), "advantages": advantages, "num_items_in_batch": torch.tensor(completion.numel()),
    }  # fmt: skip


SIDES: dict[str, Side] = {"TRL": theirs, "TRL, kept": partial(theirs, gradient_checkpointing=False), OURS: ours}


if __name__ == "__main__":
    main(__doc__, __file__, CASES, SIDES)
