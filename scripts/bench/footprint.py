"""What ``mmalign rehearse --memory`` predicts for an update, beside what torch's allocator gives out on a CPU.

    python scripts/bench/footprint.py                     # all cases
    python scripts/bench/footprint.py sd3-lora --threads 2

Each case is a process of its own that makes the real model with random weights, samples a rollout and makes two updates; the second is
measured, by the profiler's record of every allocation on the CPU, above what was live before it. To that the weights, the sets of
parameters and the optimiser's states are added, tensor by tensor. The prediction is made in another process, without weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

import torch
from measure import allocated

SD3: dict[str, Any] = {"layers": 6, "heads": 10, "side": 32}  # some 40 M parameters
LLAMA: dict[str, Any] = {  # HuggingFaceTB/SmolLM2-135M, as its config.json has it
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "max_position_embeddings": 8192, "tie_word_embeddings": True, "pad_token_id": 2, "bos_token_id": 1,
    "eos_token_id": 0,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "sd3-lora": {"of": "sd3", "lora": True},
    "sd3-lora-checkpointing": {"of": "sd3", "lora": True, "checkpointing": True},
    "sd3-full": {"of": "sd3", "lora": False},
    "sd3-full-checkpointing": {"of": "sd3", "lora": False, "checkpointing": True},
    "smollm2-135m-lora": {"of": "llama", "lora": True},
    "smollm2-135m-full-checkpointing": {"of": "llama", "lora": False, "checkpointing": True},
    "tiny-sd3-full": {"of": "sd3", "lora": False, "layers": 2, "heads": 4},
    "tied-llama-full-checkpointing": {
        "of": "llama",
        "lora": False,
        "checkpointing": True,
        "num_hidden_layers": 2,
        "hidden_size": 192,
        "num_attention_heads": 3,
        "head_dim": 64,
    },
    "tiny-llama-full": {
        "of": "llama",
        "lora": False,
        "num_hidden_layers": 4,
        "hidden_size": 192,
        "num_attention_heads": 3,
        "head_dim": 64,
        "vocab_size": 8000,
    },
}
MICRO, GROUP, PROMPT, COMPLETION = 4, 8, 64, 64  # two passes: the second finds the gradients of the first


def pipeline(case: dict[str, Any]) -> Any:
    """A StableDiffusion3Pipeline of random weights; encoders and decoder are tiny."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    from mmalign.policies.twins.pipelines import twin

    size = {**SD3, **case}
    tiny = twin("StableDiffusion3Pipeline")
    old = tiny.transformer.config
    transformer = SD3Transformer2DModel(
        sample_size=size["side"], patch_size=2, in_channels=old.in_channels, out_channels=old.out_channels, num_layers=size["layers"],
        attention_head_dim=64, num_attention_heads=size["heads"], caption_projection_dim=64 * size["heads"],
        joint_attention_dim=old.joint_attention_dim, pooled_projection_dim=old.pooled_projection_dim, pos_embed_max_size=96,
        dual_attention_layers=(), qk_norm="rms_norm",
    )  # fmt: skip
    return StableDiffusion3Pipeline(**{**tiny.components, "transformer": transformer})


def model(case: dict[str, Any]) -> Any:
    """A Llama of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**LLAMA, **{key: value for key, value in case.items() if key in LLAMA}}))


def settings(case: dict[str, Any]) -> dict[str, Any]:
    """Keywords that the real policy and the counted one share."""
    from mmalign.policies.settings import Lora, Memory, Schedule, TextMemory

    checkpointing: dict[str, Any] = {"gradient_checkpointing": bool(case.get("checkpointing"))}
    lora = {"lora": Lora(rank=16)} if case["lora"] else {}
    if case["of"] == "llama":
        return {**lora, "memory": TextMemory(**checkpointing), "max_prompt": PROMPT, "max_completion": COMPLETION}
    call = {"height": 8 * SD3["side"] // 4, "width": 8 * SD3["side"] // 4, "max_sequence_length": 32}
    return {**lora, "memory": Memory(**checkpointing), "schedule": Schedule(steps=4, guidance=4.5), "call": call}


def predicted(case: dict[str, Any]) -> dict[str, int]:
    """Bytes of an update, in all, and of what it holds beside what is there before."""
    from mmalign.commands.footprint import states
    from mmalign.policies.inspecting import footprint, footprint_language
    from mmalign.policies.inspecting.ledger import size_of
    from mmalign.training.optimizers import adamw

    home: Any = footprint_language.transformers if case["of"] == "llama" else footprint.diffusers
    shape = home(model(case) if case["of"] == "llama" else pipeline(case), **settings(case))
    measured = shape.measure(footprint.Rows(GROUP, GROUP, MICRO))
    own = size_of(measured.trained)
    copies = 0 if case["lora"] else own
    update = sum(part.size for part in measured.parts if footprint.UPDATE in part.phases) + own
    kept = sum(part.size for part in measured.parts if part.name.startswith(("weights", "LoRA")))
    return {"update": update, "kept": kept + copies + states(adamw(), "adamw", measured)}


def measured(case: dict[str, Any]) -> dict[str, int]:
    """The same, of a real update."""
    from mmalign.methods import flow_grpo, grpo
    from mmalign.policies.diffusers import diffusers
    from mmalign.policies.transformers import transformers
    from mmalign.policies.twins.texts import bytes_tokenizer
    from mmalign.training.optimizers import adamw
    from mmalign.training.updates.experience import Experience
    from mmalign.training.updates.learner import Learner

    if case["of"] == "llama":
        policy: Any = transformers((model(case), bytes_tokenizer()), device="cpu", **settings(case))
        from mmalign.policies.language.prompts.encoded_prompts import Prompt

        tokens, which = torch.randint(4, 200, (GROUP, COMPLETION)), torch.zeros(GROUP, dtype=torch.int64)
        lengths = torch.full((GROUP,), COMPLETION)
        rollout = policy.table([Prompt(tuple([5] * PROMPT))], which, tokens, lengths, torch.ones_like(tokens, dtype=torch.bool))
        rollout.log_probs = policy.log_probs(rollout, GROUP)
        method = grpo(beta=0.0)
        held = [policy.model]
    else:
        policy = diffusers(pipeline(case), device="cpu", **settings(case))
        rollout = policy.sample(["a fox"], GROUP, torch.Generator().manual_seed(0))
        method = flow_grpo(ratio="per_step", clip=0.2, beta=0.0)
        held = [part for part in policy.pipe.components.values() if isinstance(part, torch.nn.Module)]
    learner = Learner(policy, method, adamw(), steps=9)
    experience = [Experience(rollout, torch.linspace(-1, 1, GROUP, dtype=torch.float64)[:, None], torch.arange(GROUP))]
    learner.update(experience, micro_rows=MICRO, step=0)
    peak = allocated(lambda: learner.update(experience, micro_rows=MICRO, step=1))
    seen = {id(t): t.numel() * t.element_size() for part in held for t in [*part.parameters(), *part.buffers()]}
    sets = sum(t.numel() * t.element_size() for table in policy.sets.sets.values() for t in table.values())
    kept = sum(seen.values()) + sets + sum(t.numel() * t.element_size() for t in learner.tensors()["optimizer"].values())
    return {"update": peak, "kept": kept}


def main(names: list[str], threads: int) -> None:
    """The table."""
    print(f"{'':34}{'an update holds, MiB':^34}{'in all, MiB':^34}")
    print(f"{'':34}" + f"{'predicted':>11}{'measured':>11}{'off':>9}   " * 2)
    for name in names:
        cells = []
        for what in ("predicted", "measured"):
            command = [sys.executable, "-W", "ignore", __file__, "--one", name, "--what", what, "--threads", str(threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            cells.append(json.loads(done.stdout.splitlines()[-1]))
        line = f"{name:34}"
        for key in (["update"], ["update", "kept"]):
            guess, true = (sum(cell[one] for one in key) / 2**20 for cell in cells)
            line += f"{guess:>11.1f}{true:>11.1f}{guess / true - 1:>+9.1%}   "
        print(line, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--what", choices=("predicted", "measured"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.one:
        print(json.dumps({"predicted": predicted, "measured": measured}[given.what](CASES[given.one])))
    else:
        main(given.cases, given.threads)
