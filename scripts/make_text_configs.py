"""Writes configs/text/<method>.yaml for every method that the text world can feed: one complete file each.

    python scripts/make_text_configs.py

A method for pairs without sampled log-probabilities learns from ``text_pairs``, every other one from samples of its own. What sets a
method apart from the template stands in ``SETTINGS``, tuned by hand where the paper's default does not suit a 0.4 M model. Methods that
need what this world does not have (system turns, segments, rewards of single words) are in ``WITHOUT``.
"""

from __future__ import annotations

from pathlib import Path

from mmalign.lookup.docstrings import explanation
from mmalign.needs import OLD, kinds, refs
from mmalign.policies.language.scoring.heads import HEADS
from mmalign.rooms import find, index
from mmalign.types import Method

FOLDER = Path(__file__).parents[1] / "configs" / "text"
BY_HAND = {"grpo", "dpo", "ipo", "kto", "fine_grained_rlhf", "dppo", "grpo_s", "p3o", "opd", "cgpo"}

SETTINGS: dict[str, str] = {
    "dr_grpo": "length: 20", "sppo": "beta: 0.05", "gpo": "beta: 0.1", "inpo": "eta: 0.05", "mnpo": "eta: 0.05", "apo_zero": "beta: 0.3",
    "apo_down": "beta: 0.3", "simpo": "beta: 2.0", "power_dl": "beta: 0.1", "ld_dpo": "", "rebel": "eta: 2.0",
    "xpo": "alpha: 1.0e-3", "selm": "beta: 0.1", "archer": "earned: 0.5",
}  # fmt: skip

WITHOUT = {
    "dead_end_value": "samples of the model as it is, and ends that are bad (text_small/dead_ends)",
    "critical_token_dpo": "contrasts", "t_reg": "contrasts", "reward_augmented_dpo": "contrasts", "srpo": "contrasts",
    "mdpo": "something to take away from the prompt", "opa_dpo": "something to take away from the prompt",
    "mapl": "something to take away from the prompt", "refuel": "turns",
    "rationale_dpo": "a rationale after the answer",
    "modpo": "a second objective",
    "gdpo": "a second reward",
    "ddpo": "denoising steps (on tokens it is GRPO's kin)",
    "dance_grpo": "denoising steps", "b2_diffurl": "denoising steps", "diffusion_opd": "a teacher", "sdpo": "contrasts",
    "va_pi": "codes of images",
}  # fmt: skip

POLICY = """\
policy: {{use: transformers, model: {{use: text}}, max_completion: 20{heads}}}

method: {{use: {name}{settings}}}
"""

END = """\

evaluation:
  every: {every}
  prompts: {{use: text_prompts, count: 128, offset: 256}}
  samples: 2
  columns: 8
  judges:
    gold: {{use: text_gold}}
  metrics:
    readability: {{use: text_readability}}
run: {{name: text_{name}, seed: 0, checkpoint_every: {steps}, trackers: []}}
"""

OFFLINE = (
    """\
# {meaning} On a tiny language model, from pairs of its own sentences.
use: offline

"""
    + POLICY
    + """\

records: {{use: text_pairs, prompts: 256, groups: 4, best_of: 4}}

steps: {steps}
batch: {{records: 64, micro_rows: 128}}
optimizer: {{rate: 2.0e-4, warmup: 5}}

rewards:
  plain: {{use: text_plain}}
"""
    + END
)

ONLINE = (
    """\
# {meaning} On a tiny language model, from samples of its own.
use: online

"""
    + POLICY
    + """\
{references}
prompts: {{use: text_prompts, count: 256}}
rewards:
  plain: {{use: text_plain}}

steps: {steps}
batch: {{prompts: 16, group: 8, epochs: 2, micro_rows: 128}}
optimizer: {{rate: {rate}, warmup: 5}}
"""
    + END
)


def suited() -> dict[str, Method]:
    """The methods that get a config, built."""
    methods = {}
    for name, (entry, *_) in index("mmalign.methods").items():
        if entry.function and name not in WITHOUT | dict.fromkeys(BY_HAND):
            words = dict(pair.split(": ") for pair in SETTINGS.get(name, "").split(", ") if pair)
            method = find("mmalign.methods", name)(**{key: float(value) for key, value in words.items()})
            if "token" in method.kinds:
                methods[name] = method
    return methods


def texts() -> dict[str, str]:
    """What each of them says."""
    files = {}
    for name, method in suited().items():
        from_pairs = method.unit == "pair" and not {OLD, refs("previous")} & method.needs and name not in ("online_dpo", "gpo", "osp")
        from_pairs = from_pairs and not method.behaviors
        held = any(need.name == "ref" for need in method.needs | method.reads)  # to the reference
        files[name] = (OFFLINE if from_pairs or name in ("bco", "sft", "sft_f", "ift") else ONLINE).format(
            meaning=explanation(find("mmalign.methods", name)).meaning,
            name=name,
            references="references: {dpo: {from: text_dpo}}  # train text/dpo first\n" if refs("dpo") in method.reads else "",
            settings=f", {SETTINGS[name]}" if SETTINGS.get(name) else "",
            heads=f", heads: [{', '.join(heads)}]" if (heads := sorted(HEADS & kinds(method.needs | method.reads))) else "",
            rate="5.0e-4" if held else "1.5e-4",
            steps=60,
            every=20,
        )
    return files


def main() -> None:
    """Writes them all."""
    made = texts()
    for name, text in made.items():
        (FOLDER / f"{name}.yaml").write_text(text, encoding="utf-8")
    print(f"{len(made)} configs in {FOLDER.name}/, {len(BY_HAND)} more by hand; without one: {', '.join(WITHOUT)}")


if __name__ == "__main__":
    main()
