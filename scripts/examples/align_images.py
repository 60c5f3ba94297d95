# %% [markdown]
# An image generator follows a reward. The base draws the digit it is asked for about half of the time.

# %%
import mmalign as mm

STEPS = 30  # 70 in `mmalign demo`

# %% [markdown]
# The policy is the model, and how its steps are made random. `gold` is a judge that is never trained on; `novelty` pays for samples that
# differ, without which accuracy is bought with sameness.

# %%
policy = mm.policies.diffusers(
    mm.worlds.digits(),  # or a hub id, a folder, any diffusers pipeline
    schedule=mm.Schedule(
        steps=8,
        kernel=mm.kernels.flow_sde(noise_level=1.0),
        window=mm.windows.first_fraction(fraction=0.5),
    ),
)
run = mm.online(
    policy,
    prompts=mm.worlds.digit_prompts(),
    rewards={"proxy": mm.worlds.digits_proxy(), "novelty": mm.rewards.novelty(scale=0.2)},
    combine=mm.combinations.weighted_sum(weights={"proxy": 1.0, "novelty": 2.15}),
    method=mm.methods.flow_grpo(ratio="per_step", clip=0.2, std="none", beta=0.03),
    steps=STEPS,
    batch={"prompts": 10, "group": 12, "epochs": 2, "micro_rows": 120},
    optimizer=mm.adamw(rate=1e-3, decay="linear", ema=0.9),
    evaluation={
        "every": STEPS,
        "samples": 8,
        "call": {"num_inference_steps": 20},
        "judges": {"gold": mm.worlds.digits_gold()},
        "metrics": {"spread": mm.worlds.digits_spread()},
    },
    run={"name": "align_images"},
)

# %%
print(run.path / "report.html")
print(run.sample(["a handwritten seven"]))
print(run.export())
