# %% [markdown]
# A pipeline of your own needs no adapter. mmalign puts its scheduler into it and runs its own `__call__`, so whatever that does is part of
# what is trained: here prompts are written in lower case before the model reads them.

# %%
import torch

import mmalign as mm

STEPS = 5
base = mm.worlds.digits()


class Politely(type(base)):  # type: ignore[misc]
    """The digits' pipeline, which reads prompts in any case."""

    def encode_prompt(self, prompt: list[str], device: torch.device) -> torch.Tensor:
        return super().encode_prompt([one.lower() for one in prompt], device)


pipe = Politely(**base.components)

# %% [markdown]
# Before anything is trained, the run replays its first rollout, and refuses to go on where a step would be scored differently from how
# it was sampled.

# %%
run = mm.online(
    mm.policies.diffusers(pipe, lora={"rank": 4, "targets": "all-linear"}, schedule={"steps": 4, "kernel": mm.kernels.flow_sde()}),
    prompts=["A handwritten Seven", "A handwritten Two"],
    rewards={"digit": mm.worlds.digits_proxy()},
    method=mm.methods.flow_grpo(),
    steps=STEPS,
    batch={"prompts": 2, "group": 4},
    run={"name": "own_pipeline"},
)
print(run.path)
