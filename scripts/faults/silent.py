"""Kinds 1 to 3 and 7: runs that learn nothing, weights that are not there, rewards and dialects that are wrong."""

from __future__ import annotations

from typing import Any

from safetensors.torch import load_file, save_file
from torch import rand
from user import OFFLINE, ONLINE, User, fault

import mmalign as mm
from mmalign.rooms import resource

NEED_SCORES = ("mm_dpo", "modpo", "raft", "a_lol", "rebel", "reinforce", "reward_weighted_regression", "gpg")
MORE: dict[str, dict[str, Any]] = {"modpo": {"weight": 0.5}}
LAYER = "model.layers.0.mlp.up_proj.weight"
DEAD = {"rewards": {"one": {"use": "own.constant"}}, "run.dead_steps": 2, "steps": 5}


def without_scores(name: str) -> None:
    @fault(1, f"offline {name} on pairs without scores", "say nothing that this method learns from")
    def act(user: User) -> str:
        return user.train(OFFLINE, {"method": {"use": name, **MORE.get(name, {})}})


for _name in NEED_SCORES:
    without_scores(_name)


@fault(1, "a constant reward for a whole run, on the console", "learned nothing after 2 steps(.|\n)*exit 1")
def constant(user: User) -> str:
    return user.train(ONLINE, DEAD)


@fault(1, "a constant reward, in the report's headline", "<title>.*It learned nothing")
def headline(user: User) -> str:
    user.train(ONLINE, DEAD)
    return (user.folder / "runs/r/report.html").read_text()


@fault(1, "a constant reward, in the card", r"This run learned nothing: none of its 2 steps taught it anything")
def card(user: User) -> str:
    user.train(ONLINE, DEAD)
    user.mmalign("export", "runs/r", "--trust")
    return (user.folder / "runs/r/export/README.md").read_text()


@fault(1, "group_size: 1 with GRPO", "batch: with prompts: 2 and group: 1 this method has no signal")
def one_row(user: User) -> str:
    return user.train(ONLINE, {"batch.group": 1})


@fault(1, "a float16 checkpoint, fully fine-tuned", "trained parameters are float16")
def half(user: User) -> str:
    return user.train(OFFLINE, {"policy.dtype": "float16"})


@fault(1, "dead updates: a setting stops after k of them", "learned nothing after 3 steps")
def dead(user: User) -> str:
    return user.train(ONLINE, {**DEAD, "run.dead_steps": 3})


@fault(1, "PPO whose first batch of rewards is all 0", "finished after 4 steps")
def sparse(user: User) -> str:
    return user.train(ONLINE, {"rewards": {"late": {"use": "own.late"}}, "method": {"use": "ppo"}, "policy.heads": ["value"], "steps": 4})


# ---- 2


@fault(2, "a tensor missing from a Llama folder", f"20 of 21 tensors|missing: {LAYER}")
def missing(user: User) -> str:
    return user.train(OFFLINE, {"policy.model": user.model(without=[LAYER])})


@fault(2, "a tensor in it that no Llama has", "not known: model.layers.0.strange")
def unexpected(user: User) -> str:
    return user.train(OFFLINE, {"policy.model": user.model(extra=["model.layers.0.strange"])})


@fault(2, "tied weights are no missing ones", "finished after 2 steps")
def tied(user: User) -> str:
    return user.train(OFFLINE, {"policy.model": user.model()})


@fault(2, "a tensor missing from an adapter", "policy.lora.from: .* holds 1 tensors with no place")
def adapter(user: User) -> str:
    user.train(OFFLINE, {"policy.model": user.model(), "policy.lora": {"rank": 2}})
    user.mmalign("export", "runs/r")
    place = user.folder / "runs/r/export/adapter_model.safetensors"
    tensors = load_file(str(place))
    del tensors[next(iter(tensors))]
    save_file(tensors, str(place))
    return user.train(OFFLINE, {"policy.model": "model", "policy.lora": {"from": "runs/r/export"}, "run.name": "again"})


@fault(2, "a tensor missing from a reference", "references.ref: .*no .*up_proj")
def reference(user: User) -> str:
    user.model("other", without=[LAYER])
    return user.train(OFFLINE, {"policy.model": user.model(), "references": {"ref": {"from": "other"}}})


@fault(2, "a tensor missing from a reward's model", "tensors of .* are there; missing: visual_projection.weight")
def reward(user: User) -> str:
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 64}, vision_config={**small, "image_size": 8, "patch_size": 4}, projection_dim=8
    )
    CLIPModel(config).save_pretrained("clip")
    tensors = load_file("clip/model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, "clip/model.safetensors", metadata={"format": "pt"})
    return user.python(
        'mm.rewards.pickscore(weights="clip", processor="clip")(images, prompts)',
        lambda: mm.rewards.pickscore(weights="clip", processor="clip")(rand(1, 3, 8, 8), ["a"]),
    )


# ---- 3


def gold(answer: str, completion: str, right: float) -> None:
    @fault(3, f"gold {answer}, completion {completion}", f"^{right}$")
    def act(user: User) -> str:
        text = [rf"So it is \boxed{{{completion}}}."]
        return user.python(
            f"mm.rewards.math_answer()({text}, ['q'], answer=[{answer!r}])",
            lambda: float(mm.rewards.math_answer()(text, ["q"], answer=[answer])[0]),
        )


for _gold in (
    "x^2+1", r"\left( 3, \frac{\pi}{2} \right)", r"\frac{\sqrt{3}}{2}", r"2\sqrt{13}", r"5 \text{ cm}", r"\dfrac{3}{4}", "x=4", "[2,5)",
    "10:30", "2024-05-01", "18",
):  # fmt: skip
    gold(_gold, _gold, 1.0)
gold("x^2+1", "1", 0.0)
gold(r"\frac{3}{4}", "0.75", 1.0)


# ---- 7


@fault(7, "dense_dpo like: RLAIF-V averages where their code sums", "RLAIF-V.*total")
def rlaif(user: User) -> str:
    return " ".join(user.mmalign("explain", "dense_dpo").split())


@fault(7, "configs/llava15_7b/dense_dpo.yaml follows it", "like: RLAIF-V")
def follows(user: User) -> str:
    return user.python("the config's own text", lambda: resource("configs/llava15_7b/dense_dpo.yaml").read_text())
