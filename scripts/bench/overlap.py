"""What a step of an online run costs where rewards wait (for a server, a sandbox), with and without ``batch.overlap``.

    python scripts/bench/overlap.py                     # two minutes on two cores
    python scripts/bench/overlap.py --parts 16 --rounds 3

A text policy is sampled with a reward that sleeps as long for a row as sampling it takes, half of that, and twice. In each round a rollout
whose reward does not sleep, one with the reward behind it, and one with the reward beside it are made in turn; the reward alone is what it
sleeps. ``/ max`` is what the last one costs over the larger of rollout and reward, ``/ sum`` over one behind the other: medians of the
rounds, with the least and the most. ``processor`` is the processor time of the one beside over that of the rollout: what the threads cost.

Where others use the cores, a rollout that computes takes now this long and now that, and ratios of it say little. So the same is measured
of a rollout that waits too, as one does that an engine on another device makes: that is what the overlap itself costs.
The scores are compared: those of a run without overlap, but for rounding.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from mmalign.policies.settings import TextMemory
from mmalign.policies.transformers import transformers
from mmalign.training.rollouts.background import Background
from mmalign.training.rollouts.feedback import Scores, scores_on
from mmalign.training.rollouts.prompts import Prompts
from mmalign.training.rollouts.rollouts import Rollouts
from mmalign.training.settings import Batch
from mmalign.types import Rollout

PROMPTS, GROUP = 16, 2
WAIT = 1.0  # seconds of a rollout that waits


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


class Waits:
    """A policy whose rollout is there already, and takes its time all the same: so many seconds for a row."""

    sets = SimpleNamespace(shards=None, others={})  # in no shards

    def __init__(self, rollout: Rollout, seconds: float):
        self.rollout, self.seconds = rollout, seconds

    def sample(self, prompts: list[Any], group: int, rng: torch.Generator, *, step: int, part: slice) -> Rollout:
        """The rows of some prompts."""
        rows = torch.arange(part.start * group, part.stop * group)
        time.sleep(self.seconds * len(rows))
        return self.rollout.take(rows)


class Step(NamedTuple):
    """A rollout with its scores: seconds by the clock, seconds of a processor, and the scores."""

    clock: float
    processor: float
    scores: Scores


def sampled(model: Any, seconds: float, parts: int, *, threaded: bool) -> Step:
    """A rollout in parts, and the scores of a reward that sleeps so many seconds for a row."""
    prompts, batch = [f"{number} + {number + 1} =" for number in range(PROMPTS)], Batch(prompts=PROMPTS, group=GROUP, overlap=parts)
    with Background(threaded=threaded) as background:
        ask = lambda rollout: scores_on({"sleeps": Sleeps(seconds)}, rollout)  # noqa: E731
        rollouts = Rollouts(model, Prompts(prompts, model, seed=0), ask, background, batch=batch, seed=0)
        clock, processor = time.perf_counter(), time.process_time()
        scores = rollouts(0).scores()
    return Step(time.perf_counter() - clock, time.process_time() - processor, scores)


def spread(values: list[float]) -> str:
    """The median, the least and the most."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def row(name: str, model: Any, share: float, alone: float, parts: int, rounds: int) -> str:
    """A line of the table. alone: seconds of a rollout, of which the reward takes a share."""
    seconds = share * alone / (PROMPTS * GROUP)
    to_max, to_sum, processor, same = list[float](), list[float](), list[float](), True
    for _ in range(rounds):
        plain = sampled(model, 0.0, parts, threaded=False)  # of this round, as machines are busy now and then
        behind = sampled(model, seconds, 1, threaded=False)
        beside = sampled(model, seconds, parts, threaded=True)
        to_max.append(beside.clock / max(plain.clock, share * alone))
        to_sum.append(beside.clock / behind.clock)
        processor.append(beside.processor / plain.processor)
        same &= torch.equal(plain.scores.named["sleeps"], beside.scores.named["sleeps"])
    return f"{name:>9} {share:>7.1f}  {spread(to_max):>20} {spread(to_sum):>20} {spread(processor):>20}  {'yes' if same else 'NO'}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="A step with rewards beside its rollout.")
    parser.add_argument("--parts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = policy()
    sampled(model, 0.0, given.parts, threaded=False)
    alone = statistics.median(sampled(model, 0.0, given.parts, threaded=False).clock for _ in range(3))
    prompts = [f"{number} + {number + 1} =" for number in range(PROMPTS)]
    waits = Waits(model.sample(prompts, GROUP, torch.Generator().manual_seed(0), step=0, part=slice(0, PROMPTS)), WAIT / (PROMPTS * GROUP))
    print(f"{PROMPTS} prompts, groups of {GROUP}, {given.parts} parts, {given.rounds} rounds; a rollout takes {alone:.2f} s")
    print(f"{'a rollout':>9} {'reward':>7}  {'/ max':>20} {'/ sum':>20} {'processor':>20}  same numbers")
    for name, one, seconds in (("waits", waits, WAIT), ("computes", model, alone)):
        for share in (0.5, 1.0, 2.0):
            print(row(name, one, share, seconds, given.parts, given.rounds), flush=True)


if __name__ == "__main__":
    main()
