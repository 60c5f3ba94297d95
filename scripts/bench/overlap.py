"""What a step of an online run costs where rewards wait (for a server, a sandbox), with and without ``batch.overlap``.

    python scripts/bench/overlap.py                     # a minute on two cores
    python scripts/bench/overlap.py --parts 16 --steps 3

A text policy is trained with a reward that sleeps as long for a row as sampling it takes, half of that, and twice. The parts of a step
are measured apart: sampling in the same parts with a reward that does not sleep, and the reward alone. ``step`` is a whole step with
rewards beside the rollout, without its update; ``/ max`` is what it costs over the larger of the two, ``/ sum`` over one behind the other.
The numbers of the runs are compared: those of a run without overlap, but for rounding.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from mmalign.policies.settings import TextMemory
from mmalign.policies.transformers import transformers
from mmalign.training.background import Background
from mmalign.training.feedback import Scores, scores_on
from mmalign.training.prompts import Prompts
from mmalign.training.rollouts import Rollouts
from mmalign.training.settings import Batch
from mmalign.types import Rollout

PROMPTS, GROUP = 16, 2


class Sleeps:
    """A reward that sleeps so many seconds for a row, and likes long answers."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __call__(self, outputs: list[str], prompts: list[str]) -> torch.Tensor:
        time.sleep(self.seconds * len(outputs))
        return torch.tensor([float(len(output)) for output in outputs], dtype=torch.float64)


def policy() -> Any:
    """A Llama of 0.6 million random weights that reads the letters of the assets' one: its rows cost enough to be measured."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    words = AutoTokenizer.from_pretrained(str(Path(__file__).parents[2] / "assets" / "text" / "llama"))
    sizes = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), eos_token_id=words.eos_token_id, max_position_embeddings=128, **sizes))
    return transformers(model, words, max_completion=24, memory=TextMemory(rows_at_once=GROUP), device="cpu")


def measured(model: Any, seconds: float, parts: int, steps: int, *, threaded: bool) -> tuple[float, list[Scores]]:
    """Median seconds of a rollout with its scores, and the scores."""
    prompts, batch = [f"{number} + {number + 1} =" for number in range(PROMPTS)], Batch(prompts=PROMPTS, group=GROUP, overlap=parts)

    def ask(rollout: Rollout) -> Scores:
        return scores_on({"sleeps": Sleeps(seconds)}, rollout)

    times, scores = list[float](), list[Scores]()
    with Background(threaded=threaded) as background:
        rollouts = Rollouts(model, Prompts(prompts, model, seed=0), ask, background, batch=batch, seed=0)
        for step in range(steps):
            start = time.perf_counter()
            scores.append(rollouts(step).scores())
            times.append(time.perf_counter() - start)
    return statistics.median(times), scores


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="A step with rewards beside its rollout.")
    parser.add_argument("--parts", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = policy()
    measured(model, 0.0, given.parts, 1, threaded=False)
    print(f"{PROMPTS} prompts, groups of {GROUP}, {given.parts} parts, medians of {given.steps} steps, seconds")
    print(f"{'rollout':>8} {'reward':>8} {'behind':>8} {'beside':>8} {'/ max':>7} {'/ sum':>7}  same numbers")
    for share in (0.5, 1.0, 2.0):
        rollout, plain = measured(model, 0.0, given.parts, given.steps, threaded=False)
        reward = share * rollout
        seconds = reward / (PROMPTS * GROUP)
        behind, _ = measured(model, seconds, 1, given.steps, threaded=False)
        beside, scores = measured(model, seconds, given.parts, given.steps, threaded=True)
        same = all(torch.equal(one.named["sleeps"], other.named["sleeps"]) for one, other in zip(plain, scores, strict=True))
        ratios = f"{beside / max(rollout, reward):>7.2f} {beside / (rollout + reward):>7.2f}"
        print(f"{rollout:>8.3f} {reward:>8.3f} {behind:>8.3f} {beside:>8.3f} {ratios}  {'yes' if same else 'NO'}", flush=True)


if __name__ == "__main__":
    main()
