# %% [markdown]
# Pairs in a file of your own. Columns may be called otherwise, and a row that cannot be used is put aside with its reason.

# %%
import json
from pathlib import Path

import mmalign as mm

STEPS = 5
rows = [
    {"question": "open the file", "good": "reads the file", "bad": "file file file"},
    {"question": "close the file", "good": "writes the file", "bad": "the the the"},
    {"question": "no better answer here"},
]
Path("my_pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

# %%
records = mm.data.texts(path="my_pairs.jsonl", columns={"prompt": "question", "chosen": "good", "rejected": "bad"})
run = mm.offline(
    mm.policies.transformers(mm.worlds.text(), max_completion=20),
    records=records,
    method=mm.methods.dpo(beta=0.1),
    steps=STEPS,
    batch={"records": 2},
    run={"name": "own_data"},
)

# %%
print((run.path / "broken.jsonl").read_text(encoding="utf-8"))
