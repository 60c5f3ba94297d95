# %% [markdown]
# A small Qwen2-VL describes scenes of digits, and names some that are not there. Less invention is easy for a model that falls silent, so
# recall stands beside it.

# %%
import mmalign as mm

STEPS = 30

# %%
run = mm.online(
    mm.policies.transformers(mm.worlds.digit_scenes(), max_completion=24),
    prompts=mm.worlds.digit_scenes_prompts(count=256),
    rewards={"truth": mm.worlds.scene_truth()},
    method=mm.methods.grpo(beta=0.0),
    steps=STEPS,
    batch={"prompts": 16, "group": 8, "micro_rows": 128},
    optimizer=mm.adamw(rate=3e-4, warmup=3),
    evaluation={
        "every": STEPS,
        "samples": 1,
        "columns": 1,
        "prompts": mm.worlds.digit_scenes_prompts(split="held_out", count=50),
        "call": {"temperature": 0},
        "judges": {"exact": mm.worlds.scene_exact()},
        "metrics": {"hallucination": mm.worlds.scene_hallucination()},
        "mark": mm.worlds.scene_marks(),  # inventions are struck through on the page
    },
    run={"name": "honest_vlm"},
)
print(run.path / "report.html")
