"""An update of an image generator beside the order of work of published code: flow_grpo's on SD3, diffusers' DPO script's on a U-Net.

    python scripts/bench/generators.py                        # 40 M parameters, 5 rounds: some 3 minutes on two cores
    python scripts/bench/generators.py --size tiny --rounds 3 # seconds

Theirs is stated again in this file, line of work by line of work, from github.com/yifan123/flow_grpo (scripts/train_sd3.py, and the step
in flow_grpo/diffusers_patch) and from diffusers' examples/research_projects/diffusion_dpo/train_diffusion_dpo.py; none of their code is
here. Both sides run the same modules with the same LoRA in the same process. Before anything is timed, both are given the same rollout,
and their losses (means of terms of size 1) and gradients (as parts of the largest) have to agree to 1e-5. Then they take turns. Calls of
the denoiser are counted for both, as rows that it sees for an image and a step (a row with guidance is two).

flow_grpo, as published: prompts of all rows are encoded, a row at a time in a batch; the denoiser sees both branches of guidance in one
call; in the update each step of the batch is a forward pass of both branches with gradient, one more of the reference (adapters off), and a
backward pass; the optimiser steps after all of them. The last step is not trained. diffusers' DPO: both images of a pair are encoded,
noised alike, and seen by the trained and by the reference U-Net in each step.

The gradient of guidance through the conditional branch alone (``guidance_gradient: conditional``) stands beside that through both, in one
process and from one rollout. What that can save is counted in passes of the denoiser for an image and a step, where a pass back costs two
forward, or about one with LoRA, whose frozen weights need no gradient of their own: with LoRA and a reference 6 become 5 (1.2 times), with
LoRA alone 4 become 3 (1.33), and where all weights are trained 6 become 4 (1.5). All three are timed. Before each, its gradient has to
equal that of flow_grpo's order of work with the unconditional half detached, as DGPO's code has it.
"""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from measure import Calls, Run, Table, allocated, counted, in_turn, machine, ratios, spread
from shapes import SIZES, parameters, sd3, unet
from torch import Tensor
from torch.nn import functional

import mmalign as mm
from mmalign.policies.adapters import switched
from mmalign.training.updates.experience import Experience
from mmalign.training.updates.learner import Learner
from mmalign.types import Feedback

OURS, TOLERANCE = "mmalign", 1e-5
GUIDANCE, NOISE, CLIP, BETA = 4.5, 0.7, 1e-4, 0.04  # flow_grpo's, for GenEval
DPO_BETA = 2500.0  # of diffusers' script, without a half
CHECKED_BETA = 2.5  # both are compared with it: 2500 times what float32 rounds of an error (6e-8 of 1) is more than the tolerance


class Sides(ABC):
    """A learner, and what both sides do with it."""

    def __init__(self, policy: Any, method: Any, module: torch.nn.Module):
        self.policy, self.method, self.module = policy, method, module
        self.learner = Learner(policy, method, mm.adamw(rate=1e-6), steps=1000)
        self.trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.own_optimizer = torch.optim.AdamW(self.trained, lr=1e-6)

    def step(self) -> None:
        """What published code does after its last backward pass."""
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.own_optimizer.step()
        self.own_optimizer.zero_grad()

    @abstractmethod
    def update(self, *, step: bool = True) -> float:
        """Ours; its loss. step: the optimiser's, too."""

    @abstractmethod
    def theirs_update(self, *, step: bool = True) -> float:
        """Theirs; its loss."""

    def compared(self, what: str) -> str:
        """How far both are apart; SystemExit where that is too far."""
        ours, theirs = self.gradient(lambda: self.update(step=False)), self.gradient(lambda: self.theirs_update(step=False))
        return refuse_unequal(what, ours, theirs)

    def gradient(self, run: Callable[[], float]) -> tuple[float, Tensor]:
        """The loss of a run, and the gradient that it leaves, as one vector."""
        self.own_optimizer.zero_grad()
        loss = run()
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in self.trained])
        self.own_optimizer.zero_grad()
        return loss, flat


def refuse_unequal(what: str, ours: tuple[float, Tensor], theirs: tuple[float, Tensor]) -> str:
    """How far losses, whose terms are of size 1, and gradients are apart; SystemExit where that is more than ``TOLERANCE``."""
    loss = abs(ours[0] - theirs[0])
    gradient = float((ours[1] - theirs[1]).abs().max() / theirs[1].abs().max())
    if not (loss <= TOLERANCE and gradient <= TOLERANCE):
        raise SystemExit(
            f"{what}: losses {ours[0]:.9g} and {theirs[0]:.9g}, gradients {gradient:.2g} apart: the two are not the same update"
        )
    return f"loss {loss:.1e}, gradient {gradient:.1e}"


# flow_grpo


class FlowGrpo(Sides):
    """flow_grpo's order of work, and ours, over one StableDiffusion3Pipeline.

    lora: adapters are trained, and otherwise all weights. beta: of the KL to the reference; 0 asks none, on either side.
    """

    def __init__(self, size: str, prompts: int, group: int, steps: int, *, lora: bool = True, beta: float = BETA):
        self.pipe, shape, self.beta = sd3(SIZES[size]), SIZES[size], beta
        self.prompts, self.group, self.steps = [f"a photo of {number} red foxes" for number in range(prompts)], group, steps
        self.edge, self.rows = shape.side * self.pipe.vae_scale_factor, prompts * group
        self.detached = False
        policy = mm.policies.diffusers(
            self.pipe, lora=mm.Lora(rank=32, alpha=64) if lora else None,
            call={"height": self.edge, "width": self.edge, "max_sequence_length": 16},
            schedule=mm.Schedule(steps=steps, guidance=GUIDANCE, kernel=mm.kernels.flow_sde(noise_level=NOISE)), device="cpu",
        )  # fmt: skip
        shaken_adapters(self.pipe.transformer)
        super().__init__(policy, mm.methods.flow_grpo(clip=CLIP, beta=beta, kl="flow_grpo"), self.pipe.transformer)
        self.learner.kl_every = self.learner.steps  # a step that no evaluation follows asks no reference for the log
        self.learner.begin(0)
        self.rewards = torch.randn(self.rows, generator=torch.Generator().manual_seed(1)).double()
        self.ours_rollout = self.sampled()
        self.sample = self.theirs_sample()

    # ours

    def sampled(self) -> Any:
        """A rollout by the policy."""
        return self.policy.sample(self.prompts, self.group, torch.Generator().manual_seed(0))

    def update(self, *, step: bool = True) -> float:
        """An update from the rollout: the reference's tables, and a pass of each step."""
        rollout = self.ours_rollout
        rollout.held.refs.clear()
        self.policy.remember(rollout, self.learner.references, self.rows)
        signal = self.method.signal(Feedback(self.rewards, rollout.group))
        experience = [Experience(rollout, signal, torch.arange(self.rows))]
        if step:
            return self.learner.update(experience, micro_rows=self.rows, micro_steps=1, step=0)["loss"]
        return self.learner.add(experience[0], self.rows)["loss"]

    def conditional(self, run: Run) -> Run:
        """A run in which the gradient of guidance, of both sides, goes through the conditional branch alone."""
        self.policy.caller.tell_branches(self.prompts)
        branches, self.policy.caller.branches = self.policy.caller.branches, None

        def changed() -> Any:
            self.policy.caller.branches, self.detached = branches, True
            try:
                return run()
            finally:
                self.policy.caller.branches, self.detached = None, False

        return changed

    # theirs

    def embeddings(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Of as many prompts as there are, equal or not."""
        with torch.no_grad():
            words, _, pooled, _ = self.pipe.encode_prompt(
                prompt=prompts, prompt_2=prompts, prompt_3=prompts, do_classifier_free_guidance=False, max_sequence_length=16
            )
        return words, pooled

    def theirs_rollout(self) -> dict[str, Tensor]:
        """Latents, log-probabilities, embeddings and images of all rows."""
        rows = [prompt for prompt in self.prompts for _ in range(self.group)]
        words, pooled = self.embeddings(rows)
        scheduler, side = self.pipe.scheduler, self.edge // int(self.pipe.vae_scale_factor)
        scheduler.set_timesteps(self.steps)
        x = torch.randn(self.rows, self.pipe.transformer.config.in_channels, side, side, generator=torch.Generator().manual_seed(0))
        both = (torch.cat([self.without[0], words]), torch.cat([self.without[1], pooled]))
        latents, log_probs = [x], []
        with torch.no_grad():
            for number, time in enumerate(scheduler.timesteps):
                mean, std, dt = self.sde(self.guided(x, time.expand(self.rows), both), x, number)
                x = mean + std * (-dt).sqrt() * torch.randn_like(mean)
                latents.append(x)
                log_probs.append(gaussian(x, mean, std * (-dt).sqrt()))
            images = self.pipe.vae.decode(x / self.pipe.vae.config.scaling_factor + self.pipe.vae.config.shift_factor)[0]
        return {
            "latents": torch.stack(latents[:-1], 1), "next": torch.stack(latents[1:], 1), "old": torch.stack(log_probs, 1),
            "words": words, "pooled": pooled, "images": images,
        }  # fmt: skip

    def theirs_sample(self) -> dict[str, Tensor]:
        """The rows of our rollout as that code holds them."""
        rollout = self.ours_rollout
        words, pooled = self.embeddings([""])
        self.without = words.repeat(self.rows, 1, 1), pooled.repeat(self.rows, 1)
        words, pooled = self.embeddings(rollout.prompts)
        size = rollout.held.event_size
        return {
            "latents": rollout.held.x.transpose(0, 1), "next": rollout.held.x_next.transpose(0, 1), "old": rollout.log_probs.float() / size,
            "words": words, "pooled": pooled,
        }  # fmt: skip

    def guided(self, x: Tensor, time: Tensor, both: tuple[Tensor, Tensor]) -> Tensor:
        """Both branches in one call."""
        answer = self.pipe.transformer(
            hidden_states=torch.cat([x, x]), timestep=torch.cat([time, time]), encoder_hidden_states=both[0], pooled_projections=both[1],
            return_dict=False,
        )[0].float()  # fmt: skip
        free, guided = answer.chunk(2)
        free = free.detach() if self.detached else free
        return free + GUIDANCE * (guided - free)

    def sde(self, velocity: Tensor, x: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, std without its step, and dt (below 0) of one step of the SDE."""
        sigmas = self.pipe.scheduler.sigmas
        s, dt = sigmas[number], sigmas[number + 1] - sigmas[number]
        std = (s / (1 - (sigmas[1] if float(s) == 1 else s))).sqrt() * NOISE
        mean = x * (1 + std**2 / (2 * s) * dt) + velocity * (1 + std**2 * (1 - s) / (2 * s)) * dt
        return mean, std, dt

    def theirs_update(self, *, step: bool = True) -> float:
        """Steps one behind the other, the policy's and the reference's pass in each, and the optimiser's step at the end."""
        sample, total, trained = self.sample, 0.0, int(self.steps * 0.99)
        self.pipe.scheduler.set_timesteps(self.steps)
        both = torch.cat([self.without[0], sample["words"]]), torch.cat([self.without[1], sample["pooled"]])
        scores = self.rewards.float().view(-1, self.group)
        advantages = ((scores - scores.mean(1, keepdim=True)) / (self.rewards.float().std(correction=0) + 1e-4)).flatten().clamp(-5, 5)
        for number in range(trained):
            x, x_next = sample["latents"][:, number], sample["next"][:, number]
            time = self.pipe.scheduler.timesteps[number].expand(self.rows)
            mean, std, dt = self.sde(self.guided(x, time, both), x, number)
            ratio = (gaussian(x_next, mean, std * (-dt).sqrt()) - sample["old"][:, number]).exp()
            policy = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
            loss = policy / trained
            if self.beta:
                with torch.no_grad(), switched(self.pipe.transformer, on=False):
                    mean_ref, _, _ = self.sde(self.guided(x, time, both), x, number)
                penalty = ((mean - mean_ref) ** 2).mean(dim=(1, 2, 3)) / (2 * std**2)
                loss = loss + self.beta * penalty.mean() / trained
            loss.backward()
            total += float(loss.detach())
        if step:
            self.step()
        return total


def gaussian(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of each row, as a mean over its numbers."""
    log_prob = -((x.detach() - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * torch.log(torch.tensor(2 * torch.pi))
    return log_prob.mean(dim=tuple(range(1, x.ndim)))


@torch.no_grad()
def shaken_adapters(module: torch.nn.Module) -> None:
    """Adapters that are not 0, so that a reference differs."""
    rng = torch.Generator().manual_seed(7)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=rng))


# diffusers' DPO


class DiffusersDpo(Sides):
    """The order of work of diffusers' script for StableDiffusion 1.5, and ours, over one pipeline."""

    def __init__(self, widths: tuple[int, ...], pairs: int):
        self.pipe, self.pairs = unet(widths), pairs
        edge = 16 * self.pipe.vae_scale_factor
        policy = mm.policies.forward(
            mm.policies.diffusers(
                self.pipe, lora=mm.Lora(rank=8), call={"height": edge, "width": edge}, schedule=mm.Schedule(steps=4), device="cpu"
            )
        )
        shaken_adapters(self.pipe.unet)
        super().__init__(policy, mm.methods.diffusion_dpo(beta=CHECKED_BETA, half=False), self.pipe.unet)
        self.beta = CHECKED_BETA
        rng = torch.Generator().manual_seed(3)
        self.images = torch.rand((2 * pairs, 3, edge, edge), generator=rng)
        self.prompts = [f"a photo of {number // 2} red foxes" for number in range(2 * pairs)]
        self.group, rows = torch.arange(pairs).repeat_interleave(2), torch.arange(2 * pairs)
        self.feedback = Feedback(
            torch.zeros(2 * pairs).double(), self.group, pairs=rows.view(-1, 2), strength=torch.ones(pairs, dtype=torch.float64)
        )
        self.encoded = self.encode()

    def publish(self) -> None:
        """From now on with the published beta."""
        self.beta = DPO_BETA
        self.method = self.learner.method = mm.methods.diffusion_dpo(beta=DPO_BETA, half=False)

    def encode(self) -> Any:
        """Images as the policy's rows."""
        return self.policy.encode(self.prompts, self.images, self.group, torch.Generator().manual_seed(5))

    def update(self, *, step: bool = True) -> float:
        """A step from images: encoded, the reference's errors, the policy's, and the optimiser."""
        rollout, rows = self.encode() if step else self.encoded, torch.arange(2 * self.pairs)
        rollout.held.refs.clear()
        self.policy.remember(rollout, self.learner.references, len(rows))
        experience = [Experience(rollout, self.method.signal(self.feedback), rows)]
        if step:
            return self.learner.update(experience, micro_rows=len(rows), step=0)["loss"]
        return self.learner.add(experience[0], len(rows))["loss"]

    def theirs_update(self, *, step: bool = True) -> float:
        """Better rows first, then worse ones; without ``step``, the latents and noise that ours has drawn."""
        pipe, noised = self.pipe, self.encoded.held
        order = torch.cat([torch.arange(0, 2 * self.pairs, 2), torch.arange(1, 2 * self.pairs, 2)])
        scheduler = pipe.scheduler
        with torch.no_grad():
            if step:
                clean = pipe.vae.encode(2 * self.images[order] - 1).latent_dist.sample() * pipe.vae.config.scaling_factor
                noise = torch.randn_like(clean[: self.pairs]).repeat(2, 1, 1, 1)
                times = torch.randint(0, scheduler.config.num_train_timesteps, (self.pairs,)).repeat(2)
            else:
                clean, noise = noised.clean[order], noised.noise[noised.which[order], 0]
                times = self.policy.schedule.timesteps[noised.places[noised.which[order], 0]].long()
            x = scheduler.add_noise(clean, noise, times)
            tokens = pipe.tokenizer(
                self.prompts[::2], padding="max_length", truncation=True, max_length=pipe.tokenizer.model_max_length, return_tensors="pt"
            )
            words = pipe.text_encoder(tokens.input_ids)[0].repeat(2, 1, 1)
        errors = per_row_error(pipe.unet(x, times, words).sample, noise)
        with torch.no_grad(), switched(pipe.unet, on=False):
            errors_ref = per_row_error(pipe.unet(x, times, words).sample, noise)
        better, worse = (errors - errors_ref).chunk(2)
        loss = -functional.logsigmoid(self.beta * (worse - better)).mean()
        loss.backward()
        if step:
            self.step()
        return float(loss.detach())


def per_row_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each row."""
    return functional.mse_loss(prediction.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))


# the table


def calls_of(module: torch.nn.Module, run: Run) -> Calls:
    """What a run asks of the denoiser."""
    with counted(module) as calls:
        run()
    return calls


def show(title: str, sides: Sides, parts: Mapping[str, tuple[Run, Run]], cells: Mapping[str, float], rounds: int) -> None:
    """A line for each part: seconds of both by the clock and of the processor, their ratio, memory, calls."""
    table = Table(
        title, "part", "theirs, s", "mmalign, s", "theirs / mmalign", "theirs, CPU s", "mmalign, CPU s", "by CPU",
        "peak MiB, theirs", "mmalign",
        "rows of the denoiser for an image and step, theirs", "mmalign",
    )  # fmt: skip
    for part, (theirs, ours) in parts.items():
        times = in_turn({"theirs": theirs, OURS: ours}, rounds)
        wall, cpu = ratios(times["theirs"], times[OURS])
        seconds = [spread(getattr(one, kind) for one in times[side]) for kind in ("wall", "cpu") for side in ("theirs", OURS)]
        memory = [f"{allocated(run) / 2**20:.1f}" for run in (theirs, ours)]
        calls = [calls_of(sides.module, run) for run in (theirs, ours)]
        rows = [f"{one.with_gradient / cells[part]:.3g} + {one.without / cells[part]:.3g} without gradient" for one in calls]
        table.row(part, *seconds[:2], spread(wall), *seconds[2:], spread(cpu), *memory, *rows)


def show_conditional(what: str, grpo: FlowGrpo, rounds: int) -> None:
    """The gradient of guidance through the conditional branch alone, beside both sides with both branches."""
    ours, theirs = (grpo.gradient(grpo.conditional(partial(run, step=False))) for run in (grpo.update, grpo.theirs_update))
    detached = refuse_unequal("the conditional branch alone", ours, theirs)
    conditional = grpo.conditional(grpo.update)
    title = f"the gradient of guidance through the conditional branch alone: {what}; apart from DGPO's: {detached}"
    parts = {"update, theirs with both": (grpo.theirs_update, conditional), "update, mmalign with both": (grpo.update, conditional)}
    show(title, grpo, parts, dict.fromkeys(parts, int(grpo.ours_rollout.mask.sum())), rounds)


def main(args: argparse.Namespace) -> None:
    """All comparisons."""
    from diffusers.utils import logging

    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    print(machine())
    grpo = FlowGrpo(args.size, args.prompts, args.group, args.steps)
    apart = refuse_unequal(
        "flow_grpo", grpo.gradient(lambda: grpo.update(step=False)), grpo.gradient(lambda: grpo.theirs_update(step=False))
    )
    count = parameters(grpo.pipe.transformer) / 1e6
    title = f"flow_grpo's order of work: SD3 of {count:.1f} M, {grpo.rows} images, {args.steps} steps, guidance; apart: {apart}"
    parts: dict[str, tuple[Run, Run]] = {"rollout": (grpo.theirs_rollout, grpo.sampled), "update": (grpo.theirs_update, grpo.update)}
    trained = int(grpo.ours_rollout.mask.sum())
    show(title, grpo, parts, {"rollout": grpo.rows * args.steps, "update": trained}, args.rounds)
    show_conditional("LoRA and a reference, 6 passes become 5", grpo, args.rounds)
    for what, lora in {"LoRA and no reference, 4 passes become 3": True, "all weights and no reference, 6 passes become 4": False}.items():
        show_conditional(what, FlowGrpo(args.size, args.prompts, args.group, args.steps, lora=lora, beta=0.0), args.rounds)
    dpo = DiffusersDpo((32, 64), args.pairs)  # a wider one rounds more of what two like errors differ by: 1.7e-5, in float32
    apart = refuse_unequal(
        "diffusers' DPO", dpo.gradient(lambda: dpo.update(step=False)), dpo.gradient(lambda: dpo.theirs_update(step=False))
    )
    dpo = dpo if args.size == "tiny" else DiffusersDpo((64, 128, 256), args.pairs)
    dpo.publish()
    count = parameters(dpo.pipe.unet) / 1e6
    title = f"diffusers' DPO script's order of work: U-Net of {count:.1f} M, {args.pairs} pairs; apart (at 32, 64 channels): {apart}"
    show(title, dpo, {"update": (dpo.theirs_update, dpo.update)}, {"update": 2 * args.pairs}, args.rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="40M")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    main(parser.parse_args())
