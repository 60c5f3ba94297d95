# %% [markdown]
# A tiny language model learns from pairs of its own sentences, ranked by how plain their words are. The judge is of another kind.

# %%
import mmalign as mm

STEPS = 30

# %%
run = mm.offline(
    mm.policies.transformers(mm.worlds.text(), max_completion=20),
    records=mm.worlds.text_pairs(prompts=64, groups=4, best_of=4),
    method=mm.methods.dpo(beta=0.1),
    steps=STEPS,
    batch={"records": 16, "micro_rows": 64},
    optimizer=mm.adamw(rate=2e-4, warmup=5),
    evaluation={
        "every": STEPS,
        "samples": 2,
        "columns": 4,
        "prompts": mm.worlds.text_prompts(count=32, offset=256),
        "judges": {"gold": mm.worlds.text_gold()},
    },
    run={"name": "align_text"},
)

# %% [markdown]
# What plain transformers loads; the card beside it has the lines.

# %%
print(run.export())
