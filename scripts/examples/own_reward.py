# %% [markdown]
# A reward is a function `(outputs, prompts, **columns) -> [B]`. This one wants pictures with much ink.

# %%
import torch

import mmalign as mm

STEPS = 10


def ink(outputs: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """outputs: `[B, channels, height, width]` in 0 to 1. A picture that is not finite has no score: NaN, never 0."""
    return outputs.flatten(1).mean(1)


# %% [markdown]
# Alone it is followed until the digits are gone. Beside the classifier it counts half.

# %%
run = mm.online(
    mm.policies.diffusers(mm.worlds.digits(), schedule={"steps": 4, "kernel": mm.kernels.flow_sde()}),
    prompts=mm.worlds.digit_prompts(),
    rewards={"ink": ink, "digit": mm.worlds.digits_proxy()},
    combine=mm.combinations.weighted_sum(weights={"ink": 0.5, "digit": 1.0}),
    method=mm.methods.flow_grpo(),
    steps=STEPS,
    batch={"prompts": 4, "group": 8},
    evaluation={"every": STEPS, "samples": 4, "judges": {"gold": mm.worlds.digits_gold()}},
    run={"name": "own_reward"},
)
print(run.path / "report.html")
