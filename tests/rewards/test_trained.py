"""A finished run as a reward, and a reward model as transformers loads it."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import mmalign as mm
from mmalign import config
from mmalign.cli import app
from mmalign.policies.scorers.thinned import thinned
from mmalign.types import UserError

PAIRS = {"use": "text_pairs", "prompts": 16, "groups": 1, "best_of": 3}

SOME = tuple([pair[place] for pair in mm.worlds.text_pairs(prompts=2, groups=1, best_of=2)] for place in (0, 1))
"""Two prompts, and an output of each."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    node = config.load(
        "reward_models/text",
        ["steps=3", "batch.records=8", "evaluation.every=3", "run.name=rm", f"run.folder={tmp_path_factory.mktemp('runs')}"],
    )
    node["records"] = PAIRS
    node["evaluation"]["records"] = {**PAIRS, "offset": 16}
    return config.build(node)


def test_a_run_scores_as_its_policy_does(run: Any) -> None:
    reward, prompts, outputs = mm.rewards.trained(str(run.path)), *SOME
    torch.testing.assert_close(reward(outputs, prompts), run.policy.score(prompts, outputs)[:, 0])
    with pytest.warns(UserWarning, match="trained: cannot read an output, which has no score then: completion: got an empty one"):
        partly = reward(["", *outputs, outputs[0] * 9], [prompts[0], *prompts, prompts[0]])
    assert [math.isnan(score) for score in partly.tolist()] == [True, False, False, True]
    torch.testing.assert_close(partly[1:3], reward(outputs, prompts))
    with pytest.raises(UserError, match=r"trained\.part: got 'other', .* scores score"):
        mm.rewards.trained(str(run.path), part="other")


def test_transformers_loads_an_export_and_scores_alike(run: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    run.export(tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    chat = run.policy.of.chat
    prompt, output = SOME[0][0], SOME[1][0]
    ids = [*chat.prompt(prompt).ids, *chat.row(prompt, output).completion]
    scores = model(input_ids=torch.tensor([ids])).logits.double()
    torch.testing.assert_close(scores, run.policy.score([prompt], [output]), rtol=1e-5, atol=1e-6)
    if model.config.pad_token_id is not None:
        filled = model(input_ids=torch.tensor([[*ids, *[model.config.pad_token_id] * 3]])).logits.double()
        torch.testing.assert_close(filled, scores, rtol=1e-5, atol=1e-6)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    ask = f"import torch\nprint('SAID', model(input_ids=torch.tensor([{ids}])).logits[0].tolist())"
    text = f"import sys\nsys.modules['mmalign'] = None  # whoever imports it fails\n{code}\n{ask}"
    fresh = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, cwd=tmp_path / "out")
    said = json.loads(fresh.stdout.splitlines()[-1].removeprefix("SAID "))
    torch.testing.assert_close(torch.tensor([said]).double(), scores, rtol=1e-5, atol=1e-6)


def test_an_implicit_reward_is_the_log_ratio_of_whole_answers(tmp_path: Path) -> None:
    node = config.load("text/dpo", ["steps=2", "batch.records=8", "evaluation.samples=1", "run.name=dpo", f"run.folder={tmp_path}"])
    node["records"], node["evaluation"]["prompts"] = PAIRS, SOME[0]
    policy = config.build(node).policy
    prompts, outputs = SOME
    rollout, rows = policy.encode(prompts, outputs, torch.arange(2), torch.Generator()), torch.arange(2)
    policy.remember(rollout, ["ref"], 2)
    steps = policy.steps(rollout, rows, needs=mm.methods.dpo().needs)
    wanted = torch.where(steps.mask, steps.log_probs - steps.refs["ref"], 0.0).sum(1).detach()
    got = mm.rewards.trained(str(tmp_path / "dpo"))(outputs, prompts)
    assert bool((wanted != 0).all())
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)
    parts = mm.rewards.log_likelihoods(str(tmp_path / "dpo"))(outputs, prompts)
    torch.testing.assert_close(parts["policy"] - parts["reference"], got)
    ranks_its_likelihoods(tmp_path, prompts, outputs, parts)


def ranks_its_likelihoods(folder: Path, prompts: list[Any], outputs: list[Any], parts: Any) -> None:
    """What the command says of the run's pairs, against the sums of its log-probabilities."""
    row = {"prompt": prompts[0], "chosen": outputs[0], "rejected": outputs[1], "subset": "hep-cpp", "id": 1}
    (folder / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    words = ["--suite", "reward_bench", "--data", str(folder / "pairs.jsonl"), "ranking=true", "beta=0.5"]
    done = CliRunner().invoke(app, ["eval", str(folder / "dpo"), *words])
    assert done.exit_code == 0 and "idealised" in done.output, done.output
    kept = json.loads((folder / "dpo/evaluations/reward_bench-ranking/rows.jsonl").read_text())
    own = mm.rewards.log_likelihoods(str(folder / "dpo"))(outputs, [prompts[0]] * 2)
    torch.testing.assert_close(torch.tensor(kept["policy"], dtype=torch.float64), own["policy"])
    assert kept["raw"] == pytest.approx(float(own["policy"][0] - own["policy"][1]))
    missing = CliRunner().invoke(app, ["eval", *words, "--reward", "{use: length, most: 2}"])
    assert missing.exit_code == 2 and "ranking: got no run" in missing.output


def test_a_run_is_measured_by_a_benchmark_of_rewards(run: Any, tmp_path: Path) -> None:
    pairs = mm.worlds.text_pairs(prompts=4, groups=1, best_of=2)
    rows = [
        {"prompt": pair.prompt, "chosen": pair.first, "rejected": pair.second, "subset": "hep-cpp", "id": n} for n, pair in enumerate(pairs)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = CliRunner().invoke(
        app, ["eval", str(run.path), "--suite", "reward_bench", "--data", str(tmp_path / "pairs.jsonl"), "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    scores = [json.loads(line)["scores"] for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    expected = run.policy.score([pair.prompt for pair in pairs], [pair.first for pair in pairs])[:, 0]
    torch.testing.assert_close(torch.tensor([row[0] for row in scores], dtype=torch.float64), expected)


def test_draws_of_dropout_are_an_ensemble_of_one_model(run: Any) -> None:
    """Each pass is the model with some columns of its weights set to 0 and the others made larger, by hand."""
    import copy

    prompts, outputs = SOME
    reward = mm.rewards.trained(str(run.path), passes=3, dropout=0.25, seed=7)
    said = reward(outputs, prompts)
    assert [*said] == ["pass_1", "pass_2", "pass_3"] and len({float(one[0]) for one in said.values()}) == 3
    for name, scores in said.items():  # a row's score does not depend on the rows beside it
        torch.testing.assert_close(reward(outputs[1:], prompts[1:])[name], scores[1:], rtol=1e-5, atol=1e-6)
    policy, means = copy.deepcopy(run.policy), []
    with policy.thinned(0.25, 7 * 1_000_003):
        torch.testing.assert_close(policy.score(prompts, outputs)[:, 0], said["pass_1"], rtol=1e-5, atol=1e-6)
    layer = torch.nn.Linear(400, 3)
    for seed in range(200):
        with thinned(layer, share=0.25, seed=seed):
            means.append(layer(torch.ones(400)))
    kept = (torch.stack(means) - layer.bias) / layer.weight.sum(1)  # 1 in the mean
    assert bool(((torch.stack(means).mean(0) - layer(torch.ones(400))).abs() < 0.2).all()) and bool((kept[0] != kept[1]).all())
    assert bool((layer(torch.ones(400)) == layer(torch.ones(400))).all()) and not layer._forward_pre_hooks
    with pytest.raises(UserError, match=r"trained\.passes: got 2 of a policy of kind token, takes a reward model"):
        mm.rewards.trained(str(_token_run(run)), passes=2)


def _token_run(run: Any) -> Path:
    node = config.load(
        "text/dpo", ["steps=1", "batch.records=4", "evaluation.samples=1", "run.name=tokens", f"run.folder={run.path.parent}"]
    )
    node["records"], node["evaluation"]["prompts"] = PAIRS, SOME[0]
    return Path(config.build(node).path)
