"""The floor of a step of ``text.py`` and ``vlm.py``: the time of its own matrix products, each alone; and memory of long prompts.

    python scripts/bench/floors.py                # all cases, some three minutes on two cores
    python scripts/bench/floors.py grpo dpo_short

In one step every matrix product and every attention of mmalign's side is noted, forwards and backwards, with its shapes and strides. Each
different one is then run alone, on random numbers, and its least processor time of some runs counts as often as it was met: no
implementation with the same products is faster on this machine. ``step / floor`` is a step's processor time over that; where it is above
1.4, the largest of what is no product (by torch's profiler, as shares of the step) stands beside it.

Long prompts: the most bytes that an update of GRPO holds (one group of 8 completions of 64 tokens), from every allocation, over all tokens
that differ: the prompt, which the group shares, and the completions.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import text
import torch
import vlm
from measure import Table, allocated, machine, spread
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import mmalign as mm
from mmalign.training.updates.experience import Experience
from mmalign.training.updates.learner import Learner
from mmalign.types import Feedback

MOST, LEAST = 1.4, 0.02  # of step / floor without a word on it; of a step, what is named
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")
ATTENTION = "scaled_dot_product"
CASES = {**dict.fromkeys(text.CASES, text), **dict.fromkeys(vlm.CASES, vlm)}
PROMPTS = (1024, 2048, 4096, 8192)


class Seen(NamedTuple):
    """A tensor as one of its kind can be made again."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def made(self) -> torch.Tensor:
        value = torch.empty_strided(self.shape, self.stride, dtype=self.dtype)
        return value.normal_() if value.is_floating_point() else value.zero_()


class Products(TorchDispatchMode):
    """Notes all matrix products and attentions while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in PRODUCTS or ATTENTION in name:
            seen = lambda v: Seen(tuple(v.shape), v.stride(), v.dtype) if isinstance(v, torch.Tensor) else v  # noqa: E731
            inputs = tree_map(seen, (args, kwargs or {}))
            self.calls[func, _hashable(inputs)] += 1
        return func(*args, **(kwargs or {}))

    def seconds(self) -> float:
        """Least processor time of each, as often as it was met, together."""
        return sum(count * _alone(*call) for call, count in self.calls.items())


def _hashable(value: Any) -> Any:
    """Lists as tuples, mappings as pairs; a Seen stays what it is."""
    if isinstance(value, Seen):
        return value
    if isinstance(value, dict):
        return ("mapping", tuple((name, _hashable(item)) for name, item in value.items()))
    return tuple(_hashable(item) for item in value) if isinstance(value, (list, tuple)) else value


def _alone(func: Any, inputs: Any, *, runs: int = 3) -> float:
    """Seconds of a processor for one call."""

    def made(value: Any) -> Any:
        if isinstance(value, Seen):
            return value.made()
        return [made(item) for item in value] if isinstance(value, tuple) else value

    args, (_, more) = made(inputs[0]), inputs[1]
    kwargs, best = {name: made(value) for name, value in more}, float("inf")
    with torch.no_grad():
        for _ in range(runs):
            began = time.process_time()
            func(*args, **kwargs)
            best = min(best, time.process_time() - began)
    return best


class Steps:
    """A clock as ``turns`` has one, of four steps: the first warms up, the second is noted, the third profiled, and others are timed."""

    def __init__(self) -> None:
        self.number, self.seconds, self.products = -1, list[float](), Products()
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
        self._began = 0.0

    def start(self) -> None:
        self.number += 1
        if self.number in (1, 2):
            (self.products if self.number == 1 else self.profile).__enter__()
        self._began = time.process_time()

    def tick(self) -> None:
        took = time.process_time() - self._began
        if self.number in (1, 2):
            (self.products if self.number == 1 else self.profile).__exit__(None, None, None)
        elif self.number:
            self.seconds.append(took)

    def others(self) -> str:
        """What is no product and takes most of a step, as shares."""
        events = self.profile.key_averages()
        whole = sum(event.self_cpu_time_total for event in events)
        rest = [(event.self_cpu_time_total / whole, event.key.removeprefix("aten::")) for event in events if not _is_product(event.key)]
        return ", ".join(f"{name} {share:.0%}" for share, name in sorted(rest, reverse=True)[:5] if share >= LEAST)


def _is_product(name: str) -> bool:
    return name.removeprefix("aten::") in {*PRODUCTS, "mkldnn_convolution"} or ATTENTION in name


def long_prompt(tokens: int) -> int:
    """The most bytes of an update of GRPO with one prompt of so many tokens."""
    case = text.Case("grpo", tokens, 64, 50_000, 1.0)
    network, words = text.network(case.words, longest=tokens + 128), text.tokenizer(case.words)
    policy = mm.policies.transformers(network, words, max_completion=64, device="cpu")
    method, group = mm.methods.grpo(beta=0.0), torch.zeros(8, dtype=torch.int64)
    learner = Learner(policy, method, mm.adamw(rate=1e-5), steps=9)
    prompt, completions = text.texts(case, 1)[0]
    rollout = policy.encode([prompt] * 8, completions, group, torch.Generator().manual_seed(0))
    rollout.log_probs = torch.full_like(rollout.log_probs, -5.0)
    experience = [Experience(rollout, method.signal(Feedback(torch.arange(8.0).double(), group)), torch.arange(8))]
    learner.update(experience, micro_rows=8, step=0)  # the optimiser's states are there from now on
    return allocated(lambda: learner.update(experience, micro_rows=8, step=1))


def main(names: Sequence[str], threads: int, steps: int) -> None:
    """Prints the tables."""
    torch.set_num_threads(threads)
    print(machine())
    cases = [name for name in CASES if not names or name in names]
    if cases:
        head = ("case", "step, CPU s", "floor, CPU s", "step / floor", "largest of what is no product")
        table = Table("A step over the floor of its own products", *head)
        for name in cases:
            clock: Any = Steps()
            CASES[name].ours(CASES[name].CASES[name], steps, clock)
            floor = clock.products.seconds()
            times = [seconds / floor for seconds in clock.seconds]
            table.row(name, spread(clock.seconds), f"{floor:.3g}", spread(times), clock.others() if min(times) > MOST else "")
    if not names or "prompts" in names:
        table = Table("Memory of an update by the length of a prompt", "tokens of the prompt", "MiB", "bytes for a token")
        for tokens in PROMPTS:
            size = long_prompt(tokens)
            table.row(tokens, f"{size / 2**20:.0f}", f"{size / (tokens + 8 * 64):,.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join([*CASES, "prompts"]))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6, help="of a case, three of which are not timed")
    given = parser.parse_args()
    if strange := [name for name in given.cases if name not in {*CASES, "prompts"}]:
        sys.exit(f"cases: got {strange[0]!r}, takes {', '.join([*CASES, 'prompts'])}")
    main(given.cases, given.threads, given.steps)
