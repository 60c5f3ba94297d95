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


SYNONYMS = {
    "lr": "optimizer.rate", "lr_scheduler": "optimizer.decay (constant, linear or cosine) and optimizer.warmup",
    "lr_scheduler_type": "optimizer.decay (constant, linear or cosine)", "scheduler": "optimizer.decay, or policy.schedule",
    "warmup_steps": "optimizer.warmup", "lr_warmup_steps": "optimizer.warmup", "warmup_ratio": "optimizer.warmup, in steps",
    "optim": "optimizer.use", "optimiser": "optimizer", "adam_beta1": "optimizer.betas", "adam_beta2": "optimizer.betas",
    "adam_epsilon": "optimizer.eps", "adam_weight_decay": "optimizer.weight_decay", "clip_grad_norm": "optimizer.max_norm",
    "gradient_clipping": "optimizer.max_norm", "ema_decay": "optimizer.ema", "use_ema": "optimizer.ema, its decay",
    "gradient_accumulation_steps": "batch.micro_rows, the rows of one backward pass: the loss of a step does not depend on it",
    "per_device_train_batch_size": "batch.micro_rows in memory, and batch.prompts times batch.group (offline: batch.records) a step",
    "train_batch_size": "batch.prompts and batch.group (offline: batch.records)", "batch_size": "batch.prompts (offline: batch.records)",
    "num_generations": "batch.group", "num_images_per_prompt": "batch.group", "num_return_sequences": "batch.group", "n": "batch.group",
    "num_train_epochs": "steps, and batch.epochs over one rollout", "max_steps": "steps", "max_train_steps": "steps",
    "num_iterations": "batch.epochs", "ppo_epochs": "batch.epochs", "num_mini_batches": "batch.updates",
    "output_dir": "run.folder and run.name", "run_name": "run.name", "report_to": "run.trackers", "logger": "run.trackers",
    "save_steps": "run.checkpoint_every", "checkpointing_steps": "run.checkpoint_every", "eval_steps": "evaluation.every",
    "validation_prompts": "evaluation.prompts", "eval_prompts": "evaluation.prompts", "early_stopping_patience": "evaluation.stop.patience",
    "model": "policy.model, or policy.pipeline", "model_name_or_path": "policy.model, or policy.pipeline", "pipeline": "policy.pipeline",
    "pretrained_model_name_or_path": "policy.model, or policy.pipeline", "lora": "policy.lora", "lora_rank": "policy.lora.rank",
    "lora_r": "policy.lora.rank", "lora_alpha": "policy.lora.alpha", "peft_config": "policy.lora", "use_peft": "policy.lora",
    "mixed_precision": "policy.dtype", "bf16": "policy.dtype: bfloat16", "fp16": "policy.dtype: float16", "torch_dtype": "policy.dtype",
    "resolution": "policy.call.height and policy.call.width", "height": "policy.call.height", "width": "policy.call.width",
    "negative_prompt": "policy.call.negative_prompt, and evaluation.call.negative_prompt", "num_frames": "policy.call.num_frames",
    "max_completion_length": "policy.max_completion", "max_new_tokens": "policy.max_completion", "max_prompt_length": "policy.max_prompt",
    "temperature": "policy.temperature", "dataset": "prompts (offline: records)", "train_dataset": "prompts (offline: records)",
    "dataset_name": "prompts (offline: records)", "reward": "rewards, by name", "reward_funcs": "rewards, by name", "loss": "method",
    "reward_model": "rewards, by name", "beta": "method.beta", "loss_type": "method.use", "trainer": "method.use",
    "epsilon": "method.clip", "clip_range": "method.clip", "ref_model": "references", "sync_ref_model": "references.ref.every",
}  # fmt: skip
"""A recipe's settings, as other libraries say them -> as they are here."""
PROCESSORS = "in the preprocessor_config.json of the folder that tokenizer names"
WITHIN = {
    "policy": {
        "resolution": "call.height and call.width", "height": "call.height", "width": "call.width", "num_frames": "call.num_frames",
        "negative_prompt": "call.negative_prompt", "num_images_per_prompt": "batch.group", "scheduler": "schedule",
        "lora_rank": "lora.rank", "lora_alpha": "lora.alpha", "peft_config": "lora", "torch_dtype": "dtype", "mixed_precision": "dtype",
        "precision": "dtype", "max_new_tokens": "max_completion", "max_completion_length": "max_completion", "num_steps": "schedule.steps",
        "cfg": "schedule.guidance", "cfg_scale": "schedule.guidance", "model": "pipeline", "unet": "pipeline", "transformer": "pipeline",
        "min_pixels": f"min_pixels {PROCESSORS}", "max_pixels": f"max_pixels {PROCESSORS}", "processor": "tokenizer",
        "processor_kwargs": f"so, each by its name, {PROCESSORS}", "image_size": f"size {PROCESSORS}",
    },
    "call": {"num_images_per_prompt": "batch.group", "steps": "num_inference_steps",
             "guidance": "guidance_scale", "cfg": "guidance_scale", "seed": "run.seed"},
    "lora": {"r": "rank", "lora_alpha": "alpha", "target_modules": "targets", "lora_dropout": "dropout", "modules": "targets"},
    "batch": {"size": "prompts and group (offline: records)", "gradient_accumulation_steps": "micro_rows", "group_size": "group",
              "num_generations": "group", "prompts_per_step": "prompts", "num_images_per_prompt": "group"},
    "optimizer": {"lr": "rate", "learning_rate": "rate", "lr_scheduler": "decay and warmup", "schedule": "decay", "name": "use",
                  "type": "use", "warmup_steps": "warmup", "max_grad_norm": "max_norm", "clip": "max_norm", "epsilon": "eps",
                  "beta1": "betas", "beta2": "betas", "scheduler": "decay", "ema_decay": "ema"},
    "evaluation": {"steps": "every", "num_inference_steps": "call.num_inference_steps", "rewards": "judges", "seed": "run.seed",
                   "negative_prompt": "call.negative_prompt", "early_stop": "stop", "num_samples": "samples"},
    "run": {"output_dir": "folder", "report_to": "trackers", "save_every": "checkpoint_every", "steps": "steps, beside run"},
}  # fmt: skip
"""The same of what stands inside: the last word of the place -> its settings."""
PYTHON = {"adamw": "optimizer", "sgd": "optimizer", "adafactor": "optimizer", "muon": "optimizer", "adamw_8bit": "optimizer",
          "Lora": "lora", "Batch": "batch", "Evaluation": "evaluation", "RunSettings": "run", "diffusers": "policy",
          "transformers": "policy"}  # fmt: skip
"""What makes these in Python -> the place that it stands for."""


def renamed(key: str, path: str) -> str:
    """``is optimizer.rate since 0.2.0`` for an old key, ``is called batch.group`` for another library's; an empty string for any other.

    path: of the node that it stands in, or the name of the function that was called in Python.
    """
    recipe = path in ("", "online", "offline")
    place = PYTHON.get(path, path.rpartition(".")[2] or path)
    if key in POLICY and "policy" in (path.split(".")[0], place):
        return f"is {POLICY[key]} since 0.2.0"
    if key in RECIPE and recipe:
        return f"is {RECIPE[key]} since 0.2.0"
    other = (SYNONYMS if recipe else WITHIN.get(place, {})).get(key)
    return f"is called {other}" if other else ""
