# %% [markdown]
# Guidance steers a model while it samples. Drawing more samples and keeping the best does so too: which is better at equal cost?

# %%
import mmalign as mm

pipe, proxy, gold = mm.worlds.digits(), mm.worlds.digits_proxy(), mm.worlds.digits_gold()
SEEDS = 3

# %%
with mm.guide(pipe, proxy, guidance="fk", scale=4.0, particles=4) as guided:
    image = pipe("a handwritten seven", num_inference_steps=8).images[0]
print(guided.scores, guided.ledger)

# %% [markdown]
# The guidance sees `proxy`, `gold` decides. The table says what each reached, what it cost, and whether it beats best-of-N.

# %%
comparison = mm.compare(
    pipe,
    proxy,
    guidance=["fk particles=4", "dps scale=5"],
    prompts=["a handwritten seven", "a handwritten two"],
    judge=gold,
    call={"num_inference_steps": 8},
    samples=2,
    seeds=SEEDS,
    out="comparison",
)
print(comparison)
