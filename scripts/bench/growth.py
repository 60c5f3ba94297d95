"""How the work and the memory of a step grow with what a user may set: counted operations and counted bytes, and no clock.

    python scripts/bench/growth.py                # some two minutes on one core
    python scripts/bench/growth.py steps frames   # some of them

For each size the matrix products of a rollout's and an update's passes are counted (references included), and the most bytes that an
update holds at one time. An exponent is the slope between the two largest sizes, in logarithms. One above 1.1 has a reason beside it;
without one the script ends with 1. Models are small and random. Processes: ``scaling.py``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from measure import Table, allocated, exponent, machine, operations
from shapes import Size, sd3
from text import tokenizer

import mmalign as mm
from mmalign.policies.twins.pipelines import call_arguments, twin
from mmalign.training.updates.experience import Experience
from mmalign.training.updates.learner import Learner
from mmalign.types import Feedback

MOST = 1.1
ATTENTION = "attention: every token meets every other; the products that are linear in tokens weigh more, the wider a model is"


class Cost(NamedTuple):
    """Operations of a rollout and of an update, the most bytes that the update holds, and turns of the pipeline's loop in it."""

    rollout: float
    update: float
    memory: float
    turns: float = 0.0


class Axis(NamedTuple):
    """What grows: sizes, what a size costs, and why an exponent is above 1.1 (by the name of ``Cost``'s field)."""

    sizes: Sequence[int]
    cost: Callable[[int], Cost]
    reasons: dict[str, str] = {}  # noqa: RUF012 (never changed)


def denoising(pipe: Any, call: dict[str, Any], *, steps: int = 3, group: int = 2, references: Sequence[str] = ("ref",)) -> Cost:
    """Of flow_grpo with LoRA on one prompt."""
    policy = mm.policies.diffusers(pipe, lora=mm.Lora(rank=4), call=call, schedule=mm.Schedule(steps=steps), device="cpu")
    method = mm.methods.flow_grpo(beta=0.04 if references else 0.0, kl="flow_grpo")
    learner, kept = Learner(policy, method, mm.adamw(rate=1e-5), steps=9), dict[str, Any]()
    for name in references[1:]:
        policy.sets.keep(name)

    def rollout() -> None:
        kept["rollout"] = policy.sample(["a fox"], group, torch.Generator().manual_seed(0))

    def update() -> None:
        some = kept["rollout"]
        some.held.refs.clear()
        policy.remember(some, references, group)
        signal = method.signal(Feedback(torch.arange(group).double(), some.group))
        learner.update([Experience(some, signal, torch.arange(group))], micro_rows=group, step=0)

    first, second = operations(rollout), operations(update)
    turns = counted_turns(pipe, update)
    return Cost(first, second, allocated(update), turns)


def counted_turns(pipe: Any, run: Callable[[], None]) -> int:
    """How often a pipeline's loop asks its scheduler in a run, finished steps included."""
    from mmalign.policies.pipelines.calls.scheduler import _Played

    number, own = 0, _Played._play

    def play(*args: Any, **kwargs: Any) -> Any:
        nonlocal number
        number += 1
        return own(*args, **kwargs)

    _Played._play = play  # type: ignore[method-assign]
    try:
        run()
    finally:
        _Played._play = own  # type: ignore[method-assign]
    return number


def sd3_of(side: int = 8, **more: Any) -> Cost:
    """Of an SD3 of two layers."""
    pipe = sd3(Size(2, 2, side))
    edge = side * pipe.vae_scale_factor
    return denoising(pipe, {"height": edge, "width": edge, "max_sequence_length": 8}, **more)


def wan_of(frames: int) -> Cost:
    """Of a twin of Wan 2.1; frames: of the latent, each of four of the video but the first."""
    pipe = twin("WanPipeline")
    return denoising(pipe, {**call_arguments(pipe), "num_frames": 4 * (frames - 1) + 1, "height": 64, "width": 64})


def text_of(*, prompt: int = 64, completion: int = 16, group: int = 4, words: int = 1000) -> Cost:
    """Of GRPO's update on given completions, with a reference."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=words, hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=4096, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    policy = mm.policies.transformers(
        Qwen2ForCausalLM(config), tokenizer(words), max_completion=completion, lora=mm.Lora(rank=4), device="cpu",
        memory=mm.TextMemory(logits_at_once=2**16),
    )  # fmt: skip
    method, rng = mm.methods.grpo(beta=0.04), torch.Generator().manual_seed(1)
    learner = Learner(policy, method, mm.adamw(rate=1e-5), steps=9)

    def some(count: int) -> str:
        return " ".join(f"w{number}" for number in torch.randint(3, words, (count,), generator=rng).tolist())

    rows, which = [some(prompt)] * group, torch.zeros(group, dtype=torch.int64)
    rollout = policy.encode(rows, [" " + some(completion - 1) for _ in rows], which, rng)
    rollout.log_probs = torch.full_like(rollout.log_probs, -5.0)

    def update() -> None:
        rollout.held.refs.clear()
        policy.remember(rollout, learner.references, group)
        signal = method.signal(Feedback(torch.arange(group).double(), rollout.group))
        learner.update([Experience(rollout, signal, torch.arange(group))], micro_rows=group, step=0)

    return Cost(0.0, operations(update), allocated(update))


TURNS = "a replay of step i runs the pipeline's own loop through the i steps before it, without the denoiser: 0.1 ms of a processor each"
AXES = {
    "denoising steps": Axis((4, 8, 16), lambda n: sd3_of(steps=n), {"turns": TURNS}),
    "images of a group": Axis((2, 4, 8), lambda n: sd3_of(group=n)),
    "latent pixels": Axis((64, 256, 1024), lambda n: sd3_of(side=int(n**0.5)), dict.fromkeys(("rollout", "update", "memory"), ATTENTION)),
    "latent frames": Axis((2, 4, 8), wan_of, dict.fromkeys(("rollout", "update", "memory"), ATTENTION)),
    "references of images, and the policy": Axis((1, 2, 4), lambda n: sd3_of(references=("ref", "a", "b", "c")[: n - 1])),
    "tokens of a prompt": Axis((128, 256, 512), lambda n: text_of(prompt=n), dict.fromkeys(("update", "memory"), ATTENTION)),
    "tokens of a completion": Axis((32, 64, 128), lambda n: text_of(completion=n), dict.fromkeys(("update", "memory"), ATTENTION)),
    "answers of a group": Axis((4, 8, 16), lambda n: text_of(group=n)),
    "words of a vocabulary": Axis((1000, 4000, 16000), lambda n: text_of(words=n)),
}


def rows_of(name: str, axis: Axis) -> list[tuple[str, ...]]:
    """Lines of the table: one for each kind of cost that is there. Errors: SystemExit for an exponent that has no reason."""
    costs, lines = [axis.cost(size) for size in axis.sizes], list[tuple[str, ...]]()
    for kind in Cost._fields:
        values = [float(getattr(cost, kind)) for cost in costs]
        if values[-1] == 0:
            continue
        slope = exponent(axis.sizes, values)
        why = axis.reasons.get(kind, "") if slope > MOST else ""
        if slope > MOST and not why:
            sys.exit(f"{name}: {kind} grows with an exponent of {slope:.2f}, and nothing says why")
        unit, scale = {"memory": ("MiB", 2.0**20), "turns": ("turns", 1.0)}.get(kind, ("GFLOP", 1e9))
        numbers = ", ".join(f"{value / scale:.3g}" for value in values)
        lines.append((name, ", ".join(map(str, axis.sizes)), kind, f"{numbers} {unit}", f"{slope:.2f}", why))
    return lines


def main(names: Sequence[str]) -> None:
    """Prints the table."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(1)
    print(machine())
    table = Table("How a step's cost grows", "what", "sizes", "cost of", "counted", "exponent", "why it is above 1.1")
    for name in names:
        for line in rows_of(name, AXES[name]):
            table.row(*line)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("axes", nargs="*", metavar="WHAT", help=", ".join(AXES))
    given = parser.parse_args().axes
    main([name for name in AXES if not given or any(word in name for word in given)])
