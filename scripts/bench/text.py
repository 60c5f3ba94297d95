"""DPO and GRPO updates of a small language model, side by side with TRL: tokens per second and peak memory.

    pip install trl==1.16.0                         # the peer; no part of mmalign needs it
    python scripts/bench/text.py                    # all cases, some minutes on two cores
    python scripts/bench/text.py dpo_long --steps 3

Both sides train the same Qwen2 (6 layers, width 256, tied embeddings, float32, random weights) on the same token ids, all rows of a
step in one micro-batch: 4 pairs for DPO, 2 groups of 8 for GRPO. Every side of every case is a process of its own. A step of DPO is
the reference's forward, the policy's forward and backward, and AdamW; one of GRPO is the update alone, given completions and rewards
(neither has a reference: beta 0). Times are medians over steps after the first. Tokens count every row with its prompt on both sides,
shared or not. Memory is the highest resident size while training (VmHWM, reset before the first step) minus the resident size before
it, so that imports, weights and the reference's copy are in neither.

TRL's settings: use_cpu, bf16 off, gradient_checkpointing off (its default on costs it time), max_length none, no logging, saving or
dataset workers, no padding (all rows are of one length); the rest as it comes. Its GRPO trainer gets the completions by replacing
``_generate_and_score_completions``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Case(NamedTuple):
    """method, tokens of a prompt and of a completion (its end included), words, and what is asked of speed and memory."""

    method: str
    prompt: int
    completion: int
    words: int
    faster: float
    memory: float | None = None


CASES = {
    "dpo_long": Case("dpo", 512, 128, 50_000, 6.0, 0.35),
    "dpo_short": Case("dpo", 32, 256, 50_000, 3.0),
    "dpo_few_words": Case("dpo", 512, 128, 4_000, 3.0),
    "grpo": Case("grpo", 512, 64, 50_000, 3.0),
}
ROWS = {"dpo": (4, 2), "grpo": (2, 8)}  # prompts of a step, rows of each


def network(words: int) -> Any:
    """The model that both sides train."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=words, hidden_size=256, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=1024, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def tokenizer(words: int) -> Any:
    """Words ``w3`` to ``w{words - 1}``, an id each."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {"<pad>": 0, "<bos>": 1, "<eos>": 2, **{f"w{number}": number for number in range(3, words)}}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


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
    from mmalign.runtime.learner import Learner
    from mmalign.types import Feedback

    policy = mm.policies.transformers(network(case.words), tokenizer(case.words), max_completion=case.completion, device="cpu")
    method = mm.methods.dpo() if case.method == "dpo" else mm.methods.grpo(beta=0.0)
    learner = Learner(policy, method, learning_rate=1e-5, warmup=0, weight_decay=0.0, max_grad_norm=1.0, ema=None)
    prompts, rows = ROWS[case.method]
    data, rng = texts(case, steps), torch.Generator().manual_seed(0)
    group = torch.arange(prompts).repeat_interleave(rows)
    pairs = torch.arange(prompts * rows).view(-1, 2) if case.method == "dpo" else None
    strength = torch.ones(prompts, dtype=torch.float64) if case.method == "dpo" else None
    said = Feedback(torch.randn(len(group), generator=rng).double(), group, pairs=pairs, strength=strength)
    clock.start()
    for step in range(steps):
        part = data[step * prompts : (step + 1) * prompts]
        rollout = policy.encode([text for text, _ in part for _ in range(rows)], [row for _, some in part for row in some], group, rng)
        if case.method == "grpo":
            rollout.log_probs = torch.full_like(rollout.log_probs, -5.0)
            clock.start()
        policy.remember(rollout, learner.references, len(group))
        learner.update([(rollout, method.signal(said), torch.arange(len(group)))], micro_rows=len(group), step=step)
        clock.tick()


def theirs(case: Case, steps: int, clock: Clock) -> None:
    """TRL's trainers."""
    from datasets import Dataset
    from transformers import TrainerCallback

    class Times(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            clock.start()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    prompts, rows = ROWS[case.method]
    data = texts(case, steps)
    told: dict[str, Any] = {
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_steps": steps, "learning_rate": 1e-5, "report_to": [],
        "logging_strategy": "no", "save_strategy": "no", "disable_tqdm": True, "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": prompts if case.method == "dpo" else prompts * rows,
    }  # fmt: skip
    common = {"model": network(case.words), "processing_class": tokenizer(case.words), "callbacks": [Times()]}
    if case.method == "dpo":
        from trl import DPOConfig, DPOTrainer

        table = Dataset.from_list([{"prompt": text, "chosen": some[0], "rejected": some[1]} for text, some in data])
        args = DPOConfig(max_length=None, **told)
        trainer: Any = DPOTrainer(args=args, train_dataset=table, ref_model=network(case.words), **common)
    else:
        from trl import GRPOConfig, GRPOTrainer

        table = Dataset.from_list([{"prompt": text} for text, _ in data])
        told |= {"num_generations": rows, "beta": 0.0, "max_completion_length": case.completion}
        reward = lambda completions, **columns: [0.0] * len(completions)  # noqa: E731
        trainer = GRPOTrainer(args=GRPOConfig(**told), train_dataset=table, reward_funcs=reward, **common)
        trainer._generate_and_score_completions = lambda inputs: given(case, trainer.processing_class, data, inputs)
    trainer.train()


def given(case: Case, words: Any, data: list[tuple[str, list[str]]], inputs: list[dict[str, Any]]) -> dict[str, Any]:
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


class Clock:
    """Seconds of each step, and memory from the first on."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.before: float | None = None
        self.since = 0.0

    def start(self) -> None:
        """A step begins; before the first, the highest resident size so far is forgotten."""
        if self.before is None:
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self.before = resident("VmRSS")
        self.since = time.perf_counter()

    def tick(self) -> None:
        """A step is over, and the next may begin."""
        self.seconds.append(time.perf_counter() - self.since)
        self.since = time.perf_counter()


def resident(line: str) -> float:
    """A line of this process's status, in MB. Linux alone."""
    found = re.search(rf"^{line}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) / 1024


def side(which: Callable[[Case, int, Clock], None], name: str, steps: int) -> dict[str, float]:
    """One side of one case, in this process."""
    clock, case = Clock(), CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        which(case, steps, clock)
    prompts, rows = ROWS[case.method]
    seconds = statistics.median(clock.seconds[1:])
    tokens = prompts * rows * (case.prompt + case.completion)
    return {"seconds": seconds, "tokens_per_second": tokens / seconds, "memory_mb": resident("VmHWM") - (clock.before or 0.0)}


def main() -> None:
    """The table, or with ``--side`` one of its cells as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="all by default")
    parser.add_argument("--steps", type=int, default=3, help="of each side, the first of which does not count")
    parser.add_argument("--side", choices=["ours", "theirs"], help="one side alone, in this process")
    asked = parser.parse_args()
    names = asked.cases or list(CASES)
    if asked.side:
        print(json.dumps(side({"ours": ours, "theirs": theirs}[asked.side], names[0], asked.steps)))
        return
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {asked.steps - 1} steps timed")
    print(f"{'case':14} {'prompt':>6} {'completion':>10} {'words':>6}   {'TRL':>21}   {'mmalign':>21}   faster   memory")
    for name in names:
        case, found = CASES[name], {}
        for which in ("theirs", "ours"):
            command = [sys.executable, __file__, name, "--side", which, "--steps", str(asked.steps)]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
            if done.returncode:
                raise SystemExit(f"{name}, {which}: {done.stderr.strip().splitlines()[-1]}")
            found[which] = json.loads(done.stdout.strip().splitlines()[-1])
        cells = ["{tokens_per_second:8.0f}/s {memory_mb:7.0f} MB".format(**found[which]) for which in ("theirs", "ours")]
        faster = found["ours"]["tokens_per_second"] / found["theirs"]["tokens_per_second"]
        memory = found["ours"]["memory_mb"] / found["theirs"]["memory_mb"]
        sizes = f"{case.prompt:6} {case.completion:10} {case.words:6}"
        print(f"{name:14} {sizes}   {cells[0]:>21}   {cells[1]:>21}   {faster:5.2f}x   {memory:6.2f}", flush=True)


if __name__ == "__main__":
    main()
