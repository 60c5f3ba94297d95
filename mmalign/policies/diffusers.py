"""Any diffusers pipeline as a policy: its scheduler is swapped and its own ``__call__`` runs. No per-model code.

A rollout is one call in which the scheduler answers with a kernel's ``mean + std * noise`` and records what it answered. A
replay is the same call without its ``no_grad``, over one timestep, from the recorded latent, so that the scheduler receives
the model's output with its graph. A probe is a replay at a vector of times, one for each row.

Latents are recorded in the type the pipeline keeps them in, and the log-probability is that of the recorded (rounded)
latent: with bf16 models both sides see the same numbers, and the ratio is 1 before the first update.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from mmalign.policies.parameters import ParameterSets
from mmalign.policies.scheduler import Moment, Player, grid, seat
from mmalign.samplers import kernels
from mmalign.samplers.windows import Window, all_but_last
from mmalign.types import Kernel, Level, Prediction, Rollout, Steps, UserError

__all__ = ["DiffusersPolicy", "diffusers"]

KIND = "transition"
GIVES = frozenset({"old", "refs", "kls", "std", "dt"})
DENOISERS = ("transformer", "unet", "prior", "decoder")


def diffusers(
    pipeline: Any,
    *,
    kernel: Kernel | None = None,
    num_inference_steps: int = 10,
    guidance_scale: float | None = None,
    window: Window | None = None,
    lora: dict[str, Any] | None = None,
    gradient_checkpointing: bool = False,
    dtype: str | None = None,
    device: str | None = None,
    same_noise: bool = False,
    rows_at_once: int = 64,
    call: dict[str, Any] | None = None,
) -> DiffusersPolicy:
    """A policy around a diffusers pipeline.

    Args:
        pipeline: a pipeline, or the hub id or folder of one.
        kernel: how a step is made random; ``kernels.flow_sde(noise_level=0.7)`` by default.
        num_inference_steps, guidance_scale: as the pipeline takes them, in rollout and replay alike.
        window: which steps are random and trained; ``windows.all_but_last()`` by default.
        lora: keywords of ``parameters.add_lora`` (rank, alpha, targets); None trains all of the denoiser.
        gradient_checkpointing: recompute activations in the backward pass.
        dtype: ``float32``, ``bfloat16`` or ``float16``, for a pipeline that is loaded here.
        device: where to put the pipeline; a GPU if there is one.
        same_noise: rows of one group start from one noise (DanceGRPO).
        rows_at_once: rows in one call of the pipeline while sampling.
        call: further arguments of the pipeline's call (height, width, num_frames, ...).

    Errors: UserError for a pipeline without a denoiser, without ``latents=``, or without an argument that was given.
    """
    if isinstance(pipeline, str):
        pipeline = load(pipeline, dtype=dtype)
    pipeline.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    pipeline.set_progress_bar_config(disable=True)
    policy = DiffusersPolicy(
        pipeline,
        kernel=kernel or kernels.flow_sde(noise_level=0.7),
        window=window or all_but_last(),
        lora=lora,
        same_noise=same_noise,
        rows_at_once=rows_at_once,
        call={"num_inference_steps": num_inference_steps, **({} if guidance_scale is None else {"guidance_scale": guidance_scale}), **(call or {})},
    )
    if gradient_checkpointing:
        policy.denoiser.enable_gradient_checkpointing()
    return policy


def load(name: str, *, dtype: str | None = None) -> Any:
    """``DiffusionPipeline.from_pretrained``. Errors: UserError where there is no such pipeline."""
    from diffusers import DiffusionPipeline

    types = {None: None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in types:
        raise UserError(f"policy.dtype: got {dtype!r}, takes float32, bfloat16 or float16")
    try:
        return DiffusionPipeline.from_pretrained(name, **({} if dtype is None else {"dtype": types[dtype]}))
    except (OSError, ValueError) as error:
        raise UserError(f"policy.pipeline: got {name!r}, takes a pipeline, a folder or a hub id: {str(error).splitlines()[0]}") from error


class DiffusersPolicy:
    """See ``diffusers``. ``event_size`` is known after the first rollout."""

    kind = KIND
    gives = GIVES

    def __init__(self, pipe: Any, *, kernel: Kernel, window: Window, lora: Mapping[str, Any] | None, same_noise: bool, rows_at_once: int, call: dict[str, Any]):  # fmt: skip
        self.pipe, self.kernel, self.window = pipe, kernel, window
        self.same_noise, self.rows_at_once, self.call = same_noise, rows_at_once, call
        _check_call(pipe, call)
        self.denoiser_name = next((name for name in DENOISERS if isinstance(pipe.components.get(name), torch.nn.Module)), "")
        if not self.denoiser_name:
            raise UserError(f"policy.pipeline: {type(pipe).__name__} has none of {', '.join(DENOISERS)}, so there is nothing to train")
        for module in pipe.components.values():
            if isinstance(module, torch.nn.Module):
                module.eval().requires_grad_(False)
        self.denoiser = pipe.components[self.denoiser_name]
        self.sets = ParameterSets(self.denoiser, lora=lora)
        self._embeddings: dict[Any, Any] = {}

    # Parameters

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Trained parameters by name."""
        return self.sets.trained

    def using(self, name: str) -> AbstractContextManager[None]:
        """A named parameter set in place of the current one: ``ref``, ``ema``, ``previous``, ..."""
        return self.sets.using(name)

    # Rollout

    @torch.no_grad()
    def sample(self, prompts: list[str], group_size: int, rng: torch.Generator, *, step: int = 0) -> Rollout:
        """``group_size`` outputs of each prompt under the kernel; rows of a group stand side by side.

        ``rng`` seeds one generator for each row, so that a row does not depend on ``rows_at_once``. ``step``: the number of
        the training step, for windows that move.
        """
        rows = [prompt for prompt in prompts for _ in range(group_size)]
        seeds = torch.randint(2**62, (len(rows),), generator=rng)
        starts = seeds.view(-1, group_size)[:, :1].expand(-1, group_size).reshape(-1) if self.same_noise else seeds
        window_rng = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=rng)))
        parts = []
        for chunk in range(0, len(rows), self.rows_at_once):
            at = slice(chunk, chunk + self.rows_at_once)
            parts.append(self._record(rows[at], starts[at].tolist(), seeds[at].tolist(), step, window_rng.get_state()))
        tape = {key: torch.cat([part[key] for part in parts], dim=1 if key in ("x", "x_next") else 0) for key in ("x", "x_next", "log_probs")}
        random = parts[0]["random"]
        return Rollout(
            prompts=rows,
            outputs=torch.cat([part["outputs"] for part in parts]),
            log_probs=tape["log_probs"],
            mask=random.expand(len(rows), -1).clone(),
            group=torch.arange(len(prompts)).repeat_interleave(group_size),
            private={"x": tape["x"], "x_next": tape["x_next"], "random": random, "dt": parts[0]["dt"], "seeds": seeds, "refs": {}},
        )

    def _record(self, prompts: list[str], starts: list[int], seeds: list[int], step: int, window_state: Tensor) -> dict[str, Any]:
        device = self.pipe._execution_device
        noises = [torch.Generator(device).manual_seed(seed ^ 0x5DEECE66D) for seed in seeds]
        tape: dict[str, list[Tensor]] = {"x": [], "x_next": [], "log_probs": []}
        ode, random, times = kernels.ode(), torch.zeros(0, dtype=torch.bool), torch.zeros(0)

        def answer(moment: Moment) -> Tensor:
            nonlocal random, times
            if moment.index == 0:
                steps = len(seated.schedule)
                random = self.window(steps, step, _generator(window_state))
                times = kernels.flow_time(seated.levels)
            kernel = self.kernel if random[moment.index] else ode
            mean, std = kernel(moment.prediction, moment.x, moment.t, moment.t_next)
            noise = torch.stack([torch.randn(mean.shape[1:], generator=g, device=device) for g in noises])
            x_next = kernels.sample(mean, std, noise).to(moment.x.dtype)
            random[moment.index] &= bool((std > 0).all())
            tape["x"].append(moment.x)
            tape["x_next"].append(x_next)
            tape["log_probs"].append(kernels.log_prob(x_next, mean, std) * bool(random[moment.index]))
            return x_next

        with seat(self.pipe, Player(answer)) as seated, self._remembered_prompts():
            generators = [torch.Generator(device).manual_seed(seed) for seed in starts]
            outputs = self._images(self.pipe(prompt=prompts, generator=generators, output_type="pt", **self.call))
        return {
            "x": torch.stack(tape["x"]), "x_next": torch.stack(tape["x_next"]), "log_probs": torch.stack(tape["log_probs"], dim=1).cpu(),
            "random": random, "dt": (times[:-1] - times[1:]).double(), "outputs": outputs,
        }  # fmt: skip

    @torch.no_grad()
    def generate(self, prompts: list[str], seeds: list[int], **call: Any) -> Tensor:
        """Outputs ``[B, ...]`` in 0..1 as a user gets them: the pipeline with its own scheduler, one seed for each prompt."""
        images = []
        for chunk in range(0, len(prompts), self.rows_at_once):
            at = slice(chunk, chunk + self.rows_at_once)
            generators = [torch.Generator(self.pipe._execution_device).manual_seed(seed) for seed in seeds[at]]
            images.append(self._images(self.pipe(prompt=prompts[at], generator=generators, output_type="pt", **{**self.call, **call})))
        return torch.cat(images)

    # Replay

    def remember(self, rollout: Rollout, names: Iterable[str], rows_at_once: int) -> None:
        """Means and log-probabilities of a rollout under named parameter sets, without gradient, kept in the rollout."""
        live = torch.nonzero(rollout.private["random"]).flatten().tolist()
        for name in names:
            if name in rollout.private["refs"]:
                continue
            log_probs, means = torch.zeros_like(rollout.log_probs), torch.zeros_like(rollout.private["x_next"], dtype=torch.float32)
            with torch.no_grad(), self.using(name):
                for rows in torch.arange(len(rollout.prompts)).split(rows_at_once):
                    for column in live:
                        mean, std = self._transition(rollout, rows, column)
                        log_probs[rows, column] = kernels.log_prob(rollout.private["x_next"][column][rows], mean, std).cpu()
                        means[column][rows] = mean
            rollout.private["refs"][name] = {"log_probs": log_probs, "means": means}

    def steps(self, rollout: Rollout, rows: Tensor, columns: Tensor | None = None, needs: frozenset[str] = frozenset()) -> Steps:
        """The table of some rows, and of some columns (all that are trained, by default), with gradient.

        Each column is one call of the pipeline, the same in shape as those of ``sample`` where ``rows`` are the same.
        ``needs`` of ``refs``, ``kls``, ``std``, ``dt`` fill those tables; references are those given to ``remember``.
        """
        columns = torch.nonzero(rollout.private["random"]).flatten() if columns is None else columns
        refs = rollout.private["refs"]
        wanted = {need.split(":")[0] for need in needs}
        log_probs, stds, kls = [], [], {name: [] for name in refs} if "kls" in wanted else {}  # type: ignore[var-annotated]
        for column in columns.tolist():
            mean, std = self._transition(rollout, rows, column)
            log_probs.append(kernels.log_prob(rollout.private["x_next"][column][rows], mean, std))
            stds.append(std.detach().double().cpu().reshape(-1)[:1].expand(len(rows)))
            for name, table in kls.items():
                table.append(kernels.kl(mean, std, refs[name]["means"][column][rows].to(mean), std))
        cells = (rows[:, None], columns[None, :])
        facts = {"std": torch.stack(stds, dim=1)} if "std" in wanted else {}
        if "dt" in wanted:
            facts["dt"] = rollout.private["dt"][columns].expand(len(rows), -1)
        return Steps(
            log_probs=torch.stack(log_probs, dim=1).cpu(),
            mask=rollout.mask[cells],
            old=rollout.log_probs[cells],
            refs={name: table["log_probs"][cells] for name, table in refs.items()} if "refs" in wanted else {},
            kls={name: torch.stack(table, dim=1).cpu() for name, table in kls.items()},
            facts=facts,
            event_size=rollout.private["x"][0, 0].numel(),
            kind="transition",
        )

    def _transition(self, rollout: Rollout, rows: Tensor, column: int) -> tuple[Tensor, Tensor]:
        """``(mean, std)`` of one recorded step under the current parameters."""
        x = rollout.private["x"][column][rows]
        heard: list[Moment] = []

        def answer(moment: Moment) -> Tensor:
            heard.append(moment)
            return moment.x

        self._again([rollout.prompts[row] for row in rows.tolist()], x, rollout.private["seeds"][rows].tolist(), Player(answer, only=column))
        moment = heard[0]
        if not torch.equal(moment.x, x):
            worst = float((moment.x.double() - x.double()).abs().max())
            raise UserError(f"replay: {type(self.pipe).__name__} changed latents= before its first step (by {worst:.2g}), so its steps cannot be scored again")
        return self.kernel(moment.prediction, moment.x, moment.t, moment.t_next)

    def probe(self, prompts: list[str], x: Tensor, timesteps: Tensor, levels: Level) -> Prediction:
        """What the denoiser says of ``x [B, ...]`` at ``timesteps [B]`` (in its own units) with noise ``levels`` (each ``[B]``).

        With gradient. One call of the pipeline without classifier-free guidance.
        """
        heard: list[Moment] = []

        def answer(moment: Moment) -> Tensor:
            heard.append(moment)
            return moment.x

        player = Player(answer, timesteps=timesteps, levels=levels)
        quiet = {"guidance_scale": 1.0} if "guidance_scale" in self.call else {}
        self._again(prompts, x, [0] * len(prompts), player, **quiet)
        return heard[0].prediction

    def schedule(self) -> tuple[Tensor, Level]:
        """Timesteps ``[T]`` and levels ``[T + 1]`` that the pipeline's own call uses."""
        found: list[Any] = []

        class Enough(Exception):
            pass

        def answer(moment: Moment) -> Tensor:
            found.extend([seated.schedule, seated.levels])
            raise Enough

        with torch.no_grad(), seat(self.pipe, Player(answer)) as seated, self._remembered_prompts():
            try:
                self.pipe(prompt=[""], output_type="latent", **self.call)
            except Enough:
                pass
        return found[0], found[1]

    def _again(self, prompts: list[str], x: Tensor, seeds: list[int], player: Player, **call: Any) -> None:
        """The pipeline's call without its ``no_grad``, from given latents; decoders stay out."""
        generators = [torch.Generator(self.pipe._execution_device).manual_seed(seed) for seed in seeds]
        run = inspect.unwrap(type(self.pipe).__call__)
        with seat(self.pipe, player), self._remembered_prompts():
            run(self.pipe, prompt=prompts, latents=x, generator=generators, output_type="latent", return_dict=False, **{**self.call, **call})

    @contextmanager
    def _remembered_prompts(self) -> Iterator[None]:
        """``encode_prompt`` answers from memory while the block lasts: the encoders are frozen, and replays ask again and again."""
        encode = getattr(self.pipe, "encode_prompt", None)
        if encode is None:
            yield
            return

        def remembered(*args: Any, **kwargs: Any) -> Any:
            key = repr((args, sorted(kwargs.items())))
            if any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
                return encode(*args, **kwargs)
            if key not in self._embeddings:
                while len(self._embeddings) >= 256:
                    self._embeddings.pop(next(iter(self._embeddings)))
                with torch.no_grad():
                    self._embeddings[key] = encode(*args, **kwargs)
            return self._embeddings[key]

        self.pipe.encode_prompt = remembered
        try:
            yield
        finally:
            del self.pipe.encode_prompt

    @staticmethod
    def _images(result: Any) -> Tensor:
        outputs = next(iter(result.values())) if isinstance(result, Mapping) else result[0]
        outputs = torch.as_tensor(outputs) if not isinstance(outputs, list) else torch.stack([torch.as_tensor(o) for o in outputs])
        return outputs.float()


def _generator(state: Tensor) -> torch.Generator:
    rng = torch.Generator()
    rng.set_state(state)
    return rng


def _check_call(pipe: Any, call: Mapping[str, Any]) -> None:
    accepted = inspect.signature(inspect.unwrap(type(pipe).__call__)).parameters
    if "latents" not in accepted:
        raise UserError(f"policy.pipeline: {type(pipe).__name__} takes no latents=, so its steps cannot be scored again")
    for name in call:
        if name not in accepted:
            raise UserError(f"policy.{name}: {type(pipe).__name__} takes no such argument; it takes {', '.join(list(accepted)[1:])}")
