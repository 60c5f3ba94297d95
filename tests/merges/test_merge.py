"""Several models as one: of adapters, whole models and pipelines, against the sums of their effective weights by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import mmalign as mm
from mmalign.commands.merge import merge
from mmalign.policies.twins import pipelines as twins
from mmalign.runs import checkpoint
from mmalign.types import UserError

LAYER = "model.layers.1.self_attn.q_proj"
TEXT = {"use": "transformers", "model": {"use": "text"}, "max_completion": 8}


def text(**keywords: Any) -> Any:
    return mm.policies.transformers(mm.worlds.text(), max_completion=8, **keywords)


def shaken(policy: Any, seed: int) -> Any:
    with torch.no_grad():
        for p in policy.sets.trained.values():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
    return policy


def run(place: Path, policy: Any, node: Any = None) -> mm.Part:
    """The folder of a run that trained what the policy trains."""
    checkpoint.save(
        place / "checkpoints", 1, tensors={"trained": policy.sets.tables()["trained"]}, state={"learner": {"scales": policy.sets.scales}}
    )
    (place / "config.yaml").write_text(yaml.safe_dump({"use": "online", "policy": node or TEXT}))
    return mm.Part(from_=str(place))


def folder(place: Path, policy: Any) -> mm.Part:
    """The folder of a model, as transformers writes it."""
    policy.model.save_pretrained(place)
    policy.chat.tokenizer.save_pretrained(place)
    return mm.Part(from_=str(place))


def loaded(place: Path) -> dict[str, Tensor]:
    from transformers import AutoModelForCausalLM

    return {name: p.detach().double() for name, p in AutoModelForCausalLM.from_pretrained(place).named_parameters()}


def weights(policy: Any) -> dict[str, Tensor]:
    """A policy's effective weights, in float64."""
    found = {name.replace(".base_layer", ""): p.detach().double() for name, p in policy.model.named_parameters() if "lora_" not in name}
    for name, scale in policy.sets.scales.items():
        down, up = (policy.sets.trained[f"{name}.lora_{side}.default.weight"].detach().double() for side in "AB")
        found[f"{name}.weight"] = found[f"{name}.weight"] + scale * up @ down
    return found


def test_a_merge_of_two_adapters_is_the_base_and_the_mean_of_their_deltas(tmp_path: Path) -> None:
    one, two = shaken(text(lora={"rank": 2}), 1), shaken(text(lora={"rank": 5, "alpha": 10, "targets": "all-linear"}), 2)
    parts = {"one": run(tmp_path / "one", one), "two": run(tmp_path / "two", two)}
    out = merge(text(), parts, mm.merges.soup(of=["one", "two"], shares=[0.25, 0.75]), out=tmp_path / "merged")
    made, base, a, b = loaded(out), weights(text()), weights(one), weights(two)
    assert made.keys() == base.keys()
    for name, value in made.items():
        wanted = base[name] + 0.25 * (a[name] - base[name]) + 0.75 * (b[name] - base[name])
        assert float((value - wanted).abs().max()) < 1e-6, name
    assert float((made[f"{LAYER}.weight"] - base[f"{LAYER}.weight"]).abs().max()) > 0.05  # they say something
    card = (out / "README.md").read_text()
    assert (
        "LoRA of rank 5 in 14 layers" in card and "| all | 0.25 | 0.75 |" in card and card.count("| `") == 6
    )  # three parts with their hashes


@pytest.mark.parametrize("shares", [[1.0, 0.0], [0.0, 1.0]])
def test_shares_of_0_and_1_give_what_went_in(tmp_path: Path, shares: list[float]) -> None:
    one, two = shaken(text(), 1), shaken(text(), 2)
    parts = {"one": folder(tmp_path / "one", one), "two": mm.Part(policy=two)}
    made = loaded(merge(text(), parts, mm.merges.soup(of=["one", "two"], shares=shares), out=tmp_path / "merged"))
    wanted = weights(one if shares[0] else two)
    assert all(torch.equal(value, wanted[name]) for name, value in made.items())


def test_blocks_have_ratios_of_their_own(tmp_path: Path) -> None:
    tuned, chat = shaken(text(), 1), shaken(text(), 2)
    parts = {"fine": mm.Part(policy=tuned), "chat": mm.Part(policy=chat)}
    rule = mm.merges.residue(onto="chat", tuned="fine", ratios=[0.0, 0.5, 1.0, 2.0])
    made = loaded(merge(text(), parts, rule, out=tmp_path / "merged"))
    base, fine, onto = weights(text()), weights(tuned), weights(chat)
    for name, value in made.items():
        ratio = next(r for word, r in {"embed": 0.0, "layers.0": 0.5, "layers.1": 1.0, "norm": 2.0}.items() if word in name)
        assert float((value - onto[name] - ratio * (fine[name] - base[name])).abs().max()) < 1e-6, name


def test_pipelines_are_merged_expert_by_expert(tmp_path: Path) -> None:
    def pipe(seed: int) -> Any:
        made = twins.twin("WanPipeline")
        torch.manual_seed(seed)
        for name in ("transformer", "transformer_2"):
            with torch.no_grad():
                for p in made.components[name].parameters():
                    p.add_(0.05 * torch.randn(p.shape))
        return made

    first = twins.twin("WanPipeline")
    if first.components.get("transformer_2") is None:
        pytest.skip("this twin has one expert")
    one, two = pipe(1), pipe(2)
    for name, made in (("one", one), ("two", two)):
        made.save_pretrained(tmp_path / name)
    first.save_pretrained(tmp_path / "base")
    policy = mm.policies.diffusers(
        str(tmp_path / "base"), schedule={"steps": 2}, device="cpu", call={"height": 16, "width": 16, "num_frames": 5}
    )
    parts = {name: mm.Part(from_=str(tmp_path / name)) for name in ("one", "two")}
    out = merge(policy, parts, mm.merges.soup(of=["one", "two"]), out=tmp_path / "merged")
    again = type(first).from_pretrained(out)
    for expert in ("transformer", "transformer_2"):
        halves = [dict(made.components[expert].named_parameters()) for made in (one, two)]
        for name, p in again.components[expert].named_parameters():
            assert float((p - sum(half[name] for half in halves) / 2).abs().max()) < 1e-6, (expert, name)


def test_what_does_not_fit_is_one_line_before_anything_is_written(tmp_path: Path) -> None:
    rule = mm.merges.soup(of=["base", "a"])
    small = mm.policies.transformers(mm.worlds.text(model="small"), max_completion=8)
    adapter = shaken(text(lora={"rank": 2}), 1)
    other_words = folder(tmp_path / "words", text())
    file = tmp_path / "words" / "tokenizer.json"
    words = json.loads(file.read_text())
    swapped = list(words["model"]["vocab"])
    words["model"]["vocab"][swapped[10]], words["model"]["vocab"][swapped[11]] = 11, 10
    file.write_text(json.dumps(words))
    (tmp_path / "empty").mkdir()
    elsewhere = run(tmp_path / "elsewhere", adapter, {**TEXT, "model": {"use": "text", "model": "small"}})
    for part, line in (
        (folder(tmp_path / "small", small), r"parts\.a\.from: .* has the shape \[\d+, \d+\], and \[\d+, \d+\] here; takes the same arch"),
        (mm.Part(policy=small), r"parts\.a\.policy: .* has the shape"),
        (other_words, r"parts\.a\.from: its tokenizer has other ids: '.*' has the id 1[01] there and 1[01] here \(2 such\)"),
        (elsewhere, r"parts\.a\.from: its LoRA was trained on model .*small.*, and policy\.model is .*; takes the same base"),
        (mm.Part(from_=str(tmp_path / "empty")), r"parts\.a\.from: .*empty holds neither a checkpoint nor safetensors"),
        (mm.Part(from_="nowhere"), r"parts\.a\.from: no folder nowhere, and no run of that name"),
    ):
        with pytest.raises(UserError, match=line):
            merge(text(), {"a": part}, rule, out=tmp_path / "merged")
    one = run(tmp_path / "one", adapter)
    for keywords, line in (
        ({"policy": text(lora={"rank": 2})}, r"policy\.lora: got an adapter, and weights are merged into the whole model"),
        ({"parts": {}}, r"rule: reads 'a', and there is no such part; takes base"),
        ({"parts": {"a": one, "b": one}}, r"parts\.b: is not in the rule, which reads base, a"),
        ({"parts": {"a": one, "base": one}}, r"parts\.base: is the policy's own weights"),
        ({"search": mm.Search(prompts=["x"], rewards={"plain": mm.worlds.text_plain()})}, r"search: the rule has no two ratios"),
    ):
        given: dict[str, Any] = {"policy": text(), "parts": {"a": one}, "rule": rule, "out": tmp_path / "merged", **keywords}
        with pytest.raises(UserError, match=line):
            merge(**given)
    assert not (tmp_path / "merged").exists()


def searching(tmp_path: Path, reward: Callable[..., Any], out: str, **settings: Any) -> Path:
    tuned = shaken(text(), 1)
    search = mm.Search(prompts=["the function", "this class"], rewards={"mine": reward}, evaluations=9, samples=2, **settings)
    rule = mm.merges.by_block(aligned="tuned", mean=0.5, blocks=4)
    return merge(text(), {"tuned": mm.Part(policy=tuned)}, rule, out=tmp_path / out, search=search)


def test_a_search_that_is_killed_goes_on_to_the_same_end(tmp_path: Path) -> None:
    plain, asked = mm.worlds.text_plain(), []

    def dying(outputs: Any, prompts: list[str], **_: Any) -> Tensor:
        asked.append(len(outputs))
        if len(asked) == 6:
            raise KeyboardInterrupt
        return plain(outputs, prompts)

    whole = searching(tmp_path, plain, "whole")
    with pytest.raises(KeyboardInterrupt):
        searching(tmp_path, dying, "killed")
    assert not (tmp_path / "killed").exists()
    log = tmp_path / "killed.search" / "search.jsonl"
    log.write_text(log.read_text() + '{"numbers": [0.5, 0')  # half of a line
    asked.extend([0] * 10)
    again = searching(tmp_path, dying, "killed")
    assert len(asked) == 6 + 10 + 4  # five were known
    assert (again / "search.jsonl").read_text() == (whole / "search.jsonl").read_text() and not log.exists()
    assert all(torch.equal(value, loaded(whole)[name]) for name, value in loaded(again).items())
    lines = [json.loads(line) for line in (whole / "search.jsonl").read_text().splitlines()][1:]
    assert len(lines) == 9 and lines[0]["numbers"] == [0.5] * 4
    with pytest.raises(KeyboardInterrupt):
        asked.clear()
        searching(tmp_path, dying, "other")
    with pytest.raises(UserError, match=r"out: .*search\.jsonl is of another search, which differs in seed"):
        searching(tmp_path, plain, "other", seed=1)


def test_a_search_never_takes_what_loses_what_is_kept(tmp_path: Path) -> None:
    asked = []

    def rising(outputs: Any, prompts: list[str], **_: Any) -> Tensor:
        asked.append(0)
        return torch.full((len(outputs),), float(len(asked)), dtype=torch.float64)  # the last candidate is always the best

    def falling(outputs: Any, prompts: list[str], **_: Any) -> Tensor:
        return torch.full((len(outputs),), float(len(asked) not in (5, 9)), dtype=torch.float64)

    out = searching(tmp_path, rising, "kept", kept={"english": falling})
    assert "| kept/english | 1.0000 | 1.0000 |" in (out / "README.md").read_text()
    assert "| reward | 1.0000 | 8.0000 |" in (out / "README.md").read_text()


def test_the_command_says_where_it_is(tmp_path: Path, mmalign: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "runs" / "one", shaken(text(lora={"rank": 2}), 1))
    config = {
        "use": "merge",
        "policy": TEXT,
        "parts": {"one": {"from": "one"}},
        "rule": {"use": "soup", "of": ["base", "one"]},
        "out": "made",
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert mmalign("check", "c.yaml")[0] == 0
    code, out, err = mmalign("merge", "c.yaml")
    assert (code, out.strip()) == (0, "merge: made"), err
    code, _, err = mmalign("merge", "c.yaml")
    assert code == 2 and "made exists: takes a folder that is not there yet" in err
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**config, "use": "make_pairs"}))
    code, _, err = mmalign("merge", "c.yaml")
    assert code == 2 and "use: got 'make_pairs', takes merge, evolve, shift" in err
