"""What a step costs outside of its model, and what is done between steps.

    python scripts/bench/overhead.py                  # 40 M and 300 M parameters: some 4 minutes on two cores
    python scripts/bench/overhead.py --sizes 3M --rounds 3

Three tables. A whole run of ``online`` (flow_grpo, LoRA, a reference) with what of its processor time is spent inside of the denoiser,
forwards and backwards, measured by hooks from reward to reward, so that rollout, references, update, metrics and files are all in it: the
target is less than 3 % outside at 300 M. The replay of one step through the pipeline's own ``__call__`` beside the denoiser alone, on
ready-made inputs (latent, timestep, embeddings), in turn: the log-probability of the same recorded step, with its backward pass. And what
happens now and then: another parameter set put in place and taken away, a checkpoint, the report.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from measure import Table, in_turn, machine, ratios, spread, timed
from shapes import SIZES, parameters, sd3

import mmalign as mm
from mmalign.policies.diffusers import diffusers
from mmalign.policies.settings import Lora, Schedule
from mmalign.report import build
from mmalign.runs import checkpoint
from mmalign.samplers import kernels
from mmalign.types import Level

ROWS = 2


class Inside:
    """Processor seconds inside of a module: its forward passes by hooks, backward passes by torch's own entrance."""

    def __init__(self, module: torch.nn.Module):
        self.seconds, self._began = 0.0, 0.0
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end)
        own = torch.Tensor.backward

        def backward(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            began = time.process_time()
            own(tensor, *args, **kwargs)
            self.seconds += time.process_time() - began

        setattr(torch.Tensor, "backward", backward)  # noqa: B010
        self.leave = lambda: setattr(torch.Tensor, "backward", own)

    def _begin(self, *_: Any) -> None:
        self._began = time.process_time()

    def _end(self, *_: Any) -> None:
        self.seconds += time.process_time() - self._began


def policy_of(size: str, *, steps: int) -> Any:
    """A policy of a pipeline of some size, without classifier-free guidance."""
    pipe = sd3(SIZES[size])
    edge = SIZES[size].side * pipe.vae_scale_factor
    call = {"height": edge, "width": edge, "max_sequence_length": 16}
    return diffusers(pipe, call=call, schedule=Schedule(steps=steps, guidance=1.0), lora=Lora(rank=16), device="cpu")


def whole_steps(size: str, rounds: int, between: list[tuple[str, ...]]) -> tuple[str, ...]:
    """A run, and the share of its steps that is outside of the denoiser. between: is filled with what happens now and then."""
    policy = policy_of(size, steps=3)
    inside, marks = Inside(policy.denoiser), list[tuple[float, float]]()

    def bright(outputs: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        marks.append((time.process_time(), inside.seconds))
        return outputs.flatten(1).mean(1)

    with tempfile.TemporaryDirectory() as folder:
        run = mm.RunSettings(name="overhead", folder=folder, trackers=(), dead_steps=None)
        method, batch = mm.methods.flow_grpo(beta=0.04, kl="flow_grpo"), mm.Batch(prompts=1, group=ROWS)
        evaluation = mm.Evaluation(every=1000, samples=1)
        mm.online(policy, ["a fox"], {"bright": bright}, method, steps=rounds + 2, batch=batch, evaluation=evaluation, run=run)
        inside.leave()
        steps = marks[2 : rounds + 3]  # before it an evaluation, and the step with the preflight
        turns = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(steps)]
        between += [(size, what, spread(times)) for what, times in now_and_then(policy, Path(folder) / "overhead")]
    shares = [100 * (1 - own / whole) for whole, own in turns]
    milliseconds = [1e3 * (whole - own) for whole, own in turns]
    count = f"{parameters(policy.denoiser) / 1e6:.1f} M"
    return size, count, spread(whole for whole, _ in turns), spread(milliseconds), spread(shares, ".2f")


def now_and_then(policy: Any, run: Path) -> Iterator[tuple[str, list[float]]]:
    """What happens between steps, and milliseconds of a processor for it."""
    policy.sets.keep("other")
    for what, name in (("the reference (adapter off)", "ref"), ("a stored set", "other")):
        switch(policy, name)
        yield f"{what} in place, and back", [1e3 * timed(partial(switch, policy, name)).cpu for _ in range(9)]
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None
    tensors, state = checkpoint.load(newest)
    size = sum(file.stat().st_size for file in newest.iterdir()) / 2**20
    save = lambda: checkpoint.save(run / "again", 1, tensors=tensors, state=state)  # noqa: E731
    yield f"a checkpoint of {size:.1f} MiB (LoRA and AdamW)", [1e3 * timed(save).cpu for _ in range(5)]
    yield "the report of this run", [1e3 * timed(lambda: build(run)).cpu for _ in range(3)]


def switch(policy: Any, name: str) -> None:
    """A set in place, and back."""
    with policy.using(name):
        pass


def sides(size: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """The two things that are timed: through the pipeline, and directly."""
    policy = policy_of(size, steps=3)
    rollout = policy.sample(["a", "b"], ROWS // 2, torch.Generator().manual_seed(0))
    rows, columns = torch.arange(ROWS), torch.tensor([1])
    caught: dict[str, Any] = {}
    hook = policy.denoiser.register_forward_pre_hook(lambda module, args, kwargs: caught.update(kwargs), with_kwargs=True)
    policy.steps(rollout, rows, columns)
    hook.remove()
    _, levels = policy.schedule()
    t, t_next = (Level(levels.signal[i], levels.noise[i]) for i in (1, 2))
    x, x_next = caught["hidden_states"].detach(), rollout.held.x_next[1]

    def through() -> None:
        policy.steps(rollout, rows, columns).log_probs.sum().backward()
        policy.denoiser.zero_grad()

    def directly() -> None:
        output = policy.denoiser(**caught)[0]
        mean, std = policy.kernel(kernels.predict(output, x, t, parametrisation="flow"), x, t, t_next)
        kernels.log_prob(x_next, mean, std).sum().backward()
        policy.denoiser.zero_grad()

    return through, directly


def main(args: argparse.Namespace) -> None:
    """Prints the tables."""
    torch.set_num_threads(args.threads)
    print(machine())
    between = list[tuple[str, ...]]()
    whole = Table("A whole step of a run", "size", "parameters", "processor s", "ms outside of the denoiser", "outside, %")
    for size in args.sizes:
        whole.row(*whole_steps(size, args.rounds, between))
    replay = Table("The replay of a step", "size", "through the pipeline, CPU s", "the denoiser alone", "ratio", "ratio by the clock")
    for size in args.sizes:
        through, directly = sides(size)
        times = in_turn({"through": through, "directly": directly}, 2 * args.rounds + 1)
        wall, cpu = ratios(times["through"], times["directly"])
        replay.row(size, *(spread(one.cpu for one in times[side]) for side in times), spread(cpu, ".3f"), spread(wall, ".3f"))
    table = Table("Now and then", "size", "what", "CPU ms")
    for row in between:
        table.row(*row)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["40M", "300M"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    main(parser.parse_args())
