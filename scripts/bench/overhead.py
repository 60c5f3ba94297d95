"""What it costs to replay a step through a pipeline's own ``__call__`` instead of calling its denoiser.

    python scripts/bench/overhead.py            # three sizes of an SD3 transformer, some minutes on two cores
    python scripts/bench/overhead.py --rounds 5

Both sides compute the log-probability of the same recorded step, with its backward pass, from the same inputs; the direct side gets
them ready-made (latent, timestep, embeddings). They take turns; the table shows medians and the spread of the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from mmalign.policies.diffusers import diffusers
from mmalign.policies.settings import Schedule
from mmalign.policies.twins.pipelines import twin
from mmalign.samplers import kernels
from mmalign.types import Level

SIZES = {"3 M": (2, 4), "41 M": (8, 6), "300 M": (16, 12)}  # layers, heads of 64
ROWS = 4


def pipeline(layers: int, heads: int) -> Any:
    """A tiny StableDiffusion3Pipeline around a transformer of some size, for latents of 32x32."""
    from diffusers import SD3Transformer2DModel

    pipe = twin("StableDiffusion3Pipeline")
    old = pipe.transformer.config
    pipe.register_modules(
        transformer=SD3Transformer2DModel(
            sample_size=32, patch_size=2, in_channels=old.in_channels, out_channels=old.in_channels, num_layers=layers,
            attention_head_dim=64, num_attention_heads=heads,
            joint_attention_dim=old.joint_attention_dim, caption_projection_dim=64 * heads,
            pooled_projection_dim=old.pooled_projection_dim, pos_embed_max_size=32,
        )
    )  # fmt: skip
    return pipe


def sides(pipe: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """The two things that are timed: through the pipeline, and directly."""
    edge = 32 * pipe.vae_scale_factor
    call = {"height": edge, "width": edge, "max_sequence_length": 16}
    policy = diffusers(pipe, call=call, schedule=Schedule(steps=4, guidance=1.0))
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


def seconds(run: Callable[[], None]) -> float:
    """Wall time of one run."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main(rounds: int) -> None:
    """Prints a table: parameters, seconds of both sides, their ratio."""
    print(f"{'parameters':>12}  {'pipeline s':>10}  {'direct s':>10}  {'ratio':>7}  quartiles of the ratio")
    for layers, heads in SIZES.values():
        pipe = pipeline(layers, heads)
        through, directly = sides(pipe)
        through(), directly()  # warm up
        pairs = [(seconds(through), seconds(directly)) for _ in range(rounds)]
        ratios = sorted(a / b for a, b in pairs)
        quarter = statistics.quantiles(ratios, n=4)
        count = sum(p.numel() for p in pipe.transformer.parameters()) / 1e6
        print(
            f"{count:>10.1f} M  {statistics.median(a for a, _ in pairs):>10.4f}  {statistics.median(b for _, b in pairs):>10.4f}"
            f"  {statistics.median(ratios):>7.3f}  {quarter[0]:.3f} to {quarter[2]:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    main(parser.parse_args().rounds)
