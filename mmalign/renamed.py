"""What the settings of 0.1 are called since 0.2.0: an old key is refused with one line that says so."""

from __future__ import annotations

RECIPE = {
    "name": "run.name", "runs": "run.folder", "seed": "run.seed", "checkpoint_every": "run.checkpoint_every", "trackers": "run.trackers",
    "prompts_per_step": "batch.prompts", "records_per_step": "batch.records", "group_size": "batch.group", "epochs": "batch.epochs",
    "updates_per_epoch": "batch.updates", "micro_rows": "batch.micro_rows", "micro_steps": "batch.micro_steps",
    "missing": "batch.missing", "resample": "batch.resample",
    "learning_rate": "optimizer.rate", "warmup": "optimizer.warmup", "weight_decay": "optimizer.weight_decay",
    "max_grad_norm": "optimizer.max_norm", "ema": "optimizer.ema", "decay_steps": "optimizer.decay (linear, over all steps)",
    "refresh": "references ({NAME: {every: N, shares: {SET: share}}})",
    "reward_weights": "combine ({use: weighted_sum, weights: {...}})",
    "judges": "evaluation.judges", "metrics": "evaluation.metrics", "early_stop": "evaluation.stop",
}  # fmt: skip
POLICY = {
    "num_inference_steps": "schedule.steps", "guidance_scale": "schedule.guidance", "kernel": "schedule.kernel",
    "window": "schedule.window", "same_noise": "schedule.same_noise",
    "gradient_checkpointing": "memory.gradient_checkpointing", "storage": "memory.storage", "offload": "memory.offload",
    "slice_vae": "memory.slice_vae", "tile_vae": "memory.tile_vae", "compile": "memory.compile", "rows_at_once": "memory.rows_at_once",
    "logits_at_once": "memory.logits_at_once", "shared_prefixes": "memory.shared_prefixes",
}  # fmt: skip
"""old key -> where it went, of a recipe and of a policy."""


def renamed(key: str, path: str) -> str:
    """``is optimizer.rate since 0.2.0`` for an old key; an empty string for any other. path: of the node that it stands in."""
    policy = path.split(".")[0] == "policy" or path in ("diffusers", "transformers")
    where = POLICY if policy else RECIPE if path in ("", "online", "offline") else {}
    return f"is {where[key]} since 0.2.0" if key in where else ""
